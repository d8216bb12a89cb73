//! From all objects to what one node should do: peers, allowed IPs, routes; and what is not encrypted, and why. Pure.
//!
//! 1. Settings: what the `TunnelConfig`s want of this node.
//! 2. Keys: one that several nodes have belongs to the oldest of them. The others have none, and nothing goes to them in clear.
//! 3. Addresses: each belongs to the oldest node that claims it; a claim that is refused has no effect but a fault. A block of pods inside
//!    another node's block is a loan, and belongs to the borrower. Where the cluster's own `Node`s are known, none of that is needed: a
//!    node has no pods but in the blocks that the cluster gave it.
//! 4. Peers: from a node, its pods' prefixes, its own addresses and those of its tunnel are accepted. That is more than is routed to it:
//!    a pod on the host's network answers from the node's address.
//! 5. Routes: into the tunnel, past it, or nowhere.
//!
//! The oldest is the one whose object was made first; if that is not known, the one whose name comes first. Nothing here depends on the
//! order in which objects came.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::api::{HostTraffic, Mode, PodAddresses, Scope, StrictGate};
use super::objects::{Fault, Objects, Tunnel};
use super::plan::{Entry, FromPods, Kind, Masquerade, Routes};
use super::settings::Settings;
use crate::config::Prefix;
use crate::crypto::x25519::PublicKey;

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// The public half of its key.
    pub public_key: PublicKey,
    /// Where the API server is; empty without one.
    pub api_servers: Vec<IpAddr>,
    /// The addresses of its links, each with the length of its prefix, in order.
    pub links: Vec<(IpAddr, u8)>,
    /// The mode that it was in, if that is known: Strict may have to wait where it was another one.
    pub mode: Option<Mode>,
}

impl Own {
    /// Returns a node of which nothing else is known.
    pub fn new(name: &str, public_key: PublicKey) -> Self {
        Self { name: name.to_owned(), public_key, api_servers: Vec::new(), links: Vec::new(), mode: None }
    }
}

/// What this node should do.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// What is wanted of it, with the mode that it should be in for the time being.
    pub settings: Settings,
    /// The nodes that Strict waits for, by name, and why; empty if it does not.
    pub waits_for: BTreeMap<String, Unready>,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Its routes.
    pub routes: Routes,
    /// What it has to translate if nobody else makes the pods' network.
    pub masquerade: Masquerade,
    /// The addresses of its tunnel's interface.
    pub addresses: Vec<IpAddr>,
    /// Its own addresses at which pods of other nodes arrive in clear, as traffic to nodes is not encrypted, or not to this one.
    pub open_addresses: Vec<IpAddr>,
    /// The nodes that are not talked to through the tunnel, by name.
    pub not_encrypted: BTreeMap<String, Unencrypted>,
    /// What is not obeyed, by `Kind/name` of the object.
    pub faults: BTreeSet<(String, Fault)>,
    /// Why this node is not what it should be, if it is not.
    pub degraded: Option<Degraded>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub node: String,
    /// Where it is found, the preferred place first.
    pub endpoints: Vec<SocketAddr>,
    /// What is accepted from it, and sent to it if it is routed into the tunnel.
    pub allowed_ips: BTreeSet<Prefix>,
}

/// How a node is treated that is not talked to through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unencrypted {
    /// Why.
    pub reason: Reason,
    /// Whether packets to its pods are dropped. Otherwise they go in clear.
    pub is_dropped: bool,
}

/// Why a node is not talked to through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The mode is Off.
    ModeOff,
    /// It has no key that is Active.
    NoKey,
    /// An older node has its key.
    DuplicateKey,
    /// It is in our zone, and the scope is CrossZone.
    SameZone,
    /// It is on a subnet of ours, and the scope is CrossSubnet.
    SameSubnet,
}

impl Reason {
    /// Tells whether it is what was asked for, and no fault.
    pub fn is_wanted(self) -> bool {
        match self {
            Self::ModeOff | Self::SameZone | Self::SameSubnet => true,
            Self::NoKey | Self::DuplicateKey => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModeOff => "ModeOff",
            Self::NoKey => "NoKey",
            Self::DuplicateKey => "DuplicateKey",
            Self::SameZone => "SameZone",
            Self::SameSubnet => "SameSubnet",
        })
    }
}

/// Why a node is not ready for Strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// It has not said anything of itself.
    NotPublished,
    /// It has no key that is Active.
    NoKey,
    /// An older node has its key.
    DuplicateKey,
    /// Its agent has not said what it found.
    NoStatus,
    /// Its agent found something wrong.
    NotReady,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPublished => "NotPublished",
            Self::NoKey => "NoKey",
            Self::DuplicateKey => "DuplicateKey",
            Self::NoStatus => "NoStatus",
            Self::NotReady => "NotReady",
        })
    }
}

/// Why this node is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Degraded {
    /// Nothing says what addresses are behind it.
    NotPublished,
    /// Its object does not name the key that it has.
    OtherKeyPublished,
    /// An older node has its key: the peers do not talk to this one.
    DuplicateKey {
        /// The other node.
        node: String,
    },
}

impl Degraded {
    /// Returns one word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotPublished => "NotPublished",
            Self::OtherKeyPublished => "OtherKeyPublished",
            Self::DuplicateKey { .. } => "DuplicateKey",
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPublished => f.write_str("NotPublished: there is no NodeTunnel of this node"),
            Self::OtherKeyPublished => {
                f.write_str("OtherKeyPublished: the NodeTunnel of this node names another key")
            }
            Self::DuplicateKey { node } => {
                write!(f, "DuplicateKey: the older node {node} has the key of this one")
            }
        }
    }
}

