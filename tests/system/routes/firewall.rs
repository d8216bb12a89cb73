//! The firewall's rules, as `nft` reads them and as packets meet them.

use std::net::{TcpListener, TcpStream};

use adit::control::firewall::{Counters, Guard};

use super::*;
use crate::support::wait_for;

fn counters(node: &Node) -> Counters {
    node.namespace.enter(|| Guard::open().unwrap().counters().unwrap())
}

#[test]
fn nft_reads_what_is_meant() {
    need!("ip", "wg", "nft");
    let lab = Lab::new();
    let mut desired = lab.a.plan(Mode::Strict);
    desired.firewall.as_mut().unwrap().interface = "adit0".to_owned();
    lab.a.healer.set(desired).unwrap();
    let expected = r#"table inet adit {
	counter wireguard {
	}

	counter cleartext_ingress {
	}

	counter cleartext_egress {
	}

	counter tcp_opened {
	}

	set protected4 {
		type ipv4_addr
		flags interval
		elements = { 10.244.0.0/24, 10.244.2.0-10.244.255.255 }
	}

	set protected6 {
		type ipv6_addr
		flags interval
		elements = { fd10::/64,
			     fd10:0:0:2::-fd10::ffff:ffff:ffff:ffff:ffff }
	}

	chain input {
		type filter hook input priority mangle; policy accept;
		iifname != "adit0" udp dport 51820 counter name "wireguard" accept
		iifname != "adit0" ip saddr @protected4 counter name "cleartext_ingress" drop
		iifname != "adit0" ip6 saddr @protected6 counter name "cleartext_ingress" drop
	}

	chain forward {
		type filter hook forward priority mangle; policy accept;
		iifname != "adit0" ip saddr @protected4 counter name "cleartext_ingress" drop
		iifname != "adit0" ip6 saddr @protected6 counter name "cleartext_ingress" drop
		iifname "adit0" tcp flags syn / syn,rst counter name "tcp_opened" tcp option maxseg size set rt mtu
		oifname "adit0" tcp flags syn / syn,rst counter name "tcp_opened" tcp option maxseg size set rt mtu
	}

	chain postrouting {
		type filter hook postrouting priority mangle; policy accept;
		oifname != "adit0" ip daddr @protected4 meta mark != 0x0000ad17 counter name "cleartext_egress" drop
		oifname != "adit0" ip6 daddr @protected6 meta mark != 0x0000ad17 counter name "cleartext_egress" drop
	}
}
"#;
    assert_eq!(lab.a.namespace.sh("nft -s list ruleset"), expected);
}

#[test]
fn nft_reads_what_is_meant_for_pods_and_hosts() {
    need!("ip", "wg", "nft");
    let lab = Lab::new();
    let mut desired = lab.a.plan(Mode::Strict);
    let firewall = desired.firewall.as_mut().unwrap();
    firewall.interface = "adit0".to_owned();
    firewall.from_pods.sources = vec!["10.244.1.0/24".parse().unwrap()];
    firewall.from_pods.entries =
        vec![entry("192.168.2.1/32", Kind::Unicast), entry("fd20:2::1/128", Kind::Throw)];
    firewall.hosts = vec!["192.168.1.1".parse().unwrap()];
    firewall.masquerade.sources = vec!["10.244.1.0/24".parse().unwrap()];
    firewall.masquerade.inside = vec!["10.244.0.0/16".parse().unwrap()];
    lab.a.healer.set(desired.clone()).unwrap();
    let rules = lab.a.namespace.sh("nft -s list ruleset");
    for line in [
        "set pods4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.244.1.0/24 }",
        "set nodes4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 192.168.2.1 }",
        "set nodes6 {\n\t\ttype ipv6_addr\n\t\tflags interval\n\t}",
        "set hosts4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 192.168.1.1 }",
        "iifname != \"adit0\" ip saddr @protected4 ip daddr @hosts4 accept",
        "oifname != \"adit0\" ip saddr @pods4 ip daddr @nodes4 counter name \"cleartext_egress\" drop",
        "type nat hook postrouting priority srcnat; policy accept;\n\t\tip saddr @local4 ip daddr @cluster4 accept\n\t\t\
        oifname != \"adit0\" ip saddr @local4 masquerade fully-random",
        "oifname != \"adit0\" ip6 saddr @local6 masquerade fully-random",
    ] {
        assert!(rules.contains(line), "{line:?} in {rules}");
    }
    // Addresses come and go in the table as it is.
    desired.firewall.as_mut().unwrap().hosts.push("192.168.1.2".parse().unwrap());
    lab.a.healer.set(desired).unwrap();
    assert!(lab.a.namespace.sh("nft -s list set inet adit hosts4").contains("192.168.1.1-192.168.1.2"));
}

