//! Routes and rules: from what the kernel has to what it should have.
//!
//! Everything here carries [`PROTOCOL`]; what does not is another's and is neither changed nor counted on. Each kind of route has a metric of
//! its own, so that routes of several kinds to one prefix stand beside each other: a prefix changes from one kind to another by one route
//! that comes and one that goes.
//!
//! The steps come in this order ([`diff`]):
//!
//! 1. routes are added, the strongest first: longest prefix, then lowest metric;
//! 2. rules are added: last in;
//! 3. rules are removed: first out;
//! 4. routes are removed, the weakest first.
//!
//! At each moment the strongest route that covers an address is the old one or the new one, never a third: adding from the top, the first
//! new route that covers an address is its final one, and removing from the bottom, nothing lies between the old one and that. So no address
//! falls to a weaker route, or out of the table into the clear, on its way between two that protect it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use super::failed::Failed;
use super::plan::{Entry, FromPods, Kind, Routes};
use crate::config::{Prefix, rank};
use crate::sys::netlink::{Netlink, Packets, RouteFilter, RouteKind, Rule, TableRoute};

/// What our routes and rules are marked with (`rtm_protocol`). No program is known to use this number.
pub const PROTOCOL: u8 = 173;

/// Returns the metric of a kind of route: of several to one prefix the lowest is obeyed.
pub(super) fn metric_of(kind: Kind) -> u32 {
    match kind {
        // A node never sends its own pods' packets away.
        Kind::Throw => 1024,
        Kind::Unicast => 2048,
        // It counts where nothing else is left, as when the interface and its routes are gone.
        Kind::Blackhole => 4096,
    }
}

/// What the kernel has that may be ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// All rules by mark, others' too.
    rules: Vec<Rule>,
    /// The routes of all tables that carry [`PROTOCOL`].
    routes: BTreeMap<Key, TableRoute>,
}

impl Actual {
    /// Returns what was listed.
    pub fn new(rules: Vec<Rule>, routes: impl IntoIterator<Item = TableRoute>) -> Self {
        Self { rules, routes: routes.into_iter().map(|route| (key(&route), route)).collect() }
    }

    /// Returns the routes and the pods of this node as a plan would name them, where `wanted` is the next one and `interface` its interface's index.
    ///
    /// A route that leads to another interface is none of the plan's, and a table that no rule leads to may as well be empty.
    fn as_plan(&self, wanted: &Routes, interface: Option<u32>) -> Routes {
        let mut plan = Routes { entries: Vec::new(), from_pods: FromPods::default(), ..wanted.clone() };
        // The numbers of the tables may be others from here on.
        let mut tables = BTreeMap::from([(wanted.table, false), (wanted.pods_table(), true)]);
        for rule in self.rules.iter().filter(|rule| is_ours(rule, wanted)) {
            let is_for_pods = match rule.packets {
                Packets::Unmarked(_) => false,
                Packets::From(addr, len) => {
                    plan.from_pods.sources.extend(Prefix::new(addr, len));
                    true
                }
            };
            tables.insert(rule.table, is_for_pods);
        }
        for route in self.routes.values() {
            let kind = match route.kind {
                RouteKind::Throw => Kind::Throw,
                RouteKind::Unicast { interface: other } if Some(other) == interface => Kind::Unicast,
                RouteKind::Blackhole => Kind::Blackhole,
                RouteKind::Unicast { .. } | RouteKind::Other(_) => continue,
            };
            let (addr, len) = route.destination;
            let entries = match tables.get(&route.table) {
                Some(false) => &mut plan.entries,
                Some(true) => &mut plan.from_pods.entries,
                None => continue,
            };
            entries.extend(Prefix::new(addr, len).map(|prefix| Entry { prefix, kind }));
        }
        plan
    }

    /// Takes in a step that was taken.
    fn follow(&mut self, step: &Step) {
        match step {
            Step::AddRoute(route) | Step::ReplaceRoute(route) => {
                self.routes.insert(key(route), *route);
            }
            Step::RemoveRoute(route) => {
                self.routes.remove(&key(route));
            }
            Step::AddRule(rule) => self.rules.push(*rule),
            Step::RemoveRule(rule) => self.rules.retain(|other| other != rule),
        }
    }
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds a route.
    AddRoute(TableRoute),
    /// Puts a route in the place of ours to that prefix with that metric.
    ReplaceRoute(TableRoute),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    RemoveRule(Rule),
    /// Removes a route.
    RemoveRoute(TableRoute),
}

