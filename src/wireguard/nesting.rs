//! Tunnels inside tunnels, and the loops that they can form; the paper is silent on both.
//!
//! A route can lead the outer packets of a tunnel into the tunnel itself, or into another one that leads back. Each round makes a packet
//! longer until it is fragmented, and from there on every fragment makes the round: their number doubles and doubles again. What was
//! encrypted on the way cannot be recognized, so the outer header counts how deep a packet is nested: the hop limit of a packet that
//! carries no WireGuard message is the system's, and each tunnel around that takes 16 off. (IPv6 has an option for this, the tunnel
//! encapsulation limit of RFC 2473 §4.1.1, that IPv4 lacks and many routers drop.)

use super::dropped::Dropped;
use super::messages::{DataHeader, is_handshake};
use crate::packet::ip;

/// What the systems of our time begin with (RFC 1700), and what is assumed of a higher one.
const HOP_LIMIT_MAX: u8 = 64;

/// Allows for four tunnels inside one another, the default of RFC 2473 §6.6.
const STEP: u8 = 16;

/// Of the outer packet around a later fragment, which does not tell what it is of. It may carry anything, so that it must reach any peer.
const LATER_FRAGMENT_MIN: u8 = 32;

/// Returns the hop limit of the outer packet around `packet`; `None` for the system's default.
///
/// # Errors
/// [`Dropped::Loop`] if it is nested too deeply.
pub fn outer_hop_limit(packet: &[u8]) -> Result<Option<u8>, Dropped> {
    let hop_limit = || ip::hop_limit(packet).min(HOP_LIMIT_MAX);
    match ip::udp(packet) {
        ip::Udp::None => Ok(None),
        ip::Udp::LaterFragment => Ok(Some(hop_limit().saturating_sub(STEP).max(LATER_FRAGMENT_MIN))),
        ip::Udp::Datagram { payload, .. } => {
            if !is_handshake(payload) && DataHeader::parse(payload).is_none() {
                return Ok(None);
            }
            match hop_limit() {
                ..=STEP => Err(Dropped::Loop),
                limit => Ok(Some((limit - STEP).max(STEP))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet of protocol UDP with this hop limit, fragment offset and payload.
    fn udp(hop_limit: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(28 + payload.len()).unwrap().to_be_bytes());
        packet[6..8].copy_from_slice(&offset.to_be_bytes());
        packet[8] = hop_limit;
        packet[9] = 17;
        packet.extend(payload);
        packet
    }

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut message = vec![0; len];
        message[0] = kind;
        message
    }

    #[test]
    fn five_tunnels_inside_one_another_are_too_many() {
        for inner in [message(1, 148), message(2, 92), message(3, 64), message(4, 32), message(4, 1400)] {
            // The first tunnel carries no message of a tunnel; the system chooses 64 for what is around that.
            let mut hop_limit = 64;
            for expected in [48, 32, 16] {
                let outer = outer_hop_limit(&udp(hop_limit, 0, &inner));
                assert_eq!(outer, Ok(Some(expected)));
                hop_limit = expected;
            }
            assert_eq!(outer_hop_limit(&udp(hop_limit, 0, &inner)), Err(Dropped::Loop));
        }
    }

    #[test]
    fn any_hop_limit_ends_within_four_tunnels() {
        for first in 0..=255 {
            let mut hop_limit = first;
            let rounds = (0..10).take_while(|_| {
                let outer = outer_hop_limit(&udp(hop_limit, 0, &message(4, 96)));
                outer.map(|outer| hop_limit = outer.unwrap()).is_ok()
            });
            assert!(rounds.count() <= 3, "{first}");
        }
    }

    #[test]
    fn what_carries_no_message_of_a_tunnel_is_left_alone() {
        for (kind, len) in [(0, 148), (1, 147), (5, 148), (4, 31), (4, 0), (64, 1000)] {
            let mut payload = vec![0; len];
            payload.iter_mut().take(1).for_each(|first| *first = kind);
            assert_eq!(outer_hop_limit(&udp(1, 0, &payload)), Ok(None), "{kind}, {len}");
        }
        let mut tcp = udp(1, 0, &message(4, 96));
        tcp[9] = 6;
        assert_eq!(outer_hop_limit(&tcp), Ok(None));
    }

    #[test]
    fn fragments_count_as_what_they_may_be_of_and_never_end() {
        // More fragments follow; the first one holds the beginning of the message.
        assert_eq!(outer_hop_limit(&udp(48, 0x2000, &message(4, 96))), Ok(Some(32)));
        for (hop_limit, outer) in [(1, 32), (48, 32), (64, 48), (255, 48)] {
            assert_eq!(outer_hop_limit(&udp(hop_limit, 100, &[0; 50])), Ok(Some(outer)));
        }
    }
}