/// Returns what the node `own` should do.
pub fn topology(objects: &Objects, own: &Own) -> Topology {
    let mut faults = BTreeSet::new();
    let own_tunnel = objects.tunnels.get(&own.name);
    let mut settings = {
        let nothing = BTreeMap::new();
        let labels = own_tunnel.map_or(&nothing, |tunnel| &tunnel.labels);
        let mut found = Vec::new();
        let settings = Settings::of(objects, &own.name, labels, &mut found);
        faults.extend(found.into_iter().map(|(name, fault)| (format!("TunnelConfig/{name}"), fault)));
        settings
    };
    for (name, tunnel) in &objects.tunnels {
        faults.extend(tunnel.faults.iter().map(|fault| (format!("NodeTunnel/{name}"), fault.clone())));
    }
    let by_age = by_age(objects);
    let keys = key_owners(&by_age);
    let waits_for = waits_for(&settings, objects, own, &keys);
    if !waits_for.is_empty() {
        settings.mode = Mode::Permissive;
    }
    let mut claims = Claims::new(&settings, objects);
    for (name, tunnel) in &by_age {
        claims.add(name, tunnel);
    }
    claims.add_silent(objects);
    faults.extend(claims.faults);
    let claimed = claims.granted;

    let mut routing = Routing::new(&settings, own, objects);
    let mut peers = BTreeMap::new();
    let mut not_encrypted = BTreeMap::new();
    for (name, granted) in &claimed {
        if *name == own.name {
            routing.add_own(granted);
            continue;
        }
        let tunnel = objects.tunnels.get(*name);
        let active = tunnel.and_then(|tunnel| tunnel.active);
        // Our own key in another's hands is no peer of ours, whoever is older.
        let key = active.filter(|key| keys.get(key) == Some(name) && *key != own.public_key);
        if let (Some(key), Some(tunnel)) = (key, tunnel) {
            let (node, endpoints) = ((*name).to_owned(), tunnel.endpoints.clone());
            peers.insert(key, Peer { node, endpoints, allowed_ips: granted.all().collect() });
        }
        let reason = match (active, key) {
            _ if settings.mode == Mode::Off => Some(Reason::ModeOff),
            (_, Some(_)) => routing.nearness(tunnel),
            (None, None) => Some(Reason::NoKey),
            (Some(_), None) => Some(Reason::DuplicateKey),
        };
        let is_dropped = routing.route(granted, reason);
        if let Some(reason) = reason {
            not_encrypted.insert((*name).to_owned(), Unencrypted { reason, is_dropped });
        }
    }
    let is_open = settings.host_traffic == HostTraffic::Plain || routing.is_exempt;
    let own_addresses = own_tunnel.filter(|_| is_open).map(|tunnel| tunnel.node_addresses.clone());
    Topology {
        peers,
        waits_for,
        open_addresses: own_addresses.unwrap_or_default(),
        masquerade: masquerade(&settings, &claimed, &own.name),
        routes: routing.finish(),
        addresses: own_tunnel.map(|tunnel| tunnel.tunnel_addresses.clone()).unwrap_or_default(),
        not_encrypted,
        faults,
        degraded: degraded(own, own_tunnel, &keys),
        settings,
    }
}

/// Returns the nodes that Strict waits for. It waits once: a node that comes later is dropped until it is ready, and lets nothing out.
fn waits_for(
    settings: &Settings,
    objects: &Objects,
    own: &Own,
    keys: &BTreeMap<PublicKey, &str>,
) -> BTreeMap<String, Unready> {
    let may_wait = settings.mode == Mode::Strict
        && settings.strict_gate == StrictGate::WhenAllReady
        && matches!(own.mode, Some(Mode::Off | Mode::Permissive));
    if !may_wait {
        return BTreeMap::new();
    }
    let is_cluster = !objects.nodes.is_empty();
    let unready = |name: &String| {
        let Some(tunnel) = objects.tunnels.get(name) else { return Some(Unready::NotPublished) };
        let Some(key) = tunnel.active else { return Some(Unready::NoKey) };
        if keys.get(&key) != Some(&name.as_str()) {
            return Some(Unready::DuplicateKey);
        }
        match tunnel.is_ready {
            Some(true) => None,
            Some(false) => Some(Unready::NotReady),
            // Where there is nobody to tell, nobody tells.
            None => is_cluster.then_some(Unready::NoStatus),
        }
    };
    let names: BTreeSet<_> = objects.tunnels.keys().chain(objects.nodes.keys()).collect();
    let others = names.into_iter().filter(|name| **name != own.name);
    others.filter_map(|name| Some((name.clone(), unready(name)?))).collect()
}

/// Returns what of this node's pods goes out of the cluster: to no prefix of pods and to no tunnel's address.
fn masquerade(settings: &Settings, claimed: &BTreeMap<&str, Granted>, own: &str) -> Masquerade {
    let cluster = settings.cluster_prefixes.iter().flatten();
    let inside = claimed.values().flat_map(|granted| granted.pods.iter().chain(&granted.tunnels));
    let inside: BTreeSet<_> = cluster.chain(inside).copied().collect();
    Masquerade {
        sources: claimed.get(own).map(|granted| granted.pods.clone()).unwrap_or_default(),
        inside: inside.into_iter().collect(),
    }
}

fn degraded(own: &Own, tunnel: Option<&Tunnel>, keys: &BTreeMap<PublicKey, &str>) -> Option<Degraded> {
    let Some(tunnel) = tunnel else { return Some(Degraded::NotPublished) };
    match keys.get(&own.public_key) {
        Some(node) if *node != own.name => Some(Degraded::DuplicateKey { node: (*node).to_owned() }),
        Some(_) | None => (tunnel.active != Some(own.public_key)).then_some(Degraded::OtherKeyPublished),
    }
}

