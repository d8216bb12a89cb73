//! An interface with a data path of one thread: what to embed where the speed of one core is enough.
//!
//! It does no input or output. Whoever embeds it brings what packets come from and go to, a socket and a clock:
//!
//! ```text
//! a packet comes from inside      handle_packet(packet)
//! a datagram comes from outside   handle_datagram(datagram), and what it returns goes inside
//! poll_timeout() has come         handle_timeout()
//! after each of these             send what poll_transmit() returns until it returns nothing
//! ```
//!
//! `examples/embedding.rs` runs two of them in memory, `examples/tun_tap.rs` one on a plain TUN device. There are deliberately no batches
//! and no offloads here: those are the device's, which spreads the same steps over threads.

use std::collections::VecDeque;
use std::sync::Arc;

use super::dropped::{Dropped, Drops};
use super::endpoint::Endpoint;
use super::interface::{Interface, Transmit, View};
use super::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, is_handshake};
use super::peer::Staged;
use super::time::{Instant, Moment};
use crate::config::{Edit, Refused, Snapshot};
use crate::crypto::random::Random;
use crate::packet::{ecn, ip};

/// A WireGuard interface for one thread.
pub struct Tunnel {
    interface: Interface,
    view: View,
    drops: Arc<Drops>,
    /// The inner MTU in bytes.
    mtu: usize,
    /// Data messages, which go before what the interface has to send.
    data: VecDeque<Transmit>,
}

impl Tunnel {
    /// Returns a tunnel that is down and has neither key nor peers, with an inner MTU of `mtu` bytes: no packet is padded beyond that
    /// ([W] §5.4.6). `random` makes keys and must be fit for that: [`Os`](crate::crypto::random::Os), but in simulations.
    pub fn new(mtu: usize, random: Box<dyn Random + Send>) -> Self {
        let drops = Arc::new(Drops::default());
        let interface = Interface::new(Arc::clone(&drops), random);
        let view = interface.view();
        Self { interface, view, drops, mtu, data: VecDeque::new() }
    }

    /// Returns the interface: its peers and its configuration.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Returns how many packets were dropped, by reason.
    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// Returns configuration and counters. Port and mark are 0: they are those of the caller's socket.
    pub fn snapshot(&self) -> Snapshot {
        self.interface.snapshot()
    }

    /// Applies all edits or none. [`Edit::ListenPort`] and [`Edit::Fwmark`] are for the caller's socket, and skipped.
    ///
    /// # Errors
    /// [`Refused::TooManyPeers`] if there would be more than 2^20.
    pub fn apply(&mut self, edits: &[Edit], moment: Moment) -> Result<(), Refused> {
        self.change(|interface| interface.apply(edits, moment))
    }

    /// Starts work.
    pub fn up(&mut self, moment: Moment) {
        self.change(|interface| interface.up(moment));
    }

    /// Stops work: sessions are wiped, waiting packets dropped.
    pub fn down(&mut self) {
        self.data.clear();
        self.change(Interface::down);
    }

    /// Wipes sessions and handshakes: the machine slept.
    pub fn suspended(&mut self) {
        self.change(Interface::suspended);
    }

    /// Handles an IP packet from inside: it is sent, or waits for the handshake that it begins.
    ///
    /// # Errors
    /// Says why it was dropped, which is counted as well.
    pub fn handle_packet(&mut self, packet: &[u8], moment: Moment) -> Result<(), Dropped> {
        let result = self.try_packet(packet, moment);
        self.count(result)
    }

