//! A network of interfaces in one thread under a virtual clock: the protocol's time without waiting, and every run repeatable.
//!
//! The same seed and the same calls give the same wire log, byte for byte. Nodes run the real [`Tunnel`]: the protocol with its data path of one
//! thread, which the device spreads over several.

mod net;
mod node;
mod random;

pub use net::{Conditions, Nat, Record, Sim};
pub use node::Node;
pub use random::Seeded;

#[cfg(doc)]
use crate::wireguard::tunnel::Tunnel;

#[cfg(test)]
mod tests;
