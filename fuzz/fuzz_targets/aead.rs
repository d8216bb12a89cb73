//! ChaCha20-Poly1305, one packet and many, in place and out of place, against the `chacha20poly1305` crate (RFC 8439).
//!
//! A packet that was tampered with must be refused and its buffer wiped, whatever its neighbours in the batch are. `ADIT_CRYPTO` chooses the
//! tier, as it does for the program.

#![no_main]

use adit::crypto::aead::{
    Forged, Key, OpenJob, OpenTo, SealInPlace, SealJob, TAG_LEN, Tier, force, open_batch, open_batch_in_place,
    seal_batch, seal_batch_in_place,
};
use adit::crypto::secret::Secret;
use arbitrary::Arbitrary;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    keys: [[u8; 32]; 2],
    aad: Vec<u8>,
    packets: Vec<Packet>,
}

#[derive(Arbitrary, Debug)]
struct Packet {
    second_key: bool,
    counter: u64,
    /// Taken modulo a little more than a jumbo frame.
    len: u16,
    /// Where the header ends and the payload begins.
    split: u16,
    /// The first byte; the others follow from it.
    fill: u8,
    tamper: Option<Tamper>,
}

#[derive(Arbitrary, Debug)]
enum Tamper {
    Flip { at: u16, bit: u8 },
    Cut(u8),
    Counter,
    Key,
}

impl Packet {
    fn plaintext(&self) -> Vec<u8> {
        let len = usize::from(self.len) % 9200;
        let mut byte = self.fill;
        std::iter::repeat_with(|| {
            byte = byte.wrapping_mul(5).wrapping_add(self.fill | 1);
            byte
        })
        .take(len)
        .collect()
    }

    /// Returns how the packet looks when it arrives: bytes, counter and key, and whether it is still authentic.
    fn arrival(&self, sealed: &[u8]) -> (Vec<u8>, u64, bool, bool) {
        let mut bytes = sealed.to_vec();
        let (mut counter, mut second_key) = (self.counter, self.second_key);
        match self.tamper {
            None => return (bytes, counter, second_key, true),
            Some(Tamper::Flip { at, bit }) => {
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= 1 << (bit % 8);
            }
            Some(Tamper::Cut(by)) => bytes.truncate(bytes.len().saturating_sub(1 + usize::from(by))),
            Some(Tamper::Counter) => counter ^= 1 << (self.fill % 64),
            Some(Tamper::Key) => second_key ^= true,
        }
        (bytes, counter, second_key, false)
    }
}

fn oracle(key: &[u8; 32], counter: u64, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let mut bytes = plaintext.to_vec();
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
    cipher.encrypt_in_place((&nonce).into(), aad, &mut bytes).expect("a packet is short");
    bytes
}

fuzz_target!(init: choose_tier(), |input: Input| {
    let Input { mut keys, aad, mut packets } = input;
    packets.truncate(40);
    // With equal keys a wrong key would be the right one.
    keys[1][0] = !keys[0][0];
    let expanded = keys.map(|key| Key::new(&Secret::new(key)));
    let key_of = |second: bool| &expanded[usize::from(second)];
    if let Some(packet) = packets.first() {
        check_one(key_of(packet.second_key), &keys[usize::from(packet.second_key)], &aad, packet);
    }

    let plain: Vec<_> = packets.iter().map(Packet::plaintext).collect();
    let sealed: Vec<_> = packets
        .iter()
        .zip(&plain)
        .map(|(packet, plain)| oracle(&keys[usize::from(packet.second_key)], packet.counter, &[], plain))
        .collect();
    check_seal(&packets, &plain, &sealed, key_of);

    let arrivals: Vec<_> =
        packets.iter().zip(&sealed).map(|(packet, sealed)| packet.arrival(sealed)).collect();
    check_open(&arrivals, &plain, key_of);
});

fn choose_tier() {
    let tier = match std::env::var("ADIT_CRYPTO").as_deref() {
        Ok("avx512") => Tier::Avx512,
        Ok("avx2") => Tier::Avx2,
        Ok("portable") => Tier::Portable,
        Ok(_) | Err(_) => Tier::Auto,
    };
    force(tier).expect("the CPU has it, and nothing was encrypted yet");
}

