//! The tunnel's interface: on, of its MTU, with its addresses. Whose it is makes it; here it is made ready.
//!
//! An address that it has beyond those is left alone: it may be somebody else's.

use std::io;

use super::reconcile::Link;
use crate::config::Prefix;
use crate::sys::netlink::Netlink;

/// Makes the interface what it should be.
///
/// # Errors
/// `ENODEV` if it does not exist; what the kernel says otherwise.
pub fn make_ready(netlink: &mut Netlink, link: &Link) -> io::Result<()> {
    let there = netlink.link(&link.name)?;
    if !there.up || link.mtu.is_some_and(|mtu| mtu != there.mtu) {
        netlink.set_up(there.index, link.mtu)?;
    }
    for addr in &link.addresses {
        match netlink.add_address(there.index, *addr, Prefix::host(*addr).len()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
