//! Steps against a kernel that is simulated as plainly as possible, and against the real one.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::Prefix;
use crate::control::plan::Entry;
use crate::sys::netlink::Packets;
use crate::sys::{netns, with_faults};

const TABLE: u32 = 5000;
const FWMARK: u32 = 0xad17;
const INTERFACE: u32 = 7;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No rule leads it elsewhere than the main table does.
    Main,
    Tunnel(u32),
    Dropped,
}

/// A kernel's rules and routes, looked up one by one. It refuses what a kernel refuses.
#[derive(Clone, Debug, Default)]
struct Twin {
    rules: Vec<Rule>,
    routes: Vec<TableRoute>,
}

impl Twin {
    fn take(&mut self, step: &Step) -> Result<(), &'static str> {
        let place = |routes: &[TableRoute], new: &TableRoute| {
            let key = |route: &TableRoute| (route.table, route.destination, route.metric);
            routes.iter().position(|route| key(route) == key(new))
        };
        match step {
            Step::AddRoute(route) => match place(&self.routes, route) {
                Some(_) => return Err("EEXIST"),
                None => self.routes.push(*route),
            },
            Step::ReplaceRoute(route) => match place(&self.routes, route) {
                Some(at) if self.routes[at].protocol == PROTOCOL => self.routes[at] = *route,
                Some(_) => return Err("another's"),
                None => return Err("ENOENT"),
            },
            Step::RemoveRoute(route) => {
                let at = self.routes.iter().position(|found| found == route).ok_or("ESRCH")?;
                self.routes.remove(at);
            }
            Step::AddRule(rule) => {
                if self.rules.contains(rule) {
                    return Err("EEXIST");
                }
                self.rules.push(*rule);
            }
            Step::RemoveRule(rule) => {
                let at = self.rules.iter().position(|found| found == rule).ok_or("ENOENT")?;
                self.rules.remove(at);
            }
        }
        Ok(())
    }

    /// Takes steps that must succeed, and looks between them.
    fn take_all(&mut self, steps: &[Step], mut look: impl FnMut(&Self, &Step)) {
        for step in steps {
            self.take(step).unwrap_or_else(|refused| panic!("{step}: {refused} in {self:?}"));
            look(self, step);
        }
    }

    fn actual(&self) -> Actual {
        let own = self.routes.iter().filter(|route| route.protocol == PROTOCOL);
        Actual::new(self.rules.clone(), own.copied())
    }

    /// What becomes of a packet to `addr` that carries `mark`.
    fn verdict(&self, addr: IpAddr, mark: u32) -> Verdict {
        self.verdict_from(None, addr, mark)
    }

    /// The same of one that has a source.
    fn verdict_from(&self, from: Option<IpAddr>, addr: IpAddr, mark: u32) -> Verdict {
        let mut rules: Vec<_> = self.rules.iter().filter(|rule| rule.is_ipv6 == addr.is_ipv6()).collect();
        rules.sort_by_key(|rule| rule.priority);
        let is_for = |rule: &&Rule| match rule.packets {
            Packets::Unmarked(own) => own != mark,
            Packets::From(net, len) => from.is_some_and(|from| Prefix::new(net, len).unwrap().contains(from)),
        };
        for rule in rules.into_iter().filter(is_for) {
            let covering = self.routes.iter().filter(|route| {
                let (net, len) = route.destination;
                route.table == rule.table && Prefix::new(net, len).unwrap().contains(addr)
            });
            let best = covering.min_by_key(|route| (u8::MAX - route.destination.1, route.metric));
            match best.map(|route| route.kind) {
                Some(RouteKind::Unicast { interface }) => return Verdict::Tunnel(interface),
                Some(RouteKind::Blackhole) => return Verdict::Dropped,
                Some(RouteKind::Throw) | None => {}
                Some(RouteKind::Other(_)) => panic!("no other kind is ours"),
            }
        }
        Verdict::Main
    }
}

