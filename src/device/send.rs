//! TUN → UDP: one pass from what was read to what is sent.
//!
//! ```text
//! read         packets and super-packets into one buffer, each cut into segments
//! per packet   route (once a super-packet) → reserve counters (once a super-packet) → place each segment in a message: datagrams of one
//!              length that go to one place lie one behind the other
//! flush        seal all segments, gathered from header and payload, straight into their places → send all messages in one call, or let
//!              another worker do that
//! ```
//!
//! Only what is there to be read is batched: nothing waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::lane::Lane;
use super::shared::{Mtu, Shared, now};
use super::sockets::{Fate, Patience, RUN_MAX, Refused, SocketSet, send_all};
use super::spill::Heat;
use super::worker::Left;
use crate::crypto::aead::{self, SealJob};
use crate::packet::segment::{HEADER_MAX, Split};
use crate::packet::{ecn, icmp, ip, virtio};
use crate::sys::offload::Feature;
use crate::sys::tun::{HEADER_MAX as VIRTIO_HEADER_MAX, Queue};
use crate::sys::udp::{Datagram, SendBatch};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::View;
use crate::wireguard::keypair::{Keypair, padded_len};
use crate::wireguard::messages::{DATA_HEADER_LEN, DATA_OVERHEAD};
use crate::wireguard::nesting;
use crate::wireguard::peer::{Peer, Staged};
use crate::wireguard::time::Instant;

/// Segments that are sealed and sent at once.
const BATCH: usize = 128;

/// The longest packet that a TUN device hands out, with its header.
const READ_MAX: usize = VIRTIO_HEADER_MAX + 65535;

/// What is read before it is sent: four super-packets, or a batch of packets. A super-packet of TCP has a few segments more than a run of
/// datagrams may have: what is left over of several shares a run.
const READ_BUFFER: usize = (4 * READ_MAX).next_multiple_of(READ_ALIGN);

/// Where packets begin in it.
const READ_ALIGN: usize = 64;

/// What is sent at once: two super-packets with headers, padding and tags; and always room for one packet of any length.
const SEND_BUFFER: usize = 192 << 10;

/// The longest payload of a UDP datagram over IPv4, which bounds a run of datagrams as well.
const MESSAGE_MAX: usize = 65507;

const _: () = assert!(SEND_BUFFER > 65535_usize.next_multiple_of(16) + DATA_OVERHEAD);

/// Where a segment's parts come from and where it goes.
struct Segment {
    target: u8,
    counter: u64,
    /// Bytes of the header beside the payload.
    head_len: u16,
    /// The payload, in the buffer of what was read.
    payload: Range<usize>,
    /// The place of the whole message in the buffer of what is sent.
    place: Range<usize>,
}

/// Whom segments are for.
#[derive(Clone)]
struct Target {
    peer: Arc<Peer>,
    keypair: Arc<Keypair>,
    to: Endpoint,
    ds: u8,
    hop_limit: Option<u8>,
}

/// Datagrams of one length, but for the last one that may be shorter, to one target.
struct Message {
    target: u8,
    place: Range<usize>,
    segment: usize,
    count: usize,
    /// Others may follow.
    is_open: bool,
    is_sent: bool,
}

pub(super) struct Sender {
    shared: Arc<Shared>,
    /// The worker's number.
    number: usize,
    read: Box<[u8]>,
    outbox: Box<Outbox>,
    courier: Courier,
    limiter: Limiter,
    unsegmented: Unsegmented,
    heat: Heat,
}

