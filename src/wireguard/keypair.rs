//! A secure session and its place among a peer's sessions ([W] §5.4.5, §5.4.6, §6.2, §6.3).
//!
//! A [`Keypair`] is shared by all threads. Sending: reserve counters *(sequential: one atomic addition)*, seal *(parallel)*, send *(in
//! order)*. Receiving: open *(parallel)*, accept the counter, then change state *(in order)*.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::constants::{
    KEEPALIVE_TIMEOUT, PADDING_MULTIPLE, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME, REKEY_TIMEOUT,
};
use super::dropped::Dropped;
use super::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader};
use super::noise::TransportKeys;
use super::replay;
use super::time::Instant;
use crate::crypto::aead;

/// Which side began the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation.
    Initiator,
    /// We sent the response.
    Responder,
}

/// The keys, counters and age of one session.
#[derive(Debug)]
pub struct Keypair {
    local: u32,
    remote: u32,
    role: Role,
    birth: Instant,
    /// The age at which its initiator asks for a new one.
    renewal: Duration,
    send: aead::Key,
    receive: aead::Key,
    next_counter: AtomicU64,
    window: replay::Window,
    /// Cleared when the session must not send any longer though its time is not over.
    sending: AtomicBool,
    /// Set by the first authentic data message: the other side holds the keys as well.
    confirmed: AtomicBool,
}

impl Keypair {
    /// Returns a session born `now` whose data we receive under index `local` and send under index `remote`.
    pub fn new(keys: &TransportKeys, role: Role, local: u32, remote: u32, now: Instant) -> Self {
        Self::with_next_counter(keys, role, local, remote, now, 0)
    }

    /// Like [`Keypair::new`], with the next counter given: for tests of the limits, and for a session that is taken over.
    pub fn with_next_counter(
        keys: &TransportKeys,
        role: Role,
        local: u32,
        remote: u32,
        now: Instant,
        next_counter: u64,
    ) -> Self {
        Self {
            local,
            remote,
            role,
            birth: now,
            renewal: REKEY_AFTER_TIME,
            send: aead::Key::new(&keys.send),
            receive: aead::Key::new(&keys.receive),
            next_counter: AtomicU64::new(next_counter),
            window: replay::Window::new(),
            sending: AtomicBool::new(true),
            confirmed: AtomicBool::new(role == Role::Initiator),
        }
    }

    /// Leaves it to the other side to renew what both began at once, unless that does not: it has by then sent at least a keepalive.
    #[must_use]
    pub fn renewed_late(mut self) -> Self {
        self.renewal = REKEY_AFTER_TIME + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
        self
    }

    /// Returns our index of this session.
    pub fn local(&self) -> u32 {
        self.local
    }

    /// Returns the other side's index of this session.
    pub fn remote(&self) -> u32 {
        self.remote
    }

    /// Returns who began the handshake.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Reserves `count` consecutive counters and returns the first, or `None` if this session must not send.
    pub fn reserve(&self, count: u64, now: Instant) -> Option<u64> {
        if !self.may_send(now) {
            return None;
        }
        let first = self.next_counter.fetch_add(count, Relaxed);
        // [W] §6.2: "after REJECT-AFTER-MESSAGES … it refuses to send any more".
        if first.checked_add(count).is_none_or(|end| end > REJECT_AFTER_MESSAGES) {
            self.stop_sending();
            return None;
        }
        Some(first)
    }

    /// Tells whether this session may send at `now` ([W] §6.2: younger than REJECT-AFTER-TIME).
    pub fn may_send(&self, now: Instant) -> bool {
        self.sending.load(Relaxed)
            && now.since(self.birth) < REJECT_AFTER_TIME
            && self.next_counter.load(Relaxed) < REJECT_AFTER_MESSAGES
    }

    /// Forbids sending on this session.
    pub fn stop_sending(&self) {
        self.sending.store(false, Relaxed);
    }

    /// Tells whether a sender asks for a new session.
    pub fn is_stale_for_sending(&self, now: Instant) -> bool {
        // [W] §6.2: "after it has sent REKEY-AFTER-MESSAGES", whoever began.
        self.next_counter.load(Relaxed) > REKEY_AFTER_MESSAGES
            // [W] §6.2: "only if it was the initiator", so that the two sides do not both begin.
            || (self.role == Role::Initiator && now.since(self.birth) >= self.renewal)
    }

    /// Tells whether a receiver asks for a new session before this one dies.
    pub fn is_stale_for_receiving(&self, now: Instant) -> bool {
        // [W] §6.2: "REJECT-AFTER-TIME − KEEPALIVE-TIMEOUT − REKEY-TIMEOUT seconds old", initiator only.
        self.role == Role::Initiator
            && now.since(self.birth) >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
    }

