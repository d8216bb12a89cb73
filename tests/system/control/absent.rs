//! What the objects say takes effect also where the data plane is away, refuses what it is told, or has an interface that cannot be what it
//! should; and one that is only slow loses nothing by it.

use std::fs;
use std::net::UdpSocket;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::nodes::{Mesh, Node};
use super::unreliable::{Rig, bare_node, node};
use crate::support::api_double::Kind;
use crate::support::tunnel::{Key, Program};
use crate::support::{SOON, need, wait_until};

/// What an agent says when something has failed for the first time.
const FAILED: &str = "the node is not yet what it should be";

fn config(mode: &str) -> String {
    format!(
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {{mode: \"{mode}\", strictGate: Immediate}}\n"
    )
}

impl Node {
    /// Returns the agent's routes; there is no such table without any.
    fn own_routes(&self) -> String {
        self.namespace.try_run("ip", &["route", "show", "table", "8365"]).1
    }

    fn protects(&self, range: &str) -> bool {
        self.namespace.try_run("nft", &["list", "set", "inet", "adit", "protected4"]).1.contains(range)
    }
}

#[test]
fn strict_is_switched_on_and_off_while_there_is_no_data_plane() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    mesh.write("config", &config("Permissive"));
    mesh.start(Program::Adit);
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    drop(first.data_plane.take());
    wait_until("the loss of the data plane", SOON, || {
        first.agent.as_ref().unwrap().output().contains(FAILED)
    });

    mesh.write("config", &config("Strict"));
    let first = &mesh.nodes[0];
    wait_until("the routes of Strict", SOON, || first.own_routes().contains("blackhole 10.244.2.0/24"));
    assert!(first.protects("10.244.2.0/24"));
    // Whoever joins is believed in clear no more than the others.
    let node3 = "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {name: node3}\nspec: {podPrefixes: [10.244.3.0/24]}\n";
    mesh.write("node3", node3);
    wait_until("the route of one more", SOON, || first.own_routes().contains("blackhole 10.244.3.0/24"));
    // The way out for whoever has no data plane that works.
    for mode in ["Permissive", "Strict", "Off"] {
        mesh.write("config", &config(mode));
        let is_strict = mode == "Strict";
        wait_until(mode, SOON, || {
            first.own_routes().contains("blackhole") == is_strict && first.protects("10.244.2.0") == is_strict
        });
    }
}

#[test]
fn a_data_plane_that_does_not_answer_in_time_keeps_its_routes() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    first.data_plane.as_ref().unwrap().stop();
    let node3 = "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {name: node3}\nspec: {podPrefixes: [10.244.3.0/24]}\n";
    mesh.write("node3", node3);
    wait_until("the route of one more", 3 * SOON, || first.own_routes().contains("blackhole 10.244.3.0/24"));
    let routes = first.own_routes();
    first.data_plane.as_ref().unwrap().signal(Signal::CONT);
    assert!(routes.contains(&format!("10.244.2.0/24 dev {}", first.interface)), "{routes}");
    first.wait_for_pod_of(second);
}

#[test]
fn nothing_is_led_to_a_data_plane_that_ends_without_having_answered() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    mesh.write("config", &config("Permissive"));
    // An interface that outlives whoever reads from it.
    let Node { namespace, interface, .. } = &mesh.nodes[0];
    namespace.ip(&format!("tuntap add {interface} mode tun multi_queue vnet_hdr"));
    mesh.start(Program::Adit);
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    let through = format!("10.244.2.0/24 dev {}", first.interface);
    first.data_plane.as_ref().unwrap().stop();
    mesh.write("config", &config("Permissive").replace("Immediate", "WhenAllReady"));
    let first = &mut mesh.nodes[0];
    wait_until("silence", SOON, || first.agent.as_ref().unwrap().output().contains(FAILED));
    assert!(first.own_routes().contains(&through), "it may go on with its work");
    drop(first.data_plane.take());
    wait_until("no route", SOON, || !first.own_routes().contains(&through));
}

#[test]
fn strict_is_enforced_where_the_data_plane_cannot_have_its_port() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    let Mesh { nodes, objects, .. } = &mut mesh;
    let first = &mut nodes[0];
    let holder = first.namespace.enter(|| UdpSocket::bind("0.0.0.0:51820").unwrap());
    first.start_data_plane(Program::Adit);
    // One that is up is refused the port, another one waits for it.
    let up = ["link", "set", &first.interface, "up"];
    wait_until("the interface", SOON, || first.namespace.try_run("ip", &up).0);
    first.start_agent(objects);
    wait_until("the routes of Strict", SOON, || first.own_routes().contains("blackhole 10.244.2.0/24"));
    assert!(first.protects("10.244.2.0/24"));
    assert!(first.agent.as_ref().unwrap().output().contains(FAILED));
    drop(holder);
    let second = &mut nodes[1];
    second.start_data_plane(Program::Adit);
    second.start_agent(objects);
    nodes[0].wait_for_pod_of(&nodes[1]);
}