/// Returns the nodes, the oldest first.
fn by_age(objects: &Objects) -> Vec<(&str, &Tunnel)> {
    let mut nodes: Vec<_> = objects.tunnels.iter().map(|(name, tunnel)| (name.as_str(), tunnel)).collect();
    nodes.sort_by_key(|(name, tunnel)| (&tunnel.created, *name));
    nodes
}

/// Returns which node each key belongs to.
fn key_owners<'a>(by_age: &[(&'a str, &Tunnel)]) -> BTreeMap<PublicKey, &'a str> {
    let mut owners = BTreeMap::new();
    for (name, tunnel) in by_age {
        for key in &tunnel.keys {
            owners.entry(*key).or_insert(*name);
        }
    }
    owners
}

/// What a node may call its own.
#[derive(Debug, Default)]
struct Granted {
    pods: Vec<Prefix>,
    nodes: Vec<Prefix>,
    tunnels: Vec<Prefix>,
}

impl Granted {
    fn all(&self) -> impl Iterator<Item = Prefix> {
        self.pods.iter().chain(&self.nodes).chain(&self.tunnels).copied()
    }
}

/// The claims of all nodes, added from the oldest to the youngest.
struct Claims<'a> {
    settings: &'a Settings,
    /// Whose each block of pods is by the cluster's word.
    given: BTreeMap<Prefix, &'a str>,
    given_to: BTreeSet<&'a str>,
    /// Whose each block of pods is.
    pods: BTreeMap<Prefix, &'a str>,
    /// Whose each single address is.
    singles: BTreeMap<Prefix, &'a str>,
    granted: BTreeMap<&'a str, Granted>,
    faults: BTreeSet<(String, Fault)>,
}

impl<'a> Claims<'a> {
    fn new(settings: &'a Settings, objects: &'a Objects) -> Self {
        let nodes = objects.nodes.iter();
        let given = nodes
            .flat_map(|(name, node)| node.pod_prefixes.iter().map(|prefix| (*prefix, name.as_str())))
            .collect::<BTreeMap<_, _>>();
        let given_to = given.values().copied().collect();
        let (pods, singles, granted) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { settings, given, given_to, pods, singles, granted, faults: BTreeSet::new() }
    }

    /// Adds the nodes that say nothing of themselves, with what the cluster says of them.
    fn add_silent(&mut self, objects: &'a Objects) {
        for (name, node) in objects.nodes.iter().filter(|(name, _)| !objects.tunnels.contains_key(*name)) {
            let pods = node.pod_prefixes.iter().filter(|prefix| !self.pods.contains_key(prefix));
            let nodes = node.addresses.iter().map(|addr| Prefix::host(*addr));
            let nodes = nodes.filter(|single| self.single_refusal(name, single).is_none());
            let granted =
                Granted { pods: pods.copied().collect(), nodes: nodes.collect(), ..Granted::default() };
            self.granted.insert(name, granted);
        }
    }

    fn add(&mut self, name: &'a str, tunnel: &'a Tunnel) {
        let mut granted = Granted::default();
        let is_given = self.given_to.contains(name);
        for (at, prefix) in tunnel.pod_prefixes.iter().enumerate() {
            match self.pod_refusal(name, prefix, is_given) {
                None => {
                    self.pods.insert(*prefix, name);
                    granted.pods.push(*prefix);
                }
                Some(reason) => self.fault(name, "podPrefixes", at, reason),
            }
        }
        let fields = [
            ("nodeAddresses", &tunnel.node_addresses, &mut granted.nodes),
            ("tunnelAddresses", &tunnel.tunnel_addresses, &mut granted.tunnels),
        ];
        for (field, addresses, into) in fields {
            for (at, addr) in addresses.iter().enumerate() {
                let prefix = Prefix::host(*addr);
                match self.single_refusal(name, &prefix) {
                    None => {
                        self.singles.insert(prefix, name);
                        into.push(prefix);
                    }
                    Some(reason) => self.fault(name, field, at, reason),
                }
            }
        }
        self.granted.insert(name, granted);
    }

    fn pod_refusal(&self, name: &str, prefix: &Prefix, is_given: bool) -> Option<String> {
        // A single pod's address may be anywhere, if that is the plan.
        let is_pod =
            self.settings.pod_addresses == PodAddresses::Pods && *prefix == Prefix::host(prefix.addr());
        match holder(&self.given, prefix).filter(|_| !is_pod) {
            Some(other) if other != name => {
                return Some(format!("the cluster gave {prefix} to the node {other}"));
            }
            None if is_given && !is_pod => {
                return Some(format!("{prefix} is not among the podCIDRs of the node"));
            }
            Some(_) | None => {}
        }
        let cluster = self.settings.cluster_prefixes.as_deref();
        if cluster.is_some_and(|cluster| !cluster.iter().any(|block| block.covers(prefix))) {
            return Some(format!("{prefix} is outside the clusterCIDRs"));
        }
        // A block inside another's block is a loan: the more specific one has it.
        if let Some(other) = self.pods.get(prefix).filter(|other| **other != name) {
            return Some(format!("{prefix} belongs to the older node {other}"));
        }
        let inside = self
            .singles
            .range(Prefix::host(prefix.addr())..)
            .take_while(|(single, _)| prefix.contains(single.addr()));
        let mut others = inside.filter(|(_, other)| **other != name);
        others.next().map(|(single, other)| {
            format!("{prefix} holds {}, an address of the older node {other}", single.addr())
        })
    }

    fn single_refusal(&self, name: &str, single: &Prefix) -> Option<String> {
        if let Some(other) = self.singles.get(single).filter(|other| **other != name) {
            return Some(format!("{} belongs to the older node {other}", single.addr()));
        }
        let other = holder(&self.pods, single).filter(|other| *other != name)?;
        Some(format!("{} is among the pods of the older node {other}", single.addr()))
    }

