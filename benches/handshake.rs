//! Handshakes per second and core of a responder, beside what their cryptography alone allows: `cargo bench --bench handshake [-- --quick]`.
//!
//! | row | the responder | bound |
//! |---|---|---|
//! | complete | takes the initiation of a peer, makes the response and the session, takes the packet that confirms it | three shared secrets and one public key |
//! | unknown key | refuses an initiation with a valid mac1 from someone who is not a peer | one shared secret |
//! | bad mac1 | refuses an initiation from someone who does not know its public key | one BLAKE2s of what mac1 covers, keyed |
//!
//! One thread, no sockets: what the control thread does with a message that was received, until the answer could be sent. Time is that of
//! the processor. The work and its bound take turns within one loop; the ratio is the median of the turns' ratios, so that it holds also on a machine
//! that is not quiet, though caches that others use as well cost the work more than its bound.
//! Rows go to `<target>/bench/handshake.csv`.

#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit::config::{Edit, PeerEdit};
use adit::crypto::blake2s::{hash, mac};
use adit::crypto::random::Os;
use adit::crypto::secret::Secret;
use adit::crypto::x25519::{PrivateKey, PublicKey, dh};
use adit::wireguard::cookie::Generator;
use adit::wireguard::dropped::{Dropped, Drops};
use adit::wireguard::endpoint::Endpoint;
use adit::wireguard::interface::{Interface, View};
use adit::wireguard::keypair::{Keypair, Role};
use adit::wireguard::messages::{DataHeader, INITIATION_LEN, RESPONSE_LEN};
use adit::wireguard::noise::{CreatedInitiation, Static, create_initiation};
use adit::wireguard::tai64n::Timestamp;
use adit::wireguard::time::{Instant, Moment};
use rustix::time::{ClockId, clock_gettime};

#[path = "common/output.rs"]
#[expect(dead_code, reason = "numbers are written otherwise here")]
mod output;

/// Peers of the responder. Each shakes hands once a turn.
const PEERS: usize = 64;
/// Messages that are refused in a turn.
const REFUSED: usize = 16;
/// Time between two turns: a peer may begin a handshake every 20 ms.
const STEP: Duration = Duration::from_millis(100);

struct Row {
    name: &'static str,
    /// Nanoseconds, median.
    ns: f64,
    bound: f64,
    /// Of the bound's rate, median.
    ratio: f64,
    /// What is aimed at.
    wanted: f64,
}

