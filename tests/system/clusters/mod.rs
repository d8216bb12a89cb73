//! A whole cluster: real nodes with kubelet, containerd and kube-proxy, on which adit is installed as a user would, by its manifests.

mod nodes;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use adit::crypto::random::{Os, Random};
use adit::sys::clock::boottime;
use nodes::{A_WHILE, Cluster, INTERVAL, PINGS_A_SECOND, Pod, PodNetwork, process_of};
use rustix::process::{Signal, kill_process};

use crate::control::nodes::answered;
use crate::control::wire::{CANARY, Seen, Wire};
use crate::support::{SOON, need, pause, wait_until};

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

/// Makes a pod that sends to another from its first moment, by UDP and TCP; `place` is what its specification says of where.
#[track_caller]
fn make_eager(cluster: &Cluster, name: &str, place: &str, to: &Pod) {
    let canary = str::from_utf8(CANARY).unwrap();
    let address = &to.address;
    cluster.plane.apply(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  {place}\n  terminationGracePeriodSeconds: 0\n  \
            containers:\n  - name: eager\n    image: localhost/busybox:1\n    imagePullPolicy: Never\n    \
            command: [sh, -c, \"while :; do nslookup {canary} {address} & echo {canary} | nc -w 1 {address} 8080; done\"]\n"
        ),
    );
}

/// Waits until it is seen, and is answered.
#[track_caller]
fn wait_for_eager(cluster: &Cluster, wire: &Wire, name: &str, seen: Seen) {
    wait_until("what the new pod sends", A_WHILE, || wire.count(seen) > 10);
    wait_until("answers to the new pod", A_WHILE, || {
        cluster.plane.try_kubectl(&["logs", name]).1.contains(str::from_utf8(CANARY).unwrap())
    });
}

/// Runs one beside a pod, and waits until what it sends the other is seen.
#[track_caller]
fn run_eager(cluster: &Cluster, wire: &Wire, name: &str, [from, to]: [&Pod; 2], seen: Seen) {
    wire.forget(Seen::WireGuard);
    wire.forget(Seen::Canary);
    make_eager(cluster, name, &format!("nodeName: {}", from.node), to);
    wait_for_eager(cluster, wire, name, seen);
}

/// The third node comes, with a taint that keeps pods away until its agent is ready. In mode Strict.
#[track_caller]
fn a_tainted_node_comes(cluster: &mut Cluster, to: &Pod) {
    cluster.add_tainted_node("adit.dev/agent-not-ready:NoSchedule");
    let taints = |cluster: &Cluster| {
        cluster.plane.kubectl(&["get", "node", "node3", "-o", "jsonpath={.spec.taints[*].key}"])
    };
    wait_until("a node with no other taint", A_WHILE, || taints(cluster) == "adit.dev/agent-not-ready");
    let wire = Wire::open(&cluster.fabric, "port3");
    let there = "nodeSelector: {kubernetes.io/hostname: node3}";
    make_eager(cluster, "held", there, to);
    // The control: what a pod that the taint does not keep away sends meanwhile. (The other node drops it.)
    make_eager(cluster, "early", &format!("{there}\n  tolerations: [{{operator: Exists}}]"), to);
    wait_until("a pod in clear before the agent", A_WHILE, || wire.count(Seen::Canary) > 0);
    let why = "jsonpath={.spec.nodeName} {.status.conditions[?(@.type==\"PodScheduled\")].message}";
    let why = cluster.plane.kubectl(&["get", "pod", "held", "-o", why]);
    assert!(why.starts_with(' ') && why.contains("untolerated taint"), "held: {why}");
    let early = cluster.plane.kubectl(&["get", "pod", "early", "-o", "jsonpath={.metadata.uid}"]);
    cluster.plane.kubectl(&["delete", "pod", "early"]);
    wait_until("its end", A_WHILE, || process_of(&early, "sh").is_none());

    wire.forget(Seen::Canary);
    cluster.bring_image("node3");
    wait_for_eager(cluster, &wire, "held", Seen::WireGuard);
    assert_eq!(wire.count(Seen::Canary), 0, "in clear from the first pod of a new node");
    assert_eq!(taints(cluster), "");
    cluster.plane.kubectl(&["delete", "pod", "held"]);
}

