//! `/var/run/wireguard/IFNAME.sock`: opened, inherited, handed over, removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

/// Where `wg` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Ends the name of a socket that does not listen yet.
const UNFINISHED: &str = "new";

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
        // `wg` removes a name where nobody listens, and between bind and listen nobody does: the socket gets its name when it listens.
        let unfinished = path.with_added_extension(UNFINISHED);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
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
    /// # Errors
    /// If the descriptor is not a listening unix socket.
    pub fn from_fd(fd: OwnedFd, name: &str) -> io::Result<Self> {
        if sockopt::socket_domain(&fd)? != AddressFamily::UNIX || !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening unix socket"));
        }
        let listener = UnixListener::from(fd);
        let path = match listener.local_addr()?.as_pathname() {
            // The kernel remembers the name of before the socket listened.
            Some(path) if path.extension().is_some_and(|extension| extension == UNFINISHED) => {
                path.with_extension("")
            }
            Some(path) => path.to_owned(),
            None => Path::new(DIRECTORY).join(format!("{name}.sock")),
        };
        Self::new(listener, path)
    }

    fn new(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let identity = identity(&path);
        Ok(Self { listener, path, identity })
    }

    /// Gives the descriptor away and leaves the name in place.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        self.identity = None;
        Ok(self.listener.try_clone()?.into())
    }

    /// Returns the listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Returns the name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether the name still leads to this socket.
    pub fn is_in_place(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
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

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino()))
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
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    #[test]
    fn whoever_sees_the_name_is_answered_and_a_socket_passed_on_keeps_it() {
        let directory = std::env::temp_dir().join(format!("adit-socket-{}", std::process::id()));
        let path = directory.join("wg0.sock");
        let done = AtomicBool::new(false);
        let refused = std::thread::scope(|scope| {
            let knocker = scope.spawn(|| {
                let addr = SocketAddrUnix::new(&path).unwrap();
                let is_refused = || {
                    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
                    connect(&probe, &addr) == Err(Errno::CONNREFUSED)
                };
                while !done.load(Relaxed) && !is_refused() {
                    std::hint::spin_loop();
                }
                !done.load(Relaxed)
            });
            let open = |_| {
                let fd = Socket::open_in(&directory, "wg0").unwrap().into_fd().unwrap();
                fs::remove_file(&path).unwrap();
                fd
            };
            // They stay open to the end: one that closes may refuse whoever saw its name before.
            let sockets: Vec<OwnedFd> = (0..500).map(open).collect();
            done.store(true, Relaxed);
            let refused = knocker.join().unwrap();
            drop(sockets);
            refused
        });
        assert!(!refused, "for a moment nobody listened at the name");
        let fd = Socket::open_in(&directory, "wg0").unwrap().into_fd().unwrap();
        let passed_on = Socket::from_fd(fd, "wg0").unwrap();
        assert_eq!(passed_on.path(), path);
        assert!(passed_on.is_in_place());
        drop(passed_on);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir(&directory).unwrap();
    }
}
