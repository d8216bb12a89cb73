//! Random histories of a cluster, acted upon event by event, with the invariants checked after every single change: the objects come,
//! change, move and go in any order, keys and prefixes are claimed twice, the agent and the data plane are started anew, lists are read in
//! part.
//!
//! The data plane and the kernel's routes are models that obey one edit at a time, so that every state in between is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::api::{HostTraffic, Mode, PodAddresses, Scope, StrictGate, TunnelConfigSpec};
use super::belief;
use super::given_up::GivenUp;
use super::leaving::Leaving;
use super::objects::{Config, Node, Object, Objects, PodNetwork, Tunnel};
use super::oracle;
use super::plan::{Entry, Kind, Routes};
use super::read;
use super::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile, without_data_plane};
use super::route::metric_of;
use super::settings::Settings;
use super::topology::{Own, Reason, Topology, topology};
use crate::config::{AllowedIpEdit, Edit, PeerSnapshot, Prefix, PresharedKey, Snapshot};
use crate::crypto::x25519::{PrivateKey, PublicKey};

const HISTORIES: u64 = 10_000;
const EVENTS: usize = 12;
const NODES: u8 = 5;
const OWN: &str = "n1";

/// SplitMix64: the same seed, the same history.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u8) -> u8 {
        u8::try_from(self.next() % u64::from(bound)).unwrap()
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < percent
    }
}

/// A data plane that obeys edits as the paper says.
#[derive(Clone, Default)]
struct DataPlane {
    private_key: Option<PrivateKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Option<SocketAddr>>,
    keepalives: BTreeMap<PublicKey, u16>,
    table: BTreeMap<Prefix, PublicKey>,
}

impl DataPlane {
    fn snapshot(&self) -> Snapshot {
        let peers = self.peers.iter().map(|(key, endpoint)| PeerSnapshot {
            public_key: *key,
            preshared_key: PresharedKey::default(),
            endpoint: *endpoint,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: self.keepalives.get(key).copied().unwrap_or_default(),
            allowed_ips: self.table.iter().filter(|held| held.1 == key).map(|held| *held.0).collect(),
        });
        Snapshot {
            private_key: self.private_key.clone(),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peers: peers.collect(),
        }
    }

    /// Obeys edits; `seen` looks at the table after every change of it.
    fn obey(&mut self, edits: &[Edit], mut seen: impl FnMut(&Self)) {
        edits.iter().for_each(|edit| self.apply(edit, &mut seen));
    }

    /// Obeys an edit, likewise.
    fn apply(&mut self, edit: &Edit, seen: &mut dyn FnMut(&Self)) {
        match edit {
            Edit::PrivateKey(key) => self.private_key = key.clone(),
            Edit::ListenPort(port) => self.listen_port = *port,
            Edit::Fwmark(mark) => self.fwmark = *mark,
            Edit::ClearPeers => panic!("everything is thrown away"),
            Edit::Peer(edit) if edit.remove => {
                self.peers.remove(&edit.public_key);
                self.keepalives.remove(&edit.public_key);
                self.table.retain(|_, holder| *holder != edit.public_key);
                seen(self);
            }
            Edit::Peer(edit) => {
                assert!(!edit.replace_allowed_ips, "a whole list is replaced");
                let endpoint = self.peers.entry(edit.public_key).or_default();
                *endpoint = edit.endpoint.or(*endpoint);
                if let Some(seconds) = edit.persistent_keepalive {
                    self.keepalives.insert(edit.public_key, seconds);
                }
                for change in &edit.allowed_ips {
                    match change {
                        AllowedIpEdit::Add(prefix) => drop(self.table.insert(*prefix, edit.public_key)),
                        AllowedIpEdit::Remove(prefix) => {
                            if self.table.get(prefix) == Some(&edit.public_key) {
                                self.table.remove(prefix);
                            }
                        }
                    }
                    seen(self);
                }
            }
        }
    }

    fn accepts_from(&self, addr: IpAddr) -> Option<PublicKey> {
        best(self.table.iter().map(|(prefix, key)| (*prefix, *key)), addr)
    }
}

/// Returns what the most specific prefix that holds `addr` stands for.
fn best<T>(entries: impl Iterator<Item = (Prefix, T)>, addr: IpAddr) -> Option<T> {
    entries
        .filter(|(prefix, _)| prefix.contains(addr))
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, what)| what)
}

