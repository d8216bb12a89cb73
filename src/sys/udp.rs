//! UDP sockets that send and receive many datagrams a call, with local address and DS field.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use socket2::{Domain, Protocol, Socket, Type};

use super::calls::Calls;
use super::fault::{self, Call};
use super::offload::{Active, Feature, Switch, Wanted};
use super::{cmsg, sockaddr, sockopt};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, without IPv4-mapped addresses.
    V6,
}

/// How a socket is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions {
    /// `SO_MARK`; 0 for none.
    pub mark: u32,
    /// Bytes that each buffer holds; 0 for the system's default.
    pub buffer: i32,
    /// Which features of the kernel are to be tried.
    pub wanted: Wanted,
}

/// A local address and the interface it was seen on; 0 for any.
pub type LocalAddr = (IpAddr, u32);

/// A UDP socket of one family on all addresses.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    family: Family,
    offloads: Active,
    /// `IP_TOS` as a control message, Linux 3.13; cleared when the kernel refuses it.
    takes_ds: AtomicBool,
}

impl UdpSocket {
    /// Opens a socket on `port`, 0 for any that is free, which nobody else has open; [`Self::sibling`] then shares it.
    ///
    /// # Errors
    /// `EADDRINUSE`; `EAFNOSUPPORT` or `EADDRNOTAVAIL` where the family is switched off; `EPERM` for a mark without `CAP_NET_ADMIN`.
    pub fn bind(family: Family, port: u16, options: &UdpOptions) -> io::Result<Self> {
        let this = Self::open(family, options)?;
        this.bind_to(port)?;
        // Only now: two programs that both share from the beginning would silently steal each other's datagrams. A system that does not
        // know it refuses the siblings.
        let _ = this.socket.set_reuse_port(true);
        Ok(this)
    }

