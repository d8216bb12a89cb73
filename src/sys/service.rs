//! What a service manager is told (sd_notify(3)): that we are ready, that we stop, and that we live. Without one nothing is done.

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};

use super::clock::boottime;

/// Tells that whoever waits for us may go on.
pub fn ready() {
    tell(&NotifyState::Ready);
}

/// Tells that we are about to end of our own accord.
pub fn stopping() {
    tell(&NotifyState::Stopping);
}

/// What matters more than that somebody was told goes on all the same: who is waited for in vain is ended by the service manager.
fn tell(state: &NotifyState<'_>) {
    if let Err(error) = notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "the service manager was not told: {state}");
    }
}

/// The service manager's wish to hear that we live, again and again (sd_watchdog_enabled(3)).
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    /// When it is told next, by [`boottime`].
    next: Duration,
}

impl Watchdog {
    /// Returns the wish, if there is one. It is obeyed twice as often as need be, as its documentation asks for.
    pub fn of_environment() -> Option<Self> {
        let longest = watchdog_enabled().filter(|longest| !longest.is_zero())?;
        Some(Self { every: longest / 2, next: Duration::ZERO })
    }

    /// Returns when it is told next, by [`boottime`].
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Tells that we live if it is time, and if `lives` says so.
    pub fn tell(&mut self, lives: impl FnOnce() -> bool) {
        let now = boottime();
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        if lives() {
            tell(&NotifyState::Watchdog);
        }
    }
}
