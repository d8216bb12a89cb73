//! UDP sockets that send and receive many datagrams a call, with local address and DS field.
//!
//! - `receive`, `send`: the calls.
//! - `steering`: which of the sockets of one port gets a datagram.

mod receive;
mod send;
mod steering;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::AtomicBool;

use socket2::{Domain, Protocol, Socket, Type};

use super::fault::{self, Call};
use super::offload::{Active, Feature, Switch, Wanted};
use super::sockopt;

pub use receive::{Received, RecvBatch};
pub use send::{Datagram, SendBatch};

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

fn empty_header() -> libc::mmsghdr {
    // SAFETY: an mmsghdr is numbers and pointers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}
