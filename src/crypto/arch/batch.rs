//! The order in which a batch is worked off: `arch`'s pseudo-code, generic over the kernel.

use std::cell::RefCell;
use std::hint::black_box;
use std::mem::{self, MaybeUninit};
use std::sync::atomic::{Ordering, compiler_fence};
use std::{array, ptr};

use super::Kernel;
use super::lanes::{BATCH_MAX, Cursor, Group, Idle, Lanes, Order, Packet, PolyKeys};

/// What is done with the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::crypto) enum Way {
    Seal,
    /// Source and destination are disjoint.
    Open,
    OpenInPlace,
}

/// Up to [`BATCH_MAX`] packets.
pub(in crate::crypto) struct Batch<'a> {
    packets: [MaybeUninit<Packet<'a>>; BATCH_MAX],
    count: usize,
}

impl<'a> Batch<'a> {
    pub(in crate::crypto) fn new() -> Self {
        Self { packets: [const { MaybeUninit::uninit() }; BATCH_MAX], count: 0 }
    }

    /// Adds a packet.
    ///
    /// # Panics
    /// If there are [`BATCH_MAX`] already.
    pub(in crate::crypto) fn push(&mut self, packet: Packet<'a>) {
        self.packets[self.count].write(packet);
        self.count += 1;
    }

    /// Seals or opens every packet. Returns one bit for each in the order they were added: whether it is authentic.
    ///
    /// What was not is left decrypted; to wipe it is the caller's.
    pub(in crate::crypto) fn run<K: Kernel>(&self, kernel: K, way: Way) -> u64 {
        if self.count == 0 {
            return 0;
        }
        SCRATCH.with_borrow_mut(|scratch| self.run_with(kernel, way, scratch))
    }

    fn run_with<K: Kernel>(&self, kernel: K, way: Way, scratch: &mut Scratch) -> u64 {
        let packets = self.packets();
        let len = packets[0].len();
        if packets.len() <= K::GROUP || packets.iter().all(|packet| packet.len() == len) {
            return kernel.run(packets, way, scratch);
        }
        // The packets of a group should have like lengths: the group costs as much as its longest.
        let mut order: [usize; BATCH_MAX] =
            array::from_fn(|at| packets.get(at).map_or(usize::MAX, |packet| packet.len() * BATCH_MAX + at));
        order[..packets.len()].sort_unstable();
        let mut sorted = Batch::new();
        for key in &order[..packets.len()] {
            sorted.push(packets[key % BATCH_MAX]);
        }
        let authentic = kernel.run(sorted.packets(), way, scratch);
        let bit = |(at, key): (usize, &usize)| (authentic >> at & 1) << (key % BATCH_MAX);
        order[..packets.len()].iter().enumerate().map(bit).sum()
    }

    fn packets(&self) -> &[Packet<'a>] {
        let packets = &self.packets[..self.count];
        // SAFETY: `push` has written the first `count`.
        unsafe { &*(ptr::from_ref(packets) as *const [Packet<'a>]) }
    }
}

/// Tables that need not be made anew for every batch. Nothing secret stays in them.
pub(in crate::crypto) struct Scratch {
    lanes: [Lanes; 2],
    keys: PolyKeys,
    idle: Idle,
}

impl Scratch {
    pub(super) const fn new() -> Self {
        Self { lanes: [Lanes::EMPTY, Lanes::EMPTY], keys: PolyKeys::ZERO, idle: Idle::new() }
    }

    /// Returns all words that may be secret.
    #[cfg(test)]
    pub(super) fn secrets(&self) -> impl Iterator<Item = u32> {
        let lanes = self.lanes.iter().flat_map(|lanes| lanes.key.iter().flatten());
        lanes.chain(self.keys.0.iter().flatten()).copied()
    }

    /// Overwrites what a batch of `count` packets has left.
    #[inline(always)]
    fn wipe(&mut self, count: usize, is_mixed: bool) {
        for row in &mut self.keys.0 {
            row[..count + super::lanes::LANES_MAX].fill(0);
        }
        if is_mixed {
            self.lanes.iter_mut().for_each(|lanes| lanes.key.iter_mut().for_each(|row| row.fill(0)));
        }
        // The table is not read again; the compiler is made to believe that it may be.
        black_box(ptr::from_mut(self));
        compiler_fence(Ordering::SeqCst);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Seals or opens `packets`. Returns one bit for each: whether it is authentic.
///
/// To be inlined into a function that is compiled for the kernel's CPU.
#[inline(always)]
pub(super) fn run<K: Kernel>(kernel: K, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
    let one = packets[0].key();
    let is_mixed = packets.iter().any(|packet| !ptr::eq(packet.key(), one));
    let key = (!is_mixed).then_some(one);
    let order = Order { is_mixed, keys_alone: way == Way::OpenInPlace };
    let Scratch { lanes: [current, next], keys, idle } = scratch;
    let (mut current, mut next) = (current, next);
    let mut tags = Tags { kernel, packets, way, done: 0, authentic: 0 };
    let mut cursor = Cursor::default();
    current.fill::<K>(packets, &mut cursor, order, idle);
    // Packets whose text was finished by the passes before this one.
    let mut finished = 0;
    while current.used > 0 {
        let taken = cursor.packet;
        let is_last_of_keys = current.first_key + current.key_blocks == packets.len();
        // The table of a pass is written one pass ahead: a wide load of what narrow stores have just written would stall.
        next.fill::<K>(packets, &mut cursor, order, idle);
        match way {
            Way::OpenInPlace => {
                if current.key_blocks == 0 {
                    tags.through(taken + 1, keys);
                }
                kernel.pass(current, key, keys);
            }
            Way::Seal | Way::Open => {
                kernel.pass(current, key, keys);
                // One pass late: by then the ciphertext has left the store queue.
                if is_last_of_keys {
                    tags.within(finished, keys);
                }
                finished = taken;
            }
        }
        mem::swap(&mut current, &mut next);
    }
    tags.through(packets.len(), keys);
    let authentic = tags.authentic;
    scratch.wipe(packets.len(), is_mixed);
    authentic
}

/// Which packets were authenticated already.
struct Tags<'a, K> {
    kernel: K,
    packets: &'a [Packet<'a>],
    way: Way,
    done: usize,
    authentic: u64,
}

impl<K: Kernel> Tags<'_, K> {
    /// Authenticates every group that begins before packet `end`.
    #[inline(always)]
    fn through(&mut self, end: usize, keys: &PolyKeys) {
        while self.done < end.min(self.packets.len()) {
            self.group(keys);
        }
    }

    /// Authenticates every group that ends before packet `end`.
    #[inline(always)]
    fn within(&mut self, end: usize, keys: &PolyKeys) {
        while self.done < end && (self.done + K::GROUP).min(self.packets.len()) <= end {
            self.group(keys);
        }
    }

    #[inline(always)]
    fn group(&mut self, keys: &PolyKeys) {
        let first = self.done;
        let packets = &self.packets[first..self.packets.len().min(first + K::GROUP)];
        let tags = self.kernel.tags(keys, first, &Group::new(packets, self.way));
        for (at, (packet, &tag)) in packets.iter().zip(&tags).enumerate() {
            match self.way {
                Way::Seal => packet.put_tag(tag),
                Way::Open | Way::OpenInPlace => {
                    self.authentic |= u64::from(packet.has_tag(tag)) << (first + at);
                }
            }
        }
        self.done = first + packets.len();
    }
}
