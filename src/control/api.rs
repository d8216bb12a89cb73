//! The custom resources: `NodeTunnel` and `TunnelConfig` of the group `adit.dev`, version `v1alpha1`, both cluster-scoped.
//!
//! These types are what is written, and what the schema is made of. What is read goes through [`super::read`], which forgives: an object
//! that got past the schema costs its bad fields and nothing else.

#![expect(clippy::duplicated_attributes, reason = "every printed column has a type")]
#![expect(unreachable_pub, reason = "the derived schema copies the types into a function")]

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How what one writer writes at a time is kept: as a whole. Otherwise every field of it, and every element of a set or a map, is named once
/// more in `metadata.managedFields`, which every agent reads with every change of every node.
const WHOLE: &str = "atomic";

/// What a node says of itself. One per node, named after it, written by that node's agent alone.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "adit.dev",
    version = "v1alpha1",
    kind = "NodeTunnel",
    plural = "nodetunnels",
    shortname = "nt",
    category = "adit",
    status = "NodeTunnelStatus",
    derive = "PartialEq",
    doc = "What a node says of itself: its keys, where it is found, and the addresses behind it.",
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.keys[?(@.state==\"Active\")].publicKey"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpoints[0].address"),
    printcolumn(name = "Prefixes", type_ = "string", json_path = ".spec.podPrefixes"),
    printcolumn(name = "Peers", type_ = "integer", json_path = ".status.peers.total"),
    printcolumn(name = "Up", type_ = "integer", json_path = ".status.peers.up"),
    printcolumn(name = "Down", type_ = "integer", json_path = ".status.peers.down"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"DataplaneReady\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = WHOLE))]
pub struct NodeTunnelSpec {
    /// The node's public keys. At most one is Active: the one that peers use.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(
        validation = Rule::new("self.filter(key, key.state == 'Active').size() <= 1").message("at most one key is Active")
    )]
    pub keys: Vec<NodeKey>,
    /// Where the node is found, the preferred place first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub endpoints: Vec<Endpoint>,
    /// The blocks of pod addresses that the node owns. The most specific one wins over blocks of other nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "prefixes")]
    pub pod_prefixes: Vec<String>,
    /// The node's own addresses. They are accepted from it always, and routed to it with `hostTraffic: Encrypt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses")]
    pub node_addresses: Vec<String>,
    /// The addresses of its tunnel interface: the source of what the host itself sends to pods of other nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "host_prefixes")]
    pub tunnel_addresses: Vec<String>,
    /// The MTU of its tunnel interface in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
    /// Its key for post-quantum key encapsulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kem: Option<Kem>,
    /// What its version of adit can do, so that different versions get along: `rotation/v1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "capabilities")]
    pub capabilities: Vec<String>,
}

/// A public key of a node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeKey {
    /// The X25519 key in base64, as `wg pubkey` prints it.
    #[schemars(schema_with = "public_key")]
    pub public_key: String,
    /// What it is used for.
    pub state: KeyState,
    /// The moment from which it is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "moment")]
    pub not_before: Option<String>,
}

/// What a key is used for.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Peers talk to this key.
    Active,
    /// It will be Active.
    Next,
    /// It was Active, and is still answered to.
    Retiring,
}

/// A place where a node is found.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The IP address.
    #[schemars(schema_with = "place")]
    pub address: String,
    /// The UDP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The family of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The zone of the place, as in the label topology.kubernetes.io/zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub zone: Option<String>,
}

/// A family of addresses.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    IPv4,
    IPv6,
}

/// A key for post-quantum key encapsulation.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Kem {
    /// The algorithm: `ML-KEM-768`.
    #[schemars(length(max = 32))]
    pub algorithm: String,
    /// The public key in base64.
    #[schemars(length(max = 4096))]
    pub public_key: String,
}

/// What a node's agent found to be true.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = WHOLE))]
pub struct NodeTunnelStatus {
    /// `DataplaneReady`, `KeyPublished`, `PeersInSync`, `StrictEnforced`, `RotationInProgress`, `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// How many peers there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeerCounts>,
    /// The nodes that are not talked to through the tunnel; at most 16 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub not_encrypted: Vec<NotEncrypted>,
}

/// How many peers there are. Those that are neither up nor down are idle: their session has run out, or was never needed.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PeerCounts {
    /// All.
    pub total: u32,
    /// Those with a session.
    pub up: u32,
    /// Those that were sent something and have never answered.
    pub down: u32,
}

/// A node that is not talked to through the tunnel.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NotEncrypted {
    /// The node.
    pub node: String,
    /// Why: one word, as `NoKey`.
    pub reason: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "moment")]
    pub since: Option<String>,
}

