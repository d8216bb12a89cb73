//! What this node's agent tells the cluster: conditions, peers, and who is not talked to through the tunnel. Pure.
//!
//! When it is told is decided elsewhere: see [`super::telling`].
//!
//! There is deliberately no `RotationInProgress`: a condition that is absent is not known (Kubernetes API conventions), and nobody here
//! knows.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::api::{Mode, NodeTunnelStatus, NotEncrypted, PeerCounts};
use super::topology::{Degraded, Topology, Unready};

/// The most nodes that are named.
const NOT_ENCRYPTED_MAX: usize = 16;

/// The most nodes that are named in a message.
const NAMED_MAX: usize = 8;

/// What is said of a node whose kernel has no IPv6, where the cluster has.
pub const NO_IPV6: &str = "not encrypted: IPv6, of which this node's kernel has none; nothing is sent by it";

/// How the last look at everything went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Peers in each state of [`Session::ALL`]; `None` if the data plane does not answer.
    ///
    /// [`Session::ALL`]: super::session::Session::ALL
    pub sessions: Option<[usize; 3]>,
    /// Why not everything is as it should be, if it is not.
    pub failure: Option<String>,
    /// Whether routes and firewall are what they should be.
    pub is_programmed: bool,
}

/// Returns what is to be told at the moment `now`, since the Unix epoch. Everything in it is as old as that.
pub fn status(topology: &Topology, outcome: &Outcome, now: Duration) -> NodeTunnelStatus {
    let now = Timestamp::from_second(i64::try_from(now.as_secs()).unwrap_or_default()).unwrap_or_default();
    let condition = |kind: &str, holds: bool, reason: &str, message: String| Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Time(now),
        observed_generation: None,
    };
    let (is_published, publication) = match topology.degraded {
        Some(Degraded::NotPublished) => (false, "NotPublished"),
        Some(Degraded::OtherKeyPublished) => (false, "OtherKeyPublished"),
        Some(Degraded::DuplicateKey { .. }) | None => (true, "Published"),
    };
    let (degradation, why) = match &topology.degraded {
        None => ("AsWanted", String::new()),
        Some(degraded) => (degraded.reason(), degraded.to_string()),
    };
    let (answers, answer) = match outcome.sessions {
        Some(_) => (true, "Answers"),
        None => (false, "NotAnswering"),
    };
    let (is_in_sync, sync, out_of_sync) = match &outcome.failure {
        Some(failure) => (false, "Failed", failure.clone()),
        None if topology.lacks_ipv6 => (true, "WithoutIPv6", NO_IPV6.to_owned()),
        None => (true, "InSync", String::new()),
    };
    let (is_strict, strict, why_not_strict) = strict(topology, outcome.is_programmed);
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    let total = number(topology.peers.len());
    // A peer that waits until it is removed is not among them.
    let [up, _, down] = outcome.sessions.unwrap_or_default().map(|count| number(count).min(total));
    let not_encrypted = topology.not_encrypted.iter().take(NOT_ENCRYPTED_MAX);
    NodeTunnelStatus {
        conditions: vec![
            condition(
                "DataplaneReady",
                answers,
                answer,
                if answers { String::new() } else { outcome.failure.clone().unwrap_or_default() },
            ),
            condition("KeyPublished", is_published, publication, String::new()),
            condition("PeersInSync", is_in_sync, sync, out_of_sync),
            condition("StrictEnforced", is_strict, strict, why_not_strict),
            condition("Degraded", topology.degraded.is_some(), degradation, why),
        ],
        peers: Some(PeerCounts { total, up, down }),
        not_encrypted: not_encrypted
            .map(|(node, how)| NotEncrypted {
                node: node.clone(),
                reason: how.reason.to_string(),
                since: Some(now.to_string()),
            })
            .collect(),
    }
}

/// Tells whether what cannot be encrypted is dropped, with a word for it and, if not, what stands in the way.
pub fn strict(topology: &Topology, is_programmed: bool) -> (bool, &'static str, String) {
    if !topology.waits_for.is_empty() {
        return (false, "NotReady", format!("not ready: {}", named(&topology.waits_for)));
    }
    match topology.settings.mode {
        Mode::Strict if is_programmed && topology.settings.lacks_catch_all() => {
            // In short: every agent reads it with each change of the object.
            (false, "WithoutCatchAll", "no catch-all: name clusterCIDRs".to_owned())
        }
        Mode::Strict if is_programmed => {
            let found = topology.settings.found_catch_all();
            (true, "Enforced", found.map(|found| format!("catch-all: {found}")).unwrap_or_default())
        }
        Mode::Strict => (false, "NotProgrammed", "routes or firewall are not what they should be".to_owned()),
        Mode::Permissive | Mode::Off => (false, "NotWanted", String::new()),
    }
}

