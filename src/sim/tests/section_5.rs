//! §5: messages, silence, cookies, keys.

use super::*;
use crate::config::{Edit, PeerEdit, PresharedKey, Refused};
use crate::crypto::random::Random;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::sim::Seeded;
use crate::wireguard::constants::{UNDER_LOAD_IN_VAIN, UNDER_LOAD_QUEUE};
use crate::wireguard::dropped::Dropped;
use crate::wireguard::time::Moment;

#[test]
fn a_handshake_is_three_messages_of_exact_length() {
    let mut sim = Sim::pair(1);
    sim.send(A, B, 20);
    sim.run_for(seconds(1));
    let lengths: Vec<_> = sim.log().iter().map(|record| (record.from, record.datagram.len())).collect();
    assert_eq!(lengths, [(A, 148), (B, 92), (A, 64)]);
}

#[test]
fn staged_packets_follow_the_handshake_in_order_and_the_oldest_go_first() {
    let mut sim = Sim::pair(2);
    for number in 0..200_u8 {
        let mut packet = sim.packet(A, B, 40);
        packet[30] = number;
        sim.send_packet(A, &packet);
    }
    sim.run_for(seconds(1));
    let numbers: Vec<_> = sim.nodes[B].received.iter().map(|(_, packet)| packet[30]).collect();
    assert_eq!(numbers, (72..200).collect::<Vec<_>>());
    assert_eq!(sim.nodes[A].drops.get(Dropped::StagedOverflow), 72);
}

#[test]
fn without_a_known_peer_there_is_only_silence() {
    // §5.1: "Silence is a Virtue".
    let mut sim = connected(3);
    let from = "10.9.9.9:1".parse().unwrap();
    let mut random = Seeded::new(5);
    for kind in 0..=255 {
        for len in [0, 1, 3, 4, 31, 32, 33, 64, 91, 92, 93, 147, 148, 149, 1500, 65507] {
            let mut datagram = vec![0; len];
            random.fill(&mut datagram);
            if let Some(header) = datagram.first_chunk_mut::<4>() {
                *header = [kind, 0, 0, 0];
            }
            sim.inject(B, from, &datagram);
        }
    }
    assert!(sim.log().is_empty());
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 1, "the session is as it was");
}

#[test]
fn a_stranger_with_the_right_public_key_gets_no_answer() {
    let mut sim = Sim::new(4);
    let (a, b) = (sim.add_node(), sim.add_node());
    let edit = Edit::Peer(sim.nodes[b].as_peer());
    sim.apply(a, &[edit]);
    sim.send(a, b, 50);
    sim.run_for(seconds(20));
    assert!(count(sim.log(), a, 1) >= 3);
    assert_eq!(count(sim.log(), b, 2), 0);
    assert!(sim.nodes[b].drops.get(Dropped::BadInitiation) >= 3);
}

#[test]
fn an_old_initiation_is_refused_also_after_a_configuration_change() {
    // §5.1; T34.
    let mut sim = Sim::pair(5);
    sim.send(A, B, 50);
    let initiation = sim.log()[0].datagram.clone();
    sim.run_for(seconds(1));
    let responses = count(sim.log(), B, 2);
    let edit = Edit::Peer(sim.nodes[A].as_peer());
    sim.apply(B, &[edit]);
    sim.inject(B, "10.9.9.9:1".parse().unwrap(), &initiation);
    assert_eq!(sim.nodes[B].drops.get(Dropped::StaleInitiation), 1);
    sim.run_for(seconds(1));
    assert_eq!(count(sim.log(), B, 2), responses);
}

