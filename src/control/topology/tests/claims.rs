//! Whose an address, a block or a key is.

use super::*;

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
