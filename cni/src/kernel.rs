//! Links, addresses and routes over netlink (rtnetlink(7)), as far as a pod's network needs them.
//!
//! Messages are written and read here, a handful of attributes each: the crates for all of rtnetlink would be half of the program, which
//! is read from disk for every pod.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::outcome::{Prefix, Route, host_len};

/// Enough for any datagram of a list: the kernel makes none longer than 32 KiB.
const RECEIVE_LEN: usize = 64 << 10;

/// How often a list is asked for that changes while it is read.
const ATTEMPTS: u32 = 16;

// linux/netlink.h
const HEADER_LEN: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

// linux/if_link.h, linux/veth.h, linux/if.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 0x2;

/// How far an address or a route is good for (`enum rt_scope_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Universe = 0,
    /// On its link.
    Link = 253,
    /// Inside the host.
    Host = 254,
}

/// A container's network namespace.
#[derive(Debug)]
pub struct Namespace {
    own: File,
    other: File,
}

impl Namespace {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// `ENOENT` if it is gone.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { own: File::open("/proc/thread-self/ns/net")?, other: File::open(path)? })
    }

    /// Tells whether it is that of the plugin itself.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn is_own(&self) -> io::Result<bool> {
        let [own, other] = [rustix::fs::fstat(&self.own)?, rustix::fs::fstat(&self.other)?];
        Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
    }

    /// Does something inside.
    ///
    /// # Errors
    /// `EINVAL` if it is no network namespace; `EPERM` without `CAP_SYS_ADMIN`; those of `act`.
    pub fn inside<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let enter =
            |namespace: &File| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        enter(&self.other)?;
        let done = act();
        enter(&self.own)?;
        done
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its hardware address, as it is printed.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The index of the link that it belongs to; for an end of a virtual cable, the other end's.
    pub other: Option<u32>,
    /// Whether it is an end of a virtual cable.
    pub is_veth: bool,
    /// The bridge, or the like, that it is a port of.
    pub master: Option<u32>,
}

/// A socket for requests, in the namespace that it was opened in.
#[derive(Debug)]
pub struct Kernel {
    socket: OwnedFd,
    sequence: u32,
}

impl Kernel {
    /// Opens a socket.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open() -> io::Result<Self> {
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket in a container's namespace.
    ///
    /// # Errors
    /// As [`Namespace::inside`].
    pub fn open_in(namespace: &Namespace) -> io::Result<Self> {
        namespace.inside(Self::open)
    }

