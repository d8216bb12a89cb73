//! Echo requests (RFC 792, RFC 4443 §4) that must not be cut into fragments: a socket for one address, by `ping` sockets (icmp(7)) where this user
//! may have one, and by raw ones (raw(7)) otherwise.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::sockopt;

/// The bytes of an ICMP header.
pub const HEADER_LEN: usize = 8;

/// A socket for echo requests to one address.
#[derive(Debug)]
pub struct Echo {
    socket: Socket,
    /// Whether what is received begins with an IP header.
    has_ip_header: bool,
    is_ipv6: bool,
}

impl Echo {
    /// Opens a socket whose requests have the mark `mark`, and which waits `patience` for an answer. What is too long for the way is refused or
    /// lost, whatever the kernel has learned of that way.
    ///
    /// # Errors
    /// `EPERM` or `EACCES` if this user may have neither kind of socket.
    pub fn open(to: IpAddr, mark: u32, patience: Duration) -> io::Result<Self> {
        let is_ipv6 = to.is_ipv6();
        let (domain, protocol) =
            if is_ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let (socket, is_raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Ok(socket) => (socket, false),
            Err(_) => (Socket::new(domain, Type::RAW, Some(protocol))?, true),
        };
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        let (level, name, value) = match is_ipv6 {
            false => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            true => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        };
        sockopt::set(&socket, level, name, value)?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        Ok(Self { socket, has_ip_header: is_raw && !is_ipv6, is_ipv6 })
    }

    /// Sends a request with the number `sequence`, of `len` bytes with its header, and waits for the answer to it; tells whether one came.
    ///
    /// # Errors
    /// `EMSGSIZE` if it is too long for the link or for a router that says so; others that the network has reported.
    pub fn ask(&self, sequence: u16, len: usize) -> io::Result<bool> {
        let (request, reply) = if self.is_ipv6 { (128, 129) } else { (8, 0) };
        let mut message = vec![0; len.max(HEADER_LEN)];
        message[0] = request;
        // A ping socket has the kernel's number in its place.
        message[4..6].copy_from_slice(&IDENTIFIER.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        // Of ICMPv6 the kernel makes it.
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.socket.send(&message)?;
        // Echo requests of others are heard by a raw socket too, and late answers.
        let mut buffer = vec![0; 60 + message.len()];
        for _ in 0..HEARD_MOST {
            let received = match (&self.socket).read(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let skipped = if self.has_ip_header { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let answer = buffer.get(skipped..received).unwrap_or_default();
            if answer.len() == message.len() && answer[0] == reply && answer[6..8] == message[6..8] {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What tells our requests from others'.
const IDENTIFIER: u16 = 0xad17;

/// The most messages that are heard while an answer is waited for.
const HEARD_MOST: usize = 64;

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Netlink;
    use crate::sys::netns;

    #[test]
    fn answers_come_up_to_the_mtu_of_the_link() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut netlink = Netlink::open()?;
            let lo = netlink.link("lo")?.index;
            netlink.set_up(lo, Some(1400))?;
            for (to, header) in [("127.0.0.1", 20), ("::1", 40)] {
                let echo = Echo::open(to.parse().unwrap(), 7, Duration::from_secs(5))?;
                for (sequence, len) in [(1, HEADER_LEN), (2, 1001 - header), (3, 1400 - header)] {
                    assert!(echo.ask(sequence, len)?, "{to}: {len}");
                }
                let error = echo.ask(4, 1401 - header).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{to}");
            }
            Ok(())
        })
        .unwrap();
    }
}
