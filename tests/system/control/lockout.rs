//! Whatever is wanted, the API server is reached, so that it can be said otherwise: where traffic of the hosts themselves is encrypted and the
//! API server is on one of the nodes, a node whose key nobody knows gets in all the same; and where nodes' addresses are named as pods'.

use std::fs;

use super::cluster::{ADDRESS, ControlPlane, TOKEN, as_peer, node_object};
use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

#[test]
fn a_node_that_has_lost_its_key_gets_in_again_though_all_host_traffic_is_encrypted() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(3);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    // The API server has the address of the first node.
    let first = &mesh.nodes[0].namespace;
    first.sysctl("net/ipv4/ip_forward", "1");
    let ruleset = format!(
        "table ip api {{\n\
        chain to {{ type nat hook prerouting priority dstnat; ip daddr 10.9.0.1 tcp dport 6443 dnat to {ADDRESS}; }}\n\
        chain from {{ type nat hook postrouting priority srcnat; ip daddr {ADDRESS} masquerade; }}\n}}\n"
    );
    let path = plane.write("api.nft", &ruleset);
    first.run("nft", &["-f", path.to_str().unwrap()]);
    let kubeconfig = plane.write(
        "kubeconfig-node1",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
            clusters: [{{name: test, cluster: {{server: \"https://10.9.0.1:6443\", insecure-skip-tls-verify: true}}}}]\n\
            users: [{{name: test, user: {{token: {TOKEN}}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
        ),
    );
    plane.install("{mode: Strict, hostTraffic: Encrypt}");
    plane.apply(
        "slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: [{addresses: [10.9.0.1]}]\n\
        metadata: {name: kubernetes-on-node1, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}\n",
    );
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        let kubeconfig = if node.number == 1 { plane.kubeconfig() } else { kubeconfig.clone() };
        node.start_agent_with("KUBECONFIG", &kubeconfig);
    }
    let wire = Wire::open(&mesh.fabric, "port2");
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    second.wait_until_peers_are(&[as_peer(first), as_peer(third)]);
    // Hosts talk through the tunnel, but for the API server's.
    let ping = |to: &str| format!("ping -n -c 1 -W 1 -p {} {to}", canary_pattern());
    for (to, is_clear) in [("10.9.0.3", false), ("10.9.0.1", true)] {
        wait_until(&format!("an answer from {to}"), SOON, || {
            wire.forget(Seen::Canary);
            second.namespace.succeeds(&ping(to)) && (wire.count(Seen::Canary) > 0) == is_clear
        });
    }

    // A node comes back with another key, and without anything that it knew.
    let snapshot = second.state.path().join("snapshot.json");
    wait_until("what it keeps", SOON, || snapshot.exists());
    drop((second.agent.take(), second.data_plane.take()));
    for name in ["private.key", "snapshot.json"] {
        fs::remove_file(second.state.path().join(name)).unwrap();
    }
    let path = second.state.path().to_str().unwrap();
    let key = second.namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--public-key", "--state", path]);
    let key = key.trim_end().to_owned();
    assert_ne!(key, second.key);
    second.key = key;
    second.start_data_plane(Program::Adit);
    second.start_agent_with("KUBECONFIG", &kubeconfig);
    second.wait_until_peers_are(&[as_peer(first), as_peer(third)]);
    first.wait_until_peers_are(&[as_peer(second), as_peer(third)]);
    second.wait_for_pod_of(first);
    third.wait_for_pod_of(second);
    wire.forget(Seen::Canary);
    wait_until("an answer from host to host", SOON, || second.namespace.succeeds(&ping("10.9.0.3")));
    assert_eq!(wire.count(Seen::Canary), 0);
}

#[test]
fn nodes_and_the_api_server_are_reached_though_their_addresses_are_named_as_pods() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Some(plane) = super::plans::start(&mesh, "{mode: Strict}") else { return };
    let kubeconfig = plane.kubeconfig();
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &kubeconfig);
    }
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    let drops = |node: &Node, prefix: &str| {
        node.namespace.ip("route show table 8365").lines().any(|line| line.starts_with(prefix))
    };
    let wrong = "blackhole 10.0.0.0/8";
    plane.configure(r#"{"clusterCIDRs":["10.0.0.0/8","fd00:244::/32"]}"#);
    for node in [&*first, second] {
        wait_until("what holds the nodes as well", SOON, || drops(node, wrong));
    }
    // What is nobody's is dropped; what is a node's is not.
    assert!(!first.namespace.pings("10.9.0.77"));
    assert!(first.namespace.pings("10.9.0.2") && second.namespace.pings("10.9.0.1"));
    first.wait_for_pod_of(second);
    // Nor is an agent that begins anew kept from hearing that it was a mistake.
    drop(first.agent.take());
    first.start_agent_with("KUBECONFIG", &kubeconfig);
    let agent = first.agent.as_ref().unwrap();
    wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
    plane.configure(r#"{"clusterCIDRs":["10.244.0.0/16","fd00:244::/32"]}"#);
    for node in [&*first, second] {
        wait_until("the pods' prefix alone", SOON, || {
            drops(node, "blackhole 10.244.0.0/16") && !drops(node, wrong)
        });
    }
    first.wait_for_pod_of(second);
}
