//! A kernel without vectors, straight from RFC 8439: it shows that what the batch writes into its tables is right, on any machine and
//! for any number of lanes.

use super::batch::{self, Scratch};
use super::lanes::{Columns, GROUP_MAX, Group, LANES_MAX, Lanes, PolyKeys};
use super::{Kernel, Packet, Way};

/// A kernel with so many lanes in so many steps, and packets in a group.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct Emulated<const LANES: usize, const STEP: usize, const GROUP: usize>;

impl<const LANES: usize, const STEP: usize, const GROUP: usize> Kernel for Emulated<LANES, STEP, GROUP> {
    const LANES: usize = LANES;
    const STEP: usize = STEP;
    const GROUP: usize = GROUP;
    const FEWEST: usize = 1;
    const LONGEST: usize = 1 << 20;

    fn run(self, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
        const { assert!(LANES <= LANES_MAX && LANES.is_multiple_of(STEP) && GROUP <= GROUP_MAX) };
        batch::run(self, packets, way, scratch)
    }

    fn pass(self, lanes: &Lanes, key: Option<&[u32; 8]>, keys: &mut PolyKeys) {
        for lane in 0..lanes.used.next_multiple_of(STEP) {
            let key = match key {
                Some(key) => *key,
                None => lanes.key.map(|row| row[lane]),
            };
            let stream = block(&key, lanes.block[lane], [0, lanes.nonce[0][lane], lanes.nonce[1][lane]]);
            if lanes.key_blocks > 0 {
                for (row, &word) in keys.0.iter_mut().zip(&stream) {
                    row[lanes.first_key + lane] = word;
                }
            }
            for (at, byte) in stream.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
                if lanes.mask[lane] >> at & 1 == 1 {
                    // SAFETY: the lane's mask names this byte.
                    let text = unsafe { lanes.src[lane].wrapping_add(at).read() };
                    // SAFETY: as above.
                    unsafe { lanes.dst[lane].wrapping_add(at).write(text ^ byte) };
                }
            }
            assert!(!lanes.is_whole || lanes.mask[lane] == !0);
        }
    }

    fn tags(self, keys: &PolyKeys, first: usize, group: &Group) -> [[u64; 2]; GROUP_MAX] {
        let columns = group.columns::<GROUP>();
        let mut tags = [[0; 2]; GROUP_MAX];
        for (lane, tag) in tags.iter_mut().enumerate().take(GROUP) {
            let mut key = [0; 32];
            for (bytes, row) in key.chunks_exact_mut(4).zip(&keys.0) {
                bytes.copy_from_slice(&row[first + lane].to_le_bytes());
            }
            *tag = halves(tag_of(&columns, lane, group, &key));
        }
        tags
    }
}

fn tag_of<const N: usize>(columns: &Columns<'_, N>, lane: usize, group: &Group, key: &[u8; 32]) -> [u8; 16] {
    let mut poly = Poly::new(key);
    for column in 0..columns.count {
        let window = columns.window(column, lane);
        if columns.whole.contains(&column) {
            assert_eq!((window.bytes, window.blocks), (!0, 0xf), "a whole column is whole in every lane");
        }
        if let Some(common) = columns.common(column) {
            assert_eq!(window, common);
            let readable = if columns.is_last(column) { 48 } else { 64 };
            let is_whole = (16 * common.first_block()..readable).all(|at| window.bytes >> at & 1 == 1);
            assert_eq!(common.is_of_blocks(columns.is_last(column)), is_whole, "{window:?}");
        }
        let mut bytes = [0; 64];
        for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| window.bytes >> at & 1 == 1) {
            // SAFETY: the window names this byte of the message.
            *byte = unsafe { columns.address(column, lane).wrapping_add(at).read() };
        }
        if columns.is_last(column) {
            assert_eq!(window.bytes >> 48, 0, "the last block is that of the lengths");
            bytes[48..56].copy_from_slice(&group.last[0][lane].to_le_bytes());
            bytes[56..].copy_from_slice(&group.last[1][lane].to_le_bytes());
        }
        for (at, block) in bytes.chunks_exact(16).enumerate().filter(|(at, _)| window.blocks >> at & 1 == 1) {
            assert!(at < 4);
            poly.add(block.try_into().unwrap());
        }
    }
    poly.tag(key)
}

/// Splits 16 bytes into low half and high half.
pub(super) fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap()))
}

/// RFC 8439 §2.3: the block function.
pub(super) fn block(key: &[u32; 8], counter: u32, nonce: [u32; 3]) -> [u32; 16] {
    let mut input =
        [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574, 0, 0, 0, 0, 0, 0, 0, 0, counter, 0, 0, 0];
    input[4..12].copy_from_slice(key);
    input[13..].copy_from_slice(&nonce);
    let mut state = input;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (a, b, d, rotation) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[a] = u32::wrapping_add(state[a], state[b]);
            state[d] = (state[d] ^ state[a]).rotate_left(rotation);
        }
    };
    for _ in 0..10 {
        (0..4).for_each(|at| quarter(at, at + 4, at + 8, at + 12));
        (0..4).for_each(|at| quarter(at, (at + 1) % 4 + 4, (at + 2) % 4 + 8, (at + 3) % 4 + 12));
    }
    std::array::from_fn(|at| state[at].wrapping_add(input[at]))
}

/// RFC 8439 §2.5: Poly1305 by the school's multiplication, in digits of 26 bits.
struct Poly {
    r: [u64; 5],
    h: [u64; 5],
}

impl Poly {
    fn new(key: &[u8; 32]) -> Self {
        let r = u128::from_le_bytes(key[..16].try_into().unwrap());
        Self { r: digits(r & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff, 0), h: [0; 5] }
    }

    fn add(&mut self, block: [u8; 16]) {
        let block = digits(u128::from_le_bytes(block), 1);
        let mut product = [0; 10];
        for (at, digit) in std::array::from_fn::<_, 5, _>(|at| self.h[at] + block[at]).into_iter().enumerate()
        {
            for (to, r) in self.r.iter().enumerate() {
                product[at + to] += digit * r;
            }
        }
        // A digit five places up counts 2¹³⁰ times, and that is 5.
        self.h = std::array::from_fn(|at| product[at] + 5 * product[at + 5]);
        self.carry();
        self.carry();
    }

    fn carry(&mut self) {
        let mut up = 0;
        for digit in &mut self.h {
            *digit += up;
            up = *digit >> 26;
            *digit &= (1 << 26) - 1;
        }
        self.h[0] += 5 * up;
    }

    fn tag(mut self, key: &[u8; 32]) -> [u8; 16] {
        (0..3).for_each(|_| self.carry());
        let [low, .., high] = self.h;
        // 2¹³⁰ - 5 and more: all digits are full but for the lowest.
        if low >= (1 << 26) - 5 && high == (1 << 26) - 1 && self.h[1..4] == [(1 << 26) - 1; 3] {
            self.h = [low - ((1 << 26) - 5), 0, 0, 0, 0];
        }
        let number = self.h.iter().rev().fold(0, |number: u128, &digit| number << 26 | u128::from(digit));
        let s = u128::from_le_bytes(key[16..].try_into().unwrap());
        number.wrapping_add(s).to_le_bytes()
    }
}

/// Splits a number, the bits from 2¹²⁸ on being `above`.
fn digits(number: u128, above: u64) -> [u64; 5] {
    let digit = |at: u32| u64::try_from(number >> (26 * at) & ((1 << 26) - 1)).unwrap();
    [digit(0), digit(1), digit(2), digit(3), digit(4) | above << 24]
}