#[test]
fn strict_is_enforced_where_the_interface_cannot_have_an_address() {
    need!("ip", "wg", "setpriv", "nft", "sysctl");
    let mut mesh = Mesh::new(2);
    let key = mesh.nodes[0].key.clone();
    let own = format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node1}}\nspec:\n  \
        keys: [{{publicKey: \"{key}\", state: Active}}]\n  podPrefixes: [10.244.1.0/24, \"fd00:244:1::/64\"]\n  \
        tunnelAddresses: [\"fd00:244:1::\", 10.244.1.0]\n"
    );
    mesh.write("node1", &own);
    let Mesh { nodes, objects, .. } = &mut mesh;
    let first = &mut nodes[0];
    // As hardening guides want it.
    first.namespace.run("sysctl", &["-q", "-w", "net.ipv6.conf.default.disable_ipv6=1"]);
    first.start_data_plane(Program::Adit);
    first.start_agent(objects);
    let through = format!("10.244.2.0/24 dev {}", first.interface);
    wait_until("the routes of Strict", SOON, || {
        let routes = first.own_routes();
        routes.contains("blackhole 10.244.2.0/24") && routes.contains(&through)
    });
    assert!(first.protects("10.244.2.0/24"));
    // Whoever is gone is listened to no longer for it.
    first.wait_for_peers(1);
    fs::remove_file(objects.path().join("node2.yaml")).unwrap();
    first.wait_for_peers(0);
    assert!(first.namespace.succeeds(&format!("wg show {}", first.interface)));
}

/// Returns a `TunnelConfig` that names the prefixes of all pods.
fn strict_with_catch_all() -> Value {
    let spec = json!({ "mode": "Strict", "clusterCIDRs": ["10.244.0.0/16", "fd00:244::/32"] });
    json!({ "metadata": { "name": "default" }, "spec": spec })
}

#[test]
fn strict_is_said_to_be_enforced_where_nothing_is_missing_but_an_address() {
    need!("ip", "wg", "setpriv", "nft", "sysctl");
    let mut rig = Rig::new(1);
    let mut own = node(1);
    own["spec"]["podCIDRs"] = json!(["10.244.1.0/24", "fd00:244:1::/64"]);
    rig.double.put(Kind::Node, own);
    let Node { namespace, interface, .. } = rig.node();
    rig.double.put(Kind::Config, strict_with_catch_all());
    let off = format!("net.ipv6.conf.{interface}.disable_ipv6=1");
    wait_until("an interface without IPv6", SOON, || namespace.try_run("sysctl", &["-q", "-w", &off]).0);
    let _networks = rig.start_agent_of_all();
    let holds = |kind: &str| {
        let tunnel = rig.double.get(Kind::Tunnel, "node1").unwrap_or_default();
        let conditions = tunnel["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().find(|it| it["type"] == kind).map(|it| it["status"] == "True")
    };
    wait_until("what is missing", SOON, || {
        holds("PeersInSync") == Some(false) && holds("StrictEnforced") == Some(true)
    });
}

#[test]
fn a_node_without_ipv6_does_what_is_of_ipv4_and_says_so() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut rig = Rig::new(1);
    let mut own = node(1);
    own["spec"]["podCIDRs"] = json!(["10.244.1.0/24", "fd00:244:1::/64"]);
    rig.double.put(Kind::Node, own);
    let [stays, goes] = [2, 3].map(|n| (n, Key::generate().public()));
    let tunnel = |(n, key): &(u8, String)| {
        json!({
            "metadata": { "name": format!("node{n}") },
            "spec": {
                "keys": [{ "publicKey": key, "state": "Active" }],
                "endpoints": [{ "address": format!("10.9.0.{n}"), "port": 51820 }],
                "podPrefixes": [format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64")],
                "nodeAddresses": [format!("10.9.0.{n}"), format!("fd00:9::{n}")],
            },
        })
    };
    for said in [&stays, &goes] {
        rig.double.put(Kind::Node, bare_node(said.0));
        rig.double.put(Kind::Tunnel, tunnel(said));
    }
    rig.double.put(Kind::Config, strict_with_catch_all());
    // As with `ipv6.disable=1`: there are no such sockets, and nobody takes requests about routes, rules and addresses (`rtnetlink.c`,
    // `rtnetlink_rcv_msg`; `fib_rules.c`).
    let _networks = rig.start_agent_of_all_with(&[("ADIT_FAULT", "SocketV6=97,NetlinkV6=95")]);
    let said = || {
        let tunnel = rig.double.get(Kind::Tunnel, "node1").unwrap_or_default();
        let conditions = tunnel["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let all = conditions.iter().filter(|it| it["status"] == "True");
        all.map(|it| it["reason"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    wait_until("what is left out", SOON, || said() == ["Answers", "Published", "WithoutIPv6", "Enforced"]);
    let node = rig.node();
    assert_eq!(node.peers().len(), 2);
    assert!(node.own_routes().contains(&format!("10.244.2.0/24 dev {}", node.interface)));
    assert!(node.protects("10.244.2.0"));
    rig.double.delete(Kind::Tunnel, "node3");
    node.wait_for_peers(1);
    let output = node.agent.as_ref().unwrap().output();
    assert!(!output.contains(FAILED), "{output}");
    assert!(output.contains("not encrypted: IPv6"), "{output}");
}
