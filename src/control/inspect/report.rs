//! What is shown, as plain data; programs get it as JSON, in the words of these fields.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use crate::config::{PeerSnapshot, Snapshot, Statistics};
use crate::control::firewall::Counters;
use crate::control::session::{self, Session};
use crate::control::settings::NO_CATCH_ALL;
use crate::control::status;
use crate::control::topology::Topology;
use crate::crypto::x25519::PublicKey;

/// What is said of packets between pods of one node.
pub const SAME_HOST: &str = "never leaves the node, never encrypted";

/// What was found of one interface.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub interface: String,
    /// What the data plane told, with its statistics if it is adit's; or why it told nothing.
    pub told: Result<(Snapshot, Option<Statistics>), String>,
    /// The node, if there is an agent.
    pub node: Option<Node>,
}

/// What an agent knows of the node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it should do.
    pub topology: Topology,
    /// What the kernel has of that, or why it cannot be looked at.
    pub kernel: Result<Kernel, String>,
}

/// What the kernel has of what it should have.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    /// Whether the interface is there and up.
    pub is_up: bool,
    /// What would have to be done about routes and rules.
    pub missing: Vec<String>,
    /// Whether the firewall is there.
    pub has_firewall: bool,
    /// Whether it should be.
    pub wants_firewall: bool,
    /// What the firewall counted.
    pub counters: Counters,
}

/// All that is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The interfaces by name.
    pub interfaces: Vec<Interface>,
    /// What is said of packets between pods of one node.
    pub same_host_traffic: &'static str,
    /// How many seconds ago the agent's objects were kept, which they are when they have changed; `None` without an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_age: Option<u64>,
    /// Why the agent's objects cannot be used, if they are there and cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The peers of all interfaces: what `adit peers` shows.
    #[serde(skip)]
    pub peers: Vec<Peer>,
}

/// One interface.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub interface: String,
    /// Why the data plane told nothing, if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The public key in base64; `None` without one.
    pub public_key: Option<String>,
    /// The UDP port; 0 before the sockets are bound.
    pub listen_port: u16,
    /// The data plane, if it is adit's.
    pub data_plane: Option<DataPlane>,
    /// The peers in numbers.
    pub peers: Peers,
    /// Packets that went no further, by reason, if there were any.
    pub dropped: BTreeMap<String, u64>,
    /// The node, if there is an agent.
    pub node: Option<NodeReport>,
}

/// The data plane's own word on itself.
#[derive(Debug, Clone, Serialize)]
pub struct DataPlane {
    /// Its version.
    pub version: String,
    /// The code that encrypts.
    pub crypto: String,
    /// Worker threads.
    pub workers: usize,
}

/// Peers in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Peers {
    /// All of them.
    pub total: usize,
    /// Those that have a session.
    pub up: usize,
    /// Those that have none and may need none.
    pub idle: usize,
    /// Those that have never answered, though something was sent.
    pub down: usize,
}

/// The node that an interface belongs to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// How much is encrypted.
    pub mode: String,
    /// Why it is not what it should be, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The nodes that Strict waits for, and why, if it is wanted and waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_waits_for: Option<String>,
    /// What Strict does not drop, if nobody has said what all pods have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_catch_all: Option<&'static str>,
    /// What is not encrypted where the kernel has no IPv6, and the cluster has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_ipv6: Option<&'static str>,
    /// What all pods have, and who says so, if that was found in the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_catch_all: Option<String>,
    /// The prefixes that were other nodes' pods' and are nobody's: they are dropped.
    pub orphans: Vec<String>,
    /// The nodes that are not talked to through the tunnel.
    pub not_encrypted: Vec<NotEncrypted>,
    /// What the kernel has; `None` if that cannot be looked at.
    pub kernel: Option<KernelReport>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_error: Option<String>,
}

/// A node that is not talked to through the tunnel.
#[derive(Debug, Clone, Serialize)]
pub struct NotEncrypted {
    /// Its name.
    pub node: String,
    /// Why.
    pub reason: String,
    /// Whether packets to its pods are dropped; they go in clear otherwise.
    pub dropped: bool,
}

