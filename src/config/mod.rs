//! The narrow waist: what an interface should be, as plain data.
//!
//! UAPI text and the control loop are its clients, [`Configure`] is implemented by the device, [`diff`] leads from what is to what should
//! be. It knows no text format, no socket and no protocol state.

pub mod diff;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey};

/// A symmetric pre-shared key ([W] §5.2); all zero means none.
pub type PresharedKey = Secret<32>;

/// An IP prefix in canonical form: host bits are zero. In order come IPv4 before IPv6, lower addresses before higher ones, and shorter
/// prefixes before longer ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// Returns `addr/len` with the host bits masked off, or `None` if `len` exceeds 32 (IPv4) or 128 (IPv6).
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(a) if len <= 32 => {
                IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into())
            }
            IpAddr::V6(a) if len <= 128 => {
                IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { addr, len })
    }

    /// Returns the prefix that holds only `addr`.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Returns the network address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Returns the number of leading bits that are fixed.
    #[expect(clippy::len_without_is_empty, reason = "the length of a prefix is not a number of elements")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Tells whether `addr` lies in this prefix.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && Self::new(addr, self.len) == Some(*self)
    }

    /// Tells whether all of `other` lies in this prefix, which it does if both are equal.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }
}

/// Returns what an address is ordered by, as integers: thousands are compared for each change of the cluster, and addresses themselves are
/// compared byte by byte.
pub(crate) fn rank(addr: IpAddr) -> (bool, u128) {
    match addr {
        IpAddr::V4(addr) => (false, u32::from(addr).into()),
        IpAddr::V6(addr) => (true, addr.into()),
    }
}

impl Ord for Prefix {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        (rank(self.addr), self.len).cmp(&(rank(other.addr), other.len))
    }
}

impl PartialOrd for Prefix {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Prefix {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.addr {
            IpAddr::V4(addr) => state.write_u64(u64::from(u32::from(addr)) << 8 | u64::from(self.len)),
            IpAddr::V6(addr) => {
                state.write_u128(addr.into());
                state.write_u8(self.len);
            }
        }
    }
}

/// What is not `ADDRESS/LENGTH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPrefix;

impl fmt::Display for NoPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prefix is ADDRESS/LENGTH")
    }
}

impl std::error::Error for NoPrefix {}

impl FromStr for Prefix {
    type Err = NoPrefix;

    /// Reads `ADDRESS/LENGTH` and masks the host bits off. The length is decimal without sign or leading zero.
    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let (addr, len) = text.split_once('/').ok_or(NoPrefix)?;
        if !len.bytes().all(|digit| digit.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
            return Err(NoPrefix);
        }
        let (addr, len) = (addr.parse().map_err(|_| NoPrefix)?, len.parse().map_err(|_| NoPrefix)?);
        Self::new(addr, len).ok_or(NoPrefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One step of a change to an interface. A list of them is applied whole or not at all.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Edit {
    /// Sets the interface's private key; `None` removes it. The key that is set already changes nothing.
    PrivateKey(Option<PrivateKey>),
    /// Binds the UDP sockets to this port; 0 lets the kernel choose.
    ListenPort(u16),
    /// Marks outgoing datagrams (`SO_MARK`); 0 removes the mark.
    Fwmark(u32),
    /// Removes all peers.
    ClearPeers,
    /// Changes, creates or removes one peer.
    Peer(PeerEdit),
}

/// The change of one peer. Fields that are `None` stay as they are.
#[derive(Debug, Clone)]
pub struct PeerEdit {
    /// Who.
    pub public_key: PublicKey,
    /// Removes the peer; nothing else of this edit matters then.
    pub remove: bool,
    /// Ignores this edit if there is no such peer.
    pub update_only: bool,
    /// The pre-shared key; all zero for none.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer is to be found until it is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// Forgets the peer's allowed IPs before `allowed_ips` is obeyed.
    pub replace_allowed_ips: bool,
    /// Prefixes to add or remove, in this order.
    pub allowed_ips: Vec<AllowedIpEdit>,
}

impl PeerEdit {
    /// Returns an edit that creates the peer if it is absent and changes nothing else.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// One prefix to add to a peer, or to take from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpEdit {
    /// Adds the prefix; a peer that holds it already loses it ([W] §2).
    Add(Prefix),
    /// Removes the prefix if this peer holds it.
    Remove(Prefix),
}

/// What an interface should be, whole: peers that are not named here should not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The private key; `None` for none.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0 for any.
    pub listen_port: u16,
    /// The mark of outgoing datagrams; 0 for none.
    pub fwmark: u32,
    /// The peers. A prefix that two of them name belongs to the one with the greater key.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// What a peer should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredPeer {
    /// The pre-shared key; all zero for none.
    pub preshared_key: PresharedKey,
    /// Where the peer is to be looked for; `None` leaves it where it is: a peer that roams is not called back.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: u16,
    /// The prefixes that the peer should hold, in order, each once.
    pub allowed_ips: Vec<Prefix>,
}

/// Configuration and counters of an interface at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The private key, if one is set.
    pub private_key: Option<PrivateKey>,
    /// The UDP port in use; 0 before the sockets are bound.
    pub listen_port: u16,
    /// The mark of outgoing datagrams; 0 for none.
    pub fwmark: u32,
    /// The peers, in the order of their creation.
    pub peers: Vec<PeerSnapshot>,
}

