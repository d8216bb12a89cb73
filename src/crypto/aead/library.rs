//! One packet at a time, by other people's code.

use std::mem::MaybeUninit;

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};

use super::{Forged, Key, TAG_LEN};

/// Who seals and opens single packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    /// `ring`, the faster one.
    Ring,
    /// `chacha20poly1305`: Rust only, and the oracle of all others.
    Portable,
}

/// A longer message repeats its keystream (RFC 8439 §2.8).
const IS_SHORT: &str = "a packet is shorter than 256 GiB (RFC 8439 §2.8)";

impl Library {
    /// Encrypts `text` and returns its tag.
    pub(super) fn seal(self, key: &Key, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            Self::Ring => {
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let tag = key.ring().seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect(IS_SHORT);
                tag.as_ref().try_into().expect("a tag has 16 bytes")
            }
            Self::Portable => {
                let cipher = ChaCha20Poly1305::new(key.bytes().as_bytes().into());
                cipher.encrypt_inout_detached(nonce.into(), aad, text.into()).expect(IS_SHORT).into()
            }
        }
    }

    /// Decrypts `text`, of which nothing is to be used unless it is authentic.
    pub(super) fn open(
        self,
        key: &Key,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Forged> {
        match self {
            Self::Ring => {
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let opened =
                    key.ring().open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), text, 0..);
                opened.map(drop).map_err(|_| Forged)
            }
            Self::Portable => {
                let cipher = ChaCha20Poly1305::new(key.bytes().as_bytes().into());
                let opened = cipher.decrypt_inout_detached(nonce.into(), aad, text.into(), tag.into());
                opened.map_err(|_| Forged)
            }
        }
    }
}

/// Expands a key for `ring`, which leaves the wiping of it to us.
pub(super) fn expand(key: &[u8; 32]) -> MaybeUninit<LessSafeKey> {
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes");
    MaybeUninit::new(LessSafeKey::new(unbound))
}
