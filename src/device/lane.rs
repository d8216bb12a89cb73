//! Work of one worker that any worker may do, one piece after the other: so that a single flow is not bound to one core.
//!
//! Only the worker that owns the lane puts work in. Who finds nobody at it does it, first in, first out; whoever finds somebody leaves,
//! and that one looks again before it leaves itself. There is no lock to wait for, and nothing is overtaken.

use crate::wireguard::sync::{ArrayQueue, AtomicBool, AtomicU32};
use std::sync::atomic::Ordering::SeqCst;

pub(super) struct Lane<T> {
    waiting: ArrayQueue<T>,
    /// What is done, for its owner to use again.
    done: ArrayQueue<T>,
    /// Put in and not yet done.
    pending: AtomicU32,
    is_busy: AtomicBool,
}

impl<T> Lane<T> {
    /// Returns a lane in which at most so many pieces of work wait.
    pub(super) fn new(room: usize) -> Self {
        Self {
            waiting: ArrayQueue::new(room),
            done: ArrayQueue::new(room),
            pending: AtomicU32::new(0),
            is_busy: AtomicBool::new(false),
        }
    }

    /// Tells the owner whether everything that was put in is done, so that it keeps the order though it goes on by itself.
    pub(super) fn is_done(&self) -> bool {
        self.pending.load(SeqCst) == 0
    }

    /// Puts work behind what waits, or gives it back for want of room.
    pub(super) fn put(&self, work: T) -> Result<(), T> {
        self.pending.fetch_add(1, SeqCst);
        let result = self.waiting.push(work);
        if result.is_err() {
            self.pending.fetch_sub(1, SeqCst);
        }
        result
    }

    /// Does what waits, unless somebody else is at it.
    pub(super) fn drain(&self, mut act: impl FnMut(&mut T)) {
        while !self.waiting.is_empty() {
            if self.is_busy.swap(true, SeqCst) {
                return;
            }
            while let Some(mut work) = self.waiting.pop() {
                act(&mut work);
                // Without room it is dropped: there is more than the owner needs.
                let _ = self.done.push(work);
                self.pending.fetch_sub(1, SeqCst);
            }
            // What was put in since, by an owner who left because of us, is found when the queue is looked at again.
            self.is_busy.swap(false, SeqCst);
        }
    }

    /// Returns something that was done, to be used again.
    pub(super) fn take_done(&self) -> Option<T> {
        self.done.pop()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    #[test]
    fn what_many_threads_do_is_done_once_and_in_order() {
        let (lane, seen) = (Lane::new(4), Mutex::new(Vec::new()));
        let act = |work: &mut u32| seen.lock().unwrap().push(*work);
        let helping = AtomicBool::new(true);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while helping.load(SeqCst) {
                        lane.drain(act);
                    }
                });
            }
            for work in 0..20_000 {
                while lane.put(work).is_err() {
                    lane.drain(act);
                }
                let _ = lane.take_done();
            }
            while !lane.is_done() {
                lane.drain(act);
            }
            helping.store(false, SeqCst);
        });
        assert!(seen.into_inner().unwrap().into_iter().eq(0..20_000));
    }

    #[test]
    fn a_full_lane_gives_work_back() {
        let lane = Lane::new(1);
        assert!(lane.is_done());
        assert_eq!((lane.put(1), lane.put(2)), (Ok(()), Err(2)));
        assert!(!lane.is_done());
        lane.drain(|work| *work += 10);
        assert!(lane.is_done());
        assert_eq!((lane.take_done(), lane.take_done()), (Some(11), None));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;
    use crate::wireguard::sync::model;

    #[test]
    fn loom_work_that_two_threads_look_for_is_done_once_and_in_order() {
        model(|| {
            let (lane, seen) = (Arc::new(Lane::new(2)), Arc::new(Mutex::new(Vec::new())));
            let drain = {
                let (lane, seen) = (Arc::clone(&lane), Arc::clone(&seen));
                move || lane.drain(|work: &mut u32| seen.lock().unwrap().push(*work))
            };
            let helper = thread::spawn(drain.clone());
            lane.put(1).unwrap();
            drain();
            lane.put(2).unwrap();
            drain();
            helper.join().unwrap();
            assert!(lane.is_done(), "something is stuck");
            assert_eq!(*seen.lock().unwrap(), [1, 2]);
        });
    }

    #[test]
    fn loom_who_finds_everything_done_goes_on_behind_it() {
        model(|| {
            let (lane, seen) = (Arc::new(Lane::new(2)), Arc::new(Mutex::new(Vec::new())));
            let helper = {
                let (lane, seen) = (Arc::clone(&lane), Arc::clone(&seen));
                thread::spawn(move || lane.drain(|work: &mut u32| seen.lock().unwrap().push(*work)))
            };
            lane.put(1).unwrap();
            let is_done = lane.is_done();
            if is_done {
                seen.lock().unwrap().push(2);
            }
            helper.join().unwrap();
            assert!(!is_done || *seen.lock().unwrap() == [1, 2]);
        });
    }
}
