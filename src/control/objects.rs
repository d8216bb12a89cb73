//! All that is known of the cluster at one moment, as plain data: what [`super::read`] made of its objects.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::api::TunnelConfigSpec;
use crate::config::Prefix;
use crate::crypto::x25519::PublicKey;

/// What several hold and none changes under the others: who writes to it gets a copy of its own.
#[derive(Debug, Default)]
pub struct Shared<T>(Arc<T>);

/// Objects by name, of which a copy costs next to nothing until one of them changes, and little then.
pub type Named<T> = Shared<BTreeMap<String, Shared<T>>>;

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

/// All objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// The `NodeTunnel`s by name.
    pub tunnels: Named<Tunnel>,
    /// The `TunnelConfig`s by name.
    pub configs: BTreeMap<String, Config>,
    /// The cluster's own `Node`s by name, where they are known.
    pub nodes: Named<Node>,
    /// The pods of this node, and perhaps of others, by `NAMESPACE/NAME`; `None` while they are not known.
    pub pods: Option<BTreeMap<String, Pod>>,
    /// The addresses of API servers, by the `EndpointSlice` that names them.
    pub api_servers: BTreeMap<String, Vec<IpAddr>>,
    /// What the tool that made the cluster says of the pods' network, if it does.
    pub pod_network: Option<PodNetwork>,
}

impl Objects {
    /// Tells whether what a `NodeTunnel` of this name says counts for the node `own`. Where the cluster's `Node`s are known, those of
    /// others that are not among them are left over from nodes that are gone, and nothing bounds what they claim.
    pub fn is_of_cluster(&self, name: &str, own: &str) -> bool {
        self.nodes.is_empty() || name == own || self.nodes.contains_key(name)
    }

    /// Returns the `NodeTunnel`s that count for the node `own`, by name.
    pub fn tunnels_of_cluster(&self, own: &str) -> impl Iterator<Item = (&String, &Tunnel)> {
        let tunnels = self.tunnels.iter().map(|(name, tunnel)| (name, &**tunnel));
        tunnels.filter(move |(name, _)| self.is_of_cluster(name, own))
    }

    /// Puts an object in the place of the one of its kind and name.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Tunnel(name, tunnel) => drop(self.tunnels.insert(name, tunnel.into())),
            Object::Config(name, config) => drop(self.configs.insert(name, config)),
            Object::Node(name, node) => drop(self.nodes.insert(name, node.into())),
            Object::Pod(name, pod) => drop(self.pods.get_or_insert_default().insert(name, pod)),
            Object::ApiServers(name, addresses) => drop(self.api_servers.insert(name, addresses)),
            Object::PodNetwork(network) => self.pod_network = Some(network),
        }
    }

    /// Tells whether an object is known as it is.
    pub fn contains(&self, object: &Object) -> bool {
        match object {
            Object::Tunnel(name, tunnel) => self.tunnels.get(name).is_some_and(|known| **known == *tunnel),
            Object::Config(name, config) => self.configs.get(name) == Some(config),
            Object::Node(name, node) => self.nodes.get(name).is_some_and(|known| **known == *node),
            Object::Pod(name, pod) => self.pods.as_ref().is_some_and(|pods| pods.get(name) == Some(pod)),
            Object::ApiServers(name, addresses) => self.api_servers.get(name) == Some(addresses),
            Object::PodNetwork(network) => self.pod_network.as_ref() == Some(network),
        }
    }
}

/// One object with its name.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A `NodeTunnel`.
    Tunnel(String, Tunnel),
    /// A `TunnelConfig`.
    Config(String, Config),
    /// A `Node`.
    Node(String, Node),
    /// A `Pod`.
    Pod(String, Pod),
    /// An `EndpointSlice` of the service `kubernetes`: addresses of API servers.
    ApiServers(String, Vec<IpAddr>),
    /// The `ConfigMap` in which kubeadm keeps how it made the cluster. There is one.
    PodNetwork(PodNetwork),
}

/// What a node says of itself, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tunnel {
    /// When the object was made: RFC 3339 in UTC, so that the order of texts is that of time; empty if it is not said.
    pub created: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The UIDs of the `Node`s that it goes with.
    pub owners: Vec<String>,
    /// The key that peers are to use.
    pub active: Option<PublicKey>,
    /// All keys, whatever they are for: nobody else may use one of them.
    pub keys: Vec<PublicKey>,
    /// Where the node is found, the preferred place first.
    pub endpoints: Vec<SocketAddr>,
    /// The zone of the first place that names one.
    pub zone: Option<String>,
    /// Its blocks of pod addresses.
    pub pod_prefixes: Vec<Prefix>,
    /// Its own addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses of its tunnel interface.
    pub tunnel_addresses: Vec<IpAddr>,
    /// The MTU of that interface in bytes.
    pub mtu: Option<u32>,
    /// Whether its agent found everything in order; `None` if it has not said so far.
    pub is_ready: Option<bool>,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

/// What the cluster wants, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// The fields that were set and could be read.
    pub spec: TunnelConfigSpec,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

/// A node as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// What tells it from another one of the same name.
    pub uid: String,
    /// Its addresses inside the cluster.
    pub addresses: Vec<IpAddr>,
    /// The blocks of pod addresses that the cluster gave it.
    pub pod_prefixes: Vec<Prefix>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// What the server on it says of the pods' network, where k3s or RKE2 made the cluster.
    pub pod_network: PodNetwork,
}

/// A pod, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// The node that it runs on.
    pub node: String,
    /// Its addresses; none if it has the node's, or has ended.
    pub addresses: Vec<IpAddr>,
}

/// What the tool that made the cluster says of the addresses of all pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// The prefixes that could be read.
    pub prefixes: Vec<Prefix>,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

/// A field that is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The field, as `spec.podPrefixes[1]`.
    pub field: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}