    /// Finds a link.
    ///
    /// # Errors
    /// `ENODEV` if there is none of this name.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        self.find_link(&Message::new(RTM_GETLINK, 0).with(&link_header(0, 0)).named(name))
    }

    /// Finds a link by its index.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn link_at(&mut self, index: u32) -> io::Result<Link> {
        self.find_link(&Message::new(RTM_GETLINK, 0).with(&link_header(index, 0)))
    }

    fn find_link(&mut self, message: &Message) -> io::Result<Link> {
        let replies = self.ask(message, NLM_F_ACK)?;
        let body = replies.iter().find_map(|(kind, body)| (*kind == RTM_NEWLINK).then_some(body));
        let link = link_of(body.ok_or(Errno::NODEV)?);
        Ok(link.ok_or(Errno::BADMSG)?)
    }

    /// Makes a pair of virtual cables of this MTU, the second end in `namespace`.
    ///
    /// # Errors
    /// `EEXIST` if a name is taken.
    pub fn add_veth(
        &mut self,
        name: &str,
        inside: &str,
        namespace: &Namespace,
        mtu: Option<u32>,
    ) -> io::Result<()> {
        let with_mtu = |message: Message| match mtu {
            Some(mtu) => message.attribute(IFLA_MTU, &mtu.to_ne_bytes()),
            None => message,
        };
        let message =
            Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).with(&link_header(0, 0)).named(name);
        let message = with_mtu(message).nested(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"veth").nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    let fd = namespace.other.as_raw_fd().to_ne_bytes();
                    with_mtu(peer.with(&link_header(0, 0)).named(inside)).attribute(IFLA_NET_NS_FD, &fd)
                })
            })
        });
        self.change(message)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// `ENODEV` if there is none; `EOPNOTSUPP` for one that is not virtual.
    pub fn remove_link(&mut self, name: &str) -> io::Result<()> {
        self.change(Message::new(RTM_DELLINK, 0).with(&link_header(0, 0)).named(name))
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// `EINVAL` for one that the link cannot have.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let message = Message::new(RTM_SETLINK, 0).with(&link_header(index, 0));
        self.change(message.attribute(IFLA_MTU, &mtu.to_ne_bytes()))
    }

    /// Switches a link on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.change(Message::new(RTM_SETLINK, 0).with(&link_header(index, IFF_UP)))
    }

    /// Gives a link an address that is usable at once.
    ///
    /// # Errors
    /// `EEXIST` if it has it.
    pub fn add_address(&mut self, index: u32, addr: IpAddr, scope: Scope) -> io::Result<()> {
        let flags = if addr.is_ipv6() { IFA_F_NODAD } else { 0 };
        let [a, b, c, d] = index.to_ne_bytes();
        let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
        let message = message.with(&[family(addr), host_len(addr), flags, scope as u8, a, b, c, d]);
        self.change(message.address(IFA_LOCAL, addr).address(IFA_ADDRESS, addr))
    }

    /// Returns the addresses of a link.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<Prefix>> {
        let replies = self.ask(&Message::new(RTM_GETADDR, NLM_F_DUMP).with(&[0; 8]), 0)?;
        let address = |body: &[u8]| {
            let (header, attributes) = split::<8>(body)?;
            // Beside a peer's address, as IPv4 may have one, the own one goes first.
            let value = |kind| attributes.clone().find(|(found, _)| *found == kind).map(|(_, value)| value);
            let addr = read_address(value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?)?;
            (number(&header[4..8]) == Some(index)).then_some((addr, header[1]))
        };
        Ok(replies.iter().filter_map(|(_, body)| address(body)).collect())
    }

    /// Adds a route of the main table by a link, through a neighbour on it if one is named.
    ///
    /// # Errors
    /// `EEXIST` if there is one; `ENETUNREACH` if the neighbour is not on the link.
    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let (addr, len) = route.destination;
        let scope = if route.gateway.is_some() { Scope::Universe } else { Scope::Link } as u8;
        let header = [family(addr), len, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
        let message =
            Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL).with(&header).address(RTA_DST, addr);
        let message = match route.gateway {
            Some(gateway) => message.address(RTA_GATEWAY, gateway),
            None => message,
        };
        self.change(message.attribute(RTA_OIF, &index.to_ne_bytes()))
    }

    /// Returns the routes of the main table by a link.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn routes(&mut self, index: u32) -> io::Result<Vec<Route>> {
        let replies = self.ask(&Message::new(RTM_GETROUTE, NLM_F_DUMP).with(&[0; 12]), 0)?;
        Ok(replies.iter().filter_map(|(_, body)| route_by(body, index)).collect())
    }

    fn change(&mut self, message: Message) -> io::Result<()> {
        self.ask(&message, NLM_F_ACK).map(drop)
    }

    /// Asks, and returns the kinds and bodies of all messages before the end of the list, or before the acknowledgement. A list that
    /// changes while it is read may lack something, and is asked for anew.
    fn ask(&mut self, message: &Message, flags: u16) -> io::Result<Vec<Reply>> {
        for _ in 0..ATTEMPTS {
            self.sequence += 1;
            send(&self.socket, &message.finish(flags, self.sequence), SendFlags::empty())?;
            if let Some(found) = self.replies()? {
                return Ok(found);
            }
        }
        Err(io::Error::other("what was listed kept changing"))
    }

    /// Receives the replies to the last request; `None` if they are a list that changed meanwhile.
    fn replies(&self) -> io::Result<Option<Vec<Reply>>> {
        let mut found = Some(Vec::new());
        let mut buffer = vec![0; RECEIVE_LEN];
        loop {
            let (len, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..len];
            while let Some((header, _)) = rest.split_first_chunk::<HEADER_LEN>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let body = rest.get(HEADER_LEN..length).ok_or(Errno::BADMSG)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if number(&header[8..12]) != Some(self.sequence) {
                    continue;
                }
                if u16::from_ne_bytes([header[6], header[7]]) & NLM_F_DUMP_INTR != 0 {
                    found = None;
                }
                match u16::from_ne_bytes([header[4], header[5]]) {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let code = number(body).ok_or(Errno::BADMSG)?.cast_signed();
                        return if code == 0 { Ok(found) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    kind => found.iter_mut().for_each(|found| found.push((kind, body.to_vec()))),
                }
            }
        }
    }
}

/// The kind and the body of a message from the kernel.
type Reply = (u16, Vec<u8>);

/// A message that is being written.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// Appends a fixed part, which is a multiple of 4 bytes long.
    fn with(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |attribute| attribute.with(value))
    }

    fn address(self, kind: u16, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.attribute(kind, &addr.octets()),
            IpAddr::V6(addr) => self.attribute(kind, &addr.octets()),
        }
    }

    fn named(self, name: &str) -> Self {
        self.nested(IFLA_IFNAME, |attribute| attribute.with(name.as_bytes()).with(&[0]))
    }

    /// Appends an attribute whose value `write` appends.
    fn nested(mut self, kind: u16, write: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        let mut written = write(self);
        // Nothing here is longer than a few hundred bytes.
        let len = u16::try_from(written.0.len() - start).unwrap_or(u16::MAX);
        written.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        written.0.resize(written.0.len().next_multiple_of(4), 0);
        written
    }

    fn finish(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags | NLM_F_REQUEST;
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let mut bytes = self.0.clone();
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// Returns a `struct ifinfomsg` with these flags set.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// Attributes, each with its kind and value, up to one that is cut short.
#[derive(Debug, Clone)]
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    }
}

