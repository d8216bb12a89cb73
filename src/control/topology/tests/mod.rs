//! What one node should do, for clusters of three and four.

mod claims;
mod given_up;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::Prefix;
use crate::control::api::{PodAddresses, Scope, StrictGate, TunnelConfigSpec};
use crate::control::blocks::Blocks;
use crate::control::objects::{Config, Node, PodNetwork, Tunnel};
use crate::control::plan::Entry;

fn key(number: u8) -> PublicKey {
    PublicKey::new([number; 32])
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A node of number `n`: key n, endpoint 192.0.2.n, pods 10.244.n.0/24 and fd00:n::/64.
fn node(n: u8) -> Tunnel {
    Tunnel {
        created: format!("2026-01-01T00:00:{n:02}Z"),
        active: Some(key(n)),
        keys: vec![key(n)],
        endpoints: vec![SocketAddr::from(([192, 0, 2, n], 51820))],
        pod_prefixes: vec![prefix(&format!("10.244.{n}.0/24")), prefix(&format!("fd00:{n}::/64"))],
        node_addresses: vec![IpAddr::from([192, 0, 2, n])],
        tunnel_addresses: vec![IpAddr::from([10, 244, n, 0])],
        ..Tunnel::default()
    }
}

/// Three nodes, `a`, `b` and `c`, of which `a` is ours and the oldest.
fn objects(mode: Mode) -> Objects {
    let mut objects = Objects::default();
    for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
        objects.tunnels.insert(name.to_owned(), node(n).into());
    }
    set(&mut objects, |spec| spec.mode = Some(mode));
    objects
}

fn set(objects: &mut Objects, change: impl FnOnce(&mut TunnelConfigSpec)) {
    let config = objects.configs.entry("default".to_owned()).or_default();
    change(&mut config.spec);
}

fn change(objects: &mut Objects, name: &str, change: impl FnOnce(&mut Tunnel)) {
    change(objects.tunnels.get_mut(name).unwrap());
}

/// Has the cluster know all who say something of themselves.
fn know_all(objects: &mut Objects) {
    let unknown = objects.tunnels.keys().filter(|name| !objects.nodes.contains_key(*name));
    let unknown: Vec<_> = unknown.map(|name| (name.clone(), Node::default().into())).collect();
    objects.nodes.extend(unknown);
}

fn of(objects: &Objects) -> Topology {
    topology(objects, &Own::new("a", key(1)))
}

fn entries(topology: &Topology) -> Vec<String> {
    texts(&topology.routes.entries)
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| format!("{:?} {}", entry.kind, entry.prefix).to_lowercase()).collect()
}

fn allowed(topology: &Topology, n: u8) -> Vec<String> {
    topology.peers[&key(n)].allowed_ips.iter().map(ToString::to_string).collect()
}

fn faults(topology: &Topology) -> Vec<String> {
    topology.faults.iter().map(|(object, fault)| format!("{object} {fault}")).collect()
}

#[test]
fn more_is_accepted_from_a_node_than_is_routed_to_it() {
    let topology = of(&objects(Mode::Strict));
    assert_eq!(topology.peers.len(), 2);
    assert_eq!(allowed(&topology, 2), ["10.244.2.0/24", "10.244.2.0/32", "192.0.2.2/32", "fd00:2::/64"]);
    let expected = [
        "throw 10.244.1.0/24",
        "unicast 10.244.2.0/24",
        "blackhole 10.244.2.0/24",
        "unicast 10.244.2.0/32",
        "blackhole 10.244.2.0/32",
        "unicast 10.244.3.0/24",
        "blackhole 10.244.3.0/24",
        "unicast 10.244.3.0/32",
        "blackhole 10.244.3.0/32",
        "throw fd00:1::/64",
        "unicast fd00:2::/64",
        "blackhole fd00:2::/64",
        "unicast fd00:3::/64",
        "blackhole fd00:3::/64",
    ];
    assert_eq!(entries(&topology), expected);
    assert!(topology.not_encrypted.is_empty() && topology.faults.is_empty() && topology.degraded.is_none());
    let routes = &topology.routes;
    assert_eq!((routes.table, routes.fwmark, routes.rule_priority), (0x20ad, 0x20ad, 99));
    assert_eq!(
        (routes.interface.as_str(), &topology.addresses[..]),
        ("adit0", &[IpAddr::from([10, 244, 1, 0])][..])
    );
}

