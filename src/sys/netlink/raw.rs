//! Messages and attributes of netlink as bytes, for the families that no library is used for.

use std::fmt;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use zeroize::{Zeroize, Zeroizing};

use super::{ATTEMPTS, RECEIVE_LEN};

/// `NLMSG_ERROR`, which is an acknowledgement if its code is 0.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// `struct nlmsghdr`, and `struct nfgenmsg` or `struct genlmsghdr` behind it.
const HEADER_LEN: usize = 16;
const GENERAL_LEN: usize = 4;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// A list of attributes. It is wiped: there may be keys in it.
#[derive(Clone, Default)]
pub(in crate::sys::netlink) struct Attributes(Vec<u8>);

impl Attributes {
    pub(in crate::sys::netlink) fn new() -> Self {
        Self::default()
    }

    /// Returns an empty list that takes this many bytes without being copied to where there is more room.
    pub(in crate::sys::netlink) fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    pub(in crate::sys::netlink) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("values are shorter than 64 KiB");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(in crate::sys::netlink) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(in crate::sys::netlink) fn to_bytes(&self) -> Vec<u8> {
        self.0.clone()
    }

    pub(in crate::sys::netlink) fn append(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    pub(in crate::sys::netlink) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(in crate::sys::netlink) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(in crate::sys::netlink) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends a list as it was received.
    pub(in crate::sys::netlink) fn nest_bytes(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NESTED, inner)
    }

    pub(in crate::sys::netlink) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({} bytes)", self.0.len())
    }
}

/// A message to the kernel, without its sequence number. It is wiped likewise.
pub(in crate::sys::netlink) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// Returns a message of this kind, with what stands before the attributes.
    pub(in crate::sys::netlink) fn new(
        kind: u16,
        flags: u16,
        general: [u8; 4],
        attributes: &Attributes,
    ) -> Self {
        Self { kind, flags, body: [&general, &attributes.0[..]].concat() }
    }

    pub(in crate::sys::netlink) fn append_to(&self, bytes: &mut Vec<u8>, sequence: u32, flags: u16) {
        let len = u32::try_from(HEADER_LEN + self.body.len()).expect("messages are shorter than 4 GiB");
        bytes.extend(len.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.body);
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.body.zeroize();
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message(kind {:#x}, {} bytes)", self.kind, self.body.len())
    }
}

/// A socket for requests, one after the other.
pub(in crate::sys::netlink) struct Requests {
    socket: Socket,
    port: u32,
    sequence: u32,
}

impl Requests {
    /// Opens a socket of a family of netlink.
    pub(in crate::sys::netlink) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, port, sequence: 0 })
    }

    /// Returns the socket's number, which the kernel names in notices of what this socket has changed.
    pub(in crate::sys::netlink) fn port(&self) -> u32 {
        self.port
    }

    /// Returns the socket, for requests of another form.
    pub(in crate::sys::netlink) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Returns the sequence number of the next message.
    pub(in crate::sys::netlink) fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Asks for one thing, for a list by `NLM_F_DUMP`, or for a change by `NLM_F_ACK`, and returns the attributes of each reply.
    pub(in crate::sys::netlink) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        general: [u8; 4],
        attributes: &Attributes,
    ) -> io::Result<Vec<Zeroizing<Vec<u8>>>> {
        let message = Message::new(kind, NLM_F_REQUEST | flags, general, attributes);
        for _ in 0..ATTEMPTS {
            let mut bytes = Zeroizing::new(Vec::with_capacity(attributes.len() + 64));
            message.append_to(&mut bytes, self.next(), 0);
            self.socket.send(&bytes, 0)?;
            if let Some(replies) = self.replies(flags & (NLM_F_DUMP | NLM_F_ACK) == 0)? {
                return Ok(replies);
            }
        }
        Err(io::Error::other("what was listed kept changing"))
    }

    /// Receives the replies to the last request; `None` if they are a list that changed meanwhile.
    fn replies(&self, is_question: bool) -> io::Result<Option<Vec<Zeroizing<Vec<u8>>>>> {
        let mut all = Some(Vec::new());
        let mut buffer = Zeroizing::new(Vec::with_capacity(RECEIVE_LEN));
        loop {
            buffer.clear();
            self.socket.recv(&mut *buffer, 0)?;
            for reply in replies(&buffer) {
                if reply.sequence != self.sequence {
                    continue;
                }
                if reply.flags & NLM_F_DUMP_INTR != 0 {
                    all = None;
                }
                match reply.error {
                    Some(0) => return Ok(all),
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                    None => {}
                }
                if let Some(all) = &mut all {
                    all.push(Zeroizing::new(reply.attributes.to_vec()));
                }
                if is_question {
                    return Ok(all);
                }
            }
        }
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(in crate::sys::netlink) struct Reply<'a> {
    pub(in crate::sys::netlink) kind: u16,
    pub(in crate::sys::netlink) flags: u16,
    pub(in crate::sys::netlink) sequence: u32,
    /// Whom it answers; in a notice, who has changed something.
    pub(in crate::sys::netlink) port: u32,
    /// The negative errno of a refusal; 0 for an acknowledgement and at the end of a list.
    pub(in crate::sys::netlink) error: Option<i32>,
    pub(in crate::sys::netlink) attributes: &'a [u8],
}

