//! Which addresses are whose: each claim is granted or refused.
//!
//! 1. Blocks of pods, of all nodes. What the cluster gave is that node's, whatever others say and however old they are.
//!    Where nobody has named the prefixes of all pods, what is public is nobody's.
//! 2. Single addresses. One that is among somebody's pods is that one's; so no block is lost by an address that somebody claims in it.
//!    What else the cluster knows of a node's addresses decides next, and the age of the node where the cluster knows nothing.
//!
//! What the kubelet of a node tells the cluster of its addresses is its own word: of two nodes that have one there the older keeps it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::members::{Member, Members};
use crate::config::Prefix;
use crate::control::api::PodAddresses;
use crate::control::blocks::Blocks;
use crate::control::given_up::GivenUp;
use crate::control::objects::{Fault, Objects, Tunnel};
use crate::control::settings::Settings;

/// The addresses of private networks ([RFC 1918] §3, [RFC 6598] §7, [RFC 4193] §3.1).
///
/// [RFC 1918]: https://www.rfc-editor.org/rfc/rfc1918
/// [RFC 4193]: https://www.rfc-editor.org/rfc/rfc4193
/// [RFC 6598]: https://www.rfc-editor.org/rfc/rfc6598
const PRIVATE: [(IpAddr, u8); 5] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

/// The length of an IPv6 subnet's prefix ([RFC 4291] §2.5.1).
///
/// [RFC 4291]: https://www.rfc-editor.org/rfc/rfc4291
const SUBNET_LEN: u8 = 64;

/// What a node may call its own.
#[derive(Debug, Default)]
pub(super) struct Granted<'a> {
    /// What it says of itself, if it does.
    pub(super) tunnel: Option<&'a Tunnel>,
    pub(super) pods: Vec<Prefix>,
    /// The blocks that the cluster gave it and it says nothing of.
    pub(super) unclaimed: Vec<Prefix>,
    pub(super) nodes: Vec<Prefix>,
    pub(super) tunnels: Vec<Prefix>,
}

impl Granted<'_> {
    pub(super) fn all(&self) -> impl Iterator<Item = Prefix> {
        self.pods.iter().chain(&self.nodes).chain(&self.tunnels).copied()
    }
}

/// The claims of all nodes, added from the oldest to the youngest: what they say of their pods first, then their single addresses, then what
/// they have just given up, then those who say nothing.
pub(super) struct Claims<'a> {
    settings: &'a Settings,
    objects: &'a Objects,
    members: &'a Members<'a>,
    /// Whose each block of pods is by the cluster's word. Here and below a node is its place among the members.
    given: Blocks<usize>,
    /// Whose each block of pods is.
    pods: Blocks<usize>,
    /// Whose each address is by the cluster's word, once somebody has asked.
    told: OnceCell<BTreeMap<IpAddr, usize>>,
    /// Whose each address of a node is by its own word, where there is no other.
    said: BTreeMap<IpAddr, usize>,
    /// Whose each single address is.
    singles: HashMap<Prefix, usize>,
    /// What each member may call its own.
    pub(super) granted: Vec<Granted<'a>>,
    pub(super) faults: BTreeSet<(String, Fault)>,
}

/// What a node says that a single address is.
#[derive(Clone, Copy)]
enum Single {
    Node,
    Tunnel,
}

impl<'a> Claims<'a> {
    pub(super) fn new(settings: &'a Settings, objects: &'a Objects, members: &'a Members<'a>) -> Self {
        let mut given = Blocks::default();
        let mut granted = Vec::with_capacity(members.all.len());
        for (at, member) in members.all.iter().enumerate() {
            let blocks = member.node.into_iter().flat_map(|node| &node.pod_prefixes);
            blocks.for_each(|prefix| given.insert(*prefix, at));
            granted.push(Granted { tunnel: member.tunnel, ..Granted::default() });
        }
        Self {
            settings,
            objects,
            members,
            given,
            pods: Blocks::default(),
            told: OnceCell::new(),
            said: BTreeMap::new(),
            singles: HashMap::with_capacity(2 * granted.len()),
            granted,
            faults: BTreeSet::new(),
        }
    }

    /// Adds what a node says of its pods.
    pub(super) fn add_pods(&mut self, at: usize) {
        let Member { tunnel: Some(tunnel), node, .. } = self.members.all[at] else { return };
        let given = node.map(|node| &node.pod_prefixes[..]).unwrap_or_default();
        let mut pods = Vec::with_capacity(tunnel.pod_prefixes.len());
        for (index, prefix) in tunnel.pod_prefixes.iter().enumerate() {
            match self.pod_refusal(at, prefix, !given.is_empty()) {
                None => {
                    self.pods.insert(*prefix, at);
                    pods.push(*prefix);
                }
                Some(reason) => self.fault(at, "podPrefixes", index, reason),
            }
        }
        let is_unclaimed = |prefix: &&Prefix| !pods.contains(prefix) && self.given.get(prefix) == Some(&at);
        self.granted[at].unclaimed = given.iter().filter(is_unclaimed).copied().collect();
        self.granted[at].pods = pods;
        if self.objects.nodes.is_empty() {
            for addr in &tunnel.node_addresses {
                self.said.entry(*addr).or_insert(at);
            }
        }
    }

