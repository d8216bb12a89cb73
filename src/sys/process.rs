//! What a process asks the kernel for once.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

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

/// Lets go of the pages of program code and constants that only the start, or a configuration, needed: what is used again is mapped anew
/// from the page cache. Of what a data plane without traffic keeps resident, such pages would be half.
pub fn forget_code() {
    static UNWRITTEN: OnceLock<Vec<String>> = OnceLock::new();
    // Without them nothing but memory is lost.
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    // Asked for once: it takes the kernel long, and nothing of that is ever written.
    let known = UNWRITTEN
        .get_or_init(|| unwritten(&read("/proc/self/smaps")).into_iter().map(str::to_owned).collect());
    let maps = read("/proc/self/maps");
    let is_known = |line: &&str| known.iter().any(|known| known == line);
    for (start, length) in maps.lines().filter(is_known).filter_map(place) {
        // SAFETY: what is mapped from a file, privately and not to be written, and has no page of its own, was never written: the file still
        // says what it was.
        let _ = unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED)
        };
    }
}

/// Returns the lines of mappings of files that nobody writes to and nobody has written to, from `smaps` (proc_pid_smaps(5)), as they
/// stand in `maps`. What the loader has relocated, and is read-only since, has pages of its own there.
fn unwritten(smaps: &str) -> Vec<&str> {
    let mut mapping = None;
    let mut unwritten = Vec::new();
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match fields.next() {
            Some("Anonymous:") if fields.next() == Some("0") => unwritten.extend(mapping.take()),
            // What is said of a mapping; its own line begins with its addresses.
            Some(word) if word.ends_with(':') => {}
            _ => {
                let is_read_only = matches!(fields.next(), Some("r-xp" | "r--p"));
                let is_of_a_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
                mapping = Some(line).filter(|_| is_read_only && is_of_a_file);
            }
        }
    }
    unwritten
}

/// The address and the length of a mapping, from its line.
fn place(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).ok());
    Some((start?, end?.checked_sub(start?)?))
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
    fn only_what_was_never_written_is_let_go_of() {
        let smaps = |line: &str, anonymous: u32| {
            format!("{line}\nSize: 4 kB\nRss: 4 kB\nAnonymous:      {anonymous} kB\nVmFlags: rd mr mw me\n")
        };
        let code = "555bf5a4c000-555bf62ae000 r-xp 00241000 fe:00 5311041                    /usr/bin/adit";
        let constants =
            "555bf5800000-555bf5a4c000 r--p 00000000 fe:00 5311041                    /usr/bin/adit";
        let both = smaps(code, 0) + &smaps(constants, 0);
        assert_eq!(unwritten(&both), [code, constants]);
        assert_eq!(place(code), Some((0x555b_f5a4_c000, 0x86_2000)));
        for (other, anonymous) in [
            // Relocated by the loader.
            ("555bf62ae000-555bf6315000 r--p 00aa2000 fe:00 5311041                    /usr/bin/adit", 412),
            ("555bf62ae000-555bf6315000 rw-p 00aa2000 fe:00 5311041                    /usr/bin/adit", 0),
            ("555bf62ae000-555bf6315000 rwxp 00aa2000 fe:00 5311041                    /usr/bin/adit", 0),
            ("555bf62ae000-555bf6315000 r--s 00aa2000 fe:00 5311041                    /usr/bin/adit", 0),
            ("7ffd5a9f2000-7ffd5a9f4000 r-xp 00000000 00:00 0                          [vdso]", 0),
            ("7f0b6b9b5000-7f0b6bb0b000 r-xp 00000000 00:00 0", 0),
            ("", 0),
        ] {
            assert_eq!(unwritten(&smaps(other, anonymous)), [""; 0], "{other}");
        }
    }

    #[test]
    fn code_goes_on_running_after_it_was_let_go_of() {
        forget_code();
        assert!(fs::read_to_string("/proc/self/smaps").is_ok_and(|smaps| unwritten(&smaps).len() > 1));
    }
}
