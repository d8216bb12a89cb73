//! Blocks of addresses, and what each of them stands for.

use std::collections::HashMap;

use crate::config::Prefix;

/// Blocks with a value each.
#[derive(Debug)]
pub(super) struct Blocks<V> {
    values: HashMap<Prefix, V>,
    /// The lengths of all of them, the longest first, of IPv4 and of IPv6: what covers an address need not be looked for among others.
    lens: [Vec<u8>; 2],
}

impl<V> Default for Blocks<V> {
    fn default() -> Self {
        Self { values: HashMap::new(), lens: [const { Vec::new() }; 2] }
    }
}

impl<V> FromIterator<(Prefix, V)> for Blocks<V> {
    fn from_iter<I: IntoIterator<Item = (Prefix, V)>>(blocks: I) -> Self {
        let mut this = Self::default();
        blocks.into_iter().for_each(|(block, value)| this.insert(block, value));
        this
    }
}

impl<V> Blocks<V> {
    /// Adds a block; of several values the last one counts.
    pub(super) fn insert(&mut self, block: Prefix, value: V) {
        self.values.insert(block, value);
        let lens = &mut self.lens[usize::from(block.addr().is_ipv6())];
        if let Err(at) = lens.binary_search_by(|len| block.len().cmp(len)) {
            lens.insert(at, block.len());
        }
    }

    /// Returns the value of this very block.
    pub(super) fn get(&self, block: &Prefix) -> Option<&V> {
        self.values.get(block)
    }

    /// Returns the most specific block that covers `prefix`, and its value.
    pub(super) fn around(&self, prefix: &Prefix) -> Option<(Prefix, &V)> {
        let lens = self.lens[usize::from(prefix.addr().is_ipv6())].iter();
        let mut around =
            lens.filter(|len| **len <= prefix.len()).filter_map(|len| Prefix::new(prefix.addr(), *len));
        around.find_map(|block| Some((block, self.values.get(&block)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (any::<u8>(), 24..=32_u8).prop_map(|(last, len)| (IpAddr::from([10, 0, 0, last]), len));
        let v6 = (any::<u8>(), 0..=128_u8)
            .prop_map(|(last, len)| (IpAddr::from([0, 0, 0, 0, 0, 0, 0, u16::from(last)]), len));
        prop_oneof![v4, v6].prop_map(|(addr, len)| Prefix::new(addr, len).unwrap())
    }

    proptest! {
        /// Against a twin that asks every block.
        #[test]
        fn the_most_specific_block_around_is_found(blocks in vec(any_prefix(), 0..12), inner in any_prefix()) {
            let found: Blocks<usize> = blocks.iter().copied().zip(0..).collect();
            // Of two values of one block the last one counts.
            let around = blocks.iter().copied().zip(0..).filter(|(block, _)| block.covers(&inner));
            let expected = around.max_by_key(|(block, _)| block.len());
            prop_assert_eq!(found.around(&inner).map(|(block, at)| (block, *at)), expected);
        }
    }
}
