//! What this node says of itself: made from what the cluster knows of it, and its key. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::api::{Endpoint, Family, KeyState, NodeKey, NodeTunnel, NodeTunnelSpec, PodAddresses};
use super::objects::{Node, Object, Objects, Pod, Tunnel};
use super::read;
use super::settings::Settings;
use super::topology::Own;
use crate::config::Prefix;

/// What this version does that another may not.
const CAPABILITIES: [&str; 1] = ["strict/v1"];

/// The most prefixes that the schema lets a node name.
const PREFIXES_MAX: usize = 512;

/// Returns the `NodeTunnel` that this node should have and has not, or has otherwise. `None` if there is nothing to say: it is as it
/// should be, or the cluster does not know the node, or its pods are to be told and not known yet. `registered` are addresses of pods that
/// the cluster does not know of before they have their network. `mtu` is that of the tunnel's interface; while that is not known, what was said stays.
pub fn published(
    objects: &Objects,
    own: &Own,
    settings: &Settings,
    registered: &BTreeSet<IpAddr>,
    mtu: Option<u32>,
) -> Option<Value> {
    let node = objects.nodes.get(&own.name)?;
    let mtu = mtu.or_else(|| objects.tunnels.get(&own.name)?.mtu);
    let mut pod_prefixes = node.pod_prefixes.clone();
    if settings.pod_addresses == PodAddresses::Pods {
        let outside = outside(node, objects.pods.as_ref()?, registered, &own.name);
        pod_prefixes.extend(outside.take(PREFIXES_MAX.saturating_sub(node.pod_prefixes.len())));
    }
    let value = tunnel(node, own, settings, mtu, &pod_prefixes);
    let Ok(Object::Tunnel(_, wanted)) = read::object(&value) else { return None };
    let is_there = objects.tunnels.get(&own.name).is_some_and(|actual| says_the_same(actual, &wanted));
    (!is_there).then_some(value)
}

/// Returns how many addresses of this node's pods cannot be told, since there are more than a `NodeTunnel` may name.
pub fn untold(objects: &Objects, own: &Own, settings: &Settings, registered: &BTreeSet<IpAddr>) -> usize {
    let (Some(node), Some(pods), PodAddresses::Pods) =
        (objects.nodes.get(&own.name), &objects.pods, settings.pod_addresses)
    else {
        return 0;
    };
    outside(node, pods, registered, &own.name)
        .skip(PREFIXES_MAX.saturating_sub(node.pod_prefixes.len()))
        .count()
}

/// Returns the addresses of a node's pods that are outside of its blocks, in order.
fn outside(
    node: &Node,
    pods: &BTreeMap<String, Pod>,
    registered: &BTreeSet<IpAddr>,
    name: &str,
) -> impl Iterator<Item = Prefix> {
    let own = pods.values().filter(|pod| pod.node == name).flat_map(|pod| &pod.addresses);
    let hosts: BTreeSet<_> = own.chain(registered).map(|addr| Prefix::host(*addr)).collect();
    hosts.into_iter().filter(|host| !node.pod_prefixes.iter().any(|block| block.covers(host)))
}

fn tunnel(node: &Node, own: &Own, settings: &Settings, mtu: Option<u32>, pod_prefixes: &[Prefix]) -> Value {
    let addresses = node.addresses.iter();
    let endpoints =
        addresses.map(|addr| SocketAddr::new(*addr, settings.listen_port)).map(|endpoint| Endpoint {
            address: endpoint.ip().to_string(),
            port: endpoint.port(),
            family: Some(if endpoint.is_ipv4() { Family::IPv4 } else { Family::IPv6 }),
            zone: node.zone.clone(),
        });
    let mut object = NodeTunnel::new(
        &own.name,
        NodeTunnelSpec {
            keys: vec![NodeKey {
                public_key: BASE64.encode(own.public_key.as_bytes()),
                state: KeyState::Active,
                not_before: None,
            }],
            endpoints: endpoints.collect(),
            pod_prefixes: pod_prefixes.iter().map(ToString::to_string).collect(),
            node_addresses: node.addresses.iter().map(ToString::to_string).collect(),
            // The network's own address is no pod's.
            tunnel_addresses: node.pod_prefixes.iter().map(|prefix| prefix.addr().to_string()).collect(),
            mtu,
            capabilities: CAPABILITIES.map(str::to_owned).into(),
            ..NodeTunnelSpec::default()
        },
    );
    // With the node goes what it said.
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": own.name, "uid": node.uid }]);
    if let Ok(owners) = serde_json::from_value(owner) {
        *object.owner_references_mut() = owners;
    }
    serde_json::to_value(&object).unwrap_or_default()
}