    fn try_packet(&mut self, packet: &[u8], moment: Moment) -> Result<(), Dropped> {
        let destination = ip::destination(packet).map_err(|_| Dropped::InnerMalformed)?;
        let peer = Arc::clone(self.view.route(destination).ok_or(Dropped::NoPeer)?);
        let to = peer.endpoint().ok_or(Dropped::NoEndpoint)?;
        let ds = ecn::encapsulate(ip::ds_field(packet));
        let Some(ticket) = peer.reserve(1, moment.now) else {
            let (dropped, ask) = peer.stage(Staged { packet: packet.into(), mtu: self.mtu, ds }, moment.now);
            self.drops.add(Dropped::StagedOverflow, dropped);
            if ask {
                self.change(|interface| interface.handle_asked(&peer, moment));
            }
            return Ok(());
        };
        let datagram = ticket.keypair.seal_to_vec(ticket.first, packet, self.mtu);
        let bytes = datagram.len() as u64;
        self.data.push_back(Transmit { peer: Some(Arc::clone(&peer)), to, ds, datagram });
        if peer.sent(&ticket.keypair, true, bytes, moment.now) {
            self.change(|interface| interface.handle_asked(&peer, moment));
        }
        Ok(())
    }

    /// Handles a UDP payload from outside that came from `from` with the DS field `ds` (0 if that is not known), while `queued` more wait:
    /// many of them are a flood, against which cookies are used ([W] §5.3).
    ///
    /// Returns the IP packet that was in it, if any: handshakes and keepalives hold none. The payload is overwritten.
    ///
    /// # Errors
    /// Says why it was dropped, which is counted as well.
    pub fn handle_datagram<'a>(
        &mut self,
        datagram: &'a mut [u8],
        from: Endpoint,
        ds: u8,
        queued: usize,
        moment: Moment,
    ) -> Result<Option<&'a [u8]>, Dropped> {
        let result = if is_handshake(datagram) {
            self.change(|interface| interface.handle_handshake(datagram, from, queued, moment)).map(|()| None)
        } else {
            self.try_data(datagram, from, ds, moment)
        };
        self.count(result)
    }

    fn try_data<'a>(
        &mut self,
        datagram: &'a mut [u8],
        from: Endpoint,
        ds: u8,
        moment: Moment,
    ) -> Result<Option<&'a [u8]>, Dropped> {
        let header = DataHeader::parse(datagram).ok_or(Dropped::Malformed)?;
        let entry = self.view.session(header.receiver).ok_or(Dropped::UnknownIndex)?;
        let keypair = entry.keypair().ok_or(Dropped::UnknownIndex)?;
        let peer = entry.peer();
        let padded = keypair.open(header, datagram, moment.now)?;
        if peer.opened(keypair, padded > 0, from, moment.now) {
            self.change(|interface| interface.handle_asked(peer, moment));
        }
        let mut packet = None;
        if padded > 0 {
            let inner = &mut datagram[DATA_HEADER_LEN..DATA_HEADER_LEN + padded];
            let len = self.view.admit(peer, inner, ds)?;
            packet = Some(&inner[..len]);
        }
        peer.count_received((DATA_OVERHEAD + padded) as u64);
        Ok(packet)
    }

    /// Handles what is due: retransmissions, keepalives, the end of sessions.
    ///
    /// While [`poll_timeout`](Self::poll_timeout) is not later than now, it is to be called again.
    pub fn handle_timeout(&mut self, moment: Moment) {
        self.change(|interface| interface.handle_timeout(moment));
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is next to be called; `None` while nothing is under way.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.interface.poll_timeout()
    }

    /// Returns the next datagram to send. Call it until there is none, sending each before the next call.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.data.pop_front().or_else(|| self.interface.poll_transmit())
    }

    #[cfg(test)]
    pub(crate) fn handle_asked(&mut self, peer: &Arc<super::peer::Peer>, moment: Moment) {
        self.change(|interface| interface.handle_asked(peer, moment));
    }

    /// Changes the interface, and looks at it anew.
    fn change<T>(&mut self, act: impl FnOnce(&mut Interface) -> T) -> T {
        let result = act(&mut self.interface);
        if let Some(view) = self.interface.poll_view() {
            self.view = view;
        }
        result
    }

    fn count<T>(&self, result: Result<T, Dropped>) -> Result<T, Dropped> {
        result.inspect_err(|reason| self.drops.count(*reason))
    }
}
