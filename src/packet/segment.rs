//! Cutting a super-packet into the packets that go on the wire: TCP segmentation (RFC 9293) and datagram segmentation.
//!
//! What the kernel would do without the offload (`tcp_gso_segment`, `__udp_gso_segment`), except that nothing is copied: each segment is a
//! header that is written here and a range of the super-packet, and whoever encrypts gathers the two.
//!
//! ```text
//! super-packet   [ header | payload 0 | payload 1 | … | payload n ]
//! segment i      [ header with length, id, sequence number, flags, checksums of i ] + payload i
//! ```

use std::ops::Range;

use super::checksum;
use super::ip::Malformed;
use super::transport::{
    Layout, Protocol, TCP_HEADER_LEN, UDP_HEADER_LEN, flags, write_length, write_v4_checksum,
};
use super::virtio::{Gso, Header, Partial, Tunnel};

/// The longest headers of a super-packet: IPv6, UDP, Geneve with all its options, Ethernet with a tag, IPv6, and TCP's 60 bytes.
pub const HEADER_MAX: usize = 40 + 8 + 260 + 18 + 40 + 60 + 22;

/// A packet from a TUN queue, ready to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    len: usize,
    cut: Option<Cut>,
}

/// What is known of a super-packet.
#[derive(Clone, Copy, Debug)]
struct Cut {
    protocol: Protocol,
    /// Headers around the IP header of what is cut.
    tunnel: Option<Tunnel>,
    /// Where the IP header begins.
    network: usize,
    /// Where TCP's or UDP's header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    gso_size: usize,
    count: usize,
    /// The sum of the pseudo-header without its length.
    pseudo: u32,
}

/// One packet: a header and where the rest of it lies in the super-packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of the header that were written.
    pub header_len: usize,
    /// The rest.
    pub payload: Range<usize>,
}

impl Segment {
    /// Returns the packet's length.
    pub fn len(&self) -> usize {
        self.header_len + self.payload.len()
    }

    /// Tells whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Split {
    /// Looks at `packet`, before which `header` stood. The checksum of a packet that is none but one is completed in place.
    ///
    /// # Errors
    /// [`Malformed`] if header and packet contradict each other.
    pub fn new(header: &Header, packet: &mut [u8]) -> Result<Self, Malformed> {
        let len = packet.len();
        let network = header.tunnel.map_or(0, |tunnel| tunnel.network);
        let (protocol, version) = match header.gso {
            Gso::None => {
                if let Some(partial) = header.partial {
                    complete(packet, partial)?;
                }
                return Ok(Self { len, cut: None });
            }
            Gso::TcpV4 => (Protocol::Tcp, 4),
            Gso::TcpV6 => (Protocol::Tcp, 6),
            Gso::UdpL4 => (Protocol::Udp, packet.get(network).ok_or(Malformed)? >> 4),
        };
        if packet.get(network).is_none_or(|first| first >> 4 != version) || header.gso_size == 0 {
            return Err(Malformed);
        }
        let cut = Cut::new(protocol, version == 4, header, packet)?;
        Ok(Self { len, cut: Some(cut) })
    }

    /// Returns the number of segments, at least one.
    pub fn count(&self) -> usize {
        self.cut.map_or(1, |cut| cut.count)
    }

    /// Returns the length of the longest segment.
    pub fn longest(&self) -> usize {
        self.cut.map_or(self.len, |cut| self.len.min(cut.payload + cut.gso_size))
    }

    /// Writes the header of segment `index` of `packet` into `header`.
    pub fn segment(&self, packet: &[u8], index: usize, header: &mut [u8; HEADER_MAX]) -> Segment {
        match &self.cut {
            None => Segment { header_len: 0, payload: 0..self.len },
            Some(cut) => cut.segment(packet, index, header),
        }
    }
}

