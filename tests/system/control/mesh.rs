//! Nodes come, go, move and are started anew; who is not concerned loses nothing.

use std::fs;

use rustix::process::Signal;

use super::nodes::{Mesh, answered};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

#[test]
fn objects_become_peers_and_every_change_of_them_is_followed() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    mesh.start(Program::Adit);
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    first.wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&[])]);
    first.wait_for_pod_of(second);
    second.wait_for_pod_of(third);

    // What follows does not concern the flow between the first two.
    let ping = first.ping(second);
    for _ in 0..10 {
        mesh.publish(third, &third.key, &["10.245.0.0/24", "10.245.1.0/24"]);
        first
            .wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&["10.245.0.0/24", "10.245.1.0/24"])]);
        // A prefix moves: taken from the one, given to the other, in this order.
        mesh.publish(third, &third.key, &["10.245.0.0/24"]);
        mesh.publish(second, &second.key, &["10.245.1.0/24"]);
        first.wait_until_peers_are(&[second.as_peer(&["10.245.1.0/24"]), third.as_peer(&["10.245.0.0/24"])]);
        // And in the other one: as long as both claim it, it is the older one's.
        mesh.publish(third, &third.key, &["10.245.0.0/24", "10.245.1.0/24"]);
        mesh.publish(second, &second.key, &[]);
        first
            .wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&["10.245.0.0/24", "10.245.1.0/24"])]);
    }

    // Half a file changes nothing, and neither does a second node with a key that is taken.
    fs::write(mesh.objects.path().join("node3.yaml"), "apiVersion: adit.dev/v1alpha1\nkind: Node").unwrap();
    mesh.write(
        "node4",
        &fs::read_to_string(mesh.objects.path().join("node2.yaml")).unwrap().replace("node2", "node4"),
    );
    let agent = first.agent.as_ref().unwrap();
    wait_until("a word about both", SOON, || {
        ["DuplicateKey", "newline"].iter().all(|word| agent.output().contains(word))
    });
    first.wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&["10.245.0.0/24", "10.245.1.0/24"])]);

    // A node goes.
    fs::remove_file(mesh.objects.path().join("node3.yaml")).unwrap();
    first.wait_until_peers_are(&[second.as_peer(&[])]);
    second.wait_until_peers_are(&[first.as_peer(&[])]);
    let (sent, received) = answered(ping);
    assert!(sent > 50 && sent - received <= 1, "{sent} sent, {received} answered");
}

#[test]
fn an_agent_that_is_killed_and_comes_back_is_not_noticed() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    let (handshakes, peers) = (first.handshakes(), first.peers());
    let ping = first.ping(second);
    for signal in [Signal::KILL, Signal::TERM] {
        let mut agent = first.agent.take().unwrap();
        agent.signal(signal);
        let status = agent.wait(SOON);
        assert_eq!(status.success(), signal == Signal::TERM);
        drop(agent);
        first.start_agent(&mesh.objects);
        let agent = first.agent.as_ref().unwrap();
        wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
        assert_eq!(first.peers(), peers);
    }
    let (sent, received) = answered(ping);
    assert!(sent - received <= 1, "{sent} sent, {received} answered");
    assert_eq!(first.handshakes(), handshakes, "the same session");
}

#[test]
fn a_data_plane_that_is_killed_is_programmed_anew_when_it_comes_back() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    let peers = first.peers();
    drop(first.data_plane.take());
    first.start_data_plane(Program::Adit);
    wait_until("the peers", SOON, || first.peers() == peers);
    first.wait_for_pod_of(second);
}

#[test]
fn the_agent_drives_wireguard_go_as_well() {
    need!("ip", "wg", "ping", "setpriv");
    if Program::WireguardGo.path().is_none() {
        return;
    }
    let mut mesh = Mesh::new(2);
    mesh.start(Program::WireguardGo);
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    mesh.publish(second, &second.key, &["10.245.1.0/24"]);
    first.wait_until_peers_are(&[second.as_peer(&["10.245.1.0/24"])]);
    mesh.publish(second, &second.key, &[]);
    first.wait_until_peers_are(&[second.as_peer(&[])]);
}

#[test]
fn a_damaged_key_stops_the_agent_with_the_reason() {
    need!("ip", "setpriv");
    let mut mesh = Mesh::new(1);
    let node = &mut mesh.nodes[0];
    fs::write(node.state.path().join("private.key"), "half a k").unwrap();
    node.start_agent(&mesh.objects);
    let agent = node.agent.as_mut().unwrap();
    assert!(!agent.wait(SOON).success());
    wait_until("the reason", SOON, || agent.output().contains("private.key: it does not hold 32 bytes"));
}
