//! Notices of changes, as the kernel sends them to everyone who listens.

use std::io;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::raw::nested;
use super::replies::messages;
use super::route::table_of;
use super::{Link, Netlink, RECEIVE_LEN, interface_of, link_of};
use crate::sys::{cmsg, fault};

/// What a [`Monitor`] tells of, as bits of rtnetlink(7)'s multicast groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(u32);

impl Groups {
    /// `RTMGRP_LINK`.
    pub const LINKS: Self = Self(0x1);
    /// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`.
    pub const ADDRESSES: Self = Self(0x10 | 0x100);
    /// `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_ROUTE`.
    pub const ROUTES: Self = Self(0x40 | 0x400);
    /// `RTMGRP_IPV4_RULE`, and `RTNLGRP_IPV6_RULE`, the 19th group, which has no older name.
    pub const RULES: Self = Self(0x80 | 1 << 18);
}

impl BitOr for Groups {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is new or changed.
    Link(Link),
    /// A link is gone, from this namespace at least.
    LinkGone(u32),
    /// An address of this interface has changed.
    Address(u32),
    /// A route has changed.
    Route {
        /// The routing table that it is in.
        table: u32,
        /// The interface by which it leaves, if it is a single one.
        interface: Option<u32>,
    },
    /// A rule that chooses routing tables has changed.
    Rule,
    /// Notices were lost: anything may have changed.
    Lost,
}

/// A socket that tells of changes.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    control: cmsg::Buffer,
    /// The namespace that it tells of, by number, if it is not its own.
    namespace: Option<i32>,
    /// The socket of whose changes it does not tell.
    ignored: Option<u32>,
}

impl Monitor {
    /// Opens a socket that tells of links, addresses and routes from now on.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Self::open_for(Groups::LINKS | Groups::ADDRESSES | Groups::ROUTES)
    }

    /// Opens a socket that tells of these groups from now on.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open_for(groups: Groups) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, groups.0))?;
        socket.set_non_blocking(true)?;
        let (buffer, control) = (vec![0; RECEIVE_LEN], cmsg::Buffer::new());
        Ok(Self { socket, buffer, control, namespace: None, ignored: None })
    }

    /// Leaves out what the socket of this number changes, see [`Netlink::port`].
    #[must_use]
    pub fn without(self, port: u32) -> Self {
        Self { ignored: Some(port), ..self }
    }

    /// Opens a socket that tells of changes in `namespace`, another one than the calling thread's. Unlike a socket in that namespace it
    /// does not keep it from going away.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_BROADCAST`; `ENOPROTOOPT` before Linux 4.2.
    pub fn open_outside(namespace: impl AsFd) -> io::Result<Self> {
        let id = Netlink::open()?.namespace_id(namespace)?;
        let this = Self::open()?;
        this.socket.set_listen_all_namespaces(true)?;
        Ok(Self { namespace: Some(id), ..this })
    }

    /// Returns what has changed since the last call.
    pub fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.receive() {
                Ok(_) if fault::check(fault::Call::Notices).is_err() => {}
                Ok((len, namespace)) if namespace == self.namespace => {
                    events.extend(events_of(&self.buffer[..len], self.ignored));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: the kernel had more to tell than the socket holds.
                Err(error) => {
                    events.push(Event::Lost);
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        return events;
                    }
                }
            }
        }
    }

    /// Receives messages and returns their length, and the namespace they came from if that is not the socket's own.
    fn receive(&mut self) -> io::Result<(usize, Option<i32>)> {
        let mut iovec = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        // SAFETY: a msghdr is numbers and pointers, for all of which zero is a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut iovec;
        header.msg_iovlen = 1;
        header.msg_control = self.control.as_mut_ptr().cast();
        header.msg_controllen = cmsg::CAPACITY;
        // SAFETY: the header points to a buffer and a control buffer of the lengths it says, which outlive the call.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
        let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
        self.control.set_len(header.msg_controllen);
        let namespace = self.control.iter().find_map(|(level, kind, data)| {
            let is_namespace = (level, kind) == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
            is_namespace.then(|| data.first_chunk().map(|id| i32::from_ne_bytes(*id))).flatten()
        });
        Ok((len, namespace))
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Returns what was told of, but for what the socket of the number `ignored` has changed.
fn events_of(received: &[u8], ignored: Option<u32>) -> impl Iterator<Item = Event> {
    let told = messages(received).filter(move |(header, ..)| Some(header.port_number) != ignored);
    told.filter_map(|(header, bytes, payload)| match payload {
        Ok(payload) => event_of(&payload),
        Err(_) => Some(event_of_odd(header.message_type, bytes)),
    })
}

/// Returns what a notice tells of that cannot be read: of anything. But a router may learn odd routes all day, and of these it is known which
/// they are.
fn event_of_odd(kind: u16, notice: &[u8]) -> Event {
    if ![libc::RTM_NEWROUTE, libc::RTM_DELROUTE].contains(&kind) {
        return Event::Lost;
    }
    // The header of every message and that of routes, with a short number of the table in it (`struct nlmsghdr`, `struct rtmsg`).
    let Some((header, attributes)) = notice.split_first_chunk::<28>() else { return Event::Lost };
    let number = |kind| Some(u32::from_ne_bytes(*nested(attributes, kind)?.first_chunk()?));
    let table = number(libc::RTA_TABLE).unwrap_or_else(|| header[20].into());
    Event::Route { table, interface: number(libc::RTA_OIF) }
}

fn event_of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    let NetlinkPayload::InnerMessage(inner) = payload else { return None };
    match inner {
        RouteNetlinkMessage::NewLink(_) => link_of(inner).map(Event::Link),
        RouteNetlinkMessage::DelLink(link) => Some(Event::LinkGone(link.header.index)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Some(Event::Route { table: table_of(route), interface: interface_of(inner) })
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Some(Event::Rule),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(Event::Address(address.header.index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage};
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use netlink_packet_route::route::{RouteAttribute, RouteMessage};

    use super::*;

    /// Returns a notice whose last attribute, of 4 bytes, is cut short, so that nothing of it can be read.
    fn odd(notice: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), notice.into());
        message.header.port_number = 9;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let at = bytes.len() - 8;
        bytes[at..at + 2].copy_from_slice(&6_u16.to_ne_bytes());
        assert!(messages(&bytes).all(|(.., payload)| payload.is_err()));
        bytes
    }

    #[test]
    fn a_notice_that_cannot_be_read_tells_of_anything_or_of_its_route() {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::Mtu(1500));
        let mut route = RouteMessage::default();
        route.header.table = 254;
        route.attributes.extend([RouteAttribute::Oif(7), RouteAttribute::Priority(5)]);
        let mut far = route.clone();
        far.attributes.insert(0, RouteAttribute::Table(8365));
        let notices = [
            RouteNetlinkMessage::NewLink(link.clone()),
            RouteNetlinkMessage::NewRoute(route),
            RouteNetlinkMessage::DelRoute(far),
            RouteNetlinkMessage::DelLink(link),
        ];
        let notices = notices.map(odd).concat();
        let events: Vec<_> = events_of(&notices, None).collect();
        let [main, other] = [254, 8365].map(|table| Event::Route { table, interface: Some(7) });
        assert_eq!(events, [Event::Lost, main, other, Event::Lost]);
        assert_eq!(events_of(&notices, Some(9)).count(), 0, "our own");
    }
}
