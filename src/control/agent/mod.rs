//! The loop: waits for a reason, looks at everything, takes the steps.
//!
//! Reasons are objects that changed, a data plane that came or went, a step that failed a while ago, and the periodic look. Every reason
//! leads to the same: desired state from all objects, actual state from the data plane, the steps between the two.
//!
//! What the data plane has is read at every look, but for those that follow a change of the objects: these believe that it is as the last
//! look left it, so that a change does not wait for a thousand peers to be read. A second later they are.
//!
//! Objects are kept on disk a second after they have changed, and at the end. Until the source has read every list, the loop acts on what
//! was kept, and removes nothing: a process that was killed may have known a second more.
//!
//! - `check`: whether the node can do it.
//! - `step`: what is done at a look.
//! - `tell`: what others are told of it.

mod check;
mod step;
mod tell;

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::config::{Prefix, Snapshot};
use crate::control::api::{Backend, Mode, PodAddresses};
use crate::control::cni::{self, Cni};
use crate::control::data_plane::DataPlane;
use crate::control::happening::{Findings, Silence};
use crate::control::heal::Healer;
use crate::control::keep::Keeper;
use crate::control::leaving::Leaving;
use crate::control::metrics::server::Server;
use crate::control::metrics::{self, Progress};
use crate::control::mtu::{Note, Ways};
use crate::control::objects::{Fault, Objects};
use crate::control::preflight;
use crate::control::publish::{published, untold};
use crate::control::read;
use crate::control::reconcile::Endpoints;
use crate::control::session::Session;
use crate::control::store::Store;
use crate::control::telling::Telling;
use crate::control::topology::{Own, Topology, topology};
use crate::control::translated::Forgetter;
use crate::control::uapi_client::Listener;
use crate::control::watch::Source;
use crate::crypto::x25519::PrivateKey;
use crate::sys::clock;
use crate::sys::family;
use crate::sys::netlink::Netlink;
use crate::sys::poll::{Waits, poll};
use crate::sys::service::Watchdog;
use crate::sys::signal::Ending;
use crate::sys::watch::{Change, Changes};

/// After a failure, the first wait; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// How long changes of objects are gathered before they are kept on disk.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// How long changes of links and routes are gathered before the ways to the peers are looked at.
const WAYS_AFTER: Duration = Duration::from_millis(200);
/// The time between two looks for news, where the system does not let us wait for them.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest wait after a failure.
const RETRY_MOST: Duration = Duration::from_secs(15);

/// What an agent is given.
pub struct Parts {
    /// The node's name.
    pub node: String,
    /// Its key.
    pub private_key: PrivateKey,
    /// The interface, in place of what the objects say.
    pub interface: Option<String>,
    /// Where data planes have their sockets.
    pub sockets: PathBuf,
    /// Where the MTU is told to others.
    pub run: PathBuf,
    /// The time between two looks without another reason.
    pub resync: Duration,
    /// What outlives the process.
    pub store: Arc<Store>,
    /// Whether the `TunnelConfig` for all nodes is made there if there is none.
    pub makes_config: bool,
    /// Whether other nodes are asked, once, whether they answer.
    pub asks_others: bool,
    /// Where objects come from.
    pub source: Box<dyn Source>,
    /// Where metrics are served, in place of what the objects say; see [`places`].
    pub metrics: Option<String>,
    /// Who programs interface, routes and firewall, and keeps them so.
    pub healer: Healer,
    /// What is done for the CNI plugin, if anything is.
    pub cni: Option<cni::Options>,
    /// The key of the taint that is removed from the node once pods that come are held, if any is.
    pub startup_taint: Option<String>,
}

