//! Notice of changes in a directory (inotify(7)).
//!
//! A user has few instances of inotify, and on a node of a cluster others like to use them up. Where none is left, nothing is told of, and
//! the directory is to be looked at every second instead.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::fault::{self, Call};

/// How often a directory is to be looked at that cannot be watched.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Tells that files of a directory were removed or renamed, without telling which.
#[derive(Debug)]
pub struct Watch(Notice);

/// What becomes readable when something may have changed.
#[derive(Debug)]
enum Notice {
    /// An instance of inotify with one watch.
    Exact(OwnedFd),
    /// A clock.
    Clock(OwnedFd),
}

impl Watch {
    /// Watches `directory`.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let removals =
            WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        watch(directory, removals).map(Self)
    }

    /// Forgets what has happened so far.
    pub fn clear(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(self, &mut events).is_ok() {}
    }
}

fn watch(directory: &Path, events: WatchFlags) -> io::Result<Notice> {
    let limit = match exact(directory, events) {
        Ok(fd) => {
            said().remove(directory);
            return Ok(Notice::Exact(fd));
        }
        Err(Errno::MFILE) => "fs.inotify.max_user_instances",
        Err(Errno::NOSPC) => "fs.inotify.max_user_watches",
        Err(errno) => return Err(errno.into()),
    };
    // Without an instance nobody has looked for it.
    std::fs::read_dir(directory)?;
    if said().insert(directory.to_owned()) {
        let directory = directory.display();
        tracing::warn!(%directory, limit, "cannot be watched, is looked at every second: the limit is reached");
    }
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let every = Itimerspec { it_interval: LOOK, it_value: LOOK };
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &every)?;
    Ok(Notice::Clock(fd))
}

/// Returns the directories of which that was said: each is watched anew with every look.
fn said() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    SAID.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exact(directory: &Path, events: WatchFlags) -> Result<OwnedFd, Errno> {
    let checked = fault::check(Call::Inotify);
    checked.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
    let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    add_watch(&fd, directory, events)?;
    Ok(fd)
}

impl AsFd for Notice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::Exact(fd) | Self::Clock(fd)) = self;
        fd.as_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells which names of a directory lead to something else than before.
#[derive(Debug)]
pub struct Changes(Notice);

/// A change in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Of what this name leads to.
    Name(OsString),
    /// Of anything: the system has lost count or does not count, or the directory itself is gone.
    Anything,
}

impl Changes {
    /// Watches for files that were written to their end, and for names that came by a rename or went. A file that is being written is not
    /// told of.
    ///
    /// # Errors
    /// If the directory does not exist.
    pub fn of_files(directory: &Path) -> io::Result<Self> {
        Self::new(directory, WatchFlags::CLOSE_WRITE)
    }

    /// Watches for names that came or went: those of sockets.
    ///
    /// # Errors
    /// As [`Self::of_files`].
    pub fn of_names(directory: &Path) -> io::Result<Self> {
        Self::new(directory, WatchFlags::CREATE)
    }

    fn new(directory: &Path, also: WatchFlags) -> io::Result<Self> {
        let names = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        watch(directory, names | itself | also).map(Self)
    }

    /// Returns what has happened since the last call.
    pub fn take(&self) -> Vec<Change> {
        let fd = match &self.0 {
            Notice::Exact(fd) => fd,
            Notice::Clock(fd) => {
                let is_due = rustix::io::read(fd, &mut [0; 8]).is_ok();
                return is_due.then_some(Change::Anything).into_iter().collect();
            }
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(fd, &mut buffer);
        let mut changes = Vec::new();
        while let Ok(event) = reader.next() {
            let general = ReadFlags::QUEUE_OVERFLOW
                | ReadFlags::DELETE_SELF
                | ReadFlags::MOVE_SELF
                | ReadFlags::IGNORED
                | ReadFlags::UNMOUNT;
            changes.push(match event.file_name() {
                Some(name) if !event.events().intersects(general) => {
                    Change::Name(OsStr::from_bytes(name.to_bytes()).to_owned())
                }
                Some(_) | None => Change::Anything,
            });
        }
        changes
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::sys::with_faults;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-watch-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn name(name: &str) -> Change {
        Change::Name(name.into())
    }

    #[test]
    fn a_file_is_told_of_when_it_was_written_to_its_end() {
        let directory = Directory::new("files");
        let changes = Changes::of_files(&directory.0).unwrap();
        let mut file = File::create(directory.0.join("a")).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(changes.take(), []);
        drop(file);
        assert_eq!(changes.take(), [name("a")]);
        fs::rename(directory.0.join("a"), directory.0.join("b")).unwrap();
        assert_eq!(changes.take(), [name("a"), name("b")]);
        fs::remove_file(directory.0.join("b")).unwrap();
        assert_eq!(changes.take(), [name("b")]);
    }

    #[test]
    fn a_name_is_told_of_when_it_comes_and_goes_and_so_is_the_directory() {
        let directory = Directory::new("names");
        let changes = Changes::of_names(&directory.0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(directory.0.join("s")).unwrap());
        assert_eq!(changes.take(), [name("s")]);
        fs::remove_dir_all(&directory.0).unwrap();
        let changes = changes.take();
        assert_eq!((&changes[0], changes.last()), (&name("s"), Some(&Change::Anything)));
        assert!(Changes::of_names(&directory.0).is_err());
    }

    #[test]
    fn what_cannot_be_watched_is_to_be_looked_at_and_what_is_not_there_is_an_error() {
        let directory = Directory::new("blind");
        for errno in [libc::EMFILE, libc::ENOSPC] {
            let (notices, _) = with_faults(&format!("Inotify={errno}"), || {
                assert!(Watch::new(Path::new("/nowhere")).is_err());
                (Changes::of_names(&directory.0).unwrap(), Watch::new(&directory.0).unwrap())
            });
            let (changes, watch) = notices;
            assert_eq!(changes.take(), [], "not yet");
            for fd in [changes.as_fd(), watch.as_fd()] {
                assert_eq!(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None), Ok(1));
            }
            assert_eq!(changes.take(), [Change::Anything]);
            watch.clear();
        }
        let error = Watch::new(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let (result, _) = with_faults("Inotify=13", || Watch::new(&directory.0).map(drop));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
