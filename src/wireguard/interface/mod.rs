//! The interface: our key, the peers, and every rule that needs to see more than one packet ([W] §3, §5, §6).
//!
//! One thread, the control thread, owns the [`Interface`] and feeds it: handshake messages, peers that asked for something, the time,
//! edits. It takes out what is to be sent ([`Interface::poll_transmit`]) and the next moment to look at the timers
//! ([`Interface::poll_timeout`]). The data path on other threads sees a [`View`]: routes, indices and peers, of which it needs no lock.
//!
//! ```text
//! TUN → UDP   view.route(destination) → peer.reserve(n) (sequential) → seal (parallel) → send (in order) → peer.sent()
//!             no session: peer.stage(packet), and the control thread goes on with it
//! UDP → TUN   view.session(receiver) → keypair.open() (parallel) → accept counter, peer.opened(), view.admit() (in order) → write
//!             a handshake message: Interface::handle_handshake()
//! ```

mod edits;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use zeroize::Zeroize;

use crate::config::{Edit, PeerSnapshot, Prefix, PresharedKey, Refused, Snapshot};
use crate::crypto::random::Random;
use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::packet::{ecn, ip};
use crate::wireguard::allowed_ips::AllowedIps;
use crate::wireguard::constants::{INITIATION_INTERVAL, MAX_PEERS, MAX_TIMER_HANDSHAKES};
use crate::wireguard::dropped::{Dropped, Drops};
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::handshake_times::HandshakeTimes;
use crate::wireguard::index::{Entry, Table};
use crate::wireguard::keyed::Keyed;
use crate::wireguard::keypair::{Keypair, Role};
use crate::wireguard::load::{Load, RATE_LIMITER_ENTRIES, Screened, screen};
use crate::wireguard::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, Message, RESPONSE_LEN};
use crate::wireguard::noise::{self, CreatedInitiation, Static, TransportKeys};
use crate::wireguard::peer::{Ask, Peer, Staged, StagedBytes};
use crate::wireguard::ratelimiter::RateLimiter;
use crate::wireguard::tai64n::Timestamp;
use crate::wireguard::time::{Instant, Moment};
use crate::wireguard::timers::Timer;
use crate::wireguard::{constants, cookie};

/// A peer as the value of a prefix; two are equal if they are the same peer.
#[derive(Clone, Debug)]
struct Route(Arc<Peer>);

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What the data path needs to know of the interface: a consistent picture that never changes.
#[derive(Clone)]
pub struct View {
    routes: AllowedIps<Route>,
    table: Arc<Table>,
    checker: Option<Arc<cookie::Checker>>,
    load: Arc<Load>,
}

impl View {
    /// Returns the peer that inner packets to `destination` go to ([W] §2).
    pub fn route(&self, destination: IpAddr) -> Option<&Arc<Peer>> {
        self.routes.lookup(destination).map(|Route(peer)| peer)
    }

    /// Returns the session that receives under `index`, with its peer.
    pub fn session(&self, index: u32) -> Option<Arc<Entry>> {
        self.table.lookup(index).filter(|entry| entry.keypair().is_some())
    }

    /// Tells whether `index` is one that we gave to a peer: a response or a cookie reply to any other answers nothing.
    pub fn knows(&self, index: u32) -> bool {
        self.table.lookup(index).is_some()
    }

    /// Returns what checks the macs of handshake messages; none before a private key is set.
    pub fn checker(&self) -> Option<&cookie::Checker> {
        self.checker.as_deref()
    }

    /// Returns what tells whether handshake messages are too many.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Checks an opened packet from `peer`, padding included, and returns its length without the padding.
    ///
    /// # Errors
    /// Says why it must not reach the TUN device.
    pub fn admit(&self, peer: &Arc<Peer>, packet: &mut [u8], outer_ecn: u8) -> Result<usize, Dropped> {
        // Kernel `receive.c`, `wg_packet_consume_data_done`: version, then lengths, then ECN, then the source.
        let inner = ip::inner(packet).map_err(|_| Dropped::InnerMalformed)?;
        // RFC 6040 §4.2.
        ecn::decapsulate(&mut packet[..inner.len], outer_ecn);
        // [W] §2: "the source IP … must correspond" to the peer, in the table of the whole interface.
        match self.routes.lookup(inner.source) {
            Some(Route(owner)) if Arc::ptr_eq(owner, peer) => Ok(inner.len),
            Some(_) | None => Err(Dropped::NotAllowedSource),
        }
    }
}

