//! A generator of numbered UDP datagrams, their receiver, and the search for the highest rate that arrives.
//!
//! Every datagram passes the socket calls on its own: no segmentation offload, no batch. The receiver looks every half millisecond and
//! has a large buffer, so that what is lost is lost on the way.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;
use std::time::Duration;

use adit::sys::clock::monotonic;

use crate::lab::{Lab, Usage};
use crate::support::pause;

/// Number of the run and number of the datagram: the least payload.
const HEADER_LEN: usize = 16;
/// Greatest payload.
const MAX_LEN: usize = 1_472;
/// What the receiver's socket holds.
const BUFFER_BYTES: usize = 32 << 20;
/// How often the receiver looks.
const LOOK: Duration = Duration::from_micros(500);
/// How long nothing must come after the last datagram was sent.
const QUIET: Duration = Duration::from_millis(100);
/// What the sender catches up on after it was kept from running; beyond that the schedule moves.
const CATCH_UP: Duration = Duration::from_millis(1);
/// A rate holds if at most one in so many datagrams is lost.
const HELD_LOSS: u64 = 100;
/// A rate holds if one of so many tries holds: a single burst must not decide.
const TRIES: u32 = 3;

/// A pair of sockets, one in each namespace.
pub(crate) struct Flow {
    sender: UdpSocket,
    receiver: UdpSocket,
    runs: u64,
}

/// What became of one run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivered {
    sent: u64,
    pub(crate) received: u64,
    /// Datagrams that came after one that was sent later.
    pub(crate) reordered: u64,
    /// Payload.
    pub(crate) bytes: u64,
    time: Duration,
}

impl Delivered {
    /// Returns datagrams received a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }

    /// Returns the same in whole ones.
    pub(crate) fn rate(&self) -> u64 {
        self.received * 1_000_000 / micros(self.time)
    }

    /// Returns payload received.
    pub(crate) fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.time.as_secs_f64()
    }

    /// Returns the part that was lost.
    pub(crate) fn loss_percent(&self) -> f64 {
        100.0 * (1.0 - self.received as f64 / self.sent.max(1) as f64)
    }

    fn held(&self) -> bool {
        self.received > 0 && self.sent.saturating_sub(self.received) * HELD_LOSS <= self.sent
    }
}

impl Flow {
    /// Opens the sockets.
    pub(crate) fn open(lab: &Lab) -> Self {
        let bind = |addr: &'static str| move || UdpSocket::bind((addr, 0)).expect("the address is ours");
        let sender = lab.a().enter(bind(lab.inner(0)));
        let receiver = lab.b().enter(bind(lab.inner(1)));
        let to: SocketAddr = receiver.local_addr().expect("it is bound");
        sender.connect(to).expect("there is a route");
        receiver.set_nonblocking(true).expect("any socket may");
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, BUFFER_BYTES)
            .expect("the bench has privileges");
        Self { sender, receiver, runs: 0 }
    }

    /// Sends datagrams with payloads of `sizes` in turn, so many a second or as fast as it goes, for `time`.
    pub(crate) fn send(&mut self, sizes: &[usize], rate: Option<u64>, time: Duration) -> Delivered {
        self.runs += 1;
        let (run, done) = (self.runs, AtomicBool::new(false));
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&self.receiver, run, &done));
            let (sent, took) = send(&self.sender, run, sizes, rate, time);
            done.store(true, Release);
            let received = receiver.join().expect("the receiver does not panic");
            Delivered { sent, time: took, ..received }
        })
    }

    /// Returns the best run at the highest rate that holds, and what it cost.
    pub(crate) fn search(&mut self, lab: &Lab, sizes: &[usize], time: Duration) -> (Delivered, Usage) {
        let mut attempt = |rate| {
            let before = lab.usage();
            let delivered = self.send(sizes, rate, time);
            (delivered, lab.usage() - before)
        };
        let flood = attempt(None);
        if flood.0.held() {
            return flood;
        }
        let mut too_fast = flood.0.sent * 1_000_000 / micros(flood.0.time);
        let mut slow = too_fast / 64;
        let mut best: Option<(Delivered, Usage)> = None;
        while too_fast - slow > slow / 20 {
            let rate = (too_fast * slow).isqrt();
            match (0..TRIES).map(|_| attempt(Some(rate))).find(|(delivered, _)| delivered.held()) {
                Some(held) => {
                    slow = rate;
                    if best.is_none_or(|best| best.0.per_second() < held.0.per_second()) {
                        best = Some(held);
                    }
                }
                None => too_fast = rate,
            }
        }
        best.expect("a sixty-fourth of a flood arrives")
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("a run is short").max(1)
}

/// Returns how many datagrams were sent, and in which time.
fn send(socket: &UdpSocket, run: u64, sizes: &[usize], rate: Option<u64>, time: Duration) -> (u64, Duration) {
    let mut payload = [0x5a; MAX_LEN];
    payload[..8].copy_from_slice(&run.to_be_bytes());
    let start = monotonic();
    let (mut from, mut sent, mut due) = (start, 0, u64::MAX);
    // Datagrams that were due before `from`.
    let mut before = 0;
    loop {
        let now = monotonic();
        if now - start >= time {
            return (sent, now - start);
        }
        if let Some(rate) = rate {
            due = before + micros(now - from) * rate / 1_000_000;
            let most = (micros(CATCH_UP) * rate / 1_000_000).max(1);
            if due > sent + most {
                // Kept from running: start anew from here.
                (from, before) = (now, sent + most);
                due = before;
            }
            if due <= sent {
                pause(Duration::from_nanos(1_000_000_000 / rate).min(LOOK));
                continue;
            }
        }
        // Not more than a few between two looks at the clock.
        for _ in 0..(due - sent).min(16) {
            let len = sizes[usize::try_from(sent).expect("64 bits") % sizes.len()].max(HEADER_LEN);
            payload[8..HEADER_LEN].copy_from_slice(&sent.to_be_bytes());
            // What the device has no room for is lost, and seen as that by the receiver.
            let _ = socket.send(&payload[..len]);
            sent += 1;
        }
    }
}

/// Counts the datagrams of `run` until all are there that come.
fn receive(socket: &UdpSocket, run: u64, done: &AtomicBool) -> Delivered {
    let mut delivered = Delivered::default();
    let mut payload = [0; MAX_LEN];
    let mut next = 0;
    let mut last = monotonic();
    loop {
        let was_done = done.load(Acquire);
        while let Ok(len) = socket.recv(&mut payload) {
            let [of, number] = [0, 8].map(|at| {
                let bytes = payload[at..].first_chunk().expect("the buffer is longer");
                u64::from_be_bytes(*bytes)
            });
            if of != run || len < HEADER_LEN {
                continue;
            }
            last = monotonic();
            delivered.received += 1;
            delivered.bytes += len as u64;
            if number < next {
                delivered.reordered += 1;
            }
            next = next.max(number + 1);
        }
        if was_done && monotonic() - last > QUIET {
            return delivered;
        }
        pause(LOOK);
    }
}
