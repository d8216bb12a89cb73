//! What an agent tells the cluster, what that costs the other nodes, and that an agent at rest rests.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use adit::control::store::Store;
use adit::crypto::x25519::PublicKey;
use adit::sys::clock::boottime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::cluster::{ControlPlane, bare_node, node_object};
use super::nodes::{Mesh, Node};
use crate::support::api_double::{ApiDouble, Kind, Manners};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, pause, wait_until};

/// A row of `kubectl get nodetunnels`, by the names of the columns.
fn row(plane: &ControlPlane, node: &str) -> Vec<(String, String)> {
    let (_, text) = plane.try_kubectl(&["get", "nodetunnels"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut lines = text.lines();
    let head = words(lines.next().unwrap_or_default());
    let row = lines.map(words).find(|row| row.first().is_some_and(|name| name == node));
    head.into_iter().zip(row.unwrap_or_default()).collect()
}

/// Returns what the table is to show of a node, but for its age.
fn expected(node: &Node, [peers, up, down]: [&str; 3]) -> Vec<(String, String)> {
    let n = node.number;
    let cells = [
        ("NAME", format!("node{n}")),
        ("KEY", node.key.clone()),
        ("ENDPOINT", format!("10.9.0.{n}")),
        ("PREFIXES", format!("[\"10.244.{n}.0/24\",\"fd00:244:{n}::/64\"]")),
        ("PEERS", peers.to_owned()),
        ("UP", up.to_owned()),
        ("DOWN", down.to_owned()),
        ("READY", "True".to_owned()),
    ];
    cells.map(|(name, cell)| (name.to_owned(), cell)).into()
}

/// Waits until the table shows of a node what is expected, and an age.
#[track_caller]
fn wait_for_row(plane: &ControlPlane, node: &Node, counts: [&str; 3]) {
    let expected = expected(node, counts);
    let mut found = Vec::new();
    let is_shown = || {
        found = row(plane, &format!("node{}", node.number));
        let age = found.pop().filter(|(name, age)| name == "AGE" && age.ends_with(['s', 'm']));
        age.is_some() && found == expected
    };
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("the row of a node", SOON, is_shown);
    }));
    assert!(shown.is_ok(), "{found:?}\nis not\n{expected:?}");
}

#[test]
fn the_table_of_nodes_and_their_addresses_come_true_soon() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.install("{mode: Strict}");
    for node in &mut mesh.nodes[..2] {
        plane.apply("node.yaml", &node_object(node));
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    }
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    wait_for_row(&plane, first, ["1", "1", "0"]);
    wait_for_row(&plane, second, ["1", "1", "0"]);

    // What every agent reads whenever one has something to tell.
    let object = plane.kubectl(&["get", "--raw", "/apis/adit.dev/v1alpha1/nodetunnels/node1"]);
    let event = format!("{{\"type\":\"MODIFIED\",\"object\":{}}}\n", object.trim_end());
    assert!(event.len() <= 2048, "{} bytes: {event}", event.len());

    // A node that has said what it is, and does not answer.
    let text = fs::read_to_string(mesh.objects.path().join("node3.yaml")).unwrap();
    let ping = first.ping(third);
    plane.apply("node3.yaml", &bare_node("node3", &text));
    wait_for_row(&plane, first, ["2", "1", "1"]);
    drop(ping);
    // It is left alone by who has nothing to say to it: no session is needed there.
    wait_for_row(&plane, second, ["2", "1", "0"]);

    // The node has another address. Its agent hears of it, and tells the others; they look whether the cluster says so as well.
    first.namespace.ip("addr add 10.9.0.11/24 dev eth0");
    let addresses = json!([{ "type": "InternalIP", "address": "10.9.0.11" }]);
    let patch = json!({ "status": { "addresses": addresses } }).to_string();
    plane.kubectl(&["patch", "node", "node1", "--subresource=status", "--type=merge", "-p", &patch]);
    let path = "jsonpath={.spec.nodeAddresses} {.spec.endpoints[*].address}";
    wait_until("the new address", SOON, || {
        plane.try_kubectl(&["get", "nodetunnel", "node1", "-o", path]).1 == r#"["10.9.0.11"] 10.9.0.11"#
    });
    let known = || {
        let kept = Store::snapshot_in(second.state.path()).ok().flatten()?;
        let is_ours = |object: &&Value| object["kind"] == "Node" && object["metadata"]["name"] == "node1";
        kept.objects.iter().find(is_ours).map(|node| node["status"]["addresses"].clone())
    };
    wait_until("the new address on another node", SOON, || {
        known().is_some_and(|known| known[0]["address"] == "10.9.0.11" && known[1].is_null())
    });
    second.wait_for_pod_of(first);
}