    /// Adds what a node says of its single addresses, once that is known that all say of their pods.
    pub(super) fn add_addresses(&mut self, at: usize) {
        let Some(tunnel) = self.members.all[at].tunnel else { return };
        let fields = [
            ("nodeAddresses", Single::Node, &tunnel.node_addresses),
            ("tunnelAddresses", Single::Tunnel, &tunnel.tunnel_addresses),
        ];
        let [nodes, tunnels] = fields.map(|(field, what, addresses)| {
            let mut granted = Vec::with_capacity(addresses.len());
            for (index, addr) in addresses.iter().enumerate() {
                let prefix = Prefix::host(*addr);
                match self.single_refusal(at, &prefix, what) {
                    None => {
                        self.singles.insert(prefix, at);
                        granted.push(prefix);
                    }
                    Some(reason) => self.fault(at, field, index, reason),
                }
            }
            granted
        });
        self.granted[at].nodes = nodes;
        self.granted[at].tunnels = tunnels;
    }

    /// Leaves what a node has just given up with it, unless somebody has it, or may not leave it there; nor with one that is near: what is
    /// sent there goes in clear.
    pub(super) fn add_given_up(&mut self, given_up: &GivenUp, is_near: impl Fn(&Tunnel) -> bool) {
        // A node that is gone has nothing, and one that says nothing of itself has given nothing up.
        let placed = given_up.iter().filter_map(|(prefix, name)| Some((prefix, self.members.place(name)?)));
        // All are judged before any is left: a loan does not return to a lender who has given up the block.
        let stays = |(prefix, at): &(Prefix, usize)| {
            let Member { tunnel, node, .. } = self.members.all[*at];
            let is_given = node.is_some_and(|node| !node.pod_prefixes.is_empty());
            let is_taken = self.pods.around(prefix).is_some() || self.singles.contains_key(prefix);
            tunnel.is_some_and(|tunnel| !is_near(tunnel))
                && !is_taken
                && self.pod_refusal(*at, prefix, is_given).is_none()
        };
        let left: Vec<_> = placed.filter(stays).collect();
        for (prefix, at) in left {
            let granted = &mut self.granted[at];
            granted.pods.push(prefix);
            granted.unclaimed.retain(|block| *block != prefix);
            self.pods.insert(prefix, at);
        }
    }

    /// Tells whether a prefix is inside a block that somebody has, or that the cluster gave.
    pub(super) fn has(&self, prefix: &Prefix) -> bool {
        self.pods.around(prefix).or_else(|| self.given.around(prefix)).is_some()
    }

    /// Adds the nodes that say nothing of themselves, with what the cluster says of them.
    pub(super) fn add_silent(&mut self) {
        for (at, member) in self.members.all.iter().enumerate() {
            let (Some(node), None) = (member.node, member.tunnel) else { continue };
            let pods = node.pod_prefixes.iter().filter(|prefix| self.pods.get(prefix).is_none());
            let pods = pods.copied().collect();
            let nodes = node.addresses.iter().map(|addr| Prefix::host(*addr));
            let nodes = nodes.filter(|single| self.single_refusal(at, single, Single::Node).is_none());
            let nodes = nodes.collect();
            self.granted[at] = Granted { pods, nodes, ..Granted::default() };
        }
    }

