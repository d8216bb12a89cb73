//! What the threads share of one peer: sessions, endpoint, timers, counters and the packets that wait for a session.
//!
//! The data path calls [`Peer::reserve`], [`Peer::sent`], [`Peer::opened`] and [`Peer::stage`]; they take no lock. What only the control
//! thread may do (begin a handshake, rotate sessions, send staged packets, look at timers) is asked for by a flag: the call returns
//! `true` when the peer was not flagged before, and the caller hands it to the control thread, so that a peer is queued at most once.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use super::constants::{MAX_STAGED_BYTES, MAX_STAGED_PACKETS, REKEY_TIMEOUT};
use super::endpoint::{Endpoint, Place, Source};
use super::keypair::{Keypair, Keypairs};
use super::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, SegQueue};
use super::time::Instant;
use super::timers::Timers;
use crate::crypto::x25519::PublicKey;

/// A packet that waits for a session.
#[derive(Debug)]
pub struct Staged {
    /// The inner packet, unpadded; empty for a keepalive.
    pub packet: Box<[u8]>,
    /// The MTU that bounds its padding.
    pub mtu: usize,
    /// The outer DS field.
    pub ds: u8,
}

impl Staged {
    /// Returns what it takes of memory, in bytes: beside the packet, its place in the queue and what the allocator adds.
    fn bytes(&self) -> usize {
        self.packet.len() + 56
    }
}

/// What the packets of all peers take that wait for a session, in bytes.
#[derive(Debug, Default)]
pub struct StagedBytes(AtomicUsize);

/// What the control thread is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send what is staged, or begin a handshake for it.
    Flush = 1,
    /// The waiting session was confirmed.
    Confirm = 2,
    /// Begin a handshake: the session grows old.
    Rekey = 4,
    /// A timer is due earlier than the next look at this peer.
    Timers = 8,
    /// Ask for the way of a source that was learned: [`Peer::take_new_source`].
    Source = 16,
}

/// Counters reserved on a session.
#[derive(Debug)]
pub struct Ticket {
    /// The session.
    pub keypair: Arc<Keypair>,
    /// The first counter.
    pub first: u64,
}

/// One peer, as all threads see it.
#[derive(Debug)]
pub struct Peer {
    id: u32,
    public_key: PublicKey,
    keypairs: Keypairs,
    timers: Timers,
    place: ArcSwapOption<Place>,
    /// Nobody has asked yet for the way of the source that was learned last.
    has_new_source: AtomicBool,
    /// Made for the first packet: most peers of a large mesh never have one, and what is aligned to cache lines leaves holes in the heap.
    staged: OnceLock<Box<SegQueue<Staged>>>,
    staged_bytes: Arc<StagedBytes>,
    /// Packets that are staged, or handed out and not yet sent: later packets queue behind them, so that order is kept.
    waiting: AtomicU32,
    /// Whether more came than could wait.
    is_overrun: AtomicBool,
    asked: AtomicU8,
    /// When an initiation or response was last sent; nanoseconds, 0 for never.
    last_sent_handshake: AtomicU64,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
}

impl Peer {
    /// Returns a peer without sessions. `id` is the caller's name for it, `seed` any random number, `staged_bytes` common to all peers.
    pub fn new(id: u32, public_key: PublicKey, seed: u64, staged_bytes: Arc<StagedBytes>) -> Self {
        Self {
            id,
            public_key,
            keypairs: Keypairs::default(),
            timers: Timers::new(seed),
            place: ArcSwapOption::empty(),
            has_new_source: AtomicBool::new(false),
            staged: OnceLock::new(),
            staged_bytes,
            waiting: AtomicU32::new(0),
            is_overrun: AtomicBool::new(false),
            asked: AtomicU8::new(0),
            last_sent_handshake: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
        }
    }

    // ---- sending

