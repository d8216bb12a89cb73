//! §2: cryptokey routing; §2.1: endpoints and roaming.

use super::*;
use crate::config::{AllowedIpEdit, Edit, PeerEdit, Prefix};
use crate::wireguard::dropped::Dropped;

#[test]
fn a_packet_goes_to_the_peer_that_holds_its_destination_and_arrives_whole() {
    let mut sim = connected(1);
    for len in [20, 21, 100, 1419, 1420] {
        let packet = sim.packet(A, B, len);
        sim.send_packet(A, &packet);
        sim.run_for(seconds(1));
        assert_eq!(sim.nodes[B].received.pop().unwrap().1, packet);
    }
}

#[test]
fn a_destination_that_nobody_holds_is_dropped() {
    let mut sim = connected(2);
    let mut packet = sim.packet(A, B, 40);
    packet[16] = 8;
    sim.send_packet(A, &packet);
    assert_eq!(sim.nodes[A].drops.get(Dropped::NoPeer), 1);
    assert!(sim.log().is_empty());
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let mut sim = connected(3);
    let mut packet = sim.packet(A, B, 40);
    packet[15] = 77;
    sim.send_packet(A, &packet);
    sim.run_for(seconds(1));
    assert!(sim.nodes[B].received.is_empty());
    assert_eq!(sim.nodes[B].drops.get(Dropped::NotAllowedSource), 1);
}

#[test]
fn a_prefix_that_moves_takes_the_traffic_with_it_in_both_directions() {
    let mut sim = Sim::new(4);
    let nodes = [sim.add_node(), sim.add_node(), sim.add_node()];
    sim.introduce(nodes[0], nodes[1]);
    sim.introduce(nodes[0], nodes[2]);
    sim.send(0, 1, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[1].received.len(), 1);
    // The third node takes over the second one's address.
    let mut edit = PeerEdit::new(sim.nodes[2].public_key);
    edit.allowed_ips.push(AllowedIpEdit::Add(Prefix::host(sim.nodes[1].inner)));
    sim.apply(0, &[Edit::Peer(edit)]);
    sim.nodes[2].inner = sim.nodes[1].inner;
    sim.send(0, 1, 50);
    sim.run_for(seconds(1));
    assert_eq!((sim.nodes[1].received.len(), sim.nodes[2].received.len()), (1, 1));
    sim.send(1, 0, 50);
    sim.run_for(seconds(1));
    assert!(sim.nodes[0].received.is_empty(), "the old holder is no longer believed");
    sim.send(2, 0, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[0].received.len(), 1);
    let snapshot = sim.nodes[0].tunnel.snapshot();
    assert!(snapshot.peers[0].allowed_ips.is_empty());
    assert_eq!(snapshot.peers[1].allowed_ips.len(), 2);
}

#[test]
fn every_authentic_message_moves_the_endpoint() {
    // T18: initiation, response, data and keepalive, each from a new address.
    let mut sim = connected(5);
    let endpoint = |sim: &Sim, node: usize, of: usize| {
        let key = sim.nodes[of].public_key;
        sim.nodes[node].peer(&key).endpoint().unwrap().addr
    };
    // Data.
    sim.nodes[A].addr = "10.0.0.50:1".parse().unwrap();
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(endpoint(&sim, B, A), sim.nodes[A].addr);
    // Keepalive: B answers to the new address, and A hears B from a new one.
    sim.nodes[B].addr = "10.0.0.60:2".parse().unwrap();
    sim.run_for(seconds(11));
    assert_eq!(endpoint(&sim, A, B), sim.nodes[B].addr);
    // Initiation, of a new session.
    sim.run_for(seconds(200));
    sim.nodes[A].addr = "10.0.0.51:3".parse().unwrap();
    sim.send(A, B, 50);
    let initiated = |sim: &Sim| sim.nodes[B].peer(&sim.nodes[A].public_key).endpoint().unwrap().addr;
    assert!(sim.run_until(seconds(1), |sim| initiated(sim) == sim.nodes[A].addr));
    // Response: B moves between initiation and response.
    sim.run_for(seconds(400));
    sim.send(A, B, 50);
    sim.nodes[B].addr = "10.0.0.60:2".parse().unwrap();
    sim.run_for(Duration::from_millis(6));
    sim.run_for(seconds(1));
    assert_eq!(endpoint(&sim, A, B), sim.nodes[B].addr);
}