/// What is to be sealed and sent.
pub(super) struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    heads: Box<[[u8; HEADER_MAX]; BATCH]>,
    segments: ArrayVec<Segment, BATCH>,
    targets: ArrayVec<Target, BATCH>,
    messages: ArrayVec<Message, BATCH>,
    /// The longest run of datagrams: 1 without `UDP_SEGMENT`.
    run_max: usize,
    /// Runs that were refused when it was sent.
    refused: ArrayVec<(IpAddr, Refused), 8>,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self {
            number,
            read: vec![0; READ_BUFFER].into(),
            outbox: Box::new(Outbox::new()),
            courier: Courier { shared: Arc::clone(&shared), batch: SendBatch::new(BATCH) },
            limiter: Limiter::new(now()),
            unsegmented: Unsegmented::new(),
            heat: Heat::default(),
            shared,
        }
    }

    /// Reads and sends one batch.
    pub(super) fn turn(&mut self, queue: &Queue, sockets: Option<&SocketSet>) -> Left {
        let now = now();
        let shared = Arc::clone(&self.shared);
        let view = shared.view.load();
        let mtu = shared.mtu.load();
        let own_port = sockets.map_or(0, |set| set.port);
        let mut at = 0;
        let mut left = Left::More;
        for _ in 0..BATCH {
            if self.read.len() - at < READ_MAX {
                break;
            }
            let len = match queue.read(&mut self.read[at..at + READ_MAX]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    left = Left::Nothing;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A packet that the kernel cannot hand out, which it has dropped (`tun_put_user`): there may be others behind it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOMEM)) => {
                    self.shared.drops.count(Dropped::InnerMalformed);
                    continue;
                }
                Err(_) => {
                    left = Left::Gone;
                    break;
                }
            };
            let read = at..at + len;
            if let Err(reason) = self.take(read.clone(), queue, &view, &mtu, own_port, sockets, now) {
                self.shared.drops.count(reason);
                if matches!(reason, Dropped::NoPeer | Dropped::NoEndpoint) && self.limiter.allow(now) {
                    answer_unreachable(&self.read[read.start + queue.header_len()..read.end], queue);
                }
            }
            // The end of the buffer at most, which is such a place as well.
            at = read.end.next_multiple_of(READ_ALIGN);
        }
        self.flush(sockets, now);
        self.heat.note(left);
        if let Some((_, lane)) = shared.send_lane(self.number).filter(|_| left != Left::More) {
            // The one who was to send it may have got work of its own.
            self.help(lane, sockets);
        }
        left
    }

    /// Sends what another worker has sealed.
    pub(super) fn help(&mut self, lane: &Lane<Box<Outbox>>, sockets: Option<&SocketSet>) {
        lane.drain(|outbox| self.courier.deliver(outbox, sockets, now()));
    }

    /// Places the segments of what was read into `read`.
    #[expect(clippy::too_many_arguments, reason = "what a turn has looked up once")]
    fn take(
        &mut self,
        read: Range<usize>,
        queue: &Queue,
        view: &View,
        mtu: &Mtu,
        own_port: u16,
        sockets: Option<&SocketSet>,
        now: Instant,
    ) -> Result<(), Dropped> {
        let start = read.start + queue.header_len();
        let header = match self.read.get(read.start..start) {
            Some([]) => virtio::Header::PLAIN,
            Some(header) => virtio::Header::parse(header).map_err(|_| Dropped::InnerMalformed)?,
            None => return Err(Dropped::InnerMalformed),
        };
        let packet = self.read.get_mut(start..read.end).ok_or(Dropped::InnerMalformed)?;
        let Routed { peer, to, mtu, hop_limit } = route(packet, view, mtu, own_port)?;
        let split = Split::new(&header, packet).map_err(|_| Dropped::InnerMalformed)?;
        let ds = ecn::encapsulate(ip::ds_field(packet));
        let Some(ticket) = peer.reserve(split.count() as u64, now) else {
            self.stage(&peer, &split, start..read.end, mtu, ds, now);
            return Ok(());
        };
        self.outbox.run_max = self.run_max(to.addr, padded_len(split.longest(), mtu), sockets, now);
        let target = Target { peer, keypair: ticket.keypair, to, ds, hop_limit };
        let longest = padded_len(split.longest(), mtu) + DATA_OVERHEAD;
        let mut aimed = None;
        for (counter, index) in (ticket.first..).zip(0..split.count()) {
            if !self.outbox.has_room(longest) {
                self.flush(sockets, now);
                aimed = None;
            }
            let aimed = *aimed.get_or_insert_with(|| self.outbox.aim(&target));
            let head = self.outbox.next_head();
            let segment = split.segment(&self.read[start..read.end], index, head);
            let payload = start + segment.payload.start..start + segment.payload.end;
            self.outbox.place(aimed, counter, segment.header_len, payload, padded_len(segment.len(), mtu));
        }
        Ok(())
    }

    /// Lets segments wait that have no session.
    fn stage(&self, peer: &Arc<Peer>, split: &Split, packet: Range<usize>, mtu: usize, ds: u8, now: Instant) {
        let packet = &self.read[packet];
        let mut head = [0; HEADER_MAX];
        for index in 0..split.count() {
            let segment = split.segment(packet, index, &mut head);
            let inner = [&head[..segment.header_len], &packet[segment.payload]].concat();
            let (dropped, ask) = peer.stage(Staged { packet: inner.into(), mtu, ds }, now);
            self.shared.drops.add(Dropped::StagedOverflow, dropped);
            if ask {
                self.shared.hand_over(peer);
            }
        }
    }

    /// Returns how many datagrams to `addr` of at most this padded length may be sent as one.
    fn run_max(&self, addr: SocketAddr, padded: usize, sockets: Option<&SocketSet>, now: Instant) -> usize {
        let socket = sockets.and_then(|set| set.towards(addr));
        let has_gso = socket.is_some_and(|socket| socket.offloads().has(Feature::Gso));
        let is_avoided = self.unsegmented.holds(addr.ip(), padded + DATA_OVERHEAD, now);
        if has_gso && !is_avoided { RUN_MAX } else { 1 }
    }

    fn flush(&mut self, sockets: Option<&SocketSet>, now: Instant) {
        if self.outbox.segments.is_empty() {
            return;
        }
        self.outbox.seal(&self.read);
        let Self { shared, number, outbox, courier, heat, unsegmented, .. } = self;
        match shared.send_lane(*number) {
            Some((lanes, lane)) if lanes.is_used(lane, heat) => {
                let empty = lane.take_done().unwrap_or_else(|| Box::new(Outbox::new()));
                let mut sealed = std::mem::replace(outbox, empty);
                let mut drain = || lane.drain(|outbox| courier.deliver(outbox, sockets, now));
                while let Err(back) = lane.put(sealed) {
                    sealed = back;
                    // Who sends is slower than this worker.
                    drain();
                    std::thread::yield_now();
                }
                if !shared.call_for_help(lanes) {
                    drain();
                }
            }
            Some(_) | None => courier.deliver(outbox, sockets, now),
        }
        for (to, refused) in outbox.refused.drain(..) {
            unsegmented.remember(to, refused, now);
        }
    }
}

