//! Under load: when there are more handshakes than can be answered, and who gets in then ([W] §5.3).
//!
//! Everything here is cheap and needs no peer, so any thread may do it: a flood is turned away where it arrives, and those who show
//! that they own their address do not queue behind it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::constants::{UNDER_LOAD_IN_VAIN, UNDER_LOAD_QUEUE, UNDER_LOAD_STICKY};
use super::cookie::Checker;
use super::dropped::Dropped;
use super::messages::COOKIE_REPLY_LEN;
use super::ratelimiter::RateLimiter;
use super::time::Instant;
use crate::crypto::random::Random;

/// Sources that a rate limiter remembers at most (kernel `ratelimiter.c`: eight a bucket, 8192 buckets on a machine of over 1 GiB).
pub const RATE_LIMITER_ENTRIES: usize = 8 * 8192;

/// Remembers when there was too much to do. Where threads get in each other's way, a message is not counted.
#[derive(Debug, Default)]
pub struct Load {
    /// Nanoseconds; 0 for never.
    last: AtomicU64,
    /// Messages that led to nothing since then.
    in_vain: AtomicUsize,
    since: AtomicU64,
}

impl Load {
    /// Tells whether senders have to show their address, while `queued` handshake messages wait.
    ///
    /// Kernel `receive.c`, `wg_receive_handshake_packet`: an eighth of the queue, and for a second after that.
    pub fn is_heavy(&self, queued: usize, now: Instant) -> bool {
        if queued >= UNDER_LOAD_QUEUE {
            self.last.store(now.as_nanos().max(1), Relaxed);
            return true;
        }
        match self.last.load(Relaxed) {
            0 => false,
            last => now.since(Instant::from_nanos(last)) < UNDER_LOAD_STICKY,
        }
    }

    /// Counts a message that was opened for nothing, or turned away by a cookie reply. Many in a second are a flood as well: one that is
    /// worked off as it comes never fills the queue, and takes all of a core for that.
    pub fn note_in_vain(&self, now: Instant) {
        let begins = now.since(Instant::from_nanos(self.since.load(Relaxed))) >= UNDER_LOAD_STICKY;
        if begins || self.in_vain.fetch_add(1, Relaxed) + 1 >= UNDER_LOAD_IN_VAIN {
            self.in_vain.store(usize::from(begins), Relaxed);
            self.since.store(now.as_nanos(), Relaxed);
            if !begins {
                self.last.store(now.as_nanos().max(1), Relaxed);
            }
        }
    }
}

/// What becomes of an initiation or a response under load.
#[derive(Debug, PartialEq, Eq)]
pub enum Screened {
    /// Its sender owns the address and does not send too much.
    Admitted,
    /// It is dropped.
    Dropped(Dropped),
    /// It is dropped, and its sender gets this cookie reply.
    Answered([u8; COOKIE_REPLY_LEN]),
}

/// Looks at macs and rate of an initiation or a response ([W] §5.3, §5.4.4; kernel `receive.c`, `wg_receive_handshake_packet`).
pub fn screen(
    checker: &Checker,
    limiter: &mut RateLimiter,
    message: &[u8],
    from: SocketAddr,
    now: Instant,
    random: &mut dyn Random,
) -> Screened {
    if !checker.check_mac1(message) {
        return Screened::Dropped(Dropped::BadMac1);
    }
    if checker.check_mac2(message, from, now) {
        return match limiter.allow(from.ip(), now) {
            true => Screened::Admitted,
            false => Screened::Dropped(Dropped::RateLimited),
        };
    }
    let Some(&sender) = message.get(4..).and_then(<[u8]>::first_chunk) else {
        return Screened::Dropped(Dropped::Malformed);
    };
    Screened::Answered(checker.reply(message, from, u32::from_le_bytes(sender), now, random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::Os;
    use crate::crypto::x25519::PublicKey;
    use crate::wireguard::cookie::Generator;

    fn ms(milliseconds: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + milliseconds * 1_000_000)
    }

    #[test]
    fn load_begins_at_an_eighth_of_the_queue_and_lasts_a_second() {
        let load = Load::default();
        assert!(!load.is_heavy(511, ms(0)));
        assert!(load.is_heavy(512, ms(0)));
        assert!(load.is_heavy(0, ms(999)));
        assert!(!load.is_heavy(0, ms(1000)));
    }

    #[test]
    fn what_leads_to_nothing_is_a_load_by_its_rate_and_stays_one_as_long_as_it_comes() {
        let load = Load::default();
        let at = |nanos: u64| Instant::from_nanos(1_000_000_000_000 + nanos);
        // 4000 a second, for ten seconds.
        for number in 0..40_000 {
            load.note_in_vain(at(250_000 * number));
            assert!(!load.is_heavy(0, at(250_000 * number)), "{number}");
        }
        // 5000 a second, for as long.
        for number in 0..50_000 {
            let now = at(20_000_000_000 + 200_000 * number);
            load.note_in_vain(now);
            assert_eq!(load.is_heavy(0, now), number >= 4095, "{number}");
        }
        assert!(load.is_heavy(0, ms(30_100)));
        assert!(!load.is_heavy(0, ms(31_000)));
    }

    #[test]
    fn only_who_shows_the_address_gets_in_and_not_too_often() {
        let public = PublicKey::new([9; 32]);
        let (checker, mut generator) = (Checker::new(&public), Generator::new(&public));
        let mut limiter = RateLimiter::new([1; 16], 100);
        let from = "192.0.2.1:7".parse().unwrap();
        let mut message = [5; 148];
        let mut screen = |message: &[u8]| screen(&checker, &mut limiter, message, from, ms(0), &mut Os);
        assert_eq!(screen(&message), Screened::Dropped(Dropped::BadMac1));
        generator.add_macs(&mut message, ms(0));
        let Screened::Answered(reply) = screen(&message) else { panic!("no cookie") };
        assert!(generator.consume_reply(&reply, ms(0)));
        generator.add_macs(&mut message, ms(0));
        let admitted = (0..10).filter(|_| screen(&message) == Screened::Admitted).count();
        assert_eq!(admitted, 5);
        assert_eq!(screen(&message), Screened::Dropped(Dropped::RateLimited));
    }
}
