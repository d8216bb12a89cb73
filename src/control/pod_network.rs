//! The prefixes of all pods where nobody has named them (`clusterCIDRs: Auto`): those that kubeadm made the cluster with, or that servers of
//! k3s or RKE2 were started with. Pure.
//!
//! That is an administrator's word, but not about adit, and the pods' network may be another one by now. So, unlike those that are named,
//! they do not say what a node may not claim; and one that is not the pods' alone is not used, since all of it that is nobody's is dropped
//! in Strict.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::api::PodAddresses;
use super::objects::{Fault, Objects, PodNetwork};
use super::read::KUBEADM;
use super::server_args::CLUSTER_CIDR;
use crate::config::Prefix;

/// The prefixes of all pods that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The prefixes: none where nothing is said, or nothing of use.
    pub prefixes: Vec<Prefix>,
    /// Who says so: the first of them, if there are several.
    pub by: String,
    /// Whether the pods' blocks that are known are all inside.
    pub is_whole: bool,
}

impl Found {
    /// Returns what `objects` say to the node `own`, and adds what cannot be used to `faults`, by `Kind/name` of the object.
    pub fn of(
        objects: &Objects,
        own: &str,
        pod_addresses: PodAddresses,
        faults: &mut Vec<(String, Fault)>,
    ) -> Self {
        let mut this = Self::default();
        for source in sources(objects) {
            let mut fault = |fault| faults.push((source.object.clone(), fault));
            source.network.faults.iter().cloned().for_each(&mut fault);
            for prefix in &source.network.prefixes {
                match refusal(objects, own, prefix) {
                    None if this.prefixes.contains(prefix) => {}
                    None => this.prefixes.push(*prefix),
                    Some(reason) => fault(Fault { field: source.field.to_owned(), reason }),
                }
            }
            if this.by.is_empty() && !this.prefixes.is_empty() {
                this.by = source.by;
            }
        }
        let mut blocks = blocks(objects, own, pod_addresses);
        let is_covered = |block: &Prefix| this.prefixes.iter().any(|prefix| prefix.covers(block));
        this.is_whole = !this.prefixes.is_empty() && blocks.all(is_covered);
        this
    }
}

/// An object that names prefixes of all pods.
struct Source<'a> {
    network: &'a PodNetwork,
    /// Its `Kind/name`, and the field.
    object: String,
    field: &'static str,
    /// What people are told who says so.
    by: String,
}

/// Returns kubeadm's word, or else those of all servers of k3s or RKE2.
fn sources(objects: &Objects) -> Vec<Source<'_>> {
    if let Some(network) = &objects.pod_network {
        let (namespace, name) = KUBEADM;
        let (object, by) = (format!("ConfigMap/{name}"), format!("{namespace}/{name}"));
        return vec![Source { network, object, field: "networking.podSubnet", by }];
    }
    let nodes = objects.nodes.iter().filter(|(_, node)| node.pod_network != PodNetwork::default());
    let source = nodes.map(|(name, node)| Source {
        network: &node.pod_network,
        object: format!("Node/{name}"),
        field: CLUSTER_CIDR,
        by: format!("the server on {name}"),
    });
    source.collect()
}

/// Returns the blocks of pods: what the cluster gave, and what the nodes that it gave none say, or all if single pods may be anywhere.
fn blocks<'a>(
    objects: &'a Objects,
    own: &str,
    pod_addresses: PodAddresses,
) -> impl Iterator<Item = &'a Prefix> {
    let given = objects.nodes.values().flat_map(|node| &node.pod_prefixes);
    let has_blocks = |name: &str| objects.nodes.get(name).is_some_and(|node| !node.pod_prefixes.is_empty());
    let speaking = objects.tunnels_of_cluster(own);
    let speaking = speaking.filter(move |(name, _)| pod_addresses == PodAddresses::Pods || !has_blocks(name));
    given.chain(speaking.flat_map(|(_, tunnel)| &tunnel.pod_prefixes))
}

