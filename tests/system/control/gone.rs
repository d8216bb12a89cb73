//! A node that is gone from the cluster while pods still send to its own: in Strict mode nothing of that is in clear, though nobody has
//! said what addresses all pods have.

use std::fs;

use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

fn config(mesh: &Mesh, mode: &str) {
    let text = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\n\
        spec: {{mode: {mode}, strictGate: Immediate}}\n"
    );
    mesh.write("config", &text);
}

/// Returns the table of routes of a node.
fn table(node: &Node) -> String {
    node.namespace.try_run("ip", &["route", "show", "table", "8365"]).1
}

/// Sends from a pod of the first node to one of another node, and returns how many frames were seen in clear.
fn in_clear(wire: &Wire, from: &Node, to: &str) -> usize {
    wire.forget(Seen::Canary);
    let pattern = canary_pattern();
    let ping = ["-n", "-c", "5", "-i", "0.05", "-W", "1", "-p", &pattern, "-I", "10.244.1.1", to];
    from.namespace.try_run("ping", &ping);
    wire.count(Seen::Canary)
}

#[test]
fn what_pods_send_to_a_node_that_is_gone_is_not_in_clear() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    for node in &mesh.nodes {
        for n in (1..=3).filter(|n| *n != node.number) {
            // As whoever made the pods' network has laid it.
            node.namespace.ip(&format!("route add 10.244.{n}.0/24 via 10.9.0.{n}"));
        }
    }
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let gone = mesh.objects.path().join("node2.yaml");
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    // That it is there is on disk a second after it was learned.
    let kept = first.state.path().join("remembered");
    wait_until("what is to be remembered", SOON, || {
        fs::read_to_string(&kept).unwrap_or_default().contains("10.244.2.0/24\n")
    });
    assert_eq!(in_clear(&wire, first, "10.244.2.1"), 0);

    // The node's pods go on, and ours go on sending.
    let object = fs::read_to_string(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    first.wait_until_peers_are(&[third.as_peer(&[])]);
    wait_until("a route to nowhere alone", SOON, || {
        let table = table(first);
        table.contains("blackhole 10.244.2.0/24") && !table.contains("\n10.244.2.0/24")
    });
    assert_eq!(in_clear(&wire, first, "10.244.2.1"), 0);
    let rules = first.namespace.run("nft", &["list", "table", "inet", "adit"]);
    // Together with the third node's.
    assert!(rules.contains("10.244.2.0/23"), "{rules}");
    let status = ["status", &first.interface, "--state", first.state.path().to_str().unwrap()];
    let told = first.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &status).1;
    for words in
        ["Strict         no catch-all: name clusterCIDRs", "10.244.2.0/24, fd00:244:2::/64: once other"]
    {
        assert!(told.contains(words), "{told}");
    }

    // Nor after the agent was started anew, when none of the objects says that there was such a node.
    wait_until("objects without the node", SOON, || {
        let text = fs::read_to_string(first.state.path().join("snapshot.json")).unwrap_or_default();
        !text.contains("node2")
    });
    drop(first.agent.take());
    first.start_agent(&mesh.objects);
    let agent = first.agent.as_ref().unwrap();
    wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
    first.wait_until_peers_are(&[third.as_peer(&[])]);
    assert!(table(first).contains("blackhole 10.244.2.0/24"));
    assert_eq!(in_clear(&wire, first, "10.244.2.1"), 0);

    // Who has them next is reached.
    mesh.write("node2", &object);
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    first.wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&[])]);
    first.wait_for_pod_of(second);

    // Without Strict they are seen: the same run would show it. And it is forgotten with the mode.
    config(&mesh, "Permissive");
    fs::remove_file(&gone).unwrap();
    first.wait_until_peers_are(&[third.as_peer(&[])]);
    wait_until("packets in clear", SOON, || in_clear(&wire, first, "10.244.2.1") > 0);
    config(&mesh, "Strict");
    wait_until("Strict", SOON, || table(first).contains("blackhole 10.244.3.0/24"));
    assert!(!table(first).contains("10.244.2."));
    assert!(in_clear(&wire, first, "10.244.2.1") > 0);
}
