//! What has happened to a node is told in Events about its object, by an agent with no more rights than its role has.

use super::nodes::{Mesh, Node};
use super::plans::start;
use super::security::token_of;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

#[test]
fn what_happens_to_a_node_is_told_in_events() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = start(&mesh, "{mode: Strict}") else { return };
    for name in ["namespace", "rbac"] {
        let manifest = format!("{}/cni/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        plane.kubectl(&["apply", "-f", &manifest]);
    }
    let tokens: Vec<_> = mesh.nodes.iter().map(|node| token_of(&plane, node.number)).collect();
    let start_agent = |node: &mut Node| {
        let token = tokens[node.number - 1].to_str().unwrap();
        node.start_agent_in(&[("KUBECONFIG", token), ("ADIT_RESYNC", "1")]);
    };
    for node in &mut mesh.nodes[..2] {
        node.start_data_plane(Program::Adit);
        start_agent(node);
    }
    let of_first = |text: &str| {
        let form = "jsonpath={range .items[*]}{.regarding.name} {.type} {.reason} {.related.name} {.series.count}{\"\\n\"}{end}";
        let (_, told) = plane.try_kubectl(&["get", "events.events.k8s.io", "-o", form]);
        told.lines().any(|line| line.trim_end() == format!("node1 {text}"))
    };
    let wait_for = |text: &str| wait_until(&format!("the event {text}"), SOON, || of_first(text));
    wait_for("Normal StrictEnforced");

    // A node that has said where it is, and is not there.
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    let tunnel = |name: &str, node: &Node, n: usize| {
        format!(
            "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: {name}}}\nspec:\n  \
            keys: [{{publicKey: \"{}\", state: Active}}]\n  endpoints: [{{address: 10.9.0.{n}, port: 51820}}]\n  \
            podPrefixes: [10.244.{n}.0/24]\n",
            node.key
        )
    };
    plane.apply("third.yaml", &tunnel("node3", third, 3));
    first.wait_for_peers(2);
    let ping = first.ping(third);
    wait_for("Warning PeerLost node3");
    third.start_data_plane(Program::Adit);
    start_agent(third);
    wait_for("Normal PeerBack node3");
    drop(ping);

    // One that has the key of an older one.
    plane.apply("fourth.yaml", &tunnel("node4", second, 4));
    wait_for("Warning KeyConflict node4");

    // What repeats becomes a series.
    for times in ["", " 2"] {
        drop(first.data_plane.take());
        wait_until("the loss", SOON, || {
            ["Warning DataplaneLost ", "Warning DataplaneLost  2"]
                .iter()
                .any(|text| of_first(text.trim_end()) && (times.is_empty() || text.ends_with('2')))
        });
        first.start_data_plane(Program::Adit);
        wait_until("the return", SOON, || {
            of_first("Normal DataplaneBack") && times.is_empty() || of_first("Normal DataplaneBack  2")
        });
    }
    let described = plane.kubectl(&["describe", "nodetunnel", "node1"]);
    for line in ["node3 does not answer", "the data plane does not answer", "(x2 over"] {
        assert!(described.contains(line), "{line}: {described}");
    }
    assert!(!of_first("Warning PeerLost node2"));
}
