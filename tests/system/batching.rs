//! What is there together goes together, and what is alone waits for nothing: how many calls a stream costs, and how long one packet takes.

use std::collections::BTreeMap;
use std::time::Duration;

use adit::sys::clock::boottime;
use adit::sys::udp::{Datagram, Family, SendBatch, UdpOptions, UdpSocket};
use rustix::process::Signal;

use crate::netns::{Pair, Start};
use crate::support::puppet::udp;
use crate::support::stream::exchange;
use crate::support::tunnel::Tunnel;
use crate::support::{Namespace, SOON, ifname, need, not_hosted, pause, wait_until};
use crate::tiers::is_here;

/// Traces a process while `act` runs, and returns what strace says.
fn traced(namespace: &Namespace, tunnel: &Tunnel, options: &[&str], act: impl FnOnce()) -> String {
    let (id, file) = (tunnel.process.id().to_string(), format!("/tmp/{}.trace", ifname()));
    let mut args = vec!["-f", "-o", &file, "-p", &id];
    args.extend(options);
    let mut strace = namespace.spawn("strace", &args).leaves(&file);
    wait_until("strace", SOON, || strace.output().contains("attached"));
    act();
    strace.signal(Signal::INT);
    strace.wait(SOON);
    std::fs::read_to_string(&file).unwrap()
}

/// Counts the calls of a process that succeed while `act` runs.
fn calls(namespace: &Namespace, tunnel: &Tunnel, act: impl FnOnce()) -> BTreeMap<String, u64> {
    let summary = traced(namespace, tunnel, &["-c", "-U", "name,calls,errors"], act);
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, calls) = (words.next()?, words.next()?.parse::<u64>().ok()?);
        Some((name.to_owned(), calls - words.next().map_or(0, |errors| errors.parse().unwrap())))
    };
    summary.lines().filter_map(of_line).collect()
}

/// Makes TCP send what its window lets it: one that paces itself, as bbr does, hands out a few segments at a time.
pub(crate) fn unpaced(pair: &Pair) {
    for namespace in [&pair.ns1, &pair.ns2] {
        namespace.sysctl("net/ipv4/tcp_congestion_control", "reno");
    }
}

/// Returns how many packets, super-packets among them, were read from a tunnel's device and written to it.
pub(crate) fn counted(namespace: &Namespace, tunnel: &Tunnel) -> (u64, u64) {
    let text = namespace.ip(&format!("-j -s link show dev {}", tunnel.name));
    let of = |direction: &str| {
        let (_, of_direction) = text.split_once(&format!("\"{direction}\":")).expect(direction);
        let (_, packets) = of_direction.split_once("\"packets\":").expect("packets");
        packets.split(',').next().unwrap().trim().parse().expect("a number")
    };
    (of("tx"), of("rx"))
}

fn pair() -> Pair {
    let start = Start { args: &["--threads", "2"], env: &[] };
    let pair = Pair::started([start, start]);
    pair.set_endpoints("127.0.0.1");
    assert!(pair.ns1.pings("192.168.241.2"));
    pair
}

/// How large its segments are, and how many it hands out together, TCP and the machine's load decide: a device is read and written as often
/// as the kernel has something for it and the other end has read something.
#[test]
fn a_stream_costs_far_fewer_calls_than_packets() {
    need!("ip", "wg", "ping", "strace");
    if !is_here("gso") || !is_here("gro") {
        return not_hosted("UDP_SEGMENT or UDP_GRO");
    }
    let pair = pair();
    unpaced(&pair);
    let Pair { ns1, ns2, t1, t2, .. } = &pair;
    for addr in ["192.168.241.2", "fd00::2"] {
        let peer = t2.key.public();
        let (received, sent) = t1.transfer(ns1, &peer);
        let (others, _) = counted(ns2, t2);
        let calls = calls(ns1, t1, || exchange(ns1, ns2, addr, 8 << 20));
        let after = t1.transfer(ns1, &peer);
        let others = counted(ns2, t2).0 - others;
        // The longest has 1452 bytes.
        let [received, sent] = [after.0 - received, after.1 - sent].map(|bytes| bytes / 1452);
        let of = |name: &str| calls.get(name).copied().unwrap_or(0);
        eprintln!("{addr}: {received} received, {sent} sent, {others} read by the other, {calls:?}");
        assert!(of("sendmmsg") * 4 < sent && of("recvmmsg") * 4 < received, "{calls:?}");
        assert!(of("sendmmsg") <= of("read") + 10, "a packet that was read was sent in parts: {calls:?}");
        assert_eq!(of("sendmsg") + of("sendto") + of("recvmsg") + of("recvfrom"), 0, "{calls:?}");
        // A super-packet is sent as two runs where one has no room for all of it.
        assert!(of("writev") <= 2 * others + 10, "{calls:?}, and the other read {others}");
    }
}

