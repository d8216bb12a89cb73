//! The network between the nodes, and the clock.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::node::{Node, Outbox, Outgoing};
use super::random::Seeded;
use crate::config::Edit;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::time::{Instant, Moment};

/// What the network does to datagrams. All chances are in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Lost on the way.
    pub loss: u16,
    /// Delivered twice.
    pub duplicate: u16,
    /// Held back by up to ten times the latency, so that others overtake.
    pub reorder: u16,
    /// Marked as having met congestion, if it is ECN-capable.
    pub mark: u16,
    /// The time a datagram takes.
    pub latency: Duration,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { loss: 0, duplicate: 0, reorder: 0, mark: 0, latency: Duration::from_millis(5) }
    }
}

/// A datagram as it was sent, before the network did anything to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Instant,
    /// By which node.
    pub from: usize,
    /// Where to.
    pub to: SocketAddr,
    /// The outer DS field.
    pub ds: u8,
    /// The UDP payload.
    pub datagram: Vec<u8>,
}

/// A translator in front of one node: others see its address and a port that changes when the node was silent for too long.
#[derive(Clone, Debug)]
pub struct Nat {
    addr: IpAddr,
    idle: Duration,
    port: u16,
    last: Instant,
}

struct Arrival {
    to: SocketAddr,
    from: SocketAddr,
    ds: u8,
    datagram: Vec<u8>,
}

/// Nodes, network and clock.
pub struct Sim {
    /// The nodes, by number.
    pub nodes: Vec<Node>,
    /// What the network does.
    pub conditions: Conditions,
    now: Instant,
    random: Seeded,
    seed: u64,
    on_the_way: BTreeMap<(Instant, u64), Arrival>,
    sent: u64,
    log: Vec<Record>,
    nats: HashMap<usize, Nat>,
    asleep: HashMap<usize, Instant>,
}

impl Sim {
    /// Returns a network without nodes.
    pub fn new(seed: u64) -> Self {
        Self {
            nodes: Vec::new(),
            conditions: Conditions::default(),
            // Not zero: nothing may depend on the clock's beginning.
            now: Instant::from_nanos(1_000_000_000_000),
            random: Seeded::new(seed),
            seed,
            on_the_way: BTreeMap::new(),
            sent: 0,
            log: Vec::new(),
            nats: HashMap::new(),
            asleep: HashMap::new(),
        }
    }

    /// Returns a network of two nodes that know each other.
    pub fn pair(seed: u64) -> Self {
        let mut sim = Self::new(seed);
        let (a, b) = (sim.add_node(), sim.add_node());
        sim.introduce(a, b);
        sim
    }

    /// Adds a node and returns its number.
    pub fn add_node(&mut self) -> usize {
        let number = self.nodes.len();
        let octet = u8::try_from(number + 1).expect("at most 255 nodes");
        self.nodes.push(Node::new(octet, self.seed.wrapping_mul(1009).wrapping_add(u64::from(octet))));
        number
    }

    /// Makes two nodes peers of each other.
    pub fn introduce(&mut self, a: usize, b: usize) {
        for (one, other) in [(a, b), (b, a)] {
            let edit = Edit::Peer(self.nodes[other].as_peer());
            self.apply(one, &[edit]);
        }
    }

    /// Applies edits to a node.
    pub fn apply(&mut self, node: usize, edits: &[Edit]) {
        self.on(node, |node, moment, out| node.apply(edits, moment, out));
    }

    /// Brings a node's device up.
    pub fn up(&mut self, node: usize) {
        self.on(node, |node, moment, out| node.up(moment, out));
    }

    /// Takes a node's device down.
    pub fn down(&mut self, node: usize) {
        self.on(node, |node, _, out| node.down(out));
    }

    /// Sends a packet of `len` bytes from the inner address of `from` to that of `to`.
    pub fn send(&mut self, from: usize, to: usize, len: usize) {
        let packet = self.packet(from, to, len);
        self.send_packet(from, &packet);
    }

    /// Sends `packet` from a node.
    pub fn send_packet(&mut self, from: usize, packet: &[u8]) {
        self.on(from, |node, moment, out| node.send(packet, moment, out));
    }

