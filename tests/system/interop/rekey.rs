//! Two rekeys in real time, under traffic, without a lost packet.

use std::time::Duration;

use adit::sys::clock::boottime;

use super::{End, Initiations, Initiator, Outside, Pair};
use crate::support::tunnel::Program;
use crate::support::{Process, SOON, need, pause, wait_until};

/// [W] §6.1: Rekey-After-Time is 120 seconds, and only the initiator of a session renews it for its age.
const REKEYS: usize = 2;
const LENGTH: Duration = Duration::from_secs(256);

struct Run {
    what: String,
    pair: Pair,
    initiations: Initiations,
    pings: [Process; 2],
    /// The moments of the last handshake that our side has told, one after the other.
    handshakes: Vec<u64>,
}

impl Run {
    fn start(program: Program, outside: Outside, initiator: Initiator, with_psk: bool) -> Self {
        let pair = Pair::new(program, outside, initiator, with_psk);
        let initiations = Initiations::watch(&pair);
        pair.establish();
        let pings = [ping(&pair.ours, &pair.theirs.inside[0]), ping(&pair.theirs, &pair.ours.inside[1])];
        let what =
            format!("{program:?}, {outside:?} outside, {initiator:?} first, preshared key: {with_psk}");
        Self { what, pair, initiations, pings, handshakes: Vec::new() }
    }

    fn look(&mut self) {
        // Only at ours: boringtun tells the age of the last handshake for its moment.
        let latest = self.pair.ours.tunnel.latest_handshake(&self.pair.ours.namespace);
        if self.handshakes.last() != Some(&latest) {
            self.handshakes.push(latest);
        }
    }

    fn finish(mut self) {
        let what = &self.what;
        for ping in &mut self.pings {
            // A slow machine stretches the interval.
            let status = ping.wait(Duration::from_secs(90));
            wait_until("the summary of ping", SOON, || ping.output().contains("packet loss"));
            let output = ping.output();
            assert!(status.success() && output.contains(" 0% packet loss"), "{what}: {output}");
            assert!(!output.contains("duplicates"), "{what}: {output}");
        }
        let [first, second] = self.pair.by_role();
        let (by_first, by_second) = (self.initiations.from(first), self.initiations.from(second));
        eprintln!("{what}: {by_first} and {by_second} initiations, handshakes at {:?}", self.handshakes);
        // wireguard-go may repeat an initiation 5 seconds later though it was answered: that is no renewal.
        self.handshakes.dedup_by(|later, earlier| *later - *earlier < 100);
        assert!(self.handshakes.len() > REKEYS, "{what}: handshakes at {:?}", self.handshakes);
        assert!(by_first > REKEYS, "{what}: {by_first} initiations by who sent first");
        assert_eq!(by_second, 0, "{what}: the responder has initiated");
    }
}

/// Sends an echo request every 0.2 seconds for as long as the test lasts, and waits for each answer up to three seconds.
fn ping(from: &End, to: &str) -> Process {
    let count = (LENGTH.as_secs() * 5).to_string();
    from.namespace.spawn("ping", &["-n", "-q", "-i", "0.2", "-W", "3", "-c", &count, to])
}

#[test]
fn sessions_with_every_implementation_are_renewed_twice_without_a_lost_packet() {
    need!("ip", "wg", "ping", "tcpdump");
    let mut runs = Vec::new();
    for (program, other) in [
        (Program::WireguardGo, Outside::V6),
        (Program::Tailscale, Outside::V4),
        (Program::Boringtun, Outside::V6),
    ] {
        if program.path().is_none() {
            continue;
        }
        runs.push(Run::start(program, Outside::V4, Initiator::Ours, true));
        runs.push(Run::start(program, other, Initiator::Theirs, false));
    }
    if runs.is_empty() {
        return;
    }
    let end = boottime() + LENGTH;
    while boottime() < end {
        runs.iter_mut().for_each(Run::look);
        pause(Duration::from_secs(4));
    }
    runs.into_iter().for_each(Run::finish);
}
