//! Waiting for descriptors, poll(2) and epoll(7).

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, Timespec};

use super::fault::{self, Call};

/// Waits until one of `fds` is ready, or `timeout` is over.
///
/// # Errors
/// `EINTR`; `ENOMEM`, which is possible with more descriptors than the kernel keeps on its stack (`fs/select.c`, `do_sys_poll`); `EINVAL`
/// with more than the process may have.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<()> {
    fault::check(Call::Poll)?;
    rustix::event::poll(fds, timeout)?;
    Ok(())
}

/// Waits until there are events of `poll`, or `timeout` is over.
///
/// # Errors
/// `EINTR`, and what a kernel of another make or a filter of system calls may answer. There are no events then.
pub fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    events.clear();
    fault::check(Call::Epoll)?;
    poll.poll(events, timeout)
}

/// Has `poll` wait for what takes the place of another descriptor.
///
/// # Errors
/// `ENOMEM`; `ENOSPC` beyond `fs.epoll.max_user_watches`.
pub fn replace(poll: &Poll, fd: RawFd, token: Token) -> io::Result<()> {
    fault::check(Call::Register)?;
    poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)
}

/// The waits of a thread that does not end because the system refuses one.
#[derive(Debug, Default)]
pub struct Waits {
    are_failing: bool,
}

impl Waits {
    /// Tells whether a wait has told what is ready; if not, anything may be. `pause` has passed then, and of a series of refusals the first
    /// is logged.
    pub fn have_told(&mut self, waited: io::Result<()>, pause: Duration) -> bool {
        match waited {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                if !std::mem::replace(&mut self.are_failing, true) {
                    let current = std::thread::current();
                    tracing::warn!(thread = current.name(), %error, "cannot wait; looks again and again");
                }
                std::thread::park_timeout(pause);
                false
            }
            Ok(()) | Err(_) => {
                self.are_failing = false;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn a_pause_stands_in_for_a_wait_that_is_refused_and_for_no_other() {
        let mut waits = Waits::default();
        let pause = Duration::from_millis(20);
        for errno in [libc::ENOMEM, libc::EINVAL] {
            let start = clock::monotonic();
            assert!(!waits.have_told(Err(io::Error::from_raw_os_error(errno)), pause));
            assert!(clock::monotonic() - start >= pause);
        }
        let start = clock::monotonic();
        let interrupted = io::Error::from_raw_os_error(libc::EINTR);
        assert!(waits.have_told(Err(interrupted), Duration::from_secs(20)));
        assert!(waits.have_told(Ok(()), Duration::from_secs(20)));
        assert!(clock::monotonic() - start < Duration::from_secs(10));
    }
}
