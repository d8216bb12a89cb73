//! What goes wrong: drawn from a seed, or planned call by call.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// What may go wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// 409.
    Conflict,
    /// 429, with Retry-After.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 503.
    Unavailable,
    /// It is done, and the answer is 500.
    LostAnswer,
    /// The connection is closed without an answer, and nothing is done.
    HangUp,
    /// It is done, and the connection is closed without an answer. A watch begins, and is closed.
    DoneAndHangUp,
    /// The answer never comes.
    Stall,
    /// The answer comes late.
    Delay,
    /// The answer is cut off, as if it were whole.
    Truncate,
    /// The connection is closed in the middle of the answer.
    Break,
    /// The history is gone.
    Compact,
    /// 410.
    Expired,
}

/// A call of a run: what is asked, and the how manieth time.
pub(crate) type Position = (String, u64);

/// How a watch ends that does not last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// As the server ends one.
    Close,
    /// The connection is closed in the middle of an event.
    Break,
    /// The last event is cut off, as if it were whole.
    Truncate,
    /// An event says that the history is gone.
    Gone,
    /// Nothing comes any more, for a while; then the connection is closed.
    Stall,
    /// An event says that something failed, and the watch ends.
    Failed,
}

/// What is to happen to a watch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    pub(super) end: Option<End>,
    /// After so many events or so much time, whichever comes first.
    pub(super) events: u64,
    pub(super) time: Duration,
}

impl Course {
    /// Returns the course of a watch that is to fail so, soon after it has begun.
    fn of_fault(fault: Fault) -> Option<Self> {
        let end = match fault {
            Fault::LostAnswer => End::Failed,
            Fault::DoneAndHangUp => End::Close,
            Fault::Truncate => End::Truncate,
            Fault::Break => End::Break,
            Fault::Compact => End::Gone,
            Fault::Conflict
            | Fault::TooManyRequests
            | Fault::InternalError
            | Fault::Unavailable
            | Fault::HangUp
            | Fault::Stall
            | Fault::Delay
            | Fault::Expired => return None,
        };
        Some(Self { end: Some(end), events: 0, time: Duration::from_millis(300) })
    }
}

/// Draws faults; the same seed gives the same ones to the same calls.
#[derive(Debug)]
pub(crate) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    random: u64,
    /// Of a thousand calls.
    permille: u64,
    /// How often each thing was asked.
    calls: BTreeMap<String, u64>,
    planned: BTreeMap<Position, Fault>,
    counts: BTreeMap<String, u64>,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self(Mutex::new(State::default()))
    }

    /// From here on so many of a thousand calls fail, and as many watches do not last.
    pub(crate) fn begin(&self, seed: u64, permille: u64) {
        let mut state = self.lock();
        (state.random, state.permille) = (seed, permille);
    }

    /// Has these calls fail, whatever is drawn for others.
    pub(crate) fn plan(&self, planned: BTreeMap<Position, Fault>) {
        self.lock().planned = planned;
    }

    /// Returns what is planned for calls that have not come.
    pub(crate) fn unmet(&self) -> BTreeMap<Position, Fault> {
        self.lock().planned.clone()
    }

    /// Returns how many calls there were.
    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls.values().sum()
    }

    /// Returns the calls that there were.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let state = self.lock();
        let calls = state.calls.iter();
        calls.flat_map(|(asked, times)| (0..*times).map(|time| (asked.clone(), time))).collect()
    }

    /// Returns how often each has happened.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().counts.clone()
    }

    pub(super) fn of_call(&self, asked: String, is_write: bool) -> Option<Fault> {
        const READ: [Fault; 9] = [
            Fault::TooManyRequests,
            Fault::InternalError,
            Fault::Unavailable,
            Fault::HangUp,
            Fault::Delay,
            Fault::Truncate,
            Fault::Break,
            Fault::Compact,
            Fault::Stall,
        ];
        const WRITE: [Fault; 10] = [
            Fault::Conflict,
            Fault::TooManyRequests,
            Fault::InternalError,
            Fault::Unavailable,
            Fault::LostAnswer,
            Fault::HangUp,
            Fault::Delay,
            Fault::Truncate,
            Fault::Break,
            Fault::Stall,
        ];
        let mut state = self.lock();
        let times = state.calls.entry(asked.clone()).or_default();
        *times += 1;
        let position = (asked, *times - 1);
        if let Some(fault) = state.planned.remove(&position) {
            state.count(format!("{fault:?}"));
            return Some(fault);
        }
        if !state.happens() {
            return None;
        }
        // A call that is never answered costs the whole patience of who waits.
        let is_stall = state.below(20) == 0;
        let faults: &[Fault] = if is_write { &WRITE } else { &READ };
        let others = u64::try_from(faults.len() - 1).unwrap();
        let at = usize::try_from(if is_stall { others } else { state.below(others) }).unwrap();
        state.count(format!("{:?}", faults[at]));
        Some(faults[at])
    }

    /// Returns the course of a watch, for which there is a fault already or not.
    pub(super) fn of_watch(&self, fault: Option<Fault>) -> Course {
        const ENDS: [End; 6] = [End::Close, End::Break, End::Truncate, End::Gone, End::Stall, End::Failed];
        if let Some(course) = fault.and_then(Course::of_fault) {
            return course;
        }
        let mut state = self.lock();
        let is_ended = state.happens();
        let (events, time) = (state.below(6), Duration::from_millis(state.below(2000)));
        let end = is_ended.then(|| ENDS[usize::try_from(state.below(6)).unwrap()]);
        if let Some(end) = end {
            state.count(format!("watch {end:?}"));
        }
        Course { end, events, time }
    }

    /// Tells whether something happens that does no harm of itself: an event that comes late, twice or before another object's.
    pub(super) fn is_odd(&self) -> bool {
        self.lock().happens()
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.lock().below(bound)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn happens(&mut self) -> bool {
        self.permille > 0 && self.below(1000) < self.permille
    }

    fn count(&mut self, name: String) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Returns a number below `bound` (SplitMix64).
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }
}