/// Sends what is sealed.
struct Courier {
    shared: Arc<Shared>,
    batch: SendBatch,
}

impl Courier {
    fn deliver(&mut self, outbox: &mut Outbox, sockets: Option<&SocketSet>, now: Instant) {
        let has = |is_v4: bool| outbox.targets.iter().any(|target| target.to.addr.is_ipv4() == is_v4);
        for is_v4 in [true, false].into_iter().filter(|&is_v4| has(is_v4)).collect::<ArrayVec<_, 2>>() {
            self.send(outbox, is_v4, sockets);
        }
        // Each peer is told once a message.
        for message in outbox.messages.iter().filter(|message| message.is_sent) {
            let Target { peer, keypair, .. } = &outbox.targets[usize::from(message.target)];
            if peer.sent(keypair, true, message.place.len() as u64, now) {
                self.shared.hand_over(peer);
            }
        }
        // It may be long until it is used again, and a session that is over shall not be kept until then ([W] §6.3).
        outbox.clear();
    }

    /// Sends the messages of one family.
    fn send(&mut self, outbox: &mut Outbox, is_v4: bool, sockets: Option<&SocketSet>) {
        let Self { shared, batch } = self;
        let Outbox { buffer, targets, messages, refused, .. } = outbox;
        let mut datagrams = ArrayVec::<Datagram<'_>, BATCH>::new();
        let mut owners = ArrayVec::<usize, BATCH>::new();
        for (owner, message) in messages.iter().enumerate() {
            let target = &targets[usize::from(message.target)];
            if target.to.addr.is_ipv4() == is_v4 {
                datagrams.push(Datagram {
                    to: target.to.addr,
                    from: target.to.source.map(|source| source.ip),
                    ds: target.ds,
                    hop_limit: target.hop_limit,
                    payload: &buffer[message.place.clone()],
                    segment: if message.count > 1 { u16::try_from(message.segment).unwrap_or(0) } else { 0 },
                });
                owners.push(owner);
            }
        }
        let socket = sockets.and_then(|set| if is_v4 { set.v4.as_ref() } else { set.v6.as_ref() });
        let Some(socket) = socket else {
            let segments = owners.iter().map(|&owner| messages[owner].count as u64).sum();
            shared.drops.add(Dropped::SendFailed, segments);
            return;
        };
        send_all(batch, socket, &mut datagrams, &shared.drops, Patience::SOME, |i, fate| {
            let message = &mut messages[owners[i]];
            let target = &targets[usize::from(message.target)];
            message.is_sent = fate != Fate::Dropped;
            match fate {
                Fate::Sent | Fate::Dropped => {}
                Fate::SentElsewise => target.peer.clear_source(),
                // Others are learnt by the next batch.
                Fate::SentSingly(runs) => drop(refused.try_push((target.to.addr.ip(), runs))),
            }
        });
    }
}

