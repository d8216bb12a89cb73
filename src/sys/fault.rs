//! Calls that fail on demand, so that an old kernel's behaviour is a test on a new one. Only in builds with debug assertions,
//! and in unit tests.
//!
//! `ADIT_FAULT=NAME=ERRNO[*TIMES][,…]`: the call fails with that errno, always or the first so many times. `kernel=5.4.0` is what
//! [`kernel_version`] returns.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, OnceLock};

/// A call, or a part of one that only some kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    /// `TUNSETIFF` with `IFF_MULTI_QUEUE`.
    MultiQueue,
    /// `TUNSETIFF` of a queue beside the first.
    MoreQueues,
    /// `TUNSETIFF` with `IFF_VNET_HDR`.
    VnetHeader,
    /// `TUNSETVNETHDRSZ`.
    VnetHeaderLen,
    /// `TUNSETOFFLOAD` with the bit for checksums, which is with every other one.
    Checksum,
    /// `TUNSETOFFLOAD` with the TSO bits.
    Tso,
    /// `TUNSETOFFLOAD` with the USO bits.
    Uso,
    /// `TUNSETOFFLOAD` with the bits for tunnels.
    TunnelGso,
    /// A read of a packet.
    TunRead,
    /// `TUNGETDEVNETNS`.
    TunNetns,
    /// A write of a packet.
    TunWrite,
    /// A write of a TCP super-packet.
    TunWriteTcp,
    /// A write of a UDP super-packet.
    TunWriteUdp,
    /// `setsockopt(SO_MARK)`.
    Mark,
    /// `setsockopt(SO_RCVBUFFORCE)`, `SO_SNDBUFFORCE`.
    BufferForce,
    /// `setsockopt(SO_RCVBUF)`, `SO_SNDBUF`.
    Buffer,
    /// `setsockopt(IP_PKTINFO)`, `IPV6_RECVPKTINFO`.
    PacketInfo,
    /// `setsockopt(IP_RECVTOS)`, `IPV6_RECVTCLASS`.
    ReceiveTos,
    /// `setsockopt(IP_MTU_DISCOVER)`, `IPV6_MTU_DISCOVER`.
    PathMtu,
    /// `setsockopt(UDP_SEGMENT)`.
    UdpSegment,
    /// `setsockopt(UDP_GRO)`.
    UdpGro,
    /// `sendmmsg` with a `UDP_SEGMENT` message; this and the next three likewise for `sendmsg` in its place.
    SendSegmented,
    /// `sendmmsg` of plain datagrams.
    Send,
    /// `sendmmsg` with an `IP_TOS` message.
    SendTos,
    /// `sendmmsg` with a source address.
    SendFrom,
    /// `recvmmsg`, or `recvmsg` in its place.
    Receive,
    /// Room for what is received: it is 1600 bytes then, whatever the errno, and the kernel says `MSG_TRUNC` of what is longer.
    ReceiveRoom,
    /// Room for what the kernel says of a datagram: there is none then, whatever the errno, and it says `MSG_CTRUNC`.
    ControlRoom,
    /// `recvmmsg`.
    ReceiveMany,
    /// `sendmmsg`.
    SendMany,
    /// `setsockopt(SO_ATTACH_REUSEPORT_CBPF)`.
    Steering,
    /// `setsockopt(SO_REUSEPORT)`.
    ReusePort,
    /// `socket(AF_INET)`.
    SocketV4,
    /// `socket(AF_INET6)`.
    SocketV6,
    /// `socket(AF_NETLINK)` for netfilter.
    Netfilter,
    /// The expression of nftables that computes an MSS.
    TcpMss,
    /// `RTM_NEWLINK` of the kernel's WireGuard.
    Wireguard,
    /// `RTM_NEWROUTE`, `RTM_NEWRULE`, `RTM_NEWADDR` for IPv6.
    NetlinkV6,
    /// `RTM_GETLINK` of one link.
    Link,
    /// `inotify_init1`, or `inotify_add_watch`.
    Inotify,
    /// What the kernel tells of changes, unasked: it does not come, whatever the errno.
    Notices,
    /// `poll`.
    Poll,
    /// `epoll_wait`.
    Epoll,
    /// `epoll_ctl(EPOLL_CTL_ADD)` of what takes the place of another.
    Register,
    /// `timerfd_settime` of a moment.
    Timer,
    /// `clone` of a thread.
    Thread,
}

