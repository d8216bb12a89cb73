//! Scenarios 2 to 9: what happens inside a pair of tunnels whose fabric is one loopback. With T4, T5, T32 and T33.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use adit::sys::clock::realtime;
use adit::sys::packet::Capture;

use super::{PORT2, Pair};
use crate::support::process::Process;
use crate::support::tunnel::{Key, Program, Tunnel};
use crate::support::{Namespace, SOON, need, not_hosted, pause, wait_for, wait_until};

// ---- 2: MTU

/// As the kernel's test computes it: 34816 − 1500 + 1420.
const BIG_MTU: u32 = 34_736;

#[test]
fn scenario_2_mtu_34816_outside_ipv4_and_ipv6() {
    need!("ip", "wg", "ping", "iperf3");
    let pair = Pair::new();
    set_mtu(&pair, BIG_MTU);
    for host in ["127.0.0.1", "[::1]"] {
        pair.set_endpoints(host);
        pair.exercise();
        assert!(pair.ns1.succeeds(&whole_ping(BIG_MTU, "192.168.241.2")));
        assert!(pair.ns2.succeeds(&whole_ping(BIG_MTU, "192.168.241.1")));
        assert!(pair.ns1.succeeds(&whole_ping(BIG_MTU, "fd00::2")));
        assert!(pair.ns2.succeeds(&whole_ping(BIG_MTU, "fd00::1")));
    }
}

/// From the least that IPv4 must carry to what fits into one outer packet, up and down, with lengths that are no multiple of 16.
const MTUS: [u32; 12] = [576, 65_455, 577, 1280, 1420, 1500, 1535, 65_439, 4097, 9000, 16_384, 65_455];

#[test]
fn scenario_2_mtu_changes_under_traffic_and_nothing_is_lost() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    for host in ["127.0.0.1", "[::1]"] {
        pair.set_endpoints(host);
        assert!(pair.ns1.pings("192.168.241.2"));
        let mut there = Stream::start(&pair.ns1, "192.168.241.2");
        let mut back = Stream::start(&pair.ns2, "192.168.241.1");
        let mut rounds = 0;
        while rounds < MTUS.len() || there.is_going() {
            let mtu = MTUS[rounds % MTUS.len()];
            set_mtu(&pair, mtu);
            assert!(pair.ns1.succeeds(&whole_ping(mtu, "192.168.241.2")), "{mtu} there, outside {host}");
            assert!(pair.ns2.succeeds(&whole_ping(mtu, "192.168.241.1")), "{mtu} back, outside {host}");
            rounds += 1;
        }
        there.expect_no_loss();
        back.expect_no_loss();
    }
}

#[test]
fn scenario_2_mtu_changes_under_bulk_traffic_both_ways() {
    need!("ip", "wg", "ping", "iperf3");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    let server = pair.ns2.spawn("iperf3", &["-s", "-1", "-B", "192.168.241.2"]);
    wait_until("the iperf3 server", SOON, || pair.ns2.sh("ss -Hltn").contains(":5201"));
    let mut client = pair.ns1.spawn("iperf3", &["--bidir", "-t", "4", "-c", "192.168.241.2"]);
    let mut rounds = 0;
    while client.ended().is_none() {
        let mtu = MTUS[rounds % MTUS.len()];
        set_mtu(&pair, mtu);
        for (ns, addr) in [(&pair.ns1, "192.168.241.2"), (&pair.ns2, "192.168.241.1")] {
            // TCP fills the queues, so that one echo request may be lost; not one after the other.
            wait_until(&format!("{mtu} bytes to {addr}"), SOON, || {
                // What TCP learnt from the smaller MTU would hold for ten minutes.
                ns.ip("route flush cache");
                ns.succeeds(&whole_ping(mtu, addr))
            });
        }
        rounds += 1;
    }
    assert!(client.wait(SOON).success());
    assert!(rounds > 3, "only {rounds} MTUs in the time");
    drop(server);
}

