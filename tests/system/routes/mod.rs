//! What the control loop programs: routes, rules and firewall of two nodes, with real tunnels between them and pods behind them.
//!
//! ```text
//! pod a 10.244.1.2 ─ node a 192.168.1.1 ─ fabric ─ 192.168.2.1 node b ─ 10.244.2.2 pod b
//!       fd10:0:0:1::2       fd20:1::1               fd20:2::1           fd10:0:0:2::2
//! ```
//!
//! The fabric knows the way to the pods: what leaves a node in clear arrives, and is seen on its way.

mod cleartext;
mod firewall;
mod healing;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use adit::config::Prefix;
use adit::control::firewall::Firewall;
use adit::control::heal::{Desired, Healer};
use adit::control::link::Link;
use adit::control::plan::{Entry, Kind, Routes};
use adit::sys::netlink::Netlink;
use adit::sys::packet::Capture;
use rustix::process::Signal;

use crate::support::puppet::udp;
use crate::support::tunnel::{Key, Program, Tunnel};
use crate::support::{Namespace, SOON, need, wait_until};

const PORT: u16 = 51820;
/// Longer than any test.
const RESYNC: Duration = Duration::from_secs(600);
const FWMARK: u32 = 0xad17;
const TABLE: u32 = 51_821;
const PRIORITY: u32 = 99;

/// What pods send, and nothing else does.
const CANARY: &[u8] = b"a canary sings only where the air is clear";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Permissive,
    Strict,
}

struct Node {
    number: u8,
    namespace: Namespace,
    pod: Namespace,
    /// None while there is no data plane.
    running: Option<Tunnel>,
    /// The interface's name and the key, which stay.
    name: String,
    key: Key,
    healer: Healer,
    /// The pod's sockets, by family.
    sockets: [UdpSocket; 2],
}

impl Node {
    fn new(number: u8, fabric: &Namespace) -> Self {
        let (namespace, pod) = (Namespace::new(), Namespace::new());
        let (own, gateway) = (format!("192.168.{number}.1"), format!("192.168.{number}.254"));
        let (own6, gateway6) = (format!("fd20:{number}::1"), format!("fd20:{number}::254"));
        let (node, wire) = ([format!("{own}/24"), format!("{own6}/64")], format!("node{number}"));
        let outside = [format!("{gateway}/24"), format!("{gateway6}/64")];
        let texts = |pair: &[String; 2]| [pair[0].clone(), pair[1].clone()];
        join(&namespace, "fabric", &texts(&node), fabric, &wire, &texts(&outside));
        let pods = [format!("10.244.{number}.2/24"), format!("fd10:0:0:{number}::2/64")];
        let inner = [format!("10.244.{number}.1/24"), format!("fd10:0:0:{number}::1/64")];
        join(&namespace, "pod", &inner, &pod, "eth0", &pods);
        forward(&namespace);
        namespace.ip(&format!("route add default via {gateway}"));
        namespace.ip(&format!("-6 route add default via {gateway6}"));
        pod.ip(&format!("route add default via 10.244.{number}.1"));
        pod.ip(&format!("-6 route add default via fd10:0:0:{number}::1"));
        fabric.ip(&format!("route add 10.244.{number}.0/24 via {own}"));
        fabric.ip(&format!("-6 route add fd10:0:0:{number}::/64 via {own6}"));
        let tunnel = Tunnel::start(Program::Adit, &namespace);
        let healer = namespace.enter(|| Healer::start(RESYNC).unwrap());
        let sockets = [false, true].map(|is_ipv6| {
            let socket = udp(&pod, &pod_addr(number, is_ipv6).to_string());
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket
        });
        let (name, key) = (tunnel.name.clone(), tunnel.key.clone());
        Self { number, namespace, pod, running: Some(tunnel), name, key, healer, sockets }
    }

    /// Returns what this node's kernel should do.
    fn plan(&self, mode: Mode) -> Desired {
        let other = 3 - self.number;
        let mut entries = vec![
            entry(&format!("10.244.{}.0/24", self.number), Kind::Throw),
            entry(&format!("fd10:0:0:{}::/64", self.number), Kind::Throw),
            entry(&format!("10.244.{other}.0/24"), Kind::Unicast),
            entry(&format!("fd10:0:0:{other}::/64"), Kind::Unicast),
        ];
        if mode == Mode::Strict {
            entries.extend([entry("10.244.0.0/16", Kind::Blackhole), entry("fd10::/48", Kind::Blackhole)]);
        }
        let interface = self.name.clone();
        let addresses = [format!("10.244.{}.1", self.number), format!("fd10:0:0:{}::1", self.number)];
        let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
        let link = Some(Link { interface: interface.clone(), mtu: Some(1420), addresses });
        let routes = Routes {
            table: TABLE,
            fwmark: FWMARK,
            rule_priority: PRIORITY,
            interface,
            entries,
            ..Routes::default()
        };
        let firewall = Some(Firewall::of(&routes, PORT, mode == Mode::Strict));
        Desired { link, routes, firewall, leaves_firewall: false }
    }

