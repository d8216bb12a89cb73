//! The agent drives the WireGuard of a real kernel, and a peer of ours outside talks to it.

use std::fs;

use super::*;
use crate::support::Directory;

const ALLOWED: &str = "wg show mesh7 allowed-ips";

impl Guest {
    /// Writes a file; its text holds no single quotes.
    #[track_caller]
    fn write(&mut self, path: &str, lines: &[&str]) {
        let lines: Vec<_> = lines.iter().map(|line| format!("'{line}'")).collect();
        self.run(&format!(
            "printf '%s\\n' {} >/tmp/unfinished && mv /tmp/unfinished {path}",
            lines.join(" ")
        ));
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, line: &str, is_good: impl Fn(&str) -> bool) {
        let mut last = String::new();
        for _ in 0..60 {
            last = self.try_run(line).1;
            if is_good(&last) {
                return;
            }
            self.try_run("usleep 200000");
        }
        panic!("{what}: {last}\n{}", self.try_run("cat /tmp/log").1);
    }

    /// Writes the object of a peer.
    #[track_caller]
    fn publish(&mut self, name: &str, key: &str, endpoint: &str, prefixes: &str) {
        self.write(
            &format!("/tmp/objects/{name}.yaml"),
            &[
                "apiVersion: adit.dev/v1alpha1",
                "kind: NodeTunnel",
                &format!("metadata: {{name: {name}}}"),
                &format!("spec: {{keys: [{{publicKey: \"{key}\", state: Active}}], endpoints: [{endpoint}], podPrefixes: [{prefixes}]}}"),
            ],
        );
    }
}

/// Options of the agent in the guest.
const STATE: &str = "--state /tmp/state --run /tmp/run --sockets /tmp/sockets";

/// Boots a guest that has our program, as 10.9.0.2 beside a namespace's 10.9.0.1; `None` if there is no kernel to boot.
#[track_caller]
fn boot() -> Option<(Namespace, Guest)> {
    boot_with("")
}

/// The same, with words for the guest's kernel.
#[track_caller]
fn boot_with(words: &str) -> Option<(Namespace, Guest)> {
    let kernel = env::var("ADIT_KERNEL").unwrap_or_default();
    if !Path::new(&kernel).join("boot").is_dir() {
        skip("an unpacked kernel in ADIT_KERNEL");
        return None;
    }
    let outside = Namespace::new();
    outside.ip("tuntap add tap mode tap");
    outside.ip("addr add 10.9.0.1/24 dev tap");
    outside.ip("link set tap up");
    // Without what debuggers need it fits into the guest's memory.
    let files = Directory::new();
    let program = files.path().join("adit");
    outside.run("strip", &["-o", program.to_str().unwrap(), env!("CARGO_BIN_EXE_adit")]);
    let mut guest = Guest::boot_with(&outside, &kernel, "tap", &[program.to_str().unwrap(), words]);
    fs::remove_file(&program).unwrap();
    guest.run("ip link set lo up && ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up");
    guest.run("mkdir -p /tmp/objects /var/run");
    Some((outside, guest))
}

/// Starts the guest's peer, which is told this of it beside its key and its pods, and returns it with that key.
fn start_peer(outside: &Namespace, guest: &mut Guest, more: &str) -> (Tunnel, String) {
    let ours = Tunnel::start(Program::Adit, outside);
    let key = guest.run(&format!("adit agent --public-key {STATE}")).trim().to_owned();
    ours.set(outside, &format!("listen-port {OUR_PORT} peer {key} {more} allowed-ips 10.244.2.0/24"));
    outside.ip(&format!("addr add 10.244.1.1/32 dev {}", ours.name));
    outside.ip(&format!("link set {} up", ours.name));
    outside.ip(&format!("route add 10.244.2.0/24 dev {}", ours.name));
    (ours, key)
}

