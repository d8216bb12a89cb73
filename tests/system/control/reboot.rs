//! A node boots while the API server is away.

use std::fs;

use super::loss::flow;
use super::nodes::{Mesh, Node};
use super::unreliable::{node, serve};
use super::wire::{Seen, Wire};
use crate::support::api_double::Kind;
use crate::support::sequence::Flow;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// Whatever the network was before is gone: nothing that keeps packets from leaving in clear is there but what the agent makes anew, of
/// what it has on disk.
#[test]
fn a_node_that_boots_while_the_api_server_is_away_comes_back_and_sends_nothing_in_clear() {
    need!("ip", "wg", "ping", "setpriv", "nft", "unshare", "mount");
    let mut mesh = Mesh::new(2);
    let (double, kubeconfig) = serve(&mesh);
    [1, 2].into_iter().for_each(|number| double.put(Kind::Node, node(number)));
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &kubeconfig);
    }
    let Mesh { nodes, fabric, .. } = &mut mesh;
    let [first, second] = &mut nodes[..] else { panic!("two nodes") };
    second.wait_for_peers(1);
    wait_until("an answer from a pod", SOON, || {
        first.namespace.succeeds("ping -n -c 1 -W 1 -I 10.244.1.1 10.244.2.1")
    });
    let peers = second.peers();
    wait_until("what it keeps", SOON, || {
        let text = fs::read_to_string(second.state.path().join("snapshot.json")).unwrap_or_default();
        text.contains(&first.key) && text.contains(&second.key)
    });

    drop(double);
    second.reboot(fabric);
    // The ways without a tunnel, as whoever makes the pods' network lays them.
    first.namespace.ip("route add 10.244.2.0/24 via 10.9.0.2");
    second.namespace.ip("route add 10.244.1.0/24 via 10.9.0.1");
    let state = |node: &Node| {
        let found = ["rule", "route show table all"].map(|line| node.namespace.ip(line)).concat();
        found + &node.namespace.run("nft", &["list", "ruleset"])
    };
    let found = state(second);
    assert!(!found.contains("8365") && !found.contains("adit"), "left of the time before: {found}");
    let wire = Wire::open(fabric, "port1");
    let (there, back) = (flow(second, first), flow(first, second));
    // The control: what is seen of a pod that sends before the agent runs.
    wire.wait_for(Seen::Canary, "cleartext before the agent");

    second.start_agent_with("KUBECONFIG", &kubeconfig);
    wait_until("the way in clear closed before there is a data plane", SOON, || {
        let found = state(second);
        found.contains("blackhole 10.244.1.0/24") && found.contains("lookup 8365")
    });
    wire.forget(Seen::Canary);
    there.wait_for_more(50);
    second.start_data_plane(Program::Adit);
    there.wait_for_arrival();
    back.wait_for_arrival();
    there.wait_for_more(50);
    assert_eq!(second.peers(), peers, "the peers as last known");
    assert_eq!(wire.count(Seen::Canary), 0, "in clear");
    assert!(wire.count(Seen::WireGuard) > 50);
    let agent = second.agent.as_ref().unwrap();
    assert!(agent.output().contains("the objects as last known"), "{}", agent.output());
    [&there, &back].into_iter().for_each(Flow::stop);
}
