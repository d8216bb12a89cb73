//! What somebody deletes or changes is back within a second, and what is cleaned up is gone without a trace.

use adit::control::heal::cleanup;
use adit::sys::clock::boottime;

use super::*;

/// How long anything may be missing.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns everything that could be ours or be touched by us. Counters count, and handles of tables that are made anew are new. The kernel's
/// own routes follow from the addresses, for IPv6 a moment later.
fn everything(namespace: &Namespace) -> String {
    let lines = [
        "ip -o link",
        "ip -o addr",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft -s list ruleset",
    ];
    let text = lines.map(|line| namespace.sh(line)).join("\n---\n");
    text.lines().filter(|line| !line.contains(" proto kernel ")).collect::<Vec<_>>().join("\n")
}

/// Returns the same once it stays so: a link gets its link-local address a moment after it is up.
fn settled(namespace: &Namespace) -> String {
    let mut last = everything(namespace);
    wait_until("quiet", SOON, || {
        crate::support::pause(Duration::from_millis(200));
        let now = everything(namespace);
        std::mem::replace(&mut last, now.clone()) == now
    });
    last
}

#[test]
fn what_somebody_deletes_or_changes_is_back_within_a_second() {
    need!("ip", "ping", "wg", "nft");
    let lab = Lab::programmed(Mode::Strict);
    let namespace = &lab.a.namespace;
    let interface = &lab.a.name;
    let before = settled(namespace);
    let acts = [
        format!("ip -4 rule del priority {PRIORITY}"),
        format!("ip -6 rule del priority {PRIORITY}"),
        format!("ip -4 route del 10.244.2.0/24 table {TABLE}"),
        format!("ip -6 route del fd10:0:0:2::/64 table {TABLE}"),
        format!("ip -4 route del blackhole 10.244.0.0/16 table {TABLE}"),
        format!("ip -6 route del fd10::/48 table {TABLE}"),
        format!("ip -4 route del throw 10.244.1.0/24 table {TABLE}"),
        format!("ip -4 route flush table {TABLE}"),
        format!("ip -6 route flush table {TABLE}"),
        // As if it were ours, and pointing elsewhere.
        format!("ip -4 route replace 10.244.2.0/24 dev pod metric 2048 protocol 173 table {TABLE}"),
        format!("ip -4 route add 10.244.9.0/24 dev pod protocol 173 table {TABLE}"),
        "ip -4 rule add not fwmark 7 priority 7 table 7 protocol 173".to_owned(),
        format!("ip link set {interface} down"),
        format!("ip link set {interface} mtu 1300"),
        format!("ip -4 addr flush dev {interface}"),
        format!("ip -6 addr del fd10:0:0:1::1/128 dev {interface}"),
        "nft flush ruleset".to_owned(),
        "nft delete table inet adit".to_owned(),
        "nft flush chain inet adit postrouting".to_owned(),
        "nft insert rule inet adit forward accept".to_owned(),
        "nft add chain inet adit postrouting { policy drop; }".to_owned(),
        "nft add table inet adit { flags dormant; }".to_owned(),
        "nft flush set inet adit protected4".to_owned(),
        "nft add element inet adit protected6 { fd99::/64 }".to_owned(),
    ];
    for act in acts {
        let (started, heals) = (boottime(), lab.a.healer.report().heals);
        let words: Vec<_> = act.split(' ').collect();
        // nft puts its arguments together again.
        let (success, text) = namespace.try_run(words[0], &words[1..]);
        assert!(success, "{act}: {text}");
        wait_until(&format!("mending after: {act}"), LIMIT, || {
            lab.a.healer.report().heals > heals && everything(namespace) == before
        });
        eprintln!("mended within {:?}: {act}", boottime() - started);
    }
    assert_eq!(lab.a.healer.report().failure, None);
    lab.assert_encrypted("after all that");
}

