//! What asks a loop to end: signals as a descriptor (signalfd(2)), or another thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::wake::Wake;

/// What asks a loop to end. The descriptor is readable when it has.
pub trait Ending: AsFd {
    /// Tells whether it has asked, and forgets it.
    fn take(&self) -> bool;
}

/// The requests to end: `SIGTERM` and `SIGINT`.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks both signals for the calling thread and for those it starts from now on, and returns the descriptor that tells of them.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the call initialises the set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: it was initialised just now.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: the set is initialised and the signal exists.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: both sets are valid or null.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the set is initialised.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nobody else owns the descriptor, which was just made.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Tells whether a signal has come, and forgets it.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; size_of::<libc::signalfd_siginfo>()]).is_ok()
    }
}

impl Ending for Signals {
    fn take(&self) -> bool {
        self.take()
    }
}

/// For a loop that shares its process with others.
impl Ending for Wake {
    fn take(&self) -> bool {
        self.take()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
