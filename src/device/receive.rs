//! UDP → TUN: one pass from what was received to what is written.
//!
//! ```text
//! receive      runs of datagrams into one buffer
//! sort         handshake messages to the control thread; data messages: index → session
//! open         a batch of messages, in place; note their counters, in the order of arrival
//! tell         the peer, once a run of one session from one address: endpoint, timers
//! deliver      in the order of arrival: ECN → inner source → merge with its neighbours of one flow → write, or let another worker do
//!              that
//! ```

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::lane::Lane;
use super::screen::Screen;
use super::shared::{Shared, now};
use super::spill::Heat;
use super::worker::Left;
use crate::crypto::aead::{self, OpenJob};
use crate::packet::coalesce::{Coalescer, Kinds, Merged};
use crate::packet::virtio::Gso;
use crate::sys::offload::Feature;
use crate::sys::tun::Queue;
use crate::sys::udp::{RecvBatch, UdpSocket};
use crate::wireguard::dropped::{Dropped, Drops};
use crate::wireguard::endpoint::{Endpoint, Source};
use crate::wireguard::interface::View;
use crate::wireguard::keypair::Keypair;
use crate::wireguard::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, is_handshake};
use crate::wireguard::peer::Peer;
use crate::wireguard::time::Instant;

/// Datagrams that are received in one call.
const DATAGRAMS: usize = 64;

/// Runs of datagrams that are received in one call: each may fill its slot, and all of them shall stay in the core's cache, beside what
/// the sending half and those who make the traffic keep there.
const RUNS: usize = 4;

/// Datagrams that are received in one call where they could have come as runs and do not. Should the next ones be runs, they touch two
/// megabytes of the buffer.
const SINGLES: usize = 32;

/// Room for the longest datagram or run. Not a power of two: otherwise all slots would begin in the same set of the cache.
const SLOT: usize = 65536 + 17 * 64;

/// Messages that are opened at once.
const BATCH: usize = 128;

/// Failures in a row after which receiving is tried again only when another datagram has come: this one does not pass by itself.
const FAILURES_MAX: u32 = 1000;

pub(super) struct Receiver {
    shared: Arc<Shared>,
    /// The worker's number.
    number: usize,
    inbox: Box<Inbox>,
    writer: Writer,
    screen: Screen,
    heat: Heat,
    /// Whether what came last was single datagrams.
    has_singles: bool,
    /// Failures to receive since it last succeeded.
    failures: u32,
}

/// What was received and is to be written.
pub(super) struct Inbox {
    received: RecvBatch,
    messages: Vec<Message>,
    sessions: Vec<Session>,
    /// Messages that were opened, or found to be forged or replayed.
    judged: usize,
    /// Where they are to be written, while another worker has them.
    queue: Option<Arc<Queue>>,
}

/// Writes what was opened.
struct Writer {
    shared: Arc<Shared>,
    coalescer: Coalescer,
    kinds: Kinds,
}

/// A data message that has yet to be opened.
struct Message {
    session: u16,
    ecn: u8,
    counter: u64,
    /// Where it lies in the buffer of what was received.
    place: Range<usize>,
    state: State,
}

/// How far a message has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its session is known.
    Sorted,
    /// It was opened.
    Authentic,
    /// Its counter was not seen before.
    New,
}

impl Message {
    /// Returns where the packet lies, padding included; empty in a keepalive.
    fn packet(&self) -> Range<usize> {
        self.place.start + DATA_HEADER_LEN..self.place.end + DATA_HEADER_LEN - DATA_OVERHEAD
    }
}

