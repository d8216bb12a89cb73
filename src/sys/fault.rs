//! Calls that fail on demand, so that an old kernel's behaviour is a test on a new one. Only in builds with debug assertions.
//!
//! `ADIT_FAULT=NAME=ERRNO[*TIMES][,…]`: the call fails with that errno, always or the first so many times. `kernel=5.4.0` is what
//! [`kernel_version`] returns.

#[cfg(debug_assertions)]
use std::collections::BTreeMap;
use std::io;
#[cfg(debug_assertions)]
use std::sync::{Mutex, OnceLock};

/// A call, or a part of one that only some kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    /// `TUNSETIFF` with `IFF_MULTI_QUEUE`.
    MultiQueue,
    /// `TUNSETIFF` with `IFF_VNET_HDR`.
    VnetHeader,
    /// `TUNSETOFFLOAD` with the TSO bits.
    Tso,
    /// `TUNSETOFFLOAD` with the USO bits.
    Uso,
    /// `TUNSETOFFLOAD` with the bits for tunnels.
    TunnelGso,
    /// A write of a TCP super-packet.
    TunWriteTcp,
    /// A write of a UDP super-packet.
    TunWriteUdp,
    /// `setsockopt(UDP_SEGMENT)`.
    UdpSegment,
    /// `setsockopt(UDP_GRO)`.
    UdpGro,
    /// `sendmmsg` with a `UDP_SEGMENT` message.
    SendSegmented,
    /// `sendmmsg` of plain datagrams.
    Send,
    /// `sendmmsg` with an `IP_TOS` message.
    SendTos,
    /// `sendmmsg` with a source address.
    SendFrom,
    /// `recvmmsg`.
    Receive,
    /// `setsockopt(SO_ATTACH_REUSEPORT_CBPF)`.
    Steering,
    /// `setsockopt(SO_REUSEPORT)`.
    ReusePort,
    /// `socket(AF_INET6)`.
    SocketV6,
}

/// Returns the error that the call is to fail with, if it is.
#[cfg(not(debug_assertions))]
#[inline]
pub(super) fn check(_: Call) -> io::Result<()> {
    Ok(())
}

/// Returns the error that the call is to fail with, if it is.
#[cfg(debug_assertions)]
pub(super) fn check(call: Call) -> io::Result<()> {
    let Some(faults) = plan().faults.as_ref() else { return Ok(()) };
    let mut faults = faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match faults.get_mut(&format!("{call:?}")) {
        Some((errno, times)) if *times > 0 => {
            *times -= 1;
            Err(io::Error::from_raw_os_error(*errno))
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the kernel's version: major, minor, patch; zeros where it cannot be read.
pub(super) fn kernel_version() -> [u32; 3] {
    #[cfg(debug_assertions)]
    if let Some(version) = &plan().kernel {
        return parse_version(version);
    }
    parse_version(&rustix::system::uname().release().to_string_lossy())
}

fn parse_version(release: &str) -> [u32; 3] {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(debug_assertions)]
struct Plan {
    faults: Option<Mutex<BTreeMap<String, (i32, u64)>>>,
    kernel: Option<String>,
}

#[cfg(debug_assertions)]
fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let text = std::env::var("ADIT_FAULT").unwrap_or_default();
        let mut faults = BTreeMap::new();
        let mut kernel = None;
        for (name, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            if name == "kernel" {
                kernel = Some(value.to_owned());
                continue;
            }
            let (errno, times) = value.split_once('*').unwrap_or((value, "18446744073709551615"));
            if let (Ok(errno), Ok(times)) = (errno.parse(), times.parse()) {
                faults.insert(name.to_owned(), (errno, times));
            }
        }
        Plan { faults: (!faults.is_empty()).then(|| Mutex::new(faults)), kernel }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
