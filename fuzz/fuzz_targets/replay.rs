//! The replay window ([W] §5.4.6) against a set of everything that was ever accepted.
//!
//! The numbers are restated here: the window is 8128 counters, and a session ends before 2^64 − 2^13 − 1 messages.

#![no_main]

use std::collections::BTreeSet;

use adit::wireguard::replay::Window;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

const WINDOW: u64 = 8128;
const END: u64 = 0xffff_ffff_ffff_dfff;

/// The next counter, as seen from the one before it.
#[derive(Arbitrary, Debug)]
enum Step {
    Same,
    Forward(u16),
    Back(u16),
    /// Some words or some rings away.
    Words(i16),
    /// `1 << bits` away.
    Leap {
        bits: u8,
        back: bool,
    },
    /// A run of consecutive counters, up or down.
    Run {
        len: u8,
        down: bool,
    },
    To(u64),
    /// Close to the session's end.
    NearEnd(i16),
}

#[derive(Default)]
struct Naive {
    seen: BTreeSet<u64>,
}

impl Naive {
    fn accept(&mut self, counter: u64) -> bool {
        let greatest = self.seen.last().copied().unwrap_or(0);
        counter < END && counter.saturating_add(WINDOW) >= greatest && self.seen.insert(counter)
    }

    /// Whether one of 2^45 counters before shares bit and round with `counter`: the window documents that it refuses such a counter.
    fn is_shadowed(&self, counter: u64) -> bool {
        self.seen.iter().any(|&seen| seen != counter && seen % (1 << 45) == counter % (1 << 45))
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let (window, mut naive) = (Window::new(), Naive::default());
    let mut at = 0_u64;
    let mut check = |counter: u64| {
        let accepted = window.accept(counter);
        let expected = naive.accept(counter);
        let agree = accepted == expected || (!accepted && naive.is_shadowed(counter));
        assert!(agree, "{counter}: {accepted}, not {expected}");
    };
    for step in steps.iter().take(4096) {
        at = match *step {
            Step::Same => at,
            Step::Forward(by) => at.saturating_add(by.into()),
            Step::Back(by) => at.saturating_sub(by.into()),
            Step::Words(by) => at.saturating_add_signed(i64::from(by) * 32),
            Step::Leap { bits, back: false } => at.saturating_add(1 << (bits % 64)),
            Step::Leap { bits, back: true } => at.saturating_sub(1 << (bits % 64)),
            Step::Run { len, down } => {
                for _ in 0..len {
                    check(at);
                    at = if down { at.saturating_sub(1) } else { at.saturating_add(1) };
                }
                at
            }
            Step::To(counter) => counter,
            Step::NearEnd(by) => END.saturating_add_signed(by.into()),
        };
        check(at);
    }
});
