//! What a sender with numbered packets loses while nodes come, go, move and are started anew: nothing, if they do not concern it.

use std::thread;
use std::time::Duration;

use adit::sys::clock::boottime;
use rustix::process::Signal;

use super::cluster::{ControlPlane, bare_node, node_object};
use super::nodes::{Mesh, Node};
use super::wire::{Seen, Wire};
use crate::support::sequence::Flow;
use crate::support::tunnel::Program;
use crate::support::{Namespace, SOON, need, pause, wait_until};

/// Of all senders here: short beside a round trip.
const INTERVAL: Duration = Duration::from_millis(1);

/// What a packet takes from one node to another where they are apart, and what there and back take.
const ONE_WAY: Duration = Duration::from_millis(20);
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// How often a prefix moves in each order.
const MOVES: usize = 5;

/// Packets between the word of the old owner and that of the new one.
const BETWEEN: u64 = 100;

/// How often a key changes.
const KEYS: usize = 5;

/// How soon traffic is back after the start of a data plane, at the latest.
const BACK: Duration = Duration::from_millis(200);

/// Starts a flow from the pod of a node to that of another one.
#[track_caller]
pub(super) fn flow(from: &Node, to: &Node) -> Flow {
    let [source, target] = [from, to].map(|node| format!("10.244.{}.1", node.number));
    Flow::start((&from.namespace, &source), (&[&to.namespace], &target), INTERVAL)
}

/// Ends flows that may not have lost anything.
#[track_caller]
pub(super) fn expect_all(flows: Vec<(&str, Flow)>) {
    flows.iter().for_each(|(_, flow)| flow.stop());
    for (name, flow) in flows {
        let report = flow.end();
        eprintln!("{name}: {} sent, {} lost, {} late", report.sent, report.lost, report.late);
        assert!(report.sent > 100, "{name}");
        assert_eq!((report.lost, report.twice), (0, 0), "{name}: lost and twice of {}", report.sent);
    }
}

#[test]
fn whom_a_change_does_not_concern_loses_nothing_and_a_prefix_moves_at_once() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(4);
    mesh.set_apart(ONE_WAY);
    mesh.start(Program::Adit);
    let [first, second, third, fourth] = &mesh.nodes[..] else { panic!("four nodes") };
    // What moves is a pod's at both ends of the move.
    [second, third].iter().for_each(|node| drop(node.namespace.ip("addr add 10.245.0.1/32 dev lo")));
    mesh.publish(second, &second.key, &["10.245.0.0/24"]);
    for (node, other) in [(first, second), (second, first), (first, third), (first, fourth)] {
        node.wait_for_pod_of(other);
    }
    wait_until("the prefix that moves", SOON, || first.namespace.pings("10.245.0.1"));

    let asked = boottime();
    assert!(first.namespace.pings("10.245.0.1"));
    assert!(boottime() - asked >= ROUND_TRIP, "{:?}: the nodes are not apart", boottime() - asked);

    let unconcerned = vec![("there", flow(first, second)), ("back", flow(second, first))];
    let moving = Flow::start(
        (&first.namespace, "10.244.1.1"),
        (&[&second.namespace, &third.namespace], "10.245.0.1"),
        INTERVAL,
    );
    moving.wait_for_arrival();
    // The order of each move, and the time from its first word until it has been followed.
    let mut moves = Vec::new();
    for round in 0..2 * MOVES {
        // Nodes come and go, one of them with a key that changes.
        for number in 50..60 {
            mesh.write(&format!("node{number}"), &stranger(number, u8::try_from(round).unwrap()));
        }
        let expected = 3 + 10;
        first.wait_for_peers(expected);
        for number in 50..60 {
            std::fs::remove_file(mesh.objects.path().join(format!("node{number}.yaml"))).unwrap();
        }
        // A prefix of another node comes and goes.
        let more: &[&str] = if round % 2 == 0 { &["10.246.0.0/24"] } else { &[] };
        mesh.publish(fourth, &fourth.key, more);
        // Claimed by both for a moment, it is the older one's until that one lets go; claimed by neither, it stays where it was.
        let moved: &[&str] = &["10.245.0.0/24"];
        let [from, to] = if round % 2 == 0 { [second, third] } else { [third, second] };
        let is_taken_first = round >= MOVES;
        let begun = boottime();
        if is_taken_first {
            mesh.publish(from, &from.key, &[]);
            // So long apart that nobody takes both for one change.
            moving.wait_for_more(BETWEEN);
            mesh.publish(to, &to.key, moved);
        } else {
            mesh.publish(to, &to.key, moved);
            mesh.publish(from, &from.key, &[]);
        }
        first.wait_until_peers_are(&[from.as_peer(&[]), to.as_peer(moved), fourth.as_peer(more)]);
        moving.wait_for_arrival();
        moves.push((is_taken_first, begun..boottime()));
    }
    expect_all(unconcerned);
    // What nobody takes goes nowhere, a moment later.
    let routes = || first.namespace.ip("route show table 8365");
    let leads_there = || routes().lines().any(|route| route.starts_with("10.245.0.0/24"));
    assert!(leads_there());
    [second, third].iter().for_each(|node| mesh.publish(node, &node.key, &[]));
    wait_until("nobody's prefix", SOON, || !leads_there());
    let report = moving.end();
    let [given, taken] = [false, true].map(|order| {
        let such = moves.iter().filter(|(is_taken_first, _)| *is_taken_first == order);
        such.map(|(_, time)| report.outage(time.clone())).collect::<Vec<_>>()
    });
    let sent = report.sent;
    eprintln!("a prefix that moved: given first {given:?}, taken first {taken:?}, of {sent} sent");
    assert!(given.iter().all(|outage| *outage < ROUND_TRIP), "given first: {given:?}");
    assert!(taken.iter().all(|outage| *outage < ROUND_TRIP), "taken first: {taken:?}");
}

