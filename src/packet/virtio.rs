//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6), which stands before each packet on a TUN queue opened with `IFF_VNET_HDR`.
//!
//! Numbers are in the machine's byte order, as the kernel has them without `TUNSETVNETLE`.

/// Length of the header.
pub const LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`: the first segment has CWR set.
const GSO_ECN: u8 = 0x80;

/// How a super-packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// `VIRTIO_NET_HDR_GSO_NONE`: it is one packet.
    None,
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    TcpV4,
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    TcpV6,
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: datagrams, not fragments of one.
    UdpL4,
}

/// A checksum that has yet to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the bytes that it covers begin.
    pub start: usize,
    /// Where the field is, counted from `start`; it holds the sum of the pseudo-header.
    pub offset: usize,
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the packet is to be cut.
    pub gso: Gso,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// The length of the headers that each segment repeats. The kernel's is a hint; what is written must be right.
    pub header_len: u16,
    /// The checksum that is to be completed.
    pub partial: Option<Partial>,
}

/// A kind of super-packet that was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl Header {
    /// What stands before a packet that is complete.
    pub const PLAIN: Self = Self { gso: Gso::None, gso_size: 0, header_len: 0, partial: None };

    /// Reads a header.
    ///
    /// # Errors
    /// [`Unknown`] for a kind of super-packet that no offload of ours brings.
    pub fn parse(bytes: &[u8; LEN]) -> Result<Self, Unknown> {
        let [flags, kind, rest @ ..] = bytes;
        let word = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let gso = match kind & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::TcpV4,
            4 => Gso::TcpV6,
            5 => Gso::UdpL4,
            _ => return Err(Unknown),
        };
        let partial = Partial { start: word(4).into(), offset: word(6).into() };
        let partial = (flags & NEEDS_CSUM != 0).then_some(partial);
        Ok(Self { gso, gso_size: word(2), header_len: word(0), partial })
    }

    /// Returns the header's bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::TcpV4 => 1,
            Gso::TcpV6 => 4,
            Gso::UdpL4 => 5,
        };
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        if let Some(Partial { start, offset }) = self.partial {
            bytes[0] = NEEDS_CSUM;
            for (at, value) in [(6, start), (8, offset)] {
                let value = u16::try_from(value).unwrap_or(u16::MAX);
                bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_as_written() {
        let tcp = Header {
            gso: Gso::TcpV6,
            gso_size: 1360,
            header_len: 72,
            partial: Some(Partial { start: 40, offset: 16 }),
        };
        let udp = Header { gso: Gso::UdpL4, ..tcp };
        for header in [Header::PLAIN, tcp, udp, Header { gso: Gso::TcpV4, ..tcp }] {
            assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        }
        let mut bytes = tcp.to_bytes();
        bytes[1] |= 0x80;
        assert_eq!(Header::parse(&bytes), Ok(tcp), "the mark of ECN changes nothing else");
        bytes[1] = 3;
        assert_eq!(Header::parse(&bytes), Err(Unknown), "fragments of a datagram");
    }
}
