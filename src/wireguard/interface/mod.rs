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
//!
//! - `edits`: what an operator changes.
//! - `handshake`: handshakes, sessions and their indices.
//! - `staged`: what the control thread sends of data.
//! - `view`: what the data path sees.

mod edits;
mod handshake;
mod staged;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use self::handshake::Attempt;
use self::view::Route;
use crate::config::{Edit, PeerSnapshot, Prefix, PresharedKey, Refused, Snapshot};
use crate::crypto::random::Random;
use crate::crypto::secret::Secret;
use crate::crypto::x25519::PublicKey;
use crate::wireguard::allowed_ips::AllowedIps;
use crate::wireguard::constants::{MAX_PEERS, MAX_TIMER_HANDSHAKES};
use crate::wireguard::cookie;
use crate::wireguard::dropped::{Dropped, Drops};
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::handshake_times::HandshakeTimes;
use crate::wireguard::index::Table;
use crate::wireguard::keyed::Keyed;
use crate::wireguard::load::{Load, RATE_LIMITER_ENTRIES};
use crate::wireguard::messages::Message;
use crate::wireguard::noise::{CreatedInitiation, Static};
use crate::wireguard::peer::{Ask, Peer, StagedBytes};
use crate::wireguard::ratelimiter::RateLimiter;
use crate::wireguard::tai64n::Timestamp;
use crate::wireguard::time::{Instant, Moment};
use crate::wireguard::timers::Timer;

pub use self::view::View;

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

    // ---- peers

    fn ids(&self) -> Vec<u32> {
        self.peers.keys().copied().collect()
    }
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
