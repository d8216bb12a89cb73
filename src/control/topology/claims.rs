//! Which addresses are whose: each claim is granted or refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Prefix;
use crate::control::api::PodAddresses;
use crate::control::blocks::Blocks;
use crate::control::objects::{Fault, Objects, Tunnel};
use crate::control::settings::Settings;

/// What a node may call its own.
#[derive(Debug, Default)]
pub(super) struct Granted<'a> {
    /// What it says of itself, if it does.
    pub(super) tunnel: Option<&'a Tunnel>,
    pub(super) pods: Vec<Prefix>,
    pub(super) nodes: Vec<Prefix>,
    pub(super) tunnels: Vec<Prefix>,
}

impl Granted<'_> {
    pub(super) fn all(&self) -> impl Iterator<Item = Prefix> {
        self.pods.iter().chain(&self.nodes).chain(&self.tunnels).copied()
    }
}

/// The claims of all nodes, added from the oldest to the youngest.
pub(super) struct Claims<'a> {
    settings: &'a Settings,
    /// Whose each block of pods is by the cluster's word.
    given: Blocks<&'a str>,
    given_to: BTreeSet<&'a str>,
    /// Whose each block of pods is.
    pods: Blocks<&'a str>,
    /// Whose each single address is.
    singles: BTreeMap<Prefix, &'a str>,
    pub(super) granted: BTreeMap<&'a str, Granted<'a>>,
    pub(super) faults: BTreeSet<(String, Fault)>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(settings: &'a Settings, objects: &'a Objects) -> Self {
        let nodes = objects.nodes.iter();
        let mut given = Blocks::default();
        for (name, node) in nodes {
            node.pod_prefixes.iter().for_each(|prefix| given.insert(*prefix, name.as_str()));
        }
        let given_to = given.values().copied().collect();
        let (pods, singles, granted) = (Blocks::default(), BTreeMap::new(), BTreeMap::new());
        Self { settings, given, given_to, pods, singles, granted, faults: BTreeSet::new() }
    }

    /// Adds the nodes that say nothing of themselves, with what the cluster says of them.
    pub(super) fn add_silent(&mut self, objects: &'a Objects) {
        let mut speaking = objects.tunnels.keys().peekable();
        for (name, node) in objects.nodes.iter() {
            while speaking.next_if(|other| *other < name).is_some() {}
            if speaking.peek() == Some(&name) {
                continue;
            }
            let pods = node.pod_prefixes.iter().filter(|prefix| self.pods.get(prefix).is_none());
            let nodes = node.addresses.iter().map(|addr| Prefix::host(*addr));
            let nodes = nodes.filter(|single| self.single_refusal(name, single).is_none());
            let granted =
                Granted { pods: pods.copied().collect(), nodes: nodes.collect(), ..Granted::default() };
            self.granted.insert(name, granted);
        }
    }

    pub(super) fn add(&mut self, name: &'a str, tunnel: &'a Tunnel) {
        let mut granted = Granted { tunnel: Some(tunnel), ..Granted::default() };
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
        match self.given.around(prefix).filter(|_| !is_pod) {
            Some((_, other)) if *other != name => {
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
        let (_, other) = self.pods.around(single).filter(|(_, other)| **other != name)?;
        Some(format!("{} is among the pods of the older node {other}", single.addr()))
    }

    fn fault(&mut self, name: &str, field: &str, at: usize, reason: String) {
        let fault = Fault { field: format!("spec.{field}[{at}]"), reason };
        self.faults.insert((format!("NodeTunnel/{name}"), fault));
    }
}