/// Prefixes of one byte's difference, in both families, so that they cover each other often.
fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any::<bool>(), any::<u8>(), 0..=8_u8).prop_map(|(is_ipv6, last, len)| {
        let prefix = match is_ipv6 {
            false => Prefix::new(IpAddr::from([10, 0, 0, last & 0xf0]), 24 + len),
            true => Prefix::new(
                IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last & 0xf0]),
                120 + len,
            ),
        };
        prefix.unwrap()
    })
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let kind = prop_oneof![1 => Just(Kind::Throw), 3 => Just(Kind::Unicast), 1 => Just(Kind::Blackhole)];
    vec((any_prefix(), kind).prop_map(|(prefix, kind)| Entry { prefix, kind }), 0..12)
}

fn routes(table: u32, entries: Vec<Entry>) -> Routes {
    Routes {
        table,
        fwmark: FWMARK,
        rule_priority: 99,
        interface: "adit0".to_owned(),
        entries,
        ..Routes::default()
    }
}

/// An address of each range that the prefixes can tell apart.
fn probes() -> Vec<IpAddr> {
    let v4 = (0..16).map(|at: u8| IpAddr::from([10, 0, 0, at * 16 + 1]));
    let v6 = (0..16).map(|at: u8| IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, at * 16]));
    v4.chain(v6).collect()
}

/// What should become of a packet, read off the plan.
fn planned(plan: &Routes, interface: Option<u32>, addr: IpAddr) -> Verdict {
    let there = |entry: &&Entry| entry.kind != Kind::Unicast || interface.is_some();
    let covering = plan.entries.iter().filter(there).filter(|entry| entry.prefix.contains(addr));
    match covering
        .max_by_key(|entry| (entry.prefix.len(), std::cmp::Reverse(metric_of(entry.kind))))
        .map(|entry| entry.kind)
    {
        None | Some(Kind::Throw) => Verdict::Main,
        Some(Kind::Unicast) => Verdict::Tunnel(interface.unwrap()),
        Some(Kind::Blackhole) => Verdict::Dropped,
    }
}

/// Routes and a rule of others: one in our table, too.
fn foreign() -> Twin {
    let route = TableRoute {
        table: TABLE,
        destination: ([10, 9, 0, 0].into(), 16),
        metric: metric_of(Kind::Unicast),
        kind: RouteKind::Unicast { interface: 1 },
        mtu: None,
        protocol: 4,
    };
    let rule = Rule {
        is_ipv6: false,
        priority: 99,
        packets: Packets::Unmarked(FWMARK),
        table: 1,
        protocol: Some(4),
    };
    Twin { rules: vec![rule], routes: vec![route, TableRoute { table: 254, ..route }] }
}

