//! TUN → UDP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::shared::{Mtu, Shared, now};
use super::sockets::{Fate, SocketSet, send_all};
use super::worker::Left;
use crate::packet::{ecn, icmp, ip};
use crate::sys::tun::Queue;
use crate::sys::udp::{Datagram, SendBatch};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::View;
use crate::wireguard::keypair::{Keypair, padded_len};
use crate::wireguard::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, TAG_LEN};
use crate::wireguard::peer::{Peer, Staged};
use crate::wireguard::time::Instant;

/// Packets that are read before they are sent.
const BATCH: usize = 64;

/// The longest packet that a TUN device hands out.
const PACKET_MAX: usize = 65535;

/// Room for one packet of any length, header, padding and tag included.
const SLOT_MAX: usize = DATA_HEADER_LEN + PACKET_MAX.next_multiple_of(64) + TAG_LEN;

/// Packets lie one behind the other. There is room for a batch of usual length, and always for one of any length.
const ARENA: usize = BATCH * 2048 + SLOT_MAX;

/// A packet that was read, at `start` of the arena behind room for a header.
struct Outgoing {
    peer: Arc<Peer>,
    to: Endpoint,
    start: usize,
    len: usize,
    padded: usize,
    mtu: usize,
    ds: u8,
    /// Set once it is sealed.
    keypair: Option<Arc<Keypair>>,
    sent: bool,
}

pub(super) struct Sender {
    shared: Arc<Shared>,
    arena: Vec<u8>,
    outgoing: Vec<Outgoing>,
    batch: SendBatch,
    limiter: Limiter,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            limiter: Limiter::new(now()),
            shared,
            arena: vec![0; ARENA],
            outgoing: Vec::with_capacity(BATCH),
            batch: SendBatch::new(BATCH),
        }
    }

    /// Reads and sends one batch.
    pub(super) fn turn(&mut self, queue: &Queue, sockets: Option<&SocketSet>) -> Left {
        let now = now();
        let left = self.read(queue, sockets.map_or(0, |set| set.port), now);
        if !self.outgoing.is_empty() {
            self.seal(now);
            self.send(sockets);
            self.report(now);
        }
        left
    }

    fn read(&mut self, queue: &Queue, own_port: u16, now: Instant) -> Left {
        let view = self.shared.view.load();
        let mtu = self.shared.mtu.load();
        let mut start = 0;
        while self.outgoing.len() < BATCH && start + SLOT_MAX <= self.arena.len() {
            let at = start + DATA_HEADER_LEN;
            let packet = &mut self.arena[at..at + PACKET_MAX];
            let len = match queue.read(packet) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Left::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Left::Gone,
            };
            let packet = &packet[..len];
            match route(packet, &view, &mtu, own_port) {
                Ok(Routed { peer, to, mtu }) => {
                    let padded = padded_len(len, mtu);
                    let ds = ecn::encapsulate(ip::ds_field(packet));
                    self.outgoing.push(Outgoing {
                        peer,
                        to,
                        start,
                        len,
                        padded,
                        mtu,
                        ds,
                        keypair: None,
                        sent: false,
                    });
                    start += (DATA_OVERHEAD + padded).next_multiple_of(64);
                }
                Err(reason) => {
                    self.shared.drops.count(reason);
                    if matches!(reason, Dropped::NoPeer | Dropped::NoEndpoint) && self.limiter.allow(now) {
                        answer_unreachable(packet, queue);
                    }
                }
            }
        }
        Left::More
    }

    /// Seals runs of packets to one peer with counters reserved at once; lets those wait that have no session.
    fn seal(&mut self, now: Instant) {
        let Self { shared, arena, outgoing, .. } = self;
        for run in outgoing.chunk_by_mut(|a, b| Arc::ptr_eq(&a.peer, &b.peer)) {
            let peer = Arc::clone(&run[0].peer);
            let ticket = peer.reserve(run.len() as u64, now);
            for (counter, packet) in (ticket.as_ref().map_or(0, |ticket| ticket.first)..).zip(run) {
                let at = packet.start + DATA_HEADER_LEN;
                match &ticket {
                    Some(ticket) => {
                        // [W] §5.4.6: the padding is zero.
                        arena[at + packet.len..at + packet.padded].fill(0);
                        let end = packet.start + packet.padded + DATA_OVERHEAD;
                        ticket.keypair.seal(counter, &mut arena[packet.start..end]);
                        packet.keypair = Some(Arc::clone(&ticket.keypair));
                    }
                    None => {
                        let inner = arena[at..at + packet.len].into();
                        let (dropped, ask) =
                            peer.stage(Staged { packet: inner, mtu: packet.mtu, ds: packet.ds });
                        shared.drops.add(Dropped::StagedOverflow, dropped);
                        if ask {
                            shared.hand_over(&peer);
                        }
                    }
                }
            }
        }
    }

    /// Sends what was sealed, family by family.
    fn send(&mut self, sockets: Option<&SocketSet>) {
        let Self { shared, arena, outgoing, batch, .. } = self;
        for is_v4 in [true, false] {
            let mut datagrams = [EMPTY; BATCH];
            let mut owners = [0; BATCH];
            let mut count = 0;
            let sealed = outgoing.iter().enumerate().filter(|(_, packet)| packet.keypair.is_some());
            for (owner, packet) in sealed.filter(|(_, packet)| packet.to.addr.is_ipv4() == is_v4) {
                datagrams[count] = Datagram {
                    to: packet.to.addr,
                    from: packet.to.source.map(|source| source.ip),
                    ds: packet.ds,
                    payload: &arena[packet.start..packet.start + packet.padded + DATA_OVERHEAD],
                };
                owners[count] = owner;
                count += 1;
            }
            if count == 0 {
                continue;
            }
            let socket = sockets.and_then(|set| if is_v4 { set.v4.as_ref() } else { set.v6.as_ref() });
            let Some(socket) = socket else {
                shared.drops.add(Dropped::SendFailed, count as u64);
                continue;
            };
            send_all(batch, socket, &mut datagrams[..count], &shared.drops, |i, fate| {
                let packet = &mut outgoing[owners[i]];
                packet.sent = fate != Fate::Dropped;
                if fate == Fate::SentElsewise {
                    packet.peer.clear_source();
                }
            });
        }
    }

    /// Tells each peer, once a run, what was sent to it.
    fn report(&mut self, now: Instant) {
        for run in self.outgoing.chunk_by(|a, b| Arc::ptr_eq(&a.peer, &b.peer)) {
            let Some(keypair) = &run[0].keypair else { continue };
            let sent = run.iter().filter(|packet| packet.sent);
            let bytes: u64 = sent.map(|packet| (packet.padded + DATA_OVERHEAD) as u64).sum();
            if run[0].peer.sent(keypair, bytes > 0, bytes, now) {
                self.shared.hand_over(&run[0].peer);
            }
        }
        self.outgoing.clear();
    }
}

