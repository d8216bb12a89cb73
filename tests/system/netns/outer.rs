//! Scenarios 10–14: what lies outside of the tunnel. NAT, a tunnel inside the tunnel, routing by mark, nobody to be found, many addresses.
//!
//! ```text
//! ns1  tunnel 1, its UDP sockets, veth ── (ns0: a router, where there is one) ── veth, UDP sockets, tunnel 2  ns2
//! ```

use std::time::Duration;

use super::{Pair, Start};
use crate::support::tunnel::{Program, Tunnel, preshared_key};
use crate::support::{Namespace, SOON, need, not_hosted, pause, wait_until};

impl Pair {
    /// Each tunnel is born where it stays, so its UDP sockets are there as well. Nothing joins the namespaces yet.
    pub(super) fn apart() -> Self {
        Self::started_apart([Start::default(); 2])
    }

    /// Like [`Self::apart`], started so.
    pub(crate) fn started_apart([first, second]: [Start<'_>; 2]) -> Self {
        let (ns0, ns1, ns2) = (Namespace::new(), Namespace::new(), Namespace::new());
        let t1 = Tunnel::start_with(Program::Adit, &ns1, first.args, first.env);
        let t2 = Tunnel::start_with(Program::Adit, &ns2, second.args, second.env);
        let this = Self { ns0, ns1, ns2, t1, t2, psk: preshared_key() };
        this.configure();
        this
    }

    /// One cable between ns1 and ns2.
    fn cabled() -> Self {
        let this = Self::apart();
        let addrs = [["10.0.0.1/24", "fd00:aa::1/96"], ["10.0.0.2/24", "fd00:aa::2/96"]];
        this.ns1.join("veth1", &addrs[0], &this.ns2, "veth2", &addrs[1]);
        this
    }

    /// Tells tunnel 1 where tunnel 2 is.
    pub(crate) fn point_1_to(&self, endpoint: &str) {
        self.t1.set(&self.ns1, &format!("peer {} endpoint {endpoint}", self.t2.key.public()));
    }

    /// Tells tunnel 2 where tunnel 1 is.
    pub(crate) fn point_2_to(&self, endpoint: &str) {
        self.t2.set(&self.ns2, &format!("peer {} endpoint {endpoint}", self.t1.key.public()));
    }

    /// Returns where tunnel 2 heard tunnel 1 last.
    fn seen_by_2(&self) -> String {
        self.t2.endpoint(&self.ns2, &self.t1.key.public())
    }

    /// Tunnel 1 speaks from another address soon, and nothing is lost meanwhile: it learns of new routes a little later than the kernel.
    #[track_caller]
    fn moves_to(&self, endpoint: &str) {
        wait_until("another source", SOON, || {
            assert!(self.ns1.pings("192.168.241.2"), "no way out");
            self.seen_by_2() == endpoint
        });
    }

    /// Returns where tunnel 1 heard tunnel 2 last.
    fn seen_by_1(&self) -> String {
        self.t1.endpoint(&self.ns1, &self.t2.key.public())
    }
}

// ---- 10

#[test]
fn scenario_10_persistent_keepalives_keep_a_nat_open() {
    need!("ip", "wg", "ping", "iptables");
    let pair = Pair::apart();
    let Pair { ns0, ns1, ns2, t1, t2, .. } = &pair;
    ns0.join("vethrc", &["192.168.1.1/24"], ns1, "vethc", &["192.168.1.100/24"]);
    ns0.join("vethrs", &["10.0.0.1/24"], ns2, "veths", &["10.0.0.100/24"]);
    ns1.ip("route add default via 192.168.1.1");
    ns0.sysctl("net/ipv4/ip_forward", "1");
    let nat = "-t nat -A POSTROUTING -s 192.168.1.0/24 -d 10.0.0.0/24 -j SNAT --to 10.0.0.1";
    if !ns0.succeeds(&format!("iptables {nat}")) {
        not_hosted("network address translation");
        return;
    }
    ns0.sysctl("net/netfilter/nf_conntrack_udp_timeout", "2");
    ns0.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "2");

    let peer = t2.key.public();
    t1.set(ns1, &format!("peer {peer} endpoint 10.0.0.100:2 persistent-keepalive 1"));
    assert!(ns1.pings("192.168.241.2"));
    assert!(ns2.pings("192.168.241.1"));
    assert_eq!(pair.seen_by_2(), "10.0.0.1:1");
    // Three seconds in which nobody but the keepalive speaks: longer than the router remembers a flow.
    pause(Duration::from_secs(3));
    assert!(ns2.pings("192.168.241.1"), "the keepalives did not keep the way open");

