//! The four messages on the wire ([W] §5.4), as views of bytes.
//!
//! Lengths are exact and the three reserved bytes are zero; anything else is no WireGuard message.

/// Length of an initiation.
pub const INITIATION_LEN: usize = 148;
/// Length of a response.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of a data message's header: type, receiver, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// Length of the authentication tag.
pub const TAG_LEN: usize = 16;
/// What a data message adds to its plaintext; also the length of a keepalive.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// A datagram by its kind: the first four bytes are the type as a little-endian number ([W] §5.4).
#[derive(Debug)]
pub enum Message<'a> {
    /// [W] §5.4.2.
    Initiation(&'a [u8; INITIATION_LEN]),
    /// [W] §5.4.3.
    Response(&'a [u8; RESPONSE_LEN]),
    /// [W] §5.4.7.
    CookieReply(&'a [u8; COOKIE_REPLY_LEN]),
    /// [W] §5.4.6. At least 32 bytes.
    Data(&'a mut [u8]),
}

impl<'a> Message<'a> {
    /// Tells what `datagram` is, or `None` if it is no WireGuard message.
    pub fn parse(datagram: &'a mut [u8]) -> Option<Self> {
        // Kernel `receive.c`, `validate_header_len`: type and reserved bytes are compared as one number.
        match *datagram.first_chunk::<4>()? {
            [1, 0, 0, 0] => Some(Self::Initiation((&*datagram).try_into().ok()?)),
            [2, 0, 0, 0] => Some(Self::Response((&*datagram).try_into().ok()?)),
            [3, 0, 0, 0] => Some(Self::CookieReply((&*datagram).try_into().ok()?)),
            [4, 0, 0, 0] if datagram.len() >= DATA_OVERHEAD => Some(Self::Data(datagram)),
            _ => None,
        }
    }
}

/// Tells whether `datagram` is a handshake message: the control thread's business.
pub fn is_handshake(datagram: &[u8]) -> bool {
    matches!(
        (datagram.first_chunk::<4>(), datagram.len()),
        (Some([1, 0, 0, 0]), INITIATION_LEN)
            | (Some([2, 0, 0, 0]), RESPONSE_LEN)
            | (Some([3, 0, 0, 0]), COOKIE_REPLY_LEN)
    )
}

/// The cleartext header of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index of the session.
    pub receiver: u32,
    /// The packet's number, which is its nonce.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header if `datagram` is a data message.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < DATA_OVERHEAD {
            return None;
        }
        let (kind, rest) = datagram.split_first_chunk::<4>()?;
        let (receiver, rest) = rest.split_first_chunk::<4>()?;
        let (counter, _) = rest.split_first_chunk::<8>()?;
        (*kind == [4, 0, 0, 0]).then_some(Self {
            receiver: u32::from_le_bytes(*receiver),
            counter: u64::from_le_bytes(*counter),
        })
    }

    /// Returns the header's bytes.
    pub fn to_bytes(self) -> [u8; DATA_HEADER_LEN] {
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes[0] = 4;
        bytes[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_lengths_and_zero_reserved_bytes_are_messages() {
        for kind in 0..=255_u8 {
            for len in 0..400 {
                let mut datagram = vec![0; len];
                if len > 0 {
                    datagram[0] = kind;
                }
                let valid = matches!((kind, len), (1, 148) | (2, 92) | (3, 64) | (4, 32..));
                assert_eq!(Message::parse(&mut datagram).is_some(), valid, "type {kind}, {len} bytes");
                if len > 3 {
                    datagram[2] = 1;
                    assert!(Message::parse(&mut datagram).is_none());
                }
            }
        }
    }

    #[test]
    fn data_header_survives_the_round_trip() {
        let header = DataHeader { receiver: 0x0403_0201, counter: 0x0c0b_0a09_0807_0605 };
        let mut datagram = [0; 32];
        datagram[..16].copy_from_slice(&header.to_bytes());
        assert_eq!(datagram[..16], [4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(DataHeader::parse(&datagram), Some(header));
    }
}
