//! The Internet checksum (RFC 1071).

/// Returns the ones' complement sum of `bytes`, which stand at an even offset, added to `sum`.
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut wide = u64::from(sum);
    wide += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
    wide += rest.first().map_or(0, |&last| u64::from(last) << 8);
    while let high @ 1.. = wide >> 16 {
        wide = (wide & 0xffff) + high;
    }
    // Folded: below 2^16.
    u32::try_from(wide).unwrap_or(0)
}

/// Returns the checksum of a sum.
pub fn finish(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(0)
}

/// Returns `checksum` after a 16-bit word that it covers changed (RFC 1624, equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        // RFC 1071 §3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(add(0, &bytes), 0xddf2);
        assert_eq!(finish(add(0, &bytes)), !0xddf2);
    }

    proptest! {
        #[test]
        fn updating_equals_computing_anew(mut bytes in prop::collection::vec(any::<u8>(), 20), new: u16) {
            // A packet of zeros only has two representations of its sum.
            bytes[0] = 0x45;
            let before = finish(add(0, &bytes));
            let old = u16::from_be_bytes([bytes[4], bytes[5]]);
            bytes[4..6].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), finish(add(0, &bytes)));
        }
    }
}
