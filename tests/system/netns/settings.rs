//! Scenarios 15–17: what `wg` sets and shows. Configurations that do not fit one message, keys that are none, points that agree with nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use adit::sys::clock::boottime;

use super::Pair;
use crate::support::tunnel::{Key, Program, Tunnel, preshared_key};
use crate::support::{Namespace, SOON, ifname, need, pause, wait_for};

/// A configuration file, gone with this.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let this = Self(std::env::temp_dir().join(format!("{}.conf", ifname())));
        fs::write(&this.0, text).unwrap();
        this
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs `wg setconf` or another command that takes a file.
#[track_caller]
fn load(namespace: &Namespace, command: &str, tunnel: &Tunnel, text: &str) {
    let file = File::new(text);
    namespace.run("wg", &[command, &tunnel.name, file.0.to_str().unwrap()]);
}

/// What peers hold, by their public keys.
type Held = BTreeMap<String, BTreeSet<(IpAddr, u8)>>;

fn held(namespace: &Namespace, tunnel: &Tunnel) -> Held {
    let peer = |line: &str| {
        let (key, prefixes) = line.split_once('\t').unwrap();
        let prefixes = prefixes.split_whitespace().filter(|prefix| *prefix != "(none)");
        (key.to_owned(), prefixes.map(prefix).collect())
    };
    tunnel.show(namespace, "allowed-ips").lines().map(peer).collect()
}

fn prefix(text: &str) -> (IpAddr, u8) {
    let (addr, len) = text.split_once('/').unwrap();
    (addr.parse().unwrap(), len.parse().unwrap())
}

/// Returns the section of a peer.
fn section<'a>(key: &str, allowed_ips: impl IntoIterator<Item = &'a String>) -> String {
    let mut text = format!("[Peer]\nPublicKey = {key}\n");
    for allowed_ip in allowed_ips {
        writeln!(text, "AllowedIPs = {allowed_ip}").unwrap();
    }
    text
}

fn interface(key: &Key) -> String {
    format!("[Interface]\nPrivateKey = {}\n", key.secret())
}

// ---- 15

