//! Whether this node is what it should be: known to the others by the key that it has.

use std::collections::HashMap;
use std::fmt;

use super::Own;
use crate::control::objects::Tunnel;
use crate::crypto::x25519::PublicKey;

/// Why this node is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Degraded {
    /// Nothing says what addresses are behind it.
    NotPublished,
    /// Its object does not name the key that it has.
    OtherKeyPublished,
    /// An older node has its key: the peers do not talk to this one.
    DuplicateKey {
        /// The other node.
        node: String,
    },
}

impl Degraded {
    /// Returns one word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotPublished => "NotPublished",
            Self::OtherKeyPublished => "OtherKeyPublished",
            Self::DuplicateKey { .. } => "DuplicateKey",
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPublished => f.write_str("NotPublished: there is no NodeTunnel of this node"),
            Self::OtherKeyPublished => {
                f.write_str("OtherKeyPublished: the NodeTunnel of this node names another key")
            }
            Self::DuplicateKey { node } => {
                write!(f, "DuplicateKey: the older node {node} has the key of this one")
            }
        }
    }
}

/// Returns why a node is not what it should be, if it is not.
pub(super) fn degraded(
    own: &Own,
    tunnel: Option<&Tunnel>,
    keys: &HashMap<PublicKey, &str>,
) -> Option<Degraded> {
    let Some(tunnel) = tunnel else { return Some(Degraded::NotPublished) };
    match keys.get(&own.public_key) {
        Some(node) if *node != own.name => Some(Degraded::DuplicateKey { node: (*node).to_owned() }),
        Some(_) | None => (tunnel.active != Some(own.public_key)).then_some(Degraded::OtherKeyPublished),
    }
}
