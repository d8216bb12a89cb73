//! ChaCha20 (RFC 8439 §2.3) on 32 blocks: two states of 16 blocks each, which fill the 32 registers exactly.
//!
//! Register *w* of a state holds word *w* of its 16 blocks. Macros, as functions of 16 vectors are not inlined. The order of the steps
//! is the fastest of several that were measured on Zen 4: a whole add, XOR and rotation for each quarter of the state, the two
//! states in turn.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::crypto::arch::chacha::{CONSTANTS, pass};
use crate::crypto::arch::lanes::{Lanes, PolyKeys, Row};

/// One operation of each of four quarter rounds: `a += b; d ^= a; d <<<= rotation`.
macro_rules! step {
    ($rotation:literal, [$($state:ident),+], $(($a:literal, $b:literal, $d:literal)),+) => {
        step!(@each $rotation, [$($state),+], [$(($a, $b, $d)),+])
    };
    (@each $rotation:literal, $states:tt, [$($words:tt),+]) => { $( step!(@one $rotation, $states, $words); )+ };
    (@one $rotation:literal, [$($state:ident),+], ($a:literal, $b:literal, $d:literal)) => { $(
        $state[$a] = _mm512_add_epi32($state[$a], $state[$b]);
        $state[$d] = _mm512_xor_si512($state[$d], $state[$a]);
        $state[$d] = _mm512_rol_epi32::<$rotation>($state[$d]);
    )+ };
}

/// RFC 8439 §2.3.1: a column round and a diagonal round.
macro_rules! double_round {
    ($shuffles:ident, $states:tt) => {
        let () = $shuffles;
        step!(16, $states, (0, 4, 12), (1, 5, 13), (2, 6, 14), (3, 7, 15));
        step!(12, $states, (8, 12, 4), (9, 13, 5), (10, 14, 6), (11, 15, 7));
        step!(8, $states, (0, 4, 12), (1, 5, 13), (2, 6, 14), (3, 7, 15));
        step!(7, $states, (8, 12, 4), (9, 13, 5), (10, 14, 6), (11, 15, 7));
        step!(16, $states, (0, 5, 15), (1, 6, 12), (2, 7, 13), (3, 4, 14));
        step!(12, $states, (10, 15, 5), (11, 12, 6), (8, 13, 7), (9, 14, 4));
        step!(8, $states, (0, 5, 15), (1, 6, 12), (2, 7, 13), (3, 4, 14));
        step!(7, $states, (10, 15, 5), (11, 12, 6), (8, 13, 7), (9, 14, 4));
    };
}

macro_rules! add {
    ($a:expr, $b:expr) => {
        _mm512_add_epi32($a, $b)
    };
}

/// Turns `$state` from one word of each block in a register into one block in a register.
macro_rules! blocks {
    ($state:ident) => {{
        for row in 0..4 {
            let at = 4 * row;
            let (a, b, c, d) = ($state[at], $state[at + 1], $state[at + 2], $state[at + 3]);
            let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            $state[at] = _mm512_unpacklo_epi64(ab0, cd0);
            $state[at + 1] = _mm512_unpackhi_epi64(ab0, cd0);
            $state[at + 2] = _mm512_unpacklo_epi64(ab1, cd1);
            $state[at + 3] = _mm512_unpackhi_epi64(ab1, cd1);
        }
        for at in 0..4 {
            let (a, b, c, d) = ($state[at], $state[4 + at], $state[8 + at], $state[12 + at]);
            let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            $state[at] = _mm512_shuffle_i32x4::<0x88>(ab0, cd0);
            $state[4 + at] = _mm512_shuffle_i32x4::<0xdd>(ab0, cd0);
            $state[8 + at] = _mm512_shuffle_i32x4::<0x88>(ab1, cd1);
            $state[12 + at] = _mm512_shuffle_i32x4::<0xdd>(ab1, cd1);
        }
        $state
    }};
}

macro_rules! block {
    ($blocks:ident, $lane:ident) => {
        $blocks[$lane]
    };
}

pass!("avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2", 16, ());

#[target_feature(enable = "avx512f")]
#[inline]
fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(row: &Row<u32>, at: usize) -> __m512i {
    let words: &[u32] = &row[at..at + 16];
    // SAFETY: reads the 16 words of the slice.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(row: &mut [u32], at: usize, vector: __m512i) {
    let words = &mut row[at..at + 16];
    // SAFETY: writes the 16 words of the slice.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
}

/// For lanes of a table that `is_whole`.
#[target_feature(enable = "avx512f")]
#[inline]
fn crypt_whole(lanes: &Lanes, lane: usize, keystream: __m512i) {
    // SAFETY: the lane's mask is all ones, so that 64 bytes may be read.
    let text = unsafe { _mm512_loadu_si512(lanes.src[lane].cast()) };
    let text = _mm512_xor_si512(text, keystream);
    // SAFETY: the lane's mask is all ones, so that 64 bytes may be written.
    unsafe { _mm512_storeu_si512(lanes.dst[lane].cast(), text) };
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn crypt_masked(lanes: &Lanes, lane: usize, keystream: __m512i) {
    let mask = lanes.mask[lane];
    // SAFETY: the bytes that the lane's mask names may be read.
    let text = unsafe { _mm512_maskz_loadu_epi8(mask, lanes.src[lane].cast()) };
    let text = _mm512_xor_si512(text, keystream);
    // SAFETY: the bytes that the lane's mask names may be written.
    unsafe { _mm512_mask_storeu_epi8(lanes.dst[lane].cast(), mask, text) };
}
