//! What a kernel may offer beyond one packet a call: each feature has a switch, is tried on its own, and is done without where it is missing.
//!
//! # Faults of kernels and drivers
//!
//! | | Fault | Dealt with |
//! |---|---|---|
//! | 1 | A run of datagrams is refused: `EIO` without checksum offload before 6.11, `EINVAL` on others | sent one by one, remembered for the destination (`device/sockets.rs`, `device/send.rs`); `gso` |
//! | 2 | A run of datagrams longer than the path's MTU is refused, not fragmented | likewise, for that length and longer ones; single ones are fragmented (`IP_PMTUDISC_DONT`) |
//! | 3 | The TUN device refuses super-packets with `EINVAL` (6.6.44, 6.10 and their time) | written one by one, and no more of that kind (`device/receive.rs`); `coalesce`, `coalesce-udp` |
//! | 4 | VXLAN and Geneve lose UDP super-packets, up to 6.8.4 | by version; `coalesce-udp` |
//! | 5 | Runs of datagrams of which the last is as long as the others arrive corrupt, 7.0 to 7.1.4 | by version; `gso` |
//! | 6 | `UDP_GRO` fills 64 KiB whatever was asked for; before 5.12 it is not trusted | buffers of that size, `MSG_TRUNC` and `MSG_CTRUNC` counted (`device/receive.rs`); by version; `gro` |
//! | 7 | The length that comes with a received run is an `int`; only the last datagram is shorter | read as such (`sys/udp/receive.rs`) |
//! | 8 | The header length in a virtio header is a hint | computed from the packet (`packet/segment.rs`) |
//! | 9 | A TUN queue holds 500 packets | longer for a device that we make (`sys/tun.rs`) |
//! | 10 | A flow's TUN queue follows the one that its answers were written to | packets of a session are written to the queue of its worker, which stays the same; `multiqueue`, `steering` |
//! | 11 | `sendmmsg` reports an error only if it is the first datagram's | that one is looked after, those behind it go on (`device/sockets.rs`) |
//! | 12 | Errors of others, ICMP's among them, show on a receiving socket | sockets are never connected; no error ends a loop (`device/receive.rs`) |
//! | 13 | A local address that is gone is refused | sent from any, and forgotten (`device/sockets.rs`) |
//! | 14 | `SO_RCVBUF` and `SO_SNDBUF` are capped | `SO_RCVBUFFORCE`, `SO_SNDBUFFORCE` where permitted (`sys/udp/mod.rs`) |
//! | 15 | Systems that resemble Linux lack this and that | each feature and each socket option is tried on its own, `SO_REUSEPORT` too; a switch for each |
//! | 16 | Clocks step back | not of these interfaces: timestamps never do (`wireguard/tai64n.rs`) |
//! | 17 | Each segment of a super-packet has an IPv4 id of its own | counted up (`packet/segment.rs`); merged only if they were (`packet/coalesce.rs`) |
//! | 18 | `io_uring` is often forbidden | not used |

use std::fmt;
use std::io;
use std::str::FromStr;

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A feature of the kernel's interfaces.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature { $($(#[$doc])* $name,)* }

        impl Feature {
            /// Every feature.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the feature's name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

features! {
    /// `IFF_MULTI_QUEUE`, Linux 3.8: a TUN queue for each worker.
    MultiQueue = "multiqueue",
    /// `IFF_VNET_HDR`, Linux 2.6.27: what `Tso`, `Uso` and `Coalesce` need.
    VnetHeader = "vnet",
    /// `TUN_F_TSO4`, `TUN_F_TSO6`: TCP super-packets are read from the TUN device.
    Tso = "tso",
    /// `TUN_F_USO4`, `TUN_F_USO6`, Linux 6.2: UDP super-packets are read from the TUN device.
    Uso = "uso",
    /// `TUN_F_UDP_TUNNEL_GSO`, Linux 6.17: super-packets inside VXLAN and Geneve are read from the TUN device.
    TunnelGso = "tunnel",
    /// `UDP_SEGMENT`, Linux 4.18: many datagrams are sent as one.
    Gso = "gso",
    /// `UDP_GRO`, Linux 5.0: many datagrams are received as one.
    Gro = "gro",
    /// TCP super-packets are written to the TUN device.
    Coalesce = "coalesce",
    /// UDP super-packets are written to the TUN device, Linux 6.2; 6.8.4 and before lose them on their way into VXLAN.
    CoalesceUdp = "coalesce-udp",
    /// `SO_ATTACH_REUSEPORT_CBPF`, Linux 4.5: datagrams go to the worker that has their session.
    Steering = "steering",
}

/// What the operator wants of a feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// Use it where it is.
    #[default]
    Auto,
    /// Use it, and do not start without.
    On,
    /// Do not use it.
    Off,
}