fn check_seal<'k>(
    packets: &[Packet],
    plain: &[Vec<u8>],
    sealed: &[Vec<u8>],
    key_of: impl Fn(bool) -> &'k Key,
) {
    let room = |plain: &Vec<u8>| [plain.as_slice(), &[0x77; TAG_LEN]].concat();
    let mut buffers: Vec<_> = plain.iter().map(room).collect();
    let mut jobs: Vec<_> = buffers
        .iter_mut()
        .zip(packets)
        .map(|(buf, packet)| SealInPlace { key: key_of(packet.second_key), counter: packet.counter, buf })
        .collect();
    seal_batch_in_place(&mut jobs);
    assert_eq!(buffers, sealed);

    let mut buffers: Vec<_> = plain.iter().map(|plain| vec![0x77; plain.len() + TAG_LEN]).collect();
    let mut jobs: Vec<_> = buffers
        .iter_mut()
        .zip(packets.iter().zip(plain))
        .map(|(dst, (packet, plain))| {
            let (header, payload) = plain.split_at(usize::from(packet.split) % (plain.len() + 1));
            SealJob { key: key_of(packet.second_key), counter: packet.counter, parts: [header, payload], dst }
        })
        .collect();
    seal_batch(&mut jobs);
    assert_eq!(buffers, sealed);
}

fn check_open<'k>(
    arrivals: &[(Vec<u8>, u64, bool, bool)],
    plain: &[Vec<u8>],
    key_of: impl Fn(bool) -> &'k Key,
) {
    let mut buffers: Vec<_> = arrivals.iter().map(|(bytes, ..)| bytes.clone()).collect();
    let mut jobs: Vec<_> = buffers
        .iter_mut()
        .zip(arrivals)
        .map(|(buf, &(_, counter, second, _))| OpenJob { key: key_of(second), counter, buf, ok: false })
        .collect();
    open_batch_in_place(&mut jobs);
    for ((job, (.., authentic)), plain) in jobs.iter().zip(arrivals).zip(plain) {
        assert_eq!(job.ok, *authentic);
        match job.ok {
            true => assert_eq!(job.buf[..plain.len()], plain[..]),
            false => assert!(job.buf.iter().all(|&byte| byte == 0), "what is forged is wiped"),
        }
    }

    let room = |(bytes, ..): &(Vec<u8>, u64, bool, bool)| vec![0x77; bytes.len().saturating_sub(TAG_LEN)];
    let mut buffers: Vec<_> = arrivals.iter().map(room).collect();
    let mut jobs: Vec<_> = buffers
        .iter_mut()
        .zip(arrivals)
        .map(|(dst, (src, counter, second, _))| OpenTo {
            key: key_of(*second),
            counter: *counter,
            src,
            dst,
            ok: false,
        })
        .collect();
    open_batch(&mut jobs);
    for ((job, (.., authentic)), plain) in jobs.iter().zip(arrivals).zip(plain) {
        assert_eq!(job.ok, *authentic);
        match job.ok {
            true => assert_eq!(job.dst, &plain[..]),
            false => assert!(job.dst.iter().all(|&byte| byte == 0), "what is forged is wiped"),
        }
    }
}

/// One packet, with additional data.
fn check_one(key: &Key, bytes: &[u8; 32], aad: &[u8], packet: &Packet) {
    let plain = packet.plaintext();
    let expected = oracle(bytes, packet.counter, aad, &plain);
    let (header, payload) = plain.split_at(usize::from(packet.split) % (plain.len() + 1));
    let mut sealed = vec![0x77; expected.len()];
    key.seal_to(packet.counter, aad, &[header, payload], &mut sealed);
    assert_eq!(sealed, expected);
    let mut sealed = [plain.as_slice(), &[0x77; TAG_LEN]].concat();
    key.seal_in_place(packet.counter, aad, &mut sealed);
    assert_eq!(sealed, expected);

    let mut opened = vec![0x77; plain.len()];
    assert_eq!(key.open_to(packet.counter, aad, &expected, &mut opened), Ok(()));
    assert_eq!(opened, plain);
    let other_aad = [aad, b"x"].concat();
    assert_eq!(key.open_to(packet.counter, &other_aad, &expected, &mut opened), Err(Forged));
    assert!(opened.iter().all(|&byte| byte == 0));
    let mut in_place = expected.clone();
    assert_eq!(key.open_in_place(packet.counter, aad, &mut in_place).map(|opened| &*opened), Ok(&plain[..]));
    let mut in_place = expected;
    assert_eq!(key.open_in_place(packet.counter, &other_aad, &mut in_place), Err(Forged));
    assert!(in_place.iter().all(|&byte| byte == 0));
}
