//! When the cluster is told what this node's agent found. Pure.
//!
//! Every agent watches every node's object, so that each write is read as often as there are nodes; and one node that joins changes what
//! all of them have to tell. So there are two kinds of news:
//!
//! - that a condition of this node holds or does not, or for another reason, is told at once;
//! - what is about the others – how many peers there are and how many have a session, which nodes are named, the words of a message – is
//!   told once a period, which is the longer the more peers there are. When it begins to change, it does so for all nodes at the same
//!   time, and each waits for a part of the period that is its own. What was told may go on changing: a period later it is looked at
//!   again, until nothing is new.
//!
//! ```text
//! found   1 2         3          C              4
//! told    └─our part─→2└───────→3C└──a period──→4└──a period──→–        C: another condition; –: nothing is new
//! ```

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::api::NodeTunnelStatus;
use super::status::{has_other_conditions, is_same};

/// The period for each peer: however many nodes there are, an agent hears of about three writes a second at most.
const PERIOD_OF_PEER: Duration = Duration::from_millis(300);
/// The shortest period.
const PERIOD_MIN: Duration = Duration::from_secs(5);
/// How long after an agent has told anything for the first time it looks again: the first sessions are there by then.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// What was told, and when to tell more.
#[derive(Debug)]
pub struct Telling {
    /// The part of a period that is our own to wait.
    part: f64,
    told: Option<NodeTunnelStatus>,
    due: Option<Duration>,
}

impl Telling {
    /// Begins with nothing told.
    pub fn new(node: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let [high, low, ..] = hasher.finish().to_be_bytes();
        Self { part: f64::from(u16::from_be_bytes([high, low])) / 65536.0, told: None, due: None }
    }

    /// Returns the moment at which everything is to be looked at anew for the sake of what is told, if there is one.
    pub fn next(&self) -> Option<Duration> {
        self.due
    }

    /// Takes in what was found at the moment `now`, and returns it if it is to be told.
    pub fn found(&mut self, status: NodeTunnelStatus, now: Duration) -> Option<NodeTunnelStatus> {
        let is_due = self.due.is_some_and(|due| due <= now);
        let peers = status.peers.map_or(0, |peers| peers.total);
        let period = (PERIOD_OF_PEER * peers).max(PERIOD_MIN);
        let wait = match &self.told {
            None => SETTLED_AFTER,
            Some(told) if has_other_conditions(told, &status) => period,
            Some(told) if is_same(told, &status) => {
                self.due = self.due.filter(|_| !is_due);
                return None;
            }
            Some(_) if is_due => period,
            Some(_) => {
                self.due.get_or_insert_with(|| now + period.mul_f64(self.part));
                return None;
            }
        };
        self.due = Some(now + wait);
        self.told = Some(status.clone());
        Some(status)
    }