fn set_mtu(pair: &Pair, mtu: u32) {
    pair.ns1.ip(&format!("link set {} mtu {mtu}", pair.t1.name));
    pair.ns2.ip(&format!("link set {} mtu {mtu}", pair.t2.name));
}

/// An echo request as long as the MTU, which no router may fragment.
fn whole_ping(mtu: u32, addr: &str) -> String {
    let headers = if addr.contains(':') { 48 } else { 28 };
    format!("ping -n -c 1 -W 2 -M do -s {} {addr}", mtu - headers)
}

/// Echo requests that go on for some seconds, every other millisecond one of 528 bytes.
struct Stream(Process);

impl Stream {
    fn start(namespace: &Namespace, addr: &str) -> Self {
        let args = ["-n", "-q", "-i", "0.002", "-c", "1500", "-s", "500", addr];
        Self(namespace.spawn("ping", &args))
    }

    fn is_going(&mut self) -> bool {
        self.0.ended().is_none()
    }

    #[track_caller]
    fn expect_no_loss(&mut self) {
        assert!(self.0.wait(SOON).success());
        wait_until("no loss", SOON, || {
            let output = self.0.output();
            assert!(!output.contains("packet loss") || output.contains(" 0% packet loss"), "{output}");
            output.contains("packet loss")
        });
    }
}

// ---- 3: counters

#[test]
fn scenario_3_bytes_are_counted_exactly_and_handshakes_by_the_wall_clock() {
    need!("ip", "wg", "ping");
    for host in ["127.0.0.1", "[::1]"] {
        let pair = Pair::new();
        pair.set_endpoints(host);
        assert_eq!((pair.t1.latest_handshake(&pair.ns1), pair.t2.latest_handshake(&pair.ns2)), (0, 0));
        let before = realtime().as_secs();
        pair.ns2.sh("ping -n -c 10 -f -W 4 192.168.241.1");
        let after = realtime().as_secs();

        // Ten packets of 84 bytes, padded to 96, 32 of overhead; a response of 92. An initiation of 148, perhaps a keepalive of 32.
        let first = expect_transfer(&pair, &[(1372, 1428), (1372, 1460)]);
        for (tunnel, ns) in [(&pair.t1, &pair.ns1), (&pair.t2, &pair.ns2)] {
            let at = tunnel.latest_handshake(ns);
            assert!((before..=after).contains(&at), "{at} is not within {before}..={after}");
        }

        pair.ns1.sh("ping -n -c 10 -f -W 4 192.168.241.2");
        let second = (first.0 + 1280, first.1 + 1280);
        assert_eq!(expect_transfer(&pair, &[second]), second);
    }
}

/// Waits until t2 has received and sent one of these, and t1 the reverse: what was sent last is counted a moment after it arrived.
#[track_caller]
fn expect_transfer(pair: &Pair, expected: &[(u64, u64)]) -> (u64, u64) {
    let now = || {
        let (rx1, tx1) = pair.t1.transfer(&pair.ns1, &pair.t2.key.public());
        let (rx2, tx2) = pair.t2.transfer(&pair.ns2, &pair.t1.key.public());
        ((rx2, tx2), (tx1, rx1))
    };
    let settled = wait_for(&format!("{expected:?} bytes"), Duration::from_secs(2), || {
        let (second, first) = now();
        let limit = expected.iter().map(|expected| expected.1).max();
        assert!(Some(second.1) <= limit, "{second:?} is beyond {expected:?}");
        (second == first && expected.contains(&second)).then_some(second)
    });
    assert_eq!(now(), (settled, settled));
    settled
}

// ---- 4: padding

