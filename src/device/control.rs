//! The control thread: the only one that changes the protocol's state.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::link::{Follower, News};
use super::shared::{PAUSE, Request, Shared, WAKE, moment, now};
use super::sockets::{Fate, Patience, SocketSet, Sockets, send_all};
use crate::config::{Edit, Refused, Snapshot};
use crate::sys::clock::{self, Jump, Timer};
use crate::sys::netlink::{Monitor, Netlink};
use crate::sys::offload::Wanted;
use crate::sys::poll::{Waits, replace, wait};
use crate::sys::tun::Queue;
use crate::sys::udp::{Datagram, SendBatch};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::scope;
use crate::wireguard::interface::{Interface, Transmit};
use crate::wireguard::peer::Peer;
use crate::wireguard::time::Instant;

const TIMER: Token = Token(1);
const LINK: Token = Token(2);
const ROUTES: Token = Token(3);
const JUMP: Token = Token(4);
const SOURCES: [Token; 5] = [WAKE, TIMER, LINK, ROUTES, JUMP];

/// Clocks that drift apart by more than this did so in a suspend.
const SUSPEND_MIN: Duration = Duration::from_millis(100);

/// How long after a failure to open the UDP sockets that is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// Handshake messages between two looks at requests, timers and the link.
const HANDSHAKES_PER_TURN: usize = 32;

/// Peers whose source addresses are checked between two such looks.
const SOURCES_PER_TURN: usize = 64;

pub(super) struct Control {
    interface: Interface,
    wanted: Wanted,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    poll: Poll,
    timer: Timer,
    /// What the timer is set to.
    timer_at: Option<Instant>,
    /// The timer could be set the last time.
    has_timer: bool,
    jump: Jump,
    link: Follower,
    /// Routes and addresses where the sockets are.
    outer: Option<(Monitor, Netlink)>,
    sources: Sources,
    sockets: Vec<Arc<SocketSet>>,
    /// Sets that a worker may not yet have let go of. They are closed here, so that what is closed and what is not is known here.
    leaving: Vec<Arc<SocketSet>>,
    /// When the sockets are to be opened that could not be opened before.
    bind_at: Option<Instant>,
    send_batch: SendBatch,
    listen_port: u16,
    fwmark: u32,
    up: bool,
    /// The link was deleted.
    is_gone: bool,
    /// BOOTTIME − MONOTONIC: time spent asleep since boot.
    slept: Duration,
}

/// Whose source addresses are yet to be checked: all, after routes or addresses have changed, and every one that is learned.
#[derive(Default)]
struct Sources {
    have_changed: bool,
    /// By their numbers: who speaks to us from many places waits once.
    learned: BTreeMap<u32, Arc<Peer>>,
    rest: Vec<Arc<Peer>>,
    began: Instant,
    /// On a router that learns routes all day, checks take a quarter of the thread's time at most.
    not_before: Instant,
}

impl Sources {
    /// Begins if there is reason to.
    fn begin(&mut self, interface: &Interface, now: Instant) {
        if self.rest.is_empty() && self.are_due() && now >= self.not_before {
            self.began = now;
            let learned = std::mem::take(&mut self.learned);
            self.rest = if std::mem::take(&mut self.have_changed) {
                interface.peers().filter(|peer| peer.way().is_some()).cloned().collect()
            } else {
                learned.into_values().collect()
            };
        }
    }

    fn are_due(&self) -> bool {
        self.have_changed || !self.learned.is_empty()
    }

    /// Has the source of `peer` checked if it is a new one.
    fn note(&mut self, peer: &Arc<Peer>) {
        if peer.take_new_source() {
            self.learned.insert(peer.id(), Arc::clone(peer));
        }
    }

    fn end(&mut self, now: Instant) {
        self.not_before = now + now.since(self.began) * 3;
    }

    /// Returns when a check that waits may begin.
    fn waits_until(&self) -> Option<Instant> {
        (self.are_due() && self.rest.is_empty()).then_some(self.not_before)
    }
}

