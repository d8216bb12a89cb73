//! Poly1305 (RFC 8439 §2.5) of four messages, one lane each, in limbs of 26 bits.
//!
//! A column is four blocks of each message: `h = (h + m0) r⁴ + m1 r³ + m2 r² + m3 r`, carried once.
//!
//! Bounds: limbs of r's powers are below 2²⁶ + 2⁸, those of h + m below 2²⁸, so that the twenty products that make a limb, five times one
//! each at most, stay below 2⁶¹.

use std::arch::x86_64::*;
use std::array;
use std::hint::black_box;

use crate::crypto::arch::lanes::{Columns, GROUP_MAX, Group, PolyKeys};

/// Packets in a group.
const LANES: usize = 4;

/// A number in limbs, one of each lane.
type Number = [__m256i; 5];

/// A power of r, and what its limbs but the first are times 5: a limb at 2¹³⁰ is five times one at 1, modulo 2¹³⁰ - 5.
#[derive(Clone, Copy)]
struct Power {
    r: Number,
    r5: [__m256i; 4],
}

/// Computes the tags of the group whose one-time keys begin at `first`, low and high half.
#[target_feature(enable = "avx2")]
#[inline(never)]
pub(super) fn tags(keys: &PolyKeys, first: usize, group: &Group) -> [[u64; 2]; GROUP_MAX] {
    // RFC 8439 §2.5: "r" is clamped.
    let low = _mm256_and_si256(key_half(keys, first, 0), splat(0x0fff_fffc_0fff_ffff));
    let high = _mm256_and_si256(key_half(keys, first, 2), splat(0x0fff_fffc_0fff_fffc));
    let r1 = power(split(low, high, _mm256_setzero_si256()));
    let r2 = power(multiply(r1.r, &r1));
    let powers = [power(multiply(r2.r, &r2)), power(multiply(r2.r, &r1)), r2, r1];
    // Not seen by the compiler, which distributes the products over the sum that five times a limb is.
    let powers = black_box(&powers);

    let columns = group.columns::<LANES>();
    let mut h = [_mm256_setzero_si256(); 5];
    for column in 0..columns.whole.start {
        h = add_partial(h, &columns, column, group, powers);
    }
    for column in columns.whole.clone() {
        let load = |half: usize| {
            transpose(array::from_fn(|lane| {
                let bytes = columns.address(column, lane).wrapping_add(half).cast();
                // SAFETY: in a whole column every lane has 64 bytes.
                unsafe { _mm256_loadu_si256(bytes) }
            }))
        };
        let halves = [load(0), load(32)];
        let block = |at: usize| {
            let words = &halves[at / 2];
            split(words[at % 2 * 2], words[at % 2 * 2 + 1], splat(1 << 24))
        };
        h = add_column(h, [block(0), block(1), block(2), block(3)], powers);
    }
    for column in columns.whole.end..columns.count {
        h = add_partial(h, &columns, column, group, powers);
    }
    finish(h, keys, first)
}

/// Adds a column in which some lanes have no message yet, or that is the last.
#[target_feature(enable = "avx2")]
#[inline]
fn add_partial(
    h: Number,
    columns: &Columns<'_, LANES>,
    column: usize,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    match columns.common(column).filter(|window| window.is_of_blocks(columns.is_last(column))) {
        Some(window) => add_common(h, columns, column, window.first_block(), group, powers),
        None => add_masked(h, columns, column, group, powers),
    }
}

/// Adds a column of which every lane has the blocks from `first` on, and none before.
#[target_feature(enable = "avx2")]
#[inline]
fn add_common(
    h: Number,
    columns: &Columns<'_, LANES>,
    column: usize,
    first: usize,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    let mut sums = [_mm256_setzero_si256(); 5];
    for at in (first..4).rev() {
        let [low, high] = if at == 3 && columns.is_last(column) {
            last_block(group)
        } else {
            // SAFETY: every lane has this block.
            unsafe { load_block(columns, column, at) }
        };
        let mut block = split(low, high, splat(1 << 24));
        // Last, as it waits for the column before. Where there are blocks missing before, there is nothing in `h` either.
        if at == first {
            block = array::from_fn(|limb| _mm256_add_epi64(h[limb], block[limb]));
        }
        add_product(&mut sums, block, &powers[at]);
    }
    carry(sums)
}

