//! Nodes come, go, move and are started anew; who is not concerned loses nothing.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use super::nodes::{Mesh, answered};
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::tunnel::{Program, socket_path};
use crate::support::{SOON, need, pause, wait_until};

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

#[test]
fn what_nobody_tells_of_is_mended_with_the_next_look_at_everything() {
    need!("ip", "wg", "setpriv", "nft");
    let mut mesh = Mesh::new(1);
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    let node = &mut mesh.nodes[0];
    node.start_data_plane(Program::Adit);
    let start = |node: &mut super::nodes::Node, resync: &str| {
        // No notice of the kernel arrives.
        let faults = ("ADIT_FAULT", "Notices=105");
        node.start_agent_in(&[("ADIT_OBJECTS", &objects), ("ADIT_RESYNC", resync), faults]);
    };
    let has_rule = |node: &super::nodes::Node| node.namespace.ip("rule").contains("lookup 8365");
    let has_table = |node: &super::nodes::Node| node.namespace.succeeds("nft list table inet adit");
    let harm = |node: &super::nodes::Node| {
        wait_until("rule and firewall", SOON, || has_rule(node) && has_table(node));
        // Its own first looks have passed.
        pause(Duration::from_millis(500));
        node.namespace.ip("rule del pref 99");
        node.namespace.run("nft", &["delete", "table", "inet", "adit"]);
    };
    // The control: nobody knows, for as long as nobody looks.
    start(node, "600");
    harm(node);
    pause(Duration::from_secs(3));
    assert!(!has_rule(node) && !has_table(node), "the notice was not lost");
    drop(node.agent.take());
    start(node, "2");
    harm(node);
    wait_until("rule and firewall again", SOON, || has_rule(node) && has_table(node));
}

/// Others on a node use up what a user has of them.
#[test]
fn without_an_instance_of_inotify_changes_are_found_by_looking() {
    need!("ip", "wg", "setpriv");
    let mut mesh = Mesh::new(2);
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    let faults = ("ADIT_FAULT", "Inotify=24");
    let start = |node: &mut super::nodes::Node| {
        node.data_plane = Some(Program::Adit.start(&node.namespace, &node.interface, &[], &[faults]));
    };
    start(&mut mesh.nodes[0]);
    mesh.nodes[0].start_agent_in(&[("ADIT_OBJECTS", &objects), faults]);
    mesh.nodes[0].wait_until_peers_are(&[mesh.nodes[1].as_peer(&[])]);
    let agent = mesh.nodes[0].agent.as_ref().unwrap();
    assert!(agent.output().contains("max_user_instances"), "{}", agent.output());
    // Objects, another socket of that name, and one that is removed.
    let more = ["10.245.1.0/24"];
    mesh.publish(&mesh.nodes[1], &mesh.nodes[1].key, &more);
    let peers = [mesh.nodes[1].as_peer(&more)];
    mesh.nodes[0].wait_until_peers_are(&peers);
    drop(mesh.nodes[0].data_plane.take());
    start(&mut mesh.nodes[0]);
    mesh.nodes[0].wait_until_peers_are(&peers);
    // Each of objects and sockets is told of once.
    let said = mesh.nodes[0].agent.as_ref().unwrap().output().matches("max_user_instances").count();
    assert_eq!(said, 2);
    drop(mesh.nodes[0].agent.take());
    fs::remove_file(socket_path(&mesh.nodes[0].interface)).unwrap();
    mesh.nodes[0].data_plane.as_mut().unwrap().wait(SOON);
}