impl Cut {
    fn new(protocol: Protocol, is_v4: bool, header: &Header, packet: &[u8]) -> Result<Self, Malformed> {
        let network = match header.tunnel {
            None => 0,
            Some(tunnel) => {
                let outer = outer_ip_len(packet)?;
                // Ethernet and VXLAN are behind the outer UDP header.
                let is_even = (tunnel.network - tunnel.transport.min(tunnel.network)).is_multiple_of(2);
                if tunnel.transport < outer || tunnel.network < tunnel.transport + UDP_HEADER_LEN || !is_even
                {
                    return Err(Malformed);
                }
                tunnel.network
            }
        };
        let (transport, pseudo) = match header.partial {
            // The field holds the sum of the pseudo-header with the length of the whole (kernel `tcp4_gso_segment` relies on it).
            Some(Partial { start, offset }) if offset == protocol.checksum_offset() => {
                let field = packet.get(start + offset..start + offset + 2).ok_or(Malformed)?;
                let whole = u16::try_from(packet.len() - start).map_err(|_| Malformed)?;
                (start, u32::from(u16::from_be_bytes([field[0], field[1]])) + u32::from(!whole))
            }
            Some(_) => return Err(Malformed),
            None => {
                let inner = &packet[network..];
                let layout =
                    Layout::of(inner).filter(|layout| layout.protocol == protocol).ok_or(Malformed)?;
                (network + layout.ip_len, layout.pseudo_sum(inner, 0))
            }
        };
        let least = network + if is_v4 { usize::from(packet[network] & 15) * 4 } else { 40 };
        let len = match protocol {
            Protocol::Tcp => usize::from(packet.get(transport + 12).ok_or(Malformed)? >> 4) * 4,
            Protocol::Udp => UDP_HEADER_LEN,
        };
        let payload = transport + len;
        let is_short = protocol == Protocol::Tcp && len < TCP_HEADER_LEN;
        if is_short || transport < least.max(network + 20) || payload > packet.len().min(HEADER_MAX) {
            return Err(Malformed);
        }
        let gso_size = usize::from(header.gso_size);
        let count = (packet.len() - payload).div_ceil(gso_size).max(1);
        Ok(Self { protocol, tunnel: header.tunnel, network, transport, payload, gso_size, count, pseudo })
    }

    fn segment(&self, packet: &[u8], index: usize, header: &mut [u8; HEADER_MAX]) -> Segment {
        let offset = index * self.gso_size;
        let start = (self.payload + offset).min(packet.len());
        let payload = start..(start + self.gso_size).min(packet.len());
        let header = &mut header[..self.payload];
        header.copy_from_slice(&packet[..self.payload]);
        let len = self.payload + payload.len();
        write_ip(&mut header[self.network..self.transport], len - self.network, index);
        let (before, transport) = header.split_at_mut(self.transport);
        let transport_len = len - self.transport;
        match self.protocol {
            Protocol::Tcp => {
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let sequence = sequence.wrapping_add(u32::try_from(offset).unwrap_or(0));
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < self.count {
                    transport[13] &= !(flags::FIN | flags::PSH);
                }
                if index > 0 {
                    transport[13] &= !flags::CWR;
                }
            }
            Protocol::Udp => write_u16(transport, 4, transport_len),
        }
        let field = self.protocol.checksum_offset();
        transport[field..field + 2].fill(0);
        let sum = checksum::add(self.pseudo + u32::try_from(transport_len).unwrap_or(0), transport);
        // A header has an even length, so the payload stands at an even offset.
        let payload_sum = checksum::add(0, &packet[payload.clone()]);
        write_checksum(transport, field, checksum::finish(sum + payload_sum));
        if let Some(tunnel) = self.tunnel {
            write_ip(&mut before[..tunnel.transport], len, index);
            let outer_len = len - tunnel.transport;
            let (ip, udp) = header.split_at_mut(tunnel.transport);
            write_u16(udp, 4, outer_len);
            write_u16(udp, 6, 0);
            if tunnel.has_checksum {
                let is_v6 = ip[0] >> 4 == 6;
                let layout = Layout { is_v6, protocol: Protocol::Udp, ip_len: 0, header_len: 0 };
                // All headers have even lengths, so the payload stands at an even offset here as well.
                let sum = checksum::add(layout.pseudo_sum(ip, outer_len), udp);
                write_checksum(udp, Protocol::Udp.checksum_offset(), checksum::finish(sum + payload_sum));
            }
        }
        Segment { header_len: self.payload, payload }
    }
}

