//! The five timers of a peer ([W] §6, kernel `timers.c`). Callers say what happened; only this file knows what follows.
//!
//! - `retransmit_handshake`: an initiation was sent and not answered for REKEY_TIMEOUT (§6.4).
//! - `send_keepalive`: data was received and nothing sent for KEEPALIVE_TIMEOUT (§6.5).
//! - `new_handshake`: data was sent and nothing received for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT (§6.5).
//! - `zero_key_material`: no new session for 3 · REJECT_AFTER_TIME (§6.3).
//! - `persistent_keepalive`: nothing authentic passed in either direction for the configured interval.
//!
//! The data path, on any thread, reports its events here: a timer is one atomic deadline. The control thread sleeps until the earliest
//! deadline it knows of. A deadline that moves later or vanishes leaves its wake-up in place, and the wake-up finds nothing due: so traffic
//! in steady state never calls the control thread, and an idle peer never wakes it.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::constants::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX, ZERO_KEY_MATERIAL_AFTER};
use super::sync::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};
use super::time::{Instant, nanos};

/// A timer that is not pending, and the wake-up of a peer that has none.
const NEVER: u64 = u64::MAX;

/// Which timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// §6.4.
    RetransmitHandshake,
    /// §6.5.
    SendKeepalive,
    /// §6.5.
    NewHandshake,
    /// §6.3.
    ZeroKeyMaterial,
    /// Not in the paper.
    PersistentKeepalive,
}

impl Timer {
    /// Every timer, in the order in which they are looked at.
    pub const ALL: [Self; 5] = [
        Self::RetransmitHandshake,
        Self::SendKeepalive,
        Self::NewHandshake,
        Self::ZeroKeyMaterial,
        Self::PersistentKeepalive,
    ];
}

/// The timers of one peer. Every event returns whether the control thread must be called because it would wake too late.
#[derive(Debug)]
pub struct Timers {
    deadlines: [AtomicU64; 5],
    /// The deadline that the control thread will look at this peer.
    wake_up: AtomicU64,
    need_another_keepalive: AtomicBool,
    sent_lastminute_handshake: AtomicBool,
    persistent_seconds: AtomicU16,
    attempts: AtomicU32,
    /// Makes the jitter of peers differ.
    seed: u64,
}

impl Timers {
    /// Returns timers of which none is pending. `seed` is any random number.
    pub fn new(seed: u64) -> Self {
        Self {
            deadlines: std::array::from_fn(|_| AtomicU64::new(NEVER)),
            wake_up: AtomicU64::new(NEVER),
            need_another_keepalive: AtomicBool::new(false),
            sent_lastminute_handshake: AtomicBool::new(false),
            persistent_seconds: AtomicU16::new(0),
            attempts: AtomicU32::new(0),
            seed,
        }
    }

    // ---- events of the data path

    /// A data message with something inside was sent.
    #[must_use]
    pub fn data_sent(&self, now: Instant) -> bool {
        // [W] §6.5 and kernel `timers.c`, `wg_timers_data_sent`: armed only if not pending.
        self.arm_if_idle(
            Timer::NewHandshake,
            now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter(now, Timer::NewHandshake),
        )
    }

    /// A data message with something inside was received.
    #[must_use]
    pub fn data_received(&self, now: Instant) -> bool {
        // Kernel `timers.c`, `wg_timers_data_received`.
        if self.is_pending(Timer::SendKeepalive) {
            self.need_another_keepalive.store(true, SeqCst);
            return false;
        }
        self.arm_if_idle(Timer::SendKeepalive, now + KEEPALIVE_TIMEOUT)
    }

    /// Anything authenticated was sent: data, keepalive, handshake.
    pub fn any_authenticated_packet_sent(&self) {
        self.stop(Timer::SendKeepalive);
    }

    /// Anything authenticated was received.
    pub fn any_authenticated_packet_received(&self) {
        self.stop(Timer::NewHandshake);
    }

    /// Anything authenticated passed in either direction.
    #[must_use]
    pub fn any_authenticated_packet_traversal(&self, now: Instant) -> bool {
        match self.persistent_seconds.load(SeqCst) {
            0 => false,
            seconds => self.arm(Timer::PersistentKeepalive, now + Duration::from_secs(u64::from(seconds))),
        }
    }

    /// Tells once per session whether the last-minute handshake is still to be asked for ([W] §6.2).
    pub fn take_lastminute_handshake(&self) -> bool {
        !self.sent_lastminute_handshake.swap(true, SeqCst)
    }

    // ---- events of the control thread, which schedules the peer afterwards

    /// An initiation was sent.
    pub fn handshake_initiated(&self, now: Instant) {
        // [W] §6.1, §6.4: "REKEY_TIMEOUT plus jitter".
        let deadline = now + REKEY_TIMEOUT + self.jitter(now, Timer::RetransmitHandshake);
        let _ = self.arm(Timer::RetransmitHandshake, deadline);
    }

