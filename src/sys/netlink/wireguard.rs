//! The kernel's WireGuard over generic netlink (`linux/wireguard.h`), in the network namespace of the thread that opens the socket.
//!
//! Every kernel that has WireGuard understands what is sent here. A single allowed IP can be taken from a peer by name since Linux 6.16 only;
//! before, it is given to another peer that goes with the same message, so that is done in any case.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_GENERIC;
use zeroize::Zeroizing;

use super::raw::{Attributes, Requests, attributes, nested};

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

// linux/wireguard.h
const VERSION: u8 = 1;
const CMD_GET_DEVICE: u8 = 0;
const CMD_SET_DEVICE: u8 = 1;

// enum wgdevice_attribute, enum wgdevice_flag
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_FLAGS: u16 = 5;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_FWMARK: u16 = 7;
const DEVICE_PEERS: u16 = 8;
const REPLACE_PEERS: u32 = 1;

// enum wgpeer_attribute, enum wgpeer_flag
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RX_BYTES: u16 = 7;
const PEER_TX_BYTES: u16 = 8;
const PEER_ALLOWED_IPS: u16 = 9;
const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED_IPS: u32 = 2;
const UPDATE_ONLY: u32 = 4;

// enum wgallowedip_attribute
const ALLOWED_IP_FAMILY: u16 = 1;
const ALLOWED_IP_ADDR: u16 = 2;
const ALLOWED_IP_LEN: u16 = 3;

/// Peers are sent in one message up to this many bytes; what one of them takes is added, and an attribute holds 64 KiB.
const PEERS_LEN: usize = 24 << 10;
/// Allowed IPs of one peer in one message: each takes 44 bytes at most.
const ALLOWED_IPS_MAX: usize = 600;

/// A prefix: its address and length.
pub type AllowedIp = (IpAddr, u8);

/// Configuration and counters of an interface.
#[derive(Default)]
pub struct Device {
    /// The private key; all zero for none.
    pub private_key: Zeroizing<[u8; 32]>,
    /// The UDP port; 0 before the socket is bound.
    pub listen_port: u16,
    /// The mark of its datagrams.
    pub fwmark: u32,
    /// The peers.
    pub peers: Vec<Peer>,
}

/// A peer, as the kernel tells it.
#[derive(Default)]
pub struct Peer {
    /// Its public key.
    pub public_key: [u8; 32],
    /// The pre-shared key; all zero for none.
    pub preshared_key: Zeroizing<[u8; 32]>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The time of the last handshake since the Unix epoch, if there was one.
    pub last_handshake: Option<Duration>,
    /// UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: u16,
    /// Its allowed IPs.
    pub allowed_ips: Vec<AllowedIp>,
}

/// Changes of an interface itself; what is `None` stays.
#[derive(Default)]
pub struct DeviceEdit<'a> {
    /// The private key; all zero removes it.
    pub private_key: Option<&'a [u8; 32]>,
    /// The UDP port.
    pub listen_port: Option<u16>,
    /// The mark of its datagrams.
    pub fwmark: Option<u32>,
    /// Removes all peers first.
    pub clears_peers: bool,
}

/// The change of a peer; what is `None` stays.
#[derive(Default)]
pub struct PeerEdit<'a> {
    /// Which one.
    pub public_key: [u8; 32],
    /// Removes it.
    pub removes: bool,
    /// Does nothing if there is no such peer.
    pub updates_only: bool,
    /// Takes all allowed IPs from it first.
    pub replaces_allowed_ips: bool,
    /// The pre-shared key; all zero for none.
    pub preshared_key: Option<&'a [u8; 32]>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// Prefixes that it is given; who had them loses them.
    pub added: Vec<AllowedIp>,
    /// Prefixes that are taken from it, if it has them.
    pub removed: Vec<AllowedIp>,
}

/// A socket for requests to the kernel's WireGuard.
pub struct Wireguard {
    requests: Requests,
    family: u16,
}