/// What the kernel has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelReport {
    /// Whether the interface is there and up.
    pub interface_up: bool,
    /// Routes and rules that are not in place, and how they would come to be.
    pub missing_routes: Vec<String>,
    /// Whether the firewall is as wanted: there, or not there.
    pub firewall_in_place: bool,
    /// Packets from protected addresses that came in clear and were dropped.
    pub cleartext_dropped_ingress: u64,
    /// Packets to protected addresses that would have left in clear and were dropped.
    pub cleartext_dropped_egress: u64,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The interface.
    pub interface: String,
    /// The node, if an agent knows it.
    pub node: Option<String>,
    /// The public key in base64.
    pub public_key: String,
    /// `up`, `idle` or `down`.
    pub state: &'static str,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The moment of the last handshake in seconds since the Unix epoch; `None` if there was none.
    pub latest_handshake: Option<u64>,
    /// How long ago that is, in seconds.
    pub handshake_age: Option<u64>,
    /// UDP payload bytes sent to it.
    pub transmit_bytes: u64,
    /// UDP payload bytes received from it and authenticated.
    pub receive_bytes: u64,
    /// Its allowed IPs.
    pub allowed_ips: Vec<String>,
}

impl Report {
    /// Returns what is to be shown at the moment `now`, since the Unix epoch.
    pub fn of(found: Vec<Found>, now: Duration) -> Self {
        let mut report = Self {
            interfaces: Vec::new(),
            same_host_traffic: SAME_HOST,
            objects_age: None,
            fault: None,
            peers: Vec::new(),
        };
        for found in found {
            if let Ok((snapshot, _)) = &found.told {
                let peers = snapshot.peers.iter();
                report.peers.extend(peers.map(|peer| Peer::of(peer, &found, now)));
            }
            report.interfaces.push(Interface::of(found, now));
        }
        report
    }

    /// Tells whether all is well: every data plane answers, no peer is down, and where there is an agent, the node and its kernel are as
    /// they should be. That nodes are not encrypted because nobody wants them to be is well.
    pub fn is_well(&self) -> bool {
        self.fault.is_none() && self.interfaces.iter().all(Interface::is_well)
    }
}

impl Interface {
    fn of(found: Found, now: Duration) -> Self {
        let node = found.node.map(NodeReport::of);
        let (snapshot, statistics) = match found.told {
            Ok(told) => told,
            Err(error) => {
                return Self { interface: found.interface, error: Some(error), ..Self::default() };
            }
        };
        let [up, idle, down] = session::count(&snapshot.peers, now);
        let (data_plane, dropped) = match statistics {
            Some(Statistics { version, crypto, workers, mut dropped, handshakes: _ }) => {
                dropped.retain(|_, packets| *packets > 0);
                (Some(DataPlane { version, crypto, workers }), dropped)
            }
            None => (None, BTreeMap::new()),
        };
        Self {
            interface: found.interface,
            error: None,
            public_key: snapshot.private_key.as_ref().map(|key| base64(&key.public())),
            listen_port: snapshot.listen_port,
            data_plane,
            peers: Peers { total: snapshot.peers.len(), up, idle, down },
            dropped,
            node,
        }
    }

    fn is_well(&self) -> bool {
        let is_kernel_well = |kernel: &KernelReport| {
            kernel.interface_up && kernel.missing_routes.is_empty() && kernel.firewall_in_place
        };
        let is_node_well =
            |node: &NodeReport| node.degraded.is_none() && node.kernel.as_ref().is_some_and(is_kernel_well);
        self.error.is_none() && self.peers.down == 0 && self.node.as_ref().is_none_or(is_node_well)
    }
}

