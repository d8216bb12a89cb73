//! What one node should do, for clusters of three and four.

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
fn a_key_that_two_nodes_have_belongs_to_the_older_and_the_younger_never_goes_in_clear() {
    for mode in [Mode::Strict, Mode::Permissive] {
        let mut objects = objects(mode);
        change(&mut objects, "c", |tunnel| {
            (tunnel.active, tunnel.keys) = (Some(key(2)), vec![key(3), key(2)])
        });
        let topology = of(&objects);
        assert_eq!(topology.peers.keys().collect::<Vec<_>>(), [&key(2)]);
        assert_eq!(topology.peers[&key(2)].node, "b");
        let unencrypted = Unencrypted { reason: Reason::DuplicateKey, is_dropped: true };
        assert_eq!(topology.not_encrypted.get("c"), Some(&unencrypted));
        assert!(entries(&topology).contains(&"blackhole 10.244.3.0/24".to_owned()));
        assert!(!entries(&topology).contains(&"unicast 10.244.3.0/24".to_owned()));
        // Which of them is older is said by the objects, not by their names.
        change(&mut objects, "c", |tunnel| tunnel.created = "2025-01-01T00:00:00Z".to_owned());
        assert_eq!(of(&objects).peers[&key(2)].node, "c");
    }
}

#[test]
fn a_node_whose_key_an_older_one_has_says_so() {
    let mut objects = objects(Mode::Strict);
    change(&mut objects, "b", |tunnel| {
        (tunnel.active, tunnel.keys) = (Some(key(1)), vec![key(1)]);
    });
    assert_eq!(of(&objects).degraded, None);
    assert_eq!(of(&objects).not_encrypted["b"].reason, Reason::DuplicateKey);
    assert!(!of(&objects).peers.is_empty());
    change(&mut objects, "b", |tunnel| tunnel.created = String::new());
    let topology = of(&objects);
    assert_eq!(topology.degraded, Some(Degraded::DuplicateKey { node: "b".to_owned() }));
    assert_eq!(topology.not_encrypted["b"].reason, Reason::DuplicateKey);
    assert!(topology.peers.is_empty(), "it talks to nobody");
    change(&mut objects, "a", |tunnel| tunnel.active = Some(key(9)));
    change(&mut objects, "b", |tunnel| tunnel.keys = vec![]);
    assert_eq!(of(&objects).degraded, Some(Degraded::OtherKeyPublished));
    objects.tunnels.remove("a");
    assert_eq!(of(&objects).degraded, Some(Degraded::NotPublished));
}

#[test]
fn a_claim_on_what_is_anothers_has_no_effect() {
    let mut objects = objects(Mode::Strict);
    let before = of(&objects);
    change(&mut objects, "c", |tunnel| {
        // b's pods; a block around b's own address; b's address, tunnel address and one of its pods.
        tunnel.pod_prefixes.extend(["10.244.2.0/24", "192.0.2.0/25", "fd00:2::/64"].map(prefix));
        tunnel.node_addresses.extend([[192, 0, 2, 2], [10, 244, 2, 9]].map(IpAddr::from));
        tunnel.tunnel_addresses.extend([[192, 0, 2, 1], [10, 244, 2, 0]].map(IpAddr::from));
    });
    let topology = of(&objects);
    assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
    assert_eq!(
        faults(&topology),
        [
            "NodeTunnel/c spec.nodeAddresses[1]: 192.0.2.2 belongs to the older node b",
            "NodeTunnel/c spec.nodeAddresses[2]: 10.244.2.9 is among the pods of the node b",
            "NodeTunnel/c spec.podPrefixes[2]: 10.244.2.0/24 belongs to the older node b",
            "NodeTunnel/c spec.podPrefixes[3]: 192.0.2.0/25 holds addresses of the older nodes a and b",
            "NodeTunnel/c spec.podPrefixes[4]: fd00:2::/64 belongs to the older node b",
            "NodeTunnel/c spec.tunnelAddresses[1]: 192.0.2.1 belongs to the older node a",
            "NodeTunnel/c spec.tunnelAddresses[2]: 10.244.2.0 belongs to the older node b",
        ]
    );
}

/// Has the cluster know the three nodes as they say that they are.
fn know_nodes(objects: &mut Objects) {
    for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
        let Tunnel { node_addresses: addresses, pod_prefixes, .. } = node(n);
        let node = Node { addresses, pod_prefixes, ..Node::default() };
        objects.nodes.insert(name.to_owned(), node.into());
    }
}

