//! From all objects to what one node should do: peers, allowed IPs, routes; and what is not encrypted, and why. Pure.
//!
//! 1. Settings: what the `TunnelConfig`s want of this node. Of the `NodeTunnel`s those count whose nodes the cluster knows, if it knows any.
//! 2. Keys: one that several nodes have belongs to the oldest of them. The others have none, and nothing goes to them in clear; nor do they
//!    talk to anybody.
//! 3. Addresses: each belongs to the oldest node that claims it; a claim that is refused has no effect but a fault. A block of pods inside
//!    another node's block is a loan, and belongs to the borrower. Where the cluster's own `Node`s are known, none of that is needed: a
//!    node has no pods but in the blocks that the cluster gave it, and no addresses but those and the ones that the cluster knows.
//!    What a node has just given up and nobody has stays with it for a moment.
//! 4. Peers: from a node, its pods' prefixes, its own addresses and those of its tunnel are accepted. That is more than is routed to it:
//!    a pod on the host's network answers from the node's address.
//! 5. Routes: into the tunnel, past it, or nowhere. In Strict nothing leaves for what is nobody's and was another node's pods'. What is
//!    refused has none of its own: a node that could have dropped what it claims could have anything dropped. In Strict the blocks that the
//!    cluster gave go nowhere until their nodes claim them.
//!
//! The oldest is the one whose object was made first; if that is not known, the one whose name comes first. Nothing here depends on the
//! order in which objects came.
//!
//! - `members`: whose objects count, and which of them are older.
//! - `claims`: 3.
//! - `routing`: 5.
//! - `gate`: whom Strict waits for.
//! - `unencrypted`, `degraded`: why other nodes, and this one, are not talked to through the tunnel.

mod claims;
mod degraded;
mod gate;
mod members;
mod routing;
#[cfg(test)]
mod tests;
mod unencrypted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use self::claims::{Claims, Granted};
use self::degraded::degraded;
use self::gate::waits_for;
use self::members::{Member, Members};
use self::routing::Routing;
use super::api::{HostTraffic, Mode};
use super::given_up::GivenUp;
use super::objects::{Fault, Objects};
use super::plan::{Masquerade, Routes};
use super::remembered::Remembered;
use super::settings::Settings;
use crate::config::Prefix;
use crate::crypto::x25519::PublicKey;

pub use self::degraded::Degraded;
pub use self::gate::Unready;
pub use self::routing::no_routes;
pub use self::unencrypted::{Reason, Unencrypted};

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
    /// What other nodes' pods have had since Strict was on.
    pub remembered: Remembered,
    /// What other nodes have just given up.
    pub given_up: GivenUp,
    /// Whether its kernel has no IPv6.
    pub lacks_ipv6: bool,
}

