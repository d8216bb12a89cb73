//! ChaCha20 (RFC 8439 §2.3) on 32 blocks: two states of 16 blocks each, which fill the 32 registers exactly.
//!
//! Register *w* of a state holds word *w* of its 16 blocks. Macros, as functions of 16 vectors are not inlined. The order of the steps
//! is the fastest of several that were measured on Zen 4: a whole add, XOR and rotation for each quarter of the state, the two
//! states in turn.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::crypto::arch::lanes::{Lanes, PolyKeys, Row};

/// RFC 8439 §2.3: words 0 to 3.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

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
    ($states:tt) => {
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

/// The state that the rounds start from, of the 16 lanes from `$at` on.
macro_rules! input {
    ($lanes:ident, $key:ident, $at:literal) => {{
        let mut state = [_mm512_setzero_si512(); 16];
        for word in 0..4 {
            state[word] = splat(CONSTANTS[word]);
        }
        for word in 0..8 {
            state[4 + word] = if MIXED { load(&$lanes.key[word], $at) } else { splat($key[word]) };
        }
        state[12] = load(&$lanes.block, $at);
        state[14] = load(&$lanes.nonce[0], $at);
        state[15] = load(&$lanes.nonce[1], $at);
        state
    }};
}

/// Adds to `$state` what it started from.
macro_rules! add_input {
    ($state:ident, $lanes:ident, $key:ident, $at:literal) => {
        let input = input!($lanes, $key, $at);
        for word in 0..16 {
            $state[word] = _mm512_add_epi32($state[word], input[word]);
        }
    };
}

/// Turns `$state` from one word of each block in a register into one block in a register.
macro_rules! transpose {
    ($state:ident) => {
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
    };
}

/// XORs `$state` onto the text of the 16 lanes from `$at` on.
macro_rules! crypt {
    ($state:ident, $lanes:ident, $at:literal) => {
        transpose!($state);
        if $lanes.is_whole {
            for lane in 0..16 {
                crypt_whole($lanes, $at + lane, $state[lane]);
            }
        } else {
            for lane in 0..16 {
                crypt_masked($lanes, $at + lane, $state[lane]);
            }
        }
    };
}

/// Computes the keystream of all lanes; key blocks go to `keys`, the rest onto the text. `key` is only read unless `MIXED`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline(never)]
pub(super) fn pass<const MIXED: bool>(lanes: &Lanes, key: &[u32; 8], keys: &mut PolyKeys) {
    if lanes.used > 16 {
        let mut x = input!(lanes, key, 0);
        let mut y = input!(lanes, key, 16);
        for _ in 0..10 {
            double_round!([x, y]);
        }
        // Read again: else the twelve vectors that both ends have in common are kept, and there is no register for them.
        let (lanes, key) = black_box((lanes, key));
        add_input!(x, lanes, key, 0);
        add_input!(y, lanes, key, 16);
        if lanes.key_blocks > 0 {
            for (row, (&x, &y)) in keys.0.iter_mut().zip(x.iter().zip(&y)) {
                store(row, lanes.first_key, x);
                store(row, lanes.first_key + 16, y);
            }
            if lanes.key_blocks == lanes.used {
                return;
            }
        }
        crypt!(x, lanes, 0);
        crypt!(y, lanes, 16);
    } else {
        let mut x = input!(lanes, key, 0);
        for _ in 0..10 {
            double_round!([x]);
        }
        add_input!(x, lanes, key, 0);
        if lanes.key_blocks > 0 {
            for (row, &x) in keys.0.iter_mut().zip(&x) {
                store(row, lanes.first_key, x);
            }
            if lanes.key_blocks == lanes.used {
                return;
            }
        }
        crypt!(x, lanes, 0);
    }
}

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
