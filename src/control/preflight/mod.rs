//! Whether this node can do it: every check with what was seen, why it matters, and what helps.
//!
//! ```text
//! Wanted ─→ look ─→ Facts ─→ judge ─→ findings, in the order of CHECKS
//!           I/O              pure
//! ```
//!
//! Nothing is changed by looking, but that a TUN device is made for a moment where no data plane shows that one can be. What cannot be
//! looked at without a privilege that is missing is skipped, so that one fault shows as one failure.
//!
//! - `look`, `judge`: as above.
//! - `probe`: other nodes are asked, where somebody waits for the answers, and once by an agent whose peers they have become.

mod judge;
mod look;
mod probe;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

pub use look::{DataPlane, Facts, look};
pub use probe::{Probed, Target, Way};

use super::objects::Objects;
use super::settings::Settings;
use super::watch::access::Reach;
use crate::config::Prefix;

/// What the node is to be able to do.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What is wanted of the node.
    pub settings: Settings,
    /// The prefixes of all pods, as far as they are known.
    pub cluster_prefixes: BTreeSet<Prefix>,
    /// Those that nodes have, by their own word or the cluster's.
    pub pod_prefixes: BTreeSet<Prefix>,
    /// The prefixes of this node's own pods; `None` if they are not known.
    pub own_prefixes: Option<BTreeSet<Prefix>>,
    /// Where other nodes are found.
    pub peers: BTreeSet<IpAddr>,
    /// Other nodes that can be asked.
    pub targets: Vec<Target>,
    /// Whether they are.
    pub probes: bool,
    /// The addresses of this node's tunnel.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Where the private key is kept.
    pub state: PathBuf,
    /// Where data planes have their configuration sockets.
    pub sockets: PathBuf,
    /// How the cluster is reached; `None` where there is none, or nobody has said.
    pub cluster: Option<Reach>,
    /// Whether the agent removes a taint from the node.
    pub removes_taint: bool,
    /// Whether the agent makes the `TunnelConfig` for all nodes: there is none.
    pub makes_config: bool,
}

impl Wanted {
    /// Returns what objects say that the node is to do, without the directories. Without its name it is what is wanted of any node.
    pub fn of(objects: &Objects, node: Option<&str>) -> Self {
        let name = node.unwrap_or_default();
        let own = objects.tunnels.get(name);
        let labels = own.map(|tunnel| tunnel.labels.clone()).unwrap_or_default();
        // The loop says what is wrong with the objects.
        let settings = Settings::of(objects, name, &labels, &mut Vec::new());
        let claimed = objects.tunnels.values().flat_map(|tunnel| tunnel.pod_prefixes.iter().copied());
        let cluster_prefixes = match &settings.cluster_prefixes {
            Some(prefixes) => prefixes.iter().copied().collect(),
            None => claimed.clone().chain(settings.found.prefixes.iter().copied()).collect(),
        };
        let others = objects.tunnels.iter().filter(|(other, _)| other.as_str() != name);
        // One that names several is reached by the first.
        let peers = others.clone().filter_map(|(_, tunnel)| tunnel.endpoints.first()).map(|place| place.ip());
        let targets = others.filter_map(|(node, tunnel)| {
            let blocks = tunnel.pod_prefixes.iter().map(|prefix| prefix.addr());
            Some(Target {
                node: node.clone(),
                public_key: tunnel.active?,
                place: tunnel.endpoints.first().map(|place| place.ip()),
                inside: tunnel.tunnel_addresses.iter().copied().chain(blocks).next(),
            })
        });
        let given = objects.nodes.values().flat_map(|node| node.pod_prefixes.iter().copied());
        let pod_prefixes = claimed.clone().chain(given).collect();
        let own_prefixes = own.map(|tunnel| tunnel.pod_prefixes.iter().copied().collect());
        Self {
            peers: peers.collect(),
            targets: targets.collect(),
            tunnel_addresses: own.map(|tunnel| tunnel.tunnel_addresses.clone()).unwrap_or_default(),
            settings,
            cluster_prefixes,
            pod_prefixes,
            own_prefixes,
            ..Self::default()
        }
    }

