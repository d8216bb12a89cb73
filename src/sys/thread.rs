//! Threads that cannot be had: a limit of processes counts them as well (cgroups' `pids.max`).

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::fault::{self, Call};

/// Runs `run` on a thread of this name.
///
/// # Errors
/// `EAGAIN` if there can be no more threads.
pub fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    fault::check(Call::Thread)?;
    Builder::new().name(name.to_owned()).spawn(run)
}

/// Runs `run` on a thread that ends before `scope` does.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    fault::check(Call::Thread)?;
    Builder::new().spawn_scoped(scope, run)
}