impl Outbox {
    fn new() -> Self {
        Self {
            buffer: vec![0; SEND_BUFFER].into(),
            used: 0,
            heads: Box::new([[0; HEADER_MAX]; BATCH]),
            segments: ArrayVec::new(),
            targets: ArrayVec::new(),
            messages: ArrayVec::new(),
            run_max: 1,
            refused: ArrayVec::new(),
        }
    }

    fn has_room(&self, len: usize) -> bool {
        !self.segments.is_full() && self.used + len <= self.buffer.len()
    }

    /// Returns the number of `target`, which is the last one or a new one. Every target has a segment, so one more has room if one more
    /// segment has.
    fn aim(&mut self, target: &Target) -> u8 {
        let is_last = self.targets.last().is_some_and(|last| {
            Arc::ptr_eq(&last.keypair, &target.keypair)
                && last.to == target.to
                && (last.ds, last.hop_limit) == (target.ds, target.hop_limit)
        });
        if !is_last {
            self.targets.push(target.clone());
        }
        u8::try_from(self.targets.len() - 1).unwrap_or(u8::MAX)
    }

    /// Returns room for the header of the next segment.
    fn next_head(&mut self) -> &mut [u8; HEADER_MAX] {
        &mut self.heads[self.segments.len()]
    }

    /// Gives a segment its place, behind the last one of its message or in a new message.
    fn place(&mut self, target: u8, counter: u64, head_len: usize, payload: Range<usize>, padded: usize) {
        let len = padded + DATA_OVERHEAD;
        let place = self.used..self.used + len;
        self.used = place.end;
        match self.messages.last_mut().filter(|last| last.takes(target, len, self.run_max)) {
            Some(last) => {
                last.place.end = place.end;
                last.count += 1;
                // Only the last datagram of a run may be shorter.
                last.is_open = len == last.segment;
            }
            None => self.messages.push(Message {
                target,
                place: place.clone(),
                segment: len,
                count: 1,
                is_open: true,
                is_sent: false,
            }),
        }
        let head_len = u16::try_from(head_len).unwrap_or(u16::MAX);
        self.segments.push(Segment { target, counter, head_len, payload, place });
    }

    /// Seals every segment, header and payload gathered, into its place.
    fn seal(&mut self, read: &[u8]) {
        let Self { buffer, heads, segments, targets, .. } = self;
        let mut jobs = ArrayVec::<SealJob<'_>, BATCH>::new();
        let mut rest = &mut buffer[..];
        for (segment, head) in segments.iter().zip(heads.iter()) {
            let keypair = &targets[usize::from(segment.target)].keypair;
            let (message, behind) = rest.split_at_mut(segment.place.len());
            rest = behind;
            let (header, dst) = message.split_at_mut(DATA_HEADER_LEN);
            header.copy_from_slice(&keypair.header(segment.counter).to_bytes());
            jobs.push(SealJob {
                key: keypair.sealing_key(),
                counter: segment.counter,
                // [W] §5.4.6: the padding behind the two is zero.
                parts: [&head[..usize::from(segment.head_len)], &read[segment.payload.clone()]],
                dst,
            });
        }
        aead::seal_batch(&mut jobs);
    }

    fn clear(&mut self) {
        self.used = 0;
        self.segments.clear();
        self.targets.clear();
        self.messages.clear();
    }
}

impl Message {
    /// Tells whether a datagram of `len` bytes for `target` may follow.
    fn takes(&self, target: u8, len: usize, run_max: usize) -> bool {
        self.is_open
            && self.target == target
            && len <= self.segment
            && self.count < run_max
            && self.place.len() + len <= MESSAGE_MAX
    }
}

/// Destinations to which the kernel refuses to send runs of datagrams: a device without checksum offload, a path with a smaller MTU.
///
/// One place for each of so many destinations. Of two that fall on one place the later one is known; the other is learnt again.
struct Unsegmented {
    places: Box<[Option<Refusal>; 1 << Self::BITS]>,
}

struct Refusal {
    to: IpAddr,
    runs: Refused,
    until: Instant,
}

