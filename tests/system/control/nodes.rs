//! Nodes on one fabric, each with a data plane and an agent.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::detour::Detour;
use crate::support::tunnel::{Key, Program, socket_path};
use crate::support::{Directory, Namespace, Process, SOON, ifname, wait_until};

/// What is added to a node's number where it is not found at its own address.
const PLACES: usize = 200;

/// Nodes on one fabric, and the objects that they are told.
pub(crate) struct Mesh {
    pub(crate) objects: Directory,
    pub(crate) nodes: Vec<Node>,
    pub(crate) fabric: Namespace,
    /// What lies between the nodes, if they are not next to each other.
    detour: Option<Detour>,
}

/// A node: its address is 10.9.0.N, its pods' 10.244.N.0/24 and fd00:244:N::/64, with a pod at .1 and ::1.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) interface: String,
    pub(crate) namespace: Namespace,
    pub(crate) state: Directory,
    pub(crate) key: String,
    pub(crate) data_plane: Option<Process>,
    pub(crate) agent: Option<Process>,
    /// What the kernel calls this run of the system, where that is not this machine's own.
    boot: Option<PathBuf>,
}

impl Mesh {
    /// Makes nodes on a bridge, each with its object, but starts nothing.
    #[track_caller]
    pub(crate) fn new(count: usize) -> Self {
        let fabric = Namespace::new();
        fabric.ip("link add fabric type bridge");
        fabric.ip("link set fabric up");
        let nodes = (1..=count).map(|number| Node::new(&fabric, number)).collect();
        let mesh = Self { objects: Directory::new(), nodes, fabric, detour: None };
        mesh.write("config", "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: Strict}\n");
        mesh.nodes.iter().for_each(|node| mesh.publish(node, &node.key, &[]));
        mesh
    }

    /// Has what the nodes send each other take this long. Each is found at 10.9.0.(200 + N).
    #[track_caller]
    pub(crate) fn set_apart(&mut self, delay: Duration) {
        let end = |host: usize| format!("10.9.0.{host}:51820").parse::<SocketAddr>().unwrap();
        let pairs: Vec<_> =
            self.nodes.iter().map(|node| (end(node.number), end(PLACES + node.number))).collect();
        for (_, place) in &pairs {
            self.fabric.ip(&format!("addr add {}/24 dev fabric", place.ip()));
        }
        self.detour = Some(Detour::start(&self.fabric, &pairs, delay));
        self.nodes.iter().for_each(|node| self.publish(node, &node.key, &[]));
    }

    /// Starts data planes and agents, and waits until every node has every other for a peer.
    #[track_caller]
    pub(crate) fn start(&mut self, program: Program) {
        for node in &mut self.nodes {
            node.start_data_plane(program);
            node.start_agent(&self.objects);
        }
        for node in &self.nodes {
            node.wait_for_peers(self.nodes.len() - 1);
        }
    }

    /// Writes an object beside its place and renames it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.objects.path().join(format!("{name}.yaml"));
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, text).unwrap();
        fs::rename(unfinished, path).unwrap();
    }

    /// Writes a node's object, with further prefixes of pods.
    pub(crate) fn publish(&self, node: &Node, key: &str, more: &[&str]) {
        let n = node.number;
        let place = if self.detour.is_some() { PLACES + n } else { n };
        let more: String = more.iter().map(|prefix| format!(", \"{prefix}\"")).collect();
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: node{n}}}\nspec:\n  \
            keys: [{{publicKey: \"{key}\", state: Active}}]\n  endpoints: [{{address: 10.9.0.{place}, port: 51820}}]\n  \
            podPrefixes: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"{more}]\n  nodeAddresses: [10.9.0.{n}]\n"
        );
        self.write(&format!("node{n}"), &text);
    }
}

