//! What becomes of every class of traffic that there is on a node, by mode and by what is wanted of host traffic.

use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{Namespace, SOON, need, wait_until};

/// Frames in clear and encrypted ones that an echo request and its answer cost on the wire.
type Frames = (usize, usize);

const CLEAR: Frames = (2, 0);
const ENCRYPTED: Frames = (0, 2);
/// The answer alone is encrypted: it goes to a pod.
const ANSWER_ENCRYPTED: Frames = (1, 1);
const NOTHING: Frames = (0, 0);

/// Traffic from the first node or its pod, and what becomes of it with `Plain`, `PodToNode` and `Encrypt`.
const CLASSES: [(&str, bool, &str, [Frames; 3]); 7] = [
    ("pod to a pod of another node", true, "10.244.2.9", [ENCRYPTED; 3]),
    ("pod to a pod of its own node", true, "10.244.1.1", [NOTHING; 3]),
    ("pod to another node", true, "10.9.0.2", [ANSWER_ENCRYPTED, ENCRYPTED, ENCRYPTED]),
    ("host to a pod of another node", false, "10.244.2.9", [ENCRYPTED; 3]),
    ("host to host", false, "10.9.0.2", [CLEAR, CLEAR, ENCRYPTED]),
    ("host to a host that is exempt", false, "10.9.0.3", [CLEAR; 3]),
    ("pod to somebody outside", true, "10.9.0.200", [CLEAR; 3]),
];

/// Makes a pod at 10.244.N.9, in a namespace of its own.
pub(super) fn pod(node: &Node) -> Namespace {
    let pod = Namespace::new();
    let n = node.number;
    let (gateway, addr) = (format!("10.244.{n}.254"), format!("10.244.{n}.9/24"));
    node.namespace.join("pod", &[&format!("{gateway}/24")], &pod, "eth0", &[&addr]);
    pod.ip(&format!("route add default via {gateway}"));
    node.namespace.sysctl("net/ipv4/ip_forward", "1");
    pod
}

pub(super) fn publish(mesh: &Mesh, node: &Node) {
    let (n, key) = (node.number, &node.key);
    let text = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  \
        keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: 10.9.0.{n}, port: 51820}}]\n  \
        podPrefixes: [10.244.{n}.0/24]\n  nodeAddresses: [10.9.0.{n}]\n  tunnelAddresses: [10.244.{n}.0]\n"
    );
    mesh.write(&format!("node{n}"), &text);
}

pub(super) fn config(mesh: &Mesh, mode: &str, host_traffic: &str) {
    let text = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {{mode: {mode}, hostTraffic: {host_traffic}, \
        strictGate: Immediate, clusterCIDRs: [10.244.0.0/16], exempt: [apiserver, 10.9.0.3/32]}}\n"
    );
    mesh.write("config", &text);
}

#[test]
fn every_class_of_traffic_goes_the_way_that_is_wanted_of_it() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let pods: Vec<_> = mesh.nodes.iter().map(pod).collect();
    let outside = Namespace::new();
    mesh.fabric.join("port200", &[], &outside, "eth0", &["10.9.0.200/24"]);
    mesh.fabric.ip("link set port200 master fabric");
    // As whoever made the pods' network has laid it.
    outside.ip("route add 10.244.1.0/24 via 10.9.0.1");
    for node in &mesh.nodes {
        for n in (1..=3).filter(|n| *n != node.number) {
            node.namespace.ip(&format!("route add 10.244.{n}.0/24 via 10.9.0.{n}"));
        }
        publish(&mesh, node);
    }
    config(&mesh, "Permissive", "Plain");
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let columns = [("Plain", 0), ("PodToNode", 1), ("Encrypt", 2)];
    for mode in ["Permissive", "Strict"] {
        // There and back again: what was routed before is not any more.
        for (host_traffic, column) in columns.into_iter().chain([("Plain", 0)]) {
            config(&mesh, mode, host_traffic);
            for (class, is_pod, to, expected) in CLASSES {
                let from = if is_pod { &pods[0] } else { &mesh.nodes[0].namespace };
                let ping = format!("ping -n -c 1 -W 1 -p {} {to}", canary_pattern());
                let frames = || {
                    wire.forget(Seen::Canary);
                    wire.forget(Seen::WireGuard);
                    from.succeeds(&ping).then(|| (wire.count(Seen::Canary), wire.count(Seen::WireGuard)))
                };
                let what = format!("{mode}, {host_traffic}: {class}");
                let mut seen = None;
                let deadline = adit::sys::clock::boottime() + SOON;
                while seen != Some(expected[column]) {
                    assert!(adit::sys::clock::boottime() < deadline, "{what}: {seen:?}");
                    seen = frames();
                }
                // A keepalive may come in between, but nothing in clear.
                let clear = frames().map(|seen| seen.0);
                assert_eq!(clear, Some(expected[column].0), "{what}");
            }
        }
    }
    // In Strict, with Encrypt and without a data plane, nothing of it leaves in clear, and what is exempt does.
    config(&mesh, "Strict", "Encrypt");
    let is_encrypted = || {
        wire.forget(Seen::Canary);
        let ping = format!("ping -n -c 1 -W 1 -p {} 10.9.0.2", canary_pattern());
        mesh.nodes[0].namespace.succeeds(&ping) && wire.count(Seen::Canary) == 0
    };
    wait_until("encrypted host traffic", SOON, is_encrypted);
    drop(mesh.nodes[0].data_plane.take());
    let node = &mesh.nodes[0];
    wire.forget(Seen::Canary);
    for to in ["10.9.0.2", "10.244.2.9"] {
        let pattern = canary_pattern();
        assert!(!node.namespace.succeeds(&format!("ping -n -c 2 -i 0.2 -W 1 -p {pattern} {to}")), "{to}");
        assert!(!pods[0].succeeds(&format!("ping -n -c 2 -i 0.2 -W 1 -p {pattern} {to}")), "{to}");
    }
    assert_eq!(wire.count(Seen::Canary), 0);
    assert!(node.namespace.pings("10.9.0.3"));
}