#[test]
fn an_older_node_takes_no_address_that_the_cluster_gave_a_younger_one() {
    for host_traffic in [HostTraffic::Plain, HostTraffic::PodToNode, HostTraffic::Encrypt] {
        let mut objects = objects(Mode::Strict);
        set(&mut objects, |spec| spec.host_traffic = Some(host_traffic));
        know_nodes(&mut objects);
        // One that has not said anything so far.
        let silent = Node {
            addresses: vec![IpAddr::from([192, 0, 2, 4])],
            pod_prefixes: vec![prefix("10.244.4.0/24")],
            ..Node::default()
        };
        objects.nodes.insert("d".to_owned(), silent.into());
        let before = of(&objects);
        assert_eq!(faults(&before), [""; 0]);
        // One of c's pods, c's own address, one of d's pods, d's own address, and somebody outside.
        let stolen = [[10, 244, 3, 9], [192, 0, 2, 3], [10, 244, 4, 9], [192, 0, 2, 4], [203, 0, 113, 9]];
        change(&mut objects, "b", |tunnel| {
            tunnel.node_addresses.extend(stolen.map(IpAddr::from));
            tunnel.tunnel_addresses.extend(stolen.map(IpAddr::from));
        });
        let topology = of(&objects);
        assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
        assert_eq!(
            faults(&topology),
            [
                "NodeTunnel/b spec.nodeAddresses[1]: 10.244.3.9 is among the pods of the node c",
                "NodeTunnel/b spec.nodeAddresses[2]: 192.0.2.3 is not among the addresses of the node",
                "NodeTunnel/b spec.nodeAddresses[3]: 10.244.4.9 is among the pods of the node d",
                "NodeTunnel/b spec.nodeAddresses[4]: 192.0.2.4 is not among the addresses of the node",
                "NodeTunnel/b spec.nodeAddresses[5]: 203.0.113.9 is not among the addresses of the node",
                "NodeTunnel/b spec.tunnelAddresses[1]: 10.244.3.9 is among the pods of the node c",
                "NodeTunnel/b spec.tunnelAddresses[2]: 192.0.2.3 is not among the podCIDRs of the node",
                "NodeTunnel/b spec.tunnelAddresses[3]: 10.244.4.9 is among the pods of the node d",
                "NodeTunnel/b spec.tunnelAddresses[4]: 192.0.2.4 is not among the podCIDRs of the node",
                "NodeTunnel/b spec.tunnelAddresses[5]: 203.0.113.9 is not among the podCIDRs of the node",
            ]
        );
    }
}

