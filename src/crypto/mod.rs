//! Ciphers, hashes and key agreement. Has never heard of WireGuard.

pub mod aead;
#[cfg_attr(
    all(not(target_arch = "x86_64"), not(test)),
    expect(dead_code, reason = "no kernel is for this CPU")
)]
mod arch;
pub mod blake2s;
pub mod random;
pub mod secret;
pub mod x25519;
pub mod xaead;