    fn fault(&mut self, name: &str, field: &str, at: usize, reason: String) {
        let fault = Fault { field: format!("spec.{field}[{at}]"), reason };
        self.faults.insert((format!("NodeTunnel/{name}"), fault));
    }
}

/// Returns who holds the most specific block that covers `prefix`.
fn holder<'a>(blocks: &BTreeMap<Prefix, &'a str>, prefix: &Prefix) -> Option<&'a str> {
    let around = (0..=prefix.len()).rev().filter_map(|len| Prefix::new(prefix.addr(), len));
    around.filter_map(|block| blocks.get(&block)).copied().next()
}

/// The routes that are being made.
struct Routing<'a> {
    settings: &'a Settings,
    zone: Option<&'a str>,
    /// The prefixes of the links that have an address of this node.
    subnets: Vec<Prefix>,
    api_servers: BTreeSet<IpAddr>,
    /// Whether this node itself is among what never needs the tunnel.
    is_exempt: bool,
    /// Those for all packets.
    all: Table,
    /// Those for packets of this node's pods alone, and these.
    from_pods: Table,
    sources: Vec<Prefix>,
}

/// A routing table that is being made.
#[derive(Default)]
struct Table {
    entries: BTreeMap<Prefix, Kind>,
    blackholes: BTreeSet<Prefix>,
}

impl<'a> Routing<'a> {
    fn new(settings: &'a Settings, own: &Own, objects: &'a Objects) -> Self {
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
        let (all, from_pods, sources) = (Table::default(), Table::default(), Vec::new());
        let mut this = Self { settings, zone, subnets, api_servers, is_exempt, all, from_pods, sources };
        if settings.mode == Mode::Strict {
            this.all.blackholes.extend(settings.cluster_prefixes.iter().flatten());
        }
        if settings.host_traffic == HostTraffic::Encrypt {
            settings.exempt.iter().for_each(|prefix| this.add(*prefix, Kind::Throw));
            for addr in this.api_servers.clone() {
                this.add(Prefix::host(addr), Kind::Throw);
            }
        }
        this
    }

    /// Tells why a node is too near to be talked to through the tunnel, if it is. Both nodes find the same: each looks at the place that the
    /// other prefers.
    fn nearness(&self, tunnel: Option<&Tunnel>) -> Option<Reason> {
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
    fn route(&mut self, granted: &Granted, reason: Option<Reason>) -> bool {
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
        kind == Kind::Blackhole
    }

    /// Adds the route to a node's own address.
    ///
    /// What an exempt node sends to other nodes stays outside the tunnel, as does what they send to it: a node whose key nobody knows yet
    /// must be able to say it to the API server, and to hear its answer.
    fn route_node(&mut self, node: Prefix, kind: Kind) {
        let is_exempt = self.api_servers.contains(&node.addr())
            || self.settings.exempt.iter().any(|exempt| exempt.covers(&node));
        let is_strict = self.settings.mode == Mode::Strict;
        match self.settings.host_traffic {
            HostTraffic::Plain => {}
            HostTraffic::PodToNode if is_exempt => {}
            HostTraffic::PodToNode => self.from_pods.add(node, kind, is_strict),
            HostTraffic::Encrypt if is_exempt || self.is_exempt => self.add(node, Kind::Throw),
            HostTraffic::Encrypt => self.add(node, kind),
        }
    }

    /// Adds the routes past the tunnel to this node's own pods.
    fn add_own(&mut self, granted: &Granted) {
        granted.pods.iter().for_each(|prefix| self.add(*prefix, Kind::Throw));
        self.sources.clone_from(&granted.pods);
    }

    fn add(&mut self, prefix: Prefix, kind: Kind) {
        self.all.add(prefix, kind, self.settings.mode == Mode::Strict);
    }

    fn finish(self) -> Routes {
        let mut routes = no_routes(self.settings);
        if self.settings.mode != Mode::Off {
            routes.entries = self.all.finish();
            routes.from_pods = FromPods { sources: self.sources, entries: self.from_pods.finish() };
        }
        routes
    }
}

impl Table {
    /// Adds an entry; what is exempt is there already, and stays.
    fn add(&mut self, prefix: Prefix, kind: Kind, is_strict: bool) {
        let kind = *self.entries.entry(prefix).or_insert(kind);
        if kind == Kind::Unicast && is_strict {
            self.blackholes.insert(prefix);
        }
    }

