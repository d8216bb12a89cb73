//! Which peer an address belongs to: cryptokey routing by longest prefix ([W] §2).
//!
//! A path-compressed binary trie whose nodes are shared between versions. A change copies the path to it and leaves every older version
//! as it was, so the data path reads a consistent picture without a lock, and handing one out is a reference count.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Prefix;

/// A map from prefixes to `T`, with look-up by longest prefix. Cloning costs the same whatever it holds.
#[derive(Clone)]
pub struct AllowedIps<T> {
    v4: Link<T>,
    v6: Link<T>,
}

type Link<T> = Option<Arc<Node<T>>>;

/// Every node's prefix covers those of its children, which differ in the bit after it. A node without a value has both children.
#[derive(Clone)]
struct Node<T> {
    key: Key,
    value: Option<T>,
    children: [Link<T>; 2],
}

/// A prefix of either family; the bits of an IPv4 address are the first 32.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    bits: u128,
    len: u8,
}

impl Key {
    fn new(addr: IpAddr, len: u8) -> Self {
        Self { bits: bits_of(addr), len }
    }

    fn covers(&self, bits: u128) -> bool {
        self.common(bits) >= self.len
    }

    /// Returns how many leading bits of this prefix `bits` shares.
    fn common(&self, bits: u128) -> u8 {
        u8::try_from((self.bits ^ bits).leading_zeros()).map_or(self.len, |common| common.min(self.len))
    }

    /// Returns the bit of `bits` behind this prefix, which has fewer than 128.
    fn branch(&self, bits: u128) -> usize {
        usize::from(bits & (1 << (127 - self.len)) != 0)
    }

    fn truncated(&self, len: u8) -> Self {
        Self { bits: self.bits & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0), len }
    }
}

fn bits_of(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)) << 96,
        IpAddr::V6(addr) => u128::from(addr),
    }
}

impl<T> AllowedIps<T> {
    /// Returns an empty map.
    pub const fn new() -> Self {
        Self { v4: None, v6: None }
    }

    /// Returns the value of the longest prefix that holds `addr`.
    pub fn lookup(&self, addr: IpAddr) -> Option<&T> {
        let bits = bits_of(addr);
        let mut link = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut best = None;
        while let Some(node) = link {
            if !node.key.covers(bits) {
                break;
            }
            best = node.value.as_ref().or(best);
            if node.key.len == 128 {
                break;
            }
            link = &node.children[node.key.branch(bits)];
        }
        best
    }

    /// Returns the value of exactly `prefix`.
    pub fn get(&self, prefix: Prefix) -> Option<&T> {
        let key = Key::new(prefix.addr(), prefix.len());
        let mut link = if prefix.addr().is_ipv4() { &self.v4 } else { &self.v6 };
        while let Some(node) = link {
            if node.key == key {
                return node.value.as_ref();
            }
            if node.key.len >= key.len || !node.key.covers(key.bits) {
                return None;
            }
            link = &node.children[node.key.branch(key.bits)];
        }
        None
    }

    /// Tells whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    fn root(&mut self, addr: IpAddr) -> &mut Link<T> {
        if addr.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl<T: Clone + PartialEq> AllowedIps<T> {
    /// Gives `prefix` to `value` and returns who had it.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        insert(self.root(prefix.addr()), Key::new(prefix.addr(), prefix.len()), value)
    }

    /// Takes `prefix` from `value` if that has it, and tells so.
    pub fn remove(&mut self, prefix: Prefix, value: &T) -> bool {
        if self.get(prefix) != Some(value) {
            return false;
        }
        remove(self.root(prefix.addr()), Key::new(prefix.addr(), prefix.len()));
        true
    }
}

/// The depth is bounded by the bits of an address.
fn insert<T: Clone>(link: &mut Link<T>, key: Key, value: T) -> Option<T> {
    let Some(shared) = link else {
        *link = Some(Arc::new(Node { key, value: Some(value), children: [None, None] }));
        return None;
    };
    let common = shared.key.common(key.bits).min(key.len);
    if common < shared.key.len {
        // The new prefix ends above this node or leaves its path: a node comes in between.
        let old = Arc::clone(shared);
        let mut between = Node { key: key.truncated(common), value: None, children: [None, None] };
        let branch = between.key.branch(old.key.bits);
        between.children[branch] = Some(old);
        if common == key.len {
            between.value = Some(value);
        } else {
            let leaf = Node { key, value: Some(value), children: [None, None] };
            between.children[1 - branch] = Some(Arc::new(leaf));
        }
        *link = Some(Arc::new(between));
        return None;
    }
    let node = Arc::make_mut(shared);
    if node.key.len == key.len {
        return node.value.replace(value);
    }
    insert(&mut node.children[node.key.branch(key.bits)], key, value)
}

