//! What this node's kernel should do, as plain data.

use crate::config::Prefix;

/// Routes of a table of our own, and the rule that leads there every packet but the tunnel's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The routing table; nobody else's.
    pub table: u32,
    /// The mark of the tunnel's own UDP datagrams, which skip the table; not 0.
    pub fwmark: u32,
    /// Where the rule stands among the others: ascending order, before the main table's 32766.
    pub rule_priority: u32,
    /// The tunnel's interface.
    pub interface: String,
    /// The routes, in any order.
    pub entries: Vec<Entry>,
    /// Further ones, for packets of this node's pods alone.
    pub from_pods: FromPods,
}

impl Routes {
    /// Returns the table of the routes for pods alone: the next one.
    pub fn pods_table(&self) -> u32 {
        self.table.wrapping_add(1)
    }

    /// Takes out what is of IPv6, and tells whether there was anything.
    pub fn leave_out_ipv6(&mut self) -> bool {
        let tables = [&mut self.entries, &mut self.from_pods.entries];
        let counts = tables.map(|entries| {
            let before = entries.len();
            entries.retain(|entry| entry.prefix.addr().is_ipv4());
            before - entries.len()
        });
        self.from_pods.sources.retain(|source| source.addr().is_ipv4());
        counts != [0, 0]
    }

    /// Takes out every route into the tunnel.
    pub fn close(&mut self) {
        for entries in [&mut self.entries, &mut self.from_pods.entries] {
            entries.retain(|entry| entry.kind != Kind::Unicast);
        }
    }
}

/// Routes for packets that come from this node's pods, in a table of their own, and the rules that lead there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromPods {
    /// The pods' prefixes.
    pub sources: Vec<Prefix>,
    /// The routes, in any order.
    pub entries: Vec<Entry>,
}

/// Packets that leave the cluster with this node's address in place of a pod's, which nobody outside knows the way to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The prefixes of this node's pods; without any, nothing is translated.
    pub sources: Vec<Prefix>,
    /// Where their addresses are known: what goes there is left as it is.
    pub inside: Vec<Prefix>,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The destination.
    pub prefix: Prefix,
    /// Where it leads.
    pub kind: Kind,
}

/// Where a route leads. Of several to one prefix `Throw` is obeyed before `Unicast`, and that before `Blackhole`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Into the tunnel.
    Unicast,
    /// Out of the table: the prefix is this node's own, and the main table knows the way.
    Throw,
    /// Nowhere: in Strict mode, what no peer has does not leave in clear.
    Blackhole,
}