fn main() {
    // `cargo test --benches` runs this as well, without the argument.
    if !env::args().any(|arg| arg == "--bench") {
        return;
    }
    let turns = if env::args().any(|arg| arg == "--quick") { 31 } else { 151 };
    let machine = output::machine();
    let mut lab = Lab::new();
    let mut times: [Vec<[f64; 2]>; 3] = Default::default();
    for _ in 0..turns {
        times.iter_mut().zip(lab.turn()).for_each(|(times, pair)| times.push(pair));
    }
    let names = [("complete", 0.85), ("unknown key", 0.8), ("bad mac1", 0.8)];
    let rows = names.into_iter().zip(times).map(|((name, wanted), times)| {
        let of = |what: fn(&[f64; 2]) -> f64| median(times.iter().map(what).collect());
        let (ns, bound) = (of(|[ns, _]| *ns), of(|[_, bound]| *bound));
        Row { name, ns, bound, ratio: of(|[ns, bound]| bound / ns), wanted }
    });
    println!("{machine}.\n");
    println!("| responder, one core | µs | a second | bound, µs | of the bound's rate | aim |");
    println!("|---|---:|---:|---:|---:|---:|");
    let mut csv = String::from("row,ns,bound_ns,ratio\n");
    for Row { name, ns, bound, ratio, wanted } in rows {
        let (us, bound_us, rate) = (ns / 1e3, bound / 1e3, 1e9 / ns);
        println!("| {name} | {us:.2} | {rate:.0} | {bound_us:.2} | {ratio:.2} | ≥ {wanted} |");
        writeln!(csv, "{name},{ns:.1},{bound:.1},{ratio:.3}").expect("a string takes all");
    }
    let path = output::folder().expect("the target folder can be written to").join("handshake.csv");
    fs::write(&path, csv).expect("the target folder can be written to");
    println!("\nrows: {}", path.display());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The responder, and its correspondents, whose work is not timed.
struct Lab {
    responder: Interface,
    public: PublicKey,
    view: View,
    peers: Vec<Initiator>,
    stranger: Initiator,
    moment: Moment,
    from: Endpoint,
}

struct Initiator {
    keys: Static,
    static_static: Secret<32>,
    macs: Generator,
}

impl Initiator {
    fn new(responder: &PublicKey) -> Self {
        let keys = Static::new(PrivateKey::generate(&mut Os));
        let static_static = keys.static_static(responder).expect("a key that was made is of no low order");
        Self { keys, static_static, macs: Generator::new(responder) }
    }

    fn initiate(
        &mut self,
        responder: &PublicKey,
        moment: Moment,
        sender: u32,
    ) -> (CreatedInitiation, [u8; INITIATION_LEN]) {
        let ephemeral = PrivateKey::generate(&mut Os);
        let time = Timestamp::at(moment.unix);
        let created = create_initiation(&self.keys, responder, &self.static_static, ephemeral, time, sender);
        let (created, mut message) = created.expect("a key that was made is of no low order");
        self.macs.add_macs(&mut message, moment.now);
        (created, message)
    }

    /// Takes the response, and returns the packet that confirms the session.
    fn confirm(&self, created: &CreatedInitiation, response: &[u8], moment: Moment, sender: u32) -> Vec<u8> {
        let response: &[u8; RESPONSE_LEN] = response.try_into().expect("it is a response");
        let psk = Secret::default();
        let (keys, remote) = created.consume_response(&self.keys, &psk, response).expect("it is authentic");
        Keypair::new(&keys, Role::Initiator, sender, remote, moment.now).seal_to_vec(0, &[], 0)
    }
}

impl Lab {
    fn new() -> Self {
        let private = PrivateKey::generate(&mut Os);
        let public = private.public();
        let peers: Vec<_> = (0..PEERS).map(|_| Initiator::new(&public)).collect();
        let mut responder = Interface::new(Arc::new(Drops::default()), Box::new(Os));
        let moment = Moment { now: Instant::from_nanos(1_000_000_000), unix: Duration::from_secs(1) };
        let edits: Vec<_> = [Edit::PrivateKey(Some(private))]
            .into_iter()
            .chain(peers.iter().map(|peer| Edit::Peer(PeerEdit::new(*peer.keys.public()))))
            .collect();
        responder.apply(&edits, moment).expect("few peers");
        responder.up(moment);
        let view = responder.view();
        let from = Endpoint::new(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 51820));
        Self { responder, public, view, peers, stranger: Initiator::new(&public), moment, from }
    }

    /// Returns ns of each row and of its bound.
    fn turn(&mut self) -> [[f64; 2]; 3] {
        self.moment = Moment { now: self.moment.now + STEP, unix: self.moment.unix + STEP };
        [self.complete(), self.unknown(), self.bad_mac1()]
    }

    fn complete(&mut self) -> [f64; 2] {
        let Self { public, peers, moment, .. } = self;
        let sent = peers.iter_mut().zip(0..).map(|(peer, sender)| peer.initiate(public, *moment, sender));
        let (created, mut messages): (Vec<_>, Vec<_>) = sent.unzip();
        let mut responses = Vec::with_capacity(PEERS);
        let first = timed(|| {
            for message in &mut messages {
                self.take(message).expect("it is authentic");
                let response = self.responder.poll_transmit().expect("it is answered");
                responses.push(response.datagram);
                self.see();
            }
        });
        let confirm = |((created, response), sender): ((&CreatedInitiation, &Vec<u8>), u32)| {
            self.peers[sender as usize].confirm(created, response, self.moment, sender)
        };
        let mut packets: Vec<_> = created.iter().zip(&responses).zip(0..).map(confirm).collect();
        let second = timed(|| {
            for packet in &mut packets {
                self.open(packet);
                self.see();
            }
            self.responder.handle_timeout(self.moment);
        });
        let (private, public) = (PrivateKey::generate(&mut Os), &self.public);
        let bound = timed(|| {
            for _ in 0..PEERS {
                for _ in 0..3 {
                    black_box(dh(black_box(&private), black_box(public)));
                }
                black_box(black_box(&private).public());
            }
        });
        [(first + second) / PEERS as f64, bound / PEERS as f64]
    }

    fn unknown(&mut self) -> [f64; 2] {
        let mut messages: Vec<_> =
            (0..REFUSED).map(|_| self.stranger.initiate(&self.public, self.moment, 7).1).collect();
        let ns = timed(|| {
            for message in &mut messages {
                assert_eq!(self.take(message), Err(Dropped::BadInitiation));
            }
        });
        let (private, public) = (PrivateKey::generate(&mut Os), &self.public);
        let bound = timed(|| {
            for _ in 0..REFUSED {
                black_box(dh(black_box(&private), black_box(public)));
            }
        });
        [ns / REFUSED as f64, bound / REFUSED as f64]
    }

    fn bad_mac1(&mut self) -> [f64; 2] {
        // More of them: each is short.
        const TIMES: usize = 32;
        let (_, mut message) = self.stranger.initiate(&self.public, self.moment, 7);
        message[116] ^= 1;
        let mut messages = vec![message; REFUSED];
        let ns = timed(|| {
            for message in (0..TIMES).flat_map(|_| 0..REFUSED).map(black_box) {
                assert_eq!(self.take(&mut messages[message]), Err(Dropped::BadMac1));
            }
        });
        let key = hash(&[b"mac1----", self.public.as_bytes()]);
        let bound = timed(|| {
            for message in (0..TIMES).flat_map(|_| 0..REFUSED) {
                black_box(mac(black_box(&key), &[black_box(&messages[message][..116])]));
            }
        });
        let count = (TIMES * REFUSED) as f64;
        [ns / count, bound / count]
    }

    fn take(&mut self, message: &mut [u8]) -> Result<(), Dropped> {
        self.responder.handle_handshake(message, self.from, 0, self.moment)
    }

    /// Opens the first packet of a session, as a worker does, and lets the control thread do what the peer asks for.
    fn open(&mut self, packet: &mut [u8]) {
        let header = DataHeader::parse(packet).expect("it is a data message");
        let entry = self.view.session(header.receiver).expect("there is a session");
        let keypair = entry.keypair().expect("there is a session");
        let len = keypair.open(header, packet, self.moment.now).expect("it is authentic");
        if entry.peer().opened(keypair, len > 0, self.from, self.moment.now) {
            self.responder.handle_asked(entry.peer(), self.moment);
        }
    }

    /// Shows the data path what has changed, as the control thread does after every message.
    fn see(&mut self) {
        if let Some(view) = self.responder.poll_view() {
            self.view = view;
        }
    }
}

/// Returns the ns of the processor that `work` took: a turn is long enough for the system to let others run meanwhile.
fn timed(work: impl FnOnce()) -> f64 {
    let begin = processor();
    work();
    (processor() - begin).as_nanos() as f64
}

fn processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.try_into().expect("it does not run backwards")
}