/// What the cluster wants. The object `default` is for all nodes; one named `node.NAME`, or with a `nodeSelector`, overrides what it sets.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "adit.dev",
    version = "v1alpha1",
    kind = "TunnelConfig",
    plural = "tunnelconfigs",
    shortname = "tc",
    category = "adit",
    derive = "PartialEq",
    doc = "What the cluster wants: \"default\" for all nodes, \"node.NAME\" or a nodeSelector for some.",
    validation = Rule::new(
        "self.metadata.name == 'default' || self.metadata.name.startsWith('node.') || has(self.spec.nodeSelector)"
    )
    .message("the name is default, or node.NAME, or there is a nodeSelector"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Host traffic", type_ = "string", json_path = ".spec.hostTraffic"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TunnelConfigSpec {
    /// The labels of the NodeTunnels that this object is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Off: nothing enters the tunnel. Permissive: what can be encrypted is. Strict: what cannot be encrypted is dropped. Off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// When Strict takes effect on a node that was Off or Permissive. WhenAllReady by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_gate: Option<StrictGate>,
    /// Whose data plane is used. Auto by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// The prefixes of all pods; the one word Auto stands for those that kubeadm's configuration, or a server of k3s or RKE2, and nodes name. Auto by default.
    #[serde(default, rename = "clusterCIDRs", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cluster_cidrs")]
    pub cluster_cidrs: Option<Vec<String>>,
    /// What a node says of its pods' addresses. Blocks by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_addresses: Option<PodAddresses>,
    /// The UDP port of the data plane. 51820 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<u16>,
    /// Others' nftables chains in which that port is opened, by a rule at their head: family, table and chain, as inet filter input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "chains")]
    pub open_port_in: Option<Vec<String>>,
    /// The tunnel's interface. adit0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "interface")]
    pub interface_name: Option<String>,
    /// The interface's MTU in bytes; or Auto, from the device beneath; or Probe. Auto by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "mtu")]
    pub mtu: Option<IntOrString>,
    /// The time between keepalives to a silent peer, as 25s; 0s for none. 0s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "keepalive")]
    pub persistent_keepalive: Option<String>,
    /// What is done with traffic to node addresses. Plain by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_traffic: Option<HostTraffic>,
    /// Destinations that never need the tunnel: the word apiserver, or prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "exempt")]
    pub exempt: Option<Vec<String>>,
    /// What is done with traffic between pods of one node, which never leaves it. Bypass by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
    /// Which nodes are talked to through the tunnel. All by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// How keys are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_rotation: Option<KeyRotation>,
    /// Whether sessions are protected against quantum computers. Off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_quantum: Option<PostQuantum>,
    /// What is done with a packet for a pod prefix that no node has named yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_peer: Option<UnknownPeer>,
    /// What the CNI plugin does with a new pod while the agent does not answer. Fail by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_agent_unavailable: Option<OnAgentUnavailable>,
    /// The numbers that the kernel's routing needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// What is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

/// A set of words of the API.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $word),+ }
    };
}

words! {
    /// How much is encrypted.
    Mode {
        /// Nothing enters the tunnel; what comes out of it is accepted.
        #[default]
        Off,
        /// What can be encrypted is.
        Permissive,
        /// What cannot be encrypted is dropped.
        Strict,
    }
}

impl Mode {
    /// Returns the mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Off, Self::Permissive, Self::Strict].into_iter().find(|mode| mode.name() == name)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Permissive => "Permissive",
            Self::Strict => "Strict",
        }
    }
}

words! {
    /// When Strict takes effect.
    StrictGate {
        /// Once every other node has a key and says that it is ready. Until then the node is Permissive.
        #[default]
        WhenAllReady,
        /// At once.
        Immediate,
    }
}

words! {
    /// Whose data plane is used.
    Backend {
        /// The kernel's where the interface is one of its, else adit's, or any other that answers on a configuration socket. Where for ten
        /// seconds after the agent's start there is neither, and the kernel has WireGuard, its interface is made.
        #[default]
        Auto,
        /// adit's, or any other that answers on a configuration socket.
        Userspace,
        /// The kernel's; the interface is made if it is not there.
        Kernel,
    }
}

words! {
    /// What a node says of its pods' addresses.
    PodAddresses {
        /// The blocks that the cluster gave it (podCIDRs).
        #[default]
        Blocks,
        /// And each address of its pods outside of them: for address plans that do not follow nodes.
        Pods,
    }
}

words! {
    /// What is done with traffic to node addresses.
    HostTraffic {
        /// It stays outside the tunnel.
        #[default]
        Plain,
        /// From pods, it goes through the tunnel.
        PodToNode,
        /// All of it goes through the tunnel, but for what is exempt.
        Encrypt,
    }
}

