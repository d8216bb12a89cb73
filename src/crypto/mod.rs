//! Ciphers, hashes and key agreement. Has never heard of WireGuard.

pub mod random;
pub mod secret;
pub mod x25519;
