//! Nanoseconds a packet of batches, beside those of the libraries: `cargo bench --bench aead [-- --quick]`.
//!
//! One thread, in place, data in the cache; sealing and opening take turns. All programs take turns within one loop, and the median of
//! many turns counts, so that ratios hold also on a machine that is not quiet. Every tier that this CPU has is measured, each in a process
//! of its own, as a process has one. Rows go to `<target>/bench/aead.csv`.
//!
//! `gather` is what the sending side does: header and payload are sealed out of place, where the libraries copy and then seal in place.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

use adit::crypto::aead::{
    self, Key, OpenJob, SealInPlace, SealJob, TAG_LEN, Tier, open_batch_in_place, seal_batch,
    seal_batch_in_place,
};
use adit::crypto::secret::Secret;
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};

const BATCHES: [usize; 7] = [1, 4, 8, 16, 32, 64, 128];
const BYTES: [usize; 7] = [64, 128, 256, 512, 1024, 1440, 8900];
const OPS: [&str; 3] = ["seal", "open", "gather"];
const RING: &str = "ring";
const PORTABLE: &str = "chacha20poly1305";
/// IPv4 and TCP with a timestamp.
const HEADER: usize = 52;
/// Names the tier that a process of ours is to measure.
const TIER: &str = "ADIT_BENCH_TIER";

struct Row {
    tier: String,
    op: String,
    batch: usize,
    bytes: usize,
    ns: f64,
}

