//! The configuration socket of the built program: the protocol word for word, clients that misbehave, and changes under traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use adit::config::{Configure, Edit, Refused, Snapshot, Statistics};
use adit::uapi::serve::Server;
use adit::uapi::socket::Socket;
use adit::wireguard::dropped::Dropped;

use crate::support::tunnel::{Key, Program, Tunnel, preshared_key, socket_path};
use crate::support::{Namespace, Process, SOON, ifname, need, wait_until};

const EINVAL: &str = "errno=-22\n\n";
const EPROTO: &str = "errno=-71\n\n";
const OK: &str = "errno=0\n\n";

/// A client that says exactly what it is told to say.
struct Client(UnixStream);

impl Client {
    fn connect(name: &str) -> Self {
        let stream = UnixStream::connect(socket_path(name)).expect("the socket answers");
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("the program reads");
    }

    /// Returns the next reply.
    #[track_caller]
    fn reply(&mut self) -> String {
        let mut reply = Vec::new();
        let mut buffer = [0; 64 << 10];
        while !reply.ends_with(b"\n\n") {
            let length = self.0.read(&mut buffer).expect("a reply in time");
            assert_ne!(length, 0, "the connection was closed after {:?}", String::from_utf8_lossy(&reply));
            reply.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(reply).unwrap()
    }

    #[track_caller]
    fn ask(&mut self, request: &str) -> String {
        self.say(request);
        self.reply()
    }

    /// Applies `lines`, the lines of a set.
    #[track_caller]
    fn set(&mut self, lines: &str) {
        let lines = lines.trim_start();
        assert_eq!(self.ask(&format!("set=1\n{lines}\n")), OK, "{lines}");
    }

    #[track_caller]
    fn get(&mut self) -> String {
        self.ask("get=1\n\n")
    }
}

/// Returns the 64 digits by which the socket names the number `n` as a key.
fn hex(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

fn public_hex(key: &Key) -> String {
    key.private().public().as_bytes().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// An interface that is down and knows nothing but its key.
fn interface(namespace: &Namespace) -> (Tunnel, Client) {
    let tunnel = Tunnel::start(Program::Adit, namespace);
    let client = Client::connect(&tunnel.name);
    (tunnel, client)
}

#[test]
fn a_get_names_everything_in_wireguard_gos_order_and_omits_what_is_not_set() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    client.set(&format!("private_key={}\n", hex(0)));
    assert_eq!(client.get(), OK);
    let lines = [
        format!("private_key={}\nlisten_port=12345\nfwmark=4294967295\nreplace_peers=true\n", hex(0x48)),
        format!("public_key={}\n", hex(0x0b)),
        format!("public_key={}\npreshared_key={}\n", hex(0x0a), hex(0xfe)),
        "protocol_version=1\nendpoint=[fe80::1%1]:80\npersistent_keepalive_interval=65535\n".to_owned(),
        "replace_allowed_ips=true\nallowed_ip=10.0.0.9/8\nallowed_ip=::/0\nallowed_ip=0.0.0.0/0\n".to_owned(),
        format!("public_key={}\nendpoint=192.0.2.1:65535\n", hex(0x0c)),
        "allowed_ip=192.168.4.4/32\nallowed_ip=2001:db8::1/128\n".to_owned(),
    ];
    client.set(&lines.concat());
    let times = "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n";
    let expected = [
        format!("private_key={}\nlisten_port=12345\nfwmark=4294967295\n", hex(0x48)),
        format!("public_key={}\npreshared_key={}\nprotocol_version=1\n", hex(0x0b), hex(0)),
        format!("{times}persistent_keepalive_interval=0\n"),
        format!("public_key={}\npreshared_key={}\nprotocol_version=1\n", hex(0x0a), hex(0xfe)),
        format!("endpoint=[fe80::1%1]:80\n{times}persistent_keepalive_interval=65535\n"),
        "allowed_ip=0.0.0.0/0\nallowed_ip=10.0.0.0/8\nallowed_ip=::/0\n".to_owned(),
        format!("public_key={}\npreshared_key={}\nprotocol_version=1\n", hex(0x0c), hex(0)),
        format!("endpoint=192.0.2.1:65535\n{times}persistent_keepalive_interval=0\n"),
        "allowed_ip=192.168.4.4/32\nallowed_ip=2001:db8::1/128\n".to_owned(),
        OK.to_owned(),
    ];
    assert_eq!(client.get(), expected.concat());
    // And `wg` understands all of it.
    let dump = namespace.run("wg", &["show", &tunnel.name, "dump"]);
    assert_eq!(dump.lines().count(), 4, "{dump}");
    assert!(dump.lines().next().unwrap().ends_with("\t12345\t0xffffffff"), "{dump}");
    assert!(dump.contains("\t10.0.0.0/8") || dump.contains(",10.0.0.0/8"), "{dump}");
    client.set(&format!("private_key={}\nfwmark=0\nlisten_port=0\nreplace_peers=true\n", hex(0)));
    assert_eq!(client.get(), OK);
}

/// T31: mistakes, and what they are answered with. `PEER` stands for a section's beginning.
const MISTAKES: &[(&str, &str)] = &[
    ("replace_peers=false", EINVAL),
    ("replace_peers=", EINVAL),
    ("private_key=00", EINVAL),
    ("private_key=zz", EINVAL),
    ("private_key=", EINVAL),
    ("listen_port=65536", EINVAL),
    ("listen_port=-1", EINVAL),
    ("listen_port=+1", EINVAL),
    ("listen_port=", EINVAL),
    ("listen_port= 1", EINVAL),
    ("fwmark=4294967296", EINVAL),
    ("fwmark=0x1", EINVAL),
    ("fwmark=off", EINVAL),
    ("no_such_key=1", EINVAL),
    ("listen_port", EPROTO),
    ("=", EINVAL),
    ("LISTEN_PORT=1", EINVAL),
    (" listen_port=1", EINVAL),
    ("get=1", EINVAL),
    ("set=1", EINVAL),
    ("errno=0", EINVAL),
    ("public_key=", EINVAL),
    ("public_key=0", EINVAL),
    // Keys of a peer before there is one, and the other way round.
    ("preshared_key=PSK", EINVAL),
    ("endpoint=127.0.0.1:1", EINVAL),
    ("allowed_ip=10.0.0.0/8", EINVAL),
    ("remove=true", EINVAL),
    ("update_only=true", EINVAL),
    ("protocol_version=1", EINVAL),
    ("persistent_keepalive_interval=1", EINVAL),
    ("PEERlisten_port=1", EINVAL),
    ("PEERfwmark=1", EINVAL),
    ("PEERreplace_peers=true", EINVAL),
    ("PEERprivate_key=PSK", EINVAL),
    ("PEERno_such_key=1", EINVAL),
    ("PEERremove=false", EINVAL),
    ("PEERupdate_only=false", EINVAL),
    ("PEERreplace_allowed_ips=false", EINVAL),
    ("PEERprotocol_version=0", EINVAL),
    ("PEERprotocol_version=2", EINVAL),
    ("PEERpreshared_key=1", EINVAL),
    ("PEERpersistent_keepalive_interval=65536", EINVAL),
    ("PEERpersistent_keepalive_interval=off", EINVAL),
    ("PEERpersistent_keepalive_interval=-1", EINVAL),
    ("PEERendpoint=localhost:1", EINVAL),
    ("PEERendpoint=127.0.0.1", EINVAL),
    ("PEERendpoint=127.0.0.1:", EINVAL),
    ("PEERendpoint=127.0.0.1:65536", EINVAL),
    ("PEERendpoint=::1:80", EINVAL),
    ("PEERendpoint=[::1]", EINVAL),
    ("PEERendpoint=[127.0.0.1]:1", EINVAL),
    ("PEERendpoint=[fe80::1%nonesuch]:1", EINVAL),
    ("PEERendpoint=", EINVAL),
    ("PEERallowed_ip=10.0.0.0/33", EINVAL),
    ("PEERallowed_ip=::/129", EINVAL),
    ("PEERallowed_ip=10.0.0.0", EINVAL),
    ("PEERallowed_ip=10.0.0/8", EINVAL),
    ("PEERallowed_ip=10.0.0.0/", EINVAL),
    ("PEERallowed_ip=10.0.0.0/-1", EINVAL),
    ("PEERallowed_ip=--10.0.0.0/8", EINVAL),
    ("PEERallowed_ip=", EINVAL),
    ("PEERallowed_ip", EPROTO),
    // A section that is ignored is checked all the same.
    ("PEERremove=true\nendpoint=nowhere", EINVAL),
];

#[test]
fn a_set_with_a_mistake_is_answered_with_a_negative_errno_and_applies_nothing() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (_tunnel, mut client) = interface(&namespace);
    client.set(&format!("listen_port=2000\nfwmark=7\npublic_key={}\nallowed_ip=10.1.0.0/16\n", hex(1)));
    let before = client.get();
    let section = format!("public_key={}\n", hex(2));
    for &(mistake, errno) in MISTAKES {
        let mistake = mistake.replace("PEER", &section).replace("PSK", &hex(3));
        // Everything before the mistake is right, and so is everything after it.
        let good = format!("listen_port=2001\nfwmark=8\nprivate_key={}\nreplace_peers=true\n", hex(9));
        let request = format!("set=1\n{good}{mistake}\npublic_key={}\nallowed_ip=10.1.0.0/16\n\n", hex(4));
        assert_eq!(client.ask(&request), errno, "{mistake}");
        assert_eq!(client.get(), before, "{mistake}");
    }
    // The same request without a mistake does apply.
    client.set(&format!("listen_port=2001\nfwmark=8\nreplace_peers=true\npublic_key={}\n", hex(4)));
    assert_ne!(client.get(), before);
}

#[test]
fn peers_are_changed_in_place_key_by_key() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    let (one, two) = (hex(1), hex(2));
    let held = |client: &mut Client| -> Vec<String> {
        let text = client.get();
        let lines =
            text.lines().filter(|line| line.starts_with("allowed_ip=") || line.starts_with("public_key="));
        lines.map(|line| line.replace(&one, "one").replace(&two, "two").replace("public_key=", "")).collect()
    };
    // A peer that is not there is not made by update_only, and the rest of its section is ignored.
    client.set(&format!("public_key={one}\nupdate_only=true\nallowed_ip=10.0.0.0/8\n"));
    assert_eq!(held(&mut client), [""; 0]);
    client.set(&format!("public_key={one}\nremove=true\nallowed_ip=10.0.0.0/8\n"));
    assert_eq!(held(&mut client), [""; 0]);
    client
        .set(&format!("public_key={one}\nallowed_ip=10.0.0.0/8\npublic_key={two}\nallowed_ip=10.1.0.0/16\n"));
    client.set(&format!("public_key={one}\nupdate_only=true\nallowed_ip=10.2.0.0/16\n"));
    assert_eq!(
        held(&mut client),
        ["one", "allowed_ip=10.0.0.0/8", "allowed_ip=10.2.0.0/16", "two", "allowed_ip=10.1.0.0/16"]
    );
    // What another peer holds is not removed; what is ours is.
    client.set(&format!("public_key={one}\nallowed_ip=-10.1.0.0/16\nallowed_ip=-10.0.0.0/8\n"));
    assert_eq!(held(&mut client), ["one", "allowed_ip=10.2.0.0/16", "two", "allowed_ip=10.1.0.0/16"]);
    // A prefix moves to who is given it last.
    client.set(&format!("public_key={two}\nallowed_ip=10.2.0.0/16\n"));
    assert_eq!(held(&mut client), ["one", "two", "allowed_ip=10.1.0.0/16", "allowed_ip=10.2.0.0/16"]);
    client.set(&format!("public_key={two}\nreplace_allowed_ips=true\nallowed_ip=10.3.0.0/16\n"));
    assert_eq!(held(&mut client), ["one", "two", "allowed_ip=10.3.0.0/16"]);
    // `wg` replaces them as well.
    tunnel.set(&namespace, &format!("peer {} allowed-ips 10.4.0.0/16", base64_of(&two)));
    assert_eq!(held(&mut client), ["one", "two", "allowed_ip=10.4.0.0/16"]);
    client.set(&format!("public_key={one}\nremove=true\n"));
    assert_eq!(held(&mut client), ["two", "allowed_ip=10.4.0.0/16"]);
    // Sections of one request are obeyed in their order.
    client.set(&format!(
        "replace_peers=true\npublic_key={one}\npublic_key={one}\nremove=true\npublic_key={two}\n"
    ));
    assert_eq!(held(&mut client), ["two"]);
    // Ourselves as a peer: ignored, whichever comes first.
    let own = public_hex(&tunnel.key);
    client.set(&format!("public_key={own}\nallowed_ip=10.0.0.0/8\n"));
    assert_eq!(held(&mut client), ["two"]);
    let other = Key::generate();
    client.set(&format!("public_key={}\n", public_hex(&other)));
    assert_eq!(held(&mut client).len(), 2);
    tunnel.set_with_input(&namespace, &["private-key", "/dev/stdin"], &other.secret());
    assert_eq!(held(&mut client), ["two"]);
}

