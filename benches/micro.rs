//! Micro-benches of what the packet path does once a packet or more: `cargo bench --bench micro [FILTER]`.
//!
//! Each works on one thread, on data that is in the cache except where a size says otherwise. A bench states what one iteration is;
//! absolute figures are of the machine, so compare within one run.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit::config::Prefix;
use adit::crypto::aead::{Key, TAG_LEN};
use adit::crypto::secret::Secret;
use adit::packet::checksum;
use adit::wireguard::allowed_ips::AllowedIps;
use adit::wireguard::keypair::padded_len;
use adit::wireguard::messages::DataHeader;
use adit::wireguard::replay::Window;
use criterion::{BenchmarkId, Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [checksums, lookups, replay, aead, headers] {
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
