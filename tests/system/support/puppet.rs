//! A peer without a device: the test holds its keys and says what it sends, well-behaved or not.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use adit::crypto::random::Os;
use adit::crypto::x25519::{PrivateKey, PublicKey};
use adit::packet::checksum;
use adit::sys::clock::{boottime, realtime};
use adit::wireguard::cookie::Generator;
use adit::wireguard::keypair::{Keypair, Role};
use adit::wireguard::messages::{COOKIE_REPLY_LEN, DataHeader, INITIATION_LEN, RESPONSE_LEN};
use adit::wireguard::noise::{self, CreatedInitiation, Static, TransportKeys};
use adit::wireguard::tai64n::Timestamp;
use adit::wireguard::time::Instant;

use super::Namespace;
use super::tunnel::Key;

/// The time on the clock that sessions are measured by.
pub(crate) fn now() -> Instant {
    Instant::from_nanos(boottime().as_nanos().try_into().unwrap())
}

/// A peer that the test plays.
pub(crate) struct Puppet {
    pub(crate) key: Key,
    pub(crate) socket: UdpSocket,
    pub(crate) to: SocketAddr,
    own: Static,
    responder: PublicKey,
    macs: Generator,
    last: Option<Timestamp>,
    next_index: u32,
}

impl Puppet {
    /// Returns a peer that speaks from `from` in `namespace` to the holder of `responder` at `to`.
    pub(crate) fn new(namespace: &Namespace, from: &str, to: SocketAddr, responder: &Key) -> Self {
        let key = Key::generate();
        let responder = responder.private().public();
        Self {
            socket: udp(namespace, from),
            to,
            own: Static::new(PrivateKey::new(*key.private().as_bytes())),
            key,
            responder,
            macs: Generator::new(&responder),
            last: None,
            next_index: 1,
        }
    }

    /// Creates the next initiation, later than the one before.
    pub(crate) fn initiation(&mut self) -> (CreatedInitiation, [u8; INITIATION_LEN]) {
        let timestamp = Timestamp::next_after(realtime(), self.last);
        self.last = Some(timestamp);
        self.next_index += 1;
        let static_static = self.own.static_static(&self.responder).unwrap();
        let (own, responder, index) = (&self.own, &self.responder, self.next_index);
        let ephemeral = PrivateKey::generate(&mut Os);
        let created = noise::create_initiation(own, responder, &static_static, ephemeral, timestamp, index);
        let (created, mut message) = created.unwrap();
        self.macs.add_macs(&mut message, now());
        (created, message)
    }

    /// Gives a message valid macs.
    pub(crate) fn add_macs(&mut self, message: &mut [u8]) {
        self.macs.add_macs(message, now());
    }

    /// Performs a handshake, and again until one succeeds, and confirms the session by an empty packet.
    #[track_caller]
    pub(crate) fn handshake(&mut self, limit: Duration) -> Keypair {
        let deadline = boottime() + limit;
        while boottime() < deadline {
            let (created, message) = self.initiation();
            self.send_raw(&message);
            if let Some(keypair) = self.answer(&created, Duration::from_millis(500)) {
                self.send(&keypair, &[]);
                return keypair;
            }
        }
        panic!("no handshake within {limit:?}");
    }

    /// Waits for the response to an initiation.
    fn answer(&mut self, created: &CreatedInitiation, limit: Duration) -> Option<Keypair> {
        let deadline = boottime() + limit;
        let mut buffer = [0; 65536];
        while boottime() < deadline {
            let Some(len) = self.recv_raw(&mut buffer) else { continue };
            let message = &buffer[..len];
            if let Ok(reply) = <&[u8; COOKIE_REPLY_LEN]>::try_from(message)
                && self.macs.consume_reply(reply, now())
            {
                return None;
            }
            let Ok(response) = <&[u8; RESPONSE_LEN]>::try_from(message) else { continue };
            let psk = adit::config::PresharedKey::default();
            let consumed: Option<(TransportKeys, u32)> = created.consume_response(&self.own, &psk, response);
            let Some((keys, remote)) = consumed else { continue };
            return Some(Keypair::new(&keys, Role::Initiator, self.next_index, remote, now()));
        }
        None
    }

    /// Sends a packet, padded as `wg_xmit` would, through the tunnel.
    pub(crate) fn send(&self, keypair: &Keypair, packet: &[u8]) {
        let counter = keypair.reserve(1, now()).unwrap();
        self.send_raw(&keypair.seal_to_vec(counter, packet, 0));
    }

    /// Sends a datagram. What the other side's kernel says to that does not matter.
    pub(crate) fn send_raw(&self, datagram: &[u8]) {
        let _ = self.socket.send_to(datagram, self.to);
    }

    /// Receives and opens the next packet that is not empty; `None` if none comes within a tenth of a second.
    pub(crate) fn recv(&self, keypair: &Keypair) -> Option<Vec<u8>> {
        let mut buffer = [0; 65536];
        loop {
            let len = self.recv_raw(&mut buffer)?;
            let message = &mut buffer[..len];
            let Some(header) = DataHeader::parse(message) else { continue };
            if header.receiver != keypair.local() {
                continue;
            }
            if let Ok(len @ 1..) = keypair.open(header, message, now()) {
                return Some(message[16..16 + len].to_vec());
            }
        }
    }

    fn recv_raw(&self, buffer: &mut [u8]) -> Option<usize> {
        self.socket.recv_from(buffer).ok().map(|(len, _)| len)
    }
}

/// Opens a UDP socket in `namespace` whose reads last a tenth of a second at most.
pub(crate) fn udp(namespace: &Namespace, from: &str) -> UdpSocket {
    let from = from.to_owned();
    let socket =
        namespace.enter(move || UdpSocket::bind(&from).unwrap_or_else(|error| panic!("{from}: {error}")));
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// Returns a UDP packet over IPv4 from port 7 to `port`.
pub(crate) fn udp_packet(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(Ipv4Addr::from(source).octets());
    packet.extend(destination);
    let sum = checksum::finish(checksum::add(0, &packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(7_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    // Without a checksum, which IPv4 allows.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
