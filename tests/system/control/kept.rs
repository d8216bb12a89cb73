//! An agent that starts while nobody tells it of the cluster: it acts on what it kept, adds to what is there, and removes nothing of it.

use std::fs;

use super::nodes::{Mesh, Node, answered};
use super::unreliable::Rig;
use super::wire::{Seen, Wire, canary_pattern};
use crate::support::api_double::Kind;
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// The agent's routing table.
const TABLE: &str = "8365";

/// A peer that the agent was told of a moment before it ended.
const STRANGER: &str = "c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYW4=";

impl Node {
    /// Starts an agent whose API server does not answer.
    fn start_agent_alone(&mut self) {
        let path = self.state.path().join("kubeconfig");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
            clusters: [{name: test, cluster: {server: \"https://127.0.0.1:1\"}}]\n\
            users: [{name: test, user: {token: none}}]\ncontexts: [{name: test, context: {cluster: test, user: test}}]\n";
        fs::write(&path, text).unwrap();
        self.start_agent_with("KUBECONFIG", &path);
    }

    fn routes(&self) -> String {
        self.namespace.ip(&format!("route show table {TABLE}"))
    }

    /// Makes routes and firewall what they were in Permissive, as if the kernel had refused those of Strict. The firewall is gone, or
    /// protects nothing, by what `nft` is told.
    fn go_back_to_permissive(&self, nft: &[&str]) {
        let namespace = &self.namespace;
        for line in self.routes().lines().filter(|line| line.starts_with("blackhole")) {
            namespace.ip(&format!("route del {} table {TABLE}", line.trim()));
        }
        namespace.ip(&format!("route replace throw 10.244.3.0/24 metric 1024 protocol 173 table {TABLE}"));
        namespace.run("nft", nft);
    }

    #[track_caller]
    fn wait_for_strict(&self) {
        wait_until("the routes of Strict", SOON, || {
            let routes = self.routes();
            let is_closed = ["10.244.2.0/24", "10.244.3.0/24"]
                .iter()
                .all(|to| routes.contains(&format!("blackhole {to}")));
            is_closed && !routes.contains("throw 10.244.3.0/24")
        });
        wait_until("the firewall of Strict", SOON, || {
            let (_, firewall) = self.namespace.try_run("nft", &["list", "set", "inet", "adit", "protected4"]);
            firewall.contains("10.244.2.0/23")
        });
    }
}

#[test]
fn strict_that_the_kernel_had_refused_takes_effect_before_the_api_server_is_back() {
    need!("ip", "wg", "ping", "setpriv", "nft");
    let mut mesh = Mesh::new(2);
    // A node without a key, and the way without a tunnel.
    let node3 = "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {name: node3}\nspec: {podPrefixes: [10.244.3.0/24]}\n";
    mesh.write("node3", node3);
    mesh.nodes[0].namespace.ip("route add 10.244.2.0/23 via 10.9.0.2");
    mesh.start(Program::Adit);
    let wire = Wire::open(&mesh.fabric, "port1");
    let Mesh { nodes, objects, .. } = &mut mesh;
    let [first, second] = &mut nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    first.wait_for_strict();
    wait_until("the snapshot", SOON, || {
        let text = fs::read_to_string(first.state.path().join("snapshot.json")).unwrap_or_default();
        text.contains("Strict") && text.contains("node3")
    });
    let ping = first.ping(second);
    let _to_node3 = {
        let args = ["-n", "-q", "-i", "0.005", "-p", &canary_pattern(), "-I", "10.244.1.1", "10.244.3.1"];
        first.namespace.spawn("ping", &args)
    };

    drop(first.agent.take());
    let stranger = format!("10.244.9.0/24 dev {}", first.interface);
    first.namespace.run("wg", &["set", &first.interface, "peer", STRANGER, "allowed-ips", "10.244.9.0/24"]);
    first.namespace.ip(&format!("route add {stranger} metric 2048 protocol 173 table {TABLE}"));
    first.go_back_to_permissive(&["flush", "set", "inet", "adit", "protected4"]);
    wire.wait_for(Seen::Canary, "cleartext before the agent starts");
    first.start_agent_alone();
    first.wait_for_strict();
    assert!(first.routes().contains(&stranger), "{}", first.routes());
    first.wait_for_peers(2);
    wire.forget(Seen::Canary);
    wire.forget(Seen::WireGuard);
    wire.wait_for(Seen::WireGuard, "what goes on through the tunnel");
    // What is there is looked after.
    first.namespace.ip(&format!("route del {stranger} table {TABLE}"));
    wait_until("the way to the stranger", SOON, || first.routes().contains(&stranger));
    assert_eq!(wire.count(Seen::Canary), 0, "in clear");
    let (sent, received) = answered(ping);
    assert!(sent > 50 && sent - received <= 1, "{sent} sent, {received} answered");

    // Without a data plane there is nowhere to go.
    drop((first.agent.take(), first.data_plane.take()));
    first.go_back_to_permissive(&["delete", "table", "inet", "adit"]);
    wire.wait_for(Seen::Canary, "cleartext before the agent starts");
    first.start_agent_alone();
    first.wait_for_strict();
    wire.forget(Seen::Canary);
    first.start_data_plane(Program::Adit);
    first.wait_for_pod_of(second);
    assert_eq!(wire.count(Seen::Canary), 0, "in clear");

    // Once all is said, what nobody names goes.
    first.namespace.ip(&format!("route add {stranger} metric 2048 protocol 173 table {TABLE}"));
    drop(first.agent.take());
    first.start_agent(objects);
    wait_until("the stranger's end", SOON, || !first.routes().contains("10.244.9.0/24"));
    first.wait_for_strict();
    first.wait_for_pod_of(second);
}

#[test]
fn a_mode_that_cannot_be_kept_is_said_and_kept_as_soon_as_it_can_be() {
    need!("ip", "wg", "setpriv");
    let mut rig = Rig::new(1);
    let state = rig.node().state.path().to_owned();
    // In the way of what is written beside it; a full disk is as good.
    fs::create_dir(state.join("mode.new")).unwrap();
    let _networks = rig.start_agent_of_all();
    let sync = || {
        let tunnel = rig.double.get(Kind::Tunnel, "node1").unwrap_or_default();
        let conditions = tunnel["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == "PeersInSync").unwrap_or_default();
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("message"))
    };
    wait_until("a word of it", SOON, || {
        let (status, message) = sync();
        status == "False" && message.contains("the mode cannot be kept: ")
    });
    assert!(
        rig.node().namespace.succeeds("nft list set inet adit protected4"),
        "Strict is there all the same"
    );
    let kept = || fs::read_to_string(state.join("mode")).unwrap_or_default();
    assert_eq!(kept(), "");
    fs::remove_dir(state.join("mode.new")).unwrap();
    wait_until("the mode on disk", SOON, || kept() == "Strict\n");
    wait_until("that all is well", SOON, || sync().0 == "True");
}