    /// Reserves `count` counters of the current session. `None`: the packets have to be staged.
    pub fn reserve(&self, count: u64, now: Instant) -> Option<Ticket> {
        if self.waiting.load(SeqCst) != 0 {
            return None;
        }
        let keypair = self.keypairs.current()?;
        let first = keypair.reserve(count, now)?;
        Some(Ticket { keypair, first })
    }

    /// Notes that data messages of `bytes` UDP payload bytes in all were sent; `data` if one of them carried a packet.
    ///
    /// Returns whether the control thread is to be called.
    #[must_use]
    pub fn sent(&self, keypair: &Keypair, data: bool, bytes: u64, now: Instant) -> bool {
        self.count_sent(bytes);
        let mut ask = 0;
        if self.note_sent(data, now) {
            ask |= Ask::Timers as u8;
        }
        // Kernel `send.c`, `keep_key_fresh`; [W] §6.2.
        if keypair.is_stale_for_sending(now) && self.may_initiate(now) {
            ask |= Ask::Rekey as u8;
        }
        self.ask_bits(ask)
    }

    /// Lets a packet wait for a session; the oldest goes when there are more than 128 ([W] §6.4 and kernel `device.c`, `wg_xmit`), or when
    /// those of all peers take more than [`MAX_STAGED_BYTES`] and it is not the only one.
    ///
    /// Once there is a session for them, it is the newest that goes until none waits: a flow as fast as they are sent one by one would keep
    /// them waiting for ever.
    ///
    /// Returns how many were dropped, and whether the control thread is to be called.
    pub fn stage(&self, packet: Staged, now: Instant) -> (u64, bool) {
        if self.is_overrun.load(Relaxed) {
            if self.waiting.load(SeqCst) != 0 && self.has_session(now) {
                return (1, false);
            }
            self.is_overrun.store(false, Relaxed);
        }
        self.stage_quietly(packet);
        let mut dropped = 0;
        // One may always wait: a handshake is begun for it, and peers that do not answer shall not keep those out that would.
        let most = || {
            let is_full = self.staged_bytes.0.load(Relaxed) > MAX_STAGED_BYTES;
            if is_full { 1 } else { MAX_STAGED_PACKETS }
        };
        while self.staged_len() > most() && self.pop_staged().is_some() {
            dropped += 1;
        }
        self.release(dropped);
        if dropped > 0 {
            self.is_overrun.store(true, Relaxed);
        }
        // After the push, so that the control thread finds the packet.
        (u64::from(dropped), self.ask(Ask::Flush))
    }

    // ---- receiving

    /// Notes authentic data messages of one session that came from `from`; `data` if one of them carried a packet.
    ///
    /// Returns whether the control thread is to be called.
    #[must_use]
    pub fn opened(&self, keypair: &Keypair, data: bool, from: Endpoint, now: Instant) -> bool {
        let mut ask = 0;
        // [W] §2.1: the endpoint is where the last authentic packet came from.
        if self.learn_endpoint(from) {
            ask |= Ask::Source as u8;
        }
        if keypair.confirm() {
            ask |= Ask::Confirm as u8;
        }
        // Kernel `receive.c`, `keep_key_fresh`; [W] §6.2. A late packet of an old session does not make the one in use old.
        if keypair.is_stale_for_receiving(now)
            && self.keypairs.current().is_some_and(|current| current.is_stale_for_receiving(now))
            && self.timers.take_lastminute_handshake()
        {
            ask |= Ask::Rekey as u8;
        }
        if self.authenticated_received(now) {
            ask |= Ask::Timers as u8;
        }
        if data && self.timers.data_received(now) {
            ask |= Ask::Timers as u8;
        }
        self.ask_bits(ask)
    }

    /// Counts UDP payload bytes that were received and accepted.
    pub fn count_received(&self, bytes: u64) {
        self.rx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Returns where the peer is.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.place.load().as_deref().map(Place::endpoint)
    }

    /// Forgets the local address that datagrams to the peer leave by (kernel `socket.c`, `wg_socket_clear_peer_endpoint_src`).
    pub fn clear_source(&self) {
        self.change_place(|place| Place::new(Endpoint::new(place.endpoint().addr)));
    }