#[test]
fn two_initiations_within_20_ms_are_a_flood() {
    let mut sim = Sim::pair(6);
    sim.send(A, B, 50);
    let first = sim.log()[0].datagram.clone();
    // Another node with the same key, started a moment later.
    let mut twin = Sim::pair(6);
    twin.nodes[A].clock_ahead = seconds(1);
    twin.send(A, B, 50);
    let second = twin.log()[0].datagram.clone();
    let from = sim.nodes[A].addr;
    sim.inject(B, from, &first);
    sim.inject(B, from, &second);
    assert_eq!(sim.nodes[B].drops.get(Dropped::InitiationFlood), 1);
    sim.run_for(Duration::from_millis(20));
    sim.inject(B, from, &second);
    assert_eq!(sim.nodes[B].drops.get(Dropped::InitiationFlood), 1);
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_handshakes() {
    // T30.
    let mut sim = Sim::pair(7);
    sim.nodes[A].clock_ahead = seconds(3600);
    sim.send(A, B, 50);
    sim.run_for(seconds(200));
    sim.nodes[A].clock_ahead = Duration::ZERO;
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 2);
}

#[test]
fn preshared_keys_must_agree_and_change_with_the_next_handshake() {
    // T37.
    let mut sim = connected(8);
    let psk = |byte| Some(PresharedKey::new([byte; 32]));
    let set = |sim: &mut Sim, node: usize, of: usize, byte| {
        let mut edit = PeerEdit::new(sim.nodes[of].public_key);
        edit.preshared_key = psk(byte);
        sim.apply(node, &[Edit::Peer(edit)]);
    };
    set(&mut sim, A, B, 1);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 1, "the session goes on");
    sim.run_for(seconds(200));
    sim.send(A, B, 50);
    sim.run_for(seconds(2));
    assert_eq!(sim.nodes[B].received.len(), 1, "the keys disagree");
    assert!(sim.nodes[A].drops.get(Dropped::BadResponse) > 0);
    set(&mut sim, B, A, 1);
    sim.run_for(seconds(10));
    assert_eq!(sim.nodes[B].received.len(), 2, "the waiting packet arrives");
}

#[test]
fn keys_of_low_order_are_never_spoken_to() {
    // T38; the seven points of the kernel's netns test.
    let points = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in points {
        let mut sim = Sim::new(9);
        let (a, b) = (sim.add_node(), sim.add_node());
        let key: [u8; 32] = hex::decode(point).unwrap().try_into().unwrap();
        let mut edit = sim.nodes[b].as_peer();
        edit.public_key = PublicKey::new(key);
        edit.persistent_keepalive = Some(1);
        sim.apply(a, &[Edit::Peer(edit)]);
        sim.send(a, b, 50);
        sim.run_for(seconds(120));
        assert!(sim.log().is_empty(), "{point}");
    }
}

#[test]
fn under_load_a_sender_must_show_its_address_with_a_cookie() {
    // §5.3, §5.4.7.
    let mut sim = Sim::pair(10);
    sim.nodes[B].queued = UNDER_LOAD_QUEUE;
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!((count(sim.log(), B, 3), count(sim.log(), B, 2)), (1, 0));
    assert_eq!(sim.log().last().unwrap().datagram.len(), 64);
    assert_eq!(count(sim.log(), A, 1), 1, "§6.6: a cookie reply is no reason to send at once");
    sim.run_for(seconds(6));
    assert_eq!((count(sim.log(), B, 3), count(sim.log(), B, 2)), (1, 1));
    assert_eq!(sim.nodes[B].received.len(), 1);
    let second = sim.log().iter().filter(|record| record.datagram[0] == 1).nth(1).unwrap();
    assert_ne!(second.datagram[132..], [0; 16], "mac2 is there");
}

