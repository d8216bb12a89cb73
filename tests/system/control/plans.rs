//! What nodes of a cluster say and wait for: addresses of single pods, and Strict once all are ready.

use super::cluster::{ControlPlane, as_peer, node_object};
use super::nodes::{Mesh, answered};
use super::security::token_of;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// Starts a control plane with the definitions and a `TunnelConfig`, and makes the nodes' own objects.
#[track_caller]
pub(crate) fn start(mesh: &Mesh, config: &str) -> Option<ControlPlane> {
    let plane = ControlPlane::start(&mesh.fabric)?;
    plane.install(config);
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    Some(plane)
}

#[test]
fn single_pods_addresses_are_told_and_reached_while_that_is_the_plan() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Some(plane) = start(&mesh, "{mode: Strict, podAddresses: Pods}") else { return };
    // A pod with addresses that have nothing to do with its node's, one on the host's network, one that has ended.
    for (name, spec, status) in [
        ("outside", "", r#"{"phase":"Running","podIPs":[{"ip":"10.7.0.9"},{"ip":"fd00:7::9"}]}"#),
        ("inside", "", r#"{"phase":"Running","podIPs":[{"ip":"10.244.2.7"}]}"#),
        ("host", "hostNetwork: true, ", r#"{"phase":"Running","podIPs":[{"ip":"10.9.0.2"}]}"#),
        ("ended", "", r#"{"phase":"Succeeded","podIPs":[{"ip":"10.7.0.10"}]}"#),
    ] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\n\
            spec: {{nodeName: node2, {spec}containers: [{{name: app, image: app}}]}}\n"
        );
        plane.apply("pod.yaml", &pod);
        let patch = format!("{{\"status\":{status}}}");
        plane.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch]);
    }
    // With the rights that their role and the one for this plan give them.
    for name in ["namespace", "rbac", "pods"] {
        let manifest = format!("{}/cni/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        plane.kubectl(&["apply", "-f", &manifest]);
    }
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &token_of(&plane, node.number));
    }
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    second.namespace.ip("addr add 10.7.0.9/32 dev lo");
    let said = || plane.try_kubectl(&["get", "nodetunnel", "node2", "-o", "jsonpath={.spec.podPrefixes}"]).1;
    let blocks = r#"["10.244.2.0/24","fd00:244:2::/64"]"#;
    let with_pod = r#"["10.244.2.0/24","fd00:244:2::/64","10.7.0.9/32","fd00:7::9/128"]"#;
    wait_until("the pod's addresses", SOON, || said() == with_pod);
    let more = ["10.244.2.0/32", "fd00:244:2::/128", "10.7.0.9/32", "fd00:7::9/128"];
    first.wait_until_peers_are(&[second.as_peer(&more)]);
    wait_until("an answer from the pod", SOON, || {
        first.namespace.succeeds("ping -n -c 1 -W 1 -I 10.244.1.1 10.7.0.9")
    });

    // By the other plan, nodes are what counts; and back again.
    plane.configure(r#"{"podAddresses":"Blocks"}"#);
    wait_until("the blocks alone", SOON, || said() == blocks);
    first.wait_until_peers_are(&[as_peer(second)]);
    plane.configure(r#"{"podAddresses":"Pods"}"#);
    wait_until("the pod's addresses", SOON, || said() == with_pod);
    plane.kubectl(&["delete", "pod", "outside", "--force", "--grace-period=0"]);
    wait_until("the blocks alone", SOON, || said() == blocks);
    first.wait_until_peers_are(&[as_peer(second)]);
}

#[test]
fn strict_takes_effect_once_every_node_is_ready_and_stays() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = start(&mesh, "{mode: Permissive}") else { return };
    for node in &mut mesh.nodes[..2] {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    }
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    let enforced = |name: &str| {
        let path = "jsonpath={range .status.conditions[?(@.type==\"StrictEnforced\")]}{.status} {.reason} {.message}{end}";
        plane.try_kubectl(&["get", "nodetunnel", name, "-o", path]).1
    };
    wait_until("a word on Strict", SOON, || enforced("node1") == "False NotWanted ");
    let ping = first.ping(second);
    plane.configure(r#"{"mode":"Strict"}"#);
    for name in ["node1", "node2"] {
        wait_until("who is waited for", SOON, || {
            enforced(name) == "False NotReady not ready: node3 (NotPublished)"
        });
    }
    let has_blackholes =
        |node: &super::nodes::Node| node.namespace.ip("route show table 8365").contains("blackhole");
    assert!(!has_blackholes(first));
    let status = ["status", &first.interface, "--state", first.state.path().to_str().unwrap()];
    wait_until("the same on the node", SOON, || {
        let (_, text) = first.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &status);
        text.contains("mode Permissive") && text.contains("waits for node3 (NotPublished)\n")
    });
    // An agent that is started anew goes on waiting.
    drop(first.agent.take());
    first.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    let agent = first.agent.as_ref().unwrap();
    wait_until("a word about it", SOON, || agent.output().contains("Strict waits"));
    assert!(!has_blackholes(first));

    third.start_data_plane(Program::Adit);
    third.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    for name in ["node1", "node2", "node3"] {
        wait_until("Strict", SOON, || enforced(name).starts_with("False WithoutCatchAll "));
    }
    assert!(has_blackholes(first));
    let (sent, received) = answered(ping);
    assert!(sent > 50 && sent - received <= 1, "{sent} sent, {received} answered");

    // A node that comes later does not open it, nor does an agent that is started anew.
    plane.apply(
        "node.yaml",
        &node_object(third).replace("node3", "node4").replace("244.3.", "244.4.").replace("244:3:", "244:4:"),
    );
    wait_until("the new node's pods are nobody's", SOON, || {
        first.namespace.ip("route show table 8365").contains("blackhole 10.244.4.0/24")
    });
    drop(first.agent.take());
    first.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    let agent = first.agent.as_ref().unwrap();
    wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
    assert!(has_blackholes(first));
    plane.configure(r#"{"clusterCIDRs":["10.244.0.0/16","fd00:244::/32"]}"#);
    wait_until("Strict with a catch-all", SOON, || enforced("node1") == "True Enforced ");
}