    t1.set(ns1, &format!("peer {peer} persistent-keepalive 0"));
    pause(Duration::from_secs(3));
    let heard = t1.transfer(ns1, &peer).0;
    assert!(ns2.pings_in_vain("192.168.241.1"), "the router does not forget: the test above shows nothing");
    assert_eq!(t1.transfer(ns1, &peer).0, heard);
    assert!(ns1.pings("192.168.241.2"), "the one behind the router opens the way again");
    assert!(ns2.pings("192.168.241.1"));
}

#[test]
fn scenario_10_bound_and_marked_senders_reach_the_tunnel() {
    need!("ip", "wg", "ping", "iptables");
    let pair = Pair::cabled();
    pair.point_1_to("10.0.0.2:2");
    let Pair { ns1, t1, .. } = &pair;
    ns1.sh(&format!("ping -n -I {} -c 1 -W 4 192.168.241.2", t1.name));
    if !ns1.succeeds("iptables -t mangle -I OUTPUT -j MARK --set-xmark 1") {
        not_hosted("the mangle table of iptables");
        return;
    }
    ns1.sh("ping -n -c 1 -W 4 192.168.241.2");
    ns1.sh(&format!("ping -n -I {} -c 1 -W 4 192.168.241.2", t1.name));
}

// ---- 11

#[test]
fn scenario_11_a_peer_is_reached_through_another_peer_of_the_same_interface() {
    need!("ip", "wg", "ping");
    let pair = Pair::cabled();
    pair.point_1_to("10.0.0.2:2");
    let Pair { ns1, ns2, t1, t2, .. } = &pair;
    let t3 = Tunnel::start(Program::Adit, ns2);
    let (near, far) = (t2.key.public(), t3.key.public());
    t1.set(ns1, &format!("peer {far} allowed-ips 192.168.242.2/32 endpoint 192.168.241.2:5"));
    ns1.ip(&format!("addr add 192.168.242.1/24 dev {}", t1.name));
    ns2.ip(&format!("addr add 192.168.242.2/24 dev {}", t3.name));
    t3.set(ns2, &format!("listen-port 5 peer {} allowed-ips 192.168.242.1/32", t1.key.public()));
    t3.up(ns2);
    assert!(ns1.pings("192.168.242.2"));
    // Two layers: it was heard at the inner address, and each of its messages cost one more of the nearer peer's.
    assert_eq!(t3.endpoint(ns2, &t1.key.public()), "192.168.241.1:1");
    let ((_, inner), (_, outer)) = (t1.transfer(ns1, &far), t1.transfer(ns1, &near));
    assert!(inner > 0 && outer > inner, "{inner} bytes to the far peer in {outer} to the near one");

    // A peer that is only reached through itself is not reached, and nothing goes round in circles for its sake.
    drop(t3);
    t1.set(ns1, &format!("peer {far} endpoint 192.168.242.2:5"));
    let before = t1.transfer(ns1, &far).1;
    assert!(ns1.pings_in_vain("192.168.242.2"));
    let sent = t1.transfer(ns1, &far).1 - before;
    assert!(sent < 5000, "{sent} bytes for one packet that leads nowhere");
    assert!(ns1.pings("192.168.241.2"), "the nearer peer is reached as before");
}

// ---- 12

