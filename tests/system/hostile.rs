//! Whatever anybody sends, on either side, costs the sender and nobody else: no end, no growth, no line in the log, no moved endpoint.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use adit::sys::clock::boottime;
use adit::sys::netlink::Netlink;
use adit::sys::netns;
use adit::sys::packet::Capture;
use adit::sys::udp::{Datagram, Family, RecvBatch, SendBatch, UdpOptions, UdpSocket as BatchSocket};
use rustix::process::Signal;

use crate::support::proc::udp_backlog;
use crate::support::puppet::{Puppet, now, udp, udp_packet};
use crate::support::tunnel::{Program, Tunnel};
use crate::support::{Namespace, SOON, need, pause, wait_for, wait_until};

const PORT: u16 = 51820;
const FRIEND_PORT: u16 = 51821;
const ADDR: [u8; 4] = [192, 168, 77, 1];
const PUPPET_ADDR: [u8; 4] = [192, 168, 77, 3];

/// A target whose UDP sockets are in `outer` and whose device is in `inner`, and a friend of it, whose device is in `far`.
struct Scene {
    outer: Namespace,
    inner: Namespace,
    far: Namespace,
    target: Tunnel,
    friend: Tunnel,
}

impl Scene {
    /// Starts both. The target has a port and addresses, but neither a key nor peers, and is down.
    fn new(threads: &str) -> Self {
        let (outer, inner, far) = (Namespace::new(), Namespace::new(), Namespace::new());
        let verbose = [("LOG_LEVEL", "verbose")];
        let target = Tunnel::start_without_key(Program::Adit, &outer, &["--threads", threads], &verbose);
        let friend = Tunnel::start_with(Program::Adit, &outer, &["--threads", "1"], &[]);
        target.move_to(&outer, &inner);
        friend.move_to(&outer, &far);
        target.set(&inner, &format!("listen-port {PORT}"));
        friend.set(&far, &format!("listen-port {FRIEND_PORT}"));
        inner.ip(&format!("addr add 192.168.77.1/24 dev {}", target.name));
        far.ip(&format!("addr add 192.168.77.2/24 dev {}", friend.name));
        far.ip(&format!("link set {} up", friend.name));
        Self { outer, inner, far, target, friend }
    }

    /// Starts both and makes them peers.
    fn joined(threads: &str) -> Self {
        let this = Self::new(threads);
        this.target.set_key(&this.inner);
        this.up();
        this.befriend();
        this
    }

    fn up(&self) {
        self.inner.ip(&format!("link set {} up", self.target.name));
        wait_until("open UDP sockets", SOON, || self.outer.sh("ss -Huln").contains(&format!(":{PORT}")));
    }

    fn befriend(&self) {
        let Self { inner, far, target, friend, .. } = self;
        target.set(inner, &format!("peer {} allowed-ips 192.168.77.2/32", friend.key.public()));
        let public = target.key.public();
        friend.set(far, &format!("peer {public} allowed-ips 192.168.77.1/32 endpoint 127.0.0.1:{PORT}"));
    }

    /// Makes a puppet the target's peer and a session between them.
    fn puppet(&self) -> Puppet {
        let puppet = Puppet::new(&self.outer, "127.0.0.1:0", to(), &self.target.key);
        let public = puppet.key.public();
        self.target.set(&self.inner, &format!("peer {public} allowed-ips 192.168.77.3/32"));
        puppet
    }

    #[track_caller]
    fn ping(&self) {
        self.far.sh("ping -n -c 3 -i 0.05 -W 2 192.168.77.1");
    }

    /// Waits until the target has read everything that was sent to it.
    fn drain(&self) {
        wait_until("an empty receive buffer", SOON, || self.outer.udp_backlog(PORT).0 == 0);
    }
}

/// Captures on the interface `name`.
fn capture(namespace: &Namespace, name: &str) -> Capture {
    let name = name.to_owned();
    namespace.enter(move || Capture::open(Netlink::open().unwrap().link(&name).unwrap().index).unwrap())
}

