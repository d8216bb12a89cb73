//! What has to hold after every change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::OWN;
use super::model::{DataPlane, Wall, addresses, tables, way};
use super::world::World;
use crate::config::Prefix;
use crate::control::api::Mode;
use crate::control::objects::{Objects, Shared, Tunnel};
use crate::control::oracle;
use crate::control::plan::{Kind, Routes};
use crate::control::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile};
use crate::control::settings::Settings;
use crate::control::topology::{Degraded, Own, Reason, Topology, topology};
use crate::crypto::x25519::PublicKey;

impl World {
    /// A prefix that is held before and after is held all the time, by whoever may; nothing goes on the word of a list that is not whole.
    pub(super) fn check_table(
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
    pub(super) fn check_ways(&self, routes: &Routes, data_plane: &DataPlane) {
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
    pub(super) fn check_routes(&self, topology: &Topology, before: &Routes, is_complete: bool) {
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
    pub(super) fn check_stays(&self, before: &Routes, topology: &Topology) {
        for [wanted, now, before] in tables([&topology.routes, &self.routes, before]) {
            let addresses = addresses(&[before, now, wanted]);
            for addr in addresses.into_iter().filter(|addr| !topology.api_servers.contains(addr)) {
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
    pub(super) fn turn_to(
        &mut self,
        known: &Objects,
        settings: &Settings,
        is_complete: bool,
    ) -> BTreeSet<IpAddr> {
        let (is_strict, open) = (settings.mode == Mode::Strict, self.open(known, settings));
        match (is_strict, is_complete) {
            (true, true) => {}
            (true, false) => {
                // What the disk tells of this node's pods, and of whom it passes by, is believed.
                let stays = |addr: &IpAddr| {
                    !open.contains(addr) && !oracle::may_be_clear_again(known, settings, OWN, *addr)
                };
                self.guarded.retain(stays);
                self.walled.retain(stays);
                return BTreeSet::new();
            }
            // The disk may have missed that Strict was switched on: the firewall stays.
            (false, false) => {
                self.guarded.clear();
                return BTreeSet::new();
            }
            (false, true) => {
                (self.guarded, self.walled) = Default::default();
                return BTreeSet::new();
            }
        }
        let mut pods = oracle::pods_of_others(known, settings, OWN);
        pods.retain(|addr| !open.contains(addr) && !is_refused(known, *addr));
        // What nobody claims any more is not open for that, if anybody knows that somebody did.
        let missed = std::mem::take(&mut self.missed);
        let is_named = |addr: &IpAddr| {
            let mut cluster = settings.cluster_prefixes.iter().flatten().peekable();
            cluster.peek().is_none() || cluster.any(|block| block.contains(*addr))
        };
        let stays = |addr: &IpAddr| {
            let is_gone = is_named(addr)
                && !oracle::may_be_clear_again(known, settings, OWN, *addr)
                && !missed.contains(addr);
            !open.contains(addr) && (pods.contains(addr) || is_gone)
        };
        self.guarded.retain(stays);
        self.walled.retain(stays);
        self.check_leaks(&self.routes);
        self.check_wall();
        pods
    }

    /// Returns where API servers are that are talked to past the tunnel.
    fn open(&self, known: &Objects, settings: &Settings) -> BTreeSet<IpAddr> {
        let all = self.own.api_servers.iter().chain(known.api_servers.values().flatten());
        all.filter(|_| settings.exempt_api_server).copied().collect()
    }

    /// Whatever the plan is, nothing leaves in clear for the pods of another node.
    pub(super) fn check_leaks(&self, routes: &Routes) {
        for addr in &self.guarded {
            assert!(
                way(&routes.entries, *addr).is_some(),
                "{addr} of another's pods goes in clear: {}",
                self.story()
            );
        }
    }

    /// Nor does the firewall let it out or in, whatever the routes are.
    pub(super) fn check_wall(&self) {
        for addr in &self.walled {
            let is_protected = self.wall.as_ref().is_some_and(|wall| wall.protects(*addr));
            assert!(is_protected, "the firewall lets {addr} of another's pods by: {}", self.story());
        }
    }

    /// The firewall is that of the topology and of the routes; it hits neither this node's pods nor the way to the API servers.
    pub(super) fn check_firewall(
        &self,
        known: &Objects,
        topology: &Topology,
        pods: &BTreeSet<IpAddr>,
        is_complete: bool,
    ) {
        let settings = &topology.settings;
        let (is_strict, is_off) = (settings.mode == Mode::Strict, settings.mode == Mode::Off);
        for addr in self.open(known, settings) {
            let way = way(&self.routes.entries, addr);
            assert_eq!(way, None, "no way to the API server at {addr}: {}", self.story());
            if !is_complete && !is_strict {
                continue;
            }
            let is_hit = |wall: &Wall| wall.protects(addr) || is_complete && wall.keeps_pods_from(addr);
            assert!(!self.wall.as_ref().is_some_and(is_hit), "{addr} is an API server's: {}", self.story());
        }
        if !is_complete {
            return;
        }
        let Some(wall) = &self.wall else {
            assert!(is_off, "there is no firewall: {}", self.story());
            return;
        };
        let made_of = &wall.made_of;
        assert_eq!(
            (made_of.is_strict, made_of.listen_port, made_of.fwmark, &made_of.interface),
            (is_strict, settings.listen_port, self.routes.fwmark, &self.routes.interface),
            "{}",
            self.story()
        );
        let own = known.tunnels.get(OWN).map(|own| &own.node_addresses[..]).unwrap_or_default();
        let is_own = made_of.hosts.iter().all(|addr| own.contains(addr));
        assert!(is_own, "{:?} of {own:?}: {}", made_of.hosts, self.story());
        for addr in pods {
            // What is lent to another is inside a block of this node's.
            let is_lent = topology.masquerade.sources.iter().any(|block| block.contains(*addr));
            assert!(!wall.is_of_own_pods(*addr) || is_lent, "{addr} is another's pod's: {}", self.story());
            assert!(!wall.translates_to(*addr), "{addr} is in the cluster: {}", self.story());
        }
        for addr in oracle::pods_of_own(known, settings, OWN) {
            assert!(!wall.protects(addr), "{addr} is of this node's pods: {}", self.story());
            assert!(!wall.translates_to(addr), "{addr} is in the cluster: {}", self.story());
        }
    }

    /// Another key of this node's own makes no difference to whom it talks to, unless somebody else has it.
    pub(super) fn check_peers_stay(&self, before: &Own) {
        let others = self.objects.tunnels.iter().filter(|(name, _)| *name != OWN);
        let has_one = |(_, tunnel): (&String, &Shared<Tunnel>)| {
            [before, &self.own].iter().any(|own| tunnel.keys.contains(&own.public_key))
        };
        if others.into_iter().any(has_one) {
            return;
        }
        let [before, now] =
            [before, &self.own].map(|own| Topology { degraded: None, ..topology(&self.objects, own) });
        assert_eq!(before, now, "{}", self.story());
    }

    /// What this node says of itself has come to name the key that it has.
    pub(super) fn check_is_known(&self) {
        let Some((known, topology)) = self.known.as_ref().filter(|(known, _)| known.nodes.contains_key(OWN))
        else {
            return;
        };
        assert_eq!(known.tunnels[OWN].active, Some(self.own.public_key), "{}", self.story());
        let is_good = matches!(topology.degraded, None | Some(Degraded::DuplicateKey { .. }));
        assert!(is_good, "{:?}: {}", topology.degraded, self.story());
    }

    pub(super) fn check_topology(&self, known: &Objects, topology: &Topology) {
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
                let is_exempt = oracle::is_exempt(&topology.settings, prefix.addr())
                    || topology.api_servers.contains(&prefix.addr());
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
    pub(super) fn check_end(
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
        let interface = |data_plane: &DataPlane| {
            (data_plane.private_key.clone(), data_plane.listen_port, data_plane.fwmark)
        };
        assert_eq!(interface(data_plane), interface(&fresh), "{}", self.story());
        assert_eq!(data_plane.fwmark, self.routes.fwmark, "the tunnel's own datagrams: {}", self.story());
        assert_eq!(Some(&self.routes), routes.as_ref(), "{}", self.story());
        let plan = reconcile(&data_plane.snapshot(), topology, &self.private_key, &self.endpoints, occasion);
        let is_edit = |step: &&Step| match step {
            Step::Configure(_) => true,
            Step::Forget(_) => self.leaving.next().is_none(),
            Step::Greet(_) | Step::Link(_) | Step::Route(_) => false,
        };
        assert_eq!(plan.steps.iter().filter(is_edit).count(), 0, "nothing is left to do: {}", self.story());
    }
}

/// Tells whether an address is in no block that the cluster gave, and in one that nobody is believed to have: it holds an API server.
fn is_refused(known: &Objects, addr: IpAddr) -> bool {
    let given = known.nodes.values().flat_map(|node| &node.pod_prefixes);
    let claimed = known.tunnels.values().flat_map(|tunnel| &tunnel.pod_prefixes);
    let holds_server = |prefix: &Prefix| {
        let servers = known.api_servers.values().flatten();
        servers.into_iter().any(|server| prefix.contains(*server))
    };
    let mut around = claimed.filter(|prefix| prefix.contains(addr));
    !given.into_iter().any(|block| block.contains(addr)) && around.any(holds_server)
}
