//! One thread that serves all connections of the socket.
//!
//! It polls: requests are rare and short, and a single thread makes every bound plain. A connection that stalls costs its buffers and
//! nothing else, since no lock is held and nothing is applied while a request or a reply is under way. When there are too many
//! connections, or all of them together hold too much, the one that has been idle the longest is closed; so there is always room for
//! the next `wg`. Nobody's time is measured.

#![expect(clippy::wildcard_enum_match_arm, reason = "kinds of I/O errors are an open list")]

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with, sockopt};
use zeroize::{Zeroize, Zeroizing};

use super::request::{Reader, Request};
use super::{errno_of, get, stats};
use crate::config::Configure;
use crate::sys::poll::{Waits, poll};
use crate::sys::process;
use crate::sys::wake::Wake;

/// The most connections at a time.
pub const CONNECTIONS_MAX: usize = 32;

/// The most bytes of text, unfinished requests and unsent replies, that all connections hold together while there is more than one.
pub const HELD_MAX: usize = 128 << 20;

/// The wait for memory or descriptors, where none is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads or writes of one connection before the others have their turn.
const STEPS: usize = 64;

/// The server of a socket. Dropping it ends all connections.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve `listener`.
    ///
    /// # Errors
    /// If the thread or its descriptors cannot be made.
    pub fn start(listener: &UnixListener, configure: Arc<dyn Configure>) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Wake::new()?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("uapi".to_owned())
            .spawn(move || serve(&listener, &stopped, configure.as_ref()))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Finds the index of a network interface in the namespace of the process.
pub fn scope_of(name: &str) -> Option<u32> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    netdevice::name_to_index(socket, name).ok()
}

fn serve(listener: &UnixListener, stop: &Wake, configure: &dyn Configure) {
    // Ordered by activity, the longest idle first.
    let mut connections: Vec<Connection> = Vec::new();
    // No descriptor is left: wait a little before the listener is asked again.
    let mut exhausted = false;
    let mut waits = Waits::default();
    loop {
        // Without being told, all are asked.
        let mut ready = Ready { stop: true, listener: true, connections: vec![true; connections.len()] };
        let waited = wait(listener, stop, &connections, exhausted).map(|told| ready = told);
        waits.have_told(waited, PAUSE);
        if ready.stop && stop.take() {
            return;
        }
        let (mut idle, mut active) = (Vec::new(), Vec::new());
        for (connection, is_ready) in connections.drain(..).zip(ready.connections) {
            if is_ready { active.push(connection) } else { idle.push(connection) }
        }
        active.retain_mut(|connection| connection.turn(configure).is_ok());
        connections.append(&mut idle);
        connections.append(&mut active);
        exhausted = false;
        if ready.listener {
            exhausted = !accept(listener, &mut connections);
        }
        let mut held: usize = connections.iter().map(Connection::held).sum();
        while connections.len() > CONNECTIONS_MAX || (held > HELD_MAX && connections.len() > 1) {
            held -= connections.remove(0).held();
            tracing::debug!("closed the longest idle configuration connection to make room");
        }
    }
}

struct Ready {
    stop: bool,
    listener: bool,
    connections: Vec<bool>,
}

fn wait(
    listener: &UnixListener,
    stop: &Wake,
    connections: &[Connection],
    exhausted: bool,
) -> io::Result<Ready> {
    let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
    fds.push(PollFd::new(listener, if exhausted { PollFlags::empty() } else { PollFlags::IN }));
    fds.extend(connections.iter().map(Connection::interest));
    let timeout = if connections.iter().any(Connection::has_input) {
        Some(Timespec { tv_sec: 0, tv_nsec: 0 })
    } else {
        exhausted.then_some(Timespec { tv_sec: 0, tv_nsec: i64::from(PAUSE.subsec_nanos()) })
    };
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let connections =
        fds[2..].iter().zip(connections).map(|(fd, connection)| is_ready(fd) || connection.has_input());
    Ok(Ready {
        stop: is_ready(&fds[0]),
        // After a pause the listener is asked without having been polled.
        listener: exhausted || is_ready(&fds[1]),
        connections: connections.collect(),
    })
}

