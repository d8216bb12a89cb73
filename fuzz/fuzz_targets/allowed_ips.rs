//! Cryptokey routing ([W] §2): the trie against a list, through insertions, removals and look-ups.
//!
//! Versions that were handed out must keep their picture, however the map changes after.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit::config::Prefix;
use adit::wireguard::allowed_ips::AllowedIps;
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

/// An address from a small neighbourhood, so that prefixes nest, or any.
#[derive(Clone, Copy, Debug)]
struct Addr(IpAddr);

impl<'a> Arbitrary<'a> for Addr {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(match u.int_in_range(0..=3)? {
            0 => Ipv4Addr::from(0x0a00_0000 ^ flipped(u, 32)? as u32).into(),
            1 => Ipv6Addr::from((0xfd << 120) ^ flipped(u, 128)?).into(),
            2 => Ipv4Addr::from(u32::arbitrary(u)?).into(),
            _ => Ipv6Addr::from(u128::arbitrary(u)?).into(),
        }))
    }
}

/// Up to two bits set among the lowest `width`.
fn flipped(u: &mut Unstructured<'_>, width: u8) -> arbitrary::Result<u128> {
    let [a, b] = <[u8; 2]>::arbitrary(u)?.map(|bit| 1_u128 << (bit % width));
    Ok(match u.int_in_range(0..=2)? {
        0 => 0,
        1 => a,
        _ => a | b,
    })
}

#[derive(Arbitrary, Debug)]
enum Step {
    Insert {
        addr: Addr,
        len: u8,
        value: u8,
    },
    /// Takes the prefix from this value only.
    Remove {
        addr: Addr,
        len: u8,
        value: u8,
    },
    /// Removes a prefix that is there, whoever has it.
    RemoveNth(u8),
    Lookup(Addr),
    /// Keeps a version.
    Keep,
}

/// The obviously right twin.
#[derive(Clone, Default)]
struct Naive(Vec<(Prefix, u8)>);

impl Naive {
    fn insert(&mut self, prefix: Prefix, value: u8) -> Option<u8> {
        let old = self.get(prefix);
        self.0.retain(|(other, _)| *other != prefix);
        self.0.push((prefix, value));
        old
    }

    fn remove(&mut self, prefix: Prefix, value: u8) -> bool {
        let before = self.0.len();
        self.0.retain(|entry| *entry != (prefix, value));
        self.0.len() < before
    }

    fn get(&self, prefix: Prefix) -> Option<u8> {
        self.0.iter().find(|(other, _)| *other == prefix).map(|(_, value)| *value)
    }

    fn lookup(&self, addr: IpAddr) -> Option<u8> {
        let holds = |prefix: &Prefix| match (addr, prefix.addr()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same_start(&a.octets(), &b.octets(), prefix.len()),
            (IpAddr::V6(a), IpAddr::V6(b)) => same_start(&a.octets(), &b.octets(), prefix.len()),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        };
        let holding = self.0.iter().filter(|(prefix, _)| holds(prefix));
        holding.max_by_key(|(prefix, _)| prefix.len()).map(|(_, value)| *value)
    }
}

/// Bit by bit.
fn same_start(a: &[u8], b: &[u8], bits: u8) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    (0..usize::from(bits)).all(|at| bit(a, at) == bit(b, at))
}

fn prefix(addr: Addr, len: u8) -> Prefix {
    let bits = if addr.0.is_ipv4() { 32 } else { 128 };
    Prefix::new(addr.0, len % (bits + 1)).expect("the length is bounded")
}

fn agree(map: &AllowedIps<u8>, naive: &Naive, addr: IpAddr) {
    assert_eq!(map.lookup(addr).copied(), naive.lookup(addr), "{addr}");
}

/// Compares where prefixes begin and end, and right beside that.
fn agree_everywhere(map: &AllowedIps<u8>, naive: &Naive) {
    assert_eq!(map.is_empty(), naive.0.is_empty());
    for (prefix, value) in &naive.0 {
        assert_eq!(map.get(*prefix), Some(value), "{prefix}");
        match prefix.addr() {
            IpAddr::V4(first) => {
                let first = u32::from(first);
                let last = first | u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                for addr in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                    agree(map, naive, Ipv4Addr::from(addr).into());
                }
            }
            IpAddr::V6(first) => {
                let first = u128::from(first);
                let last = first | u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                for addr in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                    agree(map, naive, Ipv6Addr::from(addr).into());
                }
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let (mut map, mut naive) = (AllowedIps::new(), Naive::default());
    let mut kept = Vec::new();
    for step in steps.iter().take(128) {
        match *step {
            Step::Insert { addr, len, value } => {
                let prefix = prefix(addr, len);
                // Few values, so that a removal by the wrong one is rare but happens.
                assert_eq!(map.insert(prefix, value % 4), naive.insert(prefix, value % 4));
            }
            Step::Remove { addr, len, value } => {
                let prefix = prefix(addr, len);
                assert_eq!(map.remove(prefix, &(value % 4)), naive.remove(prefix, value % 4));
                assert_eq!(map.get(prefix).copied(), naive.get(prefix));
            }
            Step::RemoveNth(n) => {
                if let Some(&(prefix, value)) = naive.0.get(usize::from(n) % naive.0.len().max(1)) {
                    assert!(!map.remove(prefix, &(value + 1)), "somebody else's");
                    assert!(map.remove(prefix, &value) && naive.remove(prefix, value));
                }
            }
            Step::Lookup(Addr(addr)) => agree(&map, &naive, addr),
            Step::Keep => {
                if kept.len() < 4 {
                    kept.push((map.clone(), naive.clone()));
                }
            }
        }
    }
    kept.push((map, naive));
    for (map, naive) in &kept {
        agree_everywhere(map, naive);
    }
    let Some((mut map, naive)) = kept.pop() else { return };
    for (prefix, value) in &naive.0 {
        assert!(map.remove(*prefix, value));
    }
    assert!(map.is_empty());
});
