//! One handshake whose messages are changed on the way ([W] §5.4.2, §5.4.3, §5.4.4, §5.4.7).
//!
//! Unchanged messages give both sides the same keys. A change in any field that is authenticated is refused and leaves no trace: the
//! genuine message succeeds after it. Indices are not part of the transcript; mac1 covers them, and nothing more is claimed for them.

#![no_main]

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::LazyLock;

use adit::crypto::secret::Secret;
use adit::crypto::x25519::PrivateKey;
use adit::sim::Seeded;
use adit::wireguard::cookie;
use adit::wireguard::noise::{ConsumedInitiation, Static, create_initiation, open_initiation};
use adit::wireguard::tai64n::Timestamp;
use adit::wireguard::time::Instant;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    seed: u32,
    psk: Option<[u8; 32]>,
    timestamp: [u8; 12],
    indices: [u32; 2],
    from: (u32, u16),
    initiation: Vec<Change>,
    response: Vec<Change>,
    cookie_reply: Vec<Change>,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Flip {
        at: u8,
        bit: u8,
    },
    /// Overwrites a field with a pattern.
    Overwrite {
        field: u8,
        bytes: [u8; 8],
    },
    /// A point of low order, or any other 32 bytes of few ones, as the ephemeral key.
    LowOrder(u8),
    /// Takes a field from another genuine message of the same two parties.
    Splice(u8),
}

/// Type, sender, ephemeral, static, timestamp, mac1, mac2.
const INITIATION: [Range<usize>; 7] = [0..4, 4..8, 8..40, 40..88, 88..116, 116..132, 132..148];
/// Type, sender, receiver, ephemeral, empty, mac1, mac2.
const RESPONSE: [Range<usize>; 7] = [0..4, 4..8, 8..12, 12..44, 44..60, 60..76, 76..92];
/// Type, receiver, nonce, cookie, tag.
const COOKIE_REPLY: [Range<usize>; 5] = [0..4, 4..8, 8..32, 32..48, 48..64];

/// RFC 7748 §6.1 asks to refuse what these lead to; encodings of 0, 1, p − 1, p and p + 1.
fn low_order(which: u8) -> [u8; 32] {
    let mut point = [0xff; 32];
    point[31] = 0x7f;
    match which % 5 {
        0 => point = [0; 32],
        1 => (point, point[0]) = ([0; 32], 1),
        2 => point[0] = 0xec,
        3 => point[0] = 0xed,
        _ => point[0] = 0xee,
    }
    // The top bit does not count.
    point[31] |= which & 0x80;
    point
}

fn change<const N: usize>(
    genuine: &[u8; N],
    other: &[u8; N],
    fields: &[Range<usize>],
    ephemeral: usize,
    changes: &[Change],
) -> [u8; N] {
    let mut message = *genuine;
    for change in changes.iter().take(8) {
        match *change {
            Change::Flip { at, bit } => message[usize::from(at) % N] ^= 1 << (bit % 8),
            Change::Overwrite { field, bytes } => {
                let field = fields[usize::from(field) % fields.len()].clone();
                message[field].iter_mut().zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
            }
            Change::LowOrder(which) => {
                let field = fields[ephemeral].clone();
                let len = field.len().min(32);
                message[field][..len].copy_from_slice(&low_order(which)[..len]);
            }
            Change::Splice(field) => {
                let field = fields[usize::from(field) % fields.len()].clone();
                message[field.clone()].copy_from_slice(&other[field]);
            }
        }
    }
    message
}

struct Parties {
    initiator: Static,
    responder: Static,
    stranger: Static,
    shared: Secret<32>,
}

static PARTIES: LazyLock<Parties> = LazyLock::new(|| {
    let [initiator, responder, stranger] =
        [1, 2, 3].map(|seed| Static::new(PrivateKey::generate(&mut Seeded::new(seed))));
    let shared = initiator.static_static(responder.public()).expect("honest keys");
    Parties { initiator, responder, stranger, shared }
});

/// The responder's whole way to an authentic initiation.
fn consume(message: &[u8; 148]) -> Option<ConsumedInitiation> {
    let opened = open_initiation(&PARTIES.responder, message)?;
    let shared = PARTIES.responder.static_static(opened.peer())?;
    opened.authenticate(&shared)
}