#[test]
fn the_load_is_felt_for_a_second_after_it_has_gone() {
    let mut sim = Sim::pair(11);
    sim.nodes[B].queued = UNDER_LOAD_QUEUE;
    sim.send(A, B, 50);
    let initiation = sim.log()[0].datagram.clone();
    let from = sim.nodes[A].addr;
    sim.inject(B, from, &initiation);
    sim.nodes[B].queued = 0;
    sim.run_for(Duration::from_millis(990));
    sim.inject(B, from, &initiation);
    assert_eq!(sim.nodes[B].drops.get(Dropped::CookieSent), 3);
    sim.run_for(Duration::from_millis(1010));
    sim.inject(B, from, &initiation);
    assert_eq!(sim.nodes[B].drops.get(Dropped::CookieSent), 3);
    assert_eq!(count(sim.log(), B, 2), 1);
}

#[test]
fn what_leads_to_nothing_is_a_load_though_nothing_waits() {
    let mut sim = Sim::pair(12);
    sim.send(A, B, 50);
    let (initiation, from) = (sim.log()[0].datagram.clone(), sim.nodes[A].addr);
    sim.run_for(seconds(1));
    let counts =
        |sim: &Sim| [Dropped::StaleInitiation, Dropped::CookieSent].map(|why| sim.nodes[B].drops.get(why));
    let many = u64::try_from(UNDER_LOAD_IN_VAIN).unwrap();
    for _ in 0..many + 1 {
        sim.inject(B, from, &initiation);
    }
    assert_eq!(counts(&sim), [many, 1]);
    // It lasts as long as they come.
    for round in 2..5 {
        sim.run_for(Duration::from_millis(900));
        for _ in 0..many {
            sim.inject(B, from, &initiation);
        }
        assert_eq!(counts(&sim), [many, 1 + (round - 1) * many]);
    }
    sim.run_for(seconds(1));
    sim.inject(B, from, &initiation);
    assert_eq!(counts(&sim)[0], many + 1);
}

#[test]
fn under_load_a_source_with_a_cookie_is_limited() {
    let mut sim = Sim::pair(12);
    sim.nodes[B].queued = UNDER_LOAD_QUEUE;
    sim.send(A, B, 50);
    sim.run_for(seconds(6));
    let with_cookie = sim.log().iter().rfind(|record| record.datagram[0] == 1).unwrap().datagram.clone();
    let from = sim.nodes[A].addr;
    for _ in 0..20 {
        sim.inject(B, from, &with_cookie);
    }
    assert!(sim.nodes[B].drops.get(Dropped::RateLimited) >= 15);
    assert_eq!(sim.nodes[B].drops.get(Dropped::CookieSent), 1);
}

#[test]
fn a_forged_cookie_reply_changes_nothing() {
    let mut sim = Sim::pair(13);
    sim.send(A, B, 50);
    let sender = sim.log()[0].datagram[4..8].to_vec();
    let mut reply = [0; 64];
    reply[0] = 3;
    reply[4..8].copy_from_slice(&sender);
    let from = sim.nodes[B].addr;
    sim.inject(A, from, &reply);
    assert_eq!(sim.nodes[A].drops.get(Dropped::BadCookieReply), 1);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 1);
}

#[test]
fn setting_the_same_private_key_changes_nothing() {
    // T33.
    let mut sim = connected(14);
    let key = sim.nodes[A].private_key.clone();
    sim.apply(A, &[Edit::PrivateKey(Some(key))]);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 1);
    assert_eq!(count(sim.log(), A, 1), 0);
}

#[test]
fn a_new_private_key_needs_a_new_handshake() {
    let mut sim = connected(15);
    let key = PrivateKey::new([3; 32]);
    let old = sim.nodes[A].public_key;
    sim.nodes[A].public_key = key.public();
    sim.apply(A, &[Edit::PrivateKey(Some(key))]);
    let mut gone = PeerEdit::new(old);
    gone.remove = true;
    let known = sim.nodes[A].as_peer();
    sim.apply(B, &[Edit::Peer(gone), Edit::Peer(known)]);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(count(sim.log(), A, 1), 1);
    assert_eq!(sim.nodes[B].received.len(), 1);
}

