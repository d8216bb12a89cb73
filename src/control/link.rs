//! The tunnel's interface: up, with its MTU and its addresses.
//!
//! Nothing is taken from it but an address that has become another node's: what that one sends from it would be dropped here as our own come
//! back (`fib_validate_source`), and what is for it would not leave. Any other goes with the interface, which is the data plane's.

use std::net::IpAddr;

use super::failed::Failed;
use super::plan::{Entry, Kind};
use super::route::metric_of;
use crate::sys::netlink::Netlink;

/// What the interface should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub interface: String,
    /// Its MTU in bytes; `None` to leave it as it is.
    pub mtu: Option<u32>,
    /// The node's tunnel addresses. With one of them as their source, packets of the node itself to other nodes' pods are answered through
    /// the tunnel; the kernel would choose the node's address otherwise, and the answer would come in clear.
    pub addresses: Vec<IpAddr>,
}

impl Link {
    /// Looks at the interface and makes it what it should be beside these routes of all packets; returns how many steps that took. Without an
    /// interface there is nothing to do.
    ///
    /// # Errors
    /// Names the first step that failed. The others have been taken.
    pub fn sync(&self, netlink: &mut Netlink, routes: &[Entry]) -> Result<usize, Failed> {
        let asking = |error| Failed::new(format!("looking for interface {}", self.interface), error);
        let Some(link) = netlink.find_link(&self.interface).map_err(asking)? else { return Ok(0) };
        let failed = |what: String| {
            let what = format!("{what} of interface {}", self.interface);
            move |error| Failed::new(what, error)
        };
        let found = netlink.addresses(link.index).map_err(failed("reading the addresses".to_owned()))?;
        let mut taken = Vec::new();
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != link.mtu) {
            taken.push(netlink.set_mtu(link.index, mtu).map_err(failed(format!("setting the MTU {mtu}"))));
        }
        for addr in self.addresses.iter().filter(|addr| !found.iter().any(|(found, _)| found == *addr)) {
            let len = if addr.is_ipv4() { 32 } else { 128 };
            let added = netlink.add_address(link.index, *addr, len);
            taken.push(added.map_err(failed(format!("adding the address {addr}"))));
        }
        let is_surplus = |addr: &IpAddr| !self.addresses.contains(addr) && leads_elsewhere(routes, *addr);
        for (addr, len) in found.into_iter().filter(|(addr, _)| is_surplus(addr)) {
            let removed = netlink.remove_address(link.index, addr, len);
            taken.push(removed.map_err(failed(format!("removing the address {addr}"))));
        }
        if !link.up {
            taken.push(
                netlink.set_up(link.index, None).map_err(|error| {
                    Failed::new(format!("switching on interface {}", self.interface), error)
                }),
            );
        }
        let steps = taken.len();
        taken.into_iter().collect::<Result<Vec<()>, _>>().map(|_| steps)
    }
}

/// Tells whether an address is another node's, or nobody's.
fn leads_elsewhere(routes: &[Entry], addr: IpAddr) -> bool {
    let around = routes.iter().filter(|entry| entry.prefix.contains(addr));
    let strongest = around.min_by_key(|entry| (std::cmp::Reverse(entry.prefix.len()), metric_of(entry.kind)));
    strongest.is_some_and(|entry| entry.kind != Kind::Throw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Prefix;
    use crate::sys::netns;

    #[test]
    fn an_address_that_has_become_another_nodes_is_taken_from_the_interface() {
        let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut netlink = Netlink::open()?;
            netlink.add_veth("adit0", "peer", &other)?;
            let index = netlink.link("adit0")?.index;
            let addrs =
                |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
            let link =
                |texts: &[&str]| Link { interface: "adit0".to_owned(), mtu: None, addresses: addrs(texts) };
            let entry = |text: &str, len, kind| Entry {
                prefix: Prefix::new(text.parse().unwrap(), len).unwrap(),
                kind,
            };
            let has = |netlink: &mut Netlink, texts: &[&str]| {
                let found = netlink.addresses(index).unwrap();
                let found: Vec<_> = found.iter().map(|(addr, _)| *addr).collect();
                addrs(texts).iter().map(|addr| found.contains(addr)).collect::<Vec<_>>()
            };
            let all = ["10.244.1.0", "fd00:1::", "10.244.2.0", "fd00:2::", "10.250.0.1", "10.1.1.1"];
            let routes = [
                entry("10.244.0.0", 16, Kind::Blackhole),
                entry("10.244.1.0", 24, Kind::Throw),
                entry("fd00:1::", 64, Kind::Throw),
            ];
            // Somebody's own, beside ours.
            netlink.add_address(index, "10.250.0.1".parse().unwrap(), 32)?;
            netlink.add_address(index, "10.1.1.1".parse().unwrap(), 8)?;
            link(&all[..2]).sync(&mut netlink, &routes).unwrap();
            assert_eq!(has(&mut netlink, &all), [true, true, false, false, true, true]);
            // The node is another one's by the same name, with other blocks, and its old ones are given away.
            let routes = [
                entry("10.244.0.0", 16, Kind::Blackhole),
                entry("10.244.1.0", 24, Kind::Unicast),
                entry("fd00:1::", 64, Kind::Unicast),
                entry("10.244.2.0", 24, Kind::Throw),
                entry("fd00:2::", 64, Kind::Throw),
            ];
            assert_eq!(link(&all[2..4]).sync(&mut netlink, &routes).unwrap(), 4);
            assert_eq!(has(&mut netlink, &all), [false, false, true, true, true, true]);
            assert_eq!(link(&all[2..4]).sync(&mut netlink, &routes).unwrap(), 0);
            Ok(())
        })
        .unwrap();
    }
}