impl Own {
    /// Returns a node of which nothing else is known.
    pub fn new(name: &str, public_key: PublicKey) -> Self {
        Self {
            name: name.to_owned(),
            public_key,
            api_servers: Vec::new(),
            links: Vec::new(),
            mode: None,
            remembered: Remembered::default(),
            given_up: GivenUp::default(),
            lacks_ipv6: false,
        }
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
    /// Where API servers are that it talks to past the tunnel.
    pub api_servers: BTreeSet<IpAddr>,
    /// The prefixes of other nodes' pods that nothing leaves for in clear, in Strict.
    pub guarded: Vec<Prefix>,
    /// What other nodes' pods had and nobody claims any more: nothing leaves for it, in Strict.
    pub orphans: Vec<Prefix>,
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
    /// Whether IPv6 would be among this, and is not, as the kernel has none.
    pub lacks_ipv6: bool,
}

impl Topology {
    /// Leaves out what a kernel without IPv6 cannot do. What is accepted from peers stays: the data plane asks no kernel for that.
    fn leave_out_ipv6(&mut self) {
        self.lacks_ipv6 = self.routes.leave_out_ipv6() || self.addresses.iter().any(IpAddr::is_ipv6);
        self.addresses.retain(IpAddr::is_ipv4);
        for peer in self.peers.values_mut() {
            peer.endpoints.retain(SocketAddr::is_ipv4);
        }
    }
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub node: String,
    /// Where it is found, the preferred place first.
    pub endpoints: Vec<SocketAddr>,
    /// What is accepted from it, and sent to it if it is routed into the tunnel: in order, each once.
    pub allowed_ips: Vec<Prefix>,
}

/// Returns what the node `own` should do.
pub fn topology(objects: &Objects, own: &Own) -> Topology {
    let mut faults = BTreeSet::new();
    let own_tunnel = objects.tunnels.get(&own.name).map(|tunnel| &**tunnel);
    let mut settings = {
        let nothing = BTreeMap::new();
        let labels = own_tunnel.map_or(&nothing, |tunnel| &tunnel.labels);
        let mut found = Vec::new();
        let settings = Settings::of(objects, &own.name, labels, &mut found);
        faults.extend(found);
        settings
    };
    for (name, tunnel) in objects.tunnels.iter() {
        faults.extend(tunnel.faults.iter().map(|fault| (format!("NodeTunnel/{name}"), fault.clone())));
    }
    let members = Members::of(objects, &own.name);
    for name in &members.strays {
        let reason = format!("the cluster has no node {name}");
        faults.insert((format!("NodeTunnel/{name}"), Fault { field: "metadata.name".to_owned(), reason }));
    }
    let keys = members.key_owners();
    let waits_for = waits_for(&settings, objects, own, &keys);
    if !waits_for.is_empty() {
        settings.mode = Mode::Permissive;
    }
    let mut claims = Claims::new(&settings, objects, &members);
    members.by_age.iter().for_each(|at| claims.add_pods(*at));
    members.by_age.iter().for_each(|at| claims.add_addresses(*at));
    let mut routing = Routing::new(&settings, own, objects);
    claims.add_given_up(&own.given_up, |tunnel| routing.nearness(Some(tunnel)).is_some());
    claims.add_silent();
    let orphans = orphans(&settings, own, &claims);
    faults.append(&mut claims.faults);
    let claimed = std::mem::take(&mut claims.granted);

    let mut peers = BTreeMap::new();
    let mut not_encrypted = BTreeMap::new();
    // Whoever heard from us would take us for the node that has our key, and send us what is for that one ([W] §2.1: a peer is found where
    // its last authentic packet came from).
    let is_another = keys.get(&own.public_key).is_some_and(|node| *node != own.name);
    for (Member { name, .. }, granted) in members.all.iter().zip(&claimed) {
        if *name == own.name {
            routing.add_own(granted);
            continue;
        }
        let tunnel = granted.tunnel;
        let active = tunnel.and_then(|tunnel| tunnel.active);
        // Our own key in another's hands is no peer of ours, whoever is older.
        let is_peer = |key: &PublicKey| !is_another && keys.get(key) == Some(name) && *key != own.public_key;
        let key = active.filter(is_peer);
        if let (Some(key), Some(tunnel)) = (key, tunnel) {
            let mut allowed_ips: Vec<_> = granted.all().collect();
            allowed_ips.sort_unstable();
            allowed_ips.dedup();
            let (node, endpoints) = ((*name).to_owned(), tunnel.endpoints.clone());
            peers.insert(key, Peer { node, endpoints, allowed_ips });
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
    routing.add_orphans(&orphans);
    let has_pods = |single: &Prefix| claims.has(single) || own.remembered.has(single);
    routing.let_out(claimed.iter().flat_map(|granted| &granted.nodes), has_pods);
    let is_open = settings.host_traffic == HostTraffic::Plain || routing.is_exempt;
    let own_addresses = own_tunnel.filter(|_| is_open).map(|tunnel| tunnel.node_addresses.clone());
    let mut topology = Topology {
        peers,
        waits_for,
        open_addresses: own_addresses.unwrap_or_default(),
        masquerade: masquerade(&settings, &claimed, members.place(&own.name)),
        api_servers: routing.api_servers.clone(),
        guarded: std::mem::take(&mut routing.guarded),
        routes: routing.finish(),
        orphans,
        addresses: own_tunnel.map(|tunnel| tunnel.tunnel_addresses.clone()).unwrap_or_default(),
        not_encrypted,
        faults,
        degraded: degraded(own, own_tunnel, &keys),
        lacks_ipv6: false,
        settings,
    };
    if own.lacks_ipv6 {
        topology.leave_out_ipv6();
    }
    topology
}

/// Returns what was remembered and nobody has any more. Where the prefixes of all pods are named, they say what else is to be dropped;
/// those that were found may not be all.
fn orphans(settings: &Settings, own: &Own, claims: &Claims<'_>) -> Vec<Prefix> {
    if settings.mode != Mode::Strict || settings.cluster_prefixes.is_some() {
        return Vec::new();
    }
    let is_found = |prefix: &Prefix| settings.found.prefixes.iter().any(|found| found.covers(prefix));
    own.remembered.iter().filter(|prefix| !claims.has(prefix) && !is_found(prefix)).copied().collect()
}

/// Returns what of this node's pods goes out of the cluster: to no prefix of pods and to no tunnel's address.
fn masquerade(settings: &Settings, claimed: &[Granted<'_>], own: Option<usize>) -> Masquerade {
    let cluster = settings.catch_all();
    let known = claimed.iter().flat_map(|granted| [&granted.pods, &granted.unclaimed, &granted.tunnels]);
    let inside = cluster.iter().chain(known.flatten()).copied().collect();
    let sources = own.map(|at| claimed[at].pods.clone()).unwrap_or_default();
    Masquerade { sources, inside }
}
