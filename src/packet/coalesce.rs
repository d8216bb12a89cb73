//! Merging packets of one flow that follow each other into a super-packet, the inverse of [`segment`](super::segment).
//!
//! What the kernel's GRO does for what a network card receives (`tcp_gro_receive`, `udp_gro_receive`, `inet_gro_receive`), for packets that
//! lie somewhere in one buffer. Nothing is copied: a super-packet is a header that is written here and the ranges of the payloads.
//!
//! ```text
//! push(packet)   no TCP or UDP        → write flows of the same hosts, write it
//!                continues a flow     → keep it, and write the flow if this was its last: shorter, or pushed
//!                begins a flow        → write what the flow had before, keep it
//!                anything else        → write what the flow had before, write it
//! flush          write what is kept, oldest first
//! ```
//!
//! Order within a flow is kept. A packet is merged only if its checksum is right, so that a corrupt one is never repaired, and only if the
//! kernel, cutting the super-packet, gives the same packets again (but for the ids of packets that must not be fragmented: RFC 6864 §4.1).

use std::ops::Range;

use super::transport::{Layout, Protocol, TCP_HEADER_LEN, flags, write_length, write_v4_checksum};
use super::virtio::{Gso, Header, Partial};

/// Flows that are kept at a time.
const FLOWS: usize = 8;

/// Packets of a super-packet at most.
const PACKETS_MAX: usize = 128;

/// Datagrams of a super-packet at most: the kernel cuts 64 (`UDP_MAX_SEGMENTS`), some versions one less.
const DATAGRAMS_MAX: usize = 60;

/// The longest packet.
const LEN_MAX: usize = 65535;

/// IPv6 and TCP with all options.
const HEADER_MAX: usize = 100;

/// Which packets are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

/// Packets that may yet be continued.
#[derive(Debug)]
pub struct Coalescer {
    kinds: Kinds,
    flows: Box<[Flow; FLOWS]>,
    /// The flows' places: those in use by age, the oldest first, then the free ones.
    places: [u8; FLOWS],
    used: usize,
}

/// One super-packet, or a packet as it was.
#[derive(Debug)]
pub struct Merged<'a> {
    /// What stands before it.
    pub header: Header,
    /// Its IP and TCP or UDP header; empty for a packet as it was.
    pub head: &'a [u8],
    /// What follows the head, as ranges of the buffer.
    pub rest: &'a [Span],
    /// The length of the header that stands before each of `rest`.
    header_len: usize,
}

impl Merged<'_> {
    /// Returns the packets of which this is made, as they were: for a kernel that refuses the super-packet.
    pub fn packets(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.rest.iter().map(|span| span.range().start - self.header_len..span.range().end)
    }
}

/// A range of the buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn new(range: &Range<usize>) -> Self {
        // A buffer is far shorter than 4 GiB.
        Self {
            start: u32::try_from(range.start).unwrap_or(u32::MAX),
            len: u32::try_from(range.len()).unwrap_or(0),
        }
    }

    /// Returns it as a range.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    layout: Layout,
    /// The first packet.
    first: Span,
    /// Payload bytes of each packet but the last.
    gso_size: usize,
    /// Bytes of the super-packet so far.
    len: usize,
    /// TCP: what continues it.
    sequence: u32,
    count: usize,
    /// The first packet's checksum was looked at.
    is_verified: bool,
    payloads: [Span; PACKETS_MAX],
}

const UNUSED: Flow = Flow {
    layout: Layout { is_v6: false, protocol: Protocol::Udp, ip_len: 0, header_len: 0 },
    first: Span { start: 0, len: 0 },
    gso_size: 0,
    len: 0,
    sequence: 0,
    count: 0,
    is_verified: false,
    payloads: [Span { start: 0, len: 0 }; PACKETS_MAX],
};

impl Coalescer {
    /// Returns a coalescer that keeps nothing.
    pub fn new(kinds: Kinds) -> Self {
        let places = std::array::from_fn(|place| u8::try_from(place).unwrap_or(0));
        Self { kinds, flows: Box::new([UNUSED; FLOWS]), places, used: 0 }
    }

