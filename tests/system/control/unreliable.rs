//! The control loop against an API server on which nothing can be relied: calls fail in every way, answers are late or cut off, watches
//! break, history is lost; drawn from a seed. Whatever happens, a node comes to what the objects say, and loses no peer on the way.
//!
//! `ADIT_SEEDS=1,2,3` draws other faults than the usual ones.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit::config::Prefix;
use adit::control::uapi_client::{Client, DIRECTORY};
use adit::crypto::x25519::PublicKey;
use adit::sys::clock::boottime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::nodes::{Mesh, Node};
use crate::support::api_double::{ApiDouble, Kind, Manners};
use crate::support::tunnel::Program;
use crate::support::{Directory, SOON, need, wait_until};

/// How long what goes wrong may keep a node from what it should be.
const PATIENCE: Duration = Duration::from_secs(240);

/// Nodes that stay as they are, and those that do not.
const LASTING: std::ops::RangeInclusive<u8> = 2..=9;
const CHANGING: std::ops::RangeInclusive<u8> = 21..=32;

/// Prefixes that move between nodes of odd numbers, of which the cluster says nothing.
const MOVING: u8 = 4;

/// The taint that the agent takes off its node, and a network that has the runtime call plugins.
const TAINT: &str = "adit.dev/agent-not-ready";
const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

/// Changes of one run.
const STEPS: usize = 80;

/// What a node says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    key: u8,
    port: u16,
    pub(super) moving: BTreeSet<u8>,
}

/// An agent with its data plane, and an API server.
pub(super) struct Rig {
    pub(super) mesh: Mesh,
    pub(super) double: ApiDouble,
    kubeconfig: PathBuf,
    random: u64,
}

impl Rig {
    #[track_caller]
    pub(super) fn new(seed: u64) -> Self {
        let mut mesh = Mesh::new(1);
        let (double, kubeconfig) = serve(&mesh);
        double.put(Kind::Node, node(1));
        mesh.nodes[0].start_data_plane(Program::Adit);
        Self { mesh, double, kubeconfig, random: seed }
    }

    pub(super) fn node(&self) -> &Node {
        &self.mesh.nodes[0]
    }

    fn start_agent(&mut self) {
        self.mesh.nodes[0].start_agent_with("KUBECONFIG", &self.kubeconfig);
    }

    /// Starts an agent that makes the first `TunnelConfig`, in Strict, and takes a taint off its node, since it holds pods; returns where.
    pub(super) fn start_agent_of_all(&mut self) -> Directory {
        self.start_agent_of_all_with(&[])
    }

    /// The same with further variables.
    pub(super) fn start_agent_of_all_with(&mut self, variables: &[(&str, &str)]) -> Directory {
        let networks = Directory::new();
        let path = |name: &str| networks.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("10-pods.conflist"), NETWORK).unwrap();
        let own = [
            ("KUBECONFIG", self.kubeconfig.to_str().unwrap()),
            ("ADIT_DEFAULT_MODE", "Strict"),
            ("ADIT_CNI_CONF_DIR", &path("")),
            ("ADIT_CNI_SOCKET", &path("socket")),
            ("ADIT_CNI_STATE", &path("")),
            ("ADIT_STARTUP_TAINT", TAINT),
        ];
        self.mesh.nodes[0].start_agent_in(&[&own, variables].concat());
        networks
    }

    pub(super) fn say(&self, number: u8, said: &Said) {
        self.double.put(Kind::Tunnel, tunnel(number, said));
    }

    /// Waits until the node tells of its block and of these pods.
    #[track_caller]
    fn wait_until_pods_are(&self, expected: &[&str], limit: Duration) {
        let expected = [&["10.244.1.0/24"], expected].concat();
        wait_until("the pods are told", limit, || {
            let own = self.double.get(Kind::Tunnel, "node1").unwrap_or_default();
            own["spec"]["podPrefixes"] == json!(expected)
        });
    }

    /// Returns the allowed IPs by peer; `None` while nobody answers.
    pub(super) fn peers(&self) -> Option<BTreeMap<PublicKey, BTreeSet<Prefix>>> {
        let snapshot = Client::new(Path::new(DIRECTORY), &self.node().interface).snapshot().ok()?;
        let peers = snapshot.peers.into_iter();
        Some(peers.map(|peer| (peer.public_key, peer.allowed_ips.into_iter().collect())).collect())
    }

    /// Returns the prefixes that lead into the tunnel.
    pub(super) fn routes(&self) -> BTreeSet<Prefix> {
        let (_, text) = self.node().namespace.try_run("ip", &["-4", "route", "show", "table", "8365"]);
        let ours = text.lines().filter(|line| line.contains(&format!("dev {}", self.node().interface)));
        let prefixes = ours.filter_map(|line| line.split(' ').next()?.parse().ok());
        prefixes.collect()
    }

    /// Returns a number below `bound` (a linear congruential generator: Knuth, MMIX).
    fn below(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }
}

