//! What Prometheus makes of a mesh: Debian's own scrapes it, with the rules and the dashboard that come with adit.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use serde_json::Value;

use super::nodes::Mesh;
use super::seeing::get;
use crate::support::tunnel::Program;
use crate::support::{Directory, Namespace, Process, SOON, need, process, wait_until};

/// Where Prometheus answers.
const PLACE: &str = "127.0.0.1:9090";

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/cni/monitoring/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A Prometheus that scrapes nodes 1 and 2 every second, and takes an alert for one as soon as it is true.
struct Prometheus {
    namespace: Namespace,
    files: Directory,
    _process: Process,
}

impl Prometheus {
    fn start(fabric: &Namespace) -> Self {
        let namespace = Namespace::new();
        fabric.join("port200", &[], &namespace, "eth0", &["10.9.0.200/24"]);
        fabric.ip("link set port200 master fabric");
        let files = Directory::new();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        // The rules as the operator hands them on, without the patience that is for people.
        let rules: Value = serde_saphyr::from_str(&file("rules.yaml")).unwrap();
        let text = rules["spec"].to_string();
        fs::write(path("rules.json"), &text).unwrap();
        let promtool = |args: &[&str]| {
            process::expect_success("promtool", args, Command::new("promtool").args(args).output())
        };
        promtool(&["check", "rules", &path("rules.json")]);
        let mut rules = rules;
        for rule in rules["spec"]["groups"][0]["rules"].as_array_mut().unwrap() {
            rule["for"] = "0s".into();
        }
        fs::write(path("rules.json"), rules["spec"].to_string()).unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n\
            - job_name: adit-system/adit\n  static_configs: [{{targets: ['10.9.0.1:9586', '10.9.0.2:9586']}}]\n",
            path("rules.json"),
        );
        fs::write(path("prometheus.yml"), config).unwrap();
        promtool(&["check", "config", &path("prometheus.yml")]);
        let args = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            format!("--web.listen-address={PLACE}"),
        ];
        let process = namespace.spawn("prometheus", &args.each_ref().map(String::as_str));
        Self { namespace, files, _process: process }
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let (status, text) = get(&self.namespace, PLACE, path)?;
        (status == 200).then(|| serde_json::from_str(&text).unwrap())
    }

    /// Returns how many series an expression yields.
    fn series(&self, expression: &str) -> Option<usize> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.ask(&format!("/api/v1/query?query={encoded}"))?;
        Some(answer["data"]["result"].as_array()?.len())
    }

    /// Returns the alerts that fire, with the nodes that they are for.
    fn firing(&self) -> BTreeSet<(String, String)> {
        let answer = self.ask("/api/v1/alerts").unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| (label(alert, "alertname"), label(alert, "instance"))).collect()
    }
}

#[test]
fn every_query_has_an_answer_and_every_alert_fires_when_its_fault_is_made() {
    need!("ip", "wg", "ping", "setpriv", "nft", "prometheus", "promtool");
    let mut mesh = Mesh::new(2);
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_in(&[
            ("ADIT_OBJECTS", mesh.objects.path().to_str().unwrap()),
            ("ADIT_METRICS", ":9586"),
        ]);
    }
    mesh.nodes[0].wait_for_pod_of(&mesh.nodes[1]);
    let prometheus = Prometheus::start(&mesh.fabric);
    let Mesh { objects, nodes, .. } = &mut mesh;
    let write = |name: &str, text: &str| {
        fs::write(objects.path().join(format!("{name}.yaml")), text).unwrap();
    };
    let node = |name: &str, spec: &str| {
        write(
            name,
            &format!(
                "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            ),
        );
    };
    let config = |spec: &str| {
        write(
            "config",
            &format!(
                "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
            ),
        );
    };
    let [first, second] = &mut nodes[..] else { panic!("two nodes") };

    let (_, metrics) = get(&first.namespace, "127.0.0.1:9586", "/metrics").unwrap();
    let scraped = prometheus.files.path().join("metrics");
    fs::write(&scraped, metrics).unwrap();
    let line = format!("promtool check metrics <{}", scraped.display());
    let output = Command::new("sh").args(["-c", &line]).output();
    assert_eq!(process::expect_success("promtool", &["check", "metrics"], output), "");

    // What the dashboard shows there is, and nothing fires.
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "10s");
            wait_until(&format!("an answer to {expression}"), SOON, || {
                prometheus.series(&expression).is_some_and(|series| series > 0)
            });
        }
    }
    assert_eq!(prometheus.firing(), BTreeSet::new());

    let mut seen = BTreeSet::new();
    let mut fires = |alert: &str, node: &str| {
        let wanted = (alert.to_owned(), format!("10.9.0.{node}:9586"));
        wait_until(&format!("{alert} of node {node}"), SOON * 2, || prometheus.firing().contains(&wanted));
        seen.insert(alert.to_owned());
    };
    second.namespace.ip("route add 10.244.1.0/24 via 10.9.0.1");
    // With the mark of the tunnel's own datagrams: past the tunnel.
    let args = ["-n", "-q", "-i", "0.2", "-m", "8365", "-I", "10.244.2.1", "10.244.1.1"];
    let in_clear = second.namespace.spawn("ping", &args);
    fires("AditCleartextDropped", "1");
    drop(in_clear);
    node("node3", "{podPrefixes: [10.244.3.0/24]}");
    fires("AditTrafficDropped", "1");
    config("{mode: Permissive}");
    fires("AditTrafficInClear", "1");
    fs::remove_file(objects.path().join("node3.yaml")).unwrap();
    let nobody = adit::crypto::x25519::PublicKey::new([9; 32]);
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, nobody.as_bytes());
    node(
        "node4",
        &format!(
            "{{keys: [{{publicKey: \"{key}\", state: Active}}], endpoints: [{{address: 10.9.0.44, port: 51820}}], podPrefixes: [10.244.4.0/24]}}"
        ),
    );
    first.wait_for_peers(2);
    first.namespace.try_run("ping", &["-n", "-c", "1", "-W", "1", "-I", "10.244.1.1", "10.244.4.1"]);
    fires("AditPeersDown", "1");
    first.namespace.run("wg", &["set", &first.interface, "peer", &key, "remove"]);
    fires("AditPeersNotProgrammed", "1");
    let taken = first.namespace.enter(|| UdpSocket::bind("0.0.0.0:51999").unwrap());
    config("{mode: Permissive, listenPort: 51999}");
    fires("AditReconcileFails", "1");
    drop(taken);
    fs::remove_file(objects.path().join("node1.yaml")).unwrap();
    fires("AditDegraded", "1");
    drop(first.data_plane.take());
    fires("AditDataPlaneDown", "1");
    // An agent that has never reached its API server.
    drop(first.agent.take());
    let kubeconfig = first.state.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: \"https://10.9.0.99:6443\"}}], \
        users: [{name: a, user: {token: a}}], contexts: [{name: a, context: {cluster: a, user: a}}]}\n";
    fs::write(&kubeconfig, text).unwrap();
    first.start_agent_in(&[("KUBECONFIG", kubeconfig.to_str().unwrap()), ("ADIT_METRICS", ":9586")]);
    fires("AditObjectsIncomplete", "1");
    drop(second.agent.take());
    fires("AditAgentDown", "2");

    let rules: Value = serde_saphyr::from_str(&file("rules.yaml")).unwrap();
    let rules = rules["spec"]["groups"][0]["rules"].as_array().unwrap().clone();
    let all: BTreeSet<_> = rules.iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, all, "an alert that no fault was made for");
}