#[test]
fn ones_own_key_is_no_peer() {
    let mut sim = connected(16);
    let own = sim.nodes[A].as_peer();
    sim.apply(A, &[Edit::Peer(own)]);
    assert_eq!(sim.nodes[A].tunnel.snapshot().peers.len(), 1);
    let mut bare = Sim::new(16);
    let a = bare.add_node();
    let (own, key) = (bare.nodes[a].as_peer(), bare.nodes[a].private_key.clone());
    bare.apply(a, &[Edit::PrivateKey(None), Edit::Peer(own)]);
    assert_eq!(bare.nodes[a].tunnel.snapshot().peers.len(), 1, "a stranger's key as yet");
    bare.apply(a, &[Edit::PrivateKey(Some(key))]);
    assert!(bare.nodes[a].tunnel.snapshot().peers.is_empty());
    // A private key that makes a peer our own removes it.
    let key = sim.nodes[B].private_key.clone();
    sim.apply(A, &[Edit::PrivateKey(Some(key))]);
    assert!(sim.nodes[A].tunnel.snapshot().peers.is_empty());
}

#[test]
fn counters_of_bytes_are_those_of_the_kernel() {
    // Scenario 3: ten pings of 84 bytes.
    let mut sim = Sim::pair(17);
    for _ in 0..10 {
        sim.send(A, B, 84);
        sim.run_for(Duration::from_millis(100));
        sim.send(B, A, 84);
        sim.run_for(Duration::from_millis(100));
    }
    let (tx, rx) = sim.nodes[A].peer(&sim.nodes[B].public_key).transferred();
    assert_eq!(rx, 1372);
    assert!(tx == 1428 || tx == 1460, "{tx}");
}

#[test]
fn no_configuration_change_loses_the_session() {
    let mut sim = connected(18);
    let mut edit = sim.nodes[B].as_peer();
    edit.replace_allowed_ips = true;
    sim.apply(A, &[Edit::Peer(edit)]);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 1);
    assert_eq!(count(sim.log(), A, 1), 0);
}

#[test]
fn bytes_are_counted_as_udp_payload_with_padding_and_handshakes() {
    // A: an initiation (148) and packets of 100 and 21 bytes, padded to 112 and 32. B: a response (92), and later a keepalive (32).
    let mut sim = Sim::pair(19);
    let transferred = |sim: &Sim, node: usize, of: usize| peer(sim, node, of).transferred();
    sim.send(A, B, 100);
    sim.run_for(seconds(1));
    sim.send(A, B, 21);
    sim.run_for(seconds(1));
    assert_eq!(transferred(&sim, A, B), (148 + 32 + 112 + 32 + 32, 92));
    assert_eq!(transferred(&sim, B, A), (92, 148 + 32 + 112 + 32 + 32));
    sim.run_for(seconds(10));
    assert_eq!(transferred(&sim, A, B), (356, 92 + 32));
    assert_eq!(transferred(&sim, B, A), (92 + 32, 356));
}

#[test]
fn what_is_refused_is_not_counted_as_received() {
    let mut sim = connected(20);
    let before = peer(&sim, B, A).transferred();
    let mut packet = sim.packet(A, B, 40);
    packet[15] = 77;
    sim.send_packet(A, &packet);
    let mut forged = sim.log()[0].datagram.clone();
    forged[20] ^= 1;
    sim.inject(B, "10.6.6.6:6".parse().unwrap(), &forged);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].drops.get(Dropped::NotAllowedSource), 1);
    assert_eq!(sim.nodes[B].drops.get(Dropped::Forged), 1);
    assert_eq!(peer(&sim, B, A).transferred(), before);
}

#[test]
fn without_load_mac2_is_not_looked_at() {
    // §5.3.
    let mut sim = Sim::pair(21);
    sim.conditions.loss = 1000;
    sim.send(A, B, 50);
    let mut initiation = sim.log()[0].datagram.clone();
    initiation[132..].fill(0x5a);
    sim.nodes[B].queued = 511;
    let from = sim.nodes[A].addr;
    sim.inject(B, from, &initiation);
    assert_eq!((count(sim.log(), B, 2), count(sim.log(), B, 3)), (1, 0));
}

