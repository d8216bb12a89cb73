//! What a process asks the kernel for once.

use std::fs;
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

/// Lets go of the pages of program code that only the start, or a configuration, needed: what runs again is mapped anew from the page
/// cache. Of what a data plane without traffic keeps resident, such code would be half.
pub fn forget_code() {
    // Without it nothing but memory is lost.
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(code) {
        // SAFETY: what is mapped from a file, privately, to be read and executed was never written: the file still says what it was.
        let _ = unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED)
        };
    }
}

/// The address and the length of a mapping of a file's code, from its line in `maps` (proc_pid_maps(5)).
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).ok());
    is_code.then_some((start?, end?.checked_sub(start?)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go_of() {
        let program =
            "555bf5a4c000-555bf62ae000 r-xp 00241000 fe:00 5311041                    /usr/bin/adit";
        assert_eq!(code(program), Some((0x555b_f5a4_c000, 0x86_2000)));
        for other in [
            "555bf62ae000-555bf6315000 r--p 00aa2000 fe:00 5311041                    /usr/bin/adit",
            "555bf62ae000-555bf6315000 rwxp 00aa2000 fe:00 5311041                    /usr/bin/adit",
            "7ffd5a9f2000-7ffd5a9f4000 r-xp 00000000 00:00 0                          [vdso]",
            "7f0b6b9b5000-7f0b6bb0b000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn code_goes_on_running_after_it_was_let_go_of() {
        forget_code();
        assert!(
            fs::read_to_string("/proc/self/maps")
                .is_ok_and(|maps| maps.lines().any(|line| code(line).is_some()))
        );
    }
}
