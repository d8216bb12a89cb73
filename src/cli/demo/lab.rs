//! The namespaces, links and addresses, and what the nodes run.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::objects::Objects;
use super::services::Services;
use crate::config::{Configure, PeerSnapshot};
use crate::control::store::Store;
use crate::crypto::random::Os;
use crate::crypto::x25519::PrivateKey;
use crate::device::Device;
use crate::sys::netlink::Netlink;
use crate::sys::netns;

/// The UDP port of every node.
pub(super) const PORT: u16 = 51820;

/// The interface of every node's tunnel.
pub(super) const TUNNEL: &str = "adit0";

/// The prefixes of all pods.
pub(super) const PODS: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0)), 32),
];

/// The MTU of pods: Ethernet's 1500 less 80, IPv6 and UDP headers, header and tag of a data message.
const POD_MTU: u32 = 1420;

/// The whole network.
pub(super) struct Lab {
    pub(super) fabric: OwnedFd,
    pub(super) nodes: Vec<Node>,
}

/// A node with its pod.
pub(super) struct Node {
    pub(super) number: u8,
    pub(super) namespace: OwnedFd,
    pub(super) pod: OwnedFd,
    /// Where its services have what a machine would have under `/var` and `/run`.
    pub(super) directory: PathBuf,
    /// What its agent keeps, and its key that is there.
    pub(super) store: Arc<Store>,
    pub(super) key: PrivateKey,
    services: Option<Services>,
}

impl Node {
    /// Returns the name of its object.
    pub(super) fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Returns where its data plane is found.
    pub(super) fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.underlay(), PORT)
    }

    fn underlay(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 1).into()
    }

    fn gateway(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 254).into()
    }

    /// Returns the pods' prefixes.
    pub(super) fn pods(&self) -> [(IpAddr, u8); 2] {
        [(pod_v4(self.number, 0), 24), (pod_v6(self.number, 0), 64)]
    }

    /// Returns the pod's addresses.
    pub(super) fn pod_addrs(&self) -> [IpAddr; 2] {
        [pod_v4(self.number, 2), pod_v6(self.number, 2)]
    }

    /// Returns the running data plane.
    pub(super) fn device(&self) -> Option<&Device> {
        self.services.as_ref().map(|services| &*services.device)
    }

    /// Returns what the data plane knows of its peers.
    pub(super) fn peers(&self) -> io::Result<Vec<PeerSnapshot>> {
        let snapshot = self.device().map(|device| device.snapshot().map_err(io::Error::other)).transpose()?;
        Ok(snapshot.unwrap_or_default().peers)
    }

    /// Tells whether there are sessions with as many others as these, and what is for their pods is led into the tunnel.
    fn reaches_through_tunnel(&mut self, others: &[[IpAddr; 2]]) -> io::Result<bool> {
        let sessions = self.peers()?.iter().filter(|peer| peer.last_handshake.is_some()).count();
        let gateways = gateways(self.number);
        let Some(Services { netlink, link, .. }) = &mut self.services else { return Ok(false) };
        let mut pairs = others.iter().flat_map(|pods| pods.iter().zip(gateways));
        let mut leads_there =
            |to, from| netlink.interface_towards(to, from, 0).is_ok_and(|found| found == *link);
        Ok(sessions == others.len() && pairs.all(|(to, from)| leads_there(*to, from)))
    }

    /// Returns packets that went into the tunnel and that came out of it.
    pub(super) fn packets(&mut self) -> io::Result<(u64, u64)> {
        match &mut self.services {
            Some(Services { netlink, link, .. }) => {
                netlink.packets(*link).map(|(received, sent)| (sent, received))
            }
            None => Ok((0, 0)),
        }
    }
}

/// Returns the node's addresses on the link of its pod.
fn gateways(node: u8) -> [IpAddr; 2] {
    [pod_v4(node, 1), pod_v6(node, 1)]
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
    pub(super) fn new(nodes: u8, directory: &Path) -> io::Result<Self> {
        let fabric = netns::create()?;
        netns::run_in(&fabric, forward)?;
        let add = |number| Self::add_node(&fabric, number, directory);
        let nodes = (1..=nodes).map(add).collect::<io::Result<_>>()?;
        Ok(Self { fabric, nodes })
    }

    fn add_node(fabric: &OwnedFd, number: u8, directory: &Path) -> io::Result<Node> {
        let directory = directory.join(format!("node{number}"));
        let store = Store::open(&directory).map_err(io::Error::other)?;
        let key = store.private_key(&mut Os).map_err(io::Error::other)?;
        let (namespace, pod) = (netns::create()?, netns::create()?);
        let node = Node { number, namespace, pod, directory, store: Arc::new(store), key, services: None };
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
            let [v4, v6] = gateways(number);
            netlink.add_address(pod, v4, 24)?;
            netlink.add_address(pod, v6, 64)?;
            netlink.set_up(pod, Some(POD_MTU))
        })?;
        netns::run_in(&node.pod, || {
            let mut netlink = Netlink::open()?;
            let lo = netlink.link("lo")?.index;
            netlink.set_up(lo, None)?;
            let eth = netlink.link("eth0")?.index;
            netlink.add_address(eth, pod_v4(number, 2), 24)?;
            netlink.add_address(eth, pod_v6(number, 2), 64)?;
            netlink.set_up(eth, Some(POD_MTU))?;
            netlink.add_route(DEFAULT_V4, Some(pod_v4(number, 1)), None)?;
            netlink.add_route(DEFAULT_V6, Some(pod_v6(number, 1)), None)
        })?;
        Ok(node)
    }

    /// Routes pods' packets over the fabric as they are, as a pod network without encryption would: whatever is not led into a tunnel goes that
    /// way.
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

    /// Starts data plane and agent on every node: what these do is said by `objects` alone, to which each node is added.
    pub(super) fn start(&mut self, objects: &Objects) -> io::Result<()> {
        self.nodes.iter().try_for_each(|node| objects.add(node))?;
        for node in &mut self.nodes {
            node.services = Some(Services::start(node, objects.path())?);
        }
        Ok(())
    }

    /// Tells whether every node has a session with every other, and leads into the tunnel what is for the other's pods.
    pub(super) fn is_tunnelled(&mut self) -> io::Result<bool> {
        let pods: Vec<_> = self.nodes.iter().map(|node| (node.number, node.pod_addrs())).collect();
        for node in &mut self.nodes {
            let others = pods.iter().filter(|(other, _)| *other != node.number);
            let others: Vec<_> = others.map(|(_, pods)| *pods).collect();
            if !node.reaches_through_tunnel(&others)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn clear_v6(node: u8, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, u16::from(node), 0, 0, 0, 0, host).into()
}

/// Lets the calling thread's namespace forward packets.
fn forward() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    match fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
