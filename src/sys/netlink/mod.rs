//! Links, addresses, routes and rules over netlink (rtnetlink(7)), in the network namespace of the thread that opens the socket.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel tells more than is asked for, and more with every release"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use self::replies::Replies;
use super::fault;

pub mod conntrack;
mod monitor;
pub mod nftables;
mod raw;
mod replies;
mod route;
mod rule;
pub mod wireguard;

pub use monitor::{Event, Groups, Monitor};
pub use route::{RouteFilter, RouteKind, TableRoute};
pub use rule::{Packets, PolicyRule, Rule};

/// How often a list is asked for that changes while it is read.
const ATTEMPTS: u32 = 16;

/// Enough for any message of a dump.
const RECEIVE_LEN: usize = 128 << 10;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is switched on (`IFF_UP`).
    pub up: bool,
    /// Whether there is something at its other end; for a TUN device, a process.
    pub carrier: bool,
    /// Its kind as ip-link(8) names it, as `veth` or `wireguard`; `None` for a physical one and the loopback.
    pub kind: Option<String>,
}

/// A route that leaves by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination and length of the prefix.
    pub destination: (IpAddr, u8),
    /// The interface's index.
    pub interface: u32,
    /// The MTU that the route itself sets (`RTAX_MTU`).
    pub mtu: Option<u32>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The interface's index.
    pub interface: u32,
    /// The address, and the length of its prefix.
    pub address: (IpAddr, u8),
}

