//! Micro-benches of what the packet path does once a packet or more: `cargo bench --bench micro [FILTER]`.
//!
//! Each works on one thread, on data that is in the cache except where a size says otherwise. A bench states what one iteration is;
//! absolute figures are of the machine, so compare within one run.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit::config::Prefix;
use adit::crypto::aead::{Key, TAG_LEN};
use adit::crypto::secret::Secret;
use adit::crypto::x25519::{PrivateKey, dh};
use adit::packet::checksum;
use adit::packet::coalesce::{Coalescer, Kinds};
use adit::packet::segment::{HEADER_MAX, Split};
use adit::packet::virtio::{Gso, Header, Partial};
use adit::wireguard::allowed_ips::AllowedIps;
use adit::wireguard::keypair::padded_len;
use adit::wireguard::messages::DataHeader;
use adit::wireguard::replay::Window;
use criterion::{BenchmarkId, Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [checksums, segment, coalesce, lookups, replay, aead, agreement, headers] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}

/// One sum over so many bytes: a header, small packets, a full one, a super-packet.
fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20, 64, 256, 1440, 65_535] {
        let bytes = pattern(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes[..], |bencher, bytes| {
            bencher.iter(|| checksum::finish(checksum::add(0, black_box(bytes))));
        });
    }
    group.finish();
}

/// A super-packet of 45 segments cut up: every header written, every payload summed, nothing copied. `complete`: a packet that is one, of
/// which only the checksum is missing.
fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    for (name, gso, gso_size, count) in [
        ("tcp4", Gso::TcpV4, 1368, 45),
        ("tcp6", Gso::TcpV6, 1348, 45),
        ("udp4", Gso::UdpL4, 1392, 45),
        ("udp4 of 64 bytes", Gso::UdpL4, 64, 45),
        ("complete", Gso::None, 1368, 1),
    ] {
        let is_v6 = gso == Gso::TcpV6;
        let is_udp = gso == Gso::UdpL4;
        let mut packet = flow_packet(is_v6, is_udp, 0, usize::from(gso_size) * count);
        let partial = Partial { start: if is_v6 { 40 } else { 20 }, offset: if is_udp { 6 } else { 16 } };
        let header = Header { gso, gso_size, header_len: 0, partial: Some(partial), tunnel: None };
        let mut head = [0; HEADER_MAX];
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let split = Split::new(&header, black_box(&mut packet)).expect("it is well-formed");
                for index in 0..split.count() {
                    black_box(split.segment(&packet, index, &mut head));
                }
            });
        });
    }
    group.finish();
}

/// 45 packets of one flow pushed and written as a super-packet, their checksums verified; of eight flows in turn; and such as are not merged.
fn coalesce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    let both = Kinds { tcp: true, udp: true };
    for (name, is_udp, flows, len, kinds) in [
        ("tcp", false, 1, 1368, both),
        ("udp", true, 1, 1392, both),
        ("udp of 64 bytes", true, 1, 64, both),
        ("tcp of 8 flows", false, 8, 1368, both),
        ("switched off", false, 1, 1368, Kinds { tcp: false, udp: false }),
    ] {
        let mut buf = Vec::new();
        let mut ranges = Vec::new();
        for index in 0..45_usize {
            let mut packet = flow_packet(false, is_udp, index / flows, len);
            // The flow's port, and checksums to match.
            packet[21] = u8::try_from(index % flows).expect("there are few");
            seal(&mut packet, is_udp);
            ranges.push(buf.len()..buf.len() + packet.len());
            buf.extend(packet);
        }
        let mut coalescer = Coalescer::new(kinds);
        let mut writes = 0;
        for range in &ranges {
            coalescer.push(&buf, range.clone(), |_| writes += 1);
        }
        coalescer.flush(&buf, |_| writes += 1);
        assert_eq!(writes, if kinds == both { flows } else { ranges.len() }, "{name}");
        group.throughput(Throughput::Bytes(buf.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut written = 0;
                for range in &ranges {
                    coalescer.push(black_box(&buf), range.clone(), |merged| written += merged.rest.len());
                }
                coalescer.flush(&buf, |merged| written += merged.rest.len());
                assert_eq!(written, ranges.len());
            });
        });
    }
    group.finish();
}

/// Packet `index` of a flow, with `len` bytes of payload. The checksum of its transport is the sum of the pseudo-header.
fn flow_packet(is_v6: bool, is_udp: bool, index: usize, len: usize) -> Vec<u8> {
    let transport_len = if is_udp { 8 } else { 32 } + len;
    let number = if is_udp { 17 } else { 6 };
    let word = |value: usize| u16::try_from(value).expect("it fits").to_be_bytes();
    let mut packet = vec![0; if is_v6 { 40 } else { 20 }];
    if is_v6 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&word(transport_len));
        packet[6..8].copy_from_slice(&[number, 64]);
        packet[8..40].copy_from_slice(&pattern(32));
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&word(20 + transport_len));
        packet[4..6].copy_from_slice(&word(index));
        packet[8..10].copy_from_slice(&[64, number]);
        packet[12..20].copy_from_slice(&pattern(8));
    }
    let ip_len = packet.len();
    packet.extend([0x12, 0, 0x34, 0]);
    if is_udp {
        packet.extend(word(transport_len));
        packet.extend([0, 0]);
    } else {
        packet.extend(u32::try_from(index * len).expect("it fits").to_be_bytes());
        // Acknowledgement 1; 32 bytes of header; ACK; a window; timestamps behind two bytes of padding.
        packet.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    packet.extend(pattern(len));
    let addresses = if is_v6 { 8..40 } else { 12..20 };
    let sum = u32::from(number) + u32::try_from(transport_len).expect("it fits");
    let pseudo = !checksum::finish(checksum::add(sum, &packet[addresses]));
    let at = ip_len + if is_udp { 6 } else { 16 };
    packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    packet
}