#[test]
fn without_an_event_nobody_wakes_up() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    // Its own changes are looked at once more.
    let settled = || {
        let looks = lab.a.healer.report().looks;
        crate::support::pause(Duration::from_millis(500));
        lab.a.healer.report().looks == looks
    };
    wait_until("quiet", SOON, settled);
    let looks = lab.a.healer.report().looks;
    // Pods come and go, and so do routes of others.
    for _ in 0..10 {
        lab.a.namespace.ip("link add name other type veth peer name another");
        lab.a.namespace.ip("link set other up");
        lab.a.namespace.ip("route add 10.99.0.0/16 dev other");
        lab.a.namespace.ip("link del other");
    }
    crate::support::pause(Duration::from_millis(500));
    assert_eq!(lab.a.healer.report().looks, looks);
}

/// How much is done and how long it takes for a cluster of a thousand nodes.
#[test]
fn a_change_among_a_thousand_nodes_is_one_step_a_family() {
    need!("ip", "wg", "nft");
    let lab = Lab::new();
    let plan = |nodes: std::ops::Range<u16>| {
        let mut plan = lab.a.plan(Mode::Strict);
        let blocks = nodes.flat_map(|node| {
            let (high, low) = (node / 64, node % 64 * 4);
            [
                entry(&format!("10.{high}.{low}.0/24"), Kind::Unicast),
                entry(&format!("fd30:{node:x}::/64"), Kind::Unicast),
            ]
        });
        plan.routes.entries.extend(blocks);
        plan.firewall = Some(Firewall::of(&plan.routes, PORT, true));
        plan
    };
    let timed = |what: &str, nodes: std::ops::Range<u16>| {
        let plan = plan(nodes);
        let started = boottime();
        let steps = lab.a.healer.set(plan).unwrap().steps;
        eprintln!("{what}: {steps} steps within {:?}", boottime() - started);
        steps
    };
    // Six routes of the two nodes and the cluster, and two rules, beside the thousand's.
    assert_eq!(timed("a thousand nodes", 0..1000), 2 * 1000 + 8);
    assert_eq!(timed("one more", 0..1001), 2);
    assert_eq!(timed("the same again", 0..1001), 0);
    assert_eq!(timed("another for the first", 1..1002), 4);
}

#[test]
fn cleanup_leaves_everything_as_it_was() {
    need!("ip", "ping", "wg", "nft");
    let lab = Lab::new();
    let namespace = &lab.a.namespace;
    namespace.ip(&format!("link set {} mtu 1420 up", lab.a.name));
    // Others' things, among ours.
    namespace.ip(&format!("rule add priority {PRIORITY} fwmark 0x1 lookup 77"));
    namespace.ip(&format!("-6 rule add priority {PRIORITY} not fwmark {FWMARK} lookup {TABLE}"));
    namespace.ip(&format!("route add 10.244.2.0/24 dev pod table {TABLE}"));
    namespace.ip(&format!("route add blackhole 10.244.0.0/16 metric 9 table {TABLE}"));
    namespace.ip(&format!("-6 route add fd10:0:0:9::/64 dev pod table {TABLE}"));
    namespace.sh("nft add table inet other");
    namespace.sh("nft add chain inet other input { type filter hook input priority 0 ; policy accept ; }");
    namespace.sh("nft add table ip adit");
    let before = settled(namespace);
    let plan = lab.a.plan(Mode::Strict);
    lab.a.healer.set(plan.clone()).unwrap();
    let during = settled(namespace);
    assert_ne!(during, before);
    drop(lab.a.healer);
    // An agent that ends leaves the node protected.
    assert_eq!(settled(&lab.a.namespace), during);
    // The interface goes with the data plane.
    let addresses = &plan.link.as_ref().unwrap().addresses;
    let commands = addresses.iter().map(|addr| format!("addr del {addr} dev {}", lab.a.name));
    commands.for_each(|command| drop(lab.a.namespace.ip(&command)));
    lab.a.namespace.enter(move || cleanup(&plan.routes)).unwrap();
    assert_eq!(settled(&lab.a.namespace), before);
    // Once more has nothing to do.
    let plan = Routes { table: TABLE, ..Routes::default() };
    lab.a.namespace.enter(move || cleanup(&plan)).unwrap();
    assert_eq!(everything(&lab.a.namespace), before);
}
