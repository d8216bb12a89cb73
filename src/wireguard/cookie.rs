//! mac1, mac2 and cookies: how a responder under load makes sure that its correspondent has an address ([W] §5.3, §5.4.4, §5.4.7).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::constants::{COOKIE_SECRET_LATENCY, COOKIE_SECRET_MAX_AGE, LABEL_COOKIE, LABEL_MAC1};
use super::messages::COOKIE_REPLY_LEN;
use super::time::Instant;
use crate::crypto::blake2s::{MacKey, hash, mac};
use crate::crypto::random::Random;
use crate::crypto::secret::{Secret, equal};
use crate::crypto::x25519::PublicKey;
use crate::crypto::xaead;

/// Length of mac1 and of mac2, the last two fields of a handshake message.
const MAC_LEN: usize = 16;

/// The keys that follow from the static key of the responder ([W] §5.4.4, §5.4.7).
struct Keys {
    /// Worked in already: who floods us with messages of a wrong mac1 pays for a hash, and so do we.
    mac1: MacKey,
    cookie: [u8; 32],
}

impl Keys {
    fn new(responder: &PublicKey) -> Self {
        Self {
            mac1: MacKey::new(&hash(&[LABEL_MAC1, responder.as_bytes()])),
            cookie: hash(&[LABEL_COOKIE, responder.as_bytes()]),
        }
    }
}

/// Splits a handshake message into what mac1 covers, mac1 and mac2.
fn split(message: &[u8]) -> Option<(&[u8], &[u8; MAC_LEN], &[u8; MAC_LEN])> {
    let (rest, mac2) = message.split_last_chunk()?;
    let (covered, mac1) = rest.split_last_chunk()?;
    Some((covered, mac1, mac2))
}

/// The receiver's side: checks macs and hands out cookies. Any thread may do either.
pub struct Checker {
    keys: Keys,
    random: ArcSwapOption<Changing>,
}

/// R, the secret behind the cookies.
struct Changing {
    secret: Secret<32>,
    born: Instant,
}

impl Changing {
    /// [W] §5.4.7: the secret changes every two minutes, and cookies die with it.
    fn is_valid(&self, now: Instant) -> bool {
        now.since(self.born) < COOKIE_SECRET_MAX_AGE
    }
}

impl Checker {
    /// Returns the checker of messages to the holder of `public`.
    pub fn new(public: &PublicKey) -> Self {
        Self { keys: Keys::new(public), random: ArcSwapOption::empty() }
    }

    /// Tells whether the sender knows our public key.
    pub fn check_mac1(&self, message: &[u8]) -> bool {
        split(message).is_some_and(|(covered, mac1, _)| equal(mac1, &self.keys.mac1.mac(&[covered])))
    }

    /// Tells whether the message carries a cookie that we gave to `from` and that has not expired.
    pub fn check_mac2(&self, message: &[u8], from: SocketAddr, now: Instant) -> bool {
        let changing = self.random.load();
        let Some(changing) = changing.as_deref().filter(|changing| changing.is_valid(now)) else {
            return false;
        };
        split(message).is_some_and(|(covered, mac1, mac2)| {
            equal(mac2, &mac(cookie_of(&changing.secret, from).as_bytes(), &[covered, mac1]))
        })
    }

    /// Returns the reply that gives `to` a cookie; `receiver` is the index by which the sender knows its message.
    pub fn reply(
        &self,
        message: &[u8],
        to: SocketAddr,
        receiver: u32,
        now: Instant,
        random: &mut dyn Random,
    ) -> [u8; COOKIE_REPLY_LEN] {
        let changing = self.valid(now, random);
        let mut reply = [0; COOKIE_REPLY_LEN];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&receiver.to_le_bytes());
        let mut nonce = [0; 24];
        random.fill(&mut nonce);
        reply[8..32].copy_from_slice(&nonce);
        // The additional data is the mac1 that is answered: the cookie is bound to that message.
        let mac1 = split(message).map_or([0; MAC_LEN], |(_, mac1, _)| *mac1);
        let cookie = cookie_of(&changing.secret, to);
        xaead::seal(&self.keys.cookie, &nonce, &mac1, cookie.as_bytes(), &mut reply[32..]);
        reply
    }

    /// Returns the secret, a new one if the last has had its time.
    fn valid(&self, now: Instant, random: &mut dyn Random) -> Arc<Changing> {
        let old = self.random.load();
        if let Some(valid) = old.as_ref().filter(|changing| changing.is_valid(now)) {
            return Arc::clone(valid);
        }
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        let new = Arc::new(Changing { secret: Secret::new(bytes), born: now });
        zeroize::Zeroize::zeroize(&mut bytes);
        let found = self.random.compare_and_swap(&*old, Some(Arc::clone(&new)));
        // Another thread may have been first; then its secret is the one.
        match &*found {
            Some(other) if other.is_valid(now) => Arc::clone(other),
            Some(_) | None => new,
        }
    }
}

