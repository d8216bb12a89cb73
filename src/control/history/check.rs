//! What has to hold after every change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::OWN;
use super::model::{DataPlane, addresses, tables, way};
use super::world::World;
use crate::config::Prefix;
use crate::control::api::Mode;
use crate::control::objects::Objects;
use crate::control::oracle;
use crate::control::plan::{Kind, Routes};
use crate::control::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile};
use crate::control::settings::Settings;
use crate::control::topology::{Reason, Topology};
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
    pub(super) fn turn_to(
        &mut self,
        known: &Objects,
        settings: &Settings,
        is_complete: bool,
    ) -> BTreeSet<IpAddr> {
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
    pub(super) fn guard(&mut self, pods: BTreeSet<IpAddr>) {
        self.guarded.extend(pods);
        self.check_leaks(&self.routes);
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
}