/// Accepts who is waiting. Returns false if no descriptor is left for them.
fn accept(listener: &UnixListener, connections: &mut Vec<Connection>) -> bool {
    for _ in 0..CONNECTIONS_MAX {
        match listener.accept() {
            Ok((stream, _)) => connections.extend(Connection::new(stream).ok()),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                io::ErrorKind::WouldBlock => return true,
                _ => {
                    tracing::info!(%error, "cannot accept a configuration connection");
                    if connections.is_empty() {
                        return false;
                    }
                    connections.remove(0);
                }
            },
        }
    }
    true
}

struct Connection {
    stream: UnixStream,
    reader: Reader,
    input: Zeroizing<Vec<u8>>,
    /// What of `input` has been read from the stream, but not by `reader`.
    unread: std::ops::Range<usize>,
    reply: Zeroizing<String>,
    sent: usize,
    /// Something was configured, by code that may not be needed again for a long time.
    has_set: bool,
    /// A large configuration has passed: what it took shall be given back.
    was_large: bool,
}

/// Edits, or bytes of a reply, that make a configuration a large one.
const LARGE: (usize, usize) = (1000, 1 << 20);

impl Drop for Connection {
    fn drop(&mut self) {
        if self.was_large {
            process::trim_heap();
        }
        if self.has_set {
            process::forget_code();
        }
    }
}

/// The connection has ended.
struct Ended;

impl Connection {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        if let Ok(peer) = sockopt::socket_peercred(&stream) {
            let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid.as_raw());
            tracing::debug!(pid, uid, "configuration client connected");
        }
        Ok(Self {
            stream,
            reader: Reader::new(scope_of),
            input: Zeroizing::new(vec![0; 64 << 10]),
            unread: 0..0,
            reply: Zeroizing::default(),
            sent: 0,
            has_set: false,
            was_large: false,
        })
    }

    /// Reads, answers and writes as far as possible without waiting.
    fn turn(&mut self, configure: &dyn Configure) -> Result<(), Ended> {
        for _ in 0..STEPS {
            let step = if !self.reply.is_empty() {
                self.send()
            } else if self.has_input() {
                self.read_request(configure)
            } else {
                self.receive()
            };
            match step {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Ended) => return Err(Ended),
            }
        }
        Ok(())
    }

    /// Returns false if the client has to read first.
    fn send(&mut self) -> Result<bool, Ended> {
        match self.stream.write(&self.reply.as_bytes()[self.sent..]) {
            Ok(sent) => {
                self.sent += sent;
                if self.sent == self.reply.len() {
                    self.reply = Zeroizing::default();
                    self.sent = 0;
                }
                Ok(true)
            }
            Err(error) => ended_unless_waiting(&error),
        }
    }

    /// Returns false if the client has to write first.
    fn receive(&mut self) -> Result<bool, Ended> {
        match self.stream.read(&mut self.input) {
            // What was left unfinished is forgotten.
            Ok(0) => Err(Ended),
            Ok(length) => {
                self.unread = 0..length;
                Ok(true)
            }
            Err(error) => ended_unless_waiting(&error),
        }
    }

    fn read_request(&mut self, configure: &dyn Configure) -> Result<bool, Ended> {
        let bytes = &mut self.input[self.unread.clone()];
        let (length, request) = self.reader.read(bytes);
        bytes[..length].zeroize();
        self.unread.start += length;
        if let Some(request) = request {
            if let Request::Set(edits) = &request {
                self.has_set = true;
                self.was_large |= edits.len() > LARGE.0;
            }
            self.reply = answer(request, configure).ok_or(Ended)?;
            self.was_large |= self.reply.len() > LARGE.1;
        }
        Ok(true)
    }

    fn has_input(&self) -> bool {
        self.reply.is_empty() && !self.unread.is_empty()
    }

    fn held(&self) -> usize {
        self.reader.size() + self.reply.len()
    }

    fn interest(&self) -> PollFd<'_> {
        let flags = if self.reply.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }
}

