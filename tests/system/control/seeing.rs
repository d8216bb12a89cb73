//! What operators and their programs see of a node: `adit status` and `adit peers`.

use serde_json::Value;

use super::nodes::{Mesh, Node};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");

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
