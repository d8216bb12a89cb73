//! Data that the control thread sends: packets that were staged until there was a session, and keepalives ([W] §6.5).

use std::sync::Arc;

use super::handshake::Attempt;
use super::{Interface, Output, Transmit};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::peer::{Peer, Staged};
use crate::wireguard::time::{Instant, Moment};

impl Interface {
    /// Sends what is staged, or begins a handshake for it (kernel `send.c`, `wg_packet_send_staged_packets`).
    pub(super) fn flush(&mut self, id: u32, moment: Moment) {
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

    pub(super) fn flush_staged(&mut self, id: u32, moment: Moment) {
        if self.peers[&id].peer.is_staged() {
            self.flush(id, moment);
        }
    }

    /// Sends the empty packet, unless something is staged that serves as well (kernel `send.c`, `wg_packet_send_keepalive`).
    pub(super) fn send_keepalive(&mut self, id: u32, moment: Moment) {
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
}

/// What became of the staged packets.
enum Flushed {
    /// All were handed out, `sent` if there was one.
    All { sent: bool },
    /// There is no session, or it came to its end.
    NoSession,
}