impl Refusal {
    fn covers(&self, to: IpAddr, segment: usize, now: Instant) -> bool {
        let is_refused = match self.runs {
            Refused::OfLength(refused) => refused <= segment,
            Refused::Any => true,
        };
        is_refused && self.to == to && now < self.until
    }
}

impl Unsegmented {
    /// For how long a refusal is remembered: the route, or the device, may be another one then.
    const MEMORY: Duration = Duration::from_secs(300);

    const BITS: u32 = 8;

    fn new() -> Self {
        Self { places: Box::new([const { None }; 1 << Self::BITS]) }
    }

    fn place(to: IpAddr) -> usize {
        let bits = match to {
            IpAddr::V4(to) => to.to_bits().into(),
            IpAddr::V6(to) => to.to_bits(),
        };
        let words = [bits, bits >> 32, bits >> 64, bits >> 96].map(|word| (word & 0xffff_ffff) as u32);
        // Knuth, The Art of Computer Programming, volume 3, §6.4: multiplicative hashing.
        (words.iter().fold(0, |sum, word| sum ^ word).wrapping_mul(2_654_435_769) >> (32 - Self::BITS))
            as usize
    }

    fn remember(&mut self, to: IpAddr, runs: Refused, now: Instant) {
        let least = match runs {
            Refused::OfLength(refused) => refused,
            Refused::Any => 0,
        };
        // Others of the same batch may have been on their way.
        if self.holds(to, least, now) {
            return;
        }
        tracing::debug!(%to, ?runs, "runs of datagrams are refused: sent one by one");
        self.places[Self::place(to)] = Some(Refusal { to, runs, until: now + Self::MEMORY });
    }

    fn holds(&self, to: IpAddr, segment: usize, now: Instant) -> bool {
        self.places[Self::place(to)].as_ref().is_some_and(|refusal| refusal.covers(to, segment, now))
    }
}

struct Routed {
    peer: Arc<Peer>,
    to: Endpoint,
    mtu: usize,
    hop_limit: Option<u8>,
}

