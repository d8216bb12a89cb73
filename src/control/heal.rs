//! Keeps the kernel as it should be: a thread that is told of changes of links, addresses, routes, rules and tables, looks again, and does
//! what is missing.
//!
//! It wakes up for a notice that may concern us, for a new plan, and at intervals in case a notice did not come. Whoever keeps undoing what it
//! does is answered ten times a second at most; so often it asks for notices where the system does not let it wait for them. What the kernel
//! refuses is tried again after a second, then after two, and so on up to 64.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::api::Mode;
use super::failed::Failed;
use super::firewall::{Firewall, Guard, TABLE};
use super::link::Link;
use super::plan::{Masquerade, Routes};
use super::route::{Outcome, Router};
use super::topology::Topology;
use crate::sys::clock::boottime;
use crate::sys::netlink::nftables::Changes;
use crate::sys::netlink::{Event, Groups, Monitor, Netlink};
use crate::sys::poll::{Waits, wait};

/// How long after one look the next one follows at the earliest, if it is for a notice.
const PAUSE: Duration = Duration::from_millis(100);
/// How long after a look that failed: the first time, and at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(64);

const WAKER: Token = Token(0);
const NOTICES: Token = Token(1);

/// What the kernel should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The tunnel's interface; `None` to leave it as it is.
    pub link: Option<Link>,
    /// Routes and rules.
    pub routes: Routes,
    /// The firewall; `None` for none.
    pub firewall: Option<Firewall>,
    /// Whether a firewall that is there stays as it is.
    pub leaves_firewall: bool,
}

impl Desired {
    /// Returns what the kernel should be where it should have these routes; the interface is left as it is. `is_whole` tells whether these
    /// are all routes, and `translates` whether what leaves the cluster is ours to translate. Pure.
    ///
    /// The firewall protects what the routes do, those among them that were there before too. Before the lists are complete, one that is
    /// there is replaced in Strict alone: the objects on disk may have missed that Strict was switched on.
    pub fn of(topology: &Topology, routes: Routes, is_whole: bool, translates: bool) -> Self {
        let settings = &topology.settings;
        let is_strict = settings.mode == Mode::Strict;
        let masquerade = if translates { topology.masquerade.clone() } else { Masquerade::default() };
        let is_wanted = settings.mode != Mode::Off || !masquerade.sources.is_empty();
        let firewall = is_wanted.then(|| Firewall {
            hosts: topology.open_addresses.clone(),
            masquerade,
            open_in: settings.open_port_in.clone(),
            ..Firewall::of(&routes, settings.listen_port, is_strict)
        });
        Self { link: None, routes, firewall, leaves_firewall: !is_whole && !is_strict }
    }
}

/// What the looks so far amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Looks at the kernel.
    pub looks: u64,
    /// Looks for a notice or in the course of time that found something undone.
    pub heals: u64,
    /// What failed at the last look, and why.
    pub failure: Option<String>,
    /// Whether the firewall was what it should be after it.
    pub is_guarded: bool,
    /// Whether routes and rules were.
    pub is_routed: bool,
    /// Unicast routes that are left out until the interface is there and up.
    pub waiting: usize,
}

/// Keeps the kernel as it should be in the network namespace of the thread that starts it, until this is dropped. What is programmed stays
/// then: an agent may restart.
pub struct Healer {
    orders: Option<mpsc::Sender<Order>>,
    waker: Waker,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    desired: Desired,
    answer: mpsc::SyncSender<Result<Outcome, Failed>>,
}

impl Healer {
    /// Starts the thread. It does nothing before [`Self::set`]; from then on the next look follows after `resync` at the latest.
    ///
    /// # Errors
    /// If no descriptor or no thread is left. A kernel without netfilter is no error before a firewall is wanted.
    pub fn start(resync: Duration) -> io::Result<Self> {
        let (mut this, keeper, queue) = Self::prepare(resync)?;
        let thread = std::thread::Builder::new().name("healer".to_owned());
        this.thread = Some(thread.spawn(move || keeper.run(&queue))?);
        Ok(this)
    }