/// What the kernel hands over whole is read, sent, received and written whole, whatever else the machine does.
#[test]
fn a_super_packet_costs_one_read_one_datagram_and_one_write() {
    need!("ip", "wg", "ping", "strace");
    if ["uso", "gso", "gro", "coalesce-udp"].iter().any(|feature| !is_here(feature)) {
        return not_hosted("USO");
    }
    let pair = pair();
    let Pair { ns1, ns2, t1, t2, .. } = &pair;
    let to = udp(ns2, "192.168.241.2:0");
    to.set_read_timeout(Some(SOON)).unwrap();
    let target = to.local_addr().unwrap();
    let from = ns1.enter(|| UdpSocket::bind(Family::V4, 0, &UdpOptions::default())).unwrap();
    let payload = [7; 40 * 1000];
    let datagram =
        Datagram { to: target, from: None, ds: 0, hop_limit: None, payload: &payload, segment: 1000 };
    let mut batch = SendBatch::new(1);
    let mut send = || {
        for _ in 0..20 {
            assert_eq!(batch.send(&from, &[datagram]).unwrap(), 1);
            for _ in 0..40 {
                assert_eq!(to.recv(&mut [0; 2000]).unwrap(), 1000);
            }
        }
    };
    let [before_1, before_2] = [counted(ns1, t1), counted(ns2, t2)];
    let sender = calls(ns1, t1, &mut send);
    let receiver = calls(ns2, t2, &mut send);
    let [after_1, after_2] = [counted(ns1, t1), counted(ns2, t2)];
    let of = |calls: &BTreeMap<String, u64>, name: &str| calls.get(name).copied().unwrap_or(0);
    // Keepalives, and what the kernel sends of itself, are among them; what strace leaves in the middle of is not.
    let all = [of(&sender, "sendmmsg"), of(&receiver, "recvmmsg"), of(&receiver, "writev")];
    assert!(all.iter().all(|calls| (10..50).contains(calls)), "{sender:?}, {receiver:?}");
    let [read, written] = [after_1.0 - before_1.0, after_2.1 - before_2.1];
    assert!((40..70).contains(&read) && (40..70).contains(&written), "{read} read, {written} written");
}

/// No thread waits for a time, however short: it waits for something to come, or looks whether there is more.
#[test]
fn nothing_that_is_batched_is_waited_for() {
    need!("ip", "wg", "ping", "strace");
    let pair = pair();
    let Pair { ns1, ns2, t1, .. } = &pair;
    let waits = "trace=/epoll_p?wait2?,/p?poll,/p?select6?,/(clock_)?nanosleep";
    let trace = traced(ns1, t1, &["-e", waits], || exchange(ns1, ns2, "192.168.241.2", 32 << 20));
    let mut count = 0;
    // That of the main thread is about the sockets in their directory.
    let main = format!("{} ", t1.process.id());
    // `epoll_wait(3, [...], 8, 0) = 1`. If others call meanwhile, the end is on a line of its own.
    let ends = trace.lines().filter(|line| !line.starts_with(&main)).filter_map(|line| line.rsplit_once(')'));
    for (call, _) in ends {
        let is_timeless = [", -1", ", 0"].iter().any(|limit| call.ends_with(limit));
        assert!(call.contains("epoll_wait") && is_timeless, "{call})");
        count += 1;
    }
    assert!(count > 100, "{trace}");
}

/// One that comes alone is there before the next one, and soon.
#[test]
fn a_packet_alone_waits_for_nothing() {
    need!("ip", "wg", "ping");
    let pair = pair();
    let (from, to) = (udp(&pair.ns1, "192.168.241.1:0"), udp(&pair.ns2, "192.168.241.2:0"));
    let target = to.local_addr().unwrap();
    to.set_read_timeout(Some(SOON)).unwrap();
    let mut took: Vec<_> = (0..200_u8)
        .map(|number| {
            // As long as it takes until everybody sleeps.
            pause(Duration::from_millis(3));
            let began = boottime();
            from.send_to(&[number; 100], target).unwrap();
            let mut packet = [0; 200];
            assert_eq!(to.recv(&mut packet).unwrap(), 100);
            assert_eq!(packet[0], number);
            boottime() - began
        })
        .collect();
    took.sort();
    eprintln!("a packet alone took {:?}, {:?}, {:?}", took[0], took[100], took[198]);
    // Who waits for company waits with every packet. The machine keeps some of them longer.
    assert!(took[100] < Duration::from_millis(1), "the half of them took {:?} and more", took[100]);
}
