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

/// Where a peer was heard last, and whether replies may leave by the address that it spoke to.
///
/// The kernel asks for the route of every datagram and forgets a source that does not leave by the interface it was learned on (kernel
/// `socket.c`, `send4`). Here a source is checked when it is learned and when routes change, and the answer is kept: what still comes by a
/// way that ours no longer is does not bring the refused source back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    addr: SocketAddr,
    heard_on: Option<Source>,
    is_refused: bool,
}

impl Place {
    pub(super) fn new(Endpoint { addr, source }: Endpoint) -> Self {
        Self { addr, heard_on: source, is_refused: false }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, source: self.heard_on.filter(|_| !self.is_refused) }
    }

    /// Tells whether it is where a datagram came from.
    pub(super) fn is(&self, from: Endpoint) -> bool {
        (self.addr, self.heard_on) == (from.addr, from.source)
    }

    /// Returns the place that a datagram came from, of which is known what is known of this one, and whether it leads by the same way.
    pub(super) fn moved_to(&self, from: Endpoint) -> (Self, bool) {
        let is_same_way = self.leads_to(from.addr) && self.heard_on == from.source;
        (Self { is_refused: is_same_way && self.is_refused, ..Self::new(from) }, is_same_way)
    }

    /// Returns whose way is to be asked for: that of an address from a source.
    pub(super) fn way(&self) -> Option<(SocketAddr, Source)> {
        Some((self.addr, self.heard_on?))
    }

    /// Returns the place with an answer to that: whether datagrams to it leave by the interface of the source.
    pub(super) fn judged(self, (addr, source): (SocketAddr, Source), is_good: bool) -> Self {
        if self.leads_to(addr) && self.heard_on == Some(source) {
            return Self { is_refused: !is_good, ..self };
        }
        self
    }

    /// Tells whether datagrams to `addr` take the same way: routes know no ports.
    fn leads_to(&self, addr: SocketAddr) -> bool {
        (addr.ip(), scope(addr)) == (self.addr.ip(), scope(self.addr))
    }
}

/// Returns the interface that an IPv6 link-local address names, or 0.
pub(crate) fn scope(addr: SocketAddr) -> u32 {
    match addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(addr) => addr.scope_id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(addr: &str, source: Option<(&str, u32)>) -> Endpoint {
        let source = source.map(|(ip, interface)| Source { ip: ip.parse().unwrap(), interface });
        Endpoint { addr: addr.parse().unwrap(), source }
    }

    #[test]
    fn a_refused_source_stays_refused_until_the_way_or_the_answer_is_another() {
        let heard = from("192.0.2.9:7", Some(("192.0.2.1", 3)));
        let place = Place::new(heard);
        assert_eq!(place.endpoint(), heard);
        let way = place.way().unwrap();
        let refused = place.judged(way, false);
        assert_eq!(refused.endpoint(), Endpoint::new(heard.addr));
        assert!(refused.is(heard), "nothing new is learned from there");
        assert_eq!(refused.way(), Some(way), "it is asked for again when routes change");

        let (moved, is_same_way) = refused.moved_to(from("192.0.2.9:8", Some(("192.0.2.1", 3))));
        assert!(is_same_way, "routes know no ports");
        assert_eq!(moved.endpoint(), Endpoint::new("192.0.2.9:8".parse().unwrap()));
        assert_eq!(moved.judged(way, true).endpoint().source, heard.source);

        for other in [
            from("192.0.2.8:7", Some(("192.0.2.1", 3))),
            from("192.0.2.9:7", Some(("192.0.2.2", 3))),
            from("192.0.2.9:7", Some(("192.0.2.1", 4))),
            from("192.0.2.9:7", None),
        ] {
            assert!(!refused.is(other));
            assert_eq!(refused.moved_to(other), (Place::new(other), false));
            // The answer comes late: it is about where the peer was.
            assert_eq!(Place::new(other).judged(way, false).endpoint(), other);
        }
    }

    #[test]
    fn a_link_local_address_is_another_on_another_link() {
        let place = Place::new(from("[fe80::1%3]:7", Some(("fe80::2", 3)))).judged(
            (from("[fe80::1%3]:7", None).addr, Source { ip: "fe80::2".parse().unwrap(), interface: 3 }),
            false,
        );
        let (moved, is_same_way) = place.moved_to(from("[fe80::1%4]:7", Some(("fe80::2", 3))));
        assert!(!is_same_way && moved.endpoint().source.is_some());
        assert_eq!([scope(place.addr), scope(moved.addr)], [3, 4]);
    }
}