#[test]
fn the_agent_drives_a_real_kernels_wireguard() {
    need!("ip", "wg", "ping", "strip");
    need!("qemu-system-x86_64", "busybox", "cpio", "modprobe");
    let Some((outside, mut guest)) = boot() else { return };
    let (ours, key) = start_peer(&outside, &mut guest, &format!("endpoint 10.9.0.2:{GUEST_PORT}"));
    let other = Key::generate();

    // The guest has no nftables: it is Off, so that peers are all that there is.
    guest.write(
        "/tmp/objects/config.yaml",
        &[
            "apiVersion: adit.dev/v1alpha1",
            "kind: TunnelConfig",
            "metadata: {name: default}",
            &format!(
                "spec: {{mode: \"Off\", backend: Kernel, interfaceName: mesh7, listenPort: {GUEST_PORT}, persistentKeepalive: 25s}}"
            ),
        ],
    );
    guest.publish("guest", &key, "{address: 10.9.0.2, port: 51822}", "10.244.2.0/24");
    let (first, second) = (ours.key.public(), other.public());
    let at = format!("{{address: 10.9.0.1, port: {OUR_PORT}}}");
    guest.publish("first", &first, &at, "10.244.1.0/24, 10.245.1.0/24, \"fd00:1::/64\"");
    guest.publish("second", &second, "{address: 10.9.0.77, port: 1}", "10.244.3.0/24");
    let start = format!(
        "adit agent --node-name guest --objects /tmp/objects {STATE} >>/tmp/log 2>&1 & echo $! >/tmp/pid"
    );
    guest.run(&start);
    let lines = |first_ips: &[&str], second_ips: &[&str]| {
        let line = |key: &str, ips: &[&str]| {
            let mut ips: Vec<_> = ips.iter().map(|ip| (*ip).to_owned()).collect();
            ips.sort();
            format!("{key} {}", ips.join(" "))
        };
        let mut lines = vec![line(&first, first_ips), line(&second, second_ips)];
        lines.sort();
        lines
    };
    let are = |expected: Vec<String>| {
        move |text: &str| {
            let mut found: Vec<_> = text
                .lines()
                .filter_map(|line| {
                    let (key, ips) = line.split_once('\t')?;
                    let mut ips: Vec<_> = ips.split_whitespace().collect();
                    ips.sort_unstable();
                    Some(format!("{key} {}", ips.join(" ")))
                })
                .collect();
            found.sort();
            found == expected
        }
    };
    let all = ["10.244.1.0/24", "10.245.1.0/24", "fd00:1::/64"];
    guest.wait_for("the peers", ALLOWED, are(lines(&all, &["10.244.3.0/24"])));
    let shown = guest.run("WG_COLOR_MODE=never wg show mesh7");
    assert!(shown.contains(&format!("public key: {key}")) && shown.contains("fwmark: 0x20ad"), "{shown}");
    assert!(shown.contains(&format!("listening port: {GUEST_PORT}")), "{shown}");
    assert!(shown.contains("persistent keepalive: every 25 seconds"), "{shown}");

    // Data, both ways.
    guest.run("ip addr add 10.244.2.1/32 dev mesh7 && ip route add 10.244.1.0/24 dev mesh7");
    wait_until("an answer through the tunnel", PATIENCE, || {
        outside.succeeds("ping -n -c 1 -W 10 -I 10.244.1.1 10.244.2.1")
    });
    guest.run("ping -c 1 -W 10 -I 10.244.2.1 10.244.1.1");
    let handshake = guest.run("wg show mesh7 latest-handshakes");

    // A prefix goes, one moves, and a peer; the session of the other stays.
    guest.publish("first", &first, &at, "10.244.1.0/24, \"fd00:1::/64\"");
    guest.wait_for(
        "a prefix less",
        ALLOWED,
        are(lines(&["10.244.1.0/24", "fd00:1::/64"], &["10.244.3.0/24"])),
    );
    guest.publish("first", &first, &at, "10.244.1.0/24");
    guest.publish("second", &second, "{address: 10.9.0.77, port: 1}", "10.244.3.0/24, \"fd00:1::/64\"");
    guest.wait_for(
        "a prefix moved",
        ALLOWED,
        are(lines(&["10.244.1.0/24"], &["10.244.3.0/24", "fd00:1::/64"])),
    );
    assert_eq!(guest.run("wg show mesh7 latest-handshakes"), handshake);
    guest.run("rm /tmp/objects/second.yaml");
    guest.wait_for("one peer", ALLOWED, |text| text.trim() == format!("{first}\t10.244.1.0/24"));
    let status = guest.run("adit peers --state /tmp/state --sockets /tmp/sockets");
    assert!(status.contains("first"), "{status}");

    // What somebody removes is made anew, by the next agent as well.
    guest.run("ip link del mesh7");
    guest.wait_for("the interface", ALLOWED, |text| text.trim() == format!("{first}\t10.244.1.0/24"));
    guest.run("kill $(cat /tmp/pid)");
    guest.wait_for("the agent's end", "cat /tmp/log", |text| text.contains("what is programmed stays"));
    assert!(guest.run(ALLOWED).contains(&first));
    guest.run(&start);
    guest.wait_for("the agent", "cat /tmp/log", |text| text.matches("the data plane answers").count() == 2);
    guest.run("kill $(cat /tmp/pid)");
    guest.wait_for("the agent's end", "cat /tmp/log", |text| {
        text.matches("what is programmed stays").count() == 2
    });
    // In Off, with nftables or without, there is nothing to be removed but the interface and the file. What it is called is known from the
    // objects; one that was called otherwise before has the same key; others' have others.
    guest.run("ip link add before type wireguard && wg set before private-key /tmp/state/private.key");
    guest.run(
        "ip link add other type wireguard && wg genkey >/tmp/other && wg set other private-key /tmp/other",
    );
    guest.run("ip link add bare type wireguard && grep . /tmp/run/mtu");
    guest.run(&format!("adit agent --cleanup {STATE}"));
    for gone in ["ip link show mesh7", "ip link show before", "ls /tmp/run"] {
        assert!(!guest.try_run(gone).0, "{gone}");
    }
    guest.run("ip link show other && ip link show bare && ls /tmp/state/private.key");
    guest.run("ip link del other && ip link del bare");
}