impl NodeReport {
    fn of(node: Node) -> Self {
        let Node { name, topology, kernel } = node;
        let not_encrypted = topology.not_encrypted.iter().map(|(node, how)| NotEncrypted {
            node: node.clone(),
            reason: how.reason.to_string(),
            dropped: how.is_dropped,
        });
        let (kernel, kernel_error) = match kernel {
            Ok(kernel) => (Some(KernelReport::of(kernel)), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            name,
            mode: format!("{:?}", topology.settings.mode),
            degraded: topology.degraded.as_ref().map(ToString::to_string),
            strict_waits_for: (!topology.waits_for.is_empty()).then(|| status::named(&topology.waits_for)),
            no_catch_all: topology.settings.lacks_catch_all().then_some(NO_CATCH_ALL),
            no_ipv6: topology.lacks_ipv6.then_some(status::NO_IPV6),
            found_catch_all: topology.settings.found_catch_all(),
            orphans: topology.orphans.iter().map(ToString::to_string).collect(),
            not_encrypted: not_encrypted.collect(),
            kernel,
            kernel_error,
        }
    }
}

impl KernelReport {
    fn of(kernel: Kernel) -> Self {
        Self {
            interface_up: kernel.is_up,
            missing_routes: kernel.missing,
            // One that is not wanted may be there to masquerade, in main mode.
            firewall_in_place: kernel.has_firewall || !kernel.wants_firewall,
            cleartext_dropped_ingress: kernel.counters.cleartext_ingress.packets,
            cleartext_dropped_egress: kernel.counters.cleartext_egress.packets,
        }
    }
}

impl Peer {
    fn of(peer: &PeerSnapshot, found: &Found, now: Duration) -> Self {
        let known = found.node.as_ref().and_then(|node| node.topology.peers.get(&peer.public_key));
        Self {
            interface: found.interface.clone(),
            node: known.map(|known| known.node.clone()),
            public_key: base64(&peer.public_key),
            state: Session::of(peer, now).name(),
            endpoint: peer.endpoint,
            latest_handshake: peer.last_handshake.map(|moment| moment.as_secs()),
            handshake_age: peer.last_handshake.map(|moment| now.saturating_sub(moment).as_secs()),
            transmit_bytes: peer.tx_bytes,
            receive_bytes: peer.rx_bytes,
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        }
    }
}

pub(super) fn base64(key: &PublicKey) -> String {
    BASE64.encode(key.as_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::objects::{Objects, Tunnel};
    use crate::control::session::tests::peer;
    use crate::control::topology::{Own, topology};
    use crate::crypto::x25519::PrivateKey;

    /// Returns the interface of node `a`, whose peers are `b`, who has a session, and somebody whom the agent does not know.
    pub(in crate::control::inspect) fn found(kernel: Result<Kernel, String>) -> Found {
        let private_key = PrivateKey::new([9; 32]);
        let tunnel = |key| Tunnel { active: Some(key), keys: vec![key], ..Tunnel::default() };
        let mut objects = Objects::default();
        objects.tunnels.insert("a".to_owned(), tunnel(private_key.public()).into());
        objects.tunnels.insert("b".to_owned(), tunnel(PublicKey::new([1; 32])).into());
        objects.tunnels.insert("c".to_owned(), Tunnel::default().into());
        let own = Own::new("a", private_key.public());
        let mut first = peer(1, Some(Duration::from_secs(928)), 5 << 20);
        first.endpoint = Some("192.0.2.1:51820".parse().unwrap());
        first.allowed_ips = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let snapshot = Snapshot {
            private_key: Some(private_key),
            listen_port: 51820,
            peers: vec![first, peer(2, None, 0)],
            ..Snapshot::default()
        };
        let statistics = Statistics {
            version: "1.2.3".to_owned(),
            crypto: "avx2".to_owned(),
            workers: 2,
            dropped: [("no_peer", 3), ("replayed", 0)].map(|(why, n)| (why.to_owned(), n)).into(),
            ..Statistics::default()
        };
        Found {
            interface: "adit0".to_owned(),
            told: Ok((snapshot, Some(statistics))),
            node: Some(Node { name: "a".to_owned(), topology: topology(&objects, &own), kernel }),
        }
    }

    pub(in crate::control::inspect) const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn everything_that_was_found_is_shown() {
        let report = Report::of(vec![found(Err("no".to_owned()))], NOW);
        let interface = &report.interfaces[0];
        assert_eq!(interface.peers, Peers { total: 2, up: 1, idle: 1, down: 0 });
        assert_eq!(interface.dropped, [("no_peer".to_owned(), 3)].into(), "zeros are left out");
        let [first, second] = &report.peers[..] else { panic!("two peers") };
        assert_eq!((first.node.as_deref(), first.state, first.handshake_age), (Some("b"), "up", Some(72)));
        assert_eq!((second.node.as_deref(), second.state, second.handshake_age), (None, "idle", None));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json.pointer("/interfaces/0/node/mode"), Some(&"Off".into()));
        assert_eq!(json.pointer("/sameHostTraffic"), Some(&SAME_HOST.into()));
        assert_eq!(json.pointer("/interfaces/0/node/kernelError"), Some(&"no".into()));
    }

    #[test]
    fn programs_find_all_of_it_by_the_names_that_they_know() {
        let kernel = Kernel { missing: vec!["adding a route".to_owned()], ..Kernel::default() };
        let silent = Found { interface: "wg0".to_owned(), told: Err("nobody".to_owned()), node: None };
        let found = found(Ok(kernel));
        let key = base64(&PrivateKey::new([9; 32]).public());
        let report = Report { objects_age: Some(3), ..Report::of(vec![found, silent], NOW) };
        let expected = json!({
            "interfaces": [
                {
                    "interface": "adit0",
                    "publicKey": key,
                    "listenPort": 51820,
                    "dataPlane": { "version": "1.2.3", "crypto": "avx2", "workers": 2 },
                    "peers": { "total": 2, "up": 1, "idle": 1, "down": 0 },
                    "dropped": { "no_peer": 3 },
                    "node": {
                        "name": "a",
                        "mode": "Off",
                        "notEncrypted": [
                            { "node": "b", "reason": "ModeOff", "dropped": false },
                            { "node": "c", "reason": "ModeOff", "dropped": false },
                        ],
                        "orphans": [],
                        "kernel": {
                            "interfaceUp": false,
                            "missingRoutes": ["adding a route"],
                            "firewallInPlace": true,
                            "cleartextDroppedIngress": 0,
                            "cleartextDroppedEgress": 0,
                        },
                    },
                },
                {
                    "interface": "wg0",
                    "error": "nobody",
                    "publicKey": null,
                    "listenPort": 0,
                    "dataPlane": null,
                    "peers": { "total": 0, "up": 0, "idle": 0, "down": 0 },
                    "dropped": {},
                    "node": null,
                },
            ],
            "sameHostTraffic": SAME_HOST,
            "objectsAge": 3,
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let first = json!({
            "interface": "adit0",
            "node": "b",
            "publicKey": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            "state": "up",
            "endpoint": "192.0.2.1:51820",
            "latestHandshake": 928,
            "handshakeAge": 72,
            "transmitBytes": 5 << 20,
            "receiveBytes": 0,
            "allowedIps": ["10.0.0.0/8", "fd00::/64"],
        });
        assert_eq!(serde_json::to_value(&report.peers[0]).unwrap(), first);
        let second = json!({
            "interface": "adit0",
            "node": null,
            "publicKey": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
            "state": "idle",
            "endpoint": null,
            "latestHandshake": null,
            "handshakeAge": null,
            "transmitBytes": 0,
            "receiveBytes": 0,
            "allowedIps": [],
        });
        assert_eq!(serde_json::to_value(&report.peers[1]).unwrap(), second);
    }

    #[test]
    fn what_is_wrong_anywhere_is_not_well() {
        let well = Kernel { is_up: true, ..Kernel::default() };
        let is_well = |change: &dyn Fn(&mut Found)| {
            let mut found = found(Ok(well.clone()));
            change(&mut found);
            Report::of(vec![found], NOW).is_well()
        };
        assert!(is_well(&|_| {}));
        let kernel = |change: fn(&mut Kernel)| {
            is_well(&|found| change(found.node.as_mut().unwrap().kernel.as_mut().unwrap()))
        };
        assert!(!kernel(|kernel| kernel.is_up = false));
        assert!(!kernel(|kernel| kernel.missing.push("adding a route".to_owned())));
        assert!(!kernel(|kernel| kernel.wants_firewall = true));
        assert!(!is_well(&|found| found.node.as_mut().unwrap().kernel = Err("nobody knows".to_owned())));
        assert!(!is_well(&|found| found.told = Err("nobody is there".to_owned())));
        assert!(!is_well(&|found| found.told.as_mut().unwrap().0.peers[1].tx_bytes = 148));
        assert!(!is_well(&|found| {
            let topology = &mut found.node.as_mut().unwrap().topology;
            topology.degraded = Some(crate::control::topology::Degraded::NotPublished);
        }));
    }
}
