//! TCP (RFC 9293) and UDP (RFC 768) headers behind an IP header, as far as cutting and merging look at them.

use super::checksum;
use super::ip::{V4_HEADER_LEN, V6_HEADER_LEN};

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// Returns the number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Returns where the checksum is in the header.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Length of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Length of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;

/// TCP's flags, in byte 13 of its header.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 128;
}

/// Where the parts of a TCP or UDP packet lie that has neither IP options, extension headers nor fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The IP version is 6.
    pub is_v6: bool,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Length of the IP header.
    pub ip_len: usize,
    /// Length of IP and TCP or UDP headers.
    pub header_len: usize,
}

impl Layout {
    /// Finds the parts of `packet`, which is exactly as long as its IP header says. `None` if it is anything else than said above.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (is_v6, ip_len, number) = match packet.first()? >> 4 {
            4 if packet[0] == 0x45 && packet.len() >= V4_HEADER_LEN => {
                // RFC 791: "more fragments" and the offset; "don't fragment" does not matter.
                let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
                (false, V4_HEADER_LEN, (!is_fragment).then_some(packet[9])?)
            }
            6 if packet.len() >= V6_HEADER_LEN => (true, V6_HEADER_LEN, packet[6]),
            _ => return None,
        };
        let transport = &packet[ip_len..];
        let (protocol, len) = match number {
            6 => (Protocol::Tcp, usize::from(transport.get(12)? >> 4) * 4),
            17 => (Protocol::Udp, UDP_HEADER_LEN),
            _ => return None,
        };
        let least = match protocol {
            Protocol::Tcp => TCP_HEADER_LEN,
            Protocol::Udp => UDP_HEADER_LEN,
        };
        let is_whole = len >= least && len <= transport.len();
        is_whole.then_some(Self { is_v6, protocol, ip_len, header_len: ip_len + len })
    }

    /// Returns the sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) for `len` bytes behind the IP header of `packet`.
    pub fn pseudo_sum(&self, packet: &[u8], len: usize) -> u32 {
        let addresses = if self.is_v6 { &packet[8..40] } else { &packet[12..20] };
        let len = u32::try_from(len).unwrap_or(0);
        checksum::add(u32::from(self.protocol.number()) + (len & 0xffff) + (len >> 16), addresses)
    }

    /// Tells whether `packet` has no checksum: zero in UDP (RFC 768; RFC 6935 for IPv6).
    pub fn lacks_checksum(&self, packet: &[u8]) -> bool {
        let at = self.ip_len + self.protocol.checksum_offset();
        self.protocol == Protocol::Udp && packet[at..at + 2] == [0, 0]
    }

    /// Tells whether the checksum of the IPv4 header is right. IPv6 has none.
    pub fn is_ip_intact(&self, packet: &[u8]) -> bool {
        self.is_v6 || checksum::add(0, &packet[..self.ip_len]) == 0xffff
    }

    /// Tells whether the checksums of `packet`, of IPv4 and of TCP or UDP, are there and right.
    pub fn is_intact(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.ip_len..];
        self.is_ip_intact(packet)
            && !self.lacks_checksum(packet)
            && checksum::add(self.pseudo_sum(packet, transport.len()), transport) == 0xffff
    }
}

/// Writes the IPv4 header's checksum.
pub fn write_v4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum::finish(checksum::add(0, header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Writes `packet`'s length, padding excluded, into its IP header, which may have options or be followed by extension headers.
pub fn write_length(packet: &mut [u8], len: usize) {
    let [at, value] = match packet[0] >> 4 {
        4 => [2, len],
        _ => [4, len - V6_HEADER_LEN],
    };
    packet[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes());
}
