//! Order of a flow when the kernel moves it to another TUN queue.
//!
//! A multi-queue device brings a flow to the queue that its answers are written to; before the first answer, or after a pause, to any. The
//! worker of the new queue must not send what it reads before the worker of the old one has sent what it had read.
//!
//! Every worker numbers its batches. A table says for each flow (by its hash: flows that share a place wait for each other now and then)
//! which batch of which worker held it last. Whoever finds another worker's batch there that is not yet sent waits for it; it has sent its
//! own batch before, so that no two wait for each other. In the usual case this costs one exchange on a line that nobody else writes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crossbeam::utils::CachePadded;

/// Places of flows.
const PLACES: usize = 4096;

/// Bits of a place that name the worker, from 1 on; the rest is the batch.
const WORKER_BITS: u32 = 16;

pub(super) struct Order {
    /// None with a single worker, who cannot overtake itself.
    places: Box<[AtomicU64]>,
    /// For each worker the last batch that was sent.
    sent: Box<[CachePadded<AtomicU64>]>,
}

/// A batch of another worker that is not yet sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    worker: usize,
    batch: u64,
}

impl Order {
    pub(super) fn new(workers: usize) -> Self {
        let places = if workers > 1 { PLACES } else { 0 };
        Self {
            places: (0..places).map(|_| AtomicU64::new(0)).collect(),
            sent: (0..workers).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
        }
    }

    /// Notes that a packet of `flow` is in `batch` of `worker`, and returns the batch that has to be sent before it, if that is not so yet.
    pub(super) fn claim(&self, flow: u64, worker: usize, batch: u64) -> Option<Before> {
        let place = self.places.get(usize::try_from(flow).unwrap_or(0) % PLACES)?;
        let before = place.swap(batch << WORKER_BITS | (worker as u64 + 1), AcqRel);
        let owner = usize::try_from(before & ((1 << WORKER_BITS) - 1)).unwrap_or(0).checked_sub(1)?;
        let before = Before { worker: owner, batch: before >> WORKER_BITS };
        (owner != worker && !self.is_sent(before)).then_some(before)
    }

    pub(super) fn is_sent(&self, before: Before) -> bool {
        self.sent.get(before.worker).is_none_or(|sent| sent.load(Acquire) >= before.batch)
    }

    /// Says that `worker` has sent everything of `batch`.
    pub(super) fn sent(&self, worker: usize, batch: u64) {
        if let Some(sent) = self.sent.get(worker) {
            sent.store(batch, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_moves_waits_for_the_batch_that_held_it() {
        let order = Order::new(2);
        assert_eq!(order.claim(7, 0, 1), None, "nobody had it");
        assert_eq!(order.claim(7, 0, 1), None, "the same worker");
        let before = order.claim(7, 1, 1).unwrap();
        assert_eq!(before, Before { worker: 0, batch: 1 });
        assert!(!order.is_sent(before));
        order.sent(0, 1);
        assert!(order.is_sent(before));
        assert_eq!(order.claim(8, 0, 2), None, "another flow");
        order.sent(1, 1);
        assert_eq!(order.claim(7, 0, 2), None, "back again, all being sent");
        assert!(order.claim(7, 1, 2).is_some());
    }

    #[test]
    fn a_single_worker_keeps_no_table() {
        let order = Order::new(1);
        assert!(order.places.is_empty());
        assert_eq!(order.claim(7, 0, 1), None);
    }
}