fn base64_of(hex_key: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(hex::decode(hex_key).unwrap())
}

#[test]
fn one_connection_carries_many_requests_however_they_are_cut() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    // All at once: the replies come in order.
    let mut all = String::new();
    for mark in 1..=200 {
        let _ = write!(all, "set=1\nfwmark={mark}\n\nset=1\nfwmark=x\n\n");
    }
    client.say(&all);
    let mut replies = vec![0; 200 * (OK.len() + EINVAL.len())];
    client.0.read_exact(&mut replies).unwrap();
    assert_eq!(String::from_utf8(replies).unwrap(), format!("{OK}{EINVAL}").repeat(200));
    assert!(client.get().contains("\nfwmark=200\n"));
    // Byte by byte.
    for byte in "set=1\nfwmark=201\n\n".bytes() {
        client.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.reply(), OK);
    // Lines that end in CRLF.
    assert_eq!(client.ask("set=1\r\nfwmark=202\r\n\r\n"), OK);
    assert!(client.ask("get=1\r\n\r\n").contains("\nfwmark=202\n"));
    // A very long line, and the connection goes on.
    for length in [1_025, 64 << 10, 5 << 20] {
        client.say(&format!("set=1\nfwmark=203\nfwmark={}\n\n", "0".repeat(length)));
        assert_eq!(client.reply(), EINVAL, "{length}");
    }
    assert!(client.get().contains("\nfwmark=202\n"));
    // A get has no lines; its errno is positive (wireguard-tools, ipc-uapi.h).
    assert_eq!(client.ask("get=1\nfwmark=1\n\n"), "errno=22\n\n");
    // Another protocol: the connection ends, the next one is served.
    for words in ["GET / HTTP/1.1\r\n\r\n", "get=2\n\n", "set=\n\n", "\0\n\n"] {
        let mut stranger = Client::connect(&tunnel.name);
        stranger.say(words);
        let read = stranger.0.read(&mut [0; 16]);
        // Reset, if there is more that it said.
        assert!(matches!(read, Ok(0)) || read.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    }
    assert!(client.get().ends_with(OK));
}