proptest! {
    #[test]
    fn the_end_is_what_was_planned_and_nothing_of_others_is_touched(
        before in any_entries(), after in any_entries(), has_interface: bool, moves_table: bool,
    ) {
        let mut twin = foreign();
        let first = routes(TABLE, before);
        twin.take_all(&diff(&twin.actual(), &first, Some(INTERFACE)), |_, _| {});
        let interface = has_interface.then_some(INTERFACE);
        let second = routes(TABLE + u32::from(moves_table), after);
        twin.take_all(&diff(&twin.actual(), &second, interface), |_, _| {});
        for addr in probes() {
            prop_assert_eq!(twin.verdict(addr, 0), planned(&second, interface, addr), "{}", addr);
            prop_assert_eq!(twin.verdict(addr, FWMARK), Verdict::Main, "the tunnel's own packets skip the table");
        }
        prop_assert_eq!(diff(&twin.actual(), &second, interface), []);
        // Cleaned up, only the others' are left.
        twin.take_all(&diff(&twin.actual(), &routes(TABLE, Vec::new()), interface), |_, _| {});
        let untouched = foreign();
        prop_assert_eq!((twin.rules, twin.routes), (untouched.rules, untouched.routes));
    }

    /// What is remembered from step to step is what would be listed, and leads to the same steps.
    #[test]
    fn what_is_remembered_is_what_is_there(plans in vec((any_entries(), 0..3_u32), 1..5)) {
        let mut twin = foreign();
        let mut known = twin.actual();
        for (entries, interface) in plans {
            let interface = interface.checked_sub(1).map(|more| INTERFACE + more);
            let plan = routes(TABLE, entries);
            let steps = diff(&known, &plan, interface);
            prop_assert_eq!(&steps, &diff(&twin.actual(), &plan, interface));
            for step in &steps {
                twin.take(step).unwrap();
                known.follow(step);
                prop_assert_eq!(&known, &twin.actual());
            }
        }
    }

    /// Nothing leaks, nothing that stays is interrupted: there is no third verdict between the old and the new one.
    #[test]
    fn each_address_goes_from_its_old_verdict_to_its_new_one_and_nowhere_between(
        before in any_entries(), after in any_entries(), other_interface: bool,
    ) {
        let mut twin = foreign();
        twin.take_all(&diff(&twin.actual(), &routes(TABLE, before), Some(INTERFACE)), |_, _| {});
        let old: Vec<_> = probes().into_iter().map(|addr| (addr, twin.verdict(addr, 0))).collect();
        let interface = INTERFACE + u32::from(other_interface);
        let plan = routes(TABLE, after);
        let mut has_changed = vec![false; old.len()];
        let steps = diff(&twin.actual(), &plan, Some(interface));
        twin.take_all(&steps, |twin, step| {
            for (at, (addr, old)) in old.iter().enumerate() {
                let (now, new) = (twin.verdict(*addr, 0), planned(&plan, Some(interface), *addr));
                assert!(now == *old || now == new, "{addr} by way of {now:?} from {old:?} to {new:?}: {step}");
                has_changed[at] |= now != *old;
                assert!(!has_changed[at] || now == new, "{addr} went back to {old:?}: {step}");
            }
        });
    }

    /// Steps that fail, and those behind them that are left out: what was protected before and after is never in clear.
    #[test]
    fn a_step_that_fails_opens_nothing(
        before in any_entries(), after in any_entries(), failing in vec(any::<bool>(), 40),
    ) {
        let mut twin = foreign();
        twin.take_all(&diff(&twin.actual(), &routes(TABLE, before), Some(INTERFACE)), |_, _| {});
        let old: Vec<_> = probes().into_iter().map(|addr| (addr, twin.verdict(addr, 0))).collect();
        let plan = routes(TABLE, after);
        let mut failures = Failures::default();
        for (step, fails) in diff(&twin.actual(), &plan, Some(INTERFACE)).iter().zip(failing) {
            if failures.hold_back(step) {
                continue;
            }
            if fails {
                failures.note(step);
                continue;
            }
            twin.take(step).unwrap();
            for (addr, old) in &old {
                let leaks = twin.verdict(*addr, 0) == Verdict::Main;
                let may_leak = *old == Verdict::Main || planned(&plan, Some(INTERFACE), *addr) == Verdict::Main;
                prop_assert!(!leaks || may_leak, "{} is in clear after {}", addr, step);
            }
        }
        // The next look finds what is missing.
        twin.take_all(&diff(&twin.actual(), &plan, Some(INTERFACE)), |_, _| {});
        for addr in probes() {
            prop_assert_eq!(twin.verdict(addr, 0), planned(&plan, Some(INTERFACE), addr));
        }
    }
}

fn entry(prefix: &str, len: u8, kind: Kind) -> Entry {
    Entry { prefix: Prefix::new(prefix.parse().unwrap(), len).unwrap(), kind }
}