#[test]
fn cleartext_that_claims_to_come_from_another_nodes_pod_is_dropped_and_counted() {
    need!("ip", "ping", "wg");
    for mode in [Mode::Permissive, Mode::Strict] {
        let lab = Lab::programmed(mode);
        // Somebody on the fabric takes addresses of node b's pods.
        lab.fabric.ip("addr add 10.244.2.66/32 dev lo");
        lab.fabric.ip("addr add fd10:0:0:2::66/128 dev lo nodad");
        let before = counters(&lab.a).cleartext_ingress;
        for (is_ipv6, liar) in [(false, "10.244.2.66:7000"), (true, "[fd10:0:0:2::66]:7000")] {
            let liar = udp(&lab.fabric, liar);
            let arrives = || {
                liar.send_to(b"lie", pod_addr(1, is_ipv6)).unwrap();
                lab.a.sockets[usize::from(is_ipv6)].recv_from(&mut [0; 10]).is_ok()
            };
            match mode {
                // The control: without the rule it does.
                Mode::Permissive => wait_until("a lie", SOON, arrives),
                Mode::Strict => assert!(!arrives()),
            }
            // To the node itself.
            let node = if is_ipv6 { "[fd20:1::1]:7001" } else { "192.168.1.1:7001" };
            liar.send_to(b"lie", node).unwrap();
        }
        let counted = counters(&lab.a).cleartext_ingress.packets - before.packets;
        assert_eq!(counted, if mode == Mode::Strict { 4 } else { 0 });
        lab.assert_encrypted("beside the lies");
    }
}

#[test]
fn counters_count_and_go_on_when_the_table_is_replaced() {
    need!("ip", "ping", "wg");
    let mut lab = Lab::programmed(Mode::Strict);
    let first = counters(&lab.a);
    // A message of a handshake and a packet in each family, at least.
    assert!(first.wireguard.packets >= 3 && first.wireguard.bytes > 3 * 60, "{first:?}");
    assert_eq!(first.cleartext_egress.packets, 0);
    lab.a.stop_healing();
    lab.a.namespace.ip(&format!("rule del priority {PRIORITY}"));
    lab.sing(5);
    lab.clear_frames();
    let second = counters(&lab.a);
    assert_eq!(second.cleartext_egress.packets, 5);
    assert_eq!(second.cleartext_egress.bytes, 5 * (20 + 8 + u64::try_from(CANARY.len()).unwrap()));
    // A new process knows nothing of the table that it finds.
    lab.a.healer = lab.a.namespace.enter(|| Healer::start(RESYNC).unwrap());
    lab.a.healer.set(lab.a.plan(Mode::Strict)).unwrap();
    let third = counters(&lab.a);
    assert_eq!(third.cleartext_egress, second.cleartext_egress);
    assert!(third.wireguard.packets >= second.wireguard.packets);
}

#[test]
fn tcp_is_told_of_the_tunnels_mtu_both_ways() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    // The pods know nothing of the tunnel: their links have 1500 bytes.
    for is_ipv6 in [false, true] {
        let (headers, offset) = if is_ipv6 { (60, 14 + 40) } else { (40, 14 + 20) };
        let captures = [&lab.a, &lab.b].map(|node| {
            node.pod.enter(|| {
                let index = Netlink::open().unwrap().link("eth0").unwrap().index;
                Capture::open(index).unwrap()
            })
        });
        let addr = pod_addr(2, is_ipv6);
        let listener = lab.b.pod.enter(move || TcpListener::bind(addr).unwrap());
        let stream = lab.a.pod.enter(move || TcpStream::connect_timeout(&addr, SOON).unwrap());
        // The end that is told, and what the other end had said.
        for (capture, flags) in [(&captures[1], 0x02), (&captures[0], 0x12)] {
            let mss = wait_for("a SYN", SOON, || {
                let mut frame = [0; 2048];
                let len = capture.read(&mut frame).ok()?;
                let tcp = frame.get(offset..len).filter(|tcp| tcp.len() > 24 && tcp[13] == flags)?;
                // The first option, as Linux orders them.
                (tcp[20..22] == [2, 4] && tcp[2..4] != [0; 2]).then(|| u16::from_be_bytes([tcp[22], tcp[23]]))
            });
            // 1420 bytes less the headers of IP and TCP.
            assert_eq!(mss, 1420 - headers);
        }
        drop((stream, listener));
    }
    assert!(counters(&lab.a).tcp_opened.packets >= 4);
}