fuzz_target!(|input: Input| {
    let Parties { initiator, responder, stranger, shared } = &*PARTIES;
    let mut random = Seeded::new(input.seed.into());
    let psk = Secret::new(input.psk.unwrap_or_default());
    let timestamp = Timestamp::from_bytes(input.timestamp);
    let [sender, answerer] = input.indices;
    let mut generator = cookie::Generator::new(responder.public());
    let now = Instant::from_nanos(1_000_000_000_000);

    let create = |ephemeral| {
        create_initiation(initiator, responder.public(), shared, ephemeral, timestamp, sender)
            .expect("honest keys")
    };
    let (_, mut other) = create(PrivateKey::generate(&mut random));
    generator.add_macs(&mut other, now);
    let (created, mut genuine) = create(PrivateKey::generate(&mut random));
    generator.add_macs(&mut genuine, now);

    // The initiation.
    let changed = change(&genuine, &other, &INITIATION, 2, &input.initiation);
    let checker = cookie::Checker::new(responder.public());
    let covered_is = |message: &[u8; 148]| changed[..132] == message[..132];
    assert_eq!(checker.check_mac1(&changed), covered_is(&genuine) || covered_is(&other));
    let authentic = changed[8..116] == genuine[8..116] || changed[8..116] == other[8..116];
    let consumed = consume(&changed);
    assert_eq!(consumed.is_some(), authentic);
    if let Some(consumed) = consumed {
        assert_eq!(consumed.timestamp(), timestamp);
        assert_eq!(consumed.sender().to_le_bytes(), changed[4..8]);
    }
    assert!(open_initiation(stranger, &genuine).is_none(), "for somebody else");

    // The response.
    let mut answer = || {
        let consumed = consume(&genuine).expect("the genuine message is authentic");
        assert_eq!((consumed.timestamp(), consumed.sender()), (timestamp, sender));
        let ephemeral = PrivateKey::generate(&mut random);
        consumed.create_response(&psk, &ephemeral, answerer).expect("honest keys")
    };
    let (other_keys, other) = answer();
    let (keys, genuine) = answer();
    let changed = change(&genuine, &other, &RESPONSE, 3, &input.response);
    let is = |message: &[u8; 92]| changed[12..60] == message[12..60];
    let expected = if is(&genuine) {
        Some(&keys)
    } else if is(&other) {
        Some(&other_keys)
    } else {
        None
    };
    let consumed = created.consume_response(initiator, &psk, &changed);
    assert_eq!(consumed.is_some(), expected.is_some());
    if let (Some((ours, index)), Some(theirs)) = (consumed, expected) {
        assert!(ours.send == theirs.receive && ours.receive == theirs.send);
        assert_eq!(index.to_le_bytes(), changed[4..8]);
    }
    let mut other_psk = *psk.as_bytes();
    other_psk[usize::from(input.timestamp[11]) % 32] ^= 1 << (input.timestamp[10] % 8);
    assert!(created.consume_response(initiator, &Secret::new(other_psk), &genuine).is_none());
    assert!(created.consume_response(stranger, &psk, &genuine).is_none());
    let (ours, index) = created.consume_response(initiator, &psk, &genuine).expect("no trace was left");
    assert!(ours.send == keys.receive && ours.receive == keys.send && ours.send != ours.receive);
    assert_eq!(index, answerer);

    check_cookie(&input, checker, generator, now, &mut random);
});

/// The cookie reply to the initiation that was sent last.
fn check_cookie(
    input: &Input,
    checker: cookie::Checker,
    mut generator: cookie::Generator,
    now: Instant,
    random: &mut Seeded,
) {
    let from = SocketAddr::from((input.from.0.to_be_bytes(), input.from.1));
    let mut message = [7; 148];
    generator.add_macs(&mut message, now);
    assert!(checker.check_mac1(&message) && !checker.check_mac2(&message, from, now));
    let other = checker.reply(&message, from, 1, now, random);
    let genuine = checker.reply(&message, from, 1, now, random);
    let changed = change(&genuine, &other, &COOKIE_REPLY, 2, &input.cookie_reply);
    let authentic = changed[8..] == genuine[8..] || changed[8..] == other[8..];
    assert_eq!(generator.consume_reply(&changed, now), authentic);
    assert_eq!(generator.consume_reply(&genuine, now), !authentic, "once, and after any forgery");
    generator.add_macs(&mut message, now);
    assert!(checker.check_mac1(&message) && checker.check_mac2(&message, from, now));
    let elsewhere = SocketAddr::new(from.ip(), from.port() ^ 1);
    assert!(!checker.check_mac2(&message, elsewhere, now));
}
