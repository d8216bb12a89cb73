//! From what an interface is to what it should be, in as few edits as that takes.
//!
//! The edits come in two lists, and whoever routes packets into the interface changes the routes between them: a prefix is held by its
//! peer before a route leads to it, and until no route does. Within the lists,
//!
//! - a prefix that moves between peers is one edit, the addition to the new holder, so that it is never without one ([W] §2: a prefix
//!   belongs to one peer, the last to be given it);
//! - a peer or prefix that stays is not touched: there is deliberately no "replace all".

use std::collections::HashMap;

use super::{AllowedIpEdit, Desired, DesiredPeer, Edit, PeerEdit, PeerSnapshot, Prefix, Snapshot};
use crate::crypto::x25519::PublicKey;

/// What is to be changed.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// What is to be there and is not, or is otherwise: to be applied before routes are.
    pub additions: Vec<Edit>,
    /// What is there and is not to be: to be applied after routes are.
    pub removals: Vec<Edit>,
}

impl Difference {
    /// Tells whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.additions.is_empty() && self.removals.is_empty()
    }

    /// Returns all edits in their order.
    pub fn into_edits(self) -> Vec<Edit> {
        let mut edits = self.additions;
        edits.extend(self.removals);
        edits
    }
}

/// Returns what leads from `actual` to `desired`.
pub fn diff(actual: &Snapshot, desired: &Desired) -> Difference {
    let mut difference = Difference { additions: interface_edits(actual, desired), removals: Vec::new() };
    let holders = holders(desired);
    let known: HashMap<_, _> = actual.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    for (key, peer) in &desired.peers {
        let edit = additions(*key, known.get(key).copied(), peer, &holders);
        difference.additions.extend(edit.map(Edit::Peer));
    }
    for peer in &actual.peers {
        let edit = removals(peer, desired.peers.contains_key(&peer.public_key), &holders);
        difference.removals.extend(edit.map(Edit::Peer));
    }
    difference
}

fn interface_edits(actual: &Snapshot, desired: &Desired) -> Vec<Edit> {
    let mut edits = Vec::new();
    if actual.private_key != desired.private_key {
        edits.push(Edit::PrivateKey(desired.private_key.clone()));
    }
    if desired.listen_port != 0 && actual.listen_port != desired.listen_port {
        edits.push(Edit::ListenPort(desired.listen_port));
    }
    if actual.fwmark != desired.fwmark {
        edits.push(Edit::Fwmark(desired.fwmark));
    }
    edits
}

/// Returns who is to hold each prefix.
fn holders(desired: &Desired) -> HashMap<Prefix, PublicKey> {
    let peers = desired.peers.iter();
    peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (*prefix, *key))).collect()
}

fn additions(
    key: PublicKey,
    actual: Option<&PeerSnapshot>,
    desired: &DesiredPeer,
    holders: &HashMap<Prefix, PublicKey>,
) -> Option<PeerEdit> {
    let mut edit = PeerEdit::new(key);
    let preshared_key = actual.map(|peer| peer.preshared_key.clone()).unwrap_or_default();
    if preshared_key != desired.preshared_key {
        edit.preshared_key = Some(desired.preshared_key.clone());
    }
    edit.endpoint = desired.endpoint.filter(|_| actual.and_then(|peer| peer.endpoint) != desired.endpoint);
    if actual.map_or(0, |peer| peer.persistent_keepalive) != desired.persistent_keepalive {
        edit.persistent_keepalive = Some(desired.persistent_keepalive);
    }
    let is_to_hold = |prefix: &&Prefix| holders.get(prefix) == Some(&key);
    let holds = |prefix: &Prefix| actual.is_some_and(|peer| peer.allowed_ips.binary_search(prefix).is_ok());
    let missing = desired.allowed_ips.iter().filter(is_to_hold).filter(|prefix| !holds(prefix));
    edit.allowed_ips = missing.map(|prefix| AllowedIpEdit::Add(*prefix)).collect();
    let is_change = edit.preshared_key.is_some()
        || edit.endpoint.is_some()
        || edit.persistent_keepalive.is_some()
        || !edit.allowed_ips.is_empty();
    (actual.is_none() || is_change).then_some(edit)
}