/// τ := Mac(R, address ‖ port), the port in network order.
fn cookie_of(secret: &Secret<32>, source: SocketAddr) -> Secret<MAC_LEN> {
    let port = source.port().to_be_bytes();
    let key = secret.as_bytes();
    Secret::new(match source.ip() {
        IpAddr::V4(ip) => mac(key, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(key, &[&ip.octets(), &port]),
    })
}

/// The sender's side: writes macs and keeps the cookie that the responder gave.
pub struct Generator {
    keys: Keys,
    cookie: Option<(Secret<MAC_LEN>, Instant)>,
    /// The mac1 sent last, if no cookie has answered it.
    sent: Option<[u8; MAC_LEN]>,
}

impl Generator {
    /// Returns the generator for messages to the holder of `responder`.
    pub fn new(responder: &PublicKey) -> Self {
        Self { keys: Keys::new(responder), cookie: None, sent: None }
    }

    /// Writes mac1, and mac2 if there is a cookie fresh enough, into the last 32 bytes of `message`.
    pub fn add_macs(&mut self, message: &mut [u8], now: Instant) {
        let Some((rest, mac2)) = message.split_last_chunk_mut::<MAC_LEN>() else { return };
        let Some((covered, mac1)) = rest.split_last_chunk_mut::<MAC_LEN>() else { return };
        *mac1 = self.keys.mac1.mac(&[covered]);
        self.sent = Some(*mac1);
        // Kernel `cookie.c`, `wg_cookie_add_mac_to_packet`: not with a cookie that may die on the way.
        let usable = |born: &Instant| now.since(*born) < COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY;
        *mac2 = match &self.cookie {
            Some((cookie, born)) if usable(born) => mac(cookie.as_bytes(), &[covered, mac1]),
            Some(_) | None => [0; MAC_LEN],
        };
    }

    /// Keeps the cookie of a reply if it answers our last message.
    pub fn consume_reply(&mut self, reply: &[u8; COOKIE_REPLY_LEN], now: Instant) -> bool {
        // Kernel `cookie.c`, `wg_cookie_message_consume`: only once per message sent.
        let Some(mac1) = self.sent else { return false };
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&reply[8..32]);
        let mut cookie = [0; MAC_LEN];
        if xaead::open(&self.keys.cookie, &nonce, &mac1, &reply[32..], &mut cookie).is_err() {
            return false;
        }
        self.cookie = Some((Secret::new(cookie), now));
        zeroize::Zeroize::zeroize(&mut cookie);
        self.sent = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::Os;
    use std::time::Duration;

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn pair() -> (Checker, Generator) {
        let public = PublicKey::new([9; 32]);
        (Checker::new(&public), Generator::new(&public))
    }

    #[test]
    fn mac1_shows_knowledge_of_the_responders_key() {
        let (checker, mut generator) = pair();
        let mut message = [5; 148];
        generator.add_macs(&mut message, at(0));
        assert!(checker.check_mac1(&message));
        assert_eq!(message[132..], [0; 16], "without a cookie mac2 is zero");
        for at in 0..132 {
            message[at] ^= 1;
            assert!(!checker.check_mac1(&message), "byte {at}");
            message[at] ^= 1;
        }
        let mut stranger = Generator::new(&PublicKey::new([8; 32]));
        stranger.add_macs(&mut message, at(0));
        assert!(!checker.check_mac1(&message));
    }

    #[test]
    fn labels_and_lengths_are_those_of_the_paper() {
        // §5.4.4, §5.4.7, computed by Python's `hashlib.blake2s`.
        let public = PublicKey::new([9; 32]);
        let mut message = [5; 148];
        Generator::new(&public).add_macs(&mut message, at(0));
        assert_eq!(hex::encode(&message[116..132]), "fa2f9ba08578ce8ddf00e056bc07c887");
        let key = "1030827a08d835759b73ef5b8b35c67a34f8687612a96aefe1af01be3027f856";
        assert_eq!(hex::encode(Keys::new(&public).cookie), key);
    }

    #[test]
    fn a_cookie_reply_is_bound_to_the_mac1_it_answers() {
        // §5.4.7: XAEAD with the additional data msg.mac1.
        let (checker, mut generator) = pair();
        let mut message = [5; 148];
        generator.add_macs(&mut message, at(0));
        let reply = checker.reply(&message, "192.0.2.1:7".parse().unwrap(), 1, at(0), &mut Os);
        let (nonce, mac1) = (reply[8..32].try_into().unwrap(), &message[116..132]);
        let key = Keys::new(&PublicKey::new([9; 32])).cookie;
        let mut cookie = [0; 16];
        assert!(xaead::open(&key, &nonce, mac1, &reply[32..], &mut cookie).is_ok());
        assert!(xaead::open(&key, &nonce, &[0; 16], &reply[32..], &mut cookie).is_err());
    }

    #[test]
    fn a_cookie_is_good_for_one_address_and_port() {
        let (checker, mut generator) = pair();
        for from in ["192.0.2.1:7", "[2001:db8::1]:7"].map(|text| text.parse::<SocketAddr>().unwrap()) {
            let mut message = [5; 92];
            generator.add_macs(&mut message, at(1));
            assert!(!checker.check_mac2(&message, from, at(1)));
            let reply = checker.reply(&message, from, 77, at(1), &mut Os);
            assert_eq!(reply[..8], [3, 0, 0, 0, 77, 0, 0, 0]);
            assert!(generator.consume_reply(&reply, at(1)));
            generator.add_macs(&mut message, at(2));
            assert!(checker.check_mac1(&message) && checker.check_mac2(&message, from, at(2)));
            let mut other_port = from;
            other_port.set_port(8);
            assert!(!checker.check_mac2(&message, other_port, at(2)));
            assert!(!checker.check_mac2(&message, "198.51.100.1:7".parse().unwrap(), at(2)));
        }
    }

    #[test]
    fn a_reply_counts_once_and_only_for_the_last_message() {
        let (checker, mut generator) = pair();
        let from = "192.0.2.1:7".parse().unwrap();
        let mut message = [5; 148];
        assert!(!generator.consume_reply(&[0; 64], at(0)), "nothing was sent");
        generator.add_macs(&mut message, at(0));
        let reply = checker.reply(&message, from, 1, at(0), &mut Os);
        let mut forged = reply;
        forged[40] ^= 1;
        assert!(!generator.consume_reply(&forged, at(0)));
        assert!(generator.consume_reply(&reply, at(0)));
        assert!(!generator.consume_reply(&reply, at(0)), "a second time");
        message[0] ^= 1;
        generator.add_macs(&mut message, at(0));
        assert!(!generator.consume_reply(&reply, at(0)), "an answer to an earlier message");
    }

    #[test]
    fn cookies_are_used_for_115_and_accepted_for_120_seconds() {
        let (checker, mut generator) = pair();
        let from = "192.0.2.1:7".parse().unwrap();
        let mut message = [5; 148];
        generator.add_macs(&mut message, at(0));
        let reply = checker.reply(&message, from, 1, at(0), &mut Os);
        assert!(generator.consume_reply(&reply, at(0)));
        generator.add_macs(&mut message, at(114));
        assert!(checker.check_mac2(&message, from, at(119)));
        assert!(!checker.check_mac2(&message, from, at(120)));
        generator.add_macs(&mut message, at(115));
        assert_eq!(message[132..], [0; 16]);
    }
}