/// Messages of one session that came one after the other from one address.
struct Session {
    peer: Arc<Peer>,
    keypair: Arc<Keypair>,
    from: Endpoint,
    /// Any of them was authentic and new.
    is_heard: bool,
    /// Any of those carried a packet.
    has_data: bool,
    bytes: u64,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, number: usize) -> Self {
        let kinds = Kinds {
            tcp: shared.offloads.has(Feature::Coalesce),
            udp: shared.offloads.has(Feature::CoalesceUdp),
        };
        Self {
            number,
            inbox: Box::new(Inbox::new()),
            writer: Writer { shared: Arc::clone(&shared), coalescer: Coalescer::new(kinds), kinds },
            screen: Screen::new(),
            heat: Heat::default(),
            has_singles: false,
            failures: 0,
            shared,
        }
    }

    /// Receives and handles one batch.
    pub(super) fn turn(&mut self, socket: &UdpSocket, queue: &Arc<Queue>) -> Left {
        let shared = Arc::clone(&self.shared);
        let left = self.receive(&shared, socket, queue);
        self.heat.note(left);
        if let Some((_, lane)) = shared.receive_lane(self.number).filter(|_| left != Left::More) {
            // The one who was to write it may have got work of its own.
            self.help(lane);
        }
        left
    }

    fn receive(&mut self, shared: &Shared, socket: &UdpSocket, queue: &Arc<Queue>) -> Left {
        let most = match socket.offloads().has(Feature::Gro) {
            true if self.has_singles => SINGLES,
            true => RUNS,
            false => DATAGRAMS,
        };
        let received = match self.inbox.received.recv(socket, most) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Left::Nothing,
            // T35: an error of one datagram, or a lack of memory, ends nothing.
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                return if self.failures < FAILURES_MAX { Left::More } else { Left::Nothing };
            }
        };
        self.failures = 0;
        let now = now();
        let view = shared.view.load();
        let lane = shared.receive_lane(self.number).filter(|(lanes, lane)| lanes.is_used(lane, &self.heat));
        self.has_singles = true;
        for slot in 0..received {
            let Some(run) = self.inbox.received.get_mut(slot) else { continue };
            let source = run.to.map(|(ip, interface)| Source { ip, interface });
            let from = Endpoint { addr: run.from, source };
            let ecn = run.ecn;
            self.has_singles &= run.segment == run.payload.len();
            if run.truncated {
                shared.drops.count(Dropped::Truncated);
            }
            for place in places(run.range, run.segment, run.truncated) {
                if self.inbox.messages.len() - self.inbox.judged == BATCH {
                    self.inbox.judge(shared, now);
                    // Written at once, they are still in the core's cache. Handed over, they go as a whole.
                    if lane.is_none() {
                        self.writer.deliver(&view, &mut self.inbox, queue);
                    }
                }
                if let Err(reason) = self.sort(&view, place, from, ecn, socket, now) {
                    shared.drops.count(reason);
                }
            }
        }
        self.inbox.judge(shared, now);
        self.screen.reply(shared, socket);
        match lane {
            None => {
                self.writer.deliver(&view, &mut self.inbox, queue);
                self.writer.flush(&mut self.inbox, queue);
            }
            Some((lanes, lane)) => {
                let empty = lane.take_done().unwrap_or_else(|| Box::new(Inbox::new()));
                let mut opened = std::mem::replace(&mut self.inbox, empty);
                opened.queue = Some(Arc::clone(queue));
                while let Err(back) = lane.put(opened) {
                    opened = back;
                    // Who writes is slower than this worker.
                    self.help(lane);
                    std::thread::yield_now();
                }
                if !shared.call_for_help(lanes) {
                    self.help(lane);
                }
            }
        }
        if received == most { Left::More } else { Left::Nothing }
    }

    /// Writes what another worker has opened.
    pub(super) fn help(&mut self, lane: &Lane<Box<Inbox>>) {
        lane.drain(|inbox| {
            let Some(queue) = inbox.queue.take() else { return };
            let view = self.shared.view.load();
            self.writer.deliver(&view, inbox, &queue);
            self.writer.flush(inbox, &queue);
        });
    }

    /// Hands a handshake message over; finds the session of a data message.
    fn sort(
        &mut self,
        view: &View,
        place: Range<usize>,
        from: Endpoint,
        ecn: u8,
        socket: &UdpSocket,
        now: Instant,
    ) -> Result<(), Dropped> {
        let Inbox { received, messages, sessions, .. } = &mut *self.inbox;
        let message = &received.bytes()[place.clone()];
        if is_handshake(message) {
            return self.screen.pass(&self.shared, view, message, from, socket, now);
        }
        let header = DataHeader::parse(message).ok_or(Dropped::Malformed)?;
        let is_next = |last: &Session| last.keypair.local() == header.receiver && last.from == from;
        if !sessions.last().is_some_and(is_next) {
            let entry = view.session(header.receiver).ok_or(Dropped::UnknownIndex)?;
            let keypair = Arc::clone(entry.keypair().ok_or(Dropped::UnknownIndex)?);
            let peer = Arc::clone(entry.peer());
            sessions.push(Session { peer, keypair, from, is_heard: false, has_data: false, bytes: 0 });
        }
        let session = sessions.len() - 1;
        if !sessions[session].keypair.may_receive(header.counter, now) {
            return Err(Dropped::Expired);
        }
        let session = u16::try_from(session).unwrap_or(u16::MAX);
        messages.push(Message { session, ecn, counter: header.counter, place, state: State::Sorted });
        Ok(())
    }
}