impl Step {
    fn is_ipv6(&self) -> bool {
        match self {
            Self::AddRoute(route) | Self::ReplaceRoute(route) | Self::RemoveRoute(route) => {
                route.destination.0.is_ipv6()
            }
            Self::AddRule(rule) | Self::RemoveRule(rule) => rule.is_ipv6,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, route) = match self {
            Self::AddRoute(route) => ("adding", route),
            Self::ReplaceRoute(route) => ("replacing", route),
            Self::RemoveRoute(route) => ("removing", route),
            Self::AddRule(rule) => return write_rule(f, "adding", rule),
            Self::RemoveRule(rule) => return write_rule(f, "removing", rule),
        };
        let kind = match route.kind {
            RouteKind::Unicast { .. } => "unicast",
            RouteKind::Throw => "throw",
            RouteKind::Blackhole => "blackhole",
            RouteKind::Other(_) => "other",
        };
        let (addr, len) = route.destination;
        write!(f, "{verb} route {kind} {addr}/{len} metric {} in table {}", route.metric, route.table)
    }
}

fn write_rule(f: &mut fmt::Formatter<'_>, verb: &str, rule: &Rule) -> fmt::Result {
    let family = if rule.is_ipv6 { "IPv6" } else { "IPv4" };
    let Rule { priority, table, .. } = rule;
    match rule.packets {
        Packets::Unmarked(mark) => {
            write!(f, "{verb} {family} rule {priority}: not fwmark {mark:#x} lookup {table}")
        }
        Packets::From(addr, len) => {
            write!(f, "{verb} {family} rule {priority}: from {addr}/{len} lookup {table}")
        }
    }
}

/// Returns the steps from what is there to what should be there, in the order in which they are taken. `interface` is the index of the
/// tunnel's interface while that is there and up; without it there are no unicast routes.
pub fn diff(actual: &Actual, desired: &Routes, interface: Option<u32>) -> Vec<Step> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    // Both in the order of keys: a thousand routes that are as they should be are passed by.
    let mut found = actual.routes.iter().peekable();
    for (key, route) in routes_of(desired, interface) {
        while let Some((_, surplus)) = found.next_if(|(before, _)| **before < key) {
            removed.push(*surplus);
        }
        match found.next_if(|(same, _)| **same == key) {
            Some((_, same)) if *same == route => {}
            Some(_) => added.push(Step::ReplaceRoute(route)),
            None => added.push(Step::AddRoute(route)),
        }
    }
    removed.extend(found.map(|(_, surplus)| *surplus));
    // In descending order of keys the weakest come first.
    removed.reverse();

    let rules = rules_of(desired);
    let is_same =
        |one: &Rule, other: &Rule| Rule { protocol: None, ..*one } == Rule { protocol: None, ..*other };
    let own: Vec<_> = actual.rules.iter().filter(|rule| is_ours(rule, desired)).collect();
    let missing = rules.iter().filter(|rule| !own.iter().any(|own| is_same(own, rule)));
    let surplus = own.iter().filter(|own| !rules.iter().any(|rule| is_same(own, rule)));

    let mut steps = added;
    steps.extend(missing.map(|rule| Step::AddRule(*rule)));
    steps.extend(surplus.map(|rule| Step::RemoveRule(**rule)));
    steps.extend(removed.into_iter().map(Step::RemoveRoute));
    steps
}

fn is_ours(rule: &Rule, desired: &Routes) -> bool {
    match rule.protocol {
        Some(protocol) => protocol == PROTOCOL,
        // A kernel that keeps no protocol numbers: what is exactly like ours.
        None => {
            let table = match rule.packets {
                Packets::Unmarked(mark) => (mark == desired.fwmark).then_some(desired.table),
                Packets::From(..) => Some(desired.pods_table()),
            };
            rule.priority == desired.rule_priority && table == Some(rule.table)
        }
    }
}

/// What the kernel tells routes apart by, the strongest of a table first.
type Key = (std::cmp::Reverse<u8>, u32, (bool, u128), u32);

fn key(route: &TableRoute) -> Key {
    (std::cmp::Reverse(route.destination.1), route.metric, rank(route.destination.0), route.table)
}