#[test]
fn load_begins_with_the_512th_waiting_message() {
    // Kernel `receive.c`: an eighth of a queue of 4096. mac1 is checked before all else.
    let mut sim = Sim::pair(22);
    sim.conditions.loss = 1000;
    sim.send(A, B, 50);
    let mut initiation = sim.log()[0].datagram.clone();
    sim.nodes[B].queued = 512;
    let from = sim.nodes[A].addr;
    sim.inject(B, from, &initiation);
    assert_eq!((count(sim.log(), B, 2), count(sim.log(), B, 3)), (0, 1));
    initiation[120] ^= 1;
    sim.inject(B, from, &initiation);
    assert_eq!(sim.nodes[B].drops.get(Dropped::BadMac1), 1);
    assert_eq!(count(sim.log(), B, 3), 1, "no cookie for who does not know the key");
}

#[test]
fn a_response_under_load_is_answered_by_a_cookie_as_well() {
    // §5.3: the initiator may be the one under load.
    let mut sim = Sim::pair(23);
    sim.nodes[A].queued = 512;
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!((count(sim.log(), A, 1), count(sim.log(), B, 2), count(sim.log(), A, 3)), (1, 1, 1));
    assert_eq!(sim.nodes[A].drops.get(Dropped::CookieSent), 1);
    sim.run_for(seconds(6));
    assert_eq!(sim.nodes[B].received.len(), 1, "the second response carries the cookie");
}

#[test]
fn a_cookie_reply_moves_neither_endpoint_nor_timers_nor_counters() {
    // §6.6; T18.
    let mut sim = Sim::pair(24);
    sim.nodes[B].queued = 512;
    sim.send(A, B, 50);
    sim.run_until(seconds(1), |sim| count(sim.log(), B, 3) == 1);
    let reply = sim.log().last().unwrap().datagram.clone();
    let state = |sim: &Sim| {
        let peer = peer(sim, A, B);
        (peer.endpoint(), peer.transferred(), sim.nodes[A].tunnel.poll_timeout())
    };
    let before = state(&sim);
    let log = sim.log().len();
    sim.inject(A, "10.6.6.6:6".parse().unwrap(), &reply);
    assert_eq!(sim.nodes[A].drops.get(Dropped::BadCookieReply), 0, "it is authentic");
    assert_eq!((state(&sim), sim.log().len()), (before, log));
    sim.inject(A, "10.6.6.6:6".parse().unwrap(), &reply);
    assert_eq!(sim.nodes[A].drops.get(Dropped::BadCookieReply), 1, "it counts once");
}

#[test]
fn an_older_timestamp_is_refused_though_the_message_is_new() {
    // §5.1.
    let mut sim = Sim::pair(25);
    sim.nodes[A].clock_ahead = seconds(1);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    let mut twin = Sim::pair(25);
    twin.send(A, B, 50);
    let from = sim.nodes[A].addr;
    sim.inject(B, from, &twin.log()[0].datagram);
    assert_eq!(sim.nodes[B].drops.get(Dropped::StaleInitiation), 1);
    assert_eq!(count(sim.log(), B, 2), 1);
}

#[test]
fn an_initiation_19_ms_after_the_last_is_a_flood_and_20_ms_after_it_is_none() {
    for (wait, refused) in [(19, 1), (20, 0)] {
        let mut sim = Sim::pair(26);
        sim.conditions.loss = 1000;
        sim.send(A, B, 50);
        let mut twin = Sim::pair(26);
        twin.nodes[A].clock_ahead = seconds(1);
        twin.send(A, B, 50);
        let from = sim.nodes[A].addr;
        let first = sim.log()[0].datagram.clone();
        sim.inject(B, from, &first);
        sim.run_for(Duration::from_millis(wait));
        sim.inject(B, from, &twin.log()[0].datagram);
        assert_eq!(sim.nodes[B].drops.get(Dropped::InitiationFlood), refused, "after {wait} ms");
    }
}

