//! How long handshakes take: counted by length in fixed buckets, with neither a lock nor an allocation.
//!
//! A handshake is timed by the one who waits for it, from the first initiation that is sent until a session is confirmed ([W] §5.4.5):
//! repeated initiations ([W] §6.4) belong to one handshake, and so does that of a peer who began at the same time. One that is given up is
//! not counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::time::nanos;
use crate::config::Durations;

/// The upper bounds of the buckets in microseconds. An initiation is repeated after 5 s ([W] §6.1) and given up after 90.
const BOUNDS: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// Counters of handshakes by the time that they took.
#[derive(Debug)]
pub struct HandshakeTimes {
    /// One for each bound, and one for longer times.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Default for HandshakeTimes {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_nanos: AtomicU64::new(0) }
    }
}

impl HandshakeTimes {
    /// Counts a handshake that took `time`.
    pub fn count(&self, time: Duration) {
        let at = BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < time);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos(time), Relaxed);
    }

    /// Returns what was counted so far.
    pub fn durations(&self) -> Durations {
        let counts = self.counts.each_ref().map(|count| count.load(Relaxed));
        Durations {
            within: BOUNDS.map(Duration::from_micros).into_iter().zip(counts).collect(),
            longer: counts[BOUNDS.len()],
            sum: Duration::from_nanos(self.sum_nanos.load(Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_within_the_least_bound_that_it_does_not_exceed() {
        let times = HandshakeTimes::default();
        for micros in [0, 500, 501, 30_000_000, 30_000_001] {
            times.count(Duration::from_micros(micros));
        }
        let durations = times.durations();
        let nonzero: Vec<_> = durations.within.into_iter().filter(|(_, count)| *count > 0).collect();
        let bounds = [(500, 2), (1_000, 1), (30_000_000, 1)];
        assert_eq!(nonzero, bounds.map(|(micros, count)| (Duration::from_micros(micros), count)));
        assert_eq!((durations.longer, durations.sum), (1, Duration::from_micros(60_001_002)));
    }
}