/// A socket for requests.
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// Returns the socket's number, which the kernel names in notices of routes and rules that this socket has changed
    /// (`rtmsg_fib`, `inet6_rt_notify`, `notify_rule_change`).
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Finds a link by its name.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        fault::check(fault::Call::Link)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let replies = self.request(RouteNetlinkMessage::GetLink(message), 0)?;
        replies.iter().find_map(link_of).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Finds a link by its name; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn find_link(&mut self, name: &str) -> io::Result<Option<Link>> {
        match self.link(name) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Returns all links.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let replies = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(replies.iter().filter_map(link_of).collect())
    }

    /// Makes a pair of virtual cables, the second end in `namespace`.
    ///
    /// # Errors
    /// `EEXIST` if a name is taken.
    pub fn add_veth(&mut self, name: &str, peer: &str, namespace: impl AsFd) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a link of the kernel's WireGuard.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken; `EOPNOTSUPP` if the kernel has no WireGuard.
    pub fn add_wireguard(&mut self, name: &str) -> io::Result<()> {
        fault::check(fault::Call::Wireguard)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn remove_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Moves a link to `namespace`.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn move_link(&mut self, index: u32, namespace: impl AsFd) -> io::Result<()> {
        let namespace = LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd());
        self.set_link(index, LinkFlags::empty(), vec![namespace])
    }

    /// Switches a link on, with this MTU if one is given.
    ///
    /// # Errors
    /// `EINVAL` for an MTU that the link cannot have.
    pub fn set_up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        self.set_link(index, LinkFlags::Up, mtu.map(LinkAttribute::Mtu).into_iter().collect())
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// `EINVAL` for an MTU that the link cannot have.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, LinkFlags::empty(), vec![LinkAttribute::Mtu(mtu)])
    }

    /// Sets how many packets wait for a link at most.
    ///
    /// # Errors
    /// `ENOMEM`; `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_queue_len(&mut self, index: u32, len: u32) -> io::Result<()> {
        self.set_link(index, LinkFlags::empty(), vec![LinkAttribute::TxQueueLen(len)])
    }

    fn set_link(&mut self, index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.change_mask = flags;
        message.attributes = attributes;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a link an address that is usable at once.
    ///
    /// # Errors
    /// `EEXIST` if it has it.
    pub fn add_address(&mut self, index: u32, addr: IpAddr, len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family_of(addr);
        message.header.prefix_len = len;
        message.header.index = index;
        // Duplicate address detection would keep it from being used for a second.
        if addr.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes = vec![AddressAttribute::Local(addr), AddressAttribute::Address(addr)];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if it has none such.
    pub fn remove_address(&mut self, index: u32, addr: IpAddr, len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family_of(addr);
        message.header.prefix_len = len;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(addr), AddressAttribute::Address(addr)];
        self.change(RouteNetlinkMessage::DelAddress(message), 0)
    }

    /// Returns the addresses of a link, each with the length of its prefix.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|addr| addr.interface == index).map(|addr| addr.address).collect())
    }

    /// Returns the addresses of all links.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn all_addresses(&mut self) -> io::Result<Vec<LocalAddress>> {
        let replies = self.request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let address = |reply: &RouteNetlinkMessage| match reply {
            RouteNetlinkMessage::NewAddress(message) => {
                let own = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Local(addr) => Some(*addr),
                    _ => None,
                };
                let any = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Address(addr) => Some(*addr),
                    _ => None,
                };
                // IPv6 tells the address alone; with a peer's address beside it, as on IPv4, the own one goes first.
                let addr = message.attributes.iter().find_map(own);
                let addr = addr.or_else(|| message.attributes.iter().find_map(any))?;
                Some(LocalAddress {
                    interface: message.header.index,
                    address: (addr, message.header.prefix_len),
                })
            }
            _ => None,
        };
        Ok(replies.iter().filter_map(address).collect())
    }

    /// Adds a route to the main table, by way of a neighbour or straight onto a link.
    ///
    /// # Errors
    /// `EEXIST` if there is one; `ENETUNREACH` if the neighbour is not on a link.
    pub fn add_route(
        &mut self,
        destination: (IpAddr, u8),
        gateway: Option<IpAddr>,
        index: Option<u32>,
    ) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination.0);
        message.header.destination_prefix_length = destination.1;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.attributes.push(RouteAttribute::Destination(destination.0.into()));
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.extend(index.map(RouteAttribute::Oif));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a route from the main table.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn remove_route(&mut self, destination: (IpAddr, u8)) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination.0);
        message.header.destination_prefix_length = destination.1;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.scope = RouteScope::NoWhere;
        message.attributes.push(RouteAttribute::Destination(destination.0.into()));
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }

    /// Returns how many packets a link has received and sent, as the kernel counts: what a TUN device sends, its reader receives.
    ///
    /// # Errors
    /// `ENODEV` if there is no such link.
    pub fn packets(&mut self, index: u32) -> io::Result<(u64, u64)> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let replies = self.request(RouteNetlinkMessage::GetLink(message), 0)?;
        let counts = replies.iter().find_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some((stats.rx_packets, stats.tx_packets)),
                    _ => None,
                })
            }
            _ => None,
        });
        counts.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Returns the routes of all tables that leave by a single interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let replies = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
            routes.extend(replies.iter().filter_map(route_of));
        }
        Ok(routes)
    }

    /// Returns the interface by which a datagram with this mark would go from `source` to `destination`.
    ///
    /// # Errors
    /// `ENETUNREACH` and the like if there is no way; `EINVAL` if `source` is not a local address.
    pub fn interface_towards(&mut self, destination: IpAddr, source: IpAddr, mark: u32) -> io::Result<u32> {
        let host_len = if destination.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = host_len;
        message.header.source_prefix_length = host_len;
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        message.attributes.push(RouteAttribute::Source(source.into()));
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        let replies = self.request(RouteNetlinkMessage::GetRoute(message), 0)?;
        replies.iter().find_map(interface_of).ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }

    /// Returns the route that a datagram with this mark takes to `destination`: the one of the table, without what was learned of the path.
    ///
    /// Before Linux 4.13, the MTU is that of the path.
    ///
    /// # Errors
    /// `ENETUNREACH` and the like if there is no way.
    pub fn way_towards(&mut self, destination: IpAddr, mark: u32) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.header.flags = RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        let replies = self.request(RouteNetlinkMessage::GetRoute(message), 0)?;
        replies.iter().find_map(route_of).ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }

    /// Returns the number by which this namespace knows `namespace`. It gets one if it has none.
    ///
    /// # Errors
    /// `EINVAL` if `namespace` is none; `EPERM` without `CAP_NET_ADMIN`.
    pub fn namespace_id(&mut self, namespace: impl AsFd) -> io::Result<i32> {
        let fd = namespace.as_fd().as_raw_fd().cast_unsigned();
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(fd), NsidAttribute::Id(-1)];
        match self.change(RouteNetlinkMessage::NewNsId(message.clone()), 0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        message.attributes.pop();
        let replies = self.request(RouteNetlinkMessage::GetNsId(message), 0)?;
        let id = replies.iter().find_map(|reply| match reply {
            RouteNetlinkMessage::NewNsId(answer) => answer.attributes.iter().find_map(id_of),
            _ => None,
        });
        id.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        if makes_ipv6(&message) {
            fault::check(fault::Call::NetlinkV6)?;
        }
        self.request(message, flags | NLM_F_ACK).map(drop)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.header.flags = NLM_F_REQUEST | flags;
        for _ in 0..ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            message.header.sequence_number = self.sequence;
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            self.socket.send(&bytes, 0)?;
            // A dump ends with a mark, a change with an acknowledgement, a question with its answer.
            let is_question = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
            if let Some(replies) = self.replies(is_question)? {
                return Ok(replies);
            }
        }
        Err(io::Error::other("what was listed kept changing"))
    }

    /// Receives the replies to the last request; `None` if they are a list that changed meanwhile, so that something may lack in it.
    fn replies(&self, is_question: bool) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut replies = Replies::to(self.sequence, is_question);
        let mut buffer = Vec::with_capacity(RECEIVE_LEN);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if replies.take(&buffer)? {
                return Ok(replies.found());
            }
        }
    }
}