/// Returns the routes in the order of their keys, each once.
fn routes_of(desired: &Routes, interface: Option<u32>) -> Vec<(Key, TableRoute)> {
    let all = desired.entries.iter().map(|entry| (desired.table, entry));
    let from_pods = desired.from_pods.entries.iter().map(|entry| (desired.pods_table(), entry));
    let routes = all.chain(from_pods).filter_map(|(table, entry)| {
        let kind = match entry.kind {
            Kind::Throw => RouteKind::Throw,
            Kind::Unicast => RouteKind::Unicast { interface: interface? },
            Kind::Blackhole => RouteKind::Blackhole,
        };
        Some(TableRoute {
            table,
            destination: (entry.prefix.addr(), entry.prefix.len()),
            metric: metric_of(entry.kind),
            kind,
            mtu: None,
            protocol: PROTOCOL,
        })
    });
    // Entries are in the order of their addresses: what is of one length and strength is two lists in order, and they are only merged.
    let mut alike = BTreeMap::<_, Vec<_>>::new();
    for (key, route) in routes.map(|route| (key(&route), route)) {
        alike.entry((key.0, key.1)).or_default().push((key, route));
    }
    let mut all = Vec::with_capacity(alike.values().map(Vec::len).sum());
    for mut routes in alike.into_values() {
        routes.sort_by_key(|(key, _)| *key);
        all.append(&mut routes);
    }
    all.dedup();
    all
}

/// Returns a rule for each family that has routes, and one for each prefix of pods that has routes of its own.
fn rules_of(desired: &Routes) -> Vec<Rule> {
    let rule = |is_ipv6, packets, table| Rule {
        is_ipv6,
        priority: desired.rule_priority,
        packets,
        table,
        protocol: Some(PROTOCOL),
    };
    let mut rules = Vec::new();
    for is_ipv6 in [false, true] {
        let is_used =
            |entries: &[Entry]| entries.iter().any(|entry| entry.prefix.addr().is_ipv6() == is_ipv6);
        if is_used(&desired.from_pods.entries) {
            let sources =
                desired.from_pods.sources.iter().filter(|source| source.addr().is_ipv6() == is_ipv6);
            let from = sources.map(|source| Packets::From(source.addr(), source.len()));
            rules.extend(from.map(|packets| rule(is_ipv6, packets, desired.pods_table())));
        }
        if is_used(&desired.entries) {
            rules.push(rule(is_ipv6, Packets::Unmarked(desired.fwmark), desired.table));
        }
    }
    rules
}

/// The steps that failed, and what must wait for them: what is old protects until the new is there.
#[derive(Debug, Default)]
struct Failures(Vec<Step>);

impl Failures {
    fn note(&mut self, step: &Step) {
        self.0.push(*step);
    }

    /// Tells whether a step would open something: it removes in a family where a step failed, so that something weaker may lie below, or
    /// it throws out of the table the packets of a route that is not there.
    fn hold_back(&self, step: &Step) -> bool {
        let mut lacking = self.0.iter().filter(|failed| failed.is_ipv6() == step.is_ipv6());
        match step {
            Step::RemoveRule(_) | Step::RemoveRoute(_) => lacking.next().is_some(),
            Step::AddRoute(route) | Step::ReplaceRoute(route) if route.kind == RouteKind::Throw => {
                let covered = Prefix::new(route.destination.0, route.destination.1);
                lacking.any(|failed| match failed {
                    Step::AddRoute(other) | Step::ReplaceRoute(other) => {
                        covered.is_some_and(|covered| covered.contains(other.destination.0))
                    }
                    Step::AddRule(_) | Step::RemoveRule(_) | Step::RemoveRoute(_) => false,
                })
            }
            Step::AddRoute(_) | Step::ReplaceRoute(_) | Step::AddRule(_) => false,
        }
    }
}

/// What a look at the kernel has led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Steps that were taken: 0 if all was as it should be.
    pub steps: usize,
    /// Unicast routes that are left out until the interface is there and up.
    pub waiting: usize,
}

/// Programs the routes and rules of the network namespace that it was opened in.
///
/// It remembers what the kernel has: whoever keeps one for longer hears of what others change, and says so by [`Self::forget`].
pub struct Router {
    netlink: Netlink,
    interface: Option<u32>,
    /// What the kernel has as of the last look and the steps since; `None` if it is to be asked.
    known: Option<Actual>,
}

