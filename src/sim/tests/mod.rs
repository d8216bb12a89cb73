//! The protocol over time, by section of the whitepaper.

mod day;
mod section_2;
mod section_5;
mod section_6;

use std::time::Duration;

use super::{Record, Sim};
use crate::wireguard::time::Instant;

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
    log.iter().filter(|record| record.from == from && record.datagram.len() == 32).count()
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
