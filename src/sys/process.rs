//! What a process asks the kernel for once.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Keeps keys out of core dumps and away from other processes of the same user.
pub fn forbid_dumps() {
    // Refused only where the setting is not known.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Allows as many open files as the system lets us.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Makes [`trim_heap`] give back whatever is free: to be called before the first thread. glibc gives every thread a heap of its own, of
/// which it returns nothing from the end. Where packets pass nothing is allocated, so that the threads do not meet at the one heap.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is free inside the process back to the system.
pub fn trim_heap() {
    // Elsewhere the allocator gives it back of its own accord.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes over a descriptor that the parent left open, and keeps our own children from inheriting it.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is only asked about here; a number that is no descriptor is an error of the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: the caller names descriptors that the parent gave away to us; nothing in this process has opened them.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