    fn prepare(resync: Duration) -> io::Result<(Self, Keeper, mpsc::Receiver<Order>)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let groups = Groups::LINKS | Groups::ADDRESSES | Groups::ROUTES | Groups::RULES;
        let router = Router::open()?;
        // What is done here is no news.
        let monitor = Monitor::open_for(groups)?.without(router.port());
        let netfilter = match Guard::open().and_then(|guard| Ok((Changes::open(guard.port())?, guard))) {
            Ok(netfilter) => Some(netfilter),
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        let changes = netfilter.as_ref().map(|(changes, _)| changes.as_raw_fd());
        for fd in [Some(monitor.as_raw_fd()), changes].into_iter().flatten() {
            poll.registry().register(&mut SourceFd(&fd), NOTICES, Interest::READABLE)?;
        }
        let (orders, queue) = mpsc::channel();
        let report = Arc::default();
        let keeper = Keeper {
            poll,
            monitor,
            netfilter,
            netlink: Netlink::open()?,
            router,
            report: Arc::clone(&report),
            desired: None,
            resync,
            retry: RETRY,
        };
        Ok((Self { orders: Some(orders), waker, report, thread: None }, keeper, queue))
    }

    /// Makes the kernel what it should be, and keeps it so; also if something fails now.
    ///
    /// # Errors
    /// Names the first thing that failed.
    pub fn set(&self, desired: Desired) -> Result<Outcome, Failed> {
        let (answer, answered) = mpsc::sync_channel(1);
        let gone = || Failed::new("programming the kernel", io::ErrorKind::BrokenPipe.into());
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { desired, answer }).map_err(|_| gone())?;
        self.waker.wake().map_err(|error| Failed::new("waking the healer", error))?;
        answered.recv().map_err(|_| gone())?
    }

    /// Returns what the looks so far amount to.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Healer {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Removes all that is ours from the network namespace of the calling thread: the rules first, the firewall last. `routes` is of use where the
/// kernel keeps no protocol numbers, see [`Router::cleanup`].
///
/// # Errors
/// Names the first thing that failed; all others have been tried.
pub fn cleanup(routes: &Routes) -> Result<(), Failed> {
    let opening = |error| Failed::new("opening a netlink socket", error);
    let unrouted = Router::open().map_err(opening).and_then(|mut router| router.cleanup(routes));
    let unguarded = match Guard::open() {
        Ok(mut guard) => guard.cleanup(),
        // Without netfilter there is no table.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(()),
        Err(error) => Err(opening(error)),
    };
    unrouted?;
    unguarded
}

/// The thread's own.
struct Keeper {
    poll: Poll,
    monitor: Monitor,
    /// None if the kernel has none.
    netfilter: Option<(Changes, Guard)>,
    netlink: Netlink,
    router: Router,
    report: Arc<Mutex<Report>>,
    desired: Option<Desired>,
    /// How long after a look at the latest.
    resync: Duration,
    /// How long after the next look that fails.
    retry: Duration,
}