#[test]
fn a_chain_that_drops_by_default_is_named_and_the_tunnel_works_past_it_once_it_has_sent() {
    need!("ip", "ping", "wg", "nft");
    let lab = Lab::programmed(Mode::Strict);
    let obstacles = || lab.a.namespace.enter(|| Guard::open().unwrap().obstacles(PORT).unwrap());
    assert_eq!(obstacles(), []);
    lab.a.namespace.sh("nft add table ip filter");
    lab.a.namespace.sh("nft add chain ip filter INPUT { type filter hook input priority 0 ; policy drop ; }");
    lab.a
        .namespace
        .sh("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
    let found: Vec<_> = obstacles().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["ip filter INPUT"]);
    lab.a.namespace.sh("nft delete chain ip filter FORWARD");
    // Nobody's packets come in; an accept in a table of ours does not change that.
    assert!(!lab.reaches(false));
    lab.a.namespace.sh("nft add rule ip filter INPUT ct state established,related accept");
    lab.a.namespace.sh("nft add rule ip filter INPUT icmp type echo-reply accept");
    lab.assert_encrypted("past a chain that drops by default");
}

#[test]
fn a_prefix_moves_under_traffic_and_no_frame_is_in_clear() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    lab.clear_frames();
    let whole = lab.a.plan(Mode::Strict);
    for round in 0..20 {
        let mut plan = whole.clone();
        if round % 2 == 0 {
            // Its owner is not known, so that only the blackhole is left; another block is.
            plan.routes.entries.retain(|entry| entry.kind != Kind::Unicast);
            plan.routes.entries.push(entry(&format!("10.244.{}.0/24", 100 + round), Kind::Unicast));
        }
        plan.firewall = Some(Firewall::of(&plan.routes, PORT, true));
        lab.sing(5);
        lab.a.healer.set(plan).unwrap();
        lab.sing(5);
    }
    assert_eq!(lab.clear_frames(), 0);
    lab.assert_encrypted("after the moves");
}

#[test]
fn traffic_loses_nothing_while_others_come_and_go_and_the_table_is_replaced() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    let args = ["-n", "-q", "-i", "0.002", "-c", "1000", "10.244.2.2"];
    let mut ping = lab.a.pod.spawn("ping", &args);
    let whole = lab.a.plan(Mode::Strict);
    let mut round = 0;
    while ping.ended().is_none() {
        let mut plan = whole.clone();
        plan.routes.entries.push(entry(&format!("10.244.{}.0/24", 100 + round % 100), Kind::Unicast));
        // Another port makes another table, another entry other routes.
        plan.firewall = Some(Firewall::of(&plan.routes, PORT + u16::from(round % 2 == 0), true));
        lab.a.healer.set(plan).unwrap();
        round += 1;
    }
    assert!(round > 20, "only {round} changes in the time");
    wait_until("no loss", SOON, || {
        let output = ping.output();
        assert!(!output.contains("packet loss") || output.contains(" 0% packet loss"), "{output}");
        output.contains("packet loss")
    });
}

#[test]
fn addresses_that_others_have_come_and_go_one_by_one() {
    need!("ip", "wg", "nft");
    let lab = Lab::new();
    let set = |hosts: &[u8]| {
        let mut plan = lab.a.plan(Mode::Permissive);
        plan.routes.entries =
            hosts.iter().map(|host| entry(&format!("10.9.0.{host}/32"), Kind::Unicast)).collect();
        plan.firewall = Some(Firewall::of(&plan.routes, PORT, true));
        lab.a.healer.set(plan).unwrap();
    };
    let listed = || lab.a.namespace.sh("nft list set inet adit protected4");
    set(&[1, 3, 5]);
    assert!(listed().contains("elements = { 10.9.0.1, 10.9.0.3,"), "{}", listed());
    let handle = || lab.a.namespace.sh("nft -a list table inet adit").lines().next().unwrap().to_owned();
    let before = handle();
    set(&[1, 2, 3, 4, 5]);
    assert!(listed().contains("elements = { 10.9.0.1-10.9.0.5 }"), "{}", listed());
    set(&[2]);
    assert!(listed().contains("elements = { 10.9.0.2 }"), "{}", listed());
    set(&[]);
    assert!(!listed().contains("elements"), "{}", listed());
    assert_eq!(handle(), before, "the table was made anew for some addresses");
}

