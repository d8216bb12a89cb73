//! What is worth telling people: what has happened to this node between two looks. Pure.
//!
//! It becomes Kubernetes Events, which are for those who ask afterwards what went on; what is true at the moment is in the status. A node
//! that joins is not told of, nor peers that are silent for want of anything to say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::session::Session;
use super::settings::NO_CATCH_ALL;
use super::status;
use super::topology::{Degraded, Reason, Topology, Unready};
use crate::config::Snapshot;
use crate::crypto::x25519::PublicKey;

/// The most peers that are told of one by one; the others are counted.
const NAMED_MAX: usize = 8;

/// The bytes of two handshake initiations ([W] §5.4.2), of which the second is sent when the first was not answered for 5 s.
const TWO_INITIATIONS: u64 = 2 * 148;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Whether somebody should look at it.
    pub is_warning: bool,
    /// One word for it, as `PeerLost`.
    pub reason: &'static str,
    /// The other node that it is about, if it is about one.
    pub node: Option<String>,
    /// What it is, in words.
    pub note: String,
}

/// What was found at a look, as far as it may be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Whether the data plane does not answer.
    pub is_down: bool,
    /// Why the node is not what it should be.
    pub degraded: Option<Degraded>,
    /// Whether what cannot be encrypted is dropped.
    pub is_strict: bool,
    /// Whether nothing but what nodes have claimed is.
    pub lacks_catch_all: bool,
    /// The nodes that Strict waits for.
    pub waits_for: BTreeMap<String, Unready>,
    /// The nodes whose key belongs to an older one.
    pub conflicts: BTreeSet<String>,
    /// The nodes that do not answer.
    pub lost: BTreeSet<String>,
}

impl Findings {
    /// Returns what the topology tells.
    pub fn of(topology: &Topology) -> Self {
        let not_encrypted = topology.not_encrypted.iter();
        let conflicts = not_encrypted.filter(|(_, how)| how.reason == Reason::DuplicateKey);
        Self {
            // A node that joins has not been heard of yet.
            degraded: topology.degraded.clone().filter(|why| *why != Degraded::NotPublished),
            lacks_catch_all: topology.settings.lacks_catch_all(),
            waits_for: topology.waits_for.clone(),
            conflicts: conflicts.map(|(name, _)| name.clone()).collect(),
            ..Self::default()
        }
    }

    /// Returns what has happened since the look `before`.
    pub fn since(&self, before: &Self) -> Vec<Happening> {
        let mut happenings = Vec::new();
        let mut tell = |is_warning, reason, note: String| {
            happenings.push(Happening { is_warning, reason, node: None, note });
        };
        match (before.is_down, self.is_down) {
            (false, true) => tell(true, "DataplaneLost", "the data plane does not answer".to_owned()),
            (true, false) => tell(false, "DataplaneBack", "the data plane answers again".to_owned()),
            (false, false) | (true, true) => {}
        }
        match (&before.degraded, &self.degraded) {
            (before, Some(why)) if before.as_ref() != Some(why) => tell(true, "Degraded", why.to_string()),
            (Some(_), None) => tell(false, "Recovered", "the node is what it should be".to_owned()),
            (_, Some(_) | None) => {}
        }
        if before.waits_for.is_empty() && !self.waits_for.is_empty() {
            let note =
                format!("Strict waits for nodes that are not ready: {}", status::named(&self.waits_for));
            tell(true, "StrictWaits", note);
        }
        match (before.is_strict, self.is_strict) {
            (false, true) => tell(false, "StrictEnforced", "what cannot be encrypted is dropped".to_owned()),
            (true, false) => {
                tell(true, "StrictNotEnforced", "what cannot be encrypted may go in clear".to_owned());
            }
            (false, false) | (true, true) => {}
        }
        if self.lacks_catch_all && !before.lacks_catch_all {
            tell(true, "NoCatchAll", NO_CATCH_ALL.to_owned());
        }
        let news = |before: &BTreeSet<String>, now: &BTreeSet<String>| -> Vec<String> {
            now.difference(before).cloned().collect()
        };
        let mut tell_of = |is_warning, reason, nodes: Vec<String>, what: &str| {
            let more = nodes.len().saturating_sub(NAMED_MAX);
            for node in nodes.into_iter().take(NAMED_MAX) {
                let note = format!("{node} {what}");
                happenings.push(Happening { is_warning, reason, node: Some(node), note });
            }
            if more > 0 {
                let note = format!("and {more} more nodes: {what}");
                happenings.push(Happening { is_warning, reason, node: None, note });
            }
        };
        tell_of(
            true,
            "KeyConflict",
            news(&before.conflicts, &self.conflicts),
            "has the key of an older node, and is not talked to",
        );
        tell_of(true, "PeerLost", news(&before.lost, &self.lost), "does not answer");
        tell_of(false, "PeerBack", news(&self.lost, &before.lost), "answers again, or is gone");
        happenings
    }
}

