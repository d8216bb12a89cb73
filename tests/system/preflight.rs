//! `adit preflight`: each check fails alone on a node that is broken in just that way, and none on a healthy one.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use adit::sys::clock::realtime;
use serde_json::{Value, json};

use crate::control::nodes::{Mesh, Node};
use crate::support::api_double::{ApiDouble, Kind, Manners};
use crate::support::tunnel::Program;
use crate::support::{Directory, Namespace, SOON, need, wait_until};

/// Anybody's.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// A node in a namespace of its own, with one neighbour.
struct Host {
    namespace: Namespace,
    neighbour: Namespace,
    state: Directory,
    sockets: Directory,
    objects: Directory,
}

impl Host {
    /// Makes a node that lacks nothing, whatever the machine is like.
    fn new() -> Self {
        let (namespace, neighbour) = (Namespace::new(), Namespace::new());
        namespace.join("eth0", &["10.9.0.1/24"], &neighbour, "eth0", &["10.9.0.2/24"]);
        for link in ["all", "default", "eth0"] {
            namespace.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
            namespace.sysctl(&format!("net/ipv4/conf/{link}/ignore_routes_with_linkdown"), "0");
        }
        namespace.sysctl("net/ipv4/ip_forward", "1");
        let [state, sockets, objects] = [(); 3].map(|()| Directory::new());
        let this = Self { namespace, neighbour, state, sockets, objects };
        let state = this.state.path().to_str().unwrap();
        fs::set_permissions(state, fs::Permissions::from_mode(0o700)).unwrap();
        this.namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--public-key", "--state", state]);
        this.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Permissive, clusterCIDRs: [10.244.0.0/16]}\n");
        for n in [1, 2] {
            let text = format!(
                "kind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  keys: [{{publicKey: {KEY}, state: Active}}]\n  \
                endpoints: [{{address: 10.9.0.{n}, port: 51820}}]\n  podPrefixes: [10.244.{n}.0/24]\n  nodeAddresses: [10.9.0.{n}]\n"
            );
            this.write(&format!("node{n}"), &text);
        }
        this
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.objects.path().join(format!("{name}.yaml"));
        fs::write(path, format!("apiVersion: adit.dev/v1alpha1\n{text}")).unwrap();
    }

    /// Returns the arguments that tell a command of this node.
    fn args(&self) -> Vec<String> {
        let path = |directory: &Directory| directory.path().to_str().unwrap().to_owned();
        let (state, sockets, objects) = (path(&self.state), path(&self.sockets), path(&self.objects));
        ["--node-name", "node1", "--state", &state, "--sockets", &sockets, "--objects", &objects]
            .map(str::to_owned)
            .into()
    }

    /// Runs the checks by way of `wrapper`, a command that runs what follows it; returns what neither passed nor was skipped.
    #[track_caller]
    fn check(&self, wrapper: &[&str]) -> Vec<(String, String)> {
        let args = self.args();
        let mut all = wrapper.to_vec();
        all.extend([env!("CARGO_BIN_EXE_adit"), "preflight", "-o", "json"]);
        all.extend(args.iter().map(String::as_str));
        let (success, text) = self.namespace.try_run(all[0], &all[1..]);
        // Behind the report, on the other stream, is what failed.
        let end = text.rfind('}').unwrap_or_else(|| panic!("{text}"));
        let report: Value =
            serde_json::from_str(&text[..=end]).unwrap_or_else(|error| panic!("{error}: {text}"));
        let checks = report["checks"].as_array().unwrap();
        assert_eq!(checks.len(), 23, "{text}");
        let word = |check: &Value, field: &str| {
            let word = check[field].as_str().filter(|word| !word.is_empty());
            word.unwrap_or_else(|| panic!("{field} of {check}")).to_owned()
        };
        for check in checks {
            ["evidence", "why", "fix"].iter().for_each(|field| drop(word(check, field)));
        }
        let found = checks.iter().map(|check| (word(check, "id"), word(check, "result")));
        let found: Vec<_> = found.filter(|(_, result)| result != "pass" && result != "skip").collect();
        let has_failed = found.iter().any(|(_, result)| result == "fail");
        assert_eq!(success, !has_failed, "the exit status: {text}");
        found
    }
}

/// Puts a file in the place of another one, for a command alone.
macro_rules! instead_of {
    ($place:expr, $with:expr) => {
        &["unshare", "-m", "sh", "-c", concat!("mount --bind ", $with, " ", $place, " && exec \"$@\""), "sh"]
    };
}

