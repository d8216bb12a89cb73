//! A network of interfaces in one thread under a virtual clock: the protocol's time without waiting, and every run repeatable.
//!
//! The same seed and the same calls give the same wire log, byte for byte. Nodes run the real [`Interface`]; only the data path between
//! TUN and socket, which the device spreads over threads, is written out here in its plainest form.

mod net;
mod node;
mod random;

pub use net::{Conditions, Nat, Record, Sim};
pub use node::Node;
pub use random::Seeded;

#[cfg(doc)]
use crate::wireguard::interface::Interface;

#[cfg(test)]
mod tests;