/// Returns what becomes of a packet to `addr` in a table; `None` if it goes in clear.
fn way(entries: &[Entry], addr: IpAddr) -> Option<Kind> {
    let entries = entries.iter().filter(|entry| entry.prefix.contains(addr));
    let kind = entries.min_by_key(|entry| (128 - entry.prefix.len(), metric_of(entry.kind)))?.kind;
    (kind != Kind::Throw).then_some(kind)
}

/// Returns the two tables, each with what it is in all of these.
fn tables<const N: usize>(all: [&Routes; N]) -> [[&[Entry]; N]; 2] {
    [all.map(|routes| &routes.entries[..]), all.map(|routes| &routes.from_pods.entries[..])]
}

/// Returns an address of each kind that these entries can tell apart.
fn addresses(entries: &[&[Entry]]) -> BTreeSet<IpAddr> {
    entries.concat().iter().map(|entry| entry.prefix.addr()).collect()
}

/// The world as it is, and the agent as far as it knows.
struct World {
    random: Random,
    /// Whether the agent asks the data plane what it has.
    asks: Random,
    /// Whether the disk is told of what the agent knows.
    keeps: Random,
    /// Whether time passes.
    waits: Random,
    now: Duration,
    objects: Objects,
    /// What the agent has read of them since it was started; `None` once it has read all.
    partly: Option<Objects>,
    /// What it has on disk.
    kept: Objects,
    /// All that it knew, and what it made of that, the last time.
    known: Option<(Objects, Topology)>,
    data_plane: Option<DataPlane>,
    /// What the agent believes that the data plane has.
    believed: Option<Snapshot>,
    routes: Routes,
    /// Whether they were made without asking the data plane what it has.
    is_blind: bool,
    /// What waits to be forgotten.
    leaving: Leaving,
    endpoints: Endpoints,
    private_key: PrivateKey,
    own: Own,
    /// The addresses of other nodes' pods that nothing has left for in clear since Strict was on.
    guarded: BTreeSet<IpAddr>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        // No agent makes a public key here: that takes longer than all else.
        let private_key = PrivateKey::new([1; 32]);
        let own = Own::new(OWN, key(1));
        let routes = topology(&Objects::default(), &own).routes;
        Self {
            random: Random(seed),
            asks: Random(!seed),
            keeps: Random(seed.rotate_left(32)),
            waits: Random(!seed.rotate_left(32)),
            now: Duration::ZERO,
            objects: Objects::default(),
            partly: None,
            kept: Objects::default(),
            known: None,
            data_plane: Some(DataPlane::default()),
            believed: None,
            routes,
            is_blind: false,
            leaving: Leaving::default(),
            endpoints: Endpoints::new(),
            private_key,
            own,
            guarded: BTreeSet::new(),
            log: vec![format!("seed {seed}")],
        }
    }

    fn name(&mut self) -> String {
        format!("n{}", 1 + self.random.below(NODES))
    }

    /// Lets something happen.
    fn event(&mut self) {
        let name = self.name();
        match self.random.below(20) {
            0..=6 => {
                let tunnel = self.tunnel(&name);
                self.say(format!("{name} is {tunnel:?}"));
                self.objects.tunnels.insert(name, tunnel.into());
            }
            7..=8 => {
                self.say(format!("{name} goes"));
                self.objects.tunnels.remove(&name);
            }
            9..=11 => self.move_prefix(&name),
            12 => {
                let key = key(1 + self.random.below(NODES + 1));
                self.say(format!("{name} has key {key:?}"));
                if let Some(tunnel) = self.objects.tunnels.get_mut(&name) {
                    (tunnel.active, tunnel.keys) = (Some(key), vec![key]);
                }
            }
            13 => {
                let spec = self.spec();
                let name = if self.random.chance(30) { format!("node.{OWN}") } else { "default".to_owned() };
                self.say(format!("{name} wants {spec:?}"));
                self.objects.configs.insert(name, Config { spec, faults: Vec::new() });
            }
            14 => {
                // Whoever names one of its nodes has mostly named all of them.
                if self.objects.nodes.is_empty() && self.random.chance(80) {
                    self.say("the cluster knows all nodes".to_owned());
                    let all = (1..=NODES).map(|n| (format!("n{n}"), Node::default().into()));
                    self.objects.nodes.extend(all);
                }
                let node = self.node(&name);
                self.say(format!("the cluster gives {name} {node:?}"));
                self.objects.nodes.insert(name, node.into());
            }
            15 => {
                self.objects.nodes.remove(&name);
                // As kubeadm made the cluster, which others may have had it forget.
                let prefixes = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()];
                let network = PodNetwork { prefixes, faults: Vec::new() };
                self.objects.pod_network = (name != "n3").then_some(network);
                self.say(format!("{name} is no more; kubeadm: {:?}", self.objects.pod_network));
            }
            16 | 17 => {
                self.say("the agent is started anew".to_owned());
                self.endpoints.clear();
                (self.believed, self.known) = (None, None);
                (self.own.given_up, self.leaving) = (GivenUp::default(), Leaving::default());
                self.partly = Some(self.kept.clone());
            }
            18 => {
                self.say("the data plane is killed".to_owned());
                (self.data_plane, self.believed) = (None, None);
                // Its interface takes the routes with it.
                self.routes.close();
            }
            _ => {
                self.say("the data plane is started anew".to_owned());
                (self.data_plane, self.believed) = (Some(DataPlane::default()), None);
                self.routes.close();
            }
        }
        // A list is read to its end sooner or later.
        if self.partly.is_some() && self.random.chance(40) {
            self.say("all lists are read".to_owned());
            self.partly = None;
        }
    }

    fn say(&mut self, line: String) {
        self.log.push(line);
    }

    fn pods(&mut self) -> Prefix {
        let n = 1 + self.random.below(NODES + 2);
        let text = match self.random.below(7) {
            0 => format!("fd00:{n}::/64"),
            1 => format!("10.244.{n}.128/25"),
            2 => format!("10.{n}.0.0/16"),
            3 => format!("10.244.{n}.{}/32", 9 + self.random.below(2)),
            _ => format!("10.244.{n}.0/24"),
        };
        text.parse().unwrap()
    }

    fn tunnel(&mut self, name: &str) -> Tunnel {
        let random = &mut self.random;
        let n: u8 = name[1..].parse().unwrap();
        let active =
            random.chance(85).then(|| key(if random.chance(80) { n } else { 1 + random.below(NODES) }));
        let other = |random: &mut Random| if random.chance(90) { n } else { 1 + random.below(NODES) };
        let (node, inner) = (other(random), other(random));
        let port = u16::from(1 + random.below(2));
        let created = format!("2026-01-01T00:00:{:02}Z", random.below(4));
        let place = random.chance(90).then(|| SocketAddr::from(([192, 0, 2, n], port)));
        Tunnel {
            created,
            active,
            keys: active.into_iter().collect(),
            endpoints: place.into_iter().collect(),
            // One in ten is another's, or a pod's.
            node_addresses: if random.chance(90) {
                vec![IpAddr::from([192, 0, 2, node])]
            } else {
                vec![IpAddr::from([10, 244, node, 9])]
            },
            tunnel_addresses: vec![IpAddr::from([10, 244, inner, 0])],
            // A zone is said of a place.
            zone: (random.chance(50) && place.is_some()).then(|| "east".to_owned()),
            is_ready: random.chance(80).then(|| random.chance(90)),
            pod_prefixes: (0..self.random.below(4)).map(|_| self.pods()).collect(),
            ..Tunnel::default()
        }
    }

    fn node(&mut self, name: &str) -> Node {
        let n: u8 = name[1..].parse().unwrap();
        let pod_prefixes = (0..self.random.below(3)).map(|_| self.pods()).collect();
        let addresses = if self.random.chance(50) { vec![IpAddr::from([192, 0, 2, n])] } else { Vec::new() };
        Node { addresses, pod_prefixes, ..Node::default() }
    }

    fn move_prefix(&mut self, to: &str) {
        let from = self.name();
        let Some(prefix) = self.objects.tunnels.get_mut(&from).and_then(|tunnel| tunnel.pod_prefixes.pop())
        else {
            return;
        };
        if let Some(tunnel) = self.objects.tunnels.get_mut(to) {
            tunnel.pod_prefixes.push(prefix);
        }
        self.say(format!("{prefix} moves from {from} to {to}"));
    }

    fn spec(&mut self) -> TunnelConfigSpec {
        let mode =
            [Mode::Strict, Mode::Strict, Mode::Permissive, Mode::Off][usize::from(self.random.below(4))];
        let cluster = self.random.chance(50).then(|| vec!["10.0.0.0/8".to_owned(), "fd00::/16".to_owned()]);
        TunnelConfigSpec {
            mode: self.random.chance(90).then_some(mode),
            cluster_cidrs: cluster,
            listen_port: self.random.chance(20).then_some(1),
            host_traffic: match self.random.below(10) {
                0..=2 => Some(HostTraffic::Encrypt),
                3..=5 => Some(HostTraffic::PodToNode),
                _ => None,
            },
            persistent_keepalive: self.random.chance(20).then(|| "25s".to_owned()),
            strict_gate: self.random.chance(30).then_some(StrictGate::Immediate),
            scope: self.random.chance(20).then_some(Scope::CrossZone),
            pod_addresses: self.random.chance(30).then_some(PodAddresses::Pods),
            exempt: self
                .random
                .chance(20)
                .then(|| vec!["10.3.0.0/16".to_owned(), "10.244.3.9/32".to_owned()]),
            ..TunnelConfigSpec::default()
        }
    }

    /// Lets so much time pass that nothing waits any more.
    fn wait(&mut self) {
        self.now += Duration::from_secs(2);
        if self.own.given_up.end(self.now) {
            self.say("what was given up is nobody's".to_owned());
        }
    }

    /// Lets the agent act, and checks every state that it passes through.
    fn act(&mut self) {
        let is_complete = self.partly.is_none();
        let known = self.partly.clone().unwrap_or_else(|| self.objects.clone());
        // It may end before the disk has what the kernel has.
        if is_complete && self.keeps.chance(80) {
            self.kept.clone_from(&known);
        }
        if self.waits.chance(40) {
            self.wait();
        }
        if let Some((before, topology)) = self.known.take() {
            self.own.given_up.learn(&before, &topology, &known, self.now);
        }
        let topology = topology(&known, &self.own);
        self.check_topology(&known, &topology);
        self.known = is_complete.then(|| (known.clone(), topology.clone()));
        self.own.remembered.learn(&topology, is_complete);
        self.own.mode = if is_complete { Some(topology.settings.mode) } else { self.own.mode };
        let pods = self.turn_to(&known, &topology.settings, is_complete);
        let Some(mut data_plane) = self.data_plane.take() else {
            let before = self.routes.clone();
            let is_there = self.keeps.chance(20);
            match without_data_plane(&topology, is_complete, is_there) {
                Some(RouteChange::Whole(routes)) => self.routes = routes,
                Some(RouteChange::Addition(extension)) => {
                    self.routes = extension.onto(&self.routes);
                    self.check_stays(&before, &topology);
                }
                None => {}
            }
            self.is_blind |= is_there && topology.settings.mode == Mode::Strict;
            self.check_routes(&topology, &before, is_complete);
            self.guard(pods);
            return;
        };
        let (before, routes_before) = (data_plane.table.clone(), self.routes.clone());
        let is_periodic = self.random.chance(20);
        let occasion = Occasion { is_complete, is_periodic, now: Duration::from_secs(1), mtu: None };
        let asks = self.asks.chance(20);
        let believed = self.believed.take().filter(|_| !asks);
        let mut snapshot = believed.unwrap_or_else(|| data_plane.snapshot());
        let plan = reconcile(&snapshot, &topology, &self.private_key, &self.endpoints, occasion);
        let after: BTreeMap<_, _> = {
            let peers = topology.peers.iter();
            peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (*prefix, *key))).collect()
        };
        // A step may fail, and then so do those behind it.
        let fails_at = if self.random.chance(10) { self.random.below(4).into() } else { usize::MAX };
        let (mut is_whole, mut is_followed) = (true, true);
        for (at, step) in plan.steps.iter().enumerate() {
            if at == fails_at {
                self.say(format!("step {at} fails"));
                is_whole = false;
                break;
            }
            match step {
                Step::Configure(edits) | Step::Greet(edits) => {
                    data_plane.obey(edits, |data_plane| {
                        self.check_table(&before, &after, data_plane, is_complete);
                    });
                    is_followed &= belief::follow(&mut snapshot, edits);
                }
                Step::Forget(edits) => {
                    let due = self.leaving.due(edits, self.now);
                    data_plane.obey(&due, |data_plane| {
                        self.check_table(&before, &after, data_plane, is_complete);
                    });
                    is_followed &= belief::follow(&mut snapshot, &due);
                    self.leaving.done(self.now);
                }
                Step::Link(link) => assert_eq!(link.interface, self.routes.interface),
                Step::Route(RouteChange::Whole(routes)) => {
                    // What comes in is there before what goes out is gone: the models' states are both, then one.
                    let mut both = routes.clone();
                    let old = [&self.routes.entries, &self.routes.from_pods.entries];
                    for (both, old) in [&mut both.entries, &mut both.from_pods.entries].into_iter().zip(old) {
                        let new = both.clone();
                        let leads = |old: &&Entry| {
                            old.kind == Kind::Unicast && !new.iter().any(|new| new.prefix == old.prefix)
                        };
                        both.extend(old.iter().filter(leads));
                    }
                    self.check_ways(&both, &data_plane);
                    self.check_leaks(&both);
                    self.routes = routes.clone();
                    self.is_blind = false;
                    self.guard(pods.clone());
                }
                Step::Route(RouteChange::Addition(extension)) => {
                    self.routes = extension.onto(&self.routes);
                    assert_eq!(extension.onto(&self.routes), self.routes, "{}", self.story());
                    self.check_stays(&routes_before, &topology);
                }
            }
            self.check_ways(&self.routes, &data_plane);
            self.check_leaks(&self.routes);
        }
        if is_whole {
            if !plan.steps.iter().any(|step| matches!(step, Step::Forget(_))) {
                self.leaving = Leaving::default();
            }
            self.endpoints = plan.endpoints;
            if is_followed {
                assert_eq!(held(&snapshot), held(&data_plane.snapshot()), "{}", self.story());
                self.believed = Some(snapshot);
            }
            self.check_end(&topology, &routes_before, &data_plane, is_complete);
        }
        self.data_plane = Some(data_plane);
    }

    /// A prefix that is held before and after is held all the time, by whoever may; nothing goes on the word of a list that is not whole.
    fn check_table(
        &self,
        before: &BTreeMap<Prefix, PublicKey>,
        after: &BTreeMap<Prefix, PublicKey>,
        data_plane: &DataPlane,
        is_complete: bool,
    ) {
        for (prefix, holder) in before {
            let now = data_plane.table.get(prefix);
            let is_good = match (now, after.get(prefix)) {
                (Some(now), _) if now == holder => true,
                (now, Some(wanted)) if is_complete => now == Some(wanted),
                (now, None) if is_complete => now.is_none(),
                _ => false,
            };
            assert!(is_good, "{prefix} of {holder:?} is {now:?}: {}", self.story());
        }
        for (prefix, holder) in &data_plane.table {
            let is_good = before.get(prefix) == Some(holder) || after.get(prefix) == Some(holder);
            assert!(is_good, "{prefix} is {holder:?}'s: {}", self.story());
        }
    }

    /// Where a route leads into the tunnel, somebody is there to take it; but in Strict it may lead to a data plane that cannot be asked.
    fn check_ways(&self, routes: &Routes, data_plane: &DataPlane) {
        if self.is_blind {
            return;
        }
        let entries = routes.entries.iter().chain(&routes.from_pods.entries);
        for entry in entries.filter(|entry| entry.kind == Kind::Unicast) {
            let taker = data_plane.accepts_from(entry.prefix.addr());
            assert!(taker.is_some(), "nobody takes {}: {}", entry.prefix, self.story());
        }
    }

    /// In Strict, nothing for the pods of another node goes in clear; to a node without a key of its own it never does.
    ///
    /// Until every list is read, a pod may be this node's that only the cluster's prefix is known of: what went past the tunnel `before`.
    fn check_routes(&self, topology: &Topology, before: &Routes, is_complete: bool) {
        if topology.settings.mode != Mode::Strict {
            return;
        }
        let cluster = topology.settings.catch_all();
        for [wanted, now, before] in tables([&topology.routes, &self.routes, before]) {
            let of_nodes: Vec<_> = wanted
                .iter()
                .filter(|entry| entry.kind != Kind::Blackhole || !cluster.contains(&entry.prefix))
                .copied()
                .collect();
            for addr in addresses(&[wanted, now, before]) {
                let is_thrown = before.iter().any(|entry| entry.prefix.contains(addr))
                    && way(before, addr).is_none()
                    && way(&of_nodes, addr).is_none();
                assert!(
                    way(wanted, addr).is_none() || way(now, addr).is_some() || !is_complete && is_thrown,
                    "{addr} goes in clear: {}",
                    self.story()
                );
            }
        }
    }

    /// Until every list is read, what is led into the tunnel still is, and nothing is opened but what the topology says so of.
    fn check_stays(&self, before: &Routes, topology: &Topology) {
        for [wanted, now, before] in tables([&topology.routes, &self.routes, before]) {
            for addr in addresses(&[before, now, wanted]) {
                let (was, is) = (way(before, addr), way(now, addr));
                assert!(was != Some(Kind::Unicast) || is == was, "{addr} is lost: {}", self.story());
                let is_open =
                    wanted.iter().any(|entry| entry.prefix.contains(addr)) && way(wanted, addr).is_none();
                assert!(was.is_none() || is.is_some() || is_open, "{addr} is opened: {}", self.story());
            }
        }
    }

    /// Turns to what is known: what may be in clear from here on is not looked at any more. Returns the addresses of others' pods, if
    /// Strict is on and all is known.
    fn turn_to(&mut self, known: &Objects, settings: &Settings, is_complete: bool) -> BTreeSet<IpAddr> {
        if settings.mode != Mode::Strict || !is_complete {
            self.guarded.clear();
            return BTreeSet::new();
        }
        let pods = oracle::pods_of_others(known, settings, OWN);
        // What nobody claims any more is not open for that.
        let is_named = |addr: &IpAddr| {
            let mut cluster = settings.cluster_prefixes.iter().flatten().peekable();
            cluster.peek().is_none() || cluster.any(|block| block.contains(*addr))
        };
        self.guarded.retain(|addr| {
            let is_gone = is_named(addr) && !oracle::may_be_clear_again(known, settings, OWN, *addr);
            pods.contains(addr) || is_gone
        });
        self.check_leaks(&self.routes);
        pods
    }

    /// Looks after addresses from here on: the routes have been made for them.
    fn guard(&mut self, pods: BTreeSet<IpAddr>) {
        self.guarded.extend(pods);
        self.check_leaks(&self.routes);
    }

    /// Whatever the plan is, nothing leaves in clear for the pods of another node.
    fn check_leaks(&self, routes: &Routes) {
        for addr in &self.guarded {
            assert!(
                way(&routes.entries, *addr).is_some(),
                "{addr} of another's pods goes in clear: {}",
                self.story()
            );
        }
    }

    fn check_topology(&self, known: &Objects, topology: &Topology) {
        let mut holders = BTreeSet::new();
        for (key, peer) in &topology.peers {
            assert!(peer.node != OWN && *key != self.own.public_key, "{}", self.story());
            assert_eq!(known.tunnels[&peer.node].active, Some(*key), "{}", self.story());
            // A source is accepted from one peer only.
            assert!(peer.allowed_ips.iter().all(|prefix| holders.insert(*prefix)), "{}", self.story());
        }
        let (mode, is_strict) = (topology.settings.mode, topology.settings.mode == Mode::Strict);
        for (name, tunnel) in known.tunnels_of_cluster(OWN).filter(|(name, _)| *name != OWN) {
            for prefix in &tunnel.pod_prefixes {
                // Whose claim was refused has no say.
                let field = |at: usize| format!("spec.podPrefixes[{at}]");
                let is_refused = topology.faults.iter().any(|(object, fault)| {
                    object == &format!("NodeTunnel/{name}")
                        && tunnel
                            .pod_prefixes
                            .iter()
                            .enumerate()
                            .any(|(at, p)| p == prefix && fault.field == field(at))
                });
                let mut of_all = known.tunnels_of_cluster(OWN).flat_map(|(_, other)| &other.pod_prefixes);
                let is_lent = of_all
                    .any(|other| other != prefix && other.contains(prefix.addr()) && prefix.covers(other));
                if is_refused || is_lent || mode == Mode::Off {
                    continue;
                }
                let is_peer = topology.peers.values().any(|peer| peer.node == *name);
                let way = way(&topology.routes.entries, prefix.addr());
                let is_near =
                    topology.not_encrypted.get(name).is_some_and(|how| how.reason == Reason::SameZone);
                let is_exempt = oracle::is_exempt(&topology.settings, prefix.addr());
                let is_good = match (is_peer, is_strict, tunnel.active.is_some()) {
                    _ if is_near || is_exempt => continue,
                    (true, _, _) => way == Some(Kind::Unicast),
                    (false, true, _) | (false, false, true) => way == Some(Kind::Blackhole),
                    (false, false, false) => way.is_none(),
                };
                // Another's single address in it has a route of its own.
                let is_single = topology
                    .peers
                    .values()
                    .any(|peer| peer.allowed_ips.contains(&Prefix::host(prefix.addr())));
                assert!(is_good || is_single, "{prefix} of {name} goes {way:?}: {}", self.story());
            }
        }
    }

    /// What was reached is what is wanted, and what everything made anew would be.
    fn check_end(
        &self,
        topology: &Topology,
        routes_before: &Routes,
        data_plane: &DataPlane,
        is_complete: bool,
    ) {
        self.check_routes(topology, routes_before, is_complete);
        if !is_complete {
            return;
        }
        let mut fresh = DataPlane::default();
        let occasion = Occasion { is_complete: true, is_periodic: false, now: Duration::ZERO, mtu: None };
        let plan = reconcile(&fresh.snapshot(), topology, &self.private_key, &Endpoints::new(), occasion);
        let mut routes = None;
        for step in &plan.steps {
            match step {
                Step::Configure(edits) | Step::Greet(edits) | Step::Forget(edits) => {
                    edits.iter().for_each(|edit| fresh.apply(edit, &mut |_| {}))
                }
                Step::Link(_) => {}
                Step::Route(RouteChange::Whole(wanted)) => routes = Some(wanted.clone()),
                Step::Route(RouteChange::Addition(_)) => panic!("not all is said: {}", self.story()),
            }
        }
        if self.leaving.next().is_none() {
            assert_eq!(data_plane.table, fresh.table, "{}", self.story());
            assert!(data_plane.peers.keys().eq(fresh.peers.keys()), "{}", self.story());
        }
        // What waits to be forgotten takes nothing from others.
        for (prefix, holder) in &fresh.table {
            assert_eq!(data_plane.table.get(prefix), Some(holder), "{prefix}: {}", self.story());
        }
        assert_eq!(
            (data_plane.listen_port, data_plane.fwmark),
            (fresh.listen_port, fresh.fwmark),
            "{}",
            self.story()
        );
        assert_eq!(Some(&self.routes), routes.as_ref(), "{}", self.story());
        let plan = reconcile(&data_plane.snapshot(), topology, &self.private_key, &self.endpoints, occasion);
        let is_edit = |step: &&Step| match step {
            Step::Configure(_) => true,
            Step::Forget(_) => self.leaving.next().is_none(),
            Step::Greet(_) | Step::Link(_) | Step::Route(_) => false,
        };
        assert_eq!(plan.steps.iter().filter(is_edit).count(), 0, "nothing is left to do: {}", self.story());
    }

    fn story(&self) -> String {
        self.log.join("\n")
    }
}