#[test]
fn the_responder_sends_only_once_an_empty_packet_has_confirmed_the_session() {
    // §5.4.5.
    let mut sim = Sim::pair(27);
    keep_alive(&mut sim, A, B, 25);
    sim.run_until(seconds(1), |sim| count(sim.log(), B, 2) == 1);
    sim.send(B, A, 50);
    let keepalive = sim.run_until(seconds(1), |sim| keepalives(sim.log(), A) == 1);
    assert!(keepalive);
    assert_eq!((count(sim.log(), B, 4), count(sim.log(), B, 1)), (0, 0), "B waits");
    sim.run_for(Duration::from_millis(10));
    assert_eq!(sim.nodes[A].received.len(), 1);
    sim.run_for(seconds(6));
    assert_eq!(count(sim.log(), B, 1), 0, "and does not begin a handshake of its own");
}

#[test]
fn a_session_that_is_not_confirmed_is_not_used() {
    // §5.4.5: the initiator's confirmation is lost; B has to ask for a session of its own.
    let mut sim = Sim::pair(28);
    keep_alive(&mut sim, A, B, 1000);
    sim.run_until(seconds(1), |sim| count(sim.log(), B, 2) == 1);
    sim.conditions.loss = 1000;
    sim.run_for(seconds(1));
    sim.conditions.loss = 0;
    sim.send(B, A, 50);
    sim.run_for(seconds(10));
    assert_eq!(count(sim.log(), B, 1), 1);
    assert_eq!(sim.nodes[A].received.len(), 1);
}

#[test]
fn a_session_that_was_just_confirmed_stays_in_use_while_the_next_one_waits() {
    // §5.4.5.
    let mut sim = Sim::pair(61);
    sim.send(A, B, 50);
    sim.conditions.loss = 1000;
    sim.run_for(Duration::from_millis(10));
    let response = sim.log().iter().find(|record| (record.from, record.datagram[0]) == (B, 2)).unwrap();
    let index = u32::from_le_bytes(response.datagram[4..8].try_into().unwrap());
    let session = |sim: &Sim| sim.nodes[B].tunnel.interface().view().session(index);
    // A worker opens the first data message; what is to follow from that has to wait for the control thread, which has the next
    // initiation before it.
    assert!(session(&sim).unwrap().keypair().unwrap().confirm());
    sim.conditions.loss = 0;
    assert!(sim.run_until(seconds(6), |sim| count(sim.log(), A, 1) == 2));
    sim.conditions.loss = 1000;
    sim.run_for(Duration::from_millis(10));
    assert_eq!(count(sim.log(), B, 2), 2);
    assert!(session(&sim).is_some(), "what A sends on it is received");
    let ticket = peer(&sim, B, A).reserve(1, sim.now()).unwrap();
    assert_eq!(ticket.keypair.local(), index);
}

#[test]
fn sessions_with_many_peers_are_all_received_on() {
    // §5.4.2: more indices than a new interface has room for.
    let mut sim = Sim::new(63);
    let hub = sim.add_node();
    let others: Vec<_> = (0..20).map(|_| sim.add_node()).collect();
    others.iter().for_each(|&other| sim.introduce(hub, other));
    others.iter().for_each(|&other| sim.send(hub, other, 50));
    sim.run_for(seconds(1));
    others.iter().for_each(|&other| sim.send(other, hub, 50));
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[hub].received.len(), 20);
    assert_eq!(sim.nodes[hub].drops.get(Dropped::UnknownIndex), 0);
}

