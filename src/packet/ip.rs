//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, as far as a tunnel looks at them.

use std::net::IpAddr;

/// Length of an IPv4 header without options.
pub const V4_HEADER_LEN: usize = 20;
/// Length of the fixed IPv6 header.
pub const V6_HEADER_LEN: usize = 40;

/// No IP packet: wrong version, or shorter than its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// What the header of an inner packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The version.
    pub version: Version,
    /// The packet's length, header included; what follows is padding.
    pub len: usize,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
}

/// Reads the header of an IP packet that may have padding behind it.
///
/// # Errors
/// [`Malformed`] by the rules of the kernel (`receive.c`, `wg_packet_consume_data_done`).
pub fn inner(packet: &[u8]) -> Result<Inner, Malformed> {
    let version = version(packet)?;
    let len = match version {
        Version::V4 => {
            let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            if len < V4_HEADER_LEN {
                return Err(Malformed);
            }
            len
        }
        Version::V6 => V6_HEADER_LEN + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
    };
    if len > packet.len() {
        return Err(Malformed);
    }
    let [source, destination] = addresses(packet, version);
    Ok(Inner { version, len, source, destination })
}

/// Returns where a packet from the TUN device goes to.
///
/// # Errors
/// [`Malformed`] if it has no whole IP header.
pub fn destination(packet: &[u8]) -> Result<IpAddr, Malformed> {
    let [_, destination] = addresses(packet, version(packet)?);
    Ok(destination)
}

/// Returns the DS field with the two ECN bits (RFC 2474, RFC 3168) of a packet with a whole header.
pub fn ds_field(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        [first, second, ..] => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Returns the version of a packet that holds a whole header of it.
fn version(packet: &[u8]) -> Result<Version, Malformed> {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= V4_HEADER_LEN => Ok(Version::V4),
        Some(6) if packet.len() >= V6_HEADER_LEN => Ok(Version::V6),
        Some(_) | None => Err(Malformed),
    }
}

/// Returns source and destination. `packet` holds a whole header of `version`.
fn addresses(packet: &[u8], version: Version) -> [IpAddr; 2] {
    fn at<const N: usize>(packet: &[u8], offset: usize) -> [u8; N] {
        std::array::from_fn(|i| packet[offset + i])
    }
    match version {
        Version::V4 => [at::<4>(packet, 12).into(), at::<4>(packet, 16).into()],
        Version::V6 => [at::<16>(packet, 8).into(), at::<16>(packet, 24).into()],
    }
}

/// Returns the hop limit (in IPv4: the time to live) of a packet with a whole header.
pub fn hop_limit(packet: &[u8]) -> u8 {
    match packet {
        [first, ..] if first >> 4 == 4 => packet.get(8),
        _ => packet.get(7),
    }
    .copied()
    .unwrap_or_default()
}

/// What a packet holds of a UDP datagram (RFC 768).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Udp<'a> {
    /// Nothing.
    None,
    /// A part of it that is not the first.
    LaterFragment,
    /// All of it, or the first fragment.
    Datagram {
        /// Where it comes from.
        source_port: u16,
        /// Where it goes to.
        destination_port: u16,
        /// What it carries, as far as it is in this packet.
        payload: &'a [u8],
    },
}

/// Returns what `packet` holds of a UDP datagram; IPv6 extension headers other than that of a fragment are not looked behind.
pub fn udp(packet: &[u8]) -> Udp<'_> {
    const UDP: u8 = 17;
    const UDP_HEADER_LEN: usize = 8;
    /// Of a fragment's header: next header, reserved, two bytes of offset and flags, identification (RFC 8200 §4.5).
    const FRAGMENT: u8 = 44;
    const FRAGMENT_HEADER_LEN: usize = 8;

    let Ok(header) = inner(packet) else { return Udp::None };
    let packet = &packet[..header.len];
    let two = |at: usize| packet.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let (protocol, offset, at) = match header.version {
        Version::V4 => (packet[9], two(6) & 0x1fff, usize::from(packet[0] & 15) * 4),
        Version::V6 if packet[6] == FRAGMENT && packet.len() >= V6_HEADER_LEN + FRAGMENT_HEADER_LEN => {
            (packet[V6_HEADER_LEN], two(V6_HEADER_LEN + 2) & 0xfff8, V6_HEADER_LEN + FRAGMENT_HEADER_LEN)
        }
        Version::V6 => (packet[6], 0, V6_HEADER_LEN),
    };
    if protocol != UDP {
        return Udp::None;
    }
    if offset != 0 {
        return Udp::LaterFragment;
    }
    match packet.get(at + UDP_HEADER_LEN..) {
        Some(payload) => Udp::Datagram { source_port: two(at), destination_port: two(at + 2), payload },
        None => Udp::None,
    }
}