/// Adds a column of which every lane has something else.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn add_masked(
    h: Number,
    columns: &Columns<'_, LANES>,
    column: usize,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    let mut words = [[0_u64; LANES]; 8];
    let mut bits = [[0_u64; LANES]; 4];
    for lane in 0..LANES {
        let window = columns.window(column, lane);
        let (begin, len) = (window.bytes.trailing_zeros() as usize % 64, window.bytes.count_ones() as usize);
        let mut bytes = [0_u8; 64];
        let room = bytes[begin..begin + len].as_mut_ptr();
        // SAFETY: the window names `len` bytes from `begin` on.
        unsafe { columns.address(column, lane).wrapping_add(begin).copy_to_nonoverlapping(room, len) };
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            word[lane] = u64::from_le_bytes(*bytes);
        }
        for (at, bits) in bits.iter_mut().enumerate() {
            bits[lane] = u64::from(window.blocks >> at & 1) << 24;
        }
    }
    let last = columns.is_last(column).then(|| last_block(group));
    let block = |at: usize| {
        let words = [load_words(&words[2 * at]), load_words(&words[2 * at + 1])];
        let [low, high] = if at == 3 { last.unwrap_or(words) } else { words };
        split(low, high, load_words(&bits[at]))
    };
    add_column(h, [block(0), block(1), block(2), block(3)], powers)
}

/// Returns the lanes' last blocks, low and high halves.
#[target_feature(enable = "avx2")]
#[inline]
fn last_block(group: &Group) -> [__m256i; 2] {
    let [low, high] = &group.last;
    let half = |words: &[u64; GROUP_MAX]| load_words(words.first_chunk().expect("there are more lanes"));
    [half(low), half(high)]
}

/// Loads the lanes' block `at` of a column, low and high halves.
///
/// # Safety
/// Every lane must have this block.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_block(columns: &Columns<'_, LANES>, column: usize, at: usize) -> [__m256i; 2] {
    let load = |lane: usize| {
        let block = columns.address(column, lane).wrapping_add(16 * at).cast();
        // SAFETY: the caller's word.
        unsafe { _mm_loadu_si128(block) }
    };
    let even = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(0)), load(2));
    let odd = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(1)), load(3));
    [_mm256_unpacklo_epi64(even, odd), _mm256_unpackhi_epi64(even, odd)]
}

#[target_feature(enable = "avx2")]
#[inline]
fn add_column(h: Number, blocks: [Number; 4], powers: &[Power; 4]) -> Number {
    let mut sums = [_mm256_setzero_si256(); 5];
    add_product(&mut sums, blocks[1], &powers[1]);
    add_product(&mut sums, blocks[2], &powers[2]);
    add_product(&mut sums, blocks[3], &powers[3]);
    // Last, as it waits for the column before.
    let first = array::from_fn(|limb| _mm256_add_epi64(h[limb], blocks[0][limb]));
    add_product(&mut sums, first, &powers[0]);
    carry(sums)
}

#[target_feature(enable = "avx2")]
#[inline]
fn multiply(a: Number, b: &Power) -> Number {
    let mut sums = [_mm256_setzero_si256(); 5];
    add_product(&mut sums, a, b);
    carry(sums)
}

/// Adds to `sums` the product of `a` and `b`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_product(sums: &mut [__m256i; 5], a: Number, b: &Power) {
    let ([r0, r1, r2, r3, r4], [s1, s2, s3, s4]) = (b.r, b.r5);
    let factors = [
        [r0, r1, r2, r3, r4],
        [s4, r0, r1, r2, r3],
        [s3, s4, r0, r1, r2],
        [s2, s3, s4, r0, r1],
        [s1, s2, s3, s4, r0],
    ];
    for (limb, row) in factors.iter().enumerate() {
        for (sum, &factor) in sums.iter_mut().zip(row) {
            *sum = _mm256_add_epi64(*sum, _mm256_mul_epu32(a[limb], factor));
        }
    }
}

/// Brings sums back to limbs, in two chains beside each other.
#[target_feature(enable = "avx2")]
#[inline]
fn carry(mut sums: [__m256i; 5]) -> Number {
    let bits26 = splat((1 << 26) - 1);
    for from in [3, 0, 4, 1, 0, 2, 3] {
        let up = _mm256_srli_epi64::<26>(sums[from]);
        sums[from] = _mm256_and_si256(sums[from], bits26);
        let (to, up) = if from == 4 { (0, times5(up)) } else { (from + 1, up) };
        sums[to] = _mm256_add_epi64(sums[to], up);
    }
    sums
}

