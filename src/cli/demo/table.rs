//! The live table and the summary.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use super::lab::{Lab, Node};
use super::traffic::Totals;
use crate::config::PeerSnapshot;
use crate::sys::clock;

/// What was last printed, to be printed over.
pub(super) struct Table {
    is_terminal: bool,
    lines: usize,
    /// The peers of each node.
    last: Vec<Vec<PeerSnapshot>>,
    at: Duration,
}

impl Table {
    /// Takes the first sample.
    pub(super) fn new(lab: &Lab, is_terminal: bool) -> io::Result<Self> {
        let last = lab.nodes.iter().map(Node::peers).collect::<io::Result<_>>()?;
        Ok(Self { is_terminal, lines: 0, last, at: clock::boottime() })
    }

    /// Prints rates since the last call.
    pub(super) fn print(&mut self, lab: &Lab) -> io::Result<()> {
        let now = clock::boottime();
        let seconds = now.saturating_sub(self.at).as_secs_f64().max(0.001);
        let mut text = String::new();
        row(&mut text, ["node", "peer", "sent", "received", "last handshake", "drops"]);
        for (node, last) in lab.nodes.iter().zip(&mut self.last) {
            let peers = node.peers()?;
            for (i, peer) in peers.iter().enumerate() {
                // One that has come since, or once more, begins here.
                let before = last.iter().find(|old| old.public_key == peer.public_key).unwrap_or(peer);
                let to = lab.nodes.iter().find(|other| other.key.public() == peer.public_key);
                let drops = if i == 0 { drops(node) } else { String::new() };
                row(
                    &mut text,
                    [
                        &node.number.to_string(),
                        &to.map(|other| other.number.to_string()).unwrap_or_default(),
                        &rate(peer.tx_bytes.saturating_sub(before.tx_bytes), seconds),
                        &rate(peer.rx_bytes.saturating_sub(before.rx_bytes), seconds),
                        &age(peer),
                        &drops,
                    ],
                );
            }
            *last = peers;
        }
        self.at = now;
        let mut out = io::stdout().lock();
        if self.is_terminal && self.lines > 0 {
            // Up over the old table, and clear what is below.
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        self.lines = text.lines().count();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Prints what the whole run came to.
    pub(super) fn print_summary(&self, lab: &mut Lab, totals: &Totals) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "\nIn {:.1} s over all pods:", totals.time.as_secs_f64())?;
        let bits = rate(totals.tcp_bytes, totals.time.as_secs_f64().max(0.001));
        writeln!(out, "  TCP   {:.1} MB received, {bits}", mega(totals.tcp_bytes))?;
        writeln!(out, "  UDP   {} of {} datagrams received", totals.udp_received, totals.udp_sent)?;
        for node in &mut lab.nodes {
            let (into, out_of) = node.packets()?;
            let drops = drops(node);
            let number = node.number;
            writeln!(
                out,
                "  node {number}: {into} packets into the tunnel, {out_of} out of it; drops: {drops}"
            )?;
        }
        writeln!(out)
    }
}

fn row(text: &mut String, [node, peer, sent, received, handshake, drops]: [&str; 6]) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{node:>4} {peer:>5} {sent:>13} {received:>13} {handshake:>15}   {drops}");
}

fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.1} Mbit/s", mega(bytes) * 8.0 / seconds)
}

#[expect(clippy::cast_precision_loss, reason = "for a table")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn age(peer: &PeerSnapshot) -> String {
    match peer.last_handshake {
        Some(at) => format!("{} s ago", clock::realtime().saturating_sub(at).as_secs()),
        None => "none".to_owned(),
    }
}

fn drops(node: &Node) -> String {
    let Some(device) = node.device() else { return String::new() };
    let all: Vec<_> =
        device.drops().nonzero().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