    /// Returns an IPv4 packet of `len` bytes between the inner addresses of two nodes.
    ///
    /// # Panics
    /// If `len` is less than 20 or more than 65535, or an inner address is not IPv4.
    pub fn packet(&self, from: usize, to: usize, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(len).expect("an IPv4 packet").to_be_bytes());
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.nodes[from].inner, self.nodes[to].inner)
        else {
            panic!("inner addresses are IPv4")
        };
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&destination.octets());
        packet
    }

    /// Hands `datagram` to a node as if it came from `from`.
    pub fn inject(&mut self, node: usize, from: SocketAddr, datagram: &[u8]) {
        let from = Endpoint::new(from);
        self.on(node, |node, moment, out| node.receive(datagram.to_vec(), from, 0, moment, out));
    }

    /// Puts a translator in front of a node that forgets after `idle`.
    pub fn translate(&mut self, node: usize, addr: IpAddr, idle: Duration) {
        self.nats.insert(node, Nat { addr, idle, port: 10_000, last: self.now });
    }

    /// Puts a node to sleep for `duration`: what arrives is lost, no timer fires, and the interface is told when it wakes.
    pub fn suspend(&mut self, node: usize, duration: Duration) {
        self.asleep.insert(node, self.now + duration);
    }

    /// Returns the time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets `duration` pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.next_event().filter(|&next| next <= end) {
            self.now = self.now.max(next);
            self.handle_events();
        }
        self.now = end;
    }

    /// Lets time pass until `done`, at most `limit`, and tells whether it was.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            let Some(next) = self.next_event().filter(|&next| next <= end) else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            self.handle_events();
        }
        true
    }

    /// Returns what was sent so far.
    pub fn log(&self) -> &[Record] {
        &self.log
    }

    /// Returns what was sent so far and forgets it.
    pub fn take_log(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.log)
    }

    fn moment_of(&self, node: usize) -> Moment {
        let unix = Duration::from_secs(1_700_000_000)
            + Duration::from_nanos(self.now.as_nanos())
            + self.nodes[node].clock_ahead;
        Moment { now: self.now, unix }
    }

    fn on(&mut self, node: usize, act: impl FnOnce(&mut Node, Moment, &mut Outbox)) {
        let moment = self.moment_of(node);
        let mut out = Outbox::new();
        act(&mut self.nodes[node], moment, &mut out);
        for outgoing in out {
            self.put_on_the_wire(node, outgoing);
        }
    }

    fn put_on_the_wire(&mut self, node: usize, Outgoing { to, mut ds, datagram }: Outgoing) {
        let from = match self.nats.get_mut(&node) {
            None => self.nodes[node].addr,
            Some(nat) => {
                if self.now.since(nat.last) >= nat.idle {
                    nat.port += 1;
                }
                nat.last = self.now;
                SocketAddr::new(nat.addr, nat.port)
            }
        };
        self.log.push(Record { at: self.now, from: node, to, ds, datagram: datagram.clone() });
        if ds & 3 != 0 && self.random.happens(self.conditions.mark) {
            ds |= 3;
        }
        if self.random.happens(self.conditions.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.happens(self.conditions.duplicate));
        for _ in 0..copies {
            let mut delay = self.conditions.latency;
            if self.random.happens(self.conditions.reorder) {
                let most = u64::try_from(10 * delay.as_nanos()).unwrap_or(u64::MAX);
                delay += Duration::from_nanos(self.random.below(most));
            }
            self.sent += 1;
            let arrival = Arrival { to, from, ds, datagram: datagram.clone() };
            self.on_the_way.insert((self.now + delay, self.sent), arrival);
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let arrival = self.on_the_way.keys().next().map(|&(at, _)| at);
        let timers = (0..self.nodes.len()).filter_map(|node| match self.asleep.get(&node) {
            Some(&wakes) => Some(wakes),
            None => self.nodes[node].tunnel.poll_timeout(),
        });
        arrival.into_iter().chain(timers).min()
    }

    fn handle_events(&mut self) {
        for node in 0..self.nodes.len() {
            if self.asleep.get(&node).is_some_and(|&wakes| wakes <= self.now) {
                self.asleep.remove(&node);
                self.nodes[node].tunnel.suspended();
            }
            let due = self.nodes[node].tunnel.poll_timeout().is_some_and(|due| due <= self.now);
            if due && !self.asleep.contains_key(&node) {
                self.on(node, Node::handle_timeout);
            }
        }
        while let Some(entry) = self.on_the_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let Arrival { to, from, ds, datagram } = entry.remove();
            let Some(node) = self.node_at(to) else { continue };
            if !self.asleep.contains_key(&node) {
                self.on(node, |node, moment, out| {
                    node.receive(datagram, Endpoint::new(from), ds, moment, out)
                });
            }
        }
    }

    /// Returns the node that datagrams to `addr` reach.
    fn node_at(&self, addr: SocketAddr) -> Option<usize> {
        (0..self.nodes.len()).find(|node| match self.nats.get(node) {
            None => self.nodes[*node].addr == addr,
            Some(nat) => SocketAddr::new(nat.addr, nat.port) == addr && self.now.since(nat.last) < nat.idle,
        })
    }
}
