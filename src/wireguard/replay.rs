//! The window of accepted counters: every message is received once, however it was delayed ([W] §5.4.6, RFC 6479).
//!
//! Any thread accepts, without a lock. RFC 6479's ring of words is kept, and every word carries beside its 32 bits the *round* to which
//! they belong: counter / 8192, of which the low 32 bits tell two rounds apart unless 2^45 counters were skipped at once. A thread that
//! finds a past round in a word replaces bits and round in one compare-and-swap. Nothing ever has to clear words for others.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::constants::REJECT_AFTER_MESSAGES;
use super::sync::AtomicU64;

/// Bits of one word.
const WORD_BITS: u64 = 32;
/// Bits of the ring (kernel `messages.h`, `COUNTER_BITS_TOTAL`). A model is searched with the least ring that has a window.
const BITS: u64 = if cfg!(all(loom, test)) { 128 } else { 8192 };
/// Words of the ring.
const WORDS: usize = (BITS / WORD_BITS) as usize;
/// Counters behind the greatest that are still accepted (kernel `messages.h`, `COUNTER_WINDOW_SIZE`): one word of 64 less than the ring.
const WINDOW: u64 = BITS - 64;

/// The counters that one session has received.
pub struct Window {
    /// One more than the greatest counter accepted; 0 before the first.
    next: AtomicU64,
    /// `round << 32 | bits`. Round 0 is what it says, so an untouched word is an empty one.
    words: [AtomicU64; WORDS],
}

impl Window {
    /// Returns a window that has seen nothing.
    pub fn new() -> Self {
        Self { next: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Accepts `counter` once. Only for authentic messages.
    pub fn accept(&self, counter: u64) -> bool {
        if counter >= REJECT_AFTER_MESSAGES {
            return false;
        }
        // The greatest counter is published before the bit, so that whoever sees the bit of a later round sees that counter as well.
        // The line is shared: it is written only if there is something to write.
        if counter >= self.next.load(Relaxed) {
            self.next.fetch_max(counter + 1, Relaxed);
        }
        let round = (counter / BITS) & u64::from(u32::MAX);
        let bit = 1 << (counter % WORD_BITS);
        let word = &self.words[(counter / WORD_BITS) as usize % WORDS];
        let mut old = word.load(Acquire);
        loop {
            // Kernel `receive.c`, `counter_validate`: the window ends WINDOW behind the greatest.
            if counter.saturating_add(WINDOW) < self.next.load(Relaxed).saturating_sub(1) {
                return false;
            }
            // A round that is not ours is a past one: a later one would have moved `next` past the window above.
            let bits = if old >> 32 == round { old & u64::from(u32::MAX) } else { 0 };
            if bits & bit != 0 {
                return false;
            }
            match word.compare_exchange_weak(old, round << 32 | bits | bit, Release, Acquire) {
                Ok(_) => return true,
                Err(changed) => old = changed,
            }
        }
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicUsize;

    const W: u64 = WINDOW;
    const LIMIT: u64 = WINDOW + 1;
    const R: u64 = REJECT_AFTER_MESSAGES;

    fn all(window: &Window, mut counters: impl Iterator<Item = u64>) -> bool {
        counters.all(|counter| window.accept(counter))
    }

    #[test]
    fn the_kernels_sequence_is_judged_as_by_the_kernel() {
        // Kernel `selftest/counter.c`. R differs from the kernel's limit; the distances to it do not matter to the window.
        let window = Window::new();
        let cases = [
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (LIMIT, true),
            (LIMIT - 1, true),
            (LIMIT - 1, false),
            (LIMIT - 2, true),
            (2, true),
            (2, false),
            (LIMIT + 16, true),
            (3, false),
            (LIMIT + 16, false),
            (LIMIT * 4, true),
            (LIMIT * 4 - (LIMIT - 1), true),
            (10, false),
            (LIMIT * 4 - LIMIT, false),
            (LIMIT * 4 - (LIMIT + 1), false),
            (LIMIT * 4 - (LIMIT - 2), true),
            (LIMIT * 4 + 1 - LIMIT, false),
            (0, false),
            (R, false),
            (R - 1, true),
            (R, false),
            (R - 1, false),
            (R - 2, true),
            (R + 1, false),
            (R + 2, false),
            (R - 2, false),
            (R - 3, true),
            (0, false),
        ];
        for (step, (counter, accepted)) in cases.into_iter().enumerate() {
            assert_eq!(window.accept(counter), accepted, "step {step}, counter {counter}");
        }
    }

    #[test]
    fn the_kernels_runs_are_judged_as_by_the_kernel() {
        let window = Window::new();
        assert!(all(&window, 1..=W) && window.accept(0) && !window.accept(0));
        let window = Window::new();
        assert!(all(&window, 2..=W + 1) && window.accept(1) && !window.accept(0));
        let window = Window::new();
        assert!(all(&window, (0..=W).rev()));
        let window = Window::new();
        assert!(all(&window, (1..=W + 1).rev()) && !window.accept(0));
        let window = Window::new();
        assert!(all(&window, (1..=W).rev()) && window.accept(W + 1) && !window.accept(0));
        let window = Window::new();
        assert!(all(&window, (1..=W).rev()) && window.accept(0) && window.accept(W + 1));
    }

    /// The obviously right twin: everything that was ever accepted.
    #[derive(Default)]
    struct Naive {
        seen: BTreeSet<u64>,
    }

    impl Naive {
        fn accept(&mut self, counter: u64) -> bool {
            let greatest = self.seen.last().copied().unwrap_or(0);
            counter < R && counter.saturating_add(W) >= greatest && self.seen.insert(counter)
        }
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_of_everything(
            start in prop_oneof![Just(0), 0..1_u64 << 40, (1_u64 << 45) - 9000..(1_u64 << 45) + 9000, R - 20_000..R],
            steps in prop::collection::vec((0..4_u8, 0..20_000_u64), 1..400),
        ) {
            let (window, mut naive) = (Window::new(), Naive::default());
            let mut at = start;
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => at.saturating_add(distance % 70),
                    1 => at.saturating_sub(distance % 70),
                    2 => at.saturating_sub(distance),
                    _ => at.saturating_add(distance),
                };
                prop_assert_eq!(window.accept(counter), naive.accept(counter), "counter {}", counter);
                at = at.max(counter.min(R - 1));
            }
        }
    }

    #[test]
    fn many_threads_accept_no_counter_twice() {
        let window = Window::new();
        let accepted: Vec<_> = (0..20_000).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (counter, times) in (0..).zip(&accepted) {
                        times.fetch_add(usize::from(window.accept(counter)), Relaxed);
                    }
                });
            }
        });
        // A thread that falls a window behind finds nothing, but the one in front has been there.
        assert!(accepted.iter().all(|times| times.load(Relaxed) <= 1));
        assert!(!window.accept(19_999));
    }

    #[test]
    fn many_threads_that_stay_within_the_window_lose_no_counter() {
        let window = Window::new();
        // Every thread receives every fourth counter; they wait for each other before they are a window apart.
        let barrier = std::sync::Barrier::new(4);
        let lost: usize = std::thread::scope(|scope| {
            let threads = [0, 1, 2, 3].map(|first| {
                let (window, barrier) = (&window, &barrier);
                scope.spawn(move || {
                    let mut lost = 0;
                    for block in 0..50 {
                        barrier.wait();
                        let counters = block * 4000..(block + 1) * 4000;
                        lost += counters.skip(first).step_by(4).filter(|&at| !window.accept(at)).count();
                    }
                    lost
                })
            });
            threads.map(|thread| thread.join().unwrap()).into_iter().sum()
        });
        assert_eq!(lost, 0);
    }
}

