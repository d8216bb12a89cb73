//! Whether a peer can be talked to, as far as its counters tell. Pure.
//!
//! A session is made when a packet needs one and lives for three minutes, so that a peer without one may be silent or gone: one that
//! answered once and has had nothing to say since looks the same either way. That nobody ever answered shows.

use std::time::Duration;

use super::reconcile::SESSION_LIFE;
use crate::config::PeerSnapshot;

/// What the counters of a peer tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Session {
    /// It has a session that can be used.
    Up,
    /// It has none: nothing was sent to it yet, or its last one has run out.
    Idle,
    /// It has never had one, though something was sent.
    Down,
}

impl Session {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Up, Self::Idle, Self::Down];

    /// Returns the state of a peer at the moment `now`, since the Unix epoch.
    pub fn of(peer: &PeerSnapshot, now: Duration) -> Self {
        match peer.last_handshake {
            Some(moment) if now.saturating_sub(moment) <= SESSION_LIFE => Self::Up,
            Some(_) => Self::Idle,
            None if peer.tx_bytes > 0 => Self::Down,
            None => Self::Idle,
        }
    }

    /// Returns the state as metrics and tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Idle => "idle",
            Self::Down => "down",
        }
    }
}

/// Returns how many of `peers` are in each state, in the order of [`Session::ALL`].
pub fn count(peers: &[PeerSnapshot], now: Duration) -> [usize; Session::ALL.len()] {
    Session::ALL.map(|state| peers.iter().filter(|peer| Session::of(peer, now) == state).count())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;

    /// Returns a peer that has been sent `tx_bytes`, with the moment of its last handshake.
    pub(in crate::control) fn peer(
        number: u8,
        last_handshake: Option<Duration>,
        tx_bytes: u64,
    ) -> PeerSnapshot {
        PeerSnapshot { last_handshake, tx_bytes, ..PeerSnapshot::new(PublicKey::new([number; 32])) }
    }

    #[test]
    fn only_who_never_answered_is_down() {
        let at = |seconds| Some(Duration::from_secs(seconds));
        let now = Duration::from_secs(1000);
        for (last_handshake, tx_bytes, expected) in [
            (at(1000), 0, Session::Up),
            // A clock that was set back since.
            (at(1001), 0, Session::Up),
            (at(820), 148, Session::Up),
            (at(819), 148, Session::Idle),
            (None, 0, Session::Idle),
            (None, 148, Session::Down),
        ] {
            assert_eq!(Session::of(&peer(1, last_handshake, tx_bytes), now), expected, "{last_handshake:?}");
        }
        let peers = [peer(1, at(999), 0), peer(2, None, 1), peer(3, at(1), 1), peer(4, None, 0)];
        assert_eq!(count(&peers, now), [1, 2, 1]);
    }
}
