//! How datagrams are called for: many in a call, or one where the system knows no more.

use std::io;

/// How datagrams are received or sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Calls {
    /// Many in a call.
    Many,
    /// One in a call: before Linux 2.6.33 (`recvmmsg`) and 3.0 (`sendmmsg`), on systems that resemble Linux, and where system calls are
    /// filtered.
    Single,
}

impl Calls {
    /// Makes calls for `headers` until one fails; from the first time that the call for many turns out to be unknown, the other one.
    ///
    /// Returns for how many headers it succeeded, or what hindered the first.
    pub(super) fn make(
        &mut self,
        headers: &mut [libc::mmsghdr],
        is_known: io::Result<()>,
        many: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
        mut single: impl FnMut(*mut libc::msghdr) -> libc::ssize_t,
    ) -> io::Result<usize> {
        if let Self::Many = self {
            let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
            let done = is_known.and_then(|()| {
                usize::try_from(many(headers.as_mut_ptr(), count)).map_err(|_| io::Error::last_os_error())
            });
            match done {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => *self = Self::Single,
                done => return done,
            }
        }
        for (at, header) in headers.iter_mut().enumerate() {
            match u32::try_from(single(&raw mut header.msg_hdr)) {
                Ok(len) => header.msg_len = len,
                Err(_) if at > 0 => return Ok(at),
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(headers.len())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket as Plain};

    use crate::sys::udp::{Family, RecvBatch, UdpOptions, UdpSocket};
    use crate::sys::with_faults;

    #[test]
    fn one_by_one_where_the_system_receives_no_more_in_a_call() {
        let socket = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
        let sender = Plain::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for number in 0..5 {
            sender.send_to(&[number; 9], (Ipv4Addr::LOCALHOST, socket.local_port().unwrap())).unwrap();
        }
        let mut batch = RecvBatch::new(3, 16);
        let mut arrived = Vec::new();
        // What the loopback carries is there when it has been sent.
        let mut receive = || {
            let received = batch.recv(&socket, usize::MAX).unwrap();
            arrived.extend((0..received).map(|slot| batch.get_mut(slot).unwrap().payload.to_vec()));
            received
        };
        let (counts, is_left) = with_faults("ReceiveMany=38*1", || [receive(), receive()]);
        assert_eq!((counts, is_left), ([3, 2], false));
        assert_eq!(arrived, (0..5).map(|number| vec![number; 9]).collect::<Vec<_>>());
        assert_eq!(batch.recv(&socket, 3).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