#[test]
fn half_a_request_applies_nothing() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    let before = client.get();
    let request = format!("set=1\nfwmark=5\npublic_key={}\nallowed_ip=10.0.0.0/8\n\n", hex(1));
    for end in [1, 6, 10, 15, 50, request.len() - 2, request.len() - 1] {
        let mut other = Client::connect(&tunnel.name);
        other.say(&request[..end]);
        other.0.shutdown(std::net::Shutdown::Write).unwrap();
        // It is over when the program has closed its end too.
        assert_eq!(other.0.read(&mut [0; 16]).unwrap(), 0, "{end}");
        assert_eq!(client.get(), before, "{end}");
    }
    assert_eq!(client.ask(&request), OK);
    assert_ne!(client.get(), before);
}

/// Refuses everything for one reason.
struct Refusing(Refused);

impl Configure for Refusing {
    fn apply(&self, _: Vec<Edit>) -> Result<(), Refused> {
        Err(self.0.clone())
    }

    fn snapshot(&self) -> Result<Snapshot, Refused> {
        Err(self.0.clone())
    }

    fn statistics(&self) -> Result<Statistics, Refused> {
        Err(self.0.clone())
    }
}

#[test]
fn wg_tells_every_refusal_in_the_systems_words() {
    // T13.
    need!("wg");
    let namespace = Namespace::new();
    let refusals = [
        (Refused::PortInUse(1), "Address already in use"),
        (Refused::TooManyPeers, "Cannot allocate memory"),
        (Refused::Gone, "No such device"),
        (Refused::System { what: "SO_MARK".to_owned(), errno: 1 }, "Operation not permitted"),
        (Refused::System { what: "bind".to_owned(), errno: 13 }, "Permission denied"),
        (Refused::System { what: "bind".to_owned(), errno: 97 }, "Address family not supported by protocol"),
    ];
    for (refused, words) in refusals {
        let name = ifname();
        let socket = Socket::open(&name).unwrap();
        let _server = Server::start(socket.listener(), Arc::new(Refusing(refused))).unwrap();
        let (success, text) = namespace.try_run("wg", &["set", &name, "fwmark", "1"]);
        assert_eq!((success, text.trim()), (false, format!("Unable to modify interface: {words}").as_str()));
        let (success, text) = namespace.try_run("wg", &["show", &name]);
        assert_eq!((success, text.trim()), (false, format!("Unable to access interface: {words}").as_str()));
    }
}

