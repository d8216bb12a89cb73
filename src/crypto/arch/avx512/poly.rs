//! Poly1305 (RFC 8439 §2.5) of eight messages, one lane each, in limbs of 44, 44 and 42 bits.
//!
//! A column is four blocks of each message: `h = (h + m0) r⁴ + m1 r³ + m2 r² + m3 r`, carried once. The multiplications are IFMA's, of 52
//! bits; a product's low and high half are summed on their own.
//!
//! Bounds: limbs of r's powers are below 2⁴⁴, 2⁴⁴ + 2¹⁴ and 2⁴², those of h + m below 2⁴⁵, so that 20 r stays below 2⁵² and the twelve low
//! halves that make a limb below 2⁵⁶.

use std::arch::x86_64::*;
use std::array;

use crate::crypto::arch::lanes::{Columns, GROUP_MAX, Group, PolyKeys, Window};

/// A number in limbs, one of each lane.
type Number = [__m512i; 3];

/// A power of r, and what its limbs are times 20: a limb at 2¹³² is 4 · 5 times one at 1, modulo 2¹³⁰ - 5.
struct Power {
    r: Number,
    /// Of the second and third limb.
    r20: [__m512i; 2],
}

/// Computes the tags of the group whose one-time keys begin at `first`, low and high half.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline(never)]
pub(super) fn tags(keys: &PolyKeys, first: usize, group: &Group) -> [[u64; 2]; GROUP_MAX] {
    // RFC 8439 §2.5: "r" is clamped.
    let low = _mm512_and_si512(key_half(keys, first, 0), splat(0x0fff_fffc_0fff_ffff));
    let high = _mm512_and_si512(key_half(keys, first, 2), splat(0x0fff_fffc_0fff_fffc));
    let r1 = power(split(low, high));
    let r2 = power(multiply(r1.r, &r1));
    let powers = [power(multiply(r2.r, &r2)), power(multiply(r2.r, &r1)), r2, r1];

    let columns = group.columns::<GROUP_MAX>();
    let mut h = [_mm512_setzero_si512(); 3];
    for column in 0..columns.whole.start {
        h = add_partial(h, &columns, column, group, &powers);
    }
    for column in columns.whole.clone() {
        let words = transpose(array::from_fn(|lane| load(&columns, column, lane)));
        let bit = splat(1 << 40);
        let block = |at: usize| {
            let [low, middle, high] = split(words[2 * at], words[2 * at + 1]);
            [low, middle, _mm512_or_si512(high, bit)]
        };
        h = add_column(h, [block(0), block(1), block(2), block(3)], &powers);
    }
    for column in columns.whole.end..columns.count {
        h = add_partial(h, &columns, column, group, &powers);
    }
    finish(h, key_half(keys, first, 4), key_half(keys, first, 6))
}

/// Adds a column in which some lanes have no message yet, or that is the last.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline]
fn add_partial(
    h: Number,
    columns: &Columns<'_, GROUP_MAX>,
    column: usize,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    match columns.common(column) {
        Some(window) => add_common(h, columns, column, window, group, powers),
        None => add_masked(h, columns, column, group, powers),
    }
}

/// Adds a column of which every lane has the same.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline]
fn add_common(
    h: Number,
    columns: &Columns<'_, GROUP_MAX>,
    column: usize,
    window: Window,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    let mut words = transpose(array::from_fn(|lane| {
        // SAFETY: the window names bytes of every lane's message.
        unsafe { _mm512_maskz_loadu_epi8(window.bytes, columns.address(column, lane).cast()) }
    }));
    if columns.is_last(column) {
        words[6] = load_words(&group.last[0]);
        words[7] = load_words(&group.last[1]);
    }
    let block = |at: usize| {
        let [low, middle, high] = split(words[2 * at], words[2 * at + 1]);
        [low, middle, _mm512_or_si512(high, splat(1 << 40))]
    };
    let first = window.first_block();
    let mut sums = [_mm512_setzero_si512(); 6];
    add_product(&mut sums, block(3), &powers[3]);
    if first <= 2 {
        add_product(&mut sums, block(2), &powers[2]);
    }
    if first <= 1 {
        add_product(&mut sums, block(1), &powers[1]);
    }
    // Where there are blocks missing before, there is nothing in `h` either.
    if first == 0 {
        let block = block(0);
        add_product(&mut sums, array::from_fn(|limb| _mm512_add_epi64(h[limb], block[limb])), &powers[0]);
    }
    carry(&sums)
}

