//! One tunnel, its addresses, and what has come out of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::random::Seeded;
use crate::config::{Edit, PeerEdit, Prefix};
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::wireguard::dropped::Drops;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::Transmit;
use crate::wireguard::peer::Peer;
use crate::wireguard::time::{Instant, Moment};
use crate::wireguard::tunnel::Tunnel;

/// The MTU of every simulated tunnel.
const MTU: usize = 1420;

/// A datagram that a node sends.
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The outer DS field.
    pub(super) ds: u8,
    pub(super) datagram: Vec<u8>,
}

/// What a node does with an event is told by the datagrams that it appends here.
pub(super) type Outbox = Vec<Outgoing>;

/// A node: a tunnel, its addresses, and what has come out of it.
pub struct Node {
    /// The tunnel itself.
    pub tunnel: Tunnel,
    /// Its counters.
    pub drops: Arc<Drops>,
    /// Its static key pair.
    pub private_key: PrivateKey,
    /// Its static public key.
    pub public_key: PublicKey,
    /// Its outer address.
    pub addr: SocketAddr,
    /// Its inner address.
    pub inner: IpAddr,
    /// Packets that came out of the tunnel, with the moment.
    pub received: Vec<(Instant, Vec<u8>)>,
    /// How many handshake messages wait, as the interface is told: a flood is simulated by setting it.
    pub queued: usize,
    /// How far its wall clock is ahead of that of the simulation.
    pub clock_ahead: Duration,
}

impl Node {
    pub(super) fn new(number: u8, seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let private_key = PrivateKey::generate(&mut random);
        let mut tunnel = Tunnel::new(MTU, Box::new(random));
        let start = Moment::default();
        tunnel
            .apply(&[Edit::PrivateKey(Some(private_key.clone()))], start)
            .expect("a key is not too many peers");
        tunnel.up(start);
        Self {
            drops: Arc::clone(tunnel.drops()),
            tunnel,
            public_key: private_key.public(),
            private_key,
            addr: SocketAddr::new(Ipv4Addr::new(10, 0, 0, number).into(), 51820),
            inner: Ipv4Addr::new(192, 168, 1, number).into(),
            received: Vec::new(),
            queued: 0,
            clock_ahead: Duration::ZERO,
        }
    }

    /// Returns the edit by which another node gets to know this one.
    pub fn as_peer(&self) -> PeerEdit {
        let mut edit = PeerEdit::new(self.public_key);
        edit.endpoint = Some(self.addr);
        edit.allowed_ips.push(crate::config::AllowedIpEdit::Add(Prefix::host(self.inner)));
        edit
    }

    /// Returns what its threads share of the peer with this key.
    ///
    /// # Panics
    /// If there is no such peer.
    pub fn peer(&self, key: &PublicKey) -> Arc<Peer> {
        Arc::clone(self.tunnel.interface().peer(key).expect("the peer exists"))
    }

    pub(super) fn apply(&mut self, edits: &[Edit], moment: Moment, out: &mut Outbox) {
        self.tunnel.apply(edits, moment).expect("few peers");
        self.drain(out);
    }

    pub(super) fn handle_timeout(&mut self, moment: Moment, out: &mut Outbox) {
        self.tunnel.handle_timeout(moment);
        self.drain(out);
    }

    /// A packet comes out of the operating system.
    pub(super) fn send(&mut self, packet: &[u8], moment: Moment, out: &mut Outbox) {
        // What is dropped is counted.
        let _ = self.tunnel.handle_packet(packet, moment);
        self.drain(out);
    }

    /// The device comes up.
    pub(super) fn up(&mut self, moment: Moment, out: &mut Outbox) {
        self.tunnel.up(moment);
        self.drain(out);
    }

    /// The device goes down.
    pub(super) fn down(&mut self, out: &mut Outbox) {
        self.tunnel.down();
        self.drain(out);
    }

    /// A datagram comes from the network.
    pub(super) fn receive(
        &mut self,
        mut datagram: Vec<u8>,
        from: Endpoint,
        ds: u8,
        moment: Moment,
        out: &mut Outbox,
    ) {
        if let Ok(Some(packet)) = self.tunnel.handle_datagram(&mut datagram, from, ds, self.queued, moment) {
            self.received.push((moment.now, packet.to_vec()));
        }
        self.drain(out);
    }

    fn drain(&mut self, out: &mut Outbox) {
        while let Some(Transmit { to, ds, datagram, .. }) = self.tunnel.poll_transmit() {
            out.push(Outgoing { to: to.addr, ds, datagram });
        }
    }
}