/// Kills the agents of these of adit's pods at random moments while `is_on`, and returns how often. Meanwhile the wire is read.
fn kill_agents(pods: &[String], wire: &Wire, is_on: &AtomicBool) -> usize {
    let mut kills = 0;
    while is_on.load(Relaxed) {
        let mut random = [0; 2];
        Os.fill(&mut random);
        // From 0 to 4 seconds.
        let moment = boottime() + Duration::from_secs(4).mul_f64(f64::from(random[0]) / 255.0);
        while boottime() < moment {
            wire.count(Seen::Canary);
            pause(Duration::from_millis(20));
        }
        let agent = process_of(&pods[usize::from(random[1]) % pods.len()], "agent");
        // One that is not there has been killed just now.
        kills += usize::from(agent.is_some_and(|agent| kill_process(agent, Signal::KILL).is_ok()));
    }
    kills
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

    // For two minutes agents are killed at random moments, and a node comes: nobody else notices.
    let pods = ["node1", "node2"].map(|node| cluster.adit_on(node));
    let mut ping = cluster.ping_times(first, second, 120 * PINGS_A_SECOND);
    wire.forget(Seen::Canary);
    wire.take_lost();
    let is_on = AtomicBool::new(true);
    let kills = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_agents(&pods, &wire, &is_on));
        // Whatever comes of it, the killer has to end.
        let done = catch_unwind(AssertUnwindSafe(|| {
            a_tainted_node_comes(&mut cluster, second);
            ping.wait(A_WHILE * 2);
        }));
        is_on.store(false, Relaxed);
        let kills = killer.join().unwrap();
        done.map(|()| kills).unwrap_or_else(|panic| resume_unwind(panic))
    });
    let (sent, received) = answered(ping);
    eprintln!("agents killed {kills} times in two minutes: {sent} sent, {} lost", sent - received);
    assert!(kills > 20, "killed {kills} times");
    assert_eq!(received, sent, "echo requests lost as agents are killed");
    assert_eq!(
        (wire.count(Seen::Canary), wire.take_lost()),
        (0, 0),
        "in clear, or not looked at, as agents are killed"
    );
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

    // A node goes.
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
    cluster.plane.kubectl(&["delete", "daemonset", "-n", "adit-system", "adit", "--cascade=foreground"]);
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
fn a_data_plane_that_hangs_is_started_anew() {
    need_a_cluster!();
    let Some(cluster) = Cluster::start(1, PodNetwork::Bridge) else { return };
    cluster.plane.kubectl(&["apply", "-k", MANIFESTS]);
    // As it is there, but in seconds.
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"data-plane",
        "livenessProbe":{"periodSeconds":1,"failureThreshold":2}}]}}}}"#;
    cluster.plane.kubectl(&["-n", "adit-system", "patch", "daemonset", "adit", "-p", patch]);
    cluster.wait_for_rollout("adit-system", "daemonset/adit");
    let pods = ["-n", "adit-system", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"];
    wait_until("one pod", A_WHILE, || cluster.plane.kubectl(&pods).split(' ').count() == 1);
    let pod = cluster.adit_on("node1");
    let restarts = || {
        let path = "jsonpath={.items[0].status.containerStatuses[?(@.name==\"data-plane\")].restartCount}";
        cluster.plane.kubectl(&["-n", "adit-system", "get", "pods", "-o", path])
    };
    let data_plane = || process_of(&pod, "--foreground");
    assert_eq!(restarts(), "0");

    kill_process(data_plane().expect("a data plane"), Signal::STOP).unwrap();
    wait_until("another data plane", A_WHILE, || restarts() == "1" && data_plane().is_some());
    cluster.wait_for_rollout("adit-system", "daemonset/adit");
    let status = "jsonpath={.status.conditions[?(@.type==\"DataplaneReady\")].status}";
    wait_until("that it answers", A_WHILE, || {
        cluster.plane.kubectl(&["get", "nodetunnel", "node1", "-o", status]) == "True"
    });
    let events =
        ["-n", "adit-system", "get", "events", "-o", "jsonpath={.items[?(@.reason==\"Unhealthy\")].message}"];
    let events = cluster.plane.kubectl(&events);
    assert!(events.contains("adit0 hangs"), "{events}");
    assert_eq!(restarts(), "1");
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

    cluster.plane.configure(r#"{"mode":"Strict","clusterCIDRs":["10.244.0.0/16"]}"#);
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