/// Returns a node that nobody is.
fn stranger(number: u8, round: u8) -> String {
    use base64::Engine;
    let key = base64::engine::general_purpose::STANDARD.encode([number.wrapping_add(round); 32]);
    format!(
        "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{number}}}\nspec:\n  \
        keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: 10.9.0.{number}, port: 51820}}]\n  \
        podPrefixes: [10.244.{number}.0/24]\n  nodeAddresses: [10.9.0.{number}]\n"
    )
}

#[test]
fn a_key_that_changes_in_place_costs_no_other_peer_a_packet_or_its_session() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    mesh.start(Program::Adit);
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    for (node, other) in [(first, second), (second, first), (first, third), (second, third)] {
        node.wait_for_pod_of(other);
    }
    let sessions = |mesh: &Mesh| {
        let [first, second, _] = &mesh.nodes[..] else { panic!("three nodes") };
        [(first, second), (second, first)].map(|(node, other)| node.handshake_with(other))
    };
    let before = sessions(&mesh);
    let flows = vec![("there", flow(first, second)), ("back", flow(second, first))];
    for _ in 0..KEYS {
        drop(mesh.nodes[2].agent.take());
        mesh.nodes[2].change_key();
        mesh.publish(&mesh.nodes[2], &mesh.nodes[2].key, &[]);
        let Mesh { objects, nodes, .. } = &mut mesh;
        nodes[2].start_agent(objects);
        let [first, second, third] = &nodes[..] else { panic!("three nodes") };
        first.wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&[])]);
        second.wait_until_peers_are(&[first.as_peer(&[]), third.as_peer(&[])]);
        // It is a live one, before and after.
        first.wait_for_pod_of(third);
        third.wait_for_pod_of(second);
    }
    assert_eq!(sessions(&mesh), before, "the same sessions");
    expect_all(flows);
}

/// A peer that only sends goes on with a session that the other end has lost, and would for 15 seconds ([W] §6.5).
#[test]
fn a_data_plane_that_begins_anew_is_heard_of_though_its_node_has_nothing_to_say() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    second.wait_for_pod_of(first);
    let flow = flow(second, first);
    flow.wait_for_arrival();
    drop(first.data_plane.take());
    let start = boottime();
    first.start_data_plane(Program::Adit);
    flow.wait_for_arrival();
    assert!(boottime() - start < Duration::from_secs(10), "{:?}", boottime() - start);
}

#[test]
fn a_data_plane_that_is_killed_under_traffic_leaks_nothing_and_traffic_is_back_with_it() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    // The way without a tunnel, as whoever made the pods' network has laid it.
    for (node, other) in [(0, 2), (1, 1)] {
        mesh.nodes[node].namespace.ip(&format!("route add 10.244.{other}.0/24 via 10.9.0.{other}"));
    }
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let [first, second] = &mut mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    let flow = flow(first, second);
    let back = self::flow(second, first);
    let mut starts = Vec::new();
    for _ in 0..5 {
        flow.wait_for_arrival();
        back.wait_for_arrival();
        let data_plane = first.data_plane.take().unwrap();
        data_plane.signal(Signal::KILL);
        drop(data_plane);
        flow.wait_for_more(40);
        starts.push(boottime());
        first.start_data_plane(Program::Adit);
        flow.wait_for_arrival();
        back.wait_for_arrival();
        assert_eq!(wire.count(Seen::Canary), 0, "in clear");
    }
    assert!(wire.count(Seen::WireGuard) > 100);
    for (name, report) in [("from the node", flow.end()), ("to the node", back.end())] {
        let mut returns: Vec<_> = starts
            .iter()
            .map(|start| *report.arrived.iter().find(|sent| **sent > *start).unwrap() - *start)
            .collect();
        returns.sort();
        eprintln!(
            "{name}: {} sent, {} lost; back {:?} after the start of the data plane, {:?} at most",
            report.sent,
            report.lost,
            returns[returns.len() / 2],
            returns[returns.len() - 1],
        );
        // What else the machine does makes some of them longer.
        assert!(returns[returns.len() / 2] <= BACK, "{name}: {returns:?}");
    }
    // The control: this is what is seen where nothing is encrypted.
    mesh.write(
        "config",
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: \"Off\"}\n",
    );
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    let plain = self::flow(first, second);
    wire.wait_for(Seen::Canary, "cleartext with mode Off");
    drop(plain.end());
}