const EMPTY: Datagram<'static> = Datagram {
    to: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    from: None,
    ds: 0,
    payload: &[],
};

struct Routed {
    peer: Arc<Peer>,
    to: Endpoint,
    mtu: usize,
}

/// Finds out whom a packet is for ([W] §2; kernel `device.c`, `wg_xmit`).
fn route(packet: &[u8], view: &View, mtu: &Mtu, own_port: u16) -> Result<Routed, Dropped> {
    let destination = ip::destination(packet).map_err(|_| Dropped::InnerMalformed)?;
    let peer = view.route(destination).ok_or(Dropped::NoPeer)?;
    let to = peer.endpoint().ok_or(Dropped::NoEndpoint)?;
    // A route to the peer that leads back into the tunnel would wrap a packet again and again (openwrt #22018).
    if destination == to.addr.ip() && ip::is_udp(packet, own_port, to.addr) {
        return Err(Dropped::Loop);
    }
    Ok(Routed { peer: Arc::clone(peer), to, mtu: mtu.towards(destination) })
}

fn answer_unreachable(packet: &[u8], queue: &Queue) {
    let mut answer = [0; icmp::MAX_LEN];
    if let Some(len) = icmp::unreachable(packet, &mut answer) {
        // Nobody waits for it.
        let _ = queue.write(&answer[..len]);
    }
}

/// Linux `net.ipv4.icmp_msgs_per_sec` and `icmp_msgs_burst`.
struct Limiter {
    tokens: u32,
    last: Instant,
}

impl Limiter {
    const PER_SECOND: u32 = 1000;
    const BURST: u32 = 50;

    fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, last: now }
    }

    fn allow(&mut self, now: Instant) -> bool {
        let step = Duration::from_secs(1) / Self::PER_SECOND;
        let earned = now.since(self.last).as_nanos() / step.as_nanos();
        if earned > 0 {
            self.tokens =
                Self::BURST.min(self.tokens.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)));
            self.last = now;
        }
        let has_token = self.tokens > 0;
        self.tokens -= u32::from(has_token);
        has_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreachable_messages_are_limited_to_a_thousand_a_second() {
        let mut limiter = Limiter::new(Instant::from_nanos(0));
        let allowed = (0..10_000_000_u64)
            .step_by(1000)
            .filter(|&micros| limiter.allow(Instant::from_nanos(micros * 1000)));
        let allowed = allowed.count();
        assert!(
            (10_000..=10_050).contains(&allowed),
            "{allowed} in ten seconds of a packet every millisecond"
        );
        let burst = (0..100).filter(|_| limiter.allow(Instant::from_nanos(60_000_000_000))).count();
        assert_eq!(burst, 50);
    }
}