#[test]
fn what_is_left_of_a_node_that_is_gone_counts_for_nothing() {
    let mut objects = objects(Mode::Strict);
    // The older one of two with one key, and of all pods' addresses.
    change(&mut objects, "b", |tunnel| {
        (tunnel.active, tunnel.keys) = (Some(key(3)), vec![key(3)]);
        tunnel.pod_prefixes = vec![prefix("10.0.0.0/8")];
    });
    assert_eq!(of(&objects).not_encrypted["c"].reason, Reason::DuplicateKey, "only nodes speak of nodes");
    objects.nodes.insert("c".to_owned(), Node::default().into());
    let found = of(&objects);
    assert_eq!(faults(&found), ["NodeTunnel/b metadata.name: the cluster has no node b"]);
    assert_eq!(found.peers.values().map(|peer| &peer.node[..]).collect::<Vec<_>>(), ["c"]);
    assert!(found.not_encrypted.is_empty());
    assert!(entries(&found).contains(&"throw 10.244.1.0/24".to_owned()), "this node counts for itself");
    assert!(!entries(&found).iter().any(|entry| entry.ends_with("10.0.0.0/8")));
    // Nor is it waited for.
    let own = Own { mode: Some(Mode::Permissive), ..Own::new("a", key(1)) };
    assert_eq!(topology(&objects, &own).waits_for.into_keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn where_the_cluster_gives_no_blocks_its_nodes_addresses_are_safe_all_the_same() {
    let mut objects = objects(Mode::Strict);
    for name in ["a", "b", "c"] {
        objects.nodes.insert(name.to_owned(), Node::default().into());
    }
    let node = Node { addresses: vec![IpAddr::from([192, 0, 2, 3])], ..Node::default() };
    objects.nodes.insert("c".to_owned(), node.into());
    let before = of(&objects);
    change(&mut objects, "b", |tunnel| {
        tunnel.pod_prefixes.push(prefix("192.0.2.0/25"));
        tunnel.node_addresses.push(IpAddr::from([192, 0, 2, 3]));
        tunnel.tunnel_addresses.extend([[192, 0, 2, 3], [10, 244, 3, 9]].map(IpAddr::from));
    });
    let topology = of(&objects);
    assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
    assert_eq!(
        faults(&topology),
        [
            "NodeTunnel/b spec.nodeAddresses[1]: 192.0.2.3 is an address of the node c",
            "NodeTunnel/b spec.podPrefixes[2]: 192.0.2.0/25 holds 192.0.2.3, an address of the node c",
            "NodeTunnel/b spec.tunnelAddresses[1]: 192.0.2.3 is an address of the node c",
            "NodeTunnel/b spec.tunnelAddresses[2]: 10.244.3.9 is among the pods of the node c",
        ]
    );
}

#[test]
fn no_block_is_lost_by_a_single_address_that_an_older_node_claims() {
    let mut objects = objects(Mode::Strict);
    let before = of(&objects);
    // Without a cluster nobody knows better.
    change(&mut objects, "b", |tunnel| {
        tunnel.node_addresses.push(IpAddr::from([10, 244, 3, 9]));
        tunnel.tunnel_addresses.push(IpAddr::from([10, 244, 3, 0]));
    });
    let topology = of(&objects);
    assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
    assert_eq!(
        faults(&topology),
        [
            "NodeTunnel/b spec.nodeAddresses[1]: 10.244.3.9 is among the pods of the node c",
            "NodeTunnel/b spec.tunnelAddresses[1]: 10.244.3.0 is among the pods of the node c",
        ]
    );
}

#[test]
fn a_block_that_the_cluster_gave_goes_nowhere_in_strict_while_its_node_does_not_claim_it() {
    for (mode, is_dropped) in [(Mode::Strict, true), (Mode::Permissive, false)] {
        let mut objects = objects(mode);
        know_nodes(&mut objects);
        change(&mut objects, "c", |tunnel| tunnel.pod_prefixes = vec![prefix("10.250.0.0/24")]);
        // Nor does our own, whose pods are ours all the same.
        change(&mut objects, "a", |tunnel| tunnel.pod_prefixes.clear());
        let entries = entries(&of(&objects));
        for given in ["10.244.3.0/24", "fd00:3::/64"] {
            assert_eq!(entries.contains(&format!("blackhole {given}")), is_dropped, "{mode:?} {given}");
        }
        assert!(entries.contains(&"throw 10.244.1.0/24".to_owned()));
        // What the cluster did not give is no pod's. A node that could have it dropped could have anything dropped.
        assert!(!entries.iter().any(|entry| entry.ends_with(" 10.250.0.0/24")));
    }
}

#[test]
fn a_block_inside_anothers_is_a_loan_unless_the_cluster_says_otherwise() {
    let mut objects = objects(Mode::Strict);
    change(&mut objects, "c", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.2.128/25")));
    assert!(allowed(&of(&objects), 3).contains(&"10.244.2.128/25".to_owned()));
    let given = Node { pod_prefixes: vec![prefix("10.244.2.0/24")], ..Node::default() };
    objects.nodes.insert("b".to_owned(), given.into());
    know_all(&mut objects);
    let topology = of(&objects);
    assert!(!allowed(&topology, 3).contains(&"10.244.2.128/25".to_owned()));
    assert_eq!(
        faults(&topology),
        [
            "NodeTunnel/b spec.podPrefixes[1]: fd00:2::/64 is not among the podCIDRs of the node",
            "NodeTunnel/c spec.podPrefixes[2]: the cluster gave 10.244.2.128/25 to the node b"
        ]
    );
}

#[test]
fn what_is_outside_the_clusters_prefixes_is_refused_and_the_rest_of_them_goes_nowhere() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| {
        spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned(), "fd00::/16".to_owned()]);
    });
    change(&mut objects, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.96.0.0/16")));
    let topology = of(&objects);
    assert_eq!(
        faults(&topology),
        ["NodeTunnel/b spec.podPrefixes[2]: 10.96.0.0/16 is outside the clusterCIDRs"]
    );
    let entries = entries(&topology);
    for entry in ["blackhole 10.244.0.0/16", "blackhole fd00::/16", "throw 10.244.1.0/24"] {
        assert!(entries.contains(&entry.to_owned()), "{entry}");
    }
    set(&mut objects, |spec| spec.mode = Some(Mode::Permissive));
    assert!(!self::entries(&of(&objects)).iter().any(|entry| entry.starts_with("blackhole")));
}

