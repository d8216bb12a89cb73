//! What this node says of itself: made from what the cluster knows of it, and its key. Pure.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::api::{Endpoint, Family, KeyState, NodeKey, NodeTunnel, NodeTunnelSpec};
use super::objects::{Node, Object, Objects, Tunnel};
use super::read;
use super::settings::Settings;
use super::topology::Own;

/// What this version does that another may not.
const CAPABILITIES: [&str; 1] = ["strict/v1"];

/// Returns the `NodeTunnel` that this node should have and has not, or has otherwise. `None` if there is nothing to say: it is as it
/// should be, or the cluster does not know the node. `mtu` is that of the tunnel's interface; while that is not known, what was said stays.
pub fn published(objects: &Objects, own: &Own, settings: &Settings, mtu: Option<u32>) -> Option<Value> {
    let node = objects.nodes.get(&own.name)?;
    let mtu = mtu.or_else(|| objects.tunnels.get(&own.name)?.mtu);
    let value = tunnel(node, own, settings, mtu);
    let Ok(Object::Tunnel(_, wanted)) = read::object(&value) else { return None };
    let is_there = objects.tunnels.get(&own.name).is_some_and(|actual| says_the_same(actual, &wanted));
    (!is_there).then_some(value)
}

fn tunnel(node: &Node, own: &Own, settings: &Settings, mtu: Option<u32>) -> Value {
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
            pod_prefixes: node.pod_prefixes.iter().map(ToString::to_string).collect(),
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

fn says_the_same(actual: &Tunnel, wanted: &Tunnel) -> bool {
    let said = |tunnel: &Tunnel| Tunnel { created: String::new(), labels: [].into(), ..tunnel.clone() };
    said(actual) == said(wanted)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

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
        };
        Objects { nodes: [("a".to_owned(), node)].into(), ..Objects::default() }
    }

    #[test]
    fn a_node_says_what_the_cluster_knows_of_it_and_its_key() {
        let value = published(&objects(), &own(), &Settings::default(), None).unwrap();
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
        let value = published(&objects, &own(), &Settings::default(), None).unwrap();
        objects.insert(read::object(&value).unwrap());
        objects.tunnels.get_mut("a").unwrap().created = "2026-01-01T00:00:00Z".to_owned();
        assert_eq!(published(&objects, &own(), &Settings::default(), None), None);
        // An MTU that is known is said, and stays said when it is not known any more.
        let wide = published(&objects, &own(), &Settings::default(), Some(1440)).unwrap();
        assert_eq!(wide["spec"]["mtu"], 1440);
        objects.insert(read::object(&wide).unwrap());
        assert_eq!(published(&objects, &own(), &Settings::default(), None), None);
        objects.tunnels.get_mut("a").unwrap().mtu = None;
        objects.tunnels.get_mut("a").unwrap().pod_prefixes.pop();
        assert_eq!(published(&objects, &own(), &Settings::default(), None), Some(value));
        objects.nodes.clear();
        assert_eq!(published(&objects, &own(), &Settings::default(), None), None);
    }
}