    /// An initiation must wait because the last handshake message was sent too recently.
    pub fn handshake_deferred(&self, now: Instant) {
        let deadline = now + REKEY_TIMEOUT + self.jitter(now, Timer::RetransmitHandshake);
        let _ = self.arm_if_idle(Timer::RetransmitHandshake, deadline);
    }

    /// A handshake was confirmed by the other side.
    pub fn handshake_complete(&self) {
        self.stop(Timer::RetransmitHandshake);
        self.attempts.store(0, SeqCst);
        self.sent_lastminute_handshake.store(false, SeqCst);
    }

    /// A session was derived.
    pub fn session_derived(&self, now: Instant) {
        // [W] §6.3.
        let _ = self.arm(Timer::ZeroKeyMaterial, now + ZERO_KEY_MATERIAL_AFTER);
    }

    /// Arms `zero_key_material` unless it is pending: a handshake was given up (kernel `wg_expired_retransmit_handshake`).
    pub fn handshake_given_up(&self, now: Instant) {
        self.stop(Timer::SendKeepalive);
        let _ = self.arm_if_idle(Timer::ZeroKeyMaterial, now + ZERO_KEY_MATERIAL_AFTER);
    }

    /// Forgets the attempts: a handshake was asked for anew (kernel `wg_packet_send_queued_handshake_initiation`).
    pub fn reset_attempts(&self) {
        self.attempts.store(0, SeqCst);
    }

    /// Counts one more attempt and returns how many there were before.
    pub fn next_attempt(&self) -> u32 {
        self.attempts.fetch_add(1, SeqCst)
    }