    /// Opens another socket on the same port; the kernel spreads senders over all of them.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn sibling(&self, options: &UdpOptions) -> io::Result<Self> {
        let this = Self::open(self.family, options)?;
        fault::check(Call::ReusePort)?;
        this.socket.set_reuse_port(true)?;
        this.bind_to(self.local_port()?)?;
        Ok(this)
    }

    fn open(family: Family, options: &UdpOptions) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => fault::check(Call::SocketV4).map(|()| Domain::IPV4),
            Family::V6 => fault::check(Call::SocketV6).map(|()| Domain::IPV6),
        }?;
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        match family {
            // Outer fragments are allowed (kernel WireGuard sends without DF).
            Family::V4 => set_those_known(
                &socket,
                libc::IPPROTO_IP,
                &[
                    (Call::PacketInfo, libc::IP_PKTINFO, 1),
                    (Call::ReceiveTos, libc::IP_RECVTOS, 1),
                    (Call::PathMtu, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
                ],
            ),
            Family::V6 => {
                socket.set_only_v6(true)?;
                set_those_known(
                    &socket,
                    libc::IPPROTO_IPV6,
                    &[
                        (Call::PacketInfo, libc::IPV6_RECVPKTINFO, 1),
                        (Call::ReceiveTos, libc::IPV6_RECVTCLASS, 1),
                        (Call::PathMtu, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
                    ],
                );
            }
        }
        if options.mark != 0 {
            fault::check(Call::Mark)?;
            socket.set_mark(options.mark)?;
        }
        if options.buffer > 0 {
            set_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.buffer);
            set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.buffer);
        }
        let mut offloads = Active::default();
        let segment = || {
            fault::check(Call::UdpSegment)?;
            // Zero changes nothing; a kernel that does not know the option refuses it.
            sockopt::set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
        };
        // Linux 7.0 to 7.1.4 corrupts datagrams of a run whose last one is as long as the others (tailscale #19777).
        let is_sound = !([7, 0, 0]..[7, 1, 5]).contains(&fault::kernel_version());
        let is_tried = is_sound || options.wanted.switch(Feature::Gso) == Switch::On;
        offloads.set(Feature::Gso, is_tried && options.wanted.attempt(Feature::Gso, segment)?);
        let gro = || {
            fault::check(Call::UdpGro)?;
            sockopt::set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)
        };
        // Before Linux 5.12 runs are split again in ways that lose some of them (wireguard-go asks for the same version).
        let is_tried =
            fault::kernel_version() >= [5, 12, 0] || options.wanted.switch(Feature::Gro) == Switch::On;
        offloads.set(Feature::Gro, is_tried && options.wanted.attempt(Feature::Gro, gro)?);
        Ok(Self { socket, family, offloads, takes_ds: AtomicBool::new(true) })
    }

    /// Returns what is in use of the features of UDP sockets.
    pub fn offloads(&self) -> Active {
        self.offloads
    }

    /// Lets the kernel choose among this socket and its siblings, in the order of their opening, by what a datagram carries: the
    /// little-endian number at bytes 4 to 7, modulo `data`, if the first four bytes are 4; the socket behind those otherwise.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.5.
    pub fn steer(&self, data: u32) -> io::Result<()> {
        fault::check(Call::Steering)?;
        // Classic BPF; the program sees the datagram's payload, and numbers big-endian.
        let load_word = |at| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        let load_byte = |at| filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
        let shift = |bits| filter(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 0, 0, bits);
        let or_x = filter(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0, 0, 0);
        let to_x = filter(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
        let answer = filter(libc::BPF_RET | libc::BPF_A, 0, 0, 0);
        let program = [
            // The type: 4, little-endian, is data.
            load_word(0),
            filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0x0400_0000),
            filter(libc::BPF_RET | libc::BPF_K, 0, 0, data),
            // The receiver, byte by byte from the highest.
            load_byte(7),
            shift(8),
            to_x,
            load_byte(6),
            or_x,
            shift(8),
            to_x,
            load_byte(5),
            or_x,
            shift(8),
            to_x,
            load_byte(4),
            or_x,
            filter(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, data),
            answer,
        ];
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(0),
            filter: program.as_ptr().cast_mut(),
        };
        sockopt::set_struct(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
    }

    fn bind_to(&self, port: u16) -> io::Result<()> {
        let any: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.socket.bind(&SocketAddr::new(any, port).into())
    }

    /// Returns the port.
    ///
    /// # Errors
    /// Never for an open socket.
    pub fn local_port(&self) -> io::Result<u16> {
        let addr = self.socket.local_addr()?.as_socket();
        Ok(addr.map_or(0, |addr| addr.port()))
    }

    /// Sets `SO_MARK`, 0 for none.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        fault::check(Call::Mark)?;
        self.socket.set_mark(mark)
    }

    /// Returns the family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Waits until there is room to send, at most `milliseconds`.
    pub fn wait_writable(&self, milliseconds: u16) {
        let mut fds = [rustix::event::PollFd::new(self, rustix::event::PollFlags::OUT)];
        let timeout =
            rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds.min(999)) * 1_000_000 };
        // Whatever it says, the next call to send tells more.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }
}

fn filter(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}

/// Sets options without which a tunnel works as well: a system that only resembles Linux may lack them (gVisor, WSL).
fn set_those_known(socket: &Socket, level: i32, options: &[(Call, i32, i32)]) {
    for &(call, name, value) in options {
        let _ = fault::check(call).and_then(|()| sockopt::set(socket, level, name, value));
    }
}