    /// Returns the header of the data message with `counter`.
    pub fn header(&self, counter: u64) -> DataHeader {
        DataHeader { receiver: self.remote, counter }
    }

    /// Returns the key that seals what we send.
    pub fn sealing_key(&self) -> &aead::Key {
        &self.send
    }

    /// Returns the key that opens what we receive.
    pub fn opening_key(&self) -> &aead::Key {
        &self.receive
    }

    /// Writes the data message with `counter` around the padded packet that lies in `message[16..len - 16]`.
    pub fn seal(&self, counter: u64, message: &mut [u8]) {
        let (header, body) = message.split_at_mut(DATA_HEADER_LEN);
        header.copy_from_slice(&self.header(counter).to_bytes());
        self.send.seal_in_place(counter, &[], body);
    }

    /// Returns the data message with `counter` that carries `packet`, padded for `mtu`.
    pub fn seal_to_vec(&self, counter: u64, packet: &[u8], mtu: usize) -> Vec<u8> {
        let mut message = vec![0; padded_len(packet.len(), mtu) + DATA_OVERHEAD];
        message[DATA_HEADER_LEN..DATA_HEADER_LEN + packet.len()].copy_from_slice(packet);
        self.seal(counter, &mut message);
        message
    }

    /// Tells whether a message with `counter` may be received at `now`, before any work is spent on it.
    pub fn may_receive(&self, counter: u64, now: Instant) -> bool {
        // Kernel `receive.c`, `decrypt_packet`: neither too old nor past its last message ([W] §6.2).
        now.since(self.birth) < REJECT_AFTER_TIME && counter < REJECT_AFTER_MESSAGES
    }

    /// Opens a data message in place and accepts its counter; what was inside, padding included, lies in `message[16..16 + n]`.
    ///
    /// # Errors
    /// Says why the message is dropped; its plaintext is wiped then.
    pub fn open(&self, header: DataHeader, message: &mut [u8], now: Instant) -> Result<usize, Dropped> {
        if !self.may_receive(header.counter, now) {
            return Err(Dropped::Expired);
        }
        let body = &mut message[DATA_HEADER_LEN..];
        let plaintext = self.receive.open_in_place(header.counter, &[], body).map_err(|_| Dropped::Forged)?;
        // [W] §5.4.6: the window moves only after authentication.
        if !self.accept(header.counter) {
            return Err(Dropped::Replayed);
        }
        Ok(plaintext.len())
    }

    /// Accepts an authentic message's counter once.
    pub fn accept(&self, counter: u64) -> bool {
        self.window.accept(counter)
    }

    /// Notes an authentic data message and tells whether it is the one that confirms the session ([W] §5.4.5, key confirmation).
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Relaxed) && !self.confirmed.swap(true, Relaxed)
    }

    /// Tells whether the other side is known to hold the keys.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Relaxed)
    }
}

/// Returns the length to which an inner packet of `len` bytes is padded ([W] §5.4.6; kernel `send.c`, `calculate_skb_padding`).
///
/// Zeros up to a multiple of 16, but never beyond the MTU. For a packet longer than the MTU its last MTU-sized part counts.
pub fn padded_len(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING_MULTIPLE);
    }
    let last_unit = if len > mtu { len % mtu } else { len };
    len + (last_unit.next_multiple_of(PADDING_MULTIPLE).min(mtu) - last_unit)
}

/// A peer's sessions: the one in use, the one before it, and the one that waits for its confirmation ([W] §6.3).
///
/// Both sides may begin a handshake at once. The kernel has room for one per peer and lets each be superseded by the other's, so that
/// neither comes to anything and both wait for REKEY-TIMEOUT. Here both come to a session: each side sends on the one that it began, and
/// that of the other is kept beside it, to receive on.
///
/// Any thread reads; only the control thread changes them.
#[derive(Debug, Default)]
pub struct Keypairs {
    previous: ArcSwapOption<Keypair>,
    current: ArcSwapOption<Keypair>,
    next: ArcSwapOption<Keypair>,
    beside: ArcSwapOption<Keypair>,
}

/// Sessions that have lost their place.
pub type Displaced = [Option<Arc<Keypair>>; 2];

impl Keypairs {
    /// Returns the session in use: the waiting one from the moment it is confirmed, though it is promoted a little later.
    pub fn current(&self) -> Option<Arc<Keypair>> {
        match &*self.next.load() {
            Some(next) if next.is_confirmed() => Some(Arc::clone(next)),
            Some(_) | None => self.current.load_full(),
        }
    }

