//! The gate before Strict: a node that was in another mode waits until all others are ready.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::Own;
use crate::control::api::{Mode, StrictGate};
use crate::control::objects::Objects;
use crate::control::settings::Settings;
use crate::crypto::x25519::PublicKey;

/// Why a node is not ready for Strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// It has not said anything of itself.
    NotPublished,
    /// It has no key that is Active.
    NoKey,
    /// An older node has its key.
    DuplicateKey,
    /// Its agent has not said what it found.
    NoStatus,
    /// Its agent found something wrong.
    NotReady,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPublished => "NotPublished",
            Self::NoKey => "NoKey",
            Self::DuplicateKey => "DuplicateKey",
            Self::NoStatus => "NoStatus",
            Self::NotReady => "NotReady",
        })
    }
}

/// Returns the nodes that Strict waits for. It waits once: a node that comes later is dropped until it is ready, and lets nothing out.
pub(super) fn waits_for(
    settings: &Settings,
    objects: &Objects,
    own: &Own,
    keys: &HashMap<PublicKey, &str>,
) -> BTreeMap<String, Unready> {
    let may_wait = settings.mode == Mode::Strict
        && settings.strict_gate == StrictGate::WhenAllReady
        && matches!(own.mode, Some(Mode::Off | Mode::Permissive));
    if !may_wait {
        return BTreeMap::new();
    }
    let is_cluster = !objects.nodes.is_empty();
    let unready = |name: &String| {
        let Some(tunnel) = objects.tunnels.get(name) else { return Some(Unready::NotPublished) };
        let Some(key) = tunnel.active else { return Some(Unready::NoKey) };
        if keys.get(&key) != Some(&name.as_str()) {
            return Some(Unready::DuplicateKey);
        }
        match tunnel.is_ready {
            Some(true) => None,
            Some(false) => Some(Unready::NotReady),
            // Where there is nobody to tell, nobody tells.
            None => is_cluster.then_some(Unready::NoStatus),
        }
    };
    let speaking = objects.tunnels_of_cluster(&own.name).map(|(name, _)| name);
    let names: BTreeSet<_> = speaking.chain(objects.nodes.keys()).collect();
    let others = names.into_iter().filter(|name| **name != own.name);
    others.filter_map(|name| Some((name.clone(), unready(name)?))).collect()
}