#[test]
fn a_node_without_a_key_is_dropped_in_strict_and_plain_in_permissive() {
    for (mode, kind, is_dropped) in [(Mode::Strict, "blackhole", true), (Mode::Permissive, "throw", false)] {
        let mut objects = objects(mode);
        change(&mut objects, "b", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
        // One that nothing is known of but that the cluster gave it pods.
        let given = Node { pod_prefixes: vec![prefix("10.244.4.0/24")], ..Node::default() };
        objects.nodes.insert("d".to_owned(), given.into());
        know_all(&mut objects);
        let topology = of(&objects);
        assert_eq!(topology.peers.keys().collect::<Vec<_>>(), [&key(3)]);
        let unencrypted = Unencrypted { reason: Reason::NoKey, is_dropped };
        let names: Vec<_> = topology.not_encrypted.iter().map(|(name, how)| (name.as_str(), *how)).collect();
        assert_eq!(names, [("b", unencrypted), ("d", unencrypted)]);
        let entries = entries(&topology);
        for prefix in ["10.244.2.0/24", "fd00:2::/64", "10.244.4.0/24"] {
            let of_prefix: Vec<_> =
                entries.iter().filter(|entry| entry.ends_with(&format!(" {prefix}"))).collect();
            assert_eq!(of_prefix, [&format!("{kind} {prefix}")]);
        }
    }
}

#[test]
fn a_node_inside_all_pods_prefixes_is_reached_unless_pods_were_there() {
    for is_named in [true, false] {
        let mut objects = objects(Mode::Strict);
        change(&mut objects, "b", |tunnel| tunnel.node_addresses = vec![[10, 244, 9, 9].into()]);
        if is_named {
            set(&mut objects, |spec| {
                spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()])
            });
        } else {
            let prefixes = vec![prefix("10.244.0.0/16")];
            objects.pod_network = Some(PodNetwork { prefixes, faults: Vec::new() });
        }
        let open = "throw 10.244.9.9/32".to_owned();
        assert!(entries(&of(&objects)).contains(&open));
        let own = Own { remembered: Remembered::of_text("10.244.9.0/24\n"), ..Own::new("a", key(1)) };
        assert!(!entries(&topology(&objects, &own)).contains(&open));
        // Nor if they are, the node's own as well.
        for name in ["b", "c"] {
            let mut objects = objects.clone();
            change(&mut objects, name, |tunnel| tunnel.pod_prefixes.push(prefix("10.244.9.0/24")));
            assert!(!entries(&of(&objects)).contains(&open), "{name}");
        }
    }
}

/// Whoever has named too much can say otherwise.
#[test]
fn an_api_server_inside_all_pods_prefixes_is_reached() {
    for host_traffic in [HostTraffic::Plain, HostTraffic::PodToNode, HostTraffic::Encrypt] {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| {
            spec.host_traffic = Some(host_traffic);
            spec.cluster_cidrs = Some(vec!["10.0.0.0/8".to_owned(), "fd00::/16".to_owned()]);
        });
        objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([10, 9, 0, 100])]);
        let own = Own { api_servers: vec![IpAddr::from([10, 96, 0, 1])], ..Own::new("a", key(1)) };
        let entries = entries(&topology(&objects, &own));
        for entry in ["throw 10.9.0.100/32", "throw 10.96.0.1/32", "blackhole 10.0.0.0/8"] {
            assert!(entries.contains(&entry.to_owned()), "{host_traffic:?} {entry}");
        }
    }
}

/// Nor does whoever claims too much keep it from saying so.
#[test]
fn an_api_server_among_the_pods_of_a_node_is_reached() {
    let own = Own { api_servers: vec![IpAddr::from([10, 244, 2, 9])], ..Own::new("a", key(1)) };
    for (mode, is_caught) in [(Mode::Strict, false), (Mode::Strict, true), (Mode::Permissive, false)] {
        let mut objects = objects(mode);
        let cluster = is_caught.then(|| vec!["10.0.0.0/8".to_owned(), "fd00::/16".to_owned()]);
        set(&mut objects, |spec| spec.cluster_cidrs.clone_from(&cluster));
        // The cluster itself may give the block in which an API server is, or a node call it a pod's.
        let given = Node { pod_prefixes: vec![prefix("10.244.2.0/24")], ..Node::default() };
        objects.nodes.insert("b".to_owned(), given.into());
        objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([10, 244, 2, 7])]);
        change(&mut objects, "b", |tunnel| {
            tunnel.pod_prefixes = ["10.244.2.0/24", "10.244.2.9/32"].map(prefix).into();
        });
        let entries = entries(&topology(&objects, &own));
        for entry in ["throw 10.244.2.7/32", "throw 10.244.2.9/32", "unicast 10.244.2.0/24"] {
            assert!(entries.contains(&entry.to_owned()), "{mode:?} {entry}: {entries:?}");
        }
        assert!(!entries.iter().any(|entry| entry.ends_with("cast 10.244.2.9/32")), "{entries:?}");
    }
}