/// Returns the frames that a capture holds.
fn frames(capture: &Capture) -> Vec<Vec<u8>> {
    let mut frame = vec![0; 65536];
    let mut all = Vec::new();
    while let Ok(len) = capture.read(&mut frame) {
        all.push(frame[..len].to_vec());
    }
    // One byte is no packet: adit asks so whether a link is up that it cannot see (`tun.rs`, `seems_up`).
    all.retain(|frame| frame.len() > 1);
    assert_eq!(capture.take_lost().unwrap(), 0, "the capture lost frames");
    all
}

fn to() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))
}

/// Every length up to 2048, then in steps up to the longest.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=2048).chain((2049..65507).step_by(1499)).chain([65506, 65507])
}

/// Every kind of message and what is none, with right and wrong reserved bytes.
const STARTS: [[u8; 4]; 13] = [
    [0, 0, 0, 0],
    [1, 0, 0, 0],
    [1, 0, 0, 1],
    [2, 0, 0, 0],
    [2, 1, 0, 0],
    [3, 0, 0, 0],
    [3, 0, 1, 0],
    [4, 0, 0, 0],
    [4, 0, 0, 4],
    [5, 0, 0, 0],
    [5, 255, 255, 255],
    [255, 0, 0, 0],
    [255, 255, 255, 255],
];

impl Scene {
    /// Sends every kind of message in every length; `index` is the receiver they name.
    fn spray(&self, puppet: &mut Puppet, index: u32) {
        let mut datagram = vec![0x5a; 65507];
        datagram[4..8].copy_from_slice(&index.to_le_bytes());
        // In a response the receiver's index is the second one.
        datagram[8..12].copy_from_slice(&index.to_le_bytes());
        for (i, len) in lengths().enumerate() {
            for start in STARTS {
                datagram[..4].copy_from_slice(&start);
                puppet.send_raw(&datagram[..len]);
                if (33..=2048).contains(&len) {
                    let mut macs = datagram[..len].to_vec();
                    puppet.add_macs(&mut macs);
                    puppet.send_raw(&macs);
                }
            }
            if i % 16 == 0 || len > 2048 {
                self.drain();
            }
        }
        self.drain();
    }

    /// Sprays twice: the first time whatever is made once is made, the second time nothing may grow.
    #[track_caller]
    fn spray_twice(&mut self, what: &str, puppet: &mut Puppet, index: u32) {
        self.spray(puppet, index);
        let lost = self.outer.udp_backlog(PORT).1;
        let (resident, output) = (self.target.process.memory_kib(), self.target.process.output().len());
        self.spray(puppet, index);
        assert!(self.target.process.ended().is_none(), "{what}: it ended");
        assert_eq!(self.outer.udp_backlog(PORT).1, lost, "{what}: datagrams that were never read");
        let grown = self.target.process.memory_kib().saturating_sub(resident);
        eprintln!("{what}: {resident} KiB, {grown} KiB more after a second round");
        assert!(grown < 1024, "{what}: {grown} KiB more");
        let all = self.target.process.output();
        assert_eq!(&all[output..], "", "{what}: the log");
        assert!(!all.contains("panicked"), "{all}");
    }

    /// Fills every receive buffer with the longest datagrams, so that they do not grow later.
    fn touch_buffers(&self, puppet: &Puppet) {
        self.target.process.stop();
        for _ in 0..256 {
            puppet.send_raw(&[0; 65507]);
        }
        self.target.process.signal(Signal::CONT);
        self.drain();
    }
}

// T2, T3.
#[test]
fn every_type_and_length_is_survived_in_every_state() {
    need!("ip", "wg", "ping", "ss");
    let mut scene = Scene::new("1");
    let mut puppet = Puppet::new(&scene.outer, "127.0.0.1:0", to(), &scene.target.key);
    scene.spray_twice("no key, down", &mut puppet, 0);
    scene.up();
    scene.touch_buffers(&puppet);
    scene.spray_twice("no key, up", &mut puppet, 0);
    scene.target.set_key(&scene.inner);
    scene.spray_twice("a key, no peer", &mut puppet, 0);
    scene.befriend();
    let mut puppet = scene.puppet();
    scene.ping();
    let session = puppet.handshake(SOON);
    let index = session.header(0).receiver;
    scene.spray_twice("a peer and a session", &mut puppet, index);
    scene.inner.ip(&format!("link set {} down", scene.target.name));
    scene.spray_twice("a peer, down", &mut puppet, index);
    scene.up();
    // The friend does not know that its session is gone; the target begins another.
    scene.inner.sh("ping -n -c 3 -i 0.05 -W 5 192.168.77.2");
    scene.ping();
}

