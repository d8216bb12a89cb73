//! What is wrong with a node that lacks one thing.

use super::*;
use crate::control::preflight::{DataPlane, Finding, judge};
use crate::sys::netlink::RouteKind;

/// A node that lacks nothing.
fn healthy() -> (Wanted, Facts) {
    let mut wanted = Wanted::default();
    wanted.cluster_prefixes.insert("10.244.0.0/16".parse().unwrap());
    wanted.own_prefixes = Some(["10.244.1.0/24".parse().unwrap()].into());
    let link =
        |name: &str| Link { index: 2, name: name.to_owned(), mtu: 1500, up: true, carrier: true, kind: None };
    let values = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "2"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/netfilter/nf_conntrack_count", "89"),
        ("net/netfilter/nf_conntrack_max", "100"),
    ];
    let facts = Facts {
        is_capable: true,
        has_ipv6: true,
        data_plane: None,
        tun: Some(Ok(true)),
        kernel_wireguard: None,
        kernel_interface: None,
        port_holders: Ok(Vec::new()),
        variables: values.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        links: Ok(vec![link("lo"), link("eth0")]),
        userspace_tunnels: Vec::new(),
        rules: Ok(Vec::new()),
        routes: Ok(Vec::new()),
        dropping_chains: Ok(Vec::new()),
        has_older_filters: false,
        now: EPOCH_LEAST,
        moments: vec![("x".to_owned(), EPOCH_LEAST + CLOCK_SLACK)],
        key_modes: (Some(0o600), Some(0o700)),
        has_snapshot: true,
        ways: vec![([10, 9, 0, 2].into(), Ok(link("eth0")))],
        probed: Some(vec![probed("b", Ok(true), Way::Fits)]),
        refused: Some(Ok(Vec::new())),
    };
    (wanted, facts)
}

fn probed(node: &str, answers: Result<bool, String>, way: Way) -> Probed {
    Probed { node: node.to_owned(), answers, way }
}

/// Returns what does not pass of a node to which something was done.
fn found(harm: impl FnOnce(&mut Wanted, &mut Facts)) -> Vec<(&'static str, Verdict)> {
    let (mut wanted, mut facts) = healthy();
    harm(&mut wanted, &mut facts);
    let findings = judge(&wanted, &facts).into_iter();
    findings.filter(|found| found.result != Pass).map(|Finding { id, result, .. }| (id, result)).collect()
}

fn rule(priority: u32) -> PolicyRule {
    PolicyRule {
        is_ipv6: false,
        priority,
        table: Some(7),
        mark: None,
        is_inverted: false,
        is_unconditional: false,
        protocol: Some(PROTOCOL),
    }
}

#[test]
fn what_only_the_whole_machine_can_have_is_judged() {
    assert_eq!(found(|_, _| {}), []);
    let late = found(|_, facts| facts.now = EPOCH_LEAST - Duration::from_secs(1));
    assert_eq!(late, [("clock", Fail)]);
    let fips = found(|_, facts| drop(facts.variables.insert("crypto/fips_enabled".into(), "1".into())));
    assert_eq!(fips, [("fips", Warn)]);
    let full = |_: &mut Wanted, facts: &mut Facts| {
        facts.variables.insert("net/netfilter/nf_conntrack_count".into(), "90".into());
    };
    assert_eq!(found(full), [("conntrack", Warn)]);
    let older = found(|_, facts| facts.has_older_filters = true);
    assert_eq!(older, [("input-policy", Skip)]);
}

#[test]
fn what_other_nodes_answer_is_judged() {
    let with = |all: Vec<Probed>| found(|_, facts| facts.probed = Some(all));
    let good = || probed("b", Ok(true), Way::Fits);
    let unasked = || Err("it is no peer of the data plane".to_owned());
    assert_eq!(found(|_, facts| facts.probed = None), [("peers", Skip)]);
    assert_eq!(with(Vec::new()), [("peers", Skip)]);
    assert_eq!(with(vec![good(), probed("c", Ok(false), Way::Fits)]), [("peers", Fail)]);
    assert_eq!(with(vec![good(), probed("c", unasked(), Way::Fits)]), [("peers", Warn)]);
    assert_eq!(with(vec![probed("c", unasked(), Way::Fits)]), [("peers", Skip)]);
    let narrow = Way::Narrow { takes: 1400, needed: 1480 };
    assert_eq!(with(vec![good(), probed("c", Ok(true), narrow)]), [("path-mtu", Warn)]);
    assert_eq!(with(vec![good(), probed("c", Ok(true), Way::Silent)]), [("path-mtu", Warn)]);
    assert_eq!(with(vec![probed("c", Ok(true), Way::Unasked("EPERM".to_owned()))]), []);
}

#[test]
fn a_kernel_without_ipv6_is_missed_where_pods_have_it_and_forwards_none() {
    let without = |wanted: &mut Wanted, facts: &mut Facts| {
        facts.has_ipv6 = false;
        wanted.cluster_prefixes.insert("fd00:244::/48".parse().unwrap());
    };
    assert_eq!(found(without), [("ipv6", Warn)]);
    assert_eq!(found(|_, facts| facts.has_ipv6 = false), []);
}