/// Names nodes that Strict waits for, a handful of them.
pub fn named(waits_for: &BTreeMap<String, Unready>) -> String {
    let named = waits_for.iter().take(NAMED_MAX).map(|(node, why)| format!("{node} ({why})"));
    let mut text = named.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = waits_for.len().checked_sub(NAMED_MAX) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Tells whether both tell the same, but for times.
pub fn is_same(a: &NodeTunnelStatus, b: &NodeTunnelStatus) -> bool {
    let without_times = |status: &NodeTunnelStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status.not_encrypted.iter_mut().for_each(|node| node.since = None);
        status
    };
    without_times(a) == without_times(b)
}

/// Tells whether a condition of one holds and of the other does not, or for another reason.
pub fn has_other_conditions(a: &NodeTunnelStatus, b: &NodeTunnelStatus) -> bool {
    fn said(status: &NodeTunnelStatus) -> impl Iterator<Item = [&str; 3]> {
        status.conditions.iter().map(|it| [it.type_.as_str(), it.status.as_str(), it.reason.as_str()])
    }
    !said(a).eq(said(b))
}

/// Gives what was told before already the time that it has there.
pub fn carry_over(before: &NodeTunnelStatus, status: &mut NodeTunnelStatus) {
    for condition in &mut status.conditions {
        let same = |old: &&Condition| old.type_ == condition.type_ && old.status == condition.status;
        if let Some(old) = before.conditions.iter().find(same) {
            condition.last_transition_time = old.last_transition_time.clone();
        }
    }
    for node in &mut status.not_encrypted {
        let same = |old: &&NotEncrypted| old.node == node.node && old.reason == node.reason;
        if let Some(old) = before.not_encrypted.iter().find(same) {
            node.since.clone_from(&old.since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::TunnelConfigSpec;
    use crate::control::objects::{Config, Node, Objects, PodNetwork, Tunnel};
    use crate::control::topology::{Own, topology};
    use crate::crypto::x25519::PublicKey;

    fn told(objects: &Objects, outcome: &Outcome, now: u64) -> NodeTunnelStatus {
        let own = Own::new("a", PublicKey::new([1; 32]));
        status(&topology(objects, &own), outcome, Duration::from_secs(now))
    }

    fn conditions(status: &NodeTunnelStatus) -> Vec<String> {
        let conditions = status.conditions.iter();
        conditions
            .map(|it| format!("{} {} {} {}", it.type_, it.status, it.reason, it.last_transition_time.0))
            .collect()
    }

    #[test]
    fn what_changes_gets_a_new_time_and_what_does_not_keeps_its_own() {
        let mut objects = Objects::default();
        for n in 0..20 {
            objects.nodes.insert(format!("n{n:02}"), Node::default().into());
        }
        let fine = Outcome { sessions: Some([0; 3]), failure: None, is_programmed: true };
        let first = told(&objects, &fine, 0);
        assert_eq!(
            conditions(&first),
            [
                "DataplaneReady True Answers 1970-01-01T00:00:00Z",
                "KeyPublished False NotPublished 1970-01-01T00:00:00Z",
                "PeersInSync True InSync 1970-01-01T00:00:00Z",
                "StrictEnforced False NotWanted 1970-01-01T00:00:00Z",
                "Degraded True NotPublished 1970-01-01T00:00:00Z",
            ]
        );
        assert_eq!(first.not_encrypted.len(), 16);
        assert!(is_same(&first, &told(&objects, &fine, 60)));
        objects.nodes.remove("n00");
        let gone =
            Outcome { sessions: None, failure: Some("nobody is there".to_owned()), is_programmed: true };
        let mut second = told(&objects, &gone, 60);
        assert!(!is_same(&first, &second));
        carry_over(&first, &mut second);
        assert_eq!(
            conditions(&second),
            [
                "DataplaneReady False NotAnswering 1970-01-01T00:01:00Z",
                "KeyPublished False NotPublished 1970-01-01T00:00:00Z",
                "PeersInSync False Failed 1970-01-01T00:01:00Z",
                "StrictEnforced False NotWanted 1970-01-01T00:00:00Z",
                "Degraded True NotPublished 1970-01-01T00:00:00Z",
            ]
        );
        let since = |name: &str| {
            let node = second.not_encrypted.iter().find(|node| node.node == name);
            node.and_then(|node| node.since.clone()).unwrap()
        };
        assert_eq!(
            (since("n01").as_str(), since("n16").as_str()),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z")
        );
    }

    #[test]
    fn what_a_kernel_without_ipv6_leaves_out_is_said_and_no_failure() {
        let own = |lacks_ipv6| Own { lacks_ipv6, ..Own::new("a", PublicKey::new([1; 32])) };
        let mut objects = Objects::default();
        let mut told = |prefix: &str, own: &Own, failure: Option<&str>| {
            let pod_prefixes = vec![prefix.parse().unwrap()];
            let tunnel = Tunnel { pod_prefixes, active: Some(PublicKey::new([2; 32])), ..Tunnel::default() };
            objects.tunnels.insert("b".to_owned(), tunnel.into());
            let spec = TunnelConfigSpec { mode: Some(Mode::Permissive), ..TunnelConfigSpec::default() };
            objects.configs.insert("default".to_owned(), Config { spec, faults: Vec::new() });
            let failure = failure.map(str::to_owned);
            let outcome = Outcome { sessions: Some([0; 3]), failure, is_programmed: true };
            let status = status(&topology(&objects, own), &outcome, Duration::ZERO);
            let found = status.conditions.into_iter().find(|it| it.type_ == "PeersInSync").unwrap();
            format!("{} {} {}", found.status, found.reason, found.message)
        };
        let without = "True WithoutIPv6 not encrypted: IPv6, of which this node's kernel has none; nothing is sent by it";
        assert_eq!(told("fd00:2::/64", &own(true), None), without);
        assert_eq!(told("10.244.2.0/24", &own(true), None), "True InSync ");
        assert_eq!(told("fd00:2::/64", &own(false), None), "True InSync ");
        assert_eq!(told("fd00:2::/64", &own(true), Some("why")), "False Failed why");
    }

    #[test]
    fn strict_is_enforced_once_nobody_is_waited_for_and_everything_is_programmed() {
        let mut objects = Objects::default();
        let spec = |cluster: Option<&str>| TunnelConfigSpec {
            mode: Some(Mode::Strict),
            cluster_cidrs: cluster.map(|text| vec![text.to_owned()]),
            ..TunnelConfigSpec::default()
        };
        let configure = |objects: &mut Objects, cluster| {
            let config = Config { spec: spec(cluster), faults: Vec::new() };
            objects.configs.insert("default".to_owned(), config);
        };
        configure(&mut objects, Some("10.0.0.0/8"));
        let told = |objects: &Objects, mode, is_programmed| {
            let own = Own { mode, ..Own::new("a", PublicKey::new([1; 32])) };
            let outcome = Outcome { sessions: Some([0; 3]), failure: None, is_programmed };
            let status = status(&topology(objects, &own), &outcome, Duration::ZERO);
            let found = status.conditions.into_iter().find(|it| it.type_ == "StrictEnforced").unwrap();
            format!("{} {} {}", found.status, found.reason, found.message)
        };
        assert_eq!(told(&objects, None, true), "True Enforced ");
        assert!(told(&objects, None, false).starts_with("False NotProgrammed routes"));
        for n in 0..10 {
            objects.nodes.insert(format!("n{n}"), Node::default().into());
        }
        let waiting = told(&objects, Some(Mode::Permissive), true);
        assert!(waiting.starts_with("False NotReady not ready: n0 (NotPublished), n1 (NotPublished), "));
        assert!(waiting.ends_with("n7 (NotPublished) and 2 more"), "{waiting}");
        assert_eq!(told(&objects, Some(Mode::Strict), true), "True Enforced ");
        let prefixes = vec!["10.244.0.0/16".parse().unwrap()];
        objects.pod_network = Some(PodNetwork { prefixes, faults: Vec::new() });
        configure(&mut objects, Some("Auto"));
        let found = "True Enforced catch-all: 10.244.0.0/16 (by kube-system/kubeadm-config)";
        assert_eq!(told(&objects, Some(Mode::Strict), true), found);
        objects.pod_network = None;
        for cluster in [None, Some("Auto")] {
            configure(&mut objects, cluster);
            let told = told(&objects, Some(Mode::Strict), true);
            assert!(told.starts_with("False WithoutCatchAll no catch-all: name clusterCIDRs"), "{told}");
        }
    }
}