#[test]
fn where_nobody_is_the_data_plane_the_kernel_is_and_strict_holds_over_it() {
    need!("ip", "wg", "ping", "strip", "tcpdump");
    need!("qemu-system-x86_64", "busybox", "cpio", "modprobe");
    let Some((outside, mut guest)) = boot() else { return };
    guest.run("load-nftables && echo 1 >/proc/sys/net/ipv4/ip_forward");
    let ours = Tunnel::start(Program::Adit, &outside);
    let key = guest.run(&format!("adit agent --public-key {STATE}")).trim().to_owned();
    ours.set(&outside, &format!("listen-port {OUR_PORT} peer {key} allowed-ips 10.244.2.0/24"));
    outside.ip(&format!("addr add 10.244.1.1/32 dev {}", ours.name));
    outside.ip(&format!("link set {} up", ours.name));
    outside.ip("route add 10.244.2.0/24 via 10.9.0.2");
    // A pod, and the way of all others' without a tunnel.
    guest.run("ip addr add 10.244.2.1/32 dev lo && ip route add 10.244.0.0/16 via 10.9.0.1");
    let capture =
        outside.spawn("tcpdump", &["-l", "-n", "--immediate-mode", "-i", "tap", "src net 10.244.2.0/24"]);
    wait_until("tcpdump", SOON, || capture.output().contains("listening on"));
    let in_clear = || capture.output().lines().filter(|line| line.contains("10.244.2.1 >")).count();
    let ping = "ping -c 1 -W 3 -I 10.244.2.1";
    guest.try_run(&format!("{ping} 10.244.1.1"));
    wait_until("what goes in clear before there is an agent", SOON, || in_clear() > 0);

    let config = |backend: &str| {
        let spec = "mode: Strict, strictGate: Immediate, clusterCIDRs: [10.244.0.0/16], interfaceName: mesh7";
        let port = format!("listenPort: {GUEST_PORT}, metrics: {{address: \"127.0.0.1:9586\"}}");
        [
            "apiVersion: adit.dev/v1alpha1".to_owned(),
            "kind: TunnelConfig".to_owned(),
            "metadata: {name: default}".to_owned(),
            format!("spec: {{{spec}, {port}, backend: {backend}}}"),
        ]
    };
    let write = |guest: &mut Guest, backend: &str| {
        guest.write("/tmp/objects/config.yaml", &config(backend).each_ref().map(String::as_str));
    };
    write(&mut guest, "Userspace");
    guest.publish("guest", &key, "{address: 10.9.0.2, port: 51822}", "10.244.2.0/24");
    let at = format!("{{address: 10.9.0.1, port: {OUR_PORT}}}");
    guest.publish("first", &ours.key.public(), &at, "10.244.1.0/24");
    guest.run(&format!(
        "adit agent --node-name guest --objects /tmp/objects {STATE} >>/tmp/log 2>&1 & echo $! >/tmp/pid"
    ));
    // Nothing else would be there to encrypt it.
    guest.wait_for("the rule, which is there after the routes", "ip rule", |text| text.contains("8365"));
    let before = in_clear();
    assert!(!guest.try_run("ip link show mesh7").0, "with backend: Userspace");
    write(&mut guest, "Auto");
    guest.wait_for("the interface", "ip link show mesh7", |text| text.contains("mesh7"));
    guest.wait_for("a word of it", "cat /tmp/log", |text| text.contains("data_plane=the kernel's mesh7"));
    guest.wait_for("the peer", ALLOWED, |text| text.contains("10.244.1.0/24"));
    outside.ip("route del 10.244.2.0/24 via 10.9.0.2");
    outside.ip(&format!("route add 10.244.2.0/24 dev {}", ours.name));
    guest.wait_for("an answer through the tunnel", &format!("{ping} 10.244.1.1"), |text| {
        text.contains(" 0% packet loss")
    });
    assert!(outside.succeeds("ping -n -c 1 -W 10 -I 10.244.1.1 10.244.2.1"), "through the tunnel");

    // What nobody has goes nowhere.
    assert!(!guest.try_run(&format!("{ping} 10.244.77.1")).0);
    // What comes in clear is dropped.
    outside.ip("route add 10.244.2.1/32 via 10.9.0.2");
    assert!(!outside.succeeds("ping -n -c 2 -W 3 -I 10.244.1.1 10.244.2.1"), "in clear");
    outside.ip("route del 10.244.2.1/32");
    let metrics = guest
        .run("wget -q -O - http://127.0.0.1:9586/metrics | grep -e cleartext_dropped -e ^adit_data_plane_up");
    assert!(
        metrics.contains("direction=\"ingress\"} 2") && metrics.contains("adit_data_plane_up 1"),
        "{metrics}"
    );

    // Nothing in clear while somebody deletes the interface, again and again; it is made anew.
    guest.run(
        "(while :; do ping -c 1 -W 1 -I 10.244.2.1 10.244.1.1; done) >/dev/null 2>&1 & echo $! >/tmp/pings",
    );
    for _ in 0..5 {
        guest.run("ip link del mesh7");
        guest.wait_for("the peer", ALLOWED, |text| text.contains("10.244.1.0/24"));
    }
    guest.run("kill $(cat /tmp/pings)");
    guest.wait_for("an answer through the tunnel", &format!("{ping} 10.244.1.1"), |text| {
        text.contains(" 0% packet loss")
    });
    assert_eq!(in_clear(), before, "{}", capture.output());

    guest.run("kill $(cat /tmp/pid)");
    guest.wait_for("the agent's end", "cat /tmp/log", |text| text.contains("what is programmed stays"));
    guest.run(&format!("adit agent --cleanup {STATE}"));
    assert!(!guest.try_run("ip link show mesh7").0);
    guest.try_run(&format!("{ping} 10.244.1.1"));
    wait_until("what goes in clear after the cleanup", SOON, || in_clear() > before);
}