#[test]
fn pods_keep_their_addresses_inside_the_cluster_whatever_the_mode() {
    for mode in [Mode::Off, Mode::Permissive, Mode::Strict] {
        let mut objects = objects(mode);
        set(&mut objects, |spec| {
            spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
        });
        // One that has said nothing of itself.
        let silent = Node { pod_prefixes: vec![prefix("10.244.9.0/24")], ..Node::default() };
        objects.nodes.insert("d".to_owned(), silent.into());
        // One that has another block since, and has not said so yet.
        let given =
            Node { pod_prefixes: ["10.244.3.0/24", "10.7.0.0/24"].map(prefix).into(), ..Node::default() };
        objects.nodes.insert("c".to_owned(), given.into());
        know_all(&mut objects);
        let Masquerade { sources, inside } = of(&objects).masquerade;
        assert_eq!(sources, node(1).pod_prefixes, "{mode:?}");
        let expected =
            ["10.244.0.0/16", "10.244.9.0/24", "10.244.2.0/32", "10.7.0.0/24", "fd00::/16", "fd00:2::/64"];
        assert!(expected.iter().all(|text| inside.contains(&prefix(text))), "{inside:?}");
        // Nodes are outside: they need not know the way to pods.
        assert!(!inside.iter().any(|prefix| prefix.contains([192, 0, 2, 2].into())));
    }
}

#[test]
fn off_routes_nothing_and_accepts_everything() {
    let topology = of(&objects(Mode::Off));
    assert!(topology.routes.entries.is_empty());
    assert_eq!(topology.peers, of(&objects(Mode::Strict)).peers);
    assert!(topology.not_encrypted.values().all(|how| how.reason == Reason::ModeOff && !how.is_dropped));
    assert_eq!(topology.not_encrypted.len(), 2);
}

#[test]
fn one_node_can_be_told_otherwise() {
    let mut objects = objects(Mode::Strict);
    let own = TunnelConfigSpec { mode: Some(Mode::Off), ..TunnelConfigSpec::default() };
    objects.configs.insert("node.a".to_owned(), Config { spec: own, faults: Vec::new() });
    assert!(of(&objects).routes.entries.is_empty());
    let b = Own::new("b", key(2));
    assert!(!topology(&objects, &b).routes.entries.is_empty());
}

#[test]
fn host_traffic_that_is_encrypted_is_routed_but_for_what_is_exempt() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| {
        spec.host_traffic = Some(HostTraffic::Encrypt);
        spec.exempt = Some(vec!["apiserver".to_owned(), "198.51.100.0/24".to_owned()]);
    });
    let own = Own { api_servers: vec![IpAddr::from([192, 0, 2, 3])], ..Own::new("a", key(1)) };
    let entries = entries(&topology(&objects, &own));
    for entry in
        ["unicast 192.0.2.2/32", "blackhole 192.0.2.2/32", "throw 192.0.2.3/32", "throw 198.51.100.0/24"]
    {
        assert!(entries.contains(&entry.to_owned()), "{entry}");
    }
    assert!(!entries.contains(&"unicast 192.0.2.3/32".to_owned()));
    assert!(!entries.contains(&"blackhole 192.0.2.3/32".to_owned()));
}

#[test]
fn a_node_that_is_inside_what_is_exempt_is_exempt() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| {
        spec.host_traffic = Some(HostTraffic::Encrypt);
        spec.cluster_cidrs =
            Some(vec!["192.0.0.0/8".to_owned(), "10.0.0.0/8".to_owned(), "fd00::/16".to_owned()]);
        spec.exempt = Some(vec!["192.0.2.0/24".to_owned()]);
    });
    let entries = entries(&of(&objects));
    for entry in ["throw 192.0.2.0/24", "throw 192.0.2.2/32", "throw 192.0.2.3/32", "unicast 10.244.2.0/24"] {
        assert!(entries.contains(&entry.to_owned()), "{entry}");
    }
    assert!(!entries.iter().any(|entry| entry.starts_with("unicast 192.")));
}

