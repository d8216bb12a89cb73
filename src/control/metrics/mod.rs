//! What the agent lets itself be watched by: metrics for Prometheus, and whether it lives and is ready.
//!
//! ```text
//! loop ─→ Progress (what it should do, how the last look went) ─┐
//! data plane, firewall ─→ asked when somebody wants to know ────┴→ text ─→ server
//! ```
//!
//! - [`exposition`]: the text format. Pure.
//! - [`server`]: a small HTTP server.
//!
//! The loop only leaves word of what it did; it never waits for whoever watches. The data plane is asked four times a second at most,
//! however many want to know.

pub mod exposition;
pub mod server;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use self::exposition::{CONTENT_TYPE, Exposition, Histogram, Type};
use self::server::{Answer, Reply};
use super::data_plane::DataPlane;
use super::firewall::{Counters, Guard};
use super::route::PROTOCOL;
use super::session::{self, Session};
use super::topology::{self, Topology};
use crate::config::{PeerSnapshot, Snapshot, Statistics};
use crate::crypto::x25519::PublicKey;
use crate::sys::clock;
use crate::sys::netlink::{Netlink, RouteFilter};

/// How long what was collected is good for.
const FRESH: Duration = Duration::from_millis(250);

/// A look that takes longer than this has come to a stop.
const STUCK: Duration = Duration::from_secs(60);

/// What the loop leaves word of.
#[derive(Debug, Default)]
pub struct Progress {
    /// The data plane; `None` until it is known which one is ours.
    pub client: Option<DataPlane>,
    /// What the node should do.
    pub topology: Option<Arc<Topology>>,
    /// How many allowed IPs all its peers together should have.
    pub prefixes: usize,
    /// How many routes there should be.
    pub routes: usize,
    /// Other nodes: those whose packets are dropped, and those whose packets go in clear.
    pub not_encrypted: (usize, usize),
    /// Whether the node is not what it should be.
    pub is_degraded: bool,
    /// Whether every list was read to its end.
    pub is_complete: bool,
    /// Peers that have metrics of their own, at most.
    pub peers_max: usize,
    /// The moment at which the look began that is under way, by [`clock::boottime`].
    pub began: Option<Duration>,
    /// How the last look went: what failed, if something did.
    pub failure: Option<String>,
    /// How long looks took.
    pub looks: Histogram,
    /// How many of them failed.
    pub failures: u64,
    /// The moment at which the first thing happened that is not yet followed by a look that went well.
    pub happened: Option<Duration>,
    /// How long it took until one was.
    pub latencies: Histogram,
    /// How many Events could not be written.
    pub events_lost: Arc<AtomicU64>,
}

impl Progress {
    /// Takes over what the node should do.
    pub fn know(&mut self, topology: &Arc<Topology>, is_complete: bool, client: DataPlane) {
        let is_dropped = topology.not_encrypted.values().filter(|how| how.is_dropped).count();
        let settings = &topology.settings;
        self.client = Some(client);
        self.topology = Some(Arc::clone(topology));
        self.prefixes = topology.peers.values().map(|peer| peer.allowed_ips.len()).sum();
        self.routes = topology.routes.entries.len() + topology.routes.from_pods.entries.len();
        self.not_encrypted = (is_dropped, topology.not_encrypted.len() - is_dropped);
        self.is_degraded = topology.degraded.is_some();
        self.is_complete = is_complete;
        self.peers_max = if settings.metrics_per_peer { settings.metrics_max_peers as usize } else { 0 };
    }

    /// The peers that there should be.
    fn peers(&self) -> Option<&BTreeMap<PublicKey, topology::Peer>> {
        self.topology.as_ref().map(|topology| &topology.peers)
    }

    /// Notes that something has happened that may call for steps.
    pub fn happen(&mut self, now: Duration) {
        self.happened.get_or_insert(now);
    }

    /// Notes that a look begins.
    pub fn begin(&mut self, now: Duration) {
        self.began = Some(now);
    }

    /// Notes how it went.
    pub fn end(&mut self, now: Duration, failure: Option<&String>) {
        if let Some(began) = self.began.take() {
            self.looks.observe(now.saturating_sub(began));
        }
        if let Some(happened) = self.happened.take_if(|_| failure.is_none()) {
            self.latencies.observe(now.saturating_sub(happened));
        }
        self.failures += u64::from(failure.is_some());
        self.failure = failure.cloned();
    }