#[test]
fn handshake_messages_carry_af41_and_data_the_inner_ecn_bits_only() {
    // Kernel `messages.h`, HANDSHAKE_DSCP.
    let mut sim = Sim::pair(29);
    sim.nodes[B].queued = 512;
    for ds in [0xb8, 0xb9, 0xba, 0xbb] {
        let mut packet = sim.packet(A, B, 40);
        packet[1] = ds;
        sim.send_packet(A, &packet);
    }
    sim.run_for(seconds(20));
    let of_kind = |kind: u8| sim.log().iter().filter(move |record| record.datagram[0] == kind);
    for kind in [1, 2, 3] {
        assert!(of_kind(kind).count() > 0 && of_kind(kind).all(|record| record.ds == 0x88), "type {kind}");
    }
    let data: Vec<_> = of_kind(4).map(|record| (record.from, record.ds)).collect();
    assert_eq!(data, [(A, 0), (A, 1), (A, 2), (A, 2), (B, 0)], "the last is a keepalive");
}

#[test]
fn congestion_met_outside_is_told_inside() {
    // RFC 6040.
    let mut sim = connected(30);
    sim.conditions.mark = 1000;
    for ds in 0..4 {
        let mut packet = sim.packet(A, B, 40);
        packet[1] = 0xb8 | ds;
        sim.send_packet(A, &packet);
    }
    sim.run_for(seconds(1));
    let fields: Vec<_> = sim.nodes[B].received.iter().map(|entry| entry.1[1]).collect();
    assert_eq!(fields, [0xb8, 0xbb, 0xbb, 0xbb]);
}

#[test]
fn what_was_to_be_sent_before_there_was_a_key_goes_out_with_the_first_key() {
    // Kernel `netlink.c`, `wg_set_device`.
    let mut sim = Sim::pair(31);
    let key = sim.nodes[A].private_key.clone();
    sim.apply(A, &[Edit::PrivateKey(None)]);
    keep_alive(&mut sim, A, B, 25);
    sim.run_for(seconds(100));
    assert!(sim.log().is_empty());
    sim.apply(A, &[Edit::PrivateKey(Some(key))]);
    assert_eq!(count(sim.log(), A, 1), 1);
    sim.run_for(seconds(1));
    assert!(peer(&sim, B, A).has_session(sim.now()));
}

#[test]
fn a_new_private_key_does_not_wait_for_the_last_handshake() {
    // Kernel `noise.c`, `wg_noise_expire_current_peer_keypairs`.
    let mut sim = Sim::pair(32);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    let old = peer(&sim, A, B).reserve(1, sim.now()).unwrap().keypair;
    let key = PrivateKey::new([3; 32]);
    sim.nodes[A].public_key = key.public();
    sim.apply(A, &[Edit::PrivateKey(Some(key))]);
    let known = sim.nodes[A].as_peer();
    sim.apply(B, &[Edit::Peer(known)]);
    assert!(!old.may_send(sim.now()), "the old key sends nothing");
    sim.send(A, B, 50);
    assert_eq!(count(sim.log(), A, 1), 2);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[B].received.len(), 2);
}

#[test]
fn an_interface_without_a_key_bears_any_message() {
    // T2.
    let mut sim = Sim::pair(33);
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    let real: Vec<_> = sim.take_log().into_iter().map(|record| record.datagram).collect();
    sim.apply(B, &[Edit::PrivateKey(None), Edit::ClearPeers]);
    let from = sim.nodes[A].addr;
    let mut random = Seeded::new(1);
    for kind in 0..=5 {
        for len in [0, 1, 4, 16, 31, 32, 64, 92, 148, 1500, 65507] {
            let mut datagram = vec![0; len];
            random.fill(&mut datagram);
            if let Some(header) = datagram.first_chunk_mut::<4>() {
                *header = [kind, 0, 0, 0];
            }
            sim.inject(B, from, &datagram);
        }
    }
    real.iter().for_each(|datagram| sim.inject(B, from, datagram));
    assert!(sim.log().is_empty());
    assert_eq!(sim.nodes[B].drops.get(Dropped::NoPrivateKey), 4, "initiations and responses, real or not");
}