impl Inbox {
    fn new() -> Self {
        Self {
            received: RecvBatch::new(DATAGRAMS, SLOT),
            messages: Vec::with_capacity(BATCH),
            sessions: Vec::with_capacity(BATCH),
            judged: 0,
            queue: None,
        }
    }

    /// Opens the messages that were sorted since the last call, at most [`BATCH`], and tells their peers of them.
    fn judge(&mut self, shared: &Shared, now: Instant) {
        self.open();
        let Self { messages, sessions, judged, .. } = self;
        for message in &mut messages[*judged..] {
            let session = &mut sessions[usize::from(message.session)];
            let reason = match message.state {
                // [W] §5.4.6: the window moves only after authentication.
                State::Authentic if session.keypair.accept(message.counter) => {
                    message.state = State::New;
                    session.is_heard = true;
                    session.has_data |= !message.packet().is_empty();
                    continue;
                }
                State::Authentic => Dropped::Replayed,
                State::Sorted | State::New => Dropped::Forged,
            };
            shared.drops.count(reason);
        }
        *judged = messages.len();
        // Before any packet is passed on: an answer to it may come at once, and shall go where it came from.
        for session in sessions.iter_mut().filter(|session| session.is_heard) {
            if session.peer.opened(&session.keypair, session.has_data, session.from, now) {
                shared.hand_over(&session.peer);
            }
            (session.is_heard, session.has_data) = (false, false);
        }
    }

    /// Opens messages in place.
    fn open(&mut self) {
        let Self { received, messages, sessions, judged, .. } = self;
        let messages = &mut messages[*judged..];
        let mut jobs = ArrayVec::<OpenJob<'_>, BATCH>::new();
        let mut rest = received.bytes();
        let mut begins = 0;
        for message in &*messages {
            let key = sessions[usize::from(message.session)].keypair.opening_key();
            let (_, from_here) = rest.split_at_mut(message.place.start + DATA_HEADER_LEN - begins);
            let (buf, behind) = from_here.split_at_mut(message.place.len() - DATA_HEADER_LEN);
            (rest, begins) = (behind, message.place.end);
            jobs.push(OpenJob { key, counter: message.counter, buf, ok: false });
        }
        aead::open_batch_in_place(&mut jobs);
        for (message, job) in messages.iter_mut().zip(&jobs) {
            if job.ok {
                message.state = State::Authentic;
            }
        }
    }
}

