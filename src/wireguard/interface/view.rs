//! What the data path sees of the interface ([W] §2, §3): routes, sessions, and whether an opened packet is its peer's.

use std::net::IpAddr;
use std::sync::Arc;

use crate::packet::{ecn, ip};
use crate::wireguard::allowed_ips::AllowedIps;
use crate::wireguard::cookie;
use crate::wireguard::dropped::Dropped;
use crate::wireguard::index::{Entry, Table};
use crate::wireguard::load::Load;
use crate::wireguard::peer::Peer;

/// A peer as the value of a prefix; two are equal if they are the same peer.
#[derive(Clone, Debug)]
pub(super) struct Route(pub(super) Arc<Peer>);

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What the data path needs to know of the interface: a consistent picture that never changes.
#[derive(Clone)]
pub struct View {
    pub(super) routes: AllowedIps<Route>,
    pub(super) table: Arc<Table>,
    pub(super) checker: Option<Arc<cookie::Checker>>,
    pub(super) load: Arc<Load>,
}

impl View {
    /// Returns the peer that inner packets to `destination` go to ([W] §2).
    pub fn route(&self, destination: IpAddr) -> Option<&Arc<Peer>> {
        self.routes.lookup(destination).map(|Route(peer)| peer)
    }

    /// Returns the session that receives under `index`, with its peer.
    pub fn session(&self, index: u32) -> Option<Arc<Entry>> {
        self.table.lookup(index).filter(|entry| entry.keypair().is_some())
    }

    /// Tells whether `index` is one that we gave to a peer: a response or a cookie reply to any other answers nothing.
    pub fn knows(&self, index: u32) -> bool {
        self.table.lookup(index).is_some()
    }

    /// Returns what checks the macs of handshake messages; none before a private key is set.
    pub fn checker(&self) -> Option<&cookie::Checker> {
        self.checker.as_deref()
    }

    /// Returns what tells whether handshake messages are too many.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Checks an opened packet from `peer`, padding included, and returns its length without the padding.
    ///
    /// # Errors
    /// Says why it must not reach the TUN device.
    pub fn admit(&self, peer: &Arc<Peer>, packet: &mut [u8], outer_ecn: u8) -> Result<usize, Dropped> {
        // Kernel `receive.c`, `wg_packet_consume_data_done`: version, then lengths, then ECN, then the source.
        let inner = ip::inner(packet).map_err(|_| Dropped::InnerMalformed)?;
        // RFC 6040 §4.2.
        ecn::decapsulate(&mut packet[..inner.len], outer_ecn);
        // [W] §2: "the source IP … must correspond" to the peer, in the table of the whole interface.
        match self.routes.lookup(inner.source) {
            Some(Route(owner)) if Arc::ptr_eq(owner, peer) => Ok(inner.len),
            Some(_) | None => Err(Dropped::NotAllowedSource),
        }
    }
}