#[test]
fn wg_tells_what_is_wrong_with_a_real_interface_in_the_systems_words() {
    // T13.
    need!("ip", "wg");
    let two = Two::new();
    let tunnel = &two.t1;
    let before = tunnel.show(&two.ns1, "dump");
    let refused = |words: &[&str]| {
        let (success, text) = two.ns1.try_run("wg", &[&["set", &tunnel.name], words].concat());
        assert!(!success, "{words:?}");
        text.trim().to_owned()
    };
    // Another program's port: of either family, and nothing else of the request applies.
    let (v4, v6) =
        two.ns0.enter(|| (UdpSocket::bind("0.0.0.0:4001").unwrap(), UdpSocket::bind("[::]:4002").unwrap()));
    for port in ["4001", "4002"] {
        let stranger = Key::generate().public();
        let words = ["listen-port", port, "fwmark", "9", "peer", &stranger, "allowed-ips", "10.9.0.0/16"];
        assert_eq!(refused(&words), "Unable to modify interface: Address already in use");
        assert_eq!(tunnel.show(&two.ns1, "dump"), before);
    }
    // The other side can still be heard at the old port, without a new endpoint.
    assert!(two.ns2.pings(ADDR1));
    drop((v4, v6));
    tunnel.set(&two.ns1, "listen-port 4001");
    assert_eq!(tunnel.show(&two.ns1, "listen-port"), "4001");
    assert!(two.ns1.pings(ADDR2));
    // A scope that means nothing where the sockets are.
    two.ns1.ip("link add elsewhere type veth peer name elsewhere2");
    let stranger = Key::generate().public();
    let words = ["peer", &stranger, "endpoint", "[fe80::1%elsewhere]:1"];
    assert_eq!(refused(&words), "Unable to modify interface: Invalid argument");
}

