//! What the threads of a device share.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::queue::{ArrayQueue, SegQueue};
use mio::{Poll, Token, Waker};

use super::cores;
use super::lane::Lane;
use super::receive::Inbox;
use super::send::Outbox;
use super::sockets::SocketSet;
use super::spill::{Found, Idle, Lanes, Spill};
use crate::config::{Edit, Prefix, Refused, Snapshot};
use crate::sys::clock;
use crate::sys::offload::Active;
use crate::wireguard::allowed_ips::AllowedIps;
use crate::wireguard::constants::MAX_QUEUED_INCOMING_HANDSHAKES;
use crate::wireguard::dropped::Drops;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::View;
use crate::wireguard::messages::INITIATION_LEN;
use crate::wireguard::peer::Peer;
use crate::wireguard::time::{Instant, Moment};

/// The token of every thread's waker.
pub(super) const WAKE: Token = Token(0);

/// How long a thread rests that the system does not let wait for more to do: the queue of a TUN device takes a burst for as long.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// What others want of the control thread.
pub(super) enum Request {
    Apply(Vec<Edit>, mpsc::SyncSender<Result<(), Refused>>),
    Snapshot(mpsc::SyncSender<Snapshot>),
}

/// A handshake message on its way to the control thread.
pub(super) struct HandshakeDatagram {
    pub(super) bytes: [u8; INITIATION_LEN],
    pub(super) len: usize,
    pub(super) from: Endpoint,
}

/// The MTU of the link, and of routes that have one of their own.
pub(super) struct Mtu {
    pub(super) link: usize,
    pub(super) routes: AllowedIps<usize>,
}

impl Mtu {
    /// Returns the MTU towards `destination`.
    pub(super) fn towards(&self, destination: IpAddr) -> usize {
        match self.routes.lookup(destination) {
            Some(&route) => route.min(self.link),
            None => self.link,
        }
    }

    pub(super) fn new(link: u32, routes: impl Iterator<Item = ((IpAddr, u8), u32)>) -> Self {
        let mut map = AllowedIps::new();
        for ((addr, len), mtu) in routes {
            if let Some(prefix) = Prefix::new(addr, len) {
                map.insert(prefix, mtu as usize);
            }
        }
        Self { link: link as usize, routes: map }
    }
}

pub(super) struct Shared {
    pub(super) drops: Arc<Drops>,
    pub(super) view: ArcSwap<View>,
    pub(super) mtu: ArcSwap<Mtu>,
    pub(super) handshakes: ArrayQueue<HandshakeDatagram>,
    pub(super) asked: SegQueue<Arc<Peer>>,
    /// What is in use of the features of the TUN device.
    pub(super) offloads: Active,
    /// The sockets of each worker, the one for handshakes last; none while the interface is down.
    pub(super) sockets: Vec<ArcSwapOption<SocketSet>>,
    /// What workers do for each other, if they are to.
    pub(super) lanes: Option<Lanes>,
    /// A worker has found the TUN device gone.
    pub(super) link_lost: AtomicBool,
    closing: AtomicBool,
    control: Waker,
    /// The control thread has been woken and not yet looked.
    control_woken: AtomicBool,
    workers: Vec<Waker>,
}

impl Shared {
    /// Returns the shared state, with the poll of the control thread and that of each worker.
    pub(super) fn new(
        drops: Arc<Drops>,
        view: View,
        workers: usize,
        offloads: Active,
        spill: Spill,
    ) -> io::Result<(Self, Poll, Vec<Poll>)> {
        let control_poll = Poll::new()?;
        let polls = (0..workers).map(|_| Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), WAKE)).collect::<io::Result<_>>()?;
        let shared = Self {
            drops,
            view: ArcSwap::from_pointee(view),
            mtu: ArcSwap::from_pointee(Mtu::new(0, std::iter::empty())),
            handshakes: ArrayQueue::new(MAX_QUEUED_INCOMING_HANDSHAKES),
            asked: SegQueue::new(),
            offloads,
            sockets: (0..workers).map(|_| ArcSwapOption::empty()).collect(),
            // The last one is for handshakes.
            lanes: Lanes::new(spill, workers - 1, cores()),
            link_lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            control: Waker::new(control_poll.registry(), WAKE)?,
            control_woken: AtomicBool::new(false),
            workers: wakers,
        };
        Ok((shared, control_poll, polls))
    }

    /// Hands `peer`, who asked for something, to the control thread.
    pub(super) fn hand_over(&self, peer: &Arc<Peer>) {
        self.asked.push(Arc::clone(peer));
        self.wake_control();
    }

    pub(super) fn wake_control(&self) {
        if !self.control_woken.swap(true, SeqCst) {
            // It fails only if the kernel's counter overflows, and then the thread is awake.
            let _ = self.control.wake();
        }
    }

    /// The control thread looks at its queues from now on.
    pub(super) fn control_looks(&self) {
        self.control_woken.store(false, SeqCst);
    }

    pub(super) fn wake_workers(&self) {
        for waker in &self.workers {
            let _ = waker.wake();
        }
    }

    /// Returns the lane of what the worker seals. The worker for handshakes has none.
    pub(super) fn send_lane(&self, worker: usize) -> Option<(&Lanes, &Lane<Box<Outbox>>)> {
        self.lanes.as_ref().and_then(|lanes| Some((lanes, lanes.send.get(worker)?)))
    }

    /// Returns the lane of what the worker opens. The worker for handshakes has none.
    pub(super) fn receive_lane(&self, worker: usize) -> Option<(&Lanes, &Lane<Box<Inbox>>)> {
        self.lanes.as_ref().and_then(|lanes| Some((lanes, lanes.receive.get(worker)?)))
    }

    /// Calls a worker to do what was put into a lane, and tells whether there is one.
    pub(super) fn call_for_help(&self, lanes: &Lanes) -> bool {
        match lanes.find() {
            Found::Nobody => false,
            Found::Awake => true,
            Found::Asleep(worker) => self.workers[worker].wake().is_ok(),
        }
    }

    /// Notes what a worker does while it has no work of its own.
    pub(super) fn note_idle(&self, worker: usize, idle: Idle) {
        if let Some((lanes, _)) = self.send_lane(worker) {
            lanes.note(worker, idle);
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    pub(super) fn close(&self) {
        self.closing.store(true, SeqCst);
        self.wake_workers();
        let _ = self.control.wake();
    }
}

/// Returns the time for the data path.
pub(super) fn now() -> Instant {
    Instant::from_nanos(u64::try_from(clock::boottime().as_nanos()).unwrap_or(u64::MAX))
}

/// Returns the time for the control thread.
pub(super) fn moment() -> Moment {
    Moment { now: now(), unix: clock::realtime() }
}