fn removals(actual: &PeerSnapshot, stays: bool, holders: &HashMap<Prefix, PublicKey>) -> Option<PeerEdit> {
    let mut edit = PeerEdit::new(actual.public_key);
    edit.remove = !stays;
    if stays {
        // Who has gone since is not to come back.
        edit.update_only = true;
        // What another is to hold has been taken from this one when it was given to that.
        let surplus = actual.allowed_ips.iter().filter(|prefix| !holders.contains_key(prefix));
        edit.allowed_ips = surplus.map(|prefix| AllowedIpEdit::Remove(*prefix)).collect();
    }
    (edit.remove || !edit.allowed_ips.is_empty()).then_some(edit)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::PresharedKey;
    use crate::crypto::x25519::PrivateKey;

    /// An interface that obeys edits one after the other, as the paper says.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Model {
        private_key: Option<PrivateKey>,
        listen_port: u16,
        fwmark: u32,
        peers: BTreeMap<PublicKey, Peer>,
        table: BTreeMap<Prefix, PublicKey>,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Peer {
        preshared_key: PresharedKey,
        endpoint: Option<SocketAddr>,
        persistent_keepalive: u16,
    }

    impl Model {
        /// Applies an edit; `seen` is shown the table after every change of it.
        fn apply(&mut self, edit: &Edit, seen: &mut dyn FnMut(&BTreeMap<Prefix, PublicKey>)) {
            match edit {
                Edit::PrivateKey(key) => self.private_key = key.clone(),
                Edit::ListenPort(port) => self.listen_port = *port,
                Edit::Fwmark(mark) => self.fwmark = *mark,
                Edit::ClearPeers => {
                    self.peers.clear();
                    self.table.clear();
                }
                Edit::Peer(edit) => self.edit_peer(edit, seen),
            }
        }

        fn edit_peer(&mut self, edit: &PeerEdit, seen: &mut dyn FnMut(&BTreeMap<Prefix, PublicKey>)) {
            let key = edit.public_key;
            if edit.remove {
                self.peers.remove(&key);
                self.table.retain(|_, holder| *holder != key);
                return seen(&self.table);
            }
            if edit.update_only && !self.peers.contains_key(&key) {
                return;
            }
            let peer = self.peers.entry(key).or_default();
            peer.preshared_key = edit.preshared_key.clone().unwrap_or_else(|| peer.preshared_key.clone());
            peer.endpoint = edit.endpoint.or(peer.endpoint);
            peer.persistent_keepalive = edit.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
            for change in &edit.allowed_ips {
                match change {
                    AllowedIpEdit::Add(prefix) => {
                        self.table.insert(*prefix, key);
                    }
                    AllowedIpEdit::Remove(prefix) if self.table.get(prefix) == Some(&key) => {
                        self.table.remove(prefix);
                    }
                    AllowedIpEdit::Remove(_) => {}
                }
                seen(&self.table);
            }
        }

        fn snapshot(&self) -> Snapshot {
            let peers = self.peers.iter().map(|(key, peer)| PeerSnapshot {
                public_key: *key,
                preshared_key: peer.preshared_key.clone(),
                endpoint: peer.endpoint,
                last_handshake: None,
                tx_bytes: 0,
                rx_bytes: 0,
                persistent_keepalive: peer.persistent_keepalive,
                allowed_ips: self.table.iter().filter(|held| held.1 == key).map(|held| *held.0).collect(),
            });
            Snapshot {
                private_key: self.private_key.clone(),
                listen_port: self.listen_port,
                fwmark: self.fwmark,
                peers: peers.collect(),
            }
        }
    }

    /// The slow twin: everything is thrown away and made anew.
    fn naive(desired: &Desired) -> Model {
        let mut model = Model {
            private_key: desired.private_key.clone(),
            listen_port: desired.listen_port,
            fwmark: desired.fwmark,
            ..Model::default()
        };
        for (key, peer) in &desired.peers {
            let (preshared_key, endpoint) = (peer.preshared_key.clone(), peer.endpoint);
            let persistent_keepalive = peer.persistent_keepalive;
            model.peers.insert(*key, Peer { preshared_key, endpoint, persistent_keepalive });
            model.table.extend(peer.allowed_ips.iter().map(|prefix| (*prefix, *key)));
        }
        model
    }

    fn key(number: u8) -> PublicKey {
        PublicKey::new([number; 32])
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn peer() -> impl Strategy<Value = DesiredPeer> {
        let prefixes = prop::collection::btree_set((0..6_u8, any::<bool>()), 0..5);
        (prefixes, 0..3_u8, 1..3_u16, 0..3_u16).prop_map(|(prefixes, psk, port, keepalive)| DesiredPeer {
            preshared_key: PresharedKey::new([psk; 32]),
            endpoint: Some(SocketAddr::from(([192, 0, 2, 1], port))),
            persistent_keepalive: keepalive,
            allowed_ips: prefixes
                .into_iter()
                .map(|(number, v4)| match v4 {
                    true => prefix(&format!("10.0.{number}.0/24")),
                    false => prefix(&format!("fd00:{number}::/64")),
                })
                .collect(),
        })
    }

    fn desired() -> impl Strategy<Value = Desired> {
        let peers = prop::collection::btree_map((1..6_u8).prop_map(key), peer(), 0..5);
        let private_key = prop::option::of((1..3_u8).prop_map(|number| PrivateKey::new([number; 32])));
        (private_key, 1..4_u16, 0..3_u32, peers).prop_map(|(private_key, listen_port, fwmark, peers)| {
            Desired { private_key, listen_port, fwmark, peers }
        })
    }

    proptest! {
        #[test]
        fn the_edits_lead_where_making_everything_anew_leads(before in desired(), after in desired()) {
            let (mut model, wanted) = (naive(&before), naive(&after));
            let difference = diff(&model.snapshot(), &after);
            let from = model.table.clone();
            let allowed = |prefix: &Prefix, holder: &PublicKey| {
                from.get(prefix) == Some(holder) || wanted.table.get(prefix) == Some(holder)
            };
            let mut wrong = Vec::new();
            let mut check = |table: &BTreeMap<Prefix, PublicKey>| {
                // What is held before and after is held all the time, by the one holder or the other.
                let gap = wanted.table.keys().any(|prefix| from.contains_key(prefix) && !table.contains_key(prefix));
                if gap || !table.iter().all(|(prefix, holder)| allowed(prefix, holder)) {
                    wrong.push(table.clone());
                }
            };
            for edit in &difference.additions {
                model.apply(edit, &mut check);
            }
            // Between the lists, everything that a route may lead to is there: that of before, and that of after.
            for (prefix, holder) in &wanted.table {
                prop_assert_eq!(model.table.get(prefix), Some(holder));
            }
            prop_assert!(from.keys().all(|prefix| model.table.contains_key(prefix)));
            for edit in &difference.removals {
                model.apply(edit, &mut check);
            }
            prop_assert!(wrong.is_empty(), "{:?}", wrong);
            prop_assert_eq!(&model, &wanted);
            prop_assert!(diff(&model.snapshot(), &after).is_empty());
        }
    }

    #[test]
    fn a_prefix_that_moves_is_one_edit_and_nobody_else_is_touched() {
        let holding = |prefixes: &[&str]| DesiredPeer {
            allowed_ips: prefixes.iter().map(|text| prefix(text)).collect(),
            ..DesiredPeer::default()
        };
        let peers = |first: &[&str], second: &[&str]| Desired {
            peers: [(key(1), holding(first)), (key(2), holding(second)), (key(3), holding(&["10.3.0.0/16"]))]
                .into(),
            ..Desired::default()
        };
        let before = naive(&peers(&["10.1.0.0/16", "10.9.0.0/16"], &["10.2.0.0/16"]));
        let edits =
            diff(&before.snapshot(), &peers(&["10.1.0.0/16"], &["10.2.0.0/16", "10.9.0.0/16"])).into_edits();
        let [Edit::Peer(edit)] = &edits[..] else { panic!("{edits:?}") };
        assert_eq!(edit.public_key, key(2));
        assert_eq!(edit.allowed_ips, [AllowedIpEdit::Add(prefix("10.9.0.0/16"))]);
    }

    #[test]
    fn an_endpoint_that_is_left_open_is_left_alone() {
        let mut before = Desired { peers: [(key(1), DesiredPeer::default())].into(), ..Desired::default() };
        let mut model = naive(&before);
        model.peers.get_mut(&key(1)).unwrap().endpoint = Some("192.0.2.9:1".parse().unwrap());
        assert!(diff(&model.snapshot(), &before).is_empty());
        before.peers.get_mut(&key(1)).unwrap().endpoint = Some("192.0.2.9:2".parse().unwrap());
        assert_eq!(diff(&model.snapshot(), &before).additions.len(), 1);
    }

    #[test]
    fn text_is_read_as_a_prefix_in_canonical_form() {
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
        assert_eq!(prefix("fd00::1/64").to_string(), "fd00::/64");
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0/8", "::/129", "::/"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        let covered: BTreeSet<_> =
            ["10.0.0.0/8", "10.1.0.0/16"].map(|inner| prefix("10.0.0.0/8").covers(&prefix(inner))).into();
        assert_eq!(covered, [true].into());
        assert!(
            !prefix("10.1.0.0/16").covers(&prefix("10.0.0.0/8"))
                && !prefix("::/0").covers(&prefix("0.0.0.0/0"))
        );
    }
}
