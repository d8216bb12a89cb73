//! Network namespaces, each of which belongs to a thread (network_namespaces(7)).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::event::{Timespec, poll};
use rustix::fs::fstat;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Returns the namespace of the calling thread.
///
/// # Errors
/// If `/proc` is not there.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Tells whether `namespace` is that of the calling thread.
///
/// # Errors
/// As [`current`].
pub fn is_current(namespace: impl AsFd) -> io::Result<bool> {
    let [own, other] = [fstat(current()?)?, fstat(namespace)?];
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Makes a new namespace. It lasts as long as the descriptor, a thread or a socket in it.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn create() -> io::Result<OwnedFd> {
    let made = thread::spawn(|| {
        unshare(UnshareFlags::NEWNET)?;
        current()
    });
    made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Moves the calling thread into `namespace`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` here and there.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Runs `act` on a thread of its own in `namespace`.
///
/// # Errors
/// As [`enter`], those of `act`, and `EAGAIN` if there can be no more threads.
///
/// # Panics
/// If `act` panics.
pub fn run_in<T: Send>(
    namespace: impl AsFd + Sync,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let done = thread::Builder::new().spawn_scoped(scope, || {
            enter(&namespace)?;
            act()
        })?;
        done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the process root in a user namespace of its own, so that an ordinary user may make network namespaces.
///
/// # Errors
/// `EPERM` where the system forbids it; `EINVAL` once the process has a second thread.
pub fn become_root_of_user_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    unshare_alone(UnshareFlags::NEWUSER)?;
    // user_namespaces(7): the group can be mapped only once setgroups is denied.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

/// Like [`unshare`], by a process that has just joined its last other thread: the kernel takes a moment longer to forget it.
fn unshare_alone(flags: UnshareFlags) -> io::Result<()> {
    const ATTEMPTS: u32 = 100;
    const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 1..ATTEMPTS {
        match unshare(flags) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other,
        }
        let _ = poll(&mut [], Some(&PAUSE));
    }
    unshare(flags)
}

pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags leave the table of descriptors shared, which is what threads rely on.
    Ok(unsafe { unshare_unsafe(flags) }?)
}
