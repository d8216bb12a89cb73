//! The routes: into the tunnel, past it, or nowhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::Own;
use super::claims::Granted;
use super::unencrypted::Reason;
use crate::config::Prefix;
use crate::control::api::{HostTraffic, Mode, Scope};
use crate::control::objects::{Objects, Tunnel};
use crate::control::plan::{Entry, FromPods, Kind, Routes};
use crate::control::settings::Settings;

/// The routes that are being made.
pub(super) struct Routing<'a> {
    settings: &'a Settings,
    zone: Option<&'a str>,
    /// The prefixes of the links that have an address of this node.
    subnets: Vec<Prefix>,
    /// Where API servers are that need no tunnel.
    pub(super) api_servers: BTreeSet<IpAddr>,
    /// Whether this node itself is among what never needs the tunnel.
    pub(super) is_exempt: bool,
    /// Those for all packets.
    all: Table,
    /// Those for packets of this node's pods alone, and these.
    from_pods: Table,
    sources: Vec<Prefix>,
    /// The prefixes of other nodes' pods that nothing leaves for in clear.
    pub(super) guarded: Vec<Prefix>,
}

/// A routing table that is being made.
#[derive(Default)]
struct Table {
    /// In the order in which they were added: of several to one prefix the first counts.
    entries: Vec<Entry>,
    /// What nothing leaves for in clear, whether or not there is an entry.
    blackholes: Vec<Prefix>,
}

impl<'a> Routing<'a> {
    pub(super) fn new(settings: &'a Settings, own: &Own, objects: &'a Objects) -> Self {
        let tunnel = objects.tunnels.get(&own.name);
        let zone = tunnel.and_then(|tunnel| tunnel.zone.as_deref());
        let places = tunnel.into_iter().flat_map(|tunnel| &tunnel.endpoints).map(SocketAddr::ip);
        let nodes = tunnel.into_iter().flat_map(|tunnel| tunnel.node_addresses.iter().copied());
        let addresses: BTreeSet<_> = places.chain(nodes).collect();
        let of_node = own.links.iter().filter(|(addr, _)| addresses.contains(addr));
        let subnets = of_node.filter_map(|(addr, len)| Prefix::new(*addr, *len)).collect();
        let api_servers: BTreeSet<_> = match settings.exempt_api_server {
            true => own.api_servers.iter().chain(objects.api_servers.values().flatten()).copied().collect(),
            false => BTreeSet::new(),
        };
        let is_exempt = !api_servers.is_disjoint(&addresses)
            || addresses.iter().any(|addr| settings.exempt.iter().any(|exempt| exempt.contains(*addr)));
        let mut this = Self {
            settings,
            zone,
            subnets,
            api_servers,
            is_exempt,
            all: Table::default(),
            from_pods: Table::default(),
            sources: Vec::new(),
            guarded: Vec::new(),
        };
        if settings.mode == Mode::Strict {
            this.all.blackholes.extend(settings.catch_all());
        }
        let encrypts_hosts = settings.host_traffic == HostTraffic::Encrypt;
        if encrypts_hosts {
            settings.exempt.iter().for_each(|prefix| this.add(*prefix, Kind::Throw));
        }
        if encrypts_hosts {
            let api_servers = this.api_servers.clone();
            api_servers.into_iter().for_each(|addr| this.add(Prefix::host(addr), Kind::Throw));
        }
        this
    }

    /// Tells why a node is too near to be talked to through the tunnel, if it is. Both nodes find the same: each looks at the place that the
    /// other prefers.
    pub(super) fn nearness(&self, tunnel: Option<&Tunnel>) -> Option<Reason> {
        match self.settings.scope {
            Scope::All => None,
            Scope::CrossSubnet => {
                let place = tunnel?.endpoints.first()?.ip();
                self.subnets.iter().any(|subnet| subnet.contains(place)).then_some(Reason::SameSubnet)
            }
            Scope::CrossZone => {
                let zone = tunnel?.zone.as_deref();
                (self.zone.is_some() && zone == self.zone).then_some(Reason::SameZone)
            }
        }
    }

    /// Adds the routes to another node, and tells whether packets to its pods are dropped.
    pub(super) fn route(&mut self, granted: &Granted<'_>, reason: Option<Reason>) -> bool {
        let is_strict = self.settings.mode == Mode::Strict;
        let kind = match reason {
            Some(Reason::ModeOff) => return false,
            None => Kind::Unicast,
            Some(Reason::SameZone | Reason::SameSubnet) => Kind::Throw,
            Some(Reason::DuplicateKey) => Kind::Blackhole,
            Some(Reason::NoKey) if is_strict => Kind::Blackhole,
            Some(Reason::NoKey) => Kind::Throw,
        };
        // What the host sends to pods comes from the tunnel's address, and is answered there.
        for prefix in granted.pods.iter().chain(&granted.tunnels) {
            self.add(*prefix, kind);
        }
        for node in &granted.nodes {
            self.route_node(*node, kind);
        }
        if is_strict {
            self.all.blackholes.extend(&granted.unclaimed);
            self.guarded.extend(&granted.unclaimed);
            self.guarded.extend(granted.pods.iter().filter(|_| kind != Kind::Throw));
        }
        kind == Kind::Blackhole
    }