#[test]
fn the_tunnels_port_is_opened_in_a_chain_that_is_named_and_kept_open_until_it_is_not_any_more() {
    need!("ip", "wg", "nft");
    let mut lab = Lab::new();
    let make_chain = |lab: &Lab, policy: &str| {
        lab.a.namespace.sh("nft add table inet filter");
        let chain =
            format!("add chain inet filter input {{ type filter hook input priority 0; policy {policy}; }}");
        lab.a.namespace.run("nft", &[&chain]);
    };
    make_chain(&lab, "drop");
    lab.a.namespace.sh("nft add rule inet filter input ip protocol icmp accept");
    let obstacles = |lab: &Lab| {
        let chains = lab.a.namespace.enter(|| Guard::open().unwrap().obstacles(PORT).unwrap());
        chains.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let rules = |lab: &Lab| {
        let text = lab.a.namespace.sh("nft list chain inet filter input");
        text.lines().skip(3).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let opening = |lab: &Lab, port: u16| {
        let name = &lab.a.name;
        format!("iifname != \"{name}\" udp dport {port} accept comment \"adit: the tunnel's port {port}\"")
    };
    let plan = |lab: &Lab, chains: &[&str]| {
        let mut plan = lab.a.plan(Mode::Strict);
        let chains = chains.iter().map(|chain| chain.parse().unwrap());
        plan.firewall.as_mut().unwrap().open_in = chains.collect();
        plan
    };
    // From node b, which has not been heard of.
    let arrives = |lab: &Lab| {
        lab.b.sockets[0].send_to(CANARY, pod_addr(1, false)).unwrap();
        lab.a.sockets[0].recv_from(&mut [0; 100]).is_ok()
    };
    lab.b.healer.set(lab.b.plan(Mode::Strict)).unwrap();
    lab.a.healer.set(plan(&lab, &[])).unwrap();
    assert!(!arrives(&lab), "a chain that drops lets it in");
    assert_eq!(obstacles(&lab), ["inet filter input"]);

    // One that is not there is in nobody's way.
    lab.a.healer.set(plan(&lab, &["ip other INPUT", "inet filter input"])).unwrap();
    assert_eq!(rules(&lab)[0], opening(&lab, PORT));
    assert_eq!(obstacles(&lab), [""; 0]);
    wait_until("what b sends of its own", SOON, || arrives(&lab));
    let second = Duration::from_secs(1);
    lab.a.namespace.sh("nft flush chain inet filter input");
    wait_until("the rule after a flush", second, || rules(&lab)[0] == opening(&lab, PORT));
    lab.a.namespace.sh("nft delete table inet filter");
    make_chain(&lab, "drop");
    wait_until("the rule in a new chain", second, || rules(&lab)[0] == opening(&lab, PORT));
    lab.a.namespace.sh("nft add table ip other");
    lab.a.namespace.sh("nft add chain ip other INPUT");
    wait_until("the rule in a late chain", second, || {
        lab.a.namespace.sh("nft list chain ip other INPUT").contains(&opening(&lab, PORT))
    });

    // Others' rules stay, ours is one, for the port that is.
    lab.a.namespace.sh("nft add rule inet filter input ip protocol icmp accept");
    let mut other = plan(&lab, &["inet filter input"]);
    other.firewall.as_mut().unwrap().listen_port = PORT + 1;
    lab.a.healer.set(other).unwrap();
    let icmp = "ip protocol icmp accept".to_owned();
    assert_eq!(rules(&lab)[..2], [opening(&lab, PORT + 1), icmp.clone()]);
    let is_ours = |lab: &Lab| lab.a.namespace.sh("nft list ruleset").matches("adit: the tunnel's").count();
    assert_eq!(is_ours(&lab), 1);
    lab.a.healer.set(plan(&lab, &[])).unwrap();
    assert_eq!((rules(&lab)[0].clone(), is_ours(&lab)), (icmp, 0));

    // What an earlier process has left goes with the first look, with the firewall, and with all else.
    for what in ["another process", "no firewall", "cleanup"] {
        lab.a.healer.set(plan(&lab, &["inet filter input"])).unwrap();
        assert_eq!(is_ours(&lab), 1);
        if what != "no firewall" {
            lab.a.stop_healing();
        }
        let desired = plan(&lab, &[]);
        match what {
            "cleanup" => {
                lab.a.namespace.enter(move || adit::control::heal::cleanup(&desired.routes)).unwrap()
            }
            "no firewall" => {
                lab.a.healer.set(Desired { firewall: None, ..desired }).unwrap();
            }
            _ => {
                lab.a.healer = lab.a.namespace.enter(|| Healer::start(RESYNC).unwrap());
                lab.a.healer.set(desired).unwrap();
            }
        }
        assert_eq!(is_ours(&lab), 0, "{what}");
    }

    // A chain that ends so is as good as one that drops by default.
    lab.a.namespace.sh("nft delete table inet filter");
    for (last, is_named) in [
        ("ip protocol icmp drop", false),
        ("counter drop", true),
        ("reject", true),
        ("ip protocol icmp accept", false),
    ] {
        make_chain(&lab, "accept");
        lab.a.namespace.sh(&format!("nft add rule inet filter input {last}"));
        assert_eq!(obstacles(&lab).len(), usize::from(is_named), "{last}");
        lab.a.namespace.sh("nft delete table inet filter");
    }
}
