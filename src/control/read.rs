//! Objects as they come, in JSON's terms → what can be read of them.
//!
//! Whoever wrote an object may be of another version, mistaken or malicious. A field that cannot be read costs itself, with a reason; an
//! element of a list costs that element. Nothing here fails as a whole but for an object without kind or name. And back again, for the
//! snapshot: what could not be read is left out there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::api::{KeyState, Mode, PostQuantum, TunnelConfigSpec};
use super::objects::{Config, Fault, Node, Object, Objects, Pod, PodNetwork, Tunnel};
use super::server_args;
use crate::config::Prefix;
use crate::crypto::x25519::PublicKey;

/// The group of our resources.
pub const GROUP: &str = "adit.dev";

/// Group and version of our resources.
const VERSION: &str = "adit.dev/v1alpha1";

/// The label that says in which zone a node is.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// The label that says of which service an `EndpointSlice` is.
pub const SERVICE: &str = "kubernetes.io/service-name";

/// The service by which pods reach the API server, in the namespace `default`.
pub const API_SERVICE: &str = "kubernetes";

/// The namespace and the name of the `ConfigMap` in which kubeadm keeps how it made the cluster.
pub const KUBEADM: (&str, &str) = ("kube-system", "kubeadm-config");

/// The key of its value that names the pods' network.
const KUBEADM_KEY: &str = "ClusterConfiguration";

/// The most elements of a list that are looked at: those of the schema's longest.
const LIST_MAX: usize = 512;

/// Why a text or value is no object that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoObject {
    /// It has no `kind`, no `apiVersion` or no `metadata.name`: the field.
    Without(&'static str),
    /// Its kind is none of ours.
    OfOtherKind(String),
}

impl fmt::Display for NoObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Without(field) => write!(f, "the object has no {field}"),
            Self::OfOtherKind(kind) => write!(f, "objects of kind {kind} are not for adit"),
        }
    }
}

impl std::error::Error for NoObject {}

/// Reads objects. What is none is left out.
pub fn objects(values: &[Value]) -> Objects {
    let mut objects = Objects::default();
    values.iter().filter_map(|value| object(value).ok()).for_each(|object| objects.insert(object));
    objects
}

/// Reads an object.
///
/// # Errors
/// If it is not known whose object it is.
pub fn object(value: &Value) -> Result<Object, NoObject> {
    let word = |field| value.get(field).and_then(Value::as_str);
    let kind = word("kind").ok_or(NoObject::Without("kind"))?;
    let version = word("apiVersion").ok_or(NoObject::Without("apiVersion"))?;
    let name = value.pointer("/metadata/name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or(NoObject::Without("metadata.name"))?.to_owned();
    // Another version of the group may come with fields that we do not know, and those that we know stay.
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        (GROUP, "NodeTunnel") => Ok(Object::Tunnel(name, tunnel(value))),
        (GROUP, "TunnelConfig") => Ok(Object::Config(name, config(value))),
        ("", "Node") => Ok(Object::Node(name, node(value))),
        ("", "Pod") => {
            let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
            Ok(Object::Pod(pod_name(namespace, &name), pod(value)))
        }
        ("discovery.k8s.io", "EndpointSlice") if is_of_api_server(value) => {
            Ok(Object::ApiServers(name, endpoint_addresses(value)))
        }
        ("", "ConfigMap") if is_of_kubeadm(value, &name) => Ok(Object::PodNetwork(pod_network(value))),
        _ => Err(NoObject::OfOtherKind(format!("{version} {kind}"))),
    }
}

/// Returns what a pod is called among all of them; one without a namespace is in `default`.
pub(super) fn pod_name(namespace: Option<&str>, name: &str) -> String {
    format!("{}/{name}", namespace.unwrap_or("default"))
}