#[test]
fn a_removed_peer_leaves_nothing_behind() {
    let mut sim = connected(34);
    // A view that some thread holds still, of a table of indices that has since been outgrown.
    let view = sim.nodes[A].tunnel.interface().view();
    let edits: Vec<_> = (0..40_u8)
        .map(|i| {
            let mut edit = PeerEdit::new(PrivateKey::new([i + 10; 32]).public());
            edit.endpoint = Some("10.0.0.7:7".parse().unwrap());
            edit.persistent_keepalive = Some(25);
            Edit::Peer(edit)
        })
        .collect();
    sim.apply(A, &edits);
    let known = peer(&sim, A, B);
    let keypair = Arc::downgrade(&known.reserve(1, sim.now()).unwrap().keypair);
    assert!(view.session(keypair.upgrade().unwrap().local()).is_some());
    drop(known);
    let mut edit = PeerEdit::new(sim.nodes[B].public_key);
    edit.remove = true;
    sim.apply(A, &[Edit::Peer(edit)]);
    assert_eq!(keypair.strong_count(), 0, "the keys are gone though the old view is there");
    let peer = Arc::downgrade(view.route(sim.nodes[B].inner).unwrap());
    drop(view);
    assert_eq!(peer.strong_count(), 0);
    sim.send(B, A, 50);
    sim.run_for(Duration::from_millis(6));
    assert_eq!(sim.nodes[A].drops.get(Dropped::UnknownIndex), 1);
}

#[test]
fn a_peers_life_goes_on_through_a_thousand_edits() {
    // T1.
    let mut sim = connected(35);
    let before = peer(&sim, A, B).transferred();
    for i in 0..1000_u32 {
        let mut edit = sim.nodes[B].as_peer();
        edit.preshared_key = Some(PresharedKey::new([u8::try_from(i % 251).unwrap(); 32]));
        edit.persistent_keepalive = Some(u16::try_from(i % 3).unwrap() * 1000);
        edit.replace_allowed_ips = i % 2 == 0;
        sim.apply(A, &[Edit::Peer(edit)]);
        sim.send(A, B, 50);
        sim.run_for(Duration::from_millis(10));
    }
    sim.run_for(Duration::from_millis(10));
    assert_eq!(sim.nodes[B].received.len(), 1000);
    assert_eq!(count(sim.log(), A, 1), 0);
    assert!(peer(&sim, A, B).transferred().0 >= before.0 + 96_000);
}

#[test]
fn an_initiation_is_answered_once_however_often_it_arrives() {
    let mut sim = Sim::pair(36);
    sim.conditions.duplicate = 1000;
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(count(sim.log(), B, 2), 1);
    assert_eq!(sim.nodes[B].received.len(), 1);
}

#[test]
fn more_than_two_to_the_twentieth_peers_are_refused_as_a_whole() {
    // Kernel `device.h`, MAX_PEERS_PER_DEVICE.
    let mut sim = Sim::pair(37);
    let key = |number: u32| {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::new(bytes)
    };
    // One is there already.
    let edits: Vec<_> = (0..1 << 20).map(|number| Edit::Peer(PeerEdit::new(key(number)))).collect();
    let moment = Moment { now: sim.now(), unix: Duration::ZERO };
    let refused = sim.nodes[A].tunnel.apply(&edits, moment);
    assert_eq!(refused, Err(Refused::TooManyPeers));
    assert!(sim.nodes[A].tunnel.interface().peer(&key(0)).is_none(), "none of them was made");
    // Who removes as many as it makes is within the limit.
    let mut replaced = vec![Edit::ClearPeers];
    replaced.extend(edits.into_iter().take(3));
    assert_eq!(sim.nodes[A].tunnel.apply(&replaced, moment), Ok(()));
}