#[target_feature(enable = "avx2")]
#[inline]
fn power(r: Number) -> Power {
    Power { r, r5: [times5(r[1]), times5(r[2]), times5(r[3]), times5(r[4])] }
}

#[target_feature(enable = "avx2")]
#[inline]
fn times5(limb: __m256i) -> __m256i {
    _mm256_add_epi64(limb, _mm256_slli_epi64::<2>(limb))
}

/// Splits a block into limbs; `bit` is what it has in the last limb at 2¹²⁸.
#[target_feature(enable = "avx2")]
#[inline]
fn split(low: __m256i, high: __m256i, bit: __m256i) -> Number {
    let bits26 = splat((1 << 26) - 1);
    let middle = _mm256_or_si256(_mm256_srli_epi64::<52>(low), _mm256_slli_epi64::<12>(high));
    [
        _mm256_and_si256(low, bits26),
        _mm256_and_si256(_mm256_srli_epi64::<26>(low), bits26),
        _mm256_and_si256(middle, bits26),
        _mm256_and_si256(_mm256_srli_epi64::<14>(high), bits26),
        _mm256_or_si256(_mm256_srli_epi64::<40>(high), bit),
    ]
}

/// Reduces modulo 2¹³⁰ - 5, adds the key's second half "s" and returns the low 128 bits (RFC 8439 §2.5.1).
#[target_feature(enable = "avx2")]
#[inline]
fn finish(h: Number, keys: &PolyKeys, first: usize) -> [[u64; 2]; GROUP_MAX] {
    let mut limbs = [[0_u64; LANES]; 5];
    for (limb, vector) in limbs.iter_mut().zip(h) {
        // SAFETY: writes the four words of the array.
        unsafe { _mm256_storeu_si256(limb.as_mut_ptr().cast(), vector) };
    }
    let mut tags = [[0; 2]; GROUP_MAX];
    for (lane, tag) in tags.iter_mut().enumerate().take(LANES) {
        let s = (4..8).rev().fold(0, |s: u128, word| s << 32 | u128::from(keys.0[word][first + lane]));
        let sum = reduce(limbs.map(|limb| limb[lane])).wrapping_add(s).to_le_bytes();
        let (halves, _) = sum.as_chunks::<8>();
        *tag = [u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1])];
    }
    tags
}

/// Returns the low 128 bits of what `h` is modulo 2¹³⁰ - 5. It is below twice that: `carry` leaves all limbs below 2²⁶ + 2¹³.
fn reduce(h: [u64; 5]) -> u128 {
    let bits26 = (1 << 26) - 1;
    // h + 5 reaches 2¹³⁰ just if h is not reduced; its low 130 bits are the reduced value then.
    let mut over = h;
    let mut up = 5;
    for limb in &mut over {
        *limb += up;
        up = *limb >> 26;
        *limb &= bits26;
    }
    let mask = 0_u64.wrapping_sub(up);
    let limbs: [u64; 5] = array::from_fn(|at| h[at] & !mask | over[at] & mask);
    limbs.iter().rev().fold(0, |number: u128, &limb| (number << 26).wrapping_add(u128::from(limb)))
}

/// Turns four words of each lane in a register into one word of all lanes in a register.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab0, ab1) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (cd0, cd1) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
    [
        _mm256_permute2x128_si256::<0x20>(ab0, cd0),
        _mm256_permute2x128_si256::<0x20>(ab1, cd1),
        _mm256_permute2x128_si256::<0x31>(ab0, cd0),
        _mm256_permute2x128_si256::<0x31>(ab1, cd1),
    ]
}

/// Loads words `word` and `word + 1` of four one-time keys as 64 bits each.
#[target_feature(enable = "avx2")]
#[inline]
fn key_half(keys: &PolyKeys, first: usize, word: usize) -> __m256i {
    let load = |row: &[u32]| {
        let words = &row[first..first + LANES];
        // SAFETY: reads the four words of the slice.
        let words = unsafe { _mm_loadu_si128(words.as_ptr().cast()) };
        _mm256_cvtepu32_epi64(words)
    };
    _mm256_or_si256(load(&keys.0[word]), _mm256_slli_epi64::<32>(load(&keys.0[word + 1])))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_words(words: &[u64; LANES]) -> __m256i {
    // SAFETY: reads the four words of the array.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(word: u64) -> __m256i {
    _mm256_set1_epi64x(word.cast_signed())
}
