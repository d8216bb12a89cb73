//! ChaCha20-Poly1305 (RFC 8439) with a 64-bit counter as nonce, for one packet and for many.
//!
//! Single packets are a library's: `ring`. Batches are our own core's (`arch`), where the CPU has the vectors for it and the batch is
//! large enough; which core is detected at the first use, unless one was forced. A key's memory is overwritten when it is dropped.

mod core;
mod library;
#[cfg(test)]
mod tests;

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use ring::aead::LessSafeKey;
use zeroize::Zeroize;

use super::arch::{Packet, Way};
use super::secret::Secret;
use library::Library;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use self::core::is_portable;
pub use self::core::{Refused, Tier, force, tier};

/// Length of the authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// A message that does not authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

impl fmt::Display for Forged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message does not authenticate")
    }
}

impl std::error::Error for Forged {}

/// An expanded key. Wiped on drop.
pub struct Key {
    ring: MaybeUninit<LessSafeKey>,
    words: [u32; 8],
}

impl Key {
    /// Expands `key`.
    pub fn new(key: &Secret<32>) -> Self {
        let (words, _) = key.as_bytes().as_chunks::<4>();
        let mut expanded = Self { ring: library::expand(key.as_bytes()), words: [0; 8] };
        for (word, bytes) in expanded.words.iter_mut().zip(words) {
            *word = u32::from_le_bytes(*bytes);
        }
        expanded
    }

    /// Seals `buf`, whose last 16 bytes are room for the tag.
    ///
    /// # Panics
    /// If `buf` is shorter than the tag.
    pub fn seal_in_place(&self, counter: u64, aad: &[u8], buf: &mut [u8]) {
        self.seal_in_place_by(core::chosen().library(), counter, aad, buf);
    }

    /// Seals the concatenation of `parts`, and zeros behind it, into `dst`, which is 16 bytes longer than all of that.
    ///
    /// # Panics
    /// If `dst` has no room for `parts` and the tag.
    pub fn seal_to(&self, counter: u64, aad: &[u8], parts: &[&[u8]], dst: &mut [u8]) {
        self.seal_to_by(core::chosen().library(), counter, aad, parts, dst);
    }

    /// Opens `buf` and returns the plaintext in it.
    ///
    /// # Errors
    /// [`Forged`]; what was in `buf` is wiped then.
    pub fn open_in_place<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        self.open_in_place_by(core::chosen().library(), counter, aad, buf)
    }

    /// Opens `src` into `dst`, which is 16 bytes shorter.
    ///
    /// # Errors
    /// [`Forged`]; `dst` is wiped then.
    ///
    /// # Panics
    /// If `dst` has another length than the plaintext of a `src` long enough to hold a tag.
    pub fn open_to(&self, counter: u64, aad: &[u8], src: &[u8], dst: &mut [u8]) -> Result<(), Forged> {
        self.open_to_by(core::chosen().library(), counter, aad, src, dst)
    }

    fn seal_in_place_by(&self, library: Library, counter: u64, aad: &[u8], buf: &mut [u8]) {
        let (text, tag) = buf.split_last_chunk_mut::<TAG_LEN>().expect("there is room for the tag");
        *tag = library.seal(self, &nonce(counter), aad, text);
    }

    fn seal_to_by(&self, library: Library, counter: u64, aad: &[u8], parts: &[&[u8]], dst: &mut [u8]) {
        let mut at = 0;
        for part in parts {
            dst[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let end = dst.len() - TAG_LEN;
        dst[at..end].fill(0);
        self.seal_in_place_by(library, counter, aad, dst);
    }

    fn open_in_place_by<'a>(
        &self,
        library: Library,
        counter: u64,
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        let Some((text, tag)) = buf.split_last_chunk_mut::<TAG_LEN>() else {
            buf.zeroize();
            return Err(Forged);
        };
        if library.open(self, &nonce(counter), aad, text, tag).is_err() {
            buf.zeroize();
            return Err(Forged);
        }
        let len = buf.len() - TAG_LEN;
        Ok(&mut buf[..len])
    }

    fn open_to_by(
        &self,
        library: Library,
        counter: u64,
        aad: &[u8],
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<(), Forged> {
        let Some((ciphertext, tag)) = src.split_last_chunk::<TAG_LEN>() else {
            dst.zeroize();
            return Err(Forged);
        };
        dst.copy_from_slice(ciphertext);
        if library.open(self, &nonce(counter), aad, dst, tag).is_err() {
            dst.zeroize();
            return Err(Forged);
        }
        Ok(())
    }

    fn ring(&self) -> &LessSafeKey {
        // SAFETY: `new` is the only constructor and initialises it; only `drop` overwrites it.
        unsafe { self.ring.assume_init_ref() }
    }

    /// Returns the key as it was given.
    fn bytes(&self) -> Secret<32> {
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&self.words) {
            *bytes = word.to_le_bytes();
        }
        let secret = Secret::new(bytes);
        bytes.zeroize();
        secret
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // `LessSafeKey` owns no memory and has no destructor, so that overwriting it is all there is to do.
        const { assert!(!std::mem::needs_drop::<LessSafeKey>()) };
        // Word by word: a library's key has room for its largest cipher, which is half a kilobyte.
        const { assert!(size_of::<Self>().is_multiple_of(8) && align_of::<Self>().is_multiple_of(8)) };
        let words = ptr::from_mut(self).cast::<u64>();
        for at in 0..size_of::<Self>() / 8 {
            // SAFETY: `at` lies inside the object that `words` points to.
            let word = unsafe { words.add(at) };
            // SAFETY: the object is ours alone and aligned; zero is a value of words, and `MaybeUninit` may hold any bytes.
            unsafe { ptr::write_volatile(word, 0) };
        }
        compiler_fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// RFC 8439 §2.8 as [W] §5.4 uses it: four zero bytes, then the counter, little-endian.
fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// One packet to seal out of place: the concatenation of `parts`, and zeros behind it, into `dst`, which is 16 bytes longer than all of that.
#[derive(Debug)]
pub struct SealJob<'a> {
    /// The key.
    pub key: &'a Key,
    /// The nonce.
    pub counter: u64,
    /// Header and payload; padding need not be part of it.
    pub parts: [&'a [u8]; 2],
    /// Ciphertext and tag.
    pub dst: &'a mut [u8],
}

/// One packet to seal in place; the last 16 bytes of `buf` are room for the tag.
#[derive(Debug)]
pub struct SealInPlace<'a> {
    /// The key.
    pub key: &'a Key,
    /// The nonce.
    pub counter: u64,
    /// Plaintext, then room for the tag.
    pub buf: &'a mut [u8],
}

/// One packet to open in place.
#[derive(Debug)]
pub struct OpenJob<'a> {
    /// The key.
    pub key: &'a Key,
    /// The nonce.
    pub counter: u64,
    /// Ciphertext and tag.
    pub buf: &'a mut [u8],
    /// Whether it was authentic; set by the call.
    pub ok: bool,
}