words! {
    /// What is done with traffic between pods of one node.
    SameNode {
        /// It stays outside the tunnel.
        #[default]
        Bypass,
    }
}

words! {
    /// Which nodes are talked to through the tunnel.
    Scope {
        /// All.
        #[default]
        All,
        /// Those on another subnet.
        CrossSubnet,
        /// Those in another zone.
        CrossZone,
    }
}

words! {
    /// Whether sessions are protected against quantum computers.
    PostQuantum {
        /// They are not.
        #[default]
        Off,
        /// They are where both ends can.
        Prefer,
        /// There are no others.
        Require,
    }
}

words! {
    /// What is done with a packet to an unknown node.
    UnknownPeerAction {
        /// It waits a while.
        #[default]
        Queue,
        /// It is dropped.
        Drop,
        /// It goes in clear, if the mode is Permissive.
        Plain,
    }
}

words! {
    /// What the CNI plugin does while the agent does not answer.
    OnAgentUnavailable {
        /// It refuses the pod, which is tried again.
        #[default]
        Fail,
        /// It lets the pod through.
        Ignore,
    }
}

/// How keys are replaced.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeyRotation {
    /// The age at which a key is replaced, as 720h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub interval: Option<String>,
    /// How long the next key is known before it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub overlap: Option<String>,
    /// How long the last key is answered to at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub max_retiring: Option<String>,
}

/// What is done with a packet for a pod prefix that no node has named yet.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UnknownPeer {
    /// What is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<UnknownPeerAction>,
    /// How many packets wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_packets: Option<u32>,
    /// How long they wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration")]
    pub max_age: Option<String>,
}

/// The numbers that the kernel's routing needs; Auto leaves the choice to adit.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// The priority of the rule. 99 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32765))]
    pub rule_priority: Option<u32>,
    /// The number of the routing table. The next one is used as well, with `hostTraffic: PodToNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "table")]
    pub table: Option<IntOrString>,
    /// The mark of the data plane's own datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "fwmark")]
    pub fwmark: Option<IntOrString>,
}

/// What is measured.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Where the metrics are served, as :9586.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "listener")]
    pub address: Option<String>,
    /// Whether every peer has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_peer: Option<bool>,
    /// For how many peers at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_peers: Option<u32>,
}

/// Returns the definitions of both resources as YAML, as `kubectl apply -f` takes them.
///
/// # Panics
/// Never: the definitions are data that YAML can express.
pub fn definitions() -> String {
    [NodeTunnel::crd(), TunnelConfig::crd()].iter().map(definition).collect()
}

fn definition(definition: &CustomResourceDefinition) -> String {
    let text = serde_saphyr::to_string(definition).expect("a definition has no values that YAML lacks");
    format!("---\n{text}")
}

// The pieces of the schema. Every string and list has a bound: the API server refuses rules whose cost it cannot bound. What an agent would not
// obey is refused, as `super::read` and `super::settings` judge it.

const ADDRESS: &str = "an IPv4 or IPv6 address is needed";
const UNUSUAL: &str = "packets between nodes do not have such addresses";
const WIDE: &str = "no block wider than /8 (IPv6: /16)";
const NARROW: &str = "cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 8 : 16)";

fn public_key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 44,
        "x-kubernetes-validations": [
            // 43 digits and a pad are 258 bits: the last digit has two bits too many, which are zero.
            {
                "rule": "self.matches('^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$')",
                "message": "a public key is 32 bytes in base64, as `wg pubkey` prints it",
            },
            {
                "rule": "self != 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='",
                "message": "the public key is all zero",
            },
        ],
    })
}

fn moment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "maxLength": 64 })
}

fn place(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": [
            { "rule": "isIP(self)", "message": ADDRESS },
            {
                "rule": "!isIP(self) || ip(self).isGlobalUnicast() || ip(self).isLoopback() || ip(self).isLinkLocalUnicast()",
                "message": "nobody can be reached there",
            },
        ],
    })
}

fn addresses(_: &mut SchemaGenerator) -> Schema {
    let address = json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": [
            { "rule": "isIP(self)", "message": ADDRESS },
            { "rule": "!isIP(self) || ip(self).isGlobalUnicast()", "message": UNUSUAL },
        ],
    });
    list_of(&address, 32)
}

fn prefixes(_: &mut SchemaGenerator) -> Schema {
    let prefix = json_schema!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [
            { "rule": "isCIDR(self)", "message": "a prefix is ADDRESS/LENGTH, as 10.244.1.0/24" },
            {
                "rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                "message": "the prefix has host bits that are not zero",
            },
            { "rule": format!("!isCIDR(self) || {NARROW}"), "message": format!("a node owns {WIDE}") },
            { "rule": "!isCIDR(self) || cidr(self).ip().isGlobalUnicast()", "message": UNUSUAL },
        ],
    });
    list_of(&prefix, 512)
}

