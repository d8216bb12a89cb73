//! Routes of any routing table, by kind, with the protocol number that says whose they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, family_of};

/// A route of a routing table. The kernel tells routes of one table apart by destination and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRoute {
    /// The routing table.
    pub table: u32,
    /// Destination and length of the prefix.
    pub destination: (IpAddr, u8),
    /// What goes before what: of two routes to one prefix the lower one is chosen. For IPv6, 0 stands for 1024.
    pub metric: u32,
    /// Where it leads.
    pub kind: RouteKind,
    /// The MTU in bytes that the route itself sets (`RTAX_MTU`).
    pub mtu: Option<u32>,
    /// Who made it: a number below 256 of those in `/etc/iproute2/rt_protos`.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Straight onto a link.
    Unicast {
        /// The interface's index.
        interface: u32,
    },
    /// Out of the table: the search goes on with the next rule.
    Throw,
    /// Nowhere: the packet is dropped without an answer.
    Blackhole,
    /// Something else, by its number in rtnetlink(7); by way of a gateway, too.
    Other(u8),
}

/// Which routes are asked for. What is `None` does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Those of one routing table.
    pub table: Option<u32>,
    /// Those that one protocol has made.
    pub protocol: Option<u8>,
}

impl RouteFilter {
    fn admits(&self, route: &TableRoute) -> bool {
        self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
    }
}

