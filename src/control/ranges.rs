//! What the routes protect, as ranges of addresses that do not overlap.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::plan::{Entry, Kind};
use super::route::metric_of;
use crate::config::Prefix;
use crate::sys::netlink::nftables::Range;

/// Returns the addresses of one family whose strongest entry does not lead out of the table: in ascending order, none touching another.
///
/// One sweep from the lowest address to the highest. Of two prefixes one holds the other or they are apart, so that what is open at an
/// address is a stack with the strongest on top.
pub(super) fn protected(entries: &[Entry], is_ipv6: bool) -> Vec<Range> {
    let own = entries.iter().filter(|entry| entry.prefix.addr().is_ipv6() == is_ipv6);
    let mut own: Vec<_> = own.map(|entry| (bounds(&entry.prefix), entry.kind)).collect();
    // Of two that begin together the longer one holds the other.
    own.sort_by_key(|((first, last), kind)| (*first, Reverse(*last), Reverse(metric_of(*kind))));
    let mut sweep = Sweep::default();
    for ((first, last), kind) in own {
        sweep.close_before(first);
        sweep.open.push((last, kind != Kind::Throw));
    }
    sweep.close_all();
    let addr = |number| addr_of(number, is_ipv6);
    sweep.done.into_iter().map(|(first, last)| (addr(first), addr(last))).collect()
}

#[derive(Default)]
struct Sweep {
    /// The last address of each prefix that has begun, and whether it protects.
    open: Vec<(u128, bool)>,
    /// The first address that is not decided about; `None` behind the last of all.
    at: Option<u128>,
    done: Vec<(u128, u128)>,
}

impl Sweep {
    /// Decides about all addresses before `first`.
    fn close_before(&mut self, first: u128) {
        while let Some(&(last, protects)) = self.open.last() {
            if last >= first {
                if let Some(before) = first.checked_sub(1) {
                    self.decide(before, protects);
                }
                break;
            }
            self.decide(last, protects);
            self.open.pop();
        }
        self.at = Some(first);
    }

    fn close_all(&mut self) {
        while let Some((last, protects)) = self.open.pop() {
            self.decide(last, protects);
        }
    }

    /// Decides about the addresses up to `last`.
    fn decide(&mut self, last: u128, protects: bool) {
        let Some(first) = self.at.filter(|first| *first <= last) else { return };
        self.at = last.checked_add(1);
        if !protects {
            return;
        }
        match self.done.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => self.done.push((first, last)),
        }
    }
}

fn bounds(prefix: &Prefix) -> (u128, u128) {
    let (first, bits) = match prefix.addr() {
        IpAddr::V4(addr) => (u32::from(addr).into(), 32),
        IpAddr::V6(addr) => (u128::from(addr), 128),
    };
    let host = u128::MAX.checked_shr(128 - (bits - u32::from(prefix.len()))).unwrap_or(0);
    (first, first | host)
}

fn addr_of(number: u128, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        return IpAddr::V6(number.into());
    }
    IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn entry(text: &str, kind: Kind) -> Entry {
        let (addr, len) = text.split_once('/').unwrap();
        Entry { prefix: Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap(), kind }
    }

    fn text(ranges: &[Range]) -> Vec<String> {
        ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn the_own_block_is_cut_out_of_the_cluster_and_a_lent_address_out_of_the_own_block() {
        let entries = [
            entry("10.244.0.0/16", Kind::Blackhole),
            entry("10.244.1.0/24", Kind::Throw),
            entry("10.244.1.7/32", Kind::Unicast),
            entry("10.244.2.0/24", Kind::Unicast),
            entry("fd00::/48", Kind::Blackhole),
            entry("fd00::/64", Kind::Throw),
        ];
        let v4 = ["10.244.0.0-10.244.0.255", "10.244.1.7-10.244.1.7", "10.244.2.0-10.244.255.255"];
        assert_eq!(text(&protected(&entries, false)), v4);
        assert_eq!(text(&protected(&entries, true)), ["fd00:0:0:1::-fd00::ffff:ffff:ffff:ffff:ffff"]);
    }

    #[test]
    fn whole_families_have_their_last_address() {
        let entries = [
            entry("0.0.0.0/0", Kind::Blackhole),
            entry("0.0.0.0/1", Kind::Throw),
            entry("::/0", Kind::Unicast),
        ];
        assert_eq!(text(&protected(&entries, false)), ["128.0.0.0-255.255.255.255"]);
        assert_eq!(text(&protected(&entries, true)), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let kind = prop_oneof![Just(Kind::Throw), Just(Kind::Unicast), Just(Kind::Blackhole)];
        (any::<u8>(), 24..=32_u8, kind).prop_map(|(last, len, kind)| Entry {
            prefix: Prefix::new(IpAddr::from([255, 255, 255, last]), len).unwrap(),
            kind,
        })
    }

    proptest! {
        /// Against a twin that asks each entry about each address of a block, the last one of all.
        #[test]
        fn an_address_is_protected_by_its_strongest_entry(entries in vec(any_entry(), 0..12)) {
            let ranges = protected(&entries, false);
            for last in 0..=u8::MAX {
                let addr = IpAddr::from([255, 255, 255, last]);
                let covering = entries.iter().filter(|entry| entry.prefix.contains(addr));
                let strongest = covering.max_by_key(|entry| (entry.prefix.len(), Reverse(metric_of(entry.kind))));
                let expected = strongest.is_some_and(|entry| entry.kind != Kind::Throw);
                let found = ranges.iter().any(|range| range.0 <= addr && addr <= range.1);
                prop_assert_eq!(found, expected, "{}", addr);
            }
            for pair in ranges.windows(2) {
                prop_assert!(bounds(&Prefix::host(pair[0].1)).0 + 1 < bounds(&Prefix::host(pair[1].0)).0);
            }
        }
    }
}
