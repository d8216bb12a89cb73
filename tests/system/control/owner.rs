//! What a node said goes with the node: the garbage collector removes it, and nothing else does for long.

use std::time::Duration;

use super::cluster::{ControlPlane, as_peer, node_object};
use super::nodes::{Mesh, Node};
use crate::support::tunnel::Program;
use crate::support::{Process, SOON, need, wait_until};

/// How long the garbage collector may take: it looks at what there is to own every half a minute (`startGarbageCollectorController`).
const COLLECTED: Duration = Duration::from_secs(60);

/// Starts the garbage collector alone; `None` if it is not here.
#[track_caller]
fn collector(plane: &ControlPlane) -> Option<Process> {
    const PROGRAM: &str = "kube-controller-manager";
    if !plane.assets().join(PROGRAM).exists() {
        // envtest has only those of a control plane.
        eprintln!("skipped: {PROGRAM} missing where KUBEBUILDER_ASSETS says");
        return None;
    }
    let config = plane.kubeconfig();
    let config = config.to_str().unwrap();
    let mut args =
        ["", "authentication-", "authorization-"].map(|what| format!("--{what}kubeconfig={config}")).to_vec();
    args.extend([
        "--controllers=garbage-collector-controller".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--cert-dir={}", plane.path("certificates").display()),
    ]);
    Some(plane.spawn(PROGRAM, &args.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// Tells whether a node's object is there and has the node that is there for its owner, and no other.
fn is_owned(plane: &ControlPlane, node: &Node) -> bool {
    let name = format!("node{}", node.number);
    let field = |kind: &str, path: &str| {
        plane.try_kubectl(&["get", kind, &name, "-o", &format!("jsonpath={{{path}}}")])
    };
    let (is_there, uid) = field("node", ".metadata.uid");
    is_there && field("nodetunnel", ".metadata.ownerReferences[*].uid") == (true, uid)
}

#[test]
fn what_a_node_said_goes_with_the_node_though_that_was_made_anew_or_left_it_behind() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.install("{mode: Strict}");
    let Some(_collector) = collector(&plane) else { return };
    for node in &mut mesh.nodes {
        plane.apply("node.yaml", &node_object(node));
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    }
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_until_peers_are(&[as_peer(second)]);

    // Left behind: the collector takes the owner away, once it knows of what there is to own. The kubelet of a node that runs makes it anew.
    let owners = ["get", "nodetunnel", "node2", "-o", "jsonpath={.metadata.ownerReferences}"];
    wait_until("an object that is left behind", COLLECTED, || {
        wait_until("an owner", SOON, || is_owned(&plane, second));
        // It would name the node that is just going, which is no owner either, before anybody could look.
        drop(second.agent.take());
        plane.kubectl(&["delete", "node", "node2", "--cascade=orphan"]);
        let left = plane.try_kubectl(&owners);
        plane.apply("node.yaml", &node_object(second));
        second.start_agent_with("KUBECONFIG", &plane.kubeconfig());
        left == (true, String::new())
    });
    wait_until("the node that is there for an owner", SOON, || is_owned(&plane, second));

    // Made anew at once: whether the collector or the agent is first, the new node has an object of its own.
    for _ in 0..3 {
        plane.kubectl(&["delete", "node", "node2"]);
        plane.apply("node.yaml", &node_object(second));
        wait_until("the node made anew for an owner", SOON, || is_owned(&plane, second));
    }
    first.wait_until_peers_are(&[as_peer(second)]);

    // Gone for good.
    plane.kubectl(&["delete", "node", "node2"]);
    wait_until("the collector", COLLECTED, || !plane.try_kubectl(&["get", "nodetunnel", "node2"]).0);
    first.wait_until_peers_are(&[]);
}