    /// Tells, once, that a source was learned since the last call: the way from it is to be asked for.
    pub fn take_new_source(&self) -> bool {
        self.has_new_source.swap(false, SeqCst)
    }

    /// Returns the peer's address and the source it was heard on, also one that was refused.
    pub fn way(&self) -> Option<(SocketAddr, Source)> {
        self.place.load().as_deref().and_then(Place::way)
    }

    /// Notes whether datagrams on this [`way`](Self::way) leave by the interface of the source; if not, the routing table chooses another.
    pub fn judge_source(&self, way: (SocketAddr, Source), is_good: bool) {
        self.change_place(|place| place.judged(way, is_good));
    }

    fn change_place(&self, change: impl Fn(Place) -> Place) {
        // A worker may learn another one meanwhile: that is changed, then.
        self.place.rcu(|known| {
            let place = known.as_deref()?;
            let changed = change(*place);
            if changed == *place { known.clone() } else { Some(Arc::new(changed)) }
        });
    }

    /// Returns the peer's static key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Returns the interface's name for the peer.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns UDP payload bytes sent and received.
    pub fn transferred(&self) -> (u64, u64) {
        (self.tx_bytes.load(Relaxed), self.rx_bytes.load(Relaxed))
    }

    /// Tells whether a session could carry a packet at `now`.
    pub fn has_session(&self, now: Instant) -> bool {
        self.keypairs.current().is_some_and(|keypair| keypair.may_send(now))
    }

    // ---- for the control thread

    pub(super) fn keypairs(&self) -> &Keypairs {
        &self.keypairs
    }

    pub(super) fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Flags what the control thread shall do and returns whether it has to be told of this peer.
    pub(super) fn ask(&self, what: Ask) -> bool {
        self.ask_bits(what as u8)
    }

    /// Takes everything that was asked for.
    pub(super) fn take_asked(&self) -> impl Fn(Ask) -> bool {
        let bits = self.asked.swap(0, SeqCst);
        move |what| bits & what as u8 != 0
    }

    /// Stages a packet without asking for anything.
    pub(super) fn stage_quietly(&self, packet: Staged) {
        self.waiting.fetch_add(1, SeqCst);
        self.staged_bytes.0.fetch_add(packet.bytes(), Relaxed);
        self.staged.get_or_init(|| Box::new(SegQueue::new())).push(packet);
    }

    /// Tells the timers that data messages were sent; returns whether they want a look (kernel `send.c`, `wg_packet_create_data_done`).
    pub(super) fn note_sent(&self, data: bool, now: Instant) -> bool {
        let traversed = self.authenticated_sent(now);
        let armed = data && self.timers.data_sent(now);
        traversed || armed
    }

    pub(super) fn pop_staged(&self) -> Option<Staged> {
        let packet = self.staged.get()?.pop()?;
        self.staged_bytes.0.fetch_sub(packet.bytes(), Relaxed);
        Some(packet)
    }

    pub(super) fn is_staged(&self) -> bool {
        self.staged.get().is_some_and(|staged| !staged.is_empty())
    }

    pub(super) fn staged_len(&self) -> usize {
        self.staged.get().map_or(0, |staged| staged.len())
    }

    /// Drops what is staged and returns how many packets that were.
    pub(super) fn purge_staged(&self) -> u64 {
        let mut dropped = 0;
        while self.pop_staged().is_some() {
            dropped += 1;
        }
        self.release(dropped);
        u64::from(dropped)
    }

    /// Notes that `packets` staged packets are sent or dropped: later ones may pass directly if no other waits.
    pub(super) fn release(&self, packets: u32) {
        if packets > 0 {
            self.waiting.fetch_sub(packets, SeqCst);
        }
    }

    pub(super) fn set_endpoint(&self, endpoint: Endpoint) {
        self.place.store(Some(Arc::new(Place::new(endpoint))));
    }

