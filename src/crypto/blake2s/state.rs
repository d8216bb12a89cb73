//! BLAKE2s (RFC 7693) without a buffer: whole blocks go in as they come, and what a hash begins with may be computed beforehand.
//!
//! A hash that is fed piece by piece has to hold its last block back, as that one is compressed in another way; so a key cannot be worked in
//! before the text is known. Here it is the caller who says which block is the last; a [`Prefix`] is for those who cannot know.

use std::array;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::secret::wipe;

/// RFC 7693 §2.1: bytes in a block.
pub(super) const BLOCK_LEN: usize = 64;

/// RFC 7693 §2.6.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// RFC 7693 §2.7: the order in which the rounds take the words of the block.
const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// The state behind a number of whole blocks. Wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct State {
    chain: [u32; 8],
    /// Bytes so far.
    count: u64,
}

impl State {
    /// Begins a hash of `len` bytes; a key of `key_len` bytes, if there is one, is the first block.
    pub(super) fn new(len: u8, key_len: u8) -> Self {
        // RFC 7693 §2.5 and §3.3: the parameter block, fanout and depth being 1.
        let mut chain = IV;
        chain[0] ^= 0x0101_0000 ^ u32::from(key_len) << 8 ^ u32::from(len);
        Self { chain, count: 0 }
    }

    /// Takes a block that is not the last.
    pub(super) fn block(&mut self, block: &[u8; BLOCK_LEN]) {
        self.count += BLOCK_LEN as u64;
        self.compress(block, false);
    }

    /// Takes the last bytes, at most a block, and returns the hash.
    pub(super) fn last<const N: usize>(self, mut bytes: [u8; N]) -> [u8; 32] {
        const { assert!(N <= BLOCK_LEN) };
        let mut block = [0; BLOCK_LEN];
        block[..N].copy_from_slice(&bytes);
        wipe(&mut bytes);
        let hash = self.last_block(&block, N);
        wipe(&mut block);
        hash
    }

    /// Takes the last block, of which `len` bytes are text and the others zero, and returns the hash; a shorter one is its beginning.
    fn last_block(mut self, block: &[u8; BLOCK_LEN], len: usize) -> [u8; 32] {
        self.count += len as u64;
        self.compress(block, true);
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut::<4>().0.iter_mut().zip(&self.chain) {
            *bytes = word.to_le_bytes();
        }
        hash
    }

    /// Takes all that is left, which is nothing only if there was nothing before, and returns the hash.
    pub(super) fn finish<'a>(mut self, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
        let mut block = [0; BLOCK_LEN];
        let mut filled = 0;
        for mut part in parts {
            while !part.is_empty() {
                // There is more, so it is not the last.
                if filled == BLOCK_LEN {
                    self.block(&block);
                    filled = 0;
                }
                let (now, rest) = part.split_at(part.len().min(BLOCK_LEN - filled));
                block[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                part = rest;
            }
        }
        block[filled..].fill(0);
        let hash = self.last_block(&block, filled);
        wipe(&mut block);
        hash
    }

    /// RFC 7693 §3.2: the function F.
    #[inline(never)]
    fn compress(&mut self, block: &[u8; BLOCK_LEN], is_last: bool) {
        let (words, _) = block.as_chunks::<4>();
        let words: [u32; 16] = array::from_fn(|at| u32::from_le_bytes(words[at]));
        let [low, high] = [self.count & 0xffff_ffff, self.count >> 32].map(half);
        let mut v: [u32; 16] = array::from_fn(|at| if at < 8 { self.chain[at] } else { IV[at - 8] });
        v[12] ^= low;
        v[13] ^= high;
        v[14] ^= if is_last { !0 } else { 0 };
        // Unrolled, so that the order of the words is part of the code.
        macro_rules! rounds {
            ($($round:literal)+) => { $( round::<$round>(&mut v, &words); )+ };
        }
        rounds!(0 1 2 3 4 5 6 7 8 9);
        for (at, word) in self.chain.iter_mut().enumerate() {
            *word ^= v[at] ^ v[at + 8];
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a half of a number")]
fn half(number: u64) -> u32 {
    number as u32
}

#[inline(always)]
fn round<const ROUND: usize>(v: &mut [u32; 16], words: &[u32; 16]) {
    let word = |at: usize| words[const { SIGMA[ROUND] }[at]];
    mix(v, [0, 4, 8, 12], word(0), word(1));
    mix(v, [1, 5, 9, 13], word(2), word(3));
    mix(v, [2, 6, 10, 14], word(4), word(5));
    mix(v, [3, 7, 11, 15], word(6), word(7));
    mix(v, [0, 5, 10, 15], word(8), word(9));
    mix(v, [1, 6, 11, 12], word(10), word(11));
    mix(v, [2, 7, 8, 13], word(12), word(13));
    mix(v, [3, 4, 9, 14], word(14), word(15));
}

/// RFC 7693 §3.1: the function G.
#[inline(always)]
fn mix(v: &mut [u32; 16], [a, b, c, d]: [usize; 4], x: u32, y: u32) {
    v[a] = v[a].wrapping_add(x).wrapping_add(v[b]);
    v[d] = (v[d] ^ v[a]).rotate_right(16);
    v[c] = v[c].wrapping_add(v[d]);
    v[b] = (v[b] ^ v[c]).rotate_right(12);
    v[a] = v[a].wrapping_add(y).wrapping_add(v[b]);
    v[d] = (v[d] ^ v[a]).rotate_right(8);
    v[c] = v[c].wrapping_add(v[d]);
    v[b] = (v[b] ^ v[c]).rotate_right(7);
}

/// A whole block that hashes begin with, and behind which there may be nothing. Wiped on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Prefix {
    before: State,
    block: [u8; BLOCK_LEN],
    behind: State,
}

impl Prefix {
    /// Begins a hash with `block`.
    pub(super) fn new(before: State, block: [u8; BLOCK_LEN]) -> Self {
        let mut behind = before.clone();
        behind.block(&block);
        Self { before, block, behind }
    }

    /// Returns the hash of the block and `parts`.
    pub(super) fn finish(&self, parts: &[&[u8]]) -> [u8; 32] {
        if parts.iter().all(|part| part.is_empty()) {
            return self.before.clone().last_block(&self.block, BLOCK_LEN);
        }
        self.behind.clone().finish(parts.iter().copied())
    }
}
