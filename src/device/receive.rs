//! UDP → TUN.

use std::io;
use std::sync::Arc;

use super::shared::{HandshakeDatagram, Shared, now};
use super::worker::Left;
use crate::sys::tun::Queue;
use crate::sys::udp::{Received, RecvBatch, UdpSocket};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::{Endpoint, Source};
use crate::wireguard::index::Entry;
use crate::wireguard::interface::View;
use crate::wireguard::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, INITIATION_LEN, is_handshake};
use crate::wireguard::time::Instant;

/// Datagrams that are received in one call.
const BATCH: usize = 64;

/// Room for the longest datagram. Not a power of two: otherwise all slots would begin in the same set of the cache.
const SLOT: usize = 65536 + 17 * 64;

pub(super) struct Receiver {
    shared: Arc<Shared>,
    batch: RecvBatch,
}

/// Authentic messages of one session that came one after the other from one address.
struct Run {
    entry: Arc<Entry>,
    from: Endpoint,
    data: bool,
    bytes: u64,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, batch: RecvBatch::new(BATCH, SLOT) }
    }

    /// Receives and handles one batch.
    pub(super) fn turn(&mut self, socket: &UdpSocket, queue: &Queue) -> Left {
        let received = match self.batch.recv(socket) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Left::Nothing,
            // T35: an error of one datagram, or a lack of memory, ends nothing.
            Err(_) => return Left::More,
        };
        let now = now();
        let view = self.shared.view.load();
        let mut run = None;
        for slot in 0..received {
            let Some(datagram) = self.batch.get_mut(slot) else { continue };
            if let Err(reason) = handle(&self.shared, &view, datagram, queue, now, &mut run) {
                self.shared.drops.count(reason);
            }
        }
        if let Some(run) = run {
            report(&self.shared, &run, now);
        }
        if received == BATCH { Left::More } else { Left::Nothing }
    }
}

fn handle(
    shared: &Shared,
    view: &View,
    datagram: Received<'_>,
    queue: &Queue,
    now: Instant,
    run: &mut Option<Run>,
) -> Result<(), Dropped> {
    if datagram.truncated {
        return Err(Dropped::Truncated);
    }
    let from =
        Endpoint { addr: datagram.from, source: datagram.to.map(|(ip, interface)| Source { ip, interface }) };
    let message = datagram.payload;
    if is_handshake(message) {
        return enqueue(shared, message, from);
    }
    let header = DataHeader::parse(message).ok_or(Dropped::Malformed)?;
    let entry = view.session(header.receiver).ok_or(Dropped::UnknownIndex)?;
    let keypair = entry.keypair().ok_or(Dropped::UnknownIndex)?;
    let padded = keypair.open(header, message, now)?;
    let run = match run {
        Some(run) if Arc::ptr_eq(&run.entry, &entry) && run.from == from => run,
        _ => {
            if let Some(ended) = run.take() {
                report(shared, &ended, now);
            }
            run.insert(Run { entry, from, data: false, bytes: 0 })
        }
    };
    run.data |= padded > 0;
    if padded > 0 {
        let packet = &mut message[DATA_HEADER_LEN..DATA_HEADER_LEN + padded];
        let len = view.admit(run.entry.peer(), packet, datagram.ecn)?;
        queue.write(&packet[..len]).map_err(|_| Dropped::TunWriteFailed)?;
    }
    run.bytes += (DATA_OVERHEAD + padded) as u64;
    Ok(())
}

/// Tells the peer what was received from it.
fn report(shared: &Shared, run: &Run, now: Instant) {
    let peer = run.entry.peer();
    peer.count_received(run.bytes);
    if let Some(keypair) = run.entry.keypair()
        && peer.opened(keypair, run.data, run.from, now)
    {
        shared.hand_over(peer);
    }
}

fn enqueue(shared: &Shared, message: &[u8], from: Endpoint) -> Result<(), Dropped> {
    let mut bytes = [0; INITIATION_LEN];
    bytes[..message.len()].copy_from_slice(message);
    let datagram = HandshakeDatagram { bytes, len: message.len(), from };
    shared.handshakes.push(datagram).map_err(|_| Dropped::HandshakeQueueFull)?;
    shared.wake_control();
    Ok(())
}