    /// The keepalive timer fired: rearms it if data came meanwhile (kernel `wg_expired_send_keepalive`).
    pub fn keepalive_fired(&self, now: Instant) {
        if self.need_another_keepalive.swap(false, SeqCst) {
            let _ = self.arm(Timer::SendKeepalive, now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Sets the interval of persistent keepalives, 0 for none, and returns the one before.
    pub fn set_persistent_keepalive(&self, seconds: u16) -> u16 {
        if seconds == 0 {
            self.stop(Timer::PersistentKeepalive);
        }
        self.persistent_seconds.swap(seconds, SeqCst)
    }

    /// Returns the interval of persistent keepalives in seconds, 0 for none.
    pub fn persistent_keepalive(&self) -> u16 {
        self.persistent_seconds.load(SeqCst)
    }

    /// Stops every timer (kernel `wg_timers_stop`).
    pub fn stop_all(&self) {
        Timer::ALL.into_iter().for_each(|timer| self.stop(timer));
        self.need_another_keepalive.store(false, SeqCst);
        self.sent_lastminute_handshake.store(false, SeqCst);
        self.attempts.store(0, SeqCst);
    }

    /// Takes a timer that is due at `now`, so that it is no longer pending.
    pub fn take_due(&self, now: Instant) -> Option<Timer> {
        Timer::ALL.into_iter().find(|&timer| {
            let deadline = self.deadlines[timer as usize].load(SeqCst);
            deadline != NEVER
                && deadline <= now.as_nanos()
                && self.deadlines[timer as usize].compare_exchange(deadline, NEVER, SeqCst, SeqCst).is_ok()
        })
    }

    /// Notes that the control thread will look again at the earliest deadline, and returns it.
    ///
    /// The loop closes the race with an event on another thread: either that thread sees the new wake-up, or this one its deadline.
    pub fn schedule(&self) -> Option<Instant> {
        loop {
            let earliest = self.earliest();
            self.wake_up.store(earliest, SeqCst);
            if self.earliest() >= earliest {
                return (earliest != NEVER).then_some(Instant::from_nanos(earliest));
            }
        }
    }

    /// Tells whether `timer` is pending.
    pub fn is_pending(&self, timer: Timer) -> bool {
        self.deadlines[timer as usize].load(SeqCst) != NEVER
    }

    fn earliest(&self) -> u64 {
        self.deadlines.iter().map(|deadline| deadline.load(SeqCst)).min().unwrap_or(NEVER)
    }

    fn stop(&self, timer: Timer) {
        let deadline = &self.deadlines[timer as usize];
        // A plain load first: in steady state the line stays shared between threads.
        if deadline.load(SeqCst) != NEVER {
            deadline.store(NEVER, SeqCst);
        }
    }

    fn arm(&self, timer: Timer, deadline: Instant) -> bool {
        self.deadlines[timer as usize].store(deadline.as_nanos(), SeqCst);
        deadline.as_nanos() < self.wake_up.load(SeqCst)
    }

    fn arm_if_idle(&self, timer: Timer, deadline: Instant) -> bool {
        let slot = &self.deadlines[timer as usize];
        slot.load(SeqCst) == NEVER
            && slot.compare_exchange(NEVER, deadline.as_nanos(), SeqCst, SeqCst).is_ok()
            && deadline.as_nanos() < self.wake_up.load(SeqCst)
    }

    /// A number below REKEY_TIMEOUT_JITTER_MAX that differs by peer and moment (SplitMix64's finaliser).
    fn jitter(&self, now: Instant, timer: Timer) -> Duration {
        let mut x = self.seed ^ now.as_nanos().wrapping_add(timer as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_nanos((x ^ (x >> 31)) % nanos(REKEY_TIMEOUT_JITTER_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn jitter_spans_its_range_and_stays_below_a_third_of_a_second() {
        let timers = Timers::new(1);
        let all: Vec<_> =
            (0..1000).map(|i| timers.jitter(Instant::from_nanos(i * 77), Timer::NewHandshake)).collect();
        assert!(all.iter().all(|&jitter| jitter < Duration::from_millis(333)));
        assert!(all.iter().any(|&jitter| jitter > Duration::from_millis(300)));
        assert!(all.iter().any(|&jitter| jitter < Duration::from_millis(33)));
    }

    #[test]
    fn the_control_thread_is_called_only_for_an_earlier_deadline() {
        let timers = Timers::new(0);
        assert!(timers.data_received(at(1)), "nothing was scheduled");
        assert_eq!(timers.schedule(), Some(at(11)));
        timers.any_authenticated_packet_sent();
        assert!(!timers.data_received(at(5)), "the wake-up at 11 s comes first and sees 15 s");
        assert_eq!(timers.take_due(at(11)), None);
        assert_eq!(timers.schedule(), Some(at(15)));
    }

    #[test]
    fn giving_up_stops_the_keepalive_and_leaves_a_pending_wipe_where_it_is() {
        // Kernel `timers.c`, `wg_expired_retransmit_handshake`.
        let timers = Timers::new(0);
        timers.session_derived(at(0));
        let _ = timers.data_received(at(95));
        timers.handshake_given_up(at(100));
        assert_eq!(timers.schedule(), Some(at(540)));
    }

    #[test]
    fn data_during_a_pending_keepalive_asks_for_another() {
        let timers = Timers::new(0);
        let _ = timers.data_received(at(0));
        let _ = timers.data_received(at(1));
        assert_eq!(timers.take_due(at(10)), Some(Timer::SendKeepalive));
        timers.keepalive_fired(at(10));
        assert_eq!(timers.schedule(), Some(at(20)));
        assert_eq!(timers.take_due(at(20)), Some(Timer::SendKeepalive));
        timers.keepalive_fired(at(20));
        assert_eq!(timers.schedule(), None);
    }
}

#[cfg(all(loom, test))]
mod models {
    use super::*;
    use crate::wireguard::sync::model;
    use std::sync::Arc;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    /// Runs events on threads of their own while the control thread does `control`, which ends with a look at the schedule. Whatever is
    /// pending in the end must be found: by the wake-up, or because an event has called the control thread.
    fn no_deadline_is_missed<const N: usize>(
        prepare: fn(&Timers),
        events: [fn(&Timers) -> bool; N],
        control: fn(&Timers) -> Option<Instant>,
    ) {
        let timers = Arc::new(Timers::new(0));
        prepare(&timers);
        let threads = events.map(|event| {
            let timers = Arc::clone(&timers);
            loom::thread::spawn(move || event(&timers))
        });
        let wake_up = control(&timers);
        let called = threads.map(|thread| thread.join().unwrap()).contains(&true);
        let earliest = timers.earliest();
        assert!(
            called || earliest == NEVER || wake_up.is_some_and(|wake_up| wake_up.as_nanos() <= earliest),
            "{earliest} is pending, and the control thread sleeps until {wake_up:?}"
        );
    }

    #[test]
    fn loom_a_deadline_armed_while_the_control_thread_schedules_is_not_missed() {
        model(|| {
            let prepare = |timers: &Timers| timers.session_derived(at(0));
            no_deadline_is_missed(prepare, [|timers| timers.data_received(at(1))], Timers::schedule);
        });
    }

    #[test]
    fn loom_a_deadline_armed_while_another_is_due_is_not_missed() {
        model(|| {
            let prepare = |timers: &Timers| {
                let _ = timers.data_received(at(0));
                let _ = timers.schedule();
            };
            let control = |timers: &Timers| {
                while timers.take_due(at(10)).is_some() {
                    timers.any_authenticated_packet_sent();
                    timers.keepalive_fired(at(10));
                }
                timers.schedule()
            };
            no_deadline_is_missed(prepare, [|timers| timers.data_sent(at(10))], control);
        });
    }

    #[test]
    fn loom_a_deadline_that_is_stopped_and_armed_by_two_threads_is_not_missed() {
        model(|| {
            let prepare = |timers: &Timers| {
                let _ = timers.data_sent(at(0));
                let _ = timers.schedule();
            };
            let received = |timers: &Timers| {
                timers.any_authenticated_packet_received();
                false
            };
            no_deadline_is_missed(prepare, [received, |timers| timers.data_sent(at(1))], Timers::schedule);
        });
    }

    #[test]
    fn loom_a_persistent_deadline_that_moves_is_not_missed() {
        model(|| {
            let prepare = |timers: &Timers| {
                timers.set_persistent_keepalive(25);
                timers.session_derived(at(0));
            };
            let traversal = |timers: &Timers| timers.any_authenticated_packet_traversal(at(2));
            no_deadline_is_missed(prepare, [traversal], Timers::schedule);
        });
    }
}
