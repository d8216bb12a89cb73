//! What the agents of other nodes write: what they say of their nodes, what they found, and when they tell that.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use adit::control::api::{Mode, NodeTunnelStatus, PeerCounts, TunnelConfigSpec};
use adit::control::objects::{Config, Node, Objects};
use adit::control::publish::published;
use adit::control::read;
use adit::control::settings::Settings;
use adit::control::status::{Outcome, status};
use adit::control::telling::Telling;
use adit::control::topology::{Own, topology};
use adit::crypto::x25519::PublicKey;
use adit::sys::clock::{boottime, realtime};
use serde_json::{Value, json};

use crate::lab::node;

/// As whom an agent says what its node is, and as whom what it found.
pub(crate) const MANAGER: &str = "adit-agent";
pub(crate) const STATUS_MANAGER: &str = "adit-agent-status";

/// Returns what a node's agent says of its node.
pub(crate) fn said(number: u32) -> Value {
    let (objects, own) = (known(number), own(number));
    published(&objects, &own, &Settings::default(), &BTreeSet::new(), Some(1420)).expect("nobody has said it")
}

/// Returns what a node's agent found, with so many peers, as it is applied.
pub(crate) fn found(number: u32, peers: u32) -> Value {
    written(number, &status_of(number, None, peers))
}

/// The agents of many nodes.
pub(crate) struct Others {
    agents: Vec<(u32, Telling)>,
    now: NodeTunnelStatus,
}

impl Others {
    /// Makes agents that have told all that they found a while ago.
    pub(crate) fn at_rest(numbers: Range<u32>) -> Self {
        let now = status_of(numbers.start, None, numbers.end - 2);
        let rested = |number: u32| {
            let mut telling = Telling::new(&format!("node{number}"));
            telling.found(now.clone(), Duration::ZERO);
            telling.found(now.clone(), boottime());
            (number, telling)
        };
        Self { agents: numbers.map(rested).collect(), now: now.clone() }
    }

    /// All hear of a node that has not said what it is, or of how many peers there are.
    pub(crate) fn hear(&mut self, missing: Option<&str>, peers: u32) {
        let news = status_of(2, missing, peers);
        self.now = NodeTunnelStatus { conditions: self.now.conditions.clone(), ..news };
    }

    /// Tells whether there is a node that has not said what it is.
    pub(crate) fn misses_someone(&self) -> bool {
        !self.now.not_encrypted.is_empty()
    }

    /// Returns what is to be written now.
    pub(crate) fn due(&mut self) -> Vec<Value> {
        let now = boottime();
        let told = self.agents.iter_mut().filter_map(|(number, telling)| {
            let told = telling.found(self.now.clone(), now)?;
            Some(written(*number, &told))
        });
        told.collect()
    }
}

fn own(number: u32) -> Own {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    Own { mode: Some(Mode::Strict), ..Own::new(&format!("node{number}"), PublicKey::new(key)) }
}

/// Returns what of the cluster a node's agent needs to know to say what its node is.
fn known(number: u32) -> Objects {
    let mut node = node(number);
    node["metadata"]["uid"] = format!("00000000-0000-4000-8000-{number:012x}").into();
    let mut objects = Objects::default();
    objects.insert(read::object(&node).expect("it is a node"));
    objects
}

fn status_of(number: u32, missing: Option<&str>, peers: u32) -> NodeTunnelStatus {
    let mut objects = known(number);
    objects.insert(read::object(&said(number)).expect("it is a node's word"));
    let spec = TunnelConfigSpec { mode: Some(Mode::Strict), ..TunnelConfigSpec::default() };
    objects.configs.insert("default".to_owned(), Config { spec, ..Config::default() });
    objects.nodes.extend(missing.map(|name| (name.to_owned(), Node::default().into())));
    let outcome = Outcome { sessions: Some([0; 3]), failure: None, is_programmed: true };
    let counts = PeerCounts { total: peers, up: peers / 2, down: 0 };
    NodeTunnelStatus {
        peers: Some(counts),
        ..status(&topology(&objects, &own(number)), &outcome, realtime())
    }
}

fn written(number: u32, status: &NodeTunnelStatus) -> Value {
    json!({
        "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel",
        "metadata": { "name": format!("node{number}") }, "status": status,
    })
}
