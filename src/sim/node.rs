//! One interface with a data path of one thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::random::Seeded;
use crate::config::{Edit, PeerEdit, Prefix};
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::packet::{ecn, ip};
use crate::wireguard::dropped::{Dropped, Drops};
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::{Interface, Transmit, View};
use crate::wireguard::messages::{DATA_OVERHEAD, DataHeader, is_handshake};
use crate::wireguard::peer::{Peer, Staged};
use crate::wireguard::time::{Instant, Moment};

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

/// A node: an interface, its addresses, and what has come out of its tunnel.
pub struct Node {
    /// The interface itself.
    pub interface: Interface,
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
    view: View,
}

impl Node {
    pub(super) fn new(number: u8, seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let private_key = PrivateKey::generate(&mut random);
        let drops = Arc::new(Drops::default());
        let mut interface = Interface::new(Arc::clone(&drops), Box::new(random));
        let view = interface.view();
        let start = Moment::default();
        interface
            .apply(&[Edit::PrivateKey(Some(private_key.clone()))], start)
            .expect("a key is not too many peers");
        interface.up(start);
        Self {
            interface,
            drops,
            public_key: private_key.public(),
            private_key,
            addr: SocketAddr::new(Ipv4Addr::new(10, 0, 0, number).into(), 51820),
            inner: Ipv4Addr::new(192, 168, 1, number).into(),
            received: Vec::new(),
            queued: 0,
            clock_ahead: Duration::ZERO,
            view,
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
        Arc::clone(self.interface.peer(key).expect("the peer exists"))
    }

    pub(super) fn apply(&mut self, edits: &[Edit], moment: Moment, out: &mut Outbox) {
        self.interface.apply(edits, moment).expect("few peers");
        self.drain(out);
    }

    pub(super) fn handle_timeout(&mut self, moment: Moment, out: &mut Outbox) {
        self.interface.handle_timeout(moment);
        self.drain(out);
    }

    /// A packet comes out of the operating system.
    pub(super) fn send(&mut self, packet: &[u8], moment: Moment, out: &mut Outbox) {
        match self.try_send(packet, moment, out) {
            Ok(()) => self.drain(out),
            Err(reason) => self.drops.count(reason),
        }
    }

    fn try_send(&mut self, packet: &[u8], moment: Moment, out: &mut Outbox) -> Result<(), Dropped> {
        let destination = ip::destination(packet).map_err(|_| Dropped::InnerMalformed)?;
        let peer = Arc::clone(self.view.route(destination).ok_or(Dropped::NoPeer)?);
        let endpoint = peer.endpoint().ok_or(Dropped::NoEndpoint)?;
        let ds = ecn::encapsulate(ip::ds_field(packet));
        let Some(ticket) = peer.reserve(1, moment.now) else {
            let (dropped, ask) = peer.stage(Staged { packet: packet.into(), mtu: MTU, ds });
            self.drops.add(Dropped::StagedOverflow, dropped);
            if ask {
                self.interface.handle_asked(&peer, moment);
            }
            return Ok(());
        };
        let datagram = ticket.keypair.seal_to_vec(ticket.first, packet, MTU);
        let bytes = datagram.len() as u64;
        out.push(Outgoing { to: endpoint.addr, ds, datagram });
        if peer.sent(&ticket.keypair, true, bytes, moment.now) {
            self.interface.handle_asked(&peer, moment);
        }
        Ok(())
    }

    /// The device comes up.
    pub(super) fn up(&mut self, moment: Moment, out: &mut Outbox) {
        self.interface.up(moment);
        self.drain(out);
    }

    /// The device goes down.
    pub(super) fn down(&mut self, out: &mut Outbox) {
        self.interface.down();
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
        let result = if is_handshake(&datagram) {
            self.interface.handle_handshake(&mut datagram, from, self.queued, moment)
        } else {
            self.receive_data(&mut datagram, from, ds, moment)
        };
        if let Err(reason) = result {
            self.drops.count(reason);
        }
        self.drain(out);
    }

    fn receive_data(
        &mut self,
        datagram: &mut [u8],
        from: Endpoint,
        ds: u8,
        moment: Moment,
    ) -> Result<(), Dropped> {
        let header = DataHeader::parse(datagram).ok_or(Dropped::Malformed)?;
        let entry = self.view.session(header.receiver).ok_or(Dropped::UnknownIndex)?;
        let keypair = entry.keypair().ok_or(Dropped::UnknownIndex)?;
        let peer = entry.peer();
        let padded = keypair.open(header, datagram, moment.now)?;
        if peer.opened(keypair, padded > 0, from, moment.now) {
            self.interface.handle_asked(peer, moment);
        }
        if padded > 0 {
            let packet = &mut datagram[16..16 + padded];
            let len = self.view.admit(peer, packet, ds)?;
            self.received.push((moment.now, packet[..len].to_vec()));
        }
        peer.count_received((DATA_OVERHEAD + padded) as u64);
        Ok(())
    }

    fn drain(&mut self, out: &mut Outbox) {
        while let Some(Transmit { to, ds, datagram, .. }) = self.interface.poll_transmit() {
            out.push(Outgoing { to: to.addr, ds, datagram });
        }
        if let Some(view) = self.interface.poll_view() {
            self.view = view;
        }
    }
}