/// What a flood has sent, and what came back for it.
#[derive(Default)]
struct Flood {
    stop: AtomicBool,
    sent: AtomicU64,
    cookies: AtomicU64,
}

impl Flood {
    /// Sends `messages` to the target, again and again, from `sources` addresses of 10.0.0.0/8, until it is stopped.
    ///
    /// As fast as the target reads: there are always more waiting, but the kernel drops none, ours or another's, which would test the
    /// kernel.
    fn run(&self, socket: &BatchSocket, messages: &[[u8; 148]], sources: u32) {
        let (mut batch, mut replies) = (SendBatch::new(64), RecvBatch::new(64, 2048));
        let mut next = 0_u32;
        while !self.stop.load(Relaxed) {
            if next.is_multiple_of(512) && udp_backlog(PORT).0 > 1 << 20 {
                pause(Duration::from_millis(1));
                continue;
            }
            let datagrams: Vec<_> = (next..next + 64)
                .map(|i| Datagram {
                    to: to(),
                    from: Some(IpAddr::from(Ipv4Addr::from(0x0a00_0001 + i % sources))),
                    ds: 0,
                    payload: &messages[i as usize % messages.len()],
                    hop_limit: None,
                    segment: 0,
                })
                .collect();
            next = (next + 64) & 0x0fff_ffff;
            self.sent.fetch_add(batch.send(socket, &datagrams).unwrap_or(0) as u64, Relaxed);
            while let Ok(received) = replies.recv(socket, usize::MAX) {
                for slot in 0..received {
                    let is_cookie =
                        replies.get_mut(slot).is_some_and(|reply| reply.payload.first() == Some(&3));
                    self.cookies.fetch_add(is_cookie.into(), Relaxed);
                }
            }
        }
    }
}

/// Floods the target with initiations from `sources` addresses for twelve seconds; meanwhile a new peer shakes hands.
fn flood(sources: u32) {
    let scene = Scene::new("2");
    scene.outer.ip("route add local 10.0.0.0/8 dev lo");
    scene.target.set_key(&scene.inner);
    scene.up();
    let mut known = scene.puppet();
    let mut strangers = [(); 8].map(|()| Puppet::new(&scene.outer, "127.0.0.1:0", to(), &scene.target.key));
    let messages: Vec<_> = (0..512)
        .map(|i| if i % 2 == 0 { known.initiation().1 } else { strangers[i % 8].initiation().1 })
        .collect();
    let flood = Arc::new(Flood::default());
    let thread = std::thread::spawn({
        let (flood, namespace) = (Arc::clone(&flood), File::open(scene.outer.path()).unwrap());
        move || {
            netns::enter(&namespace).unwrap();
            let socket = BatchSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
            flood.run(&socket, &messages, sources);
        }
    });
    pause(Duration::from_secs(2));
    let resident = scene.target.process.memory_kib();
    let began = boottime();
    scene.befriend();
    let answered = scene.far.succeeds("ping -n -c 1 -i 0.2 -w 10 192.168.77.1");
    let took = boottime() - began;
    pause(Duration::from_secs(10).saturating_sub(took));
    let grown = scene.target.process.memory_kib().saturating_sub(resident);
    flood.stop.store(true, Relaxed);
    thread.join().unwrap();
    let (sent, cookies) = (flood.sent.load(Relaxed), flood.cookies.load(Relaxed));
    let lost = scene.outer.udp_backlog(PORT).1;
    eprintln!(
        "{sources} sources: {sent} initiations, {lost} lost by the kernel, {cookies} cookies came back; a new peer's first answer \
         took {took:?}; {resident} KiB and {grown} KiB more after 10 s"
    );
    assert!(answered, "no handshake within 10 s");
    assert!(cookies > 1000, "{cookies} cookies for {sent} initiations are no flood");
    assert!(grown < 4096, "{grown} KiB more");
    scene.ping();
}