#[test]
fn a_port_that_was_taken_when_the_link_came_up_keeps_no_peer_from_being_set() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    let taken = namespace.enter(|| UdpSocket::bind("0.0.0.0:4001").unwrap());
    client.set("listen_port=4001\n");
    namespace.ip(&format!("link set {} up", tunnel.name));
    client.set(&format!("public_key={}\nallowed_ip=10.0.0.0/8\n", hex(1)));
    assert!(client.get().contains("allowed_ip=10.0.0.0/8\n"));
    let listens = || namespace.sh("ss -Hlun sport = :4001").lines().count() > 0;
    drop(taken);
    // It is tried again now and then, and with the next change.
    client.set(&format!("public_key={}\n", hex(1)));
    wait_until("UDP sockets", SOON, listens);
}

#[test]
fn a_request_of_megabytes_is_obeyed() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    // The kernel's self-test: 255 · 256 prefixes of each family.
    let mut request = format!("set=1\npublic_key={}\nreplace_allowed_ips=true\n", hex(1));
    for (high, low) in (0..255).flat_map(|high| (0..256).map(move |low| (high, low))) {
        let _ =
            write!(request, "allowed_ip=10.0.{high}.{low}/32\nallowed_ip=2001:db8::{high:x}:{low:x}/128\n");
    }
    request.push('\n');
    assert!(request.len() > 3_000_000);
    let mut writer = Client(client.0.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| writer.say(&request));
        assert_eq!(client.reply(), OK);
    });
    let shown = tunnel.show(&namespace, "allowed-ips");
    let shown: BTreeSet<_> = shown.split_whitespace().skip(1).collect();
    assert_eq!(shown.len(), 2 * 255 * 256);
    assert!(shown.contains("10.0.254.255/32") && shown.contains("2001:db8::fe:ff/128"));
    // A client that goes while such a reply is under way is nothing to the program.
    for _ in 0..50 {
        let mut gone = Client::connect(&tunnel.name);
        gone.say("get=1\n\n");
        let _ = gone.0.read(&mut [0; 100]).unwrap();
    }
    let mut gone = Client::connect(&tunnel.name);
    gone.say(&"get=1\n\n".repeat(100));
    drop(gone);
    assert!(client.get().ends_with(OK));
}

#[test]
fn of_two_sets_at_once_one_comes_first_as_a_whole() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (tunnel, mut client) = interface(&namespace);
    let request = |n: u8| {
        let mut request = format!("replace_peers=true\nfwmark={n}\n");
        for peer in 0..20 {
            let _ = write!(request, "public_key={}\nallowed_ip=10.{n}.{peer}.0/24\n", hex(n * 20 + peer));
        }
        request
    };
    thread::scope(|scope| {
        for n in [1, 2, 3] {
            let mut client = Client::connect(&tunnel.name);
            scope.spawn(move || (0..100).for_each(|_| client.set(&request(n))));
        }
        for _ in 0..100 {
            let state = client.get();
            let Some(mark) = state.lines().find_map(|line| line.strip_prefix("fwmark=")) else { continue };
            let held: Vec<_> = state.lines().filter_map(|line| line.strip_prefix("allowed_ip=")).collect();
            assert_eq!(held.len(), 20, "{state}");
            assert!(held.iter().all(|prefix| prefix.starts_with(&format!("10.{mark}."))), "{state}");
        }
    });
}

#[test]
fn clients_that_stall_harm_nobody() {
    // T40.
    need!("ip", "wg", "ping");
    let two = Two::new();
    let name = &two.t1.name;
    // A reply that no socket buffer holds.
    let mut lines = format!("public_key={}\n", hex(1));
    for n in 0..50_000 {
        let _ = writeln!(lines, "allowed_ip=2001:db8::{n:x}/128");
    }
    Client::connect(name).set(&lines);
    let mut stalled = Vec::new();
    for words in ["get=1\n", "set=1\n", "set=1\nfwmark=", "", "get=1\n\n", &"get=1\n\n".repeat(1000)] {
        for _ in 0..3 {
            let mut client = Client::connect(name);
            client.say(words);
            stalled.push(client);
        }
    }
    let ping = two.ping(300);
    for mark in 1..=50 {
        two.t1.set(&two.ns1, &format!("fwmark {mark}"));
        assert_eq!(two.t1.show(&two.ns1, "fwmark"), format!("{mark:#x}"));
    }
    expect_no_loss(ping);
    // They were stalled, not forgotten.
    assert!(stalled[12].reply().contains("allowed_ip=2001:db8::c34f/128\n"));
    stalled[0].say("\n");
    assert!(stalled[0].reply().contains("fwmark=50\n"));
}

