//! The control loop: `adit agent` beside a data plane on every node, told by a directory of objects or by a
//! Kubernetes API server who the others are.

mod absent;
mod client;
pub(crate) mod cluster;
mod events;
mod gone;
mod host_traffic;
mod impostor;
mod kept;
mod lockout;
mod loss;
mod mesh;
mod monitoring;
mod mtu;
pub(crate) mod nodes;
mod owner;
pub(crate) mod plans;
mod pod_network;
mod reboot;
mod scope;
mod security;
mod seeing;
mod sweep;
mod told;
mod translated;
mod unreliable;
pub(crate) mod wire;
