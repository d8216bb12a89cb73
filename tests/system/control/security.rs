//! What an agent may do in the cluster: with the role and the policy that come with adit, and a token as kubelet gets one for its pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cluster::{ControlPlane, as_peer, node_object};
use super::host_traffic::pod;
use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::Program;
use crate::support::{Directory, SOON, need, wait_until};

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
    for name in ["crds", "rbac", "policy", "taint", "daemonset"] {
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
        // kubectl takes it for an object without a spec, once it has read what one looks like.
        "--validate=false",
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
    // Without its owner it would stay when the node is removed.
    for owners in ["null", r#"[{"apiVersion":"v1","kind":"Node","name":"node2","uid":"u"}]"#] {
        let patch = format!("{{\"metadata\":{{\"ownerReferences\":{owners}}}}}");
        let line = ["patch", "nodetunnel", "node1", "--type=merge", "-p", &patch];
        assert_forbidden(&plane, own, &line, "a NodeTunnel is owned by its Node");
    }
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
        &["-n", "adit-system", "get", "pods"],
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

#[test]
fn pods_of_three_nodes_talk_and_nothing_of_it_is_in_clear_once_one_command_says_so() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.define();
    plane.kubectl(&["create", "namespace", "adit-system"]);
    for name in ["rbac", "policy"] {
        plane.kubectl(&["apply", "-f", &manifest(name)]);
    }
    let pods: Vec<_> = mesh.nodes.iter().map(pod).collect();
    for node in &mut mesh.nodes {
        plane.apply("node.yaml", &node_object(node));
        // As whoever made the pods' network has laid it.
        for n in (1..=3).filter(|n| *n != node.number) {
            node.namespace.ip(&format!("route add 10.244.{n}.0/24 via 10.9.0.{n}"));
        }
        let token = token_of(&plane, node.number);
        node.start_data_plane(Program::Adit);
        node.start_agent_in(&[("KUBECONFIG", token.to_str().unwrap()), ("ADIT_DEFAULT_MODE", "Off")]);
    }
    mesh.nodes.iter().for_each(|node| node.wait_for_peers(2));
    let wires = ["port1", "port2", "port3"].map(|port| Wire::open(&mesh.fabric, port));
    let pattern = canary_pattern();
    let all_answer = || {
        let pairs = pods
            .iter()
            .enumerate()
            .flat_map(|(at, pod)| (0..pods.len()).filter(move |to| *to != at).map(move |to| (pod, to + 1)));
        pairs.fold(true, |all, (pod, to)| {
            pod.succeeds(&format!("ping -n -c 1 -W 1 -p {pattern} 10.244.{to}.9")) && all
        })
    };
    // Each way there and back, seen at both ends.
    let seen = || {
        for (wire, what) in wires.iter().flat_map(|wire| [(wire, Seen::Canary), (wire, Seen::WireGuard)]) {
            wire.forget(what);
        }
        all_answer()
            .then(|| wires.each_ref().map(|wire| (wire.count(Seen::Canary), wire.count(Seen::WireGuard))))
    };
    // The control: this is what is seen where nothing is encrypted.
    wait_until("answers in clear", SOON, || seen() == Some([(8, 0); 3]));
    plane.configure(r#"{"mode":"Strict","clusterCIDRs":["10.244.0.0/16","fd00:244::/32"]}"#);
    wait_until("Strict, and all answers", SOON, || {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"StrictEnforced\")].status}";
        plane.kubectl(&["get", "nodetunnels", "-o", path]) == "True True True" && all_answer()
    });
    let seen = seen().expect("all answer");
    assert!(seen.iter().all(|(clear, encrypted)| *clear == 0 && *encrypted >= 8), "{seen:?}");
}

/// Without its TunnelConfig a cluster that was Strict would send in clear.
#[test]
fn strict_is_not_lost_with_its_object_or_a_line_of_it() {
    need!("ip");
    let mesh = Mesh::new(1);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.define();
    plane.kubectl(&["create", "namespace", "adit-system"]);
    plane.kubectl(&["apply", "-f", &manifest("policy")]);
    let config = |spec: &str| {
        format!(
            "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
        )
    };
    plane.apply("config.yaml", &config("{mode: Strict}"));
    let attempt = |line: &[&str]| plane.try_kubectl(&[line, &["--dry-run=server"]].concat());
    let delete = ["delete", "tunnelconfig", "default"];
    wait_until("the policy", SOON, || !attempt(&delete).0);
    let text = attempt(&delete).1;
    assert!(text.contains("is forbidden: ") && text.contains("set its mode to Off first"), "{text}");
    let path = plane.write("without.yaml", &config("{listenPort: 51821}"));
    let (success, text) = attempt(&["replace", "-f", path.to_str().unwrap()]);
    assert!(!success && text.contains("set its mode to Off first"), "{text}");
    // Whoever says what is wanted is obeyed, in Strict too.
    let patch = |spec: &str| {
        let patch = format!("{{\"spec\":{spec}}}");
        plane.kubectl(&["patch", "tunnelconfig", "default", "--type=merge", "-p", &patch]);
    };
    patch("{\"listenPort\":51821}");
    patch("{\"mode\":\"Permissive\"}");
    plane.kubectl(&delete);
    plane.apply("config.yaml", &config("{mode: \"Off\"}"));
    plane.kubectl(&delete);
}

#[test]
fn an_agent_takes_the_startup_taint_off_its_own_node_and_changes_no_node_otherwise() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.define();
    plane.kubectl(&["create", "namespace", "adit-system"]);
    for name in ["rbac", "policy", "taint"] {
        plane.kubectl(&["apply", "-f", &manifest(name)]);
    }
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    // That of a node without a kubelet, which nobody here would take off.
    plane.kubectl(&["taint", "nodes", "--all", "node.kubernetes.io/not-ready-"]);
    plane.kubectl(&["label", "nodes", "--all", "is=labelled"]);
    let [own, others] = [1, 2].map(|node| token_of(&plane, node));
    let own = &own;
    let taint = |node: &str| {
        let all = [OWN_TAINT, "adit.dev/agent-not-ready:NoExecute", "example.com/other=x:NoSchedule"];
        plane.kubectl(&[&["taint", "node", node, "--overwrite"], &all[..]].concat());
    };
    let taints = |node: &str| {
        let path = "jsonpath={range .spec.taints[*]}{.key}:{.effect} {end}";
        plane.kubectl(&["get", "node", node, "-o", path]).trim().to_owned()
    };
    taint("node1");
    taint("node2");
    let without = r#"{"spec":{"taints":[{"key":"example.com/other","value":"x","effect":"NoSchedule"}]}}"#;
    let patch =
        |node: &'static str, patch: &'static str| ["patch", "node", node, "--type=merge", "-p", patch];
    let dry = |node: &'static str| [&patch(node, without)[..], &["--dry-run=server"]].concat();

    // The control: the role alone lets an agent change every node.
    let binding = ["delete", "validatingadmissionpolicybinding", "adit-own-taint"];
    plane.kubectl(&binding);
    wait_until("no policy", SOON, || plane.try_kubectl_as(own, &dry("node2")).0);
    plane.kubectl(&["apply", "-f", &manifest("taint")]);
    wait_until("the policy", SOON, || !plane.try_kubectl_as(own, &dry("node2")).0);
    let path = "jsonpath={.status.typeChecking.expressionWarnings}";
    let warnings = || plane.kubectl(&["get", "validatingadmissionpolicy", "adit-own-taint", "-o", path]);
    assert_eq!(warnings(), "", "the types of the expressions");

    let (success, text) = plane.try_kubectl_as(own, &dry("node1"));
    assert!(success, "{text}");
    let refused = "the agent of node node1 may not change the Node node2";
    assert_forbidden(&plane, own, &patch("node2", without), refused);
    assert_forbidden(&plane, &others, &patch("node1", without), "the agent of node node2 may not");
    let unbound = plane.kubectl(&["-n", "adit-system", "create", "token", "adit-agent"]);
    let unbound = plane.write_kubeconfig("unbound", unbound.trim());
    assert_forbidden(&plane, &unbound, &patch("node1", without), "with a token that is bound to its node");
    for line in [
        // All of them; another; one more; one of its two; another value.
        &patch("node1", r#"{"spec":{"taints":null}}"#)[..],
        &["taint", "node", "node1", "example.com/other-"],
        &["taint", "node", "node1", "example.com/third:NoExecute"],
        &["taint", "node", "node1", "adit.dev/agent-not-ready:NoExecute-"],
        &["taint", "node", "node1", "--overwrite", "adit.dev/agent-not-ready=y:NoSchedule"],
    ] {
        assert_forbidden(
            &plane,
            own,
            line,
            "an agent removes the taint adit.dev/agent-not-ready, and leaves",
        );
    }
    for more in [
        r#""spec":{"unschedulable":true"#,
        r#""spec":{"providerID":"x""#,
        r#""metadata":{"labels":{"a":"b"}},"spec":{"#,
        r#""metadata":{"labels":null},"spec":{"#,
        r#""metadata":{"annotations":{"a":"b"}},"spec":{"#,
        r#""metadata":{"finalizers":["example.com/f"]},"spec":{"#,
    ] {
        let comma = if more.ends_with('{') { "" } else { "," };
        let patch = format!("{{{more}{comma}{}", &without[r#"{"spec":{"#.len()..]);
        let line = ["patch", "node", "node1", "--type=merge", "-p", &patch];
        assert_forbidden(&plane, own, &line, "an agent changes nothing in the ");
    }
    for line in [
        &[
            "patch",
            "node",
            "node1",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"phase":"x"}}"#,
        ][..],
        &["delete", "node", "node1"],
        &[
            "create",
            "-f",
            plane
                .write("node9.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: node9}\n")
                .to_str()
                .unwrap(),
        ],
    ] {
        assert_forbidden(&plane, own, line, "cannot");
    }

    // The agent does so when it is ready, and pods that come are held: not before it is among the plugins of a network.
    let first = &mut mesh.nodes[0];
    let networks = Directory::new();
    let socket = networks.path().join("socket");
    first.start_agent_in(&[
        ("KUBECONFIG", own.to_str().unwrap()),
        ("ADIT_DEFAULT_MODE", "Strict"),
        ("ADIT_CNI_CONF_DIR", networks.path().to_str().unwrap()),
        ("ADIT_CNI_SOCKET", socket.to_str().unwrap()),
        ("ADIT_CNI_STATE", networks.path().to_str().unwrap()),
        ("ADIT_STARTUP_TAINT", "adit.dev/agent-not-ready"),
    ]);
    let network = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
    let tainted =
        "adit.dev/agent-not-ready:NoSchedule adit.dev/agent-not-ready:NoExecute example.com/other:NoSchedule";
    wait_until("an agent without a data plane", SOON, || {
        first.agent.as_ref().unwrap().output().contains("the node is not yet what it should be")
    });
    first.start_data_plane(Program::Adit);
    wait_until("an agent that is in no network", SOON, || {
        first.agent.as_ref().unwrap().output().contains("the runtime is not told to call the CNI plugin")
    });
    assert_eq!(taints("node1"), tainted);
    let list = networks.path().join("10-pods.conflist");
    fs::write(&list, network).unwrap();
    let is_called = || fs::read_to_string(&list).unwrap().contains("adit-cni");
    let rest = "example.com/other:NoSchedule";
    wait_until("the taint removed", SOON, || taints("node1") == rest);
    assert!(is_called());
    // Who sets it once more is told the same; but not while nothing is held.
    taint("node1");
    wait_until("the taint removed once more", SOON, || taints("node1") == rest);
    drop(first.data_plane.take());
    wait_until("the data plane missed", SOON, || {
        first.agent.as_ref().unwrap().output().matches("the node is not yet what it should be").count() > 1
    });
    // Nor does the network's owner bring it out of the network then.
    fs::write(&list, network).unwrap();
    wait_until("the plugin put back", SOON, is_called);
    taint("node1");
    // A change that is told after that one.
    plane.kubectl(&["label", "node", "node1", "topology.kubernetes.io/zone=east"]);
    wait_until("the zone", SOON, || {
        let path = "jsonpath={.spec.endpoints[*].zone}";
        plane.kubectl(&["get", "nodetunnel", "node1", "-o", path]).trim() == "east"
    });
    assert_eq!(taints("node1"), tainted);
    first.start_data_plane(Program::Adit);
    wait_until("the taint removed as the data plane is back", SOON, || taints("node1") == rest);
    assert_eq!(taints("node2"), tainted, "another node's");
}

const OWN_TAINT: &str = "adit.dev/agent-not-ready:NoSchedule";

fn node9(key: &str) -> String {
    format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node9}}\nspec:\n  keys: [{{publicKey: \"{key}\", state: Active}}]\n"
    )
}

#[test]
fn a_node_has_no_address_but_those_that_the_cluster_knows() {
    need!("ip", "wg", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(plane) = super::plans::start(&mesh, "{mode: Strict}") else { return };
    // The second node's object is the older one, and claims a pod's address of the third's, its own address, and one more.
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    let say = |node: &Node, nodes: &str, tunnels: &str| {
        let (n, key) = (node.number, &node.key);
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  \
            keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: 10.9.0.{n}, port: 51820}}]\n  \
            podPrefixes: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"]\n  nodeAddresses: [{nodes}]\n  tunnelAddresses: [{tunnels}]\n"
        );
        plane.apply("tunnel.yaml", &text);
    };
    say(second, "10.9.0.2, 10.244.3.9, 10.9.0.3, 10.9.0.22", "10.244.3.1, 10.244.2.0");
    let created = || {
        let path = "jsonpath={.metadata.creationTimestamp}";
        plane.kubectl(&["get", "nodetunnel", "node2", "-o", path])
    };
    // Ages are told in seconds.
    wait_until("a second", SOON, || {
        say(third, "10.9.0.3", "");
        let path = "jsonpath={.metadata.creationTimestamp}";
        let is_younger = plane.kubectl(&["get", "nodetunnel", "node3", "-o", path]) > created();
        if !is_younger {
            plane.kubectl(&["delete", "nodetunnel/node3"]);
        }
        is_younger
    });
    first.start_data_plane(Program::Adit);
    first.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    first.wait_until_peers_are(&[second.as_peer(&["10.244.2.0/32"]), third.as_peer(&[])]);
    let agent = first.agent.as_ref().unwrap();
    wait_until("a word about every claim", SOON, || {
        let told = agent.output();
        let fields = ["nodeAddresses[1]", "nodeAddresses[2]", "nodeAddresses[3]", "tunnelAddresses[0]"];
        fields.iter().all(|field| told.contains(&format!("spec.{field}")))
    });

    // The cluster learns of an address that the node says it has.
    let addresses =
        ["10.9.0.2", "10.9.0.22"].map(|addr| format!("{{\"type\":\"InternalIP\",\"address\":\"{addr}\"}}"));
    let patch = format!("{{\"status\":{{\"addresses\":[{}]}}}}", addresses.join(","));
    plane.kubectl(&["patch", "node", "node2", "--subresource=status", "--type=merge", "-p", &patch]);
    first.wait_until_peers_are(&[second.as_peer(&["10.244.2.0/32", "10.9.0.22/32"]), third.as_peer(&[])]);
}