/// Tells from looks at the data plane which peers do not answer.
#[derive(Debug, Default)]
pub struct Silence {
    /// The bytes that had been sent to each peer without a session when it was first seen so.
    sent: BTreeMap<PublicKey, u64>,
    lost: BTreeSet<PublicKey>,
}

impl Silence {
    /// Returns the peers that do not answer at the moment `now`, since the Unix epoch: those without a session at two looks, though
    /// handshakes were begun in between, and not heard of since.
    pub fn look(&mut self, snapshot: &Snapshot, now: Duration) -> &BTreeSet<PublicKey> {
        let before = std::mem::take(&mut self.sent);
        let mut lost = BTreeSet::new();
        for peer in snapshot.peers.iter().filter(|peer| Session::of(peer, now) != Session::Up) {
            let sent = before.get(&peer.public_key).copied().unwrap_or(peer.tx_bytes).min(peer.tx_bytes);
            if self.lost.contains(&peer.public_key) || peer.tx_bytes - sent >= TWO_INITIATIONS {
                lost.insert(peer.public_key);
            }
            self.sent.insert(peer.public_key, sent);
        }
        self.lost = lost;
        &self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::session::tests::peer;

    fn texts(now: &Findings, before: &Findings) -> Vec<String> {
        let text =
            |it: &Happening| format!("{}{} {}", if it.is_warning { "! " } else { "" }, it.reason, it.note);
        now.since(before).iter().map(text).collect()
    }

    #[test]
    fn every_change_is_told_of_once_and_so_is_its_end() {
        let nothing = Findings::default();
        assert!(texts(&nothing, &nothing).is_empty());
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let all = Findings {
            is_down: true,
            degraded: Some(Degraded::OtherKeyPublished),
            is_strict: true,
            lacks_catch_all: true,
            waits_for: [("x".to_owned(), Unready::NoKey)].into(),
            conflicts: set(&["c"]),
            lost: set(&["l"]),
        };
        assert_eq!(
            texts(&all, &nothing),
            [
                "! DataplaneLost the data plane does not answer",
                "! Degraded OtherKeyPublished: the NodeTunnel of this node names another key",
                "! StrictWaits Strict waits for nodes that are not ready: x (NoKey)",
                "StrictEnforced what cannot be encrypted is dropped",
                "! NoCatchAll no catch-all: name clusterCIDRs; addresses of pods that no node has claimed go in clear",
                "! KeyConflict c has the key of an older node, and is not talked to",
                "! PeerLost l does not answer",
            ]
        );
        assert!(texts(&all, &all).is_empty());
        assert_eq!(
            texts(&nothing, &all),
            [
                "DataplaneBack the data plane answers again",
                "Recovered the node is what it should be",
                "! StrictNotEnforced what cannot be encrypted may go in clear",
                "PeerBack l answers again, or is gone",
            ]
        );
        let many = Findings { lost: (0..12).map(|n| format!("n{n:02}")).collect(), ..nothing.clone() };
        let told = many.since(&nothing);
        assert_eq!(told.len(), 9);
        assert_eq!(told[7].node.as_deref(), Some("n07"));
        assert_eq!(told[8].note, "and 4 more nodes: does not answer");
    }

    #[test]
    fn only_who_leaves_two_initiations_unanswered_is_lost() {
        let now = Duration::from_secs(10_000);
        let (fresh, stale) = (Some(now), Some(now - Duration::from_secs(200)));
        let mut silence = Silence::default();
        let mut look = |peers: &[(u8, Option<Duration>, u64)]| {
            let peers = peers.iter().map(|(n, last, sent)| peer(*n, *last, *sent)).collect();
            let lost = silence.look(&Snapshot { peers, ..Snapshot::default() }, now);
            lost.iter().map(|key| key.as_bytes()[0]).collect::<Vec<_>>()
        };
        // One has a session, one is idle, one was never heard of, and one is being asked at this moment.
        assert!(look(&[(1, fresh, 9000), (2, stale, 9000), (3, None, 148), (4, None, 0)]).is_empty());
        assert!(look(&[(1, fresh, 99_000), (2, stale, 9000), (3, None, 148), (4, None, 148)]).is_empty());
        assert_eq!(look(&[(1, stale, 99_999), (2, stale, 9296), (3, None, 592), (4, fresh, 900)]), [2, 3]);
        // It stays so while nothing is sent, ends with an answer, and with the peer.
        assert_eq!(look(&[(1, stale, 99_999), (2, stale, 9296), (3, None, 592)]), [2, 3]);
        assert_eq!(look(&[(2, fresh, 9999)]), [0; 0]);
        assert!(look(&[(2, stale, 9999), (3, None, 700)]).is_empty());
    }
}
