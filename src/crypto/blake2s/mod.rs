//! BLAKE2s (RFC 7693) and what [W] §5.4 builds of it, by the paper's names.
//!
//! The code is our own: most of a handshake's hashes begin with a key, under which several things are hashed, and a key that was worked in
//! once need not be worked in again. The libraries have no way to say that. A compression takes as long as that of `blake2`, the oracle of
//! the tests (74 and 79 ns on Zen 5; `blake2s_simd`, 123).

mod state;

use std::iter;

use super::secret::{Secret, wipe};
use state::{BLOCK_LEN, Prefix, State};

/// `Hash(parts)`: BLAKE2s-256 of the concatenation.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    State::new(32, 0).finish(parts.iter().copied())
}

/// `Mac(key, parts)`: keyed BLAKE2s-128 of the concatenation.
///
/// # Panics
/// If `key` is longer than 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    MacKey::new(key).mac(parts)
}

/// A key of [`mac`], worked in already: one compression less for each use. Wiped on drop.
pub struct MacKey(Prefix);

impl MacKey {
    /// Works the key in.
    ///
    /// # Panics
    /// If `key` is longer than 32 bytes, or empty.
    pub fn new(key: &[u8]) -> Self {
        let len = u8::try_from(key.len()).ok().filter(|len| (1..=32).contains(len));
        let len = len.expect("a BLAKE2s key has 1 to 32 bytes");
        let mut block = [0; BLOCK_LEN];
        block[..key.len()].copy_from_slice(key);
        let this = Self(Prefix::new(State::new(16, len), block));
        wipe(&mut block);
        this
    }

    /// Returns `Mac(key, parts)`.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 16] {
        let [mac, _] = halves(self.0.finish(parts));
        mac
    }
}

fn halves(bytes: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    halves.as_flattened_mut().copy_from_slice(&bytes);
    halves
}

/// `Hmac(key, parts)`: HMAC (RFC 2104) with BLAKE2s-256.
pub fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut pad = padded(key, 0x36);
    let inner = State::new(32, 0).finish(iter::once(&pad[..]).chain(parts.iter().copied()));
    let mut outer = State::new(32, 0);
    pad.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5c);
    outer.block(&pad);
    wipe(&mut pad);
    outer.last(inner)
}

/// RFC 2104 §2: the key XORed with the inner pad, 0x36, or the outer one, 0x5c.
fn padded(key: &[u8; 32], pad: u8) -> [u8; BLOCK_LEN] {
    let mut padded = [pad; BLOCK_LEN];
    padded.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
    padded
}

/// `Kdf1(key, input)`: HKDF (RFC 5869) with one output.
pub fn kdf1(key: &[u8; 32], input: &[u8]) -> Secret<32> {
    let [first] = expand(hmac(key, &[input]));
    first
}

/// `Kdf2(key, input)`: two outputs.
pub fn kdf2(key: &[u8; 32], input: &[u8]) -> (Secret<32>, Secret<32>) {
    let [first, second] = expand(hmac(key, &[input]));
    (first, second)
}

/// `Kdf3(key, input)`: three outputs.
pub fn kdf3(key: &[u8; 32], input: &[u8]) -> (Secret<32>, Secret<32>, Secret<32>) {
    let [first, second, third] = expand(hmac(key, &[input]));
    (first, second, third)
}

/// τ0 := Hmac(key, input) is the `base`; τi := Hmac(τ0, τ(i−1) ‖ i).
fn expand<const N: usize>(mut base: [u8; 32]) -> [Secret<32>; N] {
    let key = HmacKey::new(&base);
    wipe(&mut base);
    let mut number = 0_u8;
    let mut text = [0; 33];
    let outputs = std::array::from_fn(|i| {
        number += 1;
        text[32] = number;
        let output = if i == 0 { key.hmac([number]) } else { key.hmac(text) };
        text[..32].copy_from_slice(&output);
        Secret::new(output)
    });
    wipe(&mut text);
    outputs
}

/// A key of [`hmac`], worked in already: two compressions less for each use. Wiped on drop.
pub struct HmacKey {
    inner: State,
    outer: State,
}

impl HmacKey {
    /// Works the key in.
    pub fn new(key: &[u8; 32]) -> Self {
        let [inner, outer] = [0x36, 0x5c].map(|pad| {
            let mut state = State::new(32, 0);
            let mut pad = padded(key, pad);
            state.block(&pad);
            wipe(&mut pad);
            state
        });
        Self { inner, outer }
    }

    /// Returns `Kdf1(key, input)`.
    pub fn kdf1(&self, input: &[u8; 32]) -> Secret<32> {
        let [first] = expand(self.hmac(*input));
        first
    }

