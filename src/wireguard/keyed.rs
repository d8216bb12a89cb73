//! A hash under a secret seed, for tables whose keys strangers choose: they can neither make keys collide nor learn keys from how long a
//! look-up takes (kernel `peerlookup.c` and `ratelimiter.c` use SipHash for that).

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use crate::crypto::blake2s::MacKey;

/// The hash under one seed.
#[derive(Clone)]
pub(super) struct Keyed {
    seed: Arc<MacKey>,
}

impl Keyed {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self { seed: Arc::new(MacKey::new(&seed)) }
    }
}

/// The state of one hash.
pub(super) struct KeyedHasher {
    seed: Arc<MacKey>,
    hash: u64,
}

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { seed: Arc::clone(&self.seed), hash: 0 }
    }
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        let previous = self.hash.to_le_bytes();
        let [a, b, c, d, e, f, g, h, ..] = self.seed.mac(&[&previous, bytes]);
        self.hash = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    }

    /// Of the length in front of bytes; they are hashed with it.
    fn write_usize(&mut self, number: usize) {
        self.hash ^= number as u64;
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_every_byte_of_key_and_seed() {
        let hash = |seed: u8, key: [u8; 32]| Keyed::new([seed; 16]).hash_one(key);
        let reference = hash(1, [0; 32]);
        assert_ne!(reference, hash(2, [0; 32]));
        for at in 0..32 {
            let mut key = [0; 32];
            key[at] = 1;
            assert_ne!(reference, hash(1, key), "byte {at}");
        }
    }
}