#[cfg(all(loom, test))]
mod models {
    use super::*;
    use crate::wireguard::sync::model;
    use std::sync::Arc;

    /// Runs the threads, each of which receives its counters in order, and returns the window and the counters accepted.
    fn receive<const N: usize>(threads: [&'static [u64]; N]) -> (Arc<Window>, Vec<u64>) {
        let window = Arc::new(Window::new());
        let handles = threads.map(|counters| {
            let window = Arc::clone(&window);
            loom::thread::spawn(move || {
                counters.iter().copied().filter(|&counter| window.accept(counter)).collect::<Vec<_>>()
            })
        });
        let mut accepted: Vec<_> = handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect();
        accepted.sort_unstable();
        (window, accepted)
    }

    #[test]
    fn loom_a_counter_that_threads_race_for_is_accepted_once() {
        model(|| {
            let (window, accepted) = receive([&[5], &[5], &[5]]);
            assert_eq!(accepted, [5]);
            assert!(!window.accept(5));
        });
    }

    #[test]
    fn loom_neighbours_within_the_window_are_all_accepted() {
        model(|| {
            // 37 is as far behind 101 as a counter may be; 36 shares the word of neither.
            let (_, accepted) = receive([&[101], &[37], &[100]]);
            assert_eq!(accepted, [37, 100, 101]);
        });
    }

    #[test]
    fn loom_a_word_that_begins_a_new_round_lets_no_counter_in_twice() {
        model(|| {
            // 133 takes the bit of 5, a round later.
            let (window, accepted) = receive([&[5], &[133], &[5]]);
            assert!(accepted == [133] || accepted == [5, 133], "{accepted:?}");
            assert!(!window.accept(5) && !window.accept(133));
        });
    }

    #[test]
    fn loom_replays_in_another_order_let_no_counter_in_twice() {
        model(|| {
            let (window, accepted) = receive([&[5, 133], &[133, 5]]);
            assert!(accepted == [133] || accepted == [5, 133], "{accepted:?}");
            assert!(!window.accept(5) && !window.accept(133));
        });
    }
}
