//! Waiting for one's turn: what one process holds alone, its successor takes when it has left.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::sys::signal::Signals;

/// The time between two attempts.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

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
        match poll(&mut fds, Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("poll: {errno}")),
        }
        if signals.is_some_and(Signals::take) {
            return Ok(None);
        }
    }
}