/// Configuration and counters of one peer at one moment.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Who.
    pub public_key: PublicKey,
    /// The pre-shared key; all zero for none.
    pub preshared_key: PresharedKey,
    /// Where the peer was last heard from, or was configured to be.
    pub endpoint: Option<SocketAddr>,
    /// Wall-clock time of the last completed handshake, since the Unix epoch; `None` if there was none.
    pub last_handshake: Option<Duration>,
    /// UDP payload bytes sent to the peer.
    pub tx_bytes: u64,
    /// UDP payload bytes received from the peer and authenticated.
    pub rx_bytes: u64,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: u16,
    /// The prefixes the peer holds, in ascending order.
    pub allowed_ips: Vec<Prefix>,
}

impl PeerSnapshot {
    /// Returns a peer of which nothing is known but who it is.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: PresharedKey::default(),
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }
}

/// What a data plane tells of itself beyond its configuration, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Its version.
    pub version: String,
    /// The code that encrypts, by its name on the command line; `ring` for single packets alone.
    pub crypto: String,
    /// Worker threads.
    pub workers: usize,
    /// Packets that went no further since the start, by reason. Every reason is there, and most are 0.
    pub dropped: BTreeMap<String, u64>,
    /// Handshakes since the start, by the time from the first initiation to the confirmed session.
    pub handshakes: Durations,
}

/// Durations, counted by length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many were at most so long, and longer than the bound before. Nothing is known if there is no bound.
    pub within: BTreeMap<Duration, u64>,
    /// How many were longer than every bound.
    pub longer: u64,
    /// The sum of all.
    pub sum: Duration,
}

/// Why a change was refused: the operator's mistake, or the system's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The UDP port is in use.
    PortInUse(u16),
    /// More peers than an interface may have (2^20).
    TooManyPeers,
    /// The system refused a call; the text names the call, the number is its errno.
    System {
        /// The call and its object.
        what: String,
        /// The positive errno.
        errno: i32,
    },
    /// The interface is going away.
    Gone,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortInUse(port) => write!(f, "UDP port {port} is in use"),
            Self::TooManyPeers => f.write_str("an interface holds at most 2^20 peers"),
            Self::System { what, errno } => write!(f, "{what}: errno {errno}"),
            Self::Gone => f.write_str("the interface is going away"),
        }
    }
}

impl std::error::Error for Refused {}

/// What may be asked of a running interface. Everything else is private to it.
pub trait Configure: Send + Sync {
    /// Applies all edits or none.
    ///
    /// # Errors
    /// Says why nothing was applied.
    fn apply(&self, edits: Vec<Edit>) -> Result<(), Refused>;

    /// Returns configuration and counters as they are now.
    ///
    /// # Errors
    /// [`Refused::Gone`] if the interface is going away.
    fn snapshot(&self) -> Result<Snapshot, Refused>;

    /// Returns what else there is to tell.
    ///
    /// # Errors
    /// [`Refused::Gone`] if the interface is going away.
    fn statistics(&self) -> Result<Statistics, Refused>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        // Few values, so that parts are the same.
        let v4 = (any::<u32>(), 0..=32_u8)
            .prop_map(|(addr, len)| (IpAddr::from((addr & 0x8101_0081).to_be_bytes()), len));
        let v6 = (any::<u128>(), 0..=128_u8)
            .prop_map(|(addr, len)| (IpAddr::from((addr & (0x81 << 120 | 0x0101)).to_be_bytes()), len));
        prop_oneof![v4, v6].prop_map(|(addr, len)| Prefix::new(addr, len).unwrap())
    }

    proptest! {
        #[test]
        fn prefixes_are_ordered_as_their_parts_are(one in any_prefix(), other in any_prefix()) {
            prop_assert_eq!(one.cmp(&other), (one.addr, one.len).cmp(&(other.addr, other.len)));
            prop_assert_eq!(one.cmp(&other).is_eq(), one == other);
        }
    }
}
