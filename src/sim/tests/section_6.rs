//! §6: timers.

use super::*;
use crate::wireguard::dropped::Dropped;
use crate::wireguard::peer::Staged;

#[test]
fn an_idle_session_is_silent() {
    // T12; §6: no keepalives without data.
    let mut sim = connected(1);
    sim.run_for(seconds(300));
    assert!(sim.log().is_empty());
    sim.run_for(seconds(600));
    assert!(sim.log().is_empty());
}

#[test]
fn received_data_is_answered_by_a_keepalive_after_ten_seconds() {
    // §6.5.
    let mut sim = connected(2);
    sim.send(A, B, 50);
    let start = sim.now();
    sim.run_for(seconds(30));
    let answer = sim.log().iter().find(|record| record.from == B).unwrap();
    assert_eq!(answer.datagram.len(), 32);
    assert_eq!(answer.at.since(start), Duration::from_millis(10_005));
    assert_eq!(sim.log().len(), 2, "a keepalive is not answered");
}

#[test]
fn one_way_traffic_costs_a_keepalive_every_ten_seconds_and_no_handshake() {
    // T12.
    let mut sim = connected(3);
    for _ in 0..600 {
        sim.send(A, B, 50);
        sim.run_for(Duration::from_millis(100));
    }
    assert_eq!(count(sim.log(), A, 1) + count(sim.log(), B, 1), 0);
    let kept = keepalives(sim.log(), B);
    assert!((5..=6).contains(&kept), "{kept}");
}

#[test]
fn silence_after_data_begins_a_handshake_after_fifteen_seconds() {
    // §6.5.
    let mut sim = connected(4);
    sim.conditions.loss = 1000;
    let start = sim.now();
    sim.send(A, B, 50);
    sim.run_for(seconds(16));
    let initiations = times(sim.log(), A, 1);
    assert_eq!(initiations.len(), 1);
    let after = initiations[0].since(start);
    assert!(after >= seconds(15) && after < Duration::from_millis(15_333), "{after:?}");
}

#[test]
fn handshakes_are_repeated_every_five_seconds_and_given_up_after_ninety() {
    // §6.4.
    let mut sim = Sim::new(5);
    let (a, b) = (sim.add_node(), sim.add_node());
    sim.conditions.loss = 1000;
    sim.introduce(a, b);
    sim.send(a, b, 50);
    sim.run_for(seconds(600));
    let initiations = times(sim.log(), a, 1);
    assert_eq!(initiations.len(), 20, "the first, 18 more, and one (kernel: attempts > 18)");
    for pair in initiations.windows(2) {
        let gap = pair[1].since(pair[0]);
        assert!(gap >= seconds(5) && gap < Duration::from_millis(5333), "{gap:?}");
    }
    assert_eq!(sim.nodes[a].drops.get(Dropped::HandshakeGivenUp), 1);
    assert_eq!(sim.log().len(), 20);
    // A new packet begins anew.
    sim.conditions.loss = 0;
    sim.send(a, b, 60);
    sim.run_for(seconds(1));
    assert_eq!(sim.nodes[b].received.len(), 1);
}

#[test]
fn the_jitter_of_retransmissions_differs() {
    let mut sim = Sim::new(6);
    let (a, b) = (sim.add_node(), sim.add_node());
    sim.introduce(a, b);
    sim.conditions.loss = 1000;
    sim.send(a, b, 50);
    sim.run_for(seconds(100));
    let initiations = times(sim.log(), a, 1);
    let gaps: std::collections::BTreeSet<_> =
        initiations.windows(2).map(|pair| pair[1].since(pair[0]).as_millis()).collect();
    assert!(gaps.len() > 5, "{gaps:?}");
}

