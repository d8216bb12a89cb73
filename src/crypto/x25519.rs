//! Curve25519 key agreement (RFC 7748), the paper's `DH` and `DH-Generate`.

use std::fmt;

use super::random::Random;
use super::secret::Secret;

/// A point on Curve25519: a peer's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes as they are: any value is a valid public key (RFC 7748 §5).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A clamped Curve25519 scalar (RFC 7748 §5).
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Secret<32>);

impl PrivateKey {
    /// Takes 32 bytes and clamps them.
    pub fn new(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = Self(Secret::new(bytes));
        zeroize::Zeroize::zeroize(&mut bytes);
        key
    }

    /// Makes a new key: the private half of the paper's `DH-Generate()` ([W] §5.4).
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        let key = Self::new(bytes);
        zeroize::Zeroize::zeroize(&mut bytes);
        key
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0.as_bytes());
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// Returns the clamped bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Returns the shared secret, the paper's `DH(private, public)`, or `None` if it is all zero: the peer's key is of low order.
pub fn dh(private: &PrivateKey, public: &PublicKey) -> Option<Secret<32>> {
    let secret = x25519_dalek::StaticSecret::from(*private.0.as_bytes());
    let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(public.0));
    shared.was_contributory().then(|| Secret::new(shared.to_bytes()))
}