/// The control loop of one node.
pub struct Agent {
    /// Who answers the CNI plugin. Before what it stands on: it ends first.
    cni: Option<Cni>,
    parts: Parts,
    /// Who writes the objects to disk, and who lets connections begin anew.
    keeper: Keeper,
    forgetter: Forgetter,
    own: Own,
    netlink: Netlink,
    data_planes: Changes,
    known: Option<Known>,
    /// What was known before the last change, until that is obeyed.
    outdated: Option<Known>,
    endpoints: Endpoints,
    /// Whether the node was checked for what the whole of the objects wants, and what was said to be wrong with it.
    is_checked: bool,
    found_wrong: preflight::Told,
    /// Whether other nodes were asked whether they answer, and when they are to be.
    has_asked: bool,
    ask_due: Option<Duration>,
    /// What was said about faults.
    said: BTreeSet<(String, Fault)>,
    /// What the data plane has, and who that is, while nothing speaks against it; and when it is to be read again.
    believed: Option<(Listener, Snapshot)>,
    read_due: Option<Duration>,
    /// Whether the data plane answered the last time; and where it did not, whether somebody was there.
    is_answered: Option<bool>,
    is_there: bool,
    /// Since when there is none, if that counts: the kernel's comes back at once, and one behind a socket is waited for.
    missing: Option<Duration>,
    retry: Duration,
    /// The moment of the next look, by [`clock::boottime`].
    next: Duration,
    /// The moment of the next periodic look, whatever else leads to one before; and whether the last look was one.
    periodic: Duration,
    is_periodic: bool,
    /// The ways to the peers, what they leave for a packet, and when they are to be looked at again.
    ways: Ways,
    mtu: Option<u32>,
    ways_due: Option<Duration>,
    note: Note,
    /// Peers in each state, if the data plane answered the last time.
    sessions: Option<[usize; Session::ALL.len()]>,
    /// The prefixes that were led into the tunnel at the last look, with nothing past it.
    tunnelled: BTreeSet<Prefix>,
    /// The addresses of own pods that could not be told.
    untold: usize,
    /// What waits until it is removed.
    leaving: Leaving,
    /// What was found at the last look, and which peers were silent.
    findings: Findings,
    silence: Silence,
    lost: BTreeSet<String>,
    /// When the cluster is told what was found.
    telling: Telling,
    /// The moment at which the objects are to be kept on disk.
    keep: Option<Duration>,
    /// The mode that is there.
    mode_kept: Option<Mode>,
    /// What is told to whoever watches.
    progress: metrics::Shared,
    /// Where metrics are to be served, and the server, if the place could be had; if not, when that is tried again.
    served: Option<(String, Option<Server>)>,
    serve_due: Option<Duration>,
    /// Who wants to hear that the loop goes on.
    watchdog: Option<Watchdog>,
    waits: Waits,
}

/// What is known of the cluster.
struct Known {
    objects: Objects,
    /// Whether every list was read to its end; else it is what was kept on disk, and routes may be there that are not in it.
    is_complete: bool,
    topology: Arc<Topology>,
}