/// Serves the nodes of a mesh an API with a `TunnelConfig` for all, and returns where it says how it is reached.
#[track_caller]
pub(super) fn serve(mesh: &Mesh) -> (ApiDouble, PathBuf) {
    mesh.fabric.ip("addr add 10.9.0.100/24 dev fabric");
    let manners = Manners { page: 3, bookmarks: Duration::from_millis(500) };
    let double = ApiDouble::start(&mesh.fabric, "10.9.0.100", manners);
    let kubeconfig = mesh.objects.path().join("kubeconfig");
    std::fs::write(&kubeconfig, double.kubeconfig()).unwrap();
    double.put(Kind::Config, json!({ "metadata": { "name": "default" }, "spec": { "mode": "Strict" } }));
    (double, kubeconfig)
}

fn key(number: u8, turn: u8) -> PublicKey {
    let mut bytes = [number; 32];
    bytes[0] = turn;
    // A number in base64 has no bits beyond the field's.
    bytes[31] = 0;
    PublicKey::new(bytes)
}

/// Returns the cluster's own object for a node.
pub(super) fn node(number: u8) -> Value {
    json!({
        "metadata": { "name": format!("node{number}") },
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("10.9.0.{number}") }] },
    })
}

/// Returns it for a node that the cluster gave no addresses.
pub(super) fn bare_node(number: u8) -> Value {
    json!({ "metadata": { "name": format!("node{number}") }, "spec": {}, "status": {} })
}

/// Returns the agent's own node with the taint that is to go, and another one.
pub(super) fn tainted() -> Value {
    let mut own = node(1);
    own["spec"]["taints"] =
        json!([{ "key": TAINT, "effect": "NoSchedule" }, { "key": "other", "effect": "NoExecute" }]);
    own
}

pub(super) fn pod(name: &str, addr: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "nodeName": "node1" },
        "status": { "phase": "Running", "podIPs": [{ "ip": addr }] },
    })
}

fn tunnel(number: u8, said: &Said) -> Value {
    let own = format!("10.244.{number}.0/24");
    let moving = said.moving.iter().map(|prefix| format!("10.245.{prefix}.0/24"));
    let prefixes: Vec<_> = [own].into_iter().chain(moving).collect();
    json!({
        "metadata": { "name": format!("node{number}") },
        "spec": {
            "keys": [{ "publicKey": BASE64.encode(key(number, said.key).as_bytes()), "state": "Active" }],
            "endpoints": [{ "address": format!("10.9.0.{number}"), "port": 51820 + said.port }],
            "podPrefixes": prefixes,
            "nodeAddresses": [format!("10.9.0.{number}")],
        },
    })
}

/// Returns what a node's peers are to accept of it.
pub(super) fn accepted(number: u8, said: &Said) -> (PublicKey, BTreeSet<Prefix>) {
    let own = [format!("10.244.{number}.0/24"), format!("10.9.0.{number}/32")];
    let moving = said.moving.iter().map(|prefix| format!("10.245.{prefix}.0/24"));
    let prefixes = own.into_iter().chain(moving).map(|text| text.parse().unwrap());
    (key(number, said.key), prefixes.collect())
}

