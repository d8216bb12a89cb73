//! The UDP sockets: one of each family for every worker, all on one port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::sys::offload::{Active, Feature, Switch, Wanted};
use crate::sys::udp::{Datagram, Family, SendBatch, UdpOptions, UdpSocket};
use crate::wireguard::dropped::{Dropped, Drops};

/// Bytes of a socket's buffers: what a fast sender delivers in some milliseconds.
const BUFFER: i32 = 4 << 20;

/// Kernel `socket.c`, `wg_socket_init`: tries to find a port that is free in both families.
const PORT_ATTEMPTS: u32 = 100;

/// Datagrams that are sent as one at most (Linux `udp.h`, `UDP_MAX_SEGMENTS`).
pub(super) const RUN_MAX: usize = 64;

/// How often a full socket buffer is waited for, 10 ms each, before datagrams are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience(u32);

impl Patience {
    /// For packets of the device, whose sender is to be slowed down.
    pub(super) const SOME: Self = Self(20);
    /// For what will be sent again, or is not worth it.
    pub(super) const NONE: Self = Self(0);
}

/// The sockets of one worker. A machine may lack one family, not both.
#[derive(Debug)]
pub(super) struct SocketSet {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    pub(super) port: u16,
}

/// The sockets of an interface.
pub(super) struct Sockets {
    /// One set for each worker. Behind those, where the kernel can tell handshake messages apart, one for them: so that a flood of them
    /// fills no other buffer.
    pub(super) sets: Vec<Arc<SocketSet>>,
    /// What is in use of the features of UDP sockets.
    pub(super) active: Active,
}

impl SocketSet {
    /// Opens a set for each of `workers` on `port`, 0 for any. `leaving` are sets of ours that a worker may have open a little longer:
    /// they are no reason to refuse the port.
    ///
    /// # Errors
    /// `EADDRINUSE`; `EPERM` for a mark without `CAP_NET_ADMIN`; `EAFNOSUPPORT` without any family.
    pub(super) fn open(
        port: u16,
        mark: u32,
        workers: usize,
        wanted: &Wanted,
        leaving: &[Arc<Self>],
    ) -> io::Result<Sockets> {
        let options = UdpOptions { mark, buffer: BUFFER, wanted: *wanted };
        let first = Self::open_first(port, &options, leaving)?;
        let is_shared = leaving.iter().any(|set| set.port == first.port);
        let mut sets = vec![Arc::new(first)];
        for _ in 1..workers {
            sets.push(Arc::new(sets[0].sibling(&options)?));
        }
        let mut active =
            sets[0].iter().fold(Active::default(), |active, socket| active.with(socket.offloads()));
        // The handshakes' socket comes last, and only if the kernel can be told what goes there.
        let mut behind = None;
        let steer = || {
            // A run of datagrams is received as one only where all of them are for the same socket.
            let mut plain = options;
            plain.wanted.set(Feature::Gro, Switch::Off);
            let set = sets[0].sibling(&plain)?;
            let number = u32::try_from(workers).unwrap_or(u32::MAX);
            set.iter().try_for_each(|socket| socket.steer(number))?;
            behind = Some(Arc::new(set));
            Ok(())
        };
        // The kernel numbers the sockets of a port; with others among them the numbers would be wrong.
        active.set(Feature::Steering, !is_shared && wanted.attempt(Feature::Steering, steer)?);
        sets.extend(behind);
        Ok(Sockets { sets, active })
    }

    /// Opens a socket on the port of each one here.
    fn sibling(&self, options: &UdpOptions) -> io::Result<Self> {
        let sibling =
            |socket: &Option<UdpSocket>| socket.as_ref().map(|socket| socket.sibling(options)).transpose();
        Ok(Self { v4: sibling(&self.v4)?, v6: sibling(&self.v6)?, port: self.port })
    }

    fn open_first(port: u16, options: &UdpOptions, leaving: &[Arc<Self>]) -> io::Result<Self> {
        let leaving = leaving.iter().find(|set| set.port == port);
        let bind =
            |family, port, left: Option<&UdpSocket>| match (UdpSocket::bind(family, port, options), left) {
                (Err(error), Some(left)) if error.kind() == io::ErrorKind::AddrInUse => left.sibling(options),
                (result, _) => result,
            };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let v4 = available(bind(Family::V4, port, leaving.and_then(|set| set.v4.as_ref())))?;
            let chosen = v4.as_ref().map_or(Ok(port), UdpSocket::local_port)?;
            let v6 = match available(bind(Family::V6, chosen, leaving.and_then(|set| set.v6.as_ref()))) {
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
    /// Sent, but a run of datagrams had to be sent one by one.
    SentSingly,
    Dropped,
}

/// Sends `datagrams`, all of one family, in order, and says for each what became of it.
pub(super) fn send_all(
    batch: &mut SendBatch,
    socket: &UdpSocket,
    datagrams: &mut [Datagram<'_>],
    drops: &Drops,
    patience: Patience,
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
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && full < patience.0 => {
                full += 1;
                socket.wait_writable(10);
            }
            Err(error) if datagrams[at].is_segmented() && refuses_runs(&error) => {
                fate(at, send_singly(batch, socket, &datagrams[at], drops, patience));
                at += 1;
            }
            // The address it was to leave by is gone, or leads nowhere: let the routing table choose.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && datagrams[at].from.is_some() => {
                datagrams[at].from = None;
                elsewise = true;
            }
            Err(_) => {
                drops.add(Dropped::SendFailed, datagrams[at].parts().count() as u64);
                elsewise = false;
                fate(at, Fate::Dropped);
                at += 1;
            }
        }
    }
}

/// What kernels say who cannot send a run of datagrams to this place: a device without checksum offload (`EIO`), a path with a smaller
/// MTU (`EMSGSIZE`, `EINVAL`), a protocol that does not know it.
fn refuses_runs(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// Sends a run of datagrams one by one, of which none is lost.
fn send_singly(
    batch: &mut SendBatch,
    socket: &UdpSocket,
    run: &Datagram<'_>,
    drops: &Drops,
    patience: Patience,
) -> Fate {
    let mut singles: ArrayVec<Datagram<'_>, RUN_MAX> = run.parts().collect();
    let (mut sent, mut elsewise) = (false, false);
    send_all(batch, socket, &mut singles, drops, patience, |_, fate| {
        sent |= fate != Fate::Dropped;
        elsewise |= fate == Fate::SentElsewise;
    });
    match (sent, elsewise) {
        (false, _) => Fate::Dropped,
        // It was the source that the kernel refused.
        (true, true) => Fate::SentElsewise,
        (true, false) => Fate::SentSingly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_only_our_own_old_one_is_had_again() {
        let open = |port, leaving: &[_]| {
            SocketSet::open(port, 0, 2, &Wanted::default(), leaving).map(|sockets| sockets.sets)
        };
        let old = open(0, &[]).unwrap();
        let port = old[0].port;
        let error = open(port, &[]).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let new = open(port, &old[1..]).unwrap();
        assert!(new.iter().all(|set| set.port == port));
    }
}
