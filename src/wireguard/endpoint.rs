//! Where a peer is on the outer network, and which of our addresses it speaks to ([W] §2.1).

use std::net::{IpAddr, SocketAddr};

/// A peer's outer address, and the local address it was last heard on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where datagrams go to. An IPv6 link-local address keeps its scope.
    pub addr: SocketAddr,
    /// What they are sent from, if known: replies leave by the address that was spoken to (kernel `socket.c`, `wg_socket_set_peer_endpoint`).
    pub source: Option<Source>,
}

/// A local address and the interface it was seen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The local address.
    pub ip: IpAddr,
    /// The interface's index.
    pub interface: u32,
}

impl Endpoint {
    /// Returns an endpoint whose source the routing table chooses.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, source: None }
    }
}