#[test]
fn a_persistent_keepalive_revives_a_tunnel_that_was_given_up() {
    let mut sim = Sim::pair(7);
    sim.conditions.loss = 1000;
    let mut edit = PeerEdit::new(sim.nodes[B].public_key);
    edit.persistent_keepalive = Some(25);
    sim.apply(A, &[Edit::Peer(edit)]);
    assert_eq!(count(sim.log(), A, 1), 1, "switching it on sends one at once");
    sim.run_for(seconds(400));
    sim.conditions.loss = 0;
    let revived =
        sim.run_until(seconds(60), |sim| sim.nodes[A].peer(&sim.nodes[B].public_key).has_session(sim.now()));
    assert!(revived);
    // And from then on one every 25 s.
    sim.run_for(seconds(1));
    sim.take_log();
    sim.run_for(seconds(100));
    assert_eq!(keepalives(sim.log(), A), 4);
}

#[test]
fn the_initiator_renews_the_session_after_two_minutes_of_use() {
    // §6.2.
    let mut sim = connected(8);
    let mut handshakes = Vec::new();
    for _ in 0..400 {
        sim.send(A, B, 50);
        sim.run_for(seconds(1));
        let log = sim.take_log();
        handshakes.extend(times(&log, A, 1));
        assert_eq!(count(&log, B, 1), 0, "the responder does not");
    }
    assert_eq!(handshakes.len(), 3);
    for pair in handshakes.windows(2) {
        let gap = pair[1].since(pair[0]);
        assert!((120..=122).contains(&gap.as_secs()), "{gap:?}");
    }
    assert_eq!(sim.nodes[B].received.len(), 400);
}

#[test]
fn a_receiving_initiator_renews_the_session_by_its_keepalives() {
    // §6.2: B sends; A, who began, only answers with keepalives, the first of which after 120 s asks for a new session.
    let mut sim = connected(9);
    for _ in 0..200 {
        sim.send(B, A, 50);
        sim.run_for(seconds(1));
    }
    let first = times(sim.log(), A, 1)[0].since(sim.log()[0].at);
    // connected() has let eleven seconds pass.
    assert!((109..=120).contains(&first.as_secs()), "{first:?}");
    assert_eq!(sim.nodes[A].received.len(), 200);
}

#[test]
fn a_session_is_dead_after_three_minutes() {
    // §6.2.
    let mut sim = connected(10);
    sim.run_for(seconds(200));
    sim.send(B, A, 50);
    sim.run_for(seconds(1));
    assert_eq!(count(sim.log(), B, 1), 1, "B has to begin a new one");
    assert_eq!(sim.nodes[A].received.len(), 1);
}

#[test]
fn keys_are_wiped_after_nine_minutes() {
    // §6.3.
    let mut sim = connected(11);
    let peer = sim.nodes[A].peer(&sim.nodes[B].public_key);
    let keypair = Arc::downgrade(&peer.reserve(1, sim.now()).unwrap().keypair);
    // connected() has let eleven of the 540 seconds pass.
    sim.run_for(seconds(527));
    assert!(keypair.strong_count() > 0);
    sim.run_for(seconds(3));
    assert_eq!(keypair.strong_count(), 0, "nothing holds the keys any longer");
}

#[test]
fn both_sides_beginning_at_once_end_up_with_a_working_session() {
    for seed in 0..50 {
        let mut sim = Sim::pair(seed);
        sim.conditions.reorder = 500;
        sim.send(A, B, 50);
        sim.send(B, A, 50);
        sim.run_for(seconds(16));
        assert_eq!((sim.nodes[A].received.len(), sim.nodes[B].received.len()), (1, 1), "seed {seed}");
        sim.send(A, B, 50);
        sim.send(B, A, 50);
        sim.run_for(seconds(7));
        assert_eq!((sim.nodes[A].received.len(), sim.nodes[B].received.len()), (2, 2), "seed {seed}");
    }
}

#[test]
fn a_node_that_slept_begins_anew() {
    // T16.
    let mut sim = connected(12);
    sim.suspend(A, seconds(60));
    sim.run_for(seconds(61));
    sim.send(A, B, 50);
    sim.run_for(seconds(1));
    assert_eq!(count(sim.log(), A, 1), 1, "the session was wiped");
    assert_eq!(sim.nodes[B].received.len(), 1);
}