    /// Returns the session that waits for its confirmation.
    pub fn next(&self) -> Option<Arc<Keypair>> {
        self.next.load_full()
    }

    /// Takes in a new session and returns those that it displaces (kernel `noise.c`, `add_new_keypair`).
    pub fn add(&self, new: Arc<Keypair>) -> Displaced {
        match new.role() {
            Role::Initiator => {
                let beside = match self.next.swap(None) {
                    // The other side began as well, and may be sending on its session already.
                    Some(waiting) => self.beside.swap(Some(waiting)),
                    None => self.take_dead_beside(new.birth),
                };
                // The response confirms it: it is used at once.
                let old = self.current.swap(Some(new));
                [self.previous.swap(old), beside]
            }
            // Not used until the initiator's first data message arrives.
            Role::Responder => [self.previous.swap(None), self.next.swap(Some(new))],
        }
    }

    /// Makes the waiting session current if it is confirmed (kernel `noise.c`, `wg_noise_received_with_keypair`).
    ///
    /// Returns whether it was, and the sessions that it displaces.
    pub fn promote(&self) -> (bool, Displaced) {
        let Some(next) = self.next().filter(|next| next.is_confirmed()) else { return (false, [None, None]) };
        // In this order: whoever looks meanwhile finds the session in one of the two places.
        let old = self.current.swap(Some(next));
        self.next.store(None);
        // Who sends on the new one sends no longer on one that it began before.
        (true, [self.previous.swap(old), self.beside.swap(None)])
    }

    /// Takes out the session beside the others once nothing may be received on it any more.
    fn take_dead_beside(&self, now: Instant) -> Option<Arc<Keypair>> {
        let is_dead = self.beside.load().as_ref().is_some_and(|beside| !beside.may_receive(0, now));
        if is_dead { self.beside.swap(None) } else { None }
    }

    /// Forbids sending on every session (kernel `noise.c`, `wg_noise_expire_current_peer_keypairs`).
    pub fn expire(&self) {
        [&self.current, &self.next].into_iter().filter_map(|slot| slot.load_full()).for_each(|keypair| {
            keypair.stop_sending();
        });
    }