#[test]
fn what_was_another_nodes_and_is_nobodys_any_more_goes_nowhere_in_strict() {
    let mut objects = objects(Mode::Strict);
    change(&mut objects, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.7.2.0/24")));
    // Nobody's; one of b's, one of ours; around b's.
    let text = "10.244.9.0/24\n10.244.2.128/25\n10.244.1.7/32\n10.7.0.0/16\n";
    let own = Own { remembered: Remembered::of_text(text), ..Own::new("a", key(1)) };
    let found = topology(&objects, &own);
    assert_eq!(found.orphans, ["10.7.0.0/16", "10.244.9.0/24"].map(prefix));
    let mut expected = entries(&of(&objects));
    expected.extend(["blackhole 10.7.0.0/16", "blackhole 10.244.9.0/24"].map(str::to_owned));
    let is_same = |found: &Topology, mut expected: Vec<String>| {
        let mut found = entries(found);
        found.sort();
        expected.sort();
        found == expected
    };
    assert!(is_same(&found, expected), "{:?}", entries(&found));
    // What is to be remembered from here on is what others have.
    let guarded = ["10.244.2.0/24", "fd00:2::/64", "10.7.2.0/24", "10.244.3.0/24", "fd00:3::/64"].map(prefix);
    assert_eq!(found.guarded, guarded);
    // A node that has it has it.
    change(&mut objects, "c", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.9.0/24")));
    assert_eq!(topology(&objects, &own).orphans, [prefix("10.7.0.0/16")]);
    change(&mut objects, "c", |tunnel| *tunnel = node(3));
    // Who names the prefixes of all pods has said what else is to be dropped; and in Permissive nothing is.
    set(&mut objects, |spec| spec.cluster_cidrs = Some(vec!["10.244.0.0/16".to_owned()]));
    assert_eq!(topology(&objects, &own).orphans, []);
    set(&mut objects, |spec| (spec.cluster_cidrs, spec.mode) = (None, Some(Mode::Permissive)));
    let found = topology(&objects, &own);
    assert_eq!((&found.orphans[..], &found.guarded[..]), (&[][..], &[][..]));
    assert!(is_same(&found, entries(&of(&objects))));
}

#[test]
fn what_was_found_of_all_pods_prefixes_goes_nowhere_but_refuses_nothing() {
    let mut objects = objects(Mode::Strict);
    let prefixes = vec![prefix("10.244.0.0/16"), prefix("fd00::/16")];
    objects.pod_network = Some(PodNetwork { prefixes, faults: Vec::new() });
    let whole = of(&objects);
    for entry in ["blackhole 10.244.0.0/16", "blackhole fd00::/16", "throw 10.244.1.0/24"] {
        assert!(entries(&whole).contains(&entry.to_owned()), "{entry}");
    }
    assert!(!whole.settings.lacks_catch_all() && whole.masquerade.inside.contains(&prefix("10.244.0.0/16")));
    // Pods outside are reached, and say that it is not all.
    change(&mut objects, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.7.2.0/24")));
    let topology = of(&objects);
    assert_eq!(faults(&topology), [""; 0]);
    assert!(entries(&topology).contains(&"unicast 10.7.2.0/24".to_owned()));
    assert!(topology.settings.lacks_catch_all());
    // Outside, what was another node's still goes nowhere.
    let own =
        Own { remembered: Remembered::of_text("10.7.9.0/24\n10.244.9.0/24\n"), ..Own::new("a", key(1)) };
    assert_eq!(super::topology(&objects, &own).orphans, [prefix("10.7.9.0/24")]);
    // Who names them has said all, and in Permissive nothing goes nowhere.
    set(&mut objects, |spec| spec.cluster_cidrs = Some(vec!["10.0.0.0/8".to_owned()]));
    assert!(!entries(&of(&objects)).contains(&"blackhole 10.244.0.0/16".to_owned()));
    set(&mut objects, |spec| (spec.cluster_cidrs, spec.mode) = (None, Some(Mode::Permissive)));
    assert!(!entries(&of(&objects)).iter().any(|entry| entry.starts_with("blackhole")));
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
fn a_single_pod_may_be_outside_the_blocks_of_its_node_if_that_is_the_plan() {
    let mut objects = objects(Mode::Strict);
    for (name, block) in [("a", "10.244.1.0/24"), ("b", "10.244.2.0/24"), ("c", "10.244.3.0/24")] {
        let node = Node { pod_prefixes: vec![prefix(block)], ..Node::default() };
        objects.nodes.insert(name.to_owned(), node.into());
        change(&mut objects, name, |tunnel| tunnel.pod_prefixes = vec![prefix(block)]);
    }
    // One is outside of all, one inside another's block, one inside ours; and a block is no pod.
    let claims = ["10.7.0.9/32", "10.244.2.9/32", "10.244.1.9/32", "10.8.0.0/24"].map(prefix);
    change(&mut objects, "c", |tunnel| tunnel.pod_prefixes.extend(claims));
    change(&mut objects, "a", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.3.9/32")));
    assert_eq!(faults(&of(&objects)).len(), 5);
    set(&mut objects, |spec| spec.pod_addresses = Some(PodAddresses::Pods));
    let topology = of(&objects);
    assert_eq!(
        faults(&topology),
        ["NodeTunnel/c spec.podPrefixes[4]: 10.8.0.0/24 is not among the podCIDRs of the node"]
    );
    let entries = entries(&topology);
    for entry in
        ["unicast 10.7.0.9/32", "unicast 10.244.2.9/32", "unicast 10.244.1.9/32", "throw 10.244.3.9/32"]
    {
        assert!(entries.contains(&entry.to_owned()), "{entry}");
    }
    assert!(allowed(&topology, 3).contains(&"10.244.2.9/32".to_owned()));
}

#[test]
fn a_pods_address_is_a_private_one_unless_the_cluster_knows_it() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| spec.pod_addresses = Some(PodAddresses::Pods));
    for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
        let addresses = vec![format!("2001:db8:0:7::{n}").parse().unwrap()];
        objects.nodes.insert(name.to_owned(), Node { addresses, ..Node::default() }.into());
    }
    objects.nodes.get_mut("c").unwrap().pod_prefixes = vec![prefix("198.51.100.0/24")];
    let inside = ["10.9.0.9/32", "172.31.0.9/32", "192.168.0.9/32", "100.127.0.9/32", "fdff::9/128"];
    let known = ["2001:db8:0:7:1::9/128", "198.51.100.9/32"];
    let outside = ["8.8.8.8/32", "172.32.0.9/32", "100.128.0.9/32", "2001:db8:0:8::9/128", "203.0.113.0/24"];
    let claims = [&inside[..], &known, &outside].concat();
    change(&mut objects, "b", |tunnel| {
        tunnel.pod_prefixes = claims.iter().map(|text| prefix(text)).collect()
    });
    let refused = |objects: &Objects| -> BTreeSet<String> {
        let found = faults(&of(objects));
        let of_pods = found.iter().filter(|text| text.contains("NodeTunnel/b spec.podPrefixes"));
        of_pods.map(|text| text.split_once(": ").unwrap().1.to_owned()).collect()
    };
    assert_eq!(
        refused(&objects),
        outside.map(|text| format!("{text} is public, and in no clusterCIDRs")).into()
    );
    let named = ["8.0.0.0/8", "2001::/16"].map(str::to_owned);
    let mut named_all = objects.clone();
    set(&mut named_all, |spec| spec.cluster_cidrs = Some(named.into()));
    let found = refused(&named_all);
    assert!(!found.iter().any(|text| text.contains("8.8.8.8") || text.contains("2001:")), "{found:?}");
    // What the cluster was made with is known as well.
    let prefixes = vec![prefix("203.0.112.0/23")];
    objects.pod_network = Some(PodNetwork { prefixes, faults: Vec::new() });
    assert_eq!(refused(&objects).len(), outside.len() - 1);
    objects.nodes = Default::default();
    assert_eq!(refused(&objects), BTreeSet::new(), "without a cluster that knows its nodes");
}

#[test]
fn a_single_pod_has_no_address_of_another_node_of_its_tunnel_or_of_an_api_server() {
    let mut objects = objects(Mode::Strict);
    set(&mut objects, |spec| spec.pod_addresses = Some(PodAddresses::Pods));
    know_nodes(&mut objects);
    objects.api_servers.insert("kubernetes".to_owned(), vec![IpAddr::from([198, 51, 100, 1])]);
    let before = of(&objects);
    let claims = ["192.0.2.3/32", "10.244.3.0/32", "fd00:3::/128", "198.51.100.1/32"].map(prefix);
    change(&mut objects, "b", |tunnel| tunnel.pod_prefixes.extend(claims));
    let topology = of(&objects);
    assert_eq!((&topology.peers, &topology.routes), (&before.peers, &before.routes));
    assert_eq!(
        faults(&topology),
        [
            "NodeTunnel/b spec.podPrefixes[2]: 192.0.2.3/32 holds 192.0.2.3, an address of the node c",
            "NodeTunnel/b spec.podPrefixes[3]: 10.244.3.0/32 is the address of the tunnel of the node c",
            "NodeTunnel/b spec.podPrefixes[4]: fd00:3::/128 is the address of the tunnel of the node c",
            "NodeTunnel/b spec.podPrefixes[5]: 198.51.100.1/32 holds 198.51.100.1, an address of an API server",
        ]
    );
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

/// What `a` knows a moment after `before` became `after`.
fn since(before: &Objects, after: &Objects) -> Own {
    let mut own = Own::new("a", key(1));
    own.given_up.learn(before, &topology(before, &own), after, MOMENT);
    own
}

const MOMENT: Duration = Duration::from_millis(1400);

/// Returns which peer has each of these addresses: by its most specific prefix, as the data plane finds it.
fn holders(topology: &Topology, addresses: &[&str]) -> Vec<Option<String>> {
    let held =
        topology.peers.values().flat_map(|peer| peer.allowed_ips.iter().map(|prefix| (*prefix, &peer.node)));
    let blocks: Blocks<&String> = held.collect();
    let hosts = addresses.iter().map(|addr| Prefix::host(addr.parse().unwrap()));
    hosts.map(|host| blocks.around(&host).map(|(_, node)| (*node).clone())).collect()
}

#[test]
fn what_a_node_has_given_up_stays_with_it_until_it_is_taken_or_a_moment_has_passed() {
    let before = objects(Mode::Strict);
    let mut free = before.clone();
    change(&mut free, "b", |tunnel| tunnel.pod_prefixes.truncate(1));
    let mut own = since(&before, &free);
    let kept = topology(&free, &own);
    assert_eq!(kept.routes, of(&before).routes);
    assert_eq!(kept.peers, of(&before).peers);
    assert_eq!(kept.guarded, of(&before).guarded);

    let mut taken = free.clone();
    change(&mut taken, "c", |tunnel| tunnel.pod_prefixes.push(prefix("fd00:2::/64")));
    assert_eq!(topology(&taken, &own), of_own(&taken, &own), "it is the new one's at once");
    assert_eq!(holders(&topology(&taken, &own), &["fd00:2::1"]), [Some("c".to_owned())]);

    let mut gone = free.clone();
    gone.tunnels.remove("b");
    assert_eq!(topology(&gone, &own), of_own(&gone, &own), "a node that is gone has nothing");

    assert_eq!(
        own.given_up.next(),
        Some(Duration::from_millis(2500)),
        "a second, and up to a quarter of one"
    );
    assert!(!own.given_up.end(Duration::from_millis(2499)));
    assert!(own.given_up.end(Duration::from_millis(2500)));
    assert_eq!(own, Own::new("a", key(1)));
    assert!(topology(&free, &own) != kept);
}

/// What would be done if nothing had been given up.
fn of_own(objects: &Objects, own: &Own) -> Topology {
    topology(objects, &Own { given_up: GivenUp::default(), ..own.clone() })
}

#[test]
fn what_a_node_could_not_have_or_may_not_keep_does_not_stay_with_it() {
    // Refused before: it is the older node's.
    let mut before = objects(Mode::Strict);
    change(&mut before, "c", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.2.0/24")));
    let mut after = before.clone();
    change(&mut after, "c", |tunnel| tunnel.pod_prefixes.truncate(2));
    assert_eq!(since(&before, &after), Own::new("a", key(1)));

    // Meanwhile the cluster has given it to another node.
    let before = objects(Mode::Strict);
    let mut after = before.clone();
    change(&mut after, "b", |tunnel| tunnel.pod_prefixes.truncate(1));
    let node = Node { pod_prefixes: vec![prefix("fd00:2::/64")], ..Node::default() };
    after.nodes.insert("c".to_owned(), node.into());
    know_all(&mut after);
    let own = since(&before, &after);
    assert!(own.given_up.next().is_some());
    assert_eq!(topology(&after, &own), of_own(&after, &own));

    // Another node has the address for itself.
    let mut before = objects(Mode::Strict);
    change(&mut before, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.7.0.9/32")));
    let mut after = before.clone();
    change(&mut after, "b", |tunnel| tunnel.pod_prefixes.truncate(2));
    change(&mut after, "c", |tunnel| tunnel.node_addresses.push([10, 7, 0, 9].into()));
    let own = since(&before, &after);
    assert!(own.given_up.next().is_some());
    assert_eq!(topology(&after, &own), of_own(&after, &own));

    // What is sent to a node that has become near goes in clear.
    let zone = |objects: &mut Objects, name, zone: &str| {
        change(objects, name, |tunnel| tunnel.zone = Some(zone.to_owned()));
    };
    let mut before = objects(Mode::Strict);
    set(&mut before, |spec| spec.scope = Some(Scope::CrossZone));
    zone(&mut before, "a", "here");
    zone(&mut before, "b", "there");
    let mut after = before.clone();
    change(&mut after, "b", |tunnel| tunnel.pod_prefixes.truncate(1));
    let own = since(&before, &after);
    assert!(entries(&topology(&after, &own)).contains(&"unicast fd00:2::/64".to_owned()));
    zone(&mut after, "b", "here");
    assert_eq!(topology(&after, &own), of_own(&after, &own));

    // A loan that is given back is its lender's.
    let mut before = objects(Mode::Strict);
    change(&mut before, "b", |tunnel| tunnel.pod_prefixes.push(prefix("10.244.3.128/25")));
    let mut after = before.clone();
    change(&mut after, "b", |tunnel| tunnel.pod_prefixes.truncate(2));
    let own = since(&before, &after);
    assert_eq!(topology(&after, &own), of_own(&after, &own));
}

proptest! {
    /// Claims as they were and as they are: blocks, and blocks inside them.
    #[test]
    fn what_was_given_up_takes_nothing_from_anybody(
        claims in vec((0..3_usize, 0..8_usize, any::<[bool; 2]>()), 0..12),
    ) {
        const PREFIXES: [&str; 8] = [
            "10.9.0.0/23", "10.9.0.0/24", "10.9.0.0/25", "10.9.0.128/25",
            "10.9.1.0/24", "10.9.1.7/32", "fd09::/64", "fd09::7/128",
        ];
        const ADDRESSES: [&str; 6] = ["10.9.0.1", "10.9.0.200", "10.9.1.1", "10.9.1.7", "fd09::1", "fd09::7"];
        let [before, after] = [0, 1].map(|time| {
            let mut objects = objects(Mode::Strict);
            for (node, block, _) in claims.iter().filter(|(_, _, is_claimed)| is_claimed[time]) {
                let add = |tunnel: &mut Tunnel| tunnel.pod_prefixes.push(prefix(PREFIXES[*block]));
                change(&mut objects, ["a", "b", "c"][*node], add);
            }
            objects
        });
        let own = since(&before, &after);
        let [kept, plain] = [topology(&after, &own), of_own(&after, &own)];
        let own_blocks = &after.tunnels["a"].pod_prefixes;
        let [was, is, would_be] =
            [&of_own(&before, &own), &kept, &plain].map(|topology| holders(topology, &ADDRESSES));
        for (at, addr) in ADDRESSES.iter().enumerate() {
            if would_be[at].is_some() {
                prop_assert_eq!(&is[at], &would_be[at], "{}", addr);
            } else if !own_blocks.iter().any(|block| block.contains(addr.parse().unwrap())) {
                prop_assert_eq!(&is[at], &was[at], "{}", addr);
            }
        }
        prop_assert_eq!(&kept.faults, &plain.faults);
    }
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
