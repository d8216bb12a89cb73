//! From what is to what should be: the steps, in the order that neither leaks nor loses. Pure.
//!
//! ```text
//! 1   data plane: what is to be added or to move       a prefix is accepted before a route leads to it
//! 2   interface: on, MTU, addresses                    there are no routes to an interface that is off
//! 3   routes                                           and the rule: last in, first out
//! 4   data plane that begins anew: a greeting          peers go on with sessions that it has lost, until they hear from it
//! 5   data plane: what is to be removed                nothing leads there any more, and what was under way has arrived
//! ```
//!
//! Whoever obeys them stops at the first step that fails, and asks again later: each step alone leaves a state that is safe.
//!
//! Nothing is removed on the word of a list that is not complete: what the data plane holds beyond it stays, a prefix stays with the
//! peer that holds it, and the routes are added to those that are there; see [`super::extend`].

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::api::Mode;
use super::extend::Extension;
use super::link::Link;
use super::plan::Routes;
use super::topology::{Peer, Topology};
use crate::config::diff::{Difference, diff};
use crate::config::{Desired, DesiredPeer, Edit, PeerEdit, PeerSnapshot, PresharedKey, Snapshot};
use crate::crypto::x25519::{PrivateKey, PublicKey};

/// A session that is older cannot be used ([W] §6.1, Reject-After-Time): a peer without a younger one is silent.
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(180);

/// One step.
#[derive(Debug, Clone)]
pub enum Step {
    /// To be applied to the data plane.
    Configure(Vec<Edit>),
    /// To be made so.
    Link(Link),
    /// To be done about the routes.
    Route(RouteChange),
    /// To be applied to the data plane, so that it sends each peer something: a peer that sends without an answer would notice after 15
    /// seconds only that its session is lost ([W] §6.5).
    Greet(Vec<Edit>),
    /// To be applied to the data plane a while after the steps before it; see [`super::leaving`].
    Forget(Vec<Edit>),
}

/// What is to be done about the routes.
#[derive(Debug, Clone)]
pub enum RouteChange {
    /// To be made so, and what else is in the table to be removed.
    Whole(Routes),
    /// To be added to what is in the table.
    Addition(Extension),
}

/// What is known, and when.
#[derive(Debug, Clone, Copy)]
pub struct Occasion {
    /// Whether the objects are all there are: every list was read to its end.
    pub is_complete: bool,
    /// Whether this is the periodic look, when silent peers are looked for elsewhere.
    pub is_periodic: bool,
    /// Wall-clock time since the Unix epoch.
    pub now: Duration,
    /// The MTU that the ways to the peers leave for the interface, in bytes, if it is known.
    pub mtu: Option<u32>,
}

/// Where each peer was last said to be. It is forgotten with the process, and then no endpoint is changed without need.
pub type Endpoints = BTreeMap<PublicKey, SocketAddr>;

/// Steps, and what is to be remembered once they have been taken.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The steps in their order.
    pub steps: Vec<Step>,
    /// To be given to the next call if all steps succeeded.
    pub endpoints: Endpoints,
}