#[track_caller]
fn run(seed: u64, permille: u64) {
    let mut rig = Rig::new(seed);
    let mut said: BTreeMap<u8, Said> = LASTING.map(|number| (number, Said::default())).collect();
    for (number, said) in &said {
        rig.double.put(Kind::Node, node(*number));
        rig.say(*number, said);
    }
    let lasting: BTreeMap<_, _> = said.iter().map(|(number, said)| accepted(*number, said)).collect();
    rig.double.faults().begin(seed, permille);
    rig.start_agent();
    wait_until("the lasting peers", PATIENCE, || rig.peers().is_some_and(|peers| peers == lasting));

    let missing = |rig: &Rig| {
        let peers = rig.peers().expect("the data plane answers");
        let missing = lasting
            .iter()
            .find(|(key, prefixes)| peers.get(key).is_none_or(|held| !prefixes.is_subset(held)));
        missing.map(|(key, prefixes)| format!("{key:?} {prefixes:?}"))
    };
    for _ in 0..STEPS {
        let count = u64::from(CHANGING.end() - CHANGING.start() + 1);
        let number = CHANGING.start() + u8::try_from(rig.below(count)).unwrap();
        match rig.below(10) {
            // A node comes.
            0..=3 => {
                let is_given = number.is_multiple_of(2);
                rig.double.put(Kind::Node, if is_given { node(number) } else { bare_node(number) });
                let node = said.entry(number).or_default();
                rig.double.put(Kind::Tunnel, tunnel(number, node));
            }
            // One goes.
            4 if said.remove(&number).is_some() => {
                rig.double.delete(Kind::Tunnel, &format!("node{number}"));
                rig.double.delete(Kind::Node, &format!("node{number}"));
            }
            // One has another key.
            5 => {
                if let Some(node) = said.get_mut(&number) {
                    node.key += 1;
                    rig.double.put(Kind::Tunnel, tunnel(number, node));
                }
            }
            // One is found elsewhere.
            6 => {
                if let Some(node) = said.get_mut(&number) {
                    node.port += 1;
                    rig.double.put(Kind::Tunnel, tunnel(number, node));
                }
            }
            // A prefix moves: given first or taken first.
            7 | 8 if number % 2 == 1 && said.contains_key(&number) => {
                let prefix = u8::try_from(rig.below(MOVING.into())).unwrap();
                let holder = said.iter().find(|(_, said)| said.moving.contains(&prefix)).map(|(at, _)| *at);
                if let Some(holder) = holder {
                    said.get_mut(&holder).unwrap().moving.remove(&prefix);
                }
                said.get_mut(&number).unwrap().moving.insert(prefix);
                let mut order: Vec<_> = holder.into_iter().chain([number]).collect();
                if rig.below(2) == 0 {
                    order.reverse();
                }
                order.iter().for_each(|number| rig.say(*number, &said[number]));
            }
            9 => match rig.below(3) {
                0 => rig.double.compact(),
                // The agent is killed and begins anew.
                1 => {
                    let mut agent = rig.mesh.nodes[0].agent.take().unwrap();
                    agent.signal(Signal::KILL);
                    agent.wait(SOON);
                    rig.start_agent();
                }
                // Somebody writes over what the agent has said of its node.
                _ => {
                    if let Some(mut own) = rig.double.get(Kind::Tunnel, "node1") {
                        own["spec"]["podPrefixes"] = json!(["10.250.0.0/24"]);
                        rig.double.put(Kind::Tunnel, own);
                    }
                }
            },
            _ => {}
        }
        // As a rule the agent asks for something before there is more.
        let (calls, until) =
            (rig.double.faults().calls(), boottime() + Duration::from_millis(rig.below(400)));
        while rig.double.faults().calls() == calls && boottime() < until {
            assert_eq!(missing(&rig), None, "seed {seed}: a lasting peer is gone");
        }
    }
    let expected: BTreeMap<_, _> = said.iter().map(|(number, said)| accepted(*number, said)).collect();
    wait_until(&format!("seed {seed}: what the objects say"), PATIENCE, || {
        assert_eq!(missing(&rig), None, "seed {seed}: a lasting peer is gone");
        rig.peers().is_some_and(|peers| peers == expected)
    });
    let is_pods = |prefix: &Prefix| prefix.len() == 24;
    let routes: BTreeSet<_> = expected.values().flatten().filter(|prefix| is_pods(prefix)).copied().collect();
    wait_until(&format!("seed {seed}: the routes"), PATIENCE, || rig.routes() == routes);
    // And it has got through what it has to say itself.
    wait_until(&format!("seed {seed}: the node's own object"), PATIENCE, || {
        let Some(own) = rig.double.get(Kind::Tunnel, "node1") else { return false };
        own["spec"]["keys"][0]["publicKey"] == rig.node().key
            && own["spec"]["podPrefixes"] == json!(["10.244.1.0/24"])
            && own["status"]["peers"]["total"] == expected.len()
    });
    let faults = rig.double.faults();
    let watched = rig.double.watched_bytes();
    eprintln!("seed {seed}: {} calls, {watched} B watched, {:?}", faults.calls(), faults.counts());
    let failed: u64 = faults.counts().values().sum();
    assert!(failed > 8 && faults.calls() > 40, "nothing has gone wrong");
}

