//! What a node has just given up.

use super::*;

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