/// Returns objects that are read as these, but for the faults, but for what agents found, and but
/// for pods: what matters of them is in the node's own object.
pub fn values(objects: &Objects) -> impl Iterator<Item = Value> {
    let tunnels = objects.tunnels.iter().map(|(name, tunnel)| tunnel_value(name, tunnel));
    let configs = objects.configs.iter().map(|(name, config)| {
        json!({
            "apiVersion": VERSION, "kind": "TunnelConfig", "metadata": { "name": name },
            "spec": serde_json::to_value(&config.spec).unwrap_or_default(),
        })
    });
    let nodes = objects.nodes.iter().map(|(name, node)| {
        let addresses = node.addresses.iter();
        let addresses = addresses.map(|addr| json!({ "type": "InternalIP", "address": addr.to_string() }));
        let [mut labels, annotations] = server_args::metadata(&node.pod_network.prefixes);
        labels.extend(node.zone.iter().map(|zone| (ZONE, zone.clone())));
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "uid": node.uid, "labels": labels, "annotations": annotations },
            "spec": { "podCIDRs": texts(&node.pod_prefixes) },
            "status": { "addresses": addresses.collect::<Vec<_>>() },
        })
    });
    let api_servers = objects.api_servers.iter().map(|(name, addresses)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": "default", "labels": { SERVICE: API_SERVICE } },
            "endpoints": [{ "addresses": texts(addresses) }],
        })
    });
    let pod_network = objects.pod_network.iter().map(|network| {
        let configuration = json!({ "networking": { "podSubnet": texts(&network.prefixes).join(",") } });
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": KUBEADM.1, "namespace": KUBEADM.0 },
            // JSON is YAML.
            "data": { KUBEADM_KEY: configuration.to_string() },
        })
    });
    tunnels.chain(configs).chain(nodes).chain(api_servers).chain(pod_network)
}

fn tunnel_value(name: &str, tunnel: &Tunnel) -> Value {
    let key = |key: &PublicKey| {
        let state = if tunnel.active == Some(*key) { KeyState::Active } else { KeyState::Next };
        json!({ "publicKey": BASE64.encode(key.as_bytes()), "state": state })
    };
    let endpoints = tunnel.endpoints.iter().map(|endpoint| {
        json!({ "address": endpoint.ip().to_string(), "port": endpoint.port(), "zone": tunnel.zone })
    });
    // As little as is read of it.
    let status = tunnel.is_ready.map(|is_ready| {
        let status = if is_ready { "True" } else { "False" };
        let conditions =
            ["DataplaneReady", "PeersInSync"].map(|kind| json!({ "type": kind, "status": status }));
        json!({ "conditions": conditions })
    });
    let owner = |uid: &String| json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid });
    json!({
        "apiVersion": VERSION,
        "kind": "NodeTunnel",
        "status": status,
        "metadata": {
            "name": name,
            "creationTimestamp": tunnel.created,
            "labels": tunnel.labels,
            "ownerReferences": tunnel.owners.iter().map(owner).collect::<Vec<_>>(),
        },
        "spec": {
            "keys": tunnel.keys.iter().map(key).collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
            "podPrefixes": texts(&tunnel.pod_prefixes),
            "nodeAddresses": texts(&tunnel.node_addresses),
            "tunnelAddresses": texts(&tunnel.tunnel_addresses),
            "mtu": tunnel.mtu,
        },
    })
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn tunnel(value: &Value) -> Tunnel {
    let mut reader = Reader::new(value);
    let keys: Vec<(PublicKey, KeyState)> = reader.list("keys", |entry, key| {
        let state = entry.field(key, "state")?;
        let text: String = entry.field(key, "publicKey")?;
        Ok((public_key(&text)?, state))
    });
    let actives: Vec<_> = keys.iter().filter(|(_, state)| *state == KeyState::Active).collect();
    if actives.len() > 1 {
        reader.fault("spec.keys", "several keys are Active; the first is used");
    }
    let places: Vec<(SocketAddr, Option<String>)> = reader.list("endpoints", |entry, place| {
        let addr = parse::<IpAddr>(&entry.field::<String>(place, "address")?, "an IP address")?;
        let port: u16 = entry.field(place, "port")?;
        if addr.is_unspecified() || addr.is_multicast() || port == 0 {
            return Err("nobody can be reached there".to_owned());
        }
        let zone = place.get("zone").and_then(Value::as_str).map(str::to_owned);
        Ok((SocketAddr::new(addr.to_canonical(), port), zone))
    });
    let created = value.pointer("/metadata/creationTimestamp").and_then(Value::as_str).unwrap_or_default();
    Tunnel {
        created: created.to_owned(),
        labels: labels(value),
        owners: owners(value),
        active: actives.first().map(|(key, _)| *key),
        keys: keys.iter().map(|(key, _)| *key).collect(),
        zone: places.iter().find_map(|(_, zone)| zone.clone()),
        endpoints: places.iter().map(|(addr, _)| *addr).collect(),
        pod_prefixes: reader.list("podPrefixes", |_, text| block(text)),
        node_addresses: reader.list("nodeAddresses", |_, text| own_address(text)),
        tunnel_addresses: reader.list("tunnelAddresses", |_, text| own_address(text)),
        mtu: reader.optional("mtu"),
        is_ready: is_ready(value),
        faults: reader.faults,
    }
}

