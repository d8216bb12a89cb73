//! Asks other nodes: whether they answer through the tunnel, and how long a packet the way to them takes.
//!
//! 1. A datagram to a place behind each peer has the data plane begin a handshake, or carry it in a session that is there. Only the peer can answer
//!    either, by a response or, after [W] §6.5's ten seconds, by a keepalive: then its handshake or the bytes received from it are others than
//!    before. So many at once, and all of them wait together.
//! 2. Echo requests without fragments to where the peer is found: as long as the longest datagram of the tunnel, and where that is not
//!    answered, ever closer to the longest that is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Wanted;
use crate::config::{PeerSnapshot, Snapshot};
use crate::control::api::{HostTraffic, Mode};
use crate::control::data_plane::DataPlane;
use crate::crypto::x25519::PublicKey;
use crate::sys::clock;
use crate::sys::echo::{self, Echo};
use crate::sys::thread;

/// The most nodes that are asked.
const MOST: usize = 64;

/// The most that are asked at once, and by an agent at all.
pub(super) const AT_ONCE: usize = 16;

/// How long an answer through the tunnel may take: Keepalive-Timeout of [W] §6.1, and two more seconds.
const PATIENCE: Duration = Duration::from_secs(12);

/// How often the data plane is asked meanwhile.
const STEP: Duration = Duration::from_millis(100);

/// How long an echo may take, and how often one is asked for.
const ECHO_PATIENCE: Duration = Duration::from_millis(500);
const ECHO_ATTEMPTS: u16 = 2;

/// What every way takes: RFC 1122 §3.3.3, RFC 8200 §5.
const LEAST: [u32; 2] = [576, 1280];

/// Why no echo is asked for where nodes let nothing of each other's in but through the tunnel.
const UNHEARD: &str = "it drops what comes from nodes in clear";

/// A node that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub node: String,
    /// Its key.
    pub public_key: PublicKey,
    /// Where it is found.
    pub place: Option<IpAddr>,
    /// An address behind it.
    pub inside: Option<IpAddr>,
}

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The node's name.
    pub node: String,
    /// Whether it answers through the tunnel; or why it could not be asked.
    pub answers: Result<bool, String>,
    /// How long a packet the way to it takes.
    pub way: Way,
}

/// How long a packet a way takes, in bytes with the IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As long as the longest datagram of the tunnel.
    Fits,
    /// So long and no longer.
    Narrow {
        /// What it takes.
        takes: u32,
        /// What it should.
        needed: u32,
    },
    /// Not even the shortest is answered.
    Silent,
    /// It could not be asked.
    Unasked(String),
}

/// Asks the nodes that are to be asked, `MOST` of them at most. `mtu` is what the tunnel's interface takes.
pub(super) fn probe(wanted: &Wanted, mtu: u32) -> Vec<Probed> {
    let settings = &wanted.settings;
    let data_plane = DataPlane::of(&wanted.sockets, &settings.interface, settings.backend);
    let is_unheard = settings.mode == Mode::Strict && settings.host_traffic == HostTraffic::Encrypt;
    let mut probed = Vec::new();
    let targets = &wanted.targets[..wanted.targets.len().min(MOST)];
    for targets in targets.chunks(AT_ONCE) {
        let answers = answers(&data_plane, targets, wanted);
        let ways: Vec<_> = std::thread::scope(|scope| {
            let asked = targets.iter().map(|target| {
                let (place, mark) = (target.place.filter(|_| !is_unheard), settings.fwmark);
                thread::spawn_scoped(scope, move || place.map(|place| way(place, mtu, mark)))
            });
            // All are begun before the first is waited for.
            let asked: Vec<_> = asked.collect();
            let outcome = |thread: io::Result<ScopedJoinHandle<'_, Option<Way>>>| match thread {
                Ok(thread) => thread.join().ok().flatten(),
                Err(error) => Some(Way::Unasked(format!("no thread can be had: {error}"))),
            };
            asked.into_iter().map(outcome).collect()
        });
        for ((target, answers), way) in targets.iter().zip(answers).zip(ways) {
            let why = if is_unheard { UNHEARD } else { "nobody says where it is" };
            let way = way.unwrap_or_else(|| Way::Unasked(why.to_owned()));
            probed.push(Probed { node: target.node.clone(), answers, way });
        }
    }
    probed
}

