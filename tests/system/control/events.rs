//! What has happened to a node is told in Events about its object, by an agent with no more rights than its role has.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cluster::bare_node;
use super::nodes::{Mesh, Node};
use super::plans::start;
use super::security::token_of;
use super::unreliable::Rig;
use crate::support::api_double::Kind;
use crate::support::api_double::faults::Fault;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

#[test]
fn what_happens_to_a_node_is_told_in_events() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = start(&mesh, "{mode: Strict, clusterCIDRs: [10.244.0.0/16]}") else { return };
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
    plane.apply("fourth.yaml", &bare_node("node4", &tunnel("node4", second, 4)));
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

#[test]
fn events_that_cannot_be_written_are_tried_again_in_their_order() {
    need!("ip", "setpriv");
    let mut rig = Rig::new(1);
    let asked = ["GET Tunnel node1, metadata", "POST Event"];
    // Three of each in a row: more than five seconds of pauses.
    let failing = asked.into_iter().flat_map(|asked| (0..3).map(move |time| (asked.to_owned(), time)));
    rig.double
        .faults()
        .plan(failing.map(|position| (position, Fault::InternalError)).collect::<BTreeMap<_, _>>());
    let _networks = rig.start_agent_of_all();
    let told = |rig: &Rig| -> Vec<(String, u64, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = rig.double.events();
        let series = |event: &Value| event["series"]["count"].as_u64().unwrap_or(1);
        events.iter().map(|it| (text(&it["reason"]), series(it), text(&it["note"]))).collect()
    };
    let wait_for = |rig: &Rig, expected: &[(&str, u64)]| {
        wait_until(&format!("the events {expected:?}"), SOON * 2, || {
            told(rig).iter().map(|(reason, times, _)| (reason.as_str(), *times)).eq(expected.iter().copied())
        });
    };
    let restart = |rig: &mut Rig| {
        let node = &mut rig.mesh.nodes[0];
        let lines =
            |node: &Node| node.agent.as_ref().unwrap().output().matches("not yet what it should be").count();
        let before = lines(node);
        drop(node.data_plane.take());
        wait_until("the loss", SOON, || lines(node) > before);
        node.start_data_plane(Program::Adit);
    };
    wait_until("what was found at first", SOON, || {
        let own = rig.double.get(Kind::Tunnel, "node1").unwrap_or_default();
        own["status"]["conditions"].is_array()
    });
    restart(&mut rig);
    wait_for(&rig, &[("NoCatchAll", 1), ("DataplaneLost", 1), ("DataplaneBack", 1)]);
    let first = &told(&rig)[0].2;
    assert!(first.starts_with("no catch-all: ") && first.ends_with("could be written)"), "{first}");
    restart(&mut rig);
    wait_for(&rig, &[("NoCatchAll", 1), ("DataplaneLost", 2), ("DataplaneBack", 2)]);
    // What the API server has forgotten cannot become a series.
    rig.double.forget_events();
    restart(&mut rig);
    wait_for(&rig, &[("DataplaneLost", 1), ("DataplaneBack", 1)]);
    assert!(rig.double.faults().unmet().is_empty());
}
