//! Control messages of `recvmsg` and `sendmsg` (cmsg(3)), as bytes.
//!
//! A message is a `cmsghdr` (length as `size_t`, level and type as `int`) and its data, each padded to the size of a pointer.

/// Bytes for the control messages of one datagram: address, DS field, hop limit and length of a run need at most 112.
pub(super) const CAPACITY: usize = 128;

const ALIGN: usize = size_of::<usize>();
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// A buffer for control messages.
#[derive(Clone)]
#[repr(C, align(8))]
pub(super) struct Buffer {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Buffer {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; CAPACITY], len: 0 }
    }

    /// Forgets all messages.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Returns the bytes in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Says how many bytes the kernel has written.
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(CAPACITY);
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// Appends a message.
    ///
    /// # Panics
    /// If there is no room for it.
    pub(super) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = self.len + HEADER_LEN + data.len();
        let message = &mut self.bytes[self.len..end.next_multiple_of(ALIGN)];
        message.fill(0);
        message[..ALIGN].copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        message[HEADER_LEN - 8..HEADER_LEN - 4].copy_from_slice(&level.to_ne_bytes());
        message[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER_LEN..HEADER_LEN + data.len()].copy_from_slice(data);
        self.len = end.next_multiple_of(ALIGN);
    }

    /// Returns level, type and data of each message.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let mut rest = &self.bytes[..self.len];
        std::iter::from_fn(move || {
            let len = usize::from_ne_bytes(*rest.first_chunk()?);
            let message = rest.get(..len)?;
            let header = message.get(..HEADER_LEN)?;
            let level = i32::from_ne_bytes(*header[HEADER_LEN - 8..].first_chunk()?);
            let kind = i32::from_ne_bytes(*header.last_chunk()?);
            rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
            Some((level, kind, &message[HEADER_LEN..]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back_as_written() {
        let mut buffer = Buffer::new();
        buffer.push(1, 2, &[3; 5]);
        buffer.push(-4, 5, &[6; 16]);
        assert_eq!(buffer.iter().collect::<Vec<_>>(), [(1, 2, &[3; 5][..]), (-4, 5, &[6; 16])]);
        assert_eq!(buffer.len() % 8, 0);
    }

    #[test]
    fn broken_lengths_end_the_list() {
        let mut buffer = Buffer::new();
        buffer.push(1, 2, &[3; 4]);
        for len in [0, 1, 15, 1000, usize::MAX] {
            buffer.bytes[..8].copy_from_slice(&usize::to_ne_bytes(len));
            assert_eq!(buffer.iter().count(), 0, "{len}");
        }
    }
}
