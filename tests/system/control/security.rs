//! What an agent may do in the cluster: with the role and the policy that come with adit, and a token as kubelet gets one for its pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cluster::{ControlPlane, as_peer, node_object};
use super::nodes::{Mesh, Node};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

fn manifest(name: &str) -> String {
    format!("{}/cni/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// Makes the pod of a node's agent and a token that is bound to it; returns how the API server is reached with that.
#[track_caller]
pub(super) fn token_of(plane: &ControlPlane, node: usize) -> PathBuf {
    let pod = format!("agent{node}");
    plane.apply(
        "pod.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: adit-system}}\nspec: {{nodeName: node{node}, \
            serviceAccountName: adit-agent, containers: [{{name: agent, image: adit}}]}}\n"
        ),
    );
    let uid = plane.kubectl(&["-n", "adit-system", "get", "pod", &pod, "-o", "jsonpath={.metadata.uid}"]);
    let [name, uid] =
        [("name", &pod), ("uid", &uid)].map(|(what, value)| format!("--bound-object-{what}={value}"));
    let bound =
        ["-n", "adit-system", "create", "token", "adit-agent", "--bound-object-kind=Pod", &name, &uid];
    plane.write_kubeconfig(&pod, plane.kubectl(&bound).trim())
}

/// Checks that the API server answers 403, which it words so, and with these words.
#[track_caller]
fn assert_forbidden(plane: &ControlPlane, kubeconfig: &Path, line: &[&str], words: &str) {
    let (success, text) = plane.try_kubectl_as(kubeconfig, line);
    assert!(
        !success && text.contains("is forbidden: ") && text.contains(words),
        "{}: {text}",
        line.join(" ")
    );
}

#[test]
fn an_agent_writes_the_object_of_its_own_node_and_nothing_else() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.kubectl(&["apply", "-f", &manifest("namespace")]);
    for name in ["crds", "rbac", "policy", "daemonset"] {
        plane.kubectl(&["apply", "--dry-run=server", "-f", &manifest(name)]);
    }
    plane.define();
    plane.kubectl(&["apply", "-f", &manifest("rbac")]);
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    let tokens: Vec<_> = mesh.nodes.iter().map(|node| token_of(&plane, node.number)).collect();
    let own = &tokens[0];

    // Agents with no more than that are able to do all that they do.
    for (node, token) in mesh.nodes.iter_mut().zip(&tokens) {
        node.start_data_plane(Program::Adit);
        // Nobody has said what is wanted of all nodes.
        node.start_agent_in(&[("KUBECONFIG", token.to_str().unwrap()), ("ADIT_DEFAULT_MODE", "Strict")]);
    }
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_until_peers_are(&[as_peer(second)]);
    first.wait_for_pod_of(second);
    let mode = ["get", "tunnelconfig", "default", "-o", "jsonpath={.spec}"];
    assert_eq!(plane.kubectl(&mode), r#"{"mode":"Strict"}"#);
    let status = "jsonpath={.status.conditions[?(@.type==\"PeersInSync\")].status}";
    wait_until("a status", SOON, || plane.kubectl(&["get", "nodetunnel", "node2", "-o", status]) == "True");

    // Tried, but not done.
    let patch = |node: &'static str| {
        ["patch", "nodetunnel", node, "--type=merge", "-p", r#"{"spec":{"mtu":1400}}"#, "--dry-run=server"]
    };
    // The control: the role alone lets an agent write over another's.
    let (success, text) = plane.try_kubectl_as(own, &patch("node2"));
    assert!(success, "{text}");
    plane.kubectl(&["apply", "-f", &manifest("policy")]);
    wait_until("the policy", SOON, || !plane.try_kubectl_as(own, &patch("node2")).0);

    let (success, text) = plane.try_kubectl_as(own, &patch("node1"));
    assert!(success, "{text}");
    let refused = "the agent of node node1 may not write the NodeTunnel of node2";
    assert_forbidden(&plane, own, &patch("node2")[..6], refused);
    let found = "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {name: node2}\nstatus: {peers: {total: 9, up: 9, down: 0}}\n";
    let found = plane.write("status.yaml", found);
    let status = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--subresource=status",
        "-f",
        found.to_str().unwrap(),
    ];
    assert_forbidden(&plane, own, &status, refused);
    assert_forbidden(&plane, &tokens[1], &patch("node1")[..6], "the agent of node node2 may not");
    let other = plane.write("other.yaml", &node9(&first.key));
    let other = other.to_str().unwrap();
    assert_forbidden(&plane, own, &["create", "-f", other], "may not write the NodeTunnel of node9");
    assert_forbidden(
        &plane,
        own,
        &["apply", "--server-side", "-f", other],
        "may not write the NodeTunnel of node9",
    );
    // A token that anybody with the right to make one has made, bound to no node.
    let unbound = plane.kubectl(&["-n", "adit-system", "create", "token", "adit-agent"]);
    let unbound = plane.write_kubeconfig("unbound", unbound.trim());
    assert_forbidden(&plane, &unbound, &patch("node1")[..6], "bound to a node, and this one is not");

    // For other nodes it may not speak by a TunnelConfig either.
    for (name, spec) in
        [("node.node2", "{mode: \"Off\"}"), ("default", "{mode: \"Off\", listenPort: 1}"), ("default", "{}")]
    {
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        );
        let path = plane.write("tunnelconfig.yaml", &text);
        let line = ["create", "-f", path.to_str().unwrap()];
        assert_forbidden(&plane, own, &line, "an agent makes the TunnelConfig called default");
    }

    // What an agent does not do it may not do.
    for line in [
        &["delete", "nodetunnel", "node1"][..],
        &["delete", "nodetunnel", "node2"],
        &["patch", "tunnelconfig", "default", "--type=merge", "-p", r#"{"spec":{"mode":"Off"}}"#],
        &["create", "-f", &manifest("crds")],
        &["label", "node", "node1", "a=b"],
        &["-n", "adit-system", "get", "pod", "agent1"],
        &["-n", "adit-system", "delete", "pod", "agent1"],
        &["-n", "adit-system", "get", "secrets"],
        &["get", "events"],
        &["-n", "adit-system", "create", "token", "adit-agent"],
        &["delete", "validatingadmissionpolicybinding", "adit-own-nodetunnel"],
    ] {
        assert_forbidden(&plane, own, line, "cannot");
    }

    // An administrator is not bound by the policy, and the nodes are as they were.
    plane.kubectl(&patch("node2"));
    first.wait_until_peers_are(&[as_peer(second)]);
}

