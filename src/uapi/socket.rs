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
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // wireguard-go, uapi_linux.go:UAPIOpen. The name must not be open to others even for a moment, so a chmod would come too late.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
        let listener = UnixListener::bind(&path);
        rustix::process::umask(umask);
        Self::new(listener?, path)
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
