//! "Host unreachable": what a sender is told when nobody is to be found for its packet (RFC 792, RFC 4443 §3.1).

use std::net::IpAddr;

use super::checksum;
use super::ip::{self, V4_HEADER_LEN, V6_HEADER_LEN, Version};

/// The longest message: RFC 4443 §2.4 (c), which suits IPv4 (RFC 1812 §4.3.2.3: 576) only in part, so there the quote is shorter.
pub const MAX_LEN: usize = 1280;
const V4_MAX_LEN: usize = 576;
const ICMP_HEADER_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Writes the message that answers `packet` into `out` and returns its length, or `None` if there must be no answer.
///
/// It comes from the address that was not reached: a TUN device takes in no packet that claims to come from the host itself.
pub fn unreachable(packet: &[u8], out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let header = ip::inner(packet).ok()?;
    if !may_answer(packet, &header) {
        return None;
    }
    match header.version {
        Version::V4 => {
            let quoted = header.len.min(V4_MAX_LEN - V4_HEADER_LEN - ICMP_HEADER_LEN);
            let len = V4_HEADER_LEN + ICMP_HEADER_LEN + quoted;
            let (ip, icmp) = out[..len].split_at_mut(V4_HEADER_LEN);
            ip.fill(0);
            ip[0] = 0x45;
            // RFC 1812 §4.3.2.5: internetwork control.
            ip[1] = 0xc0;
            ip[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            ip[8] = HOP_LIMIT;
            ip[9] = 1;
            ip[12..16].copy_from_slice(&packet[16..20]);
            ip[16..20].copy_from_slice(&packet[12..16]);
            let sum = checksum::finish(checksum::add(0, ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            // RFC 792: type 3, code 1, host unreachable.
            write_message(icmp, 3, 1, &packet[..quoted], 0);
            Some(len)
        }
        Version::V6 => {
            let quoted = header.len.min(MAX_LEN - V6_HEADER_LEN - ICMP_HEADER_LEN);
            let len = V6_HEADER_LEN + ICMP_HEADER_LEN + quoted;
            let (ip, icmp) = out[..len].split_at_mut(V6_HEADER_LEN);
            ip.fill(0);
            ip[0] = 0x60;
            let payload_len = u16::try_from(icmp.len()).ok()?;
            ip[4..6].copy_from_slice(&payload_len.to_be_bytes());
            ip[6] = 58;
            ip[7] = HOP_LIMIT;
            ip[8..24].copy_from_slice(&packet[24..40]);
            ip[24..40].copy_from_slice(&packet[8..24]);
            // RFC 8200 §8.1: the pseudo-header.
            let pseudo = checksum::add(u32::from(payload_len) + 58, &ip[8..40]);
            // RFC 4443 §3.1: type 1, code 3, address unreachable.
            write_message(icmp, 1, 3, &packet[..quoted], pseudo);
            Some(len)
        }
    }
}

fn write_message(icmp: &mut [u8], kind: u8, code: u8, quote: &[u8], pseudo: u32) {
    let (head, body) = icmp.split_at_mut(ICMP_HEADER_LEN);
    head.copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    body.copy_from_slice(quote);
    let sum = checksum::finish(checksum::add(pseudo, icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1122 §3.2.2, RFC 4443 §2.4 (e): no answer to an error, a later fragment, or what no single host sent or received.
fn may_answer(packet: &[u8], header: &ip::Inner) -> bool {
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let is_later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
            let at = usize::from(packet[0] & 15) * 4;
            // Echo and the other queries may be answered; unknown types are taken for errors.
            let is_error = packet[9] == 1 && !matches!(packet.get(at), Some(0 | 8 | 9 | 10 | 13..=18));
            let nobody = source.is_unspecified() || source.is_multicast() || source.is_broadcast();
            let group = destination.is_multicast() || destination.is_broadcast();
            !(is_later_fragment || is_error || nobody || group)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let is_error = packet[6] == 58 && packet.get(V6_HEADER_LEN).is_none_or(|kind| kind & 0x80 == 0);
            let nobody = source.is_unspecified() || source.is_multicast();
            !(is_error || nobody || destination.is_multicast())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(len: usize, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet
    }

    fn v6(len: usize, next_header: u8) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
        packet[6] = next_header;
        (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 1, 0xfd, 2);
        packet
    }

    #[test]
    fn an_ipv4_sender_is_told_host_unreachable() {
        let mut out = [0; MAX_LEN];
        let packet = v4(1400, 17);
        let len = unreachable(&packet, &mut out).unwrap();
        assert_eq!(len, 576);
        let header = ip::inner(&out[..len]).unwrap();
        assert_eq!(header.destination.to_string(), "10.0.0.1");
        assert_eq!(header.source.to_string(), "10.0.0.2");
        assert_eq!(out[20..22], [3, 1]);
        assert_eq!(checksum::finish(checksum::add(0, &out[..20])), 0);
        assert_eq!(checksum::finish(checksum::add(0, &out[20..len])), 0);
        assert_eq!(out[28..len], packet[..548]);
    }

    #[test]
    fn an_ipv6_sender_is_told_address_unreachable() {
        let mut out = [0; MAX_LEN];
        let packet = v6(1400, 17);
        let len = unreachable(&packet, &mut out).unwrap();
        assert_eq!(len, 1280);
        assert_eq!(out[40..42], [1, 3]);
        let payload_len = u32::try_from(len - 40).unwrap();
        let pseudo = checksum::add(payload_len + 58, &out[8..40]);
        assert_eq!(checksum::finish(checksum::add(pseudo, &out[40..len])), 0);
    }

    #[test]
    fn errors_fragments_and_groups_are_not_answered() {
        let mut out = [0; MAX_LEN];
        let mut answered = |packet: &[u8]| unreachable(packet, &mut out).is_some();
        let mut echo = v4(40, 1);
        echo[20] = 8;
        assert!(answered(&echo));
        let mut error = v4(40, 1);
        error[20] = 3;
        assert!(!answered(&error));
        let mut fragment = v4(40, 17);
        fragment[7] = 1;
        assert!(!answered(&fragment));
        let mut group = v4(40, 17);
        group[16] = 224;
        assert!(!answered(&group));
        let mut echo = v6(60, 58);
        echo[40] = 128;
        assert!(answered(&echo));
        echo[40] = 1;
        assert!(!answered(&echo));
        let mut group = v6(60, 17);
        group[24] = 0xff;
        assert!(!answered(&group));
        assert!(!answered(&[0x45; 3]));
    }
}
