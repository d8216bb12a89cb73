//! Addresses of sockets (`sockaddr_in`, `sockaddr_in6`) as bytes.

use std::net::{SocketAddr, SocketAddrV6};

/// Room for an address of either family: as long as a `sockaddr_in6`.
pub(super) type Name = [u8; 28];
/// No address.
pub(super) const EMPTY: Name = [0; 28];
/// Length of the longer of the two.
pub(super) const LEN_MAX: libc::socklen_t = 28;
const V4_LEN: libc::socklen_t = 16;

/// Writes a `sockaddr_in` or `sockaddr_in6` and returns its length.
pub(super) fn encode(addr: SocketAddr, name: &mut Name) -> libc::socklen_t {
    name.fill(0);
    name[2..4].copy_from_slice(&addr.port().to_be_bytes());
    match addr {
        SocketAddr::V4(addr) => {
            name[..2].copy_from_slice(&family_bytes(libc::AF_INET));
            name[4..8].copy_from_slice(&addr.ip().octets());
            V4_LEN
        }
        SocketAddr::V6(addr) => {
            name[..2].copy_from_slice(&family_bytes(libc::AF_INET6));
            name[8..24].copy_from_slice(&addr.ip().octets());
            name[24..].copy_from_slice(&addr.scope_id().to_ne_bytes());
            LEN_MAX
        }
    }
}

fn family_bytes(family: i32) -> [u8; 2] {
    u16::try_from(family).unwrap_or_default().to_ne_bytes()
}

pub(super) fn decode(name: &Name, len: libc::socklen_t) -> Option<SocketAddr> {
    let [family_low, family_high, port_high, port_low, ..] = *name;
    let port = u16::from_be_bytes([port_high, port_low]);
    match i32::from(u16::from_ne_bytes([family_low, family_high])) {
        libc::AF_INET if len >= V4_LEN => {
            let ip: [u8; 4] = name[4..8].try_into().ok()?;
            Some(SocketAddr::new(ip.into(), port))
        }
        libc::AF_INET6 if len >= LEN_MAX => {
            let ip: [u8; 16] = name[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(*name.last_chunk()?);
            // The flow label is the sender's business of that one datagram.
            Some(SocketAddr::V6(SocketAddrV6::new(ip.into(), port, 0, scope)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.1:7", "[2001:db8::1]:65535", "[fe80::1%3]:9"] {
            let addr: SocketAddr = text.parse().unwrap();
            let mut name = EMPTY;
            let len = encode(addr, &mut name);
            assert_eq!(decode(&name, len), Some(addr));
        }
        assert_eq!(decode(&EMPTY, LEN_MAX), None);
    }
}