/// Returns the length of the IP header that `packet` begins with.
fn outer_ip_len(packet: &[u8]) -> Result<usize, Malformed> {
    match packet.first().ok_or(Malformed)? {
        first if first >> 4 == 4 && first & 15 >= 5 => Ok(usize::from(first & 15) * 4),
        first if first >> 4 == 6 => Ok(40),
        _ => Err(Malformed),
    }
}

/// Writes what differs from segment to segment in an IP header, behind which extension headers may stand: `len` counts from the header.
fn write_ip(ip: &mut [u8], len: usize, index: usize) {
    write_length(ip, len);
    if ip[0] >> 4 == 4 {
        // RFC 6864: a packet that may be fragmented needs an id of its own.
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(u16::try_from(index).unwrap_or(0));
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let ip_len = (usize::from(ip[0] & 15) * 4).min(ip.len());
        write_v4_checksum(&mut ip[..ip_len]);
    }
}

/// Completes a checksum whose field holds the sum of the pseudo-header.
fn complete(packet: &mut [u8], Partial { start, offset }: Partial) -> Result<(), Malformed> {
    let covered = packet.get_mut(start..).filter(|covered| offset + 2 <= covered.len()).ok_or(Malformed)?;
    let sum = checksum::finish(checksum::add(0, covered));
    write_checksum(covered, offset, sum);
    Ok(())
}