impl Node {
    fn new(fabric: &Namespace, number: usize) -> Self {
        let namespace = network(fabric, number);
        let state = Directory::new();
        let path = state.path().to_str().unwrap();
        let key = namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--public-key", "--state", path]);
        let (interface, key) = (ifname(), key.trim_end().to_owned());
        Self { number, interface, namespace, state, key, data_plane: None, agent: None, boot: None }
    }

    /// Ends all that runs, and has the node be as after a boot: what is on its disk is there, and of its network what others make.
    #[track_caller]
    pub(crate) fn reboot(&mut self, fabric: &Namespace) {
        drop((self.agent.take(), self.data_plane.take()));
        fabric.ip(&format!("link del port{}", self.number));
        self.namespace = network(fabric, self.number);
        // What lies in `/run` is gone.
        let _ = fs::remove_file(self.state.path().join("mtu"));
        let boot = self.state.path().join("boot_id");
        fs::write(&boot, "11111111-2222-4333-8444-555555555555\n").unwrap();
        self.boot = Some(boot);
    }

    #[track_caller]
    pub(crate) fn start_data_plane(&mut self, program: Program) {
        self.data_plane = Some(program.start(&self.namespace, &self.interface, &[], &[]));
    }

    #[track_caller]
    pub(crate) fn start_agent(&mut self, objects: &Directory) {
        self.start_agent_with("ADIT_OBJECTS", objects.path());
    }

    /// Starts an agent with a variable that tells where objects come from.
    #[track_caller]
    pub(crate) fn start_agent_with(&mut self, variable: &str, path: &Path) {
        self.start_agent_in(&[(variable, path.to_str().unwrap())]);
    }

    /// The same with the socket of its own data plane alone: every test has its sockets in the usual directory, and the agent looks at each.
    #[track_caller]
    pub(crate) fn start_agent_apart(&mut self, variable: &str, path: &Path) {
        let (sockets, socket) = (self.state.path().join("sockets"), socket_path(&self.interface));
        fs::create_dir(&sockets).unwrap();
        symlink(&socket, sockets.join(socket.file_name().unwrap())).unwrap();
        let [path, sockets] = [path, &sockets].map(|path| path.to_str().unwrap());
        self.start_agent_in(&[(variable, path), ("ADIT_SOCKETS", sockets)]);
    }

    /// Starts an agent with these variables beside those of the node.
    #[track_caller]
    pub(crate) fn start_agent_in(&mut self, variables: &[(&str, &str)]) {
        let name = format!("node{}", self.number);
        let own = [
            ("NODE_NAME", name.as_str()),
            ("ADIT_STATE", self.state.path().to_str().unwrap()),
            ("ADIT_RUN", self.state.path().to_str().unwrap()),
            ("ADIT_INTERFACE", &self.interface),
        ];
        let env = [&own, variables].concat();
        let adit = env!("CARGO_BIN_EXE_adit");
        self.agent = Some(match &self.boot {
            None => self.namespace.spawn_with(adit, &["agent"], &env),
            Some(boot) => {
                let line = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$1\" agent";
                let args = ["--mount", "sh", "-c", line, boot.to_str().unwrap(), adit];
                self.namespace.spawn_with("unshare", &args, &env)
            }
        });
    }

