//! Explicit congestion notification through a tunnel (RFC 6040), as the kernel does it for WireGuard.

use super::checksum;
use super::ip::ds_field;

/// The two ECN bits of a DS field.
const MASK: u8 = 3;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Returns the outer DS field for a packet with the DS field `inner`: no DSCP, and the ECN bits copied except that a mark does not go out
/// twice (kernel `inet_ecn.h`, `INET_ECN_encapsulate`: the full-functionality option of RFC 3168 §9.1.1).
pub fn encapsulate(inner: u8) -> u8 {
    match inner & MASK {
        CE => ECT_0,
        ecn => ecn,
    }
}

/// Carries a mark from the outer header, whose ECN bits are `outer`, over to `packet` (RFC 6040 §4.2; kernel `inet_ecn.h`,
/// `INET_ECN_decapsulate`).
///
/// `packet` holds a whole IP header. A mark on a packet that cannot carry it is ignored, as the kernel ignores it (`receive.c`).
pub fn decapsulate(packet: &mut [u8], outer: u8) {
    let ecn = match (ds_field(packet) & MASK, outer & MASK) {
        (ECT_0 | ECT_1, CE) => CE,
        // RFC 6040 §4.2: a network may use ECT(1) for a mark weaker than CE.
        (ECT_0, ECT_1) => ECT_1,
        _ => return,
    };
    match packet {
        [first, ds, ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *ds]);
            *ds = *ds & !MASK | ecn;
            let new = u16::from_be_bytes([*first, *ds]);
            if let Some(field) = packet.get_mut(10..12) {
                let sum = checksum::update(u16::from_be_bytes([field[0], field[1]]), old, new);
                field.copy_from_slice(&sum.to_be_bytes());
            }
        }
        // The ECN bits of IPv6 are bits 4 and 5 of the second byte.
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !(MASK << 4) | ecn << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_ECT: u8 = 0;

    #[test]
    fn codepoints_go_out_as_from_the_kernel() {
        for (inner, outer) in [(NOT_ECT, NOT_ECT), (ECT_0, ECT_0), (ECT_1, ECT_1), (CE, ECT_0)] {
            assert_eq!(encapsulate(0xb8 | inner), outer);
        }
    }

    #[test]
    fn what_comes_out_is_the_table_of_rfc_6040() {
        // RFC 6040 §4.2, figure 4: a row per inner codepoint, a column per outer one: Not-ECT, ECT(0), ECT(1), CE. Only the packet that
        // would be dropped there (Not-ECT inside, CE outside) goes on unmarked, as in the kernel.
        let table = [
            (NOT_ECT, [NOT_ECT, NOT_ECT, NOT_ECT, NOT_ECT]),
            (ECT_0, [ECT_0, ECT_0, ECT_1, CE]),
            (ECT_1, [ECT_1, ECT_1, ECT_1, CE]),
            (CE, [CE, CE, CE, CE]),
        ];
        let cases = table.into_iter().flat_map(|(inner, row)| {
            [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row).map(move |(outer, out)| (inner, outer, out))
        });
        for (inner, outer, result) in cases {
            let mut v4 = [0; 20];
            v4[0] = 0x45;
            v4[1] = 0xb8 | inner;
            let sum = checksum::finish(checksum::add(0, &v4));
            v4[10..12].copy_from_slice(&sum.to_be_bytes());
            decapsulate(&mut v4, outer);
            assert_eq!(ds_field(&v4), 0xb8 | result);
            assert_eq!(checksum::finish(checksum::add(0, &v4)), 0, "the header's checksum stays right");
            let mut v6 = [0; 40];
            v6[0] = 0x6b;
            v6[1] = (8 | inner) << 4 | 5;
            decapsulate(&mut v6, outer);
            assert_eq!(ds_field(&v6), 0xb8 | result);
            assert_eq!(v6[1] & 15, 5, "the flow label stays");
        }
    }
}
