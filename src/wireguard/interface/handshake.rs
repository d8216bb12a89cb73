//! Handshakes: their messages in and out, the sessions that come of them, and the indices of both ([W] §5.4, §6.4).

use std::sync::{Arc, Weak};

use zeroize::Zeroize;

use super::{Handshake, Interface, Output, Transmit};
use crate::crypto::x25519::PrivateKey;
use crate::wireguard::constants::{self, INITIATION_INTERVAL};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::keypair::{Keypair, Role};
use crate::wireguard::load::{Screened, screen};
use crate::wireguard::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};
use crate::wireguard::noise::{self, TransportKeys};
use crate::wireguard::peer::Peer;
use crate::wireguard::tai64n::Timestamp;
use crate::wireguard::time::{Instant, Moment};

impl Interface {
    // ---- handshake messages in

    /// mac1, and under load mac2 and the rate limit ([W] §5.3, §5.4.4).
    pub(super) fn admit_handshake(
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

    pub(super) fn consume_initiation(
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
        let _ = peer.learn_endpoint(from);
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

    pub(super) fn consume_response(
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
        let _ = peer.learn_endpoint(from);
        peer.count_received(RESPONSE_LEN as u64);
        let _ = peer.authenticated_received(moment.now);
        self.begin_session(id, &keys, Role::Initiator, receiver, remote, moment.now);
        self.handshake_complete(id, moment);
        // [W] §5.4.5: the responder may send only once it has heard from us: staged packets, or else an empty one.
        self.send_keepalive(id, moment);
        self.reschedule(id);
        Ok(())
    }

    pub(super) fn consume_cookie_reply(
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
    pub(super) fn initiate(&mut self, id: u32, attempt: Attempt, moment: Moment) {
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
    pub(super) fn promote(&mut self, id: u32, moment: Moment) {
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

    pub(super) fn forget_handshake(&mut self, id: u32) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        if let Handshake::Initiated { index, .. } = std::mem::replace(&mut control.handshake, Handshake::Idle)
        {
            self.remove_index(index);
        }
    }

    /// Times the handshake to come anew.
    pub(super) fn stop_waiting(&mut self, id: u32) {
        if let Some(control) = self.peers.get_mut(&id) {
            control.waits_since = None;
        }
    }

    /// Wipes handshake and sessions (kernel `noise.c`, `wg_noise_handshake_clear` and `wg_noise_keypairs_clear`).
    pub(super) fn forget_sessions(&mut self, id: u32) {
        self.forget_handshake(id);
        self.stop_waiting(id);
        let cleared = self.peers[&id].peer.keypairs().clear();
        cleared.into_iter().flatten().for_each(|keypair| self.remove_index(keypair.local()));
    }
}

/// Whether an initiation begins a new attempt or repeats one ([W] §6.4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Retry,
}
