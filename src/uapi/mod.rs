//! The cross-platform configuration protocol: text requests on a unix socket, as `wg`, `wg-quick` and wgctrl clients speak it.
//!
//! - [`set`]: the body of a `set=1` request → edits. Pure.
//! - [`get`]: a snapshot → the reply to `get=1`. Pure.
//! - [`stats`]: statistics → the reply to `stats=1`, which is our own. Pure.
//! - [`request`]: bytes of a connection → whole requests. Pure.
//! - [`socket`]: `/var/run/wireguard/IFNAME.sock`, opened, handed over and removed.
//! - [`serve`]: one thread that serves all connections.
//!
//! What `get=1` and `set=1` say is what every data plane says, no more: `stats=1` is a request of its own, so that clients that do not
//! know it never see its words, and a data plane that does not know it takes it for another protocol (wireguard-go closes the connection,
//! boringtun answers with an errno).
//!
//! The protocol is described at <https://www.wireguard.com/xplatform/>; where that page is silent, wireguard-go is followed and cited by
//! file and function. It knows nothing of the protocol behind [`Configure`](crate::config::Configure).

pub mod get;
pub mod request;
pub mod serve;
pub mod set;
pub mod socket;
pub mod stats;

use crate::config::Refused;

/// What the fuzz targets reach beyond the public interface.
#[cfg(fuzzing)]
pub mod fuzzing {
    use zeroize::Zeroizing;

    use super::request::Request;
    use super::serve;
    use crate::config::Configure;

    /// Returns the reply to a request, or `None` if the connection is to be closed.
    pub fn answer(request: Request, configure: &dyn Configure) -> Option<Zeroizing<String>> {
        serve::answer(request, configure)
    }
}

/// Returns the errno that tells a client why its request was refused.
fn errno_of(refused: &Refused) -> i32 {
    match refused {
        Refused::PortInUse(_) => libc::EADDRINUSE,
        // Kernel, peer.c:wg_peer_create: more than MAX_PEERS_PER_DEVICE is ENOMEM.
        Refused::TooManyPeers => libc::ENOMEM,
        Refused::System { errno, .. } => *errno,
        Refused::Gone => libc::ENODEV,
    }
}