/// Calls can be made to fail in this build.
pub(super) const ARE_POSSIBLE: bool = cfg!(any(debug_assertions, test));

/// Returns the error that the call is to fail with, if it is.
#[inline]
pub(super) fn check(call: Call) -> io::Result<()> {
    if ARE_POSSIBLE { look(call, |times| *times -= 1) } else { Ok(()) }
}

/// Tells whether the call would fail. It is no attempt.
#[inline]
pub(super) fn is_due(call: Call) -> bool {
    ARE_POSSIBLE && look(call, |_| {}).is_err()
}

fn look(call: Call, count: impl FnOnce(&mut u64)) -> io::Result<()> {
    #[cfg(test)]
    if tests::PLAN.with_borrow(Option::is_some) {
        return tests::PLAN
            .with_borrow_mut(|plan| plan.as_mut().map_or(Ok(()), |plan| plan.look(call, count)));
    }
    let Some(faults) = plan().faults.as_ref() else { return Ok(()) };
    let mut faults = faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    faults.look(call, count)
}

/// Returns the kernel's version: major, minor, patch; zeros where it cannot be read.
pub(super) fn kernel_version() -> [u32; 3] {
    if ARE_POSSIBLE && let Some(version) = &plan().kernel {
        return parse_version(version);
    }
    parse_version(&rustix::system::uname().release().to_string_lossy())
}

fn parse_version(release: &str) -> [u32; 3] {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

struct Plan {
    faults: Option<Mutex<Faults>>,
    kernel: Option<String>,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let (faults, kernel) = Faults::parse(&std::env::var("ADIT_FAULT").unwrap_or_default());
        Plan { faults: (!faults.0.is_empty()).then(|| Mutex::new(faults)), kernel }
    })
}

/// Errno and number of failures to come, by the name of the call.
#[derive(Debug, Default)]
struct Faults(BTreeMap<String, (i32, u64)>);

impl Faults {
    /// Returns also the kernel's version, if it is among them.
    fn parse(text: &str) -> (Self, Option<String>) {
        let (mut faults, mut kernel) = (Self::default(), None);
        for (name, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            if name == "kernel" {
                kernel = Some(value.to_owned());
                continue;
            }
            let (errno, times) = value.split_once('*').unwrap_or((value, "18446744073709551615"));
            if let (Ok(errno), Ok(times)) = (errno.parse(), times.parse()) {
                faults.0.insert(name.to_owned(), (errno, times));
            }
        }
        (faults, kernel)
    }

    fn look(&mut self, call: Call, count: impl FnOnce(&mut u64)) -> io::Result<()> {
        match self.0.get_mut(&format!("{call:?}")) {
            Some((errno, times)) if *times > 0 => {
                count(times);
                Err(io::Error::from_raw_os_error(*errno))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// What calls of this thread alone are to fail, in place of what the environment says.
        pub(super) static PLAN: RefCell<Option<Faults>> = const { RefCell::new(None) };
    }

    /// Lets calls of this thread fail while `act` runs; `text` is as in `ADIT_FAULT`. Returns also whether any of those failures that
    /// are numbered is still to come.
    pub(crate) fn with_faults<T>(text: &str, act: impl FnOnce() -> T) -> (T, bool) {
        PLAN.set(Some(Faults::parse(text).0));
        let result = act();
        let left = PLAN.take().unwrap_or_default();
        (result, left.0.values().any(|&(_, times)| (1..=u64::from(u32::MAX)).contains(&times)))
    }

    #[test]
    fn versions_are_read_whatever_follows_them() {
        for (release, version) in [
            ("3.10.0-1160.el7.x86_64", [3, 10, 0]),
            ("6.18.44-fc-v657", [6, 18, 44]),
            ("7.0", [7, 0, 0]),
            ("", [0; 3]),
        ] {
            assert_eq!(parse_version(release), version);
        }
    }
}
