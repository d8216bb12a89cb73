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

use std::collections::BTreeSet;
use std::convert::identity;
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::api::{Backend, HostTraffic, Mode, PodAddresses};
use super::belief;
use super::cni::{self, Cni, Facts};
use super::data_plane::DataPlane;
use super::happening::{Findings, Silence};
use super::heal::{self, Healer};
use super::keep::Keeper;
use super::leaving::Leaving;
use super::link::Link;
use super::metrics::server::{Server, places};
use super::metrics::{self, Progress, Watched};
use super::mtu::{Note, Ways};
use super::objects::{Fault, Objects};
use super::plan::Kind;
use super::preflight::{self, Wanted};
use super::publish::{published, untold};
use super::read;
use super::reconcile::{Endpoints, Occasion, RouteChange, Step, reconcile, without_data_plane};
use super::route::Router;
use super::session::{self, Session};
use super::settings::{FOR_ALL, NO_CATCH_ALL};
use super::status::{self, Outcome};
use super::store::Store;
use super::telling::Telling;
use super::topology::{Own, Topology, topology};
use super::translated::Forgetter;
use super::uapi_client::{Failed, Listener};
use super::watch::Source;
use crate::config::{Prefix, Snapshot};
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
/// How long after a look that has not read what the data plane has it is read.
const READ_AFTER: Duration = Duration::from_secs(1);
/// How long changes of links and routes are gathered before the ways to the peers are looked at.
const WAYS_AFTER: Duration = Duration::from_millis(200);
/// How long nobody has to be there, where anybody may be the data plane, until the kernel is asked to be it: whoever is started with the
/// agent is there by then.
const STAND_IN_AFTER: Duration = Duration::from_secs(10);
/// How long after other nodes have become peers some are asked whether they answer: they have to learn of this node as well.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// The time between two attempts to serve metrics where they cannot be served.
const SERVE_RETRY: Duration = Duration::from_secs(1);
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
    topology: Topology,
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
        self.look_at_ways(None);
        self.publish();
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
        let topology = self.known.as_ref().map(|known| &known.topology);
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

    /// Looks at this node's addresses and at the ways to the peers, and tells whether either has changed.
    fn has_moved(&mut self) -> bool {
        let links = self.ways.addresses().unwrap_or_else(|_| self.own.links.clone());
        let mut is_changed = links != self.own.links;
        if is_changed {
            self.own.links = links;
            self.know_anew();
        }
        if self.look_at_ways(None) {
            self.publish();
            is_changed = true;
        }
        is_changed
    }

    /// Takes in the objects once more, for another node of ours or another moment.
    fn know_anew(&mut self) {
        if let Some(Known { objects, is_complete, .. }) = &self.known {
            let (objects, is_complete) = (objects.clone(), *is_complete);
            self.know(objects, is_complete);
        }
    }

    /// Looks at the ways to the peers, to where the data plane has them and where they say they are, and tells whether what they leave for a
    /// packet has changed.
    fn look_at_ways(&mut self, snapshot: Option<&Snapshot>) -> bool {
        self.ways_due = None;
        let Some(known) = &self.known else { return false };
        let topology = &known.topology;
        let said = topology.peers.values().filter_map(|peer| peer.endpoints.first());
        let found = snapshot.into_iter().flat_map(|snapshot| &snapshot.peers);
        let found = found.filter_map(|peer| peer.endpoint.as_ref());
        let peers = said.chain(found).map(|endpoint| endpoint.ip().to_canonical()).collect();
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

    /// Says what this node cannot do of what is wanted, as far as that is known, and was not said before.
    fn check(&self) {
        let objects = match &self.known {
            Some(known) => &known.objects,
            None => {
                tracing::info!("the objects are not known yet: the node is checked for what is the default");
                &Objects::default()
            }
        };
        let mut wanted = self.wanted(objects);
        wanted.cluster = self.parts.source.reach();
        let config = self.known.as_ref().map(|known| known.objects.configs.contains_key(FOR_ALL));
        wanted.makes_config = self.parts.makes_config && config == Some(false);
        wanted.removes_taint = self.parts.startup_taint.is_some();
        self.log_preflight(wanted);
    }

    /// Has some of the peers asked, once, a while after all is programmed for the first time.
    fn plan_to_ask(&mut self) {
        if !self.has_asked && self.may_ask().is_some() {
            self.ask_due.get_or_insert_with(|| clock::boottime() + ASK_AFTER);
        }
    }

    /// Says who of the peers does not answer, and to whom the way is too narrow.
    fn ask_others(&mut self) {
        self.ask_due = None;
        // Otherwise it is planned anew.
        let Some(Known { objects, topology, .. }) = self.may_ask() else { return };
        let mut wanted = self.wanted(objects);
        wanted.ask(&self.own.name, |target| {
            let is_peer = topology.peers.contains_key(&target.public_key);
            let is_ready =
                objects.tunnels.get(&target.node).is_some_and(|tunnel| tunnel.is_ready != Some(false));
            is_peer && is_ready && target.inside.is_some()
        });
        tracing::debug!(peers = wanted.targets.len(), "peers are asked whether they answer");
        self.log_preflight(wanted);
        self.has_asked = true;
    }

    /// Returns what is known if that is all there is, and this node and others should be each other's peers.
    fn may_ask(&self) -> Option<&Known> {
        let known = self.known.as_ref().filter(|known| known.is_complete)?;
        let is_peer = known.topology.degraded.is_none() && !known.topology.peers.is_empty();
        (is_peer && self.is_answered == Some(true)).then_some(known)
    }

    /// Returns what objects say that this node is to do, and where.
    fn wanted(&self, objects: &Objects) -> Wanted {
        let mut wanted = Wanted::of(objects, Some(&self.own.name));
        if let Some(interface) = &self.parts.interface {
            wanted.settings.interface.clone_from(interface);
        }
        wanted.state = self.parts.store.directory().to_owned();
        wanted.sockets.clone_from(&self.parts.sockets);
        wanted
    }

    /// Has the node looked at beside the loop: who is asked may take his time, and nothing waits for it.
    fn log_preflight(&self, wanted: Wanted) {
        let checking = std::thread::Builder::new().name("preflight".to_owned());
        let told = preflight::Told::clone(&self.found_wrong);
        if let Err(error) = checking.spawn(move || preflight::log(&wanted, &told)) {
            tracing::warn!(%error, "the node cannot be checked");
        }
    }

    /// Keeps the objects on disk, if they have changed.
    fn keep_objects(&mut self) {
        let (Some(known), Some(_)) = (&self.known, self.keep.take()) else { return };
        self.keeper.keep(known.objects.clone(), self.own.remembered.clone());
    }

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
        metrics::lock(&self.progress).know(&topology, is_complete, client);
        self.known = Some(Known { objects, is_complete, topology });
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

    /// Logs what is otherwise than it was.
    fn tell(&mut self, topology: &Topology) {
        for (object, fault) in topology.faults.difference(&self.said) {
            tracing::warn!(object, field = fault.field, reason = fault.reason, "a field is not obeyed");
        }
        self.said.clone_from(&topology.faults);
        let before = self.known.as_ref().map(|known| &known.topology);
        if before.is_none_or(|before| before.degraded != topology.degraded)
            && let Some(degraded) = &topology.degraded
        {
            tracing::error!(%degraded, "this node is not what it should be");
        }
        if before.is_none_or(|before| before.waits_for != topology.waits_for)
            && !topology.waits_for.is_empty()
        {
            tracing::info!(
                nodes = status::named(&topology.waits_for),
                "Strict waits for nodes that are not ready"
            );
        }
        let lacks_catch_all = topology.settings.lacks_catch_all();
        if lacks_catch_all && before.is_none_or(|before| !before.settings.lacks_catch_all()) {
            tracing::warn!("{NO_CATCH_ALL}");
        }
        if topology.lacks_ipv6 && before.is_none_or(|before| !before.lacks_ipv6) {
            tracing::warn!("{}", status::NO_IPV6);
        }
        if before.is_none_or(|before| before.orphans != topology.orphans) && !topology.orphans.is_empty() {
            let prefixes = topology.orphans.len();
            tracing::warn!(prefixes, first = %topology.orphans[0], "what was other nodes' pods' and is nobody's is dropped");
        }
        for (node, how) in &topology.not_encrypted {
            if before.is_none_or(|before| before.not_encrypted.get(node) != Some(how)) {
                let (reason, dropped) = (how.reason, how.is_dropped);
                if reason.is_wanted() {
                    tracing::info!(node, %reason, "a node is not talked to through the tunnel, as is wanted");
                } else {
                    tracing::warn!(node, %reason, dropped, "a node is not talked to through the tunnel");
                }
            }
        }
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
        let now = clock::boottime();
        if self.is_periodic {
            self.periodic = now + self.parts.resync;
        }
        self.next = self.periodic.min(now + wait);
    }

    /// Has metrics served where they are wanted. That they cannot be is no reason to leave anything else undone; it is tried again
    /// soon: in an update of the cluster's pods the one that leaves has the port until it is gone.
    fn serve_metrics(&mut self) {
        let settings = self.known.as_ref().map(|known| &known.topology.settings);
        let wanted = self.parts.metrics.as_ref().or_else(|| settings?.metrics_address.as_ref());
        if wanted == self.served.as_ref().map(|(place, _)| place)
            && self.served.as_ref().is_none_or(|(_, server)| server.is_some())
        {
            return;
        }
        let wanted = wanted.cloned();
        self.serve_due = None;
        // A server that moves to another address of the same port is in its own way.
        let before = self.served.take().map(|(place, _)| place);
        let Some(place) = wanted else { return };
        let server = places(&place).map_err(io::Error::other).and_then(|places| {
            let watched = Arc::new(Watched::new(Arc::clone(&self.progress))?);
            Server::start(&places, Arc::new(move |path: &str| watched.answer(path)))
        });
        match &server {
            Ok(_) => tracing::info!(place, "metrics are served"),
            // What goes on failing is said once.
            Err(error) if before.as_ref() != Some(&place) => {
                tracing::error!(place, %error, "metrics cannot be served");
            }
            Err(_) => {}
        }
        self.serve_due = server.is_err().then(|| clock::boottime() + SERVE_RETRY);
        self.served = Some((place, server.ok()));
    }

    /// Tells who answers the CNI plugin what was found.
    fn tell_cni(&mut self, failure: Option<&String>) {
        let (Some(cni), Some(known)) = (&self.cni, &self.known) else { return };
        let settings = &known.topology.settings;
        let link = self.netlink.link(&settings.interface).ok();
        let published = known.objects.tunnels.get(&self.own.name).map(|tunnel| &tunnel.pod_prefixes[..]);
        cni.tell(Facts {
            mtu: settings.mtu.or_else(|| link.map(|link| link.mtu)),
            has_data_plane: self.is_answered == Some(true),
            ..Facts::of(&known.topology, published.unwrap_or_default(), failure)
        });
    }

    /// Has the taint removed that keeps pods away, while those that come are held until they are protected.
    fn let_pods_come(&mut self) {
        let holds = self.cni.as_ref().is_some_and(Cni::holds_pods);
        let taint = self.parts.startup_taint.as_deref().filter(|_| holds);
        self.parts.source.want_untainted(&self.own.name, taint);
    }

    /// Tells the cluster what was found, if that is something new and its time has come.
    fn report(&mut self, failure: Option<&String>) {
        let known = self.known.as_ref().filter(|known| known.is_complete);
        let known = known.filter(|known| known.objects.tunnels.contains_key(&self.own.name));
        let Some(known) = known else { return self.telling.forget() };
        let healer = self.parts.healer.report();
        let is_programmed = healer.is_guarded && healer.is_routed;
        let outcome = Outcome { sessions: self.sessions, failure: failure.cloned(), is_programmed };
        let status = status::status(&known.topology, &outcome, clock::realtime());
        let findings = Findings {
            is_down: self.sessions.is_none(),
            is_strict: status::strict(&known.topology, is_programmed).0,
            lost: self.lost.clone(),
            ..Findings::of(&known.topology)
        };
        for happening in findings.since(&self.findings) {
            self.parts.source.tell(&self.own.name, happening);
        }
        self.findings = findings;
        if let Some(status) = self.telling.found(status, clock::boottime()) {
            self.parts.source.report(&self.own.name, status);
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(client) = self.client() else { return Ok(()) };
        let listener = client.listener();
        // Whatever fails from here on has it read the next time.
        let believed = self.believed.take().filter(|(who, _)| Some(*who) == listener);
        let is_read = believed.is_none();
        let mut snapshot = match believed {
            Some((_, snapshot)) => {
                self.read_due.get_or_insert_with(|| clock::boottime() + READ_AFTER);
                snapshot
            }
            None => self.read(&client)?,
        };
        if self.look_at_ways(Some(&snapshot)) {
            self.publish();
        }
        let Some(known) = &self.known else { return Ok(()) };
        if self.is_answered.replace(true) != Some(true) {
            self.missing = Some(match client {
                DataPlane::Kernel(_) => Duration::ZERO,
                DataPlane::Socket(_) => Duration::MAX,
            });
            metrics::lock(&self.progress).client = Some(client.clone());
            tracing::info!(data_plane = %client, peers = snapshot.peers.len(), "the data plane answers");
        }
        if is_read {
            self.sessions = Some(session::count(&snapshot.peers, clock::realtime()));
            let peers = &known.topology.peers;
            let lost = self.silence.look(&snapshot, clock::realtime()).iter();
            self.lost = lost.filter_map(|key| Some(peers.get(key)?.node.clone())).collect();
        }
        let (is_complete, is_periodic) = (known.is_complete, self.is_periodic);
        let occasion = Occasion { is_complete, is_periodic, now: clock::realtime(), mtu: self.mtu };
        let plan = reconcile(&snapshot, &known.topology, &self.parts.private_key, &self.endpoints, occasion);
        let mut edited = 0;
        let mut is_followed = true;
        let mut ready = None;
        let mut programmed = Ok(());
        for step in &plan.steps {
            match step {
                Step::Configure(edits) => {
                    if let Err(error) = client.apply(edits) {
                        return Err(self.program_without(&error, true).unwrap_or_else(identity));
                    }
                    is_followed &= belief::follow(&mut snapshot, edits);
                    edited += edits.len();
                }
                // Made with the routes and before them, but what fails of it does not keep these from being made.
                Step::Link(link) => ready = Some(link.clone()),
                Step::Route(change) => match self.program(&known.topology, ready.take(), change) {
                    // Whatever else is missing, and for however long: who is gone is listened to no more.
                    Err(error) if self.parts.healer.report().is_routed => programmed = Err(error),
                    done => done?,
                },
                Step::Greet(edits) => {
                    client.apply(edits).map_err(|error| error.to_string())?;
                    is_followed = false;
                }
                Step::Forget(edits) => {
                    let now = clock::boottime();
                    let due = self.leaving.due(edits, now);
                    if !due.is_empty() {
                        client.apply(&due).map_err(|error| error.to_string())?;
                        is_followed &= belief::follow(&mut snapshot, &due);
                    }
                    self.leaving.done(now);
                    edited += due.len();
                }
            }
        }
        if edited > 0 {
            let peers = known.topology.peers.len();
            tracing::info!(edited, peers, is_complete, "the data plane is in step");
        }
        if !plan.steps.iter().any(|step| matches!(step, Step::Forget(_))) {
            self.leaving = Leaving::default();
        }
        self.endpoints = plan.endpoints;
        programmed?;
        self.believed = listener.filter(|_| is_followed).map(|who| (who, snapshot));
        self.forget_translated();
        Ok(())
    }

    /// Reads what the data plane has.
    fn read(&mut self, client: &DataPlane) -> Result<Snapshot, String> {
        (self.sessions, self.read_due) = (None, None);
        client.ensure().and_then(|_| client.snapshot()).map_err(|error| {
            self.stand_in(client);
            self.without_data_plane(&error)
        })
    }

    /// Has the kernel be the data plane, where that may be anybody and nobody is there. That its interface is there is told by the kernel.
    fn stand_in(&mut self, client: &DataPlane) {
        let settings = self.known.as_ref().map(|known| &known.topology.settings);
        if settings.is_none_or(|settings| settings.backend != Backend::Auto) {
            self.missing = None;
            return;
        }
        let now = clock::boottime();
        if now.saturating_sub(*self.missing.get_or_insert(now)) < STAND_IN_AFTER {
            return;
        }
        match client.stand_in() {
            Ok(true) => tracing::info!("nobody is the data plane: the kernel is, from here on"),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the kernel cannot be the data plane"),
        }
    }

    /// Lets connections begin anew whose packets are led into the tunnel from here on, if their answers would be dropped.
    fn forget_translated(&mut self) {
        let Some(Known { topology, .. }) = &self.known else { return };
        let settings = &topology.settings;
        let is_concerned = settings.mode == Mode::Strict && settings.host_traffic != HostTraffic::Encrypt;
        let entries =
            topology.routes.entries.iter().filter(|entry| is_concerned && entry.kind == Kind::Unicast);
        let now: BTreeSet<_> = entries.map(|entry| entry.prefix).collect();
        let new = now.difference(&self.tunnelled).copied().collect::<BTreeSet<_>>();
        self.tunnelled = now;
        if new.is_empty() {
            return;
        }
        let own = self.own.links.iter().map(|(addr, _)| *addr);
        self.forgetter.forget(new, own.filter(|addr| !topology.addresses.contains(addr)).collect());
    }

    /// Does what the objects say all the same, and closes what would lead into nothing.
    fn without_data_plane(&mut self, error: &Failed) -> String {
        let was_there = std::mem::replace(&mut self.is_there, error.is_of_somebody());
        if self.is_answered == Some(false) && self.is_there == was_there {
            return error.to_string();
        }
        let told = self.program_without(error, self.is_there);
        self.is_answered = told.is_ok().then_some(false);
        told.unwrap_or_else(identity)
    }

    /// Makes routes and firewall what they should be without the data plane's doing, and returns why it does nothing; as an error, together with
    /// why they are not.
    fn program_without(&self, error: &Failed, is_there: bool) -> Result<String, String> {
        let Some(Known { topology, is_complete, .. }) = &self.known else { return Ok(error.to_string()) };
        let change = without_data_plane(topology, *is_complete, is_there);
        let done = change.map_or(Ok(()), |change| self.program(topology, None, &change));
        done.map(|()| error.to_string()).map_err(|reason| format!("{error}; and the routes: {reason}"))
    }

    /// Makes routes and firewall what they should be, and has them kept so.
    fn program(&self, topology: &Topology, link: Option<Link>, change: &RouteChange) -> Result<(), String> {
        let (routes, is_whole) = match change {
            RouteChange::Whole(routes) => (routes.clone(), true),
            RouteChange::Addition(extension) => {
                let router = Router::open().map_err(|error| error.to_string());
                let there = router?.there(&extension.routes).map_err(|error| error.to_string())?;
                (extension.onto(&there), false)
            }
        };
        // Behind another network the translation is that one's, in main mode it is ours whatever is encrypted.
        let is_main = self.parts.cni.as_ref().is_some_and(|cni| cni.mode == cni::Mode::Main);
        let desired = heal::Desired::of(topology, routes, is_whole, is_main);
        let done = self.parts.healer.set(heal::Desired { link, ..desired });
        done.map(drop).map_err(|error| error.to_string())
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