/// Peers whose timers one call handles: a few milliseconds of handshakes.
const PEERS_PER_TIMEOUT: usize = 64;

/// A datagram to send.
#[derive(Debug)]
pub struct Transmit {
    /// Whom it is for; a cookie reply is for nobody known.
    pub peer: Option<Arc<Peer>>,
    /// Where to, and from which of our addresses.
    pub to: Endpoint,
    /// The outer DS field.
    pub ds: u8,
    /// The UDP payload.
    pub datagram: Vec<u8>,
}

enum Output {
    Transmit(Transmit),
    /// So many staged packets of the peer have been handed out before.
    Release(Arc<Peer>, u32),
}

/// The initiation we sent last and wait for, if any.
enum Handshake {
    Idle,
    Initiated { index: u32, created: Box<CreatedInitiation> },
}

/// The half of a peer that only the control thread sees.
struct Control {
    peer: Arc<Peer>,
    psk: PresharedKey,
    /// `DH(S_priv, peer)`, computed when first needed; the inner `None` is a key of low order.
    static_static: Option<Option<Secret<32>>>,
    cookie: cookie::Generator,
    handshake: Handshake,
    /// When the first initiation was sent of those that no session has come of yet.
    waits_since: Option<Instant>,
    /// The greatest timestamp that an initiation of this peer carried ([W] §5.1).
    latest_timestamp: Option<Timestamp>,
    last_initiation_consumed: Option<Instant>,
    last_timestamp_sent: Option<Timestamp>,
    last_handshake: Option<Duration>,
    allowed_ips: BTreeSet<Prefix>,
    /// The moment in the schedule.
    wake_up: Option<Instant>,
}

/// By their numbers. Boxed: a map that moves what is in it leaves copies of keys behind.
type Peers = BTreeMap<u32, Box<Control>>;

/// A WireGuard interface.
pub struct Interface {
    own: Option<Own>,
    up: bool,
    peers: Peers,
    /// Whoever knows our public key may ask for any key: the time of a look-up must not tell whom we know.
    by_key: HashMap<PublicKey, u32, Keyed>,
    next_id: u32,
    routes: AllowedIps<Route>,
    table: Arc<Table>,
    /// Tables that grew; other threads may see them for a while.
    retired: Vec<Weak<Table>>,
    /// Indices in use.
    indices: usize,
    /// Indices of a peer are equal to its number modulo this.
    workers: u32,
    /// Whether the view that was handed out last is out of date.
    changed: bool,
    /// What is left of peers that were removed all at once. A view that is still shown holds the other half, and both shall go at one
    /// time: otherwise their successors fill the holes in between, those of the map's nodes too, and neither half can be given back to
    /// the system.
    removed: Vec<Peers>,
    schedule: BTreeSet<(Instant, u32)>,
    outputs: VecDeque<Output>,
    limiter: RateLimiter,
    load: Arc<Load>,
    drops: Arc<Drops>,
    staged_bytes: Arc<StagedBytes>,
    handshake_times: Arc<HandshakeTimes>,
    random: Box<dyn Random + Send>,
}

struct Own {
    keys: Static,
    checker: Arc<cookie::Checker>,
}

impl Interface {
    /// Returns an interface that is down and has neither key nor peers.
    pub fn new(drops: Arc<Drops>, mut random: Box<dyn Random + Send>) -> Self {
        let mut seeds = [[0; 16]; 2];
        seeds.iter_mut().for_each(|seed| random.fill(seed));
        Self {
            own: None,
            up: false,
            peers: BTreeMap::new(),
            by_key: HashMap::with_hasher(Keyed::new(seeds[0])),
            next_id: 0,
            routes: AllowedIps::new(),
            table: Arc::new(Table::new(0)),
            retired: Vec::new(),
            indices: 0,
            workers: 1,
            changed: false,
            removed: Vec::new(),
            schedule: BTreeSet::new(),
            outputs: VecDeque::new(),
            limiter: RateLimiter::new(seeds[1], RATE_LIMITER_ENTRIES),
            load: Arc::default(),
            drops,
            staged_bytes: Arc::default(),
            handshake_times: Arc::default(),
            random,
        }
    }

    /// Spreads peers over `workers`: the index of every session to come, modulo that number, names the worker.
    pub fn spread(&mut self, workers: u32) {
        self.workers = workers;
    }

