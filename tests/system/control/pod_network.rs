//! `clusterCIDRs: Auto` where kubeadm made the cluster, k3s or RKE2: they say which addresses all pods have, so that in Strict one that no node
//! has ever claimed is dropped.

use std::fs;
use std::path::Path;

use super::cluster::{ControlPlane, as_peer, node_object};
use super::nodes::{Mesh, Node};
use super::security::token_of;
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// In both nodes' network of pods, and nobody's.
const UNCLAIMED: &str = "10.244.9.9";

/// Makes kubeadm's object, as `kubeadm init --pod-network-cidr=SUBNETS` does.
#[track_caller]
fn name_subnets(plane: &ControlPlane, subnets: &str) {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kubeadm-config, namespace: kube-system}}\ndata:\n  ClusterConfiguration: |\n    \
        apiVersion: kubeadm.k8s.io/v1beta4\n    kind: ClusterConfiguration\n    networking:\n      dnsDomain: cluster.local\n      \
        podSubnet: {subnets}\n      serviceSubnet: 10.96.0.0/24\n"
    );
    plane.apply("kubeadm.yaml", &text);
}

/// Lays the routes between pods' networks, as whoever made them has, and one for all that is nobody's.
fn lay_routes(node: &Node) {
    let other = 3 - node.number;
    for network in ["10.244.0.0/16".to_owned(), format!("10.244.{other}.0/24")] {
        node.namespace.ip(&format!("route add {network} via 10.9.0.{other}"));
    }
}

/// Sends from a pod of the first node to an address that is nobody's, and returns how many frames were seen in clear.
fn in_clear(wire: &Wire, from: &Node) -> usize {
    wire.forget(Seen::Canary);
    let pattern = canary_pattern();
    let ping = ["-n", "-c", "5", "-i", "0.05", "-W", "1", "-p", &pattern, "-I", "10.244.1.1", UNCLAIMED];
    from.namespace.try_run("ping", &ping);
    wire.count(Seen::Canary)
}

/// Returns what the first node's agent says of Strict.
fn enforced(plane: &ControlPlane) -> String {
    let path = "jsonpath={range .status.conditions[?(@.type==\"StrictEnforced\")]}{.status} {.reason} {.message}{end}";
    plane.try_kubectl(&["get", "nodetunnel", "node1", "-o", path]).1
}

fn has_blackhole(node: &Node) -> bool {
    let (_, table) = node.namespace.try_run("ip", &["route", "show", "table", "8365"]);
    table.contains("blackhole 10.244.0.0/16")
}

#[track_caller]
fn start_agent(node: &mut Node, token: &Path) {
    drop(node.agent.take());
    node.start_agent_with("KUBECONFIG", token);
    let agent = node.agent.as_ref().unwrap();
    wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
}

