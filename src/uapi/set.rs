//! The body of a `set=1` request, line by line, into edits.
//!
//! Nothing is applied here: a request with a mistake in its last line yields no edits at all. Values are never repeated in errors,
//! and neither are unknown keys: what stands before the `=` of a mistyped line may well be a secret.

use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use zeroize::Zeroize;

use crate::config::{AllowedIpEdit, Edit, PeerEdit, Prefix, PresharedKey};
use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey};

/// Why a request is not obeyed: the client's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The line of the request, the operation's own being the first.
    pub line: usize,
    /// The key of that line, if it is a known one.
    pub key: Option<&'static str>,
    /// The rule that the line breaks.
    pub rule: &'static str,
    /// The positive errno that the client is told.
    pub errno: i32,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(key) = self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(self.rule)
    }
}

impl std::error::Error for Malformed {}

/// Finds the index of the network interface that a scope (`fe80::1%eth0`) names.
pub type ScopeOf = fn(&str) -> Option<u32>;

/// Parses a whole body: the lines between `set=1` and the empty line that ends the request.
///
/// # Errors
/// Tells the first mistake.
pub fn parse(body: &[u8], scope_of: ScopeOf) -> Result<Vec<Edit>, Malformed> {
    let mut parser = Parser::new(scope_of);
    for line in body.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        parser.line(line)?;
    }
    Ok(parser.finish())
}

/// A body that is being read.
#[derive(Debug)]
pub struct Parser {
    scope_of: ScopeOf,
    line: usize,
    edits: Vec<Edit>,
    /// The section that is being read; `None` before the first `public_key`. Boxed: what holds this is moved while it is read.
    peer: Option<Box<PeerEdit>>,
    /// The allowed IPs of the section from here on stand after its last `replace_allowed_ips`.
    kept_from: usize,
}

impl Parser {
    /// Begins after the line `set=1`.
    pub fn new(scope_of: ScopeOf) -> Self {
        Self { scope_of, line: 1, edits: Vec::new(), peer: None, kept_from: 0 }
    }

    /// Takes one line that is not empty, without its ending.
    ///
    /// # Errors
    /// Tells what is wrong with it; the request is then to be forgotten.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Malformed> {
        self.line += 1;
        let mistake = |key, rule, errno| Malformed { line: self.line, key, rule, errno };
        // wireguard-go, uapi.go:IpcSetOperation: a line without `=` is a protocol error, everything else is an invalid argument.
        let Some(equals) = line.iter().position(|&byte| byte == b'=') else {
            return Err(mistake(None, "a line is KEY=VALUE", libc::EPROTO));
        };
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        let key = match key {
            b"private_key" => "private_key",
            b"listen_port" => "listen_port",
            b"fwmark" => "fwmark",
            b"replace_peers" => "replace_peers",
            b"public_key" => "public_key",
            b"remove" => "remove",
            b"update_only" => "update_only",
            b"preshared_key" => "preshared_key",
            b"endpoint" => "endpoint",
            b"persistent_keepalive_interval" => "persistent_keepalive_interval",
            b"replace_allowed_ips" => "replace_allowed_ips",
            b"allowed_ip" => "allowed_ip",
            b"protocol_version" => "protocol_version",
            _ => return Err(mistake(None, "the key is unknown", libc::EINVAL)),
        };
        let number = self.line;
        self.key(key, value).map_err(|rule| Malformed {
            line: number,
            key: Some(key),
            rule,
            errno: libc::EINVAL,
        })
    }

    /// Returns the number of the line that is awaited.
    pub fn next_line(&self) -> usize {
        self.line + 1
    }

    /// Ends the last section and returns what is to be done, in the order of the lines.
    pub fn finish(mut self) -> Vec<Edit> {
        self.end_section();
        self.edits
    }

    fn end_section(&mut self) {
        if let Some(mut peer) = self.peer.take() {
            self.push(Edit::Peer(taken(&mut peer)));
        }
    }

    /// Appends an edit. A vector that grows of itself leaves keys behind in the memory that it had; of what is copied, and dropped, they are
    /// wiped.
    fn push(&mut self, edit: Edit) {
        if self.edits.len() == self.edits.capacity() {
            let mut larger = Vec::with_capacity(2 * self.edits.len().max(2));
            larger.extend(self.edits.iter_mut().map(|edit| match edit {
                Edit::Peer(peer) => Edit::Peer(taken(peer)),
                Edit::PrivateKey(_) | Edit::ListenPort(_) | Edit::Fwmark(_) | Edit::ClearPeers => {
                    edit.clone()
                }
            }));
            self.edits = larger;
        }
        self.edits.push(edit);
    }

    fn key(&mut self, key: &'static str, value: &[u8]) -> Result<(), &'static str> {
        if key == "public_key" {
            let key = PublicKey::new(hex_key(value)?);
            self.end_section();
            self.peer = Some(Box::new(PeerEdit::new(key)));
            self.kept_from = 0;
            return Ok(());
        }
        match &mut self.peer {
            None => {
                self.push(interface_edit(key, value)?);
                Ok(())
            }
            Some(peer) => edit_peer(peer, &mut self.kept_from, key, value, self.scope_of),
        }
    }
}

/// Copies an edit that is about to be dropped. Only its prefixes are moved: there may be many, and they are no secret.
fn taken(edit: &mut PeerEdit) -> PeerEdit {
    let allowed_ips = mem::take(&mut edit.allowed_ips);
    PeerEdit { allowed_ips, ..edit.clone() }
}