#[test]
fn the_api_server_is_away_and_its_history_is_gone_and_nobody_loses_a_packet() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(3);
    let Some(mut plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.install("{mode: Strict}");
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    plane.apply("node5.yaml", &bare_node("node5", &stranger(5, 0)));
    let kubeconfig = plane.kubeconfig();
    let variables = [("KUBECONFIG", kubeconfig.to_str().unwrap()), ("ADIT_LOG_LEVEL", "debug")];
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_in(&variables);
    }
    let Mesh { nodes, fabric, .. } = &mut mesh;
    let keys: Vec<_> = nodes.iter().map(|node| node.key.clone()).collect();
    let has = |node: &Node, gone: u8, there: u8| {
        let (own, peers) = (&node.key, node.peers());
        let is_there = |text: &str| peers.iter().any(|peer| peer.contains(text));
        peers.len() == 3
            && keys.iter().all(|key| key == own || is_there(key))
            && is_there(&format!("10.244.{there}.0/24"))
            && !is_there(&format!("10.244.{gone}.0/24"))
    };
    for node in &*nodes {
        wait_until("the peers", SOON, || has(node, 4, 5));
    }
    let [first, second, _] = &nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    second.wait_for_pod_of(first);
    let sessions =
        |nodes: &[Node]| [(0, 1), (1, 0)].map(|(at, other)| nodes[at].handshake_with(&nodes[other]));
    let before = sessions(nodes);
    let flows = vec![("there", flow(first, second)), ("back", flow(second, first))];

    // Whatever becomes of the API server meanwhile, no peer comes or goes.
    let peers = |nodes: &[Node]| nodes.iter().map(Node::peers).collect::<Vec<_>>();
    let expected = peers(nodes);
    let looks = thread::scope(|scope| {
        let away = scope.spawn(|| go_away(&mut plane, fabric, nodes));
        let mut looks = 0;
        while !away.is_finished() {
            assert_eq!(peers(nodes), expected, "peers while the API server is away");
            looks += 1;
            pause(Duration::from_millis(20));
        }
        away.join().unwrap();
        looks
    });
    eprintln!("the API server was away: {looks} looks at the peers of three nodes");
    assert!(looks > 10);

    fabric.ip("link set port100 up");
    for node in &*nodes {
        wait_until("the new state", SOON * 3, || has(node, 5, 4));
        let agent = node.agent.as_ref().unwrap();
        assert!(agent.output().contains("410 "), "the history was not missed: {}", agent.output());
    }

    // All agents at once.
    nodes.iter().for_each(|node| node.agent.as_ref().unwrap().signal(Signal::KILL));
    for node in &mut *nodes {
        node.agent.as_mut().unwrap().wait(SOON);
        node.start_agent_in(&variables);
    }
    for node in &*nodes {
        let agent = node.agent.as_ref().unwrap();
        wait_until("the agent's first look", SOON, || agent.output().contains("the data plane answers"));
        // What was kept on disk may be a second old.
        wait_until("the peers", SOON, || has(node, 5, 4));
    }
    flows[0].1.wait_for_more(100);
    assert_eq!(sessions(nodes), before, "the same sessions");
    let published = plane.kubectl(&["get", "nodetunnels"]);
    assert!(nodes.iter().all(|node| published.contains(&node.key)), "the same keys: {published}");
    expect_all(flows);
}

/// Has the API server away, for a while to the agents alone, and the world and the history go on without them.
///
/// `ADIT_OUTAGE=60` for a minute at least; without it, for as long as that takes.
#[track_caller]
fn go_away(plane: &mut ControlPlane, fabric: &Namespace, nodes: &[Node]) {
    let outage = std::env::var("ADIT_OUTAGE").map_or(0, |seconds| seconds.parse().unwrap());
    let until = boottime() + Duration::from_secs(outage);
    drop(plane.api_server.take());
    for node in nodes {
        let agent = node.agent.as_ref().unwrap();
        wait_until("a word about the watch", SOON, || agent.output().contains("the watch has failed"));
    }
    fabric.ip("link set port100 down");
    plane.start_api_server();
    plane.kubectl(&["delete", "nodetunnel/node5"]);
    plane.apply("node4.yaml", &bare_node("node4", &stranger(4, 0)));
    plane.compact();
    drop(plane.api_server.take());
    plane.start_api_server();
    pause(until.saturating_sub(boottime()));
}