#[test]
fn what_nobody_has_claimed_of_kubeadms_network_is_dropped_by_all_that_may_read_of_it() {
    need!("ip", "wg", "ping", "nft", "setpriv", "unshare", "mount");
    let mut mesh = Mesh::new(2);
    let Some(mut plane) = ControlPlane::start(&mesh.fabric) else { return };
    let manifest = |name: &str| format!("{}/cni/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    plane.install("{mode: Strict}");
    for name in ["namespace", "rbac"] {
        plane.kubectl(&["apply", "-f", &manifest(name)]);
    }
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    let tokens: Vec<_> = mesh.nodes.iter().map(|node| token_of(&plane, node.number)).collect();
    for (node, token) in mesh.nodes.iter_mut().zip(&tokens) {
        lay_routes(node);
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", token);
    }
    let wire = Wire::open(&mesh.fabric, "port1");
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_until_peers_are(&[as_peer(second)]);
    first.wait_for_pod_of(second);

    // The control: while nobody names the network, it is seen.
    wait_until("Strict", SOON, || enforced(&plane).starts_with("False WithoutCatchAll "));
    assert!(in_clear(&wire, first) > 0);

    name_subnets(&plane, "10.244.0.0/16,fd00:244::/32");
    let found = "10.244.0.0/16, fd00:244::/32 (by kube-system/kubeadm-config)";
    wait_until("a route to nowhere", SOON, || has_blackhole(first));
    wait_until("a word about it", SOON, || enforced(&plane) == format!("True Enforced catch-all: {found}"));
    assert_eq!(in_clear(&wire, first), 0);
    first.wait_for_pod_of(second);
    let state = first.state.path().to_str().unwrap().to_owned();
    let told = first
        .namespace
        .try_run(env!("CARGO_BIN_EXE_adit"), &["status", &first.interface, "--state", &state])
        .1;
    assert!(told.contains(&format!("catch-all      {found}\n")), "{told}");
    // The firewall drops it by itself, and what comes from there.
    first.namespace.ip("rule del priority 99");
    assert_eq!(in_clear(&wire, first), 0);
    let judged = ["preflight", "--node-name", "node1", "--state", &state];
    let catch_all = || {
        let (_, text) = first.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &judged);
        text.lines().find(|line| line.contains("  catch-all  ")).unwrap_or_default().to_owned()
    };
    wait_until("the same of the snapshot", SOON, || catch_all().ends_with(found));
    assert!(catch_all().starts_with("pass  "));

    // A node that boots while the API server is away knows it.
    drop(plane.api_server.take());
    first.reboot(&mesh.fabric);
    lay_routes(first);
    first.start_data_plane(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    start_agent(first, &tokens[0]);
    wait_until("a route to nowhere", SOON, || has_blackhole(first));
    assert_eq!(in_clear(&wire, first), 0);
    first.wait_for_pod_of(second);
    plane.start_api_server();

    // What it cannot be is named and not used; nodes are reached.
    for (subnets, fault) in [
        ("0.0.0.0/0", "a cluster's pods have no block wider than /8"),
        ("10.8.0.0/13", "10.8.0.0/13 holds 10.9.0.100, an address of an API server"),
    ] {
        name_subnets(&plane, subnets);
        let agent = first.agent.as_ref().unwrap();
        wait_until(fault, SOON, || agent.output().contains(fault));
        assert!(agent.output().contains("ConfigMap/kubeadm-config"));
        wait_until("Strict without it", SOON, || enforced(&plane).starts_with("False WithoutCatchAll "));
        assert!(!has_blackhole(first) && first.namespace.succeeds("ping -n -c 1 -W 1 10.9.0.2"));
    }
    name_subnets(&plane, "10.244.0.0/16");
    wait_until("a route to nowhere", SOON, || has_blackhole(first));

    // An agent that may not read it does all else. Nothing else of that namespace may be read.
    for line in [&["get", "configmaps"][..], &["get", "configmap", "other"], &["get", "secrets"]] {
        let (success, text) = plane.try_kubectl_as(&tokens[0], &[&["-n", "kube-system"], line].concat());
        assert!(!success && text.contains("is forbidden: "), "{}: {text}", line.join(" "));
    }
    plane.kubectl(&["-n", "kube-system", "delete", "role", "adit-agent"]);
    start_agent(first, &tokens[0]);
    wait_until("all lists are read", SOON, || !has_blackhole(first));
    wait_until("Strict without it", SOON, || enforced(&plane).starts_with("False WithoutCatchAll "));
    first.wait_until_peers_are(&[as_peer(second)]);
    assert!(in_clear(&wire, first) > 0);
    // It is no fault, and the node's check alone tells of it.
    let agent = first.agent.as_ref().unwrap();
    wait_until("a word of it", SOON, || {
        agent.output().contains("not allowed: list configmaps/kubeadm-config")
    });
    let output = agent.output();
    let told: Vec<_> = output.lines().filter(|line| line.contains("configmaps")).collect();
    assert!(told.iter().all(|line| line.contains("WARN preflight check=\"rbac\"")), "{told:?}");
    let text = fs::read_to_string(first.state.path().join("snapshot.json")).unwrap();
    assert!(text.contains("node2"));
}

#[test]
fn what_servers_of_k3s_were_started_with_is_dropped_as_well() {
    need!("ip", "wg", "ping", "nft", "setpriv", "unshare", "mount");
    let mut mesh = Mesh::new(2);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.install("{mode: Strict}");
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    // What a kubelet may say of its node alone.
    let annotate = |args: &str| {
        plane.kubectl(&["annotate", "--overwrite", "node", "node2", &format!("k3s.io/node-args={args}")]);
    };
    annotate(r#"["server","--cluster-cidr","10.244.0.0/16,fd00:244::/32"]"#);
    for node in &mut mesh.nodes {
        lay_routes(node);
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    }
    let wire = Wire::open(&mesh.fabric, "port1");
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_until_peers_are(&[as_peer(second)]);
    first.wait_for_pod_of(second);
    wait_until("Strict", SOON, || enforced(&plane).starts_with("False WithoutCatchAll "));
    assert!(in_clear(&wire, first) > 0);

    plane.kubectl(&["label", "node", "node2", "node-role.kubernetes.io/control-plane=true"]);
    let found = "True Enforced catch-all: 10.244.0.0/16, fd00:244::/32 (by the server on node2)";
    wait_until("a route to nowhere", SOON, || has_blackhole(first));
    wait_until("a word about it", SOON, || enforced(&plane) == found);
    assert_eq!(in_clear(&wire, first), 0);
    first.wait_for_pod_of(second);

    annotate(r#"["server","--cluster-cidr=10.0.0.0/7"]"#);
    let fault = "a cluster's pods have no block wider than /8";
    let agent = first.agent.as_ref().unwrap();
    wait_until(fault, SOON, || agent.output().contains(fault) && agent.output().contains("Node/node2"));
    wait_until("Strict without it", SOON, || enforced(&plane).starts_with("False WithoutCatchAll "));
    assert!(!has_blackhole(first));
}

/// An API server that has just started refuses everything until it has read its roles.
#[test]
fn kubeadms_network_is_known_as_soon_as_the_rest_may_be_read() {
    need!("ip", "wg", "nft", "setpriv", "unshare", "mount");
    let mut mesh = Mesh::new(2);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    let manifest = |name: &str| format!("{}/cni/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    plane.install("{mode: Strict}");
    for name in ["namespace", "rbac"] {
        plane.kubectl(&["apply", "-f", &manifest(name)]);
    }
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    name_subnets(&plane, "10.244.0.0/16");
    let token = token_of(&plane, 1);
    plane.kubectl(&["delete", "clusterrolebinding", "adit-agent"]);
    for namespace in ["default", "kube-system"] {
        plane.kubectl(&["-n", namespace, "delete", "rolebinding", "adit-agent"]);
    }
    let is_refused = || !plane.try_kubectl_as(&token, &["get", "nodes"]).0;
    wait_until("an API server that refuses", SOON, is_refused);
    let first = &mut mesh.nodes[0];
    first.start_data_plane(Program::Adit);
    first.start_agent_with("KUBECONFIG", &token);
    let refusals = || first.agent.as_ref().unwrap().output().matches("is forbidden").count();
    wait_until("a refusal of each list", SOON, || refusals() >= 4);
    plane.kubectl(&["apply", "-f", &manifest("rbac")]);
    wait_until("a route to nowhere", SOON, || has_blackhole(first));
}