#[test]
fn any_number_of_idle_connections_leaves_room_for_the_next() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (mut tunnel, _client) = interface(&namespace);
    let idle: Vec<_> = (0..500).map(|_| Client::connect(&tunnel.name)).collect();
    assert!(!tunnel.show(&namespace, "public-key").is_empty());
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", tunnel.process.id())).unwrap().count();
    assert!(descriptors < 100, "{descriptors} descriptors for 500 idle connections");
    drop(idle);
    // Many that do ask something at once, all of whom are answered.
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..50).for_each(|_| assert!(Client::connect(&tunnel.name).get().ends_with(OK))));
        }
    });
    assert!(tunnel.process.ended().is_none());
}

// ---- under traffic

const ADDR1: &str = "192.168.241.1";
const ADDR2: &str = "192.168.241.2";

/// Two tunnels, born in ns0, that talk to each other.
struct Two {
    ns0: Namespace,
    ns1: Namespace,
    ns2: Namespace,
    t1: Tunnel,
    t2: Tunnel,
}

impl Two {
    fn new() -> Self {
        let (ns0, ns1, ns2) = (Namespace::new(), Namespace::new(), Namespace::new());
        let (t1, t2) = (Tunnel::start(Program::Adit, &ns0), Tunnel::start(Program::Adit, &ns0));
        t1.move_to(&ns0, &ns1);
        t2.move_to(&ns0, &ns2);
        for (ns, own, other, addr, other_addr, ports) in
            [(&ns1, &t1, &t2, ADDR1, ADDR2, (1001, 1002)), (&ns2, &t2, &t1, ADDR2, ADDR1, (1002, 1001))]
        {
            ns.ip(&format!("addr add {addr}/24 dev {}", own.name));
            let peer = format!(
                "peer {} allowed-ips {other_addr}/32 endpoint 127.0.0.1:{}",
                other.key.public(),
                ports.1
            );
            own.set(ns, &format!("listen-port {} {peer}", ports.0));
            ns.ip(&format!("link set {} up", own.name));
        }
        let two = Self { ns0, ns1, ns2, t1, t2 };
        wait_until("an answer through the tunnel", SOON, || two.ns1.pings(ADDR2));
        two
    }

    /// Starts echo requests from ns1, 100 a second.
    fn ping(&self, count: u32) -> Process {
        let count = count.to_string();
        self.ns1.spawn("ping", &["-n", "-q", "-i", "0.01", "-c", &count, "-W", "5", ADDR2])
    }

    /// Returns when the last handshake was, as both sides have it.
    fn handshakes(&self) -> (u64, u64) {
        (self.t1.latest_handshake(&self.ns1), self.t2.latest_handshake(&self.ns2))
    }
}

#[track_caller]
fn expect_no_loss(mut ping: Process) {
    let status = ping.wait(Duration::from_secs(60));
    wait_until("the output of ping", SOON, || ping.output().contains("packet loss"));
    assert!(status.success() && ping.output().contains(" 0% packet loss"), "{}", ping.output());
}

#[test]
fn a_peer_changed_a_thousand_times_under_traffic_keeps_its_session_and_counters() {
    // T1.
    need!("ip", "wg", "ping");
    let two = Two::new();
    let before = two.handshakes();
    assert_ne!(before.0, 0);
    let peer = public_hex(&two.t2.key);
    let mut client = Client::connect(&two.t1.name);
    let ping = two.ping(500);
    let mut transferred = two.t1.transfer(&two.ns1, &two.t2.key.public());
    for n in 0..1000 {
        let change = match n % 6 {
            0 => "endpoint=127.0.0.1:1002".to_owned(),
            1 => format!("preshared_key={}", hex(u8::try_from(n % 256).unwrap())),
            2 => format!("persistent_keepalive_interval={}", n % 7),
            3 => format!("replace_allowed_ips=true\nallowed_ip={ADDR2}/32\nallowed_ip=10.{}.0.0/16", n % 256),
            4 => format!("allowed_ip=-10.{}.0.0/16", (n - 1) % 256),
            _ => "endpoint=[::1]:1002".to_owned(),
        };
        client.set(&format!("public_key={peer}\nupdate_only=true\n{change}\n"));
        if n % 100 == 0 {
            let next = two.t1.transfer(&two.ns1, &two.t2.key.public());
            assert!(next.0 >= transferred.0 && next.1 >= transferred.1, "{transferred:?} → {next:?}");
            transferred = next;
        }
    }
    // And by `wg` itself.
    for n in 0..20 {
        let key = two.t2.key.public();
        two.t1.set(&two.ns1, &format!("peer {key} endpoint 127.0.0.1:1002 persistent-keepalive {n}"));
        two.t1.set(&two.ns1, &format!("peer {key} allowed-ips {ADDR2}/32,10.{n}.0.0/16"));
        two.t1.set_with_input(&two.ns1, &["peer", &key, "preshared-key", "/dev/stdin"], &preshared_key());
    }
    expect_no_loss(ping);
    assert_eq!(two.handshakes(), before, "there was another handshake");
}