#[test]
fn a_real_kernel_without_ipv6_does_all_that_is_of_ipv4() {
    need!("ip", "wg", "ping", "strip");
    need!("qemu-system-x86_64", "busybox", "cpio", "modprobe");
    let Some((outside, mut guest)) = boot_with("ipv6.disable=1") else { return };
    assert!(!guest.try_run("ls /proc/sys/net/ipv6").0);
    guest.run("load-nftables && echo 1 >/proc/sys/net/ipv4/ip_forward");
    let (ours, key) = start_peer(&outside, &mut guest, "");
    let spec =
        "mode: Strict, strictGate: Immediate, backend: Kernel, interfaceName: mesh7, hostTraffic: PodToNode";
    guest.write(
        "/tmp/objects/config.yaml",
        &[
            "apiVersion: adit.dev/v1alpha1",
            "kind: TunnelConfig",
            "metadata: {name: default}",
            &format!(
                "spec: {{{spec}, listenPort: {GUEST_PORT}, clusterCIDRs: [10.244.0.0/16, \"fd00:244::/48\"]}}"
            ),
        ],
    );
    let own = "10.244.2.0/24, \"fd00:244:0:2::/64\"], tunnelAddresses: [10.244.2.0, \"fd00:244:0:2::\"";
    guest.publish("guest", &key, "{address: 10.9.0.2, port: 51822}", own);
    let (first, second) = (ours.key.public(), Key::generate().public());
    let at = format!("{{address: \"fd09::1\", port: 1}}, {{address: 10.9.0.1, port: {OUR_PORT}}}");
    guest.publish("first", &first, &at, "10.244.1.0/24, \"fd00:244:0:1::/64\"");
    guest.publish(
        "second",
        &second,
        "{address: 10.9.0.77, port: 1}",
        "10.244.3.0/24, \"fd00:244:0:3::/64\"], nodeAddresses: [10.9.0.77, \"fd09::77\"",
    );
    guest.run(&format!(
        "adit agent --node-name guest --objects /tmp/objects {STATE} >>/tmp/log 2>&1 & echo $! >/tmp/pid"
    ));
    guest.wait_for("the peers", ALLOWED, |text| text.contains(&first) && text.contains(&second));
    // Its state is on disk a second after it was learned.
    let status = "adit status mesh7 --state /tmp/state --sockets /tmp/sockets";
    guest.wait_for("all in place", status, |text| {
        text.contains("interface up, routes and rules in place, firewall in place")
            && text.contains("IPv6           not encrypted: IPv6")
    });
    guest.run("ip addr add 10.244.2.1/32 dev lo");
    guest.run("ping -c 1 -W 10 -I 10.244.2.1 10.244.1.1");
    guest.run("rm /tmp/objects/second.yaml");
    guest.wait_for("one peer", ALLOWED, |text| text.contains(&first) && !text.contains(&second));
    let log = guest.run("cat /tmp/log");
    assert!(!log.contains("not yet what it should be"), "{log}");
    let places = "--objects /tmp/objects --state /tmp/state --sockets /tmp/sockets";
    let checks = guest.try_run(&format!("adit preflight --node-name guest {places}")).1;
    let [ipv6, forwarding, path_mtu, port] = ["ipv6", "forwarding", "path-mtu", "udp-port"].map(|check| {
        checks.lines().find(|line| line.split_whitespace().nth(1) == Some(check)).unwrap_or_default()
    });
    assert!(ipv6.starts_with("warn") && forwarding.starts_with("pass"), "{checks}");
    // Its own tunnel's.
    assert!(port.starts_with("pass") && port.contains("the data plane has port"), "{checks}");
    // The place that a peer names first is none that it is looked for at.
    assert!(!path_mtu.is_empty() && !path_mtu.starts_with("fail"), "{checks}");
    guest.run("kill $(cat /tmp/pid)");
    guest.wait_for("the agent's end", "cat /tmp/log", |text| text.contains("what is programmed stays"));
    guest.run(&format!("adit agent --cleanup {STATE}"));
    assert!(!guest.run("ip rule").contains("8365"));
}

