//! The firewall: one nftables table of our own, `inet adit`.
//!
//! ```text
//! input        udp to the WireGuard port: count, accept
//!              Strict, where pods may reach this host in clear: from a protected address to one of this host: accept
//!              Strict: from a protected address, not by the tunnel: count, drop
//! forward      Strict: the same
//!              TCP that opens through the tunnel: count, clamp the MSS to the MTU of the routes
//! postrouting  Strict: to a protected address, not by the tunnel, not the tunnel's own datagram: count, drop
//!              Strict, where pods' traffic to nodes is encrypted: from a pod of this node to a node, not by the tunnel: count, drop
//! translate    where adit makes the pods' network: from a pod of this node to no address of the cluster, not by the tunnel: masquerade
//! ```
//!
//! Protected is an address that the plan's routes lead into the tunnel or nowhere; until every list is read these are those that were there
//! before too ([`super::extend`]), so that a node of which nothing is known is believed neither in clear, nor kept out where it is led past
//! the tunnel. The table repeats what the routes say, for the moments when these are gone: before they are made, and after somebody has removed them or the rule. Incoming packets are
//! dropped behind the routing decision rather than before, so that those for this host's WireGuard port can be told from those that are
//! only passed on.
//!
//! A packet must be accepted by every table that looks at it. So this table's accept counts the tunnel's packets but cannot save them from
//! a chain of another one that drops by default. [`Guard::obstacles`] names such chains. Where they accept packets of established connections,
//! as most do, a tunnel works all the same once its own side has sent first. Chains of the older iptables interface are not seen.
//!
//! Nothing of others' is changed, but for the chains that are named: at the head of each is one rule that accepts what comes to the WireGuard
//! port, with a comment that says whose it is. What bears that comment and is not wanted is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::failed::Failed;
use super::plan::{Entry, FromPods, Kind, Masquerade, Routes};
use super::ranges;
use crate::config::Prefix;
use crate::sys::clock::boottime;
use crate::sys::netlink::nftables::{
    Batch, Chain, Count, Expression, Hook, Marked, Nftables, Range, Refused, Side,
};

/// The table's name; its family is `inet`.
pub const TABLE: &str = "adit";

/// `mangle`: before the chains that translate addresses of packets that leave, and before most that filter.
const PRIORITY: i32 = -150;

/// `srcnat`: where sources are translated, behind all that looks at them.
const NAT_PRIORITY: i32 = 100;

/// The sets of protected addresses, and whether they are of IPv6.
const PROTECTED: [(&str, bool); 2] = [("protected4", false), ("protected6", true)];

/// The sets of this node's pods and of the nodes that these reach through the tunnel alone, likewise.
const PODS: [(&str, &str, bool); 2] = [("pods4", "nodes4", false), ("pods6", "nodes6", true)];

/// The sets of this host's addresses that pods may reach in clear, likewise.
const HOSTS: [(&str, bool); 2] = [("hosts4", false), ("hosts6", true)];

/// The sets of this node's pods and of the cluster's addresses, likewise.
const MASQUERADE: [(&str, &str, bool); 2] = [("local4", "cluster4", false), ("local6", "cluster6", true)];

const WIREGUARD: &str = "wireguard";
const INGRESS: &str = "cleartext_ingress";
const EGRESS: &str = "cleartext_egress";
const OPENED: &str = "tcp_opened";

/// How long after the kernel has refused to clamp or to translate it is asked again: the first time, and at most.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_MAX: Duration = Duration::from_secs(640);

/// How the comment of a rule in another's chain begins; the port follows.
const OPENING: &str = "adit: the tunnel's port ";

/// Sets by their names, with their families and ranges.
type Sets = Vec<(&'static str, bool, Vec<Range>)>;

/// What the firewall should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// The tunnel's interface.
    pub interface: String,
    /// The mark of the tunnel's own UDP datagrams.
    pub fwmark: u32,
    /// The UDP port that the tunnel listens on.
    pub listen_port: u16,
    /// Whether what should be encrypted and is not is dropped.
    pub is_strict: bool,
    /// What is protected: the addresses whose strongest entry is unicast or blackhole.
    pub entries: Vec<Entry>,
    /// What is protected from this node's pods alone.
    pub from_pods: FromPods,
    /// The addresses of this host that pods of other nodes may reach in clear.
    pub hosts: Vec<IpAddr>,
    /// What leaves the cluster under this node's address.
    pub masquerade: Masquerade,
    /// Others' chains in which the tunnel's port is opened.
    pub open_in: Vec<Chain>,
}