fn interface_edit(key: &str, value: &[u8]) -> Result<Edit, &'static str> {
    Ok(match key {
        "private_key" => {
            let mut bytes = hex_key(value)?;
            let is_zero = Secret::new(bytes).is_zero();
            let key = (!is_zero).then(|| PrivateKey::new(bytes));
            bytes.zeroize();
            Edit::PrivateKey(key)
        }
        "listen_port" => Edit::ListenPort(decimal(value).ok_or("a port is a decimal number up to 65535")?),
        "fwmark" => Edit::Fwmark(decimal(value).ok_or("a mark is a decimal number below 2^32")?),
        "replace_peers" => {
            only_true(value)?;
            Edit::ClearPeers
        }
        _ => return Err("the key belongs to a peer and must stand after a public_key"),
    })
}

fn edit_peer(
    peer: &mut PeerEdit,
    kept_from: &mut usize,
    key: &str,
    value: &[u8],
    scope_of: ScopeOf,
) -> Result<(), &'static str> {
    match key {
        // What follows in the section is checked, and ignored by whoever applies the edit.
        "remove" => {
            only_true(value)?;
            peer.remove = true;
        }
        // The protocol's page wants it right after public_key, but wgctrl writes it after `remove`; where it stands in the section makes
        // no difference to a change that is applied as a whole.
        "update_only" => {
            only_true(value)?;
            peer.update_only = true;
        }
        "preshared_key" => {
            let mut bytes = hex_key(value)?;
            peer.preshared_key = Some(PresharedKey::new(bytes));
            bytes.zeroize();
        }
        "endpoint" => peer.endpoint = Some(endpoint(value, scope_of)?),
        "persistent_keepalive_interval" => {
            let seconds = decimal(value).ok_or("an interval is a decimal number of seconds up to 65535")?;
            peer.persistent_keepalive = Some(seconds);
        }
        "replace_allowed_ips" => {
            only_true(value)?;
            peer.replace_allowed_ips = true;
            // Prefixes that were added earlier in the section are taken from their holders all the same.
            for at in *kept_from..peer.allowed_ips.len() {
                if let AllowedIpEdit::Add(prefix) = peer.allowed_ips[at] {
                    peer.allowed_ips.push(AllowedIpEdit::Remove(prefix));
                }
            }
            *kept_from = peer.allowed_ips.len();
        }
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        "protocol_version" => {
            if value != b"1" {
                return Err("the only version is 1");
            }
        }
        _ => return Err("the key belongs to the interface and must stand before the first public_key"),
    }
    Ok(())
}

/// wireguard-go, uapi.go:handlePeerLine: these switches have no `false`.
fn only_true(value: &[u8]) -> Result<(), &'static str> {
    if value == b"true" { Ok(()) } else { Err("the only value is true") }
}

fn hex_key(value: &[u8]) -> Result<[u8; 32], &'static str> {
    const RULE: &str = "a key is 64 hexadecimal digits";
    let value: &[u8; 64] = value.try_into().map_err(|_| RULE)?;
    let mut key = [0; 32];
    let (pairs, _) = value.as_chunks::<2>();
    for (byte, &[high, low]) in key.iter_mut().zip(pairs) {
        let (Some(high), Some(low)) = (hex_digit(high), hex_digit(low)) else {
            key.zeroize();
            return Err(RULE);
        };
        *byte = high << 4 | low;
    }
    Ok(key)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Reads an unsigned decimal number. There is deliberately no sign and no `0x`: wireguard-go accepts neither.
fn decimal<T: FromStr>(value: &[u8]) -> Option<T> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}

fn endpoint(value: &[u8], scope_of: ScopeOf) -> Result<SocketAddr, &'static str> {
    const RULE: &str = "an endpoint is IPV4:PORT or [IPV6]:PORT";
    let value = str::from_utf8(value).map_err(|_| RULE)?;
    let (host, port) = value.rsplit_once(':').ok_or(RULE)?;
    let port = decimal(port.as_bytes()).ok_or(RULE)?;
    let Some(inner) = host.strip_prefix('[') else {
        return Ok(SocketAddr::new(IpAddr::V4(host.parse::<Ipv4Addr>().map_err(|_| RULE)?), port));
    };
    let inner = inner.strip_suffix(']').ok_or(RULE)?;
    let (addr, scope) = match inner.split_once('%') {
        Some((addr, scope)) => (addr, Some(scope)),
        None => (inner, None),
    };
    let addr: Ipv6Addr = addr.parse().map_err(|_| RULE)?;
    let scope_id = match scope {
        None => 0,
        Some(scope) => decimal(scope.as_bytes())
            .or_else(|| scope_of(scope))
            .ok_or("the scope names no network interface")?,
    };
    // The IPv6 socket carries IPv6 only; a mapped address is reached from the IPv4 socket.
    if let Some(v4) = addr.to_ipv4_mapped() {
        return Ok(SocketAddr::new(IpAddr::V4(v4), port));
    }
    Ok(SocketAddr::V6(SocketAddrV6::new(addr, port, 0, scope_id)))
}

fn allowed_ip(value: &[u8]) -> Result<AllowedIpEdit, &'static str> {
    const RULE: &str = "an allowed IP is ADDRESS/LENGTH, or -ADDRESS/LENGTH to remove it";
    let (text, remove) = match value.strip_prefix(b"-") {
        Some(rest) => (rest, true),
        None => (value, false),
    };
    let text = str::from_utf8(text).map_err(|_| RULE)?;
    let (addr, len) = text.split_once('/').ok_or(RULE)?;
    // Go, netip.ParsePrefix: no leading zero.
    if len.len() > 1 && len.starts_with('0') {
        return Err(RULE);
    }
    let addr: IpAddr = addr.parse().map_err(|_| RULE)?;
    let prefix = Prefix::new(addr, decimal(len.as_bytes()).ok_or(RULE)?).ok_or(RULE)?;
    Ok(if remove { AllowedIpEdit::Remove(prefix) } else { AllowedIpEdit::Add(prefix) })
}
