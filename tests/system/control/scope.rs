//! Which nodes are talked to through the tunnel: all, or those on another subnet, or those in another zone. In Strict mode, in any case.

use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

fn config(mesh: &Mesh, name: &str, spec: &str) {
    let text = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    );
    mesh.write(&format!("config-{name}"), &text);
}

/// Writes the object of a node that is found at `endpoint`, in `zone`.
fn publish(mesh: &Mesh, node: &Node, endpoint: &str, zone: &str) {
    let (n, key) = (node.number, &node.key);
    let text = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  \
        keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: {endpoint}, port: 51820, zone: {zone}}}]\n  \
        podPrefixes: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"]\n  nodeAddresses: [{endpoint}]\n"
    );
    mesh.write(&format!("node{n}"), &text);
}

/// Waits until a pod of another node answers one of this node in clear, or through the tunnel; checks that nothing is seen of the other.
#[track_caller]
fn assert_way(wire: &Wire, from: &Node, to: &Node, is_clear: bool) {
    let (pattern, from_addr) = (canary_pattern(), format!("10.244.{}.1", from.number));
    let ping = format!("ping -n -c 1 -W 1 -p {pattern} -I {from_addr} 10.244.{}.1", to.number);
    let question_and_answer = if is_clear { (2, 0) } else { (0, 2) };
    let seen = || {
        wire.forget(Seen::Canary);
        wire.forget(Seen::WireGuard);
        from.namespace.succeeds(&ping).then(|| (wire.count(Seen::Canary), wire.count(Seen::WireGuard)))
    };
    // What is under way settles first, on both nodes.
    wait_until("an answer on that way", SOON, || seen() == Some(question_and_answer));
    for _ in 0..5 {
        assert_eq!(seen(), Some(question_and_answer), "frames in clear, and encrypted");
    }
}

#[test]
fn only_nodes_beyond_the_subnet_or_the_zone_are_talked_to_through_the_tunnel_if_that_is_wanted() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    // The third is on another subnet, though on the same wire.
    let places = ["10.9.0.1", "10.9.0.2", "10.8.0.3"];
    mesh.nodes[2].namespace.ip("addr add 10.8.0.3/32 dev eth0");
    for node in &mesh.nodes {
        for other in mesh.nodes.iter().filter(|other| other.number != node.number) {
            let (n, place) = (other.number, places[other.number - 1]);
            if place == "10.8.0.3" {
                node.namespace.ip("route add 10.8.0.3/32 dev eth0");
            }
            // As whoever made the pods' network has laid it.
            node.namespace.ip(&format!("route add 10.244.{n}.0/24 via {place}"));
        }
    }
    for (node, zone) in mesh.nodes.iter().zip(["east", "west", "east"]) {
        publish(&mesh, node, places[node.number - 1], zone);
    }
    config(&mesh, "default", "{mode: Strict, scope: All, clusterCIDRs: [10.244.0.0/16, \"fd00:244::/32\"]}");
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    assert_way(&wire, first, second, false);
    assert_way(&wire, first, third, false);
    config(
        &mesh,
        "default",
        "{mode: Strict, scope: CrossSubnet, clusterCIDRs: [10.244.0.0/16, \"fd00:244::/32\"]}",
    );
    assert_way(&wire, first, second, true);
    assert_way(&wire, second, first, true);
    assert_way(&wire, first, third, false);
    assert_way(&wire, third, first, false);
    let agent = first.agent.as_ref().unwrap();
    assert!(agent.output().contains("SameSubnet"), "{}", agent.output());
    config(
        &mesh,
        "default",
        "{mode: Strict, scope: CrossZone, clusterCIDRs: [10.244.0.0/16, \"fd00:244::/32\"]}",
    );
    assert_way(&wire, first, second, false);
    assert_way(&wire, first, third, true);
    assert_way(&wire, third, first, true);

    // What comes encrypted from a near node is accepted all the same.
    config(&mesh, "node.node3", "{mode: Permissive, scope: All}");
    wait_until("a question through the tunnel and an answer in clear", SOON, || {
        wire.forget(Seen::Canary);
        wire.forget(Seen::WireGuard);
        let ping = format!("ping -n -c 1 -W 1 -p {} -I 10.244.3.1 10.244.1.1", canary_pattern());
        third.namespace.succeeds(&ping) && (wire.count(Seen::Canary), wire.count(Seen::WireGuard)) == (1, 1)
    });
}
