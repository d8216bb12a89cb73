//! Whose each address is, asked of the objects alone and answered in another way than the plan's: what no packet may leave for in clear.
//!
//! It knows no order and no routes. Where it cannot tell whose an address is, because this node or a near one may have it, it says
//! nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::api::{HostTraffic, PodAddresses, Scope};
use super::objects::Objects;
use super::settings::Settings;
use crate::config::Prefix;

/// Returns addresses of pods of other nodes than `own` that are to be reached through the tunnel, one or two of every prefix that is named.
pub(super) fn pods_of_others(objects: &Objects, settings: &Settings, own: &str) -> BTreeSet<IpAddr> {
    let of_tunnels = objects.tunnels.values().flat_map(|tunnel| &tunnel.pod_prefixes);
    let of_nodes = objects.nodes.values().flat_map(|node| &node.pod_prefixes);
    let named = of_tunnels.chain(of_nodes).flat_map(|prefix| [Some(prefix.addr()), ninth(prefix)]);
    named.flatten().filter(|addr| is_of_another(objects, settings, own, *addr)).collect()
}

/// Tells whether an address may be one of a pod of `own`, or of a node that is passed by, or is exempt.
fn may_be_clear(objects: &Objects, settings: &Settings, own: &str, addr: IpAddr) -> bool {
    let names = objects.tunnels.keys().chain(objects.nodes.keys());
    let mut passed = names.filter(|name| is_passed(objects, settings, own, name));
    let mut may_have =
        |name: &String| claims(objects, name, addr) || given_to(objects, addr).contains(name.as_str());
    is_exempt(settings, addr) || passed.any(&mut may_have)
}

/// Tells whether an address that is nobody's pod's any more may be in clear: as above, or a node that is passed by says it is its own.
pub(super) fn may_be_clear_again(objects: &Objects, settings: &Settings, own: &str, addr: IpAddr) -> bool {
    let mut passed = objects.tunnels.iter().filter(|(name, _)| is_passed(objects, settings, own, name));
    may_be_clear(objects, settings, own, addr)
        || passed.any(|(_, tunnel)| {
            tunnel.node_addresses.contains(&addr) || tunnel.tunnel_addresses.contains(&addr)
        })
}

fn is_of_another(objects: &Objects, settings: &Settings, own: &str, addr: IpAddr) -> bool {
    let given = given_to(objects, addr);
    if let Some(holder) = given.first() {
        // A single pod may be elsewhere, if that is the plan; two that were given the same are a mistake.
        return match settings.pod_addresses {
            PodAddresses::Pods => !may_be_clear(objects, settings, own, addr),
            PodAddresses::Blocks => {
                given.len() == 1 && !is_passed(objects, settings, own, holder) && !is_exempt(settings, addr)
            }
        };
    }
    let is_outside = |cluster: &[Prefix]| !cluster.iter().any(|block| block.contains(addr));
    if settings.cluster_prefixes.as_deref().is_some_and(is_outside) {
        return false;
    }
    // The cluster says nothing of the address; of a node that it gave blocks it would.
    let may_have = |name: &String| {
        let is_free = objects.nodes.get(name).is_none_or(|node| node.pod_prefixes.is_empty());
        let single = Prefix::host(addr);
        let has_single = settings.pod_addresses == PodAddresses::Pods
            && objects.tunnels.get(name).is_some_and(|tunnel| tunnel.pod_prefixes.contains(&single));
        is_free && claims(objects, name, addr) || has_single
    };
    // Where it says whom it has, nobody else has anything.
    let is_there = |name: &String| objects.nodes.is_empty() || objects.nodes.contains_key(name);
    objects.tunnels.keys().any(|name| name != own && is_there(name) && may_have(name))
        && !may_be_clear(objects, settings, own, addr)
}

/// Tells whether packets to a node's pods pass the tunnel by: its own, and those of its zone if others are meant. Subnets are not drawn.
fn is_passed(objects: &Objects, settings: &Settings, own: &str, name: &str) -> bool {
    let zone = |name: &str| objects.tunnels.get(name).and_then(|tunnel| tunnel.zone.clone());
    let is_near = settings.scope == Scope::CrossZone && zone(own).is_some() && zone(name) == zone(own);
    name == own || is_near
}

/// Tells whether an address never needs the tunnel.
pub(super) fn is_exempt(settings: &Settings, addr: IpAddr) -> bool {
    settings.host_traffic == HostTraffic::Encrypt
        && settings.exempt.iter().any(|exempt| exempt.contains(addr))
}

/// Returns the nodes that the cluster gave the smallest block around an address.
fn given_to(objects: &Objects, addr: IpAddr) -> BTreeSet<&str> {
    let nodes = objects.nodes.iter();
    let blocks =
        nodes.flat_map(|(name, node)| node.pod_prefixes.iter().map(move |block| (block, name.as_str())));
    let around: Vec<_> = blocks.filter(|(block, _)| block.contains(addr)).collect();
    let len = around.iter().map(|(block, _)| block.len()).max();
    around.into_iter().filter(|(block, _)| Some(block.len()) == len).map(|(_, name)| name).collect()
}

fn claims(objects: &Objects, name: &str, addr: IpAddr) -> bool {
    let tunnel = objects.tunnels.get(name);
    tunnel.is_some_and(|tunnel| tunnel.pod_prefixes.iter().any(|prefix| prefix.contains(addr)))
}

/// Returns an address inside a block that is not its own.
fn ninth(prefix: &Prefix) -> Option<IpAddr> {
    let addr = match prefix.addr() {
        IpAddr::V4(addr) => IpAddr::from((u32::from(addr) | 9).to_be_bytes()),
        IpAddr::V6(addr) => IpAddr::from((u128::from(addr) | 9).to_be_bytes()),
    };
    prefix.contains(addr).then_some(addr)
}

/// Returns addresses of pods of `own`, one or two of every block that the cluster gave it and nobody else.
pub(super) fn pods_of_own(objects: &Objects, settings: &Settings, own: &str) -> BTreeSet<IpAddr> {
    let blocks = objects.nodes.get(own).into_iter().flat_map(|node| &node.pod_prefixes);
    let named = blocks.flat_map(|prefix| [Some(prefix.addr()), ninth(prefix)]).flatten();
    let is_lent = |addr: IpAddr| {
        settings.pod_addresses == PodAddresses::Pods
            && objects.tunnels.keys().any(|name| name != own && claims(objects, name, addr))
    };
    named.filter(|addr| given_to(objects, *addr) == BTreeSet::from([own]) && !is_lent(*addr)).collect()
}