#[test]
fn what_a_node_needs_to_be_known_stays_outside_the_tunnel_on_both_sides() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| spec.host_traffic = Some(HostTraffic::Encrypt));
    // A node that has nothing yet but an address, and one whose key is gone.
    let fresh = Node { addresses: vec![IpAddr::from([192, 0, 2, 4])], ..Node::default() };
    objects.nodes.insert("d".to_owned(), fresh.into());
    know_all(&mut objects);
    change(&mut objects, "c", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
    objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([192, 0, 2, 1])]);
    // On the node of the API server, which is ours.
    let server = entries(&of(&objects));
    for n in 2..=4 {
        assert!(server.contains(&format!("throw 192.0.2.{n}/32")), "{n}");
        assert!(!server.iter().any(|entry| *entry == format!("blackhole 192.0.2.{n}/32")), "{n}");
    }
    assert!(server.contains(&"unicast 10.244.2.0/24".to_owned()), "its pods' traffic does not");
    // On another one.
    let other = entries(&topology(&objects, &Own::new("b", key(2))));
    assert!(other.contains(&"throw 192.0.2.1/32".to_owned()));
    for n in 3..=4 {
        assert!(other.contains(&format!("blackhole 192.0.2.{n}/32")), "{n}");
    }
    // Where nothing is exempt, nothing is.
    set(&mut objects, |spec| spec.exempt = Some(Vec::new()));
    let other = entries(&topology(&objects, &Own::new("b", key(2))));
    assert!(other.contains(&"unicast 192.0.2.1/32".to_owned()));
    assert!(entries(&of(&objects)).contains(&"unicast 192.0.2.2/32".to_owned()));
}

#[test]
fn pods_have_routes_to_nodes_of_their_own() {
    for (mode, expected) in [
        (Mode::Strict, &["unicast 192.0.2.2/32", "blackhole 192.0.2.2/32"][..]),
        (Mode::Permissive, &["unicast 192.0.2.2/32"]),
        (Mode::Off, &[]),
    ] {
        let mut objects = objects(mode);
        set(&mut objects, |spec| spec.host_traffic = Some(HostTraffic::PodToNode));
        objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([192, 0, 2, 3])]);
        let topology = of(&objects);
        assert_eq!(texts(&topology.routes.from_pods.entries), expected);
        if mode != Mode::Off {
            assert_eq!(topology.routes.from_pods.sources, [prefix("10.244.1.0/24"), prefix("fd00:1::/64")]);
        }
        assert!(!entries(&topology).iter().any(|entry| entry.contains(" 192.")), "hosts are left alone");
    }
}

#[test]
fn strict_waits_until_all_are_ready_where_it_was_not_so_before() {
    let mut objects = objects(Mode::Strict);
    let in_mode = |objects: &Objects, mode| {
        let topology = topology(objects, &Own { mode, ..Own::new("a", key(1)) });
        let waits_for = topology.waits_for.iter().map(|(name, why)| format!("{name} {why}"));
        (topology.settings.mode, waits_for.collect::<Vec<_>>().join(", "))
    };
    let strict = (Mode::Strict, String::new());
    let waiting = |text: &str| (Mode::Permissive, text.to_owned());
    // Without a cluster nobody says that he is ready.
    assert_eq!(in_mode(&objects, Some(Mode::Permissive)), strict);
    change(&mut objects, "b", |tunnel| (tunnel.active, tunnel.keys) = (None, Vec::new()));
    for mode in [Some(Mode::Off), Some(Mode::Permissive)] {
        assert_eq!(in_mode(&objects, mode), waiting("b NoKey"));
    }
    // Who was Strict stays so, and who comes new begins so.
    for mode in [Some(Mode::Strict), None] {
        assert_eq!(in_mode(&objects, mode), strict);
    }
    objects.nodes.insert("d".to_owned(), Node::default().into());
    know_all(&mut objects);
    change(&mut objects, "c", |tunnel| tunnel.is_ready = Some(false));
    assert_eq!(in_mode(&objects, Some(Mode::Off)), waiting("b NoKey, c NotReady, d NotPublished"));
    change(&mut objects, "c", |tunnel| (tunnel.active, tunnel.keys) = (Some(key(1)), vec![key(1)]));
    change(&mut objects, "b", |tunnel| *tunnel = node(2));
    assert_eq!(in_mode(&objects, Some(Mode::Off)), waiting("b NoStatus, c DuplicateKey, d NotPublished"));
    set(&mut objects, |spec| spec.strict_gate = Some(StrictGate::Immediate));
    assert_eq!(in_mode(&objects, Some(Mode::Off)), strict);
    set(&mut objects, |spec| spec.strict_gate = Some(StrictGate::WhenAllReady));
    objects.nodes.remove("d");
    change(&mut objects, "c", |tunnel| *tunnel = node(3));
    for name in ["b", "c"] {
        change(&mut objects, name, |tunnel| tunnel.is_ready = Some(true));
    }
    assert_eq!(in_mode(&objects, Some(Mode::Off)), strict);
}

