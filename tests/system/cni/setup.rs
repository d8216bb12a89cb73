//! A node of a mesh with an agent that answers the plugin, and networks on it.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::control::nodes::{Mesh, Node};
use crate::support::tunnel::Program;
use crate::support::{Directory, Process, SOON, wait_until};

use super::runtime::Runtime;

/// A mesh whose first node is called by a runtime.
pub(crate) struct Lab {
    pub(crate) mesh: Mesh,
    pub(crate) files: Directory,
}

impl Lab {
    /// Makes a mesh of so many nodes, and starts nothing.
    #[track_caller]
    pub(crate) fn new(nodes: usize) -> Self {
        let mesh = Mesh::new(nodes);
        mesh.write(
            "config",
            "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Strict, mtu: 1420}\n",
        );
        Self { mesh, files: Directory::new() }
    }

    /// The same, with data planes and agents, ready for pods.
    #[track_caller]
    pub(crate) fn started(nodes: usize) -> Self {
        let mut lab = Self::new(nodes);
        for number in 0..nodes {
            lab.mesh.nodes[number].start_data_plane(Program::Adit);
            lab.start_agent(number, &[]);
        }
        (0..nodes).for_each(|number| lab.wait_until_ready(number));
        lab
    }

    pub(crate) fn node(&self) -> &Node {
        &self.mesh.nodes[0]
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts the agent of a node, which answers the plugin, with these variables beside its own.
    #[track_caller]
    pub(crate) fn start_agent(&mut self, number: usize, variables: &[(&str, &str)]) {
        self.mesh.nodes[number].agent = Some(self.spawn_agent(number, variables));
    }

    /// The same, while others look at the node.
    #[track_caller]
    pub(crate) fn spawn_agent(&self, number: usize, variables: &[(&str, &str)]) -> Process {
        let node = &self.mesh.nodes[number];
        let [socket, state] = ["sock", "state"].map(|name| self.path(&format!("{name}{number}")));
        let own = [
            ("NODE_NAME", &format!("node{}", number + 1)[..]),
            ("ADIT_STATE", node.state.path().to_str().unwrap()),
            ("ADIT_RUN", node.state.path().to_str().unwrap()),
            ("ADIT_INTERFACE", &node.interface),
            ("ADIT_CNI_SOCKET", &socket),
            ("ADIT_CNI_STATE", &state),
        ];
        // Those of a cluster, if there is one.
        let objects = [("ADIT_OBJECTS", self.mesh.objects.path().to_str().unwrap())];
        let is_in_cluster = variables.iter().any(|(name, _)| *name == "KUBECONFIG");
        let objects = if is_in_cluster { &[][..] } else { &objects };
        node.namespace.spawn_with(
            env!("CARGO_BIN_EXE_adit"),
            &["agent"],
            &[&own, objects, variables].concat(),
        )
    }

    /// Waits until pods can be added.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self, number: usize) {
        let runtime = Runtime::of("1.1.0", &[self.chained_on(number)]);
        wait_until("an agent that is ready", SOON, || {
            runtime.status(&self.mesh.nodes[number].namespace).is_ok()
        });
    }

    /// Returns the plugin's configuration behind another one.
    pub(crate) fn chained(&self) -> Value {
        self.chained_on(0)
    }

    fn chained_on(&self, number: usize) -> Value {
        json!({
            "type": "adit-cni",
            "agentSocket": self.path(&format!("sock{number}")),
            "stateDir": self.path(&format!("state{number}")),
            "readyTimeout": "20s",
        })
    }

    /// Returns the configuration of main mode on a node.
    pub(crate) fn main(&self, number: usize) -> Value {
        let n = number + 1;
        let mut config = self.chained_on(number);
        config["mode"] = "main".into();
        config["ipam"] = self.ipam(
            number,
            json!([[{ "subnet": format!("fd00:244:{n}::/64"), "rangeStart": format!("fd00:244:{n}::10") }]]),
        );
        config
    }

    /// Returns a configuration of host-local for a node's block of addresses, with further ranges.
    fn ipam(&self, number: usize, mut more: Value) -> Value {
        let n = number + 1;
        let block = |end: &str| format!("10.244.{n}.{end}");
        let range = json!([{ "subnet": block("0/24"), "rangeStart": block("10"), "gateway": block("254") }]);
        let ranges = more.as_array_mut().unwrap();
        ranges.insert(0, range);
        let directory = self.path(&format!("leases{number}"));
        json!({ "type": "host-local", "ranges": ranges, "dataDir": directory, "routes": [{ "dst": "0.0.0.0/0" }] })
    }

    /// Returns the configuration of Debian's `ptp` on the first node.
    pub(crate) fn ptp(&self) -> Value {
        json!({ "type": "ptp", "mtu": 1500, "ipam": self.ipam(0, json!([])) })
    }

    /// Returns that of its `bridge`.
    pub(crate) fn bridge(&self) -> Value {
        json!({ "type": "bridge", "bridge": "pods", "isGateway": true, "mtu": 1500, "ipam": self.ipam(0, json!([])) })
    }

    /// Returns how many addresses host-local has given away on a node.
    pub(crate) fn leases(&self, number: usize) -> usize {
        let entries = std::fs::read_dir(PathBuf::from(self.path(&format!("leases{number}"))).join("net"));
        // Beside the leases there are a lock and the last address of each range.
        let is_lease = |name: &str| name != "lock" && !name.starts_with("last_reserved");
        entries.map_or(0, |entries| {
            entries.filter(|entry| is_lease(entry.as_ref().unwrap().file_name().to_str().unwrap())).count()
        })
    }

    /// Returns how many pods the agent of a node has registered.
    pub(crate) fn registered(&self, number: usize) -> usize {
        std::fs::read_dir(self.mesh.nodes[number].state.path().join("pods")).map_or(0, Iterator::count)
    }
}
