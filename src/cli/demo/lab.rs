//! The namespaces, links, addresses and tunnels.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::{AllowedIpEdit, Configure, Edit, PeerEdit, Prefix};
use crate::crypto::random::Os;
use crate::crypto::x25519::PrivateKey;
use crate::device::{Device, Spill};
use crate::sys::clock;
use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::offload::Wanted;
use crate::sys::tun::Tun;

/// The UDP port of every node.
pub(super) const PORT: u16 = 51820;

const TUN: &str = "adit0";
/// Ethernet's 1500 less 80: IPv6 and UDP headers, header and tag of a data message.
const TUNNEL_MTU: u32 = 1420;

/// The longest that a tunnel may need to open its port.
const OPEN_AFTER: Duration = Duration::from_secs(10);

/// The whole network.
pub(super) struct Lab {
    pub(super) fabric: OwnedFd,
    pub(super) nodes: Vec<Node>,
}

/// A node with its pod.
pub(super) struct Node {
    pub(super) number: u8,
    namespace: OwnedFd,
    pub(super) pod: OwnedFd,
    key: PrivateKey,
    tunnel: Option<Tunnel>,
}

struct Tunnel {
    device: Device,
    netlink: Netlink,
    link: u32,
}

impl Node {
    fn underlay(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 1).into()
    }

    fn gateway(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 254).into()
    }

    /// Returns the pods' prefixes.
    fn pods(&self) -> [(IpAddr, u8); 2] {
        [(pod_v4(self.number, 0), 24), (pod_v6(self.number, 0), 64)]
    }

    /// Returns the pod's addresses.
    pub(super) fn pod_addrs(&self) -> [IpAddr; 2] {
        [pod_v4(self.number, 2), pod_v6(self.number, 2)]
    }

    /// Returns the running tunnel.
    pub(super) fn device(&self) -> Option<&Device> {
        self.tunnel.as_ref().map(|tunnel| &tunnel.device)
    }

    /// Returns packets that went into the tunnel and that came out of it.
    pub(super) fn packets(&mut self) -> io::Result<(u64, u64)> {
        match &mut self.tunnel {
            Some(tunnel) => tunnel.netlink.packets(tunnel.link).map(|(received, sent)| (sent, received)),
            None => Ok((0, 0)),
        }
    }

    /// Returns the number of the node with this public key.
    pub(super) fn has_key(&self, key: &crate::crypto::x25519::PublicKey) -> bool {
        self.key.public() == *key
    }
}

fn pod_v4(node: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, node, host).into()
}

fn pod_v6(node: u8, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, host).into()
}

const DEFAULT_V4: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
const DEFAULT_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

impl Lab {
    /// Makes namespaces, links and addresses; no pod reaches another yet.
    pub(super) fn new(nodes: u8) -> io::Result<Self> {
        let fabric = netns::create()?;
        netns::run_in(&fabric, forward)?;
        let nodes = (1..=nodes).map(|number| Self::add_node(&fabric, number)).collect::<io::Result<_>>()?;
        Ok(Self { fabric, nodes })
    }

    fn add_node(fabric: &OwnedFd, number: u8) -> io::Result<Node> {
        let (namespace, pod) = (netns::create()?, netns::create()?);
        let node = Node { number, namespace, pod, key: PrivateKey::generate(&mut Os), tunnel: None };
        netns::run_in(fabric, || {
            let mut netlink = Netlink::open()?;
            let name = format!("node{number}");
            netlink.add_veth(&name, "fabric", &node.namespace)?;
            let link = netlink.link(&name)?.index;
            netlink.add_address(link, node.gateway(), 24)?;
            netlink.set_up(link, None)
        })?;
        netns::run_in(&node.namespace, || {
            forward()?;
            let mut netlink = Netlink::open()?;
            let fabric = netlink.link("fabric")?.index;
            netlink.add_address(fabric, node.underlay(), 24)?;
            netlink.set_up(fabric, None)?;
            netlink.add_route(DEFAULT_V4, Some(node.gateway()), None)?;
            netlink.add_veth("pod", "eth0", &node.pod)?;
            let pod = netlink.link("pod")?.index;
            netlink.add_address(pod, pod_v4(number, 1), 24)?;
            netlink.add_address(pod, pod_v6(number, 1), 64)?;
            netlink.set_up(pod, Some(TUNNEL_MTU))
        })?;
        netns::run_in(&node.pod, || {
            let mut netlink = Netlink::open()?;
            let lo = netlink.link("lo")?.index;
            netlink.set_up(lo, None)?;
            let eth = netlink.link("eth0")?.index;
            netlink.add_address(eth, pod_v4(number, 2), 24)?;
            netlink.add_address(eth, pod_v6(number, 2), 64)?;
            netlink.set_up(eth, Some(TUNNEL_MTU))?;
            netlink.add_route(DEFAULT_V4, Some(pod_v4(number, 1)), None)?;
            netlink.add_route(DEFAULT_V6, Some(pod_v6(number, 1)), None)
        })?;
        Ok(node)
    }

