//! ChaCha20 (RFC 8439 §2.3) on 16 blocks: two states of eight blocks each.
//!
//! Two states are twice the registers that there are. That is cheaper than one: a state alone is bound by the latency of its chains, while
//! loads and stores of the other's words find a place beside them.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::crypto::arch::lanes::{Lanes, PolyKeys, Row};

/// RFC 8439 §2.3: words 0 to 3.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

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
    ($by16:ident, $by8:ident, [$($state:ident),+], $a:literal, $b:literal, $c:literal, $d:literal) => {
        $( add_xor!($state, $a, $b, $d); $state[$d] = _mm256_shuffle_epi8($state[$d], $by16); )+
        $( add_xor!($state, $c, $d, $b); rotate!($state, $b, 12, 20); )+
        $( add_xor!($state, $a, $b, $d); $state[$d] = _mm256_shuffle_epi8($state[$d], $by8); )+
        $( add_xor!($state, $c, $d, $b); rotate!($state, $b, 7, 25); )+
    };
}

macro_rules! add_xor {
    ($state:ident, $a:literal, $b:literal, $d:literal) => {
        $state[$a] = _mm256_add_epi32($state[$a], $state[$b]);
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
    ($by16:ident, $by8:ident, $states:tt) => {
        quarter_round!($by16, $by8, $states, 0, 4, 8, 12);
        quarter_round!($by16, $by8, $states, 1, 5, 9, 13);
        quarter_round!($by16, $by8, $states, 2, 6, 10, 14);
        quarter_round!($by16, $by8, $states, 3, 7, 11, 15);
        quarter_round!($by16, $by8, $states, 0, 5, 10, 15);
        quarter_round!($by16, $by8, $states, 1, 6, 11, 12);
        quarter_round!($by16, $by8, $states, 2, 7, 8, 13);
        quarter_round!($by16, $by8, $states, 3, 4, 9, 14);
    };
}

/// The state that the rounds start from, of the eight lanes from `$at` on.
macro_rules! input {
    ($lanes:ident, $key:ident, $at:literal) => {{
        let mut state = [_mm256_setzero_si256(); 16];
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
            $state[word] = _mm256_add_epi32($state[word], input[word]);
        }
    };
}

/// XORs `$state` onto the text of the eight lanes from `$at` on.
macro_rules! crypt {
    ($state:ident, $lanes:ident, $at:literal) => {
        let [x0, x1, x2, x3, x4, x5, x6, x7, y0, y1, y2, y3, y4, y5, y6, y7] = $state;
        let low = transpose([x0, x1, x2, x3, x4, x5, x6, x7]);
        let high = transpose([y0, y1, y2, y3, y4, y5, y6, y7]);
        if $lanes.is_whole {
            for lane in 0..8 {
                crypt_whole($lanes, $at + lane, low[lane], high[lane]);
            }
        } else {
            for lane in 0..8 {
                crypt_masked($lanes, $at + lane, low[lane], high[lane]);
            }
        }
    };
}

/// Computes the keystream of all lanes; key blocks go to `keys`, the rest onto the text. `key` is only read unless `MIXED`.
#[target_feature(enable = "avx2")]
#[inline(never)]
pub(super) fn pass<const MIXED: bool>(lanes: &Lanes, key: &[u32; 8], keys: &mut PolyKeys) {
    // Not seen by the compiler, which replaces a shuffle by a known order by two others.
    let Rotations([by16, by8]) = black_box(&ROTATIONS);
    let (by16, by8) = (load_bytes(by16), load_bytes(by8));
    if lanes.used > 8 {
        let mut x = input!(lanes, key, 0);
        let mut y = input!(lanes, key, 8);
        for _ in 0..10 {
            double_round!(by16, by8, [x, y]);
        }
        // Read again: else the vectors that both ends have in common are kept, and there is no register for them.
        let (lanes, key) = black_box((lanes, key));
        add_input!(x, lanes, key, 0);
        add_input!(y, lanes, key, 8);
        if lanes.key_blocks > 0 {
            for (row, (&x, &y)) in keys.0.iter_mut().zip(x.iter().zip(&y)) {
                store(row, lanes.first_key, x);
                store(row, lanes.first_key + 8, y);
            }
            if lanes.key_blocks == lanes.used {
                return;
            }
        }
        crypt!(x, lanes, 0);
        crypt!(y, lanes, 8);
    } else {
        let mut x = input!(lanes, key, 0);
        for _ in 0..10 {
            double_round!(by16, by8, [x]);
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
fn crypt_whole(lanes: &Lanes, lane: usize, low: __m256i, high: __m256i) {
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
fn crypt_masked(lanes: &Lanes, lane: usize, low: __m256i, high: __m256i) {
    match lanes.mask[lane].trailing_ones() as usize {
        0 => {}
        64 => crypt_whole(lanes, lane, low, high),
        len => {
            let mut text = [0_u8; 64];
            // SAFETY: the lane's mask names the first `len` bytes, which may be read.
            unsafe { lanes.src[lane].copy_to_nonoverlapping(text.as_mut_ptr(), len) };
            for (half, keystream) in text.as_chunks_mut::<32>().0.iter_mut().zip([low, high]) {
                let whole = _mm256_xor_si256(load_bytes(half), keystream);
                // SAFETY: writes the 32 bytes of the array.
                unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), whole) };
            }
            // SAFETY: the lane's mask names the first `len` bytes, which may be written.
            unsafe { lanes.dst[lane].copy_from_nonoverlapping(text.as_ptr(), len) };
        }
    }
}
