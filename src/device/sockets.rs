//! The UDP sockets: one of each family for every worker, all on one port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::sys::offload::{Active, Feature, Wanted};
use crate::sys::udp::{Datagram, Family, SendBatch, UdpOptions, UdpSocket};
use crate::wireguard::dropped::{Dropped, Drops};

/// Bytes of a socket's buffers, of which the kernel makes two MiB with its own overhead: what 12 Gbit/s deliver in a millisecond, and about as
/// many packets as the kernel's WireGuard lets wait (`MAX_QUEUED_PACKETS`). With four times as much nothing is faster, and TCP fills it: what
/// comes behind waits twice as long.
const BUFFER: i32 = 1 << 20;

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
            let set = match sets[0].sibling(&options) {
                // Sockets cannot share a port, so workers share sockets. One of them receives.
                Err(error) if is_unknown(&error) => Arc::clone(&sets[0]),
                sibling => Arc::new(sibling?),
            };
            sets.push(set);
        }
        let mut active =
            sets[0].iter().fold(Active::default(), |active, socket| active.with(socket.offloads()));
        // The handshakes' socket comes last, and only if the kernel can be told what goes there.
        let mut behind = None;
        let steer = || {
            // With the features of the others: before the kernel runs the program it merges datagrams if the socket is for runs that the hash
            // of their addresses leads to (`udp4_lib_lookup_skb`), which is any of them.
            let set = sets[0].sibling(&options)?;
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

/// What the system says to an option that it does not know.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sent,
    /// Sent, but not from the address that was asked for.
    SentElsewise,
    /// Sent, but a run of datagrams had to be sent one by one, and so will others.
    SentSingly(Refused),
    Dropped,
}

/// The runs of datagrams that the kernel refuses to send to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Those of datagrams of this length, and longer ones.
    OfLength(usize),
    /// Runs of any datagrams.
    Any,
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
            Ok(sent @ 1..) => {
                for i in at..at + sent {
                    fate(i, if std::mem::take(&mut elsewise) { Fate::SentElsewise } else { Fate::Sent });
                }
                at += sent;
                full = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_for_now(&error) && full < patience.0 => {
                full += 1;
                socket.wait_writable(10);
            }
            Err(error) if let Some(refused) = refused_run(&error, &datagrams[at]) => {
                let own = send_singly(batch, socket, &datagrams[at], refused, drops, patience);
                let is_elsewise = std::mem::take(&mut elsewise) && own != Fate::Dropped;
                fate(at, if is_elsewise { Fate::SentElsewise } else { own });
                at += 1;
            }
            Err(error) if datagrams[at].from.is_some() && may_be_the_source(&error) => {
                datagrams[at].from = None;
                elsewise = true;
            }
            Ok(_) | Err(_) => {
                drops.add(Dropped::SendFailed, datagrams[at].parts().count() as u64);
                elsewise = false;
                fate(at, Fate::Dropped);
                at += 1;
            }
        }
    }
}

/// There is no room, or no memory.
fn is_for_now(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}

/// The address that it was to leave by may be gone, or lead nowhere: the routing table shall choose. Not so if the datagram could not be
/// sent for now, or a packet filter took it.
fn may_be_the_source(error: &io::Error) -> bool {
    !is_for_now(error) && error.raw_os_error() != Some(libc::EPERM)
}

/// What kernels say who cannot send a run of datagrams to this place: a device without checksum offload (`EIO`), a path with a smaller
/// MTU (`EMSGSIZE`, `EINVAL`), a protocol that does not know it. Returns what they would refuse as well.
fn refused_run(error: &io::Error, run: &Datagram<'_>) -> Option<Refused> {
    let errno = error.raw_os_error().filter(|_| run.is_segmented())?;
    match errno {
        libc::EINVAL | libc::EMSGSIZE => Some(Refused::OfLength(run.segment.into())),
        libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT => Some(Refused::Any),
        _ => None,
    }
}

