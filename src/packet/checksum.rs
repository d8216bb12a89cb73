//! The Internet checksum (RFC 1071).

/// Returns the ones' complement sum of `bytes`, which stand at an even offset, added to `sum`; folded to 16 bits.
///
/// RFC 1071 §2 (B) and (C): the sum does not depend on the order of bytes in a word, and wider words may be added.
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0_u128; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u128::from(u64::from_ne_bytes(*word));
        }
    }
    let (pairs, last) = rest.as_chunks::<2>();
    let mut tail: u64 = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum();
    tail += last.first().map_or(0, |&last| u64::from(u16::from_ne_bytes([last, 0])));
    let wide: u128 = lanes.iter().sum::<u128>() + u128::from(tail);
    let native = fold(fold_wide(wide));
    fold(u64::from(sum) + u64::from(u16::from_be_bytes(native.to_ne_bytes()))).into()
}

/// Folds 128 bits to at most 64 + 1, which fit since the sum of a packet has far fewer.
fn fold_wide(wide: u128) -> u64 {
    let halves = [wide & u128::from(u64::MAX), wide >> 64];
    let [low, high] = halves.map(|half| u64::try_from(half).unwrap_or(u64::MAX));
    let (sum, carry) = low.overflowing_add(high);
    sum + u64::from(carry)
}

fn fold(mut wide: u64) -> u16 {
    loop {
        match u16::try_from(wide) {
            Ok(folded) => return folded,
            Err(_) => wide = (wide & 0xffff) + (wide >> 16),
        }
    }
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

    /// The definition, word by word.
    fn slow_add(sum: u32, bytes: &[u8]) -> u32 {
        let mut sum = u64::from(sum);
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u32::try_from(sum).unwrap()
    }

    #[test]
    fn the_longest_sum_does_not_overflow() {
        assert_eq!(add(0xffff_ffff, &[0xff; 65535]), slow_add(0xffff_ffff, &[0xff; 65535]));
    }

    proptest! {
        #[test]
        fn wide_words_give_the_sum_of_narrow_ones(bytes in prop::collection::vec(any::<u8>(), 0..300), sum: u32) {
            prop_assert_eq!(add(sum, &bytes), slow_add(sum, &bytes));
        }

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