    /// Returns the peers with their allowed IPs, as `wg` prints them; empty while nobody answers.
    pub(crate) fn peers(&self) -> Vec<String> {
        // `wg` removes a socket that nobody listens on.
        if std::os::unix::net::UnixStream::connect(socket_path(&self.interface)).is_err() {
            return Vec::new();
        }
        let (_, text) = self.namespace.try_run("wg", &["show", &self.interface, "allowed-ips"]);
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Returns what `wg` prints for `other` as a peer, with further prefixes.
    pub(crate) fn as_peer(&self, more: &[&str]) -> String {
        let n = self.number;
        let mut prefixes =
            vec![format!("10.244.{n}.0/24"), format!("10.9.0.{n}/32"), format!("fd00:244:{n}::/64")];
        prefixes.extend(more.iter().map(|prefix| (*prefix).to_owned()));
        prefixes.sort();
        format!("{}\t{}", self.key, prefixes.join(" "))
    }

    #[track_caller]
    pub(crate) fn wait_for_peers(&self, count: usize) {
        wait_until("the peers", SOON, || self.peers().len() == count);
    }

    /// Waits until the peers are these.
    #[track_caller]
    pub(crate) fn wait_until_peers_are(&self, expected: &[String]) {
        let mut expected: Vec<_> = expected.to_vec();
        expected.sort();
        let sorted = |line: &String| {
            let (key, prefixes) = line.split_once('\t').unwrap_or_default();
            let mut prefixes: Vec<_> = prefixes.split_whitespace().collect();
            prefixes.sort_unstable();
            format!("{key}\t{}", prefixes.join(" "))
        };
        wait_until("peers as expected", SOON, || {
            self.peers().iter().map(sorted).eq(expected.iter().cloned())
        });
    }

    /// Waits until a pod of another node answers one of this node.
    #[track_caller]
    pub(crate) fn wait_for_pod_of(&self, other: &Self) {
        let (own, n) = (self.number, other.number);
        for (from, to) in [
            (format!("10.244.{own}.1"), format!("10.244.{n}.1")),
            (format!("fd00:244:{own}::1"), format!("fd00:244:{n}::1")),
        ] {
            wait_until("an answer from a pod", SOON, || {
                self.namespace.succeeds(&format!("ping -n -c 1 -W 1 -I {from} {to}"))
            });
        }
    }

    /// Starts to send an echo request every 2 ms from a pod to one of another node.
    pub(crate) fn ping(&self, other: &Self) -> Process {
        let (from, to) = (format!("10.244.{}.1", self.number), format!("10.244.{}.1", other.number));
        self.namespace.spawn("ping", &["-n", "-q", "-i", "0.002", "-I", &from, &to])
    }

    /// Gives the node another key; an agent that runs goes on with the one before.
    #[track_caller]
    pub(crate) fn change_key(&mut self) {
        let key = Key::generate();
        fs::write(self.state.path().join("private.key"), key.secret()).unwrap();
        self.key = key.public();
    }

    /// Returns the moment of the latest handshake with another node, in seconds since the Unix epoch.
    #[track_caller]
    pub(crate) fn handshake_with(&self, other: &Self) -> String {
        let all = self.handshakes();
        let line = all.lines().find_map(|line| line.strip_prefix(&other.key));
        line.expect("the peer is there").trim().to_owned()
    }

    /// Returns the moments of the latest handshakes by peer.
    pub(crate) fn handshakes(&self) -> String {
        self.namespace.run("wg", &["show", &self.interface, "latest-handshakes"])
    }
}

/// Makes what a node has of a network before anything of it runs: a place on the fabric, and a pod.
#[track_caller]
fn network(fabric: &Namespace, number: usize) -> Namespace {
    let namespace = Namespace::new();
    let port = format!("port{number}");
    fabric.join(&port, &[], &namespace, "eth0", &[&format!("10.9.0.{number}/24")]);
    fabric.ip(&format!("link set {port} master fabric"));
    namespace.ip(&format!("addr add 10.244.{number}.1/32 dev lo"));
    namespace.ip(&format!("addr add fd00:244:{number}::1/128 dev lo nodad"));
    namespace
}

/// Ends a [`Node::ping`], and returns how many requests were sent and how many were answered.
#[track_caller]
pub(crate) fn answered(mut ping: Process) -> (u64, u64) {
    ping.signal(rustix::process::Signal::INT);
    ping.wait(SOON);
    let mut text = String::new();
    wait_until("the summary of ping", SOON, || {
        text = ping.output();
        text.contains("packet loss")
    });
    let line = text.lines().find(|line| line.contains("packet loss")).unwrap();
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
