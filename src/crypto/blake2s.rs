//! BLAKE2s (RFC 7693) and what [W] §5.4 builds of it, by the paper's names.

use blake2::Blake2s256;
use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, Mac, Update};
use zeroize::Zeroize;

use super::secret::Secret;

/// RFC 7693 §2.1: bytes in a block of BLAKE2s.
const BLOCK_LEN: usize = 64;

/// `Hash(parts)`: BLAKE2s-256 of the concatenation.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    parts.iter().for_each(|part| Digest::update(&mut state, part));
    state.finalize().into()
}

/// `Mac(key, parts)`: keyed BLAKE2s-128 of the concatenation.
///
/// # Panics
/// If `key` is longer than 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state: Blake2sMac<U16> =
        blake2::digest::KeyInit::new_from_slice(key).expect("a BLAKE2s key has at most 32 bytes");
    parts.iter().for_each(|part| Update::update(&mut state, part));
    Mac::finalize(state).into_bytes().into()
}

/// `Hmac(key, parts)`: HMAC (RFC 2104) with BLAKE2s-256.
pub fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut pad = [0x36; BLOCK_LEN];
    pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
    let mut inner = Blake2s256::new();
    Digest::update(&mut inner, pad);
    parts.iter().for_each(|part| Digest::update(&mut inner, part));
    pad.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5c);
    let mut outer = Blake2s256::new();
    Digest::update(&mut outer, pad);
    Digest::update(&mut outer, inner.finalize_fixed());
    pad.zeroize();
    outer.finalize_fixed().into()
}

/// `Kdf1(key, input)`: HKDF (RFC 5869) with one output.
pub fn kdf1(key: &[u8; 32], input: &[u8]) -> Secret<32> {
    let [first] = kdf(key, input);
    first
}

/// `Kdf2(key, input)`: two outputs.
pub fn kdf2(key: &[u8; 32], input: &[u8]) -> (Secret<32>, Secret<32>) {
    let [first, second] = kdf(key, input);
    (first, second)
}

/// `Kdf3(key, input)`: three outputs.
pub fn kdf3(key: &[u8; 32], input: &[u8]) -> (Secret<32>, Secret<32>, Secret<32>) {
    let [first, second, third] = kdf(key, input);
    (first, second, third)
}

/// τ0 := Hmac(key, input), τi := Hmac(τ0, τ(i−1) ‖ i).
fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Secret<32>; N] {
    let base = Secret::new(hmac(key, &[input]));
    let mut last = Secret::<32>::default();
    let mut number = 0_u8;
    std::array::from_fn(|i| {
        number += 1;
        let previous: &[u8] = if i == 0 { &[] } else { last.as_bytes() };
        last = Secret::new(hmac(base.as_bytes(), &[previous, &[number]]));
        last.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