impl Wireguard {
    /// Opens a socket.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has no WireGuard, or none loaded; if no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let mut this = Self { requests: Requests::open(NETLINK_GENERIC)?, family: GENL_ID_CTRL };
        let name = Attributes::new().text(CTRL_ATTR_FAMILY_NAME, "wireguard");
        let replies = this.request(CTRL_CMD_GETFAMILY, 0, &name)?;
        let family = replies.iter().find_map(|reply| nested(reply, CTRL_ATTR_FAMILY_ID)?.first_chunk());
        this.family = u16::from_ne_bytes(*family.ok_or(io::ErrorKind::NotFound)?);
        Ok(this)
    }

    /// Returns configuration and counters of an interface.
    ///
    /// # Errors
    /// `ENODEV` if there is no such interface; `EOPNOTSUPP` if it is another kind of interface; `EPERM` without `CAP_NET_ADMIN`.
    pub fn device(&mut self, interface: &str) -> io::Result<Device> {
        let name = Attributes::new().text(DEVICE_NAME, interface);
        let replies = self.request(CMD_GET_DEVICE, NLM_F_DUMP, &name)?;
        let mut device = Device::default();
        replies.iter().for_each(|reply| read_device(reply, &mut device));
        Ok(device)
    }

    /// Changes an interface, then its peers in their order. The kernel takes what fits into one message at a time.
    ///
    /// # Errors
    /// As [`Self::device`]; `EADDRINUSE` if another socket has the port. What was before the failure is done then.
    pub fn set(
        &mut self,
        interface: &str,
        device: &DeviceEdit<'_>,
        peers: &[PeerEdit<'_>],
    ) -> io::Result<()> {
        for message in set_messages(interface, device, peers) {
            self.request(CMD_SET_DEVICE, NLM_F_ACK, &message)?;
        }
        Ok(())
    }

    fn request(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &Attributes,
    ) -> io::Result<Vec<Zeroizing<Vec<u8>>>> {
        self.requests.ask(self.family, flags, [command, VERSION, 0, 0], attributes)
    }
}

