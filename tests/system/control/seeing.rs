//! What operators and their programs see of a node: `adit status`, `adit peers`, and the agent's metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::nodes::{Mesh, Node};
use crate::support::tunnel::{Program, socket_path};
use crate::support::{Namespace, SOON, need, pause, wait_for, wait_until};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");

/// Gets a path by HTTP in a namespace, and returns status and body; `None` if nobody listens, or stops to listen before the answer.
pub(super) fn get(namespace: &Namespace, place: &'static str, path: &str) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {place}\r\n\r\n");
    let text = namespace.enter(move || {
        let mut stream = TcpStream::connect(place).ok()?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, body.to_owned()))
}

impl Node {
    /// Runs a command that looks at this node, and returns whether it found all well and what it printed.
    fn look(&self, words: &[&str]) -> (bool, String) {
        let mut args = words.to_vec();
        args.extend([&self.interface, "--state", self.state.path().to_str().unwrap()]);
        self.namespace.try_run(ADIT, &args)
    }

    fn look_as_json(&self, command: &str) -> Value {
        let (_, text) = self.look(&[command, "-o", "json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Asks the agent by HTTP, and returns status and body; `None` if nobody listens, or stops to listen before the answer.
    fn ask(&self, path: &str) -> Option<(u16, String)> {
        get(&self.namespace, "127.0.0.1:9586", path)
    }

    /// Returns the samples of the agent's metrics: name with labels, and value.
    #[track_caller]
    fn scrape(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.ask("/metrics").expect("somebody listens");
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        samples.collect()
    }

    /// Returns what `wg` tells of the bytes received from and sent to the only peer.
    fn transfer(&self) -> [u64; 2] {
        let text = self.namespace.run("wg", &["show", &self.interface, "transfer"]);
        let mut numbers = text.split_whitespace().skip(1).map(|word| word.parse().unwrap());
        [numbers.next().unwrap(), numbers.next().unwrap()]
    }
}

#[test]
fn status_and_peers_tell_what_is_and_what_is_wrong() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    // The objects are kept on disk a second after they were read.
    wait_until("a node that is well", SOON, || {
        let (is_well, text) = first.look(&["status"]);
        is_well && text.contains("node1, mode Strict")
    });
    let (_, text) = first.look(&["status"]);
    for words in [
        concat!("adit ", env!("CARGO_PKG_VERSION"), ", crypto "),
        "UDP 51820",
        "1 of 1 up, 0 idle, 0 down",
        "interface up, routes and rules in place, firewall in place",
        "not encrypted  none",
        "same-host traffic: never leaves the node, never encrypted",
        &first.key,
    ] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let (_, text) = first.look(&["peers"]);
    let row: Vec<_> = text.lines().nth(1).expect("a peer").split_whitespace().collect();
    assert_eq!(row[..3], [&first.interface, "node2", "up"], "{text}");
    for words in ["10.9.0.2:51820", &second.key, "10.244.2.0/24"] {
        assert!(row.iter().any(|word| word.contains(words)), "{words} is not in {text}");
    }
    let before = first.transfer();
    let peers = first.look_as_json("peers");
    let bytes = ["receiveBytes", "transmitBytes"].map(|name| peers["peers"][0][name].as_u64().unwrap());
    let after = first.transfer();
    for (at, bytes) in bytes.into_iter().enumerate() {
        assert!(before[at] <= bytes && bytes <= after[at] && bytes > 0, "{before:?} {bytes:?} {after:?}");
    }
    let status = first.look_as_json("status");
    assert_eq!(status["interfaces"][0]["node"]["kernel"]["missingRoutes"], Value::Array(Vec::new()));

    // A node without a key is dropped in Strict mode, and that is said.
    mesh.write("node3", "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {name: node3}\nspec: {podPrefixes: [10.244.3.0/24]}\n");
    wait_until("the node without a key", SOON, || {
        first.look(&["status"]).1.contains("not encrypted  node3 (NoKey, dropped)")
    });
    // Without an agent nobody mends what somebody undoes.
    let first = &mut mesh.nodes[0];
    drop(first.agent.take());
    let (is_well, text) = first.look(&["status"]);
    assert!(is_well, "{text}");
    first.namespace.ip("rule del pref 99");
    first.namespace.run("nft", &["delete", "table", "inet", "adit"]);
    let (is_well, text) = first.look(&["status"]);
    assert!(!is_well);
    assert!(text.contains("routes and rules NOT in place, firewall NOT in place"), "{text}");
    assert!(text.contains("adding IPv4 rule 99: not fwmark 0x20ad lookup 8365"), "{text}");
    drop(first.data_plane.take());
    let (is_well, text) = first.look(&["status"]);
    assert!(!is_well && text.contains("error"), "{text}");
}

#[test]
fn the_log_is_for_programs_where_that_is_wanted() {
    need!("ip", "wg", "setpriv");
    let mut mesh = Mesh::new(1);
    let objects = mesh.objects.path().to_str().unwrap();
    let agent_log = [("ADIT_OBJECTS", objects), ("ADIT_LOG_FORMAT", "json")];
    let node = &mut mesh.nodes[0];
    node.data_plane = Some(Program::Adit.start(
        &node.namespace,
        &node.interface,
        &["--log-format", "json"],
        &[("WG_LOG_LEVEL", "debug")],
    ));
    node.start_agent_in(&agent_log);
    node.wait_until_peers_are(&[]);
    for process in [&node.agent, &node.data_plane] {
        let process = process.as_ref().unwrap();
        wait_until("a line", SOON, || process.output().contains('\n'));
        let text = process.output();
        let lines: Vec<_> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        for line in lines {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for field in ["/timestamp", "/level", "/fields/message"] {
                assert!(value.pointer(field).is_some_and(Value::is_string), "{field} is not in {line}");
            }
        }
    }
    let agent = node.agent.as_ref().unwrap();
    wait_until("who it is", SOON, || {
        let text = agent.output();
        let mut values = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.any(|value| value["fields"]["message"] == "ready" && value["fields"]["node"] == "node1")
    });
}

#[test]
fn metrics_are_what_wg_says_and_nobody_is_kept_from_them() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let Mesh { objects, nodes, .. } = &mut mesh;
    nodes.iter_mut().for_each(|node| node.start_data_plane(Program::Adit));
    // One is told by its command line where to serve, the other by the cluster.
    let [first, second] = &mut nodes[..] else { panic!("two nodes") };
    let directory = objects.path().to_str().unwrap();
    first.start_agent_in(&[("ADIT_OBJECTS", directory), ("ADIT_METRICS", ":9586")]);
    second.start_agent(objects);
    first.wait_for_pod_of(second);
    wait_until("a node that is ready", SOON, || {
        first.ask("/readyz").is_some_and(|answer| answer == (200, "ok\n".to_owned()))
    });
    assert_eq!(first.ask("/healthz"), Some((200, "ok\n".to_owned())));
    assert_eq!(first.ask("/").unwrap().0, 404);

    let labels = format!("{{node=\"node2\",public_key=\"{}\"}}", second.key);
    let names = ["receive", "transmit"].map(|way| format!("adit_peer_{way}_bytes_total{labels}"));
    // What was collected a moment ago is told once more.
    wait_for("what wg says", SOON, || {
        let before = first.transfer();
        let samples = first.scrape();
        let after = first.transfer();
        let is_between = |at: usize| {
            let value = samples.get(&names[at]).copied().unwrap_or_default();
            value > 0.0 && before[at] as f64 <= value && value <= after[at] as f64
        };
        (is_between(0) && is_between(1)).then_some(())
    });
    let samples = first.scrape();
    let handshake = first.handshakes().split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
    for (name, value) in [
        (format!("adit_peer_latest_handshake_timestamp_seconds{labels}"), handshake),
        ("adit_peers{state=\"up\"}".to_owned(), 1.0),
        ("adit_desired_peers".to_owned(), 1.0),
        ("adit_data_plane_up".to_owned(), 1.0),
        ("adit_objects_complete".to_owned(), 1.0),
        ("adit_dropped_packets_total{reason=\"malformed\"}".to_owned(), 0.0),
    ] {
        assert_eq!(samples.get(&name), Some(&value), "{name}");
    }
    assert!(samples["adit_reconcile_duration_seconds_count"] > 0.0);
    assert!(samples.contains_key("adit_handshake_duration_seconds_bucket{le=\"+Inf\"}"));
    // What comes in clear from a pod of another node is dropped by the firewall, and counted.
    let ingress = "adit_cleartext_dropped_packets_total{direction=\"ingress\"}";
    assert_eq!(samples[ingress], 0.0);
    second.namespace.ip("route add 10.244.1.0/24 via 10.9.0.1");
    // With the mark of the tunnel's own datagrams.
    let past_the_tunnel = ["-n", "-c", "1", "-W", "1", "-m", "8365", "-I", "10.244.2.1", "10.244.1.1"];
    second.namespace.try_run("ping", &past_the_tunnel);
    wait_until("cleartext that was dropped", SOON, || first.scrape()[ingress] > 0.0);

    // Clients that connect and say nothing keep nobody out.
    let silent: Vec<_> =
        first.namespace.enter(|| (0..100).map(|_| TcpStream::connect("127.0.0.1:9586").unwrap()).collect());
    first.scrape();
    drop(silent);

    assert_eq!(second.ask("/metrics"), None, "nobody has asked for it");
    let config = |metrics: &str| {
        mesh.write(
            "config",
            &format!("apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {{mode: Strict, metrics: {metrics}}}\n"),
        );
    };
    let second = &mesh.nodes[1];
    let series = || {
        let (_, text) = second.ask("/metrics")?;
        Some(text.lines().filter(|line| line.starts_with("adit_peer_")).count())
    };
    config("{address: \"127.0.0.1:9586\"}");
    wait_until("three series of the peer", SOON, || series() == Some(3));
    config("{address: \"127.0.0.1:9586\", perPeer: false}");
    wait_until("no series of the peer", SOON, || series() == Some(0));
    config("{}");
    wait_until("nobody who listens", SOON, || series().is_none());

    // What is desired and what is programmed, and how long the one takes to become the other.
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    let programmed = "adit_programming_duration_seconds_count";
    let prefixes = "adit_desired_prefixes";
    let before = first.scrape();
    mesh.publish(second, &second.key, &["10.245.2.0/24"]);
    wait_until("a prefix more", SOON, || {
        let samples = first.scrape();
        let is_done = samples[prefixes] == before[prefixes] + 1.0 && samples[programmed] > before[programmed];
        let is_same = |what: &str| {
            samples[&format!("adit_desired_{what}")] == samples[&format!("adit_programmed_{what}")]
        };
        is_done && is_same("prefixes") && is_same("routes")
    });
    let samples = first.scrape();
    assert!(samples["adit_desired_routes"] > 0.0);
    assert!(samples["adit_programming_duration_seconds_bucket{le=\"+Inf\"}"] > 0.0);
    // Without a data plane the node is not ready, and its agent lives.
    let first = &mut mesh.nodes[0];
    drop(first.data_plane.take());
    wait_until("a node that is not ready", SOON, || {
        first.ask("/readyz").is_some_and(|(status, _)| status == 503)
    });
    assert_eq!(first.ask("/healthz").unwrap().0, 200);
    wait_until("no data plane", SOON, || first.scrape()["adit_data_plane_up"] == 0.0);
}

#[test]
fn a_port_that_is_taken_costs_nothing_but_the_metrics() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    let holder = mesh.nodes[0].namespace.enter(|| TcpListener::bind("0.0.0.0:9586").unwrap());
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        // Whoever is there before it looks again and again.
        wait_until("the data plane", SOON, || UnixStream::connect(socket_path(&node.interface)).is_ok());
        node.start_agent_in(&[("ADIT_OBJECTS", &objects), ("ADIT_METRICS", "0.0.0.0:9586")]);
    }
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    // Time for as many attempts.
    pause(Duration::from_secs(8));
    drop(holder);
    wait_until("metrics", SOON, || first.ask("/metrics").is_some());
    let looks = |node: &Node| node.scrape()["adit_reconcile_duration_seconds_count"];
    let (held, free) = (looks(first), looks(second));
    assert!(held <= free + 4.0, "{held} looks, and {free} where nobody holds the port");
}