/// Tells of each node whether it answers through the tunnel.
fn answers(data_plane: &DataPlane, targets: &[Target], wanted: &Wanted) -> Vec<Result<bool, String>> {
    let before = match data_plane.snapshot() {
        Ok(snapshot) => heard(&snapshot),
        Err(error) => return targets.iter().map(|_| Err(error.to_string())).collect(),
    };
    let mut answers: Vec<Result<bool, String>> = targets
        .iter()
        .map(|target| {
            before.get(&target.public_key).ok_or("it is no peer of the data plane")?;
            let inside = target.inside.ok_or("nobody says what is behind it")?;
            provoke(inside, wanted).map(|()| false).map_err(|error| format!("{inside}: {error}"))
        })
        .collect();
    let end = clock::boottime() + PATIENCE;
    while answers.contains(&Ok(false)) && clock::boottime() < end {
        pause();
        let Ok(snapshot) = data_plane.snapshot() else { continue };
        let now = heard(&snapshot);
        for (target, answer) in targets.iter().zip(&mut answers) {
            let is_heard = now.get(&target.public_key) != before.get(&target.public_key);
            if let Ok(answer) = answer {
                *answer |= is_heard && now.contains_key(&target.public_key);
            }
        }
    }
    answers
}

#[expect(clippy::disallowed_methods, reason = "no data plane tells when it hears of a peer")]
fn pause() {
    std::thread::sleep(STEP);
}

/// Returns what was heard of each peer: its last handshake, and how many bytes.
fn heard(snapshot: &Snapshot) -> BTreeMap<PublicKey, (Option<Duration>, u64)> {
    let of_peer = |peer: &PeerSnapshot| (peer.public_key, (peer.last_handshake, peer.rx_bytes));
    snapshot.peers.iter().map(of_peer).collect()
}

/// Sends an empty datagram into the tunnel, to the port that throws away (RFC 863).
fn provoke(inside: IpAddr, wanted: &Wanted) -> io::Result<()> {
    const DISCARD: u16 = 9;
    let domain = if inside.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(wanted.settings.interface.as_bytes()))?;
    let any: IpAddr =
        if inside.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let own = wanted.tunnel_addresses.iter().find(|addr| addr.is_ipv6() == inside.is_ipv6());
    // One that the interface does not have yet is as good as none.
    if own.is_none_or(|own| socket.bind(&SocketAddr::new(*own, 0).into()).is_err()) {
        socket.bind(&SocketAddr::new(any, 0).into())?;
    }
    socket.send_to(&[], &SocketAddr::new(inside, DISCARD).into()).map(drop)
}

fn way(place: IpAddr, mtu: u32, mark: u32) -> Way {
    let (header, least) = if place.is_ipv6() { (40, LEAST[1]) } else { (20, LEAST[0]) };
    // The outer IP header, 8 bytes of UDP and 32 of the data message.
    let needed = mtu + header + 40;
    let echo = match Echo::open(place, mark, ECHO_PATIENCE) {
        Ok(echo) => echo,
        Err(error) => return Way::Unasked(format!("no echo request can be sent: {error}")),
    };
    let mut sequence = 0;
    let mut is_taken = |len: u32| {
        let len = usize::try_from(len - header).unwrap_or(echo::HEADER_LEN);
        (0..ECHO_ATTEMPTS).any(|_| {
            sequence += 1;
            echo.ask(sequence, len).unwrap_or(false)
        })
    };
    if is_taken(needed) {
        return Way::Fits;
    }
    if needed <= least || !is_taken(least) {
        return Way::Silent;
    }
    let (mut takes, mut refused) = (least, needed);
    while refused - takes > 1 {
        let middle = takes + (refused - takes) / 2;
        if is_taken(middle) {
            takes = middle;
        } else {
            refused = middle;
        }
    }
    Way::Narrow { takes, needed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::Objects;
    use crate::sys::with_faults;

    #[test]
    fn a_node_that_no_thread_can_be_had_for_is_not_asked_and_the_others_are() {
        let target = |node: &str| Target {
            node: node.to_owned(),
            public_key: PublicKey::new([1; 32]),
            place: None,
            inside: None,
        };
        let wanted = Wanted {
            targets: vec![target("first"), target("second")],
            sockets: "/nowhere".into(),
            ..Wanted::of(&Objects::default(), None)
        };
        let (probed, _) = with_faults("Thread=11*1", || probe(&wanted, 1420));
        let ways: Vec<_> = probed.into_iter().map(|probed| probed.way).collect();
        let unasked = |why: &str| Way::Unasked(why.to_owned());
        assert_eq!(
            ways,
            [
                unasked("no thread can be had: Resource temporarily unavailable (os error 11)"),
                unasked("nobody says where it is")
            ]
        );
    }

    #[test]
    fn who_drops_what_comes_in_clear_is_asked_for_no_echo() {
        let target = Target {
            node: "other".to_owned(),
            public_key: PublicKey::new([1; 32]),
            place: Some(Ipv4Addr::LOCALHOST.into()),
            inside: None,
        };
        let mut wanted = Wanted {
            targets: vec![target],
            sockets: "/nowhere".into(),
            ..Wanted::of(&Objects::default(), None)
        };
        (wanted.settings.mode, wanted.settings.host_traffic) = (Mode::Strict, HostTraffic::Encrypt);
        let probed = probe(&wanted, 1420);
        assert_eq!(probed[0].way, Way::Unasked("it drops what comes from nodes in clear".to_owned()));
    }
}
