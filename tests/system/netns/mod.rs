//! The kernel's own system test of WireGuard (`tools/testing/selftests/wireguard/netns.sh`), scenario by scenario, on real TUN devices.
//!
//! ```text
//! ns1  192.168.241.1, fd00::1 on tunnel 1 ┐
//!                                         ├ ns0: both programs and their UDP sockets, on its loopback
//! ns2  192.168.241.2, fd00::2 on tunnel 2 ┘
//! ```

mod life;
mod outer;
mod settings;
mod tunnel;

use crate::support::tunnel::{Program, Tunnel, preshared_key};
use crate::support::{Namespace, SOON, need, wait_until};

/// Two namespaces whose tunnels were born in a third.
pub(crate) struct Pair {
    pub(crate) ns0: Namespace,
    pub(crate) ns1: Namespace,
    pub(crate) ns2: Namespace,
    pub(crate) t1: Tunnel,
    pub(crate) t2: Tunnel,
    psk: String,
}

const PORT1: u16 = 1;
pub(crate) const PORT2: u16 = 2;

/// How a tunnel of a pair is started, beyond what every one is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Start<'a> {
    pub(crate) args: &'a [&'a str],
    pub(crate) env: &'a [(&'a str, &'a str)],
}

impl Pair {
    fn new() -> Self {
        Self::started([Start::default(); 2])
    }

    /// A pair whose tunnels are started so.
    pub(crate) fn started([first, second]: [Start<'_>; 2]) -> Self {
        let (ns0, ns1, ns2) = (Namespace::new(), Namespace::new(), Namespace::new());
        let t1 = Tunnel::start_with(Program::Adit, &ns0, first.args, first.env);
        let t2 = Tunnel::start_with(Program::Adit, &ns0, second.args, second.env);
        t1.move_to(&ns0, &ns1);
        t2.move_to(&ns0, &ns2);
        let this = Self { ns0, ns1, ns2, t1, t2, psk: preshared_key() };
        this.configure();
        this
    }

    /// Keys, ports, allowed IPs, addresses; no endpoints.
    fn configure(&self) {
        let Self { ns1, ns2, t1, t2, .. } = self;
        for (ns, own, other, host, other_host, port) in
            [(ns1, t1, t2, 1, 2, PORT1), (ns2, t2, t1, 2, 1, PORT2)]
        {
            ns.ip(&format!("addr add 192.168.241.{host}/24 dev {}", own.name));
            ns.ip(&format!("addr add fd00::{host}/112 dev {} nodad", own.name));
            let peer = other.key.public();
            let port = port.to_string();
            own.set_with_input(
                ns,
                &[
                    "listen-port",
                    &port,
                    "peer",
                    &peer,
                    "preshared-key",
                    "/dev/stdin",
                    "allowed-ips",
                    &format!("192.168.241.{other_host}/32,fd00::{other_host}/128"),
                ],
                &self.psk,
            );
            own.up(ns);
        }
    }

    pub(crate) fn set_endpoints(&self, host: &str) {
        self.t1.set(&self.ns1, &format!("peer {} endpoint {host}:{PORT2}", self.t2.key.public()));
        self.t2.set(&self.ns2, &format!("peer {} endpoint {host}:{PORT1}", self.t1.key.public()));
    }

    /// Echo requests and bulk traffic both ways over both families.
    fn exercise(&self) {
        self.ns1.sh("ping -n -c 10 -f -W 4 192.168.241.2");
        self.ns2.sh("ping -n -c 10 -f -W 4 192.168.241.1");
        self.ns1.sh("ping -n -c 10 -f -W 4 fd00::2");
        self.ns2.sh("ping -n -c 10 -f -W 4 fd00::1");
        self.iperf("192.168.241.2", "");
        self.iperf("fd00::2", "");
        self.iperf("192.168.241.2", "-u -b 200M");
        self.iperf("fd00::2", "-u -b 200M -R");
    }

    /// Sends for a second from ns1 to a server on `addr` in ns2.
    fn iperf(&self, addr: &str, options: &str) {
        let server = self.ns2.spawn("iperf3", &["-s", "-1", "-B", addr]);
        wait_until("the iperf3 server", SOON, || self.ns2.sh("ss -Hltn").contains(":5201"));
        self.ns1.sh(&format!("iperf3 -Z -t 1 -n 0 -c {addr} {options}"));
        drop(server);
    }
}

#[test]
fn scenario_1_every_family_inside_every_family() {
    need!("ip", "wg", "ping", "iperf3");
    let pair = Pair::new();
    for host in ["127.0.0.1", "[::1]"] {
        pair.set_endpoints(host);
        pair.exercise();
    }
}
