//! The WireGuard protocol, one file per idea of the whitepaper.
//!
//! Pure: time, randomness and bytes come in as arguments and go out as return values. There is no clock, socket, thread or lock here.
//! What several threads share ([`peer::Peer`], [`keypair::Keypair`], [`index::Table`]) is made of atomics only.

pub mod constants;
pub mod messages;
pub mod time;
