//! Does time depend on secrets? A statistical test after dudect, on every tier: `cargo bench --bench timing [-- --quick]`.
//!
//! Each subject is timed on inputs of two classes, drawn at random one after the other, made beforehand and copied to one place, so that
//! nothing but their contents differs. Welch's t-test tells whether the classes have one mean (`welch`). Whether a packet is authentic is
//! public, so the classes of forged packets are both forged, and those of secrets both authentic.
//!
//! | verdict | |
//! |---|---|
//! | `leaks` | \|t\| over 10: time depends on the class, certainly |
//! | `perhaps` | \|t\| over 5: probably; repeat the run on a quiet machine |
//! | `nothing found` | no dependence is seen in so many timings, which is no proof that there is none |
//!
//! Two *controls* leak on purpose: a comparison that ends at the first byte that differs, alone and behind the work of opening a batch. The
//! same statistic must catch them, or the machine is too restless and the run says nothing. The bench fails if a subject leaks or a control
//! does not. It is not part of the tests: a timing decides nothing there. Rows go to `<target>/bench/timing.csv`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]

use std::array;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use adit::crypto::aead::{Key, OpenJob, SealInPlace, TAG_LEN, open_batch_in_place, seal_batch_in_place};
use adit::crypto::random::{Os, Random};
use adit::crypto::secret::{Secret, equal};

#[path = "../common/output.rs"]
#[expect(dead_code, reason = "numbers are written otherwise here")]
mod output;
#[path = "../common/tiers.rs"]
mod tiers;
mod welch;

/// Bytes of text in a packet: a block of ChaCha20, a part of one, and a part of a block of Poly1305.
const BYTES: usize = 100;
const PACKET: usize = BYTES + TAG_LEN;
/// Packets in a batch that a tier's own kernel takes.
const BATCH: usize = 8;
/// Inputs that are made before they are timed.
const CHUNK: usize = 1_000;
/// Comparisons in one timing: one alone is shorter than the clock can tell.
const COMPARISONS: usize = 32;