#[test]
fn scenario_4_padding_stays_within_the_mtu_of_the_route() {
    need!("ip", "wg", "ping", "iptables");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    set_mtu(&pair, 1300);
    if !pair.ns0.succeeds("iptables -A INPUT -m length --length 1360 -j DROP") {
        return not_hosted("the length match of iptables");
    }
    assert!(pair.ns2.pings("192.168.241.1"));
    // 1297 bytes are padded to 1300 by the link, which makes 1360 outside.
    let ping = "ping -n -c 1 -W 1 -s 1269 192.168.241.1";
    wait_until("padding to the MTU of the link", SOON, || !pair.ns2.succeeds(ping));
    add_routes(&pair, "192.168.241", "mtu 1299");
    wait_until("padding to the MTU of the route", SOON, || pair.ns2.succeeds(ping));
    pair.ns1.ip(&format!("route del 192.168.241.2/32 dev {}", pair.t1.name));
    wait_until("no route with an MTU any more", SOON, || !pair.ns2.succeeds(ping));
}

#[test]
fn scenario_4_padding_follows_link_and_route_in_both_families() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let capture = Wire::open(&pair.ns0);
    // What 1297 bytes inside become outside, by the least MTU: 32 of overhead, 8 of UDP, and 20 or 40.
    for (host, header) in [("127.0.0.1", 20), ("[::1]", 40)] {
        pair.set_endpoints(host);
        assert!(pair.ns2.pings("192.168.241.1"));
        let expect = |padded: usize, what: &str| {
            for (ping, addr) in [("-s 1269", "192.168.241.1"), ("-s 1249", "fd00::1")] {
                wait_until(&format!("{padded} bytes to {addr} outside {host} by {what}"), SOON, || {
                    capture.messages();
                    pair.ns2.sh(&format!("ping -n -c 1 -W 4 {ping} {addr}"));
                    let lengths: BTreeSet<_> = capture
                        .messages()
                        .into_iter()
                        .filter(|one| one.kind == 4)
                        .map(|one| one.len)
                        .collect();
                    // The longest one: a keepalive may be among them.
                    lengths.last() == Some(&(padded + 32 + 8 + header))
                });
            }
        };
        set_mtu(&pair, 1420);
        expect(1312, "sixteen");
        set_mtu(&pair, 1311);
        expect(1311, "link");
        set_mtu(&pair, 1300);
        expect(1300, "link");
        add_routes(&pair, "192.168.241", "mtu 1299");
        add_routes(&pair, "fd00", "mtu 1299");
        expect(1299, "route");
        set_mtu(&pair, 1298);
        expect(1298, "link below route");
        set_mtu(&pair, 1420);
        // The system takes a changed MTU of the link over to its IPv6 routes.
        add_routes(&pair, "fd00", "mtu 1299");
        expect(1299, "route again");
        for (ns, tunnel, host) in [(&pair.ns1, &pair.t1, 2), (&pair.ns2, &pair.t2, 1)] {
            ns.ip(&format!("route del 192.168.241.{host}/32 dev {}", tunnel.name));
            ns.ip(&format!("route del fd00::{host}/128 dev {}", tunnel.name));
        }
        expect(1312, "sixteen again");
    }
}

/// Routes to the other side, with `attributes`.
fn add_routes(pair: &Pair, network: &str, attributes: &str) {
    let (before, len) = if network.contains('.') { (".", 32) } else { ("::", 128) };
    for (ns, tunnel, host) in [(&pair.ns1, &pair.t1, 2), (&pair.ns2, &pair.t2, 1)] {
        ns.ip(&format!("route replace {network}{before}{host}/{len} dev {} {attributes}", tunnel.name));
    }
}

/// A message of ours on the wire.
#[derive(Debug)]
struct Message {
    kind: u8,
    /// Of the whole outer packet.
    len: usize,
}

/// A capture of a namespace's loopback.
struct Wire(Capture);

impl Wire {
    fn open(namespace: &Namespace) -> Self {
        /// The loopback's index in every namespace.
        const LOOPBACK: u32 = 1;
        Self(namespace.enter(|| Capture::open(LOOPBACK)).expect("a capture"))
    }