// T8.
#[test]
fn a_peer_shakes_hands_during_a_flood_from_one_source() {
    need!("ip", "wg", "ping", "ss");
    flood(1);
}

// T8.
#[test]
fn a_peer_shakes_hands_during_a_flood_from_a_hundred_thousand_sources() {
    need!("ip", "wg", "ping", "ss");
    flood(100_000);
}

/// Returns the UDP payload of an Ethernet frame with IPv4 to the target.
fn datagram_to_target(frame: &[u8]) -> Option<&[u8]> {
    let is_udp = frame.get(12..14)? == [8, 0] && frame.get(14)? == &0x45 && frame.get(23)? == &17;
    (is_udp && frame.get(36..38)? == PORT.to_be_bytes()).then(|| &frame[42..])
}

// [W] §5.1; T18.
#[test]
fn a_replayed_session_changes_nothing() {
    need!("ip", "wg", "ping", "ss");
    let scene = Scene::joined("2");
    let wire = capture(&scene.outer, "lo");
    scene.ping();
    scene.far.sh("ping -n -c 200 -i 0.002 -s 1200 -W 2 192.168.77.1");
    let mut datagrams: Vec<_> =
        frames(&wire).iter().filter_map(|frame| datagram_to_target(frame).map(<[u8]>::to_vec)).collect();
    // On loopback a capture sees every frame twice, on its way out and in.
    let mut seen = std::collections::BTreeSet::new();
    datagrams.retain(|datagram| seen.insert(datagram.clone()));
    assert_eq!(datagrams.iter().filter(|datagram| datagram[0] == 1).count(), 1, "the initiation is there");
    assert!(datagrams.iter().filter(|datagram| datagram[0] == 4).count() > 200);
    let state = || {
        let Scene { inner, target, friend, .. } = &scene;
        let moved = target.transfer(inner, &friend.key.public());
        (target.show(inner, "endpoints"), target.latest_handshake(inner), moved)
    };
    let before = state();
    let device = capture(&scene.inner, &scene.target.name);
    for from in ["127.0.0.1:0", "127.0.0.2:0"] {
        let socket = udp(&scene.outer, from);
        for datagram in &datagrams {
            socket.send_to(datagram, to()).unwrap();
        }
        scene.drain();
    }
    assert_eq!(state(), before);
    assert_eq!(frames(&device), [[0; 0]; 0], "packets that were delivered twice");
    scene.ping();
    assert_eq!(state().0, before.0);
    assert_eq!(state().1, before.1, "the session goes on");
}

// T18.
#[test]
fn forged_messages_never_move_an_endpoint() {
    need!("ip", "wg", "ping", "ss");
    let scene = Scene::joined("2");
    let mut puppet = scene.puppet();
    let session = puppet.handshake(SOON);
    scene.ping();
    let before = scene.target.show(&scene.inner, "endpoints");
    assert!(before.contains(&puppet.socket.local_addr().unwrap().to_string()), "{before}");
    let spoofer = udp(&scene.outer, "127.0.0.2:0");
    let packet = udp_packet(PUPPET_ADDR, ADDR, 9, &[0; 100]);
    for round in 0..200 {
        let mut data = session.seal_to_vec(session.reserve(1, now()).unwrap(), &packet, 0);
        let at = 16 + round % (data.len() - 16);
        data[at] ^= 1;
        let mut initiation = puppet.initiation().1;
        initiation[8 + round % 108] ^= 1;
        puppet.add_macs(&mut initiation);
        let mut response = [0x5a; 92];
        response[..4].copy_from_slice(&[2, 0, 0, 0]);
        response[8..12].copy_from_slice(&session.header(0).receiver.to_le_bytes());
        puppet.add_macs(&mut response);
        let mut cookie = [0x5a; 64];
        cookie[..4].copy_from_slice(&[3, 0, 0, 0]);
        cookie[4..8].copy_from_slice(&session.header(0).receiver.to_le_bytes());
        for forged in [&data[..], &initiation, &response, &cookie] {
            spoofer.send_to(forged, to()).unwrap();
        }
    }
    scene.drain();
    // An authentic one behind them, so that all have been handled; it is the one that does move it.
    assert_eq!(scene.target.show(&scene.inner, "endpoints"), before);
    scene.ping();
    puppet.socket = spoofer;
    puppet.send(&session, &[]);
    let moved = puppet.socket.local_addr().unwrap().to_string();
    wait_until("an endpoint that moves", SOON, || {
        scene.target.show(&scene.inner, "endpoints").contains(&moved)
    });
}