/// A switch for each feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted([Switch; Feature::ALL.len()]);

impl Wanted {
    /// Sets one switch.
    pub fn set(&mut self, feature: Feature, switch: Switch) {
        self.0[feature as usize] = switch;
    }

    /// Returns the switch of a feature.
    pub fn switch(&self, feature: Feature) -> Switch {
        self.0[feature as usize]
    }

    /// Tells whether a feature is to be tried.
    pub fn tries(&self, feature: Feature) -> bool {
        self.switch(feature) != Switch::Off
    }

    /// Tries a feature and returns whether it is there.
    ///
    /// # Errors
    /// That of the attempt if the operator does not want to go without.
    pub fn attempt(&self, feature: Feature, act: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        match (self.switch(feature), act) {
            (Switch::Off, _) => Ok(false),
            (Switch::Auto, act) => Ok(act().is_ok()),
            (Switch::On, act) => act().map(|()| true).map_err(|error| {
                let text = format!("{}=on, but the kernel refuses it: {error}", feature.name());
                io::Error::new(error.kind(), text)
            }),
        }
    }
}

/// `tso,uso=off,gso=auto`: names that share the value that follows them; without a value they are on. `all` names every feature.
impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        let mut named = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) =
                part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
            let is_named = |feature: &&Feature| name == "all" || feature.name() == name;
            let before = named.len();
            named.extend(Feature::ALL.iter().filter(is_named));
            if named.len() == before {
                let names: Vec<_> = Feature::ALL.iter().map(|feature| feature.name()).collect();
                return Err(format!("{name:?} is no offload; there are all, {}", names.join(", ")));
            }
            let switch = match value {
                None => continue,
                Some("on") => Switch::On,
                Some("off") => Switch::Off,
                Some("auto") => Switch::Auto,
                Some(other) => return Err(format!("{other:?} is neither on, off nor auto")),
            };
            named.drain(..).for_each(|feature| wanted.set(feature, switch));
        }
        named.drain(..).for_each(|feature| wanted.set(feature, Switch::On));
        Ok(wanted)
    }
}

/// The features in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Active(u16);

impl Active {
    /// Adds a feature, or takes it out.
    pub fn set(&mut self, feature: Feature, is_active: bool) {
        let bit = 1 << feature as u16;
        self.0 = if is_active { self.0 | bit } else { self.0 & !bit };
    }

    /// Tells whether a feature is in use.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u16 != 0
    }

    /// Returns the features of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Feature::ALL.iter().filter(|&&feature| self.has(feature)).map(|feature| feature.name()).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_share_the_value_that_follows_them() {
        let wanted: Wanted = "tso,uso=off,gso=auto, gro".parse().unwrap();
        let switch = |feature| wanted.switch(feature);
        assert_eq!([switch(Feature::Tso), switch(Feature::Uso)], [Switch::Off; 2]);
        assert_eq!((switch(Feature::Gso), switch(Feature::Gro)), (Switch::Auto, Switch::On));
        assert_eq!(switch(Feature::Steering), Switch::Auto);
        let none: Wanted = "all=off".parse().unwrap();
        assert!(Feature::ALL.iter().all(|&feature| !none.tries(feature)));
        assert!("tsso=off".parse::<Wanted>().unwrap_err().contains("tso"));
        assert!("tso=of".parse::<Wanted>().unwrap_err().contains("auto"));
    }

    #[test]
    fn only_who_insists_hears_of_a_refusal() {
        let refuse = || Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
        let wanted: Wanted = "gso=on,gro=off".parse().unwrap();
        assert!(wanted.attempt(Feature::Gso, refuse).unwrap_err().to_string().starts_with("gso=on"));
        assert!(!wanted.attempt(Feature::Gro, || Ok(())).unwrap());
        assert!(!wanted.attempt(Feature::Tso, refuse).unwrap());
        assert!(wanted.attempt(Feature::Tso, || Ok(())).unwrap());
    }

    #[test]
    fn what_is_active_is_named() {
        let mut active = Active::default();
        assert_eq!(active.to_string(), "none");
        active.set(Feature::Tso, true);
        active.set(Feature::Gro, true);
        active.set(Feature::Gso, true);
        active.set(Feature::Gso, false);
        assert_eq!(active.to_string(), "tso,gro");
    }
}