impl Firewall {
    /// Returns the firewall that protects what `routes` lead into the tunnel, or nowhere, and this host from all of it.
    pub fn of(routes: &Routes, listen_port: u16, is_strict: bool) -> Self {
        Self {
            interface: routes.interface.clone(),
            fwmark: routes.fwmark,
            listen_port,
            is_strict,
            entries: routes.entries.clone(),
            from_pods: routes.from_pods.clone(),
            hosts: Vec::new(),
            masquerade: Masquerade::default(),
            open_in: Vec::new(),
        }
    }

    /// Returns the sets with their families and ranges. Under a blackhole for the whole cluster those of the protected addresses stay the
    /// same when nodes come and go.
    pub(super) fn sets(&self) -> Sets {
        let mut sets = Sets::new();
        if self.masquerades() {
            let local = all_of(self.masquerade.sources.iter().copied());
            let cluster = all_of(self.masquerade.inside.iter().copied());
            for (from, to, is_ipv6) in MASQUERADE {
                sets.push((from, is_ipv6, ranges::protected(&local, is_ipv6)));
                sets.push((to, is_ipv6, ranges::protected(&cluster, is_ipv6)));
            }
        }
        if !self.is_strict {
            return sets;
        }
        let protected = |(set, is_ipv6)| (set, is_ipv6, ranges::protected(&self.entries, is_ipv6));
        sets.extend(PROTECTED.map(protected));
        if self.guards_pods() {
            let pods = all_of(self.from_pods.sources.iter().copied());
            for (from, to, is_ipv6) in PODS {
                sets.push((from, is_ipv6, ranges::protected(&pods, is_ipv6)));
                sets.push((to, is_ipv6, ranges::protected(&self.from_pods.entries, is_ipv6)));
            }
        }
        if !self.hosts.is_empty() {
            let hosts = all_of(self.hosts.iter().map(|addr| Prefix::host(*addr)));
            sets.extend(HOSTS.map(|(set, is_ipv6)| (set, is_ipv6, ranges::protected(&hosts, is_ipv6))));
        }
        sets
    }

    fn guards_pods(&self) -> bool {
        self.is_strict && !self.from_pods.entries.is_empty()
    }

    fn masquerades(&self) -> bool {
        !self.masquerade.sources.is_empty()
    }

    /// Returns the table without the sets' elements: what can only be changed by making it anew.
    fn frame(&self) -> Frame {
        Frame {
            interface: self.interface.clone(),
            fwmark: self.fwmark,
            listen_port: self.listen_port,
            is_strict: self.is_strict,
            guards_pods: self.guards_pods(),
            has_open_hosts: self.is_strict && !self.hosts.is_empty(),
            masquerades: self.masquerades(),
        }
    }
}

/// Returns entries of which all are protected.
fn all_of(prefixes: impl Iterator<Item = Prefix>) -> Vec<Entry> {
    prefixes.map(|prefix| Entry { prefix, kind: Kind::Unicast }).collect()
}

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    interface: String,
    fwmark: u32,
    listen_port: u16,
    is_strict: bool,
    guards_pods: bool,
    has_open_hosts: bool,
    masquerades: bool,
}

/// What a kernel may not be able to do, or not for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Able {
    clamps: bool,
    translates: bool,
}

impl Able {
    /// Returns what is tried, the most that is wanted first: a kernel that cannot clamp or translate can drop.
    fn choices(frame: &Frame) -> impl Iterator<Item = Self> + use<> {
        let wants = frame.masquerades;
        let choices = [(true, wants), (false, wants), (true, false), (false, false)].into_iter();
        // Without anything to translate the last two are the first two.
        choices.take(if wants { 4 } else { 2 }).map(|(clamps, translates)| Self { clamps, translates })
    }
}

/// When what was left out is tried again.
#[derive(Clone, Copy)]
struct Again {
    due: Duration,
    pause: Duration,
}

impl Again {
    fn after(pause: Duration) -> Self {
        Self { due: boottime() + pause, pause }
    }
}