const TAINT: [&str; 2] = ["--startup-taint", "adit.dev/agent-not-ready"];

#[test]
fn a_data_plane_of_the_manifests_is_ended_only_after_minutes_of_silence() {
    let text = fs::read_to_string(manifest("daemonset")).unwrap();
    let daemonset: Value = serde_saphyr::from_str(&text).unwrap();
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let data_plane = containers.iter().find(|container| container["name"] == "data-plane").unwrap();
    let last = |list: &Value| list.as_array().unwrap().last().unwrap().clone();
    let probe = &data_plane["livenessProbe"];
    let command = &probe["exec"]["command"];
    assert_eq!((&command[0], &command[1]), (&"/usr/bin/adit".into(), &"alive".into()));
    assert_eq!(last(command), last(&data_plane["args"]), "the interface");
    let number = |field: &str| probe[field].as_u64().unwrap();
    assert!(number("periodSeconds") * number("failureThreshold") >= 180);
    // Its own patience, and what a process takes to begin on a machine that is busy.
    assert!(number("timeoutSeconds") >= 10);
}

/// Returns the checks that neither pass nor are skipped, with what was seen.
fn preflight(node: &Node, kubeconfig: &Path) -> BTreeMap<String, (String, String)> {
    let state = node.state.path().to_str().unwrap();
    let place = ["--state", state, "--kubeconfig", kubeconfig.to_str().unwrap()];
    let args = [&["preflight", "-o", "json", "--default-mode", "Strict"], &TAINT[..], &place[..]].concat();
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
    for name in ["crds", "rbac", "taint"] {
        plane.kubectl(&["apply", "-f", &manifest(name)]);
    }
    plane.apply("node.yaml", &node_object(&mesh.nodes[0]));
    let token = token_of(&plane, 1);
    let node = &mesh.nodes[0];
    let without = |mut found: BTreeMap<String, _>| {
        found.remove("rbac");
        found
    };
    let healthy = preflight(node, &token);
    assert_eq!(healthy.get("rbac"), None, "{healthy:?}");
    let all = ("default", "clusterrole", "adit-agent");
    for ((namespace, kind, name), at, verbs, result, words) in [
        (all, 0, r#"["get","list","create","patch"]"#, "fail", "watch nodetunnels.adit.dev"),
        (("default", "clusterrole", "adit-agent-taint"), 0, r#"["get"]"#, "fail", "patch nodes"),
        (all, 1, r#"["get"]"#, "fail", "patch nodetunnels/status.adit.dev"),
        (all, 2, r#"["get","list","watch"]"#, "fail", "create tunnelconfigs.adit.dev"),
        (
            ("default", "role", "adit-agent"),
            1,
            r#"["patch"]"#,
            "fail",
            "create events.events.k8s.io in default",
        ),
        // Who names the prefixes of all pods does without.
        (
            ("kube-system", "role", "adit-agent"),
            0,
            r#"["list"]"#,
            "warn",
            "watch configmaps/kubeadm-config in kube-system",
        ),
    ] {
        let words = &format!("not allowed: {words}");
        let path = format!("jsonpath={{.rules[{at}].verbs}}");
        let before = plane.kubectl(&["-n", namespace, "get", kind, name, "-o", &path]);
        let patch = |verbs: &str| {
            let patch = format!(r#"[{{"op":"replace","path":"/rules/{at}/verbs","value":{verbs}}}]"#);
            plane.kubectl(&["-n", namespace, "patch", kind, name, "--type=json", "-p", &patch]);
        };
        patch(verbs);
        wait_until(words, SOON, || {
            let found = preflight(node, &token);
            assert_eq!(without(found.clone()), without(healthy.clone()));
            found.get("rbac") == Some(&(result.to_owned(), words.clone()))
        });
        patch(before.trim());
        wait_until("all is allowed again", SOON, || !preflight(node, &token).contains_key("rbac"));
    }
    // Who cannot ask does not know.
    let nowhere = plane.write("nowhere", &fs::read_to_string(&token).unwrap().replace(":6443", ":6444"));
    let found = preflight(node, &nowhere);
    assert!(found["rbac"].1.contains("the API server cannot be asked"), "{found:?}");
}