/// Tells whether what is there says what it should, and goes with the node that is there: one that was left behind when its node was
/// deleted would outlive the next, and one that names a node that is gone is collected as garbage.
fn says_the_same(actual: &Tunnel, wanted: &Tunnel) -> bool {
    let said = |tunnel: &Tunnel| Tunnel {
        created: String::new(),
        labels: [].into(),
        owners: Vec::new(),
        is_ready: None,
        ..tunnel.clone()
    };
    said(actual) == said(wanted) && wanted.owners.iter().all(|owner| actual.owners.contains(owner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;

    fn own() -> Own {
        Own::new("a", PublicKey::new([7; 32]))
    }

    fn objects() -> Objects {
        let node = Node {
            uid: "u".to_owned(),
            addresses: vec![IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap()],
            pod_prefixes: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            zone: Some("east".to_owned()),
            ..Node::default()
        };
        let mut objects = Objects::default();
        objects.insert(Object::Node("a".to_owned(), node));
        objects
    }

    #[test]
    fn a_node_says_what_the_cluster_knows_of_it_and_its_key() {
        let value = published(&objects(), &own(), &Settings::default(), &BTreeSet::new(), None).unwrap();
        assert_eq!(value["metadata"]["ownerReferences"][0]["uid"], "u");
        let Ok(Object::Tunnel(name, tunnel)) = read::object(&value) else { panic!("{value}") };
        assert_eq!((name.as_str(), tunnel.active), ("a", Some(PublicKey::new([7; 32]))));
        assert_eq!(
            tunnel.endpoints,
            ["192.0.2.1:51820", "[2001:db8::1]:51820"].map(|text| text.parse().unwrap())
        );
        assert_eq!((tunnel.node_addresses.len(), tunnel.zone.as_deref()), (2, Some("east")));
        assert_eq!(
            tunnel.tunnel_addresses,
            ["10.244.1.0", "fd00:1::"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        assert!(tunnel.faults.is_empty(), "{:?}", tunnel.faults);
    }

    #[test]
    fn what_is_said_already_is_not_said_again_and_what_was_changed_is() {
        let mut objects = objects();
        let value = published(&objects, &own(), &Settings::default(), &BTreeSet::new(), None).unwrap();
        objects.insert(read::object(&value).unwrap());
        objects.tunnels.get_mut("a").unwrap().created = "2026-01-01T00:00:00Z".to_owned();
        assert_eq!(published(&objects, &own(), &Settings::default(), &BTreeSet::new(), None), None);
        // An MTU that is known is said, and stays said when it is not known any more.
        let wide = published(&objects, &own(), &Settings::default(), &BTreeSet::new(), Some(1440)).unwrap();
        assert_eq!(wide["spec"]["mtu"], 1440);
        objects.insert(read::object(&wide).unwrap());
        assert_eq!(published(&objects, &own(), &Settings::default(), &BTreeSet::new(), None), None);
        objects.tunnels.get_mut("a").unwrap().mtu = None;
        objects.tunnels.get_mut("a").unwrap().pod_prefixes.pop();
        assert_eq!(published(&objects, &own(), &Settings::default(), &BTreeSet::new(), None), Some(value));
        objects.nodes.clear();
        assert_eq!(published(&objects, &own(), &Settings::default(), &BTreeSet::new(), None), None);
    }

    #[test]
    fn an_object_that_would_not_go_with_the_node_is_written_anew() {
        let mut objects = objects();
        let said =
            |objects: &Objects| published(objects, &own(), &Settings::default(), &BTreeSet::new(), None);
        let value = said(&objects).unwrap();
        let with = |owners: Value| {
            let mut other = value.clone();
            other["metadata"]["ownerReferences"] = owners;
            let mut objects = objects.clone();
            objects.insert(read::object(&other).unwrap());
            said(&objects)
        };
        let node = |uid: &str| json!({ "apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid });
        let other = json!({ "apiVersion": "apps/v1", "kind": "Node", "name": "a", "uid": "u" });
        for owners in [json!(null), json!([]), json!([node("before")]), json!([other]), json!(["u"])] {
            assert_eq!(with(owners.clone()).as_ref(), Some(&value), "{owners}");
        }
        // Another owner beside it is somebody else's to say.
        assert_eq!(with(json!([node("before"), node("u")])), None);
        objects.insert(read::object(&value).unwrap());
        objects.nodes.get_mut("a").unwrap().uid = "anew".to_owned();
        assert_eq!(said(&objects).unwrap()["metadata"]["ownerReferences"], json!([node("anew")]));
    }

    #[test]
    fn addresses_of_its_pods_outside_its_blocks_are_said_if_that_is_wanted_and_they_are_known() {
        let mut objects = objects();
        let settings = Settings { pod_addresses: PodAddresses::Pods, ..Settings::default() };
        assert_eq!(
            published(&objects, &own(), &settings, &BTreeSet::new(), None),
            None,
            "the pods are not known yet"
        );
        let pod = |node: &str, addresses: &[&str]| Pod {
            node: node.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let pods = [
            ("x/inside", pod("a", &["10.244.1.7", "fd00:1::7"])),
            ("x/outside", pod("a", &["10.7.0.9", "fd00:9::9"])),
            ("x/again", pod("a", &["10.7.0.9", "10.7.0.3"])),
            ("x/elsewhere", pod("b", &["10.7.0.4"])),
        ];
        objects.pods = Some(pods.map(|(name, pod)| (name.to_owned(), pod)).into());
        let said = |objects: &Objects, settings: &Settings| {
            published(objects, &own(), settings, &BTreeSet::new(), None).unwrap()["spec"]["podPrefixes"]
                .clone()
        };
        let blocks = ["10.244.1.0/24", "fd00:1::/64"];
        assert_eq!(
            said(&objects, &settings),
            json!([blocks[0], blocks[1], "10.7.0.3/32", "10.7.0.9/32", "fd00:9::9/128"])
        );
        assert_eq!(said(&objects, &Settings::default()), json!(blocks));
        let registered = ["10.7.0.5", "10.244.1.9"].map(|text| text.parse().unwrap()).into();
        let known = published(&objects, &own(), &settings, &registered, None).unwrap();
        let prefixes =
            json!([blocks[0], blocks[1], "10.7.0.3/32", "10.7.0.5/32", "10.7.0.9/32", "fd00:9::9/128"]);
        assert_eq!(known["spec"]["podPrefixes"], prefixes, "with one that is about to have its network");
        let many =
            (0..=u16::MAX).take(600).map(|n| std::net::Ipv4Addr::from(0x0a08_0000 + u32::from(n)).into());
        let many = Pod { node: "a".to_owned(), addresses: many.collect() };
        objects.pods = Some([("x/many".to_owned(), many)].into());
        assert_eq!(said(&objects, &settings).as_array().unwrap().len(), 512);
        let count = |settings| untold(&objects, &own(), settings, &registered);
        assert_eq!(count(&settings), 601 - 510, "with one that is about to have its network");
        assert_eq!(count(&Settings::default()), 0);
    }
}
