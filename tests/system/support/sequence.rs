//! A sender whose packets are numbered, and who receives them: what was lost, twice or late, and for how long nothing came.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use adit::sys::clock::boottime;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::{Namespace, SOON, pause, wait_until};

/// What every packet carries before its number, and nothing else does.
pub(crate) const CANARY: &[u8; 16] = b"canary-in-clear!";

/// How long packets may be under way when the last was sent.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// Packets from one address to another, or to whoever of several has it.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Vec<Duration>>,
    receivers: Vec<JoinHandle<Vec<(u64, Duration)>>>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) twice: usize,
    pub(crate) late: usize,
    /// When the first of each row of packets that were lost was sent, and the one after the last of them.
    pub(crate) outages: Vec<(Duration, Duration)>,
    /// When the packets that arrived were sent, by [`boottime`].
    pub(crate) arrived: Vec<Duration>,
}

impl Report {
    /// Returns the time from the first packet lost of those sent in this time to the first one after the last such that was not.
    pub(crate) fn outage(&self, time: Range<Duration>) -> Duration {
        let mut within = self.outages.iter().filter(|(begun, end)| *begun < time.end && *end > time.start);
        let Some(first) = within.next() else { return Duration::ZERO };
        let last = within.next_back().unwrap_or(first);
        last.1 - first.0.max(time.start)
    }
}

impl Flow {
    /// Starts to send from an address in a namespace to an address in others, a packet each `interval`.
    #[track_caller]
    pub(crate) fn start(from: (&Namespace, &str), to: (&[&Namespace], &str), interval: Duration) -> Self {
        let bind = |namespace: &Namespace, addr: &str, port: u16| {
            let addr = SocketAddr::new(addr.parse().unwrap(), port);
            namespace.enter(move || UdpSocket::bind(addr)).unwrap_or_else(|error| panic!("{addr}: {error}"))
        };
        let (stop, sent, received) = (Arc::default(), Arc::default(), Arc::default());
        // The same port everywhere: it is the address that tells who has it.
        let mut port = 0;
        let receivers: Vec<_> =
            to.0.iter()
                .map(|namespace| {
                    let socket = bind(namespace, to.1, port);
                    port = socket.local_addr().unwrap().port();
                    // What is not read in time is to wait.
                    set_socket_recv_buffer_size_force(&socket, 4 << 20).unwrap();
                    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                    let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
                    std::thread::spawn(move || receive(&socket, &stop, &received))
                })
                .collect();
        let socket = bind(from.0, from.1, 0);
        let target = SocketAddr::new(to.1.parse().unwrap(), port);
        let theirs = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || send(&socket, target, interval, &theirs.0, &theirs.1));
        Self { stop, sent, received, sender, receivers }
    }

    /// Returns how many packets have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Waits until so many more packets have been sent.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, count: u64) {
        let before = self.sent.load(Relaxed);
        wait_until("further packets", SOON * 3, || self.sent.load(Relaxed) >= before + count);
    }

    /// Waits until a packet arrives that is sent from here on.
    #[track_caller]
    pub(crate) fn wait_for_arrival(&self) {
        let before = self.received();
        wait_until("a packet", SOON, || self.received() > before + 10);
    }

    /// Sends nothing more.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Stops, waits for the packets that are under way, and tells what came of all.
    #[track_caller]
    pub(crate) fn end(self) -> Report {
        self.stop();
        let sent = self.sender.join().unwrap();
        let mut arrivals: Vec<_> =
            self.receivers.into_iter().flat_map(|receiver| receiver.join().unwrap()).collect();
        arrivals.sort_by_key(|(_, moment)| *moment);
        let late = arrivals.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
        let mut is_there = vec![0_usize; sent.len()];
        arrivals.iter().for_each(|(number, _)| is_there[usize::try_from(*number).unwrap()] += 1);
        let (mut outages, mut begun) = (Vec::new(), None);
        for (moment, count) in sent.iter().zip(&is_there) {
            if *count == 0 {
                begun.get_or_insert(*moment);
            } else if let Some(begun) = begun.take() {
                outages.push((begun, *moment));
            }
        }
        Report {
            sent: sent.len(),
            lost: is_there.iter().filter(|count| **count == 0).count(),
            twice: is_there.iter().filter(|count| **count > 1).count(),
            late,
            outages,
            arrived: sent.iter().zip(&is_there).filter(|(_, count)| **count > 0).map(|(at, _)| *at).collect(),
        }
    }
}

/// Sends until it is to stop, and returns when each packet was sent. One that the kernel refuses is lost.
fn send(
    socket: &UdpSocket,
    target: SocketAddr,
    interval: Duration,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Vec<Duration> {
    let mut moments = Vec::new();
    let begun = boottime();
    while !stop.load(Relaxed) {
        let number = u64::try_from(moments.len()).unwrap();
        let mut packet = CANARY.to_vec();
        packet.extend(number.to_be_bytes());
        moments.push(boottime());
        let _ = socket.send_to(&packet, target);
        count.store(number + 1, Relaxed);
        let next = begun + interval * u32::try_from(moments.len()).unwrap();
        pause(next.saturating_sub(boottime()));
    }
    moments
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, count: &AtomicU64) -> Vec<(u64, Duration)> {
    let mut arrivals = Vec::new();
    let mut until = None;
    let mut packet = [0; 64];
    while until.is_none_or(|until| boottime() < until) {
        if let Ok(len) = socket.recv(&mut packet)
            && let Some(number) = packet[..len].strip_prefix(CANARY)
        {
            arrivals.push((u64::from_be_bytes(number.try_into().unwrap()), boottime()));
            count.fetch_add(1, Relaxed);
        }
        if until.is_none() && stop.load(Relaxed) {
            until = Some(boottime() + UNDER_WAY);
        }
    }
    arrivals
}
