//! Why a packet went no further: one counter per reason, and nothing else ([W] §5.1, "Silence is a Virtue").

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dropped { $($(#[doc = $doc])* $name,)* }

        impl Dropped {
            /// Every reason, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the reason as metrics and tables name it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns what it means, in a sentence; sections are those of the whitepaper.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii_start(),)* }
            }
        }
    };
}

reasons! {
    /// No WireGuard message: wrong type, reserved bytes or length (§5.4).
    Malformed = "malformed",
    /// A datagram longer than the receive buffer, or datagrams of a length that the kernel had no room to tell.
    Truncated = "truncated",
    /// A message before a private key is set.
    NoPrivateKey = "no_private_key",
    /// mac1 is wrong (§5.4.4).
    BadMac1 = "bad_mac1",
    /// Under load, a mac2 is valid but its sender sends too much (§5.3).
    RateLimited = "rate_limited",
    /// Under load, answered by a cookie (§5.4.7).
    CookieSent = "cookie_sent",
    /// The queue of handshake messages is full (§5.3).
    HandshakeQueueFull = "handshake_queue_full",
    /// An initiation that does not authenticate or whose sender is no peer (§5.4.2).
    BadInitiation = "bad_initiation",
    /// An initiation that is not newer than the greatest one seen (§5.1).
    StaleInitiation = "stale_initiation",
    /// An initiation within 20 ms of the last one of its peer.
    InitiationFlood = "initiation_flood",
    /// A response that does not authenticate or answers no initiation of ours (§5.4.3).
    BadResponse = "bad_response",
    /// A cookie reply that does not authenticate or answers nothing (§5.4.7).
    BadCookieReply = "bad_cookie_reply",
    /// A data message for a session we do not have (§5.4.6).
    UnknownIndex = "unknown_index",
    /// A data message of a session that is too old or has carried too much (§6.2).
    Expired = "expired",
    /// A data message that does not authenticate (§5.4.6).
    Forged = "forged",
    /// A counter seen before, or behind the window (§5.4.6).
    Replayed = "replayed",
    /// The inner packet is no IP packet.
    InnerMalformed = "inner_malformed",
    /// The inner source is not this peer's (§2, §3).
    NotAllowedSource = "not_allowed_source",
    /// No peer for the inner destination (§2, §3).
    NoPeer = "no_peer",
    /// The peer has no endpoint (§2.1).
    NoEndpoint = "no_endpoint",
    /// The inner packet is our own outer packet.
    Loop = "loop",
    /// The oldest of more than 128 packets that wait for a session.
    StagedOverflow = "staged_overflow",
    /// A waiting packet whose handshake was given up (§6.4).
    HandshakeGivenUp = "handshake_given_up",
    /// The socket refused the datagram.
    SendFailed = "send_failed",
    /// The TUN device refused the packet.
    TunWriteFailed = "tun_write_failed",
    /// The interface is down.
    Down = "down",
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Dropped {}

/// One counter per reason.
#[derive(Debug)]
pub struct Drops([AtomicU64; Dropped::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Drops {
    /// Counts one packet.
    pub fn count(&self, reason: Dropped) {
        self.add(reason, 1);
    }

    /// Counts `packets` packets.
    pub fn add(&self, reason: Dropped, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Relaxed);
    }

    /// Returns how many packets were dropped for `reason`.
    pub fn get(&self, reason: Dropped) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }

    /// Returns the reasons that occurred, with their counts.
    pub fn nonzero(&self) -> impl Iterator<Item = (Dropped, u64)> + '_ {
        Dropped::ALL.iter().map(|&reason| (reason, self.get(reason))).filter(|&(_, count)| count > 0)
    }
}