impl Frame {
    /// Appends the chains and rules.
    fn add_to(&self, batch: &mut Batch<'_>, able: Able) {
        use Expression::{
            Accept, ClampMss, Count, Drop, In, Interface, Masquerade, OtherInterface, OtherMark, TcpOpening,
            UdpTo,
        };
        let tunnel = &self.interface[..];
        let not_from_tunnel = OtherInterface(Side::Source, tunnel);
        let protected = |side| PROTECTED.map(|(set, is_ipv6)| In { side, is_ipv6, set });

        batch.add_chain("input", Hook::Input, PRIORITY);
        let own = [not_from_tunnel, UdpTo(self.listen_port), Count(WIREGUARD), Accept];
        batch.add_rule("input", "the tunnel's datagrams", &own);
        batch.add_chain("forward", Hook::Forward, PRIORITY);
        batch.add_chain("postrouting", Hook::Postrouting, PRIORITY);
        if self.has_open_hosts {
            for (from, (set, is_ipv6)) in protected(Side::Source).into_iter().zip(HOSTS) {
                let to = In { side: Side::Destination, is_ipv6, set };
                batch.add_rule("input", "cleartext to this host", &[not_from_tunnel, from, to, Accept]);
            }
        }
        if self.is_strict {
            for from in protected(Side::Source) {
                for chain in ["input", "forward"] {
                    let rule = [not_from_tunnel, from, Count(INGRESS), Drop];
                    batch.add_rule(chain, "cleartext from another node", &rule);
                }
            }
            for to in protected(Side::Destination) {
                let not_to_tunnel = OtherInterface(Side::Destination, tunnel);
                let rule = [not_to_tunnel, to, OtherMark(self.fwmark), Count(EGRESS), Drop];
                batch.add_rule("postrouting", "cleartext to another node", &rule);
            }
        }
        for (pods, nodes, is_ipv6) in PODS.into_iter().filter(|_| self.guards_pods) {
            let from = In { side: Side::Source, is_ipv6, set: pods };
            let to = In { side: Side::Destination, is_ipv6, set: nodes };
            let rule = [OtherInterface(Side::Destination, tunnel), from, to, Count(EGRESS), Drop];
            batch.add_rule("postrouting", "cleartext from a pod to another node", &rule);
        }
        for side in [Side::Source, Side::Destination].into_iter().filter(|_| able.clamps) {
            let rule = [Interface(side, tunnel), TcpOpening, Count(OPENED), ClampMss];
            batch.add_rule("forward", "MSS", &rule);
        }
        if self.masquerades && able.translates {
            batch.add_nat_chain("translate", Hook::Postrouting, NAT_PRIORITY);
            for (local, cluster, is_ipv6) in MASQUERADE {
                let from = In { side: Side::Source, is_ipv6, set: local };
                let to = In { side: Side::Destination, is_ipv6, set: cluster };
                let not_to_tunnel = OtherInterface(Side::Destination, tunnel);
                batch.add_rule("translate", "to a pod", &[from, to, Accept]);
                batch.add_rule("translate", "out of the cluster", &[not_to_tunnel, from, Masquerade]);
            }
        }
    }
}

/// What the table's counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams to the WireGuard port.
    pub wireguard: Count,
    /// Packets from a protected address that came in clear and were dropped.
    pub cleartext_ingress: Count,
    /// Packets to a protected address that would have left in clear and were dropped.
    pub cleartext_egress: Count,
    /// Packets that open TCP connections through the tunnel.
    pub tcp_opened: Count,
}

/// The table as it was made.
struct Made {
    frame: Frame,
    fingerprint: Vec<Vec<u8>>,
    able: Able,
    again: Again,
}

/// Programs the table in the network namespace that it was opened in.
///
/// It remembers what the table holds: whoever keeps one for longer hears of what others change, and says so by [`Self::forget`].
pub struct Guard {
    nftables: Nftables,
    made: Option<Made>,
    /// The table's sets as of the last look and what was done since; `None` if the kernel is to be asked.
    known: Option<Sets>,
    /// Others' chains in which there may be a rule of ours; `None` if an earlier process may have left some.
    opened: Option<BTreeSet<Chain>>,
    /// Why chains could not be opened, as it was said.
    said: BTreeMap<Chain, String>,
}