    // ---- what happens

    /// Handles a handshake message from `from`, while `queued` more wait.
    ///
    /// # Errors
    /// Says why it was dropped; it left no trace then.
    pub fn handle_handshake(
        &mut self,
        datagram: &mut [u8],
        from: Endpoint,
        queued: usize,
        moment: Moment,
    ) -> Result<(), Dropped> {
        let under_load = self.load.is_heavy(queued, moment.now);
        if !self.up {
            return Err(Dropped::Down);
        }
        match Message::parse(datagram) {
            Some(Message::Initiation(message)) => {
                self.admit_handshake(message, from, under_load, moment.now)?;
                let consumed = self.consume_initiation(message, from, moment);
                if consumed.is_err() {
                    self.load.note_in_vain(moment.now);
                }
                consumed
            }
            Some(Message::Response(message)) => {
                self.admit_handshake(message, from, under_load, moment.now)?;
                self.consume_response(message, from, moment)
            }
            Some(Message::CookieReply(message)) => self.consume_cookie_reply(message, moment.now),
            Some(Message::Data(_)) | None => Err(Dropped::Malformed),
        }
    }

    /// Does what a peer's flags ask for.
    pub fn handle_asked(&mut self, peer: &Arc<Peer>, moment: Moment) {
        let asked = peer.take_asked();
        let id = peer.id();
        if !self.peers.get(&id).is_some_and(|control| Arc::ptr_eq(&control.peer, peer)) {
            // Removed meanwhile.
            self.drops.add(Dropped::NoPeer, peer.purge_staged());
            return;
        }
        if asked(Ask::Confirm) {
            self.promote(id, moment);
        }
        if asked(Ask::Rekey) {
            self.initiate(id, Attempt::First, moment);
        }
        if asked(Ask::Flush) {
            self.flush(id, moment);
        }
        self.reschedule(id);
    }

    /// Handles what is due at a bounded number of peers, so that others who want the interface need not wait for all of them.
    ///
    /// While [`poll_timeout`](Self::poll_timeout) is not later than now, it is to be called again.
    pub fn handle_timeout(&mut self, moment: Moment) {
        for _ in 0..PEERS_PER_TIMEOUT {
            let Some(&(due, id)) = self.schedule.first().filter(|(due, _)| *due <= moment.now) else {
                return;
            };
            self.schedule.remove(&(due, id));
            if let Some(control) = self.peers.get_mut(&id) {
                control.wake_up = None;
                let peer = Arc::clone(&control.peer);
                while let Some(timer) = peer.timers().take_due(moment.now) {
                    self.expired(id, timer, moment);
                }
                self.reschedule(id);
            }
        }
    }

    /// Starts work: the sockets are open and the device is up (kernel `device.c`, `wg_open`).
    pub fn up(&mut self, moment: Moment) {
        if std::mem::replace(&mut self.up, true) {
            return;
        }
        for id in self.ids() {
            self.flush_staged(id, moment);
            if self.peers[&id].peer.timers().persistent_keepalive() != 0 {
                self.send_keepalive(id, moment);
            }
            self.reschedule(id);
        }
    }

    /// Stops work: sessions are wiped, timers stopped, waiting packets dropped (kernel `device.c`, `wg_stop`).
    pub fn down(&mut self) {
        self.up = false;
        while self.poll_transmit().is_some() {}
        for id in self.ids() {
            self.forget_sessions(id);
            let peer = Arc::clone(&self.peers[&id].peer);
            self.drops.add(Dropped::Down, peer.purge_staged());
            peer.timers().stop_all();
            peer.reset_last_sent_handshake();
            self.reschedule(id);
        }
    }

    /// The machine slept: sessions and handshakes are wiped (kernel `device.c`, `wg_pm_notification`).
    pub fn suspended(&mut self) {
        for id in self.ids() {
            self.forget_sessions(id);
        }
    }

    /// Forgets the local addresses that datagrams leave by: the port or the mark changed (kernel `netlink.c`, `wg_set_device`).
    pub fn clear_sources(&self) {
        self.peers.values().for_each(|control| control.peer.clear_source());
    }

    // ---- what is wanted

