//! Nanoseconds a packet of batches, beside those of the libraries: `cargo bench --bench aead [-- --quick]`.
//!
//! One thread, in place, data in the cache; sealing and opening take turns. All programs take turns within one loop, and the median of
//! many turns counts, so that ratios hold also on a machine that is not quiet. Every tier that this CPU has is measured, each in a process
//! of its own, as a process has one. Rows go to `<target>/bench/aead.csv`, a plot to `<target>/bench/aead.svg`.
//!
//! `gather` is what the sending side does: header and payload are sealed out of place, where the libraries copy and then seal in place.
//! Intel's ipsec-mb is set beside ours by its job API if it is installed (Debian's `libipsec-mb-dev`) and there is a C compiler; it takes
//! its turns after the others.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;
use std::{env, fs};

use adit::crypto::aead::{
    self, Key, OpenJob, SealInPlace, SealJob, TAG_LEN, open_batch_in_place, seal_batch, seal_batch_in_place,
};
use adit::crypto::secret::Secret;
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};

use ipsec_mb::IpsecMb;

#[path = "../common/bars.rs"]
mod bars;
mod ipsec_mb;
#[path = "../common/output.rs"]
mod output;
mod plot;
#[path = "../common/tiers.rs"]
mod tiers;

/// Those with a kernel of their own, the fastest first.
const TIERS: [&str; 2] = ["avx512", "avx2"];
const BATCHES: [usize; 7] = [1, 4, 8, 16, 32, 64, 128];
const BYTES: [usize; 7] = [64, 128, 256, 512, 1024, 1440, 8900];
const OPS: [&str; 3] = ["seal", "open", "gather"];
const RING: &str = "ring";
const PORTABLE: &str = "chacha20poly1305";
const IPSEC_MB: &str = "ipsec-mb";
const KEY: [u8; 32] = [0x42; 32];
/// IPv4 and TCP with a timestamp.
const HEADER: usize = 52;

struct Row {
    tier: String,
    op: String,
    batch: usize,
    bytes: usize,
    ns: f64,
}

impl Row {
    fn is(&self, tier: &str, op: &str, batch: usize, bytes: usize) -> bool {
        self.tier == tier && self.op == op && self.batch == batch && self.bytes == bytes
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs this as well, without the argument.
    if !env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    if tiers::is_of_one() {
        measure(env::args().any(|arg| arg == "--quick"));
        return Ok(());
    }
    let machine = output::machine();
    println!("{machine}.");
    let folder = output::folder()?;
    let program = ipsec_mb::build(&folder);
    if let Err(reason) = &program {
        println!("{IPSEC_MB}: {reason}");
    }
    let program = program.ok();
    let mut all: Vec<Row> = Vec::new();
    for tier in TIERS {
        match tiers::run(tier, |command| ipsec_mb::offer(command, program.as_deref())) {
            Ok(text) => {
                let rows: Vec<_> = text.lines().filter_map(parse).collect();
                report(tier, &rows);
                // The libraries are measured beside each tier, and are listed once.
                let is_new =
                    |row: &Row| !all.iter().any(|old| old.is(&row.tier, &row.op, row.batch, row.bytes));
                let new: Vec<_> = rows.into_iter().filter(is_new).collect();
                all.extend(new);
            }
            Err(reason) => println!("{tier}: {reason}"),
        }
    }
    let mut csv = String::from("tier,op,batch,bytes,ns\n");
    for Row { tier, op, batch, bytes, ns } in &all {
        writeln!(csv, "{tier},{op},{batch},{bytes},{ns:.1}")?;
    }
    let [raw, picture] = ["aead.csv", "aead.svg"].map(|name| folder.join(name));
    fs::write(&raw, csv)?;
    plot::draw(&all, &format!("{machine}. ns a packet, one core, medians; shorter is better."), &picture)?;
    println!("\n{}\n{}", raw.display(), picture.display());
    Ok(())
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
        rows.iter().find(|row| row.is(tier, op, batch, bytes)).map_or(f64::NAN, |row| row.ns)
    };
    for op in OPS {
        println!("\n{tier}, {op}: ns a packet (times faster than ring) in batches of …");
        print!("{:>6}", "bytes");
        BATCHES.iter().for_each(|batch| print!("{batch:>15}"));
        println!("{:>9}{:>9}{:>9}", "ring", "portable", IPSEC_MB);
        for bytes in BYTES {
            print!("{bytes:>6}");
            for batch in BATCHES {
                let (ours, ring) = (find(tier, op, batch, bytes), find(RING, op, batch, bytes));
                print!("{ours:>8.1} ({:>4.2})", ring / ours);
            }
            let [ring, portable, ipsec_mb] = [RING, PORTABLE, IPSEC_MB].map(|who| find(who, op, 64, bytes));
            println!("{ring:>9.1}{portable:>9.1}{ipsec_mb:>9.1}");
        }
    }
}

/// Measures this process's tier and the libraries, and prints rows.
fn measure(is_quick: bool) {
    let ring = UnboundKey::new(&CHACHA20_POLY1305, &KEY).expect("the key has 32 bytes");
    let mut workers: [(&str, Box<dyn Worker>); 3] = [
        (aead::tier(), Box::new(Key::new(&Secret::new(KEY)))),
        (RING, Box::new(Single(LessSafeKey::new(ring)))),
        (PORTABLE, Box::new(Single(ChaCha20Poly1305::new(&KEY.into())))),
    ];
    let mut ipsec_mb = IpsecMb::start();
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
            for op in OPS {
                if let Some(ipsec_mb) = &mut ipsec_mb {
                    let ns = ipsec_mb.median(op, batch, lab.count(), bytes, turns);
                    println!("{IPSEC_MB},{op},{batch},{bytes},{ns:.2}");
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

    fn count(&self) -> usize {
        self.source.len() / self.bytes
    }

    /// Seals, opens and gathers, and returns ns a packet of each.
    fn turn(&mut self, worker: &mut dyn Worker) -> [f64; 3] {
        let count = self.count();
        let Self { batch, bytes, room, source } = self;
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
