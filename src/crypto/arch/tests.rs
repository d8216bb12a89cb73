//! Known answers, in every lane of every kernel.

use super::emulated::{Emulated, block};
use super::lanes::{Cursor, Idle, Order};
use super::*;

/// RFC 8439, appendix A.1: key, counter, the nonce's last eight bytes as a little-endian number, keystream.
const BLOCKS: [(&str, u32, u64, &str); 5] = [
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        0,
        0,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        1,
        0,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    (
        "0000000000000000000000000000000000000000000000000000000000000001",
        1,
        0,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        "00ff000000000000000000000000000000000000000000000000000000000000",
        2,
        0,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        0,
        2 << 56,
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
];

/// RFC 8439, appendix A.3, all that end with a whole block, as our last one is whole: "R", "S", text, tag.
const TAGS: [(&str, &str, &str, &str); 8] = [
    (
        "00000000000000000000000000000000",
        "00000000000000000000000000000000",
        "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        "00000000000000000000000000000000",
    ),
    (
        "02000000000000000000000000000000",
        "00000000000000000000000000000000",
        "ffffffffffffffffffffffffffffffff",
        "03000000000000000000000000000000",
    ),
    (
        "02000000000000000000000000000000",
        "ffffffffffffffffffffffffffffffff",
        "02000000000000000000000000000000",
        "03000000000000000000000000000000",
    ),
    (
        "01000000000000000000000000000000",
        "00000000000000000000000000000000",
        "fffffffffffffffffffffffffffffffff0ffffffffffffffffffffffffffffff11000000000000000000000000000000",
        "05000000000000000000000000000000",
    ),
    (
        "01000000000000000000000000000000",
        "00000000000000000000000000000000",
        "fffffffffffffffffffffffffffffffffbfefefefefefefefefefefefefefefe01010101010101010101010101010101",
        "00000000000000000000000000000000",
    ),
    (
        "02000000000000000000000000000000",
        "00000000000000000000000000000000",
        "fdffffffffffffffffffffffffffffff",
        "faffffffffffffffffffffffffffffff",
    ),
    (
        "01000000000000000400000000000000",
        "00000000000000000000000000000000",
        "e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001000000000000000000000000000000",
        "14000000000000005500000000000000",
    ),
    (
        "01000000000000000400000000000000",
        "00000000000000000000000000000000",
        "e33594d7505e43b900000000000000003394d7505e4379cd010000000000000000000000000000000000000000000000",
        "13000000000000000000000000000000",
    ),
];

macro_rules! suite {
    ($name:ident, $kernel:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn every_lane_computes_the_blocks_of_rfc_8439() {
                if let Some(kernel) = $kernel {
                    blocks_in_every_lane(kernel);
                }
            }

            #[test]
            fn every_lane_computes_the_tags_of_rfc_8439() {
                if let Some(kernel) = $kernel {
                    tags_in_every_lane(kernel);
                }
            }

            #[test]
            fn tags_of_all_ones_are_those_of_plain_arithmetic() {
                if let Some(kernel) = $kernel {
                    extreme_tags(kernel);
                }
            }

            #[test]
            fn a_batch_leaves_no_key_behind() {
                if let Some(kernel) = $kernel {
                    nothing_is_left(kernel);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
suite!(avx512_kernel, avx512::Avx512::new());
#[cfg(target_arch = "x86_64")]
suite!(avx2_kernel, avx2::Avx2::new());
suite!(emulated_32_lanes, Some(Emulated::<32, 16, 8>));
suite!(emulated_6_lanes, Some(Emulated::<6, 3, 3>));
suite!(emulated_1_lane, Some(Emulated::<1, 1, 1>));

fn words(key: &str) -> [u32; 8] {
    let bytes = hex::decode(key).unwrap();
    std::array::from_fn(|at| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()))
}

/// Every pass of a batch as large as the kernel has lanes, for each vector with its key alone and in a mixture of all keys.
fn blocks_in_every_lane<K: Kernel>(kernel: K) {
    for turn in 0..BLOCKS.len() {
        for is_mixed in [false, true] {
            let vector = |at: usize| BLOCKS[if is_mixed { turn + at } else { turn } % BLOCKS.len()];
            let keys: Vec<_> = (0..K::LANES).map(|at| words(vector(at).0)).collect();
            let mut texts = vec![[0; 128 + 16]; K::LANES];
            let packets: Vec<_> = texts
                .iter_mut()
                .enumerate()
                .map(|(at, text)| Packet::to_seal_in_place(&keys[at], vector(at).2, text))
                .collect();
            let (mut lanes, mut poly, mut cursor) = (Lanes::EMPTY, PolyKeys::ZERO, Cursor::default());
            let (idle, order) = (Idle::new(), Order { is_mixed, keys_alone: false });
            loop {
                lanes.fill::<K>(&packets, &mut cursor, order, &idle);
                if lanes.used == 0 {
                    break;
                }
                kernel.pass(&lanes, (!is_mixed).then_some(&keys[0]), &mut poly);
            }
            for (at, text) in texts.iter().enumerate() {
                let (_, counter, _, stream) = vector(at);
                let stream = hex::decode(stream).unwrap();
                if counter == 0 {
                    let key: Vec<u8> = poly.0.iter().flat_map(|row| row[at].to_le_bytes()).collect();
                    assert_eq!(key, stream[..32], "vector {turn}, lane {at}");
                } else {
                    let begin = 64 * (counter as usize - 1);
                    assert_eq!(text[begin..begin + 64], stream, "vector {turn}, lane {at}");
                }
            }
        }
    }
}

/// Each vector in each lane, beside the others, whose lengths differ.
fn tags_in_every_lane<K: Kernel>(kernel: K) {
    let texts = TAGS.map(|(_, _, text, _)| hex::decode(text).unwrap());
    for turn in 0..GROUP_MAX {
        let vector = |lane: usize| (turn + lane) % TAGS.len();
        for first in [0, 5, BATCH_MAX - 1] {
            let mut keys = PolyKeys::ZERO;
            for lane in 0..GROUP_MAX {
                let (r, s, ..) = TAGS[vector(lane)];
                for (row, word) in keys.0.iter_mut().zip(words(&[r, s].concat())) {
                    row[first + lane] = word;
                }
            }
            let messages = std::array::from_fn(|lane| {
                let (message, last) = texts[vector(lane)].split_last_chunk::<16>().unwrap();
                (message, emulated::halves(*last))
            });
            let tags = kernel.tags(&keys, first, &Group::of_messages(messages));
            for (lane, [low, high]) in tags.into_iter().enumerate().take(K::GROUP) {
                let tag = [low.to_le_bytes(), high.to_le_bytes()].concat();
                assert_eq!(hex::encode(tag), TAGS[vector(lane)].3, "vector {}, lane {lane}", vector(lane));
            }
        }
    }
}

/// All bits set in text, key and last block: the largest sums that can be, over many columns, and lanes of unlike lengths.
fn extreme_tags<K: Kernel>(kernel: K) {
    let ones = vec![0xff; 2100];
    let mut keys = PolyKeys::ZERO;
    keys.0.iter_mut().for_each(|row| row.fill(u32::MAX));
    for len in (0..200).chain([1439, 1440, 1441, 2000]) {
        for spread in [0, 1, 16, 100] {
            let lens: [usize; GROUP_MAX] = std::array::from_fn(|lane| len + spread * lane % 700);
            let group = Group::of_messages(lens.map(|len| (&ones[..len.min(2100)], [u64::MAX; 2])));
            let slow = Emulated::<1, 1, GROUP_MAX>.tags(&keys, 0, &group);
            let fast = kernel.tags(&keys, 0, &group);
            assert_eq!(fast[..K::GROUP], slow[..K::GROUP], "{lens:?}");
        }
    }
}

/// Looks for the one-time keys and the keys of a mixed batch in the tables.
fn nothing_is_left<K: Kernel>(kernel: K) {
    let keys = [[0xa7a7_a7a7; 8], [0xb8b8_b8b8; 8]];
    for (count, is_mixed) in [(1, false), (BATCH_MAX, false), (BATCH_MAX, true), (5, true)] {
        let mut texts = vec![[0; 300]; count];
        let packets: Vec<_> = texts
            .iter_mut()
            .enumerate()
            .map(|(at, text)| {
                Packet::to_seal_in_place(&keys[usize::from(is_mixed) * (at % 2)], at as u64, text)
            })
            .collect();
        let mut scratch = Scratch::new();
        kernel.run(&packets, Way::Seal, &mut scratch);
        drop(packets);
        assert!(texts.iter().all(|text| text[100..] != [0; 200]), "all were sealed");
        assert!(scratch.secrets().all(|word| word == 0));
    }
}

#[test]
fn the_slow_twin_computes_the_block_of_rfc_8439() {
    // RFC 8439 §2.3.2, the nonce's first word included.
    let key = words("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    let stream = block(&key, 1, [0x0900_0000, 0x4a00_0000, 0]);
    let bytes: Vec<u8> = stream.iter().flat_map(|word| word.to_le_bytes()).collect();
    let expected = "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e";
    assert_eq!(hex::encode(bytes), expected);
}
