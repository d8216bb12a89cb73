//! The protocol on a plain TUN device of the `tun-tap` crate, in one thread, talking to the data plane of `adit`.
//!
//! ```sh
//! cargo run --release --example tun_tap [-- PACKETS]        # as root
//! ```
//!
//! ```text
//! namespace A: tun0 ⇄ tun-tap ⇄ adit::wireguard::tunnel ⇄ UDP ── veth ── UDP ⇄ adit::device ⇄ adit0 :namespace B
//! ```
//!
//! A sends packets (1000, unless told otherwise), each of which B answers. It prints how many came back, and what both ends counted; the
//! system looks for IPv6 routers on every new device, which no peer has: `no_peer`. The namespaces are gone when it ends.
//!
//! A device like A's has one queue and no virtio header, so that every packet costs calls of its own: [`adit::device`] is several times
//! as fast.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use adit::config::{AllowedIpEdit, Configure, Edit, PeerEdit, PeerSnapshot, Prefix};
use adit::crypto::random::Os;
use adit::crypto::x25519::PrivateKey;
use adit::device::{Device, Spill};
use adit::sys::netlink::Netlink;
use adit::sys::offload::Wanted;
use adit::sys::tun::Tun;
use adit::sys::{clock, netns};
use adit::wireguard::endpoint::Endpoint;
use adit::wireguard::time::{Instant, Moment};
use adit::wireguard::tunnel::Tunnel;
use mio::net::UdpSocket;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tun_tap::{Iface, Mode};

/// Inner bytes: Ethernet's 1500 less 60, for IPv4 and UDP headers, header and tag of a data message.
const MTU: u16 = 1440;
const PORT: u16 = 51820;
const OUTER: [IpAddr; 2] = [v4(10, 0, 0, 1), v4(10, 0, 0, 2)];
const INNER: [IpAddr; 2] = [v4(192, 168, 1, 1), v4(192, 168, 1, 2)];

const DEVICE: Token = Token(0);
const SOCKET: Token = Token(1);
const STOP: Token = Token(2);

fn main() -> Result<(), Box<dyn Error>> {
    let packets = std::env::args().nth(1).map_or(Ok(1000), |text| text.parse())?;
    if netns::create().is_err() {
        // An ordinary user will do where the system lets users make namespaces.
        netns::become_root_of_user_namespace().map_err(|error| format!("this needs root: {error}"))?;
    }
    let [a, b] = joined_namespaces()?;
    let keys = [PrivateKey::generate(&mut Os), PrivateKey::generate(&mut Os)];
    let [edits_a, edits_b] = [edits(&keys[0], &keys[1], 1), edits(&keys[1], &keys[0], 0)];

    // B: the data plane, with all that the kernel has.
    let device = netns::run_in(&b, || {
        let device = Device::start(
            Tun::create("adit0", 1, &Wanted::default())?,
            Wanted::default(),
            Spill::Auto,
            || {},
        )?;
        device.apply(edits_b).map_err(io::Error::other)?;
        set_up("adit0", INNER[1])?;
        let socket = std::net::UdpSocket::bind((INNER[1], 7))?;
        thread::spawn(move || echo(&socket));
        Ok(device)
    })?;

    // A: everything by hand, on this thread; its user is another one.
    netns::enter(&a)?;
    let iface = Iface::without_packet_info("tun0", Mode::Tun)?;
    iface.set_non_blocking()?;
    set_up("tun0", INNER[0])?;
    let mut node = Node::new(iface, &edits_a)?;
    // Kept until the end: a waker that is gone wakes nobody.
    let stop = node.stop()?;
    let stop_of_user = Arc::clone(&stop);
    let user = netns::run_in(&a, || std::net::UdpSocket::bind((INNER[0], 0)))?;
    let user = thread::spawn(move || {
        let answered = ask(&user, packets);
        stop_of_user.wake().and(answered)
    });
    node.run()?;
    let answered = user.join().map_err(|_| "the user of the tunnel panicked")??;
    drop(stop);

    println!("{answered} of {packets} packets came back");
    let of_device = device.snapshot()?.peers;
    for (name, peers) in [("tun-tap", node.tunnel.snapshot().peers), ("adit", of_device)] {
        let [PeerSnapshot { tx_bytes, rx_bytes, last_handshake, .. }] = &peers[..] else {
            return Err("one peer is expected".into());
        };
        let has_handshake = last_handshake.is_some();
        println!("{name:>7}: handshake {has_handshake}, {tx_bytes} bytes sent, {rx_bytes} received");
    }
    for (reason, count) in node.tunnel.drops().nonzero() {
        println!("{count} dropped: {}", reason.name());
    }
    if answered == packets { Ok(()) } else { Err("packets were lost".into()) }
}

