//! Sending: many datagrams a call, runs of them as one (`UDP_SEGMENT`), and what the kernel is told of each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;

use super::{UdpSocket, empty_header};
use crate::sys::calls::Calls;
use crate::sys::fault::{self, Call};
use crate::sys::{cmsg, sockaddr};

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