/// Tells why a prefix is not the pods' alone, if it is not. One other node's word is not enough: it could open all of it to pods of
/// others that are not known yet. Its address stays outside of what is dropped.
fn refusal(objects: &Objects, own: &str, prefix: &Prefix) -> Option<String> {
    let mut api_servers = objects.api_servers.values().flatten();
    if let Some(addr) = api_servers.find(|addr| prefix.contains(**addr)) {
        return Some(format!("{prefix} holds {addr}, an address of an API server"));
    }
    let holders: BTreeSet<_> = node_addresses(objects).filter(|(_, addr)| prefix.contains(*addr)).collect();
    let (first, addr) = holders.first()?;
    if let Some((_, addr)) = holders.iter().find(|(node, _)| *node == own) {
        return Some(format!("{prefix} holds {addr}, an address of this node"));
    }
    let (second, _) = holders.iter().find(|(node, _)| node != first)?;
    Some(format!("{prefix} holds addresses of the nodes {first}, {addr}, and {second}"))
}

/// Returns the addresses of nodes, by the cluster's word, or by their own where there is no other.
fn node_addresses(objects: &Objects) -> impl Iterator<Item = (&str, IpAddr)> {
    let told = objects.nodes.iter().flat_map(|(name, node)| {
        let addresses = node.addresses.iter();
        addresses.map(|addr| (name.as_str(), *addr))
    });
    let said = objects.tunnels.iter().filter(|_| objects.nodes.is_empty()).flat_map(|(name, tunnel)| {
        let addresses = tunnel.node_addresses.iter();
        addresses.map(|addr| (name.as_str(), *addr))
    });
    told.chain(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::{Node, Tunnel};

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// Nodes `a`, `b` and `c` with blocks of 10.244.0.0/16 and addresses of 192.0.2.0/24, in a cluster that was made with `subnets`.
    fn cluster(subnets: &[&str]) -> Objects {
        let mut objects = Objects::default();
        for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
            let node = Node {
                addresses: vec![IpAddr::from([192, 0, 2, n])],
                pod_prefixes: vec![prefix(&format!("10.244.{n}.0/24"))],
                ..Node::default()
            };
            objects.nodes.insert(name.to_owned(), node.into());
        }
        objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([198, 51, 100, 9])]);
        let prefixes = subnets.iter().map(|text| prefix(text)).collect();
        objects.pod_network = Some(PodNetwork { prefixes, faults: Vec::new() });
        objects
    }

    fn found(objects: &Objects) -> (Vec<String>, bool, Vec<String>) {
        let mut faults = Vec::new();
        let Found { prefixes, is_whole, .. } = Found::of(objects, "a", PodAddresses::Blocks, &mut faults);
        let faults = faults.iter().map(|(object, fault)| format!("{object} {fault}"));
        (prefixes.iter().map(ToString::to_string).collect(), is_whole, faults.collect())
    }

    #[test]
    fn what_is_the_pods_alone_is_found() {
        let subnets = ["10.244.0.0/16", "fd00:244::/48"];
        assert_eq!(found(&cluster(&subnets)), (subnets.map(str::to_owned).into(), true, Vec::new()));
        assert_eq!(found(&Objects::default()), (Vec::new(), false, Vec::new()));
    }

    #[test]
    fn what_holds_nodes_or_api_servers_is_not_used_and_named() {
        let refused = |subnet: &str, change: fn(&mut Objects)| {
            let mut objects = cluster(&[subnet]);
            change(&mut objects);
            let (prefixes, _, faults) = found(&objects);
            assert_eq!(prefixes.is_empty(), !faults.is_empty(), "{prefixes:?}");
            let start = format!("ConfigMap/kubeadm-config networking.podSubnet: {subnet} holds ");
            faults.first().map(|text| text.strip_prefix(&start).unwrap_or(text).to_owned())
        };
        let is_refused = |subnet: &str, words: &str| {
            assert_eq!(refused(subnet, |_| {}).as_deref(), Some(words), "{subnet}");
        };
        is_refused("192.0.2.0/24", "192.0.2.1, an address of this node");
        is_refused("192.0.2.2/31", "addresses of the nodes b, 192.0.2.2, and c");
        is_refused("198.51.100.0/24", "198.51.100.9, an address of an API server");
        // A single node that names an address of the pods' opens nothing.
        let one = |objects: &mut Objects| {
            objects.nodes.get_mut("b").unwrap().addresses = vec![IpAddr::from([10, 244, 9, 9])];
        };
        assert_eq!(refused("10.244.0.0/16", one), None);
        let two = |objects: &mut Objects| {
            for (name, n) in [("b", 8), ("c", 9)] {
                objects.nodes.get_mut(name).unwrap().addresses.push(IpAddr::from([10, 244, 9, n]));
            }
        };
        assert_eq!(
            refused("10.244.0.0/16", two).as_deref(),
            Some("addresses of the nodes b, 10.244.9.8, and c")
        );
        // Where the cluster says nothing of nodes, they themselves do.
        let by_themselves = |objects: &mut Objects| {
            objects.nodes = Default::default();
            let tunnel = Tunnel { node_addresses: vec![[10, 244, 9, 9].into()], ..Tunnel::default() };
            objects.tunnels.insert("a".to_owned(), tunnel.into());
        };
        assert_eq!(
            refused("10.244.0.0/16", by_themselves).as_deref(),
            Some("10.244.9.9, an address of this node")
        );
    }

    #[test]
    fn servers_say_it_together_where_kubeadm_does_not() {
        let mut objects = cluster(&["10.244.0.0/16"]);
        let mut serve = |name: &str, prefixes: &[&str], faults: &[&str]| {
            let prefixes = prefixes.iter().map(|text| prefix(text)).collect();
            let fault = |text: &&str| Fault { field: "node-args".to_owned(), reason: (*text).to_owned() };
            let faults = faults.iter().map(fault).collect();
            objects.nodes.get_mut(name).unwrap().pod_network = PodNetwork { prefixes, faults };
        };
        serve("a", &[], &["no list"]);
        serve("b", &["10.244.0.0/16", "192.0.2.0/24"], &[]);
        serve("c", &["fd00:244::/48", "10.244.0.0/16"], &[]);
        assert_eq!(found(&objects), (vec!["10.244.0.0/16".to_owned()], true, Vec::new()), "kubeadm's word");
        objects.pod_network = None;
        let faults = [
            "Node/a node-args: no list",
            "Node/b --cluster-cidr: 192.0.2.0/24 holds 192.0.2.1, an address of this node",
        ];
        let prefixes = ["10.244.0.0/16", "fd00:244::/48"];
        let both = (prefixes.map(str::to_owned).into(), true, faults.map(str::to_owned).into());
        assert_eq!(found(&objects), both);
        let by = Found::of(&objects, "a", PodAddresses::Blocks, &mut Vec::new()).by;
        assert_eq!(by, "the server on b");
    }

    #[test]
    fn it_is_the_whole_where_no_pods_are_known_outside() {
        let mut objects = cluster(&["10.244.0.0/16"]);
        let is_whole = |objects: &Objects, pod_addresses| {
            Found::of(objects, "a", pod_addresses, &mut Vec::new()).is_whole
        };
        let mut tunnel = Tunnel { pod_prefixes: vec![prefix("10.7.0.9/32")], ..Tunnel::default() };
        objects.tunnels.insert("b".to_owned(), tunnel.clone().into());
        // What a node says that was given blocks counts where single pods may be anywhere.
        assert!(is_whole(&objects, PodAddresses::Blocks));
        assert!(!is_whole(&objects, PodAddresses::Pods));
        tunnel.pod_prefixes = vec![prefix("fd00::/64")];
        objects.tunnels.insert("d".to_owned(), tunnel.into());
        assert!(is_whole(&objects, PodAddresses::Blocks), "there is no such node");
        objects.nodes.insert("d".to_owned(), Node::default().into());
        assert!(!is_whole(&objects, PodAddresses::Blocks));
    }
}
