//! A client of the cross-platform configuration protocol: any data plane, reached by its unix socket.
//!
//! One connection for each operation, as `wg` does it. A reply is bounded in size and time, and read exactly: a line that means something
//! and cannot be read fails the whole, a line whose key is unknown is passed over, so that newer data planes can say more.
//!
//! A data plane that knows no `allowed_ip=-PREFIX` (wireguard-go before 2025) refuses the request that holds one; then the
//! peers that are to lose prefixes are given the whole list of those that stay, which costs them the packets of a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::{Zeroize, Zeroizing};

use crate::config::{AllowedIpEdit, Durations, Edit, PeerEdit, PeerSnapshot, Prefix, Snapshot, Statistics};
use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey};

/// Where data planes have their sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// The longest reply: 100,000 peers with every key and six prefixes each need 64 MB.
const REPLY_MAX: usize = 64 << 20;

/// How long a data plane may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an operation failed.
#[derive(Debug)]
pub enum Failed {
    /// Nobody answers, or not to the end.
    Io(io::Error),
    /// The data plane refused; the number is its errno, positive.
    Refused(i32),
    /// The data plane said what the protocol does not know: the line of the reply, and what is wrong with it.
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Failed {
    /// Tells whether somebody is there who has said nothing for too long.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Tells whether somebody is there, who does not answer in time or says something else than was asked for.
    pub fn is_of_somebody(&self) -> bool {
        match self {
            Self::Io(_) => self.is_silence(),
            Self::Refused(_) | Self::Malformed { .. } => true,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the data plane: {error}"),
            Self::Refused(errno) => {
                write!(f, "the data plane refused: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::Malformed { line, what } => write!(f, "the data plane's reply, line {line}: {what}"),
        }
    }
}

impl std::error::Error for Failed {}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One that listens at a socket, told from others by the socket's file, which each makes anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

/// The data plane behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    private_key: Option<PrivateKey>,
}

impl Client {
    /// Returns a client of the interface whose socket lies in `directory`. Nobody need be there yet.
    pub fn new(directory: &Path, interface: &str) -> Self {
        Self { path: directory.join(format!("{interface}.sock")), private_key: None }
    }

    /// Says which private key the interface should have. boringtun tells only the public half of the one it has: if that is the half of
    /// this one, this one is what it has.
    pub fn with_private_key(mut self, key: PrivateKey) -> Self {
        self.private_key = Some(key);
        self
    }

    /// Returns the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns who listens at the socket, if anybody does: another one than before is told by it.
    pub fn listener(&self) -> Option<Listener> {
        // Nobody may be behind what a process that was killed has left.
        UnixStream::connect(&self.path).ok()?;
        let file = std::fs::metadata(&self.path).ok()?;
        Some(Listener { device: file.dev(), inode: file.ino(), made: (file.ctime(), file.ctime_nsec()) })
    }

    /// Returns configuration and counters.
    ///
    /// # Errors
    /// [`Failed::Io`] if nobody answers.
    pub fn snapshot(&self) -> Result<Snapshot, Failed> {
        let reply = self.ask("get=1\n\n")?;
        read_snapshot(&reply, self.private_key.as_ref())
    }

    /// Returns what else the data plane tells, or `None` if it is another one than adit's and knows no such request.
    ///
    /// # Errors
    /// [`Failed::Io`] if nobody answers.
    pub fn statistics(&self) -> Result<Option<Statistics>, Failed> {
        // Who takes it for another protocol closes the connection, with half of the request unread or before it was all sent.
        const CLOSED: [io::ErrorKind; 3] =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        match self.ask("stats=1\n\n").and_then(|reply| read_statistics(&reply)) {
            Err(Failed::Refused(_)) => Ok(None),
            Err(Failed::Io(error)) if CLOSED.contains(&error.kind()) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Applies edits in their order. A data plane that is adit's applies all or none.
    ///
    /// # Errors
    /// [`Failed::Refused`] if the data plane does not want them.
    pub fn apply(&self, edits: &[Edit]) -> Result<(), Failed> {
        match self.set(edits) {
            Err(Failed::Refused(errno)) if errno == libc::EINVAL && removes_prefixes(edits) => {
                let edits = without_removals(edits, &self.snapshot()?);
                self.set(&edits)
            }
            result => result,
        }
    }

    fn set(&self, edits: &[Edit]) -> Result<(), Failed> {
        let reply = self.ask(&print(edits))?;
        read_lines(&reply, |_, _| Ok(()))
    }

    fn ask(&self, request: &str) -> Result<Zeroizing<String>, Failed> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let bytes = read_reply(&mut stream)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(Failed::Malformed { line: 0, what: "it is no text" }),
        }
    }
}

/// Reads until the empty line that ends a reply.
fn read_reply(stream: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut reply = Zeroizing::new(Vec::new());
    let mut buffer = Zeroizing::new([0; 16 << 10]);
    while reply.len() < REPLY_MAX {
        let count = match stream.read(&mut buffer[..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the reply was cut off")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        append(&mut reply, &buffer[..count]);
        if reply.ends_with(b"\n\n") || *reply == b"\n"[..] {
            return Ok(reply);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is too long"))
}

/// Appends without leaving a copy of a key behind when the vector grows.
fn append(vector: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    if vector.capacity() - vector.len() < bytes.len() {
        let mut grown = Vec::with_capacity((vector.len() + bytes.len()) * 2);
        grown.extend_from_slice(vector);
        std::mem::swap(&mut **vector, &mut grown);
        grown.zeroize();
    }
    vector.extend_from_slice(bytes);
}

/// Calls `take` with every line but the last, which tells of success.
fn read_lines(
    reply: &str,
    mut take: impl FnMut(&str, &str) -> Result<(), &'static str>,
) -> Result<(), Failed> {
    for (at, line) in reply.lines().enumerate() {
        let malformed = |what| Failed::Malformed { line: at + 1, what };
        let (key, value) = line.split_once('=').ok_or_else(|| malformed("a line is KEY=VALUE"))?;
        if key == "errno" {
            // wireguard-go, uapi.go: a negative number is the errno of another system's kind.
            return match value.parse::<i32>() {
                Ok(0) => Ok(()),
                Ok(errno) => Err(Failed::Refused(errno.saturating_abs())),
                Err(_) => Err(malformed("errno is a number")),
            };
        }
        take(key, value).map_err(malformed)?;
    }
    Err(Failed::Malformed { line: 0, what: "it ends without errno" })
}

/// Reads the reply to `stats=1`.
///
/// # Errors
/// Names the line that cannot be read.
pub fn read_statistics(reply: &str) -> Result<Statistics, Failed> {
    let mut statistics = Statistics::default();
    read_lines(reply, |key, value| {
        match key {
            "version" => value.clone_into(&mut statistics.version),
            "crypto" => value.clone_into(&mut statistics.crypto),
            "workers" => statistics.workers = number(value)?,
            _ => {
                if let Some(reason) = key.strip_prefix("dropped_") {
                    statistics.dropped.insert(reason.to_owned(), number(value)?);
                } else if let Some(bound) = key.strip_prefix("handshakes_us_") {
                    read_durations(&mut statistics.handshakes, bound, number(value)?);
                }
            }
        }
        Ok(())
    })?;
    Ok(statistics)
}

fn read_durations(durations: &mut Durations, bound: &str, value: u64) {
    match bound {
        "inf" => durations.longer = value,
        "sum" => durations.sum = Duration::from_micros(value),
        _ => {
            if let Ok(bound) = bound.parse() {
                durations.within.insert(Duration::from_micros(bound), value);
            }
        }
    }
}

/// Reads the reply to `get=1`, of a data plane that should have the key `expected`.
///
/// # Errors
/// Names the line that cannot be read.
pub fn read_snapshot(reply: &str, expected: Option<&PrivateKey>) -> Result<Snapshot, Failed> {
    let mut snapshot = Snapshot::default();
    let mut own_public_key = None;
    let mut handshake = Duration::ZERO;
    read_lines(reply, |key, value| {
        if key == "public_key" {
            handshake = Duration::ZERO;
            snapshot.peers.push(PeerSnapshot::new(PublicKey::new(*hex_key(value)?.as_bytes())));
            return Ok(());
        }
        match snapshot.peers.last_mut() {
            Some(peer) => read_peer(peer, &mut handshake, key, value),
            // boringtun, device/api.rs: api_get.
            None if key == "own_public_key" => {
                own_public_key = Some(PublicKey::new(*hex_key(value)?.as_bytes()));
                Ok(())
            }
            None => read_interface(&mut snapshot, key, value),
        }
    })?;
    if snapshot.private_key.is_none() && own_public_key.is_some() {
        snapshot.private_key = expected.filter(|key| Some(key.public()) == own_public_key).cloned();
    }
    for peer in &mut snapshot.peers {
        peer.allowed_ips.sort_unstable();
    }
    Ok(snapshot)
}

fn read_interface(snapshot: &mut Snapshot, key: &str, value: &str) -> Result<(), &'static str> {
    match key {
        "private_key" => {
            let key = hex_key(value)?;
            snapshot.private_key = (!key.is_zero()).then(|| PrivateKey::new(*key.as_bytes()));
        }
        "listen_port" => snapshot.listen_port = number(value)?,
        "fwmark" => snapshot.fwmark = number(value)?,
        _ => {}
    }
    Ok(())
}

fn read_peer(
    peer: &mut PeerSnapshot,
    handshake: &mut Duration,
    key: &str,
    value: &str,
) -> Result<(), &'static str> {
    match key {
        "preshared_key" => peer.preshared_key = hex_key(value)?,
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "last_handshake_time_sec" => *handshake += Duration::from_secs(number(value)?),
        "last_handshake_time_nsec" => *handshake += Duration::from_nanos(number(value)?),
        "tx_bytes" => peer.tx_bytes = number(value)?,
        "rx_bytes" => peer.rx_bytes = number(value)?,
        "persistent_keepalive_interval" => peer.persistent_keepalive = number(value)?,
        "allowed_ip" => peer.allowed_ips.push(value.parse().map_err(|_| "a prefix is ADDRESS/LENGTH")?),
        _ => {}
    }
    peer.last_handshake = Some(*handshake).filter(|moment| !moment.is_zero());
    Ok(())
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, &'static str> {
    value.parse().map_err(|_| "a number in its range is needed")
}

fn endpoint(value: &str) -> Result<SocketAddr, &'static str> {
    // Go prints the scope by its name, which nobody but the data plane's system knows.
    let (start, end) = (value.find('%'), value.find(']'));
    match (value.parse(), start, end) {
        (Ok(endpoint), _, _) => Ok(endpoint),
        (Err(_), Some(start), Some(end)) if start < end => {
            format!("{}{}", &value[..start], &value[end..]).parse().map_err(|_| "an endpoint is ADDRESS:PORT")
        }
        (Err(_), _, _) => Err("an endpoint is ADDRESS:PORT"),
    }
}

fn hex_key(value: &str) -> Result<Secret<32>, &'static str> {
    const RULE: &str = "a key is 64 hexadecimal digits";
    let value: &[u8; 64] = value.as_bytes().try_into().map_err(|_| RULE)?;
    let mut key = Zeroizing::new([0; 32]);
    let (pairs, _) = value.as_chunks::<2>();
    for (byte, pair) in key.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (high, low) else { return Err(RULE) };
        *byte = u8::try_from(high << 4 | low).map_err(|_| RULE)?;
    }
    Ok(Secret::new(*key))
}

/// Returns a `set=1` request. It may hold keys and is wiped when dropped.
pub fn print(edits: &[Edit]) -> Zeroizing<String> {
    const INTERFACE: usize = 128;
    const PEER: usize = 512;
    const ALLOWED_IP: usize = "allowed_ip=-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128\n".len();
    let bounds = edits.iter().map(|edit| match edit {
        Edit::Peer(peer) => PEER + peer.allowed_ips.len() * ALLOWED_IP,
        Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => INTERFACE,
    });
    // A string that grows would leave copies of keys behind.
    let mut text = Zeroizing::new(String::with_capacity(INTERFACE + bounds.sum::<usize>()));
    // Writing to a string does not fail.
    let _ = write_edits(&mut text, edits);
    text
}

fn write_edits(text: &mut String, edits: &[Edit]) -> fmt::Result {
    text.push_str("set=1\n");
    for edit in edits {
        match edit {
            Edit::PrivateKey(Some(key)) => write_key(text, "private_key", key.as_bytes())?,
            Edit::PrivateKey(None) => write_key(text, "private_key", &[0; 32])?,
            Edit::ListenPort(port) => writeln!(text, "listen_port={port}")?,
            Edit::Fwmark(mark) => writeln!(text, "fwmark={mark}")?,
            Edit::ClearPeers => text.push_str("replace_peers=true\n"),
            Edit::Peer(peer) => write_peer(text, peer)?,
        }
    }
    text.push('\n');
    Ok(())
}

fn write_peer(text: &mut String, peer: &PeerEdit) -> fmt::Result {
    write_key(text, "public_key", peer.public_key.as_bytes())?;
    // wireguard-go wants it here and nowhere else.
    if peer.update_only {
        text.push_str("update_only=true\n");
    }
    if peer.remove {
        text.push_str("remove=true\n");
        return Ok(());
    }
    if let Some(key) = &peer.preshared_key {
        write_key(text, "preshared_key", key.as_bytes())?;
    }
    if let Some(endpoint) = peer.endpoint {
        writeln!(text, "endpoint={endpoint}")?;
    }
    if let Some(seconds) = peer.persistent_keepalive {
        writeln!(text, "persistent_keepalive_interval={seconds}")?;
    }
    if peer.replace_allowed_ips {
        text.push_str("replace_allowed_ips=true\n");
    }
    for change in &peer.allowed_ips {
        match change {
            AllowedIpEdit::Add(prefix) => writeln!(text, "allowed_ip={prefix}")?,
            AllowedIpEdit::Remove(prefix) => writeln!(text, "allowed_ip=-{prefix}")?,
        }
    }
    Ok(())
}

fn write_key(text: &mut String, name: &str, key: &[u8; 32]) -> fmt::Result {
    write!(text, "{name}=")?;
    key.iter().try_for_each(|byte| write!(text, "{byte:02x}"))?;
    writeln!(text)
}

fn removes_prefixes(edits: &[Edit]) -> bool {
    edits.iter().any(|edit| match edit {
        Edit::Peer(peer) => peer.allowed_ips.iter().any(|change| matches!(change, AllowedIpEdit::Remove(_))),
        Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => false,
    })
}

/// Says the same by whole lists.
fn without_removals(edits: &[Edit], actual: &Snapshot) -> Vec<Edit> {
    let mut held: BTreeMap<PublicKey, BTreeSet<Prefix>> = actual
        .peers
        .iter()
        .map(|peer| (peer.public_key, peer.allowed_ips.iter().copied().collect()))
        .collect();
    let rewritten = edits.iter().map(|edit| match edit {
        Edit::Peer(peer) if removes_prefixes(std::slice::from_ref(edit)) => {
            let list = held.entry(peer.public_key).or_default();
            if peer.replace_allowed_ips {
                list.clear();
            }
            for change in &peer.allowed_ips {
                match change {
                    AllowedIpEdit::Add(prefix) => drop(list.insert(*prefix)),
                    AllowedIpEdit::Remove(prefix) => drop(list.remove(prefix)),
                }
            }
            let allowed_ips = list.iter().map(|prefix| AllowedIpEdit::Add(*prefix)).collect();
            Edit::Peer(PeerEdit { replace_allowed_ips: true, allowed_ips, ..peer.clone() })
        }
        Edit::Peer(_) | Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => {
            edit.clone()
        }
    });
    rewritten.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PresharedKey;

    fn peer(number: u8, allowed_ips: &[&str]) -> PeerSnapshot {
        PeerSnapshot {
            allowed_ips: allowed_ips.iter().map(|text| text.parse().unwrap()).collect(),
            ..PeerSnapshot::new(PublicKey::new([number; 32]))
        }
    }

    #[test]
    fn a_reply_is_read_whole() {
        let (a, b) = ("0a".repeat(32), "0b".repeat(32));
        let reply = format!(
            "private_key={a}\nlisten_port=51820\nfwmark=7\nfuture=1\npublic_key={b}\npreshared_key={a}\nprotocol_version=1\n\
            endpoint=[fe80::1%eth0]:3\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\n\
            persistent_keepalive_interval=9\nallowed_ip=10.1.0.0/16\nallowed_ip=10.0.0.0/16\npublic_key={a}\n\
            last_handshake_time_sec=0\nlast_handshake_time_nsec=0\nerrno=0\n\n"
        );
        let snapshot = read_snapshot(&reply, None).unwrap();
        assert_eq!((snapshot.listen_port, snapshot.fwmark), (51820, 7));
        assert_eq!(snapshot.private_key, Some(PrivateKey::new([10; 32])));
        let [first, second] = &snapshot.peers[..] else { panic!("two peers") };
        assert_eq!(first.endpoint, Some("[fe80::1]:3".parse().unwrap()));
        assert_eq!(first.last_handshake, Some(Duration::new(5, 6)));
        assert_eq!((first.tx_bytes, first.rx_bytes, first.persistent_keepalive), (7, 8, 9));
        assert_eq!(first.allowed_ips, ["10.0.0.0/16", "10.1.0.0/16"].map(|text| text.parse().unwrap()));
        assert_eq!(first.preshared_key, PresharedKey::new([10; 32]));
        assert_eq!((second.public_key, second.last_handshake), (PublicKey::new([10; 32]), None));
    }

    #[test]
    fn statistics_are_read_and_what_is_not_known_is_passed_over() {
        let statistics = read_statistics(
            "version=1\ncrypto=avx2\nfuture=x\nworkers=2\ndropped_a=0\ndropped_b=7\n\
            handshakes_us_500=3\nhandshakes_us_future=1\nhandshakes_us_inf=4\nhandshakes_us_sum=5\nerrno=0\n\n",
        );
        let expected = Statistics {
            version: "1".to_owned(),
            crypto: "avx2".to_owned(),
            workers: 2,
            dropped: [("a", 0), ("b", 7)].map(|(reason, packets)| (reason.to_owned(), packets)).into(),
            handshakes: Durations {
                within: [(Duration::from_micros(500), 3)].into(),
                longer: 4,
                sum: Duration::from_micros(5),
            },
        };
        assert_eq!(statistics.unwrap(), expected);
        let wrong = read_statistics("version=1\ndropped_a=-1\nerrno=0\n\n");
        assert!(matches!(wrong, Err(Failed::Malformed { line: 2, .. })), "{wrong:?}");
    }

    #[test]
    fn a_public_key_tells_of_the_private_one_that_is_expected() {
        let key = PrivateKey::new([7; 32]);
        let public: String = key.public().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let reply = format!("own_public_key={public}\nerrno=0\n\n");
        let read = |expected: Option<&PrivateKey>| read_snapshot(&reply, expected).unwrap().private_key;
        assert_eq!(read(Some(&key)), Some(key.clone()));
        assert_eq!((read(None), read(Some(&PrivateKey::new([8; 32])))), (None, None));
    }

    #[test]
    fn a_reply_that_is_wrong_is_refused_with_its_line() {
        let key = "0a".repeat(32);
        for (reply, line) in [
            (String::new(), 0),
            ("listen_port=1\n\n".to_owned(), 2),
            ("listen_port=65536\nerrno=0\n\n".to_owned(), 1),
            (format!("fwmark=1\npublic_key={key}0\nerrno=0\n\n"), 2),
            (format!("public_key={key}\nendpoint=here\nerrno=0\n\n"), 2),
            (format!("public_key={key}\nallowed_ip=10.0.0.0\nerrno=0\n\n"), 2),
            ("errno=no\n\n".to_owned(), 1),
        ] {
            match read_snapshot(&reply, None) {
                Err(Failed::Malformed { line: at, .. }) => assert_eq!(at, line, "{reply}"),
                other => panic!("{reply}: {other:?}"),
            }
        }
        assert!(matches!(read_snapshot("errno=-22\n\n", None), Err(Failed::Refused(22))));
    }

    #[test]
    fn a_reply_that_is_cut_off_or_never_ends_is_refused() {
        let read = |bytes: &[u8]| read_reply(&mut &bytes[..]).map(|reply| reply.to_vec());
        assert_eq!(read(b"errno=0\n\n").unwrap(), b"errno=0\n\n");
        assert_eq!(read(b"errno=0\n").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let endless = io::repeat(b'x').take(u64::MAX);
        let error = read_reply(&mut { endless }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn removals_can_be_said_by_whole_lists() {
        let actual = Snapshot {
            peers: vec![peer(1, &["10.1.0.0/16", "10.2.0.0/16"]), peer(2, &["10.3.0.0/16"])],
            ..Snapshot::default()
        };
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let mut edit = PeerEdit::new(PublicKey::new([1; 32]));
        edit.update_only = true;
        edit.allowed_ips = vec![AllowedIpEdit::Remove(prefix("10.1.0.0/16"))];
        let text = print(&without_removals(&[Edit::Peer(edit)], &actual));
        let expected = format!(
            "set=1\npublic_key={}\nupdate_only=true\nreplace_allowed_ips=true\nallowed_ip=10.2.0.0/16\n\n",
            "01".repeat(32)
        );
        assert_eq!(*text, expected);
    }
}