/// Removes the value of `key`, which is there, and nodes that have become useless.
fn remove<T: Clone>(link: &mut Link<T>, key: Key) {
    let Some(shared) = link else { return };
    let node = Arc::make_mut(shared);
    if node.key.len == key.len {
        node.value = None;
    } else {
        remove(&mut node.children[node.key.branch(key.bits)], key);
    }
    if node.value.is_none() {
        match &mut node.children {
            [Some(_), Some(_)] => {}
            [child, None] | [None, child] => *link = child.take(),
        }
    }
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for AllowedIps<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn count<T>(link: &Link<T>) -> usize {
            link.as_ref().map_or(0, |node| {
                usize::from(node.value.is_some()) + node.children.iter().map(count).sum::<usize>()
            })
        }
        f.debug_struct("AllowedIps").field("v4", &count(&self.v4)).field("v6", &count(&self.v6)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn prefix(text: &str) -> Prefix {
        let (addr, len) = text.split_once('/').unwrap();
        Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    fn lookup(map: &AllowedIps<char>, addr: &str) -> Option<char> {
        map.lookup(addr.parse().unwrap()).copied()
    }

    /// Kernel `selftest/allowedips.c`.
    const INSERTIONS: [(char, &str); 22] = [
        ('a', "192.168.4.0/24"),
        ('b', "192.168.4.4/32"),
        ('c', "192.168.0.0/16"),
        ('d', "192.95.5.64/27"),
        ('c', "192.95.5.65/27"),
        ('d', "2607:5300:6000:6b00::c05f:543/128"),
        ('c', "2607:5300:6000:6b00::/64"),
        ('e', "0.0.0.0/0"),
        ('e', "::/0"),
        ('f', "::/0"),
        ('g', "2404:6800::/32"),
        ('h', "2404:6800:4004:800:dead:beef:dead:beef/64"),
        ('a', "2404:6800:4004:800:dead:beef:dead:beef/128"),
        ('c', "2444:6800:40e4:800:deae:beef:def:beef/128"),
        ('b', "2444:6800:f0e4:800:eeae:beef::/98"),
        ('g', "64.15.112.0/20"),
        ('h', "64.15.123.211/25"),
        ('a', "10.0.0.0/25"),
        ('b', "10.0.0.128/25"),
        ('a', "10.1.0.0/30"),
        ('b', "10.1.0.4/30"),
        ('c', "10.1.0.8/29"),
    ];

    const LOOKUPS: [(&str, char); 29] = [
        ("192.168.4.20", 'a'),
        ("192.168.4.0", 'a'),
        ("192.168.4.4", 'b'),
        ("192.168.200.182", 'c'),
        ("192.95.5.68", 'c'),
        ("192.95.5.96", 'e'),
        ("2607:5300:6000:6b00::c05f:543", 'd'),
        ("2607:5300:6000:6b00::c02e:1ee", 'c'),
        ("2607:5300:6000:6b01::", 'f'),
        ("2404:6800:4004:806::1006", 'g'),
        ("2404:6800:4004:806:0:1234:0:5678", 'g'),
        ("2404:67ff:4004:806:0:1234:0:5678", 'f'),
        ("2404:6801:4004:806:0:1234:0:5678", 'f'),
        ("2404:6800:4004:800:0:1234:0:5678", 'h'),
        ("2404:6800:4004:800::", 'h'),
        ("2404:6800:4004:800:1010:1010:1010:1010", 'h'),
        ("2404:6800:4004:800:dead:beef:dead:beef", 'a'),
        ("64.15.116.26", 'g'),
        ("64.15.127.3", 'g'),
        ("64.15.123.1", 'g'),
        ("64.15.123.128", 'h'),
        ("64.15.123.129", 'h'),
        ("10.0.0.52", 'a'),
        ("10.0.0.220", 'b'),
        ("10.1.0.2", 'a'),
        ("10.1.0.6", 'b'),
        ("10.1.0.10", 'c'),
        ("10.1.0.20", 'd'),
        ("10.1.0.40", 'e'),
    ];

    #[test]
    fn the_kernels_look_ups_find_the_kernels_peers() {
        let mut map = AllowedIps::new();
        for (peer, text) in INSERTIONS {
            map.insert(prefix(text), peer);
        }
        map.insert(prefix("10.1.0.16/29"), 'd');
        for (addr, peer) in LOOKUPS {
            assert_eq!(lookup(&map, addr), Some(peer), "{addr}");
        }
        // Removal by peer.
        let text = ["1.0.0.0/32", "64.0.0.0/32", "128.0.0.0/32", "192.0.0.0/32", "255.0.0.0/32"];
        for text in text {
            map.insert(prefix(text), 'a');
            assert_eq!(map.get(prefix(text)), Some(&'a'));
        }
        for text in text {
            assert!(map.remove(prefix(text), &'a'));
            assert_ne!(lookup(&map, text.strip_suffix("/32").unwrap()), Some('a'));
        }
        let mut map = AllowedIps::new();
        map.insert(prefix("192.168.0.0/16"), 'a');
        map.insert(prefix("192.168.0.0/24"), 'a');
        assert!(map.remove(prefix("192.168.0.0/16"), &'a') && map.remove(prefix("192.168.0.0/24"), &'a'));
        assert_eq!(lookup(&map, "192.168.0.1"), None);
        assert!(map.is_empty());
    }

    #[test]
    fn a_prefix_moves_to_the_peer_that_is_given_it_last() {
        let mut map = AllowedIps::new();
        assert_eq!(map.insert(prefix("10.0.0.0/8"), 'a'), None);
        let before = map.clone();
        assert_eq!(map.insert(prefix("10.9.9.9/8"), 'b'), Some('a'));
        assert!(!map.remove(prefix("10.0.0.0/8"), &'a'), "it is b's");
        assert_eq!(lookup(&map, "10.1.1.1"), Some('b'));
        assert_eq!(lookup(&before, "10.1.1.1"), Some('a'), "an older version stays as it was");
    }

    #[test]
    fn every_depth_is_reached() {
        // Kernel `selftest/allowedips.c`: 128 host prefixes with one zero bit each.
        let mut map = AllowedIps::new();
        let addr = |bit: u32| IpAddr::from((u128::MAX ^ (1 << bit)).to_be_bytes());
        for bit in 0..128 {
            map.insert(Prefix::host(addr(bit)), bit);
        }
        assert!((0..128).all(|bit| map.lookup(addr(bit)) == Some(&bit)));
    }

    #[test]
    fn prefixes_are_read_back_masked() {
        for (given, canonical) in [
            ("192.95.5.93/27", "192.95.5.64/27"),
            ("10.1.0.20/29", "10.1.0.16/29"),
            ("2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/83", "2607:5300:6d8a:6bf8:dab1:e000::/83"),
            ("2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/21", "2607:5000::/21"),
        ] {
            assert_eq!(prefix(given).to_string(), canonical);
        }
    }

    /// The obviously right twin: a list.
    #[derive(Default)]
    struct Naive(Vec<(Prefix, u8)>);

    impl Naive {
        fn insert(&mut self, prefix: Prefix, value: u8) -> Option<u8> {
            let old = self.0.iter().position(|(held, _)| *held == prefix).map(|at| self.0.remove(at).1);
            self.0.push((prefix, value));
            old
        }

        fn remove(&mut self, prefix: Prefix, value: u8) -> bool {
            let before = self.0.len();
            self.0.retain(|entry| *entry != (prefix, value));
            self.0.len() < before
        }

        fn lookup(&self, addr: IpAddr) -> Option<u8> {
            let holding = self.0.iter().filter(|(prefix, _)| prefix.contains(addr));
            holding.max_by_key(|(prefix, _)| prefix.len()).map(|(_, value)| *value)
        }
    }

    /// Addresses that share long prefixes with each other.
    fn addr() -> impl Strategy<Value = IpAddr> {
        let near = (any::<u32>(), 0..33_u32).prop_map(|(bits, keep)| {
            IpAddr::from((0x0a00_0000 | bits.checked_shr(keep).unwrap_or(0)).to_be_bytes())
        });
        let near6 = (any::<u128>(), 0..129_u32).prop_map(|(bits, keep)| {
            IpAddr::from(((0xfd00_u128 << 112) | bits.checked_shr(keep).unwrap_or(0)).to_be_bytes())
        });
        prop_oneof![near, near6]
    }

    /// The twin for many routes: a map for each length.
    struct Lengths {
        v4: Vec<BTreeMap<Prefix, u16>>,
        v6: Vec<BTreeMap<Prefix, u16>>,
    }

    impl Lengths {
        fn of_family(&mut self, addr: IpAddr) -> &mut Vec<BTreeMap<Prefix, u16>> {
            if addr.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
        }

        fn lookup(&mut self, addr: IpAddr) -> Option<u16> {
            let of_family = self.of_family(addr);
            (0..of_family.len()).rev().find_map(|len| {
                let prefix = Prefix::new(addr, u8::try_from(len).unwrap()).unwrap();
                of_family[len].get(&prefix).copied()
            })
        }
    }

    #[test]
    fn forty_thousand_random_routes_of_each_family_are_found_and_removed_peer_by_peer() {
        // Kernel `selftest/allowedips.c`, `randomized_test`: 2000 peers, 400 routes, each of them mutated 100 times.
        let mut state = 7_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u128::from((state >> 33) ^ (state >> 12))
        };
        let mut map = AllowedIps::new();
        let mut naive = Lengths { v4: vec![BTreeMap::new(); 33], v6: vec![BTreeMap::new(); 129] };
        let mut of_peer = vec![BTreeSet::new(); 2000];
        for is_v4 in [true, false] {
            for _ in 0..400 {
                let base = (0..4).fold(0_u128, |bits, _| bits << 32 | random() & 0xffff_ffff);
                for _ in 0..100 {
                    // A mutation changes some bits only.
                    let changed = (0..4).fold(0_u128, |bits, _| bits << 32 | random() & random() & random());
                    let bits = base ^ changed >> (random() % 128);
                    let (addr, most) = match is_v4 {
                        true => (IpAddr::from(u32::try_from(bits >> 96).unwrap().to_be_bytes()), 32),
                        false => (IpAddr::from(bits.to_be_bytes()), 128),
                    };
                    let len = u8::try_from(random() % most).unwrap() + 1;
                    let prefix = Prefix::new(addr, len).unwrap();
                    let peer = u16::try_from(random() % 2000).unwrap();
                    let old = map.insert(prefix, peer);
                    assert_eq!(old, naive.of_family(addr)[usize::from(len)].insert(prefix, peer));
                    if let Some(old) = old {
                        of_peer[usize::from(old)].remove(&prefix);
                    }
                    of_peer[usize::from(peer)].insert(prefix);
                }
            }
        }
        let queries: Vec<_> = (0..2000)
            .map(|i| {
                let bits = (0..4).fold(0_u128, |bits, _| bits << 32 | random() & 0xffff_ffff);
                match i % 2 {
                    0 => IpAddr::from(u32::try_from(bits >> 96).unwrap().to_be_bytes()),
                    _ => IpAddr::from(bits.to_be_bytes()),
                }
            })
            .chain(of_peer.iter().flatten().step_by(20).map(Prefix::addr))
            .collect();
        for (peer, prefixes) in (0..).zip(of_peer) {
            if peer % 500 == 0 {
                assert!(queries.iter().all(|&addr| map.lookup(addr).copied() == naive.lookup(addr)));
            }
            for prefix in prefixes {
                assert!(map.remove(prefix, &peer));
                naive.of_family(prefix.addr())[usize::from(prefix.len())].remove(&prefix);
            }
        }
        assert!(map.is_empty());
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_a_list(
            steps in prop::collection::vec((any::<bool>(), addr(), 0..129_u8, 0..4_u8), 0..200),
            queries in prop::collection::vec(addr(), 50),
        ) {
            let (mut map, mut naive) = (AllowedIps::new(), Naive::default());
            for (insert, addr, len, value) in steps {
                let len = if addr.is_ipv4() { len % 33 } else { len };
                let prefix = Prefix::new(addr, len).unwrap();
                if insert {
                    prop_assert_eq!(map.insert(prefix, value), naive.insert(prefix, value));
                } else {
                    prop_assert_eq!(map.remove(prefix, &value), naive.remove(prefix, value));
                }
            }
            for addr in queries.into_iter().chain(naive.0.iter().map(|(prefix, _)| prefix.addr())) {
                prop_assert_eq!(map.lookup(addr).copied(), naive.lookup(addr));
            }
            for (prefix, value) in std::mem::take(&mut naive.0) {
                prop_assert_eq!(map.get(prefix), Some(&value));
                prop_assert!(map.remove(prefix, &value));
            }
            prop_assert!(map.is_empty());
        }
    }
}
