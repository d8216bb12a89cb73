//! The cluster as it is and becomes, and the agent that acts upon it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::model::{DataPlane, Wall, held, public};
use super::{NODES, OWN, Random, key};
use crate::config::{Prefix, Snapshot};
use crate::control::api::{HostTraffic, Mode, PodAddresses, Scope, StrictGate, TunnelConfigSpec};
use crate::control::belief;
use crate::control::given_up::GivenUp;
use crate::control::heal::Desired;
use crate::control::leaving::Leaving;
use crate::control::objects::{Config, Node, Object, Objects, PodNetwork, Tunnel};
use crate::control::oracle;
use crate::control::plan::{Entry, Kind, Routes};
use crate::control::publish::published;
use crate::control::read;
use crate::control::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile, without_data_plane};
use crate::control::remembered::Remembered;
use crate::control::topology::{Own, Topology, topology};
use crate::crypto::x25519::PrivateKey;

/// What the kernel took of what it was told.
#[derive(Clone, Copy)]
struct Programmed {
    is_guarded: bool,
    is_routed: bool,
}

/// The world as it is, and the agent as far as it knows.
pub(super) struct World {
    pub(super) random: Random,
    /// Whether the agent asks the data plane what it has.
    pub(super) asks: Random,
    /// Whether the disk is told of what the agent knows.
    pub(super) keeps: Random,
    /// Whether time passes.
    pub(super) waits: Random,
    /// Whether the kernel refuses what it is told; `None` once it does not any more.
    pub(super) refuses: Option<Random>,
    pub(super) now: Duration,
    pub(super) objects: Objects,
    /// What the agent has read of them since it was started; `None` once it has read all.
    pub(super) partly: Option<Objects>,
    /// What it has on disk.
    pub(super) kept: (Objects, Remembered),
    /// All that it knew, and what it made of that, the last time.
    pub(super) known: Option<(Objects, Topology)>,
    pub(super) data_plane: Option<DataPlane>,
    /// What the agent believes that the data plane has.
    pub(super) believed: Option<Snapshot>,
    pub(super) routes: Routes,
    /// Whether they were made without asking the data plane what it has, or for another one.
    pub(super) is_blind: bool,
    /// The firewall, if there is one.
    pub(super) wall: Option<Wall>,
    /// Whether what leaves the cluster is this node's to translate.
    translates: bool,
    /// What waits to be forgotten.
    pub(super) leaving: Leaving,
    pub(super) endpoints: Endpoints,
    pub(super) private_key: PrivateKey,
    pub(super) own: Own,
    /// The addresses of other nodes' pods that nothing has left for in clear since Strict was on.
    pub(super) guarded: BTreeSet<IpAddr>,
    /// Those that the firewall has dropped in clear since then, whichever agent was there.
    pub(super) walled: BTreeSet<IpAddr>,
    /// Those of them that the disk had not been told of when the agent ended.
    pub(super) missed: BTreeSet<IpAddr>,
    pub(super) log: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let private_key = PrivateKey::new([1; 32]);
        let own = Own::new(OWN, public(&private_key));
        let routes = topology(&Objects::default(), &own).routes;
        Self {
            random: Random(seed),
            asks: Random(!seed),
            keeps: Random(seed.rotate_left(32)),
            waits: Random(!seed.rotate_left(32)),
            refuses: Some(Random(seed ^ 0x5555_5555)),
            now: Duration::ZERO,
            objects: Objects { pods: Some(BTreeMap::new()), ..Objects::default() },
            partly: None,
            kept: <_>::default(),
            known: None,
            data_plane: Some(DataPlane::default()),
            believed: None,
            routes,
            is_blind: false,
            wall: None,
            translates: seed.is_multiple_of(4),
            leaving: Leaving::default(),
            endpoints: Endpoints::new(),
            private_key,
            own,
            guarded: BTreeSet::new(),
            walled: BTreeSet::new(),
            missed: BTreeSet::new(),
            log: vec![format!("seed {seed}")],
        }
    }

    fn name(&mut self) -> String {
        format!("n{}", 1 + self.random.below(NODES))
    }

    /// Lets something happen.
    pub(super) fn event(&mut self) {
        let name = self.name();
        match self.random.below(24) {
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
            16 | 17 => self.restart(),
            18 => {
                self.say("the data plane is killed".to_owned());
                (self.data_plane, self.believed) = (None, None);
                // Its interface takes the routes with it.
                self.routes.close();
            }
            19 => {
                self.say("the data plane is started anew".to_owned());
                (self.data_plane, self.believed) = (Some(DataPlane::default()), None);
                self.routes.close();
            }
            20 => {
                self.say("the node is started anew".to_owned());
                (self.data_plane, self.wall) = (None, None);
                for entries in [&mut self.routes.entries, &mut self.routes.from_pods.entries] {
                    entries.clear();
                }
                (self.guarded, self.walled) = Default::default();
                self.restart();
            }
            21 => {
                let name = format!("kubernetes-{}", self.random.below(2));
                let addresses = self.api_servers();
                self.say(format!("API servers by {name}: {addresses:?}"));
                match addresses[..] {
                    [] => drop(self.objects.api_servers.remove(&name)),
                    _ => drop(self.objects.api_servers.insert(name, addresses)),
                }
            }
            _ => self.publish(),
        }
        // A list is read to its end sooner or later.
        if self.partly.is_some() && self.random.chance(40) {
            self.say("all lists are read".to_owned());
            self.partly = None;
        }
    }

    /// Starts the agent anew, perhaps with another key and another place to ask.
    fn restart(&mut self) {
        self.say("the agent is started anew".to_owned());
        self.endpoints.clear();
        (self.believed, self.known) = (None, None);
        (self.own.given_up, self.leaving) = (GivenUp::default(), Leaving::default());
        let (objects, remembered) = self.kept.clone();
        self.missed = self.guarded.union(&self.walled).copied().collect();
        let settings = topology(&objects, &self.own).settings;
        if settings.mode == Mode::Strict {
            let told = oracle::pods_of_others(&objects, &settings, OWN);
            self.missed.retain(|addr| !told.contains(addr) && !remembered.has(&Prefix::host(*addr)));
        }
        (self.partly, self.own.remembered) = (Some(objects), remembered);
        if self.random.chance(30) {
            self.own.api_servers = self.api_servers();
            self.say(format!("it asks API servers at {:?}", self.own.api_servers));
        }
        if self.random.chance(30) {
            let before = self.own.clone();
            self.private_key = PrivateKey::new([1 + self.random.below(NODES + 2); 32]);
            self.own.public_key = public(&self.private_key);
            self.say(format!("its key is {:?}", self.own.public_key));
            self.check_peers_stay(&before);
        }
    }

    fn api_servers(&mut self) -> Vec<IpAddr> {
        let random = &mut self.random;
        let addr = |random: &mut Random| {
            let n = 1 + random.below(NODES + 2);
            IpAddr::from(match random.below(6) {
                0 => [192, 0, 2, n],
                1 => [10, 244, n, 9],
                2 => [10, n, 0, 9],
                3 => [10, 96, 0, n],
                _ => [203, 0, 113, n],
            })
        };
        (0..random.below(3)).map(|_| addr(random)).collect()
    }

    /// Has the agent say of this node what it should, as far as it knows, if it has read all.
    pub(super) fn publish(&mut self) {
        let Some((mut known, topology)) = self.known.clone() else { return };
        let Some(tunnel) = self.published(&known, &topology) else { return };
        self.say(format!("{OWN} says of itself {tunnel:?}"));
        known.tunnels.insert(OWN.to_owned(), tunnel.clone().into());
        assert_eq!(self.published(&known, &topology), None, "it is said again: {}", self.story());
        // What others say of the object stays.
        let before = self.objects.tunnels.get(OWN);
        let (created, is_ready) =
            before.map(|before| (before.created.clone(), before.is_ready)).unwrap_or_default();
        self.objects.tunnels.insert(OWN.to_owned(), Tunnel { created, is_ready, ..tunnel }.into());
    }

    fn published(&self, known: &Objects, topology: &Topology) -> Option<Tunnel> {
        let value = published(known, &self.own, &topology.settings, &BTreeSet::new(), None)?;
        let Ok(Object::Tunnel(name, tunnel)) = read::object(&value) else { panic!("{value}") };
        let own = self.own.public_key;
        assert_eq!(
            (&name[..], tunnel.active, &tunnel.keys[..]),
            (OWN, Some(own), &[own][..]),
            "{}",
            self.story()
        );
        Some(tunnel)
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
        // It may end before the disk has what the kernel has.
        if is_complete && self.keeps.chance(80) {
            self.kept = (known.clone(), self.own.remembered.clone());
        }
        self.own.mode = if is_complete { Some(topology.settings.mode) } else { self.own.mode };
        let pods = self.turn_to(&known, &topology.settings, is_complete);
        let Some(mut data_plane) = self.data_plane.take() else {
            let before = self.routes.clone();
            let is_there = self.keeps.chance(20);
            let change = without_data_plane(&topology, is_complete, is_there);
            let done = change.map(|change| self.program(&topology, &change, None, &pods));
            if done.is_none_or(|done| done.is_routed) {
                self.is_blind |= is_there && topology.settings.mode == Mode::Strict;
                self.check_routes(&topology, &before, is_complete);
            }
            if done.is_some_and(|done| done.is_guarded && done.is_routed) {
                self.check_firewall(&known, &topology, &pods, is_complete);
            }
            return;
        };
        // Who had the key that is ours now is no peer any more from the first step on, whatever is led there.
        let mut before = data_plane.table.clone();
        before.retain(|_, holder| *holder != self.own.public_key);
        self.is_blind |= before.len() < data_plane.table.len();
        let routes_before = self.routes.clone();
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
        let (mut is_whole, mut is_programmed, mut is_followed) = (true, false, true);
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
                Step::Route(change) => {
                    let done = self.program(&topology, change, Some(&data_plane), &pods);
                    is_programmed = done.is_guarded && done.is_routed;
                    // Without the firewall all else is done all the same.
                    if !done.is_routed {
                        is_whole = false;
                        break;
                    }
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
            }
            self.believed = Some(snapshot).filter(|_| is_followed && is_programmed);
            self.check_end(&topology, &routes_before, &data_plane, is_complete);
            if is_programmed {
                self.check_firewall(&known, &topology, &pods, is_complete);
            }
        }
        self.data_plane = Some(data_plane);
    }

    /// Has the kernel be told what it should be: the firewall, then the routes. Each may be refused without the other.
    fn program(
        &mut self,
        topology: &Topology,
        change: &RouteChange,
        data_plane: Option<&DataPlane>,
        pods: &BTreeSet<IpAddr>,
    ) -> Programmed {
        let before = self.routes.clone();
        let (routes, is_whole) = match change {
            RouteChange::Whole(routes) => (routes.clone(), true),
            RouteChange::Addition(extension) => (extension.onto(&before), false),
        };
        if let RouteChange::Addition(extension) = change {
            assert_eq!(extension.onto(&routes), routes, "{}", self.story());
        }
        let refused = [(); 2].map(|()| self.refuses.as_mut().is_some_and(|refuses| refuses.chance(5)));
        let [is_guarded, is_routed] = refused.map(|is_refused| !is_refused);
        if refused != [false; 2] {
            self.say(format!("the kernel takes the firewall: {is_guarded}, the routes: {is_routed}"));
        }
        let desired = Desired::of(topology, routes.clone(), is_whole, self.translates);
        if is_guarded && !(desired.leaves_firewall && self.wall.is_some()) {
            self.wall = desired.firewall.map(Wall::new);
        }
        self.check_wall();
        if !is_routed {
            return Programmed { is_guarded, is_routed };
        }
        if let Some(data_plane) = data_plane.filter(|_| is_whole) {
            // What comes in is there before what goes out is gone: the models' states are both, then one.
            let mut both = routes.clone();
            let old = [&before.entries, &before.from_pods.entries];
            for (both, old) in [&mut both.entries, &mut both.from_pods.entries].into_iter().zip(old) {
                let new = both.clone();
                let leads = |old: &&Entry| {
                    old.kind == Kind::Unicast && !new.iter().any(|new| new.prefix == old.prefix)
                };
                both.extend(old.iter().filter(leads));
            }
            self.check_ways(&both, data_plane);
            self.check_leaks(&both);
            self.is_blind = false;
        }
        self.routes = routes;
        self.check_leaks(&self.routes);
        if !is_whole {
            self.check_stays(&before, topology);
        }
        self.guarded.extend(pods);
        self.walled.extend(pods.iter().filter(|_| is_guarded));
        self.check_leaks(&self.routes);
        self.check_wall();
        Programmed { is_guarded, is_routed }
    }

    pub(super) fn story(&self) -> String {
        self.log.join("\n")
    }
}