    fn pod_refusal(&self, at: usize, prefix: &Prefix, is_given: bool) -> Option<String> {
        // A single pod's address may be anywhere, if that is the plan.
        let is_pod =
            self.settings.pod_addresses == PodAddresses::Pods && *prefix == Prefix::host(prefix.addr());
        match self.given.around(prefix) {
            Some((_, other)) if *other == at => {}
            Some((_, other)) if !is_pod => {
                return Some(format!("the cluster gave {prefix} to the node {}", self.name(*other)));
            }
            None if is_given && !is_pod => {
                return Some(format!("{prefix} is not among the podCIDRs of the node"));
            }
            // What a node takes for its tunnel is a block's own address.
            Some((block, other)) if block.addr() == prefix.addr() => {
                let other = self.name(*other);
                return Some(format!("{prefix} is the address of the tunnel of the node {other}"));
            }
            Some(_) | None => {
                if let Some(holder) = self.holder_inside(at, prefix) {
                    return Some(format!("{prefix} holds {holder}"));
                }
            }
        }
        let cluster = self.settings.cluster_prefixes.as_deref();
        if cluster.is_some_and(|cluster| !cluster.iter().any(|block| block.covers(prefix))) {
            return Some(format!("{prefix} is outside the clusterCIDRs"));
        }
        if cluster.is_none() && self.is_public(prefix) {
            return Some(format!("{prefix} is public, and in no clusterCIDRs"));
        }
        // A block inside another's block is a loan: the more specific one has it.
        if let Some(other) = self.pods.get(prefix).filter(|other| **other != at) {
            return Some(format!("{prefix} belongs to the older node {}", self.name(*other)));
        }
        // One node's word against another's is not enough; but a network that several are in is no block of pods.
        let inside = self.said.range(prefix.addr()..).take_while(|(addr, _)| prefix.contains(**addr));
        let mut others = inside.map(|(_, other)| *other).filter(|other| *other != at);
        let first = others.next()?;
        let second = others.find(|other| *other != first)?;
        let [first, second] = [first, second].map(|other| self.name(other));
        Some(format!("{prefix} holds addresses of the older nodes {first} and {second}"))
    }

    /// Tells whether a prefix is neither among the addresses of private networks nor in what the cluster knows to be its own: blocks of
    /// pods, what was found of all pods, and the subnets that nodes' IPv6 addresses are in. Where it knows no nodes, nothing is public.
    fn is_public(&self, prefix: &Prefix) -> bool {
        let addr = prefix.addr();
        let is_private = || {
            PRIVATE.iter().any(|(block, len)| {
                prefix.len() >= *len && Prefix::new(addr, *len) == Prefix::new(*block, *len)
            })
        };
        let is_found = || self.settings.found.prefixes.iter().any(|found| found.covers(prefix));
        let is_beside_node = || {
            let subnet =
                Prefix::new(addr, SUBNET_LEN).filter(|subnet| addr.is_ipv6() && subnet.covers(prefix));
            subnet.is_some_and(|subnet| {
                self.told().range(subnet.addr()..).next().is_some_and(|(node, _)| subnet.contains(*node))
            })
        };
        let is_given = || self.given.around(prefix).is_some();
        !self.objects.nodes.is_empty() && !is_private() && !is_given() && !is_found() && !is_beside_node()
    }

    /// Returns what the cluster knows of an address inside a prefix that is none of the pods of this node.
    fn holder_inside(&self, at: usize, prefix: &Prefix) -> Option<String> {
        let mut inside = self.told().range(prefix.addr()..).take_while(|(addr, _)| prefix.contains(**addr));
        if let Some((addr, other)) = inside.find(|(_, other)| **other != at) {
            return Some(format!("{addr}, an address of the node {}", self.name(*other)));
        }
        let mut api_servers = self.objects.api_servers.values().flatten();
        let found = api_servers.find(|addr| prefix.contains(**addr))?;
        Some(format!("{found}, an address of an API server"))
    }

    fn single_refusal(&self, at: usize, single: &Prefix, what: Single) -> Option<String> {
        let addr = single.addr();
        if let Some(other) = self.singles.get(single).filter(|other| **other != at) {
            return Some(format!("{addr} belongs to the older node {}", self.name(*other)));
        }
        match self.pods.around(single).or_else(|| self.given.around(single)) {
            Some((_, other)) if *other == at => return None,
            Some((_, other)) => {
                return Some(format!("{addr} is among the pods of the node {}", self.name(*other)));
            }
            None => {}
        }
        if let Some(node) = self.members.all[at].node {
            let (is_known, known) = match what {
                Single::Node => (!node.addresses.is_empty(), "addresses"),
                Single::Tunnel => (!node.pod_prefixes.is_empty(), "podCIDRs"),
            };
            if node.addresses.contains(&addr) {
                return None;
            }
            if is_known {
                return Some(format!("{addr} is not among the {known} of the node"));
            }
        }
        let other = self.told().get(&addr).filter(|other| **other != at)?;
        Some(format!("{addr} is an address of the node {}", self.name(*other)))
    }

    fn told(&self) -> &BTreeMap<IpAddr, usize> {
        self.told.get_or_init(|| {
            let mut told = BTreeMap::new();
            for (at, member) in self.members.all.iter().enumerate() {
                for addr in member.node.into_iter().flat_map(|node| &node.addresses) {
                    told.entry(*addr).or_insert(at);
                }
            }
            told
        })
    }

    fn name(&self, at: usize) -> &'a str {
        self.members.all[at].name
    }

    fn fault(&mut self, at: usize, field: &str, index: usize, reason: String) {
        let fault = Fault { field: format!("spec.{field}[{index}]"), reason };
        self.faults.insert((format!("NodeTunnel/{}", self.name(at)), fault));
    }
}