impl Netlink {
    /// Returns the IPv4 and IPv6 routes that `filter` admits. From Linux 4.20 on the kernel sends no others.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn table_routes(&mut self, filter: &RouteFilter) -> io::Result<Vec<TableRoute>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = filter.protocol.unwrap_or_default().into();
            message.attributes.extend(filter.table.map(RouteAttribute::Table));
            // What is strict is the look at the request; without it the kernel sends everything.
            let is_strict = self.socket.set_netlink_get_strict_chk(true).is_ok();
            let replies = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP);
            if is_strict {
                self.socket.set_netlink_get_strict_chk(false)?;
            }
            let replies = match replies {
                // There is no such table until it has a route.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                replies => replies?,
            };
            // A kernel without IPv6 answers with the routes of all other families.
            let is_asked_for =
                |route: &TableRoute| family_of(route.destination.0) == family && filter.admits(route);
            routes.extend(replies.iter().filter_map(table_route_of).filter(is_asked_for));
        }
        Ok(routes)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` if the table has one to that destination with that metric, whoever made it; `ENETDOWN` if the interface is switched off,
    /// `ENODEV` if it is gone.
    pub fn add_table_route(&mut self, route: &TableRoute) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(message_of(route)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Puts a route in the place of the one to that destination with that metric. No packet finds neither.
    ///
    /// # Errors
    /// `ENOENT` if there is none; those of [`Self::add_table_route`].
    pub fn replace_table_route(&mut self, route: &TableRoute) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(message_of(route)), NLM_F_REPLACE)
    }

    /// Removes a route, if it is of this kind and this protocol.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn remove_table_route(&mut self, route: &TableRoute) -> io::Result<()> {
        let mut message = message_of(route);
        message.header.scope = RouteScope::NoWhere;
        message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Metrics(_)));
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }
}

fn message_of(route: &TableRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(route.destination.0);
    message.header.destination_prefix_length = route.destination.1;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = route.protocol.into();
    message.header.kind = match route.kind {
        RouteKind::Unicast { .. } => RouteType::Unicast,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(kind) => kind.into(),
    };
    message.attributes = vec![
        RouteAttribute::Table(route.table),
        RouteAttribute::Destination(route.destination.0.into()),
        RouteAttribute::Priority(route.metric),
    ];
    if let RouteKind::Unicast { interface } = route.kind {
        message.header.scope = RouteScope::Link;
        message.attributes.push(RouteAttribute::Oif(interface));
    }
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn table_route_of(message: &RouteNetlinkMessage) -> Option<TableRoute> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let (mut destination, mut metric, mut mtu, mut interface, mut is_direct) = (None, 0, None, None, true);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = Some((*addr).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => destination = Some((*addr).into()),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => {
                is_direct = false
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let any = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let kind = match (route.header.kind, interface) {
        (RouteType::Unicast, Some(interface)) if is_direct => RouteKind::Unicast { interface },
        (RouteType::Throw, _) => RouteKind::Throw,
        (RouteType::BlackHole, _) => RouteKind::Blackhole,
        (other, _) => RouteKind::Other(other.into()),
    };
    Some(TableRoute {
        table: table_of(route),
        destination: (destination.unwrap_or(any), route.header.destination_prefix_length),
        metric,
        kind,
        mtu,
        protocol: protocol_of(route.header.protocol),
    })
}

/// Returns a route's table: the header's field holds small numbers only.
pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| route.header.table.into())
}

pub(super) fn protocol_of(protocol: RouteProtocol) -> u8 {
    protocol.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    const TABLE: u32 = 70_000;
    const PROTOCOL: u8 = 173;

    fn route(destination: &str, len: u8, metric: u32, kind: RouteKind) -> TableRoute {
        let destination = (destination.parse().unwrap(), len);
        TableRoute { table: TABLE, destination, metric, kind, mtu: None, protocol: PROTOCOL }
    }

    #[test]
    fn routes_of_every_kind_are_made_listed_replaced_and_removed() {
        let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut netlink = Netlink::open()?;
            netlink.add_veth("left", "right", &other)?;
            let interface = netlink.link("left")?.index;
            let filter = RouteFilter { table: Some(TABLE), protocol: Some(PROTOCOL) };
            assert_eq!(netlink.table_routes(&filter)?, []);
            let unicast = RouteKind::Unicast { interface };
            let down = netlink.add_table_route(&route("10.0.1.0", 24, 20, unicast)).unwrap_err();
            assert_eq!(down.raw_os_error(), Some(libc::ENETDOWN));
            netlink.set_up(interface, None)?;
            let mut routes = vec![
                TableRoute { mtu: Some(1400), ..route("10.0.1.0", 24, 20, unicast) },
                route("10.0.0.0", 16, 30, RouteKind::Blackhole),
                route("10.0.2.0", 24, 10, RouteKind::Throw),
                TableRoute { mtu: Some(1300), ..route("fd00:1::", 64, 20, unicast) },
                route("fd00::", 16, 30, RouteKind::Blackhole),
                route("fd00:2::", 64, 10, RouteKind::Throw),
                route("::", 0, 10, RouteKind::Throw),
                route("0.0.0.0", 0, 10, RouteKind::Throw),
            ];
            for route in &routes {
                netlink.add_table_route(route)?;
                let again = netlink.add_table_route(route).unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::AlreadyExists, "{route:?}");
            }
            // Another's.
            let foreign = TableRoute { protocol: 4, ..route("10.0.3.0", 24, 10, RouteKind::Throw) };
            netlink.add_table_route(&foreign)?;
            routes.sort();
            let mut listed = netlink.table_routes(&filter)?;
            listed.sort();
            assert_eq!(listed, routes);
            assert_eq!(netlink.table_routes(&RouteFilter { table: Some(TABLE), protocol: None })?.len(), 9);
            netlink.add_route(("10.8.0.0".parse().unwrap(), 16), None, Some(interface))?;
            assert!(netlink.table_routes(&RouteFilter::default())?.len() > 9);

            for changed in &mut routes {
                if let RouteKind::Unicast { .. } = changed.kind {
                    changed.mtu = Some(1350);
                    netlink.replace_table_route(changed)?;
                }
            }
            listed = netlink.table_routes(&filter)?;
            listed.sort();
            assert_eq!(listed, routes);
            let absent = route("10.9.0.0", 16, 10, RouteKind::Throw);
            assert_eq!(netlink.replace_table_route(&absent).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            let not_ours = netlink.remove_table_route(&TableRoute { protocol: PROTOCOL, ..foreign });
            assert_eq!(not_ours.unwrap_err().raw_os_error(), Some(libc::ESRCH));
            routes.iter().try_for_each(|route| netlink.remove_table_route(route))?;
            assert_eq!(netlink.table_routes(&RouteFilter { table: Some(TABLE), protocol: None })?, [foreign]);
            Ok(())
        })
        .unwrap();
    }
}
