//! Ours and the other userspace implementations: both roles, both families outside and inside, with and without a preshared key,
//! roaming, and renewals of the session in real time.
//!
//! ```text
//! left   ours, 10.2.0.1 and fd02::1 inside    10.1.0.1, fd01::1 ┐ veth
//! right  theirs, 10.2.0.2 and fd02::2 inside  10.1.0.2, fd01::2 ┘
//! ```
//!
//! Every combination has fresh instances of both programs: boringtun wedges when endpoints change, and wireguard-go
//! sends to a wrong IPv6 address after it has sent to an IPv4 one.

mod families;
mod many_peers;
mod rekey;
mod roaming;

use crate::support::tunnel::{Program, Tunnel, preshared_key};
use crate::support::{Namespace, Process, SOON, wait_until};

/// The family of the tunnel's own datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outside {
    V4,
    V6,
}

/// Who sends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initiator {
    Ours,
    Theirs,
}

/// One end of a tunnel.
struct End {
    namespace: Namespace,
    tunnel: Tunnel,
    /// The last part of its addresses, at first 1 or 2. Those inside are of the same end for good.
    host: u8,
    port: u16,
    inside: [String; 2],
}

impl End {
    fn new(namespace: Namespace, tunnel: Tunnel, host: u8) -> Self {
        let inside = [format!("10.2.0.{host}"), format!("fd02::{host}")];
        Self { namespace, tunnel, host, port: 1000 * u16::from(host), inside }
    }

    fn outside(&self, family: Outside) -> String {
        match family {
            Outside::V4 => format!("10.1.0.{}", self.host),
            Outside::V6 => format!("fd01::{}", self.host),
        }
    }

    /// Returns where it is, as `wg` writes it.
    fn at(&self, family: Outside) -> String {
        match family {
            Outside::V4 => format!("{}:{}", self.outside(family), self.port),
            Outside::V6 => format!("[{}]:{}", self.outside(family), self.port),
        }
    }

    /// Tells whether `other` answers within three seconds, over both families.
    fn reaches(&self, other: &Self) -> bool {
        other.inside.iter().all(|addr| self.namespace.succeeds(&format!("ping -n -c 1 -W 3 {addr}")))
    }

    /// Returns the endpoint that this end has for its only peer.
    fn endpoint(&self) -> String {
        let all = self.tunnel.show(&self.namespace, "endpoints");
        all.split_whitespace().nth(1).expect("one peer").to_owned()
    }
}

/// Ours and theirs, configured. Only the initiator is told where the other is; nothing has been sent.
struct Pair {
    ours: End,
    theirs: End,
    initiator: Initiator,
}

impl Pair {
    fn new(program: Program, outside: Outside, initiator: Initiator, with_psk: bool) -> Self {
        Self::with_args(program, &[], outside, initiator, with_psk)
    }

    fn with_args(
        program: Program,
        args: &[&str],
        outside: Outside,
        initiator: Initiator,
        with_psk: bool,
    ) -> Self {
        let (left, right) = (Namespace::new(), Namespace::new());
        left.join("veth", &["10.1.0.1/24", "fd01::1/64"], &right, "veth", &["10.1.0.2/24", "fd01::2/64"]);
        let ours = Tunnel::start(Program::Adit, &left);
        let theirs = Tunnel::start_with(program, &right, args, &[]);
        let this = Self { ours: End::new(left, ours, 1), theirs: End::new(right, theirs, 2), initiator };
        let psk = with_psk.then(preshared_key);
        let [first, second] = this.by_role();
        configure(first, second, Some(outside), psk.as_deref());
        // Tailscale's does not learn an endpoint from what it receives.
        let told = program == Program::Tailscale && initiator == Initiator::Ours;
        configure(second, first, told.then_some(outside), psk.as_deref());
        this
    }

    /// Returns the initiator and the responder.
    const fn by_role(&self) -> [&End; 2] {
        match self.initiator {
            Initiator::Ours => [&self.ours, &self.theirs],
            Initiator::Theirs => [&self.theirs, &self.ours],
        }
    }

    /// Lets the initiator send until the responder answers.
    #[track_caller]
    fn establish(&self) {
        let [first, second] = self.by_role();
        wait_until("an answer through the tunnel", SOON, || first.reaches(second));
    }
}

/// Sets key, port, peer and addresses of `own`, in one step with the peer's endpoint if it is to have one.
fn configure(own: &End, other: &End, endpoint: Option<Outside>, psk: Option<&str>) {
    let (port, public, allowed) = (own.port.to_string(), other.tunnel.key.public(), other.inside.join(","));
    let endpoint = endpoint.map(|family| other.at(family));
    let mut words = vec!["listen-port", &port, "peer", &public, "allowed-ips", &allowed];
    if let Some(endpoint) = &endpoint {
        words.extend(["endpoint", endpoint]);
    }
    if psk.is_some() {
        words.extend(["preshared-key", "/dev/stdin"]);
    }
    own.tunnel.set_with_input(&own.namespace, &words, psk.unwrap_or_default());
    let [v4, v6] = &own.inside;
    own.namespace.ip(&format!("addr add {v4}/24 dev {}", own.tunnel.name));
    own.namespace.ip(&format!("addr add {v6}/64 dev {} nodad", own.tunnel.name));
    own.namespace.ip(&format!("link set {} up", own.tunnel.name));
}

/// A list of the handshake initiations on the veth, whoever sends them.
struct Initiations(Process);

impl Initiations {
    fn watch(pair: &Pair) -> Self {
        // [W] §5.4.2: type 1 and three zero bytes, after the UDP header.
        const FILTER: &str = "(udp and udp[8:4] = 0x01000000) or (ip6[6] = 17 and ip6[48:4] = 0x01000000)";
        let options = ["-l", "-n", "-q", "--immediate-mode", "-i", "veth", FILTER];
        let process = pair.ours.namespace.spawn("tcpdump", &options);
        wait_until("tcpdump", SOON, || process.output().contains("listening on"));
        Self(process)
    }

    /// Returns how many `end` has sent.
    fn from(&self, end: &End) -> usize {
        let output = self.0.output();
        let sources = [Outside::V4, Outside::V6].map(|family| format!(" {}.", end.outside(family)));
        let sent = |line: &&str| {
            let before = line.split(" > ").next().unwrap_or_default();
            sources.iter().any(|source| before.contains(source))
        };
        output.lines().filter(sent).count()
    }
}