/// Returns an API server's double with a configuration and a first node, and what an agent reaches it by.
fn double(mesh: &Mesh) -> (ApiDouble, std::path::PathBuf) {
    mesh.fabric.ip("addr add 10.9.0.100/24 dev fabric");
    let manners = Manners { page: 500, bookmarks: Duration::from_secs(3600) };
    let double = ApiDouble::start(&mesh.fabric, "10.9.0.100", manners);
    double.put(Kind::Config, json!({ "metadata": { "name": "default" }, "spec": { "mode": "Strict" } }));
    double.put(Kind::Node, node(1));
    let kubeconfig = mesh.objects.path().join("kubeconfig");
    fs::write(&kubeconfig, double.kubeconfig()).unwrap();
    (double, kubeconfig)
}

fn node(number: u8) -> Value {
    json!({
        "metadata": { "name": format!("node{number}") },
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("10.9.0.{number}") }] },
    })
}

/// Has a node that is nowhere say what it is.
fn join(double: &ApiDouble, number: u8) {
    double.put(Kind::Node, node(number));
    let spec = json!({
        "keys": [{ "publicKey": BASE64.encode(PublicKey::new([number; 32]).as_bytes()), "state": "Active" }],
        "endpoints": [{ "address": format!("10.9.0.{number}"), "port": 51820 }],
        "podPrefixes": [format!("10.244.{number}.0/24")],
        "nodeAddresses": [format!("10.9.0.{number}")],
    });
    let metadata = json!({ "name": format!("node{number}") });
    let object = json!({ "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel", "metadata": metadata, "spec": spec });
    double.apply(Kind::Tunnel, &object, "adit-agent");
}

/// Returns how many peers the first node says that it has.
fn told(double: &ApiDouble) -> Option<u64> {
    double.get(Kind::Tunnel, "node1")?["status"]["peers"]["total"].as_u64()
}

#[test]
fn that_others_join_is_told_by_each_node_once_a_period() {
    need!("ip", "setpriv");
    /// A hundred nodes: half a minute.
    const NODES: u8 = 101;
    const PERIOD: Duration = Duration::from_secs(30);
    let mut mesh = Mesh::new(1);
    let (double, kubeconfig) = double(&mesh);
    (2..=NODES - 20).for_each(|number| join(&double, number));
    mesh.nodes[0].start_data_plane(Program::Adit);
    mesh.nodes[0].start_agent_with("KUBECONFIG", &kubeconfig);
    wait_until("what was found at first", SOON, || told(&double).is_some());
    let mut versions = BTreeSet::new();
    let mut look = || {
        let own = double.get(Kind::Tunnel, "node1").unwrap();
        versions.insert(own["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
    };
    // The others come, one a second. Of the first of them it may tell at once: it looks again soon after it has begun.
    let begun = boottime();
    for number in NODES - 19..=NODES {
        join(&double, number);
        let until = boottime() + Duration::from_secs(1);
        while boottime() < until {
            look();
            pause(Duration::from_millis(10));
        }
    }
    let all = Some(u64::from(NODES) - 1);
    wait_until("all of them", PERIOD + SOON, || {
        look();
        told(&double) == all
    });
    let (took, writes) = (boottime() - begun, versions.len() - 1);
    assert!(writes <= 3, "{writes} writes in {took:?}");
}

#[test]
fn an_agent_at_rest_is_woken_by_nothing() {
    need!("ip", "setpriv");
    let mut mesh = Mesh::new(1);
    let (double, kubeconfig) = double(&mesh);
    (2..=20).for_each(|number| join(&double, number));
    let own = &mut mesh.nodes[0];
    own.start_data_plane(Program::Adit);
    own.start_agent_apart("KUBECONFIG", &kubeconfig);
    wait_until("what was found", SOON, || told(&double) == Some(19));
    let agent = own.agent.as_ref().unwrap();
    // It looks once more, and then at nothing for 90 seconds.
    let mut woken = agent.wake_ups_by_thread();
    wait_until("rest", SOON * 2, || {
        pause(Duration::from_secs(3));
        let before = std::mem::replace(&mut woken, agent.wake_ups_by_thread());
        before == woken
    });
    pause(Duration::from_secs(20));
    assert_eq!(agent.wake_ups_by_thread(), woken);
}
