//! Two namespaces, a veth between them, and a tunnel over it.
//!
//! ```text
//! a  10.78.0.1, fd78::1 on the tunnel         b  10.78.0.2, fd78::2
//!    10.77.0.1, fd77::1 on veth ───────────────  10.77.0.2, fd77::2
//! ```

use std::fs;
use std::ops::Sub;

use crate::programs::Implementation;
use crate::support::tunnel::{Key, Tunnel};
use crate::support::{Namespace, SOON, ifname, wait_until};

/// The UDP port of every daemon.
pub(crate) const PORT: u16 = 51_820;
/// The MTU of the tunnels: what WireGuard leaves of 1500 over IPv6.
const MTU: u16 = 1_420;
/// The addresses of both ends on the veth.
pub(crate) const OUTER: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const OUTER_V6: [&str; 2] = ["fd77::1", "fd77::2"];
/// Their addresses on the tunnel.
const INNER: [&str; 2] = ["10.78.0.1", "10.78.0.2"];
const INNER_V6: [&str; 2] = ["fd78::1", "fd78::2"];
/// Their addresses on a VXLAN inside the tunnel.
const OVERLAY: [&str; 2] = ["10.79.0.1", "10.79.0.2"];
/// Clock ticks a second in `/proc` (`USER_HZ`): 100 on every architecture but Alpha.
const TICKS_PER_SECOND: f64 = 100.0;

/// Both ends, joined. Everything is gone when this is dropped.
pub(crate) struct Lab {
    ends: [End; 2],
    /// The round trip of the very first ping, in milliseconds: with a handshake where there is one.
    pub(crate) first_ping_ms: Option<f64>,
}

/// One end. The daemon goes before its namespace.
struct End {
    tunnel: Option<Tunnel>,
    namespace: Namespace,
}

impl Lab {
    /// Sets everything up and passes the first packets.
    pub(crate) fn new(implementation: &Implementation) -> Self {
        let namespaces = [Namespace::new(), Namespace::new()];
        for namespace in &namespaces {
            // A connection begins with the namespace's congestion control, is given cubic a moment later, and would keep the pacing of the
            // former (`bbr_init` asks for it, nothing takes it back). Reno has none, and every kernel has reno.
            namespace.sysctl("net/ipv4/tcp_congestion_control", "reno");
        }
        let outer = |side: usize| [format!("{}/24", OUTER[side]), format!("{}/64", OUTER_V6[side])];
        let (a, b) = (outer(0), outer(1));
        namespaces[0].join("veth", &[&a[0], &a[1]], &namespaces[1], "veth", &[&b[0], &b[1]]);
        let mut side = 0;
        let ends = namespaces.map(|namespace| {
            let tunnel = start(implementation, &namespace, side);
            side += 1;
            End { tunnel, namespace }
        });
        let mut lab = Self { ends, first_ping_ms: None };
        if implementation.is_wireguard() {
            lab.introduce();
        }
        let (answered, output) = lab.a().try_run("ping", &["-n", "-c", "1", "-W", "5", lab.inner(1)]);
        lab.first_ping_ms = crate::measure::ping_times(&output).first().copied().filter(|_| answered);
        lab.wait_for_answer();
        lab
    }

    /// Waits until the far end answers.
    pub(crate) fn wait_for_answer(&self) {
        wait_until("an answer through the tunnel", SOON, || self.a().pings(self.inner(1)));
    }

    /// Gives both ends their keys and each other.
    fn introduce(&self) {
        for (side, end) in self.ends.iter().enumerate() {
            let tunnel = end.tunnel.as_ref().expect("a WireGuard has a tunnel");
            let peer = self.ends[1 - side].tunnel.as_ref().expect("so has the other").key.public();
            tunnel.set_with_input(&end.namespace, &["private-key", "/dev/stdin"], &tunnel.key.secret());
            tunnel.set(&end.namespace, &format!("listen-port {PORT} peer {peer} {}", live_peer(side)));
        }
    }

    /// Returns the namespace that sends.
    pub(crate) fn a(&self) -> &Namespace {
        &self.ends[0].namespace
    }

    /// Returns the namespace that receives.
    pub(crate) fn b(&self) -> &Namespace {
        &self.ends[1].namespace
    }

    /// Tells whether there is a tunnel, and not the veth alone.
    pub(crate) fn has_tunnel(&self) -> bool {
        self.ends[0].tunnel.is_some()
    }

    /// Returns the sending end's tunnel, and the public key of the other.
    pub(crate) fn tunnel(&self) -> (&Tunnel, String) {
        let [a, b] = self.ends.each_ref().map(|end| end.tunnel.as_ref().expect("there is a tunnel"));
        (a, b.key.public())
    }

    /// Returns the key of the receiving end.
    pub(crate) fn receiver_key(&self) -> &Key {
        &self.ends[1].tunnel.as_ref().expect("there is a tunnel").key
    }