#[test]
fn syncconf_under_traffic_loses_nothing() {
    // T34.
    need!("ip", "wg", "ping");
    let two = Two::new();
    let before = two.handshakes();
    let (secret, peer, other) = (two.t1.key.secret(), two.t2.key.public(), Key::generate().public());
    let ping = two.ping(400);
    for n in 0..60 {
        let mut config = format!("[Interface]\nPrivateKey = {secret}\nListenPort = 1001\nFwMark = {n}\n");
        let _ = write!(config, "[Peer]\nPublicKey = {peer}\nAllowedIPs = {ADDR2}/32, 10.{n}.0.0/16\n");
        let _ = writeln!(config, "Endpoint = 127.0.0.1:1002");
        if n % 2 == 0 {
            let _ = write!(config, "[Peer]\nPublicKey = {other}\nAllowedIPs = 10.200.0.0/16\n");
        }
        two.t1.wg_with_input(&two.ns1, &["syncconf", &two.t1.name, "/dev/stdin"], &config);
    }
    expect_no_loss(ping);
    assert_eq!(two.handshakes(), before, "there was another handshake");
    assert_eq!(two.t1.show(&two.ns1, "peers"), peer);
}

#[test]
fn the_first_packet_from_a_new_port_is_answered() {
    need!("ip", "wg", "ping");
    let two = Two::new();
    let mut client = Client::connect(&two.t1.name);
    for port in 2000..2100 {
        client.set(&format!("listen_port={port}\n"));
        // Nothing is sent again: an answer to the old port would be lost.
        two.ns1.sh(&format!("ping -n -c 1 -W 4 {ADDR2}"));
    }
}

#[test]
fn the_key_that_is_set_already_changes_nothing() {
    // T33.
    need!("ip", "wg", "ping");
    let two = Two::new();
    let before = two.handshakes();
    let ping = two.ping(100);
    for _ in 0..50 {
        let secret = two.t1.key.secret();
        two.t1.set_with_input(&two.ns1, &["private-key", "/dev/stdin"], &secret);
    }
    expect_no_loss(ping);
    // A handshake in the same second would have the same time: the other side counts it too.
    assert_eq!(two.handshakes(), before);
    let (received, _) = two.t2.transfer(&two.ns2, &two.t1.key.public());
    let pings = 100 + 1;
    // 148 is an initiation; a ping is 84 padded to 96, and 32 around it.
    assert!(received <= 148 + 32 + (pings + 2) * 128, "{received} bytes: there was another handshake");
}

#[test]
fn a_preshared_key_changed_on_both_sides_holds_from_the_next_handshake() {
    // T37.
    need!("ip", "wg", "ping");
    let two = Two::new();
    let psk = preshared_key();
    let set_psk = |tunnel: &Tunnel, ns: &Namespace, other: &Tunnel, file: &str| {
        tunnel.set_with_input(ns, &["peer", &other.key.public(), "preshared-key", file], &psk);
    };
    let set_ours = |file: &str| set_psk(&two.t1, &two.ns1, &two.t2, file);
    let set_theirs = |file: &str| set_psk(&two.t2, &two.ns2, &two.t1, file);
    // Down and up: a new handshake.
    let shake = || {
        for state in ["down", "up"] {
            two.ns1.ip(&format!("link set {} {state}", two.t1.name));
        }
        two.ns1.succeeds(&format!("ping -n -c 3 -i 0.2 -W 2 {ADDR2}"))
    };
    set_ours("/dev/stdin");
    assert!(two.ns1.pings(ADDR2), "the session goes on");
    assert!(!shake(), "one side alone has the key");
    set_theirs("/dev/stdin");
    wait_until("a handshake with the new key", SOON, shake);
    // An empty file is no key.
    set_theirs("/dev/null");
    assert!(!shake(), "one side alone has dropped the key");
    set_ours("/dev/null");
    wait_until("a handshake without the key", SOON, shake);
}