impl Router {
    /// Opens a socket to the kernel.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, interface: None, known: None })
    }

    /// Has the kernel asked the next time for what it has: somebody else may have changed it.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// Returns the number that the kernel calls it by in notices of what it has changed.
    pub fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// Returns the index of the tunnel's interface as of the last look, if it was there and up.
    pub fn interface(&self) -> Option<u32> {
        self.interface
    }

    /// Makes what the kernel has what it should be.
    ///
    /// # Errors
    /// Names the first step that failed. The others have been taken, except for those that would open something for want of it.
    pub fn sync(&mut self, desired: &Routes) -> Result<Outcome, Failed> {
        let steps = self.steps(desired)?;
        let mut first_failure = None;
        let mut failures = Failures::default();
        let mut taken = 0;
        for step in steps {
            if failures.hold_back(&step) {
                continue;
            }
            match self.take(&step) {
                Ok(()) => {
                    taken += 1;
                    self.known.iter_mut().for_each(|known| known.follow(&step));
                }
                Err(error) => {
                    self.forget();
                    failures.note(&step);
                    first_failure.get_or_insert_with(|| Failed::new(step.to_string(), error));
                }
            }
        }
        if let Some(failure) = first_failure {
            return Err(failure);
        }
        let entries = desired.entries.iter().chain(&desired.from_pods.entries);
        let unicast = entries.filter(|entry| entry.kind == Kind::Unicast).count();
        Ok(Outcome { steps: taken, waiting: if self.interface.is_some() { 0 } else { unicast } })
    }

    /// Removes all rules and routes that are ours. `desired` tells by its table, mark and priority which rules those are where the kernel
    /// keeps no protocol numbers.
    ///
    /// # Errors
    /// Names the first step that failed; all others have been tried.
    pub fn cleanup(&mut self, desired: &Routes) -> Result<(), Failed> {
        self.sync(&Routes { entries: Vec::new(), from_pods: FromPods::default(), ..desired.clone() })
            .map(drop)
    }

    /// Returns the steps that [`Self::sync`] would take.
    ///
    /// # Errors
    /// Names what cannot be listed.
    pub fn steps(&mut self, desired: &Routes) -> Result<Vec<Step>, Failed> {
        let known = self.look(&desired.interface)?;
        let steps = diff(&known, desired, self.interface);
        self.known = Some(known);
        Ok(steps)
    }

    /// Returns what is there, as a plan would name it; `wanted` is the next one.
    ///
    /// # Errors
    /// Names what cannot be listed.
    pub fn there(&mut self, wanted: &Routes) -> Result<Routes, Failed> {
        let known = self.look(&wanted.interface)?;
        let plan = known.as_plan(wanted, self.interface);
        self.known = Some(known);
        Ok(plan)
    }

    /// Looks at the interface, and returns what the kernel has: it is asked if that is not known.
    fn look(&mut self, interface: &str) -> Result<Actual, Failed> {
        let listing = |what: &str| {
            let what = format!("listing {what}");
            move |error| Failed::new(what, error)
        };
        // One that cannot be asked for is not taken for gone: its routes would be.
        let link = self.netlink.find_link(interface).map_err(listing("the interface"))?;
        let interface = link.filter(|link| link.up).map(|link| link.index);
        // With an interface, routes go that nobody is told of (`fib_frontend.c`, `fib_disable_ip`).
        if std::mem::replace(&mut self.interface, interface) != interface {
            self.forget();
        }
        if let Some(known) = self.known.take() {
            return Ok(known);
        }
        let filter = RouteFilter { table: None, protocol: Some(PROTOCOL) };
        let routes = self.netlink.table_routes(&filter).map_err(listing("routes"))?;
        Ok(Actual::new(self.netlink.rules().map_err(listing("rules"))?, routes))
    }

    fn take(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::AddRoute(route) => self.netlink.add_table_route(route),
            Step::ReplaceRoute(route) => self.netlink.replace_table_route(route),
            Step::AddRule(rule) => self.netlink.add_rule(rule),
            Step::RemoveRule(rule) => unless_gone(self.netlink.remove_rule(rule)),
            Step::RemoveRoute(route) => unless_gone(self.netlink.remove_table_route(route)),
        }
    }
}

/// Takes it for removed what somebody else has removed.
fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if [Some(libc::ESRCH), Some(libc::ENOENT)].contains(&error.raw_os_error()) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests;