/// Tells whether this makes something that a kernel without IPv6 does not have.
fn makes_ipv6(message: &RouteNetlinkMessage) -> bool {
    let family = match message {
        RouteNetlinkMessage::NewRoute(route) => route.header.address_family,
        RouteNetlinkMessage::NewRule(rule) => rule.header.family,
        RouteNetlinkMessage::NewAddress(address) => address.header.family,
        _ => return false,
    };
    family == AddressFamily::Inet6
}

fn id_of(attribute: &NsidAttribute) -> Option<i32> {
    match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    }
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let mut found = Link {
        index: link.header.index,
        name: String::new(),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: false,
        kind: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => found.carrier = *carrier != 0,
            LinkAttribute::LinkInfo(infos) => found.kind = infos.iter().find_map(kind_of),
            _ => {}
        }
    }
    Some(found)
}

fn kind_of(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn route_of(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let any: IpAddr = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut addr = any;
    let mut mtu = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => addr = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => addr = (*v6).into(),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let destination = (addr, route.header.destination_prefix_length);
    Some(Route { destination, interface: interface_of(message)?, mtu })
}

fn interface_of(message: &RouteNetlinkMessage) -> Option<u32> {
    let (RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) = message else {
        return None;
    };
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn family_of(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    #[test]
    fn links_addresses_and_routes_are_made_and_seen() {
        let (Ok(one), Ok(other)) = (netns::create(), netns::create()) else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&one, || {
            let mut monitor = Monitor::open()?;
            let mut netlink = Netlink::open()?;
            assert_eq!(netlink.link("none").unwrap_err().raw_os_error(), Some(libc::ENODEV));
            netlink.add_veth("left", "right", &other)?;
            let left = netlink.link("left")?;
            assert!(!left.up);
            netlink.set_up(left.index, Some(1400))?;
            netlink.add_address(left.index, "10.1.0.1".parse().unwrap(), 24)?;
            netlink.add_address(left.index, "fd00::1".parse().unwrap(), 64)?;
            let way = "10.1.0.2".parse().unwrap();
            netlink.add_route(("10.2.0.0".parse().unwrap(), 16), Some(way), None)?;
            netlink.add_route(("10.3.0.0".parse().unwrap(), 16), None, Some(left.index))?;
            let again = netlink.add_route(("10.3.0.0".parse().unwrap(), 16), None, Some(left.index));
            assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            netlink.remove_route(("10.3.0.0".parse().unwrap(), 16))?;
            netlink.add_route(("10.3.0.0".parse().unwrap(), 16), None, Some(left.index))?;
            assert_eq!(netlink.packets(left.index)?.0, 0);
            let addresses = netlink.addresses(left.index)?;
            assert!(addresses.contains(&("10.1.0.1".parse().unwrap(), 24)), "{addresses:?}");
            assert!(addresses.contains(&("fd00::1".parse().unwrap(), 64)), "{addresses:?}");
            let now = netlink.link("left")?;
            assert_eq!((now.mtu, now.up), (1400, true));
            let routes = netlink.routes()?;
            for wanted in ["10.2.0.0", "10.3.0.0"] {
                assert!(routes.iter().any(|route| route.destination == (wanted.parse().unwrap(), 16)));
            }
            let events = monitor.take();
            assert!(events.contains(&Event::Address(left.index)));
            assert!(events.contains(&Event::Route { table: 254, interface: Some(left.index) }));
            assert!(events.iter().any(|event| matches!(event, Event::Link(link) if link.name == "left")));
            let from = "10.1.0.1".parse().unwrap();
            netns::run_in(&other, || {
                let mut netlink = Netlink::open()?;
                let right = netlink.link("right")?;
                netlink.set_up(right.index, None)
            })?;
            assert_eq!(netlink.interface_towards("10.2.3.4".parse().unwrap(), from, 0)?, left.index);
            let way = netlink.way_towards("10.2.3.4".parse().unwrap(), 7)?;
            let destination = ("10.2.0.0".parse().unwrap(), 16);
            assert_eq!(way, Route { destination, interface: left.index, mtu: None });
            assert!(netlink.way_towards("10.99.3.4".parse().unwrap(), 0).is_err());
            let back = netns::current()?;
            netlink.move_link(left.index, &other)?;
            assert!(monitor.take().contains(&Event::LinkGone(left.index)));
            drop(back);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_one_socket_changes_can_be_left_out() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let [mut own, mut other] = [Netlink::open()?, Netlink::open()?];
            let mut monitor = Monitor::open_for(Groups::ROUTES | Groups::RULES)?.without(own.port());
            let route = |text: &str, len| TableRoute {
                table: 70_000,
                destination: (text.parse().unwrap(), len),
                metric: 1,
                kind: RouteKind::Blackhole,
                mtu: None,
                protocol: 173,
            };
            let rule = |is_ipv6, priority| Rule {
                is_ipv6,
                priority,
                packets: Packets::Unmarked(1),
                table: 70_000,
                protocol: Some(173),
            };
            let [v4, v6] = [route("10.0.0.1", 32), route("fd00::1", 128)];
            for own_route in [&v4, &v6] {
                own.add_table_route(own_route)?;
                own.remove_table_route(own_route)?;
                own.add_table_route(own_route)?;
            }
            for is_ipv6 in [false, true] {
                own.add_rule(&rule(is_ipv6, 9))?;
                own.remove_rule(&rule(is_ipv6, 9))?;
                own.add_rule(&rule(is_ipv6, 9))?;
            }
            assert_eq!(monitor.take(), []);
            for route in [&v4, &v6] {
                other.remove_table_route(route)?;
            }
            other.remove_rule(&rule(false, 9))?;
            let told = monitor.take();
            assert_eq!(told.len(), 3, "{told:?}");
            assert!(told.contains(&Event::Rule));
            let routes = told.iter().filter(|event| matches!(event, Event::Route { table: 70_000, .. }));
            assert_eq!(routes.count(), 2, "{told:?}");
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn another_namespace_is_watched_from_outside_and_may_go() {
        let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut monitor = Monitor::open_outside(&other)?;
            let mut netlink = Netlink::open()?;
            assert_eq!(netlink.namespace_id(&other)?, netlink.namespace_id(&other)?);
            netlink.add_veth("left", "right", &other)?;
            let left = netlink.link("left")?;
            netlink.set_up(left.index, None)?;
            let names = |events: Vec<Event>| {
                let name = |event: Event| match event {
                    Event::Link(link) => Some(link.name),
                    _ => None,
                };
                events.into_iter().filter_map(name).collect::<Vec<_>>()
            };
            let told = names(monitor.take());
            assert!(told.iter().any(|name| name == "right") && !told.iter().any(|name| name == "left"));
            // The end of a namespace is the end of its links, and of the other ends of their cables.
            drop(other);
            let mut own = Monitor::open()?;
            for _ in 0..500 {
                if own.take().contains(&Event::LinkGone(left.index)) || netlink.link("left").is_err() {
                    return Ok(());
                }
                let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                rustix::event::poll(&mut [], Some(&timeout))?;
            }
            panic!("the namespace is kept");
        })
        .unwrap();
    }
}
