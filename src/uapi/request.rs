//! The bytes of one connection into whole requests.
//!
//! A request is its operation, its lines and an empty line. It is handed on only when it is complete: what a client leaves unfinished
//! has no effect. Lines may end in CRLF, and empty lines before an operation are skipped. After a mistake the rest of the request is
//! read without being kept, so that the next request on the connection is found.

use std::mem;

use zeroize::{Zeroize, Zeroizing};

use super::set::{Malformed, Parser, ScopeOf};
use crate::config::Edit;

/// The longest line; the longest that means anything has fewer than 100 bytes.
pub const LINE_MAX: usize = 1024;

/// The longest request: 100,000 peers with every key and three prefixes each need 50 MB.
pub const REQUEST_MAX: usize = 64 << 20;

/// A complete request.
#[derive(Debug)]
pub enum Request {
    /// `get=1`.
    Get,
    /// `set=1` with what is to be done.
    Set(Vec<Edit>),
    /// `stats=1`.
    Stats,
    /// A `get=1` or `stats=1` with a mistake.
    MalformedGet(Malformed),
    /// A `set=1` with a mistake.
    MalformedSet(Malformed),
    /// Not this protocol: what follows on the connection cannot be understood.
    Unknown,
}

/// What has been read of a connection's current request.
#[derive(Debug)]
pub struct Reader {
    scope_of: ScopeOf,
    state: State,
    /// The beginning of a line whose end has not been read.
    line: Zeroizing<Vec<u8>>,
    /// The line is too long and its rest is skipped.
    skipping: bool,
    /// Bytes of the current request.
    size: usize,
}

#[derive(Debug)]
enum State {
    /// The operation is awaited.
    Operation,
    /// `get=1` was read, the empty line is awaited.
    Get,
    /// `stats=1` was read, likewise.
    Stats,
    Set(Parser),
    /// The rest of a request with a mistake is skipped.
    SkipGet(Malformed),
    SkipSet(Malformed),
}

impl Reader {
    /// Begins a connection.
    pub fn new(scope_of: ScopeOf) -> Self {
        // The capacity is never exceeded: a vector that grows would leave copies of keys behind.
        let line = Zeroizing::new(Vec::with_capacity(LINE_MAX));
        Self { scope_of, state: State::Operation, line, skipping: false, size: 0 }
    }

    /// Reads from `bytes` until a request is complete, and returns it with the number of bytes that were read; without a request, all were.
    pub fn read(&mut self, bytes: &[u8]) -> (usize, Option<Request>) {
        let mut read = 0;
        while let Some(length) = bytes[read..].iter().position(|&byte| byte == b'\n') {
            let line = &bytes[read..read + length];
            read += length + 1;
            self.size = self.size.saturating_add(length + 1);
            if let Some(request) = self.end_of_line(line) {
                self.size = 0;
                return (read, Some(request));
            }
        }
        self.size = self.size.saturating_add(bytes.len() - read);
        self.keep(&bytes[read..]);
        (bytes.len(), None)
    }

    /// Returns the size of the unfinished request, in bytes of text.
    pub fn size(&self) -> usize {
        self.size
    }