/// One end: a tunnel between a device and a socket.
struct Node {
    tunnel: Tunnel,
    device: Iface,
    socket: UdpSocket,
    poll: Poll,
}

impl Node {
    fn new(device: Iface, edits: &[Edit]) -> Result<Self, Box<dyn Error>> {
        let mut tunnel = Tunnel::new(MTU.into(), Box::new(Os));
        tunnel.apply(edits, moment())?;
        let mut socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT).into())?;
        tunnel.up(moment());
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&device.as_raw_fd()), DEVICE, Interest::READABLE)?;
        poll.registry().register(&mut socket, SOCKET, Interest::READABLE)?;
        Ok(Self { tunnel, device, socket, poll })
    }

    /// Returns what ends [`Self::run`].
    fn stop(&self) -> io::Result<Arc<Waker>> {
        Waker::new(self.poll.registry(), STOP).map(Arc::new)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut buffer = vec![0; 65_536];
        loop {
            self.send();
            let timeout = self.tunnel.poll_timeout().map(|due| due.since(moment().now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.tunnel.handle_timeout(moment());
            for event in &events {
                match event.token() {
                    DEVICE => self.read_device(&mut buffer)?,
                    SOCKET => self.read_socket(&mut buffer)?,
                    _ => return Ok(()),
                }
            }
        }
    }

    /// Packets of the system become datagrams.
    fn read_device(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        while let Some(len) = unless_empty(self.device.recv(buffer))? {
            // What is dropped is counted.
            let _ = self.tunnel.handle_packet(&buffer[..len], moment());
            self.send();
        }
        Ok(())
    }

    /// Datagrams become packets for the system.
    fn read_socket(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        while let Some((len, from)) = unless_empty(self.socket.recv_from(buffer))? {
            let datagram = &mut buffer[..len];
            if let Ok(Some(packet)) =
                self.tunnel.handle_datagram(datagram, Endpoint::new(from), 0, 0, moment())
            {
                self.device.send(packet)?;
            }
            self.send();
        }
        Ok(())
    }

    fn send(&mut self) {
        while let Some(transmit) = self.tunnel.poll_transmit() {
            // A datagram that the system does not take is lost, as on the way.
            let _ = self.socket.send_to(&transmit.datagram, transmit.to.addr);
        }
    }
}

/// Returns `None` where a call would have to wait.
fn unless_empty<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn moment() -> Moment {
    Moment { now: Instant::default() + clock::boottime(), unix: clock::realtime() }
}

/// Sends packets one after the other, and returns how many came back.
fn ask(socket: &std::net::UdpSocket, packets: u32) -> io::Result<u32> {
    socket.connect((INNER[1], 7))?;
    // Longer than a handshake is tried again after ([W] §6.4).
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answered = 0;
    for number in 0..packets {
        // From the smallest to the largest that fits.
        let len = 4 + number as usize % (usize::from(MTU) - 20 - 8 - 4 + 1);
        let mut packet = vec![0xad; len];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        socket.send(&packet)?;
        let mut answer = vec![0; 2048];
        match socket.recv(&mut answer) {
            Ok(len) => answered += u32::from(answer[..len] == packet),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answered)
}

fn echo(socket: &std::net::UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..len], from);
    }
}

/// Makes two namespaces with a link between them.
fn joined_namespaces() -> io::Result<[OwnedFd; 2]> {
    let namespaces = [netns::create()?, netns::create()?];
    netns::run_in(&namespaces[0], || Netlink::open()?.add_veth("veth", "veth", &namespaces[1]))?;
    for (namespace, addr) in namespaces.iter().zip(OUTER) {
        netns::run_in(namespace, || {
            let mut netlink = Netlink::open()?;
            let link = netlink.link("veth")?.index;
            netlink.add_address(link, addr, 24)?;
            netlink.set_up(link, None)
        })?;
    }
    Ok(namespaces)
}

fn set_up(name: &str, addr: IpAddr) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(name)?.index;
    netlink.add_address(link, addr, 24)?;
    netlink.set_up(link, Some(MTU.into()))
}

/// Returns what makes an interface with one peer, the one with this number.
fn edits(own: &PrivateKey, other: &PrivateKey, number: usize) -> Vec<Edit> {
    let mut peer = PeerEdit::new(other.public());
    peer.endpoint = Some(SocketAddr::new(OUTER[number], PORT));
    peer.allowed_ips = vec![AllowedIpEdit::Add(Prefix::host(INNER[number]))];
    vec![Edit::PrivateKey(Some(own.clone())), Edit::ListenPort(PORT), Edit::Peer(peer)]
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}