    /// Returns the messages since the last call, each twice: as it left and as it arrived.
    fn messages(&self) -> Vec<Message> {
        const ETHERNET: usize = 14;
        let mut frame = vec![0; 1 << 16];
        let mut messages = Vec::new();
        while let Ok(len) = self.0.read(&mut frame) {
            let packet = &frame[ETHERNET..len];
            let (protocol, udp) = match packet[0] >> 4 {
                4 => (packet[9], 20),
                _ => (packet[6], 40),
            };
            if protocol == 17 {
                messages.push(Message { kind: packet[udp + 8], len: packet.len() });
            }
        }
        assert_eq!(self.0.take_lost().expect("statistics"), 0, "frames were lost");
        messages
    }
}

// ---- 5: roaming

#[test]
fn scenario_5_a_peer_is_followed_to_every_port_and_address() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let (Pair { ns0, ns1, ns2, t1, t2, .. }, key1, key2) =
        (&pair, pair.t1.key.public(), pair.t2.key.public());
    pair.set_endpoints("127.0.0.1");
    ns0.ip("addr add fd11::1/64 dev lo nodad");
    ns0.wait_for_addresses("lo");
    assert!(ns1.pings("192.168.241.2"));
    let session = t1.latest_handshake(ns1);
    let wire = Wire::open(ns0);
    let is_at = |endpoint: &str| {
        wait_until(&format!("ns1 at {endpoint}"), SOON, || {
            t2.show(ns2, "endpoints") == format!("{key1}\t{endpoint}")
        });
    };

    // Another port.
    t1.set(ns1, "listen-port 9990");
    assert!(ns1.pings("192.168.241.2"));
    is_at("127.0.0.1:9990");

    let arrives = |addr: &str| assert!(ns1.pings(addr), "the first ping of {addr}");

    // The kernel's moves: another address of IPv4 and another port, then IPv6.
    ns0.ip("-4 addr del 127.0.0.1/8 dev lo");
    ns0.ip("-4 addr add 127.212.121.99/8 dev lo");
    t1.set(ns1, "listen-port 9999");
    t1.set(ns1, &format!("peer {key2} endpoint 127.0.0.1:{PORT2}"));
    arrives("fd00::2");
    is_at("127.212.121.99:9999");
    t1.set(ns1, "listen-port 9998");
    t1.set(ns1, &format!("peer {key2} endpoint [::1]:{PORT2}"));
    arrives("192.168.241.2");
    is_at("[::1]:9998");

    // Another address of IPv6 alone, and back to IPv4 alone.
    t1.set(ns1, &format!("peer {key2} endpoint [fd11::1]:{PORT2}"));
    arrives("192.168.241.2");
    is_at("[fd11::1]:9998");
    t1.set(ns1, &format!("peer {key2} endpoint 127.0.0.1:{PORT2}"));
    arrives("192.168.241.2");
    is_at("127.212.121.99:9998");

    // The other side moves, and the one that moved before finds it: its very first answer goes to the new port.
    for port in 9970..9990 {
        t2.set(ns2, &format!("listen-port {port}"));
        assert!(ns2.pings("192.168.241.1"), "from port {port}");
        wait_until(&format!("ns2 at port {port}"), SOON, || {
            t1.show(ns1, "endpoints") == format!("{key2}\t127.212.121.99:{port}")
        });
    }
    assert!(ns1.pings("192.168.241.2"));

    // None of it took a handshake.
    assert!(wire.messages().iter().all(|message| message.kind == 4));
    assert_eq!(t1.latest_handshake(ns1), session);
}

// ---- 6: crypto-RP filter