/// Returns the messages that carry out edits.
fn set_messages(interface: &str, device: &DeviceEdit<'_>, peers: &[PeerEdit<'_>]) -> Vec<Attributes> {
    let mut first = Attributes::with_capacity(128).text(DEVICE_NAME, interface);
    let bare = first.len();
    if let Some(key) = device.private_key {
        first = first.bytes(DEVICE_PRIVATE_KEY, key);
    }
    if device.clears_peers {
        first = first.bytes(DEVICE_FLAGS, &REPLACE_PEERS.to_ne_bytes());
    }
    if let Some(port) = device.listen_port {
        first = first.bytes(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
    }
    if let Some(mark) = device.fwmark {
        first = first.bytes(DEVICE_FWMARK, &mark.to_ne_bytes());
    }
    let mut messages = Vec::new();
    if first.len() > bare {
        messages.push(first);
    }
    let mut list = Attributes::new();
    let mut flush = |list: &mut Attributes| {
        if list.len() > 0 {
            let message = Attributes::new().text(DEVICE_NAME, interface);
            messages.push(message.nest(DEVICE_PEERS, std::mem::take(list)));
        }
    };
    for peer in peers {
        for attributes in peer_attributes(peer) {
            list.append(&attributes);
            if list.len() > PEERS_LEN {
                flush(&mut list);
            }
        }
    }
    flush(&mut list);
    messages
}

/// Returns a peer as elements of a list, of which each fits into a message; those that belong together are one.
fn peer_attributes(edit: &PeerEdit<'_>) -> Vec<Attributes> {
    let element = |peer: Attributes| Attributes::new().nest(0, peer);
    let key = || Attributes::new().bytes(PEER_PUBLIC_KEY, &edit.public_key);
    let flags_of = |peer: Attributes, flags: u32| match flags {
        0 => peer,
        flags => peer.bytes(PEER_FLAGS, &flags.to_ne_bytes()),
    };
    if edit.removes {
        return vec![element(flags_of(key(), REMOVE_ME))];
    }
    let updates = if edit.updates_only { UPDATE_ONLY } else { 0 };
    let replaces = if edit.replaces_allowed_ips { REPLACE_ALLOWED_IPS } else { 0 };
    let mut peer = flags_of(key(), updates | replaces);
    if let Some(key) = edit.preshared_key {
        peer = peer.bytes(PEER_PRESHARED_KEY, key);
    }
    if let Some(endpoint) = edit.endpoint {
        peer = peer.bytes(PEER_ENDPOINT, &sockaddr(endpoint));
    }
    if let Some(seconds) = edit.persistent_keepalive {
        peer = peer.bytes(PEER_KEEPALIVE, &seconds.to_ne_bytes());
    }
    let mut chunks = edit.added.chunks(ALLOWED_IPS_MAX);
    if let Some(chunk) = chunks.next() {
        peer = peer.nest(PEER_ALLOWED_IPS, allowed_ips(chunk));
    }
    let mut elements = vec![element(peer)];
    for chunk in chunks {
        elements.push(element(flags_of(key(), updates).nest(PEER_ALLOWED_IPS, allowed_ips(chunk))));
    }
    for chunk in edit.removed.chunks(ALLOWED_IPS_MAX) {
        // Its bytes are those of nobody's key but by intent: the highest bit is never set in one that was computed.
        let nobody = [0xff; 32];
        let thief = Attributes::new().bytes(PEER_PUBLIC_KEY, &nobody);
        let gone = Attributes::new().bytes(PEER_PUBLIC_KEY, &nobody);
        let mut both = element(thief.nest(PEER_ALLOWED_IPS, allowed_ips(chunk)));
        both.append(&element(flags_of(gone, REMOVE_ME)));
        elements.push(both);
    }
    elements
}

fn allowed_ips(list: &[AllowedIp]) -> Attributes {
    let mut attributes = Attributes::new();
    for (addr, len) in list {
        let (family, octets) = match addr {
            IpAddr::V4(addr) => (libc::AF_INET, addr.octets().to_vec()),
            IpAddr::V6(addr) => (libc::AF_INET6, addr.octets().to_vec()),
        };
        let family = u16::try_from(family).unwrap_or_default();
        let allowed_ip = Attributes::new()
            .bytes(ALLOWED_IP_FAMILY, &family.to_ne_bytes())
            .bytes(ALLOWED_IP_ADDR, &octets)
            .bytes(ALLOWED_IP_LEN, &[*len]);
        attributes.append(&Attributes::new().nest(0, allowed_ip));
    }
    attributes
}

/// Returns an endpoint as `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(endpoint: SocketAddr) -> Vec<u8> {
    let family = |family: i32| u16::try_from(family).unwrap_or_default().to_ne_bytes();
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(endpoint) => {
            [&family(libc::AF_INET)[..], &port, &endpoint.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(endpoint) => [
            &family(libc::AF_INET6)[..],
            &port,
            &endpoint.flowinfo().to_be_bytes(),
            &endpoint.ip().octets(),
            &endpoint.scope_id().to_ne_bytes(),
        ]
        .concat(),
    }
}

/// Takes over what one message of a list says: a device with many peers takes several, and so does a peer with many allowed IPs.
fn read_device(message: &[u8], device: &mut Device) {
    for (kind, value) in attributes(message) {
        match kind {
            DEVICE_PRIVATE_KEY => device.private_key = Zeroizing::new(array(value)),
            DEVICE_LISTEN_PORT => device.listen_port = u16::from_ne_bytes(array(value)),
            DEVICE_FWMARK => device.fwmark = u32::from_ne_bytes(array(value)),
            DEVICE_PEERS => {
                for (_, value) in attributes(value) {
                    let peer = read_peer(value);
                    match device.peers.last_mut() {
                        Some(last) if last.public_key == peer.public_key => {
                            last.allowed_ips.extend(peer.allowed_ips);
                        }
                        Some(_) | None => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
}

fn read_peer(value: &[u8]) -> Peer {
    let mut peer = Peer::default();
    for (kind, value) in attributes(value) {
        match kind {
            PEER_PUBLIC_KEY => peer.public_key = array(value),
            PEER_PRESHARED_KEY => peer.preshared_key = Zeroizing::new(array(value)),
            PEER_ENDPOINT => peer.endpoint = read_sockaddr(value),
            PEER_KEEPALIVE => peer.persistent_keepalive = u16::from_ne_bytes(array(value)),
            PEER_LAST_HANDSHAKE => {
                // struct __kernel_timespec: seconds and nanoseconds, of 64 bits each.
                let number = |at: usize| i64::from_ne_bytes(array(value.get(at..).unwrap_or_default()));
                let (seconds, nanos) = (number(0), u32::try_from(number(8)).unwrap_or_default());
                let moment = Duration::new(u64::try_from(seconds).unwrap_or_default(), nanos);
                peer.last_handshake = Some(moment).filter(|moment| !moment.is_zero());
            }
            PEER_RX_BYTES => peer.rx_bytes = u64::from_ne_bytes(array(value)),
            PEER_TX_BYTES => peer.tx_bytes = u64::from_ne_bytes(array(value)),
            PEER_ALLOWED_IPS => {
                let list = attributes(value);
                peer.allowed_ips.extend(list.filter_map(|(_, value)| read_allowed_ip(value)));
            }
            _ => {}
        }
    }
    peer
}

fn read_allowed_ip(value: &[u8]) -> Option<AllowedIp> {
    let addr = nested(value, ALLOWED_IP_ADDR)?;
    let addr = match addr.len() {
        4 => IpAddr::V4(Ipv4Addr::from(*addr.first_chunk::<4>()?)),
        _ => IpAddr::V6(Ipv6Addr::from(*addr.first_chunk::<16>()?)),
    };
    Some((addr, *nested(value, ALLOWED_IP_LEN)?.first()?))
}

fn read_sockaddr(value: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*value.first_chunk()?));
    let port = u16::from_be_bytes(*value.get(2..)?.first_chunk()?);
    if family == libc::AF_INET {
        return Some((Ipv4Addr::from(*value.get(4..)?.first_chunk::<4>()?), port).into());
    }
    let addr = Ipv6Addr::from(*value.get(8..)?.first_chunk::<16>()?);
    let scope = u32::from_ne_bytes(*value.get(24..)?.first_chunk()?);
    (family == libc::AF_INET6).then(|| std::net::SocketAddrV6::new(addr, port, 0, scope).into())
}

/// Returns the first bytes of a value; zeros where it is too short.
fn array<const N: usize>(value: &[u8]) -> [u8; N] {
    value.first_chunk().copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::raw::{self, Message};

    fn allowed(text: &str) -> AllowedIp {
        let (addr, len) = text.split_once('/').unwrap();
        (addr.parse().unwrap(), len.parse().unwrap())
    }

    /// A kernel that takes what is sent to it, as far as that can be done without one.
    fn taken(messages: &[Attributes]) -> Device {
        let mut device = Device::default();
        for message in messages {
            let mut bytes = Vec::new();
            Message::new(30, 0, [CMD_SET_DEVICE, VERSION, 0, 0], message).append_to(&mut bytes, 1, 0);
            let replies: Vec<_> = raw::replies(&bytes).collect();
            assert_eq!(replies.len(), 1);
            read_device(replies[0].attributes, &mut device);
        }
        device
    }

    #[test]
    fn what_is_set_is_what_is_told() {
        let key = [7; 32];
        let device = DeviceEdit {
            private_key: Some(&key),
            listen_port: Some(51820),
            fwmark: Some(0x20ad),
            clears_peers: false,
        };
        let peer = |n, endpoint: &str, list: &[&str]| PeerEdit {
            public_key: [n; 32],
            endpoint: Some(endpoint.parse().unwrap()),
            persistent_keepalive: Some(25),
            preshared_key: Some(&[9; 32]),
            added: list.iter().map(|text| allowed(text)).collect(),
            ..PeerEdit::default()
        };
        let peers = [
            peer(1, "192.0.2.1:51820", &["10.244.1.0/24", "fd00:1::/64"]),
            peer(2, "[fe80::2%3]:7", &["10.244.2.0/24"]),
        ];
        let messages = set_messages("adit0", &device, &peers);
        assert_eq!(messages.len(), 2, "the interface, and the peers");
        let device = taken(&messages);
        assert_eq!((*device.private_key, device.listen_port, device.fwmark), (key, 51820, 0x20ad));
        let [first, second] = &device.peers[..] else { panic!("two peers") };
        assert_eq!(
            (first.public_key, *first.preshared_key, first.persistent_keepalive),
            ([1; 32], [9; 32], 25)
        );
        assert_eq!(first.endpoint, Some("192.0.2.1:51820".parse().unwrap()));
        assert_eq!(first.allowed_ips, [allowed("10.244.1.0/24"), allowed("fd00:1::/64")]);
        assert_eq!(second.endpoint, Some("[fe80::2%3]:7".parse().unwrap()));
        assert!(set_messages("adit0", &DeviceEdit::default(), &[]).is_empty());
    }

    #[test]
    fn more_than_a_message_holds_is_sent_in_several() {
        let many: Vec<AllowedIp> =
            (0..5000_u32).map(|n| (Ipv4Addr::from(0x0a00_0000 + n).into(), 32)).collect();
        let peers: Vec<_> = (1..=3)
            .map(|n| PeerEdit { public_key: [n; 32], added: many.clone(), ..PeerEdit::default() })
            .collect();
        let messages = set_messages("adit0", &DeviceEdit::default(), &peers);
        assert!(messages.len() > 3 && messages.iter().all(|message| message.len() < 64 << 10));
        let device = taken(&messages);
        assert_eq!(device.peers.len(), 3);
        assert!(device.peers.iter().all(|peer| peer.allowed_ips == many));
    }

    #[test]
    fn a_prefix_is_taken_by_a_peer_that_goes_with_the_same_message() {
        let edit = PeerEdit {
            public_key: [1; 32],
            updates_only: true,
            removed: vec![allowed("10.1.0.0/16")],
            ..PeerEdit::default()
        };
        let messages = set_messages("adit0", &DeviceEdit::default(), &[edit]);
        assert_eq!(messages.len(), 1);
        let peers = taken(&messages).peers;
        assert_eq!(peers.len(), 2, "the peer itself, and the one that comes and goes");
        assert_eq!(peers[1].allowed_ips, [allowed("10.1.0.0/16")]);
    }

    #[test]
    fn a_kernel_without_wireguard_says_so() {
        match Wireguard::open() {
            Ok(mut wireguard) => {
                let error = wireguard.device("none-such").err().unwrap();
                assert!([Some(libc::ENODEV), Some(libc::EPERM)].contains(&error.raw_os_error()), "{error}");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}"),
        }
    }
}
