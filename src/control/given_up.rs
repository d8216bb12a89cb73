//! Prefixes that a node has just given up: until somebody takes them they stay with it for a moment, so that a prefix moves in one step
//! also where its new owner claims it after the old one has let go. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::objects::{Objects, Tunnel};
use super::topology::Topology;
use crate::config::Prefix;
use crate::crypto::x25519::PublicKey;

/// How long a prefix stays with the node that gave it up, at least: longer than two nodes take to publish what they agree on.
const GRACE: Duration = Duration::from_secs(1);
/// What ends within such a time of each other ends together: a node whose pods come and go is no reason to look more often.
const TOGETHER: Duration = Duration::from_millis(250);

/// What was given up, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenUp(BTreeMap<Prefix, Former>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Former {
    node: String,
    /// The moment at which it ends.
    until: Duration,
}

impl GivenUp {
    /// Takes in what peers had of pods by `topology`, which was made of `before`, and claim no more in `after`, as of `now`.
    pub fn learn(&mut self, before: &Objects, topology: &Topology, after: &Objects, now: Duration) {
        let had = |key: PublicKey, prefix: &Prefix| {
            topology.peers.get(&key).is_some_and(|peer| peer.allowed_ips.binary_search(prefix).is_ok())
        };
        // Both are in the order of their names, and next to none has changed.
        let mut later = after.tunnels.iter().peekable();
        for (name, tunnel) in before.tunnels.iter() {
            while later.next_if(|(other, _)| *other < name).is_some() {}
            let now_says = later.next_if(|(other, _)| *other == name).map(|(_, now_says)| now_says);
            let Some(now_says) = now_says.filter(|now_says| *now_says != tunnel) else { continue };
            let Some(key) = tunnel.active else { continue };
            for prefix in tunnel.pod_prefixes.iter().filter(|prefix| !says(now_says, prefix)) {
                if had(key, prefix) {
                    let until = (now + GRACE).as_millis().div_ceil(TOGETHER.as_millis());
                    let until = TOGETHER * u32::try_from(until).unwrap_or(u32::MAX);
                    self.0.insert(*prefix, Former { node: name.clone(), until });
                }
            }
        }
    }

    /// Forgets what has waited long enough, and tells whether there was any.
    pub fn end(&mut self, now: Duration) -> bool {
        let before = self.0.len();
        self.0.retain(|_, former| former.until > now);
        self.0.len() < before
    }

    /// Returns the moment at which something ends next.
    pub fn next(&self) -> Option<Duration> {
        self.0.values().map(|former| former.until).min()
    }

    /// Returns each prefix and the node that gave it up.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &str)> {
        self.0.iter().map(|(prefix, former)| (*prefix, former.node.as_str()))
    }
}

fn says(tunnel: &Tunnel, prefix: &Prefix) -> bool {
    tunnel.pod_prefixes.contains(prefix)
}