#[test]
fn scenario_6_a_source_belongs_to_the_peer_with_the_most_specific_prefix() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let (Pair { ns1, ns2, t1, t2, .. }, key2) = (&pair, pair.t2.key.public());
    pair.set_endpoints("[::1]");
    t1.set(ns1, &format!("peer {key2} allowed-ips 192.168.241.0/24,fd00::2/128"));
    let inbox = Inbox::open(ns1, "192.168.241.1");
    let v6_inbox = Inbox::open(ns1, "fd00::1");
    let from = Outbox::open(ns2, "192.168.241.2");
    let v6_from = Outbox::open(ns2, "fd00::2");
    from.send("before", "192.168.241.1");
    inbox.expect("before");

    let more_specific = Key::generate().public();
    t1.set(ns1, &format!("peer {more_specific} allowed-ips 192.168.241.2/32"));
    t2.set(ns2, "listen-port 9997");
    let sent = t2.transfer(ns2, &t1.key.public()).1;
    from.send("forbidden", "192.168.241.1");
    wait_until("the message is on its way", SOON, || t2.transfer(ns2, &t1.key.public()).1 > sent);
    // What comes from one outer address is handled in order, so the other one was refused before.
    v6_from.send("allowed", "fd00::1");
    v6_inbox.expect("allowed");
    inbox.expect_nothing();

    // The prefix went with the peer; that the first peer has the wider one counts again.
    t1.set(ns1, &format!("peer {more_specific} remove"));
    assert_eq!(t1.show(ns1, "endpoints"), format!("{key2}\t[::1]:9997"));
    from.send("after", "192.168.241.1");
    inbox.expect("after");
}

#[test]
fn scenario_6_a_refused_source_still_moves_the_endpoint() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let (Pair { ns1, ns2, t1, t2, .. }, key1, key2) = (&pair, pair.t1.key.public(), pair.t2.key.public());
    pair.set_endpoints("[::1]");
    assert!(ns2.pings("192.168.241.1"));
    t1.set(ns1, &format!("peer {key2} allowed-ips fd00::2/128"));
    t2.set(ns2, "listen-port 9997");
    let received = t1.transfer(ns1, &key2);
    assert!(ns2.pings_in_vain("192.168.241.1"));
    // Kernel `receive.c`, `wg_packet_rx_poll`: authentic, though its content is not.
    assert_eq!(t1.show(ns1, "endpoints"), format!("{key2}\t[::1]:9997"));
    assert_eq!(t1.transfer(ns1, &key2), received, "what is refused is not counted");
    assert_ne!(t2.transfer(ns2, &key1).1, 0);
}

/// T5, and the move of a prefix back and forth.
#[test]
fn scenario_6_peers_cannot_send_from_a_more_specific_prefix_of_another() {
    need!("ip", "wg");
    let (fabric, hub) = (Namespace::new(), Namespace::new());
    let t = Tunnel::start(Program::Adit, &fabric);
    t.move_to(&fabric, &hub);
    t.set(&hub, "listen-port 100");
    let spokes = [("10.0.0.0/8", 101_u16, "10.2.0.1/8"), ("10.1.0.0/16", 102, "10.1.0.1/16")].map(
        |(prefix, port, addr)| {
            let ns = Namespace::new();
            let spoke = Tunnel::start(Program::Adit, &fabric);
            spoke.move_to(&fabric, &ns);
            spoke.set(&ns, &format!("listen-port {port}"));
            let peer = format!("peer {} allowed-ips 172.16.0.1/32 endpoint 127.0.0.1:100", t.key.public());
            spoke.set(&ns, &peer);
            t.set(&hub, &format!("peer {} allowed-ips {prefix}", spoke.key.public()));
            ns.ip(&format!("addr add {addr} dev {}", spoke.name));
            ns.ip(&format!("link set {} up", spoke.name));
            ns.ip(&format!("route add 172.16.0.1/32 dev {}", spoke.name));
            (ns, spoke)
        },
    );
    hub.ip(&format!("addr add 172.16.0.1/32 dev {}", t.name));
    hub.ip(&format!("link set {} up", t.name));
    hub.sysctl("net/ipv4/conf/all/rp_filter", "0");
    let [(ns_a, a), (ns_b, b)] = &spokes;
    ns_a.ip(&format!("addr add 10.1.0.7/32 dev {}", a.name));

    let inbox = Inbox::open(&hub, "172.16.0.1");
    let [a_own, a_foreign] = ["10.2.0.1", "10.1.0.7"].map(|addr| Outbox::open(ns_a, addr));
    let b_own = Outbox::open(ns_b, "10.1.0.1");
    a_own.send("hello of a", "172.16.0.1");
    inbox.expect("hello of a");
    b_own.send("hello of b", "172.16.0.1");
    inbox.expect("hello of b");

    let expect_refused = |text: &str| {
        let sent = a.transfer(ns_a, &t.key.public()).1;
        a_foreign.send(text, "172.16.0.1");
        wait_until("the message is on its way", SOON, || a.transfer(ns_a, &t.key.public()).1 > sent);
        let follower = format!("after {text}");
        a_own.send(&follower, "172.16.0.1");
        // In order, so what was forbidden would have come first.
        inbox.expect(&follower);
    };
    expect_refused("10.1.0.7 is b's");

    // Moved to a, though b has the wider one: b cannot send from it, a can.
    t.set(&hub, &format!("peer {} allowed-ips 10.0.0.0/8,10.1.0.0/16", a.key.public()));
    let allowed = t.show(&hub, "allowed-ips");
    assert!(allowed.contains(&format!("{}\t(none)", b.key.public())), "{allowed}");
    a_foreign.send("10.1.0.7 is a's", "172.16.0.1");
    inbox.expect("10.1.0.7 is a's");
    let sent = b.transfer(ns_b, &t.key.public()).1;
    b_own.send("no more", "172.16.0.1");
    wait_until("the message is on its way", SOON, || b.transfer(ns_b, &t.key.public()).1 > sent);
    inbox.expect_nothing();

    // And back.
    t.set(&hub, &format!("peer {} allowed-ips 10.1.0.0/16", b.key.public()));
    expect_refused("10.1.0.7 is b's again");
    b_own.send("b again", "172.16.0.1");
    inbox.expect("b again");
}

