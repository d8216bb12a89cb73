//! Whether a pod may have its network: in Strict mode, once nothing that it sends can leave in clear, and the other nodes know where it is.
//! Pure.

use std::fmt;
use std::net::IpAddr;

use crate::config::Prefix;
use crate::control::api::{Mode, OnAgentUnavailable};
use crate::control::plan::Kind;
use crate::control::topology::Topology;

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// How much is encrypted.
    pub mode: Mode,
    /// What the plugin is to do while no agent answers.
    pub on_agent_unavailable: OnAgentUnavailable,
    /// The blocks of pod addresses that the node has published, and that are its own by the routes as they are programmed.
    pub pods: Vec<Prefix>,
    /// The MTU in bytes that pods should have, if it is known.
    pub mtu: Option<u32>,
    /// Whether the data plane answers.
    pub has_data_plane: bool,
    /// Why the node is not what it should be, if it is not.
    pub failure: Option<String>,
}

/// Why a pod may not have its network yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing has been looked at.
    NotLooked,
    /// The data plane does not answer.
    NoDataPlane,
    /// Routes and firewall are not what they should be, or nobody is told of this node.
    Failed(String),
    /// An address is in none of the blocks that the other nodes know to be here.
    NotPublished(IpAddr),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLooked => f.write_str("the agent has not looked at anything yet"),
            Self::NoDataPlane => f.write_str("the data plane does not answer"),
            Self::Failed(why) => write!(f, "the node is not yet what it should be: {why}"),
            Self::NotPublished(addr) => {
                write!(f, "{addr} is in no block of pod addresses that this node has published")
            }
        }
    }
}

impl Facts {
    /// Returns what a look has found, of a node that has published `published`, and whose data plane is as if it answered.
    pub fn of(topology: &Topology, published: &[Prefix], failure: Option<&String>) -> Self {
        let settings = &topology.settings;
        let throws = topology.routes.entries.iter().filter(|entry| entry.kind == Kind::Throw);
        let own: Vec<_> = throws.map(|entry| entry.prefix).collect();
        // A pod cannot have what the kernel has not.
        let can_be = |prefix: &Prefix| !topology.lacks_ipv6 || prefix.addr().is_ipv4();
        let is_own = |prefix: &&Prefix| {
            can_be(prefix) && (settings.mode == Mode::Off || own.iter().any(|own| own.covers(prefix)))
        };
        let degraded = topology.degraded.as_ref().map(ToString::to_string);
        Self {
            mode: settings.mode,
            on_agent_unavailable: settings.on_agent_unavailable,
            pods: published.iter().filter(is_own).copied().collect(),
            mtu: settings.mtu,
            has_data_plane: true,
            failure: failure.cloned().or(degraded),
        }
    }

    /// Returns why nothing that is expected of the node works, if that is so.
    pub fn unready(&self) -> Option<Obstacle> {
        match &self.failure {
            _ if !self.has_data_plane => Some(Obstacle::NoDataPlane),
            Some(why) => Some(Obstacle::Failed(why.clone())),
            None => None,
        }
    }

    /// Returns why a pod with these addresses would not be protected, if it would not.
    pub fn obstacle(&self, addresses: &[IpAddr]) -> Option<Obstacle> {
        let is_published = |addr: &&IpAddr| self.pods.iter().any(|prefix| prefix.contains(**addr));
        let unknown = || addresses.iter().find(|addr| !is_published(addr)).copied();
        self.unready().or_else(|| unknown().map(Obstacle::NotPublished))
    }

    /// Tells whether an obstacle keeps a pod from its network. Elsewhere than in Strict mode it is only told.
    pub fn is_closed(&self) -> bool {
        self.mode == Mode::Strict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            mode: Mode::Strict,
            on_agent_unavailable: OnAgentUnavailable::Fail,
            pods: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            mtu: Some(1420),
            has_data_plane: true,
            failure: None,
        }
    }

    #[test]
    fn every_address_must_be_known_to_the_others() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let obstacle = |texts: &[&str]| facts().obstacle(&addresses(texts));
        assert_eq!(obstacle(&["10.244.1.5", "fd00:1::5"]), None);
        assert_eq!(obstacle(&[]), None);
        let outside = "10.244.2.5".parse().unwrap();
        assert_eq!(obstacle(&["10.244.1.5", "10.244.2.5"]), Some(Obstacle::NotPublished(outside)));
        assert!(obstacle(&["fd00:2::5"]).is_some());
    }

    #[test]
    fn a_node_that_is_not_ready_holds_every_pod() {
        let failed = Facts { failure: Some("no route".to_owned()), ..facts() };
        assert_eq!(failed.obstacle(&[]), Some(Obstacle::Failed("no route".to_owned())));
        // That nobody answers is the reason for the rest.
        let away = Facts { has_data_plane: false, ..failed };
        assert_eq!(away.obstacle(&[]), Some(Obstacle::NoDataPlane));
    }
}
