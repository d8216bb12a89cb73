//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6), which stands before each packet on a TUN queue opened with `IFF_VNET_HDR`; and its longer
//! form, which can describe super-packets inside VXLAN and Geneve (virtio 1.4, `virtio_net_hdr_v1_hash_tunnel`).
//!
//! Numbers are in the machine's byte order, as the kernel has them without `TUNSETVNETLE`; those of the longer form are little-endian.

/// Length of the header.
pub const LEN: usize = 10;
/// Length of its longer form.
pub const TUNNEL_LEN: usize = 24;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the outer UDP checksum is wanted.
const TUNNEL_CSUM: u8 = 8;
/// `VIRTIO_NET_HDR_GSO_ECN`: the first segment has CWR set.
const GSO_ECN: u8 = 0x80;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4` and `…_IPV6`: the version of the outer IP header, which says so itself.
const GSO_UDP_TUNNEL: u8 = 0x20 | 0x40;

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

/// Headers around what is to be cut: IP, UDP, and those of VXLAN or Geneve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Where the outer UDP header begins.
    pub transport: usize,
    /// Where the inner IP header begins.
    pub network: usize,
    /// Whether the outer UDP checksum is wanted; else it is zero.
    pub has_checksum: bool,
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
    /// What is around it. It is only read.
    pub tunnel: Option<Tunnel>,
}

/// A kind of super-packet that was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl Header {
    /// What stands before a packet that is complete.
    pub const PLAIN: Self = Self { gso: Gso::None, gso_size: 0, header_len: 0, partial: None, tunnel: None };

    /// Reads a header of either form.
    ///
    /// # Errors
    /// [`Unknown`] for a kind of super-packet that no offload of ours brings, or less than a header.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unknown> {
        let (head, more) = bytes.split_first_chunk::<LEN>().ok_or(Unknown)?;
        let [flags, kind, rest @ ..] = head;
        let word = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let tunnel = match (kind & GSO_UDP_TUNNEL, more.last_chunk()) {
            (0, _) => None,
            (_, Some(&[t0, t1, n0, n1])) => Some(Tunnel {
                transport: u16::from_le_bytes([t0, t1]).into(),
                network: u16::from_le_bytes([n0, n1]).into(),
                has_checksum: flags & TUNNEL_CSUM != 0,
            }),
            (_, None) => return Err(Unknown),
        };
        let gso = match kind & !(GSO_ECN | GSO_UDP_TUNNEL) {
            0 => Gso::None,
            1 => Gso::TcpV4,
            4 => Gso::TcpV6,
            5 => Gso::UdpL4,
            _ => return Err(Unknown),
        };
        let partial = Partial { start: word(4).into(), offset: word(6).into() };
        let partial = (flags & NEEDS_CSUM != 0).then_some(partial);
        Ok(Self { gso, gso_size: word(2), header_len: word(0), partial, tunnel })
    }

    /// Returns the bytes of the longer form, which begins with the shorter one. A tunnel is not written.
    pub fn to_bytes(self) -> [u8; TUNNEL_LEN] {
        let mut bytes = [0; TUNNEL_LEN];
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
            tunnel: None,
        };
        let udp = Header { gso: Gso::UdpL4, ..tcp };
        for header in [Header::PLAIN, tcp, udp, Header { gso: Gso::TcpV4, ..tcp }] {
            assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
            assert_eq!(Header::parse(&header.to_bytes()[..LEN]), Ok(header));
        }
        let mut bytes = tcp.to_bytes();
        bytes[1] |= 0x80;
        assert_eq!(Header::parse(&bytes), Ok(tcp), "the mark of ECN changes nothing else");
        bytes[1] = 3;
        assert_eq!(Header::parse(&bytes), Err(Unknown), "fragments of a datagram");
        bytes[0] |= 8;
        bytes[1] = 0x24;
        bytes[20..].copy_from_slice(&[20, 0, 0x2a, 1]);
        let tunnel = Tunnel { transport: 20, network: 0x012a, has_checksum: true };
        assert_eq!(Header::parse(&bytes), Ok(Header { tunnel: Some(tunnel), ..tcp }));
        assert_eq!(Header::parse(&bytes[..LEN]), Err(Unknown), "where the tunnel is is not said");
    }
}