    /// Tells why the loop does not go on, if it does not.
    fn stuck(&self, now: Duration) -> Option<String> {
        let time = now.saturating_sub(self.began?);
        (time > STUCK).then(|| format!("a look at everything has taken {} s so far", time.as_secs()))
    }

    /// Tells why the node is not yet what it should be, if it is not.
    fn unready(&self) -> Option<String> {
        if !self.is_complete {
            return Some("the objects have not been read".to_owned());
        }
        if self.looks.count() == 0 {
            return Some("nothing has been looked at".to_owned());
        }
        self.failure.clone()
    }
}

/// [`Progress`], as the loop and whoever watches it share it.
pub type Shared = Arc<Mutex<Progress>>;

/// Returns what is shared, whoever panicked while it was held.
pub fn lock(shared: &Shared) -> MutexGuard<'_, Progress> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What others are asked for, at one moment.
#[derive(Debug, Default)]
struct Sample {
    /// Configuration and counters; `None` if the data plane does not answer.
    snapshot: Option<Snapshot>,
    /// The rest, if it is adit's.
    statistics: Option<Statistics>,
    /// What the firewall counted; `None` if the kernel does not tell.
    counters: Option<Counters>,
    /// How many routes of ours there are; `None` likewise.
    routes: Option<usize>,
}

/// Answers who watches.
pub struct Watched {
    progress: Shared,
    collected: Mutex<Collected>,
}

struct Collected {
    guard: Option<Guard>,
    netlink: Netlink,
    text: String,
    /// When the text was made, by [`clock::boottime`].
    at: Option<Duration>,
}

