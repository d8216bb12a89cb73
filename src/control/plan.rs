//! What the kernel is to be told about routes, as plain data: made by the topology, obeyed by whoever speaks netlink.

use crate::config::Prefix;

/// All routes of the tunnel, and the rule that leads to them: `not from all fwmark FWMARK lookup TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// The routing table, which is ours alone.
    pub table: u32,
    /// The mark of the data plane's own datagrams, which pass the table by.
    pub fwmark: u32,
    /// The priority of the rule.
    pub rule_priority: u32,
    /// The tunnel's interface.
    pub interface: String,
    /// The routes, in ascending order.
    pub entries: Vec<Entry>,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The destination.
    pub prefix: Prefix,
    /// What becomes of a packet that goes there.
    pub kind: Kind,
}

/// What becomes of a packet. One destination may have a [`Self::Unicast`] and a [`Self::Blackhole`]: the blackhole has the worse metric
/// then, and takes over when the interface, and its routes with it, goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It enters the tunnel.
    Unicast,
    /// The lookup goes on in the next table, as if this one did not exist.
    Throw,
    /// It is dropped.
    Blackhole,
}