#[test]
fn scenario_12_a_default_route_into_the_tunnel_spares_marked_datagrams() {
    need!("ip", "wg", "ping");
    let pair = Pair::apart();
    let Pair { ns0, ns1, ns2, t1, t2, .. } = &pair;
    ns0.join("vethrc", &["192.168.1.1/24", "fc00::1/96"], ns1, "vethc", &["192.168.1.100/24", "fc00::9/96"]);
    ns0.join("vethrs", &["10.0.0.1/24", "fc01::1/96"], ns2, "veths", &["10.0.0.100/24", "fc01::100/96"]);
    ns0.sysctl("net/ipv4/ip_forward", "1");
    ns0.sysctl("net/ipv6/conf/all/forwarding", "1");
    for (namespace, v4, v6) in [(ns1, "192.168.1.1", "fc00::1"), (ns2, "10.0.0.1", "fc01::1")] {
        namespace.ip(&format!("-4 route add default via {v4}"));
        namespace.ip(&format!("-6 route add default via {v6}"));
    }
    ns2.ip(&format!("addr add 192.168.99.7/32 dev {}", t2.name));
    ns2.ip(&format!("addr add abab::1111/128 dev {} nodad", t2.name));
    let peer = t2.key.public();
    t1.set(ns1, &format!("fwmark 51820 peer {peer} allowed-ips 0.0.0.0/0,::/0"));
    for family in ["-6", "-4"] {
        ns1.ip(&format!("{family} route add default dev {} table 51820", t1.name));
        ns1.ip(&format!("{family} rule add not fwmark 51820 table 51820"));
        ns1.ip(&format!("{family} rule add table main suppress_prefixlength 0"));
    }
    ns1.sysctl("net/ipv4/conf/vethc/rp_filter", "0");
    ns1.sysctl("net/ipv4/conf/all/rp_filter", "0");

    for endpoint in ["10.0.0.100:2", "[fc01::100]:2"] {
        pair.point_1_to(endpoint);
        ns1.sh("ping -n -W 4 -c 100 -f 192.168.99.7");
        ns1.sh("ping -n -W 4 -c 100 -f abab::1111");
        assert_eq!(pair.seen_by_1(), endpoint);

        // Without the mark the tunnel's own datagrams lead into the tunnel: they are dropped, not wrapped again and again.
        t1.set(ns1, "fwmark 0");
        let before = t1.transfer(ns1, &peer).1;
        assert!(ns1.pings_in_vain("192.168.99.7"));
        assert!(ns1.pings_in_vain("abab::1111"));
        let sent = t1.transfer(ns1, &peer).1 - before;
        assert!(sent < 5000, "{sent} bytes for two packets that lead nowhere");
        t1.set(ns1, "fwmark 51820");
        assert!(ns1.pings("192.168.99.7"));
        assert!(ns1.pings("abab::1111"));
    }
}

// ---- 13

/// What `ping` says when a host is unreachable, by way of whom it learnt it.
fn unreachable(from: &str) -> String {
    let reason = if from.contains(':') { "unreachable: Address unreachable" } else { "Host Unreachable" };
    format!("From {from} icmp_seq=1 Destination {reason}")
}

#[test]
fn scenario_13_senders_are_told_that_there_is_no_peer_or_no_endpoint() {
    need!("ip", "wg", "ping");
    let pair = Pair::cabled();
    let Pair { ns1, t1, .. } = &pair;
    // 241.2 and fd00::2 are the peer's, whose endpoint nobody has told; 241.9 and fd00::9 are nobody's. The message comes from the address
    // that was not reached: a TUN device takes in no IPv4 packet from an address of the host's own.
    for addr in ["192.168.241.9", "192.168.241.2", "fd00::9", "fd00::2"] {
        let (success, text) = ns1.try_run("ping", &["-n", "-c", "1", "-W", "5", addr]);
        assert!(!success && text.contains(&unreachable(addr)), "{addr}: {text}");
    }
    // A peer that has an endpoint may answer yet: nobody is told anything.
    pair.point_1_to("10.0.0.77:2");
    for addr in ["192.168.241.2", "fd00::2"] {
        let (success, text) = ns1.try_run("ping", &["-n", "-c", "1", "-W", "1", addr]);
        assert!(!success && !text.contains("nreachable"), "{addr}: {text}");
    }
    pair.point_1_to("10.0.0.2:2");
    // The handshake for the endpoint that was wrong keeps the next one waiting for five seconds.
    wait_until("an answer", SOON, || ns1.pings("192.168.241.2"));
    t1.set(ns1, &format!("peer {} remove", pair.t2.key.public()));
    let (_, text) = ns1.try_run("ping", &["-n", "-c", "1", "-W", "5", "192.168.241.2"]);
    assert!(text.contains(&unreachable("192.168.241.2")), "{text}");
}