    /// Changes which packets are merged from here on.
    pub fn set_kinds(&mut self, kinds: Kinds) {
        self.kinds = kinds;
    }

    /// Takes in the packet that lies in `packet` of `buf`, exactly as long as its IP header says. Calls `write` for what is to be written
    /// because of it. Until [`Self::flush`], packets taken in must stay where they are in `buf`.
    pub fn push(&mut self, buf: &[u8], packet: Range<usize>, mut write: impl FnMut(&Merged<'_>)) {
        let bytes = &buf[packet.clone()];
        let Some(layout) = Layout::of(bytes) else {
            self.flush_hosts(buf, bytes, &mut write);
            return write_as_it_was(&packet, &mut write);
        };
        let known = self.find(|flow| flow.is_flow_of(buf, bytes, &layout));
        let is_mergeable = self.is_mergeable(bytes, &layout);
        if let Some(at) = known {
            let flow = &mut self.flows[usize::from(self.places[at])];
            if is_mergeable && flow.is_continued_by(buf, bytes, &layout) {
                if flow.append(&packet, bytes, &layout) {
                    self.write_flow(buf, at, &mut write);
                }
                return;
            }
            self.write_flow(buf, at, &mut write);
        }
        if is_mergeable && !is_pushed(bytes, &layout) {
            if self.used == FLOWS {
                self.write_flow(buf, 0, &mut write);
            }
            self.flows[usize::from(self.places[self.used])].begin(&packet, bytes, layout);
            self.used += 1;
        } else {
            write_as_it_was(&packet, &mut write);
        }
    }

    /// Calls `write` for everything that is kept.
    pub fn flush(&mut self, buf: &[u8], mut write: impl FnMut(&Merged<'_>)) {
        while self.used > 0 {
            self.write_flow(buf, 0, &mut write);
        }
    }

    /// Returns the place of the first flow in use for which `is_wanted` holds.
    fn find(&self, is_wanted: impl Fn(&Flow) -> bool) -> Option<usize> {
        self.places[..self.used].iter().position(|&place| is_wanted(&self.flows[usize::from(place)]))
    }

    /// Writes the flows between the same two hosts as `packet`, of which more is not known: a fragment, say.
    fn flush_hosts(&mut self, buf: &[u8], packet: &[u8], write: &mut impl FnMut(&Merged<'_>)) {
        while let Some(at) = self.find(|flow| flow.has_hosts_of(buf, packet)) {
            self.write_flow(buf, at, write);
        }
    }

    fn write_flow(&mut self, buf: &[u8], at: usize, write: &mut impl FnMut(&Merged<'_>)) {
        self.flows[usize::from(self.places[at])].write(buf, write);
        self.places[at..self.used].rotate_left(1);
        self.used -= 1;
    }

    /// Tells whether `packet` may be part of a super-packet at all.
    fn is_mergeable(&self, packet: &[u8], layout: &Layout) -> bool {
        let has_payload = packet.len() > layout.header_len;
        has_payload
            && match layout.protocol {
                // Never SYN, FIN, RST, URG, nor the answers to ECN marks.
                Protocol::Tcp => self.kinds.tcp && packet[layout.ip_len + 13] & !flags::PSH == flags::ACK,
                Protocol::Udp => {
                    let len = usize::from(u16::from_be_bytes([
                        packet[layout.ip_len + 4],
                        packet[layout.ip_len + 5],
                    ]));
                    self.kinds.udp && len == packet.len() - layout.ip_len
                }
            }
    }
}

fn is_pushed(packet: &[u8], layout: &Layout) -> bool {
    layout.protocol == Protocol::Tcp && packet[layout.ip_len + 13] & flags::PSH != 0
}

fn write_as_it_was(packet: &Range<usize>, write: &mut impl FnMut(&Merged<'_>)) {
    write(&Merged { header: Header::PLAIN, head: &[], rest: &[Span::new(packet)], header_len: 0 });
}

fn sequence(packet: &[u8], layout: &Layout) -> u32 {
    let at = layout.ip_len + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// Returns where the addresses lie in the header of an IP packet.
fn hosts(is_v6: bool) -> Range<usize> {
    if is_v6 { 8..40 } else { 12..20 }
}

impl Flow {
    fn begin(&mut self, packet: &Range<usize>, bytes: &[u8], layout: Layout) {
        let payload_len = bytes.len() - layout.header_len;
        self.layout = layout;
        self.first = Span::new(packet);
        self.gso_size = payload_len;
        self.len = bytes.len();
        self.sequence = match layout.protocol {
            Protocol::Tcp => sequence(bytes, &layout).wrapping_add(u32::try_from(payload_len).unwrap_or(0)),
            Protocol::Udp => 0,
        };
        self.count = 1;
        self.is_verified = false;
        self.payloads[0] = Span::new(&(packet.start + layout.header_len..packet.end));
    }

    /// Appends a packet that continues the flow and tells whether none may follow.
    fn append(&mut self, packet: &Range<usize>, bytes: &[u8], layout: &Layout) -> bool {
        let payload_len = bytes.len() - layout.header_len;
        self.payloads[self.count] = Span::new(&(packet.start + layout.header_len..packet.end));
        self.count += 1;
        self.len += payload_len;
        self.sequence = self.sequence.wrapping_add(u32::try_from(payload_len).unwrap_or(0));
        payload_len < self.gso_size || is_pushed(bytes, layout)
    }

    fn is_flow_of(&self, buf: &[u8], packet: &[u8], layout: &Layout) -> bool {
        let Layout { is_v6, protocol, ip_len, .. } = self.layout;
        let ports = ip_len..ip_len + 4;
        let first = &buf[self.first.range()];
        protocol == layout.protocol
            && is_v6 == layout.is_v6
            && first[ports.clone()] == packet[ports]
            && first[hosts(is_v6)] == packet[hosts(is_v6)]
    }

    fn has_hosts_of(&self, buf: &[u8], packet: &[u8]) -> bool {
        let hosts = hosts(self.layout.is_v6);
        let is_same_version = packet.first().is_some_and(|first| (first >> 4 == 6) == self.layout.is_v6);
        is_same_version && packet.get(hosts.clone()) == buf[self.first.range()].get(hosts)
    }

    /// Tells whether `packet`, of this flow, can follow what there is, and has a right checksum. The first packet's is looked at when it
    /// first matters. Where a flow has none (VXLAN often has none, and what it carries has one of its own) there is none to be wrong.
    fn is_continued_by(&mut self, buf: &[u8], packet: &[u8], layout: &Layout) -> bool {
        let payload_len = packet.len().saturating_sub(layout.header_len);
        let most = match layout.protocol {
            Protocol::Tcp => PACKETS_MAX,
            Protocol::Udp => DATAGRAMS_MAX,
        };
        let has_room = self.count < most && self.len + payload_len <= LEN_MAX;
        let first = &buf[self.first.range()];
        let fits = has_room
            && layout.header_len == self.layout.header_len
            && payload_len <= self.gso_size
            && self.has_same_ip_header(first, packet)
            && match layout.protocol {
                Protocol::Tcp => {
                    sequence(packet, layout) == self.sequence && self.has_same_tcp_header(first, packet)
                }
                Protocol::Udp => true,
            };
        if !fits {
            return false;
        }
        let has_none = self.layout.lacks_checksum(first);
        let is_sound = |layout: &Layout, packet: &[u8]| {
            if has_none { layout.is_ip_intact(packet) } else { layout.is_intact(packet) }
        };
        self.is_verified = self.is_verified || is_sound(&self.layout, first);
        self.is_verified && layout.lacks_checksum(packet) == has_none && is_sound(layout, packet)
    }

    fn has_same_ip_header(&self, first: &[u8], packet: &[u8]) -> bool {
        if self.layout.is_v6 {
            // Version, traffic class with ECN, flow label; hop limit.
            return first[..4] == packet[..4] && first[7] == packet[7];
        }
        let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        let must_not_fragment = packet[6] & 0x40 != 0;
        let follows = id(packet) == id(first).wrapping_add(u16::try_from(self.count).unwrap_or(0));
        // DS field with ECN; "don't fragment"; time to live.
        first[1] == packet[1]
            && first[6] == packet[6]
            && first[8] == packet[8]
            && (must_not_fragment || follows)
    }

    /// All but sequence number, PSH and checksum, which are looked at elsewhere.
    fn has_same_tcp_header(&self, first: &[u8], packet: &[u8]) -> bool {
        let at = self.layout.ip_len;
        let same = |from: usize, to: usize| first[at + from..at + to] == packet[at + from..at + to];
        // Acknowledgement number and length; window; urgent pointer and options.
        same(8, 13) && same(14, 16) && same(18, self.layout.header_len - at)
    }

    fn write(&self, buf: &[u8], write: &mut impl FnMut(&Merged<'_>)) {
        let Layout { is_v6, protocol, ip_len, header_len } = self.layout;
        if self.count == 1 {
            return write_as_it_was(&self.first.range(), write);
        }
        let mut head = [0; HEADER_MAX];
        let head = &mut head[..header_len];
        head.copy_from_slice(&buf[self.first.range()][..header_len]);
        write_length(head, self.len);
        if !is_v6 {
            write_v4_checksum(&mut head[..ip_len]);
        }
        let transport_len = self.len - ip_len;
        let pseudo = self.layout.pseudo_sum(head, transport_len);
        let gso = match protocol {
            Protocol::Tcp => {
                let last = self.payloads[self.count - 1].range();
                // The last one's header stands before its payload; PSH is the only flag in which it may differ.
                head[ip_len + 13] |= buf[last.start - header_len + ip_len + 13];
                if is_v6 { Gso::TcpV6 } else { Gso::TcpV4 }
            }
            Protocol::Udp => {
                let len = u16::try_from(transport_len).unwrap_or(u16::MAX);
                head[ip_len + 4..ip_len + 6].copy_from_slice(&len.to_be_bytes());
                Gso::UdpL4
            }
        };
        let offset = protocol.checksum_offset();
        let pseudo = u16::try_from(pseudo).unwrap_or(0);
        head[ip_len + offset..ip_len + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        let header = Header {
            gso,
            gso_size: u16::try_from(self.gso_size).unwrap_or(0),
            header_len: u16::try_from(header_len).unwrap_or(0),
            partial: Some(Partial { start: ip_len, offset }),
            tunnel: None,
        };
        write(&Merged { header, head, rest: &self.payloads[..self.count], header_len });
    }
}

const _: () = assert!(HEADER_MAX == 40 + TCP_HEADER_LEN + 40);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::segment::tests::{packet, seal};
    use crate::packet::segment::{self, Split};
    use proptest::prelude::*;

    const BOTH: Kinds = Kinds { tcp: true, udp: true };

    /// Pushes `packets` and returns what was written, super-packets whole.
    fn coalesce(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
        let buf = packets.concat();
        let mut written = Vec::new();
        let mut write = |merged: &Merged<'_>| {
            let mut whole = merged.head.to_vec();
            merged.rest.iter().for_each(|span| whole.extend(&buf[span.range()]));
            let singles: usize = merged.packets().map(|range| Layout::of(&buf[range]).map_or(0, |_| 1)).sum();
            assert!(merged.header.gso == Gso::None || singles == merged.rest.len());
            written.push((merged.header, whole));
        };
        let mut coalescer = Coalescer::new(BOTH);
        let mut at = 0;
        for packet in packets {
            coalescer.push(&buf, at..at + packet.len(), &mut write);
            at += packet.len();
        }
        coalescer.flush(&buf, &mut write);
        written
    }

    /// Cuts what was written, as the kernel would.
    fn cut(written: &[(Header, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for (header, whole) in written {
            let mut whole = whole.clone();
            let split = Split::new(header, &mut whole).unwrap();
            let mut head = [0; segment::HEADER_MAX];
            for index in 0..split.count() {
                let segment = split.segment(&whole, index, &mut head);
                packets.push([&head[..segment.header_len], &whole[segment.payload]].concat());
            }
        }
        packets
    }

    /// Packet `index` of a flow, `len` bytes of payload each.
    fn nth(is_v6: bool, protocol: Protocol, options: usize, index: usize, len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..len).map(|i| u8::try_from((i * 13 + index) % 256).unwrap()).collect();
        let mut packet = packet(is_v6, protocol, options, &payload);
        let ip_len = if is_v6 { 40 } else { 20 };
        if !is_v6 {
            packet[4..6].copy_from_slice(&u16::try_from(index).unwrap().to_be_bytes());
        }
        if protocol == Protocol::Tcp {
            let sequence = u32::try_from(1000 + index * len).unwrap();
            packet[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
        }
        seal(&mut packet, ip_len, protocol);
        packet
    }

    #[test]
    fn a_run_of_one_flow_becomes_one_super_packet() {
        for is_v6 in [false, true] {
            for (protocol, options, most) in [(Protocol::Tcp, 12, 45), (Protocol::Udp, 0, 45)] {
                let packets: Vec<_> = (0..most).map(|i| nth(is_v6, protocol, options, i, 1368)).collect();
                let written = coalesce(&packets);
                assert_eq!(written.len(), 1, "{protocol:?}");
                assert_eq!(cut(&written), packets);
            }
        }
    }

    #[test]
    fn small_packets_are_merged_up_to_the_kernels_number() {
        for (protocol, most) in [(Protocol::Tcp, 128), (Protocol::Udp, 60)] {
            let packets: Vec<_> = (0..200).map(|i| nth(false, protocol, 0, i, 10)).collect();
            let written = coalesce(&packets);
            assert_eq!(written[0].1.len(), packets[0].len() + (most - 1) * 10);
            assert_eq!(cut(&written), packets);
        }
    }

    #[test]
    fn a_shorter_or_pushed_packet_is_the_last_one() {
        let mut packets: Vec<_> = (0..3).map(|i| nth(false, Protocol::Tcp, 0, i, 100)).collect();
        let mut pushed = nth(false, Protocol::Tcp, 0, 3, 100);
        pushed[20 + 13] |= flags::PSH;
        seal(&mut pushed, 20, Protocol::Tcp);
        packets.push(pushed);
        packets.extend((4..6).map(|i| nth(false, Protocol::Tcp, 0, i, 100)));
        let written = coalesce(&packets);
        assert_eq!(written.len(), 2);
        assert_eq!(cut(&written), packets);
        assert_eq!(written[0].1[20 + 13], flags::ACK | flags::PSH);
        let mut shorter = nth(false, Protocol::Udp, 0, 2, 50);
        shorter[4..6].copy_from_slice(&[0, 2]);
        seal(&mut shorter, 20, Protocol::Udp);
        let mut packets: Vec<_> = (0..2).map(|i| nth(false, Protocol::Udp, 0, i, 100)).collect();
        packets.push(shorter);
        packets.push(nth(false, Protocol::Udp, 0, 3, 50));
        let written = coalesce(&packets);
        assert_eq!(written.len(), 2);
        assert_eq!(cut(&written), packets);
    }

    /// Every change of the second packet that keeps it from being merged.
    #[test]
    fn packets_that_differ_are_not_merged() {
        type Change = fn(&mut Vec<u8>);
        let both: [(&str, Change); 5] = [
            ("DS field", |packet| packet[1] ^= 0x20),
            ("ECN", |packet| packet[1] |= 3),
            ("time to live", |packet| packet[8] -= 1),
            ("don't fragment", |packet| packet[6] ^= 0x40),
            ("id", |packet| packet[5] ^= 0x10),
        ];
        let tcp: [(&str, Change); 10] = [
            ("acknowledgement", |packet| packet[20 + 11] ^= 1),
            ("window", |packet| packet[20 + 15] ^= 1),
            ("sequence", |packet| packet[20 + 7] ^= 1),
            ("options", |packet| packet[20 + 21] ^= 1),
            ("FIN", |packet| packet[20 + 13] |= 1),
            ("SYN", |packet| packet[20 + 13] |= 2),
            ("RST", |packet| packet[20 + 13] |= 4),
            ("URG", |packet| packet[20 + 13] |= 32),
            ("ECE", |packet| packet[20 + 13] |= 64),
            ("CWR", |packet| packet[20 + 13] |= 128),
        ];
        for (what, change) in both.iter().chain(&tcp) {
            let mut packets: Vec<_> = (0..3).map(|i| nth(false, Protocol::Tcp, 12, i, 100)).collect();
            change(&mut packets[1]);
            seal(&mut packets[1], 20, Protocol::Tcp);
            assert_eq!(coalesce(&packets).len(), 3, "{what}");
        }
        for (what, change) in both {
            let mut packets: Vec<_> = (0..3).map(|i| nth(false, Protocol::Udp, 0, i, 100)).collect();
            change(&mut packets[1]);
            seal(&mut packets[1], 20, Protocol::Udp);
            assert_eq!(coalesce(&packets).len(), 3, "{what}");
        }
        let v6: [(&str, Change); 3] = [
            ("flow label", |packet| packet[3] ^= 1),
            ("ECN", |packet| packet[1] |= 0x30),
            ("hop limit", |packet| packet[7] -= 1),
        ];
        for (what, change) in v6 {
            let mut packets: Vec<_> = (0..3).map(|i| nth(true, Protocol::Tcp, 12, i, 100)).collect();
            change(&mut packets[1]);
            assert_eq!(coalesce(&packets).len(), 3, "{what}");
        }
    }

    /// What is no plain TCP or UDP packet is passed on as it is, all of them alike or not.
    #[test]
    fn packets_with_more_than_plain_headers_are_not_merged() {
        let all = |is_v6: bool, protocol: Protocol, change: &dyn Fn(&mut Vec<u8>)| -> Vec<Vec<u8>> {
            let packets = (0..3).map(|index| nth(is_v6, protocol, 0, index, 100));
            packets
                .map(|mut packet| {
                    change(&mut packet);
                    packet
                })
                .collect()
        };
        let v4_options = |packet: &mut Vec<u8>| {
            packet.splice(20..20, [1; 4]);
            packet[0] = 0x46;
            packet[3] += 4;
            write_v4_checksum(&mut packet[..24]);
        };
        let v6_header = |packet: &mut Vec<u8>, kind: u8| {
            let [next, length] = [packet[6], packet[5] + 8];
            packet.splice(40..40, [next, 0, 0, 0, 0, 0, 0, 7]);
            (packet[6], packet[5]) = (kind, length);
        };
        let cases = [
            ("IPv4 options", all(false, Protocol::Tcp, &v4_options)),
            ("IPv6 fragments", all(true, Protocol::Udp, &|packet| v6_header(packet, 44))),
            ("IPv6 destination options", all(true, Protocol::Tcp, &|packet| v6_header(packet, 60))),
            ("a UDP length below the packet's", all(false, Protocol::Udp, &|packet| packet[25] -= 1)),
        ];
        for (what, packets) in cases {
            let written = coalesce(&packets);
            assert!(written.iter().all(|(header, _)| header.gso == Gso::None), "{what}");
            assert_eq!(written.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), packets, "{what}");
        }
        // As many options in all of them, or none is merged with another.
        let packets =
            [(0, 12), (1, 8), (2, 12)].map(|(index, options)| nth(false, Protocol::Tcp, options, index, 100));
        assert_eq!(coalesce(&packets).len(), 3);
    }

    #[test]
    fn a_super_packet_is_no_longer_than_a_packet_may_be() {
        for (is_v6, protocol) in [(false, Protocol::Tcp), (true, Protocol::Udp)] {
            let packets: Vec<_> = (0..15).map(|index| nth(is_v6, protocol, 0, index, 9000)).collect();
            let written = coalesce(&packets);
            assert_eq!(written.len(), 3, "seven fit");
            assert!(written.iter().all(|(_, packet)| packet.len() <= LEN_MAX));
            assert_eq!(cut(&written), packets);
        }
    }

    #[test]
    fn a_corrupt_packet_is_passed_on_as_it_is() {
        for at in [0, 1] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut packets: Vec<_> = (0..3).map(|i| nth(false, protocol, 0, i, 100)).collect();
                *packets[at].last_mut().unwrap() ^= 1;
                let written = coalesce(&packets);
                assert!(
                    written.iter().any(|(header, packet)| *header == Header::PLAIN && *packet == packets[at])
                );
            }
        }
        // A header that the receiver would refuse stays one: the checksum of a super-packet's is computed anew.
        for at in [0, 1] {
            let mut packets: Vec<_> = (0..3).map(|i| nth(false, Protocol::Tcp, 0, i, 100)).collect();
            packets[at][10] ^= 1;
            let written = coalesce(&packets);
            assert!(written.iter().any(|(_, packet)| *packet == packets[at]), "the IPv4 header of {at}");
        }
        let mut packets: Vec<_> = (0..3).map(|i| nth(false, Protocol::Udp, 0, i, 100)).collect();
        packets[1][26..28].fill(0);
        assert_eq!(coalesce(&packets).len(), 3, "without a checksum among such that have one");
        packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
        let mut without = cut(&coalesce(&packets));
        without.iter_mut().for_each(|packet| packet[26..28].fill(0));
        assert_eq!((without, coalesce(&packets).len()), (packets, 1), "where none has one, they are merged");
    }

    #[test]
    fn fragments_and_pure_acknowledgements_do_not_overtake() {
        let mut fragment = nth(false, Protocol::Udp, 0, 9, 64);
        fragment[6] = 0x20;
        write_v4_checksum(&mut fragment[..20]);
        let pure = nth(false, Protocol::Tcp, 0, 2, 0);
        let packets = [
            nth(false, Protocol::Udp, 0, 0, 64),
            fragment,
            nth(false, Protocol::Tcp, 0, 0, 100),
            pure,
            nth(false, Protocol::Tcp, 0, 1, 100),
        ];
        assert_eq!(cut(&coalesce(&packets)), packets);
    }

    proptest! {
        /// The slow twin is the kernel's cutter: what went in comes out, each flow in its order.
        #[test]
        fn what_goes_in_comes_out_in_the_order_of_each_flow(
            choices in prop::collection::vec((0_usize..12, 0_usize..40, 0_u8..12), 1..120)
        ) {
            let mut next = [0_usize; 12];
            let packets: Vec<Vec<u8>> = choices
                .iter()
                .map(|&(flow, len, oddity)| {
                    let (is_v6, protocol) = (flow % 2 == 1, if flow % 4 < 2 { Protocol::Tcp } else { Protocol::Udp });
                    let ip_len = if is_v6 { 40 } else { 20 };
                    let len = if oddity == 0 { len } else { 20 };
                    let mut packet = nth(is_v6, protocol, 0, next[flow], len);
                    next[flow] += 1;
                    packet[ip_len + 1] = u8::try_from(flow).unwrap();
                    match oddity {
                        1 => packet[ip_len + 5] ^= 1,
                        2 if protocol == Protocol::Tcp => packet[ip_len + 13] ^= 0x18,
                        3 => packet[1] ^= 2,
                        _ => {}
                    }
                    if oddity != 1 || protocol == Protocol::Tcp {
                        seal(&mut packet, ip_len, protocol);
                    }
                    if oddity == 4 {
                        *packet.last_mut().unwrap() ^= 1;
                    }
                    packet
                })
                .collect();
            let out = cut(&coalesce(&packets));
            prop_assert_eq!(out.len(), packets.len());
            for flow in 0..12 {
                let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    let is_v6 = flow % 2 == 1;
                    packets.iter().filter(|packet| (packet[0] >> 4 == 6) == is_v6 && packet[if is_v6 { 41 } else { 21 }] == flow).cloned().collect()
                };
                prop_assert_eq!(of_flow(&out), of_flow(&packets));
            }
        }
    }
}
