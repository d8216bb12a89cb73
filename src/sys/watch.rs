//! Notice of changes in a directory (inotify(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

/// Tells that files of a directory were removed or renamed, without telling which.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches `directory`.
    ///
    /// # Errors
    /// If it does not exist, or no watch is left (`fs.inotify.max_user_watches`).
    pub fn new(directory: &Path) -> io::Result<Self> {
        let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let removals =
            WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        add_watch(&fd, directory, removals)?;
        Ok(Self(fd))
    }

    /// Forgets what has happened so far.
    pub fn clear(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok() {}
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