    fn finish(self) -> Vec<Entry> {
        let throws = |prefix: &Prefix| self.entries.get(prefix) == Some(&Kind::Throw);
        let blackholes = self.blackholes.iter().filter(|prefix| !throws(prefix));
        let blackholes = blackholes.map(|prefix| Entry { prefix: *prefix, kind: Kind::Blackhole });
        let others = self.entries.iter().map(|(prefix, kind)| Entry { prefix: *prefix, kind: *kind });
        blackholes.chain(others).collect::<BTreeSet<_>>().into_iter().collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::TunnelConfigSpec;
    use crate::control::objects::{Config, Node};

    fn key(number: u8) -> PublicKey {
        PublicKey::new([number; 32])
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// A node of number `n`: key n, endpoint 192.0.2.n, pods 10.244.n.0/24 and fd00:n::/64.
    fn node(n: u8) -> Tunnel {
        Tunnel {
            created: format!("2026-01-01T00:00:{n:02}Z"),
            active: Some(key(n)),
            keys: vec![key(n)],
            endpoints: vec![SocketAddr::from(([192, 0, 2, n], 51820))],
            pod_prefixes: vec![prefix(&format!("10.244.{n}.0/24")), prefix(&format!("fd00:{n}::/64"))],
            node_addresses: vec![IpAddr::from([192, 0, 2, n])],
            tunnel_addresses: vec![IpAddr::from([10, 244, n, 0])],
            ..Tunnel::default()
        }
    }

    /// Three nodes, `a`, `b` and `c`, of which `a` is ours and the oldest.
    fn objects(mode: Mode) -> Objects {
        let mut objects = Objects::default();
        for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
            objects.tunnels.insert(name.to_owned(), node(n));
        }
        set(&mut objects, |spec| spec.mode = Some(mode));
        objects
    }

    fn set(objects: &mut Objects, change: impl FnOnce(&mut TunnelConfigSpec)) {
        let config = objects.configs.entry("default".to_owned()).or_default();
        change(&mut config.spec);
    }

    fn change(objects: &mut Objects, name: &str, change: impl FnOnce(&mut Tunnel)) {
        change(objects.tunnels.get_mut(name).unwrap());
    }

    fn of(objects: &Objects) -> Topology {
        topology(objects, &Own::new("a", key(1)))
    }

    fn entries(topology: &Topology) -> Vec<String> {
        texts(&topology.routes.entries)
    }

    fn texts(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| format!("{:?} {}", entry.kind, entry.prefix).to_lowercase()).collect()
    }

    fn allowed(topology: &Topology, n: u8) -> Vec<String> {
        topology.peers[&key(n)].allowed_ips.iter().map(ToString::to_string).collect()
    }

    fn faults(topology: &Topology) -> Vec<String> {
        topology.faults.iter().map(|(object, fault)| format!("{object} {fault}")).collect()
    }

    #[test]
    fn more_is_accepted_from_a_node_than_is_routed_to_it() {
        let topology = of(&objects(Mode::Strict));
        assert_eq!(topology.peers.len(), 2);
        assert_eq!(allowed(&topology, 2), ["10.244.2.0/24", "10.244.2.0/32", "192.0.2.2/32", "fd00:2::/64"]);
        let expected = [
            "throw 10.244.1.0/24",
            "unicast 10.244.2.0/24",
            "blackhole 10.244.2.0/24",
            "unicast 10.244.2.0/32",
            "blackhole 10.244.2.0/32",
            "unicast 10.244.3.0/24",
            "blackhole 10.244.3.0/24",
            "unicast 10.244.3.0/32",
            "blackhole 10.244.3.0/32",
            "throw fd00:1::/64",
            "unicast fd00:2::/64",
            "blackhole fd00:2::/64",
            "unicast fd00:3::/64",
            "blackhole fd00:3::/64",
        ];
        assert_eq!(entries(&topology), expected);
        assert!(
            topology.not_encrypted.is_empty() && topology.faults.is_empty() && topology.degraded.is_none()
        );
        let routes = &topology.routes;
        assert_eq!((routes.table, routes.fwmark, routes.rule_priority), (0x20ad, 0x20ad, 99));
        assert_eq!(
            (routes.interface.as_str(), &topology.addresses[..]),
            ("adit0", &[IpAddr::from([10, 244, 1, 0])][..])
        );
    }