#[test]
fn a_response_from_a_new_address_moves_the_endpoint() {
    let mut sim = Sim::pair(6);
    sim.send(A, B, 50);
    let initiation = sim.take_log().remove(0);
    let from = sim.nodes[A].addr;
    // The network delivers it to B, whose response then leaves by another address.
    sim.nodes[B].addr = "10.0.0.99:9".parse().unwrap();
    sim.inject(B, from, &initiation.datagram);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[A].peer(&sim.nodes[B].public_key).endpoint().unwrap().addr, sim.nodes[B].addr);
    assert_eq!(sim.nodes[B].received.len(), 1);
}

#[test]
fn nothing_that_does_not_authenticate_moves_the_endpoint() {
    let mut sim = connected(7);
    let stranger = "10.6.6.6:666".parse().unwrap();
    let before = sim.nodes[B].peer(&sim.nodes[A].public_key).endpoint();
    sim.send(A, B, 60);
    let data = sim.take_log().remove(0).datagram;
    sim.run_for(seconds(1));
    let mut forged = data.clone();
    forged[8] = 200;
    for datagram in [&data, &forged, &data[..32].to_vec()] {
        sim.inject(B, stranger, datagram);
    }
    assert_eq!(sim.nodes[B].peer(&sim.nodes[A].public_key).endpoint(), before);
    assert_eq!(sim.nodes[B].drops.get(Dropped::Replayed), 1);
    assert_eq!(sim.nodes[B].drops.get(Dropped::Forged), 2);
}

#[test]
fn a_peer_behind_a_translator_is_followed_as_its_port_changes() {
    let mut sim = connected(8);
    sim.translate(A, "10.200.0.1".parse().unwrap(), seconds(30));
    for _ in 0..5 {
        sim.nodes[A].received.clear();
        sim.send(A, B, 50);
        sim.run_for(seconds(1));
        sim.send(B, A, 50);
        sim.run_for(seconds(1));
        assert_eq!(sim.nodes[A].received.len(), 1);
        sim.run_for(seconds(60));
    }
    assert_eq!(sim.nodes[B].received.len(), 5);
}

#[test]
fn a_persistent_keepalive_holds_the_translation_open() {
    let mut sim = connected(9);
    sim.translate(A, "10.200.0.1".parse().unwrap(), seconds(30));
    let mut edit = PeerEdit::new(sim.nodes[B].public_key);
    edit.persistent_keepalive = Some(25);
    sim.apply(A, &[Edit::Peer(edit)]);
    sim.run_for(seconds(1));
    for _ in 0..20 {
        sim.run_for(seconds(100));
        sim.send(B, A, 50);
        sim.run_for(seconds(1));
    }
    assert_eq!(sim.nodes[A].received.len(), 20, "B reaches A whenever it wants to");
}

#[test]
fn a_prefix_within_anothers_prefix_is_not_the_others() {
    // T5: B holds 10.0.0.0/8, C 10.1.0.0/16 of it.
    let mut sim = Sim::new(10);
    let nodes = [sim.add_node(), sim.add_node(), sim.add_node()];
    sim.introduce(nodes[0], nodes[1]);
    sim.introduce(nodes[0], nodes[2]);
    for (node, addr, len) in [(1, "10.0.0.0", 8), (2, "10.1.0.0", 16)] {
        let mut edit = PeerEdit::new(sim.nodes[node].public_key);
        edit.allowed_ips.push(AllowedIpEdit::Add(Prefix::new(addr.parse().unwrap(), len).unwrap()));
        sim.apply(0, &[Edit::Peer(edit)]);
    }
    let mut send = |node: usize, source: [u8; 4]| {
        let before = sim.nodes[0].received.len();
        let mut packet = sim.packet(node, 0, 40);
        packet[12..16].copy_from_slice(&source);
        sim.send_packet(node, &packet);
        sim.run_for(seconds(1));
        sim.nodes[0].received.len() - before
    };
    assert_eq!(send(1, [10, 2, 0, 1]), 1);
    assert_eq!(send(1, [10, 1, 0, 1]), 0, "C's");
    assert_eq!(send(2, [10, 1, 0, 1]), 1);
    assert_eq!(send(2, [10, 2, 0, 1]), 0, "B's");
    assert_eq!(sim.nodes[0].drops.get(Dropped::NotAllowedSource), 2);
}

