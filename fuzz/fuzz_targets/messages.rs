//! Two live interfaces, and an attacker on the network who records, changes, replays and invents datagrams.
//!
//! The simulator carries the peers' own messages; the steps of the input put others in between, under load or not, with and without a
//! private key, as time goes by. For every datagram:
//!
//! - It is accepted and its bytes are counted, or exactly one drop is counted, never both and never neither.
//! - If no peer has made it, it is dropped, changes nothing that a snapshot or the timers show, hinders no session, and is answered by
//!   at most one message, which is shorter: a cookie reply.
//!
//! In the end the tunnel carries a packet in both directions.

#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use adit::config::Edit;
use adit::crypto::x25519::PrivateKey;
use adit::sim::{Seeded, Sim};
use adit::wireguard::cookie;
use adit::wireguard::dropped::Dropped;
use adit::wireguard::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};
use adit::wireguard::noise::{self, Static};
use adit::wireguard::tai64n::Timestamp;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Side {
    A,
    B,
}

impl Side {
    fn number(self) -> usize {
        self as usize
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any bytes.
    Raw { to: Side, from: Source, bytes: Vec<u8> },
    /// Something that was sent before.
    Recorded { to: Side, from: Source, which: u8, changes: Vec<Change>, with_macs: bool },
    /// The data message that was sent last, with another counter.
    Renumbered { to: Side, from: Source, ahead: u32 },
    /// A sound initiation by nobody's peer.
    Stranger { to: Side, from: Source, seed: u8 },
    /// Any plaintext, sealed by the peer's current session.
    Sealed { to: Side, from: Source, plaintext: Vec<u8> },
    /// An honest packet.
    Send { from: Side, len: u8 },
    /// This many milliseconds go by.
    Wait(u16),
    /// This many seconds go by.
    WaitLong(u8),
    /// This many handshake messages wait, in multiples of 64.
    Queue { side: Side, queued: u8 },
    /// The private key is taken away or given back.
    PrivateKey { side: Side, present: bool },
    /// The wall clock is set.
    Clock { side: Side, ahead: u16 },
    /// The network loses the peers' own messages, or no longer.
    Loss(bool),
    /// A packet passes if there is a session, and must pass again after the forgeries that follow.
    Probe(Side),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Source {
    Peer,
    Own,
    V4([u8; 4], u16),
    V6([u16; 8], u16),
}

#[derive(Arbitrary, Debug)]
enum Change {
    Flip {
        at: u8,
        bit: u8,
    },
    /// Overwrites what begins at `at`.
    Write {
        at: u8,
        bytes: [u8; 4],
    },
    /// Takes a range from another recorded message.
    Splice {
        which: u8,
        at: u8,
        len: u8,
    },
    Length(u16),
}

/// What the peers authenticate of a message; equal for two messages that only differ where anybody may change them.
///
/// Indices are not part of the handshake's transcript, and macs are known to whoever knows a public key.
fn essence(datagram: &[u8]) -> &[u8] {
    match (datagram.first_chunk::<4>(), datagram.len()) {
        (Some([1, 0, 0, 0]), INITIATION_LEN) => &datagram[8..116],
        (Some([2, 0, 0, 0]), RESPONSE_LEN) => &datagram[8..60],
        (Some([3, 0, 0, 0]), COOKIE_REPLY_LEN) => &datagram[8..],
        _ => datagram,
    }
}

struct World {
    sim: Sim,
    /// What the attacker had a peer seal.
    sealed: Vec<(usize, Vec<u8>)>,
    /// The attacker as a correspondent of each node.
    generators: [cookie::Generator; 2],
    /// A genuine message came from a wrong address, and a peer has believed it ([W] §2.1).
    astray: bool,
    /// A side that an honest packet has just reached.
    reached: Option<Side>,
}

impl World {
    fn new() -> Self {
        let mut sim = Sim::pair(1);
        sim.send(0, 1, 100);
        sim.run_for(Duration::from_millis(50));
        let generators = [0, 1].map(|node| cookie::Generator::new(&sim.nodes[node].public_key));
        Self { sim, sealed: Vec::new(), generators, astray: false, reached: None }
    }

    fn step(&mut self, step: Step) {
        let may_be_forged = matches!(
            step,
            Step::Raw { .. } | Step::Recorded { .. } | Step::Renumbered { .. } | Step::Stranger { .. }
        );
        if !may_be_forged {
            self.reached = None;
        }
        match step {
            Step::Raw { to, from, bytes } => self.inject(to, from, &bytes),
            Step::Recorded { to, from, which, changes, with_macs } => {
                let mut datagram = self.recorded(which);
                self.change(&mut datagram, changes);
                if with_macs {
                    self.generators[to.number()].add_macs(&mut datagram, self.sim.now());
                }
                self.inject(to, from, &datagram);
            }
            Step::Renumbered { to, from, ahead } => {
                let last = self
                    .sim
                    .log()
                    .iter()
                    .rfind(|sent| sent.from != to.number() && sent.datagram.starts_with(&[4, 0, 0, 0]));
                let Some(mut datagram) = last.map(|sent| sent.datagram.clone()) else { return };
                for (byte, ahead) in datagram[8..12].iter_mut().zip(ahead.to_le_bytes()) {
                    *byte = byte.wrapping_add(ahead);
                }
                self.inject(to, from, &datagram);
            }
            Step::Stranger { to, from, seed } => {
                let datagram = self.initiation_of_a_stranger(to, seed);
                self.inject(to, from, &datagram);
            }
            Step::Sealed { to, from, plaintext } => {
                let (receiver, sender) = (&self.sim.nodes[to.number()], &self.sim.nodes[to.other().number()]);
                let peer = sender.peer(&receiver.public_key);
                let Some(ticket) = peer.reserve(1, self.sim.now()) else { return };
                let datagram = ticket.keypair.seal_to_vec(ticket.first, &plaintext, 1420);
                self.sealed.push((to.number(), datagram.clone()));
                self.inject(to, from, &datagram);
            }
            Step::Send { from, len } => {
                self.sim.send(from.number(), from.other().number(), 20 + usize::from(len));
            }
            Step::Wait(milliseconds) => self.sim.run_for(Duration::from_millis(milliseconds.into())),
            Step::WaitLong(seconds) => self.sim.run_for(Duration::from_secs(seconds.into())),
            Step::Queue { side, queued } => {
                self.sim.nodes[side.number()].queued = 64 * usize::from(queued);
            }
            Step::PrivateKey { side, present } => self.set_private_key(side.number(), present),
            Step::Clock { side, ahead } => {
                self.sim.nodes[side.number()].clock_ahead = Duration::from_secs(ahead.into());
            }
            Step::Probe(side) => self.reached = self.passes(side).then_some(side),
            Step::Loss(lost) => self.sim.conditions.loss = if lost { 1000 } else { 0 },
        }
    }

    /// Sends an honest packet by the session that there is, past the network, and tells whether it arrives.
    fn passes(&mut self, to: Side) -> bool {
        let (receiver, sender) = (&self.sim.nodes[to.number()], &self.sim.nodes[to.other().number()]);
        let (received, from) = (receiver.received.len(), sender.addr);
        let Some(ticket) = sender.peer(&receiver.public_key).reserve(1, self.sim.now()) else { return false };
        let packet = self.sim.packet(to.other().number(), to.number(), 60);
        let datagram = ticket.keypair.seal_to_vec(ticket.first, &packet, 1420);
        self.sealed.push((to.number(), datagram.clone()));
        self.sim.inject(to.number(), from, &datagram);
        self.sim.nodes[to.number()].received.len() > received
    }

    fn recorded(&self, which: u8) -> Vec<u8> {
        let (log, which) = (self.sim.log(), usize::from(which));
        match which.checked_rem(log.len() + self.sealed.len()) {
            Some(at) if at < log.len() => log[log.len() - 1 - at].datagram.clone(),
            Some(at) => self.sealed[at - log.len()].1.clone(),
            None => Vec::new(),
        }
    }

    fn change(&self, datagram: &mut Vec<u8>, changes: Vec<Change>) {
        for change in changes.into_iter().take(8) {
            let len = datagram.len();
            match change {
                Change::Length(len) => datagram.resize(usize::from(len) % 2048, 0),
                Change::Flip { .. } | Change::Write { .. } | Change::Splice { .. } if len == 0 => {}
                Change::Flip { at, bit } => datagram[usize::from(at) % len] ^= 1 << (bit % 8),
                Change::Write { at, bytes } => {
                    let target = &mut datagram[usize::from(at) % len..];
                    target.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                }
                Change::Splice { which, at, len } => {
                    let other = self.recorded(which);
                    let both = datagram.iter_mut().zip(other);
                    both.skip(at.into()).take(len.into()).for_each(|(to, from)| *to = from);
                }
            }
        }
    }

    fn initiation_of_a_stranger(&mut self, to: Side, seed: u8) -> Vec<u8> {
        // Far from the seeds of the nodes, which are small.
        let mut random = Seeded::new(1 << 40 | u64::from(seed));
        let own = Static::new(PrivateKey::generate(&mut random));
        let peer = self.sim.nodes[to.number()].public_key;
        let shared = own.static_static(&peer).expect("honest keys");
        let timestamp = Timestamp::at(Duration::from_secs(2_000_000_000));
        let ephemeral = PrivateKey::generate(&mut random);
        let created = noise::create_initiation(&own, &peer, &shared, ephemeral, timestamp, seed.into());
        let (_, mut message) = created.expect("honest keys");
        self.generators[to.number()].add_macs(&mut message, self.sim.now());
        message.to_vec()
    }

    fn set_private_key(&mut self, node: usize, present: bool) {
        let key = present.then(|| self.sim.nodes[node].private_key.clone());
        self.sim.apply(node, &[Edit::PrivateKey(key)]);
    }

    fn drops(&self, node: usize) -> u64 {
        self.sim.nodes[node].drops.nonzero().map(|(_, count)| count).sum()
    }

    fn received_bytes(&self, side: Side) -> u64 {
        let other = self.sim.nodes[side.other().number()].public_key;
        self.sim.nodes[side.number()].peer(&other).transferred().1
    }

    /// Everything that can be seen of a node from outside.
    fn picture(&self, node: usize) -> String {
        let tunnel = &self.sim.nodes[node].tunnel;
        format!(
            "{:?} {:?} {}",
            tunnel.snapshot(),
            tunnel.poll_timeout(),
            self.sim.nodes[node].received.len()
        )
    }

    /// Tells whether the other side has made this message, apart from what anybody may change in it.
    fn is_genuine(&self, to: usize, datagram: &[u8]) -> bool {
        let essence_of = essence(datagram);
        self.sim.log().iter().any(|sent| sent.from != to && essence(&sent.datagram) == essence_of)
            || self.sealed.iter().any(|(target, sealed)| *target == to && sealed == datagram)
    }

    fn inject(&mut self, to: Side, from: Source, datagram: &[u8]) {
        let node = to.number();
        let from = match from {
            Source::Peer => self.sim.nodes[to.other().number()].addr,
            Source::Own => self.sim.nodes[node].addr,
            Source::V4(ip, port) => SocketAddr::from((ip, port)),
            Source::V6(ip, port) => SocketAddr::from((ip, port)),
        };
        let genuine = self.is_genuine(node, datagram);
        let before = self.picture(node);
        let (dropped, received, sent) = (self.drops(node), self.received_bytes(to), self.sim.log().len());
        let cookies = self.sim.nodes[node].drops.get(Dropped::CookieSent);

        self.sim.inject(node, from, datagram);

        let dropped = self.drops(node) - dropped;
        let received = self.received_bytes(to) - received;
        let cookies = self.sim.nodes[node].drops.get(Dropped::CookieSent) - cookies;
        let answers = &self.sim.log()[sent..];
        if let (1, [answer]) = (cookies, answers) {
            assert!(answer.to == from && answer.datagram.len() < datagram.len(), "no amplification");
            if let Ok(reply) = answer.datagram.as_slice().try_into() {
                // The attacker uses the cookie for what it sends from this address.
                self.generators[node].consume_reply(reply, self.sim.now());
            }
        }
        match dropped {
            0 => {
                assert!(genuine, "accepted from nobody");
                let is_cookie_reply = datagram.len() == COOKIE_REPLY_LEN && datagram[0] == 3;
                assert_eq!(received, if is_cookie_reply { 0 } else { datagram.len() as u64 });
                self.astray |= from != self.sim.nodes[to.other().number()].addr;
            }
            1 => {
                assert_eq!(received, 0, "dropped, but counted as received");
                // An authentic packet is dropped for what is in it only after its session believed it.
                self.astray |= genuine;
            }
            _ => panic!("one datagram, {dropped} drops"),
        }
        if !genuine {
            assert_eq!(self.sim.log().len() - sent, usize::try_from(cookies).expect("0 or 1"), "silence");
            assert_eq!(self.picture(node), before, "a trace was left");
            assert!(self.reached.is_none_or(|side| self.passes(side)), "a session was hindered");
        } else {
            self.reached = None;
        }
    }

    /// The attacker goes away, and whoever was led astray is told where its peer is.
    fn end_attack(&mut self) {
        self.sim.conditions.loss = 0;
        for side in [Side::A, Side::B] {
            self.sim.nodes[side.number()].queued = 0;
            self.set_private_key(side.number(), true);
            if self.astray {
                let peer = self.sim.nodes[side.other().number()].as_peer();
                self.sim.apply(side.number(), &[Edit::Peer(peer)]);
            }
        }
    }

    fn check_tunnel(&mut self, from: Side) {
        let (from, to) = (from.number(), from.other().number());
        let packet = self.sim.packet(from, to, 500);
        self.sim.nodes[to].received.clear();
        for _ in 0..60 {
            self.sim.send_packet(from, &packet);
            let arrived = self.sim.run_until(Duration::from_secs(1), |sim| {
                sim.nodes[to].received.iter().any(|(_, received)| *received == packet)
            });
            if arrived {
                return;
            }
        }
        panic!("the tunnel is broken from {from} to {to}");
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps.into_iter().take(48) {
        world.step(step);
    }
    world.end_attack();
    world.check_tunnel(Side::A);
    world.check_tunnel(Side::B);
});