const INBOX_PORT: u16 = 1111;

struct Inbox(UdpSocket);

impl Inbox {
    fn open(namespace: &Namespace, addr: &str) -> Self {
        Self(socket(namespace, addr, INBOX_PORT))
    }

    /// Takes the next datagram, which must be `text`.
    #[track_caller]
    fn expect(&self, text: &str) {
        let mut buf = [0; 100];
        self.0.set_read_timeout(Some(SOON)).unwrap();
        let len = self.0.recv(&mut buf).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(String::from_utf8_lossy(&buf[..len]), text);
    }

    /// Lets a while pass in which no datagram may come.
    #[track_caller]
    fn expect_nothing(&self) {
        let mut buf = [0; 100];
        self.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let error = self.0.recv(&mut buf).expect_err("nothing");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
}

struct Outbox(UdpSocket);

impl Outbox {
    fn open(namespace: &Namespace, addr: &str) -> Self {
        Self(socket(namespace, addr, 0))
    }

    #[track_caller]
    fn send(&self, text: &str, to: &str) {
        self.0.send_to(text.as_bytes(), (to, INBOX_PORT)).unwrap();
    }
}

fn socket(namespace: &Namespace, addr: &str, port: u16) -> UdpSocket {
    let addr = (addr.to_owned(), port);
    namespace.enter(move || UdpSocket::bind((addr.0.as_str(), addr.1))).expect("a socket")
}

// ---- 7: the private key

#[test]
fn scenario_7_a_new_private_key_is_used_at_once_on_either_side() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let Pair { ns1, ns2, t1, t2, psk, .. } = &pair;
    pair.set_endpoints("127.0.0.1");
    assert!(ns1.pings("192.168.241.2"));
    let sides =
        [(ns1, t1, "192.168.241.1/32", "192.168.241.2"), (ns2, t2, "192.168.241.2/32", "192.168.241.1")];
    let mut keys = [t1.key.clone(), t2.key.clone()];
    for round in 0..4 {
        let (i, j) = (round % 2, 1 - round % 2);
        let (ns, tunnel, prefix, towards) = sides[i];
        let (other_ns, other, ..) = sides[j];
        let (old, new) = (std::mem::replace(&mut keys[i], Key::generate()), &keys[i]);
        tunnel.set_with_input(ns, &["private-key", "/dev/stdin"], &new.secret());
        let (new, old) = (new.public(), old.public());
        other.set_with_input(
            other_ns,
            &["peer", &new, "preshared-key", "/dev/stdin", "allowed-ips", prefix, "peer", &old, "remove"],
            psk,
        );
        assert_eq!(tunnel.show(ns, "public-key"), new);
        assert!(ns.pings(towards), "round {round}");
        assert_eq!(other.show(other_ns, "latest-handshakes").lines().count(), 1);
        assert!(other.latest_handshake(other_ns) != 0);
    }
    // A peer that has learnt the new key nowhere is not spoken to.
    let stranger = Key::generate();
    t1.set_with_input(ns1, &["private-key", "/dev/stdin"], &stranger.secret());
    assert!(ns1.pings_in_vain("192.168.241.2"));
}

