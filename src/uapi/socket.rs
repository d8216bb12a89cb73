//! `/var/run/wireguard/IFNAME.sock`: opened, inherited, handed over, removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, listen, socket_with, sockopt,
};

/// Where `wg` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// How the name of a socket ends that does not listen yet.
const UNFINISHED: &str = "starting";

/// Clients that may wait to be accepted; the system bounds it (`net.core.somaxconn`).
const BACKLOG: i32 = 128;

/// A listening socket with a name in the file system, which goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the name: another program's socket of the same name is left alone.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Opens the socket of the interface `name`.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if another process answers there.
    pub fn open(name: &str) -> io::Result<Self> {
        Self::open_in(Path::new(DIRECTORY), name)
    }

    /// Opens the socket of the interface `name` in `directory`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(directory: &Path, name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let path = directory.join(format!("{name}.sock"));
        // Two processes that find the same dead socket must not remove each other's new one.
        let lock = File::open(directory)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        if is_answered(&path)? {
            let text = format!("{} is already in use: another process answers there", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        remove(&path)?;
        // A `wg` that dials between bind and listen is refused, takes the socket for a dead one and removes it (wireguard-tools,
        // ipc-uapi-unix.h:userspace_interface_file): so it gets its name, which ends in `.sock`, only when it listens.
        let unfinished = path.with_extension(UNFINISHED);
        remove(&unfinished)?;
        // wireguard-go, uapi_linux.go:UAPIOpen. The name must not be open to others even for a moment, so a chmod would come too late.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
        let listener = UnixListener::bind(&unfinished);
        rustix::process::umask(umask);
        let listener = listener?;
        fs::rename(&unfinished, &path)?;
        Self::new(listener, path)
    }

    /// Takes over a listening socket that another process opened for the interface `name`.
    ///
    /// From now on its clients are told that it is this process that serves them (`SO_PEERCRED`).
    ///
    /// # Errors
    /// If the descriptor is not a listening unix socket.
    pub fn from_fd(fd: OwnedFd, name: &str) -> io::Result<Self> {
        if sockopt::socket_domain(&fd)? != AddressFamily::UNIX || !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening unix socket"));
        }
        // Linux, unix_listen: the credentials that clients see are those of who called this last.
        listen(&fd, BACKLOG)?;
        let listener = UnixListener::from(fd);
        let path = match listener.local_addr()?.as_pathname() {
            // One of ours: the kernel knows it by the name that it was bound to.
            Some(path) if path.extension().is_some_and(|end| end == UNFINISHED) => {
                path.with_extension("sock")
            }
            Some(path) => path.to_owned(),
            None => Path::new(DIRECTORY).join(format!("{name}.sock")),
        };
        Self::new(listener, path)
    }

    fn new(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let identity = identity(&path).unwrap_or_default();
        Ok(Self { listener, path, identity })
    }

    /// Closes it here and leaves the name to the process that it was handed to.
    pub fn leave_name(mut self) {
        self.identity = None;
    }

    /// Returns the listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Returns the name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether a name led to this socket when it was opened or taken over.
    pub fn has_name(&self) -> bool {
        self.identity.is_some()
    }

    /// Tells whether the name still leads to this socket.
    pub fn is_in_place(&self) -> bool {
        self.identity.is_some() && identity(&self.path).is_ok_and(|found| found == self.identity)
    }

    /// Tells whether a name has led to this socket, and leads elsewhere or nowhere.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn has_lost_name(&self) -> io::Result<bool> {
        match identity(&self.path) {
            Ok(found) => Ok(self.has_name() && found != self.identity),
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                Ok(self.has_name())
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_in_place() {
            // It may have been removed by someone else in between, which is just as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino())))
}

/// Dials `path`. A listener whose backlog is full counts as answering.
fn is_answered(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-socket-{}-{name}", std::process::id()));
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_has_its_name_alone_and_takes_it_along() {
        let directory = Directory::new("own");
        let socket = Socket::open_in(&directory.0, "wg0").unwrap();
        assert_eq!(directory.names(), ["wg0.sock"]);
        UnixStream::connect(socket.path()).unwrap();
        let again = Socket::open_in(&directory.0, "wg0").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(directory.names().is_empty());
    }

    #[test]
    fn a_dead_socket_and_an_unfinished_one_are_replaced() {
        let directory = Directory::new("dead");
        fs::create_dir(&directory.0).unwrap();
        drop(UnixListener::bind(directory.0.join("wg0.sock")).unwrap());
        drop(UnixListener::bind(directory.0.join("wg0.starting")).unwrap());
        let socket = Socket::open_in(&directory.0, "wg0").unwrap();
        assert_eq!(directory.names(), ["wg0.sock"]);
        assert!(socket.is_in_place());
    }

    #[test]
    fn a_socket_that_is_handed_over_keeps_its_name() {
        let directory = Directory::new("handed");
        let socket = Socket::open_in(&directory.0, "wg0").unwrap();
        let taken = Socket::from_fd(socket.as_fd().try_clone_to_owned().unwrap(), "wg0").unwrap();
        socket.leave_name();
        assert_eq!(taken.path(), directory.0.join("wg0.sock"));
        assert!(taken.has_name() && taken.is_in_place());
        fs::rename(taken.path(), directory.0.join("other")).unwrap();
        assert!(!taken.is_in_place());
        drop(taken);
        assert_eq!(directory.names(), ["other"]);
    }

    #[test]
    fn a_name_that_cannot_be_looked_up_is_not_lost() {
        let directory = Directory::new("lookup");
        let socket = Socket::open_in(&directory.0.join("sockets"), "wg0").unwrap();
        assert!(!socket.has_lost_name().unwrap());
        fs::rename(directory.0.join("sockets"), directory.0.join("aside")).unwrap();
        assert!(socket.has_lost_name().unwrap());
        // A link that leads to itself: an error that does not say that there is nothing.
        symlink("sockets", directory.0.join("sockets")).unwrap();
        assert!(socket.has_lost_name().is_err() && !socket.is_in_place());
        fs::remove_file(directory.0.join("sockets")).unwrap();
        fs::rename(directory.0.join("aside"), directory.0.join("sockets")).unwrap();
        assert!(!socket.has_lost_name().unwrap() && socket.is_in_place());
    }

    #[test]
    fn what_is_no_listening_unix_socket_is_not_taken_over() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(Socket::from_fd(stream.into(), "wg0").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let null = File::open("/dev/null").unwrap();
        assert!(Socket::from_fd(null.into(), "wg0").is_err());
    }
}
