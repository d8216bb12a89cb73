//! Where objects come from. Everything that waits is here; what follows from the objects is decided elsewhere.
//!
//! - [`access`]: what an agent does there, and whether it may.
//! - [`cluster`]: the Kubernetes API.
//! - `events`: what has happened, written there.
//! - `follow`: the objects of one kind there.
//! - `taint`: what keeps pods from a new node there.
//! - [`directory`]: YAML files, for machines without a cluster.

pub mod access;
pub mod cluster;
pub mod directory;
mod events;
mod follow;
mod taint;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde_json::Value;

use super::api::NodeTunnelStatus;
use super::happening::Happening;
use super::objects::Objects;

/// A place that objects come from.
pub trait Source {
    /// Returns a descriptor that is readable when [`Self::take`] has something to do.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Takes in what has changed, and tells whether the objects may be others since.
    fn take(&mut self) -> bool;

    /// Looks at everything again, whether or not anything was told, and tells whether the objects may be others since.
    fn look_again(&mut self) -> bool;

    /// Returns the objects; `None` until every list was read to its end for the first time.
    fn objects(&self) -> Option<Objects>;

    /// Returns where the API server is; nothing where there is none.
    fn api_servers(&self) -> &[IpAddr] {
        &[]
    }

    /// Returns how the cluster is reached; `None` where there is none.
    fn reach(&self) -> Option<access::Reach> {
        None
    }

    /// Says whether the pods of this node are to be among the objects. A source that has them at hand gives them in any case.
    fn want_pods(&mut self, _node: &str, _is_wanted: bool) {}

    /// Says which taint this node is not to have, by its key. Where nodes have none, there is nothing to do.
    fn want_untainted(&mut self, _node: &str, _taint: Option<&str>) {}

    /// Has what this node says of itself written, sooner or later. A source that cannot be written to leaves that to whoever made it.
    fn publish(&mut self, _tunnel: Value) {}

    /// Has people told of what has happened to this node, if there is a place for it.
    fn tell(&mut self, _node: &str, _happening: Happening) {}

    /// Returns the count of what people could not be told of.
    fn events_lost(&self) -> Arc<AtomicU64> {
        Arc::default()
    }

    /// Has what this node's agent found written beside it, sooner or later; likewise.
    fn report(&mut self, _node: &str, _status: NodeTunnelStatus) {}
}
