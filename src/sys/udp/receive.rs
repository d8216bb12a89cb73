//! Receiving: many datagrams a call, runs of them as one (`UDP_GRO`), and what the kernel says of each.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::{LocalAddr, UdpSocket, empty_header};
use crate::sys::calls::Calls;
use crate::sys::fault::{self, Call};
use crate::sys::offload::Feature;
use crate::sys::{cmsg, sockaddr};

/// Buffers for datagrams to receive in one call.
pub struct RecvBatch {
    slot_len: usize,
    buffers: Vec<u8>,
    names: Vec<sockaddr::Name>,
    controls: Vec<cmsg::Buffer>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    calls: Calls,
    /// The socket of the last call may receive several datagrams as one.
    may_be_runs: bool,
}

/// A datagram that was received.
#[derive(Debug)]
pub struct Received<'a> {
    /// What it carries.
    pub payload: &'a mut [u8],
    /// Where the payload lies in [`RecvBatch::bytes`].
    pub range: Range<usize>,
    /// Its payload is that of several datagrams of this length, of which only the last one may be shorter; else its length.
    pub segment: usize,
    /// Who sent it; a link-local address with its scope.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: Option<LocalAddr>,
    /// The two ECN bits.
    pub ecn: u8,
    /// It was longer than the buffer; or there was no room for what the kernel says of it, and it may be several datagrams.
    pub truncated: bool,
}

// SAFETY: the pointers in the headers are written by the call that uses them and mean nothing afterwards.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    /// Returns `slots` buffers of `slot_len` bytes. Pages that no datagram touches take no memory.
    pub fn new(slots: usize, slot_len: usize) -> Self {
        Self {
            slot_len,
            buffers: vec![0; slots * slot_len],
            names: vec![sockaddr::EMPTY; slots],
            controls: vec![cmsg::Buffer::new(); slots],
            iovecs: Vec::with_capacity(slots),
            headers: Vec::with_capacity(slots),
            calls: Calls::Many,
            may_be_runs: false,
        }
    }

    /// Receives as many datagrams as there are, at most one a buffer and at most `most`, and returns their number.
    ///
    /// # Errors
    /// `WouldBlock` if there are none.
    pub fn recv(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        fault::check(Call::Receive)?;
        self.may_be_runs = socket.offloads.has(Feature::Gro);
        let room = if fault::is_due(Call::ReceiveRoom) { self.slot_len.min(1600) } else { self.slot_len };
        let control_room = if fault::is_due(Call::ControlRoom) { 0 } else { cmsg::CAPACITY };
        self.iovecs.clear();
        self.iovecs.extend(
            self.buffers.chunks_exact_mut(self.slot_len).take(most).map(|slot| libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: room.min(slot.len()),
            }),
        );
        self.headers.clear();
        let parts = self.iovecs.iter_mut().zip(&mut self.names).zip(&mut self.controls);
        self.headers.extend(parts.map(|((iovec, name), control)| {
            let mut header = empty_header();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = sockaddr::LEN_MAX;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control_room;
            header
        }));
        let fd = socket.as_raw_fd();
        let (flags, none) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        let received = self.calls.make(
            &mut self.headers,
            fault::check(Call::ReceiveMany),
            // SAFETY: each header points to a buffer, a name and a control buffer of the lengths it says, all owned by `self` and not
            // touched until the call returns.
            |headers, count| unsafe { libc::recvmmsg(fd, headers, count, flags, none) },
            // SAFETY: likewise.
            |header| unsafe { libc::recvmsg(fd, header, flags) },
        )?;
        // Only now: to find nothing is no attempt.
        let _ = [Call::ReceiveRoom, Call::ControlRoom].map(fault::check);
        for (header, control) in self.headers[..received].iter().zip(&mut self.controls) {
            control.set_len(header.msg_hdr.msg_controllen);
        }
        Ok(received)
    }

    /// Returns datagram `slot` of the last call, or `None` if its sender's address makes no sense.
    pub fn get_mut(&mut self, slot: usize) -> Option<Received<'_>> {
        let header = &self.headers[slot];
        let from = sockaddr::decode(&self.names[slot], header.msg_hdr.msg_namelen)?;
        let (mut to, mut ecn, mut segment) = (None, 0, 0);
        for (level, kind, data) in self.controls[slot].iter() {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => to = v4_info(data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => to = v6_info(data),
                // One byte for IPv4, an int for IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = data.first().map_or(0, |tos| tos & 3),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = data
                        .first_chunk()
                        .map_or(0, |class| i32::from_ne_bytes(*class) & 3)
                        .try_into()
                        .unwrap_or(0);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    // An int, in the machine's byte order.
                    segment = data.first_chunk().map_or(0, |len| i32::from_ne_bytes(*len));
                }
                _ => {}
            }
        }
        let flags = header.msg_hdr.msg_flags;
        // Of a run, its length is what cannot be done without; a single datagram has none.
        let is_unknown = flags & libc::MSG_CTRUNC != 0 && self.may_be_runs && segment == 0;
        let truncated = flags & libc::MSG_TRUNC != 0 || is_unknown;
        let len = (header.msg_len as usize).min(self.slot_len);
        let start = slot * self.slot_len;
        let range = start..start + len;
        let segment = usize::try_from(segment).ok().filter(|&segment| segment > 0).unwrap_or(len);
        Some(Received { payload: &mut self.buffers[range.clone()], range, segment, from, to, ecn, truncated })
    }

    /// Returns all buffers.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffers
    }
}

/// `struct in_pktinfo`: interface, preferred source, destination of the header.
fn v4_info(data: &[u8]) -> Option<LocalAddr> {
    let interface = u32::from_ne_bytes(*data.first_chunk()?);
    let destination: [u8; 4] = data.get(8..12)?.try_into().ok()?;
    Some((destination.into(), interface))
}

/// `struct in6_pktinfo`: destination, interface.
fn v6_info(data: &[u8]) -> Option<LocalAddr> {
    let destination: [u8; 16] = *data.first_chunk()?;
    let interface = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
    Some((destination.into(), interface))
}
