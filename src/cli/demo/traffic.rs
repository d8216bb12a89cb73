//! Real TCP and UDP between the pods, of bytes that can be recognised.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lab::Lab;
use crate::crypto::random::{Os, Random};
use crate::sys::{clock, netns};

/// What pods send is this many random bytes again and again, so that every packet of some length holds all of them.
pub(super) const PATTERN_LEN: usize = 64;

/// Random bytes.
pub(super) type Pattern = [u8; PATTERN_LEN];

const TCP_PORT: u16 = 5001;
const UDP_PORT: u16 = 5002;
const UDP_LEN: usize = 1024;
const BLOCK: usize = 64 * PATTERN_LEN;

/// A write that takes longer than this looks whether it is time to stop.
const PATIENCE: Duration = Duration::from_millis(200);

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// About 10 Mbit/s a connection.
    Slow,
    /// As fast as it goes; UDP stays slow, as nothing would tell it to slow down.
    Full,
}

/// Returns new random bytes.
pub(super) fn pattern() -> Pattern {
    let mut pattern = [0; PATTERN_LEN];
    Os.fill(&mut pattern);
    pattern
}

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    tcp_bytes: AtomicU64,
    udp_sent: AtomicU64,
    udp_received: AtomicU64,
    corrupt: AtomicU64,
}

/// What has arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    /// Bytes over TCP.
    pub(super) tcp_bytes: u64,
    /// Datagrams sent.
    pub(super) udp_sent: u64,
    /// Datagrams received.
    pub(super) udp_received: u64,
    /// Pieces that were not what was sent.
    pub(super) corrupt: u64,
    /// How long it took.
    pub(super) time: Duration,
}

/// Connections between all pods, in both directions.
pub(super) struct Traffic {
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
    start: Duration,
}

impl Traffic {
    /// Starts servers in all pods, then clients.
    pub(super) fn start(lab: &Lab, pattern: &Pattern, pace: Pace) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let mut this = Self { counters, threads: Vec::new(), start: clock::boottime() };
        for node in &lab.nodes {
            let [v4, v6] = node.pod_addrs();
            let (tcp, udp) = netns::run_in(&node.pod, || {
                let tcp = TcpListener::bind(SocketAddr::new(v4, TCP_PORT))?;
                tcp.set_nonblocking(true)?;
                let udp = UdpSocket::bind(SocketAddr::new(v6, UDP_PORT))?;
                udp.set_read_timeout(Some(PATIENCE))?;
                Ok((tcp, udp))
            })?;
            let others = lab.nodes.len() - 1;
            this.spawn(*pattern, move |counters, pattern| accept(&tcp, others, pattern, counters));
            this.spawn(*pattern, move |counters, pattern| receive(&udp, &pattern, counters));
        }
        for node in &lab.nodes {
            for other in lab.nodes.iter().filter(|other| other.number != node.number) {
                let [v4, v6] = other.pod_addrs();
                let (tcp, udp) = netns::run_in(&node.pod, || {
                    let tcp =
                        TcpStream::connect_timeout(&SocketAddr::new(v4, TCP_PORT), Duration::from_secs(10))?;
                    tcp.set_write_timeout(Some(PATIENCE))?;
                    let udp = UdpSocket::bind("[::]:0")?;
                    udp.connect(SocketAddr::new(v6, UDP_PORT))?;
                    Ok((tcp, udp))
                })?;
                this.spawn(*pattern, move |counters, pattern| stream(tcp, &pattern, pace, counters));
                this.spawn(*pattern, move |counters, pattern| send(&udp, &pattern, counters));
            }
        }
        this.start = clock::boottime();
        Ok(this)
    }

    fn spawn(&mut self, pattern: Pattern, run: impl FnOnce(&Counters, Pattern) + Send + 'static) {
        let counters = Arc::clone(&self.counters);
        self.threads.push(std::thread::spawn(move || run(&counters, pattern)));
    }

    /// Tells whether something has arrived over both protocols.
    pub(super) fn flows(&self) -> bool {
        self.counters.tcp_bytes.load(Relaxed) > 0 && self.counters.udp_received.load(Relaxed) > 0
    }

    /// Ends all connections and returns what has arrived.
    pub(super) fn stop(mut self) -> Totals {
        let time = clock::boottime().saturating_sub(self.start);
        self.end();
        let counters = &self.counters;
        Totals {
            tcp_bytes: counters.tcp_bytes.load(Relaxed),
            udp_sent: counters.udp_sent.load(Relaxed),
            udp_received: counters.udp_received.load(Relaxed),
            corrupt: counters.corrupt.load(Relaxed),
            time,
        }
    }

    fn end(&mut self) {
        self.counters.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &TcpListener, streams: usize, pattern: Pattern, counters: &Counters) {
    std::thread::scope(|scope| {
        let mut accepted = 0;
        while accepted < streams && !counters.stop.load(Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    accepted += 1;
                    scope.spawn(move || read(stream, &pattern, counters));
                }
                Err(_) => pause(Duration::from_millis(10)),
            }
        }
    });
}

fn read(mut stream: TcpStream, pattern: &Pattern, counters: &Counters) {
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE))).is_err() {
        return;
    }
    while !counters.stop.load(Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => {
                counters.corrupt.fetch_add(u64::from(!is_pattern(&buffer[..len], pattern, at)), Relaxed);
                counters.tcp_bytes.fetch_add(len as u64, Relaxed);
                at = (at + len) % PATTERN_LEN;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Tells whether `bytes` continue the repeated pattern at `at`.
fn is_pattern(bytes: &[u8], pattern: &Pattern, at: usize) -> bool {
    let head = bytes.len().min(PATTERN_LEN - at);
    let (head, rest) = bytes.split_at(head);
    pattern[at..].starts_with(head) && rest.chunks(PATTERN_LEN).all(|chunk| pattern.starts_with(chunk))
}

fn stream(mut tcp: TcpStream, pattern: &Pattern, pace: Pace, counters: &Counters) {
    let block = pattern.repeat(BLOCK / PATTERN_LEN);
    let mut at = 0;
    while !counters.stop.load(Relaxed) {
        match tcp.write(&block[at..]) {
            Ok(written) => at = (at + written) % BLOCK,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if pace == Pace::Slow {
            pause(Duration::from_millis(3));
        }
    }
}

fn send(udp: &UdpSocket, pattern: &Pattern, counters: &Counters) {
    let datagram = pattern.repeat(UDP_LEN / PATTERN_LEN);
    while !counters.stop.load(Relaxed) {
        if udp.send(&datagram).is_ok() {
            counters.udp_sent.fetch_add(1, Relaxed);
        }
        pause(Duration::from_millis(2));
    }
}

fn receive(udp: &UdpSocket, pattern: &Pattern, counters: &Counters) {
    let mut buffer = [0; 2048];
    while !counters.stop.load(Relaxed) {
        if let Ok(len) = udp.recv(&mut buffer) {
            let is_whole = len == UDP_LEN && is_pattern(&buffer[..len], pattern, 0);
            counters.corrupt.fetch_add(u64::from(!is_whole), Relaxed);
            counters.udp_received.fetch_add(1, Relaxed);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a generator that paces itself, not something that is waited for"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