/// One packet to open out of place into `dst`, which is 16 bytes shorter than `src`.
#[derive(Debug)]
pub struct OpenTo<'a> {
    /// The key.
    pub key: &'a Key,
    /// The nonce.
    pub counter: u64,
    /// Ciphertext and tag.
    pub src: &'a [u8],
    /// The plaintext; wiped if it is forged.
    pub dst: &'a mut [u8],
    /// Whether it was authentic; set by the call.
    pub ok: bool,
}

/// Seals every packet out of place.
///
/// # Panics
/// If a packet's `dst` has no room for its `parts` and the tag.
pub fn seal_batch(jobs: &mut [SealJob<'_>]) {
    core::chosen().run(jobs);
}

/// Seals every packet in place.
///
/// # Panics
/// If a packet has no room for the tag.
pub fn seal_batch_in_place(jobs: &mut [SealInPlace<'_>]) {
    core::chosen().run(jobs);
}

/// Opens every packet in place; packets that fail are wiped.
pub fn open_batch_in_place(jobs: &mut [OpenJob<'_>]) {
    core::chosen().run(jobs);
}

/// Opens every packet out of place; packets that fail are wiped.
///
/// # Panics
/// If a packet's `dst` has another length than the plaintext of a `src` long enough to hold a tag.
pub fn open_batch(jobs: &mut [OpenTo<'_>]) {
    core::chosen().run(jobs);
}

/// A packet as the core sees it.
trait Job {
    /// What is done with it.
    const WAY: Way;
    /// Returns the length of the text, or `None` if there is no tag.
    fn text_len(&self) -> Option<usize>;
    /// Returns it as one of a batch.
    fn packet(&mut self) -> Packet<'_>;
    /// Hears what became of it in a batch.
    fn settle(&mut self, is_authentic: bool);
    /// Has it done by a library.
    fn run_alone(&mut self, library: Library);
}

impl Job for SealJob<'_> {
    const WAY: Way = Way::Seal;

    fn text_len(&self) -> Option<usize> {
        self.dst.len().checked_sub(TAG_LEN)
    }

    fn packet(&mut self) -> Packet<'_> {
        Packet::to_seal(&self.key.words, self.counter, self.parts, self.dst)
    }

    fn settle(&mut self, _: bool) {}

    fn run_alone(&mut self, library: Library) {
        self.key.seal_to_by(library, self.counter, &[], &self.parts, self.dst);
    }
}

impl Job for SealInPlace<'_> {
    const WAY: Way = Way::Seal;

    fn text_len(&self) -> Option<usize> {
        self.buf.len().checked_sub(TAG_LEN)
    }

    fn packet(&mut self) -> Packet<'_> {
        Packet::to_seal_in_place(&self.key.words, self.counter, self.buf)
    }

    fn settle(&mut self, _: bool) {}

    fn run_alone(&mut self, library: Library) {
        self.key.seal_in_place_by(library, self.counter, &[], self.buf);
    }
}

impl Job for OpenJob<'_> {
    const WAY: Way = Way::OpenInPlace;

    fn text_len(&self) -> Option<usize> {
        self.buf.len().checked_sub(TAG_LEN)
    }

    fn packet(&mut self) -> Packet<'_> {
        Packet::to_open_in_place(&self.key.words, self.counter, self.buf)
    }

    fn settle(&mut self, is_authentic: bool) {
        self.ok = is_authentic;
        if !is_authentic {
            self.buf.fill(0);
        }
    }

    fn run_alone(&mut self, library: Library) {
        self.ok = self.key.open_in_place_by(library, self.counter, &[], self.buf).is_ok();
    }
}

impl Job for OpenTo<'_> {
    const WAY: Way = Way::Open;

    fn text_len(&self) -> Option<usize> {
        self.src.len().checked_sub(TAG_LEN)
    }

    fn packet(&mut self) -> Packet<'_> {
        Packet::to_open(&self.key.words, self.counter, self.src, self.dst)
    }

    fn settle(&mut self, is_authentic: bool) {
        self.ok = is_authentic;
        if !is_authentic {
            self.dst.fill(0);
        }
    }

    fn run_alone(&mut self, library: Library) {
        self.ok = self.key.open_to_by(library, self.counter, &[], self.src, self.dst).is_ok();
    }
}
