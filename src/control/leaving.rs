//! What is to be taken from the data plane, and waits: packets that are under way when a route goes still arrive. Pure.
//!
//! A prefix that moves to another peer does not wait, since it is not taken but given: the accept set of the old peer ends with that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{AllowedIpEdit, Edit, Prefix};
use crate::crypto::x25519::PublicKey;

/// How long a peer is listened to after the last route to it has gone: longer than packets are under way.
pub const GRACE: Duration = Duration::from_secs(1);

/// What is to be taken: a whole peer, or one of its prefixes.
type What = (PublicKey, Option<Prefix>);

/// What waits, with the moment from which on it need not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaving(BTreeMap<What, Duration>);

impl Leaving {
    /// Takes in what is to be removed as of `now`, and returns the part of it that has waited long enough. What is not among it any more has
    /// come back, and is forgotten.
    pub fn due(&mut self, removals: &[Edit], now: Duration) -> Vec<Edit> {
        let before = std::mem::take(&mut self.0);
        let mut is_due = |what: What| {
            let moment = before.get(&what).copied().unwrap_or(now + GRACE);
            self.0.insert(what, moment);
            moment <= now
        };
        let mut due = Vec::new();
        for edit in removals {
            match edit {
                Edit::Peer(edit) if edit.remove => {
                    if is_due((edit.public_key, None)) {
                        due.push(Edit::Peer(edit.clone()));
                    }
                }
                Edit::Peer(edit) => {
                    let mut part = edit.clone();
                    part.allowed_ips.retain(|change| match change {
                        AllowedIpEdit::Remove(prefix) => is_due((edit.public_key, Some(*prefix))),
                        AllowedIpEdit::Add(_) => true,
                    });
                    if !part.allowed_ips.is_empty() {
                        due.push(Edit::Peer(part));
                    }
                }
                // What concerns the interface itself has no packets under way.
                Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => {
                    due.push(edit.clone());
                }
            }
        }
        due
    }

    /// Notes that what was due is gone.
    pub fn done(&mut self, now: Duration) {
        self.0.retain(|_, moment| *moment > now);
    }

    /// Returns the moment at which something is due next.
    pub fn next(&self) -> Option<Duration> {
        self.0.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerEdit;

    fn key(n: u8) -> PublicKey {
        PublicKey::new([n; 32])
    }

    fn gone(n: u8) -> Edit {
        Edit::Peer(PeerEdit { remove: true, ..PeerEdit::new(key(n)) })
    }

    fn without(n: u8, prefixes: &[&str]) -> Edit {
        let removals = prefixes.iter().map(|text| AllowedIpEdit::Remove(text.parse().unwrap()));
        Edit::Peer(PeerEdit { update_only: true, allowed_ips: removals.collect(), ..PeerEdit::new(key(n)) })
    }

    fn texts(edits: &[Edit]) -> Vec<String> {
        edits.iter().map(|edit| format!("{edit:?}")).collect()
    }

    #[test]
    fn everything_waits_its_own_time_and_what_comes_back_is_forgotten() {
        let at = Duration::from_millis;
        let mut leaving = Leaving::default();
        assert!(leaving.due(&[gone(1), without(2, &["10.1.0.0/16"])], at(5000)).is_empty());
        assert_eq!(leaving.next(), Some(at(6000)));
        // One more leaves in between, and one comes back.
        let removals = [gone(1), without(2, &["10.1.0.0/16", "10.2.0.0/16"])];
        assert!(leaving.due(&removals, at(5500)).is_empty());
        assert!(leaving.due(&removals[1..], at(5600)).is_empty());
        assert_eq!(
            texts(&leaving.due(&removals, at(6000))),
            texts(&[without(2, &["10.1.0.0/16"])]),
            "the first one's time begins anew"
        );
        leaving.done(at(6000));
        assert_eq!(leaving.next(), Some(at(6500)));
        let removals = [gone(1), without(2, &["10.2.0.0/16"])];
        assert_eq!(texts(&leaving.due(&removals, at(7000))), texts(&removals));
        leaving.done(at(7000));
        assert_eq!(leaving, Leaving::default());
    }
}