fn main() {
    let is_quick = env::args().any(|arg| arg == "--quick");
    if let Ok(name) = env::var(TIER) {
        return measure(if name == "avx2" { Tier::Avx2 } else { Tier::Avx512 }, is_quick);
    }
    let program = env::current_exe().expect("we run");
    let mut csv = String::from("tier,op,batch,bytes,ns\n");
    for tier in ["avx512", "avx2"] {
        let output = Command::new(&program).args(env::args().skip(1)).env(TIER, tier).output();
        let output = output.expect("we can be run once more");
        if !output.status.success() {
            println!("{tier}: {}", String::from_utf8_lossy(&output.stderr).trim());
            continue;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let rows: Vec<_> = text.lines().filter_map(parse).collect();
        report(tier, &rows);
        for row in &rows {
            // The libraries are measured beside each tier, and are listed once.
            if row.tier == tier || !csv.lines().any(|line| line.starts_with(&key_of(row))) {
                writeln!(csv, "{}{:.1}", key_of(row), row.ns).expect("a string takes all");
            }
        }
    }
    let target =
        Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target folder").join("bench");
    fs::create_dir_all(&target).expect("the target directory can be written to");
    fs::write(target.join("aead.csv"), csv).expect("the target directory can be written to");
    println!("rows: {}", target.join("aead.csv").display());
}

fn key_of(row: &Row) -> String {
    format!("{},{},{},{},", row.tier, row.op, row.batch, row.bytes)
}

fn parse(line: &str) -> Option<Row> {
    let fields: Vec<_> = line.split(',').collect();
    let [tier, op, batch, bytes, ns] = fields[..] else { return None };
    Some(Row {
        tier: tier.to_owned(),
        op: op.to_owned(),
        batch: batch.parse().ok()?,
        bytes: bytes.parse().ok()?,
        ns: ns.parse().ok()?,
    })
}

/// Prints ns a packet, and how many times faster than ring that is.
fn report(tier: &str, rows: &[Row]) {
    let find = |tier: &str, op: &str, batch, bytes| {
        let is_it = |row: &&Row| row.tier == tier && row.op == op && row.batch == batch && row.bytes == bytes;
        rows.iter().find(is_it).map_or(f64::NAN, |row| row.ns)
    };
    for op in OPS {
        println!("\n{tier}, {op}: ns a packet (times faster than ring) in batches of …");
        print!("{:>6}", "bytes");
        BATCHES.iter().for_each(|batch| print!("{batch:>15}"));
        println!("{:>9}{:>9}", "ring", "portable");
        for bytes in BYTES {
            print!("{bytes:>6}");
            for batch in BATCHES {
                let (ours, ring) = (find(tier, op, batch, bytes), find(RING, op, batch, bytes));
                print!("{ours:>8.1} ({:>4.2})", ring / ours);
            }
            println!("{:>9.1}{:>9.1}", find(RING, op, 64, bytes), find(PORTABLE, op, 64, bytes));
        }
    }
}

/// Measures `tier` and the libraries, and prints rows.
fn measure(tier: Tier, is_quick: bool) {
    if let Err(refused) = aead::force(tier) {
        eprintln!("{refused}");
        std::process::exit(1);
    }
    let key = [0x42; 32];
    let ring = UnboundKey::new(&CHACHA20_POLY1305, &key).expect("the key has 32 bytes");
    let mut workers: [(&str, Box<dyn Worker>); 3] = [
        (aead::tier(), Box::new(Key::new(&Secret::new(key)))),
        (RING, Box::new(Single(LessSafeKey::new(ring)))),
        (PORTABLE, Box::new(Single(ChaCha20Poly1305::new(&key.into())))),
    ];
    let turns = if is_quick { 21 } else { 101 };
    for bytes in BYTES {
        for batch in BATCHES {
            let mut lab = Lab::new(batch, bytes);
            let mut times: [[Vec<f64>; 3]; 3] = Default::default();
            for _ in 0..turns {
                for ((_, worker), times) in workers.iter_mut().zip(&mut times) {
                    for (times, ns) in times.iter_mut().zip(lab.turn(&mut **worker)) {
                        times.push(ns);
                    }
                }
            }
            for ((name, _), times) in workers.iter().zip(&mut times) {
                for (op, times) in OPS.iter().zip(times) {
                    times.sort_unstable_by(f64::total_cmp);
                    println!("{name},{op},{batch},{bytes},{:.2}", times[times.len() / 2]);
                }
            }
        }
    }
}

/// The packets of a turn: enough for the clock, in one or more batches.
struct Lab {
    batch: usize,
    bytes: usize,
    /// Messages, each behind room for the header of a data message.
    room: Vec<u8>,
    source: Vec<u8>,
}

impl Lab {
    fn new(batch: usize, bytes: usize) -> Self {
        let batches = (16_384 / (bytes + 64) / batch).max(1);
        let count = batch * batches;
        Self { batch, bytes, room: vec![3; count * (16 + bytes + TAG_LEN)], source: vec![5; count * bytes] }
    }

    /// Seals, opens and gathers, and returns ns a packet of each.
    fn turn(&mut self, worker: &mut dyn Worker) -> [f64; 3] {
        let Self { batch, bytes, room, source } = self;
        let count = source.len() / *bytes;
        let mut messages: Vec<_> =
            room.chunks_exact_mut(16 + *bytes + TAG_LEN).map(|message| &mut message[16..]).collect();
        [
            worker.seal(*batch, &mut messages),
            worker.open(*batch, &mut messages),
            worker.gather(*batch, source, &mut messages),
        ]
        .map(|ns| ns / count as f64)
    }
}

/// Someone who works on messages, whose counters are 0 and up, and returns the ns that all of them took.
trait Worker {
    fn seal(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64;
    fn open(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64;
    fn gather(&self, batch: usize, source: &[u8], messages: &mut [&mut [u8]]) -> f64;
}

impl Worker for Key {
    fn seal(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64 {
        let job = |(buf, counter)| SealInPlace { key: self, counter, buf };
        let mut jobs: Vec<_> = messages.iter_mut().map(|buf| &mut **buf).zip(0..).map(job).collect();
        timed(|| jobs.chunks_mut(batch).for_each(|jobs| seal_batch_in_place(black_box(jobs))))
    }

    fn open(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64 {
        let job = |(buf, counter)| OpenJob { key: self, counter, buf, ok: false };
        let mut jobs: Vec<_> = messages.iter_mut().map(|buf| &mut **buf).zip(0..).map(job).collect();
        let ns = timed(|| jobs.chunks_mut(batch).for_each(|jobs| open_batch_in_place(black_box(jobs))));
        assert!(jobs.iter().all(|job| job.ok), "they are authentic");
        ns
    }

    fn gather(&self, batch: usize, source: &[u8], messages: &mut [&mut [u8]]) -> f64 {
        let texts = source.chunks_exact(source.len() / messages.len());
        let mut jobs: Vec<_> = messages
            .iter_mut()
            .zip(texts)
            .zip(0..)
            .map(|((dst, text), counter)| {
                let (header, payload) = text.split_at(HEADER);
                SealJob { key: self, counter, parts: [header, payload], dst }
            })
            .collect();
        timed(|| jobs.chunks_mut(batch).for_each(|jobs| seal_batch(black_box(jobs))))
    }
}

/// A library, which has no batches.
struct Single<L>(L);

impl<L: Library> Worker for Single<L> {
    fn seal(&self, _: usize, messages: &mut [&mut [u8]]) -> f64 {
        timed(|| {
            for (message, counter) in messages.iter_mut().zip(0..) {
                let (text, tag) = black_box(message).split_last_chunk_mut().expect("it has a tag");
                *tag = self.0.seal(nonce(counter), text);
            }
        })
    }

    fn open(&self, _: usize, messages: &mut [&mut [u8]]) -> f64 {
        timed(|| {
            for (message, counter) in messages.iter_mut().zip(0..) {
                let (text, tag) = black_box(message).split_last_chunk_mut().expect("it has a tag");
                assert!(self.0.open(nonce(counter), text, tag), "it is authentic");
            }
        })
    }

    fn gather(&self, _: usize, source: &[u8], messages: &mut [&mut [u8]]) -> f64 {
        let texts = source.chunks_exact(source.len() / messages.len());
        timed(|| {
            for ((message, source), counter) in messages.iter_mut().zip(texts).zip(0..) {
                let (header, payload) = black_box(source).split_at(HEADER);
                let (text, tag) = message.split_last_chunk_mut().expect("it has a tag");
                text[..HEADER].copy_from_slice(header);
                text[HEADER..].copy_from_slice(payload);
                *tag = self.0.seal(nonce(counter), text);
            }
        })
    }
}

trait Library {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; TAG_LEN];
    fn open(&self, nonce: [u8; 12], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool;
}

impl Library for LessSafeKey {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.seal_in_place_separate_tag(nonce, Aad::empty(), text).expect("it is short");
        tag.as_ref().try_into().expect("a tag has 16 bytes")
    }

    fn open(&self, nonce: [u8; 12], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.open_in_place_separate_tag(nonce, Aad::empty(), Tag::from(*tag), text, 0..).is_ok()
    }
}

impl Library for ChaCha20Poly1305 {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.encrypt_inout_detached(&nonce.into(), &[], text.into()).expect("it is short").into()
    }

    fn open(&self, nonce: [u8; 12], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        self.decrypt_inout_detached(&nonce.into(), &[], text.into(), tag.into()).is_ok()
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn timed(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64
}