/// Returns the UIDs of the `Node`s that an object goes with.
fn owners(value: &Value) -> Vec<String> {
    let owners = value.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let nodes = owners.take(LIST_MAX).filter(|owner| owner["apiVersion"] == "v1" && owner["kind"] == "Node");
    nodes.filter_map(|owner| owner["uid"].as_str().map(str::to_owned)).collect()
}

/// Tells from its status whether a node does what it should.
fn is_ready(value: &Value) -> Option<bool> {
    let conditions = value.pointer("/status/conditions")?.as_array()?;
    let holds = |kind: &str| conditions.iter().any(|it| it["type"] == kind && it["status"] == "True");
    Some(holds("DataplaneReady") && holds("PeersInSync") && !holds("Degraded"))
}

fn config(value: &Value) -> Config {
    let mut reader = Reader::new(value);
    let spec = TunnelConfigSpec {
        node_selector: reader.optional("nodeSelector"),
        mode: reader.mode(),
        strict_gate: reader.optional("strictGate"),
        backend: reader.optional("backend"),
        cluster_cidrs: reader.optional("clusterCIDRs"),
        pod_addresses: reader.optional("podAddresses"),
        listen_port: reader.optional("listenPort"),
        open_port_in: reader.optional("openPortIn"),
        interface_name: reader.optional("interfaceName"),
        mtu: reader.optional("mtu"),
        persistent_keepalive: reader.optional("persistentKeepalive"),
        host_traffic: reader.optional("hostTraffic"),
        exempt: reader.optional("exempt"),
        same_node: reader.optional("sameNode"),
        scope: reader.optional("scope"),
        key_rotation: reader.optional("keyRotation"),
        post_quantum: match reader.get("postQuantum") {
            Some(Value::Bool(false)) => Some(PostQuantum::Off),
            Some(_) | None => reader.optional("postQuantum"),
        },
        unknown_peer: reader.optional("unknownPeer"),
        on_agent_unavailable: reader.optional("onAgentUnavailable"),
        routing: reader.optional("routing"),
        metrics: reader.optional("metrics"),
    };
    Config { spec, faults: reader.faults }
}

fn node(value: &Value) -> Node {
    let mut reader = Reader::new(value);
    let addresses = value.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
    let inside = addresses.filter(|entry| entry["type"] == "InternalIP");
    let mut node = Node {
        uid: value.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned(),
        addresses: inside.filter_map(|entry| own_address(&entry["address"]).ok()).collect(),
        pod_prefixes: reader.list("podCIDRs", |_, text| block(text)),
        ..Node::default()
    };
    describe(&mut node, &labels(value), &texts_of(value, "annotations"));
    node
}

/// Takes over what labels and annotations say of a node.
pub(super) fn describe(
    node: &mut Node,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) {
    node.zone = labels.get(ZONE).filter(|zone| !zone.is_empty()).cloned();
    node.pod_network = server_args::pod_network(labels, annotations, &node.pod_prefixes);
}

fn pod(value: &Value) -> Pod {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
    // Whose addresses are the node's, or another pod's by now.
    let has_none = value.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
        || matches!(text("/status/phase"), "Succeeded" | "Failed");
    let addresses = value.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let addresses = addresses.filter(|_| !has_none).filter_map(|entry| own_address(&entry["ip"]).ok());
    Pod { node: text("/spec/nodeName").to_owned(), addresses: addresses.collect() }
}

