//! What a history acts upon: models of a data plane, of routing tables and of the firewall's table, which obey one edit at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::config::{AllowedIpEdit, Edit, PeerSnapshot, Prefix, PresharedKey, Snapshot};
use crate::control::firewall::Firewall;
use crate::control::plan::{Entry, Kind, Routes};
use crate::control::route::metric_of;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::sys::netlink::nftables::Range;

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
            Edit::PrivateKey(key) => {
                self.private_key = key.clone();
                // Nobody is a peer of itself.
                if let Some(own) = self.private_key.as_ref().map(public) {
                    self.remove(&own);
                    seen(self);
                }
            }
            Edit::ListenPort(port) => self.listen_port = *port,
            Edit::Fwmark(mark) => self.fwmark = *mark,
            Edit::ClearPeers => panic!("everything is thrown away"),
            Edit::Peer(edit) if edit.remove => {
                self.remove(&edit.public_key);
                seen(self);
            }
            Edit::Peer(edit) => {
                assert!(!edit.replace_allowed_ips, "a whole list is replaced");
                assert_ne!(self.private_key.as_ref().map(public), Some(edit.public_key), "a peer of itself");
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

    fn remove(&mut self, peer: &PublicKey) {
        self.peers.remove(peer);
        self.keepalives.remove(peer);
        self.table.retain(|_, holder| holder != peer);
    }

    pub(super) fn accepts_from(&self, addr: IpAddr) -> Option<PublicKey> {
        best(self.table.iter().map(|(prefix, key)| (*prefix, *key)), addr)
    }
}

/// Returns the public half of the private key `[n; 32]`: here that is `[n; 32]` too, since no agent makes one. That takes longer than all else.
pub(super) fn public(private_key: &PrivateKey) -> PublicKey {
    PublicKey::new([private_key.as_bytes()[1]; 32])
}

/// The firewall's table, as the kernel has it.
pub(super) struct Wall {
    pub(super) made_of: Firewall,
    sets: BTreeMap<&'static str, Vec<Range>>,
}

impl Wall {
    pub(super) fn new(made_of: Firewall) -> Self {
        let sets = made_of.sets().into_iter().map(|(name, _, ranges)| (name, ranges)).collect();
        Self { made_of, sets }
    }

    /// Tells whether packets from and to an address are dropped if they come or leave by another way than the tunnel.
    pub(super) fn protects(&self, addr: IpAddr) -> bool {
        self.has(["protected4", "protected6"], addr)
    }

    /// Tells whether packets from this node's pods to an address are dropped, likewise.
    pub(super) fn keeps_pods_from(&self, addr: IpAddr) -> bool {
        self.has(["nodes4", "nodes6"], addr)
    }

    /// Tells whether an address counts as that of a pod of this node, where that decides what becomes of its packets.
    pub(super) fn is_of_own_pods(&self, addr: IpAddr) -> bool {
        self.has(["pods4", "pods6"], addr) || self.has(["local4", "local6"], addr)
    }

    /// Tells whether what this node's pods send to an address gets the node's own for its source.
    pub(super) fn translates_to(&self, addr: IpAddr) -> bool {
        let family = if addr.is_ipv4() { "local4" } else { "local6" };
        self.sets.get(family).is_some_and(|local| !local.is_empty())
            && !self.has(["cluster4", "cluster6"], addr)
    }

    fn has(&self, [v4, v6]: [&str; 2], addr: IpAddr) -> bool {
        let ranges = self.sets.get(if addr.is_ipv4() { v4 } else { v6 });
        ranges.into_iter().flatten().any(|(first, last)| (*first..=*last).contains(&addr))
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