impl Control {
    pub(super) fn new(
        interface: Interface,
        wanted: Wanted,
        shared: Arc<Shared>,
        queue: Arc<Queue>,
        poll: Poll,
        requests: mpsc::Receiver<Request>,
    ) -> io::Result<Self> {
        let timer = Timer::new()?;
        let jump = Jump::new()?;
        let link = Follower::new(queue)?;
        let outer = Monitor::open().and_then(|monitor| Ok((monitor, Netlink::open()?))).ok();
        let register = |fd, token| poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE);
        register(timer.as_raw_fd(), TIMER)?;
        register(jump.as_raw_fd(), JUMP)?;
        register(link.raw_fd(), LINK)?;
        if let Some((monitor, _)) = &outer {
            register(monitor.as_raw_fd(), ROUTES)?;
        }
        Ok(Self {
            interface,
            wanted,
            shared,
            requests,
            poll,
            timer,
            timer_at: None,
            has_timer: true,
            jump,
            link,
            outer,
            sources: Sources::default(),
            sockets: Vec::new(),
            leaving: Vec::new(),
            bind_at: None,
            send_batch: SendBatch::new(1),
            listen_port: 0,
            fwmark: 0,
            up: false,
            is_gone: false,
            slept: slept(),
        })
    }

    pub(super) fn run(mut self, on_close: impl FnOnce()) {
        self.follow_link();
        let mut events = Events::with_capacity(16);
        let mut waits = Waits::default();
        let mut busy = false;
        while !self.shared.is_closing() {
            let is_set = self.set_timer();
            let timeout = if busy { Some(Duration::ZERO) } else { (!is_set).then_some(PAUSE) };
            let waited = wait(&mut self.poll, &mut events, timeout);
            let is_told = waits.have_told(waited, timeout.unwrap_or(PAUSE));
            self.shared.control_looks();
            if is_told {
                events.iter().for_each(|event| self.take(event.token()));
            } else {
                SOURCES.into_iter().for_each(|token| self.take(token));
            }
            if self.link.look_at().is_some_and(|at| at <= now()) {
                self.take_news(Follower::news);
            }
            self.notice_suspend();
            self.leaving.retain(|set| Arc::strong_count(set) > 1);
            if !self.up && self.link.state().up {
                self.come_up_on_a_free_port();
            }
            self.bind_again();
            busy = self.check_sources();
            busy |= self.work();
            if self.is_gone {
                return on_close();
            }
        }
    }

    /// Takes what a source has.
    fn take(&mut self, source: Token) {
        match source {
            TIMER => {
                self.timer.clear();
                self.timer_at = None;
            }
            JUMP => self.jump.clear(),
            LINK => self.take_news(Follower::news),
            ROUTES => {
                let told = self.outer.as_mut().is_some_and(|(monitor, _)| !monitor.take().is_empty());
                self.sources.have_changed |= told;
            }
            WAKE => {
                if self.shared.link_lost.swap(false, SeqCst) {
                    self.take_news(Follower::look_again);
                }
            }
            Token(_) => {}
        }
    }

    /// Does what waits, and tells whether there is more.
    fn work(&mut self) -> bool {
        for _ in 0..HANDSHAKES_PER_TURN {
            // Whoever configures does not wait behind a flood.
            while let Ok(request) = self.requests.try_recv() {
                // They have switched the link on and off before they ask, so that is what they see.
                self.take_news(Follower::news);
                self.serve(request);
            }
            // Only those who wait already: a peer without a session asks again as fast as packets for it come.
            for _ in 0..self.shared.asked.len() {
                let Some(peer) = self.shared.asked.pop() else { break };
                self.sources.note(&peer);
                self.interface.handle_asked(&peer, moment());
                self.send();
            }
            let queued = self.shared.handshakes.len();
            let Some(mut message) = self.shared.handshakes.pop() else {
                self.interface.handle_timeout(moment());
                self.send();
                return false;
            };
            let datagram = &mut message.bytes[..message.len];
            if let Err(reason) = self.interface.handle_handshake(datagram, message.from, queued, moment()) {
                self.shared.drops.count(reason);
            }
            self.send();
        }
        self.interface.handle_timeout(moment());
        self.send();
        true
    }

    fn serve(&mut self, request: Request) {
        // A client that has gone is nothing to report.
        match request {
            Request::Apply(edits, reply) => drop(reply.send(self.apply(&edits))),
            Request::Snapshot(reply) => drop(reply.send(self.snapshot())),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { listen_port: self.listen_port, fwmark: self.fwmark, ..self.interface.snapshot() }
    }

    /// All or nothing: what the system may refuse comes first, on sockets that are not yet in use.
    fn apply(&mut self, edits: &[Edit]) -> Result<(), Refused> {
        let (mut port, mut mark) = (self.listen_port, self.fwmark);
        for edit in edits {
            match edit {
                Edit::ListenPort(new) => port = *new,
                Edit::Fwmark(new) => mark = *new,
                Edit::PrivateKey(_) | Edit::ClearPeers | Edit::Peer(_) => {}
            }
        }
        let asks_for_port = edits.iter().any(|edit| matches!(edit, Edit::ListenPort(_)));
        let must_bind = self.up && (port != self.listen_port || self.sockets.is_empty());
        let mut bound = None;
        if must_bind {
            match self.bind(port, mark) {
                Ok(sockets) => bound = Some(sockets),
                Err(error) if asks_for_port => return Err(refused(&error, port)),
                // The port could not be had when the link came up; the change is not about it.
                Err(error) => tracing::warn!(port, %error, "there are no UDP sockets yet"),
            }
        } else if mark != self.fwmark {
            self.mark_sockets(mark)
                .inspect_err(|_| {
                    // Those that took the new mark get the old one back, which they had.
                    let _ = self.mark_sockets(self.fwmark);
                })
                .map_err(|error| system("SO_MARK", &error))?;
        }
        if let Err(refused) = self.interface.apply(edits, moment()) {
            // The old mark was there before.
            let _ = self.mark_sockets(self.fwmark);
            return Err(refused);
        }
        let is_moved = must_bind || mark != self.fwmark;
        (self.listen_port, self.fwmark) = (port, mark);
        if must_bind {
            self.install(bound);
        }
        if is_moved {
            self.interface.clear_sources();
        }
        self.send();
        Ok(())
    }

    // ---- sockets

    fn bind(&self, port: u16, mark: u32) -> io::Result<Sockets> {
        // The link can be down and up again, or a port changed and changed back, before a busy worker looks.
        SocketSet::open(port, mark, self.shared.sockets.len() - 1, &self.wanted, &self.leaving)
    }

    /// Puts new sockets into use, or none.
    fn install(&mut self, sockets: Option<Sockets>) {
        if let Some(active) = sockets.as_ref().map(|sockets| sockets.active.with(self.shared.offloads)) {
            tracing::info!(offloads = %active, "in use");
        }
        let sockets = sockets.map_or_else(Vec::new, |sockets| sockets.sets);
        if let Some(set) = sockets.first() {
            self.listen_port = set.port;
        }
        for (worker, slot) in self.shared.sockets.iter().enumerate() {
            slot.store(sockets.get(worker).cloned());
        }
        self.leaving.extend(std::mem::replace(&mut self.sockets, sockets));
        self.shared.wake_workers();
    }

    fn mark_sockets(&self, mark: u32) -> io::Result<()> {
        self.sockets.iter().flat_map(|set| set.iter()).try_for_each(|socket| socket.set_mark(mark))
    }

    /// Sends everything that the interface has to send, and shows the workers what has changed.
    fn send(&mut self) {
        // A session must be known before a message announces it.
        self.show_view();
        while let Some(transmit) = self.interface.poll_transmit() {
            self.send_one(&transmit);
        }
        self.show_view();
    }

    fn show_view(&mut self) {
        if let Some(view) = self.interface.poll_view() {
            self.shared.view.store(Arc::new(view));
        }
    }

    fn send_one(&mut self, transmit: &Transmit) {
        // A handshake message may have come by another way than the last one.
        if let Some(peer) = &transmit.peer {
            self.sources.note(peer);
        }
        let socket = self.sockets.first().and_then(|set| set.towards(transmit.to.addr));
        let Some(socket) = socket else {
            self.shared.drops.count(Dropped::SendFailed);
            return;
        };
        let from = transmit.to.source.map(|source| source.ip);
        let mut datagrams = [Datagram {
            to: transmit.to.addr,
            from,
            ds: transmit.ds,
            // Sent once, whatever it is nested in.
            hop_limit: None,
            payload: &transmit.datagram,
            segment: 0,
        }];
        let drops = &self.shared.drops;
        send_all(&mut self.send_batch, socket, &mut datagrams, drops, Patience::NONE, |_, fate| {
            if let (Fate::SentElsewise, Some(peer)) = (fate, &transmit.peer) {
                peer.clear_source();
            }
        });
    }

    // ---- the link

    fn take_news(&mut self, news: impl FnOnce(&mut Follower) -> News) {
        match news(&mut self.link) {
            News::None => {}
            News::Changed => self.follow_link(),
            News::Moved => self.follow_moved_link(),
            News::Gone => self.is_gone = true,
        }
    }

    fn follow_moved_link(&mut self) {
        let fd = self.link.raw_fd();
        if let Err(error) = replace(&self.poll, fd, LINK) {
            tracing::warn!(%error, "cannot watch the link in its new network namespace; looks every second");
            self.link.look_later();
        }
        self.follow_link();
    }

    fn follow_link(&mut self) {
        let state = self.link.state();
        self.shared.mtu.store(Arc::new(self.link.mtu()));
        let was_down = self.link.take_was_down();
        if self.up && (!state.up || was_down) {
            self.go_down();
        }
        if !self.up && state.up {
            self.come_up_on_a_free_port();
        }
    }

    /// Comes up now, or when the workers have let go of the sockets that had the port: with others on it, the kernel could not be told
    /// which socket is whose.
    fn come_up_on_a_free_port(&mut self) {
        let port = self.listen_port;
        self.leaving.retain(|set| Arc::strong_count(set) > 1);
        if port == 0 || self.leaving.iter().all(|set| set.port != port) {
            self.come_up();
        }
    }

    fn come_up(&mut self) {
        match self.bind(self.listen_port, self.fwmark) {
            Ok(sockets) => self.install(Some(sockets)),
            Err(error) => {
                tracing::error!(port = self.listen_port, %error, "cannot open the UDP sockets yet");
                self.bind_at = Some(now() + BIND_AGAIN);
            }
        }
        self.up = true;
        self.interface.up(moment());
        self.send();
        tracing::info!(port = self.listen_port, mtu = self.link.state().mtu, "interface up");
    }

    /// Opens the sockets that could not be opened when the link came up: another program had the port, or no descriptor was left, and
    /// neither need last.
    fn bind_again(&mut self) {
        if self.bind_at.take_if(|at| *at <= now()).is_none() || !self.up || !self.sockets.is_empty() {
            return;
        }
        match self.bind(self.listen_port, self.fwmark) {
            Ok(sockets) => self.install(Some(sockets)),
            Err(_) => self.bind_at = Some(now() + BIND_AGAIN),
        }
    }

    fn go_down(&mut self) {
        self.up = false;
        self.interface.down();
        self.show_view();
        // The port is kept, as by the kernel.
        let port = self.listen_port;
        self.install(None);
        self.listen_port = port;
        tracing::info!("interface down");
    }

    /// Refuses the local addresses of peers that would be reached by another interface now, and takes back those that would not any more
    /// (kernel `socket.c`, `send4`: the route of every packet is compared). Tells whether there are more to check.
    fn check_sources(&mut self) -> bool {
        let Some((_, netlink)) = &mut self.outer else {
            self.sources.learned.clear();
            return false;
        };
        self.sources.begin(&self.interface, now());
        if self.sources.rest.is_empty() {
            return false;
        }
        for _ in 0..SOURCES_PER_TURN {
            let Some(peer) = self.sources.rest.pop() else { break };
            let Some(way @ (addr, source)) = peer.way() else { continue };
            let interface = match scope(addr) {
                0 => netlink.interface_towards(addr.ip(), source.ip, self.fwmark).ok(),
                scope => Some(scope),
            };
            peer.judge_source(way, interface == Some(source.interface));
        }
        if self.sources.rest.is_empty() {
            self.sources.end(now());
        }
        !self.sources.rest.is_empty()
    }

    // ---- time

    /// Tells whether the timer is what it should be.
    fn set_timer(&mut self) -> bool {
        let others = self.sources.waits_until().into_iter().chain(self.bind_at).chain(self.link.look_at());
        let at = self.interface.poll_timeout().into_iter().chain(others).min();
        if at == self.timer_at {
            return true;
        }
        let set = self.timer.set(at.map(|at| Duration::from_nanos(at.as_nanos())));
        match &set {
            Ok(()) => self.timer_at = at,
            // What goes on failing is said once.
            Err(error) if self.has_timer => {
                tracing::error!(%error, "cannot set the timer; looks again and again")
            }
            Err(_) => {}
        }
        self.has_timer = set.is_ok();
        self.has_timer
    }

    fn notice_suspend(&mut self) {
        let slept = slept();
        if slept.saturating_sub(self.slept) > SUSPEND_MIN {
            tracing::info!("the machine was suspended: sessions are wiped");
            self.interface.suspended();
            self.show_view();
        }
        // A thread that loses the processor between the two clocks reads too little. The next reading is no suspend.
        self.slept = self.slept.max(slept);
    }
}

fn slept() -> Duration {
    // In this order the difference errs to the lower side.
    let boottime = clock::boottime();
    boottime.saturating_sub(clock::monotonic())
}

fn refused(error: &io::Error, port: u16) -> Refused {
    if error.kind() == io::ErrorKind::AddrInUse {
        return Refused::PortInUse(port);
    }
    system(&format!("UDP sockets on port {port}"), error)
}

fn system(what: &str, error: &io::Error) -> Refused {
    Refused::System { what: what.to_owned(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}
