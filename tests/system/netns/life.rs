//! Scenario 18: an interface that is switched off and on, deleted, left without its namespace or without IPv6.

use std::net::UdpSocket;
use std::time::Duration;

use rustix::process::Signal;

use super::{PORT1, PORT2, Pair};
use crate::support::tunnel::{Key, Program, Tunnel};
use crate::support::{Namespace, SOON, need, not_hosted, pause, wait_for, wait_until};

/// A responder takes an initiation every 20 ms only, as the kernel's.
const BETWEEN_INITIATIONS: Duration = Duration::from_millis(25);

/// Tells whether a UDP socket of the namespace has this port.
fn is_open(namespace: &Namespace, port: u16) -> bool {
    namespace.sh("ss -Hlun").split_whitespace().any(|word| word.ends_with(&format!(":{port}")))
}

#[test]
fn scenario_18_down_closes_the_sockets_and_wipes_the_keys_and_up_works_again() {
    need!("ip", "wg", "ping", "ss");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    let Pair { ns0, ns1, t1, t2, .. } = &pair;
    assert!(ns1.pings("192.168.241.2"));
    assert!(is_open(ns0, PORT1) && is_open(ns0, PORT2));
    let peer = t2.key.public();
    for _ in 0..3 {
        let (_, sent) = t1.transfer(ns1, &peer);
        t1.down(ns1);
        wait_until("closed sockets", SOON, || !is_open(ns0, PORT1));
        // Another program may have the port meanwhile.
        drop(ns0.enter(|| UdpSocket::bind(("0.0.0.0", PORT1)).unwrap()));
        assert_eq!(t1.show(ns1, "listen-port"), PORT1.to_string());
        // An initiation and the packet: the session of before is not there any more, neither is the wait for the next handshake.
        t1.up(ns1);
        pause(BETWEEN_INITIATIONS);
        assert!(ns1.pings("192.168.241.2"));
        assert_eq!(t1.transfer(ns1, &peer).1 - sent, 148 + 128);
        assert!(is_open(ns0, PORT1));
    }
}

#[test]
fn scenario_18_a_link_that_was_down_while_nobody_looked_has_wiped_its_keys() {
    need!("ip", "wg", "ping");
    let pair = Pair::new();
    pair.set_endpoints("127.0.0.1");
    let Pair { ns1, t1, t2, .. } = &pair;
    assert!(ns1.pings("192.168.241.2"));
    let peer = t2.key.public();
    let (_, sent) = t1.transfer(ns1, &peer);
    t1.process.stop();
    for state in ["down", "up"] {
        ns1.ip(&format!("link set {} {state}", t1.name));
    }
    t1.process.signal(Signal::CONT);
    pause(BETWEEN_INITIATIONS);
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(t1.transfer(ns1, &peer).1 - sent, 148 + 128);
}

#[test]
fn scenario_18_the_mtu_is_the_kernels_and_a_port_once_chosen_is_kept_over_down_and_up() {
    need!("ip", "wg");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    tunnel.up(&ns);
    assert!(ns.ip(&format!("link show dev {}", tunnel.name)).contains("mtu 1420 "), "the kernel's MTU");
    let port = || tunnel.show(&ns, "listen-port");
    wait_until("a port", SOON, || port() != "0");
    let chosen = port();
    tunnel.down(&ns);
    wait_until("closed sockets", SOON, || !is_open(&ns, chosen.parse().unwrap()));
    assert_eq!(port(), chosen);
    tunnel.up(&ns);
    wait_until("open sockets", SOON, || is_open(&ns, chosen.parse().unwrap()));
    assert_eq!(port(), chosen);
}

#[test]
fn scenario_18_persistent_keepalives_and_waiting_packets_go_out_at_up() {
    need!("ip", "wg", "ping");
    let ns = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &ns);
    let ear = ns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    ear.set_nonblocking(true).unwrap();
    let heard = || ear.recv_from(&mut [0; 2048]).ok().map(|(len, _)| len);
    let endpoint = ear.local_addr().unwrap();
    let peer = Key::generate().public();
    let options = format!("persistent-keepalive 1 endpoint {endpoint} allowed-ips 10.7.0.1/32");
    tunnel.set(&ns, &format!("peer {peer} {options}"));
    ns.ip(&format!("addr add 10.7.0.100/24 dev {}", tunnel.name));
    for _ in 0..2 {
        pause(Duration::from_millis(1500));
        assert_eq!(heard(), None, "an interface that is down is silent");
        tunnel.up(&ns);
        assert_eq!(wait_for("an initiation", Duration::from_secs(3), heard), 148);
        tunnel.down(&ns);
        // Whatever was under way.
        wait_until("silence", SOON, || heard().is_none());
    }

    // A packet that comes with the interface waits for its sockets.
    tunnel.set(&ns, &format!("peer {peer} persistent-keepalive 0"));
    for _ in 0..5 {
        ns.ip(&format!("link set {} up", tunnel.name));
        ns.try_run("ping", &["-n", "-c", "1", "-W", "0.01", "10.7.0.1"]);
        assert_eq!(wait_for("an initiation", Duration::from_secs(3), heard), 148);
        tunnel.down(&ns);
        wait_until("the end of the sockets", SOON, || tunnel_is_silent(&ns));
    }
}