    /// Adds the route to a node's own address.
    ///
    /// What an exempt node sends to other nodes stays outside the tunnel, as does what they send to it: a node whose key nobody knows yet
    /// must be able to say it to the API server, and to hear its answer.
    fn route_node(&mut self, node: Prefix, kind: Kind) {
        let is_exempt = self.api_servers.contains(&node.addr())
            || self.settings.exempt.iter().any(|exempt| exempt.covers(&node));
        match self.settings.host_traffic {
            HostTraffic::Plain => {}
            HostTraffic::PodToNode if is_exempt => {}
            HostTraffic::PodToNode => self.from_pods.add(node, kind),
            HostTraffic::Encrypt if is_exempt || self.is_exempt => self.add(node, Kind::Throw),
            HostTraffic::Encrypt => self.add(node, kind),
        }
    }

    /// Adds the routes past the tunnel to this node's own pods.
    pub(super) fn add_own(&mut self, granted: &Granted<'_>) {
        granted.pods.iter().chain(&granted.unclaimed).for_each(|prefix| self.add(*prefix, Kind::Throw));
        self.sources.clone_from(&granted.pods);
    }

    /// Lets nothing leave for what was other nodes' pods' and is nobody's any more.
    pub(super) fn add_orphans(&mut self, orphans: &[Prefix]) {
        self.all.blackholes.extend(orphans);
    }

    /// Lets past the tunnel what is sent to nodes that are inside all pods' prefixes, but where pods are or were: who named these may not have
    /// known better, and neither may who was asked.
    pub(super) fn let_out<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Prefix>,
        has_pods: impl Fn(&Prefix) -> bool,
    ) {
        for node in nodes {
            if self.is_caught(node) && !has_pods(node) {
                self.add(*node, Kind::Throw);
            }
        }
    }

    /// Tells whether a prefix is inside all pods' prefixes, which go nowhere where they are nobody's.
    fn is_caught(&self, prefix: &Prefix) -> bool {
        let is_strict = self.settings.mode == Mode::Strict;
        is_strict && self.settings.catch_all().iter().any(|block| block.covers(prefix))
    }

    fn add(&mut self, prefix: Prefix, kind: Kind) {
        self.all.add(prefix, kind);
    }

    pub(super) fn finish(mut self) -> Routes {
        // By an API server whoever has named or claimed too much says otherwise.
        for addr in &self.api_servers {
            self.all.let_out(Prefix::host(*addr));
        }
        let mut routes = no_routes(self.settings);
        if self.settings.mode != Mode::Off {
            let is_strict = self.settings.mode == Mode::Strict;
            routes.entries = self.all.finish(is_strict);
            routes.from_pods = FromPods { sources: self.sources, entries: self.from_pods.finish(is_strict) };
        }
        routes
    }
}

impl Table {
    /// Adds an entry; what is exempt is there already, and stays.
    fn add(&mut self, prefix: Prefix, kind: Kind) {
        self.entries.push(Entry { prefix, kind });
    }

    /// Lets an address past the tunnel, whatever else it is taken for.
    fn let_out(&mut self, single: Prefix) {
        let entries = self.entries.iter().filter(|entry| entry.kind != Kind::Throw).map(|entry| entry.prefix);
        if entries.chain(self.blackholes.iter().copied()).any(|prefix| prefix.covers(&single)) {
            self.entries.insert(0, Entry { prefix: single, kind: Kind::Throw });
        }
    }

    fn finish(self, is_strict: bool) -> Vec<Entry> {
        let Self { mut entries, mut blackholes } = self;
        entries.sort_by_key(|entry| entry.prefix);
        entries.dedup_by_key(|entry| entry.prefix);
        let is_thrown = |prefix: &Prefix| {
            let at = entries.binary_search_by_key(prefix, |entry| entry.prefix);
            at.is_ok_and(|at| entries[at].kind == Kind::Throw)
        };
        blackholes.retain(|prefix| !is_thrown(prefix));
        blackholes.sort_unstable();
        let unicast = entries.iter().filter(|entry| is_strict && entry.kind == Kind::Unicast);
        blackholes.extend(unicast.map(|entry| entry.prefix));
        entries.extend(blackholes.into_iter().map(|prefix| Entry { prefix, kind: Kind::Blackhole }));
        // Both parts are in order, or nearly: what is in order is only merged.
        entries.sort();
        entries.dedup();
        entries
    }
}

/// Returns table and rule without any route.
pub fn no_routes(settings: &Settings) -> Routes {
    Routes {
        table: settings.table,
        fwmark: settings.fwmark,
        rule_priority: settings.rule_priority,
        interface: settings.interface.clone(),
        entries: Vec::new(),
        from_pods: FromPods::default(),
    }
}