#[test]
fn an_agent_that_cannot_wait_finds_what_happens_by_asking_and_spins_not() {
    need!("ip", "wg", "setpriv");
    let mut mesh = Mesh::new(2);
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    let node = &mut mesh.nodes[0];
    node.start_data_plane(Program::Adit);
    node.start_agent_in(&[("ADIT_OBJECTS", &objects), ("ADIT_FAULT", "Poll=12,Epoll=12")]);
    let peers = [mesh.nodes[1].as_peer(&[])];
    mesh.nodes[0].wait_until_peers_are(&peers);
    // Objects, another data plane, and a rule that somebody removes.
    let more = ["10.245.1.0/24"];
    mesh.publish(&mesh.nodes[1], &mesh.nodes[1].key, &more);
    let peers = [mesh.nodes[1].as_peer(&more)];
    mesh.nodes[0].wait_until_peers_are(&peers);
    drop(mesh.nodes[0].data_plane.take());
    mesh.nodes[0].start_data_plane(Program::Adit);
    mesh.nodes[0].wait_until_peers_are(&peers);
    let node = &mut mesh.nodes[0];
    let has_rule = |node: &super::nodes::Node| node.namespace.ip("rule").contains("lookup 8365");
    wait_until("the rule", SOON, || has_rule(node));
    node.namespace.ip("rule del pref 99");
    wait_until("the rule again", SOON, || has_rule(node));
    let agent = node.agent.as_mut().unwrap();
    pause(Duration::from_secs(1));
    let before = agent.cpu_ms();
    pause(Duration::from_secs(2));
    let used = agent.cpu_ms() - before;
    assert!(used < 300, "{used} ms of processor time in 2 s in which nothing happens");
    // The loop and the healer.
    let output = agent.output();
    assert_eq!(output.matches("cannot wait").count(), 2, "{output}");
    agent.signal(Signal::TERM);
    assert!(agent.wait(SOON).success());
}

#[test]
fn in_strict_mode_nothing_leaves_in_clear_whoever_dies_and_cleanup_leaves_nothing() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    // The way without a tunnel, as whoever made the pods' network has laid it.
    for (node, other) in [(0, 2), (1, 1)] {
        mesh.nodes[node].namespace.ip(&format!("route add 10.244.{other}.0/24 via 10.9.0.{other}"));
    }
    mesh.start(Program::Adit);
    mesh.nodes[0].wait_for_pod_of(&mesh.nodes[1]);
    let wire = Wire::open(&mesh.fabric, "port1");
    let args = ["-n", "-q", "-i", "0.005", "-p", &canary_pattern(), "-I", "10.244.1.1", "10.244.2.1"];
    let _ping = mesh.nodes[0].namespace.spawn("ping", &args);
    wire.wait_for(Seen::WireGuard, "pings through the tunnel");

    // The agent first, then the data plane, and its interface with it; and the other way round.
    for agent_first in [true, false] {
        let Mesh { objects, nodes, .. } = &mut mesh;
        let node = &mut nodes[0];
        if agent_first {
            drop(node.agent.take());
        }
        drop(node.data_plane.take());
        pause(Duration::from_millis(500));
        drop(node.agent.take());
        pause(Duration::from_millis(200));
        wire.forget(Seen::WireGuard);
        node.start_data_plane(Program::Adit);
        node.start_agent(objects);
        wire.wait_for(Seen::WireGuard, "pings through the tunnel again");
        assert_eq!(wire.count(Seen::Canary), 0, "in clear, agent_first={agent_first}");
    }

    // The control: this is what is seen where nothing is encrypted.
    mesh.write(
        "config",
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: \"Off\"}\n",
    );
    wire.wait_for(Seen::Canary, "cleartext with mode Off");

    mesh.write(
        "config",
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Strict}\n",
    );
    let node = &mut mesh.nodes[0];
    let state = |node: &super::nodes::Node| {
        let rules = node.namespace.ip("rule") + &node.namespace.ip("-6 rule");
        rules + &node.namespace.run("nft", &["list", "ruleset"])
    };
    wait_until("rule and firewall", SOON, || {
        state(node).contains("lookup 8365") && state(node).contains("table inet adit")
    });
    drop(node.agent.take());
    node.namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--cleanup"]);
    let left = state(node);
    assert!(!left.contains("lookup 8365") && !left.contains("adit"), "{left}");
    assert_eq!(node.namespace.ip("route show table 8365"), "");
}