fn main() -> ExitCode {
    // `cargo test --benches` runs this as well, without the argument.
    if !env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    if tiers::is_of_one() {
        measure(if env::args().any(|arg| arg == "--quick") { 20_000 } else { 200_000 });
        return ExitCode::SUCCESS;
    }
    match report() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("timing bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all tiers; tells whether nothing leaks but the controls.
fn report() -> std::io::Result<bool> {
    println!("{}.\n", output::machine());
    let (mut csv, mut is_good) = (String::from("tier,subject,t,verdict\n"), true);
    for tier in ["avx512", "avx2", "portable"] {
        let text = match tiers::run(tier, |_| {}) {
            Ok(text) => text,
            Err(reason) => {
                println!("{tier}: {reason}\n");
                continue;
            }
        };
        println!("| {tier} | t | verdict |\n|---|---:|---|");
        for line in text.lines() {
            let Some((subject, t)) = line.rsplit_once(',') else { continue };
            let t: f64 = t.parse().map_err(std::io::Error::other)?;
            let verdict = verdict(t);
            let is_control = subject.starts_with("control");
            is_good &= is_control == (verdict == LEAKS);
            println!("| {subject} | {t:.1} | {verdict} |");
            writeln!(csv, "{tier},{subject},{t:.2},{verdict}").map_err(std::io::Error::other)?;
        }
        println!();
    }
    let path = output::folder()?.join("timing.csv");
    fs::write(&path, csv)?;
    println!("rows: {}", path.display());
    Ok(is_good)
}

const LEAKS: &str = "leaks";

fn verdict(t: f64) -> &'static str {
    match t.abs() {
        welch::CERTAIN.. => LEAKS,
        welch::PROBABLE.. => "perhaps",
        _ if t.is_nan() => "too few timings",
        _ => "nothing found",
    }
}

/// Takes `count` timings of each subject and prints its name and t.
fn measure(count: usize) {
    let out = |name: String, t: f64| println!("{name},{t}");
    out("control: comparison that ends early".into(), take(count, &mut Comparison::new(leaky)));
    out(
        "control: open a batch and compare tags so".into(),
        take(count, &mut Forged::<BATCH>::new(open_leaky)),
    );
    out("compare 16 bytes: first or last differs".into(), take(count, &mut Comparison::new(equal)));
    out(
        format!("open {BATCH}: first or last byte of the tags forged"),
        take(count, &mut Forged::<BATCH>::new(open)),
    );
    out("open 1: first or last byte of the tag forged".into(), take(count, &mut Forged::<1>::new(open)));
    out(
        format!("open {BATCH}: key and text fixed or random"),
        take(count, &mut Secrets::<BATCH>::new(false)),
    );
    out("open 1: key and text fixed or random".into(), take(count, &mut Secrets::<1>::new(false)));
    out(format!("seal {BATCH}: key and text fixed or random"), take(count, &mut Secrets::<BATCH>::new(true)));
    out("seal 1: key and text fixed or random".into(), take(count, &mut Secrets::<1>::new(true)));
}

/// What is timed.
trait Subject {
    type Input;
    /// Makes an input of one of the two classes.
    fn make(&mut self, is_second: bool) -> Self::Input;
    /// Copies it to where it is worked on.
    fn load(&mut self, input: &Self::Input);
    /// Does what is timed.
    fn work(&mut self);
}

/// Returns t of so many timings.
fn take<S: Subject>(count: usize, subject: &mut S) -> f64 {
    let mut classes = [Vec::with_capacity(count), Vec::with_capacity(count)];
    let mut coins = [0; CHUNK];
    // The first chunk warms up.
    for is_warm in (0..count.div_ceil(CHUNK) + 1).map(|chunk| chunk > 0) {
        Os.fill(&mut coins);
        let flips = coins.iter().map(|coin| coin % 2 == 1);
        let inputs: Vec<_> = flips.map(|is_second| (is_second, subject.make(is_second))).collect();
        for (is_second, input) in &inputs {
            subject.load(input);
            let ns = timed(|| subject.work());
            if is_warm {
                classes[usize::from(*is_second)].push(ns);
            }
        }
    }
    welch::t(&classes)
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn timed(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64
}

/// Compares 16 bytes with others of which one differs: the first or the last.
struct Comparison {
    equal: fn(&[u8], &[u8]) -> bool,
    expected: [u8; TAG_LEN],
    given: [u8; TAG_LEN],
}

impl Comparison {
    fn new(equal: fn(&[u8], &[u8]) -> bool) -> Self {
        Self { equal, expected: [0x5a; TAG_LEN], given: [0; TAG_LEN] }
    }
}

impl Subject for Comparison {
    type Input = [u8; TAG_LEN];

    fn make(&mut self, is_second: bool) -> Self::Input {
        let mut given = self.expected;
        given[if is_second { TAG_LEN - 1 } else { 0 }] ^= 0x80;
        given
    }

    fn load(&mut self, input: &Self::Input) {
        self.given = *input;
    }

    fn work(&mut self) {
        for _ in 0..COMPARISONS {
            black_box((self.equal)(black_box(&self.expected), black_box(&self.given)));
        }
    }
}

/// What constant time forbids.
#[inline(never)]
fn leaky(a: &[u8], b: &[u8]) -> bool {
    for (a, b) in a.iter().zip(b) {
        // Seen as a branch by the compiler, which could compare words.
        if black_box(a) != black_box(b) {
            return false;
        }
    }
    true
}

type Packets<const N: usize> = [[u8; PACKET]; N];

/// Opens packets; the genuine ones are there for who leaks.
type Open<const N: usize> = fn(&Key, &Packets<N>, &mut Packets<N>);

/// Opens packets whose tags are forged in their first byte or in their last.
struct Forged<const N: usize> {
    open: Open<N>,
    key: Key,
    genuine: Packets<N>,
    packets: Packets<N>,
}

impl<const N: usize> Forged<N> {
    fn new(open: Open<N>) -> Self {
        let key = Key::new(&Secret::new([0x42; 32]));
        let mut genuine = [[7; PACKET]; N];
        seal(&key, &mut genuine);
        Self { open, key, genuine, packets: genuine }
    }
}

impl<const N: usize> Subject for Forged<N> {
    type Input = Packets<N>;

    fn make(&mut self, is_second: bool) -> Self::Input {
        let mut packets = self.genuine;
        let at = if is_second { PACKET - 1 } else { BYTES };
        packets.iter_mut().for_each(|packet| packet[at] ^= 0x80);
        packets
    }

    fn load(&mut self, input: &Self::Input) {
        self.packets = *input;
    }

    fn work(&mut self) {
        (self.open)(&self.key, &self.genuine, &mut self.packets);
    }
}

fn open<const N: usize>(key: &Key, _: &Packets<N>, packets: &mut Packets<N>) {
    let jobs = open_jobs(key, packets);
    assert!(jobs.iter().all(|job| !job.ok), "they are forged");
}

/// Opens what is genuine, and finds out what is forged by a comparison that leaks.
fn open_leaky<const N: usize>(key: &Key, genuine: &Packets<N>, packets: &mut Packets<N>) {
    for (genuine, packet) in genuine.iter().zip(&*packets) {
        assert!(!leaky(&genuine[BYTES..], &packet[BYTES..]), "they are forged");
    }
    *packets = *genuine;
    let jobs = open_jobs(key, packets);
    assert!(jobs.iter().all(|job| job.ok), "they are authentic");
}

fn open_jobs<'a, const N: usize>(key: &'a Key, packets: &'a mut Packets<N>) -> [OpenJob<'a>; N] {
    let mut number = 0..;
    let mut jobs = packets.each_mut().map(|packet| {
        let counter = number.next().expect("it is endless");
        OpenJob { key, counter, buf: packet, ok: false }
    });
    open_batch_in_place(black_box(&mut jobs));
    jobs
}

fn seal<const N: usize>(key: &Key, packets: &mut Packets<N>) {
    let mut number = 0..;
    let mut jobs = packets.each_mut().map(|packet| {
        let counter = number.next().expect("it is endless");
        SealInPlace { key, counter, buf: packet }
    });
    seal_batch_in_place(black_box(&mut jobs));
}

/// Seals or opens authentic packets; key and text are always the same, or random.
struct Secrets<const N: usize> {
    is_seal: bool,
    key: Key,
    packets: Packets<N>,
}

impl<const N: usize> Secrets<N> {
    fn new(is_seal: bool) -> Self {
        Self { is_seal, key: Key::new(&Secret::new([0; 32])), packets: [[0; PACKET]; N] }
    }
}

impl<const N: usize> Subject for Secrets<N> {
    type Input = ([u8; 32], Packets<N>);

    fn make(&mut self, is_second: bool) -> Self::Input {
        let (mut key, mut packets) = ([0; 32], [[0; PACKET]; N]);
        // Also drawn where it is not used: whoever is timed next finds the same caches.
        let mut random = ([0; 32], array::from_fn(|_| [0; PACKET]));
        Os.fill(&mut random.0);
        random.1.iter_mut().for_each(|packet| Os.fill(&mut packet[..BYTES]));
        if is_second {
            (key, packets) = random;
        }
        if !self.is_seal {
            seal(&Key::new(&Secret::new(key)), &mut packets);
        }
        (key, packets)
    }

    fn load(&mut self, (key, packets): &Self::Input) {
        self.key = Key::new(&Secret::new(*key));
        self.packets = *packets;
    }

    fn work(&mut self) {
        if self.is_seal {
            seal(&self.key, &mut self.packets);
        } else {
            let jobs = open_jobs(&self.key, &mut self.packets);
            assert!(jobs.iter().all(|job| job.ok), "they are authentic");
        }
    }
}
