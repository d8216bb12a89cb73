//! A whole cluster: real nodes with kubelet, containerd and kube-proxy, on which adit is installed as a user would, by its manifests.

mod nodes;

use nodes::{A_WHILE, Cluster, INTERVAL, Pod, PodNetwork};

use crate::control::nodes::answered;
use crate::control::wire::{CANARY, Seen, Wire};
use crate::support::{SOON, need, wait_until};

/// What it takes to run a pod.
macro_rules! need_a_cluster {
    () => {
        need!(
            "ip",
            "nft",
            "iptables",
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "runc",
            "busybox",
            "unshare",
            "setpriv"
        );
    };
}

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cni/manifests");

/// Two pods of a Deployment that must not share a node, and a Service before them.
const WORKLOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: echo}}}
      containers:
      - name: echo
        image: localhost/busybox:1
        imagePullPolicy: Never
        command: [nc, -ll, -p, "8080", -e, sh, -c, hostname && exec cat]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  clusterIP: 10.96.0.80
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: host}
spec:
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      containers: [{name: host, image: localhost/busybox:1, imagePullPolicy: Never, command: [sleep, "1000000"]}]
"#;

/// Runs the workload, and returns its two pods by the names of their nodes.
#[track_caller]
fn run_workload(cluster: &Cluster) -> [Pod; 2] {
    cluster.plane.apply("workload.yaml", WORKLOAD);
    cluster.wait_for_rollout("default", "deployment/echo");
    cluster.wait_for_rollout("default", "daemonset/host");
    let pods = cluster.pods("app=echo").try_into();
    let pods: [Pod; 2] = pods.unwrap_or_else(|pods: Vec<Pod>| panic!("two pods, not {}", pods.len()));
    assert_ne!(pods[0].node, pods[1].node);
    pods
}

/// Checks that pods, nodes and the Service reach each other.
#[track_caller]
fn assert_works(cluster: &Cluster, first: &Pod, second: &Pod) {
    for (from, to) in [(first, second), (second, first)] {
        cluster.wait_for_echo(&from.name, &to.address);
    }
    for host in cluster.pods("app=host") {
        cluster.wait_for_echo(&host.name, &first.address);
        cluster.wait_for_echo(&host.name, &second.address);
        assert!(cluster.exec(&first.name, &["ping", "-c", "1", "-W", "4", &host.address]).is_some());
    }
    // Through the Service, to both in turn. (A pod that reaches itself would need a bridge that sends back.)
    let host = &cluster.pods("app=host")[0];
    let mut answers = std::collections::BTreeSet::new();
    wait_until("answers of both pods through the Service", SOON, || {
        answers.extend(cluster.echo(&host.name, "10.96.0.80", 80));
        answers.len() == 2
    });
}

/// Runs a pod beside one that sends to the other from its first moment, and waits until that is seen.
#[track_caller]
fn run_eager(cluster: &Cluster, wire: &Wire, name: &str, [from, to]: [&Pod; 2], seen: Seen) {
    let canary = str::from_utf8(CANARY).unwrap();
    let (node, address) = (&from.node, &to.address);
    wire.forget(Seen::WireGuard);
    wire.forget(Seen::Canary);
    cluster.plane.apply(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  \
            containers:\n  - name: eager\n    image: localhost/busybox:1\n    imagePullPolicy: Never\n    \
            command: [sh, -c, \"while :; do echo {canary} | nc -w 1 {address} 8080; done\"]\n"
        ),
    );
    wait_until("what the new pod sends", A_WHILE, || wire.count(seen) > 10);
    wait_until("answers to the new pod", A_WHILE, || {
        cluster.plane.try_kubectl(&["logs", name]).1.contains(canary)
    });
}