/// Has a command see a kernel in FIPS mode. Not every one has it: its variables are in the place of the kernel's own.
const IN_FIPS_MODE: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -t tmpfs none /mnt && mkdir /mnt/sys && mount --bind /proc/sys /mnt/sys && mount -t tmpfs none /proc/sys && \
        for part in net kernel; do mkdir /proc/sys/$part && mount --bind /mnt/sys/$part /proc/sys/$part; done && \
        mkdir /proc/sys/crypto && echo 1 >/proc/sys/crypto/fips_enabled && exec \"$@\"",
    "sh",
];

/// Breaks the node by an act that leaves nothing to be kept.
macro_rules! after {
    ($id:expr, $result:expr, |$host:ident| $harm:expr) => {
        Case {
            id: $id,
            result: $result,
            harm: |$host| {
                $harm;
                None
            },
            wrapper: &[],
        }
    };
}

/// One way to break a node.
struct Case {
    id: &'static str,
    result: &'static str,
    /// What is done to the node; what is returned is kept until the checks have run.
    harm: fn(&Host) -> Option<UdpSocket>,
    /// What the checks are run by.
    wrapper: &'static [&'static str],
}

const CASES: &[Case] = &[
    by("capability", "fail", &["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]),
    by("tun", "fail", instead_of!("/dev/net/tun", "/dev/null")),
    by("tun", "warn", &["env", "ADIT_FAULT=MultiQueue=22"]),
    by("nftables", "fail", &["env", "ADIT_FAULT=Netfilter=93"]),
    Case {
        id: "kernel-wireguard",
        result: "fail",
        harm: |host| {
            host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {backend: Kernel}\n");
            None
        },
        wrapper: &["env", "ADIT_FAULT=Wireguard=95"],
    },
    after!("kernel-wireguard", "fail", |host| {
        host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {backend: Kernel}\n");
        ip(host, "link add adit0 mtu 1400 type bridge");
    }),
    Case {
        id: "udp-port",
        result: "fail",
        harm: |host| Some(host.namespace.enter(|| UdpSocket::bind("10.9.0.1:51820").unwrap())),
        wrapper: &[],
    },
    Case {
        id: "udp-port",
        result: "fail",
        harm: |host| Some(host.namespace.enter(|| UdpSocket::bind("[::]:51820").unwrap())),
        wrapper: &[],
    },
    after!("rp-filter", "fail", |host| host.namespace.sysctl("net/ipv4/conf/all/rp_filter", "1")),
    after!("rp-filter", "fail", |host| host.namespace.sysctl("net/ipv4/conf/default/rp_filter", "1")),
    after!("rp-filter", "fail", |host| encrypt_hosts(host, "0")),
    after!("rp-filter", "warn", |host| encrypt_hosts(host, "1")),
    after!("linkdown-routes", "fail", |host| {
        host.namespace.sysctl("net/ipv4/conf/default/ignore_routes_with_linkdown", "1");
    }),
    after!("linkdown-routes", "fail", |host| {
        host.namespace.sysctl("net/ipv6/conf/default/ignore_routes_with_linkdown", "1");
    }),
    after!("linkdown-routes", "warn", |host| {
        host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Strict, clusterCIDRs: [10.244.0.0/16]}\n");
        host.namespace.sysctl("net/ipv6/conf/all/ignore_routes_with_linkdown", "1");
    }),
    Case {
        id: "ipv6",
        result: "warn",
        harm: |host| {
            host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {clusterCIDRs: [10.244.0.0/16, \"fd00:244::/48\"]}\n");
            None
        },
        wrapper: &["env", "ADIT_FAULT=SocketV6=97"],
    },
    after!("catch-all", "warn", |host| {
        host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Strict}\n");
    }),
    after!("rule-priority", "fail", |host| ip(host, "rule add from 10.0.0.0/8 lookup 100 priority 99")),
    after!("rule-priority", "fail", |host| ip(host, "-6 rule add lookup 100 priority 50")),
    after!("routing-table", "fail", |host| ip(host, "route add 10.1.0.0/16 dev eth0 table 8365")),
    after!("routing-table", "fail", |host| ip(host, "rule add from 10.0.0.0/8 lookup 8365 priority 200")),
    after!("mark", "fail", |host| ip(host, "rule add fwmark 0x2000/0x2000 lookup 100 priority 200")),
    after!("mark", "fail", |host| {
        let spec = "{mode: Permissive, clusterCIDRs: [10.244.0.0/16], routing: {fwmark: 0x200}}";
        host.write("config", &format!("kind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"));
        ip(host, "link add cilium_host type bridge");
    }),
    after!("input-policy", "warn", |host| {
        host.namespace.sh("nft add table inet other");
        host.namespace
            .run("nft", &["add chain inet other in { type filter hook input priority 0; policy drop; }"]);
        host.namespace.sh("nft add rule inet other in ct state established accept");
    }),
    after!("double-encryption", "warn", |host| {
        ip(host, "link add cilium_wg0 type bridge");
        ip(host, "link set cilium_wg0 up");
    }),
    after!("double-encryption", "warn", |host| {
        ip(host, "tuntap add wg7 mode tun");
        ip(host, "link set wg7 up");
        fs::write(host.sockets.path().join("wg7.sock"), "").unwrap();
    }),
    after!("clock", "fail", |host| {
        let file = fs::File::options().append(true).open(host.state.path().join("private.key")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + realtime() + Duration::from_secs(3600)).unwrap();
    }),
    after!("key-file", "fail", |host| chmod(&host.state.path().join("private.key"), 0o640)),
    after!("key-file", "fail", |host| chmod(host.state.path(), 0o770)),
    after!("key-file", "fail", |host| {
        let state = host.state.path();
        fs::rename(state.join("private.key"), state.join("snapshot.json")).unwrap();
    }),
    after!("cluster-prefixes", "fail", |host| ip(host, "addr add 10.244.7.1/24 dev eth0")),
    after!("cluster-prefixes", "fail", |host| ip(host, "addr add 10.200.0.1/8 dev eth0")),
    after!("cluster-prefixes", "warn", |host| ip(host, "route add 10.244.7.0/24 via 10.9.0.2")),
    by("fips", "warn", IN_FIPS_MODE),
    after!("forwarding", "fail", |host| host.namespace.sysctl("net/ipv4/ip_forward", "0")),
    by(
        "conntrack",
        "warn",
        instead_of!("/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ),
    after!("path-mtu", "warn", |host| ip(host, "link set eth0 mtu 1479")),
    after!("path-mtu", "fail", |host| ip(host, "route del 10.9.0.0/24 dev eth0")),
];

const fn by(id: &'static str, result: &'static str, wrapper: &'static [&'static str]) -> Case {
    Case { id, result, harm: |_| None, wrapper }
}

fn ip(host: &Host, line: &str) {
    host.namespace.ip(line);
}

/// Has what is between nodes encrypted, on a link whose reverse path filter is strict; `mark` is what marks count for there.
fn encrypt_hosts(host: &Host, mark: &str) {
    let spec = "{mode: Permissive, clusterCIDRs: [10.244.0.0/16], hostTraffic: Encrypt}";
    host.write("config", &format!("kind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"));
    host.namespace.sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    host.namespace.sysctl("net/ipv4/conf/eth0/src_valid_mark", mark);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_healthy_node_passes_every_check() {
    need!("ip", "nft", "setpriv");
    let host = Host::new();
    // What a node has by right: its own pods' network, another CNI's routes to those of others, room for the datagrams.
    host.namespace.ip("addr add 10.244.1.1/24 dev eth0");
    host.namespace.ip("route add 10.244.2.0/24 via 10.9.0.2");
    host.namespace.ip("route add 10.244.9.7/32 dev eth0");
    host.namespace.ip("route add 10.244.8.64/26 via 10.9.0.2 proto bird");
    host.namespace.ip("route add blackhole 10.244.1.64/26");
    // And ways to more than the pods.
    host.namespace.ip("route add 10.0.0.0/8 via 10.9.0.2");
    host.namespace.ip("route add default via 10.9.0.2");
    host.namespace.ip("link set eth0 mtu 1480");
    assert_eq!(host.check(&[]), []);
    // For people.
    let args = host.args();
    let args: Vec<_> = ["preflight"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let table = host.namespace.run(env!("CARGO_BIN_EXE_adit"), &args);
    assert_eq!(table.lines().filter(|line| line.starts_with("pass  ")).count(), 21, "{table}");
}

#[test]
fn each_check_fails_alone_on_a_node_that_is_broken_in_just_that_way() {
    need!("ip", "nft", "setpriv", "unshare", "mount");
    for (at, case) in CASES.iter().enumerate() {
        let host = Host::new();
        let kept = (case.harm)(&host);
        let expected = [(case.id.to_owned(), case.result.to_owned())];
        assert_eq!(host.check(case.wrapper), expected, "case {at}");
        drop(kept);
    }
}

/// What other nodes answer, of three that have tunnels.
#[test]
fn nodes_that_do_not_answer_and_ways_that_are_narrow_are_found_and_nothing_else() {
    need!("ip", "wg", "nft", "ping");
    let mut mesh = Mesh::new(3);
    mesh.start(Program::Adit);
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    first.wait_for_pod_of(third);
    // Agents ask others of themselves, and whoever is heard from answers.
    mesh.nodes.iter_mut().for_each(|node| drop(node.agent.take()));
    let [first, second, _] = &mesh.nodes[..] else { panic!("three nodes") };
    let [state, objects] = [&first.state, &mesh.objects].map(|directory| directory.path().to_str().unwrap());
    let place = ["--node-name", "node1", "--state", state, "--objects", objects, "--interface"];
    let run = |more: &[&str]| {
        let args = [&["preflight", "-o", "json"], &place[..], &[&first.interface], more].concat();
        first.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &args).1
    };
    // Result and evidence of what may be otherwise, and the results of all.
    let check = |more: &[&str]| {
        let text = run(more);
        let end = text.rfind('}').unwrap_or_else(|| panic!("{text}"));
        let report: Value = serde_json::from_str(&text[..=end]).unwrap();
        let checks = report["checks"].as_array().unwrap().iter();
        let words =
            |check: &Value| ["id", "result", "evidence"].map(|word| check[word].as_str().unwrap().to_owned());
        checks.map(words).collect::<Vec<_>>()
    };
    let healthy = check(&[]);
    let otherwise = |more: &[&str]| {
        let found = check(more).into_iter().zip(&healthy).filter(|(now, before)| now[1] != before[1]);
        found.map(|(now, _)| now.join(" ")).collect::<Vec<_>>()
    };
    let of = |id: &str| healthy.iter().find(|check| check[0] == id).unwrap();
    assert_eq!(of("peers")[1..], ["pass", "2 nodes answer through the tunnel"]);
    assert_eq!(of("path-mtu")[1], "pass");
    let block = |rule: &str| {
        second.namespace.sh("nft add table inet test");
        second.namespace.run("nft", &["add chain inet test in { type filter hook input priority -300; }"]);
        second.namespace.sh(&format!("nft add rule inet test in {rule} drop"));
    };
    let open = || drop(second.namespace.sh("nft delete table inet test"));

    block("udp dport 51820");
    let silent = ["peers fail no answer through the tunnel from node2".to_owned()];
    assert_eq!(otherwise(&[]), silent);
    assert_eq!(otherwise(&["--peer", "node2"]), silent);
    assert_eq!(otherwise(&["--peer", "node3"]), [""; 0]);
    assert_eq!(otherwise(&["--no-probe"]), ["peers skip nobody was asked"]);
    assert!(run(&["--peer", "node9"]).contains("node9: no other node"));
    open();
    block("ip length > 1400 icmp type echo-request");
    assert_eq!(otherwise(&[]), ["path-mtu warn the way to node2 takes 1400 bytes, not 1500"]);
    open();
    block("icmp type echo-request");
    let unknown = "path-mtu warn node2 answers no echo request, and what the way takes is not known";
    assert_eq!(otherwise(&[]), [unknown]);
    open();
    assert_eq!(otherwise(&[]), [""; 0]);
}

/// An agent asks by itself once its peers are programmed, and goes on meanwhile.
#[test]
fn an_agent_says_which_peers_do_not_answer_and_to_which_the_way_is_narrow() {
    need!("ip", "wg", "nft", "ping");
    let mut mesh = Mesh::new(3);
    mesh.start(Program::Adit);
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    first.wait_for_pod_of(second);
    first.wait_for_pod_of(third);
    // Whoever is heard from answers: nobody is to speak of himself.
    drop((second.agent.take(), third.agent.take()));
    let start_anew = |node: &mut Node| {
        drop(node.agent.take());
        node.start_agent_in(&[("ADIT_OBJECTS", &objects), ("ADIT_LOG_LEVEL", "debug")]);
    };
    let said = |node: &Node, words: &str| node.agent.as_ref().unwrap().output().contains(words);

    start_anew(first);
    wait_until("what peers answer", SOON * 2, || said(first, "2 nodes answer through the tunnel"));
    for words in ["no answer through the tunnel", "the way to node", "no echo request"] {
        assert!(!said(first, words), "{words}: {}", first.agent.as_ref().unwrap().output());
    }

    for (node, rule) in [(&*second, "udp dport 51820"), (&*third, "ip length > 1400 icmp type echo-request")]
    {
        node.namespace.sh("nft add table inet test");
        node.namespace.run("nft", &["add chain inet test in { type filter hook input priority -300; }"]);
        node.namespace.sh(&format!("nft add rule inet test in {rule} drop"));
    }
    start_anew(first);
    wait_until("the question", SOON, || said(first, "peers are asked"));
    let more = "10.77.0.0/16";
    mesh.publish(&mesh.nodes[2], &mesh.nodes[2].key, &[more]);
    let [first, second, third] = &mesh.nodes[..] else { panic!("three nodes") };
    first.wait_until_peers_are(&[second.as_peer(&[]), third.as_peer(&[more])]);
    let silent = "no answer through the tunnel from node2";
    assert!(!said(first, silent), "the loop has waited for the answers");
    wait_until("the silent peer", SOON * 2, || said(first, silent));
    assert!(said(first, "the way to node3 takes 1400 bytes, not 1500"));
    let output = first.agent.as_ref().unwrap().output();
    assert_eq!(output.matches("no answer through the tunnel").count(), 1, "{output}");
    assert!(!output.contains("from node2, ") && !output.contains("the way to node2"), "{output}");
}

#[test]
fn an_agent_says_once_what_its_node_cannot_do() {
    need!("ip", "nft", "setpriv");
    let host = Host::new();
    host.namespace.sysctl("net/ipv4/ip_forward", "0");
    let args = host.args();
    let args: Vec<_> = ["agent"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let agent = host.namespace.spawn(env!("CARGO_BIN_EXE_adit"), &args);
    let told = || agent.output().matches("net/ipv4/ip_forward").count();
    wait_until("a word about forwarding", SOON, || told() > 0);
    host.write("config", "kind: TunnelConfig\nmetadata: {name: default}\nspec: {mtu: Wide}\n");
    wait_until("the change", SOON, || agent.output().contains("spec.mtu"));
    assert_eq!(told(), 1, "{}", agent.output());
}

#[test]
fn an_agent_checks_its_node_before_it_has_read_anything_and_again_after() {
    need!("ip", "nft", "setpriv");
    let host = Host::new();
    let manners = Manners { page: 100, bookmarks: SOON };
    let double = ApiDouble::start(&host.neighbour, "10.9.0.2", manners);
    let kubeconfig = host.objects.path().join("kubeconfig");
    fs::write(&kubeconfig, double.kubeconfig()).unwrap();
    double.put(Kind::Config, json!({ "metadata": { "name": "default" }, "spec": { "listenPort": 7777 } }));
    host.namespace.sysctl("net/ipv4/ip_forward", "0");
    let _holder = host.namespace.enter(|| UdpSocket::bind("10.9.0.1:7777").unwrap());
    // Nobody is there to be asked.
    ip(&host, "link set eth0 down");
    let path = |directory: &Directory| directory.path().to_str().unwrap().to_owned();
    let variables = [
        ("NODE_NAME", "node1"),
        ("ADIT_STATE", &path(&host.state)),
        ("ADIT_RUN", &path(&host.state)),
        ("ADIT_SOCKETS", &path(&host.sockets)),
        ("KUBECONFIG", kubeconfig.to_str().unwrap()),
    ];
    let agent = host.namespace.spawn_with(env!("CARGO_BIN_EXE_adit"), &["agent"], &variables);
    for words in ["net/ipv4/ip_forward", "the API server cannot be asked"] {
        wait_until(words, SOON, || agent.output().contains(words));
    }
    assert!(!agent.output().contains("port 7777 is in use"), "nobody knows of it");
    ip(&host, "link set eth0 up");
    wait_until("the port of the objects", SOON * 2, || agent.output().contains("port 7777 is in use"));
    assert_eq!(agent.output().matches("net/ipv4/ip_forward").count(), 1, "{}", agent.output());
}