impl Watched {
    /// Returns who answers for `progress`, with the firewall of the calling thread's network namespace.
    ///
    /// # Errors
    /// If no descriptor is left. A kernel without netfilter is no error.
    pub fn new(progress: Shared) -> io::Result<Self> {
        let guard = match Guard::open() {
            Ok(guard) => Some(guard),
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        let collected = Collected { guard, netlink: Netlink::open()?, text: String::new(), at: None };
        Ok(Self { progress, collected: Mutex::new(collected) })
    }

    /// Answers for a path: `/metrics`, which may wait for the data plane, `/healthz` or `/readyz`; `None` for any other.
    pub fn answer(self: &Arc<Self>, path: &str) -> Option<Reply> {
        let check = |wrong| Some(Reply::Now(Answer::of_check(wrong)));
        match path {
            "/metrics" => {
                let this = Arc::clone(self);
                Some(Reply::Later(Box::new(move || Answer {
                    status: 200,
                    content_type: CONTENT_TYPE,
                    body: this.metrics(),
                })))
            }
            "/healthz" => check(lock(&self.progress).stuck(clock::boottime())),
            "/readyz" => check(lock(&self.progress).unready()),
            _ => None,
        }
    }

    fn metrics(&self) -> String {
        let mut collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
        if collected.at.is_none_or(|at| clock::boottime().saturating_sub(at) > FRESH) {
            let client = lock(&self.progress).client.clone();
            let snapshot = client.as_ref().and_then(|client| client.snapshot().ok());
            let statistics = match (&snapshot, &client) {
                // Who did not answer need not be waited for a second time.
                (Some(_), Some(client)) => client.statistics().ok().flatten(),
                (None, _) | (_, None) => None,
            };
            let counters = collected.guard.as_mut().and_then(|guard| guard.counters().ok());
            let ours = RouteFilter { table: None, protocol: Some(PROTOCOL) };
            let routes = collected.netlink.table_routes(&ours).ok().map(|routes| routes.len());
            let sample = Sample { snapshot, statistics, counters, routes };
            collected.text = text(&lock(&self.progress), &sample, clock::realtime());
            collected.at = Some(clock::boottime());
        }
        collected.text.clone()
    }
}

/// Returns everything at the moment `now`, since the Unix epoch.
fn text(progress: &Progress, sample: &Sample, now: Duration) -> String {
    use Type::{Counter, Gauge};
    let mut all = Exposition::default();
    let version = env!("CARGO_PKG_VERSION");
    all.family("adit_build_info", Gauge, "The agent; always 1.").sample(&[("version", version)], 1);
    all.histogram(
        "adit_reconcile_duration_seconds",
        "Time of one look at everything, with the steps that it led to.",
        &progress.looks.durations(),
    );
    all.histogram(
        "adit_programming_duration_seconds",
        "Time from a change of objects, links or data plane that the agent was told of until all was programmed.",
        &progress.latencies.durations(),
    );
    all.family("adit_reconcile_failures_total", Counter, "Looks at everything in which something failed.")
        .sample(&[], progress.failures);
    all.family(
        "adit_events_lost_total",
        Counter,
        "Kubernetes Events of this node that were not written: the API server was away for too long, or there were too many.",
    )
    .sample(&[], progress.events_lost.load(Relaxed));
    all.family("adit_objects_complete", Gauge, "Whether every list of objects was read to its end.")
        .sample(&[], u8::from(progress.is_complete));
    all.family(
        "adit_degraded",
        Gauge,
        "Whether this node is not what it should be; its NodeTunnel says why.",
    )
    .sample(&[], u8::from(progress.is_degraded));
    all.family("adit_desired_peers", Gauge, "Peers that there should be.")
        .sample(&[], progress.peers().map_or(0, BTreeMap::len));
    all.family("adit_desired_prefixes", Gauge, "Allowed IPs that the peers should have, all together.")
        .sample(&[], progress.prefixes);
    all.family("adit_desired_routes", Gauge, "Routes that there should be, those that drop among them.")
        .sample(&[], progress.routes);
    if let Some(routes) = sample.routes {
        all.family("adit_programmed_routes", Gauge, "Routes of the agent that the kernel has.")
            .sample(&[], routes);
    }
    let mut others =
        all.family("adit_not_encrypted_nodes", Gauge, "Nodes that are not talked to through the tunnel.");
    others.sample(&[("traffic", "dropped")], progress.not_encrypted.0);
    others.sample(&[("traffic", "cleartext")], progress.not_encrypted.1);
    all.family("adit_data_plane_up", Gauge, "Whether the data plane answers.")
        .sample(&[], u8::from(sample.snapshot.is_some()));
    if let Some(Counters { cleartext_ingress, cleartext_egress, .. }) = &sample.counters {
        let mut dropped = all.family(
            "adit_cleartext_dropped_packets_total",
            Counter,
            "Packets of pods in clear that the firewall dropped, because they had to be encrypted.",
        );
        dropped.sample(&[("direction", "ingress")], cleartext_ingress.packets);
        dropped.sample(&[("direction", "egress")], cleartext_egress.packets);
    }
    if let Some(Statistics { version, crypto, workers, dropped, handshakes }) = &sample.statistics {
        all.family("adit_data_plane_info", Gauge, "The data plane; always 1.")
            .sample(&[("version", version), ("crypto", crypto)], 1);
        all.family("adit_data_plane_workers", Gauge, "Worker threads of the data plane.")
            .sample(&[], workers);
        let mut drops =
            all.family("adit_dropped_packets_total", Counter, "Packets that the data plane dropped.");
        for (reason, packets) in dropped {
            drops.sample(&[("reason", reason)], packets);
        }
        // A data plane that is older than its agent does not tell.
        if !handshakes.within.is_empty() {
            all.histogram(
                "adit_handshake_duration_seconds",
                "Time from the first initiation that the data plane sent a peer to the confirmed session.",
                handshakes,
            );
        }
    }
    if let Some(snapshot) = &sample.snapshot {
        add_peers(&mut all, progress, &snapshot.peers, now);
    }
    all.text()
}

fn add_peers(all: &mut Exposition, progress: &Progress, peers: &[PeerSnapshot], now: Duration) {
    use Type::{Counter, Gauge};
    let mut states =
        all.family("adit_peers", Gauge, "Peers of the data plane: with a session, without, never heard of.");
    for (state, count) in Session::ALL.iter().zip(session::count(peers, now)) {
        states.sample(&[("state", state.name())], count);
    }
    all.family(
        "adit_programmed_prefixes",
        Gauge,
        "Allowed IPs that the peers of the data plane have, all together.",
    )
    .sample(&[], peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>());
    // In the order of keys, so that it is the same ones every time.
    let mut peers: Vec<_> = peers.iter().collect();
    peers.sort_by_key(|peer| peer.public_key);
    let left_out = peers.len().saturating_sub(progress.peers_max);
    peers.truncate(progress.peers_max);
    all.family("adit_peers_without_series", Gauge, "Peers that have no metrics of their own here.")
        .sample(&[], left_out);
    type Value = fn(&PeerSnapshot) -> u64;
    let families: [(_, _, _, Value); 3] = [
        ("adit_peer_transmit_bytes_total", Counter, "UDP payload bytes sent to the peer.", |it| it.tx_bytes),
        (
            "adit_peer_receive_bytes_total",
            Counter,
            "UDP payload bytes received from the peer and authenticated.",
            |it| it.rx_bytes,
        ),
        (
            "adit_peer_latest_handshake_timestamp_seconds",
            Gauge,
            "Time of the latest handshake in seconds since the Unix epoch; 0 if there was none.",
            |it| it.last_handshake.unwrap_or_default().as_secs(),
        ),
    ];
    for (name, kind, help, value) in families.into_iter().filter(|_| !peers.is_empty()) {
        let mut family = all.family(name, kind, help);
        for peer in &peers {
            let key = BASE64.encode(peer.public_key.as_bytes());
            let node =
                progress.peers().and_then(|peers| peers.get(&peer.public_key)).map_or("", |peer| &peer.node);
            family.sample(&[("node", node), ("public_key", &key)], value(peer));
        }
    }
}

/// Returns every metric that there is, each with a sample.
#[cfg(test)]
pub(crate) fn every_metric() -> String {
    let progress = Progress { peers_max: 1, ..Progress::default() };
    text(&progress, &tests::sample(), Duration::from_secs(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durations;
    use crate::control::objects::Objects;
    use crate::control::session::tests::peer;

    const NOW: Duration = Duration::from_secs(1000);

    pub(super) fn sample() -> Sample {
        let mut peers = vec![peer(2, None, 148), peer(1, Some(Duration::from_millis(999_900)), 7)];
        peers[0].allowed_ips = vec!["10.0.0.0/8".parse().unwrap()];
        let dropped = [("no_peer".to_owned(), 0), ("replayed".to_owned(), 3)].into();
        let statistics = Statistics {
            version: "1".to_owned(),
            crypto: "avx2".to_owned(),
            workers: 2,
            dropped,
            handshakes: Durations {
                within: [(500, 1), (5_000_000, 2)]
                    .map(|(us, count)| (Duration::from_micros(us), count))
                    .into(),
                longer: 1,
                sum: Duration::from_millis(12_500),
            },
        };
        Sample {
            snapshot: Some(Snapshot { peers, ..Snapshot::default() }),
            statistics: Some(statistics),
            counters: Some(Counters::default()),
            routes: Some(3),
        }
    }

    #[track_caller]
    fn expect(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|other| other == *line), "{line} is not in {text}");
        }
    }