    fn hmac<const N: usize>(&self, text: [u8; N]) -> [u8; 32] {
        self.outer.clone().last(self.inner.clone().last(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake2::digest::consts::U16;
    use blake2::digest::{Digest, Mac};
    use blake2::{Blake2s256, Blake2sMac};
    use proptest::prelude::*;

    #[test]
    fn hash_of_abc_is_that_of_rfc_7693_appendix_b() {
        let expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        assert_eq!(hex::encode(hash(&[b"a", b"bc"])), expected);
    }

    #[test]
    fn hmac_of_long_and_split_input_agree() {
        let key = [7; 32];
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(hmac(&key, &[&text]), hmac(&key, &[&text[..63], &text[63..]]));
    }

    #[test]
    fn outputs_of_the_kdfs_are_prefixes_of_each_other() {
        let (key, input) = ([1; 32], b"input");
        let (a, b, c) = kdf3(&key, input);
        assert_eq!((a.clone(), b.clone()), kdf2(&key, input));
        assert_eq!(a, kdf1(&key, input));
        assert_eq!(kdf1(&key, &[7; 32]), HmacKey::new(&key).kdf1(&[7; 32]));
        assert!(a != b && b != c);
    }

    #[test]
    fn outputs_of_the_kdfs_are_those_of_another_implementation() {
        // Python's `hmac` with `hashlib.blake2s`; the first is also wireguard-go's `device/kdf_test.go`. HMAC pads its key with zeros.
        for (key, input, outputs) in [
            (
                &b"test-key"[..],
                &b"test-input"[..],
                [
                    "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                    "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                    "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
                ],
            ),
            (
                b"",
                b"",
                [
                    "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                    "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                    "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
                ],
            ),
        ] {
            let mut padded = [0; 32];
            padded[..key.len()].copy_from_slice(key);
            let (a, b, c) = kdf3(&padded, input);
            assert_eq!([a, b, c].map(|output| hex::encode(output.as_bytes())), outputs);
        }
    }

    #[test]
    fn a_keyed_hash_of_128_bits_is_that_of_another_implementation() {
        // Python's `hashlib.blake2s(b"abc", digest_size=16, key=bytes(range(16)))`.
        let key: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(hex::encode(mac(&key, &[b"a", b"bc"])), "75296c2d2c0f51210b383f386bc8b1ff");
    }

    #[test]
    fn the_self_test_of_rfc_7693_passes() {
        // Appendix E: hashes and keyed hashes of many lengths, of bytes by a Fibonacci generator, hashed together. 16, 20 and 28 bytes too.
        fn sequence(len: usize, seed: u32) -> Vec<u8> {
            let (mut a, mut b) = (0xdead_4bad_u32.wrapping_mul(seed), 1_u32);
            let next = |_| {
                let sum = a.wrapping_add(b);
                (a, b) = (b, sum);
                (sum >> 24) as u8
            };
            (0..len).map(next).collect()
        }
        let mut all = Vec::new();
        for out_len in [16_u8, 20, 28, 32] {
            for in_len in [0, 3, 64, 65, 255, 1024] {
                let text = sequence(in_len, u32::try_from(in_len).unwrap());
                let plain = State::new(out_len, 0).finish([&text[..]]);
                let key = sequence(usize::from(out_len), u32::from(out_len));
                let mut block = [0; BLOCK_LEN];
                block[..key.len()].copy_from_slice(&key);
                let keyed = Prefix::new(State::new(out_len, out_len), block).finish(&[&text]);
                all.extend_from_slice(&plain[..usize::from(out_len)]);
                all.extend_from_slice(&keyed[..usize::from(out_len)]);
            }
        }
        let expected = "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe";
        assert_eq!(hex::encode(hash(&[&all])), expected);
    }

    proptest! {
        #[test]
        fn hashes_and_macs_are_those_of_another_implementation(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            key in prop::collection::vec(any::<u8>(), 1..=32),
        ) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let text = parts.concat();
            prop_assert_eq!(&hash(&slices)[..], &Blake2s256::digest(&text)[..]);
            let mut state: Blake2sMac<U16> = blake2::digest::KeyInit::new_from_slice(&key).unwrap();
            Mac::update(&mut state, &text);
            prop_assert_eq!(&mac(&key, &slices)[..], &state.finalize().into_bytes()[..]);
        }
    }

    #[test]
    fn hmac_of_nothing_is_that_of_another_implementation() {
        // Python's `hmac.new(bytes(range(32)), b"", hashlib.blake2s)`.
        let key = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(
            hex::encode(hmac(&key, &[])),
            "e2641d24dfa8dd89e8cb77f1cdc77d8c006e5bebdfc4d6a3a3a6f8d5b7586fb0"
        );
        assert_eq!(hmac(&key, &[b""]), hmac(&key, &[]));
    }

    #[test]
    fn a_dropped_key_is_wiped() {
        let mut key = std::mem::ManuallyDrop::new(MacKey::new(&[0xa7; 32]));
        let bytes = std::ptr::from_ref(&*key).cast::<u8>();
        // SAFETY: inside the object, whose memory stays ours after the drop; padding may read as anything, and there is none.
        let read =
            || (0..size_of::<MacKey>()).map(|at| unsafe { std::ptr::read_volatile(bytes.wrapping_add(at)) });
        assert!(read().filter(|&byte| byte == 0xa7).count() >= 32);
        // SAFETY: dropped once, and only its bytes are looked at afterwards.
        unsafe { std::mem::ManuallyDrop::drop(&mut key) };
        assert!(read().all(|byte| byte == 0));
    }
}
