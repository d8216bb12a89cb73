//! The UDP sockets: one of each family for every worker, all on one port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::sys::udp::{Datagram, Family, SendBatch, UdpOptions, UdpSocket};
use crate::wireguard::dropped::{Dropped, Drops};

/// Bytes of a socket's buffers: what a fast sender delivers in some milliseconds.
const BUFFER: i32 = 4 << 20;

/// Kernel `socket.c`, `wg_socket_init`: tries to find a port that is free in both families.
const PORT_ATTEMPTS: u32 = 100;

/// How often a full socket buffer is waited for, 10 ms each, before datagrams are dropped.
const FULL_ATTEMPTS: u32 = 20;

/// The sockets of one worker. A machine may lack one family, not both.
#[derive(Debug)]
pub(super) struct SocketSet {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    pub(super) port: u16,
}

impl SocketSet {
    /// Opens a set for each of `workers` on `port`, 0 for any.
    ///
    /// # Errors
    /// `EADDRINUSE`; `EPERM` for a mark without `CAP_NET_ADMIN`; `EAFNOSUPPORT` without any family.
    pub(super) fn open(port: u16, mark: u32, workers: usize) -> io::Result<Vec<Arc<Self>>> {
        let options = UdpOptions { mark, buffer: BUFFER };
        let first = Self::open_first(port, &options)?;
        let mut sets = Vec::with_capacity(workers);
        for _ in 1..workers {
            let sibling = |socket: &Option<UdpSocket>| {
                socket.as_ref().map(|socket| socket.sibling(&options)).transpose()
            };
            sets.push(Arc::new(Self { v4: sibling(&first.v4)?, v6: sibling(&first.v6)?, port: first.port }));
        }
        sets.insert(0, Arc::new(first));
        Ok(sets)
    }

    fn open_first(port: u16, options: &UdpOptions) -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let v4 = available(UdpSocket::bind(Family::V4, port, options))?;
            let chosen = v4.as_ref().map_or(Ok(port), UdpSocket::local_port)?;
            let v6 = match available(UdpSocket::bind(Family::V6, chosen, options)) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && port == 0 && attempts < PORT_ATTEMPTS =>
                {
                    continue;
                }
                other => other?,
            };
            let port = match (&v4, &v6) {
                (None, None) => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
                (Some(socket), _) | (None, Some(socket)) => socket.local_port()?,
            };
            return Ok(Self { v4, v6, port });
        }
    }

    /// Returns the socket that reaches `addr`.
    pub(super) fn towards(&self, addr: SocketAddr) -> Option<&UdpSocket> {
        match addr {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }

    /// Returns the sockets there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = &UdpSocket> {
        self.v4.iter().chain(&self.v6)
    }
}

/// A family that the machine does not have is no error (T17).
fn available(socket: io::Result<UdpSocket>) -> io::Result<Option<UdpSocket>> {
    match socket {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT) => Ok(None),
            Some(_) | None => Err(error),
        },
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sent,
    /// Sent, but not from the address that was asked for.
    SentElsewise,
    Dropped,
}

/// Sends `datagrams`, all of one family, in order, and says for each what became of it.
pub(super) fn send_all(
    batch: &mut SendBatch,
    socket: &UdpSocket,
    datagrams: &mut [Datagram<'_>],
    drops: &Drops,
    mut fate: impl FnMut(usize, Fate),
) {
    let mut at = 0;
    let mut full = 0;
    let mut elsewise = false;
    while at < datagrams.len() {
        match batch.send(socket, &datagrams[at..]) {
            Ok(0) => return,
            Ok(sent) => {
                for i in at..at + sent {
                    fate(i, if std::mem::take(&mut elsewise) { Fate::SentElsewise } else { Fate::Sent });
                }
                at += sent;
                full = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && full < FULL_ATTEMPTS => {
                full += 1;
                socket.wait_writable(10);
            }
            // The address it was to leave by is gone, or leads nowhere: let the routing table choose.
            Err(_) if datagrams[at].from.is_some() => {
                datagrams[at].from = None;
                elsewise = true;
            }
            Err(_) => {
                drops.count(Dropped::SendFailed);
                elsewise = false;
                fate(at, Fate::Dropped);
                at += 1;
            }
        }
    }
}