#[test]
fn scenario_15_a_hundred_thousand_allowed_ips_of_one_peer_are_read_back() {
    need!("wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let peer = Key::generate().public();
    let pairs = (1..=255).flat_map(|a| (0..=255).map(move |b| (a, b)));
    let lists: Vec<String> = pairs.map(|(a, b)| format!("{a}.{b}.0.0/16,{a}::{b}/128")).collect();
    load(&ns, "setconf", &tunnel, &(interface(&tunnel.key) + &section(&peer, &lists)));
    let expected: BTreeSet<_> = lists.iter().flat_map(|list| list.split(',')).map(prefix).collect();
    assert_eq!(expected.len(), 255 * 256 * 2);
    let held = held(&ns, &tunnel);
    assert_eq!(held.len(), 1);
    assert!(held[&peer] == expected, "{} of {}", held[&peer].len(), expected.len());
}

#[test]
fn scenario_15_configurations_that_take_several_messages_are_read_back() {
    need!("wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let mut text = interface(&tunnel.key);
    let mut expected = Held::new();
    for a in 1..=40 {
        let peer = Key::generate().public();
        let list: Vec<String> = (1..=52).map(|b| format!("{a}.{b}.0.0/16")).collect();
        text += &section(&peer, &list);
        expected.insert(peer, list.iter().map(|text| prefix(text)).collect());
    }
    load(&ns, "setconf", &tunnel, &text);
    assert_eq!(held(&ns, &tunnel), expected);

    // 29 peers without and one with allowed IPs, beside those that were there.
    let mut more = String::new();
    for i in 0..30 {
        let peer = Key::generate().public();
        let list: &[String] = if i == 29 { &["255.2.3.4/32,abcd::255/128".to_owned()] } else { &[] };
        more += &section(&peer, list);
        expected.insert(peer, list.iter().flat_map(|list| list.split(',')).map(prefix).collect());
    }
    load(&ns, "addconf", &tunnel, &more);
    assert_eq!(held(&ns, &tunnel), expected);
    // What is shown as a configuration makes the same configuration.
    let shown = ns.run("wg", &["showconf", &tunnel.name]);
    load(&ns, "setconf", &tunnel, &interface(&tunnel.key));
    assert!(held(&ns, &tunnel).is_empty());
    load(&ns, "setconf", &tunnel, &shown);
    assert_eq!(held(&ns, &tunnel), expected);
    assert_eq!(ns.run("wg", &["showconf", &tunnel.name]), shown);

    let [none, many] = [(); 2].map(|()| Key::generate().public());
    load(&ns, "setconf", &tunnel, &interface(&tunnel.key));
    tunnel.set(&ns, &format!("peer {none}"));
    let list: Vec<String> = (1..=197).map(|i| format!("abcd::{i}")).collect();
    tunnel.set(&ns, &format!("peer {many} allowed-ips {}", list.join(",")));
    let all = tunnel.show(&ns, "allowed-ips");
    assert_eq!(all.lines().next().unwrap(), format!("{none}\t(none)"));
    let list = list.iter().map(|addr| prefix(&format!("{addr}/128"))).collect();
    assert_eq!(held(&ns, &tunnel), [(none, BTreeSet::new()), (many, list)].into());
    assert!(!ns.succeeds("wg show doesnotexist"));
}

/// T14.
#[test]
fn scenario_15_a_hundred_thousand_peers_are_set_shown_and_removed() {
    need!("wg");
    const PEERS: u32 = 100_000;
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let before = tunnel.process.memory_kib();
    // Any 32 bytes are a public key, and random ones are quicker to have.
    let keys: Vec<String> = (0..PEERS).map(|_| preshared_key()).collect();
    let list = |i: u32| {
        [
            format!("{}/25", Ipv4Addr::from((10 << 24) + (i << 7))),
            format!("fd00::{:x}:{:x}/128", i >> 16, i & 0xffff),
        ]
    };
    let sections = (0..).zip(&keys).map(|(i, key)| section(key, &list(i)));
    let text = interface(&tunnel.key) + &sections.collect::<String>();
    let start = boottime();
    load(&ns, "setconf", &tunnel, &text);
    let set = boottime() - start;
    let shown = held(&ns, &tunnel);
    let showed = boottime() - start - set;
    let each = (tunnel.process.memory_kib() - before) * 1024 / keys.len() as u64;
    // Not eprintln!: the line is to be seen though the test passes.
    let numbers = format!("100,000 peers: {each} bytes each, set in {set:.1?}, shown in {showed:.1?}");
    let _ = writeln!(std::io::stderr(), "{numbers}");
    let expected: Held = (0..)
        .zip(&keys)
        .map(|(i, key)| (key.clone(), list(i).iter().map(|text| prefix(text)).collect()))
        .collect();
    assert!(shown == expected, "{} peers are shown", shown.len());
    assert!(each < 8192, "{each} bytes a peer");

    // A tenth of them by name, the others at once. A configuration that only takes away leaves the rest as it was.
    let (some, others) = keys.split_at(keys.len() / 10);
    for keys in some.chunks(1000) {
        let words: Vec<String> = keys.iter().map(|key| format!("peer {key} remove")).collect();
        tunnel.set(&ns, &words.join(" "));
    }
    let left = held(&ns, &tunnel);
    assert_eq!(left.len(), others.len());
    assert!(others.iter().all(|key| left[key] == expected[key]));
    load(&ns, "syncconf", &tunnel, &interface(&tunnel.key));
    assert!(tunnel.show(&ns, "peers").is_empty());
}

// ---- 16

#[test]
fn scenario_16_a_key_of_zeros_is_none() {
    need!("wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let (peer, psk) = (Key::generate(), preshared_key());
    let public = peer.public();
    tunnel.set_with_input(&ns, &["peer", &public, "preshared-key", "/dev/stdin"], &psk);
    assert_eq!(tunnel.show(&ns, "private-key"), tunnel.key.secret());
    assert_eq!(tunnel.show(&ns, "public-key"), tunnel.key.public());
    assert_eq!(tunnel.show(&ns, "preshared-keys"), format!("{public}\t{psk}"));
    tunnel.set(&ns, &format!("private-key /dev/null peer {public} preshared-key /dev/null"));
    assert_eq!(tunnel.show(&ns, "private-key"), "(none)");
    assert_eq!(tunnel.show(&ns, "public-key"), "(none)");
    assert_eq!(tunnel.show(&ns, "preshared-keys"), format!("{public}\t(none)"));

    // A peer that turns out to be ourselves goes, and does not come back.
    let set_key = |key: &str| tunnel.set_with_input(&ns, &["private-key", "/dev/stdin"], key);
    set_key(&peer.secret());
    assert_eq!(tunnel.show(&ns, "public-key"), public);
    assert_eq!(tunnel.show(&ns, "peers"), "");
    tunnel.set(&ns, &format!("peer {public}"));
    assert_eq!(tunnel.show(&ns, "peers"), "");
    set_key(&tunnel.key.secret());
    tunnel.set(&ns, &format!("peer {public}"));
    assert_eq!(tunnel.show(&ns, "peers"), public);
}

#[test]
fn scenario_16_private_keys_are_clamped() {
    need!("wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let secret = tunnel.key.secret();
    // The first six bits: `/` is 111111, and the lowest of them is the third of the scalar, which clamping clears: `+`.
    tunnel.set_with_input(&ns, &["private-key", "/dev/stdin"], &format!("/{}", &secret[1..]));
    assert_eq!(tunnel.show(&ns, "private-key"), format!("+{}", &secret[1..]));
}

#[test]
fn scenario_16_peers_are_listed_in_the_order_of_their_creation() {
    need!("wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let mut keys: Vec<String> = (0..20).map(|_| Key::generate().public()).collect();
    keys.iter().for_each(|key| tunnel.set(&ns, &format!("peer {key}")));
    let listed = || tunnel.show(&ns, "peers").lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(listed(), keys);
    // A change does not move a peer; one that is removed and comes back is the last.
    tunnel.set(&ns, &format!("peer {} persistent-keepalive 7", keys[5]));
    assert_eq!(listed(), keys);
    tunnel.set(&ns, &format!("peer {} remove", keys[3]));
    tunnel.set(&ns, &format!("peer {}", keys[3]));
    let back = keys.remove(3);
    keys.push(back);
    assert_eq!(listed(), keys);

    // A list of allowed IPs replaces the one before it, inner prefixes and all.
    let peer = &keys[0];
    let lists = [
        "0.0.0.0/0 10.0.0.0/8 100.0.0.0/10 172.16.0.0/12 192.168.0.0/16",
        "0.0.0.0/0",
        "::/0 1700::/111 5000::/4 9000::/75 e000::/37",
        "::/0",
    ];
    for list in lists {
        tunnel.set(&ns, &format!("peer {peer} allowed-ips {}", list.replace(' ', ",")));
        let all = tunnel.show(&ns, "allowed-ips");
        assert_eq!(all.lines().next().unwrap(), format!("{peer}\t{list}"));
    }
}

// ---- 17

/// RFC 7748: 0, 1, the two points of order 8, p − 1, p, p + 1. Whoever agrees on a key with one of them gets zero.
const LOW_ORDER_POINTS: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
];

#[test]
fn scenario_17_nothing_is_sent_to_points_of_low_order() {
    need!("ip", "wg", "ping");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let ear = ns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    ear.set_nonblocking(true).unwrap();
    let endpoint = ear.local_addr().unwrap();
    let heard = || ear.recv_from(&mut [0; 2048]).ok().map(|(len, _)| len);
    for (i, point) in LOW_ORDER_POINTS.iter().enumerate() {
        let options = format!("persistent-keepalive 1 endpoint {endpoint} allowed-ips 10.7.0.{}/32", i + 1);
        tunnel.set(&ns, &format!("peer {point} {options}"));
    }
    assert_eq!(tunnel.show(&ns, "peers").lines().count(), 7);
    ns.ip(&format!("addr add 10.7.0.100/24 dev {}", tunnel.name));
    tunnel.up(&ns);
    let pings: Vec<_> = (1..=7)
        .map(|host| ns.spawn("ping", &["-n", "-c", "3", "-i", "0.5", "-W", "1", &format!("10.7.0.{host}")]))
        .collect();
    // Two intervals of the persistent keepalive.
    pause(Duration::from_millis(2500));
    drop(pings);
    assert_eq!(heard(), None);
    let transfer = tunnel.show(&ns, "transfer");
    assert!(transfer.lines().all(|line| line.ends_with("\t0\t0")), "{transfer}");

    // One that is a key is sent an initiation at once.
    let options = format!("persistent-keepalive 1 endpoint {endpoint} allowed-ips 10.7.0.8/32");
    tunnel.set(&ns, &format!("peer {} {options}", Key::generate().public()));
    assert_eq!(wait_for("an initiation", SOON, heard), 148);
}

#[test]
fn scenario_17_a_private_key_that_comes_later_changes_nothing_for_points_of_low_order() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    let Pair { ns1, t1, .. } = &pair;
    for (i, point) in LOW_ORDER_POINTS.iter().enumerate() {
        let options = format!("endpoint 127.0.0.1:2 allowed-ips 10.7.0.{}/32", i + 1);
        t1.set(ns1, &format!("peer {point} persistent-keepalive 1 {options}"));
    }
    t1.set(ns1, "private-key /dev/null");
    t1.set_with_input(ns1, &["private-key", "/dev/stdin"], &t1.key.secret());
    assert!(ns1.pings("192.168.241.2"));
    pause(Duration::from_millis(1500));
    for point in LOW_ORDER_POINTS {
        assert_eq!(t1.transfer(ns1, point), (0, 0));
    }
}
