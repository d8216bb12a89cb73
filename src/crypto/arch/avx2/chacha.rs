//! ChaCha20 (RFC 8439 §2.3) on 16 blocks: two states of eight blocks each.
//!
//! Two states are twice the registers that there are. That is cheaper than one: a state alone is bound by the latency of its chains, while
//! loads and stores of the other's words find a place beside them.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::crypto::arch::chacha::{CONSTANTS, pass};
use crate::crypto::arch::lanes::{Lanes, PolyKeys, Row};

/// Bytes in the order that rotates each word left by 16 bits, and by 8.
#[repr(C, align(32))]
struct Rotations([[u8; 32]; 2]);

#[rustfmt::skip]
static ROTATIONS: Rotations = Rotations([
    [
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
    ],
    [
        3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
        3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
    ],
]);

/// RFC 8439 §2.1: one quarter round in each state.
macro_rules! quarter_round {
    ($shuffles:ident, [$($state:ident),+], $a:literal, $b:literal, $c:literal, $d:literal) => {
        $( add_xor!($state, $a, $b, $d); $state[$d] = _mm256_shuffle_epi8($state[$d], $shuffles[0]); )+
        $( add_xor!($state, $c, $d, $b); rotate!($state, $b, 12, 20); )+
        $( add_xor!($state, $a, $b, $d); $state[$d] = _mm256_shuffle_epi8($state[$d], $shuffles[1]); )+
        $( add_xor!($state, $c, $d, $b); rotate!($state, $b, 7, 25); )+
    };
}

macro_rules! add_xor {
    ($state:ident, $a:literal, $b:literal, $d:literal) => {
        $state[$a] = add!($state[$a], $state[$b]);
        $state[$d] = _mm256_xor_si256($state[$d], $state[$a]);
    };
}

macro_rules! rotate {
    ($state:ident, $word:literal, $left:literal, $right:literal) => {
        let word = $state[$word];
        $state[$word] = _mm256_or_si256(_mm256_slli_epi32::<$left>(word), _mm256_srli_epi32::<$right>(word));
    };
}

/// RFC 8439 §2.3.1: a column round and a diagonal round.
macro_rules! double_round {
    ($shuffles:ident, $states:tt) => {
        quarter_round!($shuffles, $states, 0, 4, 8, 12);
        quarter_round!($shuffles, $states, 1, 5, 9, 13);
        quarter_round!($shuffles, $states, 2, 6, 10, 14);
        quarter_round!($shuffles, $states, 3, 7, 11, 15);
        quarter_round!($shuffles, $states, 0, 5, 10, 15);
        quarter_round!($shuffles, $states, 1, 6, 11, 12);
        quarter_round!($shuffles, $states, 2, 7, 8, 13);
        quarter_round!($shuffles, $states, 3, 4, 9, 14);
    };
}

macro_rules! add {
    ($a:expr, $b:expr) => {
        _mm256_add_epi32($a, $b)
    };
}

/// Turns `$state` from one word of each block in a register into blocks, their first halves and their second.
macro_rules! blocks {
    ($state:ident) => {{
        let [x0, x1, x2, x3, x4, x5, x6, x7, y0, y1, y2, y3, y4, y5, y6, y7] = $state;
        let low = transpose([x0, x1, x2, x3, x4, x5, x6, x7]);
        let high = transpose([y0, y1, y2, y3, y4, y5, y6, y7]);
        (low, high)
    }};
}

macro_rules! block {
    ($blocks:ident, $lane:ident) => {
        [$blocks.0[$lane], $blocks.1[$lane]]
    };
}

pass!("avx2", 8, rotations());

/// Returns the orders of [`ROTATIONS`], not seen by the compiler, which replaces a shuffle by a known order by two others.
#[target_feature(enable = "avx2")]
#[inline]
fn rotations() -> [__m256i; 2] {
    let Rotations([by16, by8]) = black_box(&ROTATIONS);
    [load_bytes(by16), load_bytes(by8)]
}

/// Turns one word of each block in a register into one half of a block in a register.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(words: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d, e, f, g, h] = words;
    let (ab0, ab1) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd0, cd1) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    let (ef0, ef1) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
    let (gh0, gh1) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
    let first = [
        _mm256_unpacklo_epi64(ab0, cd0),
        _mm256_unpackhi_epi64(ab0, cd0),
        _mm256_unpacklo_epi64(ab1, cd1),
        _mm256_unpackhi_epi64(ab1, cd1),
    ];
    let second = [
        _mm256_unpacklo_epi64(ef0, gh0),
        _mm256_unpackhi_epi64(ef0, gh0),
        _mm256_unpacklo_epi64(ef1, gh1),
        _mm256_unpackhi_epi64(ef1, gh1),
    ];
    [
        _mm256_permute2x128_si256::<0x20>(first[0], second[0]),
        _mm256_permute2x128_si256::<0x20>(first[1], second[1]),
        _mm256_permute2x128_si256::<0x20>(first[2], second[2]),
        _mm256_permute2x128_si256::<0x20>(first[3], second[3]),
        _mm256_permute2x128_si256::<0x31>(first[0], second[0]),
        _mm256_permute2x128_si256::<0x31>(first[1], second[1]),
        _mm256_permute2x128_si256::<0x31>(first[2], second[2]),
        _mm256_permute2x128_si256::<0x31>(first[3], second[3]),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(word: u32) -> __m256i {
    _mm256_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(row: &Row<u32>, at: usize) -> __m256i {
    let words: &[u32] = &row[at..at + 8];
    // SAFETY: reads the eight words of the slice.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: reads the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(row: &mut [u32], at: usize, vector: __m256i) {
    let words = &mut row[at..at + 8];
    // SAFETY: writes the eight words of the slice.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
}

/// For lanes of a table that `is_whole`, and others whose mask is all ones.
#[target_feature(enable = "avx2")]
#[inline]
fn crypt_whole(lanes: &Lanes, lane: usize, [low, high]: [__m256i; 2]) {
    for (at, keystream) in [(0, low), (32, high)] {
        // SAFETY: the lane's mask is all ones, so that 64 bytes may be read.
        let text = unsafe { _mm256_loadu_si256(lanes.src[lane].wrapping_add(at).cast()) };
        let text = _mm256_xor_si256(text, keystream);
        // SAFETY: the lane's mask is all ones, so that 64 bytes may be written.
        unsafe { _mm256_storeu_si256(lanes.dst[lane].wrapping_add(at).cast(), text) };
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn crypt_masked(lanes: &Lanes, lane: usize, block: [__m256i; 2]) {
    match lanes.mask[lane].trailing_ones() as usize {
        0 => {}
        64 => crypt_whole(lanes, lane, block),
        len => {
            let mut text = [0_u8; 64];
            // SAFETY: the lane's mask names the first `len` bytes, which may be read.
            unsafe { lanes.src[lane].copy_to_nonoverlapping(text.as_mut_ptr(), len) };
            for (half, keystream) in text.as_chunks_mut::<32>().0.iter_mut().zip(block) {
                let whole = _mm256_xor_si256(load_bytes(half), keystream);
                // SAFETY: writes the 32 bytes of the array.
                unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), whole) };
            }
            // SAFETY: the lane's mask names the first `len` bytes, which may be written.
            unsafe { lanes.dst[lane].copy_from_nonoverlapping(text.as_ptr(), len) };
        }
    }
}