    /// Applies all edits or none. [`Edit::ListenPort`] and [`Edit::Fwmark`] are the device's business and skipped.
    ///
    /// # Errors
    /// [`Refused::TooManyPeers`].
    pub fn apply(&mut self, edits: &[Edit], moment: Moment) -> Result<(), Refused> {
        let created = edits.iter().filter(|edit| matches!(edit, Edit::Peer(peer) if !peer.remove)).count();
        if created > MAX_PEERS - self.peers.len().min(MAX_PEERS) && self.peers_after(edits) > MAX_PEERS {
            return Err(Refused::TooManyPeers);
        }
        for edit in edits {
            match edit {
                Edit::PrivateKey(key) => self.set_private_key(key.as_ref(), moment),
                Edit::ListenPort(_) | Edit::Fwmark(_) => {}
                Edit::ClearPeers => self.clear_peers(),
                Edit::Peer(edit) => self.edit_peer(edit, moment),
            }
        }
        Ok(())
    }

    /// Returns configuration and counters; port and mark are the device's to fill in.
    pub fn snapshot(&self) -> Snapshot {
        let peers = self.peers.values().map(|control| control.snapshot()).collect();
        let private_key = self.own.as_ref().map(|own| own.keys.private().clone());
        Snapshot { private_key, listen_port: 0, fwmark: 0, peers }
    }

    // ---- what follows

