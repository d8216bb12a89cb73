//! Either end moves, and the other follows the first packet that it can authenticate ([W] §2.1).

use super::{End, Initiator, Outside, Pair};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// What changes; then the end that it changed at sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    OurPort,
    OurAddress,
    TheirPort,
    TheirAddress,
}

/// Makes the moves of each list one after the other, and begins every list with fresh instances.
fn make_moves(program: Program, args: &[&str], initiator: Initiator, lists: &[&[Move]]) {
    if program.path().is_none() {
        return;
    }
    for family in [Outside::V4, Outside::V6] {
        for list in lists {
            eprintln!("{program:?}, {family:?} outside, {initiator:?} first, {list:?}");
            let mut pair = Pair::with_args(program, args, family, initiator, true);
            pair.establish();
            for step in *list {
                make_move(&mut pair, family, *step);
            }
        }
    }
}

fn make_move(pair: &mut Pair, family: Outside, step: Move) {
    let (mover, other) = match step {
        Move::OurPort | Move::OurAddress => (&mut pair.ours, &pair.theirs),
        Move::TheirPort | Move::TheirAddress => (&mut pair.theirs, &pair.ours),
    };
    assert_eq!(other.endpoint(), mover.at(family), "before {step:?}");
    match step {
        Move::OurPort | Move::TheirPort => {
            mover.port += 1;
            mover.tunnel.set(&mover.namespace, &format!("listen-port {}", mover.port));
        }
        Move::OurAddress | Move::TheirAddress => change_address(mover, family),
    }
    wait_until(&format!("an answer after {step:?}"), SOON, || mover.reaches(other));
    assert_eq!(other.endpoint(), mover.at(family), "after {step:?}");
    assert!(other.reaches(mover), "after {step:?}, what the other end sends does not arrive");
}

fn change_address(mover: &mut End, family: Outside) {
    let (len, nodad) = match family {
        Outside::V4 => (24, ""),
        Outside::V6 => (64, " nodad"),
    };
    mover.namespace.ip(&format!("addr del {}/{len} dev veth", mover.outside(family)));
    mover.host += 2;
    mover.namespace.ip(&format!("addr add {}/{len} dev veth{nodad}", mover.outside(family)));
}

#[test]
fn ours_and_wireguard_go_follow_each_other() {
    need!("ip", "wg", "ping");
    let all = [Move::OurPort, Move::OurAddress, Move::TheirPort, Move::TheirAddress];
    make_moves(Program::WireguardGo, &[], Initiator::Ours, &[&all]);
}

#[test]
fn ours_follows_tailscales_wireguard_go() {
    need!("ip", "wg", "ping");
    // It follows nobody: Tailscale's own code tells it where its peers are.
    let all = [Move::TheirPort, Move::TheirAddress];
    make_moves(Program::Tailscale, &[], Initiator::Theirs, &[&all]);
}

#[test]
fn ours_and_boringtun_follow_each_other() {
    need!("ip", "wg", "ping");
    // It may wedge at the second change of an endpoint, and a socket that it connected keeps the address that it had then.
    let each: [&[Move]; 4] =
        [&[Move::OurPort], &[Move::OurAddress], &[Move::TheirPort], &[Move::TheirAddress]];
    make_moves(Program::Boringtun, &["--disable-connected-udp"], Initiator::Ours, &each);
}
