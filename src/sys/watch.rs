//! Notice of changes in a directory (inotify(7)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// Tells that files of a directory were removed or renamed, without telling which.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches `directory`.
    ///
    /// # Errors
    /// If it does not exist, or no instance or watch is left (`fs.inotify.max_user_instances`, `max_user_watches`).
    pub fn new(directory: &Path) -> io::Result<Self> {
        let removals =
            WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        watch(directory, removals).map(Self)
    }

    /// Forgets what has happened so far.
    pub fn clear(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok() {}
    }
}

fn watch(directory: &Path, events: WatchFlags) -> io::Result<OwnedFd> {
    let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(in_words)?;
    add_watch(&fd, directory, events).map_err(in_words)?;
    Ok(fd)
}

/// What the system says when there are no more of these, which are counted by user, sends everybody looking at descriptors and disks.
fn in_words(errno: Errno) -> io::Error {
    let limit = match errno {
        Errno::MFILE => "fs.inotify.max_user_instances",
        Errno::NOSPC => "fs.inotify.max_user_watches",
        _ => return errno.into(),
    };
    io::Error::new(io::Error::from(errno).kind(), format!("{errno}: raise {limit}"))
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

/// Tells which names of a directory lead to something else than before.
#[derive(Debug)]
pub struct Changes(OwnedFd);

/// A change in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Of what this name leads to.
    Name(OsString),
    /// Of anything: the system has lost count, or the directory itself is gone.
    Anything,
}

impl Changes {
    /// Watches for files that were written to their end, and for names that came by a rename or went. A file that is being written is not
    /// told of.
    ///
    /// # Errors
    /// If the directory does not exist, or no instance or watch is left (`fs.inotify.max_user_instances`, `max_user_watches`).
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
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.0, &mut buffer);
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
    use std::path::PathBuf;

    use super::*;

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
    fn a_limit_of_the_system_is_named_and_other_errors_are_as_they_are() {
        assert!(in_words(Errno::MFILE).to_string().ends_with(": raise fs.inotify.max_user_instances"));
        assert!(in_words(Errno::NOSPC).to_string().ends_with(": raise fs.inotify.max_user_watches"));
        let error = Watch::new(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOENT.raw_os_error()));
    }
}