impl Agent {
    /// Gets ready: what was kept on disk is known from here on.
    ///
    /// # Errors
    /// If the directory of the sockets cannot be watched, or no descriptor is left.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let mut ways = Ways::open()?;
        let mode_kept = parts.store.mode().as_deref().and_then(Mode::named);
        let own = Own {
            api_servers: parts.source.api_servers().to_vec(),
            links: ways.addresses()?,
            mode: mode_kept,
            remembered: parts.store.remembered(),
            lacks_ipv6: !family::has_ipv6(),
            ..Own::new(&parts.node, parts.private_key.public())
        };
        let progress = Progress { events_lost: parts.source.events_lost(), ..Progress::default() };
        let state = parts.store.directory();
        let telling = Telling::new(&parts.node);
        let cni = parts.cni.clone().map(|options| Cni::start(options, state)).transpose()?;
        let mut this = Self {
            cni,
            own,
            netlink: Netlink::open()?,
            data_planes: watch_sockets(&parts.sockets)?,
            ways,
            mtu: None,
            ways_due: None,
            note: Note::new(&parts.run),
            keeper: Keeper::start(Arc::clone(&parts.store))?,
            forgetter: Forgetter::start()?,
            parts,
            known: None,
            outdated: None,
            endpoints: Endpoints::new(),
            is_checked: false,
            found_wrong: preflight::Told::default(),
            has_asked: false,
            ask_due: None,
            said: BTreeSet::new(),
            believed: None,
            read_due: None,
            is_answered: None,
            is_there: false,
            missing: None,
            retry: RETRY_FIRST,
            next: Duration::ZERO,
            periodic: Duration::ZERO,
            is_periodic: false,
            sessions: None,
            tunnelled: BTreeSet::new(),
            untold: 0,
            leaving: Leaving::default(),
            findings: Findings::default(),
            silence: Silence::default(),
            lost: BTreeSet::new(),
            telling,
            keep: None,
            mode_kept,
            progress: Arc::new(Mutex::new(progress)),
            served: None,
            serve_due: None,
            watchdog: Watchdog::of_environment(),
            waits: Waits::default(),
        };
        this.recall();
        this.learn();
        // What keeps the objects from being read may be among it.
        if !this.is_checked {
            this.check();
        }
        Ok(this)
    }

    /// Runs until it is asked to end. What is programmed stays as it is.
    pub fn run(&mut self, ending: &impl Ending) {
        loop {
            if self.leaving.next().is_some_and(|due| clock::boottime() >= due) && self.retry == RETRY_FIRST {
                self.hurry();
            }
            let anew = [self.read_due, self.telling.next()].into_iter().flatten();
            if anew.min().is_some_and(|due| clock::boottime() >= due) && self.retry == RETRY_FIRST {
                self.believed = None;
                self.hurry();
            }
            if self.own.given_up.end(clock::boottime()) {
                self.know_anew();
                self.hurry();
            }
            if clock::boottime() >= self.next {
                self.look();
            }
            if self.serve_due.is_some_and(|due| clock::boottime() >= due) {
                self.serve_metrics();
            }
            if self.keep.is_some_and(|keep| clock::boottime() >= keep) {
                self.keep_objects();
            }
            if self.ask_due.is_some_and(|due| clock::boottime() >= due) {
                self.ask_others();
            }
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.tell(|| true);
            }
            if self.ways_due.is_some_and(|due| clock::boottime() >= due) && self.has_moved() {
                self.react();
                continue;
            }
            let wake = self.wait(ending.as_fd());
            if wake.ending && ending.take() {
                self.keep_objects();
                return;
            }
            if wake.source && self.parts.source.take() {
                self.react();
                self.learn();
            }
            if wake.data_planes && self.is_about_us() {
                self.believed = None;
                self.react();
            }
            if wake.ways {
                self.take_ways();
            }
            if let Some(cni) = self.cni.as_ref().filter(|_| wake.cni) {
                cni.take();
                self.publish();
                self.let_pods_come();
            }
        }
    }

    /// Has everything looked at now, since something has happened: how long it takes until all is programmed is counted.
    fn react(&mut self) {
        metrics::lock(&self.progress).happen(clock::boottime());
        self.hurry();
    }

    /// Has everything looked at now. What failed before has a new chance.
    fn hurry(&mut self) {
        self.next = Duration::ZERO;
        self.retry = RETRY_FIRST;
    }

    fn wait(&mut self, ending: BorrowedFd<'_>) -> Wake {
        let source = self.parts.source.fd();
        let fds = [ending, source, self.data_planes.as_fd(), self.ways.as_fd()].into_iter();
        let fds = fds.chain(self.cni.as_ref().map(Cni::fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let told = self.watchdog.as_ref().map(Watchdog::next);
        let [leaving, read, telling] = [self.leaving.next(), self.read_due, self.telling.next()]
            .map(|due| due.filter(|_| self.retry == RETRY_FIRST));
        let given_up = self.own.given_up.next();
        let asking = self.ask_due;
        let until =
            [self.keep, self.ways_due, self.serve_due, told, leaving, read, telling, given_up, asking];
        let until = until.into_iter().flatten().fold(self.next, Duration::min);
        let time = until.saturating_sub(clock::boottime());
        let timeout = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let waited = poll(&mut fds, Some(&timeout));
        let ready = [0, 1, 2, 3, 4].map(|at| fds.get(at).is_some_and(|fd| !fd.revents().is_empty()));
        // Without being told, all are asked.
        let is_told = self.waits.have_told(waited, PAUSE);
        let [ending, source, data_planes, ways, cni] = ready.map(|is_ready| is_ready || !is_told);
        Wake { ending, source, data_planes, ways, cni }
    }

    /// Tells whether the socket of our data plane may be another one.
    fn is_about_us(&mut self) -> bool {
        let client = self.client();
        let name = client.as_ref().and_then(DataPlane::socket_name);
        let changes = self.data_planes.take();
        if changes.contains(&Change::Anything) {
            // The directory may be gone, and another one in its place.
            match watch_sockets(&self.parts.sockets) {
                Ok(data_planes) => self.data_planes = data_planes,
                Err(error) => tracing::warn!(%error, "the sockets of data planes cannot be watched"),
            }
        }
        changes.iter().any(|change| match change {
            Change::Name(other) => Some(other.as_os_str()) == name,
            Change::Anything => true,
        })
    }

    fn client(&self) -> Option<DataPlane> {
        let settings = &self.known.as_ref()?.topology.settings;
        let data_plane = DataPlane::of(&self.parts.sockets, &settings.interface, settings.backend);
        Some(data_plane.with_private_key(self.parts.private_key.clone()))
    }

    /// Takes over what was kept on disk.
    fn recall(&mut self) {
        match self.parts.store.snapshot() {
            Ok(Some(kept)) => {
                let objects = read::objects(&kept.objects);
                tracing::info!(
                    nodes = objects.tunnels.len(),
                    "the objects as last known are used until they are read"
                );
                self.know(objects, false);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the objects as last known cannot be used; nothing is done until they are read")
            }
        }
    }

    /// Takes over the objects of the source, once there are any.
    fn learn(&mut self) {
        let Some(objects) = self.parts.source.objects() else { return };
        let is_same = self.known.as_ref().is_some_and(|known| known.objects == objects);
        if is_same && self.known.as_ref().is_some_and(|known| known.is_complete) {
            return;
        }
        // Before that, what is not claimed may only not have been read.
        if let Some(known) = self.known.as_ref().filter(|known| known.is_complete) {
            self.own.given_up.learn(&known.objects, &known.topology, &objects, clock::boottime());
        }
        self.know(objects, true);
        if !std::mem::replace(&mut self.is_checked, true) {
            self.check();
        }
        let is_published =
            self.known.as_ref().is_some_and(|known| known.objects.tunnels.contains_key(&self.own.name));
        if is_published && self.mtu.is_some() {
            // What leads to a node that came, and what is said of this one, is looked at once that one is programmed.
            self.ways_due = Some(Duration::ZERO);
        } else {
            self.look_at_ways(None);
            self.publish();
        }
        self.keep.get_or_insert_with(|| clock::boottime() + KEEP_AFTER);
    }

    /// Has said of this node what is otherwise than the cluster knows it.
    fn publish(&mut self) {
        let Some(known) = self.known.as_ref().filter(|known| known.is_complete) else {
            return;
        };
        let settings = &known.topology.settings;
        let registered = self.cni.as_ref().map(Cni::addresses).unwrap_or_default();
        let mtu = settings.mtu.or(self.mtu);
        if let Some(tunnel) = published(&known.objects, &self.own, settings, &registered, mtu) {
            let untold = untold(&known.objects, &self.own, settings, &registered);
            if untold > std::mem::replace(&mut self.untold, untold) {
                tracing::warn!(
                    untold,
                    "addresses of pods are told to nobody: there are more than a NodeTunnel may name"
                );
            }
            self.parts.source.publish(tunnel);
        }
    }

    /// Takes in what has happened to links and routes.
    fn take_ways(&mut self) {
        let topology = self.known.as_ref().map(|known| &*known.topology);
        let news = self.ways.take(topology.map(|topology| &topology.routes));
        if news.ways {
            self.ways_due.get_or_insert_with(|| clock::boottime() + WAYS_AFTER);
        }
        // Nobody else makes the kernel's interface anew, and nobody else tells that it is there.
        if news.interface && topology.is_some_and(|topology| topology.settings.backend != Backend::Userspace)
        {
            self.react();
        }
    }

    /// Looks at this node's addresses and at the ways to the peers, tells whether either has changed, and has said what is to be said of this
    /// node.
    fn has_moved(&mut self) -> bool {
        // Here and nowhere else: a look at the ways alone says nothing.
        self.ways_due = None;
        let links = self.ways.addresses().unwrap_or_else(|_| self.own.links.clone());
        let mut is_changed = links != self.own.links;
        if is_changed {
            self.own.links = links;
            self.know_anew();
        }
        is_changed |= self.look_at_ways(None);
        self.publish();
        is_changed
    }

    /// Takes in the objects once more, for another node of ours or another moment.
    fn know_anew(&mut self) {
        if let Some(Known { objects, is_complete, .. }) = &self.known {
            let (objects, is_complete) = (objects.clone(), *is_complete);
            self.know(objects, is_complete);
        }
    }

    /// Looks at the ways to the peers, to where the data plane has them, as just read or as believed, and where they say they are, and tells
    /// whether what they leave for a packet has changed.
    fn look_at_ways(&mut self, read: Option<&Snapshot>) -> bool {
        let Some(known) = &self.known else { return false };
        let snapshot = read.or_else(|| self.believed.as_ref().map(|(_, snapshot)| snapshot));
        let topology = &known.topology;
        let said = topology.peers.values().filter_map(|peer| peer.endpoints.first());
        let found = snapshot.into_iter().flat_map(|snapshot| &snapshot.peers);
        let found = found.filter_map(|peer| peer.endpoint.as_ref());
        let peers: Vec<_> = said.chain(found).map(|endpoint| endpoint.ip().to_canonical()).collect();
        let own = known.objects.tunnels.get(&self.own.name);
        let own = own.into_iter().flat_map(|own| &own.endpoints).map(SocketAddr::ip);
        let node = known.objects.nodes.get(&self.own.name);
        let own: Vec<_> =
            own.chain(node.into_iter().flat_map(|node| node.addresses.iter().copied())).collect();
        let mut inside = topology.routes.entries.iter().map(|entry| entry.prefix.addr());
        let has_ipv6 = inside.any(|addr| addr.is_ipv6()) || topology.addresses.iter().any(IpAddr::is_ipv6);
        self.ways.follow(&topology.settings.interface);
        let mtu = self.ways.mtu(&peers, &own, topology.settings.fwmark, has_ipv6);
        let before = self.mtu;
        // Without any way, the last ones are as good.
        self.mtu = mtu.or(before);
        if let Some(mtu) = topology.settings.mtu.or(self.mtu) {
            self.note.tell(mtu);
        }
        self.mtu != before
    }

    /// Keeps the objects on disk, if they have changed.
    fn keep_objects(&mut self) {
        let (Some(known), Some(_)) = (&self.known, self.keep.take()) else { return };
        self.keeper.keep(known.objects.clone(), self.own.remembered.clone());
    }

    /// Takes in objects, and what is to be done about them. What was known before is given back once that is done: it is large.
    fn know(&mut self, objects: Objects, is_complete: bool) {
        let mut topology = topology(&objects, &self.own);
        if let Some(interface) = &self.parts.interface {
            topology.settings.interface.clone_from(interface);
            topology.routes.interface.clone_from(interface);
        }
        self.tell(&topology);
        let settings = &topology.settings;
        let client = DataPlane::of(&self.parts.sockets, &settings.interface, settings.backend);
        if is_complete {
            self.own.mode = Some(topology.settings.mode);
        }
        self.own.remembered.learn(&topology, is_complete);
        let wants_pods = topology.settings.pod_addresses == PodAddresses::Pods;
        self.parts.source.want_pods(&self.own.name, wants_pods);
        let topology = Arc::new(topology);
        metrics::lock(&self.progress).know(&topology, is_complete, client);
        self.outdated = self.known.replace(Known { objects, is_complete, topology });
        // What was done without a data plane was done for other objects.
        self.is_answered.take_if(|is_answered| !*is_answered);
    }

    /// Keeps the mode that this node is in on disk, if that is another one: for the next agent it decides whether Strict has to wait.
    fn keep_mode(&mut self) -> Result<(), String> {
        let Some(mode) = self.own.mode.filter(|mode| self.mode_kept != Some(*mode)) else { return Ok(()) };
        let kept = self.parts.store.keep_mode(mode.name());
        kept.map_err(|error| format!("the mode cannot be kept: {error}"))?;
        self.mode_kept = Some(mode);
        Ok(())
    }

    /// Looks at everything once and sets the moment of the next look.
    fn look(&mut self) {
        self.is_periodic = clock::boottime() >= self.periodic;
        if self.is_periodic {
            self.believed = None;
            self.ways.look_anew();
            if self.parts.source.look_again() {
                self.learn();
            }
        }
        self.serve_metrics();
        metrics::lock(&self.progress).begin(clock::boottime());
        let kept = self.keep_mode();
        let done = self.step();
        // No pod need wait for the disk.
        self.tell_cni(done.as_ref().err());
        let outcome = done.and(kept);
        metrics::lock(&self.progress).end(clock::boottime(), outcome.as_ref().err());
        self.report(outcome.as_ref().err());
        let wait = match outcome {
            Ok(()) => {
                self.retry = RETRY_FIRST;
                self.plan_to_ask();
                self.parts.resync
            }
            Err(error) => {
                // The first failure of a row is worth a line.
                if self.retry == RETRY_FIRST {
                    tracing::error!(error, "the node is not yet what it should be");
                }
                let wait = self.retry;
                self.retry = (wait * 2).min(RETRY_MOST);
                wait
            }
        };
        self.outdated = None;
        let now = clock::boottime();
        if self.is_periodic {
            self.periodic = now + self.parts.resync;
        }
        self.next = self.periodic.min(now + wait);
    }
}

/// Watches the directory of the sockets, and makes it if it is not there.
fn watch_sockets(directory: &Path) -> io::Result<Changes> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    Changes::of_names(directory)
}

/// What has happened.
struct Wake {
    ending: bool,
    source: bool,
    data_planes: bool,
    ways: bool,
    cni: bool,
}