    /// Takes every session out.
    pub fn clear(&self) -> [Option<Arc<Keypair>>; 4] {
        [&self.previous, &self.current, &self.next, &self.beside].map(|slot| slot.swap(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::Secret;
    use std::time::Duration;

    fn keypair(role: Role, next_counter: u64) -> Keypair {
        let keys = TransportKeys { send: Secret::new([1; 32]), receive: Secret::new([1; 32]) };
        Keypair::with_next_counter(&keys, role, 1, 2, Instant::from_nanos(0), next_counter)
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn padding_is_clamped_to_the_mtu() {
        for (len, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1297, 1300, 1300),
            (1297, 1299, 1299),
            (1420, 1420, 1420),
            (1419, 1420, 1420),
            (1421, 1420, 1436),
            (2900, 1420, 2904),
            (5, 0, 16),
        ] {
            assert_eq!(padded_len(len, mtu), padded, "{len} of {mtu}");
        }
    }

    #[test]
    fn a_session_sends_until_its_last_message_and_no_further() {
        // [W] §6.1: 2^64 − 2^13 − 1.
        let last = 0xffff_ffff_ffff_dfff;
        let keypair = keypair(Role::Responder, last - 2);
        assert_eq!(keypair.reserve(1, at(0)), Some(last - 2));
        assert_eq!(keypair.reserve(1, at(0)), Some(last - 1));
        assert_eq!(keypair.reserve(1, at(0)), None);
        assert!(keypair.may_receive(last - 1, at(0)));
        assert!(!keypair.may_receive(last, at(0)));
    }

    #[test]
    fn a_counter_beyond_32_bits_is_sealed_whole() {
        let keypair = keypair(Role::Responder, (1 << 32) - 2);
        for expected in [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 1] {
            let counter = keypair.reserve(1, at(0)).unwrap();
            assert_eq!(counter, expected);
            let mut message = keypair.seal_to_vec(counter, b"packet", 1420);
            let header = DataHeader::parse(&message).unwrap();
            assert_eq!(header.counter, expected);
            assert_eq!(keypair.open(header, &mut message, at(0)), Ok(16));
            assert_eq!(&message[16..22], b"packet");
        }
    }

    #[test]
    fn rekeying_is_asked_for_after_two_to_the_sixtieth_messages_by_either_role() {
        for role in [Role::Initiator, Role::Responder] {
            assert!(!keypair(role, 1 << 60).is_stale_for_sending(at(0)));
            assert!(keypair(role, (1 << 60) + 1).is_stale_for_sending(at(0)));
        }
    }

    #[test]
    fn only_the_initiator_asks_for_a_new_session_by_age() {
        let (ours, theirs) = (keypair(Role::Initiator, 0), keypair(Role::Responder, 0));
        assert!(!ours.is_stale_for_sending(at(119)));
        assert!(ours.is_stale_for_sending(at(120)));
        assert!(!ours.is_stale_for_receiving(at(164)));
        assert!(ours.is_stale_for_receiving(at(165)));
        assert!(!theirs.is_stale_for_sending(at(179)));
        assert!(!theirs.is_stale_for_receiving(at(179)));
        assert!(ours.may_send(at(179)) && !ours.may_send(at(180)));
        assert!(ours.may_receive(0, at(179)) && !ours.may_receive(0, at(180)));
    }

    #[test]
    fn who_leaves_the_renewal_to_the_other_side_renews_later() {
        let keypair = keypair(Role::Initiator, 0).renewed_late();
        assert!(!keypair.is_stale_for_sending(at(134)));
        assert!(keypair.is_stale_for_sending(at(135)));
        assert!(keypair.is_stale_for_receiving(at(165)));
    }

    #[test]
    fn sessions_move_through_their_slots() {
        let slots = Keypairs::default();
        let is_current = |keypair| Arc::ptr_eq(&slots.current().unwrap(), keypair);
        let none = |displaced: Displaced| displaced.iter().all(Option::is_none);
        let [a, b, c, d, e] =
            [Role::Initiator, Role::Responder, Role::Initiator, Role::Responder, Role::Initiator]
                .map(|role| Arc::new(keypair(role, 0)));
        assert!(none(slots.add(a.clone())));
        assert!(none(slots.add(b.clone())));
        assert!(is_current(&a), "a responder's session waits");
        assert!(!slots.promote().0, "nothing has confirmed it");
        assert!(none(slots.add(c.clone())), "both sides began: all three may be received on");
        assert!(is_current(&c));
        assert!(b.confirm());
        assert!(!slots.promote().0 && is_current(&c), "each side sends on the one that it began");
        let displaced = slots.add(d.clone());
        assert!(Arc::ptr_eq(displaced[0].as_ref().unwrap(), &a));
        assert!(is_current(&c));
        assert!(d.confirm() && !d.confirm());
        assert!(is_current(&d), "the answer to what confirmed it is sent on it");
        let (promoted, displaced) = slots.promote();
        assert!(promoted && is_current(&d));
        assert!(displaced[0].is_none(), "in the place of the one before there was none");
        assert!(Arc::ptr_eq(displaced[1].as_ref().unwrap(), &b), "the other side sends on the new one now");
        assert!(Arc::ptr_eq(slots.add(e)[0].as_ref().unwrap(), &c));
        assert_eq!(slots.clear().iter().flatten().count(), 2);
    }

    #[test]
    fn a_new_key_of_ours_ends_the_sending_of_the_session_in_use_and_of_the_one_that_waits() {
        let slots = Keypairs::default();
        let [used, waiting] = [Role::Initiator, Role::Responder].map(|role| Arc::new(keypair(role, 0)));
        slots.add(used);
        slots.add(waiting.clone());
        assert!(slots.current().unwrap().may_send(at(1)));
        slots.expire();
        assert!(!slots.current().unwrap().may_send(at(1)));
        // Confirmed by what the other side sent before it knew.
        assert!(waiting.confirm() && slots.promote().0);
        assert!(!slots.current().unwrap().may_send(at(1)));
        assert!(waiting.may_receive(0, at(1)));
    }

    #[test]
    fn a_session_beside_the_others_goes_once_it_is_dead() {
        let keys = TransportKeys { send: Secret::new([1; 32]), receive: Secret::new([1; 32]) };
        let session = |role, birth| Arc::new(Keypair::new(&keys, role, 1, 2, at(birth)));
        let slots = Keypairs::default();
        let theirs = session(Role::Responder, 0);
        slots.add(theirs.clone());
        slots.add(session(Role::Initiator, 0));
        assert!(slots.add(session(Role::Initiator, 120))[1].is_none());
        let displaced = slots.add(session(Role::Initiator, 240));
        assert!(Arc::ptr_eq(displaced[1].as_ref().unwrap(), &theirs));
        assert_eq!(slots.clear().iter().flatten().count(), 2);
    }
}
