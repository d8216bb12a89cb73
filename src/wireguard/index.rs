//! Receiver indices: 32 random bits that name one of our handshakes or sessions ([W] §5.4.2).
//!
//! We choose them, so we choose them such that their high bits are a free slot of an array: a look-up is one load, without a lock and
//! without probing. The array doubles before it is half full; doubling keeps every entry apart, as two indices that differ in some bits
//! differ in more. The bits below the slot are compared. They are random, but that the lowest may name a worker: those must not choose the
//! slot, or the peers of one worker would have but a part of the array.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use super::keypair::Keypair;
use super::peer::Peer;
use crate::crypto::random::Random;

/// What an index names.
#[derive(Debug)]
pub struct Entry {
    index: u32,
    peer: Arc<Peer>,
    keypair: Option<Arc<Keypair>>,
}

impl Entry {
    /// Returns whose handshake or session it is.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Returns the session; a handshake under way has none.
    pub fn keypair(&self) -> Option<&Arc<Keypair>> {
        self.keypair.as_ref()
    }
}

/// The indices of an interface. Any thread looks up; only the control thread changes them.
#[derive(Debug)]
pub struct Table {
    slots: Box<[ArcSwapOption<Entry>]>,
}

impl Table {
    /// Returns an empty table for at least `entries` entries.
    pub fn new(entries: usize) -> Self {
        let slots = entries.saturating_mul(2).next_power_of_two().max(16);
        Self { slots: (0..slots).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// Returns how many entries it takes before it should grow.
    pub fn capacity(&self) -> usize {
        self.slots.len() / 2
    }

    /// Returns a table of at least `entries` entries with everything that this one holds.
    pub fn grown(&self, entries: usize) -> Self {
        let larger = Self::new(entries.max(self.capacity()));
        for entry in self.slots.iter().filter_map(ArcSwapOption::load_full) {
            larger.slot(entry.index).store(Some(entry));
        }
        larger
    }

    /// Chooses a random index that is free, for a handshake of `peer` ([W] §5.4.2, kernel `peerlookup.c`), such that the index modulo
    /// `workers` is the peer's number modulo `workers`: who steers datagrams by it keeps all sessions of a peer together.
    ///
    /// `first` is random as well, and nearly always good: `random` is asked only if it is not.
    pub fn insert(&self, peer: &Arc<Peer>, workers: u32, first: [u8; 4], random: &mut dyn Random) -> u32 {
        let workers = workers.max(1);
        let mut bytes = first;
        loop {
            let index = u32::from_le_bytes(bytes);
            if let Some(index) = (index - index % workers).checked_add(peer.id() % workers) {
                let slot = self.slot(index);
                if slot.load().is_none() {
                    slot.store(Some(Arc::new(Entry { index, peer: Arc::clone(peer), keypair: None })));
                    return index;
                }
            }
            random.fill(&mut bytes);
        }
    }

    /// Lets a session take over the index of the handshake that it came from.
    pub fn set_keypair(&self, peer: &Arc<Peer>, keypair: &Arc<Keypair>) {
        let entry =
            Entry { index: keypair.local(), peer: Arc::clone(peer), keypair: Some(Arc::clone(keypair)) };
        self.slot(keypair.local()).store(Some(Arc::new(entry)));
    }

    /// Frees an index and tells whether it was in use.
    pub fn remove(&self, index: u32) -> bool {
        let slot = self.slot(index);
        let used = slot.load().as_ref().is_some_and(|entry| entry.index == index);
        if used {
            slot.store(None);
        }
        used
    }

    /// Returns what `index` names.
    pub fn lookup(&self, index: u32) -> Option<Arc<Entry>> {
        let entry = Guard::into_inner(self.slot(index).load())?;
        (entry.index == index).then_some(entry)
    }

    fn slot(&self, index: u32) -> &ArcSwapOption<Entry> {
        // There are 16 slots or more, and a power of two.
        let bits = self.slots.len().trailing_zeros();
        &self.slots[(index >> (u32::BITS - bits)) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::Os;
    use crate::crypto::x25519::PublicKey;

    #[test]
    fn indices_name_the_worker_of_their_peer() {
        let table = Table::new(1000);
        for id in 0..100 {
            let peer = Arc::new(Peer::new(id, PublicKey::new([1; 32]), 0, Arc::default()));
            for workers in [3, 16] {
                assert_eq!(table.insert(&peer, workers, [0xff; 4], &mut Os) % workers, id % workers);
            }
        }
    }

    /// Random bytes that come to an end.
    struct Finite(u32);

    impl Random for Finite {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0 = self.0.checked_sub(1).expect("a free index is found soon");
            Os.fill(bytes);
        }
    }

    #[test]
    fn peers_of_one_worker_fill_the_table_however_many_workers_there_are() {
        for workers in [1, 3, 4, 8, 16, 256] {
            let table = Table::new(0);
            let peer = Arc::new(Peer::new(workers, PublicKey::new([1; 32]), 0, Arc::default()));
            let mut random = Finite(1000);
            for _ in 0..table.capacity() {
                let index = table.insert(&peer, workers, [0; 4], &mut random);
                assert_eq!(index % workers, 0);
            }
        }
    }

    #[test]
    fn indices_are_unique_and_survive_growth_and_removal() {
        let peer = Arc::new(Peer::new(0, PublicKey::new([1; 32]), 0, Arc::default()));
        let mut table = Table::new(8);
        let mut all = Vec::new();
        for i in 0..1000 {
            if i >= table.capacity() {
                table = table.grown(i + 1);
            }
            all.push(table.insert(&peer, 1, [0; 4], &mut Os));
        }
        assert!(all.iter().all(|&index| table.lookup(index).is_some()));
        let (gone, kept) = all.split_at(500);
        assert!(gone.iter().all(|&index| table.remove(index)));
        assert!(gone.iter().all(|&index| table.lookup(index).is_none()));
        assert!(kept.iter().all(|&index| table.lookup(index).is_some()));
        let other = kept[0] ^ 1;
        assert!(table.lookup(other).is_none(), "the same slot under another index");
        assert!(!table.remove(other));
        assert!(table.lookup(kept[0]).is_some());
    }
}