/// Splits a message's body into its fixed part and its attributes.
fn split<const N: usize>(body: &[u8]) -> Option<(&[u8; N], Attributes<'_>)> {
    let (header, rest) = body.split_first_chunk()?;
    Some((header, Attributes(rest)))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn link_of(body: &[u8]) -> Option<Link> {
    let (header, attributes) = split::<16>(body)?;
    let mut link = Link {
        index: number(&header[4..8])?,
        mac: String::new(),
        mtu: 0,
        other: None,
        is_veth: false,
        master: None,
    };
    for (kind, value) in attributes {
        match kind {
            IFLA_ADDRESS => {
                link.mac = value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
            }
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_LINK => link.other = number(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_LINKINFO => {
                link.is_veth = Attributes(value)
                    .any(|(kind, value)| kind == IFLA_INFO_KIND && value.starts_with(b"veth"));
            }
            _ => {}
        }
    }
    Some(link)
}

fn route_by(body: &[u8], index: u32) -> Option<Route> {
    let (header, attributes) = split::<12>(body)?;
    let any: IpAddr = if header[0] == family(Ipv4Addr::UNSPECIFIED.into()) {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route { destination: (any, header[1]), gateway: None };
    let mut is_by = false;
    for (kind, value) in attributes {
        match kind {
            RTA_DST => route.destination.0 = read_address(value)?,
            RTA_GATEWAY => route.gateway = read_address(value),
            RTA_OIF => is_by = number(value) == Some(index),
            _ => {}
        }
    }
    (is_by && header[4] == RT_TABLE_MAIN).then_some(route)
}

/// Returns the number of an address's family (`AF_INET`, `AF_INET6`), which takes a byte here.
fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 2 } else { 10 }
}

#[cfg(test)]
mod tests {
    use rustix::net::socketpair;

    use super::*;

    /// Asks for all addresses of link 3 of a kernel whose list changes so often while it is read. Returns also how often it was asked.
    fn addresses_after(changes: u32) -> (io::Result<Vec<Prefix>>, u32) {
        let (socket, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut asking = Kernel { socket, sequence: 0 };
        std::thread::scope(|scope| {
            let kernel = scope.spawn(move || {
                let mut asked = 0;
                let mut request = [0; 64];
                while recv(&kernel, &mut request[..], RecvFlags::empty()).unwrap().0 > 0 {
                    let sequence = number(&request[8..12]).unwrap();
                    let address = |last: u8| {
                        let addr = IpAddr::from([10, 0, 0, last]);
                        Message::new(RTM_NEWADDR, 0).with(&[2, 24, 0, 0, 3, 0, 0, 0]).address(IFA_LOCAL, addr)
                    };
                    // As `nl_dump_check_consistent` has it: from the moment of the change on.
                    let interrupted = if asked < changes { NLM_F_DUMP_INTR } else { 0 };
                    let done = Message::new(NLMSG_DONE, 0).with(&[0; 4]);
                    let list = [(address(1), 0), (address(2), interrupted), (done, interrupted)];
                    let list = list.map(|(message, flags)| message.finish(flags, sequence));
                    send(&kernel, &list.concat(), SendFlags::empty()).unwrap();
                    asked += 1;
                }
                asked
            });
            let addresses = asking.addresses(3);
            drop(asking);
            (addresses, kernel.join().unwrap())
        })
    }

    #[test]
    fn a_list_that_changes_while_it_is_read_is_asked_for_again() {
        let addresses = [1, 2].map(|last| (IpAddr::from([10, 0, 0, last]), 24));
        for changes in [0, 1, 15] {
            let (listed, asked) = addresses_after(changes);
            assert_eq!((listed.unwrap(), asked), (addresses.to_vec(), changes + 1));
        }
        let (listed, asked) = addresses_after(u32::MAX);
        assert!(listed.unwrap_err().to_string().contains("changing"));
        assert_eq!(asked, 16);
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let message =
            Message::new(RTM_NEWLINK, 0).with(&[7; 8]).named("eth0").address(9, "fd00::5".parse().unwrap());
        let message = message.nested(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"veth"));
        let bytes = message.finish(NLM_F_ACK, 3);
        assert_eq!(number(&bytes[..4]), Some(u32::try_from(bytes.len()).unwrap()));
        let (header, attributes) = split::<8>(&bytes[HEADER_LEN..]).unwrap();
        let attributes: Vec<_> = attributes.collect();
        assert_eq!(header, &[7; 8]);
        assert_eq!(attributes[0], (IFLA_IFNAME, &b"eth0\0"[..]));
        assert_eq!((attributes[1].0, read_address(attributes[1].1)), (9, "fd00::5".parse().ok()));
        let (_, mut inner) = split::<0>(attributes[2].1).unwrap();
        assert_eq!(inner.next(), Some((IFLA_INFO_KIND, &b"veth"[..])));
        assert_eq!((inner.next(), attributes.len()), (None, 3));
        // One that is cut short ends the list.
        for len in 0..bytes.len() {
            let rest = split::<8>(bytes.get(HEADER_LEN..len).unwrap_or_default());
            assert!(rest.is_none_or(|(_, rest)| rest.count() < 3));
        }
    }
}
