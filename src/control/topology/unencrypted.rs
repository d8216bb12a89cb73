//! The nodes that are not talked to through the tunnel, and why.

use std::fmt;

/// How a node is treated that is not talked to through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unencrypted {
    /// Why.
    pub reason: Reason,
    /// Whether packets to its pods are dropped. Otherwise they go in clear.
    pub is_dropped: bool,
}

/// Why a node is not talked to through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The mode is Off.
    ModeOff,
    /// It has no key that is Active.
    NoKey,
    /// An older node has its key.
    DuplicateKey,
    /// It is in our zone, and the scope is CrossZone.
    SameZone,
    /// It is on a subnet of ours, and the scope is CrossSubnet.
    SameSubnet,
}

impl Reason {
    /// Tells whether it is what was asked for, and no fault.
    pub fn is_wanted(self) -> bool {
        match self {
            Self::ModeOff | Self::SameZone | Self::SameSubnet => true,
            Self::NoKey | Self::DuplicateKey => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModeOff => "ModeOff",
            Self::NoKey => "NoKey",
            Self::DuplicateKey => "DuplicateKey",
            Self::SameZone => "SameZone",
            Self::SameSubnet => "SameSubnet",
        })
    }
}