#[test]
fn scenario_13_a_sender_behind_a_translating_router_is_told_as_well() {
    need!("ip", "wg", "ping", "iptables");
    let pair = Pair::apart();
    let Pair { ns0, ns2, t1, t2, .. } = &pair;
    ns0.join("vethrs", &["10.0.0.1/24"], ns2, "veths", &["10.0.0.100/24"]);
    ns0.ip("route add 192.168.241.0/24 via 10.0.0.100");
    ns2.sysctl("net/ipv4/ip_forward", "1");
    let nat = "-t nat -A POSTROUTING -s 10.0.0.0/24 -d 192.168.241.0/24 -j SNAT --to 192.168.241.2";
    if !ns2.succeeds(&format!("iptables {nat}")) {
        not_hosted("network address translation");
        return;
    }
    t2.set(ns2, &format!("peer {} remove", t1.key.public()));
    let (success, text) = ns0.try_run("ping", &["-n", "-c", "1", "-W", "5", "192.168.241.1"]);
    assert!(!success && text.contains(&unreachable("192.168.241.1")), "{text}");
}

// ---- 14

#[test]
fn scenario_14_a_source_address_that_is_removed_is_replaced() {
    need!("ip", "wg", "ping");
    let pair = Pair::cabled();
    let Pair { ns1, .. } = &pair;
    ns1.sysctl("net/ipv4/conf/veth1/promote_secondaries", "1");
    pair.point_1_to("10.0.0.2:2");
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(pair.seen_by_2(), "10.0.0.1:1");
    ns1.ip("addr add 10.0.0.10/24 dev veth1");
    ns1.ip("addr del 10.0.0.1/24 dev veth1");
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(pair.seen_by_2(), "10.0.0.10:1");

    pair.point_1_to("[fd00:aa::2]:2");
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(pair.seen_by_2(), "[fd00:aa::1]:1");
    ns1.ip("addr add fd00:aa::10/96 dev veth1 nodad");
    ns1.ip("addr del fd00:aa::1/96 dev veth1");
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(pair.seen_by_2(), "[fd00:aa::10]:1");
}

/// Lets ns2 hear datagrams from this address only. Returns false if it cannot.
fn hear_only(ns2: &Namespace, addr: &str) -> bool {
    let iptables = if addr.contains(':') { "ip6tables" } else { "iptables" };
    ns2.succeeds(&format!("{iptables} -F INPUT"))
        && ns2.succeeds(&format!("{iptables} -A INPUT -p udp --sport 1 ! -s {addr} -j DROP"))
}

#[test]
fn scenario_14_replies_leave_from_the_address_that_was_spoken_to() {
    need!("ip", "wg", "ping", "iptables", "ip6tables");
    let pair = Pair::cabled();
    let Pair { ns1, ns2, t2, .. } = &pair;
    ns2.ip("addr add 10.0.0.3/24 dev veth2");
    for addr in ["10.0.0.11/24", "fd00:aa::11/96"] {
        let nodad = if addr.contains(':') { " nodad" } else { "" };
        ns1.ip(&format!("addr add {addr} dev veth1{nodad}"));
    }
    // And one that belongs to another interface than the route back.
    ns1.ip("link add aside type veth peer name aside2");
    for addr in ["10.50.0.1/24", "fd00:bb::1/96 nodad"] {
        ns1.ip(&format!("addr add {addr} dev aside"));
    }
    ns1.ip("link set aside up");
    ns1.ip("link set aside2 up");
    ns2.ip("route add 10.50.0.0/24 dev veth2");
    ns2.ip("route add fd00:bb::/96 dev veth2");
    ns1.sysctl("net/ipv6/conf/all/forwarding", "1");

    for addr in ["10.0.0.1", "fd00:aa::1", "10.0.0.11", "fd00:aa::11", "10.50.0.1"] {
        // Every reply counts, the handshake's as well: ns2 forgets its session and hears the right address only.
        t2.down(ns2);
        t2.up(ns2);
        if !hear_only(ns2, addr) {
            not_hosted("a packet filter");
            return;
        }
        let endpoint = if addr.contains(':') { format!("[{addr}]:1") } else { format!("{addr}:1") };
        pair.point_2_to(&endpoint);
        assert!(ns2.pings("192.168.241.1"), "{addr} does not answer");
        assert_eq!(pair.seen_by_2(), endpoint);
        // It goes on without the handshake.
        assert!(ns2.pings("192.168.241.1"));
        assert_eq!(pair.seen_by_2(), endpoint);
    }
}

