//! Data through the tunnel, for every pair of families, either role, with and without a preshared key.

use super::{Initiations, Initiator, Outside, Pair};
use crate::support::stream::exchange;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

fn every_combination(program: Program) {
    if program.path().is_none() {
        return;
    }
    for outside in [Outside::V4, Outside::V6] {
        for initiator in [Initiator::Ours, Initiator::Theirs] {
            for with_psk in [false, true] {
                // Printed when the test fails.
                eprintln!("{program:?}, {outside:?} outside, {initiator:?} first, preshared key: {with_psk}");
                combination(&Pair::new(program, outside, initiator, with_psk));
            }
        }
    }
}

fn combination(pair: &Pair) {
    let initiations = Initiations::watch(pair);
    pair.establish();
    let [first, second] = pair.by_role();
    wait_until("an initiation", SOON, || initiations.from(first) > 0);
    assert_eq!(initiations.from(second), 0, "the responder has initiated");
    assert!(pair.ours.tunnel.latest_handshake(&pair.ours.namespace) > 0);
    assert!(second.reaches(first));
    for addr in &pair.theirs.inside {
        exchange(&pair.ours.namespace, &pair.theirs.namespace, addr, 1 << 20);
    }
    for addr in &pair.ours.inside {
        exchange(&pair.theirs.namespace, &pair.ours.namespace, addr, 1 << 20);
    }
}

#[test]
fn ours_and_wireguard_go_exchange_data_in_every_combination() {
    need!("ip", "wg", "ping", "tcpdump");
    every_combination(Program::WireguardGo);
}

#[test]
fn ours_and_tailscales_wireguard_go_exchange_data_in_every_combination() {
    need!("ip", "wg", "ping", "tcpdump");
    every_combination(Program::Tailscale);
}

#[test]
fn ours_and_boringtun_exchange_data_in_every_combination() {
    need!("ip", "wg", "ping", "tcpdump");
    every_combination(Program::Boringtun);
}