    fn end_of_line(&mut self, rest: &[u8]) -> Option<Request> {
        if self.line.is_empty() && !self.skipping && rest.len() <= LINE_MAX {
            return self.whole_line(rest);
        }
        self.keep(rest);
        if mem::take(&mut self.skipping) {
            return self.fail("the line is too long", libc::EINVAL);
        }
        let mut line = mem::replace(&mut self.line, Zeroizing::new(Vec::new()));
        let request = self.whole_line(&line);
        line.zeroize();
        self.line = line;
        request
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skipping || self.line.len() + bytes.len() > LINE_MAX {
            self.line.zeroize();
            self.skipping = true;
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn whole_line(&mut self, line: &[u8]) -> Option<Request> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.size > REQUEST_MAX && !line.is_empty() {
            return self.fail("the request is too large", libc::EMSGSIZE);
        }
        match (&mut self.state, line) {
            (State::Operation, b"") => {
                self.size = 0;
                None
            }
            (State::Operation, b"get=1") => {
                self.state = State::Get;
                None
            }
            (State::Operation, b"set=1") => {
                self.state = State::Set(Parser::new(self.scope_of));
                None
            }
            (State::Operation, b"stats=1") => {
                self.state = State::Stats;
                None
            }
            (State::Operation, _) => Some(Request::Unknown),
            (_, b"") => Some(self.end_of_request()),
            // wireguard-go, uapi.go:IpcHandle.
            (State::Get, _) => self.fail("a get has no lines", libc::EINVAL),
            (State::Stats, _) => self.fail("a stats has no lines", libc::EINVAL),
            (State::Set(parser), line) => {
                if let Err(malformed) = parser.line(line) {
                    self.state = State::SkipSet(malformed);
                }
                None
            }
            (State::SkipGet(_) | State::SkipSet(_), _) => None,
        }
    }

    fn end_of_request(&mut self) -> Request {
        match mem::replace(&mut self.state, State::Operation) {
            State::Operation => Request::Unknown,
            State::Get => Request::Get,
            State::Stats => Request::Stats,
            State::Set(parser) => Request::Set(parser.finish()),
            State::SkipGet(malformed) => Request::MalformedGet(malformed),
            State::SkipSet(malformed) => Request::MalformedSet(malformed),
        }
    }

    /// Skips the rest of the request; the first mistake is the one that is told.
    fn fail(&mut self, rule: &'static str, errno: i32) -> Option<Request> {
        let malformed = |line| Malformed { line, key: None, rule, errno };
        self.state = match mem::replace(&mut self.state, State::Operation) {
            State::Operation => return Some(Request::Unknown),
            State::Get | State::Stats => State::SkipGet(malformed(2)),
            State::Set(parser) => State::SkipSet(malformed(parser.next_line())),
            skip @ (State::SkipGet(_) | State::SkipSet(_)) => skip,
        };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::left_behind;

    #[test]
    fn keys_are_left_nowhere_where_a_request_was_read() {
        // A clamped private key, which is kept as it is.
        let (secret, hex) = ([0x48; 32], "48".repeat(32));
        let mut text = format!("set=1\nprivate_key={hex}\n");
        for peer in 0..20 {
            text += &format!("public_key={peer:064x}\npreshared_key={hex}\nallowed_ip=10.0.0.{peer}/32\n");
        }
        for (end, has_edits) in [("\n", true), ("mistake\n\n", false)] {
            let text = text.clone() + end;
            let ((), found) = left_behind(secret, || {
                let mut reader = Box::new(Reader::new(|_| None));
                let mut request = None;
                for byte in text.as_bytes() {
                    // Connections move from list to list while they are served.
                    let moved = Box::new(*reader);
                    reader = moved;
                    request = request.or_else(|| reader.read(&[*byte]).1);
                }
                let edits = if let Some(Request::Set(edits)) = request { edits } else { Vec::new() };
                let keys = edits.iter().map(|edit| match edit {
                    Edit::PrivateKey(key) => key.as_ref().map(|key| *key.as_bytes()),
                    Edit::Peer(peer) => {
                        let key = peer.preshared_key.as_ref().filter(|_| peer.allowed_ips.len() == 1);
                        key.map(|key| *key.as_bytes())
                    }
                    Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => None,
                });
                assert!(keys.eq(std::iter::repeat_n(Some(secret), if has_edits { 21 } else { 0 })));
            });
            assert_eq!(found, 0);
        }
        // What is freed unseen need not be made at all.
        let (_, found) = left_behind(secret, || drop(std::hint::black_box(Box::new(secret))));
        assert_eq!(found, 1, "it would be found");
    }
}
