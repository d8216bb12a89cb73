//! The tunnel's interface: up, with its MTU and its addresses.
//!
//! Nothing is taken from it: an address that is no longer wanted goes with the interface, which is the data plane's.

use std::net::IpAddr;

use super::failed::Failed;
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
    /// Looks at the interface and makes it what it should be; returns how many steps that took. Without an interface there is nothing to do.
    ///
    /// # Errors
    /// Names the first step that failed. The others have been taken.
    pub fn sync(&self, netlink: &mut Netlink) -> Result<usize, Failed> {
        let Ok(link) = netlink.link(&self.interface) else { return Ok(0) };
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