/// Beyond the limit of the system if that is permitted, and as far as it goes if not.
fn set_buffer(socket: &Socket, force: i32, plain: i32, bytes: i32) {
    let set =
        |call, name| fault::check(call).and_then(|()| sockopt::set(socket, libc::SOL_SOCKET, name, bytes));
    if set(Call::BufferForce, force).is_err() {
        let _ = set(Call::Buffer, plain);
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Buffers for datagrams to receive in one call.
pub struct RecvBatch {
    slot_len: usize,
    buffers: Vec<u8>,
    names: Vec<sockaddr::Name>,
    controls: Vec<cmsg::Buffer>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    calls: Calls,
    /// The socket of the last call may receive several datagrams as one.
    may_be_runs: bool,
}

/// A datagram that was received.
#[derive(Debug)]
pub struct Received<'a> {
    /// What it carries.
    pub payload: &'a mut [u8],
    /// Where the payload lies in [`RecvBatch::bytes`].
    pub range: Range<usize>,
    /// Its payload is that of several datagrams of this length, of which only the last one may be shorter; else its length.
    pub segment: usize,
    /// Who sent it; a link-local address with its scope.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: Option<LocalAddr>,
    /// The two ECN bits.
    pub ecn: u8,
    /// It was longer than the buffer; or there was no room for what the kernel says of it, and it may be several datagrams.
    pub truncated: bool,
}

// SAFETY: the pointers in the headers are written by the call that uses them and mean nothing afterwards.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    /// Returns `slots` buffers of `slot_len` bytes. Pages that no datagram touches take no memory.
    pub fn new(slots: usize, slot_len: usize) -> Self {
        Self {
            slot_len,
            buffers: vec![0; slots * slot_len],
            names: vec![sockaddr::EMPTY; slots],
            controls: vec![cmsg::Buffer::new(); slots],
            iovecs: Vec::with_capacity(slots),
            headers: Vec::with_capacity(slots),
            calls: Calls::Many,
            may_be_runs: false,
        }
    }

    /// Receives as many datagrams as there are, at most one a buffer and at most `most`, and returns their number.
    ///
    /// # Errors
    /// `WouldBlock` if there are none.
    pub fn recv(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        fault::check(Call::Receive)?;
        self.may_be_runs = socket.offloads.has(Feature::Gro);
        let room = if fault::is_due(Call::ReceiveRoom) { self.slot_len.min(1600) } else { self.slot_len };
        let control_room = if fault::is_due(Call::ControlRoom) { 0 } else { cmsg::CAPACITY };
        self.iovecs.clear();
        self.iovecs.extend(
            self.buffers.chunks_exact_mut(self.slot_len).take(most).map(|slot| libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: room.min(slot.len()),
            }),
        );
        self.headers.clear();
        let parts = self.iovecs.iter_mut().zip(&mut self.names).zip(&mut self.controls);
        self.headers.extend(parts.map(|((iovec, name), control)| {
            let mut header = empty_header();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = sockaddr::LEN_MAX;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control_room;
            header
        }));
        let fd = socket.as_raw_fd();
        let (flags, none) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        let received = self.calls.make(
            &mut self.headers,
            fault::check(Call::ReceiveMany),
            // SAFETY: each header points to a buffer, a name and a control buffer of the lengths it says, all owned by `self` and not
            // touched until the call returns.
            |headers, count| unsafe { libc::recvmmsg(fd, headers, count, flags, none) },
            // SAFETY: likewise.
            |header| unsafe { libc::recvmsg(fd, header, flags) },
        )?;
        // Only now: to find nothing is no attempt.
        let _ = [Call::ReceiveRoom, Call::ControlRoom].map(fault::check);
        for (header, control) in self.headers[..received].iter().zip(&mut self.controls) {
            control.set_len(header.msg_hdr.msg_controllen);
        }
        Ok(received)
    }

    /// Returns datagram `slot` of the last call, or `None` if its sender's address makes no sense.
    pub fn get_mut(&mut self, slot: usize) -> Option<Received<'_>> {
        let header = &self.headers[slot];
        let from = sockaddr::decode(&self.names[slot], header.msg_hdr.msg_namelen)?;
        let (mut to, mut ecn, mut segment) = (None, 0, 0);
        for (level, kind, data) in self.controls[slot].iter() {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => to = v4_info(data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => to = v6_info(data),
                // One byte for IPv4, an int for IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = data.first().map_or(0, |tos| tos & 3),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = data
                        .first_chunk()
                        .map_or(0, |class| i32::from_ne_bytes(*class) & 3)
                        .try_into()
                        .unwrap_or(0);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    // An int, in the machine's byte order.
                    segment = data.first_chunk().map_or(0, |len| i32::from_ne_bytes(*len));
                }
                _ => {}
            }
        }
        let flags = header.msg_hdr.msg_flags;
        // Of a run, its length is what cannot be done without; a single datagram has none.
        let is_unknown = flags & libc::MSG_CTRUNC != 0 && self.may_be_runs && segment == 0;
        let truncated = flags & libc::MSG_TRUNC != 0 || is_unknown;
        let len = (header.msg_len as usize).min(self.slot_len);
        let start = slot * self.slot_len;
        let range = start..start + len;
        let segment = usize::try_from(segment).ok().filter(|&segment| segment > 0).unwrap_or(len);
        Some(Received { payload: &mut self.buffers[range.clone()], range, segment, from, to, ecn, truncated })
    }

    /// Returns all buffers.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffers
    }
}