fn node9(key: &str) -> String {
    format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node9}}\nspec:\n  keys: [{{publicKey: \"{key}\", state: Active}}]\n"
    )
}

/// Returns the checks that neither pass nor are skipped, with what was seen.
fn preflight(node: &Node, kubeconfig: &Path) -> BTreeMap<String, (String, String)> {
    let state = node.state.path().to_str().unwrap();
    let args = ["preflight", "-o", "json", "--state", state, "--kubeconfig", kubeconfig.to_str().unwrap()];
    let (_, text) = node.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &args);
    // Behind the report, on the other stream, is what failed.
    let end = text.rfind('}').unwrap_or_else(|| panic!("{text}"));
    let report: Value = serde_json::from_str(&text[..=end]).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    let word = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    let found = checks.map(|check| (word(check, "id"), (word(check, "result"), word(check, "evidence"))));
    found.filter(|(_, (result, _))| result != "pass" && result != "skip").collect()
}

#[test]
fn preflight_tells_what_an_agent_may_not_do() {
    need!("ip", "wg", "setpriv");
    let mesh = Mesh::new(1);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.kubectl(&["create", "namespace", "adit-system"]);
    plane.kubectl(&["apply", "-f", &manifest("crds"), "-f", &manifest("rbac")]);
    plane.apply("node.yaml", &node_object(&mesh.nodes[0]));
    let token = token_of(&plane, 1);
    let node = &mesh.nodes[0];
    let without = |mut found: BTreeMap<String, _>| {
        found.remove("rbac");
        found
    };
    let healthy = preflight(node, &token);
    assert_eq!(healthy.get("rbac"), None, "{healthy:?}");
    for (kind, at, verbs, words) in [
        ("clusterrole", 0, r#"["get","list","create","patch"]"#, "not allowed: watch nodetunnels.adit.dev"),
        ("clusterrole", 1, r#"["get"]"#, "not allowed: patch nodetunnels/status.adit.dev"),
        ("role", 1, r#"["patch"]"#, "not allowed: create events.events.k8s.io in default"),
    ] {
        let path = format!("jsonpath={{.rules[{at}].verbs}}");
        let before = plane.kubectl(&["-n", "default", "get", kind, "adit-agent", "-o", &path]);
        let patch = |verbs: &str| {
            let patch = format!(r#"[{{"op":"replace","path":"/rules/{at}/verbs","value":{verbs}}}]"#);
            plane.kubectl(&["-n", "default", "patch", kind, "adit-agent", "--type=json", "-p", &patch]);
        };
        patch(verbs);
        wait_until(words, SOON, || {
            let found = preflight(node, &token);
            assert_eq!(without(found.clone()), without(healthy.clone()));
            found.get("rbac").is_some_and(|(result, evidence)| result == "fail" && evidence == words)
        });
        patch(before.trim());
        wait_until("all is allowed again", SOON, || !preflight(node, &token).contains_key("rbac"));
    }
    // Who cannot ask does not know.
    let nowhere = plane.write("nowhere", &std::fs::read_to_string(&token).unwrap().replace(":6443", ":6444"));
    let found = preflight(node, &nowhere);
    assert!(found["rbac"].1.contains("the API server cannot be asked"), "{found:?}");
}
