//! The cluster as it is and becomes, and the agent that acts upon it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::model::{DataPlane, held};
use super::{NODES, OWN, Random, key};
use crate::config::{Prefix, Snapshot};
use crate::control::api::{HostTraffic, Mode, PodAddresses, Scope, StrictGate, TunnelConfigSpec};
use crate::control::belief;
use crate::control::given_up::GivenUp;
use crate::control::leaving::Leaving;
use crate::control::objects::{Config, Node, Objects, PodNetwork, Tunnel};
use crate::control::plan::{Entry, Kind, Routes};
use crate::control::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile, without_data_plane};
use crate::control::topology::{Own, Topology, topology};
use crate::crypto::x25519::PrivateKey;

/// The world as it is, and the agent as far as it knows.
pub(super) struct World {
    pub(super) random: Random,
    /// Whether the agent asks the data plane what it has.
    pub(super) asks: Random,
    /// Whether the disk is told of what the agent knows.
    pub(super) keeps: Random,
    /// Whether time passes.
    pub(super) waits: Random,
    pub(super) now: Duration,
    pub(super) objects: Objects,
    /// What the agent has read of them since it was started; `None` once it has read all.
    pub(super) partly: Option<Objects>,
    /// What it has on disk.
    pub(super) kept: Objects,
    /// All that it knew, and what it made of that, the last time.
    pub(super) known: Option<(Objects, Topology)>,
    pub(super) data_plane: Option<DataPlane>,
    /// What the agent believes that the data plane has.
    pub(super) believed: Option<Snapshot>,
    pub(super) routes: Routes,
    /// Whether they were made without asking the data plane what it has.
    pub(super) is_blind: bool,
    /// What waits to be forgotten.
    pub(super) leaving: Leaving,
    pub(super) endpoints: Endpoints,
    pub(super) private_key: PrivateKey,
    pub(super) own: Own,
    /// The addresses of other nodes' pods that nothing has left for in clear since Strict was on.
    pub(super) guarded: BTreeSet<IpAddr>,
    pub(super) log: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
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
    pub(super) fn event(&mut self) {
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

    pub(super) fn say(&mut self, line: String) {
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
    pub(super) fn wait(&mut self) {
        self.now += Duration::from_secs(2);
        if self.own.given_up.end(self.now) {
            self.say("what was given up is nobody's".to_owned());
        }
    }

    /// Lets the agent act, and checks every state that it passes through.
    pub(super) fn act(&mut self) {
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

    pub(super) fn story(&self) -> String {
        self.log.join("\n")
    }
}