#[test]
fn scenario_14_a_route_that_flips_to_another_interface_is_followed() {
    need!("ip", "wg", "ping");
    let pair = Pair::apart();
    let Pair { ns1, ns2, .. } = &pair;
    ns1.join("veth1", &["10.0.0.1/24"], ns2, "veth2", &["10.0.0.2/24"]);
    ns1.join("veth3", &["10.0.0.3/24"], ns2, "veth4", &[]);
    for (namespace, links) in [(ns1, ["all", "veth1", "veth3"]), (ns2, ["all", "veth2", "veth4"])] {
        for link in links {
            namespace.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
        }
    }
    ns1.ip("route flush dev veth1");
    ns1.ip("route flush dev veth3");
    ns1.ip("route add 10.0.0.0/24 dev veth1 src 10.0.0.1 metric 2");
    pair.point_1_to("10.0.0.2:2");
    assert!(ns1.pings("192.168.241.2"));
    assert_eq!(pair.seen_by_2(), "10.0.0.1:1");
    ns1.ip("route add 10.0.0.0/24 dev veth3 src 10.0.0.3 metric 1");
    // What still comes by the old way does not hold the flow there.
    for _ in 0..3 {
        assert!(ns2.pings("192.168.241.1"));
    }
    pair.moves_to("10.0.0.3:1");
}

/// T19: ns1 has two uplinks, each with an address and a routing table of its own, to a router that lets no address pass by the wrong one.
#[test]
fn scenario_14_replies_take_the_uplink_that_was_spoken_to() {
    need!("ip", "wg", "ping");
    let pair = Pair::apart();
    let Pair { ns0, ns1, ns2, .. } = &pair;
    for wan in ["1", "2"] {
        let link = format!("wan{wan}");
        let router = [format!("10.{wan}.0.254/24"), format!("fd0{wan}::fe/96")];
        let own = [format!("10.{wan}.0.1/24"), format!("fd0{wan}::1/96")];
        let [router, own] = [&router, &own].map(|addrs| addrs.each_ref().map(String::as_str));
        ns0.join(&link, &router, ns1, &link, &own);
        ns0.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "1");
        ns1.ip(&format!("-4 rule add from 10.{wan}.0.1 table {wan}"));
        ns1.ip(&format!("-6 rule add from fd0{wan}::1 table {wan}"));
        route_by_uplink(ns1, wan);
    }
    ns0.join("far", &["10.9.0.254/24", "fd09::fe/96"], ns2, "far", &["10.9.0.2/24", "fd09::2/96"]);
    ns0.sysctl("net/ipv4/ip_forward", "1");
    ns0.sysctl("net/ipv6/conf/all/forwarding", "1");
    ns2.ip("-4 route add default via 10.9.0.254");
    ns2.ip("-6 route add default via fd09::fe");

    let ends = [("10.2.0.1:1", "10.1.0.1:1"), ("[fd02::1]:1", "[fd01::1]:1")];
    for (second, first) in ends {
        for endpoint in [first, second] {
            pair.point_2_to(endpoint);
            assert!(ns2.pings("192.168.241.1"), "{endpoint} does not answer");
            assert_eq!(pair.seen_by_2(), endpoint);
        }
        // A change of routes that is none of this flow's business leaves it where it is.
        ns1.ip("route add 10.77.0.0/24 via 10.1.0.254");
        assert!(ns1.pings("192.168.241.2"));
        assert_eq!(pair.seen_by_2(), second);
        ns1.ip("route del 10.77.0.0/24 via 10.1.0.254");

        // The uplink fails: the other one is taken, long before the timers would see to it.
        ns1.ip("link set wan2 down");
        wait_until("the uplink that is left", Duration::from_secs(5), || {
            ns1.pings("192.168.241.2") && pair.seen_by_2() == first
        });
        ns1.ip("link set wan2 up");
        ns1.wait_for_link("wan2");
        // The kernel has forgotten the address with the link.
        ns1.ip("-6 addr add fd02::1/96 dev wan2 nodad");
        route_by_uplink(ns1, "2");
    }
}

/// Sends by an uplink what comes from its address, and everything else by the first that is up.
fn route_by_uplink(ns1: &Namespace, wan: &str) {
    for (family, link, router) in [
        ("-4", format!("10.{wan}.0.0/24"), format!("10.{wan}.0.254")),
        ("-6", format!("fd0{wan}::/96"), format!("fd0{wan}::fe")),
    ] {
        ns1.ip(&format!("{family} route add {link} dev wan{wan} table {wan}"));
        ns1.ip(&format!("{family} route add default via {router} dev wan{wan} table {wan}"));
        ns1.ip(&format!("{family} route add default via {router} dev wan{wan} metric {wan}"));
    }
}