/// Sends a run of datagrams one by one, of which none is lost.
fn send_singly(
    batch: &mut SendBatch,
    socket: &UdpSocket,
    run: &Datagram<'_>,
    refused: Refused,
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
        (true, false) => Fate::SentSingly(refused),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::sys::udp::RecvBatch;
    use crate::sys::with_faults;

    /// Sends a single datagram, a run of ten and a single one while calls fail, and returns what became of each, what arrived, and what
    /// was counted as lost.
    fn send_with(faults: &str, from: Option<IpAddr>) -> (Vec<Fate>, Vec<Vec<u8>>, u64) {
        let options = UdpOptions { buffer: BUFFER, ..UdpOptions::default() };
        let inbox = UdpSocket::bind(Family::V4, 0, &options).unwrap();
        let socket = UdpSocket::bind(Family::V4, 0, &options).unwrap();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), inbox.local_port().unwrap());
        let payload: Vec<u8> = (0..10_u8).flat_map(|i| [i; 100]).collect();
        let datagram = |payload, segment| Datagram { to, from, ds: 2, hop_limit: None, payload, segment };
        let mut datagrams = [datagram(&[20], 0), datagram(&payload, 100), datagram(&[21], 0)];
        let (drops, mut fates) = (Drops::default(), Vec::new());
        let ((), is_left) = with_faults(faults, || {
            let mut batch = SendBatch::new(64);
            send_all(&mut batch, &socket, &mut datagrams, &drops, Patience::SOME, |i, fate| {
                assert_eq!(i, fates.len(), "each is told of once, in order");
                fates.push(fate);
            });
        });
        assert!(!is_left, "{faults} was not met");
        let mut arrived = Vec::new();
        let mut batch = RecvBatch::new(64, 1 << 16);
        while let Ok(received) = batch.recv(&inbox, 64) {
            for slot in 0..received {
                let run = batch.get_mut(slot).unwrap();
                arrived.extend(run.payload.chunks(run.segment).map(<[u8]>::to_vec));
            }
        }
        (fates, arrived, drops.get(Dropped::SendFailed))
    }

    /// What is sent by [`send_with`], datagram by datagram.
    fn all() -> Vec<Vec<u8>> {
        let run = (0..10).map(|i| vec![i; 100]);
        std::iter::once(vec![20]).chain(run).chain([vec![21]]).collect()
    }

    /// T29.
    #[test]
    fn a_run_that_the_kernel_refuses_is_sent_one_by_one() {
        let sized = Refused::OfLength(100);
        for (errno, refused) in [
            (libc::EIO, Refused::Any),
            (libc::EOPNOTSUPP, Refused::Any),
            (libc::EINVAL, sized),
            (libc::EMSGSIZE, sized),
        ] {
            for faults in [format!("SendSegmented={errno}"), format!("SendSegmented={errno}*1")] {
                for from in [None, Some(Ipv4Addr::LOCALHOST.into())] {
                    let (fates, arrived, lost) = send_with(&faults, from);
                    assert_eq!(fates, [Fate::Sent, Fate::SentSingly(refused), Fate::Sent], "{faults}");
                    assert_eq!((arrived, lost), (all(), 0), "{faults}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_for_now_is_sent_a_little_later_from_the_same_address() {
        for errno in [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EINTR] {
            let faults = format!("Send={errno}*3,SendSegmented={errno}*5");
            let (fates, arrived, lost) = send_with(&faults, Some(Ipv4Addr::LOCALHOST.into()));
            assert_eq!((fates, arrived, lost), (vec![Fate::Sent; 3], all(), 0), "{faults}");
        }
    }

    #[test]
    fn storms_of_errors_cost_what_they_hit_and_are_counted() {
        for errno in [libc::EPERM, libc::ENOBUFS, libc::ENETDOWN] {
            let (fates, arrived, lost) = send_with(&format!("Send={errno},SendSegmented={errno}"), None);
            assert_eq!((fates, arrived, lost), (vec![Fate::Dropped; 3], vec![], 12), "{errno}");
            // Those behind it go their way.
            let (fates, arrived, lost) = send_with(&format!("SendSegmented={errno}"), None);
            assert_eq!(fates, [Fate::Sent, Fate::Dropped, Fate::Sent]);
            assert_eq!((arrived, lost), (vec![vec![20], vec![21]], 10), "{errno}");
        }
    }

    #[test]
    fn a_source_that_the_kernel_refuses_is_let_go_of() {
        for errno in [libc::EINVAL, libc::EADDRNOTAVAIL, libc::ENETUNREACH] {
            let (fates, arrived, lost) =
                send_with(&format!("SendFrom={errno}"), Some(Ipv4Addr::LOCALHOST.into()));
            assert_eq!((fates, arrived, lost), (vec![Fate::SentElsewise; 3], all(), 0), "{errno}");
        }
        // A packet filter that takes a datagram is not to be got round.
        let faults = format!("SendFrom={}", libc::EPERM);
        let (fates, arrived, lost) = send_with(&faults, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!((fates, arrived, lost), (vec![Fate::Dropped; 3], vec![], 12));
    }

    #[test]
    fn a_refused_source_and_refused_runs_together_lose_nothing() {
        let faults = format!("SendFrom={},SendSegmented={}", libc::ENETUNREACH, libc::EIO);
        let (fates, arrived, lost) = send_with(&faults, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!((fates, arrived, lost), (vec![Fate::SentElsewise; 3], all(), 0));
    }

    /// Linux before 3.13, and systems that fail with it.
    #[test]
    fn without_a_mark_where_the_kernel_cannot_send_one() {
        for errno in [libc::EINVAL, libc::EIO] {
            for from in [None, Some(Ipv4Addr::LOCALHOST.into())] {
                let (fates, arrived, lost) = send_with(&format!("SendTos={errno}"), from);
                assert!(fates.iter().all(|&fate| fate != Fate::Dropped), "{errno}: {fates:?}");
                assert_eq!((arrived, lost), (all(), 0), "{errno}");
            }
        }
    }

    #[test]
    fn one_by_one_where_the_system_sends_no_more_in_a_call() {
        // It is asked once.
        let (fates, arrived, lost) = send_with("SendMany=38*1", None);
        assert_eq!((fates, arrived, lost), (vec![Fate::Sent; 3], all(), 0));
        let (fates, arrived, lost) = send_with(&format!("SendMany=38,SendSegmented={}", libc::EIO), None);
        let singly = Fate::SentSingly(Refused::Any);
        assert_eq!((fates, arrived, lost), (vec![Fate::Sent, singly, Fate::Sent], all(), 0));
    }

    #[test]
    fn the_socket_of_handshakes_is_for_runs_like_the_others() {
        let Sockets { sets, active } = SocketSet::open(0, 0, 2, &Wanted::default(), &[]).unwrap();
        assert_eq!(sets.len(), 2 + usize::from(active.has(Feature::Steering)));
        for socket in sets.iter().flat_map(|set| set.iter()) {
            assert_eq!(socket.offloads().has(Feature::Gro), active.has(Feature::Gro));
        }
    }

    #[test]
    fn where_ports_cannot_be_shared_workers_share_sockets() {
        let open = || SocketSet::open(0, 0, 3, &Wanted::default(), &[]);
        let (sockets, _) = with_faults(&format!("ReusePort={}", libc::ENOPROTOOPT), open);
        let Sockets { sets, active } = sockets.unwrap();
        assert_eq!(sets.len(), 3);
        assert!(sets.iter().all(|set| Arc::ptr_eq(set, &sets[0])));
        assert!(!active.has(Feature::Steering));
    }

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