    #[test]
    fn a_node_without_a_key_is_dropped_in_strict_and_plain_in_permissive() {
        for (mode, kind, is_dropped) in
            [(Mode::Strict, "blackhole", true), (Mode::Permissive, "throw", false)]
        {
            let mut objects = objects(mode);
            change(&mut objects, "b", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
            // One that nothing is known of but that the cluster gave it pods.
            objects.nodes.insert(
                "d".to_owned(),
                Node { pod_prefixes: vec![prefix("10.244.4.0/24")], ..Node::default() },
            );
            let topology = of(&objects);
            assert_eq!(topology.peers.keys().collect::<Vec<_>>(), [&key(3)]);
            let unencrypted = Unencrypted { reason: Reason::NoKey, is_dropped };
            let names: Vec<_> =
                topology.not_encrypted.iter().map(|(name, how)| (name.as_str(), *how)).collect();
            assert_eq!(names, [("b", unencrypted), ("d", unencrypted)]);
            let entries = entries(&topology);
            for prefix in ["10.244.2.0/24", "fd00:2::/64", "10.244.4.0/24"] {
                let of_prefix: Vec<_> =
                    entries.iter().filter(|entry| entry.ends_with(&format!(" {prefix}"))).collect();
                assert_eq!(of_prefix, [&format!("{kind} {prefix}")]);
            }
        }
    }

    #[test]
    fn a_key_that_two_nodes_have_belongs_to_the_older_and_the_younger_never_goes_in_clear() {
        for mode in [Mode::Strict, Mode::Permissive] {
            let mut objects = objects(mode);
            change(&mut objects, "c", |tunnel| {
                (tunnel.active, tunnel.keys) = (Some(key(2)), vec![key(3), key(2)])
            });
            let topology = of(&objects);
            assert_eq!(topology.peers.keys().collect::<Vec<_>>(), [&key(2)]);
            assert_eq!(topology.peers[&key(2)].node, "b");
            let unencrypted = Unencrypted { reason: Reason::DuplicateKey, is_dropped: true };
            assert_eq!(topology.not_encrypted.get("c"), Some(&unencrypted));
            assert!(entries(&topology).contains(&"blackhole 10.244.3.0/24".to_owned()));
            assert!(!entries(&topology).contains(&"unicast 10.244.3.0/24".to_owned()));
            // Which of them is older is said by the objects, not by their names.
            change(&mut objects, "c", |tunnel| tunnel.created = "2025-01-01T00:00:00Z".to_owned());
            assert_eq!(of(&objects).peers[&key(2)].node, "c");
        }
    }

    #[test]
    fn a_node_whose_key_an_older_one_has_says_so() {
        let mut objects = objects(Mode::Strict);
        change(&mut objects, "b", |tunnel| {
            (tunnel.active, tunnel.keys) = (Some(key(1)), vec![key(1)]);
        });
        assert_eq!(of(&objects).degraded, None);
        assert_eq!(of(&objects).not_encrypted["b"].reason, Reason::DuplicateKey);
        change(&mut objects, "b", |tunnel| tunnel.created = String::new());
        let topology = of(&objects);
        assert_eq!(topology.degraded, Some(Degraded::DuplicateKey { node: "b".to_owned() }));
        assert_eq!(topology.not_encrypted["b"].reason, Reason::DuplicateKey);
        change(&mut objects, "a", |tunnel| tunnel.active = Some(key(9)));
        change(&mut objects, "b", |tunnel| tunnel.keys = vec![]);
        assert_eq!(of(&objects).degraded, Some(Degraded::OtherKeyPublished));
        objects.tunnels.remove("a");
        assert_eq!(of(&objects).degraded, Some(Degraded::NotPublished));
    }

    #[test]
    fn a_claim_on_what_is_anothers_has_no_effect() {
        let mut objects = objects(Mode::Strict);
        let before = of(&objects);
        change(&mut objects, "c", |tunnel| {
            // b's pods; a block around b's own address; b's address, tunnel address and one of its pods.
            tunnel.pod_prefixes.extend(["10.244.2.0/24", "192.0.2.0/25", "fd00:2::/64"].map(prefix));
            tunnel.node_addresses.extend([[192, 0, 2, 2], [10, 244, 2, 9]].map(IpAddr::from));
            tunnel.tunnel_addresses.extend([[192, 0, 2, 1], [10, 244, 2, 0]].map(IpAddr::from));
        });
        let topology = of(&objects);
        assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
        assert_eq!(
            faults(&topology),
            [
                "NodeTunnel/c spec.nodeAddresses[1]: 192.0.2.2 belongs to the older node b",
                "NodeTunnel/c spec.nodeAddresses[2]: 10.244.2.9 is among the pods of the older node b",
                "NodeTunnel/c spec.podPrefixes[2]: 10.244.2.0/24 belongs to the older node b",
                "NodeTunnel/c spec.podPrefixes[3]: 192.0.2.0/25 holds 192.0.2.1, an address of the older node a",
                "NodeTunnel/c spec.podPrefixes[4]: fd00:2::/64 belongs to the older node b",
                "NodeTunnel/c spec.tunnelAddresses[1]: 192.0.2.1 belongs to the older node a",
                "NodeTunnel/c spec.tunnelAddresses[2]: 10.244.2.0 belongs to the older node b",
            ]
        );
    }

    #[test]
    fn a_block_inside_anothers_is_a_loan_unless_the_cluster_says_otherwise() {
        let mut objects = objects(Mode::Strict);
        change(&mut objects, "c", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.2.128/25")));
        assert!(allowed(&of(&objects), 3).contains(&"10.244.2.128/25".to_owned()));
        objects
            .nodes
            .insert("b".to_owned(), Node { pod_prefixes: vec![prefix("10.244.2.0/24")], ..Node::default() });
        let topology = of(&objects);
        assert!(!allowed(&topology, 3).contains(&"10.244.2.128/25".to_owned()));
        assert_eq!(
            faults(&topology),
            [
                "NodeTunnel/b spec.podPrefixes[1]: fd00:2::/64 is not among the podCIDRs of the node",
                "NodeTunnel/c spec.podPrefixes[2]: the cluster gave 10.244.2.128/25 to the node b"
            ]
        );
    }

    #[test]
    fn what_is_outside_the_clusters_prefixes_is_refused_and_the_rest_of_them_goes_nowhere() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| {
            spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
        });
        change(&mut objects, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.96.0.0/16")));
        let topology = of(&objects);
        assert_eq!(
            faults(&topology),
            ["NodeTunnel/b spec.podPrefixes[2]: 10.96.0.0/16 is outside the clusterCIDRs"]
        );
        let entries = entries(&topology);
        for entry in ["blackhole 10.244.0.0/16", "blackhole fd00::/16", "throw 10.244.1.0/24"] {
            assert!(entries.contains(&entry.to_owned()), "{entry}");
        }
        set(&mut objects, |spec| spec.mode = Some(Mode::Permissive));
        assert!(!self::entries(&of(&objects)).iter().any(|entry| entry.starts_with("blackhole")));
    }

    #[test]
    fn pods_keep_their_addresses_inside_the_cluster_whatever_the_mode() {
        for mode in [Mode::Off, Mode::Permissive, Mode::Strict] {
            let mut objects = objects(mode);
            set(&mut objects, |spec| {
                spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
            });
            // One that has said nothing of itself.
            let silent = Node { pod_prefixes: vec![prefix("10.244.9.0/24")], ..Node::default() };
            objects.nodes.insert("d".to_owned(), silent);
            let Masquerade { sources, inside } = of(&objects).masquerade;
            assert_eq!(sources, node(1).pod_prefixes, "{mode:?}");
            let expected = ["10.244.0.0/16", "10.244.9.0/24", "10.244.2.0/32", "fd00::/16", "fd00:3::/64"];
            assert!(expected.iter().all(|text| inside.contains(&prefix(text))), "{inside:?}");
            // Nodes are outside: they need not know the way to pods.
            assert!(!inside.iter().any(|prefix| prefix.contains([192, 0, 2, 2].into())));
        }
    }

    #[test]
    fn off_routes_nothing_and_accepts_everything() {
        let topology = of(&objects(Mode::Off));
        assert!(topology.routes.entries.is_empty());
        assert_eq!(topology.peers, of(&objects(Mode::Strict)).peers);
        assert!(topology.not_encrypted.values().all(|how| how.reason == Reason::ModeOff && !how.is_dropped));
        assert_eq!(topology.not_encrypted.len(), 2);
    }

    #[test]
    fn one_node_can_be_told_otherwise() {
        let mut objects = objects(Mode::Strict);
        let own = TunnelConfigSpec { mode: Some(Mode::Off), ..TunnelConfigSpec::default() };
        objects.configs.insert("node.a".to_owned(), Config { spec: own, faults: Vec::new() });
        assert!(of(&objects).routes.entries.is_empty());
        let b = Own::new("b", key(2));
        assert!(!topology(&objects, &b).routes.entries.is_empty());
    }

    #[test]
    fn host_traffic_that_is_encrypted_is_routed_but_for_what_is_exempt() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| {
            spec.host_traffic = Some(HostTraffic::Encrypt);
            spec.exempt = Some(vec!["apiserver".to_owned(), "198.51.100.0/24".to_owned()]);
        });
        let own = Own { api_servers: vec![IpAddr::from([192, 0, 2, 3])], ..Own::new("a", key(1)) };
        let entries = entries(&topology(&objects, &own));
        for entry in
            ["unicast 192.0.2.2/32", "blackhole 192.0.2.2/32", "throw 192.0.2.3/32", "throw 198.51.100.0/24"]
        {
            assert!(entries.contains(&entry.to_owned()), "{entry}");
        }
        assert!(!entries.contains(&"unicast 192.0.2.3/32".to_owned()));
        assert!(!entries.contains(&"blackhole 192.0.2.3/32".to_owned()));
    }