/// Finds out whom a packet is for ([W] §2; kernel `device.c`, `wg_xmit`).
fn route(packet: &[u8], view: &View, mtu: &Mtu, own_port: u16) -> Result<Routed, Dropped> {
    let destination = ip::destination(packet).map_err(|_| Dropped::InnerMalformed)?;
    let peer = view.route(destination).ok_or(Dropped::NoPeer)?;
    let to = peer.endpoint().ok_or(Dropped::NoEndpoint)?;
    // A route to the peer that leads back into the tunnel would wrap a packet again and again.
    if destination == to.addr.ip() && ip::is_udp(packet, own_port, to.addr) {
        return Err(Dropped::Loop);
    }
    let hop_limit = nesting::outer_hop_limit(packet)?;
    Ok(Routed { peer: Arc::clone(peer), to, mtu: mtu.towards(destination), hop_limit })
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
    use crate::crypto::random::Os;
    use crate::crypto::secret::Secret;
    use crate::crypto::x25519::PublicKey;
    use crate::device::spill::Spill;
    use crate::sys::offload::Active;
    use crate::wireguard::dropped::Drops;
    use crate::wireguard::interface::Interface;
    use crate::wireguard::keypair::Role;
    use crate::wireguard::noise::TransportKeys;

    /// Places segments for targets, of padded lengths, and returns the length and number of the datagrams of each message.
    fn placed(run_max: usize, segments: impl IntoIterator<Item = (u8, usize)>) -> Vec<(usize, usize)> {
        let mut outbox = Outbox::new();
        outbox.run_max = run_max;
        for (counter, (target, padded)) in (0..).zip(segments) {
            assert!(outbox.has_room(padded + DATA_OVERHEAD));
            outbox.place(target, counter, 0, 0..0, padded);
        }
        let ends = outbox.messages.iter().map(|message| message.place.end);
        let begins = outbox.messages.iter().map(|message| message.place.start);
        assert!(std::iter::once(0).chain(ends).zip(begins).all(|(end, begin)| end == begin), "no gaps");
        outbox.messages.iter().map(|message| (message.segment - DATA_OVERHEAD, message.count)).collect()
    }

    #[test]
    fn datagrams_of_one_length_to_one_place_are_one_message() {
        let equal = |count| std::iter::repeat_n((0, 64), count);
        assert_eq!(placed(RUN_MAX, equal(3)), [(64, 3)]);
        assert_eq!(placed(RUN_MAX, equal(RUN_MAX + 1)), [(64, RUN_MAX), (64, 1)]);
        assert_eq!(placed(1, equal(2)), [(64, 1), (64, 1)]);
        assert_eq!(
            placed(RUN_MAX, [(0, 64), (0, 48), (0, 48)]),
            [(64, 2), (48, 1)],
            "the last one may be shorter"
        );
        assert_eq!(placed(RUN_MAX, [(0, 48), (0, 64)]), [(48, 1), (64, 1)]);
        assert_eq!(placed(RUN_MAX, [(0, 64), (1, 64), (1, 64)]), [(64, 1), (64, 2)]);
        // 45 of 1440 bytes are 64,800.
        assert_eq!(placed(RUN_MAX, std::iter::repeat_n((0, 1408), 46)), [(1408, 45), (1408, 1)]);
    }

    fn target() -> Target {
        let keys = TransportKeys { send: Secret::new([1; 32]), receive: Secret::new([2; 32]) };
        Target {
            peer: Arc::new(Peer::new(1, PublicKey::new([1; 32]), 0, Arc::default())),
            keypair: Arc::new(Keypair::new(&keys, Role::Initiator, 1, 2, Instant::from_nanos(0))),
            to: Endpoint::new("192.0.2.1:7".parse().unwrap()),
            ds: 0,
            hop_limit: None,
        }
    }

    #[test]
    fn a_target_is_a_session_a_place_and_what_the_header_says() {
        let first = target();
        let elsewhere = Endpoint::new("192.0.2.1:8".parse().unwrap());
        let others = [
            Target { keypair: target().keypair, ..first.clone() },
            Target { to: elsewhere, ..first.clone() },
            Target { ds: 1, ..first.clone() },
            Target { hop_limit: Some(7), ..first.clone() },
        ];
        for other in &others {
            let mut outbox = Outbox::new();
            assert_eq!([&first, &first, other, other].map(|target| outbox.aim(target)), [0, 0, 1, 1]);
        }
    }

    #[test]
    fn who_sends_for_another_worker_keeps_no_session() {
        let drops = Arc::new(Drops::default());
        let view = Interface::new(Arc::clone(&drops), Box::new(Os)).view();
        let (shared, ..) = Shared::new(drops, view, 2, Active::default(), Spill::On).unwrap();
        let mut courier = Courier { shared: Arc::new(shared), batch: SendBatch::new(1) };
        let target = target();
        let mut outbox = Outbox::new();
        let number = outbox.aim(&target);
        outbox.place(number, 0, 0, 0..0, 64);
        courier.deliver(&mut outbox, None, Instant::from_nanos(0));
        assert_eq!(Arc::strong_count(&target.keypair), 1, "its keys must go when their time is over");
    }

    #[test]
    fn a_refusal_of_runs_is_remembered_for_five_minutes() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let [a, b, c] = ["192.0.2.1", "2001:db8::1", "192.0.2.3"].map(|addr| addr.parse().unwrap());
        let mut unsegmented = Unsegmented::new();
        assert!(!unsegmented.holds(a, 1452, at(10)));
        unsegmented.remember(a, Refused::OfLength(1452), at(10));
        unsegmented.remember(b, Refused::Any, at(20));
        for (to, segment, time, expected) in [
            (a, 1452, 10, true),
            (a, 1451, 10, false),
            (a, 9000, 309, true),
            (a, 1452, 310, false),
            (b, 32, 319, true),
            (b, 32, 320, false),
            (c, 1452, 20, false),
        ] {
            assert_eq!(unsegmented.holds(to, segment, at(time)), expected, "{to} {segment} {time}");
        }
        // A path may become narrower yet.
        unsegmented.remember(a, Refused::OfLength(1200), at(11));
        assert!(unsegmented.holds(a, 1300, at(12)));
    }

    #[test]
    fn many_destinations_are_remembered() {
        let mut unsegmented = Unsegmented::new();
        let now = Instant::from_nanos(0);
        let all: Vec<IpAddr> = (0..64_u8).map(|host| [10, 0, 0, host].into()).collect();
        for &to in &all {
            unsegmented.remember(to, Refused::Any, now);
        }
        let held = all.iter().filter(|&&to| unsegmented.holds(to, 100, now)).count();
        assert!(held >= 48, "only {held} of 64");
    }

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
