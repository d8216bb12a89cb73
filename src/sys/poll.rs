//! Waiting for descriptors, poll(2).

use std::io;

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
