//! Waiting for one's turn: what one process holds alone, its successor takes when it has left.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::sys::poll::{Waits, poll};
use crate::sys::signal::Signals;

/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Why something cannot be had; for people.
pub(super) enum Refused {
    /// Another process has it.
    Taken(String),
    /// It cannot be had at all.
    ForGood(String),
}

/// Attempts it, and if `waits`, again and again while another process has it. `None` if one of `signals` comes first.
///
/// # Errors
/// Why it cannot be had.
pub(super) fn await_turn<T>(
    waits: bool,
    signals: Option<&Signals>,
    mut attempt: impl FnMut() -> Result<T, Refused>,
) -> Result<Option<T>, String> {
    let mut waiting = Waits::default();
    let mut is_told = false;
    loop {
        let reason = match attempt() {
            Ok(had) => return Ok(Some(had)),
            Err(Refused::Taken(reason)) if waits => reason,
            Err(Refused::Taken(reason) | Refused::ForGood(reason)) => return Err(reason),
        };
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(reason, "waiting for another process to leave");
        }
        let mut fds: Vec<_> =
            signals.into_iter().map(|signals| PollFd::new(signals, PollFlags::IN)).collect();
        let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(PAUSE.subsec_nanos()) };
        waiting.have_told(poll(&mut fds, Some(&pause)), PAUSE);
        if signals.is_some_and(Signals::take) {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::with_faults;

    #[test]
    fn one_s_turn_comes_also_while_poll_fails() {
        let mut attempts = 0;
        let (had, is_left) = with_faults("Poll=12*10", || {
            await_turn(true, None, || {
                attempts += 1;
                if attempts < 4 { Err(Refused::Taken("another has it".to_owned())) } else { Ok("it") }
            })
        });
        assert_eq!((had, is_left, attempts), (Ok(Some("it")), true, 4));
    }
}