/// Tells whether an `EndpointSlice` is one of the service by which pods reach the API server.
fn is_of_api_server(value: &Value) -> bool {
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
    namespace == Some("default") && labels(value).get(SERVICE).is_some_and(|service| service == API_SERVICE)
}

fn endpoint_addresses(value: &Value) -> Vec<IpAddr> {
    let endpoints = value["endpoints"].as_array().into_iter().flatten().take(LIST_MAX);
    let addresses = endpoints.filter_map(|endpoint| endpoint["addresses"].as_array()).flatten();
    addresses.filter_map(|addr| own_address(addr).ok()).collect()
}

fn is_of_kubeadm(value: &Value, name: &str) -> bool {
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
    (namespace, name) == (Some(KUBEADM.0), KUBEADM.1)
}

/// Reads `networking.podSubnet` of kubeadm's `ClusterConfiguration`: one prefix, or one of each family with a comma between them.
fn pod_network(value: &Value) -> PodNetwork {
    const FIELD: &str = "networking.podSubnet";
    let Some(text) = value.pointer("/data").and_then(|data| data.get(KUBEADM_KEY)).and_then(Value::as_str)
    else {
        return PodNetwork::default();
    };
    let mut network = PodNetwork::default();
    let mut fault = |field: String, reason: String| network.faults.push(Fault { field, reason });
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let configuration: Value = match serde_saphyr::from_str_with_options(text, options) {
        Ok(configuration) => configuration,
        Err(error) => {
            fault(KUBEADM_KEY.to_owned(), error.to_string());
            return network;
        }
    };
    let subnets = match configuration.pointer("/networking/podSubnet") {
        // Who gave kubeadm no network has none there.
        None | Some(Value::Null) => return network,
        Some(Value::String(text)) if text.is_empty() => return network,
        Some(Value::String(text)) => text,
        Some(_) => {
            fault(FIELD.to_owned(), "a text is needed".to_owned());
            return network;
        }
    };
    for (at, subnet) in subnets.split(',').enumerate().take(LIST_MAX) {
        match wide_block(subnet.trim(), "a cluster's pods have") {
            Ok(prefix) => network.prefixes.push(prefix),
            Err(reason) => fault(format!("{FIELD}[{at}]"), reason),
        }
    }
    network
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    texts_of(value, "labels")
}

/// Returns the labels or the annotations; those whose values are no text are left out, as there are no such.
fn texts_of(value: &Value, field: &str) -> BTreeMap<String, String> {
    let all = value.pointer("/metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_object);
    let texts = all.into_iter().flatten();
    texts.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// An object that is being read.
struct Reader<'a> {
    spec: Option<&'a Map<String, Value>>,
    faults: Vec<Fault>,
}

/// An element of a list that is being read.
struct Entry;

impl Entry {
    fn field<T: DeserializeOwned>(&self, element: &Value, name: &str) -> Result<T, String> {
        let value = element.get(name).ok_or_else(|| format!("{name} is missing"))?;
        T::deserialize(value).map_err(|error| format!("{name}: {error}"))
    }
}

impl<'a> Reader<'a> {
    fn new(value: &'a Value) -> Self {
        let spec = value.get("spec");
        let mut reader = Self { spec: spec.and_then(Value::as_object), faults: Vec::new() };
        if spec.is_some() && reader.spec.is_none() {
            reader.fault("spec", "it is no object");
        }
        reader
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.spec.and_then(|spec| spec.get(name)).filter(|value| !value.is_null())
    }

    fn fault(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.faults.push(Fault { field: field.into(), reason: reason.into() });
    }

    /// Returns the elements of a list that can be read.
    fn list<T>(&mut self, name: &str, read: impl Fn(&Entry, &Value) -> Result<T, String>) -> Vec<T> {
        let elements = match self.get(name) {
            Some(Value::Array(elements)) => elements,
            None => return Vec::new(),
            Some(_) => {
                self.fault(format!("spec.{name}"), "it is no list");
                return Vec::new();
            }
        };
        if elements.len() > LIST_MAX {
            self.fault(format!("spec.{name}"), format!("what comes after the first {LIST_MAX} is ignored"));
        }
        let mut taken = Vec::new();
        for (at, element) in elements.iter().take(LIST_MAX).enumerate() {
            match read(&Entry, element) {
                Ok(value) => taken.push(value),
                Err(reason) => self.fault(format!("spec.{name}[{at}]"), reason),
            }
        }
        taken
    }

    /// Returns a field that may be absent, if it can be read.
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self.get(name)?;
        match T::deserialize(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(format!("spec.{name}"), error.to_string());
                None
            }
        }
    }

    /// Returns the mode. What cannot be read is taken for Strict: a slip of the pen is not to switch encryption off.
    fn mode(&mut self) -> Option<Mode> {
        // YAML 1.1 takes a bare `Off` for a boolean.
        if self.get("mode") == Some(&Value::Bool(false)) {
            return Some(Mode::Off);
        }
        let faults = self.faults.len();
        let mode = self.optional("mode");
        if self.faults.len() > faults { Some(Mode::Strict) } else { mode }
    }
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    const RULE: &str = "publicKey: a key is 32 bytes in base64";
    let bytes = BASE64.decode(text).map_err(|_| RULE)?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| RULE)?;
    if bytes == [0; 32] {
        return Err("publicKey: it is all zero".to_owned());
    }
    Ok(PublicKey::new(bytes))
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    // The schema's longest is an IPv6 prefix.
    text.parse().ok().filter(|_| text.len() <= 43 + 2).ok_or_else(|| format!("{what} is needed"))
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "a text is needed".to_owned())
}