/// T33.
#[test]
fn scenario_7_setting_the_same_private_key_makes_no_handshake() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    assert!(pair.ns1.pings("192.168.241.2"));
    let wire = Wire::open(&pair.ns0);
    let mut there = Stream::start(&pair.ns1, "192.168.241.2");
    let mut back = Stream::start(&pair.ns2, "192.168.241.1");
    let mut data = 0;
    while there.is_going() {
        for (tunnel, ns) in [(&pair.t1, &pair.ns1), (&pair.t2, &pair.ns2)] {
            tunnel.set_with_input(ns, &["private-key", "/dev/stdin"], &tunnel.key.secret());
        }
        let messages = wire.messages();
        assert!(messages.iter().all(|message| message.kind == 4), "{messages:?}");
        data += messages.len();
    }
    there.expect_no_loss();
    back.expect_no_loss();
    assert!(data > 1500 * 4, "only {data} messages were seen");
}

// ---- 8: a tunnel inside a tunnel

#[test]
fn scenario_8_a_tunnel_inside_a_tunnel() {
    need!("ip", "wg", "ping", "iperf3");
    let pair = Pair::new();
    let _inside = nest(&pair);
    pair.exercise();
}

/// Moves the pair's addresses to a second pair of tunnels, the endpoints of which are addresses inside the first.
fn nest(pair: &Pair) -> [Tunnel; 2] {
    let Pair { ns1, ns2, t1, t2, .. } = pair;
    pair.set_endpoints("127.0.0.1");
    let inside = [Tunnel::start(Program::Adit, ns1), Tunnel::start(Program::Adit, ns2)];
    let sides = [(ns1, t1, t2, &inside[0], &inside[1], 1, 2), (ns2, t2, t1, &inside[1], &inside[0], 2, 1)];
    for (ns, outer, outer_peer, inner, inner_peer, own, other) in sides {
        ns.ip(&format!("addr flush dev {}", outer.name));
        ns.ip(&format!("addr add fd00::5:{own}/112 dev {} nodad", outer.name));
        outer.set(ns, &format!("peer {} allowed-ips fd00::5:{other}/128", outer_peer.key.public()));
        ns.ip(&format!("addr add 192.168.241.{own}/24 dev {}", inner.name));
        ns.ip(&format!("addr add fd00::{own}/112 dev {} nodad", inner.name));
        ns.ip(&format!("link set {} mtu 1340 up", inner.name));
        [outer, inner].iter().for_each(|tunnel| ns.wait_for_addresses(&tunnel.name));
        let peer = inner_peer.key.public();
        inner.set(
            ns,
            &format!(
                "listen-port 5 peer {peer} allowed-ips 192.168.241.{other}/32,fd00::{other}/128 endpoint [fd00::5:{other}]:5"
            ),
        );
    }
    inside
}

// ---- 9: a routing loop