/// Completes the checksums of an IPv4 packet.
fn seal(packet: &mut [u8], is_udp: bool) {
    let ip = checksum::finish(checksum::add(0, &packet[..20]));
    packet[10..12].copy_from_slice(&ip.to_be_bytes());
    let transport = checksum::finish(checksum::add(0, &packet[20..]));
    let at = if is_udp { 26 } else { 36 };
    packet[at..at + 2].copy_from_slice(&transport.to_be_bytes());
}

/// One lookup among so many /24 prefixes of IPv4 and as many /64 of IPv6, at addresses that jump about: hits, and in `miss` none.
fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allowed-ips");
    for count in [10_u32, 1_000, 100_000] {
        let mut map = AllowedIps::new();
        for number in 0..count {
            for prefix in [(v4(number, 0), 24), (v6(number, 0), 64)] {
                map.insert(Prefix::new(prefix.0, prefix.1).expect("the length fits"), number);
            }
        }
        let mut bench = |name: &str, addrs: Vec<IpAddr>| {
            let mut next = addrs.iter().cycle();
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| map.lookup(*next.next().expect("it is endless")).copied());
            });
        };
        // A generator with full period below 2^16, so that neighbours in time are none in the trie.
        let jumps = || {
            (0..65_536_u32).scan(1_u32, |state, _| {
                *state = (*state * 25_173 + 13_849) % 65_536;
                Some(*state)
            })
        };
        bench("v4", jumps().map(|jump| v4(jump % count, jump >> 8)).collect());
        bench("v6", jumps().map(|jump| v6(jump % count, jump)).collect());
        bench("miss", jumps().map(|jump| v4(count + jump, jump >> 8)).collect());
    }
    group.finish();
}

/// The address with the given host part in the /24 of that number, from 10.0.0.0 up.
fn v4(number: u32, host: u32) -> IpAddr {
    Ipv4Addr::from((10 << 24) + (number << 8) + (host & 0xff)).into()
}

/// The address with the given host part in the /64 of that number, from fd00:: up.
fn v6(number: u32, host: u32) -> IpAddr {
    IpAddr::V6((0xfd00 << 112 | u128::from(number) << 64 | u128::from(host)).into())
}

/// One counter accepted: in order, with neighbours exchanged, and refused as a replay.
fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    let (window, mut counter) = (Window::new(), 0);
    group.bench_function("in order", |bencher| {
        bencher.iter(|| {
            counter += 1;
            window.accept(black_box(counter))
        });
    });
    let (window, mut counter) = (Window::new(), 0);
    group.bench_function("neighbours exchanged", |bencher| {
        bencher.iter(|| {
            counter += 1;
            window.accept(black_box(counter ^ 1))
        });
    });
    let window = Window::new();
    window.accept(7);
    group.bench_function("replayed", |bencher| bencher.iter(|| window.accept(black_box(7))));
    group.finish();
}

/// One packet sealed and opened in place, the counter rising. Opening includes copying the message, which is consumed.
fn aead(criterion: &mut Criterion) {
    let key = Key::new(&Secret::new([7; 32]));
    for len in [64, 256, 512, 1440] {
        let mut group = criterion.benchmark_group("aead");
        group.throughput(Throughput::Bytes(len as u64));
        let mut buf = pattern(len + TAG_LEN);
        let mut counter = 0;
        group.bench_function(BenchmarkId::new("seal", len), |bencher| {
            bencher.iter(|| {
                counter += 1;
                key.seal_in_place(counter, &[], black_box(&mut buf));
            });
        });
        let mut sealed = pattern(len + TAG_LEN);
        key.seal_in_place(1, &[], &mut sealed);
        let mut opened = vec![0; len];
        group.bench_function(BenchmarkId::new("open", len), |bencher| {
            bencher.iter(|| {
                key.open_to(1, &[], black_box(&sealed), black_box(&mut opened)).expect("it is authentic");
            });
        });
        group.finish();
    }
}

/// One shared secret; one public key of a private one.
fn agreement(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("x25519");
    let private = PrivateKey::new([7; 32]);
    let public = PrivateKey::new([8; 32]).public();
    group.bench_function("shared secret", |bencher| {
        bencher.iter(|| dh(black_box(&private), black_box(&public)))
    });
    group.bench_function("public key", |bencher| bencher.iter(|| black_box(&private).public()));
    group.finish();
}

/// One header of a data message written; one padded length computed.
fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    let mut counter = 0;
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            counter += 1;
            DataHeader { receiver: black_box(0x0403_0201), counter }.to_bytes()
        });
    });
    let bytes = [&DataHeader { receiver: 1, counter: 2 }.to_bytes()[..], &[0; TAG_LEN]].concat();
    group.bench_function("parse", |bencher| bencher.iter(|| DataHeader::parse(black_box(&bytes))));
    group.bench_function("padded length", |bencher| {
        bencher.iter(|| padded_len(black_box(1_372), black_box(1_420)));
    });
    group.finish();
}

/// Bytes that are not all alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}