/// Reads a block of addresses that a node may own.
fn block(value: &Value) -> Result<Prefix, String> {
    wide_block(text(value)?, "a node owns")
}

/// Reads a block of addresses. Who owns half of the internet has made a mistake.
pub(super) fn wide_block(text: &str, who: &str) -> Result<Prefix, String> {
    let prefix: Prefix = parse(text, "a prefix (ADDRESS/LENGTH)")?;
    let least = if prefix.addr().is_ipv4() { 8 } else { 16 };
    if prefix.len() < least {
        return Err(format!("{who} no block wider than /{least}"));
    }
    usable(prefix.addr()).map(|_| prefix)
}

/// Reads a single address, which may be written as a prefix.
fn own_address(value: &Value) -> Result<IpAddr, String> {
    let text = text(value)?;
    let addr = match text.parse::<Prefix>() {
        Ok(prefix) if prefix == Prefix::host(prefix.addr()) => prefix.addr(),
        Ok(_) => return Err("a single address is needed".to_owned()),
        Err(_) => parse(text, "an IP address")?,
    };
    usable(addr.to_canonical())
}

/// Lets through an address that packets between nodes may have.
fn usable(addr: IpAddr) -> Result<IpAddr, String> {
    let is_link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    };
    if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || is_link_local {
        return Err("packets between nodes do not have such addresses".to_owned());
    }
    Ok(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> String {
        BASE64.encode([number; 32])
    }

    fn read(spec: Value) -> Tunnel {
        let value = json!({
            "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel", "metadata": { "name": "a" }, "spec": spec,
        });
        let Ok(Object::Tunnel(_, tunnel)) = object(&value) else { panic!("no tunnel") };
        tunnel
    }

    fn config_of(spec: Value) -> Config {
        let value = json!({
            "apiVersion": "adit.dev/v1alpha1", "kind": "TunnelConfig", "metadata": { "name": "default" }, "spec": spec,
        });
        let Ok(Object::Config(_, config)) = object(&value) else { panic!("no config") };
        config
    }

    fn faults(faults: &[Fault]) -> Vec<&str> {
        faults.iter().map(|fault| fault.field.as_str()).collect()
    }

    #[test]
    fn a_bad_field_costs_only_itself() {
        let tunnel = read(json!({
            "keys": [
                { "publicKey": "short", "state": "Active" },
                { "publicKey": key(1), "state": "Sometimes" },
                { "publicKey": key(2), "state": "Active" },
                { "publicKey": key(0), "state": "Next" },
                7,
            ],
            "endpoints": [
                { "address": "192.0.2.1", "port": 70000 },
                { "address": "nowhere", "port": 1 },
                { "address": "0.0.0.0", "port": 1 },
                { "address": "::ffff:192.0.2.1", "port": 51820, "zone": "z" },
            ],
            "podPrefixes": ["10.244.1.7/24", "0.0.0.0/0", "10.0.0.0/7", "fe80::/64", "224.0.0.0/8", "fd00:1::/64", null],
            "nodeAddresses": "192.0.2.1",
            "tunnelAddresses": ["10.244.1.0/32", "10.244.1.0/24", "127.0.0.1", "fd00:1::"],
            "mtu": "wide",
            "unheardOf": { "of": [] },
        }));
        assert_eq!(tunnel.active, Some(PublicKey::new([2; 32])));
        assert_eq!(tunnel.keys.len(), 1);
        assert_eq!(tunnel.endpoints, ["192.0.2.1:51820".parse().unwrap()]);
        assert_eq!(tunnel.zone.as_deref(), Some("z"));
        assert_eq!(tunnel.pod_prefixes, ["10.244.1.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap()));
        assert_eq!(
            tunnel.tunnel_addresses,
            ["10.244.1.0", "fd00:1::"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        let expected = "keys[0] keys[1] keys[3] keys[4] endpoints[0] endpoints[1] endpoints[2] podPrefixes[1] podPrefixes[2] \
            podPrefixes[3] podPrefixes[4] podPrefixes[6] nodeAddresses tunnelAddresses[1] tunnelAddresses[2] mtu";
        let expected: Vec<_> = expected.split_whitespace().map(|field| format!("spec.{field}")).collect();
        assert_eq!(faults(&tunnel.faults), expected);
    }

    #[test]
    fn whatever_stands_in_a_field_the_others_are_read() {
        let whole = json!({
            "keys": [{ "publicKey": key(2), "state": "Active" }],
            "endpoints": [{ "address": "192.0.2.1", "port": 1 }],
            "podPrefixes": ["10.244.1.0/24"], "nodeAddresses": ["192.0.2.1"], "tunnelAddresses": ["10.244.1.0"],
        });
        for field in whole.as_object().unwrap().keys() {
            for bad in [json!(null), json!(7), json!("x"), json!({}), json!([[]]), json!([{}]), json!([null])]
            {
                let mut spec = whole.clone();
                spec[field] = bad;
                let tunnel = read(spec);
                let there = [
                    ("keys", tunnel.active.is_some()),
                    ("endpoints", !tunnel.endpoints.is_empty()),
                    ("podPrefixes", !tunnel.pod_prefixes.is_empty()),
                    ("nodeAddresses", !tunnel.node_addresses.is_empty()),
                    ("tunnelAddresses", !tunnel.tunnel_addresses.is_empty()),
                ];
                assert!(
                    there.iter().all(|(name, is_there)| *is_there == (name != field)),
                    "{field}: {tunnel:?}"
                );
            }
        }
        assert_eq!(read(json!("x")).faults.len(), 1);
    }

    #[test]
    fn a_mode_that_cannot_be_read_is_strict() {
        assert_eq!(config_of(json!({ "mode": "Permissive" })).spec.mode, Some(Mode::Permissive));
        assert_eq!(config_of(json!({ "mode": false })).spec.mode, Some(Mode::Off));
        assert_eq!(config_of(json!({})).spec.mode, None);
        for bad in [json!("strict"), json!("off"), json!(7), json!(true), json!([])] {
            let config = config_of(json!({ "mode": bad, "listenPort": 1 }));
            assert_eq!((config.spec.mode, config.spec.listen_port), (Some(Mode::Strict), Some(1)), "{bad}");
            assert_eq!(faults(&config.faults), ["spec.mode"]);
        }
        let config =
            config_of(json!({ "listenPort": 70000, "mtu": [], "routing": { "table": 7 }, "scope": "None" }));
        assert_eq!(faults(&config.faults), ["spec.listenPort", "spec.mtu", "spec.scope"]);
        assert!(config.spec.routing.is_some());
    }

    #[test]
    fn what_was_read_comes_back_from_its_values() {
        let text = json!({
            "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel",
            "metadata": {
                "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": { "zone": "z" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u" }],
            },
            "spec": {
                "keys": [{ "publicKey": key(1), "state": "Next" }, { "publicKey": key(2), "state": "Active" }],
                "endpoints": [{ "address": "192.0.2.1", "port": 1 }, { "address": "2001:db8::1", "port": 2, "zone": "z" }],
                "podPrefixes": ["10.244.1.0/24", "fd00:1::/64"], "nodeAddresses": ["192.0.2.1"], "tunnelAddresses": ["fd00::1/128"],
                "mtu": 1420,
            },
        });
        let mut objects = Objects::default();
        objects.insert(object(&text).unwrap());
        for (name, is_ready) in [("ready", true), ("unready", false)] {
            let tunnel = Tunnel { is_ready: Some(is_ready), ..Tunnel::default() };
            objects.insert(Object::Tunnel(name.to_owned(), tunnel));
        }
        let settings = config_of(json!({
            "mode": "Strict", "clusterCIDRs": ["Auto"], "mtu": 1400, "routing": { "table": "Auto" }, "persistentKeepalive": "25s",
        }));
        objects.insert(Object::Config("default".to_owned(), settings));
        objects.insert(Object::Node(
            "a".to_owned(),
            Node {
                uid: "u".to_owned(),
                addresses: vec![IpAddr::from([192, 0, 2, 1])],
                pod_prefixes: vec!["10.244.1.0/24".parse().unwrap()],
                zone: Some("z".to_owned()),
                pod_network: PodNetwork {
                    prefixes: vec!["10.42.0.0/16".parse().unwrap()],
                    faults: Vec::new(),
                },
            },
        ));
        objects.insert(Object::ApiServers("kubernetes".to_owned(), vec![IpAddr::from([192, 0, 2, 9])]));
        objects.pod_network = Some(PodNetwork {
            prefixes: ["10.244.0.0/16", "fd00:244::/48"].map(|text| text.parse().unwrap()).into(),
            faults: Vec::new(),
        });
        let mut again = Objects::default();
        values(&objects).for_each(|value| again.insert(object(&value).unwrap()));
        assert_eq!(again, objects);
        assert_eq!(
            (again.tunnels["a"].endpoints.len(), &again.tunnels["a"].owners[..]),
            (2, &["u".to_owned()][..])
        );
    }

    #[test]
    fn a_node_is_ready_when_its_agent_finds_nothing_wrong() {
        let of = |status: Value| {
            let metadata = json!({ "name": "a" });
            let value = json!({ "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel", "metadata": metadata, "status": status });
            let Ok(Object::Tunnel(_, tunnel)) = object(&value) else { panic!("no tunnel") };
            tunnel.is_ready
        };
        let conditions = |list: &[(&str, &str)]| {
            let list = list.iter().map(|(kind, status)| json!({ "type": kind, "status": status }));
            json!({ "conditions": list.collect::<Vec<_>>() })
        };
        let good = [("DataplaneReady", "True"), ("PeersInSync", "True"), ("Degraded", "False")];
        assert_eq!(of(conditions(&good)), Some(true));
        for (at, status) in [(0, "False"), (1, "Unknown"), (2, "True")] {
            let mut bad = good;
            bad[at].1 = status;
            assert_eq!(of(conditions(&bad)), Some(false), "{bad:?}");
        }
        assert_eq!((of(conditions(&[])), of(json!({})), of(json!(7))), (Some(false), None, None));
    }

    #[test]
    fn a_pod_has_its_addresses_until_it_ends() {
        let read = |spec: Value, status: Value| {
            let metadata = json!({ "name": "p", "namespace": "shop" });
            let value = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status });
            let Ok(Object::Pod(name, pod)) = object(&value) else { panic!("no pod") };
            assert_eq!((name.as_str(), pod.node.as_str()), ("shop/p", "a"));
            pod.addresses
        };
        let ips = json!([{ "ip": "10.1.0.7" }, { "ip": "fd00::7" }, { "ip": "127.0.0.1" }, {}, 7]);
        let status = |phase: &str| json!({ "phase": phase, "podIPs": ips });
        let own = json!({ "nodeName": "a" });
        let both: Vec<IpAddr> = ["10.1.0.7", "fd00::7"].map(|text| text.parse().unwrap()).into();
        assert_eq!(read(own.clone(), status("Running")), both);
        assert_eq!(read(own.clone(), status("Pending")), both);
        for phase in ["Succeeded", "Failed"] {
            assert!(read(own.clone(), status(phase)).is_empty());
        }
        assert!(read(json!({ "nodeName": "a", "hostNetwork": true }), status("Running")).is_empty());
        assert!(read(own, json!({})).is_empty());
    }

    #[test]
    fn the_network_of_pods_is_what_kubeadm_made_and_what_it_cannot_be_is_named() {
        let of = |configuration: Value| {
            let metadata = json!({ "name": "kubeadm-config", "namespace": "kube-system" });
            let data = json!({ "ClusterConfiguration": configuration });
            let value =
                json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data });
            let Ok(Object::PodNetwork(network)) = object(&value) else { panic!("no network") };
            let prefixes: Vec<_> = network.prefixes.iter().map(ToString::to_string).collect();
            (prefixes.join(" "), network.faults.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let subnet = |text: &str| {
            // As kubeadm writes it.
            of(json!(format!(
                "apiServer: {{}}\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.34.0\n\
                networking:\n  dnsDomain: cluster.local\n  podSubnet: {text}\n  serviceSubnet: 10.96.0.0/12\n"
            )))
        };
        let good = |text: &str| (text.to_owned(), Vec::<String>::new());
        assert_eq!(subnet("10.244.0.0/16"), good("10.244.0.0/16"));
        assert_eq!(subnet("10.244.0.0/16,fd00:244::/48"), good("10.244.0.0/16 fd00:244::/48"));
        for nothing in
            [subnet("\"\""), subnet("null"), of(json!("networking: {}\n")), of(json!("")), of(json!(7))]
        {
            assert_eq!(nothing, good(""));
        }
        for (text, reason) in [
            ("0.0.0.0/0", "[0]: a cluster's pods have no block wider than /8"),
            ("::/0", "[0]: a cluster's pods have no block wider than /16"),
            ("everything", "[0]: a prefix (ADDRESS/LENGTH) is needed"),
            ("127.0.0.0/8", "[0]: packets between nodes do not have such addresses"),
            ("[10.244.0.0/16]", ": a text is needed"),
        ] {
            assert_eq!(
                subnet(text),
                (String::new(), vec![format!("networking.podSubnet{reason}")]),
                "{text}"
            );
        }
        let (prefixes, faults) = subnet("10.244.0.0/16,10.0.0.0/7");
        assert_eq!((prefixes.as_str(), faults.len()), ("10.244.0.0/16", 1));
        let (prefixes, faults) = of(json!("networking: ["));
        assert!(prefixes.is_empty() && faults[0].starts_with("ClusterConfiguration: "), "{faults:?}");
        let other = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kubeadm-config", "namespace": "shop" } });
        assert!(matches!(object(&other), Err(NoObject::OfOtherKind(_))));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let named = |version: &str, kind: &str| {
            object(&json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "a" } }))
        };
        assert!(matches!(named("v1", "Node"), Ok(Object::Node(..))));
        assert!(matches!(named("adit.dev/v1", "NodeTunnel"), Ok(Object::Tunnel(..))));
        assert!(matches!(named("v1", "Secret"), Err(NoObject::OfOtherKind(_))));
        assert!(matches!(named("discovery.k8s.io/v1", "EndpointSlice"), Err(NoObject::OfOtherKind(_))));
        assert!(matches!(named("v1", "NodeTunnel"), Err(NoObject::OfOtherKind(_))));
        assert_eq!(object(&json!({ "kind": "Node" })), Err(NoObject::Without("apiVersion")));
        assert_eq!(object(&json!([])), Err(NoObject::Without("kind")));
        assert_eq!(
            object(&json!({ "apiVersion": "v1", "kind": "Node" })),
            Err(NoObject::Without("metadata.name"))
        );
    }
}