#[test]
fn a_persistent_keepalive_switched_on_is_sent_at_once() {
    need!("ip", "wg", "ping");
    let two = Two::new();
    let (own, other) = (two.t1.key.public(), two.t2.key.public());
    let sent = || two.t1.transfer(&two.ns1, &other).1;
    let (before, heard) = (sent(), two.t2.transfer(&two.ns2, &own).0);
    let limit = Duration::from_secs(2);
    two.t1.set(&two.ns1, &format!("peer {other} persistent-keepalive 600"));
    wait_until("a keepalive", limit, || sent() == before + 32);
    wait_until("its arrival", limit, || two.t2.transfer(&two.ns2, &own).0 == heard + 32);
    // From one interval to another: nothing.
    two.t1.set(&two.ns1, &format!("peer {other} persistent-keepalive 700"));
    assert_eq!(sent(), before + 32);
    // Without a session it begins one.
    for state in ["down", "up"] {
        two.t1.set(&two.ns1, &format!("peer {other} persistent-keepalive 0"));
        two.ns1.ip(&format!("link set {} {state}", two.t1.name));
    }
    let before = two.t1.transfer(&two.ns1, &other);
    two.t1.set(&two.ns1, &format!("peer {other} persistent-keepalive 600"));
    wait_until("a handshake and a keepalive", limit, || {
        two.t1.transfer(&two.ns1, &other) == (before.0 + 92, before.1 + 148 + 32)
    });
}

#[test]
fn statistics_count_what_was_dropped_and_leave_the_configuration_as_it_was() {
    need!("ip", "wg", "ping");
    let two = Two::new();
    let mut client = Client::connect(&two.t1.name);
    let keys = |reply: String| -> Vec<_> {
        reply.lines().map(|line| line.split('=').next().map(str::to_owned)).collect()
    };
    let before = keys(client.get());
    let statistics = client.ask("stats=1\n\n");
    let mut lines = statistics.lines();
    assert_eq!(lines.next(), Some(concat!("version=", env!("CARGO_PKG_VERSION"))));
    assert!(lines.next().is_some_and(|line| line.starts_with("crypto=")), "{statistics}");
    let workers = adit::device::default_threads();
    assert_eq!(lines.next(), Some(format!("workers={workers}").as_str()));
    let reasons: BTreeSet<_> = lines
        .filter_map(|line| line.strip_prefix("dropped_")?.split_once('='))
        .map(|(reason, _)| reason)
        .collect();
    assert_eq!(reasons, Dropped::ALL.iter().map(|reason| reason.name()).collect());
    // That of the first echo request, which was waited for.
    let times = statistics.lines().filter_map(|line| line.strip_prefix("handshakes_us_")?.split_once('='));
    let times: BTreeMap<_, u64> = times.map(|(bound, value)| (bound, value.parse().unwrap())).collect();
    assert!(times.len() > 2 && times["sum"] > 0, "{statistics}");
    assert_eq!(times.values().sum::<u64>() - times["sum"], 1, "{statistics}");

    assert_eq!(two.t1.dropped("malformed"), 0);
    let stranger = two.ns0.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    for _ in 0..3 {
        stranger.send_to(b"no message", "127.0.0.1:1001").unwrap();
    }
    wait_until("three to be counted", SOON, || two.t1.dropped("malformed") == 3);
    // A mistake is told as that of a get, and the next request is found.
    assert_eq!(client.ask("stats=1\nx=1\n\n"), "errno=22\n\n");
    assert_eq!(keys(client.get()), before);
}

#[test]
fn the_go_client_library_reads_our_socket() {
    need!("ip", "wg", "wgctrl", "ping");
    let two = Two::new();
    let mut client = Client::connect(&two.t1.name);
    let stranger = format!("public_key={}\npreshared_key={}\nendpoint=[fe80::1%1]:80\n", hex(1), hex(2));
    client.set(&format!(
        "{stranger}persistent_keepalive_interval=25\nallowed_ip=fd00::/64\nallowed_ip=10.0.0.0/8\n"
    ));
    let text = two.ns1.run("wgctrl", &[&two.t1.name]);
    let own = two.t1.key.public();
    for words in [
        "(userspace)".to_owned(),
        format!("public key: {own}"),
        "listening port: 1001".to_owned(),
        format!("peer: {}", two.t2.key.public()),
        "endpoint: 127.0.0.1:1002".to_owned(),
        format!("allowed ips: {ADDR2}/32"),
        format!("peer: {}", base64_of(&hex(1))),
        "allowed ips: 10.0.0.0/8, fd00::/64".to_owned(),
    ] {
        assert!(text.contains(&words), "{words:?} is not in {text}");
    }
}
