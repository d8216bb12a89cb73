//! What the system tests stand on: network namespaces, processes that end with the test, and tunnels of any implementation.
//!
//! Everything here is gone when the test process is, however it ends: namespaces have no name, and every process is started with a
//! parent-death signal.

#[cfg(feature = "control")]
pub(crate) mod api_double;
#[cfg(feature = "control")]
pub(crate) mod detour;
mod directory;
pub(crate) mod namespace;
pub(crate) mod proc;
pub(crate) mod process;
pub(crate) mod puppet;
pub(crate) mod sequence;
pub(crate) mod stream;
pub(crate) mod tunnel;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit::sys::clock::boottime;

pub(crate) use directory::Directory;
pub(crate) use namespace::Namespace;
pub(crate) use process::Process;

/// How long anything may take that is not about time.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Says that a test cannot run here for want of `what`. With `ADIT_NO_SKIP` set, as in CI, that is a failure.
pub(crate) fn skip(what: &str) {
    // Not println!: the line is to be seen though the test passes.
    let _ = writeln!(std::io::stderr(), "skipped: {what} missing");
    assert!(env::var_os("ADIT_NO_SKIP").is_none(), "skipped: {what} missing, and ADIT_NO_SKIP is set");
}

/// Says that the running kernel cannot host a test; nothing that could be installed would change that.
pub(crate) fn not_hosted(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why} missing in this kernel");
}

/// Leaves the test with one line if one of the programs is not there.
macro_rules! need {
    ($($program:expr),+ $(,)?) => {
        if adit::sys::netns::create().is_err() {
            $crate::support::skip("root");
            return;
        }
        $(if $crate::support::find($program).is_none() {
            $crate::support::skip($program);
            return;
        })+
    };
}
pub(crate) use need;

/// Finds a program in `ADIT_PEERS`, then in `PATH` and where the system's own programs lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let peers = env::var_os("ADIT_PEERS").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = peers.into_iter().chain(env::split_paths(&path)).chain(system);
    places.find_map(|place| Some(place.join(program)).filter(|file| is_program(file)))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Polls until `done` returns something, and fails after `limit`.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = boottime() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(boottime() < deadline, "{what}: not within {limit:?}");
        pause(Duration::from_millis(10));
    }
}

/// Polls until `done`, and fails after `limit`.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    wait_for(what, limit, || done().then_some(()));
}

/// Lets time pass where it is time itself that is tested, or between two looks.
pub(crate) fn pause(duration: Duration) {
    let timeout = rustix::event::Timespec {
        tv_sec: duration.as_secs().try_into().unwrap(),
        tv_nsec: duration.subsec_nanos().into(),
    };
    let _ = rustix::event::poll(&mut [], Some(&timeout));
}

/// Returns a name that no other interface has: the sockets of all namespaces lie in one directory.
pub(crate) fn ifname() -> String {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("w{:x}x{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}