    /// Forgets what was told: there is nobody to tell, or it is gone.
    pub fn forget(&mut self) {
        (self.told, self.due) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::PeerCounts;
    use crate::control::objects::Objects;
    use crate::control::status::{Outcome, status};
    use crate::control::topology::{Own, topology};
    use crate::crypto::x25519::PublicKey;

    /// Returns what is found with so many peers, of which some have a session.
    fn of(total: u32, up: u32, failure: Option<&str>) -> NodeTunnelStatus {
        let topology = topology(&Objects::default(), &Own::new("a", PublicKey::new([1; 32])));
        let outcome =
            Outcome { sessions: Some([0; 3]), failure: failure.map(str::to_owned), is_programmed: true };
        let peers = Some(PeerCounts { total, up, down: 0 });
        NodeTunnelStatus { peers, ..status(&topology, &outcome, Duration::ZERO) }
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Returns one that has told `status` and has come to rest by the time of `now`.
    fn rested(node: &str, status: &NodeTunnelStatus, now: Duration) -> Telling {
        let mut telling = Telling::new(node);
        assert!(telling.found(status.clone(), Duration::ZERO).is_some());
        assert_eq!(telling.found(status.clone(), now), None);
        assert_eq!(telling.next(), None);
        telling
    }

    #[test]
    fn a_condition_is_told_at_once_with_all_that_is_known() {
        let mut telling = rested("a", &of(1000, 7, None), at(1000.0));
        let failed = of(1001, 9, Some("no way"));
        assert_eq!(telling.found(failed.clone(), at(1000.1)), Some(failed));
        // The words are another matter.
        assert_eq!(telling.found(of(1001, 9, Some("no way at all")), at(1000.2)), None);
        assert!(telling.next().is_some_and(|due| due > at(1000.2)));
        let mended = of(1001, 9, None);
        assert_eq!(telling.found(mended.clone(), at(1000.3)), Some(mended));
    }

    #[test]
    fn counts_alone_are_told_once_a_period_however_often_they_change() {
        for (peers, period) in [(2, 5.0), (16, 5.0), (100, 30.0), (1000, 300.0), (5000, 1500.0)] {
            let mut telling = rested("node7", &of(peers, 0, None), at(10_000.0));
            let mut told = Vec::new();
            for tenth in 0..100_000 {
                let now = at(10_000.0 + f64::from(tenth) / 10.0);
                if telling.found(of(peers, tenth, None), now).is_some() {
                    told.push(now);
                }
            }
            let most = 10_000.0 / period + 1.0;
            assert!(told.len() as f64 >= most - 2.0 && told.len() as f64 <= most, "{peers}: {}", told.len());
            let apart = told.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
            assert!(apart >= at(period - 0.2), "{peers}: {apart:?}");
        }
    }

    #[test]
    fn of_a_thousand_nodes_none_tells_at_once_that_one_has_joined_and_few_tell_together() {
        let joined = at(1_000_000.0);
        let mut told = Vec::new();
        for node in 0..1000 {
            let mut telling = rested(&format!("node{node}"), &of(999, 3, None), joined - at(1.0));
            assert_eq!(telling.found(of(1000, 3, None), joined), None);
            let due = telling.next().unwrap();
            assert!(telling.found(of(1000, 3, None), due).is_some());
            // Nothing is new a period later, and that is the end of it.
            let again = telling.next().unwrap();
            assert_eq!(telling.found(of(1000, 3, None), again), None);
            assert_eq!(telling.next(), None);
            told.push((due - joined).as_secs_f64());
        }
        assert!(told.iter().all(|delay| (0.0..=300.0).contains(delay)));
        let within = |from: f64| told.iter().filter(|delay| (from..from + 10.0).contains(*delay)).count();
        let busiest = (0..30).map(|ten| within(f64::from(ten) * 10.0)).max().unwrap();
        assert!((33..=60).contains(&busiest), "{busiest} of a thousand in ten seconds");
    }

    #[test]
    fn in_a_small_cluster_the_first_sessions_are_told_within_seconds() {
        for node in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let mut telling = Telling::new(node);
            let now = at(77.7);
            assert!(telling.found(of(2, 0, None), now).is_some());
            let mut last = of(2, 0, None);
            // Every look that it asks for is taken; the sessions come after three seconds.
            let mut looks = 0;
            while let Some(due) = telling.next() {
                assert!(due <= now + at(15.0), "{node}: {due:?}");
                let up = if due < now + at(3.0) { 0 } else { 2 };
                last = telling.found(of(2, up, None), due).unwrap_or(last);
                looks += 1;
            }
            assert_eq!(last.peers.unwrap().up, 2, "{node}");
            assert!(looks <= 3, "{node}: {looks}");
        }
        // In a large one as well, where its own moment is far away.
        let mut telling = Telling::new("a");
        assert!(telling.found(of(1000, 0, None), at(77.7)).is_some());
        assert!(telling.next().unwrap() <= at(82.7));
    }

    #[test]
    fn what_is_gone_is_told_anew() {
        let mut telling = rested("a", &of(2, 2, None), at(100.0));
        assert_eq!(telling.found(of(2, 1, None), at(101.0)), None);
        telling.forget();
        assert_eq!(telling.next(), None);
        assert!(telling.found(of(2, 1, None), at(101.0)).is_some());
    }
}
