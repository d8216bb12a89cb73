//! One interface with many peers, half of them behind IPv4 and half behind IPv6 endpoints, spoken to in random order: every datagram
//! reaches the one that it is for. wireguard-go sends to a wrong IPv6 address after an IPv4 one, and gotatun once mixed up IPv6
//! sources.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use crate::support::stream::random_bytes;
use crate::support::tunnel::{Program, Tunnel};
use crate::support::{Namespace, SOON, find, need, wait_until};

const PEERS: u8 = 12;
const ROUNDS: usize = 40;
/// Datagrams on their way at once: fewer than a TUN device holds (500).
const BURST: usize = 64;

struct Peer {
    number: u8,
    tunnel: Tunnel,
    _namespace: Namespace,
    /// Its echo service, for each family.
    services: Vec<UdpSocket>,
}

impl Peer {
    /// Starts a peer that knows the hub's key but not where it is.
    fn start(hub: &Hub, number: u8, program: Program) -> Self {
        let namespace = Namespace::new();
        // One family only: a datagram for a peer of the other goes nowhere.
        let (near, far) = if number.is_multiple_of(2) {
            (format!("10.3.{number}.1/24"), format!("10.3.{number}.2/24"))
        } else {
            (format!("fd03:0:0:{number}::1/64"), format!("fd03:0:0:{number}::2/64"))
        };
        hub.namespace.join(&format!("veth{number}"), &[&near], &namespace, "veth", &[&far]);
        let tunnel = Tunnel::start(program, &namespace);
        let public = hub.tunnel.key.public();
        tunnel.set(&namespace, &format!("listen-port 3000 peer {public} allowed-ips 10.4.0.0/32,fd04::/128"));
        namespace.ip(&format!("addr add 10.4.0.{number}/24 dev {}", tunnel.name));
        namespace.ip(&format!("addr add fd04::{number}/64 dev {} nodad", tunnel.name));
        namespace.ip(&format!("link set {} up", tunnel.name));
        let services = inside(number).map(|addr| bind(&namespace, addr)).into();
        Self { number, tunnel, _namespace: namespace, services }
    }

    /// The endpoint as `wg` writes it.
    fn endpoint(&self) -> String {
        let number = self.number;
        if number.is_multiple_of(2) {
            format!("10.3.{number}.2:3000")
        } else {
            format!("[fd03:0:0:{number}::2]:3000")
        }
    }

    /// Sends back what has arrived.
    fn echo(&self) {
        for service in &self.services {
            while let Some((datagram, from)) = receive(service) {
                assert_eq!(datagram[0], self.number, "a datagram at a wrong peer");
                service.send_to(&datagram, from).expect("the answer can be sent");
            }
        }
    }
}

struct Hub {
    namespace: Namespace,
    tunnel: Tunnel,
}

/// Returns the addresses of the echo service of a peer.
fn inside(number: u8) -> [SocketAddr; 2] {
    [format!("10.4.0.{number}:7"), format!("[fd04::{number}]:7")].map(|addr| addr.parse().unwrap())
}

fn bind(namespace: &Namespace, addr: SocketAddr) -> UdpSocket {
    let socket = namespace.enter(move || UdpSocket::bind(addr)).expect("a UDP socket");
    socket.set_nonblocking(true).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Some((buffer[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("receiving: {error}"),
    }
}

#[test]
fn every_one_of_many_peers_of_both_families_gets_its_own_datagrams() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &namespace);
    let hub = Hub { namespace, tunnel };
    hub.namespace.ip(&format!("addr add 10.4.0.0/24 dev {}", hub.tunnel.name));
    hub.namespace.ip(&format!("addr add fd04::/64 dev {} nodad", hub.tunnel.name));
    hub.namespace.ip(&format!("link set {} up", hub.tunnel.name));
    // Where other programs are missing, ours stand in for them: what is tested is the hub.
    let others = if find("wireguard-go").is_some() { Program::WireguardGo } else { Program::Adit };
    let peers: Vec<_> = (1..=PEERS)
        .map(|number| Peer::start(&hub, number, if number % 3 == 0 { others } else { Program::Adit }))
        .collect();
    for peer in &peers {
        let (public, number) = (peer.tunnel.key.public(), peer.number);
        let endpoint = peer.endpoint();
        let allowed = format!("10.4.0.{number}/32,fd04::{number}/128");
        hub.tunnel.set(&hub.namespace, &format!("peer {public} endpoint {endpoint} allowed-ips {allowed}"));
    }
    let clients = ["0.0.0.0:0", "[::]:0"].map(|addr| bind(&hub.namespace, addr.parse().unwrap()));
    for round in 0..ROUNDS {
        one_burst(&clients, &peers, &format!("all answers of burst {round}"));
    }
    let endpoints = hub.tunnel.show(&hub.namespace, "endpoints");
    for peer in &peers {
        let line = format!("{}\t{}", peer.tunnel.key.public(), peer.endpoint());
        assert!(endpoints.lines().any(|found| found == line), "{line} is not in\n{endpoints}");
    }
}

/// Sends a burst to random peers, and waits for all to come back.
#[track_caller]
fn one_burst(clients: &[UdpSocket; 2], peers: &[Peer], what: &str) {
    let mut waiting = Vec::new();
    for _ in 0..BURST {
        let choice = random_bytes(3);
        let peer = &peers[usize::from(choice[0]) % peers.len()];
        let family = usize::from(choice[1] % 2);
        // Sizes differ, so that runs of equal ones are short and of every length.
        let mut datagram = random_bytes(64 + 64 * usize::from(choice[2] % 4));
        datagram[0] = peer.number;
        let to = inside(peer.number)[family];
        clients[family].send_to(&datagram, to).expect("the datagram can be sent");
        waiting.push((datagram, to));
    }
    wait_until(what, SOON, || {
        peers.iter().for_each(Peer::echo);
        for (datagram, from) in clients.iter().flat_map(receive) {
            let found = waiting.iter().position(|sent| *sent == (datagram.clone(), from));
            waiting.swap_remove(found.expect("an answer to what was sent, from where it was sent"));
        }
        waiting.is_empty()
    });
}
