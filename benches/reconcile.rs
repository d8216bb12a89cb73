//! Micro-bench of what the control loop does for each change of the cluster: `cargo bench --bench reconcile [FILTER]`.
//!
//! Everything is worked out anew from all objects, so each grows with the number of nodes. One thread, no kernel, no data plane; nodes have
//! a block of pods each, and `pods` ten single pods' addresses beside it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use adit::config::{PeerSnapshot, Prefix, Snapshot};
use adit::control::api::{Mode, PodAddresses, TunnelConfigSpec};
use adit::control::objects::{Config, Node, Objects, Tunnel};
use adit::control::reconcile::{Endpoints, Occasion, reconcile};
use adit::control::topology::{Own, Topology, topology};
use adit::crypto::x25519::{PrivateKey, PublicKey};
use criterion::{BenchmarkId, Criterion};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, nodes, pods) in [("1000", 1_000, 0), ("5000", 5_000, 0), ("5000 pods", 5_000, 10)] {
        let (objects, own) = cluster(nodes, pods);
        let topology = topology(&objects, &own);
        assert_eq!(topology.peers.len(), nodes as usize - 1);
        bench_topology(&mut criterion, name, &objects, &own);
        bench_reconcile(&mut criterion, name, &topology);
    }
    criterion.final_summary();
}

/// From all objects to what this node should do.
fn bench_topology(criterion: &mut Criterion, name: &str, objects: &Objects, own: &Own) {
    let mut group = criterion.benchmark_group("topology");
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| topology(black_box(objects), own));
    });
    group.finish();
}

/// From that to the edits for a data plane that lacks one prefix.
fn bench_reconcile(criterion: &mut Criterion, name: &str, topology: &Topology) {
    let private_key = PrivateKey::new([1; 32]);
    let occasion = Occasion { is_complete: true, is_periodic: false, now: Duration::ZERO, mtu: Some(1420) };
    let remembered: Endpoints =
        topology.peers.iter().filter_map(|(key, peer)| Some((*key, *peer.endpoints.first()?))).collect();
    let peers = topology.peers.iter().map(|(key, peer)| PeerSnapshot {
        endpoint: peer.endpoints.first().copied(),
        allowed_ips: peer.allowed_ips.clone(),
        ..PeerSnapshot::new(*key)
    });
    let mut actual = Snapshot {
        private_key: Some(private_key.clone()),
        listen_port: topology.settings.listen_port,
        fwmark: topology.settings.fwmark,
        peers: peers.collect(),
    };
    let middle = actual.peers.len() / 2;
    actual.peers[middle].allowed_ips.pop();
    let mut group = criterion.benchmark_group("reconcile");
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| reconcile(black_box(&actual), topology, &private_key, &remembered, occasion));
    });
    group.finish();
}

/// Returns a cluster in Strict of so many nodes, with so many single pods each, and the first of its nodes.
fn cluster(nodes: u32, pods: u32) -> (Objects, Own) {
    let mut objects = Objects::default();
    for number in 1..=nodes {
        let name = format!("node{number}");
        let [_, _, high, low] = number.to_be_bytes();
        let block = Prefix::new([10, 64 + high, low, 0].into(), 24).expect("it is one");
        let node_addr = IpAddr::from([172, 16 + high / 16, high, low]);
        // Neighbours are on different nodes.
        let single = |at: u32| {
            let first = u32::from(Ipv4Addr::new(100, 64, 0, 0));
            Prefix::host(Ipv4Addr::from(first + at * 8192 + number).into())
        };
        let tunnel = Tunnel {
            created: format!("2026-01-01T00:{:02}:{:02}Z", number / 60 % 60, number % 60),
            active: Some(key(number)),
            keys: vec![key(number)],
            endpoints: vec![SocketAddr::new(node_addr, 51820)],
            pod_prefixes: [block].into_iter().chain((0..pods).map(single)).collect(),
            node_addresses: vec![node_addr],
            tunnel_addresses: vec![block.addr()],
            is_ready: Some(true),
            ..Tunnel::default()
        };
        let node = Node { addresses: vec![node_addr], pod_prefixes: vec![block], ..Node::default() };
        objects.tunnels.insert(name.clone(), tunnel.into());
        objects.nodes.insert(name, node.into());
    }
    let pod_addresses = if pods > 0 { PodAddresses::Pods } else { PodAddresses::Blocks };
    let spec = TunnelConfigSpec {
        mode: Some(Mode::Strict),
        pod_addresses: Some(pod_addresses),
        ..TunnelConfigSpec::default()
    };
    objects.configs = BTreeMap::from([("default".to_owned(), Config { spec, ..Config::default() })]);
    (objects, Own { mode: Some(Mode::Strict), ..Own::new("node1", key(1)) })
}

/// Returns a key that tells nothing of the order of nodes, as real ones do.
fn key(number: u32) -> PublicKey {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_le_bytes());
    PublicKey::new(key)
}
