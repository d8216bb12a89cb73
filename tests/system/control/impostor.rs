//! A node that has the key of another, as one that was cloned with its disk.

use std::fs;

use super::loss::{expect_all, flow};
use super::nodes::Mesh;
use super::unreliable::{node, serve};
use super::wire::{Seen, Wire};
use crate::support::api_double::{ApiDouble, Kind};
use crate::support::sequence::Flow;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

#[test]
fn a_node_with_the_key_of_an_older_one_says_so_and_harms_nobody() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let (double, kubeconfig) = serve(&mesh);
    (1..=3).for_each(|number| double.put(Kind::Node, node(number)));
    let Mesh { nodes, fabric, .. } = &mut mesh;
    for node in &mut nodes[..2] {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &kubeconfig);
    }
    let [first, second, third] = &mut nodes[..] else { panic!("three nodes") };
    first.wait_for_peers(1);
    second.wait_for_peers(1);
    let flows = vec![("there", flow(first, second)), ("back", flow(second, first))];
    flows.iter().for_each(|(_, flow)| flow.wait_for_arrival());

    // It is younger: its object is made after the other one's.
    let disks = [&*second, third].map(|node| node.state.path().join("private.key"));
    fs::copy(&disks[0], &disks[1]).unwrap();
    third.start_data_plane(Program::Adit);
    third.start_agent_with("KUBECONFIG", &kubeconfig);
    wait_until("the condition", SOON, || degraded(&double, 3) == "True DuplicateKey");

    // The ways without a tunnel, as whoever makes the pods' network lays them.
    first.namespace.ip("route add 10.244.3.0/24 via 10.9.0.3");
    third.namespace.ip("route add 10.244.1.0/24 via 10.9.0.1");
    let wire = Wire::open(fabric, "port3");
    let between = [flow(first, third), flow(third, first)];
    between.iter().for_each(|flow| flow.wait_for_more(200));
    assert_eq!(wire.count(Seen::Canary), 0, "in clear");
    assert_eq!(between.iter().map(Flow::received).collect::<Vec<_>>(), [0, 0], "nobody talks to it");
    assert_eq!([1, 2].map(|number| degraded(&double, number)), ["False AsWanted", "False AsWanted"]);
    assert_eq!(first.peers().len(), 1);
    // And the older one goes on.
    expect_all(flows);

    // The control: this is what is seen where nothing is encrypted.
    drop((first.agent.take(), third.agent.take()));
    [&*first, third]
        .iter()
        .for_each(|node| drop(node.namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--cleanup"])));
    wire.wait_for(Seen::Canary, "cleartext without an agent");
    between.iter().for_each(Flow::stop);
}

/// Returns what a node says of itself being what it should be.
fn degraded(double: &ApiDouble, number: u8) -> String {
    let tunnel = double.get(Kind::Tunnel, &format!("node{number}")).unwrap_or_default();
    let conditions = tunnel["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == "Degraded");
    let text = |field| found.and_then(|found| found[field].as_str()).unwrap_or_default();
    format!("{} {}", text("status"), text("reason"))
}
