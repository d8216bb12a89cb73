//! The clock that deadlines are measured by.

use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// Returns the time since boot, suspend included.
pub(crate) fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Both parts are not negative: the clock does not stand before its epoch.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Lets time pass between two attempts.
pub(crate) fn pause(time: Duration) {
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    // One that is cut short by a signal is followed by an attempt a little sooner.
    let _ = poll(&mut [], Some(&time));
}