/// Returns what leads from `actual` to `topology`.
pub fn reconcile(
    actual: &Snapshot,
    topology: &Topology,
    private_key: &PrivateKey,
    remembered: &Endpoints,
    occasion: Occasion,
) -> Plan {
    let places: HashMap<_, _> =
        actual.peers.iter().zip(0..).map(|(peer, at)| (peer.public_key, at)).collect();
    let mut is_in_step = vec![false; actual.peers.len()];
    let mut endpoints = Vec::with_capacity(topology.peers.len());
    let persistent_keepalive = topology.settings.persistent_keepalive;
    let mut desired = Desired {
        private_key: Some(private_key.clone()),
        listen_port: topology.settings.listen_port,
        fwmark: topology.settings.fwmark,
        peers: BTreeMap::new(),
    };
    for (key, peer) in &topology.peers {
        let place: Option<usize> = places.get(key).copied();
        let found = place.map(|at| &actual.peers[at]);
        let choice = choose(&peer.endpoints, found, remembered.get(key), occasion);
        endpoints.extend(choice.remember.map(|endpoint| (*key, endpoint)));
        // What one peer is to hold no other is to hold: those that have it already are in nobody's way.
        if let Some(at) = place.filter(|_| occasion.is_complete)
            && is_as_wanted(&actual.peers[at], peer, choice.set, persistent_keepalive)
        {
            is_in_step[at] = true;
            continue;
        }
        desired.peers.insert(*key, desired_peer(peer, choice.set, persistent_keepalive));
    }
    if !occasion.is_complete {
        hold_back(actual, &mut desired);
    }
    let is_new = actual.peers.is_empty();
    let others = actual.peers.iter().zip(is_in_step).filter(|(_, is_in_step)| !is_in_step);
    let others = others.map(|(peer, _)| peer.clone()).collect();
    let actual = Snapshot { private_key: actual.private_key.clone(), peers: others, ..*actual };
    let Difference { additions, removals } = diff(&actual, &desired);
    let mut steps = Vec::new();
    if !additions.is_empty() {
        steps.push(Step::Configure(additions));
    }
    let (interface, mtu) = (topology.settings.interface.clone(), topology.settings.mtu.or(occasion.mtu));
    steps.push(Step::Link(Link { interface, mtu, addresses: topology.addresses.clone() }));
    steps.push(Step::Route(change(topology, topology.routes.clone(), occasion.is_complete)));
    if is_new && !topology.peers.is_empty() {
        steps.push(Step::Greet(greetings(topology)));
    }
    if !removals.is_empty() {
        steps.push(Step::Forget(removals));
    }
    Plan { steps, endpoints: endpoints.into_iter().collect() }
}

/// Returns what is to be done about the routes while the data plane does not do what it is asked for. If there is none, nothing is led into the
/// tunnel, and in Strict what should enter it goes nowhere. One that `is_there` may go on with its work: in Strict it drops what no peer of it
/// has; in Permissive nothing is led into it before it is known to have the peer, and `None` leaves the routes as they are.
///
/// Before the lists are complete, what is led into the tunnel stays so: a data plane that cannot be asked may be there, with peers of which
/// nothing is known.
pub fn without_data_plane(topology: &Topology, is_complete: bool, is_there: bool) -> Option<RouteChange> {
    let mut routes = topology.routes.clone();
    match topology.settings.mode {
        Mode::Permissive if is_there => return None,
        Mode::Strict | Mode::Permissive if !is_there => routes.close(),
        Mode::Strict | Mode::Permissive | Mode::Off => {}
    }
    Some(change(topology, routes, is_complete))
}

fn change(topology: &Topology, routes: Routes, is_complete: bool) -> RouteChange {
    if is_complete {
        return RouteChange::Whole(routes);
    }
    let cluster = topology.settings.cluster_prefixes.clone().unwrap_or_default();
    RouteChange::Addition(Extension { routes, cluster, api_servers: topology.api_servers.clone() })
}

/// Returns what makes a data plane send each peer a keepalive, and a handshake before it: a peer for which persistent keepalives are
/// switched on is sent one at once.
fn greetings(topology: &Topology) -> Vec<Edit> {
    let keepalives = [1, topology.settings.persistent_keepalive];
    let edit = |(key, seconds)| PeerEdit {
        update_only: true,
        persistent_keepalive: Some(seconds),
        ..PeerEdit::new(key)
    };
    let each = topology.peers.keys().flat_map(|key| keepalives.map(|seconds| (*key, seconds)));
    each.map(|each| Edit::Peer(edit(each))).collect()
}

/// Tells whether the data plane has a peer as [`desired_peer`] says.
fn is_as_wanted(
    found: &PeerSnapshot,
    peer: &Peer,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: u16,
) -> bool {
    found.allowed_ips == peer.allowed_ips
        && found.persistent_keepalive == persistent_keepalive
        && (endpoint.is_none() || found.endpoint == endpoint)
        && found.preshared_key == PresharedKey::default()
}

fn desired_peer(peer: &Peer, endpoint: Option<SocketAddr>, persistent_keepalive: u16) -> DesiredPeer {
    DesiredPeer {
        preshared_key: PresharedKey::default(),
        endpoint,
        persistent_keepalive,
        allowed_ips: peer.allowed_ips.clone(),
    }
}