#[test]
fn a_cluster_is_encrypted_by_one_command_and_stays_so() {
    need_a_cluster!();
    let Some(mut cluster) = Cluster::start(2, PodNetwork::Bridge) else { return };
    let wire = Wire::open(&cluster.fabric, "port1");
    let [first, second] = &run_workload(&cluster);

    // The control: as it is without adit, and what must work with it.
    assert_works(&cluster, first, second);
    assert!(wire.count(Seen::Canary) > 0, "pods are seen in clear without adit");

    cluster.plane.kubectl(&["apply", "-k", MANIFESTS]);
    cluster.wait_for_rollout("adit-system", "daemonset/adit");
    cluster.wait_until_encrypted(&wire, first, second);
    for mode in ["Off", "Permissive", "Strict"] {
        cluster.set_mode(mode);
        if mode == "Off" {
            wait_until("cleartext in mode Off", A_WHILE, || {
                wire.forget(Seen::Canary);
                cluster.echoes(first, second) && wire.count(Seen::Canary) > 0
            });
        } else {
            cluster.wait_until_encrypted(&wire, first, second);
        }
        assert_works(&cluster, first, second);
        wire.forget(Seen::Canary);
        assert!(cluster.echoes(first, second) && cluster.echoes(second, first));
        assert_eq!(wire.count(Seen::Canary) == 0, mode != "Off", "in clear in mode {mode}");
    }
    let table = cluster.plane.kubectl(&["get", "nodetunnels"]);
    assert!(["node1", "node2"].iter().all(|node| table.contains(node)), "{table}");
    eprintln!("{table}");

    // Agents end, again and again: nobody else notices.
    let ping = cluster.ping(first, second);
    for node in ["node1", "node2", "node1"] {
        let agent = cluster.agent_of(node);
        rustix::process::kill_process(agent, rustix::process::Signal::KILL).unwrap();
        wait_until("another agent", A_WHILE, || cluster.try_agent_of(node).is_some_and(|next| next != agent));
    }
    let (sent, received) = answered(ping);
    eprintln!("agents killed three times: {sent} sent, {} lost", sent - received);
    // The last ones were on their way as the counting ended.
    assert!(sent - received <= 4);
    cluster.wait_for_rollout("adit-system", "daemonset/adit");

    // An update replaces all pods, and data planes with them, one beside the other; a pod that is deleted is gone before the next one comes.
    // Packets are lost, but none is in clear.
    for (what, line) in [
        ("an update", &["rollout", "restart", "daemonset/adit"][..]),
        ("a pod deleted", &["delete", "pods", "--field-selector=spec.nodeName=node1"]),
    ] {
        let ping = cluster.ping(first, second);
        cluster.plane.kubectl(&[&["-n", "adit-system"], line].concat());
        cluster.wait_for_rollout("adit-system", "daemonset/adit");
        cluster.wait_until_encrypted(&wire, first, second);
        let (sent, received) = answered(ping);
        eprintln!("{what}: {sent} sent, {} lost, one every {INTERVAL} s", sent - received);
        assert!(received > 0, "{what}");
        assert_eq!(wire.count(Seen::Canary), 0, "in clear: {what}");
    }

    // A node comes, and one goes.
    cluster.add_node();
    cluster.wait_until_ready("node3");
    cluster.plane.kubectl(&["drain", "node2", "--ignore-daemonsets", "--force", "--delete-emptydir-data"]);
    cluster.wait_for_rollout("default", "deployment/echo");
    cluster.wait_for_rollout("adit-system", "daemonset/adit");
    let pods = cluster.pods("app=echo");
    let third = pods.iter().find(|pod| pod.node == "node3").expect("a pod on the new node");
    cluster.wait_until_encrypted(&wire, first, third);
    cluster.remove_node("node2");
    wait_until("the node forgotten", A_WHILE, || {
        !cluster.plane.kubectl(&["get", "nodetunnels"]).contains("node2")
    });
    cluster.wait_until_encrypted(&wire, third, first);
    assert_eq!(wire.count(Seen::Canary), 0, "in clear as nodes come and go");

    // Taken away again, as docs/operations.md says, nothing is left.
    cluster.plane.kubectl(&["delete", "daemonset", "-n", "adit-system", "adit"]);
    for node in ["node1", "node3"] {
        cluster.clean_up(node);
        let left = cluster.left_on(node);
        assert!(!left.contains("lookup 8365") && !left.contains("adit"), "{left}");
    }
    wait_until("pods in clear as before", A_WHILE, || {
        wire.forget(Seen::Canary);
        cluster.echoes(first, third) && wire.count(Seen::Canary) > 0
    });
    cluster.plane.kubectl(&["delete", "-k", MANIFESTS, "--ignore-not-found"]);
}