/// The kernel's loop: the tunnel inside leads into the tunnel around it, and that one back into the tunnel inside.
#[test]
fn scenario_9_a_loop_of_two_tunnels_comes_to_an_end() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    let [inside, other_inside] = nest(&pair);
    assert!(pair.ns1.pings("192.168.241.2"));
    let Pair { ns0, ns1, ns2, t1, t2, .. } = pair;
    inside.move_to(&ns1, &ns0);
    ns0.ip(&format!("addr add 192.168.241.1/24 dev {}", inside.name));
    ns0.ip(&format!("link set {} up", inside.name));
    wait_until("the moved tunnel", SOON, || ns0.pings("192.168.241.2"));
    let (outside_peer, inside_peer) = (t2.key.public(), other_inside.key.public());
    t1.set(&ns1, &format!("peer {outside_peer} endpoint 192.168.241.2:7"));
    ns2.ip(&format!("link del {}", t2.name));
    ns2.ip(&format!("link del {}", other_inside.name));

    let loops = [Loop::begin(&ns0, &inside, &inside_peer), Loop::begin(&ns1, &t1, &outside_peer)];
    assert!(!ns0.succeeds("ping -n -W 1 -c 10 -f 192.168.241.2"));
    pause(Duration::from_secs(1));
    loops.into_iter().for_each(Loop::end);
}

/// T32: the endpoint is behind the very tunnel.
#[test]
fn scenario_9_a_tunnel_that_leads_into_itself_comes_to_an_end() {
    need!("ip", "wg", "ping");
    for (addr, endpoint) in [("192.168.241.2", "192.168.241.2:7"), ("fd00::2", "[fd00::2]:7")] {
        let pair = Pair::new();
        pair.set_endpoints("127.0.0.1");
        assert!(pair.ns1.pings("192.168.241.2"));
        let Pair { ns0, ns1, t1, t2, .. } = pair;
        t1.move_to(&ns1, &ns0);
        ns0.ip(&format!("addr add 192.168.241.1/24 dev {}", t1.name));
        ns0.ip(&format!("link set {} up", t1.name));
        ns0.ip(&format!("addr add fd00::1/112 dev {} nodad", t1.name));
        wait_until("the moved tunnel", SOON, || ns0.pings(addr));
        let peer = t2.key.public();
        t1.set(&ns0, &format!("peer {peer} endpoint {endpoint}"));

        // Packets that fill the tunnel are longer than it once wrapped, and come back as fragments.
        for size in [56, 1000, 1372] {
            let begun = Loop::begin(&ns0, &t1, &peer);
            assert!(!ns0.succeeds(&format!("ping -n -W 1 -c 10 -f -s {size} {addr}")));
            pause(Duration::from_secs(1));
            begun.end();
        }
        t1.set(&ns0, &format!("peer {peer} endpoint 127.0.0.1:{PORT2}"));
        assert!(ns0.pings(addr), "it is usable again");
    }
}

/// A tunnel before it is asked to chase its tail.
struct Loop<'a> {
    namespace: &'a Namespace,
    tunnel: &'a Tunnel,
    peer: &'a str,
    sent: u64,
    ticks: u64,
}

impl<'a> Loop<'a> {
    fn begin(namespace: &'a Namespace, tunnel: &'a Tunnel, peer: &'a str) -> Self {
        let sent = tunnel.transfer(namespace, peer).1;
        Self { namespace, tunnel, peer, sent, ticks: ticks(tunnel) }
    }

    #[track_caller]
    fn end(self) {
        let ticks = ticks(self.tunnel) - self.ticks;
        let sent = self.tunnel.transfer(self.namespace, self.peer).1 - self.sent;
        assert!(sent > 0, "nothing has entered the loop");
        assert!(sent < 70_000, "{sent} bytes were sent");
        assert!(ticks < 50, "{ticks} hundredths of a second of work");
    }
}

/// Returns the time that the tunnel's process has worked, in hundredths of a second (proc(5), `stat`).
fn ticks(tunnel: &Tunnel) -> u64 {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", tunnel.process.id())).expect("the process is there");
    let after_name = stat.rsplit(')').next().expect("a name in parentheses");
    after_name.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().expect("a number")).sum()
}