#[test]
fn the_rule_comes_last_and_goes_first() {
    let plan =
        routes(TABLE, vec![entry("10.0.0.0", 16, Kind::Blackhole), entry("10.0.1.0", 24, Kind::Unicast)]);
    let steps = diff(&Actual::default(), &plan, Some(INTERFACE));
    let texts: Vec<_> = steps.iter().map(Step::to_string).collect();
    let expected = [
        "adding route unicast 10.0.1.0/24 metric 2048 in table 5000",
        "adding route blackhole 10.0.0.0/16 metric 4096 in table 5000",
        "adding IPv4 rule 99: not fwmark 0xad17 lookup 5000",
    ];
    assert_eq!(texts, expected);
    let mut twin = Twin::default();
    twin.take_all(&steps, |_, _| {});
    let steps = diff(&twin.actual(), &routes(TABLE, Vec::new()), None);
    let texts: Vec<_> = steps.iter().map(Step::to_string).collect();
    let expected = [
        "removing IPv4 rule 99: not fwmark 0xad17 lookup 5000",
        "removing route blackhole 10.0.0.0/16 metric 4096 in table 5000",
        "removing route unicast 10.0.1.0/24 metric 2048 in table 5000",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn packets_of_pods_have_routes_of_their_own() {
    let sources =
        vec![entry("10.244.1.0", 24, Kind::Throw).prefix, entry("fd00:1::", 64, Kind::Throw).prefix];
    let mut plan = routes(TABLE, vec![entry("10.244.2.0", 24, Kind::Unicast)]);
    plan.from_pods.sources = sources;
    plan.from_pods.entries =
        vec![entry("192.0.2.2", 32, Kind::Unicast), entry("192.0.2.2", 32, Kind::Blackhole)];
    let mut twin = foreign();
    let before = twin.clone();
    let steps = diff(&twin.actual(), &plan, Some(INTERFACE));
    let texts: Vec<_> = steps.iter().map(Step::to_string).collect();
    let expected = [
        "adding route unicast 192.0.2.2/32 metric 2048 in table 5001",
        "adding route blackhole 192.0.2.2/32 metric 4096 in table 5001",
        "adding route unicast 10.244.2.0/24 metric 2048 in table 5000",
        "adding IPv4 rule 99: from 10.244.1.0/24 lookup 5001",
        "adding IPv4 rule 99: not fwmark 0xad17 lookup 5000",
    ];
    assert_eq!(texts, expected, "IPv6 has no routes, and so no rule");
    twin.take_all(&steps, |_, _| {});
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    let (pod, host) = (Some(addr("10.244.1.7")), Some(addr("192.0.2.1")));
    let tunnel = Verdict::Tunnel(INTERFACE);
    assert_eq!(twin.verdict_from(pod, addr("192.0.2.2"), 0), tunnel);
    assert_eq!(twin.verdict_from(host, addr("192.0.2.2"), 0), Verdict::Main);
    assert_eq!(twin.verdict_from(host, addr("10.244.2.1"), 0), tunnel);
    assert_eq!(twin.verdict_from(pod, addr("192.0.2.3"), 0), Verdict::Main);
    // Without the interface, pods' packets to nodes go nowhere.
    twin.take_all(&diff(&twin.actual(), &plan, None), |_, _| {});
    assert_eq!(twin.verdict_from(pod, addr("192.0.2.2"), 0), Verdict::Dropped);
    assert_eq!(twin.verdict_from(host, addr("192.0.2.2"), 0), Verdict::Main);
    twin.rules.iter_mut().for_each(|rule| rule.protocol = None);
    assert_eq!(diff(&twin.actual(), &plan, None), [], "known again where the kernel keeps no protocol");
    twin.rules.iter_mut().filter(|rule| rule.table >= TABLE).for_each(|rule| rule.protocol = Some(PROTOCOL));
    twin.rules.iter_mut().filter(|rule| rule.table < TABLE).for_each(|rule| rule.protocol = Some(4));
    twin.take_all(&diff(&twin.actual(), &routes(TABLE, Vec::new()), None), |_, _| {});
    assert_eq!((twin.rules, twin.routes), (before.rules, before.routes));
}

#[test]
fn rules_are_known_again_where_the_kernel_keeps_no_protocol() {
    let plan = routes(TABLE, vec![entry("10.0.0.0", 16, Kind::Blackhole)]);
    let mut twin = Twin::default();
    twin.take_all(&diff(&twin.actual(), &plan, None), |_, _| {});
    twin.rules.iter_mut().for_each(|rule| rule.protocol = None);
    let others = Rule { priority: 100, ..twin.rules[0] };
    twin.rules.push(others);
    assert_eq!(diff(&twin.actual(), &plan, None), []);
    twin.take_all(&diff(&twin.actual(), &routes(TABLE, Vec::new()), None), |_, _| {});
    assert_eq!(twin.rules, [others]);
}

#[test]
fn the_kernel_takes_every_step() {
    let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
        eprintln!("skipped: CAP_SYS_ADMIN missing");
        return;
    };
    netns::run_in(&own, || {
        let mut netlink = Netlink::open()?;
        let mut router = Router::open()?;
        let entries = vec![
            entry("10.0.0.0", 16, Kind::Blackhole),
            entry("10.0.1.0", 24, Kind::Throw),
            entry("10.0.2.0", 24, Kind::Unicast),
            entry("fd00::", 48, Kind::Blackhole),
            entry("fd00:0:0:1::", 64, Kind::Throw),
            entry("fd00:0:0:2::", 64, Kind::Unicast),
        ];
        let plan = routes(TABLE, entries);
        // Without the interface everything else is there.
        assert_eq!(router.sync(&plan).unwrap(), Outcome { steps: 6, waiting: 2 });
        assert_eq!(router.interface(), None);
        netlink.add_veth("adit0", "peer", &other)?;
        let link = netlink.link("adit0")?;
        assert_eq!(router.sync(&plan).unwrap(), Outcome { steps: 0, waiting: 2 });
        netlink.set_up(link.index, None)?;
        assert_eq!(router.sync(&plan).unwrap(), Outcome { steps: 2, waiting: 0 });
        assert_eq!(router.sync(&plan).unwrap(), Outcome::default());
        assert_eq!(router.interface(), Some(link.index));

        // Every prefix becomes another kind.
        let mut turned = plan.clone();
        for entry in &mut turned.entries {
            entry.kind = match entry.kind {
                Kind::Throw => Kind::Unicast,
                Kind::Unicast => Kind::Blackhole,
                Kind::Blackhole => Kind::Throw,
            };
        }
        assert_eq!(router.sync(&turned).unwrap().steps, 12);
        assert_eq!(router.sync(&turned).unwrap().steps, 0);
        // Another mark, another table.
        let moved = Routes { table: TABLE + 1, fwmark: FWMARK + 1, ..turned };
        assert_eq!(router.sync(&moved).unwrap().steps, 16);
        assert_eq!(netlink.rules()?.len(), 2);
        router.cleanup(&moved).unwrap();
        assert_eq!(netlink.rules()?, []);
        assert_eq!(netlink.table_routes(&RouteFilter { table: None, protocol: Some(PROTOCOL) })?, []);
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_interface_that_cannot_be_asked_for_keeps_its_routes() {
    let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
        eprintln!("skipped: CAP_SYS_ADMIN missing");
        return;
    };
    netns::run_in(&own, || {
        let (mut netlink, mut router) = (Netlink::open()?, Router::open()?);
        netlink.add_veth("adit0", "peer", &other)?;
        let index = netlink.link("adit0")?.index;
        netlink.set_up(index, None)?;
        let plan = routes(TABLE, vec![entry("10.0.2.0", 24, Kind::Unicast)]);
        router.sync(&plan).unwrap();
        // ENOBUFS: the kernel has no memory for the question.
        let (failure, _) =
            with_faults("Link=105", || router.sync(&plan).map_err(|failed| failed.to_string()));
        assert_eq!(failure.unwrap_err(), "listing the interface: No buffer space available (os error 105)");
        let filter = RouteFilter { table: None, protocol: Some(PROTOCOL) };
        assert_eq!(netlink.table_routes(&filter)?.len(), 1);
        assert_eq!(router.sync(&plan).unwrap(), Outcome::default());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_route_in_the_way_is_named_and_left_and_the_rest_is_done() {
    let Ok(own) = netns::create() else {
        eprintln!("skipped: CAP_SYS_ADMIN missing");
        return;
    };
    netns::run_in(&own, || {
        let mut netlink = Netlink::open()?;
        let plan = routes(
            TABLE,
            vec![entry("10.0.0.0", 16, Kind::Blackhole), entry("10.1.0.0", 16, Kind::Blackhole)],
        );
        let others = TableRoute {
            table: TABLE,
            destination: ([10, 0, 0, 0].into(), 16),
            metric: metric_of(Kind::Blackhole),
            kind: RouteKind::Throw,
            mtu: None,
            protocol: 4,
        };
        netlink.add_table_route(&others)?;
        let mut router = Router::open()?;
        router.sync(&routes(TABLE, vec![entry("10.2.0.0", 16, Kind::Blackhole)])).unwrap();
        let failed = router.sync(&plan).unwrap_err();
        let expected =
            "adding route blackhole 10.0.0.0/16 metric 4096 in table 5000: File exists (os error 17)";
        assert_eq!(failed.to_string(), expected);
        let found = netlink.table_routes(&RouteFilter::default())?;
        assert!(found.contains(&others));
        // What the first plan had and the second has not protects until all of the second is there.
        let mut nets: Vec<_> = found.iter().map(|route| route.destination.0.to_string()).collect();
        nets.sort();
        assert_eq!(
            (netlink.rules()?.len(), nets),
            (1, vec!["10.0.0.0".into(), "10.1.0.0".into(), "10.2.0.0".into()])
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_there_is_read_as_a_plan_whatever_its_tables_are_called() {
    let mut first = routes(TABLE, vec![entry("10.0.0.0", 16, Kind::Blackhole)]);
    first.entries.extend([entry("10.0.1.0", 24, Kind::Throw), entry("fd00::", 64, Kind::Unicast)]);
    first.from_pods.sources = vec![entry("10.0.1.0", 24, Kind::Throw).prefix];
    first.from_pods.entries = vec![entry("192.0.2.2", 32, Kind::Unicast)];
    let mut twin = foreign();
    twin.take_all(&diff(&twin.actual(), &first, Some(INTERFACE)), |_, _| {});
    let sorted = |mut plan: Routes| {
        plan.entries.sort_unstable();
        plan
    };
    let expected = sorted(first);
    // The tables' numbers may overlap with those of before: what a rule leads to is what it was.
    for table in [TABLE, TABLE + 1, TABLE - 1, TABLE + 100] {
        let next = Routes { fwmark: FWMARK + 1, ..routes(table, Vec::new()) };
        let there = sorted(twin.actual().as_plan(&next, Some(INTERFACE)));
        let expected = Routes { table, fwmark: FWMARK + 1, ..expected.clone() };
        assert_eq!(there, expected);
        let steps = diff(&twin.actual(), &there, Some(INTERFACE));
        let mut moved = twin.clone();
        moved.take_all(&steps, |twin, step| {
            for (addr, verdict) in [("10.0.0.1", Verdict::Dropped), ("fd00::1", Verdict::Tunnel(INTERFACE))] {
                assert_eq!(twin.verdict(addr.parse().unwrap(), 0), verdict, "{addr} after {step}");
            }
        });
        assert_eq!(sorted(moved.actual().as_plan(&next, Some(INTERFACE))), expected);
    }
    // What leads to another interface is not the plan's, and what no rule leads to is not asked for by its table.
    let there = twin.actual().as_plan(&expected, Some(INTERFACE + 1));
    assert_eq!(there.entries.len() + there.from_pods.entries.len(), 2);
    twin.rules.clear();
    assert_eq!(sorted(twin.actual().as_plan(&expected, Some(INTERFACE))).entries, expected.entries);
    let elsewhere = routes(TABLE + 100, Vec::new());
    assert_eq!(twin.actual().as_plan(&elsewhere, Some(INTERFACE)), elsewhere);
}