/// Makes what the data plane holds part of what is desired.
fn hold_back(actual: &Snapshot, desired: &mut Desired) {
    let peers = actual.peers.iter();
    let held: BTreeMap<_, _> =
        peers.flat_map(|peer| peer.allowed_ips.iter().map(|prefix| (*prefix, peer.public_key))).collect();
    for (key, peer) in &mut desired.peers {
        peer.allowed_ips.retain(|prefix| held.get(prefix).is_none_or(|holder| holder == key));
    }
    for peer in &actual.peers {
        let entry = desired.peers.entry(peer.public_key).or_insert_with(|| DesiredPeer {
            preshared_key: peer.preshared_key.clone(),
            persistent_keepalive: peer.persistent_keepalive,
            ..DesiredPeer::default()
        });
        entry.allowed_ips.extend(&peer.allowed_ips);
        entry.allowed_ips.sort_unstable();
        entry.allowed_ips.dedup();
    }
}

/// What is to be done about a peer's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    /// The endpoint to set; `None` leaves the peer where it is.
    set: Option<SocketAddr>,
    /// Where the peer has been said to be.
    remember: Option<SocketAddr>,
}

/// Chooses among the places where a node says it is.
///
/// A data plane follows a peer that roams, as behind a NAT, and is not to be led back while it hears from it. A peer that is silent is
/// looked for at the next place, once in a while.
fn choose(
    published: &[SocketAddr],
    actual: Option<&PeerSnapshot>,
    remembered: Option<&SocketAddr>,
    occasion: Occasion,
) -> Choice {
    let to = |endpoint: Option<SocketAddr>| Choice { set: endpoint, remember: endpoint };
    let stay = |endpoint: SocketAddr| Choice { set: None, remember: Some(endpoint) };
    let Some(first) = published.first().copied() else { return to(None) };
    let (Some(peer), Some(current)) = (actual, actual.and_then(|peer| peer.endpoint)) else {
        return to(Some(first));
    };
    let is_silent =
        peer.last_handshake.is_none_or(|moment| occasion.now.saturating_sub(moment) > SESSION_LIFE);
    let Some(said) = remembered else {
        // Who was told so is not known any more.
        return if published.contains(&current) {
            stay(current)
        } else if is_silent {
            to(Some(first))
        } else {
            stay(first)
        };
    };
    match published.iter().position(|endpoint| endpoint == said) {
        None => to(Some(first)),
        Some(at) if is_silent && occasion.is_periodic => to(Some(published[(at + 1) % published.len()])),
        Some(_) => stay(*said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::{Objects, Tunnel};
    use crate::control::topology::{Own, topology};

    type Maybe = Option<SocketAddr>;
    type Way<'a> = (fn(&mut PeerSnapshot), &'a Endpoints);
    type Case<'a> = (&'a [SocketAddr], Maybe, u64, Maybe, bool, Maybe, Maybe);

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51820))
    }

    fn peer(endpoint: Option<SocketAddr>, last_handshake: u64) -> PeerSnapshot {
        PeerSnapshot {
            endpoint,
            last_handshake: Some(Duration::from_secs(last_handshake)).filter(|moment| !moment.is_zero()),
            ..PeerSnapshot::new(PublicKey::new([1; 32]))
        }
    }

    #[test]
    fn a_peer_that_is_heard_from_is_left_where_it_is_and_a_silent_one_is_looked_for() {
        const NOW: u64 = 10_000;
        let [a, b, roamed] = [1, 2, 9].map(endpoint);
        let both = [a, b];
        let (fresh, stale) = (NOW - 180, NOW - 181);
        // Published; where the data plane has it, its last handshake; what it was told, the periodic look; what is set and remembered.
        #[rustfmt::skip]
        let cases: [Case<'_>; 12] = [
            (&[],   Some(a),      fresh, None,    true,  None,    None),
            (&both, None,         0,     None,    false, Some(a), Some(a)),
            (&both, None,         0,     Some(b), false, Some(a), Some(a)),
            (&both, Some(roamed), fresh, Some(a), true,  None,    Some(a)),
            (&both, Some(roamed), stale, Some(a), false, None,    Some(a)),
            (&both, Some(roamed), stale, Some(a), true,  Some(b), Some(b)),
            (&both, Some(b),      0,     Some(b), true,  Some(a), Some(a)),
            (&[a],  Some(roamed), stale, Some(a), true,  Some(a), Some(a)),
            (&[b],  Some(a),      fresh, Some(a), false, Some(b), Some(b)),
            (&both, Some(b),      stale, None,    true,  None,    Some(b)),
            (&both, Some(roamed), fresh, None,    true,  None,    Some(a)),
            (&both, Some(roamed), stale, None,    false, Some(a), Some(a)),
        ];
        for (at, (published, actual, last_handshake, remembered, is_periodic, set, remember)) in
            cases.into_iter().enumerate()
        {
            let occasion =
                Occasion { is_complete: true, is_periodic, now: Duration::from_secs(NOW), mtu: None };
            let choice =
                choose(published, Some(&peer(actual, last_handshake)), remembered.as_ref(), occasion);
            assert_eq!(choice, Choice { set, remember }, "case {at}");
        }
        let occasion =
            Occasion { is_complete: true, is_periodic: false, now: Duration::from_secs(NOW), mtu: None };
        assert_eq!(choose(&both, None, Some(&b), occasion), Choice { set: Some(a), remember: Some(a) });
    }

    /// Beside peers that are as they should be, one that is otherwise in one way.
    #[test]
    fn a_peer_that_is_otherwise_in_any_way_is_brought_in_step_and_no_other_is_touched() {
        let mut objects = Objects::default();
        for n in 1..=4 {
            let tunnel = Tunnel {
                active: Some(PublicKey::new([n; 32])),
                keys: vec![PublicKey::new([n; 32])],
                endpoints: vec![endpoint(n)],
                pod_prefixes: vec![format!("10.244.{n}.0/24").parse().unwrap()],
                ..Tunnel::default()
            };
            objects.tunnels.insert(format!("node{n}"), tunnel.into());
        }
        let private_key = PrivateKey::new([9; 32]);
        let topology = topology(&objects, &Own::new("node1", PublicKey::new([1; 32])));
        let peers = topology.peers.iter().map(|(key, peer)| PeerSnapshot {
            endpoint: peer.endpoints.first().copied(),
            persistent_keepalive: topology.settings.persistent_keepalive,
            allowed_ips: peer.allowed_ips.clone(),
            ..PeerSnapshot::new(*key)
        });
        let in_step = Snapshot {
            private_key: Some(private_key.clone()),
            listen_port: topology.settings.listen_port,
            fwmark: topology.settings.fwmark,
            peers: peers.collect(),
        };
        let edits = |actual: &Snapshot, remembered: &Endpoints| -> Vec<Edit> {
            let occasion =
                Occasion { is_complete: true, is_periodic: false, now: Duration::from_secs(1), mtu: None };
            let plan = reconcile(actual, &topology, &private_key, remembered, occasion);
            let edits = plan.steps.into_iter().filter_map(|step| match step {
                Step::Configure(edits) | Step::Forget(edits) => Some(edits),
                Step::Link(_) | Step::Route(_) | Step::Greet(_) => None,
            });
            edits.flatten().collect()
        };
        assert!(edits(&in_step, &Endpoints::new()).is_empty());
        let elsewhere: Endpoints = topology.peers.keys().map(|key| (*key, endpoint(9))).collect();
        let ways: [Way<'_>; 5] = [
            (|peer| peer.preshared_key = PresharedKey::new([7; 32]), &Endpoints::new()),
            (|peer| peer.persistent_keepalive += 1, &Endpoints::new()),
            (|peer| peer.allowed_ips.clear(), &Endpoints::new()),
            (|peer| peer.allowed_ips.insert(0, "10.99.0.0/16".parse().unwrap()), &Endpoints::new()),
            // It was told to be where it is no more.
            (|peer| peer.endpoint = Some(endpoint(9)), &elsewhere),
        ];
        for (at, (change, remembered)) in ways.into_iter().enumerate() {
            let mut actual = in_step.clone();
            change(&mut actual.peers[1]);
            let changed = actual.peers[1].public_key;
            match &edits(&actual, remembered)[..] {
                [Edit::Peer(edit)] => assert_eq!(edit.public_key, changed, "way {at}"),
                others => panic!("way {at}: {others:?}"),
            }
        }
        let mut actual = in_step.clone();
        actual.peers.remove(1);
        assert_eq!(edits(&actual, &Endpoints::new()).len(), 1, "it is added");
        actual = in_step;
        actual.peers.push(PeerSnapshot::new(PublicKey::new([5; 32])));
        assert_eq!(edits(&actual, &Endpoints::new()).len(), 1, "it is removed");
    }
}
