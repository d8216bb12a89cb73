//! Views of inner packets on arbitrary bytes: headers, ECN, checksum and the unreachable message.
//!
//! Lengths stay within the packet, an unreachable message is a valid packet by a checksum written anew here, and a congestion mark leaves
//! a right IPv4 header checksum right.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use adit::packet::{checksum, ecn, icmp, ip};
use libfuzzer_sys::fuzz_target;

/// RFC 1071 word by word.
fn naive_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u16;
    for part in parts {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (wrapped, carry) = sum.overflowing_add(word);
            sum = wrapped + u16::from(carry);
        }
    }
    sum
}

fuzz_target!(|input: &[u8]| {
    let [outer, split, old, new, packet @ ..] = input else { return };
    check_views(packet, u16::from_be_bytes([*old, *new]));
    check_unreachable(packet);
    check_ecn(packet, *outer);
    check_checksum(packet, usize::from(*split), [*old, *new]);
});

fn check_views(packet: &[u8], port: u16) {
    let _ = ip::ds_field(packet);
    let destination = ip::destination(packet);
    let Ok(header) = ip::inner(packet) else {
        assert!(!ip::is_udp(packet, port, SocketAddr::new([0; 4].into(), port)));
        return;
    };
    let least = match header.version {
        ip::Version::V4 => 20,
        ip::Version::V6 => 40,
    };
    assert!((least..=packet.len()).contains(&header.len));
    assert_eq!(destination, Ok(header.destination));
    assert_eq!(ip::inner(&packet[..header.len]), Ok(header), "what follows is padding");
    let is_udp = ip::is_udp(packet, port, SocketAddr::new(header.destination, port));
    let protocol = match header.version {
        ip::Version::V4 => packet[9],
        ip::Version::V6 => packet[6],
    };
    assert!(!is_udp || protocol == 17);
}

fn check_unreachable(packet: &[u8]) {
    let mut out = [0xa5; icmp::MAX_LEN];
    let Some(len) = icmp::unreachable(packet, &mut out) else { return };
    let (answer, rest) = out.split_at(len);
    assert!(rest.iter().all(|&byte| byte == 0xa5), "nothing is written behind the message");
    let question = ip::inner(packet).expect("only packets are answered");
    let header = ip::inner(answer).expect("an answer is a packet");
    assert_eq!(header.len, len);
    assert_eq!((header.source, header.destination), (question.destination, question.source));
    let quote = match header.destination {
        IpAddr::V4(_) => {
            assert!(len <= 576);
            assert_eq!(naive_sum(&[&answer[..20]]), 0xffff);
            assert_eq!(naive_sum(&[&answer[20..]]), 0xffff);
            assert_eq!((answer[9], answer[20], answer[21]), (1, 3, 1));
            &answer[28..]
        }
        IpAddr::V6(_) => {
            let payload = u32::try_from(len - 40).expect("at most 1240").to_be_bytes();
            assert_eq!(naive_sum(&[&answer[8..40], &payload, &[0, 0, 0, 58], &answer[40..]]), 0xffff);
            assert_eq!((answer[6], answer[40], answer[41]), (58, 1, 3));
            &answer[48..]
        }
    };
    assert_eq!(quote, &packet[..quote.len()]);
    assert!(quote.len() == question.len || len == 576 || len == 1280, "as much as fits");
    assert_eq!(icmp::unreachable(answer, &mut [0; icmp::MAX_LEN]), None, "an error is not answered");
}

fn check_ecn(packet: &[u8], outer: u8) {
    assert!(ecn::encapsulate(outer) <= 2, "no DSCP and no mark");
    let mut before = packet.to_vec();
    let options = before.first().map_or(20, |first| usize::from(first & 15) * 4);
    let header_len = if (20..=before.len()).contains(&options) { options } else { 20 };
    if before.len() >= 20 && before[0] >> 4 == 4 {
        before[10..12].fill(0);
        let sum = !naive_sum(&[&before[..header_len]]);
        before[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let mut after = before.clone();
    ecn::decapsulate(&mut after, outer);
    if ip::destination(&before).is_err() {
        return;
    }
    let (inner, result) = (ip::ds_field(&before), ip::ds_field(&after));
    // RFC 6040, figure 4, without its drops: a mark is carried over to what can carry one, and ECT(1) to ECT(0).
    let ecn = match (inner & 3, outer & 3) {
        (1..=3, 3) => 3,
        (2, 1) => 1,
        (kept, _) => kept,
    };
    assert_eq!(result, inner & !3 | ecn);
    let changed = |at: usize| before[at] != after[at];
    if before[0] >> 4 == 4 {
        assert_eq!(naive_sum(&[&after[..header_len]]), 0xffff);
        assert!((0..after.len()).all(|at| !changed(at) || matches!(at, 1 | 10 | 11)));
    } else {
        assert!((0..after.len()).all(|at| !changed(at) || at == 1));
        assert_eq!(before[1] & 0xcf, after[1] & 0xcf, "only the two bits");
    }
}

fn check_checksum(packet: &[u8], split: usize, new: [u8; 2]) {
    let expected = naive_sum(&[packet]);
    let split = (2 * split).min(packet.len() & !1);
    let sum = checksum::add(checksum::add(0, &packet[..split]), &packet[split..]);
    assert_eq!(checksum::finish(sum), !expected);
    if split + 2 <= packet.len() {
        let old = u16::from_be_bytes([packet[split], packet[split + 1]]);
        let mut changed = packet.to_vec();
        changed[split..split + 2].copy_from_slice(&new);
        let updated = checksum::update(!expected, old, u16::from_be_bytes(new));
        let anew = !naive_sum(&[&changed]);
        // A sum of zero has two representations, of which only a packet of zeros shows the other one.
        assert!(updated == anew || (updated | anew == 0xffff && changed.iter().all(|&byte| byte == 0)));
    }
}