#[test]
fn the_example_takes_a_cluster_from_off_to_strict() {
    need_a_cluster!();
    let Some(cluster) = Cluster::start(2, PodNetwork::Bridge) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes/run");
    let (kubeconfig, kubectl) = (cluster.plane.kubeconfig(), cluster.plane.assets().join("kubectl"));
    let variables = [
        ("KUBECONFIG", kubeconfig.to_str().unwrap()),
        ("KUBECTL", kubectl.to_str().unwrap()),
        ("IMAGE", "localhost/busybox:1"),
    ];
    let mut process = cluster.plane.namespace().spawn_with(script, &[], &variables);
    assert!(process.wait(SOON * 30).success(), "{}", process.output());
    wait_until("the last table", SOON, || process.output().matches("NAME").count() == 3);
    let output = process.output();
    assert_eq!(output.matches("node1 → node2: answered").count(), 3, "{output}");
    assert_eq!(output.matches("node2 → node1: answered").count(), 3, "{output}");
}

#[test]
fn a_cluster_without_a_pod_network_has_one_that_is_encrypted_by_one_command() {
    need_a_cluster!();
    let Some(mut cluster) = Cluster::start(2, PodNetwork::None) else { return };
    let wire = Wire::open(&cluster.fabric, "port1");
    cluster.plane.kubectl(&["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/cni/main-mode")]);
    cluster.wait_for_rollout("adit-system", "daemonset/adit");
    cluster.wait_until_all_are_ready();
    let [first, second] = &run_workload(&cluster);

    // The control: what is seen of a new pod where nothing is encrypted.
    cluster.set_mode("Off");
    wait_until("cleartext in mode Off", A_WHILE, || {
        wire.forget(Seen::Canary);
        cluster.echoes(first, second) && wire.count(Seen::Canary) > 0
    });
    run_eager(&cluster, &wire, "eager-off", [first, second], Seen::Canary);
    cluster.plane.kubectl(&["delete", "pod", "eager-off"]);

    cluster.set_mode("Strict");
    let path = "jsonpath={.items[*].status.conditions[?(@.type==\"StrictEnforced\")].status}";
    wait_until("Strict on both nodes", A_WHILE, || {
        cluster.plane.kubectl(&["get", "nodetunnels", "-o", path]) == "True True"
    });
    cluster.wait_until_encrypted(&wire, first, second);
    assert_works(&cluster, first, second);
    run_eager(&cluster, &wire, "eager-strict", [first, second], Seen::WireGuard);
    assert_eq!(wire.count(Seen::Canary), 0, "in clear from a new pod");
    // The fabric does not know the way to pods.
    for pod in [first, second] {
        assert!(cluster.exec(&pod.name, &["ping", "-c", "1", "-W", "4", "10.9.0.100"]).is_some());
    }

    // A node comes.
    cluster.add_node();
    cluster.wait_until_ready("node3");
    cluster.plane.kubectl(&["scale", "deployment/echo", "--replicas=3"]);
    cluster.wait_for_rollout("default", "deployment/echo");
    let pods = cluster.pods("app=echo");
    let third = pods.iter().find(|pod| pod.node == "node3").expect("a pod on the new node");
    cluster.wait_for_echo(&first.name, &third.address);
    cluster.wait_for_echo(&third.name, &first.address);
    assert_eq!(wire.count(Seen::Canary), 0, "in clear as a node comes");
}