    /// Returns the inner address of an end: that of the veth where there is no tunnel.
    pub(crate) fn inner(&self, side: usize) -> &'static str {
        if self.ends[side].tunnel.is_some() { INNER[side] } else { OUTER[side] }
    }

    /// Puts a VXLAN into the tunnel and returns the far end's address on it.
    pub(crate) fn overlay(&self) -> &'static str {
        for (side, end) in self.ends.iter().enumerate() {
            let device = end.tunnel.as_ref().map_or("veth", |tunnel| &tunnel.name);
            let (local, remote) = (self.inner(side), self.inner(1 - side));
            end.namespace.ip(&format!(
                "link add overlay type vxlan id 7 local {local} remote {remote} dstport 4789 dev {device}"
            ));
            end.namespace.ip(&format!("addr add {}/24 dev overlay", OVERLAY[side]));
            end.namespace.ip("link set overlay up");
        }
        wait_until("an answer through the overlay", SOON, || self.a().pings(OVERLAY[1]));
        OVERLAY[1]
    }

    /// Turns the veth's offloads off, so that every datagram passes on its own as on a real wire.
    pub(crate) fn without_offloads(&self) {
        for end in &self.ends {
            end.namespace.sh("ethtool -K veth gso off gro off tso off tx-udp-segmentation off");
        }
    }

    /// Returns the processor time used so far.
    ///
    /// # Panics
    /// If a daemon has ended.
    pub(crate) fn usage(&self) -> Usage {
        let daemons = self.ends.each_ref().map(|end| end.tunnel.as_ref().map_or(0.0, daemon_seconds));
        Usage { daemons, machine: machine_seconds() }
    }

    /// Returns the daemons' memory; the greater of both ends.
    pub(crate) fn memory(&self) -> Memory {
        let of = |field| {
            let ends = self.ends.iter().filter_map(|end| Some(status_mb(end.tunnel.as_ref()?, field)));
            ends.reduce(f64::max).unwrap_or(0.0)
        };
        Memory { resident_mb: of("VmRSS:"), peak_mb: of("VmHWM:") }
    }
}

/// Starts a daemon and gives its device addresses and MTU.
fn start(implementation: &Implementation, namespace: &Namespace, side: usize) -> Option<Tunnel> {
    let name = ifname();
    let mut process = implementation.start(namespace, side, &name, OUTER)?;
    wait_until("a tunnel", SOON, || {
        assert!(process.ended().is_none(), "{} ended: {}", implementation.name, process.output());
        namespace.succeeds(&format!("ip link show {name}"))
            && (!implementation.is_wireguard() || namespace.succeeds(&format!("wg show {name}")))
    });
    namespace.ip(&format!("link set {name} mtu {MTU}"));
    namespace.ip(&format!("addr add {}/24 dev {name}", INNER[side]));
    namespace.ip(&format!("addr add {}/64 dev {name} nodad", INNER_V6[side]));
    namespace.ip(&format!("link set {name} up"));
    Some(Tunnel { name, key: Key::generate(), process })
}

/// Returns what `wg set` is told of the other end.
fn live_peer(side: usize) -> String {
    format!("endpoint {}:{PORT} allowed-ips {INNER_NETS}", OUTER[1 - side])
}

/// The prefixes of the tunnel's own network.
const INNER_NETS: &str = "10.78.0.0/24,fd78::/64";

/// Returns what `wg setconf` of end 0 is told of itself and of the other end.
pub(crate) fn live_config(key: &Key, peer: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {peer}\nEndpoint = {}:{PORT}\nAllowedIPs = {INNER_NETS}\n",
        key.secret(),
        OUTER[1]
    )
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Of the daemon of each end.
    pub(crate) daemons: [f64; 2],
    /// Of everything on the machine.
    pub(crate) machine: f64,
}

impl Usage {
    /// Returns the time of both daemons.
    pub(crate) fn both(&self) -> f64 {
        self.daemons.iter().sum()
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            daemons: [0, 1].map(|side| self.daemons[side] - before.daemons[side]),
            machine: self.machine - before.machine,
        }
    }
}

/// Memory in units of 10^6 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// `VmRSS`.
    pub(crate) resident_mb: f64,
    /// `VmHWM`.
    pub(crate) peak_mb: f64,
}

/// User and system time of a daemon: fields 14 and 15 of `/proc/PID/stat` (proc_pid_stat(5)).
fn daemon_seconds(tunnel: &Tunnel) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", tunnel.process.id())).expect("the daemon runs");
    // The second field, the name, ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    let mut fields = fields.split_whitespace();
    let state = fields.next().expect("a state");
    assert!(state != "Z", "the daemon ended: {}", tunnel.process.output());
    fields.skip(10).take(2).map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>()
        / TICKS_PER_SECOND
}

/// Time that the machine was busy with anything (proc_stat(5)).
fn machine_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("/proc is there");
    let line = stat.lines().next().expect("the sum of all cores comes first");
    let ticks = line.split_whitespace().skip(1).map(|ticks| ticks.parse::<f64>().expect("a number"));
    // user nice system idle iowait irq softirq; what follows is other machines' or counted already.
    let busy = ticks.take(7).enumerate().filter(|(field, _)| ![3, 4].contains(field));
    busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// A field of `/proc/PID/status`, which is in units of 1024 bytes.
pub(crate) fn status_mb(tunnel: &Tunnel, field: &str) -> f64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", tunnel.process.id())).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0 / 1e6
}