    fn introduce(&self, other: &Key) {
        let peer = 3 - self.number;
        let public = other.public();
        let tunnel = self.running.as_ref().expect("a data plane");
        tunnel.set(
            &self.namespace,
            &format!(
                "listen-port {PORT} fwmark {FWMARK} peer {public} endpoint 192.168.{peer}.1:{PORT} \
                 allowed-ips 10.244.{peer}.0/24,fd10:0:0:{peer}::/64"
            ),
        );
    }

    /// Kills the data plane; its interface goes with it.
    fn kill_tunnel(&mut self) {
        let mut tunnel = self.running.take().expect("a data plane");
        tunnel.process.signal(Signal::KILL);
        tunnel.process.wait(SOON);
        let name = &self.name;
        wait_until("no interface", SOON, || !self.namespace.succeeds(&format!("ip link show dev {name}")));
    }

    /// Starts the data plane again, with its key and peer.
    fn start_tunnel(&mut self, other: &Key) {
        let mut tunnel = Tunnel::start_on(Program::Adit, &self.namespace, self.name.clone(), &[], &[]);
        tunnel.key = self.key.clone();
        tunnel.set_key(&self.namespace);
        self.running = Some(tunnel);
        self.introduce(other);
    }

    /// Leaves the kernel as it is from now on: nobody mends what is done to it.
    fn stop_healing(&mut self) {
        // One that looks after an empty namespace.
        self.healer = Namespace::new().enter(|| Healer::start(RESYNC).unwrap());
    }
}

struct Lab {
    fabric: Namespace,
    a: Node,
    b: Node,
    /// What passes between node a and the fabric.
    capture: Capture,
}

impl Lab {
    /// Two nodes with a tunnel and nothing that leads into it.
    fn new() -> Self {
        let fabric = Namespace::new();
        forward(&fabric);
        let (a, b) = (Node::new(1, &fabric), Node::new(2, &fabric));
        a.introduce(&b.key);
        b.introduce(&a.key);
        let capture = fabric.enter(|| {
            let index = Netlink::open().unwrap().link("node1").unwrap().index;
            Capture::open(index).unwrap()
        });
        Self { fabric, a, b, capture }
    }

    /// The same with both nodes programmed, and pods that reach each other through the tunnel.
    fn programmed(mode: Mode) -> Self {
        let this = Self::new();
        for node in [&this.a, &this.b] {
            node.healer.set(node.plan(mode)).unwrap();
        }
        this.assert_encrypted("at first");
        this
    }

    /// Checks that pods reach each other both ways in both families, and nothing of it is seen on the fabric.
    #[track_caller]
    fn assert_encrypted(&self, when: &str) {
        self.clear_frames();
        for is_ipv6 in [false, true] {
            wait_until(&format!("pods that reach each other {when}"), SOON, || self.reaches(is_ipv6));
        }
        assert_eq!(self.clear_frames(), 0, "frames in clear {when}");
    }

    /// Sends from pod a to pod b and tells whether it arrives and is answered.
    fn reaches(&self, is_ipv6: bool) -> bool {
        let [here, there] = [&self.a, &self.b].map(|node| &node.sockets[usize::from(is_ipv6)]);
        let mut buffer = [0; 100];
        here.send_to(CANARY, pod_addr(2, is_ipv6)).is_ok()
            && there.recv_from(&mut buffer).is_ok()
            && there.send_to(CANARY, pod_addr(1, is_ipv6)).is_ok()
            && here.recv_from(&mut buffer).is_ok()
    }

    /// Sends from pod a to pod b, `times` in each family; what arrives is thrown away.
    fn sing(&self, times: usize) {
        for _ in 0..times {
            for is_ipv6 in [false, true] {
                // A route may be gone, or nobody there.
                let _ = self.a.sockets[usize::from(is_ipv6)].send_to(CANARY, pod_addr(2, is_ipv6));
            }
        }
    }

    /// Returns how many frames with the canary node a and the fabric have exchanged since the last call.
    fn clear_frames(&self) -> usize {
        self.clear_frames_with(CANARY)
    }