    /// Routes pods' packets over the fabric as they are. Only IPv4: the fabric has no other addresses.
    pub(super) fn route_in_clear(&self) -> io::Result<()> {
        netns::run_in(&self.fabric, || {
            let mut netlink = Netlink::open()?;
            self.nodes
                .iter()
                .try_for_each(|node| netlink.add_route(node.pods()[0], Some(node.underlay()), None))?;
            // IPv6 pods are reached over IPv6 link addresses made for this run.
            for node in &self.nodes {
                let link = netlink.link(&format!("node{}", node.number))?.index;
                netlink.add_address(link, clear_v6(node.number, 254), 64)?;
                netlink.add_route(node.pods()[1], Some(clear_v6(node.number, 1)), Some(link))?;
            }
            Ok(())
        })?;
        self.nodes.iter().try_for_each(|node| {
            netns::run_in(&node.namespace, || {
                let mut netlink = Netlink::open()?;
                let fabric = netlink.link("fabric")?.index;
                netlink.add_address(fabric, clear_v6(node.number, 1), 64)?;
                netlink.add_route(DEFAULT_V6, Some(clear_v6(node.number, 254)), Some(fabric))
            })
        })
    }

    /// Takes back the routes of [`Self::route_in_clear`].
    pub(super) fn unroute_in_clear(&self) -> io::Result<()> {
        netns::run_in(&self.fabric, || {
            let mut netlink = Netlink::open()?;
            self.nodes.iter().flat_map(Node::pods).try_for_each(|pods| netlink.remove_route(pods))
        })?;
        self.nodes
            .iter()
            .try_for_each(|node| netns::run_in(&node.namespace, || Netlink::open()?.remove_route(DEFAULT_V6)))
    }

    /// Starts an interface on every node, with every other node as a peer, and routes pods' packets into it.
    pub(super) fn start_tunnels(&mut self) -> io::Result<()> {
        let peers: Vec<_> = self.nodes.iter().map(as_peer).collect();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let mut edits = vec![Edit::PrivateKey(Some(node.key.clone())), Edit::ListenPort(PORT)];
            let others = peers.iter().enumerate().filter(|&(other, _)| other != at);
            edits.extend(others.map(|(_, peer)| Edit::Peer(peer.clone())));
            let routes: Vec<_> = (1..=u8::try_from(peers.len()).unwrap_or(u8::MAX))
                .filter(|&number| number != node.number)
                .flat_map(|number| [(pod_v4(number, 0), 24), (pod_v6(number, 0), 64)])
                .collect();
            let tunnel = netns::run_in(&node.namespace, || {
                let device = Device::start(
                    Tun::create(TUN, 1, &Wanted::default())?,
                    Wanted::default(),
                    Spill::Auto,
                    || {},
                )?;
                device.apply(edits).map_err(io::Error::other)?;
                let mut netlink = Netlink::open()?;
                let link = netlink.link(TUN)?.index;
                netlink.set_up(link, Some(TUNNEL_MTU))?;
                routes.into_iter().try_for_each(|route| netlink.add_route(route, None, Some(link)))?;
                Ok(Tunnel { device, netlink, link })
            })?;
            node.tunnel = Some(tunnel);
        }
        self.nodes.iter().try_for_each(|node| netns::run_in(&node.namespace, wait_for_port))
    }
}

/// Waits until the port is open in the calling thread's namespace: a device opens it a moment after its link is up, and whoever spoke to it
/// before would be answered by the system, in clear.
fn wait_for_port() -> io::Result<()> {
    let deadline = clock::boottime() + OPEN_AFTER;
    // proc(5): local address and port in hexadecimal digits.
    let entry = format!(" 00000000:{PORT:04X} ");
    while !fs::read_to_string("/proc/thread-self/net/udp")?.contains(&entry) {
        if clock::boottime() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a tunnel did not open its port"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn clear_v6(node: u8, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, u16::from(node), 0, 0, 0, 0, host).into()
}

fn as_peer(node: &Node) -> PeerEdit {
    let mut peer = PeerEdit::new(node.key.public());
    peer.endpoint = Some(SocketAddr::new(node.underlay(), PORT));
    let prefixes = node.pods().into_iter().filter_map(|(addr, len)| Prefix::new(addr, len));
    peer.allowed_ips = prefixes.map(AllowedIpEdit::Add).collect();
    peer
}

/// Lets the calling thread's namespace forward packets.
fn forward() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    match fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