/// RFC 768: UDP's zero is sent as ones, since zero means that there is no checksum. For TCP the two are the same.
fn write_checksum(transport: &mut [u8], field: usize, sum: u16) {
    let sum = if sum == 0 { 0xffff } else { sum };
    transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn write_u16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A whole packet of the given parts, checksums right, as a sender without offloads makes it.
    pub(crate) fn packet(is_v6: bool, protocol: Protocol, options: usize, payload: &[u8]) -> Vec<u8> {
        let transport_len = match protocol {
            Protocol::Tcp => TCP_HEADER_LEN + options,
            Protocol::Udp => UDP_HEADER_LEN,
        } + payload.len();
        let mut packet = if is_v6 { vec![0; 40] } else { vec![0; 20] };
        if is_v6 {
            packet[0] = 0x60;
            packet[6] = protocol.number();
            packet[7] = 64;
            packet[8..24].fill(0x11);
            packet[24..40].fill(0x22);
        } else {
            packet[0] = 0x45;
            packet[4..6].copy_from_slice(&0xfffe_u16.to_be_bytes());
            packet[8] = 64;
            packet[9] = protocol.number();
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let ip_len = packet.len();
        match protocol {
            Protocol::Tcp => {
                packet.extend([0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4]);
                packet.push(u8::try_from((TCP_HEADER_LEN + options) / 4).unwrap() << 4);
                packet.extend([flags::ACK, 0x10, 0x00, 0, 0, 0, 0]);
                packet.extend(vec![1; options]);
            }
            Protocol::Udp => {
                packet.extend([0x12, 0x34, 0x56, 0x78]);
                packet.extend(u16::try_from(transport_len).unwrap().to_be_bytes());
                packet.extend([0, 0]);
            }
        }
        packet.extend(payload);
        let len = packet.len();
        write_length(&mut packet, len);
        seal(&mut packet, ip_len, protocol);
        packet
    }

    /// Computes the checksums of `packet` anew.
    pub(crate) fn seal(packet: &mut [u8], ip_len: usize, protocol: Protocol) {
        if ip_len == 20 {
            write_v4_checksum(&mut packet[..20]);
        }
        let layout = Layout { is_v6: ip_len == 40, protocol, ip_len, header_len: 0 };
        let len = packet.len() - ip_len;
        let pseudo = layout.pseudo_sum(packet, len);
        let field = protocol.checksum_offset();
        packet[ip_len + field..][..2].fill(0);
        let sum = checksum::finish(checksum::add(pseudo, &packet[ip_len..]));
        write_checksum(&mut packet[ip_len..], field, sum);
    }

    /// The super-packet that a sender with offloads makes: the field of the checksum holds the sum of the pseudo-header.
    fn super_packet(
        is_v6: bool,
        protocol: Protocol,
        options: usize,
        payload: &[u8],
        gso_size: u16,
    ) -> (Header, Vec<u8>) {
        let mut packet = packet(is_v6, protocol, options, payload);
        let layout = Layout::of(&packet).unwrap();
        let pseudo = layout.pseudo_sum(&packet, packet.len() - layout.ip_len);
        let offset = protocol.checksum_offset();
        packet[layout.ip_len + offset..][..2].copy_from_slice(&u16::try_from(pseudo).unwrap().to_be_bytes());
        let gso = match (protocol, is_v6) {
            (Protocol::Udp, _) => Gso::UdpL4,
            (Protocol::Tcp, false) => Gso::TcpV4,
            (Protocol::Tcp, true) => Gso::TcpV6,
        };
        let partial = Some(Partial { start: layout.ip_len, offset });
        (Header { gso, gso_size, header_len: 0, partial, tunnel: None }, packet)
    }

    /// Headers of an overlay in UDP in IP around `inner`, as a sender without offloads makes them.
    fn in_overlay(overlay: &[u8], is_v6: bool, id: u16, has_checksum: bool, inner: &[u8]) -> Vec<u8> {
        let payload = [overlay, &[0x0e; 14], inner].concat();
        let mut outer = packet(is_v6, Protocol::Udp, 0, &payload);
        let ip_len = if is_v6 { 40 } else { 20 };
        if !is_v6 {
            outer[4..6].copy_from_slice(&id.to_be_bytes());
        }
        seal(&mut outer, ip_len, Protocol::Udp);
        if !has_checksum {
            outer[ip_len + 6..ip_len + 8].fill(0);
        }
        outer
    }

    fn segments(header: &Header, packet: &mut [u8]) -> Vec<Vec<u8>> {
        let split = Split::new(header, packet).unwrap();
        let mut head = [0; HEADER_MAX];
        (0..split.count())
            .map(|index| {
                let segment = split.segment(packet, index, &mut head);
                assert!(segment.len() <= split.longest());
                [&head[..segment.header_len], &packet[segment.payload]].concat()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn segments_are_what_a_sender_without_offloads_makes(
            is_v6: bool, is_tcp: bool, options in 0_usize..10, len in 0_usize..5000, gso_size in 1_u16..1500, flag_bits: u8
        ) {
            let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
            let options = if is_tcp { options * 4 } else { 0 };
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect();
            let (header, mut whole) = super_packet(is_v6, protocol, options, &payload, gso_size);
            let ip_len = if is_v6 { 40 } else { 20 };
            if is_tcp {
                whole[ip_len + 13] = flag_bits;
            }
            let pieces: Vec<&[u8]> = if len == 0 { vec![&[]] } else { payload.chunks(gso_size.into()).collect() };
            let found = segments(&header, &mut whole);
            prop_assert_eq!(found.len(), pieces.len());
            for (i, (found, piece)) in found.iter().zip(&pieces).enumerate() {
                let mut expected = packet(is_v6, protocol, options, piece);
                if !is_v6 {
                    let id = 0xfffe_u16.wrapping_add(u16::try_from(i).unwrap());
                    expected[4..6].copy_from_slice(&id.to_be_bytes());
                }
                if is_tcp {
                    let sequence = 0xffff_ff00_u32.wrapping_add(u32::try_from(i * usize::from(gso_size)).unwrap());
                    expected[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
                    // FIN and PSH are the last one's, CWR the first one's.
                    let keep = if i + 1 == pieces.len() { 0xff } else { !0x09 } & if i == 0 { 0xff } else { !0x80 };
                    expected[ip_len + 13] = flag_bits & keep;
                }
                seal(&mut expected, ip_len, protocol);
                prop_assert_eq!(found, &expected);
                prop_assert!(Layout::of(found).unwrap().is_intact(found));
            }
        }

        #[test]
        fn segments_in_overlays_are_what_a_sender_without_offloads_makes(
            options in prop::option::of(0_u8..64),
            outer_is_v6: bool, is_v6: bool, has_checksum: bool, len in 1_usize..5000, gso_size in 100_u16..1500
        ) {
            // VXLAN (RFC 7348 §5), or Geneve (RFC 8926 §3.4) with so many words of options.
            let overlay = match options {
                None => vec![8, 0, 0, 0, 0, 0, 7, 0],
                Some(words) => {
                    let mut header = vec![words, 0, 0x65, 0x58, 0, 0, 7, 0];
                    header.extend((0..words).flat_map(|word| [word, 1, 2, 3]));
                    header
                }
            };
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i * 11 % 256).unwrap()).collect();
            let (header, whole) = super_packet(is_v6, Protocol::Tcp, 12, &payload, gso_size);
            let single = |index: usize, piece: &[u8]| {
                let mut inner = packet(is_v6, Protocol::Tcp, 12, piece);
                let ip_len = if is_v6 { 40 } else { 20 };
                if !is_v6 {
                    let id = 0xfffe_u16.wrapping_add(u16::try_from(index).unwrap());
                    inner[4..6].copy_from_slice(&id.to_be_bytes());
                }
                let sequence = 0xffff_ff00_u32.wrapping_add(u32::try_from(index * usize::from(gso_size)).unwrap());
                inner[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
                seal(&mut inner, ip_len, Protocol::Tcp);
                in_overlay(&overlay, outer_is_v6, 5_u16.wrapping_add(u16::try_from(index).unwrap()), has_checksum, &inner)
            };
            let mut outer = in_overlay(&overlay, outer_is_v6, 5, has_checksum, &whole);
            let transport = if outer_is_v6 { 40 } else { 20 };
            let network = transport + 8 + overlay.len() + 14;
            let partial = header.partial.map(|partial| Partial { start: network + partial.start, ..partial });
            let tunnel = Some(Tunnel { transport, network, has_checksum });
            let found = segments(&Header { partial, tunnel, ..header }, &mut outer);
            let expected: Vec<_> = payload.chunks(gso_size.into()).enumerate().map(|(i, piece)| single(i, piece)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_header_before_any_packet_is_cut_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300), header: [u8; 24], version in 0_u8..8
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | 5;
            }
            let Ok(header) = Header::parse(&header) else { return Ok(()) };
            if let Ok(split) = Split::new(&header, &mut bytes) {
                let mut head = [0; HEADER_MAX];
                let total: usize = (0..split.count()).map(|i| split.segment(&bytes, i, &mut head).payload.len()).sum();
                prop_assert!(total <= bytes.len());
            }
        }
    }

    #[test]
    fn the_checksum_of_a_single_packet_is_completed() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (header, mut whole) = super_packet(false, protocol, 0, &[9; 77], 1000);
            let single = Header { gso: Gso::None, ..header };
            assert_eq!(segments(&single, &mut whole), [packet(false, protocol, 0, &[9; 77])]);
        }
    }

    #[test]
    fn a_super_packet_without_a_partial_checksum_is_cut_as_well() {
        let (header, mut whole) = super_packet(true, Protocol::Tcp, 12, &[5; 3000], 1000);
        let with = segments(&header, &mut whole);
        assert_eq!(segments(&Header { partial: None, ..header }, &mut whole), with);
    }

    #[test]
    fn headers_that_contradict_the_packet_are_refused() {
        let (header, whole) = super_packet(false, Protocol::Tcp, 0, &[5; 300], 100);
        let partial = |start, offset| Header { partial: Some(Partial { start, offset }), ..header };
        for wrong in [
            Header { gso_size: 0, ..header },
            Header { gso: Gso::TcpV6, ..header },
            partial(20, 6),
            partial(0, 16),
            partial(65535, 16),
            Header { gso: Gso::None, ..partial(339, 16) },
        ] {
            assert_eq!(Split::new(&wrong, &mut whole.clone()).map(|_| ()), Err(Malformed), "{wrong:?}");
        }
        let mut short = whole;
        short[20 + 12] = 0x40;
        assert_eq!(Split::new(&header, &mut short).map(|_| ()), Err(Malformed));
    }
}