/// Adds a column of which every lane has something else.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline]
fn add_masked(
    h: Number,
    columns: &Columns<'_, GROUP_MAX>,
    column: usize,
    group: &Group,
    powers: &[Power; 4],
) -> Number {
    let windows: [_; GROUP_MAX] = array::from_fn(|lane| columns.window(column, lane));
    let mut words = transpose(array::from_fn(|lane| {
        // SAFETY: the window names bytes of the lane's message.
        unsafe { _mm512_maskz_loadu_epi8(windows[lane].bytes, columns.address(column, lane).cast()) }
    }));
    if columns.is_last(column) {
        words[6] = load_words(&group.last[0]);
        words[7] = load_words(&group.last[1]);
    }
    let block = |at: usize| {
        let mut lanes = 0;
        for (lane, window) in windows.iter().enumerate() {
            lanes |= (window.blocks >> at & 1) << lane;
        }
        let [low, middle, high] = split(words[2 * at], words[2 * at + 1]);
        [low, middle, _mm512_mask_or_epi64(high, lanes, high, splat(1 << 40))]
    };
    add_column(h, [block(0), block(1), block(2), block(3)], powers)
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn add_column(h: Number, blocks: [Number; 4], powers: &[Power; 4]) -> Number {
    let mut sums = [_mm512_setzero_si512(); 6];
    add_product(&mut sums, blocks[1], &powers[1]);
    add_product(&mut sums, blocks[2], &powers[2]);
    add_product(&mut sums, blocks[3], &powers[3]);
    // Last, as it waits for the column before.
    let first = array::from_fn(|limb| _mm512_add_epi64(h[limb], blocks[0][limb]));
    add_product(&mut sums, first, &powers[0]);
    carry(&sums)
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn multiply(a: Number, b: &Power) -> Number {
    let mut sums = [_mm512_setzero_si512(); 6];
    add_product(&mut sums, a, b);
    carry(&sums)
}

/// Adds to `sums`, three of low halves and three of high ones, the product of `a` and `b`.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn add_product(sums: &mut [__m512i; 6], a: Number, b: &Power) {
    let factors = [[b.r[0], b.r[1], b.r[2]], [b.r20[1], b.r[0], b.r[1]], [b.r20[0], b.r20[1], b.r[0]]];
    for (limb, row) in factors.iter().enumerate() {
        for (to, &factor) in row.iter().enumerate() {
            sums[to] = _mm512_madd52lo_epu64(sums[to], a[limb], factor);
            sums[3 + to] = _mm512_madd52hi_epu64(sums[3 + to], a[limb], factor);
        }
    }
}

/// Brings sums back to limbs. A high half counts 2⁵² times: 2⁸ times the next limb of 44 bits, 2¹⁰ times the one behind 42 bits.
#[target_feature(enable = "avx512f")]
#[inline]
fn carry(sums: &[__m512i; 6]) -> Number {
    let (bits44, bits42) = (splat((1 << 44) - 1), splat((1 << 42) - 1));
    let low = _mm512_and_si512(sums[0], bits44);
    let up = _mm512_srli_epi64::<44>(sums[0]);
    let middle = _mm512_add_epi64(_mm512_add_epi64(sums[1], _mm512_slli_epi64::<8>(sums[3])), up);
    let up = _mm512_srli_epi64::<44>(middle);
    let high = _mm512_add_epi64(_mm512_add_epi64(sums[2], _mm512_slli_epi64::<8>(sums[4])), up);
    let up = _mm512_add_epi64(_mm512_slli_epi64::<10>(sums[5]), _mm512_srli_epi64::<42>(high));
    let low = _mm512_add_epi64(low, times5(up));
    let up = _mm512_srli_epi64::<44>(low);
    [
        _mm512_and_si512(low, bits44),
        _mm512_add_epi64(_mm512_and_si512(middle, bits44), up),
        _mm512_and_si512(high, bits42),
    ]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn power(r: Number) -> Power {
    let times20 = |limb| _mm512_slli_epi64::<2>(times5(limb));
    Power { r, r20: [times20(r[1]), times20(r[2])] }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn times5(limb: __m512i) -> __m512i {
    _mm512_add_epi64(limb, _mm512_slli_epi64::<2>(limb))
}

/// Splits a block, without the bit at 2¹²⁸, into limbs.
#[target_feature(enable = "avx512f,avx512vbmi2")]
#[inline]
fn split(low: __m512i, high: __m512i) -> Number {
    let bits44 = splat((1 << 44) - 1);
    [
        _mm512_and_si512(low, bits44),
        _mm512_and_si512(_mm512_shrdi_epi64::<44>(low, high), bits44),
        _mm512_srli_epi64::<24>(high),
    ]
}

/// Reduces modulo 2¹³⁰ - 5, adds the key's second half "s" and returns the low 128 bits (RFC 8439 §2.5.1).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
#[inline]
fn finish(h: Number, s_low: __m512i, s_high: __m512i) -> [[u64; 2]; GROUP_MAX] {
    let (bits44, bits42) = (splat((1 << 44) - 1), splat((1 << 42) - 1));
    let [mut low, mut middle, mut high] = h;
    for _ in 0..2 {
        high = _mm512_add_epi64(high, _mm512_srli_epi64::<44>(middle));
        middle = _mm512_and_si512(middle, bits44);
        low = _mm512_add_epi64(low, times5(_mm512_srli_epi64::<42>(high)));
        high = _mm512_and_si512(high, bits42);
        middle = _mm512_add_epi64(middle, _mm512_srli_epi64::<44>(low));
        low = _mm512_and_si512(low, bits44);
    }
    // h + 5 reaches 2¹³⁰ just if h is not reduced; its low 130 bits are the reduced value then.
    let low5 = _mm512_add_epi64(low, splat(5));
    let middle5 = _mm512_add_epi64(middle, _mm512_srli_epi64::<44>(low5));
    let high5 = _mm512_add_epi64(high, _mm512_srli_epi64::<44>(middle5));
    let over = _mm512_test_epi64_mask(high5, splat(1 << 42));
    low = _mm512_mask_and_epi64(low, over, low5, bits44);
    middle = _mm512_mask_and_epi64(middle, over, middle5, bits44);
    high = _mm512_mask_and_epi64(high, over, high5, bits42);

    let h_low = _mm512_or_si512(low, _mm512_slli_epi64::<44>(middle));
    let h_high = _mm512_or_si512(_mm512_srli_epi64::<20>(middle), _mm512_slli_epi64::<24>(high));
    let tag_low = _mm512_add_epi64(h_low, s_low);
    let carried = _mm512_cmplt_epu64_mask(tag_low, s_low);
    let sum = _mm512_add_epi64(h_high, s_high);
    let tag_high = _mm512_mask_add_epi64(sum, carried, sum, splat(1));

    let (even, odd) = (_mm512_unpacklo_epi64(tag_low, tag_high), _mm512_unpackhi_epi64(tag_low, tag_high));
    let pick = |at: i64| {
        let half = _mm512_set_epi64(at + 11, at + 10, at + 3, at + 2, at + 9, at + 8, at + 1, at);
        _mm512_permutex2var_epi64(even, half, odd)
    };
    let mut tags = [[0; 2]; GROUP_MAX];
    let (first, second) = tags.split_at_mut(GROUP_MAX / 2);
    store(first, pick(0));
    store(second, pick(4));
    tags
}

/// Turns one column of each lane in a register into one word of all lanes in a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: [__m512i; 8]) -> [__m512i; 8] {
    let pair = |at: usize| {
        let (a, b) = (rows[at], rows[at + 1]);
        (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    };
    let [(a0, a1), (b0, b1), (c0, c1), (d0, d1)] = [pair(0), pair(2), pair(4), pair(6)];
    let quarter = |a: __m512i, b: __m512i, c: __m512i, d: __m512i| {
        let (ab0, ab1) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
        let (cd0, cd1) = (_mm512_shuffle_i64x2::<0x44>(c, d), _mm512_shuffle_i64x2::<0xee>(c, d));
        [
            _mm512_shuffle_i64x2::<0x88>(ab0, cd0),
            _mm512_shuffle_i64x2::<0xdd>(ab0, cd0),
            _mm512_shuffle_i64x2::<0x88>(ab1, cd1),
            _mm512_shuffle_i64x2::<0xdd>(ab1, cd1),
        ]
    };
    let (even, odd) = (quarter(a0, b0, c0, d0), quarter(a1, b1, c1, d1));
    [even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]]
}

/// Loads words `word` and `word + 1` of eight one-time keys as 64 bits each.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn key_half(keys: &PolyKeys, first: usize, word: usize) -> __m512i {
    let load = |row: &[u32]| {
        let words = &row[first..first + GROUP_MAX];
        // SAFETY: reads the eight words of the slice.
        _mm512_cvtepu32_epi64(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
    };
    _mm512_or_si512(load(&keys.0[word]), _mm512_slli_epi64::<32>(load(&keys.0[word + 1])))
}

/// Loads 64 bytes of a lane, in a column in which every lane has them.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(columns: &Columns<'_, GROUP_MAX>, column: usize, lane: usize) -> __m512i {
    // SAFETY: only called for columns that are `whole`.
    unsafe { _mm512_loadu_si512(columns.address(column, lane).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_words(words: &[u64; 8]) -> __m512i {
    // SAFETY: reads the eight words of the array.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(tags: &mut [[u64; 2]], vector: __m512i) {
    let tags: &mut [[u64; 2]; 4] = tags.try_into().expect("a half of them");
    // SAFETY: writes the eight words of the array.
    unsafe { _mm512_storeu_si512(tags.as_mut_ptr().cast(), vector) };
}

#[target_feature(enable = "avx512f")]
#[inline]
fn splat(word: u64) -> __m512i {
    _mm512_set1_epi64(word.cast_signed())
}
