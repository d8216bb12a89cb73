//! The prefixes that other nodes' pods have had since Strict was on, so that nothing leaves for them in clear when nobody claims them any
//! more: a node that is gone from the cluster may have left pods behind, or pods elsewhere that still send to its own. Pure.
//!
//! They are forgotten with the mode. There are so many at most; blocks come before single addresses, and the first to come stay.

use std::collections::BTreeSet;

use super::api::Mode;
use super::topology::Topology;
use crate::config::Prefix;

/// The most prefixes: a block for each node of the largest cluster that is meant to work, and as many single pods.
const MOST: usize = 10_000;

/// Prefixes of which none is inside another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered(BTreeSet<Prefix>);

impl Remembered {
    /// Reads what [`Self::to_text`] wrote. A line that cannot be read costs itself.
    pub fn of_text(text: &str) -> Self {
        let mut this = Self::default();
        text.lines().filter_map(|line| line.parse().ok()).for_each(|prefix| this.add(prefix));
        this
    }

    /// Returns them as text, a line each.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|prefix| format!("{prefix}\n")).collect()
    }

    /// Takes in what is to be encrypted from here on. Without Strict nothing is to be remembered, if that is certain.
    pub fn learn(&mut self, topology: &Topology, is_complete: bool) {
        match topology.settings.mode {
            Mode::Strict => topology.guarded.iter().for_each(|prefix| self.add(*prefix)),
            Mode::Permissive | Mode::Off if is_complete => self.0.clear(),
            Mode::Permissive | Mode::Off => {}
        }
    }

    /// Returns them in order.
    pub fn iter(&self) -> impl Iterator<Item = &Prefix> {
        self.0.iter()
    }

    /// Tells whether a prefix is inside one of them.
    pub fn has(&self, prefix: &Prefix) -> bool {
        self.0.contains(prefix) || self.covers(prefix)
    }

    fn add(&mut self, prefix: Prefix) {
        let is_single = prefix == Prefix::host(prefix.addr());
        let is_full = self.0.len() >= MOST;
        if is_full && is_single || self.has(&prefix) {
            return;
        }
        let inside = self.0.range(prefix..).take_while(|other| prefix.contains(other.addr()));
        let inside: Vec<_> = inside.copied().collect();
        for other in inside {
            self.0.remove(&other);
        }
        if self.0.len() >= MOST {
            let single = self.0.iter().copied().find(|other| *other == Prefix::host(other.addr()));
            let Some(single) = single else { return };
            self.0.remove(&single);
        }
        self.0.insert(prefix);
    }

    fn covers(&self, prefix: &Prefix) -> bool {
        let mut around = (0..prefix.len()).filter_map(|len| Prefix::new(prefix.addr(), len));
        around.any(|block| self.0.contains(&block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::Objects;
    use crate::control::topology::{Own, topology};
    use crate::crypto::x25519::PublicKey;

    fn of(prefixes: &[&str]) -> Remembered {
        let mut remembered = Remembered::default();
        prefixes.iter().for_each(|text| remembered.add(text.parse().unwrap()));
        remembered
    }

    #[test]
    fn what_is_inside_another_is_not_kept_beside_it() {
        let all = ["10.1.0.7/32", "10.1.0.0/24", "10.1.0.8/32", "10.1.1.0/24", "fd00:1::/64", "10.1.0.0/16"];
        assert_eq!(of(&all[..1]).to_text(), "10.1.0.7/32\n");
        assert_eq!(of(&all[..5]).to_text(), "10.1.0.0/24\n10.1.1.0/24\nfd00:1::/64\n");
        assert_eq!(of(&all).to_text(), "10.1.0.0/16\nfd00:1::/64\n");
        let text = of(&all).to_text();
        assert_eq!(Remembered::of_text(&format!("{text}nonsense\n\n10.1.2.0/24")), of(&all));
    }

    #[test]
    fn there_are_so_many_at_most_and_blocks_come_first() {
        let mut full = Remembered::default();
        let single = |n: u32| Prefix::host((0x0a00_0000 + n).to_be_bytes().into());
        (0..20_000).for_each(|n| full.add(single(n)));
        assert_eq!(full.0.len(), 10_000);
        let block: Prefix = "10.200.0.0/24".parse().unwrap();
        full.add(block);
        assert_eq!(full.0.len(), 10_000);
        assert!(full.0.contains(&block) && full.0.contains(&single(9_999)) && !full.0.contains(&single(0)));
        (0..=255).for_each(|n| full.add(Prefix::new([10, 201, n, 0].into(), 24).unwrap()));
        full.add("10.0.0.0/9".parse().unwrap());
        assert_eq!(full.0.len(), 258, "{}", full.to_text());
    }

    #[test]
    fn they_are_learned_in_strict_and_forgotten_when_another_mode_is_certain() {
        let mut topology = topology(&Objects::default(), &Own::new("a", PublicKey::new([1; 32])));
        topology.guarded = ["10.1.0.0/24".parse().unwrap()].into();
        let mut remembered = Remembered::default();
        for (mode, is_complete, expected) in [
            (Mode::Permissive, true, ""),
            (Mode::Strict, false, "10.1.0.0/24\n"),
            (Mode::Off, false, "10.1.0.0/24\n"),
            (Mode::Permissive, false, "10.1.0.0/24\n"),
            (Mode::Off, true, ""),
            (Mode::Strict, true, "10.1.0.0/24\n"),
            (Mode::Permissive, true, ""),
        ] {
            topology.settings.mode = mode;
            remembered.learn(&topology, is_complete);
            assert_eq!(remembered.to_text(), expected, "{mode:?}, complete: {is_complete}");
        }
    }
}