fn host_prefixes(_: &mut SchemaGenerator) -> Schema {
    let prefix = json_schema!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [
            {
                "rule": "isIP(self) || (isCIDR(self) && cidr(self).prefixLength() == (cidr(self).ip().family() == 4 ? 32 : 128))",
                "message": "a single address is needed, as 10.244.1.0/32",
            },
            {
                "rule": "isIP(self) ? ip(self).isGlobalUnicast() : !isCIDR(self) || cidr(self).ip().isGlobalUnicast()",
                "message": UNUSUAL,
            },
        ],
    });
    list_of(&prefix, 8)
}

fn cluster_cidrs(_: &mut SchemaGenerator) -> Schema {
    let prefix = json_schema!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [
            { "rule": "self == 'Auto' || isCIDR(self)", "message": "the word Auto or a prefix is needed, as 10.244.0.0/16" },
            { "rule": format!("!isCIDR(self) || {NARROW}"), "message": format!("a cluster's pods have {WIDE}") },
        ],
    });
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
        "items": prefix,
        "x-kubernetes-validations": [{ "rule": "!('Auto' in self) || self.size() == 1", "message": "Auto stands alone" }],
    })
}

fn chains(_: &mut SchemaGenerator) -> Schema {
    let chain = json_schema!({
        "type": "string",
        "maxLength": 128,
        "pattern": "^(inet|ip|ip6) [^ ]+ [^ ]+$",
    });
    set_of(&chain, 8)
}

fn exempt(_: &mut SchemaGenerator) -> Schema {
    let destination = json_schema!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [
            { "rule": "self == 'apiserver' || isCIDR(self)", "message": "the word apiserver or a prefix is needed" },
        ],
    });
    set_of(&destination, 64)
}

fn capabilities(_: &mut SchemaGenerator) -> Schema {
    list_of(&json_schema!({ "type": "string", "maxLength": 32, "pattern": "^[a-z][a-z0-9-]*/v[0-9]+$" }), 32)
}

fn set_of(items: &Schema, most: u32) -> Schema {
    json_schema!({ "type": "array", "maxItems": most, "x-kubernetes-list-type": "set", "items": items })
}

fn list_of(items: &Schema, most: u32) -> Schema {
    json_schema!({ "type": "array", "maxItems": most, "x-kubernetes-list-type": WHOLE, "items": items })
}

fn conditions(generator: &mut SchemaGenerator) -> Schema {
    list_of(&generator.subschema_for::<Condition>(), 16)
}

fn duration(_: &mut SchemaGenerator) -> Schema {
    duration_up_to("87600h", "h|m|s|ms")
}

fn keepalive(_: &mut SchemaGenerator) -> Schema {
    duration_up_to("65535s", "h|m|s")
}

fn duration_up_to(most: &str, units: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 32,
        "pattern": format!("^([0-9]+({units}))+$"),
        "x-kubernetes-validations": [{
            "rule": format!("duration(self) <= duration('{most}')"),
            "message": format!("at most {most}"),
        }],
    })
}

fn interface(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 15,
        "pattern": "^[A-Za-z0-9_.-]+$",
        "x-kubernetes-validations": [{
            "rule": "!(self in ['.', '..'])",
            "message": "no interface can have this name",
        }],
    })
}

fn listener(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^(|[0-9.]+|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}$') && int(self.substring(self.lastIndexOf(':') + 1)) <= 65535 \
                && (self.startsWith(':') || isIP(self.substring(0, self.lastIndexOf(':')).replace('[', '').replace(']', '')))",
            "message": "ADDRESS:PORT or :PORT is needed, as 127.0.0.1:9586",
        }],
    })
}

fn mtu(_: &mut SchemaGenerator) -> Schema {
    number_or(&["Auto", "Probe"], 576, 65535)
}

fn table(_: &mut SchemaGenerator) -> Schema {
    // 253 to 255 are the kernel's default, main and local (rtnetlink.h).
    number_or(&["Auto"], 256, i32::MAX)
}

fn fwmark(_: &mut SchemaGenerator) -> Schema {
    number_or(&["Auto"], 1, i32::MAX)
}

fn number_or(words: &[&str], least: i32, most: i32) -> Schema {
    let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "x-kubernetes-validations": [{
            "rule": format!("type(self) == int ? int(self) >= {least} && int(self) <= {most} : string(self) in [{list}]"),
            "message": format!("{}, or a number from {least} to {most}", words.join(" or ")),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_definitions_are_those_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cni/manifests/crds.yaml");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == definitions(),
            "{path} is stale: cargo run -- definitions > cni/manifests/crds.yaml"
        );
    }
}