/// Splits what one call received.
pub(in crate::sys::netlink) fn replies(received: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_LEN] = rest.first_chunk()?;
        let len = usize::try_from(u32::from_ne_bytes(*header.first_chunk()?)).ok()?;
        let body = rest.get(HEADER_LEN..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (kind, flags) = (number(4), number(6));
        let [sequence, port] = [8, 12].map(|at| header[at..].first_chunk().map(|n| u32::from_ne_bytes(*n)));
        let (sequence, port) = (sequence?, port?);
        let error = [ERROR, DONE]
            .contains(&kind)
            .then(|| body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)));
        Some(Reply {
            kind,
            flags,
            sequence,
            port,
            error,
            attributes: body.get(GENERAL_LEN..).unwrap_or_default(),
        })
    })
}

/// Splits a list of attributes into their kinds and values.
pub(in crate::sys::netlink) fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    })
}

/// Returns the value of the first attribute of this kind.
pub(in crate::sys::netlink) fn nested(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find_map(|(found, value)| (found == kind).then_some(value))
}

pub(in crate::sys::netlink) fn be32(list: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(*nested(list, kind)?.first_chunk()?))
}

pub(in crate::sys::netlink) fn be64(list: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(*nested(list, kind)?.first_chunk()?))
}

pub(in crate::sys::netlink) fn text(list: &[u8], kind: u16) -> Option<String> {
    let value = nested(list, kind)?;
    let value = value.split(|byte| *byte == 0).next()?;
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_written() {
        let inner = Attributes::new().be64(5, 1 << 40).text(6, "name");
        let list = Attributes::new().be32(1, 7).nest(2, inner).bytes(3, &[9]);
        assert_eq!(list.0.len() % 4, 0);
        assert_eq!(be32(&list.0, 1), Some(7));
        let inner = nested(&list.0, 2).unwrap();
        assert_eq!((be64(inner, 5), text(inner, 6).as_deref()), (Some(1 << 40), Some("name")));
        assert_eq!(nested(&list.0, 3), Some(&[9][..]));
        assert_eq!(nested(&list.0, 4), None);
    }

    #[test]
    fn broken_lengths_end_lists() {
        for bytes in [&[0; 3][..], &[0; 4], &[3, 0, 1, 0], &[9, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let mut message = Vec::new();
        Message::new(16, 0, [0; 4], &Attributes::new()).append_to(&mut message, 1, 0);
        assert_eq!(replies(&message).count(), 1);
        for len in [0_u32, 15, 21, u32::MAX] {
            message[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(replies(&message).count(), 0, "{len}");
        }
    }
}
