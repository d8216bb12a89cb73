//! The control loop: what the cluster says becomes what this node's kernel does.
//!
//! Pure functions say what should be and how to get there from what is; beside each stands the part that carries it out. A lost notice
//! costs a look at everything, never a wrong state.

pub mod failed;
pub mod firewall;
pub mod heal;
pub mod link;
pub mod plan;
mod ranges;
pub mod route;
