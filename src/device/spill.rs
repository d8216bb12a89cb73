//! Workers that help each other: while one has more than it can do and another rests, that one sends what the first has sealed and
//! writes what it has opened. So a single flow is not bound to one core, and its order is kept.
//!
//! ```text
//! worker i   read → seal ─┐ lane i           receive → open ─┐ lane i
//! worker j                └→ send                            └→ merge → write to queue i
//! ```

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use super::lane::Lane;
use super::receive::Inbox;
use super::send::Outbox;
use super::worker::Left;

/// Batches of one worker that wait for another. It bounds what this costs: 192 KiB for each to be sent, as much as was received for
/// each to be written.
const ROOM: usize = 4;

/// With fewer cores, and workers, no core is left to help: what makes the traffic and the worker itself fill two.
const CORES_MIN: usize = 3;

/// Whether workers help each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// If there are three or more, on as many cores, and one has more than it can do.
    #[default]
    Auto,
    /// Always: every batch is offered to another worker. For tests.
    On,
    /// Never.
    Off,
}

/// What workers do for each other.
pub(super) struct Lanes {
    /// Of each worker: what is sealed.
    pub(super) send: Vec<Lane<Box<Outbox>>>,
    /// Of each worker: what is opened.
    pub(super) receive: Vec<Lane<Box<Inbox>>>,
    /// Workers that sleep until they are woken, as bits.
    resting: AtomicU64,
    /// Workers that have helped just now and look again before they rest, as bits.
    watching: AtomicU64,
    is_forced: bool,
}

impl Lanes {
    /// Returns lanes for each of `workers`, if they are to help each other.
    pub(super) fn new(spill: Spill, workers: usize, cores: usize) -> Option<Self> {
        let is_wanted = match spill {
            Spill::Auto => workers.min(cores) >= CORES_MIN,
            Spill::On => true,
            Spill::Off => false,
        };
        is_wanted.then(|| Self {
            send: (0..workers).map(|_| Lane::new(ROOM)).collect(),
            receive: (0..workers).map(|_| Lane::new(ROOM)).collect(),
            resting: AtomicU64::new(0),
            watching: AtomicU64::new(0),
            is_forced: spill == Spill::On,
        })
    }

    /// Tells whether the owner of a lane lets others do what comes next: it has too much to do, or others are still at what came before.
    pub(super) fn is_used<T>(&self, lane: &Lane<T>, heat: &Heat) -> bool {
        self.is_forced || heat.is_high() || !lane.is_done()
    }

    /// Notes what `worker` does while it has no work of its own.
    pub(super) fn note(&self, worker: usize, idle: Idle) {
        let Some(bit) = u32::try_from(worker).ok().and_then(|worker| 1_u64.checked_shl(worker)) else {
            return;
        };
        let set = |flags: &AtomicU64, on: bool| {
            let _ = if on { flags.fetch_or(bit, SeqCst) } else { flags.fetch_and(!bit, SeqCst) };
        };
        set(&self.watching, idle == Idle::Watches);
        set(&self.resting, idle == Idle::Rests);
    }

    /// Looks for a worker to help, after work was put in.
    pub(super) fn find(&self) -> Found {
        if self.watching.load(SeqCst) != 0 {
            return Found::Awake;
        }
        loop {
            let resting = self.resting.load(SeqCst);
            if resting == 0 {
                return Found::Nobody;
            }
            let first = resting & resting.wrapping_neg();
            if self.resting.fetch_and(!first, SeqCst) & first != 0 {
                return Found::Asleep(first.trailing_zeros() as usize);
            }
        }
    }
}

/// What a worker does that has no work of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// It has some.
    Works,
    /// It looks for work of others.
    Watches,
    /// It sleeps.
    Rests,
}

/// A worker to help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// All have enough to do.
    Nobody,
    /// One looks for work already.
    Awake,
    /// This one is to be woken.
    Asleep(usize),
}

/// How long a source of packets has had more than a worker takes at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heat(u8);

impl Heat {
    /// Turns in which there was more, over those in which there was not. A burst is shorter.
    const HIGH: u8 = 8;

    pub(super) fn note(&mut self, left: Left) {
        self.0 = match left {
            Left::More => (self.0 + 1).min(2 * Self::HIGH),
            Left::Nothing | Left::Gone => self.0.saturating_sub(2),
        };
    }

    fn is_high(self) -> bool {
        self.0 >= Self::HIGH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_or_cores_are_too_few_unless_told_otherwise() {
        let has = |spill, workers, cores| Lanes::new(spill, workers, cores).is_some();
        let auto = [(2, 2), (2, 16), (16, 2), (3, 3), (16, 16)];
        assert_eq!(
            auto.map(|(workers, cores)| has(Spill::Auto, workers, cores)),
            [false, false, false, true, true]
        );
        assert!(has(Spill::On, 2, 2) && !has(Spill::Off, 16, 16));
    }

    #[test]
    fn who_watches_is_not_woken_and_who_rests_is_woken_once() {
        let lanes = Lanes::new(Spill::Auto, 100, 100).unwrap();
        assert_eq!(lanes.find(), Found::Nobody);
        lanes.note(3, Idle::Rests);
        lanes.note(5, Idle::Rests);
        // Those beyond the 64th do not help.
        lanes.note(99, Idle::Rests);
        assert_eq!(lanes.find(), Found::Asleep(3));
        lanes.note(4, Idle::Watches);
        assert_eq!(lanes.find(), Found::Awake);
        lanes.note(4, Idle::Works);
        assert_eq!([lanes.find(), lanes.find()], [Found::Asleep(5), Found::Nobody]);
    }

    #[test]
    fn a_burst_is_no_reason_and_a_pause_no_end() {
        let mut heat = Heat::default();
        let mut after = |lefts: &[Left]| {
            lefts.iter().for_each(|&left| heat.note(left));
            heat.is_high()
        };
        assert!(!after(&[Left::More; 7]));
        assert!(!after(&[Left::Nothing]));
        assert!(after(&[Left::More; 20]));
        assert!(after(&[Left::Nothing, Left::More, Left::Nothing]));
        assert!(!after(&[Left::Nothing; 4]));
    }
}