#[test]
fn nodes_of_one_zone_are_passed_by_if_only_other_zones_are_wanted() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| spec.scope = Some(Scope::CrossZone));
    change(&mut objects, "a", |tunnel| tunnel.zone = Some("east".to_owned()));
    change(&mut objects, "b", |tunnel| tunnel.zone = Some("east".to_owned()));
    let topology = of(&objects);
    let near = Unencrypted { reason: Reason::SameZone, is_dropped: false };
    assert_eq!(topology.not_encrypted, [("b".to_owned(), near)].into());
    assert!(topology.peers.contains_key(&key(2)), "what comes encrypted is accepted");
    let entries = entries(&topology);
    assert!(entries.contains(&"throw 10.244.2.0/24".to_owned()));
    assert!(!entries.contains(&"blackhole 10.244.2.0/24".to_owned()));
    assert!(entries.contains(&"unicast 10.244.3.0/24".to_owned()));
}
#[test]
fn nodes_of_ones_own_subnet_are_passed_by_if_only_other_subnets_are_wanted() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| {
        spec.scope = Some(Scope::CrossSubnet);
        spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
    });
    change(&mut objects, "c", |tunnel| {
        // It prefers a place far away; a nearer one does not count.
        tunnel.endpoints.insert(0, "198.51.100.3:51820".parse().unwrap());
    });
    let links = vec![(IpAddr::from([10, 244, 1, 1]), 8), (IpAddr::from([192, 0, 2, 1]), 24)];
    let topology = topology(&objects, &Own { links, ..Own::new("a", key(1)) });
    assert!(topology.faults.is_empty(), "{:?}", topology.faults);
    let near = Unencrypted { reason: Reason::SameSubnet, is_dropped: false };
    assert_eq!(topology.not_encrypted, [("b".to_owned(), near)].into());
    assert!(topology.peers.contains_key(&key(2)), "what comes encrypted is accepted");
    let entries = entries(&topology);
    assert!(entries.contains(&"throw 10.244.2.0/24".to_owned()));
    assert!(entries.contains(&"blackhole 10.244.0.0/16".to_owned()));
    assert!(entries.contains(&"unicast 10.244.3.0/24".to_owned()));
    // Who does not know its own subnet passes nobody by.
    assert!(of(&objects).not_encrypted.is_empty());
}

#[test]
fn a_kernel_without_ipv6_is_asked_for_none_and_ipv4_is_as_it_would_be() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| {
        spec.cluster_cidrs = Some(["10.244.0.0/16", "fd00::/16"].map(str::to_owned).into());
        spec.host_traffic = Some(HostTraffic::PodToNode);
    });
    change(&mut objects, "a", |tunnel| tunnel.tunnel_addresses.push("fd00:1::".parse().unwrap()));
    change(&mut objects, "b", |tunnel| {
        tunnel.node_addresses.push("2001:db8::2".parse().unwrap());
        tunnel.endpoints.insert(0, "[2001:db8::2]:51820".parse().unwrap());
    });
    let whole = of(&objects);
    let own = Own { lacks_ipv6: true, ..Own::new("a", key(1)) };
    let without = topology(&objects, &own);
    let of_ipv4 = |entries: &[Entry]| {
        let of_ipv4 = entries.iter().filter(|entry| entry.prefix.addr().is_ipv4());
        texts(&of_ipv4.copied().collect::<Vec<_>>())
    };
    assert_eq!(entries(&without), of_ipv4(&whole.routes.entries));
    assert_eq!(texts(&without.routes.from_pods.entries), of_ipv4(&whole.routes.from_pods.entries));
    assert!(!without.routes.from_pods.entries.is_empty());
    assert_eq!(without.routes.from_pods.sources, [prefix("10.244.1.0/24")]);
    assert_eq!(without.addresses, [IpAddr::from([10, 244, 1, 0])]);
    assert_eq!(without.peers[&key(2)].endpoints, [SocketAddr::from(([192, 0, 2, 2], 51820))]);
    assert_eq!(without.peers[&key(2)].allowed_ips, whole.peers[&key(2)].allowed_ips);
    assert_eq!((whole.lacks_ipv6, without.lacks_ipv6), (false, true));
    // Where nobody has any, none is missed.
    for name in ["a", "b", "c"] {
        change(&mut objects, name, |tunnel| {
            tunnel.pod_prefixes.pop();
            tunnel.tunnel_addresses.truncate(1);
            tunnel.node_addresses.truncate(1);
        });
    }
    set(&mut objects, |spec| spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned()]));
    assert!(!topology(&objects, &own).lacks_ipv6);
}