/// Returns what a data plane holds, in whatever order it came.
fn held(snapshot: &Snapshot) -> BTreeMap<PublicKey, (Option<SocketAddr>, u16, &[Prefix])> {
    let peers = snapshot.peers.iter();
    peers
        .map(|peer| (peer.public_key, (peer.endpoint, peer.persistent_keepalive, &peer.allowed_ips[..])))
        .collect()
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32])
}

#[test]
fn ten_thousand_histories_hold_every_invariant() {
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..EVENTS {
            world.event();
            world.act();
        }
        // However it went, it ends where all agree.
        world.partly = None;
        world.data_plane.get_or_insert_default();
        world.say("the end".to_owned());
        world.random = Random(1);
        for _ in 0..3 {
            world.wait();
            world.act();
        }
        assert_eq!(world.leaving, Leaving::default(), "{}", world.story());
    }
}

#[test]
fn the_order_in_which_objects_come_makes_no_difference() {
    let mut random = Random(7);
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        (0..EVENTS).for_each(|_| world.event());
        let mut all: Vec<Object> =
            read::values(&world.objects).map(|value| read::object(&value).unwrap()).collect();
        let wanted = topology(&world.objects, &world.own);
        let mut objects = Objects::default();
        while !all.is_empty() {
            let at = usize::try_from(random.next()).unwrap() % all.len();
            objects.insert(all.swap_remove(at));
            topology(&objects, &world.own);
        }
        assert_eq!(topology(&objects, &world.own), wanted, "{}", world.story());
    }
}
