//! Edits: what an operator changes of an interface, in place: sessions, counters and the newest timestamps survive.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Control, Handshake, Interface, Own, Route};
use crate::config::{AllowedIpEdit, Edit, PeerEdit, PresharedKey};
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::wireguard::allowed_ips::AllowedIps;
use crate::wireguard::cookie;
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::noise::Static;
use crate::wireguard::peer::Peer;
use crate::wireguard::time::Moment;

impl Interface {
    /// Returns how many peers there would be after `edits`, at most.
    pub(super) fn peers_after(&self, edits: &[Edit]) -> usize {
        let mut keys: BTreeSet<PublicKey> = self.peers().map(|peer| *peer.public_key()).collect();
        let mut most = 0;
        for edit in edits {
            match edit {
                Edit::ClearPeers => keys.clear(),
                Edit::Peer(peer) if peer.remove => {
                    keys.remove(&peer.public_key);
                }
                Edit::Peer(peer) => {
                    keys.insert(peer.public_key);
                }
                Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) => {}
            }
            most = most.max(keys.len());
        }
        most
    }

    /// Kernel `netlink.c`, `wg_set_device`: the same key is no change; a new one ends every session's sending.
    pub(super) fn set_private_key(&mut self, key: Option<&PrivateKey>, moment: Moment) {
        if self.own.as_ref().map(|own| own.keys.private()) == key {
            return;
        }
        let is_first = self.own.is_none();
        self.own = key.map(|key| {
            let keys = Static::new(key.clone());
            Own { checker: Arc::new(cookie::Checker::new(keys.public())), keys }
        });
        self.changed = true;
        if let Some(id) = self.public_key().and_then(|own| self.by_key.get(own)).copied() {
            self.remove_peer(id);
        }
        for id in self.ids() {
            self.forget_handshake(id);
            self.stop_waiting(id);
            if let Some(control) = self.peers.get_mut(&id) {
                control.static_static = None;
                // Kernel `noise.c`, `wg_noise_expire_current_peer_keypairs`: the new key need not wait for the old one's handshake.
                control.peer.keypairs().expire();
                control.peer.reset_last_sent_handshake();
            }
            if is_first && self.up {
                // What was to be sent before there was a key has waited for it.
                self.flush_staged(id, moment);
                self.reschedule(id);
            }
        }
    }

    pub(super) fn edit_peer(&mut self, edit: &PeerEdit, moment: Moment) {
        let existing = self.by_key.get(&edit.public_key).copied();
        if edit.remove {
            existing.into_iter().for_each(|id| self.remove_peer(id));
            return;
        }
        // Kernel `netlink.c`, `set_peer`: our own key is silently ignored.
        if self.public_key() == Some(&edit.public_key) {
            return;
        }
        let id = match existing {
            Some(id) => id,
            None if edit.update_only => return,
            None => self.create_peer(edit.public_key),
        };
        if edit.replace_allowed_ips {
            self.clear_allowed_ips(id);
        }
        for change in &edit.allowed_ips {
            self.edit_allowed_ip(id, *change);
        }
        let Some(control) = self.peers.get_mut(&id) else { return };
        if let Some(psk) = &edit.preshared_key {
            // [W] §5.2: takes effect with the next handshake.
            control.psk = psk.clone();
        }
        if let Some(addr) = edit.endpoint {
            control.peer.set_endpoint(Endpoint::new(addr));
        }
        let switched_on = edit.persistent_keepalive.is_some_and(|seconds| {
            control.peer.timers().set_persistent_keepalive(seconds) == 0 && seconds != 0
        });
        if self.up {
            // Kernel `netlink.c`, `set_peer`: off → on sends one at once.
            if switched_on {
                self.send_keepalive(id, moment);
            }
            self.flush_staged(id, moment);
        }
        self.reschedule(id);
    }

    fn create_peer(&mut self, public_key: PublicKey) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut seed = [0; 8];
        self.random.fill(&mut seed);
        let control = Control {
            peer: Arc::new(Peer::new(
                id,
                public_key,
                u64::from_le_bytes(seed),
                Arc::clone(&self.staged_bytes),
            )),
            psk: PresharedKey::default(),
            static_static: None,
            cookie: cookie::Generator::new(&public_key),
            handshake: Handshake::Idle,
            waits_since: None,
            latest_timestamp: None,
            last_initiation_consumed: None,
            last_timestamp_sent: None,
            last_handshake: None,
            allowed_ips: BTreeSet::new(),
            wake_up: None,
        };
        self.peers.insert(id, Box::new(control));
        self.by_key.insert(public_key, id);
        id
    }

    pub(super) fn clear_peers(&mut self) {
        // At once: prefix by prefix, the map would be copied as often, and leave holes all over the heap.
        self.routes = AllowedIps::new();
        for id in self.ids() {
            self.let_go(id);
        }
        self.by_key.clear();
        self.removed.push(std::mem::take(&mut self.peers));
    }

    fn remove_peer(&mut self, id: u32) {
        self.clear_allowed_ips(id);
        self.let_go(id);
        if let Some(control) = self.peers.remove(&id) {
            self.by_key.remove(control.peer.public_key());
        }
    }

    /// Ends what goes on with a peer that has, or is about to have, no place in the map.
    fn let_go(&mut self, id: u32) {
        self.forget_sessions(id);
        let Some(control) = self.peers.get(&id) else { return };
        if let Some(wake_up) = control.wake_up {
            self.schedule.remove(&(wake_up, id));
        }
        control.peer.timers().stop_all();
        self.drops.add(Dropped::NoPeer, control.peer.purge_staged());
        self.changed = true;
    }

    fn clear_allowed_ips(&mut self, id: u32) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        for prefix in std::mem::take(&mut control.allowed_ips) {
            self.routes.remove(prefix, &Route(Arc::clone(&control.peer)));
            self.changed = true;
        }
    }

    fn edit_allowed_ip(&mut self, id: u32, change: AllowedIpEdit) {
        let Some(control) = self.peers.get_mut(&id) else { return };
        let route = Route(Arc::clone(&control.peer));
        match change {
            AllowedIpEdit::Add(prefix) => {
                control.allowed_ips.insert(prefix);
                // [W] §2: a prefix belongs to one peer; the last to be given it has it.
                let loser = self.routes.insert(prefix, route).filter(|loser| loser.0.id() != id);
                if let Some(loser) = loser.and_then(|loser| self.peers.get_mut(&loser.0.id())) {
                    loser.allowed_ips.remove(&prefix);
                }
            }
            AllowedIpEdit::Remove(prefix) => {
                if control.allowed_ips.remove(&prefix) {
                    self.routes.remove(prefix, &route);
                }
            }
        }
        self.changed = true;
    }
}