#[test]
fn our_own_things_are_in_nobodys_way() {
    let quiet = found(|wanted, facts| {
        let settings = &wanted.settings;
        facts.data_plane = Some(DataPlane { listen_port: settings.listen_port });
        facts.port_holders = Ok(vec![("udp 00000000:CA6C".to_owned(), false)]);
        let own = PolicyRule {
            table: Some(settings.table),
            mark: Some((settings.fwmark, u32::MAX)),
            is_inverted: true,
            ..rule(settings.rule_priority)
        };
        // As an old kernel tells it, too.
        facts.rules = Ok(vec![own, PolicyRule { protocol: None, ..own }]);
        facts.userspace_tunnels = vec![settings.interface.clone()];
        facts.routes = Ok(vec![TableRoute {
            table: settings.table,
            destination: ([10, 244, 0, 0].into(), 16),
            metric: 1,
            kind: RouteKind::Blackhole,
            mtu: None,
            protocol: PROTOCOL,
        }]);
    });
    assert_eq!(quiet, []);
    let elsewhere = found(|_, facts| {
        facts.data_plane = Some(DataPlane { listen_port: 7 });
        facts.port_holders = Ok(vec![("udp 00000000:CA6C".to_owned(), true)]);
    });
    assert_eq!(elsewhere, [("udp-port", Fail)]);
}

#[test]
fn hosts_in_the_tunnel_need_a_lenient_filter_on_every_interface() {
    let strict = found(|wanted, _| wanted.settings.host_traffic = HostTraffic::Encrypt);
    assert_eq!(strict, [("rp-filter", Fail)]);
}

#[test]
fn strict_filters_let_marked_datagrams_through_where_marks_count() {
    let by_mark = |link: &str| {
        found(|wanted, facts| {
            wanted.settings.host_traffic = HostTraffic::Encrypt;
            facts.variables.insert(format!("net/ipv4/conf/{link}/src_valid_mark"), "1".to_owned());
        })
    };
    assert_eq!(by_mark("all"), [("rp-filter", Warn)]);
    assert_eq!(by_mark("eth0"), [("rp-filter", Warn)]);
    assert_eq!(by_mark("lo"), [("rp-filter", Fail)]);
}

#[test]
fn the_kernels_wireguard_is_needed_where_it_is_the_data_plane() {
    let tried = |result: Option<io::Result<()>>, kind: Option<&str>| {
        found(move |wanted, facts| {
            wanted.settings.backend = Backend::Kernel;
            (facts.tun, facts.kernel_interface) = (None, result);
            let links = facts.links.as_mut().unwrap();
            let link = Link {
                name: "adit0".to_owned(),
                kind: kind.map(str::to_owned),
                mtu: 1420,
                ..links[1].clone()
            };
            links.extend(kind.map(|_| link));
        })
    };
    let refused = || io::Error::from_raw_os_error(libc::EPERM);
    assert_eq!(tried(Some(Ok(())), None), []);
    assert_eq!(tried(None, Some("wireguard")), []);
    assert_eq!(tried(None, Some("tun")), [("kernel-wireguard", Fail)]);
    assert_eq!(tried(Some(Err(refused())), None), [("kernel-wireguard", Fail)]);
}

#[test]
fn routes_into_the_pods_network_are_doubtful_unless_they_lead_to_pods() {
    let to = |text: &str, protocol: u8| {
        let network: Prefix = text.parse().unwrap();
        let route = TableRoute {
            table: 254,
            destination: (network.addr(), network.len()),
            metric: 0,
            kind: RouteKind::Other(1),
            mtu: None,
            protocol,
        };
        found(|wanted, facts| {
            wanted.pod_prefixes.insert("10.244.2.0/24".parse().unwrap());
            facts.routes = Ok(vec![route]);
        })
    };
    let doubtful = [("cluster-prefixes", Warn)];
    assert_eq!(to("10.244.7.0/24", 4), doubtful);
    // Ours, a node's block and parts of it, all blocks at once, a pod, Calico's; the pods' network or more.
    for (text, protocol) in [
        ("10.244.7.0/24", PROTOCOL),
        ("10.244.2.0/24", 4),
        ("10.244.2.64/26", 4),
        ("10.244.0.0/17", 4),
        ("10.244.7.1/32", 4),
        ("10.244.7.0/26", 12),
        ("10.244.0.0/16", 4),
        ("10.0.0.0/8", 4),
        ("0.0.0.0/0", 4),
        ("192.168.0.0/16", 4),
    ] {
        assert_eq!(to(text, protocol), [], "{text} by {protocol}");
    }
}

#[test]
fn a_network_of_pods_of_which_it_is_not_known_whose_they_are_is_doubtful() {
    let connected = TableRoute {
        table: 254,
        destination: ([10, 244, 1, 0].into(), 24),
        metric: 0,
        kind: RouteKind::Unicast { interface: 2 },
        mtu: None,
        protocol: BY_KERNEL,
    };
    assert_eq!(found(|_, facts| facts.routes = Ok(vec![connected])), []);
    let doubtful = found(|wanted, facts| {
        facts.routes = Ok(vec![connected]);
        wanted.own_prefixes = None;
    });
    assert_eq!(doubtful, [("cluster-prefixes", Warn)]);
    let all = TableRoute { destination: ([10, 0, 0, 0].into(), 8), ..connected };
    assert_eq!(found(|_, facts| facts.routes = Ok(vec![all])), [("cluster-prefixes", Fail)]);
}

#[test]
fn one_missing_privilege_is_one_failure() {
    let refused = || io::Error::from_raw_os_error(libc::EPERM);
    let found = found(|_, facts| {
        facts.is_capable = false;
        facts.tun = Some(Err(refused()));
        facts.dropping_chains = Err(refused().to_string());
    });
    let expected = [("capability", Fail), ("tun", Skip), ("nftables", Skip), ("input-policy", Skip)];
    assert_eq!(found, expected);
}

#[test]
fn much_evidence_is_cut_short() {
    let (_, text) = verdict(Fail, (0..20).map(|n| n.to_string()), "found: ", "");
    assert_eq!(text, "found: 0, 1, 2, 3, 4, 5, 6, 7, 12 more");
}