/// Peers of the kernel, of which the last is changed.
const PEERS: u32 = 1000;

/// Returns a command that prints the objects of peers by their numbers, a line of YAML each.
fn many(first: u32, last: u32, more: &str) -> String {
    format!(
        "awk 'BEGIN {{ for (n = {first}; n <= {last}; n++) {{ high = int(n / 256); low = n % 256; \
        printf \"---\\n{{apiVersion: adit.dev/v1alpha1, kind: NodeTunnel, metadata: {{name: n%d}}, spec: {{\", n; \
        printf \"keys: [{{publicKey: \\\"%042dA=\\\", state: Active}}], endpoints: [{{address: 10.10.%d.%d, port: 51820}}], \", n, high, low; \
        printf \"podPrefixes: [10.%d.%d.0/24{more}]}}}}\\n\", 64 + high, low }} }}'"
    )
}

#[test]
fn the_agent_programs_a_thousand_peers_into_a_real_kernel_and_changes_one() {
    need!("ip", "wg", "strip");
    need!("qemu-system-x86_64", "busybox", "cpio", "modprobe");
    let Some((_outside, mut guest)) = boot() else { return };
    // The guest has no nftables: it is Off, so that peers are all that there is.
    guest.write(
        "/tmp/objects/config.yaml",
        &[
            "apiVersion: adit.dev/v1alpha1",
            "kind: TunnelConfig",
            "metadata: {name: default}",
            "spec: {mode: \"Off\", backend: Kernel, interfaceName: mesh7}",
        ],
    );
    let key = guest.run(&format!("adit agent --public-key {STATE}")).trim().to_owned();
    guest.publish("guest", &key, "{address: 10.9.0.2, port: 51820}", "10.244.2.0/24");
    guest.run(&format!("{} >/tmp/objects/all.yaml", many(1, PEERS - 1, "")));
    guest.run(&format!("{} >/tmp/objects/last.yaml", many(PEERS, PEERS, "")));
    let free = |guest: &mut Guest| -> i64 {
        guest.run("awk '/^MemAvailable/ { print $2 }' /proc/meminfo").trim().parse().unwrap()
    };
    // Hundredths of a second since the guest's start, around what is waited for.
    let timed = |guest: &mut Guest, begin: &str, until: &str| -> f64 {
        let clock = "read now rest </proc/uptime";
        let text = guest.run(&format!(
            "{clock}; begun=$now; {begin}; until {until}; do usleep 20000; done; {clock}; echo $begun $now"
        ));
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers[1] - numbers[0]
    };

    let before = free(&mut guest);
    let start = format!(
        "{{ adit agent --node-name guest --objects /tmp/objects {STATE} >>/tmp/log 2>&1 & echo $! >/tmp/pid; }}"
    );
    let is_there = format!("[ \"$(wg show mesh7 peers 2>/dev/null | wc -l)\" = {PEERS} ]");
    let programmed = timed(&mut guest, &start, &is_there);
    guest.wait_for("a word of it", "cat /tmp/log", |text| text.contains("the data plane is in step"));
    let taken = before - free(&mut guest);
    let own = guest.run("awk '/^RssAnon/ { print $2 }' /proc/$(cat /tmp/pid)/status");
    let own: i64 = own.trim().parse().unwrap();
    guest.run(&format!("{ALLOWED} >/tmp/before"));

    // One more prefix of the last one, found by listing all of them as often as it takes.
    guest.run(&format!("{} >/tmp/unfinished", many(PEERS, PEERS, ", 10.99.0.0/24")));
    let has_it = format!("{ALLOWED} | grep -q 10.99.0.0/24");
    let changed = timed(&mut guest, "mv /tmp/unfinished /tmp/objects/last.yaml", &has_it);
    let listing = timed(&mut guest, "true", &has_it);
    guest.run(&format!("{ALLOWED} >/tmp/after"));
    let differences = guest.run("diff /tmp/before /tmp/after | grep -c '^[-+<>][^-+]'");
    eprintln!(
        "a kernel in an emulated processor, which is many times slower than a real one: {PEERS} peers programmed \
        {programmed:.2} s after the agent was started, which then has {own} KiB of its own, with {taken} KiB less free in \
        the machine; one peer changed after {changed:.2} s, of which a listing takes {listing:.2} s"
    );
    assert_eq!(differences.trim(), "2", "one line is another");
    assert!(own < 40_000_000 / 1024, "{own} KiB");
    guest.run("kill $(cat /tmp/pid)");
    guest.wait_for("the agent's end", "cat /tmp/log", |text| text.contains("what is programmed stays"));
    guest.run(&format!("adit agent --cleanup {STATE}"));
}
