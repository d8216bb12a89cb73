//! A tunnel between two network namespaces, set up in Rust from beginning to end: namespaces, a link, two data planes, addresses, traffic.
//!
//! ```sh
//! cargo run --release --example namespaces [-- SECONDS]     # as root
//! ```
//!
//! ```text
//! A: 192.168.1.1, fd00::1 on adit0, 10.0.0.1 on veth ── veth ── 10.0.0.2 on veth, fd00::2, 192.168.1.2 on adit0 :B
//! ```
//!
//! It prints what goes over the link while one line of text is sent through the tunnel and comes back, over IPv4 and over IPv6, and then
//! how fast TCP is for some seconds (3, unless told otherwise). The namespaces are gone when it ends.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use adit::config::{AllowedIpEdit, Configure, Edit, PeerEdit, Prefix};
use adit::crypto::random::Os;
use adit::crypto::x25519::{PrivateKey, PublicKey};
use adit::device::{Device, Spill, default_threads};
use adit::sys::netlink::Netlink;
use adit::sys::offload::Wanted;
use adit::sys::packet::Capture;
use adit::sys::tun::Tun;
use adit::sys::{clock, netns};

/// Inner bytes: Ethernet's 1500 less 80, for IPv6 and UDP headers, header and tag of a data message.
const MTU: u32 = 1420;
const PORT: u16 = 51820;

/// The port of who answers with what was sent, and of who only counts.
const ECHO: u16 = 7;
const DISCARD: u16 = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    if netns::create().is_err() {
        // An ordinary user will do where the system lets users make namespaces.
        netns::become_root_of_user_namespace().map_err(|error| format!("this needs root: {error}"))?;
    }
    let keys = [PrivateKey::generate(&mut Os), PrivateKey::generate(&mut Os)];
    let [a, b] = [End::new(0)?, End::new(1)?];
    netns::run_in(&a.namespace, || Netlink::open()?.add_veth("veth", "veth", &b.namespace))?;
    a.join()?;
    b.join()?;
    let devices = [a.start(&keys[0], &keys[1].public())?, b.start(&keys[1], &keys[0].public())?];
    b.serve()?;
    let wire = netns::run_in(&a.namespace, || Capture::open(Netlink::open()?.link("veth")?.index))?;

    for to in b.inner() {
        println!("One line to {to} and back, and what the link carries:");
        let mut stream = a.connect(SocketAddr::new(to, ECHO))?;
        stream.write_all(b"hello through the tunnel\n")?;
        let mut answer = [0; 25];
        stream.read_exact(&mut answer)?;
        print_frames(&wire)?;
        println!("  came back: {}", String::from_utf8_lossy(&answer).trim_end());
    }
    // A capture that nobody reads costs the rest its time.
    drop(wire);

    println!("TCP for {seconds} s, {} workers at each end:", default_threads());
    let mut stream = a.connect(SocketAddr::new(b.inner()[0], DISCARD))?;
    let (begin, chunk) = (clock::boottime(), vec![0; 1 << 17]);
    let mut sent = 0;
    while clock::boottime() - begin < Duration::from_secs(seconds) {
        stream.write_all(&chunk)?;
        sent += chunk.len();
    }
    let gbits = sent as f64 * 8e-9 / (clock::boottime() - begin).as_secs_f64();
    println!("  {gbits:.2} Gbit/s");
    for (name, device) in ["A", "B"].iter().zip(&devices) {
        for peer in device.snapshot()?.peers {
            println!(
                "{name}: {} bytes sent to its peer, {} received, as UDP payload",
                peer.tx_bytes, peer.rx_bytes
            );
        }
    }
    Ok(())
}

/// One end of the tunnel.
struct End {
    number: u8,
    namespace: OwnedFd,
}

impl End {
    fn new(index: u8) -> io::Result<Self> {
        Ok(Self { number: index + 1, namespace: netns::create()? })
    }

    /// Returns the number of the other one.
    fn other(&self) -> u8 {
        3 - self.number
    }

    fn outer(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    fn inner(&self) -> [IpAddr; 2] {
        inner(self.number)
    }

    /// Gives the link an address.
    fn join(&self) -> io::Result<()> {
        netns::run_in(&self.namespace, || {
            let mut netlink = Netlink::open()?;
            let veth = netlink.link("veth")?.index;
            netlink.add_address(veth, Self::outer(self.number), 24)?;
            netlink.set_up(veth, None)
        })
    }

    /// Starts the data plane. Its UDP sockets are those of the namespace, as its device is; neither need be.
    fn start(&self, own: &PrivateKey, other: &PublicKey) -> io::Result<Device> {
        let mut peer = PeerEdit::new(*other);
        peer.endpoint = Some(SocketAddr::new(Self::outer(self.other()), PORT));
        peer.allowed_ips = inner(self.other()).map(|addr| AllowedIpEdit::Add(Prefix::host(addr))).to_vec();
        let edits = vec![Edit::PrivateKey(Some(own.clone())), Edit::ListenPort(PORT), Edit::Peer(peer)];
        netns::run_in(&self.namespace, || {
            let wanted = Wanted::default();
            let device =
                Device::start(Tun::create("adit0", default_threads(), &wanted)?, wanted, Spill::Auto, || {})?;
            device.apply(edits).map_err(io::Error::other)?;
            let mut netlink = Netlink::open()?;
            let tun = netlink.link("adit0")?.index;
            for (addr, len) in self.inner().into_iter().zip([24, 64]) {
                netlink.add_address(tun, addr, len)?;
            }
            netlink.set_up(tun, Some(MTU))?;
            Ok(device)
        })
    }

    /// Serves both ports on threads of their own.
    fn serve(&self) -> io::Result<()> {
        for port in [ECHO, DISCARD] {
            let listener =
                netns::run_in(&self.namespace, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    // A connection that breaks is over.
                    let _ = match port {
                        ECHO => stream.try_clone().and_then(|mut back| io::copy(&mut stream, &mut back)),
                        _ => io::copy(&mut stream, &mut io::sink()),
                    };
                }
            });
        }
        Ok(())
    }

    fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        netns::run_in(&self.namespace, || TcpStream::connect_timeout(&to, Duration::from_secs(30)))
    }
}

fn inner(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(192, 168, 1, number).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()]
}

/// Prints what has gone over the link: Ethernet (14 bytes), IPv4 (20), UDP (8), message.
fn print_frames(wire: &Capture) -> io::Result<()> {
    let mut frame = [0; 2048];
    loop {
        let len = match wire.read(&mut frame) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_udp = frame[12..14] == [8, 0] && frame[23] == 17;
        let kind = match frame[42] {
            1 if is_udp => "handshake initiation",
            2 if is_udp => "handshake response",
            4 if is_udp => "data",
            _ => continue,
        };
        let from = if frame[29] == 1 { "A" } else { "B" };
        println!("  {from} {kind:<20} {:>4} bytes", len.saturating_sub(42));
    }
}