#[test]
fn a_long_sleep_costs_no_flood_of_timers() {
    let mut sim = connected(13);
    let mut edit = PeerEdit::new(sim.nodes[B].public_key);
    edit.persistent_keepalive = Some(1);
    sim.apply(A, &[Edit::Peer(edit)]);
    sim.run_for(seconds(5));
    sim.take_log();
    sim.suspend(A, seconds(86_400));
    sim.run_for(seconds(86_400));
    sim.run_for(seconds(2));
    let sent = sim.log().iter().filter(|record| record.from == A).count();
    assert!(sent <= 6, "{sent}");
}

#[test]
fn ten_thousand_idle_peers_cost_no_wake_up() {
    let mut sim = Sim::new(14);
    let a = sim.add_node();
    let edits: Vec<_> = (0..10_000_u32)
        .map(|i| {
            let mut key = [1; 32];
            key[..4].copy_from_slice(&i.to_le_bytes());
            let mut edit = PeerEdit::new(crate::crypto::x25519::PublicKey::new(key));
            edit.endpoint = Some("10.0.0.7:7".parse().unwrap());
            Edit::Peer(edit)
        })
        .collect();
    sim.apply(a, &edits);
    assert_eq!(sim.nodes[a].interface.poll_timeout(), None);
}

#[test]
fn a_device_that_goes_down_forgets_and_one_that_comes_up_begins() {
    // Kernel `device.c`, `wg_stop` and `wg_open`.
    let mut sim = connected(24);
    let keypair = Arc::downgrade(&peer(&sim, A, B).reserve(1, sim.now()).unwrap().keypair);
    keep_alive(&mut sim, A, B, 25);
    sim.run_for(seconds(1));
    sim.take_log();
    sim.down(A);
    assert_eq!(keypair.strong_count(), 0);
    assert_eq!(sim.nodes[A].interface.poll_timeout(), None);
    sim.send(A, B, 50);
    assert_eq!(sim.nodes[A].drops.get(Dropped::Down), 1);
    sim.send(B, A, 50);
    sim.run_for(seconds(60));
    assert!(sim.log().iter().all(|record| record.from == B), "not a word");
    sim.take_log();
    sim.up(A);
    assert_eq!(count(sim.log(), A, 1), 1, "at once, for the keepalive");
    sim.run_for(seconds(1));
    assert!(peer(&sim, A, B).has_session(sim.now()));
}

#[test]
fn keepalives_alone_renew_the_session_after_two_minutes() {
    // §6.2; kernel `send.c`, `keep_key_fresh`, which every sent packet passes.
    let mut sim = connected(16);
    keep_alive(&mut sim, A, B, 25);
    for _ in 0..1000 {
        sim.run_for(seconds(1));
        let now = sim.now();
        assert!(peer(&sim, A, B).has_session(now) && peer(&sim, B, A).has_session(now), "at {now:?}");
    }
    let initiations = times(sim.log(), A, 1);
    assert!((6..=8).contains(&initiations.len()), "{initiations:?}");
    assert_eq!(count(sim.log(), B, 1), 0);
}

#[test]
fn a_session_that_ends_while_waiting_packets_are_sent_leaves_the_rest_waiting() {
    const REJECT: u64 = 0xffff_ffff_ffff_dfff;
    let mut sim = connected(19);
    skip_to_counter(&sim, A, B, REJECT - 2);
    let peer = peer(&sim, A, B);
    for len in 50..55 {
        let packet = sim.packet(A, B, len).into();
        let _ = peer.stage(Staged { packet, mtu: 1420, ds: 0 });
    }
    let moment = Moment { now: sim.now(), unix: seconds(2_000_000_000) };
    sim.nodes[A].interface.handle_asked(&peer, moment);
    sim.apply(A, &[]);
    assert_eq!(counters(sim.log(), A), [REJECT - 2, REJECT - 1]);
    assert_eq!(count(sim.log(), A, 1), 1);
    sim.run_for(seconds(1));
    let lengths: Vec<_> = sim.nodes[B].received.iter().map(|entry| entry.1.len()).collect();
    assert_eq!(lengths, [50, 51, 52, 53, 54]);
}