/// Tells whether the namespace has one UDP socket only, the test's own.
fn tunnel_is_silent(namespace: &Namespace) -> bool {
    namespace.sh("ss -Hlun").lines().count() == 1
}

// ---- the end

/// T15: the device is deleted in its first namespace or in another.
#[test]
fn scenario_18_the_process_ends_with_its_device() {
    need!("ip", "wg", "ping");
    for is_moved in [false, true] {
        for is_up in [false, true] {
            let (birth, other) = (Namespace::new(), Namespace::new());
            let mut tunnel = Tunnel::start(Program::Adit, &birth);
            let home = if is_moved { &other } else { &birth };
            if is_moved {
                tunnel.move_to(&birth, &other);
            }
            if is_up {
                tunnel.up(home);
                wait_until("a port", SOON, || tunnel.show(home, "listen-port") != "0");
            }
            assert!(tunnel.socket().exists());
            home.ip(&format!("link del {}", tunnel.name));
            let status = tunnel.process.wait(Duration::from_secs(1));
            assert!(status.success(), "{status}");
            assert!(!tunnel.socket().exists());
        }
    }
}

#[test]
fn scenario_18_a_namespace_goes_with_the_device_that_was_moved_there() {
    need!("ip", "wg", "ping");
    let Pair { ns0, ns1, ns2, mut t1, t2, psk } = Pair::new();
    for (namespace, tunnel, peer, port) in [(&ns1, &t1, &t2, PORT2), (&ns2, &t2, &t1, PORT1)] {
        tunnel.set(namespace, &format!("peer {} endpoint 127.0.0.1:{port}", peer.key.public()));
    }
    assert!(ns1.pings("192.168.241.2"));
    // Nobody but the device is in this namespace, and nobody holds it open: least of all the one who follows the device.
    drop(ns1);
    let status = t1.process.wait(SOON);
    assert!(status.success(), "{status}");
    assert!(!t1.socket().exists());
    drop((ns0, ns2, psk));
}

#[test]
fn scenario_18_the_namespace_of_birth_lasts_as_long_as_the_process() {
    need!("ip", "wg", "ping", "nsenter");
    let [birth, ns1, ns2] = [(); 3].map(|()| Namespace::new());
    // Started by a thread of ns2: what a namespace's own thread starts ends with it.
    let [t1, t2] = [(); 2].map(|()| Tunnel::start_from(&ns2, &birth));
    for (namespace, own, peer, host, other) in [(&ns1, &t1, &t2, 1, 2), (&ns2, &t2, &t1, 2, 1)] {
        own.move_to(&birth, namespace);
        let peer = peer.key.public();
        let options = format!("endpoint 127.0.0.1:{other} allowed-ips 192.168.241.{other}/32");
        own.set(namespace, &format!("listen-port {host} peer {peer} {options}"));
        namespace.ip(&format!("addr add 192.168.241.{host}/24 dev {}", own.name));
        own.up(namespace);
    }
    assert!(ns1.pings("192.168.241.2"));
    drop(birth);
    assert!(ns1.pings("192.168.241.2"));
    // Also where sockets are opened anew.
    t1.down(&ns1);
    t1.up(&ns1);
    pause(BETWEEN_INITIATIONS);
    assert!(ns1.pings("192.168.241.2"));
}

// ---- without IPv6

/// T17.
#[test]
fn scenario_18_it_works_and_keeps_its_port_without_ipv6() {
    need!("ip", "wg", "ping", "ss");
    let pair = Pair::new();
    let Pair { ns0, ns1, ns2, t1, .. } = &pair;
    for link in ["all", "default", "lo"] {
        ns0.sysctl(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1");
    }
    if ns0.sh("ip -6 addr").contains("inet6") {
        not_hosted("a switch for IPv6");
        return;
    }
    for (port, line) in [(PORT1, ""), (7777, "listen-port 7777")] {
        t1.down(ns1);
        wait_until("closed sockets", SOON, || !is_open(ns0, PORT1));
        if !line.is_empty() {
            t1.set(ns1, line);
        }
        t1.up(ns1);
        pause(BETWEEN_INITIATIONS);
        assert!(is_open(ns0, port));
        assert_eq!(t1.show(ns1, "listen-port"), port.to_string());
        pair.t1.set(ns1, &format!("peer {} endpoint 127.0.0.1:{PORT2}", pair.t2.key.public()));
        assert!(ns1.pings("192.168.241.2"));
        assert!(ns2.pings("192.168.241.1"));
        // What goes through the tunnel is another matter. The kernel took the address away with the link.
        ns1.ip(&format!("addr add fd00::1/112 dev {} nodad", t1.name));
        wait_until("an address that the kernel has taken in", SOON, || ns1.pings("fd00::2"));
    }
}