impl Keeper {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        let mut events = Events::with_capacity(4);
        let (mut earliest, mut due) = (Duration::ZERO, None);
        let mut waits = Waits::default();
        loop {
            let timeout = due.map(|due: Duration| due.saturating_sub(boottime()));
            let waited = wait(&mut self.poll, &mut events, timeout);
            // Told or not, orders and notices are asked for.
            waits.have_told(waited, PAUSE);
            if self.has_notice() {
                due = Some(due.map_or(earliest, |due: Duration| due.min(earliest)));
            }
            loop {
                match orders.try_recv() {
                    Ok(order) => {
                        self.desired = Some(order.desired);
                        self.retry = RETRY;
                        let done = self.look(false);
                        (earliest, due) = self.next(done.is_ok());
                        // Whoever has stopped waiting does not want to know.
                        let _ = order.answer.send(done);
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if self.desired.is_some() && due.is_some_and(|due| due <= boottime()) {
                self.forget();
                let done = self.look(true);
                (earliest, due) = self.next(done.is_ok());
            }
        }
    }

    /// Has the kernel asked for everything the next time.
    fn forget(&mut self) {
        self.router.forget();
        if let Some((_, guard)) = &mut self.netfilter {
            guard.forget();
        }
    }

    /// Takes in the notices, and tells whether one may concern us: then the kernel is asked the next time.
    fn has_notice(&mut self) -> bool {
        let firewall = self.desired.as_ref().and_then(|desired| desired.firewall.as_ref());
        let open_in = firewall.map(|firewall| &firewall.open_in[..]).unwrap_or_default();
        let has_changed = self.netfilter.as_mut().is_some_and(|(changes, guard)| {
            let has_changed = changes.take(TABLE, open_in);
            if has_changed {
                guard.forget();
            }
            has_changed
        });
        let events = self.monitor.take();
        let Some(desired) = &self.desired else { return false };
        let (routes, interface) = (&desired.routes, self.router.interface());
        let concerns_us = |event: &Event| match event {
            Event::Link(link) => link.name == routes.interface || Some(link.index) == interface,
            Event::LinkGone(index) => Some(*index) == interface,
            Event::Route { table, .. } => [routes.table, routes.pods_table()].contains(table),
            Event::Address(index) => desired.link.is_some() && Some(*index) == interface,
            Event::Rule | Event::Lost => true,
        };
        let is_otherwise = events.iter().any(concerns_us);
        if is_otherwise {
            self.router.forget();
        }
        has_changed || is_otherwise
    }

    /// Looks at everything and does what is missing: the firewall first, so that it covers what comes to be protected before there are routes;
    /// the link before the routes that lead there.
    fn look(&mut self, is_healing: bool) -> Result<Outcome, Failed> {
        let Some(desired) = &self.desired else { return Ok(Outcome::default()) };
        let guarded = guard(desired, self.netfilter.as_mut().map(|(_, guard)| guard));
        let (link, entries) = (desired.link.as_ref(), &desired.routes.entries);
        let linked = link.map_or(Ok(0), |link| link.sync(&mut self.netlink, entries));
        let routed = self.router.sync(&desired.routes);
        let has_changed = matches!(guarded, Ok(true))
            || matches!(linked, Ok(1..))
            || matches!(routed, Ok(Outcome { steps: 1.., .. }));
        let has_healed = is_healing && has_changed;
        let (is_guarded, is_routed) = (guarded.is_ok(), routed.is_ok());
        let done = guarded.and(linked).and(routed);

        let failure = done.as_ref().err().map(Failed::to_string);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.looks += 1;
        report.heals += u64::from(has_healed);
        (report.is_guarded, report.is_routed) = (is_guarded, is_routed);
        report.waiting = done.as_ref().map_or(report.waiting, |outcome| outcome.waiting);
        let before = std::mem::replace(&mut report.failure, failure.clone());
        drop(report);
        if has_healed {
            tracing::warn!("somebody had changed links, routes, rules or firewall; mended");
        }
        // What goes on failing is said once.
        match failure {
            Some(failure) if before.as_ref() != Some(&failure) => {
                tracing::warn!(%failure, "the kernel is not programmed as it should be");
            }
            None if before.is_some() => tracing::info!("the kernel is programmed as it should be"),
            Some(_) | None => {}
        }
        done
    }

    /// Returns when the next look follows a look: at the earliest for a notice, and at the latest.
    fn next(&mut self, is_done: bool) -> (Duration, Option<Duration>) {
        let now = boottime();
        let pause = if is_done { self.resync } else { self.retry };
        self.retry = if is_done { RETRY } else { (self.retry * 2).min(RETRY_MAX) };
        (now + PAUSE, Some(now + pause))
    }
}

/// Makes the firewall what it should be, and tells whether it was something else.
fn guard(desired: &Desired, guard: Option<&mut Guard>) -> Result<bool, Failed> {
    let Some(guard) = guard else {
        let missing = || Failed::new("firewall", io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        return desired.firewall.as_ref().map_or(Ok(false), |_| Err(missing()));
    };
    if desired.leaves_firewall && guard.has_table()? {
        return Ok(false);
    }
    match &desired.firewall {
        Some(firewall) => guard.sync(firewall),
        None => guard.cleanup().map(|()| false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Prefix;
    use crate::control::plan::{Entry, Kind};
    use crate::sys::netlink::nftables::Nftables;
    use crate::sys::{netns, with_faults};

    #[test]
    fn without_netfilter_the_routes_are_made_and_the_firewall_is_missed() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let (healer, _) = with_faults("Netfilter=93", || Healer::start(RETRY_MAX));
            let healer = healer?;
            let entries =
                vec![Entry { prefix: Prefix::new([10, 0, 0, 0].into(), 16).unwrap(), kind: Kind::Blackhole }];
            let routes = Routes { table: 5000, fwmark: 1, rule_priority: 99, entries, ..Routes::default() };
            let firewall = Some(Firewall::of(&routes, 51820, true));
            let desired = Desired { link: None, routes: routes.clone(), firewall, leaves_firewall: false };
            let failure = healer.set(desired.clone()).unwrap_err().to_string();
            assert_eq!(failure, "firewall: Protocol not supported (os error 93)");
            let report = healer.report();
            assert_eq!((report.heals, report.failure), (0, Some(failure)));
            assert_eq!((report.is_guarded, report.is_routed), (false, true));
            // A blackhole and a rule are there.
            assert_eq!(healer.set(Desired { firewall: None, ..desired }).unwrap().steps, 0);
            let report = healer.report();
            assert_eq!((report.failure, report.is_guarded, report.is_routed), (None, true, true));
            assert_eq!(Netlink::open()?.rules()?.len(), 1);
            let (cleaned, _) = with_faults("Netfilter=93", || cleanup(&routes));
            cleaned.unwrap();
            assert_eq!(Netlink::open()?.rules()?, []);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_somebody_changes_is_mended_also_while_nothing_can_be_waited_for() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let entries =
                vec![Entry { prefix: Prefix::new([10, 0, 0, 0].into(), 16).unwrap(), kind: Kind::Blackhole }];
            let routes = Routes { table: 5000, fwmark: 1, rule_priority: 99, entries, ..Routes::default() };
            let desired = Desired { link: None, routes, firewall: None, leaves_firewall: false };
            let (healer, keeper, queue) =
                with_faults("Netfilter=93", || Healer::prepare(Duration::from_secs(600))).0?;
            std::thread::scope(|scope| {
                // In a spin, that many have failed long before the end.
                let thread = scope.spawn(move || with_faults("Epoll=12*10000", || keeper.run(&queue)));
                let mended = healer.set(desired).map(|_| {
                    Netlink::open().and_then(|mut netlink| {
                        let rule = netlink.rules()?.remove(0);
                        netlink.remove_rule(&rule)?;
                        let end = boottime() + Duration::from_secs(20);
                        while healer.report().heals == 0 && boottime() < end {
                            std::thread::park_timeout(Duration::from_millis(1));
                        }
                        Ok((netlink.rules()?, healer.report()))
                    })
                });
                drop(healer);
                let ((), is_spared) = thread.join().unwrap();
                let (rules, report) = mended.unwrap()?;
                assert_eq!((rules.len(), report.heals, report.looks), (1, 1, 2));
                assert!(is_spared, "it spins");
                Ok(())
            })
        })
        .unwrap();
    }

    #[test]
    fn a_firewall_that_is_there_is_left_where_it_is_to_be() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut guard = Guard::open()?;
            if guard.has_table().is_err() {
                eprintln!("skipped: nftables missing in this kernel");
                return Ok(());
            }
            let entries =
                vec![Entry { prefix: Prefix::new([10, 0, 0, 0].into(), 16).unwrap(), kind: Kind::Blackhole }];
            let routes = Routes { table: 5000, fwmark: 1, rule_priority: 99, entries, ..Routes::default() };
            let firewall = |is_strict| Some(Firewall::of(&routes, 51820, is_strict));
            let desired = |firewall, leaves_firewall| Desired {
                link: None,
                routes: routes.clone(),
                firewall,
                leaves_firewall,
            };
            guard.sync(&firewall(true).unwrap()).unwrap();
            let mut nftables = Nftables::open()?;
            let strict = nftables.fingerprint(TABLE)?;
            let healer = Healer::start(Duration::from_secs(90))?;
            for firewall in [firewall(false), None] {
                healer.set(desired(firewall, true)).unwrap();
                assert_eq!(nftables.fingerprint(TABLE)?, strict);
            }
            // Where there is none, one is made, and otherwise it is what it should be.
            healer.set(desired(None, false)).unwrap();
            assert_eq!(nftables.fingerprint(TABLE)?, None);
            healer.set(desired(None, true)).unwrap();
            assert_eq!(nftables.fingerprint(TABLE)?, None);
            healer.set(desired(firewall(false), true)).unwrap();
            let made = nftables.fingerprint(TABLE)?;
            assert!(made.is_some() && made != strict);
            healer.set(desired(firewall(true), false)).unwrap();
            assert!(nftables.fingerprint(TABLE)?.map(|rules| rules.len()) == strict.map(|rules| rules.len()));
            Ok(())
        })
        .unwrap();
    }
}