#[test]
fn a_peer_roams_between_the_families() {
    // T18, T20.
    let mut sim = connected(11);
    for addr in ["[2001:db8::1]:5", "10.0.0.70:6", "[fe80::1%3]:7", "10.0.0.71:8"] {
        sim.nodes[A].addr = addr.parse().unwrap();
        sim.nodes[A].received.clear();
        sim.send(A, B, 50);
        sim.run_for(seconds(1));
        assert_eq!(peer(&sim, B, A).endpoint().unwrap().addr, sim.nodes[A].addr);
        sim.send(B, A, 50);
        sim.run_for(seconds(1));
        assert_eq!(sim.nodes[A].received.len(), 1, "{addr}");
    }
}

#[test]
fn an_authentic_message_with_nonsense_inside_is_dropped() {
    // T39.
    let mut sim = connected(12);
    let (keypair, from) = (peer(&sim, A, B).reserve(1, sim.now()).unwrap().keypair, sim.nodes[A].addr);
    let good = sim.packet(A, B, 40);
    let mut v6 = vec![0; 40];
    v6[0] = 0x60;
    let with = |at: usize, bytes: &[u8], packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let nonsense = [
        good[..19].to_vec(),
        with(0, &[0x55], &good),
        with(2, &[0, 19], &good),
        with(2, &[0, 49], &good),
        with(2, &[0xff, 0xff], &good),
        v6[..39].to_vec(),
        with(4, &[0xff, 0xff], &v6),
        with(4, &[0, 9], &v6),
        vec![0; 1],
    ];
    let before = peer(&sim, B, A).transferred();
    for (counter, packet) in (1000..).zip(&nonsense) {
        sim.inject(B, from, &keypair.seal_to_vec(counter, packet, packet.len()));
    }
    assert_eq!(sim.nodes[B].drops.get(Dropped::InnerMalformed), nonsense.len() as u64);
    assert_eq!(peer(&sim, B, A).transferred(), before);
    // Whatever the length of the plaintext: the padding is the sender's choice (§5.4.6).
    sim.inject(B, from, &keypair.seal_to_vec(2000, &[&good[..], &[7; 5]].concat(), 45));
    assert_eq!(sim.nodes[B].received.pop().unwrap().1, good);
}

#[test]
fn prefixes_are_told_masked_and_only_once() {
    // Kernel `selftest/allowedips.c`: five entries.
    let mut sim = Sim::pair(13);
    let mut edit = PeerEdit::new(sim.nodes[B].public_key);
    edit.replace_allowed_ips = true;
    for (addr, len) in [
        ("192.95.5.93", 27),
        ("2607:5300:6000:6b00::c05f:543", 128),
        ("10.1.0.20", 29),
        ("2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523", 83),
        ("2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523", 21),
        ("192.95.5.70", 27),
    ] {
        edit.allowed_ips.push(AllowedIpEdit::Add(Prefix::new(addr.parse().unwrap(), len).unwrap()));
    }
    sim.apply(A, &[Edit::Peer(edit)]);
    let told = sim.nodes[A].tunnel.snapshot().peers.remove(0).allowed_ips;
    let told: Vec<_> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "10.1.0.16/29",
            "192.95.5.64/27",
            "2607:5000::/21",
            "2607:5300:6000:6b00::c05f:543/128",
            "2607:5300:6d8a:6bf8:dab1:e000::/83",
        ]
    );
}
