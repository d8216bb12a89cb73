//! TAI64N labels, which make replayed initiations recognisable ([W] §5.1).

use std::time::Duration;

/// The label of the Unix epoch: 2^62 by definition of TAI64, and the ten seconds that TAI was ahead then. Leap seconds since are ignored,
/// as in every implementation.
const EPOCH: u64 = 0x4000_0000_0000_000a;

/// Kernel `noise.c`, `tai64n_now`: 2^24 ns are 16.8 ms, coarse enough not to tell of the sender's clock, fine enough for 50 a second.
const TICK_NANOS: u32 = 1 << 24;

/// A TAI64N label, big-endian: later labels compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp([u8; 12]);

impl Timestamp {
    /// Takes the 12 bytes of a message.
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// Returns the 12 bytes.
    pub fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// Returns the label of `unix` (time since the Unix epoch), rounded down to a tick.
    pub fn at(unix: Duration) -> Self {
        Self::new(EPOCH.wrapping_add(unix.as_secs()), unix.subsec_nanos())
    }

    /// Returns the label of `unix`, or the first one after `last` if that is later: the peer would discard another (opnsense #9181,
    /// a clock that was set back).
    pub fn next_after(unix: Duration, last: Option<Self>) -> Self {
        let now = Self::at(unix);
        match last {
            Some(last) if last >= now => last.successor(),
            Some(_) | None => now,
        }
    }

    fn new(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&(nanos & !(TICK_NANOS - 1)).to_be_bytes());
        Self(bytes)
    }

    fn successor(self) -> Self {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        let seconds = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        match u32::from_be_bytes(nanos).saturating_add(TICK_NANOS) {
            nanos @ 0..1_000_000_000 => Self::new(seconds, nanos),
            1_000_000_000.. => Self::new(seconds.wrapping_add(1), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_that_of_tai_and_nanoseconds_are_whitened() {
        let label = Timestamp::at(Duration::new(1, 0x0212_3456));
        assert_eq!(label.as_bytes(), &[0x40, 0, 0, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0]);
    }

    #[test]
    fn labels_within_a_tick_are_equal_and_later_ticks_greater() {
        let at = |nanos| Timestamp::at(Duration::new(7, nanos));
        assert_eq!(at(0), at(TICK_NANOS - 1));
        assert!(at(TICK_NANOS) > at(TICK_NANOS - 1));
        assert!(Timestamp::at(Duration::new(8, 0)) > at(999_999_999));
    }

    #[test]
    fn labels_always_grow_though_the_clock_is_set_back() {
        // T30.
        let mut last = Timestamp::next_after(Duration::from_secs(3600), None);
        for _ in 0..200 {
            let next = Timestamp::next_after(Duration::from_secs(1), Some(last));
            assert!(next > last);
            last = next;
        }
        assert!(last < Timestamp::at(Duration::from_secs(3605)), "by single ticks");
    }
}