impl Guard {
    /// Opens a socket to the kernel.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel has no netfilter; if no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let nftables = Nftables::open()?;
        Ok(Self { nftables, made: None, known: None, opened: None, said: BTreeMap::new() })
    }

    /// Has the kernel asked the next time for what the table holds: somebody else may have changed it.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// Returns the number that the kernel calls it by in notices of what it has changed.
    pub fn port(&self) -> u32 {
        self.nftables.port()
    }

    /// Looks at what the kernel has and makes it what it should be; returns whether it was something else. Addresses are added and removed one
    /// by one; anything else, and a table that somebody has changed or that an earlier process has left, is replaced in one moment. The counters
    /// go on. What clamps or translates is left out where the kernel refuses it, and tried again after a while. Others' chains come last; one
    /// that cannot be opened is told of in the log, and nothing else waits for it.
    ///
    /// # Errors
    /// Names what the kernel refuses. Nothing has changed then.
    pub fn sync(&mut self, desired: &Firewall) -> Result<bool, Failed> {
        let has_changed = self.sync_table(desired)?;
        Ok(self.open_port(&desired.open_in, &desired.interface, desired.listen_port)? || has_changed)
    }

    fn sync_table(&mut self, desired: &Firewall) -> Result<bool, Failed> {
        let (frame, sets) = (desired.frame(), desired.sets());
        // If anything fails from here on, the kernel is asked the next time.
        let known = self.known.take();
        let is_intact = match &self.made {
            Some(made) if made.frame == frame && known.is_none() => {
                self.nftables.fingerprint(TABLE).map_err(reading)?.as_ref() == Some(&made.fingerprint)
            }
            Some(made) => made.frame == frame,
            None => false,
        };
        if !is_intact {
            self.replace(desired, frame)?;
            self.known = Some(sets);
            return Ok(true);
        }
        if self.complete(desired, frame)? {
            self.known = Some(sets);
            return Ok(false);
        }
        let mut batch = Batch::new(TABLE);
        for (at, (set, _, wanted)) in sets.iter().enumerate() {
            // Under one frame the sets are the same.
            let found = match &known {
                Some(known) => Ok(known[at].2.clone()),
                None => self.nftables.ranges(TABLE, set),
            };
            let found = found.map_err(|error| Failed::new(format!("reading set {set}"), error))?;
            let only_in = |one: &[Range], other: &[Range]| -> Vec<Range> {
                one.iter().filter(|range| other.binary_search(range).is_err()).copied().collect()
            };
            batch.remove_ranges(set, &only_in(&found, wanted));
            batch.add_ranges(set, &only_in(wanted, &found));
        }
        self.nftables.commit(&batch)?;
        self.known = Some(sets);
        Ok(!batch.is_empty())
    }

    fn replace(&mut self, desired: &Firewall, frame: Frame) -> Result<(), Failed> {
        self.made = None;
        let (able, mut refusals) = self.make(desired, &frame, Able::choices(&frame))?;
        let Some(able) = able else {
            return Err(refusals.pop().expect("what was not made was refused").into());
        };
        if !able.clamps {
            let refused = refusals.first().map(tracing::field::display);
            tracing::warn!(refused, "pods' TCP is not told of the tunnel's MTU");
        }
        if frame.masquerades && !able.translates {
            let refused = refusals.get(1).map(tracing::field::display);
            tracing::error!(refused, "pods do not reach what is outside of the cluster");
        }
        self.note(frame, able, AGAIN)
    }

    /// Puts the table in the place of the one that is left without some of what belongs to it, if the kernel takes more by now, and tells
    /// whether it did.
    fn complete(&mut self, desired: &Firewall, frame: Frame) -> Result<bool, Failed> {
        let Some(Made { able, again, .. }) = &mut self.made else { return Ok(false) };
        if Able::choices(&frame).next() == Some(*able) || boottime() < again.due {
            return Ok(false);
        }
        *again = Again::after((again.pause * 2).min(AGAIN_MAX));
        let (before, pause) = (*able, again.pause);
        let better = Able::choices(&frame).take_while(|able| *able != before);
        let (Some(able), _) = self.make(desired, &frame, better)? else { return Ok(false) };
        if able.clamps && !before.clamps {
            tracing::info!("pods' TCP is told of the tunnel's MTU");
        }
        if able.translates && !before.translates {
            tracing::info!("pods reach what is outside of the cluster");
        }
        self.note(frame, able, pause)?;
        Ok(true)
    }

    /// Replaces the table by one with the most that the kernel takes of these; returns which that is, and what was refused of those before.
    fn make(
        &mut self,
        desired: &Firewall,
        frame: &Frame,
        choices: impl Iterator<Item = Able>,
    ) -> Result<(Option<Able>, Vec<Refused>), Failed> {
        let counts = self.nftables.counters(TABLE).map_err(reading)?;
        let mut refusals = Vec::new();
        for able in choices {
            let mut batch = Batch::new(TABLE);
            // What is not there cannot be removed, so it is made first.
            batch.add_table();
            batch.remove_table();
            batch.add_table();
            for counter in [WIREGUARD, INGRESS, EGRESS, OPENED] {
                batch.add_counter(counter, counts.get(counter).copied().unwrap_or_default());
            }
            for (set, is_ipv6, ranges) in desired.sets() {
                batch.add_set(set, is_ipv6);
                batch.add_ranges(set, &ranges);
            }
            frame.add_to(&mut batch, able);
            match self.nftables.commit(&batch) {
                Ok(()) => return Ok((Some(able), refusals)),
                Err(refused) => refusals.push(refused),
            }
        }
        Ok((None, refusals))
    }

    /// Notes what was made, as the kernel tells of it.
    fn note(&mut self, frame: Frame, able: Able, pause: Duration) -> Result<(), Failed> {
        self.made = None;
        let fingerprint = self.nftables.fingerprint(TABLE).map_err(reading)?;
        let again = Again::after(pause);
        self.made = fingerprint.map(|fingerprint| Made { frame, fingerprint, able, again });
        Ok(())
    }

    /// Has a rule in each of these chains that accepts what comes to the port by another interface than the tunnel's, and in no other; tells
    /// whether anything was otherwise.
    fn open_port(&mut self, chains: &[Chain], tunnel: &str, port: u16) -> Result<bool, Failed> {
        let found = self.openings(chains).map_err(|error| Failed::new("listing rules", error))?;
        let comment = format!("{OPENING}{port}");
        let (mut open, mut has_changed) = (BTreeSet::new(), false);
        for Marked { chain, handle, comment: other } in found {
            if other == comment && chains.contains(&chain) && open.insert(chain.clone()) {
                continue;
            }
            let mut batch = Batch::of(chain.family, &chain.table);
            batch.remove_rule(&chain.name, handle);
            self.nftables.commit(&batch)?;
            has_changed = true;
        }
        let accept =
            [Expression::OtherInterface(Side::Source, tunnel), Expression::UdpTo(port), Expression::Accept];
        for chain in chains {
            if !open.contains(chain) {
                let mut batch = Batch::of(chain.family, &chain.table);
                batch.insert_rule(&chain.name, &comment, &accept);
                if let Err(refused) = self.nftables.commit(&batch) {
                    self.say(chain, &refused);
                    continue;
                }
                open.insert(chain.clone());
                has_changed = true;
            }
            self.said.remove(chain);
        }
        self.opened = Some(open);
        Ok(has_changed)
    }

    /// Returns the rules of ours in others' chains: in all at first, then in those where one may be or is to be.
    fn openings(&mut self, chains: &[Chain]) -> io::Result<Vec<Marked>> {
        let found = match &self.opened {
            None => self.nftables.marked(OPENING, None),
            Some(opened) => {
                let known: BTreeSet<_> = opened.iter().chain(chains).collect();
                let listed = known.into_iter().map(|chain| self.nftables.marked(OPENING, Some(chain)));
                listed.collect::<io::Result<Vec<_>>>().map(|all| all.concat())
            }
        };
        match found {
            // Without nftables there are none.
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            found => found,
        }
    }

    /// Says that a chain cannot be opened, once for each reason.
    fn say(&mut self, chain: &Chain, refused: &Refused) {
        let reason = refused.to_string();
        if self.said.get(chain) != Some(&reason) {
            tracing::warn!(%chain, reason, "the tunnel's port cannot be opened in a chain");
            self.said.insert(chain.clone(), reason);
        }
    }

    /// Removes the table, if it is there, and what is ours in others' chains.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cleanup(&mut self) -> Result<(), Failed> {
        (self.made, self.known) = (None, None);
        self.open_port(&[], "", 0)?;
        if !self.has_table()? {
            return Ok(());
        }
        let mut batch = Batch::new(TABLE);
        batch.add_table();
        batch.remove_table();
        self.nftables.commit(&batch).map_err(Refused::into)
    }

    /// Tells whether the table is there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn has_table(&mut self) -> Result<bool, Failed> {
        match self.nftables.fingerprint(TABLE) {
            Ok(found) => Ok(found.is_some()),
            // Without nftables there is no table.
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(reading(error)),
        }
    }

    /// Returns what the counters say; zeros if there is no table.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn counters(&mut self) -> Result<Counters, Failed> {
        let counts = self.nftables.counters(TABLE);
        let counts = counts.map_err(|error| Failed::new("reading the counters of table inet adit", error))?;
        let count = |name| counts.get(name).copied().unwrap_or_default();
        Ok(Counters {
            wireguard: count(WIREGUARD),
            cleartext_ingress: count(INGRESS),
            cleartext_egress: count(EGRESS),
            tcp_opened: count(OPENED),
        })
    }

    /// Returns others' chains that drop or refuse in the end what is for this host: the tunnel's datagrams too, unless a rule there accepts them,
    /// as ours for this port does where it is.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn obstacles(&mut self, port: u16) -> Result<Vec<Chain>, Failed> {
        let listing = |error| Failed::new("listing chains", error);
        let mut chains = self.nftables.dropping_input_chains().map_err(listing)?;
        let comment = format!("{OPENING}{port}");
        let mut failure = Ok(());
        chains.retain(|chain| match self.nftables.marked(OPENING, Some(chain)) {
            Ok(rules) => rules.iter().all(|rule| rule.comment != comment),
            Err(error) => {
                failure = Err(listing(error));
                true
            }
        });
        failure.map(|()| chains)
    }
}