/// `struct in_pktinfo`: interface, preferred source, destination of the header.
fn v4_info(data: &[u8]) -> Option<LocalAddr> {
    let interface = u32::from_ne_bytes(*data.first_chunk()?);
    let destination: [u8; 4] = data.get(8..12)?.try_into().ok()?;
    Some((destination.into(), interface))
}

/// `struct in6_pktinfo`: destination, interface.
fn v6_info(data: &[u8]) -> Option<LocalAddr> {
    let destination: [u8; 16] = *data.first_chunk()?;
    let interface = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
    Some((destination.into(), interface))
}

/// A datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Whom to.
    pub to: SocketAddr,
    /// The local address it leaves by, if that matters.
    pub from: Option<IpAddr>,
    /// The DS field.
    pub ds: u8,
    /// The hop limit (in IPv4: the time to live), if it is not the system's default.
    pub hop_limit: Option<u8>,
    /// What it carries.
    pub payload: &'a [u8],
    /// It is several datagrams of this length, of which only the last one may be shorter (`UDP_SEGMENT`); 0 if it is one.
    pub segment: u16,
}

impl<'a> Datagram<'a> {
    /// Tells whether it is several datagrams.
    pub fn is_segmented(&self) -> bool {
        self.segment != 0 && usize::from(self.segment) < self.payload.len()
    }

    /// Tells whether its headers are to say what those of a datagram do not say by default.
    fn is_marked(&self) -> bool {
        self.ds != 0 || self.hop_limit.is_some()
    }

    /// Returns the datagrams that it is, one by one.
    pub fn parts(&self) -> impl Iterator<Item = Self> + use<'a> {
        let whole = *self;
        let len = if whole.is_segmented() { whole.segment.into() } else { whole.payload.len().max(1) };
        let empty = whole.payload.is_empty().then_some(whole.payload);
        whole.payload.chunks(len).chain(empty).map(move |payload| Self { payload, segment: 0, ..whole })
    }
}

/// Room for the headers of datagrams to send in one call.
pub struct SendBatch {
    names: Vec<sockaddr::Name>,
    controls: Vec<cmsg::Buffer>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    calls: Calls,
}

// SAFETY: the pointers in the headers are written by the call that uses them and mean nothing afterwards.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Returns room for `slots` datagrams.
    pub fn new(slots: usize) -> Self {
        Self {
            names: vec![sockaddr::EMPTY; slots],
            controls: vec![cmsg::Buffer::new(); slots],
            iovecs: Vec::with_capacity(slots),
            headers: Vec::with_capacity(slots),
            calls: Calls::Many,
        }
    }

    /// Sends the first datagrams of `datagrams`, at most as many as there is room for, and returns how many that were.
    ///
    /// # Errors
    /// What hinders the first one.
    pub fn send(&mut self, socket: &UdpSocket, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        let takes_ds = socket.takes_ds.load(Relaxed);
        let result = self.send_marked(socket, datagrams, takes_ds);
        // Linux before 3.13 knows no DS field as a control message, and some systems fail with it (quinn #2718): better unmarked than not
        // at all.
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        let is_refused = matches!(errno, Some(libc::EINVAL | libc::EIO));
        let may_be_the_mark = |first: &Datagram<'_>| takes_ds && first.is_marked() && !first.is_segmented();
        if is_refused && datagrams.first().is_some_and(may_be_the_mark) {
            let again = self.send_marked(socket, datagrams, false);
            if again.is_ok() {
                socket.takes_ds.store(false, Relaxed);
            }
            return again;
        }
        result
    }

    fn send_marked(
        &mut self,
        socket: &UdpSocket,
        datagrams: &[Datagram<'_>],
        takes_ds: bool,
    ) -> io::Result<usize> {
        let datagrams = with_faults(datagrams, takes_ds)?;
        self.iovecs.clear();
        self.iovecs.extend(datagrams.iter().take(self.names.len()).map(|datagram| libc::iovec {
            iov_base: datagram.payload.as_ptr().cast_mut().cast(),
            iov_len: datagram.payload.len(),
        }));
        self.headers.clear();
        let parts = self.iovecs.iter_mut().zip(&mut self.names).zip(&mut self.controls).zip(datagrams);
        self.headers.extend(parts.map(|(((iovec, name), control), datagram)| {
            control.clear();
            write_control(control, datagram, takes_ds);
            let mut header = empty_header();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_namelen = sockaddr::encode(datagram.to, name);
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.len();
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header
        }));
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
        self.calls.make(
            &mut self.headers,
            fault::check(Call::SendMany),
            // SAFETY: each header points to a payload, a name and a control buffer of the lengths it says, which outlive the call; the
            // kernel writes only to the headers' lengths.
            |headers, count| unsafe { libc::sendmmsg(fd, headers, count, flags) },
            // SAFETY: likewise.
            |header| unsafe { libc::sendmsg(fd, header, flags) },
        )
    }
}