    /// Notes that something authentic came from there; returns whether the way from a new source is to be asked for.
    pub(super) fn learn_endpoint(&self, from: Endpoint) -> bool {
        if self.place.load().as_deref().is_some_and(|place| place.is(from)) {
            return false;
        }
        let mut is_new = false;
        self.place.rcu(|known| {
            let (place, is_same_way) = match known.as_deref() {
                Some(known) => known.moved_to(from),
                None => (Place::new(from), false),
            };
            is_new = !is_same_way && from.source.is_some();
            Some(Arc::new(place))
        });
        if is_new {
            self.has_new_source.store(true, SeqCst);
        }
        is_new
    }

    pub(super) fn count_sent(&self, bytes: u64) {
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Notes that anything authentic was sent; returns whether the timers want a look.
    pub(super) fn authenticated_sent(&self, now: Instant) -> bool {
        self.timers.any_authenticated_packet_sent();
        self.timers.any_authenticated_packet_traversal(now)
    }

    /// Notes that anything authentic was received; returns whether the timers want a look.
    pub(super) fn authenticated_received(&self, now: Instant) -> bool {
        self.timers.any_authenticated_packet_received();
        self.timers.any_authenticated_packet_traversal(now)
    }

    /// Tells whether the last handshake message was sent long enough ago for another initiation ([W] §6.4, kernel `send.c`).
    pub(super) fn may_initiate(&self, now: Instant) -> bool {
        match self.last_sent_handshake.load(Relaxed) {
            0 => true,
            last => now.since(Instant::from_nanos(last)) >= REKEY_TIMEOUT,
        }
    }

    pub(super) fn handshake_sent(&self, now: Instant) {
        self.last_sent_handshake.store(now.as_nanos().max(1), Relaxed);
    }

    /// Lets the next initiation be sent at once (kernel `noise.h`, `wg_noise_reset_last_sent_handshake`).
    pub(super) fn reset_last_sent_handshake(&self) {
        self.last_sent_handshake.store(0, Relaxed);
    }

    fn ask_bits(&self, bits: u8) -> bool {
        bits != 0 && self.asked.fetch_or(bits, SeqCst) == 0
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A worker may have staged another packet after the peer was removed.
        self.purge_staged();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::Secret;
    use crate::wireguard::keypair::Role;
    use crate::wireguard::noise::TransportKeys;
    use std::time::Duration;

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn peer() -> Peer {
        Peer::new(1, PublicKey::new([1; 32]), 0, Arc::default())
    }

    fn session(role: Role, birth: Instant) -> Arc<Keypair> {
        let keys = TransportKeys { send: Secret::new([1; 32]), receive: Secret::new([2; 32]) };
        Arc::new(Keypair::new(&keys, role, 1, 2, birth))
    }

    fn staged(number: u8) -> Staged {
        Staged { packet: [number].into(), mtu: 1420, ds: 0 }
    }

    #[test]
    fn the_last_minute_handshake_is_asked_for_once_and_only_for_the_session_in_use() {
        let peer = peer();
        let from = Endpoint::new("192.0.2.1:7".parse().unwrap());
        let rekey = |keypair: &Arc<Keypair>, now| {
            let _ = peer.opened(keypair, false, from, now);
            peer.take_asked()(Ask::Rekey)
        };
        let (old, new) = (session(Role::Initiator, at(0)), session(Role::Initiator, at(100)));
        peer.keypairs().add(Arc::clone(&old));
        peer.keypairs().add(Arc::clone(&new));
        assert!(!rekey(&old, at(166)), "the session in use is 66 s old");
        assert!(!rekey(&new, at(264)));
        assert!(rekey(&new, at(265)));
        assert!(!rekey(&new, at(266)), "once");
    }

    #[test]
    fn the_way_of_a_new_source_is_asked_for_and_that_of_a_known_one_is_not() {
        let peer = peer();
        let keypair = session(Role::Initiator, at(0));
        let source = Source { ip: "192.0.2.1".parse().unwrap(), interface: 3 };
        // Whether the way is to be asked for, and what replies leave by.
        let hear = |port, source| {
            let from = Endpoint { addr: SocketAddr::new("192.0.2.9".parse().unwrap(), port), source };
            let _ = peer.opened(&keypair, false, from, at(1));
            let is_asked = peer.take_asked()(Ask::Source);
            assert_eq!(peer.take_new_source(), is_asked);
            (is_asked, peer.endpoint().unwrap().source)
        };
        let other = Source { interface: 4, ..source };
        assert_eq!(hear(7, Some(source)), (true, Some(source)));
        assert_eq!(hear(7, Some(source)), (false, Some(source)));
        assert_eq!(hear(8, Some(source)), (false, Some(source)), "routes know no ports");
        assert_eq!(hear(8, Some(other)), (true, Some(other)));
        assert_eq!(hear(8, None), (false, None));
        assert_eq!(hear(8, Some(source)), (true, Some(source)));

        peer.judge_source(peer.way().unwrap(), false);
        assert_eq!(hear(9, Some(source)), (false, None), "it was refused");
        peer.clear_source();
        assert_eq!(hear(9, Some(source)), (true, Some(source)), "it is asked for anew");
    }

    #[test]
    fn more_than_128_waiting_packets_push_out_the_oldest() {
        let peer = peer();
        for number in 0..128 {
            assert_eq!(peer.stage(staged(number), at(1)).0, 0);
        }
        assert_eq!(peer.stage(staged(128), at(1)).0, 1);
        let left: Vec<_> = std::iter::from_fn(|| peer.pop_staged()).map(|staged| staged.packet[0]).collect();
        assert_eq!(left, (1..=128).collect::<Vec<_>>());
    }

    #[test]
    fn however_many_peers_there_are_what_waits_is_bounded_and_each_may_keep_one() {
        let shared = Arc::<StagedBytes>::default();
        let peer = |id| Peer::new(id, PublicKey::new([1; 32]), 0, Arc::clone(&shared));
        let packet = || Staged { packet: vec![0; 65_535].into(), mtu: 1420, ds: 0 };
        let mut peers: Vec<_> = (0..4).map(peer).collect();
        let dropped =
            |peer: &Peer, packets: u64| (0..packets).map(|_| peer.stage(packet(), at(1)).0).sum::<u64>();
        assert_eq!(dropped(&peers[0], 100), 0);
        // 127 of them take 8 MiB.
        assert_eq!(dropped(&peers[1], 50), 23);
        assert_eq!(dropped(&peers[2], 50), 49);
        assert_eq!(peers.iter().map(|peer| peer.staged_len()).collect::<Vec<_>>(), [100, 27, 1, 0]);
        assert_eq!(peers[0].purge_staged(), 100);
        assert_eq!(dropped(&peers[3], 50), 0);
        peers.clear();
        assert_eq!(shared.0.load(Relaxed), 0, "nothing is left of those that are gone");
    }

    #[test]
    fn a_flow_that_overruns_those_that_wait_for_a_session_lets_them_be_sent() {
        let peer = peer();
        for number in 0..=130 {
            let _ = peer.stage(staged(number), at(1));
        }
        peer.keypairs().add(session(Role::Initiator, at(2)));
        assert_eq!(peer.stage(staged(131), at(3)), (1, false), "the newest");
        assert_eq!(peer.pop_staged().unwrap().packet[0], 3);
        peer.release(1);
        assert_eq!(peer.stage(staged(132), at(3)), (1, false), "though there is room");
        assert_eq!(peer.purge_staged(), 127);
        assert!(peer.reserve(1, at(3)).is_some());
        // A session later, which a few wait for: there is room for the newest.
        assert_eq!(peer.stage(staged(0), at(300)).0, 0);
        peer.keypairs().add(session(Role::Initiator, at(301)));
        assert_eq!(peer.stage(staged(1), at(302)).0, 0);
    }

    #[test]
    fn while_packets_wait_none_overtakes_them() {
        let peer = peer();
        peer.keypairs().add(session(Role::Initiator, at(0)));
        assert!(peer.reserve(1, at(1)).is_some());
        assert!(peer.stage(staged(0), at(1)).1, "the control thread is called");
        assert!(!peer.stage(staged(1), at(1)).1, "once");
        assert!(peer.reserve(1, at(1)).is_none());
        assert!(peer.pop_staged().is_some() && peer.pop_staged().is_some());
        assert!(peer.reserve(1, at(1)).is_none(), "they are not sent yet");
        peer.release(1);
        assert!(peer.reserve(1, at(1)).is_none(), "one is left");
        peer.release(1);
        assert!(peer.reserve(1, at(1)).is_some());
    }
}

#[cfg(all(loom, test))]
mod models {
    use super::*;
    use crate::crypto::secret::Secret;
    use crate::wireguard::keypair::Role;
    use crate::wireguard::noise::TransportKeys;
    use crate::wireguard::sync::model;
    use loom::sync::Mutex;

    /// A peer with a session, and the packets that went out.
    struct Sending {
        peer: Peer,
        sent: Mutex<Vec<u8>>,
    }

    impl Sending {
        fn new() -> Self {
            let peer = Peer::new(1, PublicKey::new([1; 32]), 0, Arc::default());
            let keys = TransportKeys { send: Secret::new([1; 32]), receive: Secret::new([2; 32]) };
            peer.keypairs().add(Arc::new(Keypair::new(&keys, Role::Initiator, 1, 2, Instant::default())));
            Self { peer, sent: Mutex::new(Vec::new()) }
        }

        fn stage(&self, number: u8) -> bool {
            self.peer.stage(Staged { packet: [number].into(), mtu: 1420, ds: 0 }, Instant::default()).1
        }

        /// What a worker does with a packet. Returns whether the control thread is called.
        fn send(&self, number: u8) -> bool {
            if self.peer.reserve(1, Instant::default()).is_none() {
                return self.stage(number);
            }
            self.sent.lock().unwrap().push(number);
            false
        }

        /// What the control thread does when it is called.
        fn flush(&self) {
            if self.peer.take_asked()(Ask::Flush) {
                let mut handed_out = 0;
                while let Some(staged) = self.peer.pop_staged() {
                    self.sent.lock().unwrap().push(staged.packet[0]);
                    handed_out += 1;
                }
                self.peer.release(handed_out);
            }
        }
    }

    #[test]
    fn loom_a_packet_staged_while_the_others_are_sent_is_neither_stuck_nor_overtaken() {
        model(|| {
            let sending = Arc::new(Sending::new());
            assert!(sending.stage(0));
            let worker = loom::thread::spawn({
                let sending = Arc::clone(&sending);
                move || (1..3).fold(false, |called, number| called | sending.send(number))
            });
            sending.flush();
            if worker.join().unwrap() {
                sending.flush();
            }
            assert_eq!(*sending.sent.lock().unwrap(), [0, 1, 2]);
            assert!(sending.peer.reserve(1, Instant::default()).is_some(), "packets pass directly again");
        });
    }

    #[test]
    fn loom_packets_of_two_workers_are_all_sent() {
        model(|| {
            let sending = Arc::new(Sending::new());
            assert!(sending.stage(0));
            let workers = [1, 2].map(|number| {
                let sending = Arc::clone(&sending);
                loom::thread::spawn(move || sending.send(number))
            });
            sending.flush();
            let called = workers.map(|worker| worker.join().unwrap());
            called.into_iter().filter(|&called| called).for_each(|_| sending.flush());
            let mut sent = sending.sent.lock().unwrap().clone();
            sent.sort_unstable();
            assert_eq!(sent, [0, 1, 2]);
            assert!(sending.peer.reserve(1, Instant::default()).is_some());
        });
    }
}