/// Tells whether `packet` is a UDP datagram to `destination`, not a later fragment, with this source port: what our own socket sends.
pub fn is_udp(packet: &[u8], source_port: u16, destination: std::net::SocketAddr) -> bool {
    if self::destination(packet) != Ok(destination.ip()) {
        return false;
    }
    match udp(packet) {
        Udp::Datagram { source_port: from, destination_port: to, .. } => {
            (from, to) == (source_port, destination.port())
        }
        Udp::LaterFragment | Udp::None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total_len: u16) -> Vec<u8> {
        let mut packet = vec![0; 64];
        packet[0] = 0x45;
        packet[1] = 0xb9;
        packet[2..4].copy_from_slice(&total_len.to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet
    }

    fn v6(payload_len: u16) -> Vec<u8> {
        let mut packet = vec![0; 64];
        packet[0] = 0x6b;
        packet[1] = 0x90;
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet[8] = 0xfd;
        packet[24] = 0xfe;
        packet
    }

    #[test]
    fn lengths_are_those_of_the_header_and_never_beyond_the_packet() {
        // T39.
        for (packet, len) in [
            (v4(20), Some(20)),
            (v4(64), Some(64)),
            (v4(65), None),
            (v4(19), None),
            (v6(0), Some(40)),
            (v6(24), Some(64)),
            (v6(25), None),
            (v6(65535), None),
        ] {
            assert_eq!(inner(&packet).ok().map(|inner| inner.len), len);
        }
        for short in [&[][..], &[0x45], &v4(20)[..19], &v6(0)[..39], &[0x00; 64], &[0x55; 64]] {
            assert_eq!(inner(short), Err(Malformed));
            assert_eq!(destination(short), Err(Malformed));
        }
    }

    #[test]
    fn addresses_and_ds_field_are_found_in_both_versions() {
        let header = inner(&v4(40)).unwrap();
        assert_eq!(
            (header.source.to_string(), header.destination.to_string()),
            ("10.0.0.1".into(), "10.0.0.2".into())
        );
        assert_eq!(destination(&v6(0)).unwrap().to_string(), "fe00::");
        assert_eq!((ds_field(&v4(20)), ds_field(&v6(0))), (0xb9, 0xb9));
    }

    #[test]
    fn our_own_datagram_is_recognised() {
        let mut packet = v4(28);
        packet[9] = 17;
        packet[20..24].copy_from_slice(&[0xca, 0x6c, 0x00, 0x07]);
        assert!(is_udp(&packet, 51820, "10.0.0.2:7".parse().unwrap()));
        assert!(!is_udp(&packet, 51821, "10.0.0.2:7".parse().unwrap()));
        assert!(!is_udp(&packet, 51820, "10.0.0.3:7".parse().unwrap()));
        packet[7] = 1;
        assert!(!is_udp(&packet, 51820, "10.0.0.2:7".parse().unwrap()));
    }
    #[test]
    fn fragments_of_udp_are_recognised_in_both_versions() {
        let first = Udp::Datagram { source_port: 0xca6c, destination_port: 7, payload: &[0; 8][..] };
        let mut packet = v4(36);
        packet[9] = 17;
        packet[20..24].copy_from_slice(&[0xca, 0x6c, 0x00, 0x07]);
        for (flags, expected) in
            [(0, first), (0x2000, first), (0x2001, Udp::LaterFragment), (185, Udp::LaterFragment)]
        {
            packet[6..8].copy_from_slice(&u16::to_be_bytes(flags));
            assert_eq!(udp(&packet), expected);
        }
        packet[9] = 1;
        assert_eq!(udp(&packet), Udp::None);

        let mut packet = v6(24);
        packet[6] = 44;
        packet[40] = 17;
        packet[48..52].copy_from_slice(&[0xca, 0x6c, 0x00, 0x07]);
        for (offset, expected) in [(0, first), (1, first), (8, Udp::LaterFragment), (9, Udp::LaterFragment)] {
            packet[42..44].copy_from_slice(&u16::to_be_bytes(offset));
            assert_eq!(udp(&packet), expected);
        }
        packet[42..44].fill(0);
        assert!(is_udp(&packet, 51820, "[fe00::]:7".parse().unwrap()));
        // Cut within the headers.
        for len in 0..16 {
            packet[5] = len;
            assert_eq!(udp(&packet), Udp::None, "{len}");
        }
    }

    #[test]
    fn the_hop_limit_is_found_in_both_versions() {
        let (mut v4, mut v6) = (v4(28), v6(8));
        (v4[8], v6[7]) = (17, 18);
        assert_eq!((hop_limit(&v4), hop_limit(&v6), hop_limit(&[])), (17, 18, 0));
    }
}
