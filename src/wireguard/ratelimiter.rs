//! A token bucket per source, for those who have proved under load that they own their address ([W] §5.3; kernel `ratelimiter.c`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::keyed::Keyed;
use super::time::{Instant, nanos};

/// Kernel `ratelimiter.c`, `PACKETS_PER_SECOND`.
const PACKETS_PER_SECOND: u32 = 20;
/// Kernel `ratelimiter.c`, `PACKETS_BURSTABLE`.
const PACKETS_BURSTABLE: u64 = 5;
/// Nanoseconds that a packet costs.
const COST: u64 = 1_000_000_000 / PACKETS_PER_SECOND as u64;
/// Nanoseconds that a bucket holds.
const TOKENS_MAX: u64 = COST * PACKETS_BURSTABLE;
/// A source that is silent for this long is forgotten; its bucket is full by then.
const IDLE: Duration = Duration::from_secs(1);

struct Bucket {
    last: Instant,
    tokens: u64,
}

/// The buckets. Memory is bounded: when there is no room for another source, it is refused.
pub struct RateLimiter {
    buckets: HashMap<u64, Bucket, Keyed>,
    max_entries: usize,
    last_sweep: Instant,
}

impl RateLimiter {
    /// Returns a limiter of at most `max_entries` sources at a time. `seed` is secret: who knew it could choose sources that collide.
    pub fn new(seed: [u8; 16], max_entries: usize) -> Self {
        Self { buckets: HashMap::with_hasher(Keyed::new(seed)), max_entries, last_sweep: Instant::default() }
    }

    /// Takes a packet's cost from the bucket of `source`, an IPv4 address or an IPv6 /64, and tells whether it was there.
    pub fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        self.sweep(now);
        let key = match source {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            // A host owns its whole /64. No global address begins with 64 zero bits, so the two kinds do not meet.
            IpAddr::V6(ip) => ip.to_bits().to_be_bytes()[..8].try_into().map_or(0, u64::from_be_bytes),
        };
        if let Some(bucket) = self.buckets.get_mut(&key) {
            let earned = nanos(now.since(bucket.last));
            bucket.last = now;
            bucket.tokens = bucket.tokens.saturating_add(earned).min(TOKENS_MAX);
            let is_paid = bucket.tokens >= COST;
            bucket.tokens -= if is_paid { COST } else { 0 };
            return is_paid;
        }
        if self.buckets.len() >= self.max_entries {
            return false;
        }
        self.buckets.insert(key, Bucket { last: now, tokens: TOKENS_MAX - COST });
        true
    }

    /// Kernel `ratelimiter.c`, `wg_ratelimiter_gc_entries`: once a second. A sweep costs what its insertions cost, not more.
    fn sweep(&mut self, now: Instant) {
        if now.since(self.last_sweep) >= IDLE && !self.buckets.is_empty() {
            self.buckets.retain(|_, bucket| now.since(bucket.last) < IDLE);
            if self.buckets.is_empty() {
                self.buckets = HashMap::with_hasher(self.buckets.hasher().clone());
            }
            self.last_sweep = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn ms(milliseconds: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + milliseconds * 1_000_000)
    }

    fn limiter(entries: usize) -> RateLimiter {
        RateLimiter::new([7; 16], entries)
    }

    /// Kernel `selftest/ratelimiter.c`: (milliseconds since the step before, allowed).
    const STEPS: [(u64, bool); 11] = [
        (0, true),
        (0, true),
        (0, true),
        (0, true),
        (0, true),
        (0, false),
        (50, true),
        (0, false),
        (100, true),
        (0, true),
        (0, false),
    ];

    #[test]
    fn the_kernels_timings_hold_for_ipv4_and_neighbours_have_their_own_buckets() {
        let mut limiter = limiter(1000);
        let mut now = 0;
        for (i, (step, allowed)) in (0_u32..).zip(STEPS) {
            now += step;
            let source = Ipv4Addr::from(0x0a00_0001);
            assert_eq!(limiter.allow(source.into(), ms(now)), allowed, "step {i}");
            let neighbour = Ipv4Addr::from(u32::from(source) + i + 1);
            assert!(limiter.allow(neighbour.into(), ms(now)), "neighbour in step {i}");
        }
    }

    #[test]
    fn the_kernels_timings_hold_for_an_ipv6_prefix_of_64_bits() {
        let mut limiter = limiter(1000);
        let mut now = 0;
        for (i, (step, allowed)) in (0_u128..).zip(STEPS) {
            now += step;
            let source = Ipv6Addr::from((0x2001_0db8_u128 << 96) | (i * 0x1_0001));
            assert_eq!(limiter.allow(source.into(), ms(now)), allowed, "step {i}");
            let other = Ipv6Addr::from(((0x2001_0db9_u128 + i) << 96) | 1);
            assert!(limiter.allow(other.into(), ms(now)), "other prefix in step {i}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_frees_itself_after_a_second() {
        let mut limiter = limiter(100);
        let source = |i: u32| IpAddr::from(Ipv4Addr::from(i));
        assert!((0..100).all(|i| limiter.allow(source(i), ms(0))));
        assert!(!limiter.allow(source(100), ms(0)));
        assert!(limiter.allow(source(5), ms(0)), "a known source keeps its bucket");
        assert!(!limiter.allow(source(100), ms(999)));
        assert!(limiter.allow(source(100), ms(2000)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