    #[test]
    fn everything_has_its_name_and_its_labels() {
        let mut progress =
            Progress { peers_max: 500, prefixes: 5, routes: 4, not_encrypted: (1, 2), ..Progress::default() };
        progress.events_lost.store(7, Relaxed);
        let key = PublicKey::new([1; 32]);
        let own = topology::Own::new("node2", PublicKey::new([2; 32]));
        let mut topology = topology::topology(&Objects::default(), &own);
        let node1 =
            topology::Peer { node: "node1".to_owned(), endpoints: Vec::new(), allowed_ips: Vec::new() };
        topology.peers.insert(key, node1);
        progress.topology = Some(Arc::new(topology));
        progress.begin(Duration::from_secs(5));
        progress.end(Duration::from_secs(7), Some(&"no".to_owned()));
        let text = text(&progress, &sample(), NOW);
        expect(
            &text,
            &[
                concat!("adit_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "adit_reconcile_duration_seconds_bucket{le=\"1\"} 0",
                "adit_reconcile_duration_seconds_bucket{le=\"2.5\"} 1",
                "adit_reconcile_failures_total 1",
                "adit_events_lost_total 7",
                "adit_objects_complete 0",
                "adit_degraded 0",
                "adit_desired_peers 1",
                "adit_desired_prefixes 5",
                "adit_programmed_prefixes 1",
                "adit_desired_routes 4",
                "adit_programmed_routes 3",
                "adit_programming_duration_seconds_count 0",
                "adit_not_encrypted_nodes{traffic=\"dropped\"} 1",
                "adit_not_encrypted_nodes{traffic=\"cleartext\"} 2",
                "adit_data_plane_up 1",
                "adit_data_plane_info{version=\"1\",crypto=\"avx2\"} 1",
                "adit_data_plane_workers 2",
                "adit_cleartext_dropped_packets_total{direction=\"egress\"} 0",
                "adit_dropped_packets_total{reason=\"no_peer\"} 0",
                "adit_dropped_packets_total{reason=\"replayed\"} 3",
                "adit_handshake_duration_seconds_bucket{le=\"0.0005\"} 1",
                "adit_handshake_duration_seconds_bucket{le=\"5\"} 3",
                "adit_handshake_duration_seconds_bucket{le=\"+Inf\"} 4",
                "adit_handshake_duration_seconds_sum 12.5",
                "adit_handshake_duration_seconds_count 4",
                "adit_peers{state=\"up\"} 1",
                "adit_peers{state=\"idle\"} 0",
                "adit_peers{state=\"down\"} 1",
                "adit_peers_without_series 0",
                "adit_peer_transmit_bytes_total{node=\"node1\",public_key=\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"} 7",
                "adit_peer_latest_handshake_timestamp_seconds{node=\"node1\",public_key=\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"} 999",
                "adit_peer_latest_handshake_timestamp_seconds{node=\"\",public_key=\"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"} 0",
            ],
        );
    }

    #[test]
    fn what_happens_is_programmed_with_the_next_look_that_goes_well() {
        let mut progress = Progress::default();
        let look = |progress: &mut Progress, second: u64, failure: Option<&str>| {
            let now = Duration::from_secs(second);
            progress.begin(now);
            progress.end(now, failure.map(str::to_owned).as_ref());
            (progress.latencies.count(), progress.latencies.durations().sum.as_secs())
        };
        assert_eq!(look(&mut progress, 1, None), (0, 0), "nothing had happened");
        progress.happen(Duration::from_secs(10));
        assert_eq!(look(&mut progress, 11, Some("no")), (0, 0));
        progress.happen(Duration::from_secs(12));
        assert_eq!(look(&mut progress, 15, None), (1, 5), "since the first");
        assert_eq!(look(&mut progress, 20, None), (1, 5));
    }

    #[test]
    fn no_more_peers_than_wanted_have_series() {
        let series = |peers_max| {
            let text = text(&Progress { peers_max, ..Progress::default() }, &sample(), NOW);
            text.lines().filter(|line| line.starts_with("adit_peer_")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(series(2).len(), 6);
        let one = series(1);
        assert!(one.len() == 3 && one.iter().all(|line| line.contains("\"AQEB")), "{one:?}");
        assert_eq!(series(0).len(), 0);
    }

    #[test]
    fn without_a_data_plane_there_is_nothing_of_its() {
        let text = text(&Progress::default(), &Sample::default(), NOW);
        expect(&text, &["adit_data_plane_up 0"]);
        for name in ["adit_peers", "adit_dropped", "adit_cleartext", "adit_data_plane_info", "adit_handshake"]
        {
            assert!(!text.contains(name), "{text}");
        }
    }

    #[test]
    fn the_loop_is_ready_after_a_look_that_went_well_and_alive_unless_it_is_stuck() {
        let mut progress = Progress::default();
        assert_eq!(progress.unready().unwrap(), "the objects have not been read");
        progress.is_complete = true;
        assert_eq!(progress.unready().unwrap(), "nothing has been looked at");
        progress.begin(Duration::from_secs(100));
        assert_eq!(progress.stuck(Duration::from_secs(160)), None);
        assert!(progress.stuck(Duration::from_secs(161)).is_some());
        progress.end(Duration::from_secs(161), Some(&"no way".to_owned()));
        assert_eq!(
            (progress.stuck(Duration::from_secs(1000)), progress.unready()),
            (None, Some("no way".to_owned()))
        );
        progress.begin(Duration::from_secs(200));
        progress.end(Duration::from_secs(200), None);
        assert_eq!(progress.unready(), None);
    }
}
