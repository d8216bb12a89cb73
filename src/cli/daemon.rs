//! Going to the background the way wireguard-go does: open everything, hand it to a copy of ourselves, leave when the copy works.

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

use super::args::{Descriptor, InterfaceArgs, Level};
use super::run;
use crate::sys::process::inherited;

/// Names the descriptor by which the child says that it is ready.
const READY_FD: &str = "ADIT_READY_FD";

/// Starts the interface in the background. When this returns, `wg` can be called.
///
/// # Errors
/// Names what cannot be set up, and why.
pub(super) fn start(args: &InterfaceArgs) -> Result<(), String> {
    let Some((tun, socket)) = run::open(args, None)? else { return Ok(()) };
    let name = tun.name().to_owned();
    let fail = |error: io::Error| format!("{name}: cannot go to the background: {error}");
    let (ready, child_ready) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| fail(errno.into()))?;
    let mut queues = tun.into_queues();
    // The child attaches the other queues itself.
    queues.truncate(1);
    let tun_fd = queues.first().map(AsFd::as_fd).ok_or("the device has no queue")?;
    for fd in [tun_fd, socket.as_fd(), child_ready.as_fd()] {
        fcntl_setfd(fd, FdFlags::empty()).map_err(|errno| fail(errno.into()))?;
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .args(env::args_os().skip(1))
        .env("WG_TUN_FD", number(tun_fd))
        .env("WG_UAPI_FD", number(socket.as_fd()))
        .env("WG_PROCESS_FOREGROUND", "1")
        .env(READY_FD, number(child_ready.as_fd()))
        .stdin(Stdio::null());
    if !keeps_terminal(args) {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(fail)?;
    drop((child_ready, queues));
    let mut byte = [0];
    if File::from(ready).read(&mut byte).is_ok_and(|read| read == 1) {
        socket.leave_name();
        return Ok(());
    }
    let mut reason = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // Without a reason there is still the status.
        let _ = stderr.read_to_string(&mut reason);
    }
    let status = child.wait().map_err(fail)?;
    let reason = reason.trim().trim_start_matches("adit: ");
    Err(if reason.is_empty() {
        format!("{name}: the background process ended: {status}")
    } else {
        reason.to_owned()
    })
}

/// Lets what a parent hands over go before what the command line says, which was the parent's as well.
pub(super) fn obey_parent(args: &mut InterfaceArgs) {
    if env::var_os(READY_FD).is_none() {
        return;
    }
    let handed = |name| env::var(name).ok().and_then(|fd| fd.parse().ok()).map(|fd| Descriptor(Some(fd)));
    args.foreground = true;
    args.tun_fd = handed("WG_TUN_FD");
    args.uapi_fd = handed("WG_UAPI_FD");
}

fn number(fd: BorrowedFd<'_>) -> String {
    fd.as_raw_fd().to_string()
}

/// wireguard-go, main.go: only who asks for a log has the terminal written to; and not if the log goes to a file.
fn keeps_terminal(args: &InterfaceArgs) -> bool {
    let is_asked_for = args.verbosity.is_some() || args.log_level.is_some_and(|level| level.0.is_some());
    is_asked_for && args.level() != Level::Silent && args.log.is_none()
}

/// Tells the parent, if there is one, that device and socket are usable, and leaves its session.
pub(super) fn tell_parent(args: &InterfaceArgs) {
    let Some(ready) = ready_fd() else { return };
    // Not to be ended with the terminal's session; it fails only for who leads one already.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    if !keeps_terminal(args)
        && let Ok(null) = File::options().write(true).open("/dev/null")
    {
        // The parent, who would tell of an error, is about to leave.
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = rustix::io::write(&ready, &[1]);
}

fn ready_fd() -> Option<OwnedFd> {
    inherited(env::var(READY_FD).ok()?.parse().ok()?).ok()
}