impl Writer {
    /// Brings what was opened on its way, in the order of arrival. What may yet be merged with later packets waits for
    /// [`flush`](Self::flush).
    fn deliver(&mut self, view: &View, inbox: &mut Inbox, queue: &Queue) {
        let Self { shared, coalescer, kinds } = self;
        let Inbox { received, messages, sessions, judged, .. } = inbox;
        let bytes = received.bytes();
        for message in messages.drain(..).filter(|message| message.state == State::New) {
            let session = &mut sessions[usize::from(message.session)];
            let packet = message.packet();
            if !packet.is_empty() {
                let len = match view.admit(&session.peer, &mut bytes[packet.clone()], message.ecn) {
                    Ok(len) => len,
                    Err(reason) => {
                        shared.drops.count(reason);
                        continue;
                    }
                };
                let bytes = &*bytes;
                coalescer.push(bytes, packet.start..packet.start + len, |merged| {
                    write(queue, bytes, merged, kinds, &shared.drops);
                });
            }
            session.bytes += message.place.len() as u64;
        }
        *judged = 0;
        for session in sessions.drain(..).filter(|session| session.bytes > 0) {
            session.peer.count_received(session.bytes);
        }
    }

    /// Writes what was kept to be merged.
    fn flush(&mut self, inbox: &mut Inbox, queue: &Queue) {
        let Self { shared, coalescer, kinds } = self;
        let bytes = &*inbox.received.bytes();
        coalescer.flush(bytes, |merged| write(queue, bytes, merged, kinds, &shared.drops));
        coalescer.set_kinds(*kinds);
    }
}

/// Returns where the datagrams of a run lie. One that was cut off is left out; those before it are whole.
fn places(run: Range<usize>, segment: usize, is_truncated: bool) -> impl Iterator<Item = Range<usize>> {
    let segment = segment.max(1);
    // An empty datagram is a datagram.
    let count = run.len().div_ceil(segment).max(1) - usize::from(is_truncated);
    (0..count).map(move |index| {
        let start = run.start + index * segment;
        start..(start + segment).min(run.end)
    })
}

/// Writes one packet or super-packet. A kernel that refuses super-packets of a kind gets its packets one by one, and no more of that kind.
fn write(queue: &Queue, bytes: &[u8], merged: &Merged<'_>, kinds: &mut Kinds, drops: &Drops) {
    if merged.header.gso == Gso::None {
        for packet in merged.packets() {
            if queue.write(&bytes[packet]).is_err() {
                drops.count(Dropped::TunWriteFailed);
            }
        }
        return;
    }
    let header = merged.header.to_bytes();
    let mut parts = ArrayVec::<IoSlice<'_>, { BATCH + 2 }>::new();
    parts.push(IoSlice::new(&header[..queue.header_len()]));
    parts.push(IoSlice::new(merged.head));
    parts.extend(merged.rest.iter().map(|span| IoSlice::new(&bytes[span.range()])));
    let Err(error) = queue.write_with_header(&parts) else { return };
    // Linux 6.6.44 and others of its time (tailscale #13041).
    if error.raw_os_error() == Some(libc::EINVAL) {
        let kind = match merged.header.gso {
            Gso::TcpV4 | Gso::TcpV6 => &mut kinds.tcp,
            Gso::UdpL4 | Gso::None => &mut kinds.udp,
        };
        if std::mem::take(kind) {
            tracing::debug!(kind = ?merged.header.gso, "super-packets are refused: written one by one");
        }
    }
    // For want of memory, the parts may still fit. If the link is down, they cost as much as they would have otherwise.
    for packet in merged.packets() {
        if queue.write(&bytes[packet]).is_err() {
            drops.count(Dropped::TunWriteFailed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_its_datagrams_but_for_one_that_was_cut_off() {
        let all = |run, segment, is_truncated| {
            let places = places(run, segment, is_truncated);
            places.map(|place| (place.start, place.end)).collect::<Vec<_>>()
        };
        assert_eq!(all(10..110, 40, false), [(10, 50), (50, 90), (90, 110)]);
        assert_eq!(all(10..110, 40, true), [(10, 50), (50, 90)]);
        assert_eq!(
            all(10..90, 40, true),
            [(10, 50)],
            "the last one may have been longer than what is left of it"
        );
        assert_eq!(all(10..50, 40, false), [(10, 50)]);
        assert_eq!(all(10..50, 40, true), []);
        assert_eq!(all(10..10, 0, false), [(10, 10)]);
    }
}