/// Cuts `datagrams` off before the first that is to fail, as the kernel does; fails if that is the very first.
fn with_faults<'a, 'b>(datagrams: &'b [Datagram<'a>], takes_ds: bool) -> io::Result<&'b [Datagram<'a>]> {
    if !fault::ARE_POSSIBLE {
        return Ok(datagrams);
    }
    let calls = |datagram: &Datagram<'_>| {
        let kind = if datagram.is_segmented() { Call::SendSegmented } else { Call::Send };
        let marked = (takes_ds && datagram.is_marked()).then_some(Call::SendTos);
        let from = datagram.from.map(|_| Call::SendFrom);
        [Some(kind), marked, from].into_iter().flatten()
    };
    datagrams.first().into_iter().flat_map(calls).try_for_each(fault::check)?;
    let behind = datagrams.iter().skip(1).position(|datagram| calls(datagram).any(fault::is_due));
    Ok(behind.map_or(datagrams, |behind| &datagrams[..=behind]))
}

fn write_control(control: &mut cmsg::Buffer, datagram: &Datagram<'_>, takes_ds: bool) {
    if datagram.is_segmented() {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &datagram.segment.to_ne_bytes());
    }
    let ds = i32::from(datagram.ds).to_ne_bytes();
    // Linux 3.13 as well.
    let hop_limit = datagram.hop_limit.filter(|_| takes_ds).map(|limit| i32::from(limit).to_ne_bytes());
    match datagram.to {
        SocketAddr::V4(_) => {
            if takes_ds && datagram.ds != 0 {
                control.push(libc::IPPROTO_IP, libc::IP_TOS, &ds);
            }
            if let Some(limit) = hop_limit {
                control.push(libc::IPPROTO_IP, libc::IP_TTL, &limit);
            }
            if let Some(IpAddr::V4(from)) = datagram.from {
                // No interface: the routing table chooses it.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
        }
        SocketAddr::V6(_) => {
            if takes_ds && datagram.ds != 0 {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &ds);
            }
            if let Some(limit) = hop_limit {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &limit);
            }
            if let Some(IpAddr::V6(from)) = datagram.from {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: an mmsghdr is numbers and pointers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::with_faults;
    use std::time::{Duration, Instant};

    fn recv(batch: &mut RecvBatch, socket: &UdpSocket) -> usize {
        #[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match batch.recv(socket, usize::MAX) {
                Ok(received) => return received,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
            let now = Instant::now();
            assert!(now < deadline, "nothing arrived");
        }
    }

    #[test]
    fn datagrams_arrive_with_addresses_and_ecn_in_both_families() {
        for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
            let Ok(socket) = UdpSocket::bind(family, 0, &UdpOptions::default()) else {
                eprintln!("skipped: {family:?} missing");
                continue;
            };
            let ip: IpAddr = ip.parse().unwrap();
            let to = SocketAddr::new(ip, socket.local_port().unwrap());
            let payloads: Vec<Vec<u8>> = [0, 1, 1000, 40_000].map(|len| vec![7; len]).to_vec();
            let datagrams: Vec<_> = payloads
                .iter()
                .zip([Some(ip), None, Some(ip), None])
                .map(|(payload, from)| Datagram {
                    to,
                    from,
                    ds: 0x88 | 2,
                    hop_limit: from.map(|_| 9),
                    payload,
                    segment: 0,
                })
                .collect();
            assert_eq!(SendBatch::new(8).send(&socket, &datagrams).unwrap(), 4);
            let mut batch = RecvBatch::new(8, 30_000);
            let mut seen = 0;
            while seen < 4 {
                for slot in 0..recv(&mut batch, &socket) {
                    let received = batch.get_mut(slot).unwrap();
                    assert_eq!((received.from, received.to.unwrap().0, received.ecn), (to, ip, 2));
                    assert_eq!(received.truncated, payloads[seen].len() > 30_000);
                    assert_eq!(received.payload.len(), payloads[seen].len().min(30_000));
                    seen += 1;
                }
            }
        }
    }

    #[test]
    fn a_marked_run_arrives_with_its_mark_in_both_families_whole_or_cut_up() {
        for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
            for (switch, runs) in [("gro=on", 1), ("gro=off", 5)] {
                let options =
                    |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
                let (inbox, outbox) = (
                    UdpSocket::bind(family, 0, &options(switch)),
                    UdpSocket::bind(family, 0, &options("gso=on")),
                );
                let (Ok(inbox), Ok(outbox)) = (inbox, outbox) else {
                    eprintln!("skipped: {family:?}, UDP_GRO or UDP_SEGMENT missing");
                    continue;
                };
                let ip: IpAddr = ip.parse().unwrap();
                let (to, from) = (SocketAddr::new(ip, inbox.local_port().unwrap()), Some(ip));
                for (ds, hop_limit) in [(0x88 | 2, None), (3, Some(9))] {
                    let datagram = Datagram { to, from, ds, hop_limit, payload: &[7; 1999], segment: 400 };
                    assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
                    let mut batch = RecvBatch::new(8, 1 << 16);
                    assert_eq!(recv(&mut batch, &inbox), runs, "{family:?} {switch}");
                    for slot in 0..runs {
                        let run = batch.get_mut(slot).unwrap();
                        assert_eq!((run.ecn, run.to.unwrap().0, run.from.ip()), (ds & 3, ip, ip));
                        assert_eq!(run.segment, run.payload.len().min(400));
                    }
                }
                assert!(outbox.takes_ds.load(Relaxed), "no attempt was without the mark");
            }
        }
    }

    #[test]
    fn a_port_belongs_to_one_owner_who_may_share_it() {
        let options = UdpOptions::default();
        let socket = UdpSocket::bind(Family::V4, 0, &options).unwrap();
        let port = socket.local_port().unwrap();
        let sibling = socket.sibling(&options).unwrap();
        assert_eq!(sibling.local_port().unwrap(), port);
        let error = UdpSocket::bind(Family::V4, port, &options).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_source_that_is_not_ours_is_refused() {
        let socket = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.local_port().unwrap());
        let datagram = Datagram {
            to,
            from: Some("192.0.2.9".parse().unwrap()),
            ds: 0,
            hop_limit: None,
            payload: &[1],
            segment: 0,
        };
        assert!(SendBatch::new(1).send(&socket, &[datagram]).is_err());
    }

    /// A group of sockets on one port with the program, of which the last one is for what is no data; with and without `UDP_GRO`.
    fn steered(family: Family, has_gro: bool, data: u32) -> Option<(Vec<UdpSocket>, SocketAddr)> {
        let switch = if has_gro { "gro=on" } else { "gro=off" };
        let options =
            UdpOptions { wanted: switch.parse().unwrap(), buffer: 1 << 20, ..UdpOptions::default() };
        let Ok(first) = UdpSocket::bind(family, 0, &options) else {
            eprintln!("skipped: {family:?} or UDP_GRO missing");
            return None;
        };
        let more: Vec<_> = (0..data).map(|_| first.sibling(&options).unwrap()).collect();
        if more[0].steer(data).is_err() {
            eprintln!("skipped: SO_ATTACH_REUSEPORT_CBPF missing");
            return None;
        }
        let ip: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let to = SocketAddr::new(ip, first.local_port().unwrap());
        Some((std::iter::once(first).chain(more).collect(), to))
    }

    /// Returns the datagrams that wait at a socket, runs cut up.
    fn waiting(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut batch = RecvBatch::new(64, 1 << 16);
        let mut all = Vec::new();
        while let Ok(received) = batch.recv(socket, usize::MAX) {
            for slot in 0..received {
                let run = batch.get_mut(slot).unwrap();
                if run.payload.is_empty() {
                    all.push(Vec::new());
                }
                all.extend(run.payload.chunks(run.segment.max(1)).map(<[u8]>::to_vec));
            }
        }
        all
    }

    fn data_message(index: u32, counter: u8) -> Vec<u8> {
        [&[4, 0, 0, 0][..], &index.to_le_bytes(), &[counter; 40]].concat()
    }

    #[test]
    fn data_goes_where_its_index_says_and_all_else_to_the_last_socket() {
        let families = [Family::V4, Family::V6];
        for (family, has_gro) in families.into_iter().flat_map(|family| [(family, false), (family, true)]) {
            let Some((sockets, to)) = steered(family, has_gro, 3) else { continue };
            assert!(sockets.iter().all(|socket| socket.offloads().has(Feature::Gro) == has_gro));
            let from = UdpSocket::bind(family, 0, &UdpOptions::default()).unwrap();
            let indices = [0, 1, 2, 3, 4, 5, 0x0403_0201, 0x8000_0000, u32::MAX - 1, u32::MAX];
            let data = indices.map(|index| data_message(index, 0));
            let others = [1, 2, 3, 0, 5, 0x44, 0xff].map(|kind| [&[kind, 0, 0, 0][..], &[1; 144]].concat());
            // Not data: the reserved bytes are not zero.
            let reserved = [4, 1, 0, 0, 0, 0, 0, 0].to_vec();
            for payload in data.iter().chain(&others).chain([&reserved]) {
                let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload, segment: 0 };
                assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
            }
            for (number, socket) in (0..3).zip(&sockets) {
                let expected: Vec<_> = data
                    .iter()
                    .zip(indices)
                    .filter(|(_, index)| index % 3 == number)
                    .map(|(data, _)| data.clone())
                    .collect();
                assert_eq!(waiting(socket), expected, "{family:?} {has_gro} {number}");
            }
            let expected: Vec<_> = others.into_iter().chain([reserved]).collect();
            assert_eq!(waiting(&sockets[3]), expected, "{family:?} {has_gro}");
        }
    }

    #[test]
    fn a_run_of_datagrams_goes_where_its_first_one_says_whole_or_cut_up() {
        for (family, has_gro) in [(Family::V4, false), (Family::V4, true), (Family::V6, true)] {
            let Some((sockets, to)) = steered(family, has_gro, 3) else { continue };
            let options = UdpOptions { wanted: "gso=on".parse().unwrap(), ..UdpOptions::default() };
            let from = UdpSocket::bind(family, 0, &options);
            let Ok(from) = from else {
                eprintln!("skipped: UDP_SEGMENT missing");
                continue;
            };
            for number in 0..3 {
                let run: Vec<_> = (0..20).map(|counter| data_message(300 + number, counter)).collect();
                let (payload, segment) = (run.concat(), u16::try_from(run[0].len()).unwrap());
                let datagram =
                    Datagram { to, from: None, ds: 0, hop_limit: None, payload: &payload, segment };
                assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
                assert_eq!(waiting(&sockets[number as usize]), run, "{family:?} {has_gro} {number}");
            }
            assert!(sockets.iter().all(|socket| waiting(socket).is_empty()));
        }
    }

    #[test]
    fn a_run_longer_than_the_buffer_is_known_to_be_cut_off() {
        let options = |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
        let inbox = UdpSocket::bind(Family::V4, 0, &options("gro=on"));
        let outbox = UdpSocket::bind(Family::V4, 0, &options("gso=on"));
        let (Ok(inbox), Ok(outbox)) = (inbox, outbox) else {
            eprintln!("skipped: UDP_GRO or UDP_SEGMENT missing");
            return;
        };
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), inbox.local_port().unwrap());
        let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload: &[7; 1200], segment: 400 };
        for (slot_len, truncated) in [(1000, true), (1199, true), (1200, false)] {
            assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
            let mut batch = RecvBatch::new(2, slot_len);
            assert_eq!(recv(&mut batch, &inbox), 1);
            let run = batch.get_mut(0).unwrap();
            assert_eq!((run.truncated, run.segment, run.payload.len()), (truncated, 400, slot_len));
        }
    }

    /// `MSG_CTRUNC`.
    #[test]
    fn what_may_be_a_run_of_unknown_length_is_told_from_a_datagram() {
        let options = |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
        for (switch, is_truncated) in [("gro=on", true), ("gro=off", false)] {
            let Ok(inbox) = UdpSocket::bind(Family::V4, 0, &options(switch)) else {
                eprintln!("skipped: UDP_GRO missing");
                continue;
            };
            let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), inbox.local_port().unwrap());
            let mut batch = RecvBatch::new(2, 1 << 16);
            for faults in ["ControlRoom=1*1", ""] {
                let outbox = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
                let datagram =
                    Datagram { to, from: None, ds: 2, hop_limit: None, payload: &[7; 40], segment: 0 };
                assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
                let (received, _) = with_faults(faults, || batch.recv(&inbox, 2).unwrap());
                assert_eq!(received, 1);
                let run = batch.get_mut(0).unwrap();
                let has_room = faults.is_empty();
                assert_eq!((run.truncated, run.payload.len()), (is_truncated && !has_room, 40));
                assert_eq!((run.to.is_some(), run.ecn), (has_room, if has_room { 2 } else { 0 }));
            }
        }
    }

    #[test]
    fn what_a_system_does_not_know_of_a_socket_is_done_without() {
        for family in [Family::V4, Family::V6] {
            let options = UdpOptions { buffer: 1 << 20, ..UdpOptions::default() };
            let bind = || UdpSocket::bind(family, 0, &options);
            let ip: IpAddr = match family {
                Family::V4 => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            let limit = |name: &str| -> usize {
                std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap().trim().parse().unwrap()
            };
            // The kernel doubles what it is told, for what it needs itself (socket(7)).
            let capped = 2 * limit("rmem_max").min(1 << 20);
            for (faults, knows_address, knows_ecn, buffer) in [
                ("", true, true, 2 << 20),
                ("PacketInfo=92", false, true, 2 << 20),
                ("ReceiveTos=92", true, false, 2 << 20),
                ("BufferForce=1", true, true, capped),
                ("BufferForce=1,Buffer=92", true, true, limit("rmem_default")),
                ("PathMtu=92,PacketInfo=22,ReceiveTos=22", false, false, 2 << 20),
            ] {
                let (Ok(socket), _) = with_faults(faults, bind) else {
                    eprintln!("skipped: {family:?} or CAP_NET_ADMIN missing");
                    continue;
                };
                assert_eq!(socket.socket.recv_buffer_size().unwrap(), buffer, "{faults}");
                let to = SocketAddr::new(ip, socket.local_port().unwrap());
                let datagram =
                    Datagram { to, from: None, ds: 2, hop_limit: None, payload: &[7; 40], segment: 0 };
                assert_eq!(SendBatch::new(1).send(&socket, &[datagram]).unwrap(), 1);
                let mut batch = RecvBatch::new(2, 1 << 16);
                assert_eq!(recv(&mut batch, &socket), 1);
                let received = batch.get_mut(0).unwrap();
                assert_eq!((received.from, received.payload.len()), (to, 40), "{faults}");
                assert_eq!(received.to.map(|(ip, _)| ip), knows_address.then_some(ip), "{faults}");
                assert_eq!(received.ecn, if knows_ecn { 2 } else { 0 }, "{faults}");
            }
        }
    }

    #[test]
    fn datagrams_too_short_for_a_decision_arrive_somewhere() {
        for has_gro in [false, true] {
            let Some((sockets, to)) = steered(Family::V4, has_gro, 3) else { continue };
            let from = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
            for len in 0..=8 {
                for first in [4, 1] {
                    let payload = &[first, 0, 0, 0, 2, 0, 0, 0][..len];
                    let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload, segment: 0 };
                    assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
                    let found: Vec<_> = sockets.iter().flat_map(waiting).collect();
                    assert_eq!(found, [payload], "{len} bytes");
                }
            }
        }
    }
}