    /// Has a few of the other nodes asked that may be: those whose names come after `node`'s, and behind the last one the first again. So
    /// nobody is asked by more nodes than he asks, however many are started at once.
    pub fn ask(&mut self, node: &str, may_be: impl FnMut(&Target) -> bool) {
        self.targets.retain(may_be);
        let behind = self.targets.partition_point(|target| target.node.as_str() <= node);
        self.targets.rotate_left(behind);
        self.targets.truncate(probe::AT_ONCE);
        self.probes = true;
    }
}

/// Returns name, reason and help of every check.
#[cfg(test)]
pub(crate) fn checks() -> impl Iterator<Item = [&'static str; 3]> {
    judge::CHECKS.iter().map(|check| [check.id, check.why, check.fix])
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There is nothing in the way.
    Pass,
    /// It was not looked at; the evidence says why.
    Skip,
    /// It works, but not as well as it could, or not in every case.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One check with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name, which stays the same.
    pub id: &'static str,
    /// How it ended.
    pub result: Verdict,
    /// What was seen.
    pub evidence: String,
    /// Why it matters.
    pub why: &'static str,
    /// What helps if it does not pass.
    pub fix: &'static str,
}

/// Judges what was seen. The order of the findings is always the same.
pub fn judge(wanted: &Wanted, facts: &Facts) -> Vec<Finding> {
    let finding = |check: &judge::Check| {
        let (result, evidence) = (check.judge)(wanted, facts);
        Finding { id: check.id, result, evidence, why: check.why, fix: check.fix }
    };
    judge::CHECKS.iter().map(finding).collect()
}

/// What was logged of a node.
pub type Told = Arc<Mutex<Vec<Finding>>>;

/// Looks and judges, and logs what did not pass and was not told before: one line a check. One look at a time. Where other nodes are asked,
/// it is what they answered that is logged, and nothing else.
pub fn log(wanted: &Wanted, told: &Told) {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    let mut findings = judge(wanted, &look(wanted));
    findings.retain(|finding| !wanted.probes || judge::ASKING.contains(&finding.id));
    for finding in findings.iter().filter(|finding| !told.contains(finding)) {
        let Finding { id, result, evidence, why, fix } = finding;
        match result {
            Verdict::Pass | Verdict::Skip => tracing::debug!(check = id, %result, evidence, "preflight"),
            Verdict::Warn => tracing::warn!(check = id, %result, evidence, why, fix, "preflight"),
            Verdict::Fail => tracing::error!(check = id, %result, evidence, why, fix, "preflight"),
        }
    }
    told.retain(|finding| findings.iter().all(|other| other.id != finding.id));
    told.append(&mut findings);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::{Object, Tunnel};
    use crate::crypto::x25519::PublicKey;

    #[test]
    fn each_of_many_nodes_asks_a_few_and_is_asked_by_as_many() {
        let mut objects = Objects::default();
        let names: Vec<_> = (0..100).map(|n| format!("node{n:02}")).collect();
        for (n, name) in (0..).zip(&names) {
            let tunnel = Tunnel { active: Some(PublicKey::new([n; 32])), ..Tunnel::default() };
            objects.insert(Object::Tunnel(name.clone(), tunnel));
        }
        let asked = |node: &str| {
            let mut wanted = Wanted::of(&objects, Some(node));
            wanted.ask(node, |target| target.node != "node07");
            assert!(wanted.probes);
            wanted.targets.into_iter().map(|target| target.node).collect::<Vec<_>>()
        };
        assert_eq!(asked("node05")[..2], ["node06", "node08"]);
        assert_eq!(asked("node98")[..2], ["node99", "node00"]);
        let all: Vec<_> = names.iter().flat_map(|name| asked(name)).collect();
        assert_eq!(all.len(), 1600);
        let count = |name: &String| all.iter().filter(|other| *other == name).count();
        // The one whose neighbour is not asked.
        assert!(names.iter().filter(|name| *name != "node07").all(|name| (16..=17).contains(&count(name))));
    }
}