fn ended_unless_waiting(error: &io::Error) -> Result<bool, Ended> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(true),
        io::ErrorKind::WouldBlock => Ok(false),
        // A client that has gone is nothing to report.
        _ => Err(Ended),
    }
}

/// Returns the reply, or `None` to a client that speaks something else, as wireguard-go does (uapi.go:IpcHandle).
pub(super) fn answer(request: Request, configure: &dyn Configure) -> Option<Zeroizing<String>> {
    // `wg` takes the errno of a set with its sign turned, and that of a get as it is (wireguard-tools, ipc-uapi.h).
    let errno = match request {
        Request::Get => match configure.snapshot() {
            Ok(snapshot) => {
                let mut text = get::print(&snapshot);
                text.push_str("errno=0\n\n");
                return Some(text);
            }
            Err(refused) => {
                tracing::info!(reason = %refused, "cannot tell the configuration");
                errno_of(&refused)
            }
        },
        Request::Stats => match configure.statistics() {
            Ok(statistics) => {
                let mut text = stats::print(&statistics);
                text.push_str("errno=0\n\n");
                return Some(Zeroizing::new(text));
            }
            Err(refused) => {
                tracing::info!(reason = %refused, "cannot tell the statistics");
                errno_of(&refused)
            }
        },
        Request::Set(edits) => {
            let count = edits.len();
            match configure.apply(edits) {
                Ok(()) => {
                    tracing::debug!(edits = count, "configuration applied");
                    0
                }
                Err(refused) => {
                    tracing::info!(reason = %refused, "configuration refused, nothing applied");
                    -errno_of(&refused)
                }
            }
        }
        Request::MalformedGet(malformed) => {
            tracing::info!(reason = %malformed, "malformed request for what is");
            malformed.errno
        }
        Request::MalformedSet(malformed) => {
            tracing::info!(reason = %malformed, "malformed set request, nothing applied");
            -malformed.errno
        }
        Request::Unknown => {
            tracing::info!("a client of the configuration socket speaks another protocol");
            return None;
        }
    };
    Some(Zeroizing::new(format!("errno={errno}\n\n")))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use super::*;
    use crate::config::{Edit, Refused, Snapshot, Statistics};
    use crate::sys::{clock, with_faults};

    /// An interface that is going away.
    struct Going;

    impl Configure for Going {
        fn apply(&self, _: Vec<Edit>) -> Result<(), Refused> {
            Err(Refused::Gone)
        }

        fn snapshot(&self) -> Result<Snapshot, Refused> {
            Err(Refused::Gone)
        }

        fn statistics(&self) -> Result<Statistics, Refused> {
            Err(Refused::Gone)
        }
    }

    fn listen(name: &str) -> (UnixListener, SocketAddr) {
        let name = format!("adit-serve-{}-{name}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn clients_are_served_while_poll_fails_at_a_bounded_rate() {
        let (listener, address) = listen("again");
        let stop = Wake::new().unwrap();
        // Out of memory, and more descriptors than the process may have.
        for errno in [12, 22] {
            let start = clock::monotonic();
            // In a spin, that many have failed before a client is there.
            let faults = format!("Poll={errno}*1000");
            std::thread::scope(|scope| {
                let server = scope.spawn(|| with_faults(&faults, || serve(&listener, &stop, &Going)));
                let mut stream = UnixStream::connect_addr(&address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let mut replies = Vec::new();
                for _ in 0..3 {
                    stream.write_all(b"get=1\n\n").unwrap();
                    let mut reply = [0; 16];
                    replies.extend(stream.read(&mut reply).map(|len| reply[..len].to_vec()));
                }
                stop.wake();
                assert_eq!(server.join().unwrap(), ((), true), "it spins");
                assert_eq!(replies, [b"errno=19\n\n"; 3]);
            });
            assert!(clock::monotonic() - start >= Duration::from_millis(200));
        }
    }

    #[test]
    fn a_server_ends_also_while_poll_fails() {
        let (listener, _) = listen("ends");
        let stop = Wake::new().unwrap();
        stop.wake();
        with_faults("Poll=12", || serve(&listener, &stop, &Going));
    }
}
