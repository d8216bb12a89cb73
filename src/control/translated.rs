//! Connections that began before their packets were led into the tunnel, with this node's address as their source by translation.
//!
//! The kernel remembers the translation for as long as the connection lasts, and goes on with it in the tunnel. The answers go to this
//! node's address then, past the tunnel, and Strict drops them on arrival. A connection that is forgotten begins anew, with an address that
//! is answered through the tunnel. The kernel does so itself where the rule is `masquerade` (`nf_nat_core.c`, `nf_nat_oif_changed`), but not
//! where it names an address.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::config::Prefix;
use crate::sys::netlink::conntrack::{Connection, Conntrack};

/// Forgets the connections to these prefixes whose source was translated to one of these addresses, and returns how many there were.
///
/// # Errors
/// If the kernel tracks no connections, or does not tell.
pub fn forget(prefixes: &BTreeSet<Prefix>, addresses: &[IpAddr]) -> io::Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let connections = conntrack.connections()?;
    let stale = connections.iter().filter(|connection| is_stale(connection, prefixes, addresses));
    // One that has ended is as good.
    Ok(stale.filter(|connection| conntrack.forget(connection).is_ok()).count())
}

fn is_stale(connection: &Connection, prefixes: &BTreeSet<Prefix>, addresses: &[IpAddr]) -> bool {
    connection.source != connection.reply_destination
        && addresses.contains(&connection.reply_destination)
        && prefixes.iter().any(|prefix| prefix.contains(connection.reply_source))
}
