//! A day in seconds: rekeys under loss, and the same seed giving the same day.

use super::*;
use crate::wireguard::dropped::Dropped;

/// Both nodes send every second for `hours`, and A's packets that arrive at B are counted against those sent.
fn day(seed: u64, loss: u16, reorder: u16, hours: u64) -> (Sim, u64) {
    let mut sim = Sim::pair(seed);
    sim.conditions.loss = loss;
    sim.conditions.duplicate = 10;
    sim.conditions.reorder = reorder;
    let mut sent = 0_u64;
    for second in 0..hours * 3600 {
        // Bursts and pauses, so that every timer has its turn.
        if second % 700 < 500 {
            let mut packet = sim.packet(A, B, 60);
            packet[40..48].copy_from_slice(&sent.to_be_bytes());
            sim.send_packet(A, &packet);
            sent += 1;
            if second % 3 == 0 {
                sim.send(B, A, 60);
            }
        }
        sim.run_for(seconds(1));
    }
    sim.run_for(seconds(20));
    (sim, sent)
}

#[test]
fn on_a_lossless_net_a_day_loses_no_packet() {
    let (sim, sent) = day(1, 0, 0, 24);
    assert_eq!(sim.nodes[B].received.len() as u64, sent);
    let rekeys = count(sim.log(), B, 2) + count(sim.log(), A, 2);
    assert!((500..800).contains(&rekeys), "{rekeys}");
}

#[test]
fn on_a_net_that_reorders_only_what_is_under_way_in_a_freed_session_is_lost() {
    // If both sides began at once and the initiation of one was held back, the other keeps a session that is never confirmed. Its next
    // one moves that into the slot for the previous session, as in the kernel (`noise.c`, `add_new_keypair`), and frees the one in use.
    let (sim, sent) = day(1, 0, 50, 12);
    let lost = sent - sim.nodes[B].received.len() as u64;
    assert!(lost <= 2, "{lost}");
    assert_eq!(lost, sim.nodes[B].drops.get(Dropped::UnknownIndex));
}

#[test]
fn under_loss_the_tunnel_loses_little_more_than_the_net() {
    for loss in [10, 50, 100, 300] {
        let (sim, sent) = day(2, loss, 50, 4);
        let arrived = sim.nodes[B].received.len() as u64;
        let net = sent * u64::from(1000 - loss) / 1000;
        // A rekey needs three messages to arrive; while it is repeated, the old session carries on for a minute.
        assert!(arrived >= net * 95 / 100, "loss {loss}: {arrived} of {sent}");
        let mut unique = std::collections::BTreeSet::new();
        assert!(
            sim.nodes[B].received.iter().all(|entry| unique.insert(entry.1[40..48].to_vec())),
            "nothing arrives twice"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_wire_log() {
    let (first, _) = day(3, 50, 50, 1);
    let (second, _) = day(3, 50, 50, 1);
    let (other, _) = day(4, 50, 50, 1);
    assert_eq!(first.log(), second.log());
    assert_ne!(first.log(), other.log());
}
