//! The WireGuard protocol, one file per idea of the whitepaper.
//!
//! Pure: time, randomness and bytes come in as arguments and go out as return values. There is no clock, socket, thread or lock here.
//! What several threads share ([`peer::Peer`], [`keypair::Keypair`], [`index::Table`]) is made of atomics only.

pub mod allowed_ips;
pub mod constants;
pub mod cookie;
pub mod dropped;
pub mod endpoint;
pub mod handshake_times;
pub mod index;
pub mod interface;
mod keyed;
pub mod keypair;
pub mod load;
pub mod messages;
pub mod nesting;
pub mod noise;
pub mod peer;
pub mod ratelimiter;
pub mod replay;
pub(crate) mod sync;
pub mod tai64n;
pub mod time;
pub mod timers;
pub mod tunnel;