/// Returns the seeds that were asked for, or the usual ones.
fn seeds(usual: &[u64]) -> Vec<u64> {
    let said = env::var("ADIT_SEEDS").ok();
    let said = said.map(|text| text.split(',').map(|seed| seed.parse().unwrap()).collect());
    said.unwrap_or_else(|| usual.to_vec())
}

#[test]
fn a_node_comes_to_what_the_objects_say_whatever_the_api_server_does() {
    need!("ip", "setpriv");
    seeds(&[1, 2]).into_iter().for_each(|seed| run(seed, 200));
}

#[test]
fn a_node_comes_to_what_the_objects_say_though_half_of_all_calls_fail() {
    need!("ip", "setpriv");
    seeds(&[3]).into_iter().for_each(|seed| run(seed, 500));
}

#[test]
fn a_pod_of_a_node_is_told_as_long_as_it_is_there() {
    need!("ip", "setpriv");
    let mut rig = Rig::new(1);
    let spec = json!({ "mode": "Strict", "podAddresses": "Pods" });
    rig.double.put(Kind::Config, json!({ "metadata": { "name": "default" }, "spec": spec }));
    rig.double.put(Kind::Pod, pod("first", "10.7.0.1"));
    rig.start_agent();
    let told = |rig: &Rig, expected: &[&str]| rig.wait_until_pods_are(expected, SOON);
    told(&rig, &["10.7.0.1/32"]);
    rig.double.put(Kind::Pod, pod("second", "10.7.0.2"));
    told(&rig, &["10.7.0.1/32", "10.7.0.2/32"]);
    rig.double.delete(Kind::Pod, "first");
    told(&rig, &["10.7.0.2/32"]);
}

/// What an agent asks for besides: the `TunnelConfig` that it makes, the taint, the pods, the Events.
#[test]
fn a_node_is_configured_untainted_and_tells_its_pods_though_calls_fail() {
    need!("ip", "setpriv");
    let mut rig = Rig::new(1);
    rig.double.delete(Kind::Config, "default");
    rig.double.put(Kind::Node, tainted());
    rig.double.put(Kind::Pod, pod("first", "10.7.0.1"));
    rig.double.faults().begin(4, 300);
    let _networks = rig.start_agent_of_all();
    let config = || rig.double.get(Kind::Config, "default").unwrap_or_default();
    wait_until("the mode by default", PATIENCE, || config()["spec"]["mode"] == "Strict");
    let taints = || rig.double.get(Kind::Node, "node1").unwrap_or_default()["spec"]["taints"].clone();
    wait_until("the taint removed", PATIENCE, || {
        taints() == json!([{ "key": "other", "effect": "NoExecute" }])
    });
    let mut config = config();
    config["spec"]["podAddresses"] = json!("Pods");
    rig.double.put(Kind::Config, config);
    rig.wait_until_pods_are(&["10.7.0.1/32"], PATIENCE);
    rig.double.put(Kind::Pod, pod("second", "10.7.0.2"));
    rig.wait_until_pods_are(&["10.7.0.1/32", "10.7.0.2/32"], PATIENCE);
    rig.double.delete(Kind::Pod, "first");
    rig.wait_until_pods_are(&["10.7.0.2/32"], PATIENCE);
    // One that is not taken is lost, and everything else goes on.
    wait_until("an Event", PATIENCE, || !rig.double.events().is_empty());
    let faults = rig.double.faults();
    eprintln!("{} calls, {:?}", faults.calls(), faults.counts());
    assert!(faults.counts().values().sum::<u64>() > 2, "nothing has gone wrong");
}
