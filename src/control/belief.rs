//! What a data plane has, as far as that is known without asking it: its last snapshot, and the edits that it has obeyed since. Pure.
//!
//! A thousand peers take milliseconds to read, and a change of one of them does not wait for that. Whoever believes reads soon after all
//! the same, so that what somebody else has changed is found.

use crate::config::{AllowedIpEdit, Edit, PeerEdit, PeerSnapshot, Prefix, Snapshot};

/// The most edits that are followed: to read is quicker than to follow more.
const EDITS_MAX: usize = 16;

/// Makes of a snapshot what it is after these edits, and tells whether that could be said: what concerns the interface itself, and much at
/// a time, is to be read.
pub fn follow(snapshot: &mut Snapshot, edits: &[Edit]) -> bool {
    if edits.len() > EDITS_MAX {
        return false;
    }
    edits.iter().all(|edit| match edit {
        Edit::Peer(edit) if edit.replace_allowed_ips => false,
        Edit::Peer(edit) => {
            follow_peer(&mut snapshot.peers, edit);
            true
        }
        Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => false,
    })
}

fn follow_peer(peers: &mut Vec<PeerSnapshot>, edit: &PeerEdit) {
    let place = peers.iter().position(|peer| peer.public_key == edit.public_key);
    if edit.remove {
        place.into_iter().for_each(|at| drop(peers.remove(at)));
        return;
    }
    let at = match place {
        Some(at) => at,
        None if edit.update_only => return,
        None => {
            peers.push(PeerSnapshot::new(edit.public_key));
            peers.len() - 1
        }
    };
    let peer = &mut peers[at];
    edit.preshared_key.iter().for_each(|key| peer.preshared_key.clone_from(key));
    peer.endpoint = edit.endpoint.or(peer.endpoint);
    peer.persistent_keepalive = edit.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
    for change in &edit.allowed_ips {
        match change {
            AllowedIpEdit::Add(prefix) => {
                // [W] §2: a prefix belongs to one peer, the last to be given it.
                peers.iter_mut().for_each(|peer| take(&mut peer.allowed_ips, prefix));
                let held = &mut peers[at].allowed_ips;
                held.insert(held.partition_point(|other| other < prefix), *prefix);
            }
            AllowedIpEdit::Remove(prefix) => take(&mut peers[at].allowed_ips, prefix),
        }
    }
}

fn take(held: &mut Vec<Prefix>, prefix: &Prefix) {
    if let Ok(at) = held.binary_search(prefix) {
        held.remove(at);
    }
}

// That what is believed is what there is, `history` checks after each of its steps.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PresharedKey;
    use crate::crypto::x25519::PublicKey;

    fn edit(n: u8) -> PeerEdit {
        PeerEdit::new(PublicKey::new([n; 32]))
    }

    #[test]
    fn what_concerns_more_than_a_few_peers_is_to_be_read() {
        let one = || Edit::Peer(edit(1));
        let whole = PeerEdit { replace_allowed_ips: true, ..edit(1) };
        for edits in [
            vec![Edit::ClearPeers],
            vec![one(), Edit::Fwmark(1)],
            vec![Edit::ListenPort(1)],
            vec![Edit::PrivateKey(None)],
            vec![Edit::Peer(whole)],
            vec![one(); 17],
        ] {
            assert!(!follow(&mut Snapshot::default(), &edits), "{edits:?}");
        }
        assert!(follow(&mut Snapshot::default(), &vec![one(); 16]));
    }

    #[test]
    fn who_has_gone_does_not_come_back_and_a_key_stays_until_there_is_another() {
        let mut snapshot = Snapshot::default();
        let key = PresharedKey::new([7; 32]);
        let secret = PeerEdit { preshared_key: Some(key.clone()), ..edit(1) };
        let gone = PeerEdit { update_only: true, ..edit(2) };
        assert!(follow(&mut snapshot, &[secret, gone, edit(1)].map(Edit::Peer)));
        let [peer] = &snapshot.peers[..] else { panic!("{snapshot:?}") };
        assert!(peer.public_key == PublicKey::new([1; 32]) && peer.preshared_key == key);
    }
}
