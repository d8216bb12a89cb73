//! A connection that went in clear, with its node's address by translation, goes on through the tunnel with its own.

use std::net::SocketAddr;
use std::time::Duration;

use super::host_traffic::{config, pod, publish};
use super::nodes::Mesh;
use crate::support::puppet::udp;
use crate::support::tunnel::Program;
use crate::support::{Namespace, SOON, need, wait_until};

#[test]
fn a_connection_that_was_translated_begins_anew_in_the_tunnel() {
    need!("ip", "wg", "nft", "setpriv", "conntrack");
    let mut mesh = Mesh::new(2);
    let pods: Vec<_> = mesh.nodes.iter().map(pod).collect();
    let outside = Namespace::new();
    mesh.fabric.join("port200", &[], &outside, "eth0", &["10.9.0.200/24"]);
    mesh.fabric.ip("link set port200 master fabric");
    for (node, other) in [(0, 2), (1, 1)] {
        mesh.nodes[node].namespace.ip(&format!("route add 10.244.{other}.0/24 via 10.9.0.{other}"));
        publish(&mesh, &mesh.nodes[node]);
    }
    let node = &mesh.nodes[0].namespace;
    // As some CNI plugins do it: what leaves the node has its address. `masquerade` is looked after by the kernel itself.
    node.run("nft", &["add table ip cni"]);
    node.run("nft", &["add chain ip cni out { type nat hook postrouting priority srcnat; }"]);
    node.run("nft", &["add rule ip cni out ip saddr 10.244.1.0/24 oifname eth0 snat to 10.9.0.1"]);
    config(&mesh, "\"Off\"", "Plain");
    mesh.start(Program::Adit);

    let (here, there) = (udp(&pods[0], "10.244.1.9:7000"), udp(&pods[1], "10.244.2.9:7000"));
    there.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let seen_from = || {
        let mut buffer = [0; 10];
        here.send_to(b"hello", "10.244.2.9:7000").ok()?;
        Some(there.recv_from(&mut buffer).ok()?.1)
    };
    let node_addr: SocketAddr = "10.9.0.1:7000".parse().unwrap();
    wait_until("a datagram with the node's address", SOON, || seen_from() == Some(node_addr));
    here.send_to(b"hello", "10.9.0.200:9").unwrap();
    let tracked = |to: &str| mesh.nodes[0].namespace.run("conntrack", &["-L", "-d", to]);
    wait_until("a connection to the outside", SOON, || tracked("10.9.0.200").contains("dst=10.9.0.1 "));

    config(&mesh, "Strict", "Plain");
    let own_addr: SocketAddr = "10.244.1.9:7000".parse().unwrap();
    wait_until("a datagram with the pod's own address", SOON, || seen_from() == Some(own_addr));
    // What does not enter the tunnel is left alone.
    assert!(tracked("10.9.0.200").contains("dst=10.9.0.1 "));
    assert!(mesh.nodes[0].agent.as_ref().unwrap().output().contains("connections begin anew"));
}