    /// Returns the next datagram to send. Call it until there is none, sending each before the next call.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        loop {
            match self.outputs.pop_front()? {
                Output::Transmit(transmit) => return Some(transmit),
                // Those that came meanwhile wait for the next look at the peer, which whoever staged them has asked for.
                Output::Release(peer, packets) => peer.release(packets),
            }
        }
    }

    /// Returns when [`Interface::handle_timeout`] is next to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.schedule.first().map(|&(due, _)| due)
    }

    /// Returns what the data path is to see if that has changed since the last call.
    pub fn poll_view(&mut self) -> Option<View> {
        if !std::mem::take(&mut self.changed) {
            // The last one is shown by now.
            self.removed = Vec::new();
            return None;
        }
        Some(self.view())
    }

    /// Returns what the data path is to see.
    pub fn view(&self) -> View {
        View {
            routes: self.routes.clone(),
            table: Arc::clone(&self.table),
            checker: self.own.as_ref().map(|own| Arc::clone(&own.checker)),
            load: Arc::clone(&self.load),
        }
    }

    /// Returns our public key, if a key is set.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.own.as_ref().map(|own| own.keys.public())
    }

    /// Returns how long handshakes took.
    pub fn handshake_times(&self) -> &Arc<HandshakeTimes> {
        &self.handshake_times
    }

    /// Returns every peer.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.values().map(|control| &control.peer)
    }

    /// Returns the peer with this key.
    pub fn peer(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key).map(|id| &self.peers[id].peer)
    }

    // ---- handshake messages in

    /// mac1, and under load mac2 and the rate limit ([W] §5.3, §5.4.4).
    fn admit_handshake(
        &mut self,
        message: &[u8],
        from: Endpoint,
        under_load: bool,
        now: Instant,
    ) -> Result<(), Dropped> {
        let own = self.own.as_ref().ok_or(Dropped::NoPrivateKey)?;
        if !under_load {
            return if own.checker.check_mac1(message) { Ok(()) } else { Err(Dropped::BadMac1) };
        }
        match screen(&own.checker, &mut self.limiter, message, from.addr, now, self.random.as_mut()) {
            Screened::Admitted => Ok(()),
            Screened::Dropped(reason) => Err(reason),
            Screened::Answered(reply) => {
                self.outputs.push_back(Output::Transmit(Transmit {
                    peer: None,
                    to: from,
                    ds: constants::HANDSHAKE_DS,
                    datagram: reply.to_vec(),
                }));
                self.load.note_in_vain(now);
                Err(Dropped::CookieSent)
            }
        }
    }

    fn consume_initiation(
        &mut self,
        message: &[u8; INITIATION_LEN],
        from: Endpoint,
        moment: Moment,
    ) -> Result<(), Dropped> {
        let own = self.own.as_ref().ok_or(Dropped::NoPrivateKey)?;
        let opened = noise::open_initiation(&own.keys, message).ok_or(Dropped::BadInitiation)?;
        let id = *self.by_key.get(opened.peer()).ok_or(Dropped::BadInitiation)?;
        let control = self.peers.get_mut(&id).ok_or(Dropped::BadInitiation)?;
        let static_static = control.static_static(&own.keys).ok_or(Dropped::BadInitiation)?;
        let consumed = opened.authenticate(static_static).ok_or(Dropped::BadInitiation)?;
        // [W] §5.1: "the responder keeps track of the greatest timestamp received per peer and discards" the others.
        if control.latest_timestamp.is_some_and(|latest| consumed.timestamp() <= latest) {
            return Err(Dropped::StaleInitiation);
        }
        // Kernel `noise.c`, `wg_noise_handshake_consume_initiation`: at most INITIATIONS_PER_SECOND.
        let flood = control
            .last_initiation_consumed
            .is_some_and(|last| moment.now.since(last) < INITIATION_INTERVAL && moment.now >= last);
        if flood {
            return Err(Dropped::InitiationFlood);
        }
        // Success:
        control.latest_timestamp = Some(consumed.timestamp());
        control.last_initiation_consumed = Some(moment.now);
        let peer = Arc::clone(&control.peer);
        // [W] §2.1: before the response is sent, so that it goes to where the initiation came from.
        peer.learn_endpoint(from);
        self.respond(id, consumed, moment);
        peer.count_received(INITIATION_LEN as u64);
        let _ = peer.authenticated_received(moment.now);
        self.reschedule(id);
        Ok(())
    }

    /// Sends the response and begins the session that waits for its confirmation ([W] §5.4.3, §5.4.5).
    fn respond(&mut self, id: u32, consumed: noise::ConsumedInitiation, moment: Moment) {
        let now = moment.now;
        let (ephemeral, first) = self.draw();
        let peer = Arc::clone(&self.peers[&id].peer);
        // Our own initiation, if one is under way, is not superseded by this one as in the kernel (`noise.c`: one handshake state per
        // peer): two sides that begin at once would each refuse the other's response, and wait.
        let index = self.new_index(&peer, first);
        let remote = consumed.sender();
        let Some(control) = self.peers.get_mut(&id) else { return };
        let Some((keys, mut message)) = consumed.create_response(&control.psk, &ephemeral, index) else {
            self.remove_index(index);
            return;
        };
        control.cookie.add_macs(&mut message, now);
        // A worker may have seen the last session confirmed, and uses it, before this thread has looked: it must not make room for one that
        // is not confirmed yet (kernel `noise.c`, `wg_noise_received_with_keypair`: there the first data message moves it at once).
        self.promote(id, moment);
        self.begin_session(id, &keys, Role::Responder, index, remote, now);
        let _ = peer.authenticated_sent(now);
        // A response counts as well, so that both sides do not begin at once (kernel `send.c`, `wg_packet_send_handshake_response`).
        peer.handshake_sent(now);
        self.send_handshake(&peer, &message);
    }

    fn consume_response(
        &mut self,
        message: &[u8; RESPONSE_LEN],
        from: Endpoint,
        moment: Moment,
    ) -> Result<(), Dropped> {
        let own = self.own.as_ref().ok_or(Dropped::NoPrivateKey)?;
        let receiver = u32::from_le_bytes([message[8], message[9], message[10], message[11]]);
        let entry = self.table.lookup(receiver).ok_or(Dropped::BadResponse)?;
        let id = entry.peer().id();
        let control = self.peers.get_mut(&id).ok_or(Dropped::BadResponse)?;
        // One thread owns this state, so nothing can change it between the key agreement and the commit (kernel `noise.c` re-checks).
        let Handshake::Initiated { index, created } = &control.handshake else {
            return Err(Dropped::BadResponse);
        };
        if *index != receiver {
            return Err(Dropped::BadResponse);
        }
        let (keys, remote) =
            created.consume_response(&own.keys, &control.psk, message).ok_or(Dropped::BadResponse)?;
        // Success:
        control.handshake = Handshake::Idle;
        let peer = Arc::clone(&control.peer);
        peer.learn_endpoint(from);
        peer.count_received(RESPONSE_LEN as u64);
        let _ = peer.authenticated_received(moment.now);
        self.begin_session(id, &keys, Role::Initiator, receiver, remote, moment.now);
        self.handshake_complete(id, moment);
        // [W] §5.4.5: the responder may send only once it has heard from us: staged packets, or else an empty one.
        self.send_keepalive(id, moment);
        self.reschedule(id);
        Ok(())
    }

    fn consume_cookie_reply(
        &mut self,
        message: &[u8; COOKIE_REPLY_LEN],
        now: Instant,
    ) -> Result<(), Dropped> {
        let receiver = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
        let entry = self.table.lookup(receiver).ok_or(Dropped::BadCookieReply)?;
        let control = self.peers.get_mut(&entry.peer().id()).ok_or(Dropped::BadCookieReply)?;
        // [W] §6.6: the cookie is kept for the next message; nothing is sent at once, and neither endpoint nor timers move.
        match control.cookie.consume_reply(message, now) {
            true => Ok(()),
            false => Err(Dropped::BadCookieReply),
        }
    }

    // ---- handshakes and sessions out

    /// Sends an initiation if one may be sent ([W] §6.4; kernel `send.c`, `wg_packet_send_handshake_initiation`).
    fn initiate(&mut self, id: u32, attempt: Attempt, moment: Moment) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        let peer = Arc::clone(&control.peer);
        if attempt == Attempt::First {
            peer.timers().reset_attempts();
        }
        if !self.up {
            return;
        }
        if !peer.may_initiate(moment.now) {
            // The kernel would forget the attempt here, and two sides that began at once could both wait for ever.
            if attempt == Attempt::Retry || peer.is_staged() {
                peer.timers().handshake_deferred(moment.now);
            }
            return;
        }
        peer.handshake_sent(moment.now);
        let Some(own) = self.own.as_ref() else { return };
        let Some(static_static) = control.static_static(&own.keys).cloned() else { return };
        let timestamp = Timestamp::next_after(moment.unix, control.last_timestamp_sent);
        let (ephemeral, first) = self.draw();
        self.forget_handshake(id);
        let index = self.new_index(&peer, first);
        let (Some(control), Some(own)) = (self.peers.get_mut(&id), self.own.as_ref()) else { return };
        let public_key = *peer.public_key();
        let created =
            noise::create_initiation(&own.keys, &public_key, &static_static, ephemeral, timestamp, index);
        let Some((created, mut message)) = created else {
            // A key of low order: nothing is ever sent to it.
            self.remove_index(index);
            return;
        };
        control.handshake = Handshake::Initiated { index, created: Box::new(created) };
        control.last_timestamp_sent = Some(timestamp);
        if peer.endpoint().is_some() {
            control.waits_since.get_or_insert(moment.now);
        }
        control.cookie.add_macs(&mut message, moment.now);
        let _ = peer.authenticated_sent(moment.now);
        self.send_handshake(&peer, &message);
        peer.timers().handshake_initiated(moment.now);
    }

    fn begin_session(
        &mut self,
        id: u32,
        keys: &TransportKeys,
        role: Role,
        local: u32,
        remote: u32,
        now: Instant,
    ) {
        let peer = Arc::clone(&self.peers[&id].peer);
        let keypair = Keypair::new(keys, role, local, remote, now);
        // Both sides began at once. Only one is to begin when these sessions are old: the indices of the initiators, which both know, tell.
        let is_late = role == Role::Initiator
            && peer.keypairs().next().is_some_and(|of_other_side| local > of_other_side.remote());
        let keypair = Arc::new(if is_late { keypair.renewed_late() } else { keypair });
        // The session takes over the handshake's index (kernel `peerlookup.c`, `wg_index_hashtable_replace`).
        self.table.set_keypair(&peer, &keypair);
        let displaced = peer.keypairs().add(keypair);
        displaced.into_iter().flatten().for_each(|old| self.remove_index(old.local()));
        peer.timers().session_derived(now);
    }

    /// The first data message of the waiting session has come.
    fn promote(&mut self, id: u32, moment: Moment) {
        let (promoted, displaced) = self.peers[&id].peer.keypairs().promote();
        displaced.into_iter().flatten().for_each(|old| self.remove_index(old.local()));
        if promoted {
            // Whatever we began meanwhile is not needed.
            self.forget_handshake(id);
            self.handshake_complete(id, moment);
            self.flush_staged(id, moment);
        }
    }

    fn handshake_complete(&mut self, id: u32, moment: Moment) {
        if let Some(control) = self.peers.get_mut(&id) {
            control.peer.timers().handshake_complete();
            control.last_handshake = Some(moment.unix);
            if let Some(since) = control.waits_since.take() {
                self.handshake_times.count(moment.now.since(since));
            }
        }
    }

    // ---- data from the control thread

    /// Sends what is staged, or begins a handshake for it (kernel `send.c`, `wg_packet_send_staged_packets`).
    fn flush(&mut self, id: u32, moment: Moment) {
        let peer = Arc::clone(&self.peers[&id].peer);
        if !self.up {
            self.drops.add(Dropped::Down, peer.purge_staged());
            return;
        }
        let is_stale = match self.flush_now(&peer, moment.now) {
            Flushed::NoSession => true,
            // Kernel `send.c`, `keep_key_fresh`: a keepalive renews an old session as any other packet does ([W] §6.2).
            Flushed::All { sent } => {
                sent && peer
                    .keypairs()
                    .current()
                    .is_some_and(|keypair| keypair.is_stale_for_sending(moment.now))
            }
        };
        if is_stale {
            self.initiate(id, Attempt::First, moment);
        }
    }

    fn flush_staged(&mut self, id: u32, moment: Moment) {
        if self.peers[&id].peer.is_staged() {
            self.flush(id, moment);
        }
    }

    /// Sends the empty packet, unless something is staged that serves as well (kernel `send.c`, `wg_packet_send_keepalive`).
    fn send_keepalive(&mut self, id: u32, moment: Moment) {
        let peer = &self.peers[&id].peer;
        if !peer.is_staged() {
            peer.stage_quietly(Staged { packet: Box::default(), mtu: 0, ds: 0 });
        }
        self.flush(id, moment);
    }

    /// Hands out what is staged, in order, as far as there is a session for it.
    fn flush_now(&mut self, peer: &Arc<Peer>, now: Instant) -> Flushed {
        let Some(keypair) = peer.keypairs().current() else { return Flushed::NoSession };
        let mut data = false;
        let mut sent = false;
        let mut ended = false;
        let mut handed_out = 0;
        // Those that are there now: a worker may stage others as fast as these go, and has asked to look again after each.
        for _ in 0..peer.staged_len() {
            // [W] §6.2: a session past its limits sends nothing; what is staged stays staged.
            let Some(counter) = keypair.reserve(1, now) else {
                ended = true;
                break;
            };
            let Some(staged) = peer.pop_staged() else { break };
            handed_out += 1;
            let Some(endpoint) = peer.endpoint() else {
                self.drops.count(Dropped::NoEndpoint);
                continue;
            };
            let datagram = keypair.seal_to_vec(counter, &staged.packet, staged.mtu);
            peer.count_sent(datagram.len() as u64);
            data |= !staged.packet.is_empty();
            sent = true;
            let transmit = Transmit { peer: Some(Arc::clone(peer)), to: endpoint, ds: staged.ds, datagram };
            self.outputs.push_back(Output::Transmit(transmit));
        }
        if sent {
            // Every caller schedules the peer's timers.
            let _ = peer.note_sent(data, now);
        }
        self.outputs.push_back(Output::Release(Arc::clone(peer), handed_out));
        if ended { Flushed::NoSession } else { Flushed::All { sent } }
    }

    fn send_handshake(&mut self, peer: &Arc<Peer>, message: &[u8]) {
        let Some(endpoint) = peer.endpoint() else {
            self.drops.count(Dropped::NoEndpoint);
            return;
        };
        peer.count_sent(message.len() as u64);
        self.outputs.push_back(Output::Transmit(Transmit {
            peer: Some(Arc::clone(peer)),
            to: endpoint,
            // Kernel `send.c`: HANDSHAKE_DSCP.
            ds: constants::HANDSHAKE_DS,
            datagram: message.to_vec(),
        }));
    }

    // ---- timers

    fn expired(&mut self, id: u32, timer: Timer, moment: Moment) {
        let peer = Arc::clone(&self.peers[&id].peer);
        match timer {
            Timer::RetransmitHandshake => {
                // [W] §6.4; kernel `timers.c`, `wg_expired_retransmit_handshake`.
                if peer.timers().next_attempt() > MAX_TIMER_HANDSHAKES {
                    self.drops.add(Dropped::HandshakeGivenUp, peer.purge_staged());
                    peer.timers().handshake_given_up(moment.now);
                    self.stop_waiting(id);
                } else {
                    // The path may be what fails: let the routing table choose the source anew.
                    peer.clear_source();
                    self.initiate(id, Attempt::Retry, moment);
                }
            }
            Timer::SendKeepalive => {
                // [W] §6.5.
                self.send_keepalive(id, moment);
                peer.timers().keepalive_fired(moment.now);
            }
            Timer::NewHandshake => {
                // [W] §6.5: nothing came back for KEEPALIVE-TIMEOUT + REKEY-TIMEOUT.
                peer.clear_source();
                self.initiate(id, Attempt::First, moment);
            }
            // [W] §6.3.
            Timer::ZeroKeyMaterial => self.forget_sessions(id),
            Timer::PersistentKeepalive => {
                if peer.timers().persistent_keepalive() != 0 {
                    self.send_keepalive(id, moment);
                }
            }
        }
    }

    fn reschedule(&mut self, id: u32) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        let wake_up = control.peer.timers().schedule();
        if wake_up == control.wake_up {
            return;
        }
        if let Some(old) = std::mem::replace(&mut control.wake_up, wake_up) {
            self.schedule.remove(&(old, id));
        }
        if let Some(new) = wake_up {
            self.schedule.insert((new, id));
        }
    }

    // ---- indices

    /// Draws an ephemeral key and the index to try first, in one call: each may be one of the system.
    fn draw(&mut self) -> (PrivateKey, [u8; 4]) {
        let mut bytes = [0; 36];
        self.random.fill(&mut bytes);
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[..32]);
        let first = [bytes[32], bytes[33], bytes[34], bytes[35]];
        let ephemeral = PrivateKey::new(key);
        [&mut bytes[..], &mut key[..]].into_iter().for_each(Zeroize::zeroize);
        (ephemeral, first)
    }

    fn new_index(&mut self, peer: &Arc<Peer>, first: [u8; 4]) -> u32 {
        if self.indices >= self.table.capacity() {
            let larger = Arc::new(self.table.grown(2 * self.indices));
            let old = std::mem::replace(&mut self.table, larger);
            // A thread that still sees the old table must not keep a key alive that is removed from the new one.
            self.retired.retain(|table| table.strong_count() > 0);
            self.retired.push(Arc::downgrade(&old));
            self.changed = true;
        }
        self.indices += 1;
        self.table.insert(peer, self.workers, first, self.random.as_mut())
    }

    fn remove_index(&mut self, index: u32) {
        if self.table.remove(index) {
            self.indices -= 1;
        }
        for table in self.retired.iter().filter_map(Weak::upgrade) {
            table.remove(index);
        }
    }

    fn forget_handshake(&mut self, id: u32) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        if let Handshake::Initiated { index, .. } = std::mem::replace(&mut control.handshake, Handshake::Idle)
        {
            self.remove_index(index);
        }
    }

    /// Times the handshake to come anew.
    fn stop_waiting(&mut self, id: u32) {
        if let Some(control) = self.peers.get_mut(&id) {
            control.waits_since = None;
        }
    }

    /// Wipes handshake and sessions (kernel `noise.c`, `wg_noise_handshake_clear` and `wg_noise_keypairs_clear`).
    fn forget_sessions(&mut self, id: u32) {
        self.forget_handshake(id);
        self.stop_waiting(id);
        let cleared = self.peers[&id].peer.keypairs().clear();
        cleared.into_iter().flatten().for_each(|keypair| self.remove_index(keypair.local()));
    }

    // ---- peers

    fn ids(&self) -> Vec<u32> {
        self.peers.keys().copied().collect()
    }
}

/// What became of the staged packets.
enum Flushed {
    /// All were handed out, `sent` if there was one.
    All { sent: bool },
    /// There is no session, or it came to its end.
    NoSession,
}

/// Whether an initiation begins a new attempt or repeats one ([W] §6.4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Retry,
}

impl Control {
    fn static_static(&mut self, own: &Static) -> Option<&Secret<32>> {
        self.static_static.get_or_insert_with(|| own.static_static(self.peer.public_key())).as_ref()
    }

    fn snapshot(&self) -> PeerSnapshot {
        let (tx_bytes, rx_bytes) = self.peer.transferred();
        PeerSnapshot {
            public_key: *self.peer.public_key(),
            preshared_key: self.psk.clone(),
            endpoint: self.peer.endpoint().map(|endpoint| endpoint.addr),
            last_handshake: self.last_handshake,
            tx_bytes,
            rx_bytes,
            persistent_keepalive: self.peer.timers().persistent_keepalive(),
            allowed_ips: self.allowed_ips.iter().copied().collect(),
        }
    }
}