    /// The same with another needle.
    fn clear_frames_with(&self, needle: &[u8]) -> usize {
        // What was sent before this has passed before its answer.
        assert!(self.a.namespace.pings("192.168.1.254"));
        let mut frame = [0; 2048];
        let mut clear = 0;
        while let Ok(len) = self.capture.read(&mut frame) {
            clear += usize::from(frame[..len].windows(needle.len()).any(|window| window == needle));
        }
        assert_eq!(self.capture.take_lost().unwrap(), 0, "frames that were not looked at");
        clear
    }

    /// Counts the frames in clear while pod a sends.
    fn leaks(&self) -> usize {
        self.clear_frames();
        self.sing(20);
        self.clear_frames()
    }
}

fn join(
    one: &Namespace,
    name: &str,
    addrs: &[String; 2],
    other: &Namespace,
    there: &str,
    theirs: &[String; 2],
) {
    one.join(name, &[&addrs[0], &addrs[1]], other, there, &[&theirs[0], &theirs[1]]);
}

fn forward(namespace: &Namespace) {
    namespace.sysctl("net/ipv4/ip_forward", "1");
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1");
}

fn pod_addr(number: u8, is_ipv6: bool) -> SocketAddr {
    let addr =
        if is_ipv6 { format!("[fd10:0:0:{number}::2]:7000") } else { format!("10.244.{number}.2:7000") };
    addr.parse().unwrap()
}

/// Returns bytes as `ping -p` takes them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(prefix: &str, kind: Kind) -> Entry {
    let (addr, len) = prefix.split_once('/').unwrap();
    Entry { prefix: Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap(), kind }
}

#[test]
fn every_kind_of_route_leads_where_it_should() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    let Node { namespace, name, .. } = &lab.a;
    let way =
        |query: &str| namespace.try_run("ip", &format!("route get {query}").split(' ').collect::<Vec<_>>());
    for (remote, local, nobody) in
        [("10.244.2.2", "10.244.1.2", "10.244.77.1"), ("fd10:0:0:2::2", "fd10:0:0:1::2", "fd10:0:0:77::1")]
    {
        let (found, text) = way(remote);
        assert!(found && text.contains(&format!("dev {name} table {TABLE}")), "{text}");
        let (found, text) = way(local);
        assert!(found && text.contains("dev pod") && !text.contains("table"), "{text}");
        let (found, text) = way(nobody);
        assert!(!found, "{text}");
        // The tunnel's own packets.
        for addr in [remote, nobody] {
            let (found, text) = way(&format!("{addr} mark {FWMARK}"));
            assert!(found && text.contains("dev fabric"), "{text}");
        }
    }
    // What is not the cluster's goes as before.
    assert!(namespace.pings("192.168.2.1"));
    // The node itself reaches pods of the other one, through the tunnel by its tunnel address.
    lab.clear_frames();
    for addr in ["10.244.2.2", "fd10:0:0:2::2"] {
        wait_until(&format!("an answer from {addr}"), SOON, || {
            namespace.succeeds(&format!("ping -n -c 1 -W 1 -p {} {addr}", hex(&CANARY[..16])))
        });
    }
    assert_eq!(lab.clear_frames_with(&CANARY[..16]), 0);
    // Pods of one node reach their node, which is on nobody else's way.
    assert!(lab.a.pod.pings("10.244.1.1"));
}

/// Traffic of the nodes themselves is encrypted as well: the tunnel's endpoint lies inside a prefix that is routed into the tunnel.
#[test]
fn the_tunnels_own_packets_do_not_go_into_the_tunnel() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    for (node, other) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        let peer = other.number;
        let mut plan = node.plan(Mode::Strict);
        plan.routes.entries.push(entry(&format!("192.168.{peer}.1/32"), Kind::Unicast));
        plan.firewall = Some(Firewall::of(&plan.routes, PORT, true));
        let tunnel = node.running.as_ref().unwrap();
        let public = other.key.public();
        let allowed = format!("10.244.{peer}.0/24,fd10:0:0:{peer}::/64,192.168.{peer}.1/32");
        tunnel.set(&node.namespace, &format!("peer {public} allowed-ips {allowed}"));
        node.healer.set(plan).unwrap();
    }
    lab.assert_encrypted("with the nodes routed into the tunnel");
    let node_to_node = format!("ping -n -c 1 -W 1 -p {} 192.168.2.1", hex(&CANARY[..16]));
    wait_until("an answer from the other node", SOON, || lab.a.namespace.succeeds(&node_to_node));
    assert_eq!(lab.clear_frames_with(&CANARY[..16]), 0);
    // The control: without the mark they do.
    lab.a.running.as_ref().unwrap().set(&lab.a.namespace, "fwmark 0");
    assert!(!lab.reaches(false));
    assert_eq!(lab.clear_frames(), 0);
}