/// Returns packets that an authentic peer must not get through, with what is wrong with each.
fn bad_packets() -> Vec<(String, Vec<u8>)> {
    let good = udp_packet(PUPPET_ADDR, ADDR, 9, &[0; 60]);
    let mut bad = Vec::new();
    for version in (0..16).filter(|version| *version != 4 && *version != 6) {
        let mut packet = good.clone();
        packet[0] = version << 4 | 5;
        bad.push((format!("version {version}"), packet));
    }
    for len in 1..20 {
        bad.push((format!("{len} bytes of IPv4"), good[..len].to_vec()));
    }
    for total in [0, 1, 19, good.len() + 100, 65535] {
        let mut packet = good.clone();
        packet[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
        bad.push((format!("total length {total}"), packet));
    }
    for source in [[192, 168, 77, 2], [192, 168, 77, 1], [127, 0, 0, 1], [0; 4], [255; 4]] {
        bad.push((format!("source {source:?}"), udp_packet(source, ADDR, 9, &[0; 60])));
    }
    let mut six = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
    six.extend([0xfd; 32]);
    six.extend([0; 20]);
    let mut stranger = six.clone();
    stranger[8..24].fill(0xfc);
    bad.push(("an IPv6 source of nobody".to_owned(), stranger));
    for len in 1..40 {
        bad.push((format!("{len} bytes of IPv6"), six[..len].to_vec()));
    }
    for payload in [100_u16, 65535] {
        let mut packet = six.clone();
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        bad.push((format!("IPv6 payload length {payload}"), packet));
    }
    bad
}

// T5, T39.
#[test]
fn what_an_authentic_peer_sends_is_checked_before_it_reaches_the_device() {
    need!("ip", "wg", "ss");
    let scene = Scene::joined("1");
    let mut puppet = scene.puppet();
    scene
        .target
        .set(&scene.inner, &format!("peer {} allowed-ips 192.168.77.3/32,fdfd::/16", puppet.key.public()));
    let session = puppet.handshake(SOON);
    let device = capture(&scene.inner, &scene.target.name);
    let good = udp_packet(PUPPET_ADDR, ADDR, 9, &[7; 60]);
    for (what, packet) in bad_packets() {
        puppet.send(&session, &packet);
        puppet.send(&session, &good);
        let passed = wait_for("the good packet", SOON, || {
            Some(frames(&device)).filter(|frames| frames.contains(&good))
        });
        // To the good one, which nobody waits for, the device's own kernel may answer.
        let passed = passed.iter().filter(|frame| frame[12..16] != ADDR).count();
        assert_eq!(passed, 1, "{what}");
    }
    assert!(!scene.target.process.output().contains("panicked"));
}

// T39.
#[test]
fn garbage_from_the_device_is_dropped() {
    need!("ip", "wg", "ping", "ss");
    let scene = Scene::joined("1");
    scene.ping();
    let device = capture(&scene.inner, &scene.target.name);
    let wire = capture(&scene.outer, "lo");
    let output = scene.target.process.output().len();
    for (what, packet) in bad_packets() {
        // What is whole in itself may go to whom it is for; addresses are not checked on the way out.
        if !what.contains("source") {
            // The kernel itself refuses some.
            let _ = device.write(&packet);
        }
    }
    for len in (0..=1500).step_by(7) {
        for first in [0_u8, 0x45, 0x4f, 0x60, 0xff] {
            let mut packet = vec![0xa5; len];
            packet.iter_mut().take(1).for_each(|byte| *byte = first);
            let _ = device.write(&packet);
        }
    }
    scene.ping();
    let data = frames(&wire).iter().filter_map(|frame| datagram_to_target(frame)).count();
    // Three requests, each seen twice; garbage that got through would go the other way and be answered or not.
    assert!(data >= 6, "{data}");
    assert_eq!(&scene.target.process.output()[output..], "");
}
