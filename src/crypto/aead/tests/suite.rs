//! The same tests on every core: what a batch does is what the oracle does to each of its packets.

use super::guard::Guarded;
use super::*;
use crate::crypto::aead::core::{Core, run_with};
use crate::crypto::arch::Kernel;
use crate::crypto::arch::emulated::Emulated;

macro_rules! suite {
    ($name:ident, $core:expr, every $stride:literal) => {
        mod $name {
            use super::*;

            /// Runs a test, unless this CPU lacks the core.
            fn on(test: impl FnOnce(&dyn Fn(&mut Packets))) {
                if let Some(core) = $core {
                    test(&|packets| packets.run(core));
                }
            }

            #[test]
            fn batches_of_every_length_agree_with_the_oracle() {
                on(|run| every_length(run, $stride));
            }

            #[test]
            fn batches_of_every_count_and_unlike_lengths_agree_with_the_oracle() {
                on(every_count);
            }

            #[test]
            fn batches_of_lengths_from_nothing_to_a_whole_datagram_agree_with_the_oracle() {
                on(every_magnitude);
            }

            #[test]
            fn a_header_a_payload_and_padding_are_gathered_wherever_they_meet() {
                on(every_seam);
            }

            #[test]
            fn a_forged_packet_is_found_and_wiped_in_every_lane() {
                on(every_forgery);
            }

            #[test]
            fn no_byte_outside_of_a_packet_is_touched() {
                on(guard_pages);
            }

            #[test]
            fn wycheproof_s_keys_texts_and_forgeries_in_batches() {
                on(wycheproof_batches);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
suite!(avx512, Core::new(Tier::Avx512), every 1);
#[cfg(target_arch = "x86_64")]
suite!(avx2, Core::new(Tier::Avx2), every 1);
suite!(portable, Core::new(Tier::Portable), every 11);
suite!(ring, Core::new(Tier::Ring), every 11);
suite!(emulated, Some(OnKernel(Emulated::<6, 3, 3>)), every 11);

/// Something that runs jobs.
trait Runs: Copy {
    fn run<J: Job>(self, jobs: &mut [J]);
}

impl Runs for Core {
    fn run<J: Job>(self, jobs: &mut [J]) {
        Self::run(self, jobs);
    }
}

#[derive(Clone, Copy)]
struct OnKernel<K>(K);

impl<K: Kernel> Runs for OnKernel<K> {
    fn run<J: Job>(self, jobs: &mut [J]) {
        run_with(self.0, jobs);
    }
}

/// A batch to be tested in all four ways.
struct Packets {
    packets: Vec<Packet>,
    /// How buffers lie: bytes from a boundary of 64, or between guard pages.
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Offset(usize),
    Guarded { is_front: bool },
}

struct Packet {
    key: [u8; 32],
    counter: u64,
    parts: [Vec<u8>; 2],
    padding: usize,
    /// XORed onto ciphertext and tag before opening.
    forgery: Option<(usize, u8)>,
}

impl Packet {
    fn text(&self) -> Vec<u8> {
        [&self.parts[0][..], &self.parts[1], &vec![0; self.padding]].concat()
    }

    fn sealed(&self) -> Vec<u8> {
        oracle(&self.key, &nonce(self.counter), &[], &self.text())
    }
}

/// Memory of a packet's.
enum Buffer {
    Offset(Vec<u8>, usize),
    Guarded(Guarded),
}

impl Buffer {
    fn new(place: Place, bytes: &[u8]) -> Self {
        match place {
            Place::Guarded { is_front } => Self::Guarded(Guarded::of(bytes, is_front)),
            Place::Offset(offset) => {
                let mut room = vec![0x5a; bytes.len() + 256];
                let begin = room.as_ptr().align_offset(64) + offset;
                room[begin..begin + bytes.len()].copy_from_slice(bytes);
                Self::Offset(room, begin)
            }
        }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        match self {
            Self::Guarded(buffer) => buffer,
            Self::Offset(room, begin) => &mut room[*begin..*begin + len],
        }
    }

    /// Takes the bytes; what is around them must be as it was.
    fn take(self, len: usize) -> Vec<u8> {
        match self {
            Self::Guarded(buffer) => buffer.to_vec(),
            Self::Offset(room, begin) => {
                assert!(room[..begin].iter().chain(&room[begin + len..]).all(|&byte| byte == 0x5a));
                room[begin..begin + len].to_vec()
            }
        }
    }
}

impl Packets {
    fn run(&self, core: impl Runs) {
        let keys: Vec<_> = self.packets.iter().map(|packet| Key::new(&Secret::new(packet.key))).collect();
        // Packets of one key share it, as those of a session do.
        let key = |at: usize| {
            let first = self.packets.iter().position(|packet| packet.key == self.packets[at].key);
            &keys[first.unwrap()]
        };
        let sealed: Vec<_> = self.packets.iter().map(Packet::sealed).collect();
        self.seal(core, &key, &sealed);
        self.open(core, &key, &sealed);
    }

    fn buffers(&self, bytes: impl Fn(usize) -> Vec<u8>) -> Vec<Buffer> {
        (0..self.packets.len()).map(|at| Buffer::new(self.place, &bytes(at))).collect()
    }

    fn seal<'k>(&self, core: impl Runs, key: &impl Fn(usize) -> &'k Key, sealed: &[Vec<u8>]) {
        let len = |at: usize| sealed[at].len();
        let mut in_place = self.buffers(|at| [self.packets[at].text(), vec![0x77; TAG_LEN]].concat());
        let mut jobs: Vec<_> = in_place
            .iter_mut()
            .enumerate()
            .map(|(at, buffer)| SealInPlace {
                key: key(at),
                counter: self.packets[at].counter,
                buf: buffer.bytes(len(at)),
            })
            .collect();
        core.run(&mut jobs);
        for (at, buffer) in in_place.into_iter().enumerate() {
            assert_eq!(buffer.take(len(at)), sealed[at], "packet {at} sealed in place");
        }

        let mut parts: Vec<_> = self
            .packets
            .iter()
            .map(|packet| packet.parts.each_ref().map(|part| Buffer::new(self.place, part)))
            .collect();
        let mut apart = self.buffers(|at| vec![0x77; len(at)]);
        let mut jobs: Vec<_> = apart
            .iter_mut()
            .zip(&mut parts)
            .enumerate()
            .map(|(at, (dst, [head, tail]))| {
                let packet = &self.packets[at];
                SealJob {
                    key: key(at),
                    counter: packet.counter,
                    parts: [head.bytes(packet.parts[0].len()), tail.bytes(packet.parts[1].len())],
                    dst: dst.bytes(len(at)),
                }
            })
            .collect();
        core.run(&mut jobs);
        for (at, buffer) in apart.into_iter().enumerate() {
            assert_eq!(buffer.take(len(at)), sealed[at], "packet {at} sealed out of place");
        }
    }

    fn open<'k>(&self, core: impl Runs, key: &impl Fn(usize) -> &'k Key, sealed: &[Vec<u8>]) {
        let arrives = |at: usize| {
            let mut bytes = sealed[at].clone();
            if let Some((byte, bits)) = self.packets[at].forgery {
                bytes[byte] ^= bits;
            }
            bytes
        };
        let expected = |at: usize, len: usize| match self.packets[at].forgery {
            None => (true, self.packets[at].text()),
            Some(_) => (false, vec![0; len]),
        };
        let mut in_place = self.buffers(arrives);
        let mut jobs: Vec<_> = in_place
            .iter_mut()
            .enumerate()
            .map(|(at, buffer)| OpenJob {
                key: key(at),
                counter: self.packets[at].counter,
                buf: buffer.bytes(sealed[at].len()),
                ok: self.packets[at].forgery.is_some(),
            })
            .collect();
        core.run(&mut jobs);
        for (at, job) in jobs.iter().enumerate() {
            let (is_authentic, text) = expected(at, job.buf.len());
            assert_eq!(job.ok, is_authentic, "packet {at} opened in place");
            assert_eq!(job.buf[..text.len()], text[..], "packet {at} opened in place");
        }
        drop(jobs);
        for (at, buffer) in in_place.into_iter().enumerate() {
            buffer.take(sealed[at].len());
        }

        let mut src = self.buffers(arrives);
        let mut apart = self.buffers(|at| vec![0x77; sealed[at].len() - TAG_LEN]);
        let mut jobs: Vec<_> = apart
            .iter_mut()
            .zip(&mut src)
            .enumerate()
            .map(|(at, (dst, src))| OpenTo {
                key: key(at),
                counter: self.packets[at].counter,
                src: src.bytes(sealed[at].len()),
                dst: dst.bytes(sealed[at].len() - TAG_LEN),
                ok: self.packets[at].forgery.is_some(),
            })
            .collect();
        core.run(&mut jobs);
        for (at, job) in jobs.iter().enumerate() {
            let (is_authentic, text) = expected(at, job.dst.len());
            assert_eq!(job.ok, is_authentic, "packet {at} opened out of place");
            assert_eq!(job.dst, text, "packet {at} opened out of place");
        }
        drop(jobs);
        for (at, buffer) in apart.into_iter().enumerate() {
            buffer.take(sealed[at].len() - TAG_LEN);
        }
    }
}

/// Numbers that look random, the same in every run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Makes a packet of so many bytes, header and payload parted anywhere, under one of so many keys.
    fn packet(&mut self, len: usize, keys: usize) -> Packet {
        let key = [u8::try_from(self.below(keys)).unwrap(); 32];
        let padding = if self.below(2) == 0 { 0 } else { self.below(16).min(len) };
        let head = self.below(len - padding + 1);
        let parts = [self.bytes(head), self.bytes(len - padding - head)];
        let forgery = (self.below(8) == 0).then(|| (self.below(len + TAG_LEN), 1 << self.below(8)));
        Packet { key, counter: self.next(), parts, padding, forgery }
    }
}

fn every_length(run: &dyn Fn(&mut Packets), stride: usize) {
    let mut numbers = Numbers(1);
    for len in (0..=2000).step_by(stride).chain([8900]) {
        let keys = 1 + len % 3;
        // A batch of one length, or of neighbours.
        let spread = len % 2;
        let packets = (0..5).map(|at| numbers.packet(len + at * spread, keys)).collect();
        run(&mut Packets { packets, place: Place::Offset(numbers.below(64)) });
    }
    let packets = (0..5).map(|at| numbers.packet(65_519 - at, 1)).collect();
    run(&mut Packets { packets, place: Place::Offset(0) });
}

fn every_count(run: &dyn Fn(&mut Packets)) {
    let mut numbers = Numbers(2);
    for count in (0..=66).chain([127, 128, 129]) {
        let keys = [1, 2, 5][count % 3];
        let longest = [64, 200, 1500][numbers.below(3)];
        let packets = (0..count).map(|_| numbers.below(longest)).collect::<Vec<_>>();
        let packets = packets.into_iter().map(|len| numbers.packet(len, keys)).collect();
        run(&mut Packets { packets, place: Place::Offset(numbers.below(64)) });
    }
}

/// Lengths of every magnitude in one batch, the shortest and the longest among them.
fn every_magnitude(run: &dyn Fn(&mut Packets)) {
    let mut numbers = Numbers(6);
    for count in [4, 17, 64, 128] {
        let mut lens: Vec<_> = (0..count).map(|_| numbers.below(65_520) >> numbers.below(12)).collect();
        let (shortest, longest) = (numbers.below(count / 2), count / 2 + numbers.below(count / 2));
        (lens[shortest], lens[longest]) = (0, 65_519);
        let packets = lens.into_iter().map(|len| numbers.packet(len, 3)).collect();
        run(&mut Packets { packets, place: Place::Offset(numbers.below(64)) });
    }
}

fn every_seam(run: &dyn Fn(&mut Packets)) {
    let mut numbers = Numbers(3);
    let joints = [0, 1, 20, 63, 64, 65, 128, 150];
    for head in joints {
        for tail in joints {
            let packets = [0, 1, 15, 63, 64, 200]
                .map(|padding| Packet {
                    key: [7; 32],
                    counter: numbers.next(),
                    parts: [numbers.bytes(head), numbers.bytes(tail)],
                    padding,
                    forgery: None,
                })
                .into();
            run(&mut Packets { packets, place: Place::Offset(16) });
        }
    }
}

fn every_forgery(run: &dyn Fn(&mut Packets)) {
    let mut numbers = Numbers(4);
    for count in [4, 9, 64] {
        for forged in 0..count {
            for byte in [0, 99, 100, 107, 115] {
                let mut packets: Vec<_> = (0..count).map(|_| numbers.packet(100, 1)).collect();
                packets.iter_mut().for_each(|packet| packet.forgery = None);
                packets[forged].forgery = Some((byte, 1 << numbers.below(8)));
                run(&mut Packets { packets, place: Place::Offset(0) });
                // Each byte in small batches; in the large one, a single byte in each lane.
                if count == 64 {
                    break;
                }
            }
        }
    }
}

fn guard_pages(run: &dyn Fn(&mut Packets)) {
    let mut numbers = Numbers(5);
    let lens = (0..130).chain([191, 192, 193, 255, 256, 257, 1023, 1040, 1440, 2000]);
    for len in lens {
        for is_front in [false, true] {
            let count = [5, 9, 17][len % 3];
            let mut packets: Vec<_> = (0..count).map(|_| numbers.packet(len, 2)).collect();
            // One shorter and one longer, so that lanes begin at different columns.
            packets[1] = numbers.packet(len / 2, 2);
            packets[2] = numbers.packet(len + 70, 2);
            run(&mut Packets { packets, place: Place::Guarded { is_front } });
        }
    }
}

/// A batch has no additional data and half of a nonce: keys, texts and the forgeries are Wycheproof's, what comes out is the oracle's,
/// and Wycheproof's own where the vector can be expressed.
fn wycheproof_batches(run: &dyn Fn(&mut Packets)) {
    let mut packets = Vec::new();
    for (test, nonce, key) in wycheproof() {
        let genuine = oracle(&key, &nonce, &test.aad, &test.pt);
        let arrives = [&test.ct[..], &test.tag[..]].concat();
        let difference = genuine.iter().zip(&arrives).position(|(a, b)| a != b);
        assert_eq!(difference.is_some(), test.result == TestResult::Invalid, "test {}", test.tc_id);
        let counter = u64::from_le_bytes(nonce[4..].try_into().unwrap());
        let forgery = difference.map(|at| (at, genuine[at] ^ arrives[at]));
        let packet = Packet { key, counter, parts: [test.pt.to_vec(), Vec::new()], padding: 0, forgery };
        if nonce[..4] == [0; 4] && test.aad.is_empty() && difference.is_none() {
            assert_eq!(packet.sealed(), arrives, "test {}", test.tc_id);
        }
        packets.push(packet);
    }
    assert!(packets.len() > 300);
    while !packets.is_empty() {
        let rest = packets.split_off(packets.len().min(50));
        run(&mut Packets { packets, place: Place::Offset(1) });
        packets = rest;
    }
}