    #[test]
    fn a_node_that_is_inside_what_is_exempt_is_exempt() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| {
            spec.host_traffic = Some(HostTraffic::Encrypt);
            spec.cluster_cidrs =
                Some(vec!["192.0.0.0/8".to_owned(), "10.0.0.0/8".to_owned(), "fd00::/16".to_owned()]);
            spec.exempt = Some(vec!["192.0.2.0/24".to_owned()]);
        });
        let entries = entries(&of(&objects));
        for entry in
            ["throw 192.0.2.0/24", "throw 192.0.2.2/32", "throw 192.0.2.3/32", "unicast 10.244.2.0/24"]
        {
            assert!(entries.contains(&entry.to_owned()), "{entry}");
        }
        assert!(!entries.iter().any(|entry| entry.starts_with("unicast 192.")));
    }

    #[test]
    fn what_a_node_needs_to_be_known_stays_outside_the_tunnel_on_both_sides() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| spec.host_traffic = Some(HostTraffic::Encrypt));
        // A node that has nothing yet but an address, and one whose key is gone.
        let fresh = Node { addresses: vec![IpAddr::from([192, 0, 2, 4])], ..Node::default() };
        objects.nodes.insert("d".to_owned(), fresh);
        change(&mut objects, "c", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
        objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([192, 0, 2, 1])]);
        // On the node of the API server, which is ours.
        let server = entries(&of(&objects));
        for n in 2..=4 {
            assert!(server.contains(&format!("throw 192.0.2.{n}/32")), "{n}");
            assert!(!server.iter().any(|entry| *entry == format!("blackhole 192.0.2.{n}/32")), "{n}");
        }
        assert!(server.contains(&"unicast 10.244.2.0/24".to_owned()), "its pods' traffic does not");
        // On another one.
        let other = entries(&topology(&objects, &Own::new("b", key(2))));
        assert!(other.contains(&"throw 192.0.2.1/32".to_owned()));
        for n in 3..=4 {
            assert!(other.contains(&format!("blackhole 192.0.2.{n}/32")), "{n}");
        }
        // Where nothing is exempt, nothing is.
        set(&mut objects, |spec| spec.exempt = Some(Vec::new()));
        let other = entries(&topology(&objects, &Own::new("b", key(2))));
        assert!(other.contains(&"unicast 192.0.2.1/32".to_owned()));
        assert!(entries(&of(&objects)).contains(&"unicast 192.0.2.2/32".to_owned()));
    }

    #[test]
    fn pods_have_routes_to_nodes_of_their_own() {
        for (mode, expected) in [
            (Mode::Strict, &["unicast 192.0.2.2/32", "blackhole 192.0.2.2/32"][..]),
            (Mode::Permissive, &["unicast 192.0.2.2/32"]),
            (Mode::Off, &[]),
        ] {
            let mut objects = objects(mode);
            set(&mut objects, |spec| spec.host_traffic = Some(HostTraffic::PodToNode));
            objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([192, 0, 2, 3])]);
            let topology = of(&objects);
            assert_eq!(texts(&topology.routes.from_pods.entries), expected);
            if mode != Mode::Off {
                assert_eq!(
                    topology.routes.from_pods.sources,
                    [prefix("10.244.1.0/24"), prefix("fd00:1::/64")]
                );
            }
            assert!(!entries(&topology).iter().any(|entry| entry.contains(" 192.")), "hosts are left alone");
        }
    }

    #[test]
    fn a_single_pod_may_be_outside_the_blocks_of_its_node_if_that_is_the_plan() {
        let mut objects = objects(Mode::Strict);
        for (name, block) in [("a", "10.244.1.0/24"), ("b", "10.244.2.0/24"), ("c", "10.244.3.0/24")] {
            let node = Node { pod_prefixes: vec![prefix(block)], ..Node::default() };
            objects.nodes.insert(name.to_owned(), node);
            change(&mut objects, name, |tunnel| tunnel.pod_prefixes = vec![prefix(block)]);
        }
        // One is outside of all, one inside another's block, one inside ours; and a block is no pod.
        let claims = ["10.7.0.9/32", "10.244.2.9/32", "10.244.1.9/32", "10.8.0.0/24"].map(prefix);
        change(&mut objects, "c", |tunnel| tunnel.pod_prefixes.extend(claims));
        change(&mut objects, "a", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.3.9/32")));
        assert_eq!(faults(&of(&objects)).len(), 5);
        set(&mut objects, |spec| spec.pod_addresses = Some(PodAddresses::Pods));
        let topology = of(&objects);
        assert_eq!(
            faults(&topology),
            ["NodeTunnel/c spec.podPrefixes[4]: 10.8.0.0/24 is not among the podCIDRs of the node"]
        );
        let entries = entries(&topology);
        for entry in
            ["unicast 10.7.0.9/32", "unicast 10.244.2.9/32", "unicast 10.244.1.9/32", "throw 10.244.3.9/32"]
        {
            assert!(entries.contains(&entry.to_owned()), "{entry}");
        }
        assert!(allowed(&topology, 3).contains(&"10.244.2.9/32".to_owned()));
    }

    #[test]
    fn strict_waits_until_all_are_ready_where_it_was_not_so_before() {
        let mut objects = objects(Mode::Strict);
        let in_mode = |objects: &Objects, mode| {
            let topology = topology(objects, &Own { mode, ..Own::new("a", key(1)) });
            let waits_for = topology.waits_for.iter().map(|(name, why)| format!("{name} {why}"));
            (topology.settings.mode, waits_for.collect::<Vec<_>>().join(", "))
        };
        let strict = (Mode::Strict, String::new());
        let waiting = |text: &str| (Mode::Permissive, text.to_owned());
        // Without a cluster nobody says that he is ready.
        assert_eq!(in_mode(&objects, Some(Mode::Permissive)), strict);
        change(&mut objects, "b", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
        for mode in [Some(Mode::Off), Some(Mode::Permissive)] {
            assert_eq!(in_mode(&objects, mode), waiting("b NoKey"));
        }
        // Who was Strict stays so, and who comes new begins so.
        for mode in [Some(Mode::Strict), None] {
            assert_eq!(in_mode(&objects, mode), strict);
        }
        objects.nodes.insert("a".to_owned(), Node::default());
        objects.nodes.insert("d".to_owned(), Node::default());
        change(&mut objects, "c", |tunnel| tunnel.is_ready = Some(false));
        assert_eq!(in_mode(&objects, Some(Mode::Off)), waiting("b NoKey, c NotReady, d NotPublished"));
        change(&mut objects, "c", |tunnel| (tunnel.active, tunnel.keys) = (Some(key(1)), vec![key(1)]));
        change(&mut objects, "b", |tunnel| *tunnel = node(2));
        assert_eq!(in_mode(&objects, Some(Mode::Off)), waiting("b NoStatus, c DuplicateKey, d NotPublished"));
        set(&mut objects, |spec| spec.strict_gate = Some(StrictGate::Immediate));
        assert_eq!(in_mode(&objects, Some(Mode::Off)), strict);
        set(&mut objects, |spec| spec.strict_gate = Some(StrictGate::WhenAllReady));
        objects.nodes.remove("d");
        change(&mut objects, "c", |tunnel| *tunnel = node(3));
        for name in ["b", "c"] {
            change(&mut objects, name, |tunnel| tunnel.is_ready = Some(true));
        }
        assert_eq!(in_mode(&objects, Some(Mode::Off)), strict);
    }

    #[test]
    fn nodes_of_one_zone_are_passed_by_if_only_other_zones_are_wanted() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| spec.scope = Some(Scope::CrossZone));
        change(&mut objects, "a", |tunnel| tunnel.zone = Some("east".to_owned()));
        change(&mut objects, "b", |tunnel| tunnel.zone = Some("east".to_owned()));
        let topology = of(&objects);
        let near = Unencrypted { reason: Reason::SameZone, is_dropped: false };
        assert_eq!(topology.not_encrypted, [("b".to_owned(), near)].into());
        assert!(topology.peers.contains_key(&key(2)), "what comes encrypted is accepted");
        let entries = entries(&topology);
        assert!(entries.contains(&"throw 10.244.2.0/24".to_owned()));
        assert!(!entries.contains(&"blackhole 10.244.2.0/24".to_owned()));
        assert!(entries.contains(&"unicast 10.244.3.0/24".to_owned()));
    }
    #[test]
    fn nodes_of_ones_own_subnet_are_passed_by_if_only_other_subnets_are_wanted() {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| {
            spec.scope = Some(Scope::CrossSubnet);
            spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
        });
        change(&mut objects, "c", |tunnel| {
            // It prefers a place far away; a nearer one does not count.
            tunnel.endpoints.insert(0, "198.51.100.3:51820".parse().unwrap());
        });
        let links = vec![(IpAddr::from([10, 244, 1, 1]), 8), (IpAddr::from([192, 0, 2, 1]), 24)];
        let topology = topology(&objects, &Own { links, ..Own::new("a", key(1)) });
        assert!(topology.faults.is_empty(), "{:?}", topology.faults);
        let near = Unencrypted { reason: Reason::SameSubnet, is_dropped: false };
        assert_eq!(topology.not_encrypted, [("b".to_owned(), near)].into());
        assert!(topology.peers.contains_key(&key(2)), "what comes encrypted is accepted");
        let entries = entries(&topology);
        assert!(entries.contains(&"throw 10.244.2.0/24".to_owned()));
        assert!(entries.contains(&"blackhole 10.244.0.0/16".to_owned()));
        assert!(entries.contains(&"unicast 10.244.3.0/24".to_owned()));
        // Who does not know its own subnet passes nobody by.
        assert!(of(&objects).not_encrypted.is_empty());
    }
}