fn reading(error: io::Error) -> Failed {
    Failed::new("reading table inet adit", error)
}

/// Tells whether the kernel has no nftables.
fn is_missing(error: &io::Error) -> bool {
    [Some(libc::EOPNOTSUPP), Some(libc::EINVAL), Some(libc::EPROTONOSUPPORT)].contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{netns, with_faults};

    /// Runs a test in a network namespace of its own.
    fn in_a_namespace(test: impl FnOnce(&mut Guard) -> io::Result<()> + Send) {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut guard = Guard::open()?;
            if guard.nftables.fingerprint(TABLE).is_err() {
                eprintln!("skipped: nftables missing in this kernel");
                return Ok(());
            }
            test(&mut guard)
        })
        .unwrap();
    }

    #[test]
    fn a_kernel_that_cannot_clamp_the_mss_drops_all_the_same() {
        in_a_namespace(|guard| {
            let prefix = Prefix::new([10, 0, 0, 0].into(), 16).unwrap();
            let desired = Firewall {
                interface: "adit0".to_owned(),
                fwmark: 1,
                listen_port: 51820,
                is_strict: true,
                entries: vec![Entry { prefix, kind: Kind::Blackhole }],
                from_pods: FromPods::default(),
                hosts: Vec::new(),
                masquerade: Masquerade::default(),
                open_in: Vec::new(),
            };
            // Table, three chains, a rule for the tunnel and six that drop.
            let dropping = 1 + 3 + 1 + 6;
            let (synced, _) = with_faults("TcpMss=95", || guard.sync(&desired).unwrap());
            assert!(synced);
            let made = guard.nftables.fingerprint(TABLE)?.unwrap();
            assert_eq!(made.len(), dropping);
            assert!(!guard.sync(&desired).unwrap());
            assert_eq!(guard.nftables.fingerprint(TABLE)?, Some(made.clone()), "it is not tried each time");
            let due = |guard: &mut Guard| guard.made.as_mut().unwrap().again.due = Duration::ZERO;
            due(guard);
            let (synced, _) = with_faults("TcpMss=95", || guard.sync(&desired).unwrap());
            assert!(!synced);
            assert_eq!(guard.nftables.fingerprint(TABLE)?, Some(made), "what is there stays");
            let Again { due: next, pause } = guard.made.as_ref().unwrap().again;
            assert!(pause == 2 * AGAIN && next > boottime() + AGAIN);
            // The kernel has what it takes again, and nobody has changed anything.
            due(guard);
            assert!(!guard.sync(&desired).unwrap());
            let whole = guard.nftables.fingerprint(TABLE)?.unwrap();
            assert_eq!(whole.len(), dropping + 2);
            due(guard);
            assert!(!guard.sync(&desired).unwrap());
            assert_eq!(guard.nftables.fingerprint(TABLE)?, Some(whole), "nothing is left to be tried");
            guard.cleanup().unwrap();
            guard.cleanup().unwrap();
            assert_eq!(guard.nftables.fingerprint(TABLE)?, None);
            assert_eq!(guard.counters().unwrap(), Counters::default());
            Ok(())
        });
    }

    #[test]
    fn a_table_that_translates_is_left_alone_until_it_is_to_translate_something_else() {
        in_a_namespace(|guard| {
            let prefix = |second| Prefix::new([10, second, 0, 0].into(), 16).unwrap();
            let routes = Routes { interface: "adit0".to_owned(), fwmark: 1, ..Routes::default() };
            let mut desired = Firewall::of(&routes, 51820, false);
            desired.masquerade = Masquerade { sources: vec![prefix(1)], inside: vec![prefix(1), prefix(2)] };
            // Table, four chains, a rule for the tunnel, two that clamp and four that translate.
            assert!(guard.sync(&desired).unwrap());
            let made = guard.nftables.fingerprint(TABLE)?.unwrap();
            assert_eq!(made.len(), 1 + 4 + 1 + 2 + 4);
            assert!(!guard.sync(&desired).unwrap());
            // A node comes: the table stays, with one address more.
            desired.masquerade.inside.push(prefix(3));
            assert!(guard.sync(&desired).unwrap());
            assert_eq!(guard.nftables.fingerprint(TABLE)?.unwrap(), made);
            let cluster = guard.nftables.ranges(TABLE, "cluster4")?;
            assert_eq!(cluster, [([10, 1, 0, 0].into(), [10, 3, 255, 255].into())]);
            // Somebody else makes the pods' network.
            desired.masquerade = Masquerade::default();
            assert!(guard.sync(&desired).unwrap());
            assert_eq!(guard.nftables.fingerprint(TABLE)?.unwrap().len(), 1 + 3 + 1 + 2);
            Ok(())
        });
    }

    #[test]
    fn what_a_table_holds_is_remembered_until_somebody_may_have_changed_it() {
        in_a_namespace(|guard| {
            let prefix = |second| Prefix::new([10, second, 0, 0].into(), 16).unwrap();
            let routes = Routes { interface: "adit0".to_owned(), fwmark: 1, ..Routes::default() };
            let mut desired = Firewall::of(&routes, 51820, true);
            let mut protect =
                |second| desired.entries.push(Entry { prefix: prefix(second), kind: Kind::Blackhole });
            protect(1);
            protect(3);
            assert!(guard.sync(&desired).unwrap());
            // Of what is remembered only the difference is told to the kernel.
            desired.entries.remove(0);
            desired.entries.push(Entry { prefix: prefix(5), kind: Kind::Blackhole });
            assert!(guard.sync(&desired).unwrap());
            let both = [3, 5].map(|n| ([10, n, 0, 0].into(), [10, n, 255, 255].into()));
            assert_eq!(guard.nftables.ranges(TABLE, PROTECTED[0].0)?, both);

            let mut batch = Batch::new(TABLE);
            batch.remove_ranges(PROTECTED[0].0, &both[..1]);
            Nftables::open()?.commit(&batch).unwrap();
            assert!(!guard.sync(&desired).unwrap(), "nobody has said so");
            guard.forget();
            assert!(guard.sync(&desired).unwrap());
            assert_eq!(guard.nftables.ranges(TABLE, PROTECTED[0].0)?, both);

            // What fails has the kernel asked.
            Nftables::open()?.commit(&batch).unwrap();
            desired.entries.remove(0);
            assert!(guard.sync(&desired).is_err(), "it is not there to be removed");
            assert!(guard.sync(&desired).is_ok());
            assert_eq!(guard.nftables.ranges(TABLE, PROTECTED[0].0)?, both[1..]);
            Ok(())
        });
    }
}
