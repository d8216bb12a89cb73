//! The protocol over time, by section of the whitepaper.

mod day;
mod section_2;
mod section_5;
mod section_6;

use std::sync::Arc;
use std::time::Duration;

use super::{Record, Sim};
use crate::config::{Edit, PeerEdit};
use crate::wireguard::peer::Peer;
use crate::wireguard::time::{Instant, Moment};

const A: usize = 0;
const B: usize = 1;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Counts the datagrams of a type that a node sent.
fn count(log: &[Record], from: usize, kind: u8) -> usize {
    times(log, from, kind).len()
}

fn times(log: &[Record], from: usize, kind: u8) -> Vec<Instant> {
    log.iter()
        .filter(|record| record.from == from && record.datagram[0] == kind)
        .map(|record| record.at)
        .collect()
}

fn keepalives(log: &[Record], from: usize) -> usize {
    keepalive_times(log, from).len()
}

fn keepalive_times(log: &[Record], from: usize) -> Vec<Instant> {
    log.iter()
        .filter(|record| record.from == from && record.datagram.len() == 32)
        .map(|record| record.at)
        .collect()
}

/// Returns what `node` knows of its peer `of`.
fn peer(sim: &Sim, node: usize, of: usize) -> Arc<Peer> {
    sim.nodes[node].peer(&sim.nodes[of].public_key)
}

/// Lets `node` keep the way to its peer `of` open.
fn keep_alive(sim: &mut Sim, node: usize, of: usize, every: u16) {
    let mut edit = PeerEdit::new(sim.nodes[of].public_key);
    edit.persistent_keepalive = Some(every);
    sim.apply(node, &[Edit::Peer(edit)]);
}

/// Lets the session that `node` sends to `of` by go on with `counter`.
fn skip_to_counter(sim: &Sim, node: usize, of: usize, counter: u64) {
    let peer = peer(sim, node, of);
    let next = peer.reserve(1, sim.now()).unwrap().first + 1;
    assert!(peer.reserve(counter - next, sim.now()).is_some());
}

/// Returns the counters of the data messages that a node sent.
fn counters(log: &[Record], from: usize) -> Vec<u64> {
    log.iter()
        .filter(|record| record.from == from && record.datagram[0] == 4)
        .map(|record| u64::from_le_bytes(record.datagram[8..16].try_into().unwrap()))
        .collect()
}

/// Two nodes with a session that A began, and nothing on the way.
fn connected(seed: u64) -> Sim {
    let mut sim = Sim::pair(seed);
    sim.send(A, B, 100);
    let arrived = sim.run_until(seconds(1), |sim| sim.nodes[B].received.len() == 1);
    assert!(arrived, "the first packet arrives");
    // B's passive keepalive.
    sim.run_for(seconds(11));
    sim.take_log();
    sim.nodes[B].received.clear();
    sim
}
