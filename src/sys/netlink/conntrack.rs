//! The connections that the kernel tracks (`linux/netfilter/nfnetlink_conntrack.h`), in the network namespace of the thread that opens the
//! socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::raw::{Attributes, Requests, nested};
use crate::sys::fault;

/// `NFNL_SUBSYS_CTNETLINK`, the upper byte of a message's type, with `enum cntl_msg_types` below.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

// enum ctattr_type, ctattr_tuple, ctattr_ip
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;

/// A connection. Where an address was translated, the reply's differs from the other of the first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where the first packet came from.
    pub source: IpAddr,
    /// Where it was sent.
    pub destination: IpAddr,
    /// Where its answer comes from.
    pub reply_source: IpAddr,
    /// Where that is sent.
    pub reply_destination: IpAddr,
    /// What tells it from others, as the kernel told it.
    original: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

/// A socket for requests.
pub struct Conntrack(Requests);

impl Conntrack {
    /// Opens a socket.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel has no netfilter; if no descriptor is left.
    pub fn open() -> io::Result<Self> {
        fault::check(fault::Call::Netfilter)?;
        Requests::open(NETLINK_NETFILTER).map(Self)
    }

    /// Returns all connections.
    ///
    /// # Errors
    /// `EINVAL` if the kernel tracks none, or does not tell; `EPERM` without `CAP_NET_ADMIN`.
    pub fn connections(&mut self) -> io::Result<Vec<Connection>> {
        let replies = self.0.ask(GET, NLM_F_DUMP, [0; 4], &Attributes::new())?;
        Ok(replies.iter().filter_map(|reply| read(reply)).collect())
    }

    /// Forgets a connection: its next packet is the first of another one.
    ///
    /// # Errors
    /// `ENOENT` if it has ended.
    pub fn forget(&mut self, connection: &Connection) -> io::Result<()> {
        let family = if connection.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut which = Attributes::new().nest_bytes(ORIGINAL, &connection.original);
        for (kind, value) in [(ID, &connection.id), (ZONE, &connection.zone)] {
            if let Some(value) = value {
                which = which.bytes(kind, value);
            }
        }
        let family = u8::try_from(family).unwrap_or_default();
        self.0.ask(DELETE, NLM_F_ACK, [family, 0, 0, 0], &which).map(drop)
    }
}

fn read(connection: &[u8]) -> Option<Connection> {
    let (original, reply) = (nested(connection, ORIGINAL)?, nested(connection, REPLY)?);
    let (source, destination) = addresses(original)?;
    let (reply_source, reply_destination) = addresses(reply)?;
    let copy = |kind| nested(connection, kind).map(<[u8]>::to_vec);
    let (id, zone) = (copy(ID), copy(ZONE));
    Some(Connection {
        source,
        destination,
        reply_source,
        reply_destination,
        original: original.to_vec(),
        id,
        zone,
    })
}

/// Returns the source and the destination of a tuple.
fn addresses(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = nested(tuple, TUPLE_IP)?;
    let v4 = |kind| Some(IpAddr::V4(Ipv4Addr::from(*nested(ip, kind)?.first_chunk::<4>()?)));
    let v6 = |kind| Some(IpAddr::V6(Ipv6Addr::from(*nested(ip, kind)?.first_chunk::<16>()?)));
    Some((v4(V4_SOURCE).or_else(|| v6(V6_SOURCE))?, v4(V4_DESTINATION).or_else(|| v6(V6_DESTINATION))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_read_with_what_tells_it_from_others() {
        let tuple = |from: [u8; 4], to: [u8; 4]| {
            let ip = Attributes::new().bytes(V4_SOURCE, &from).bytes(V4_DESTINATION, &to);
            Attributes::new().nest(TUPLE_IP, ip).nest(2, Attributes::new().bytes(1, &[17]))
        };
        let list = Attributes::new()
            .nest(ORIGINAL, tuple([10, 244, 1, 9], [10, 244, 2, 9]))
            .nest(REPLY, tuple([10, 244, 2, 9], [10, 9, 0, 1]))
            .bytes(ID, &[1, 2, 3, 4]);
        let bytes = list.to_bytes();
        let connection = read(&bytes).unwrap();
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!((connection.source, connection.destination), (addr("10.244.1.9"), addr("10.244.2.9")));
        assert_eq!(
            (connection.reply_source, connection.reply_destination),
            (addr("10.244.2.9"), addr("10.9.0.1"))
        );
        assert_eq!((connection.id, connection.zone), (Some(vec![1, 2, 3, 4]), None));
        assert_eq!(connection.original, nested(&bytes, ORIGINAL).unwrap());
        assert_eq!(read(&[]), None);
    }
}
