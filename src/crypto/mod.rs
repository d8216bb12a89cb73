//! Ciphers, hashes and key agreement. Has never heard of WireGuard.

pub mod aead;
mod arch;
pub mod blake2s;
pub mod random;
pub mod secret;
pub mod x25519;
pub mod xaead;
