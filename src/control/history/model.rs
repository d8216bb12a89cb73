//! What a history acts upon: models of a data plane and of routing tables that obey one edit at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::config::{AllowedIpEdit, Edit, PeerSnapshot, Prefix, PresharedKey, Snapshot};
use crate::control::plan::{Entry, Kind, Routes};
use crate::control::route::metric_of;
use crate::crypto::x25519::{PrivateKey, PublicKey};

/// A data plane that obeys edits as the paper says.
#[derive(Clone, Default)]
pub(super) struct DataPlane {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(super) peers: BTreeMap<PublicKey, Option<SocketAddr>>,
    keepalives: BTreeMap<PublicKey, u16>,
    pub(super) table: BTreeMap<Prefix, PublicKey>,
}

impl DataPlane {
    pub(super) fn snapshot(&self) -> Snapshot {
        let peers = self.peers.iter().map(|(key, endpoint)| PeerSnapshot {
            public_key: *key,
            preshared_key: PresharedKey::default(),
            endpoint: *endpoint,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: self.keepalives.get(key).copied().unwrap_or_default(),
            allowed_ips: self.table.iter().filter(|held| held.1 == key).map(|held| *held.0).collect(),
        });
        Snapshot {
            private_key: self.private_key.clone(),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peers: peers.collect(),
        }
    }

    /// Obeys edits; `seen` looks at the table after every change of it.
    pub(super) fn obey(&mut self, edits: &[Edit], mut seen: impl FnMut(&Self)) {
        edits.iter().for_each(|edit| self.apply(edit, &mut seen));
    }

    /// Obeys an edit, likewise.
    pub(super) fn apply(&mut self, edit: &Edit, seen: &mut dyn FnMut(&Self)) {
        match edit {
            Edit::PrivateKey(key) => self.private_key = key.clone(),
            Edit::ListenPort(port) => self.listen_port = *port,
            Edit::Fwmark(mark) => self.fwmark = *mark,
            Edit::ClearPeers => panic!("everything is thrown away"),
            Edit::Peer(edit) if edit.remove => {
                self.peers.remove(&edit.public_key);
                self.keepalives.remove(&edit.public_key);
                self.table.retain(|_, holder| *holder != edit.public_key);
                seen(self);
            }
            Edit::Peer(edit) => {
                assert!(!edit.replace_allowed_ips, "a whole list is replaced");
                let endpoint = self.peers.entry(edit.public_key).or_default();
                *endpoint = edit.endpoint.or(*endpoint);
                if let Some(seconds) = edit.persistent_keepalive {
                    self.keepalives.insert(edit.public_key, seconds);
                }
                for change in &edit.allowed_ips {
                    match change {
                        AllowedIpEdit::Add(prefix) => drop(self.table.insert(*prefix, edit.public_key)),
                        AllowedIpEdit::Remove(prefix) => {
                            if self.table.get(prefix) == Some(&edit.public_key) {
                                self.table.remove(prefix);
                            }
                        }
                    }
                    seen(self);
                }
            }
        }
    }

    pub(super) fn accepts_from(&self, addr: IpAddr) -> Option<PublicKey> {
        best(self.table.iter().map(|(prefix, key)| (*prefix, *key)), addr)
    }
}

/// Returns what the most specific prefix that holds `addr` stands for.
fn best<T>(entries: impl Iterator<Item = (Prefix, T)>, addr: IpAddr) -> Option<T> {
    entries
        .filter(|(prefix, _)| prefix.contains(addr))
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, what)| what)
}

/// Returns what becomes of a packet to `addr` in a table; `None` if it goes in clear.
pub(super) fn way(entries: &[Entry], addr: IpAddr) -> Option<Kind> {
    let entries = entries.iter().filter(|entry| entry.prefix.contains(addr));
    let kind = entries.min_by_key(|entry| (128 - entry.prefix.len(), metric_of(entry.kind)))?.kind;
    (kind != Kind::Throw).then_some(kind)
}

/// Returns the two tables, each with what it is in all of these.
pub(super) fn tables<const N: usize>(all: [&Routes; N]) -> [[&[Entry]; N]; 2] {
    [all.map(|routes| &routes.entries[..]), all.map(|routes| &routes.from_pods.entries[..])]
}

/// Returns an address of each kind that these entries can tell apart.
pub(super) fn addresses(entries: &[&[Entry]]) -> BTreeSet<IpAddr> {
    entries.concat().iter().map(|entry| entry.prefix.addr()).collect()
}

/// Returns what a data plane holds, in whatever order it came.
pub(super) fn held(snapshot: &Snapshot) -> BTreeMap<PublicKey, (Option<SocketAddr>, u16, &[Prefix])> {
    let peers = snapshot.peers.iter();
    peers
        .map(|peer| (peer.public_key, (peer.endpoint, peer.persistent_keepalive, &peer.allowed_ips[..])))
        .collect()
}