#[test]
fn nodes_that_have_ipv6_alone_are_protected_as_well() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    let config = |mesh: &Mesh, mode: &str| {
        let spec = format!("{{mode: {mode}, clusterCIDRs: [\"fd00:244::/32\"], hostTraffic: PodToNode}}");
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
        );
        mesh.write("config", &text);
    };
    for node in &mesh.nodes {
        let (n, key, other) = (node.number, &node.key, 3 - node.number);
        node.namespace.ip("-4 addr flush dev eth0");
        node.namespace.ip(&format!("addr add fd09::{n}/64 dev eth0 nodad"));
        // As whoever made the pods' network has laid it.
        node.namespace.ip(&format!("route add fd00:244::/32 via fd09::{other}"));
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  \
            keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: \"fd09::{n}\", port: 51820}}]\n  \
            podPrefixes: [\"fd00:244:{n}::/64\"]\n  nodeAddresses: [\"fd09::{n}\"]\n  tunnelAddresses: [\"fd00:244:{n}::\"]\n"
        );
        mesh.write(&format!("node{n}"), &text);
    }
    config(&mesh, "\"Off\"");
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    let pattern = canary_pattern();
    // Whether there is an answer, and how many frames are seen in clear.
    let ask = |to: &str| {
        wire.forget(Seen::Canary);
        let line = format!("ping -n -c 1 -W 1 -p {pattern} -I fd00:244:1::1 {to}");
        let answers = first.namespace.succeeds(&line);
        (answers, wire.count(Seen::Canary))
    };
    let (pod, node) = ("fd00:244:2::1", "fd09::2");
    // The control: this is what is seen where nothing is encrypted.
    wait_until("answers in clear", SOON, || ask(pod) == (true, 2) && ask(node).1 > 0);
    config(&mesh, "Strict");
    wait_until("answers through the tunnel", SOON, || ask(pod) == (true, 0) && ask(node) == (true, 0));
    assert_eq!(ask("fd00:244:77::1"), (false, 0), "what nobody has");
    let link = first.namespace.ip(&format!("link show dev {}", first.interface));
    assert!(link.contains(" mtu 1420 "), "{link}");
    let text = fs::read_to_string(first.state.path().join("mtu")).unwrap();
    assert_eq!(text, "1420\n");
    // What comes in clear is dropped.
    second.namespace.ip("-6 route add fd00:244:1::1 via fd09::1");
    let past_the_tunnel = ["-n", "-c", "1", "-W", "1", "-m", "8365", "-I", "fd00:244:2::1", "fd00:244:1::1"];
    assert!(!second.namespace.try_run("ping", &past_the_tunnel).0);
    let rules = first.namespace.run("nft", &["list", "counter", "inet", "adit", "cleartext_ingress"]);
    assert!(!rules.contains("packets 0"), "{rules}");
    // Without a data plane nothing is in clear.
    drop(mesh.nodes[0].data_plane.take());
    let first = &mesh.nodes[0];
    wire.forget(Seen::Canary);
    let line = format!("ping -n -c 3 -i 0.2 -W 1 -p {pattern} -I fd00:244:1::1 {pod}");
    assert!(!first.namespace.succeeds(&line));
    assert_eq!(wire.count(Seen::Canary), 0, "in clear");
}

#[test]
fn a_silent_peer_is_looked_for_elsewhere_however_much_else_happens() {
    need!("ip", "wg", "setpriv");
    let mut mesh = Mesh::new(2);
    let text = fs::read_to_string(mesh.objects.path().join("node2.yaml")).unwrap();
    let places = "endpoints: [{address: 10.9.0.99, port: 51820}, {address: 10.9.0.2, port: 51820}]";
    mesh.write("node2", &text.replace("endpoints: [{address: 10.9.0.2, port: 51820}]", places));
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    mesh.nodes[0].start_data_plane(Program::Adit);
    mesh.nodes[0].start_agent_in(&[("ADIT_OBJECTS", &objects), ("ADIT_RESYNC", "1")]);
    let first = &mesh.nodes[0];
    first.wait_for_peers(1);
    let mut count = 0;
    wait_until("the other place", SOON, || {
        count += 1;
        mesh.publish(first, &first.key, &[&format!("10.245.{}.0/24", count % 100)]);
        first.namespace.run("wg", &["show", &first.interface, "endpoints"]).contains("10.9.0.2:51820")
    });
}
