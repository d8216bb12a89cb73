//! A worker: one TUN queue, its own sockets, and everything in between on one thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use arrayvec::ArrayVec;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::receive::Receiver;
use super::send::Sender;
use super::shared::{PAUSE, Shared};
use super::sockets::SocketSet;
use super::spill::Idle;
use crate::sys::poll::{Waits, replace, wait};
use crate::sys::tun::Queue;
use crate::sys::udp::UdpSocket;

const TUN: Token = Token(1);
const V4: Token = Token(2);
const V6: Token = Token(3);

/// Looks for work of others, after some was found, before a worker rests: as long as a batch takes.
const LOOKS: u32 = 32;

/// What a source of packets has after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Perhaps more.
    More,
    /// Nothing for now.
    Nothing,
    /// It is no longer there.
    Gone,
}

pub(super) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    poll: Poll,
    sockets: Option<Arc<SocketSet>>,
    /// Those of them that are to be polled and cannot be.
    unpolled: ArrayVec<(RawFd, Token), 2>,
    /// Those that are this worker's to read.
    sources: Sources,
    /// Those that may have something: they are asked without being polled.
    ready: Sources,
}

/// Sources of packets.
#[derive(Clone, Copy, Debug, Default)]
struct Sources {
    tun: bool,
    v4: bool,
    v6: bool,
}

impl Worker {
    /// One that reads nothing from its queue is for handshake messages; what else comes to it is handled as anywhere.
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        queue: Arc<Queue>,
        reads: bool,
        poll: Poll,
    ) -> io::Result<Self> {
        if reads {
            poll.registry().register(&mut SourceFd(&queue.as_raw_fd()), TUN, Interest::READABLE)?;
        }
        let sources = Sources { tun: reads, ..Sources::default() };
        Ok(Self {
            number,
            shared,
            queue,
            poll,
            sockets: None,
            unpolled: ArrayVec::new(),
            sources,
            ready: Sources::default(),
        })
    }

    pub(super) fn run(mut self) {
        // The buffers are made on the thread that uses them.
        let mut sender = Sender::new(Arc::clone(&self.shared), self.number);
        let mut receiver = Receiver::new(Arc::clone(&self.shared), self.number);
        let mut events = Events::with_capacity(8);
        let mut waits = Waits::default();
        let mut looks = 0;
        self.take_sockets();
        while !self.shared.is_closing() {
            let Sources { tun, v4, v6 } = self.ready;
            let is_idle = !(tun || v4 || v6);
            if is_idle {
                self.shared.note_idle(self.number, if looks > 0 { Idle::Watches } else { Idle::Rests });
                // Work that was put in before the note is found now. Who puts some in later wakes this worker, or knows that it looks.
                looks = if self.help(&mut sender, &mut receiver) { LOOKS } else { looks };
            }
            // It is told again once that works.
            let _ = self.poll_sockets();
            let is_deaf = !self.unpolled.is_empty();
            let timeout = match !is_idle || looks > 0 {
                true => Some(Duration::ZERO),
                false => is_deaf.then_some(PAUSE),
            };
            looks = looks.saturating_sub(1);
            let waited = wait(&mut self.poll, &mut events, timeout);
            if is_idle {
                self.shared.note_idle(self.number, Idle::Works);
            }
            if !waits.have_told(waited, timeout.unwrap_or(PAUSE)) || is_deaf {
                self.take_sockets();
                self.ready = self.sources;
            }
            for event in &events {
                match event.token() {
                    TUN => self.ready.tun = true,
                    V4 => self.ready.v4 = true,
                    V6 => self.ready.v6 = true,
                    Token(_) => {
                        self.take_sockets();
                        looks = LOOKS;
                    }
                }
            }
            self.turn(&mut sender, &mut receiver);
        }
    }

    /// Does what other workers have left to whoever has time, and tells whether there was any.
    fn help(&self, sender: &mut Sender, receiver: &mut Receiver) -> bool {
        let Some((lanes, _)) = self.shared.send_lane(self.number) else { return false };
        let mut has_helped = false;
        for lane in lanes.send.iter().filter(|lane| !lane.is_done()) {
            sender.help(lane, self.sockets.as_deref());
            has_helped = true;
        }
        for lane in lanes.receive.iter().filter(|lane| !lane.is_done()) {
            receiver.help(lane);
            has_helped = true;
        }
        has_helped
    }

    /// One batch of each source, so that none starves another.
    fn turn(&mut self, sender: &mut Sender, receiver: &mut Receiver) {
        if self.ready.tun {
            let left = sender.turn(&self.queue, self.sockets.as_deref());
            self.ready.tun = left == Left::More;
            if left == Left::Gone {
                self.shared.link_lost.store(true, SeqCst);
                self.shared.wake_control();
            }
        }
        let Some(sockets) = &self.sockets else {
            // Without sockets nothing is ready, or the thread would never rest while the interface is down.
            (self.ready.v4, self.ready.v6) = (false, false);
            return;
        };
        let mut receive = |socket: &Option<UdpSocket>, ready: bool| {
            let left = socket.as_ref().filter(|_| ready).map(|socket| receiver.turn(socket, &self.queue));
            left == Some(Left::More)
        };
        self.ready.v4 = receive(&sockets.v4, self.ready.v4);
        self.ready.v6 = receive(&sockets.v6, self.ready.v6);
    }

    /// Has those sockets polled that are not yet, and returns why one cannot be.
    fn poll_sockets(&mut self) -> Option<io::Error> {
        let mut failed = None;
        self.unpolled.retain(|&mut (fd, token)| {
            let polled = replace(&self.poll, fd, token);
            polled.map_err(|error| failed = Some(error)).is_err()
        });
        failed
    }

    /// Takes over the sockets that the control thread has opened or closed.
    fn take_sockets(&mut self) {
        let slot = &self.shared.sockets[self.number];
        let new = slot.load_full();
        if new.as_ref().map(Arc::as_ptr) == self.sockets.as_ref().map(Arc::as_ptr) {
            return;
        }
        let registry = self.poll.registry();
        for socket in self.sockets.iter().flat_map(|set| set.iter()) {
            // The control thread may hold the set a little longer, so closing alone would not do. One that we did not poll is refused.
            let _ = registry.deregister(&mut SourceFd(&socket.as_raw_fd()));
        }
        // Where workers share sockets, the first of them receives, or packets of a flow would overtake each other.
        let before = &self.shared.sockets[..self.number];
        let received_elsewhere = |set: &Arc<SocketSet>| {
            before.iter().any(|slot| slot.load().as_ref().is_some_and(|other| Arc::ptr_eq(other, set)))
        };
        let receives = !new.as_ref().is_some_and(received_elsewhere);
        let opened = new.iter().filter(|_| receives).flat_map(|set| [(&set.v4, V4), (&set.v6, V6)]);
        self.unpolled =
            opened.filter_map(|(socket, token)| Some((socket.as_ref()?.as_raw_fd(), token))).collect();
        self.sockets = new;
        if let Some(error) = self.poll_sockets() {
            tracing::error!(%error, "cannot poll a UDP socket; looks again and again");
        }
        // It closes the old ones.
        self.shared.wake_control();
        // What came before the registration is told as well, but what the old sockets told is void.
        (self.ready.v4, self.ready.v6) = (receives, receives);
        (self.sources.v4, self.sources.v6) = (receives, receives);
    }
}
