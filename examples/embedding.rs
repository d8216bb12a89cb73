//! Two peers in memory: the protocol without a system call, a thread or a clock.
//!
//! ```sh
//! cargo run --release --example embedding --no-default-features
//! ```
//!
//! Time is a number here, so that the hour of traffic that it shows is over at once. It prints what goes over the wire: the handshake that
//! the first packet begins, data, new sessions every two minutes, and what becomes of a packet that is replayed or forged.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use adit::config::{AllowedIpEdit, Edit, PeerEdit, Prefix};
use adit::crypto::random::Os;
use adit::crypto::x25519::PrivateKey;
use adit::wireguard::endpoint::Endpoint;
use adit::wireguard::time::{Instant, Moment};
use adit::wireguard::tunnel::Tunnel;

/// In bytes.
const MTU: usize = 1420;

fn main() -> Result<(), Box<dyn Error>> {
    // Any moment but zero will do; wall-clock time goes into handshakes, and must never go back.
    let mut time =
        Time { since_start: Duration::from_secs(1), unix_at_start: Duration::from_secs(1_800_000_000) };
    let keys = [PrivateKey::generate(&mut Os), PrivateKey::generate(&mut Os)];
    let mut tunnels = [Tunnel::new(MTU, Box::new(Os)), Tunnel::new(MTU, Box::new(Os))];
    for (own, other) in [(0, 1), (1, 0)] {
        let mut peer = PeerEdit::new(keys[other].public());
        peer.endpoint = Some(outer(other));
        peer.allowed_ips = vec![AllowedIpEdit::Add(Prefix::host(inner(other)))];
        tunnels[own].apply(&[Edit::PrivateKey(Some(keys[own].clone())), Edit::Peer(peer)], time.moment())?;
        tunnels[own].up(time.moment());
    }

    println!("A packet from A to B, and the handshake that it begins:");
    let mut sent = Counts::default();
    tunnels[0].handle_packet(&packet(inner(0), inner(1), b"hello, B"), time.moment())?;
    exchange(&mut tunnels, time.moment(), |from, datagram, packet| {
        println!("  {} {:<20} {:>4} bytes", name(from), kind(datagram), datagram.len());
        if let Some(packet) = packet {
            println!("  {} reads {:?}", name(1 - from), String::from_utf8_lossy(&packet[20..]));
        }
    });

    println!("An hour with a packet a second each way:");
    for _ in 0..3600 {
        time.since_start += Duration::from_secs(1);
        for (from, to) in [(0, 1), (1, 0)] {
            tunnels[from].handle_packet(&packet(inner(from), inner(to), &[0; 1000]), time.moment())?;
            tunnels.iter_mut().for_each(|tunnel| handle_timeouts(tunnel, time.moment()));
            exchange(&mut tunnels, time.moment(), |_, datagram, packet| sent.count(datagram, packet));
        }
    }
    println!(
        "  {} packets arrived; {} data messages, {} handshakes",
        sent.packets, sent.data, sent.handshakes
    );

    println!("A message that is replayed, and one that is forged:");
    tunnels[0].handle_packet(&packet(inner(0), inner(1), b"once"), time.moment())?;
    let message = tunnels[0].poll_transmit().ok_or("nothing was sent")?.datagram;
    let mut forged = message.clone();
    *forged.last_mut().ok_or("an empty message")? ^= 1;
    for (what, mut datagram) in [("the first time", message.clone()), ("again", message), ("forged", forged)]
    {
        let from = Endpoint::new(outer(0));
        let result = tunnels[1].handle_datagram(&mut datagram, from, 0, 0, time.moment());
        println!(
            "  {what}: {}",
            result.map_or_else(|dropped| format!("dropped: {dropped}"), |_| "accepted".to_owned())
        );
    }
    for (number, tunnel) in tunnels.iter().enumerate() {
        let peer = tunnel.snapshot().peers.remove(0);
        println!("{}: {} bytes sent, {} received", name(number), peer.tx_bytes, peer.rx_bytes);
    }
    Ok(())
}

/// Carries datagrams from each to the other until neither has one, and shows each, with the packet that it brought.
fn exchange(tunnels: &mut [Tunnel; 2], moment: Moment, mut show: impl FnMut(usize, &[u8], Option<&[u8]>)) {
    let mut is_silent = false;
    while !is_silent {
        is_silent = true;
        for from in [0, 1] {
            while let Some(transmit) = tunnels[from].poll_transmit() {
                is_silent = false;
                let mut datagram = transmit.datagram.clone();
                let source = Endpoint::new(outer(from));
                // What is dropped is counted.
                let packet = tunnels[1 - from].handle_datagram(&mut datagram, source, transmit.ds, 0, moment);
                show(from, &transmit.datagram, packet.ok().flatten());
            }
        }
    }
}

fn handle_timeouts(tunnel: &mut Tunnel, moment: Moment) {
    while tunnel.poll_timeout().is_some_and(|due| due <= moment.now) {
        tunnel.handle_timeout(moment);
    }
}

/// The time, as the protocol is told it.
struct Time {
    since_start: Duration,
    unix_at_start: Duration,
}

impl Time {
    fn moment(&self) -> Moment {
        let now = Instant::default() + self.since_start;
        Moment { now, unix: self.unix_at_start + self.since_start }
    }
}

#[derive(Default)]
struct Counts {
    packets: usize,
    data: usize,
    handshakes: usize,
}

impl Counts {
    fn count(&mut self, datagram: &[u8], packet: Option<&[u8]>) {
        self.packets += usize::from(packet.is_some());
        self.data += usize::from(datagram.first() == Some(&4));
        self.handshakes += usize::from(datagram.first() == Some(&2));
    }
}

/// The whitepaper's names of messages (§5.4).
fn kind(datagram: &[u8]) -> &'static str {
    match datagram.first() {
        Some(1) => "handshake initiation",
        Some(2) => "handshake response",
        Some(3) => "cookie reply",
        // With nothing inside but padding there is none: header and tag alone.
        Some(4) if datagram.len() == 32 => "keepalive",
        Some(4) => "data",
        Some(_) | None => "nothing known",
    }
}

fn name(number: usize) -> &'static str {
    ["A", "B"][number]
}

fn inner(number: usize) -> IpAddr {
    Ipv4Addr::new(192, 168, 1, [1, 2][number]).into()
}

fn outer(number: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 0, 0, [1, 2][number]).into(), 51820)
}

/// An IPv4 packet without a checksum, at which a tunnel does not look, of protocol 253, which is for experiments (RFC 3692).
fn packet(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    for addr in [from, to] {
        if let IpAddr::V4(addr) = addr {
            packet.extend(addr.octets());
        }
    }
    packet.extend(payload);
    packet
}
