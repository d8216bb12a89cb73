//! The clocks, and a timer that a poll can wait for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::fault::{self, Call};

/// Returns the time since boot, suspend included (`CLOCK_BOOTTIME`).
pub fn boottime() -> Duration {
    read(ClockId::Boottime)
}

/// Returns the time since boot without suspend (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Duration {
    read(ClockId::Monotonic)
}

/// Returns the wall-clock time since the Unix epoch (`CLOCK_REALTIME`).
pub fn realtime() -> Duration {
    read(ClockId::Realtime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Both parts are not negative: no clock stands before its epoch.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A descriptor that becomes readable at a moment of [`boottime`], also after a suspend.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Returns a timer that is not set.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Sets the timer to `at`, or stops it.
    ///
    /// # Errors
    /// If `at` is out of the kernel's range.
    pub fn set(&self, at: Option<Duration>) -> io::Result<()> {
        fault::check(Call::Timer)?;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A value of zero would stop the timer; a moment that has passed fires at once.
        let value = at.map_or(zero, |at| Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(at.subsec_nanos().max(1)),
        });
        timerfd_settime(
            &self.0,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        Ok(())
    }

    /// Makes the timer unreadable until it fires again.
    pub fn clear(&self) {
        // Empty already is as good.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that becomes readable when the wall clock jumps, which it does after every suspend (`TFD_TIMER_CANCEL_ON_SET`).
#[derive(Debug)]
pub struct Jump(OwnedFd);

impl Jump {
    /// Waits for jumps from now on.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let this = Self(timerfd_create(TimerfdClockId::Realtime, flags)?);
        this.arm()?;
        Ok(this)
    }

    /// Makes it unreadable until the next jump.
    pub fn clear(&self) {
        // ECANCELED tells of the jump.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
        let _ = self.arm();
    }

    fn arm(&self) -> io::Result<()> {
        // The year 2242: the timer itself never fires.
        let far = Timespec { tv_sec: 1 << 33, tv_nsec: 0 };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&self.0, flags, &Itimerspec { it_interval: zero, it_value: far })?;
        Ok(())
    }
}

impl AsRawFd for Jump {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
