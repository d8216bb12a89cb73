//! Nodes with kubelet and containerd, each in namespaces of its own, and the control plane beside them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Pid;

use crate::control::cluster::ControlPlane;
use crate::control::wire::{CANARY, Seen, Wire, canary_pattern};
use crate::support::{Directory, Namespace, Process, SOON, find, process, skip, wait_until};

/// How long a pod may take to be there: its image is unpacked on a machine that does other things.
pub(super) const A_WHILE: Duration = Duration::from_secs(120);

/// A cluster.
pub(super) struct Cluster {
    pub(super) nodes: Vec<KubeNode>,
    pub(super) plane: ControlPlane,
    pub(super) fabric: Namespace,
    images: Directory,
    network: PodNetwork,
    _beside: Vec<Process>,
    /// How many nodes have been booted.
    booted: usize,
    /// One cluster at a time is enough for a small machine.
    _turn: MutexGuard<'static, ()>,
}

/// Who makes the pods' network.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PodNetwork {
    /// Debian's `bridge`, which is there from the start.
    Bridge,
    /// Nobody: a node is not ready before somebody comes.
    None,
}

/// A node. What runs there ends with it.
pub(super) struct KubeNode {
    number: usize,
    pub(super) name: String,
    /// The control group that all of it is in.
    group: String,
    namespace: Namespace,
    /// What it keeps on disk.
    _directory: Directory,
    process: Option<Process>,
}

/// A pod as the API server knows it.
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) address: String,
    uid: String,
}

impl Cluster {
    /// Starts a control plane and so many nodes, and waits until they are ready if they can be; `None` if something for that is missing.
    #[track_caller]
    pub(super) fn start(count: usize, network: PodNetwork) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let fabric = Namespace::new();
        fabric.ip("link add fabric type bridge");
        fabric.ip("link set fabric up");
        let names: Vec<_> = (1..=MOST_NODES).map(|number| format!("system:node:node{number}")).collect();
        let mut users: Vec<_> = names.iter().map(|name| (name.as_str(), "system:nodes")).collect();
        users.extend(BESIDE.iter().map(|(user, _)| (*user, "system:authenticated")));
        let plane = ControlPlane::start_for(&fabric, &users)?;
        for program in ["kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler"] {
            if !plane.assets().join(program).exists() {
                // envtest has only those of a control plane.
                eprintln!("skipped: {program} missing where KUBEBUILDER_ASSETS says");
                return None;
            }
        }
        let Some(image) = std::env::var_os("ADIT_IMAGE") else {
            skip("ADIT_IMAGE, the archive that cni/image.sh makes,");
            return None;
        };
        let path = |name: &str| plane.path(name).to_str().unwrap().to_owned();
        let beside = BESIDE.iter().filter(|(_, program)| !program.is_empty()).map(|(user, program)| {
            let config = plane.write_kubeconfig(&format!("{program}.conf"), user);
            let config = config.to_str().unwrap();
            let mut args = vec![
                format!("--kubeconfig={config}"),
                format!("--authentication-kubeconfig={config}"),
                format!("--authorization-kubeconfig={config}"),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
            ];
            if *program == "kube-controller-manager" {
                args.extend([
                    "--use-service-account-credentials".to_owned(),
                    format!("--service-account-private-key-file={}", path("private.pem")),
                    format!("--root-ca-file={}", path("certificates/apiserver.crt")),
                    format!("--cert-dir={}", path("certificates")),
                ]);
            }
            plane.spawn(program, &args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let beside = beside.collect();
        let images = Directory::new();
        make_busybox_image(images.path());
        fs::copy(image, images.path().join(IMAGE)).unwrap();
        let mut this = Self {
            nodes: Vec::new(),
            plane,
            fabric,
            images,
            network,
            _beside: beside,
            booted: 0,
            _turn: turn,
        };
        for _ in 0..count {
            this.add_node();
        }
        if network == PodNetwork::Bridge {
            this.wait_until_all_are_ready();
        }
        wait_until("the default service account", A_WHILE, || {
            this.plane.try_kubectl(&["get", "serviceaccount", "default"]).0
        });
        Some(this)
    }

    /// Boots one more node.
    #[track_caller]
    pub(super) fn add_node(&mut self) {
        self.boot(None);
    }

    /// Boots one that registers itself with a taint. It lacks adit's image until [`Self::bring_image`]: no agent comes up there before.
    #[track_caller]
    pub(super) fn add_tainted_node(&mut self, taint: &str) {
        self.boot(Some(taint));
    }

    /// Boots one, with pods in 10.244.N.0/24, and a way to them that is not encrypted, as a CNI plugin without an overlay lays it.
    #[track_caller]
    fn boot(&mut self, taint: Option<&str>) {
        let number = self.booted + 1;
        self.booted = number;
        let (name, address) = (format!("node{number}"), format!("10.9.0.{number}"));
        let namespace = Namespace::new();
        let port = format!("port{number}");
        self.fabric.join(&port, &[], &namespace, "eth0", &[&format!("{address}/24")]);
        self.fabric.ip(&format!("link set {port} master fabric"));
        namespace.ip("route add default via 10.9.0.100");
        namespace.sysctl("net/ipv4/ip_forward", "1");
        for node in &self.nodes {
            let other = node.number;
            namespace.ip(&format!("route add 10.244.{other}.0/24 via 10.9.0.{other}"));
            node.namespace.ip(&format!("route add 10.244.{number}.0/24 via {address}"));
        }
        let spec = format!(r#"{{"podCIDR":"10.244.{number}.0/24","podCIDRs":["10.244.{number}.0/24"]}}"#);
        if taint.is_none() {
            let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {spec}\n");
            self.plane.apply(&format!("{name}.yaml"), &node);
        }
        let directory = Directory::new();
        for (file, user) in
            [("kubelet.conf", format!("system:node:{name}")), ("proxy.conf", "system:kube-proxy".to_owned())]
        {
            let made = self.plane.write_kubeconfig(&format!("{name}.{file}"), &user);
            fs::copy(made, directory.path().join(file)).unwrap();
        }
        for image in fs::read_dir(self.images.path()).unwrap().flatten() {
            let is_wanted = taint.is_none() || image.file_name() != IMAGE;
            if is_wanted && image.path().extension().is_some_and(|end| end == "tar") {
                fs::hard_link(image.path(), directory.path().join(image.file_name())).unwrap();
            }
        }
        let group = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/system/clusters/node.sh");
        let pods = match self.network {
            PodNetwork::Bridge => format!("10.244.{number}.0/24"),
            PodNetwork::None => String::new(),
        };
        let args = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", script];
        let args = [
            &args[..],
            &[directory.path().to_str().unwrap(), &name, &address, &pods, &group, taint.unwrap_or_default()],
        ]
        .concat();
        let assets = self.plane.assets().to_str().unwrap().to_owned();
        let process = namespace.spawn_with("unshare", &args, &[("KUBEBUILDER_ASSETS", &assets)]);
        self.nodes.push(KubeNode {
            group,
            number,
            name: name.clone(),
            namespace,
            _directory: directory,
            process: Some(process),
        });
        if taint.is_some() {
            // Kubelet sets the taint on a node that it makes, and on no other.
            wait_until("a node that registers itself", A_WHILE, || {
                self.plane.try_kubectl(&["get", "node", &name]).0
            });
            let patch = format!(r#"{{"spec":{spec}}}"#);
            self.plane.kubectl(&["patch", "node", &name, "--type=merge", "-p", &patch]);
        }
    }

    /// Brings adit's image to a node that was without, and has its pod there begin anew.
    #[track_caller]
    pub(super) fn bring_image(&self, node: &str) {
        let image = self.images.path().join(IMAGE);
        let first = self.first_process_of(node);
        let args = ["-t", &first, "-m", "-p", "ctr", "-n", "k8s.io", "images", "import"];
        self.fabric.run("nsenter", &[&args[..], &[image.to_str().unwrap()]].concat());
        let field = format!("--field-selector=spec.nodeName={node}");
        self.plane.kubectl(&["-n", "adit-system", "delete", "pods", &field]);
    }

    #[track_caller]
    pub(super) fn wait_until_all_are_ready(&self) {
        self.nodes.iter().for_each(|node| self.wait_until_ready(&node.name));
    }

    #[track_caller]
    pub(super) fn wait_until_ready(&self, node: &str) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        wait_until(&format!("{node} to be ready"), A_WHILE, || {
            self.plane.try_kubectl(&["get", "node", node, "-o", path]).1 == "True"
        });
    }

    pub(super) fn set_mode(&self, mode: &str) {
        let patch = format!(r#"{{"spec":{{"mode":"{mode}"}}}}"#);
        self.plane.kubectl(&["patch", "tunnelconfig", "default", "--type=merge", "-p", &patch]);
    }

    #[track_caller]
    pub(super) fn wait_for_rollout(&self, namespace: &str, what: &str) {
        let limit = format!("--timeout={}s", A_WHILE.as_secs());
        let (success, text) = self.plane.try_kubectl(&["-n", namespace, "rollout", "status", what, &limit]);
        assert!(success, "{what}: {text}\n{}", self.plane.kubectl(&["-n", namespace, "describe", "pods"]));
    }

    /// Returns the pods with a label, by the names of their nodes.
    #[track_caller]
    pub(super) fn pods(&self, label: &str) -> Vec<Pod> {
        let path = "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIP} {.metadata.uid}{\"\\n\"}{end}";
        let text = self.plane.kubectl(&["get", "pods", "-l", label, "-o", path]);
        let mut pods: Vec<_> = text
            .lines()
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                let mut next = || words.next().unwrap_or_default();
                Pod { node: next(), name: next(), address: next(), uid: next() }
            })
            .collect();
        pods.sort_by(|one, other| one.node.cmp(&other.node));
        pods
    }

    /// Runs a command in a pod; returns what it printed, if it succeeded.
    pub(super) fn exec(&self, pod: &str, command: &[&str]) -> Option<String> {
        let args = [&["exec", pod, "--"], command].concat();
        let (success, text) = self.plane.try_kubectl(&args);
        success.then_some(text)
    }

    /// Has a pod send the canary to an echo pod; returns the name of the one that has sent it back.
    pub(super) fn echo(&self, pod: &str, address: &str, port: u16) -> Option<String> {
        let canary = str::from_utf8(CANARY).unwrap();
        let text = self.exec(pod, &["sh", "-c", &format!("echo {canary} | nc -w 3 {address} {port}")])?;
        let (name, echo) = text.split_once('\n')?;
        (echo.trim_end() == canary).then(|| name.to_owned())
    }

    /// Tells whether a pod sends back what another sends it.
    pub(super) fn echoes(&self, from: &Pod, to: &Pod) -> bool {
        self.echo(&from.name, &to.address, PORT).as_deref() == Some(&to.name)
    }

    #[track_caller]
    pub(super) fn wait_for_echo(&self, pod: &str, address: &str) {
        wait_until(&format!("an echo of {address} for {pod}"), SOON, || {
            self.echo(pod, address, PORT).is_some()
        });
    }

    /// Starts to send echo requests with the canary from a pod to another, without end.
    #[track_caller]
    pub(super) fn ping(&self, from: &Pod, to: &Pod) -> Process {
        self.ping_with(from, to, &[])
    }

    /// Starts to send so many, the last of which is waited for as well.
    #[track_caller]
    pub(super) fn ping_times(&self, from: &Pod, to: &Pod, count: usize) -> Process {
        self.ping_with(from, to, &["-W", "4", "-c", &count.to_string()])
    }

    #[track_caller]
    fn ping_with(&self, from: &Pod, to: &Pod, more: &[&str]) -> Process {
        let net = format!("--net=/proc/{}/ns/net", process_of(&from.uid, "nc").unwrap().as_raw_nonzero());
        let pattern = canary_pattern();
        let args = [&net, "ping", "-n", "-q", "-i", INTERVAL, "-p", &pattern];
        self.fabric.spawn("nsenter", &[&args, more, &[&to.address]].concat())
    }

    /// Returns the uid of adit's pod on a node.
    #[track_caller]
    pub(super) fn adit_on(&self, node: &str) -> String {
        let field = format!("--field-selector=spec.nodeName={node}");
        let path = "jsonpath={.items[0].metadata.uid}";
        self.plane.kubectl(&["-n", "adit-system", "get", "pods", &field, "-o", path])
    }

    /// Has what the agent made on a node taken away, by a pod on it.
    #[track_caller]
    pub(super) fn clean_up(&self, node: &str) {
        let image = concat!("--image=localhost/adit:", env!("CARGO_PKG_VERSION"));
        let target = format!("node/{node}");
        let start = ["debug", &target, "--profile=sysadmin", image, "--"];
        let command = "/usr/bin/adit agent --cleanup --state /host/var/lib/adit --run /host/run/adit \
            --cni-conf-dir /host/etc/cni/net.d --cni-bin-dir /host/opt/cni/bin --cni-plugin /usr/bin/adit-cni \
            --cni-state /host/var/lib/adit/cni";
        let command: Vec<_> = command.split_whitespace().collect();
        let text = self.plane.kubectl(&[&start[..], &command].concat());
        let pod = text.split_whitespace().find(|word| word.starts_with("node-debugger-")).expect(&text);
        let phase = "--for=jsonpath={.status.phase}=Succeeded";
        let (success, waited) =
            self.plane.try_kubectl(&["wait", phase, "--timeout=60s", &format!("pod/{pod}")]);
        assert!(success, "{waited}: {}", self.plane.try_kubectl(&["logs", pod]).1);
    }

    /// Returns rules, firewall and CNI configuration of a node.
    pub(super) fn left_on(&self, node: &str) -> String {
        let first = self.first_process_of(node);
        let lists = fs::read_dir(format!("/proc/{first}/root/etc/cni/net.d")).unwrap().flatten();
        let lists: String = lists.filter_map(|list| fs::read_to_string(list.path()).ok()).collect();
        let node = self.node(node);
        node.namespace.ip("rule") + &node.namespace.run("nft", &["list", "ruleset"]) + &lists
    }

    fn node(&self, name: &str) -> &KubeNode {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// Returns the first process in a node's namespaces.
    fn first_process_of(&self, node: &str) -> String {
        let parent = self.node(node).process.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        children.split_whitespace().next().unwrap().to_owned()
    }

    /// Takes a node out of the cluster and ends all that runs there.
    #[track_caller]
    pub(super) fn remove_node(&mut self, name: &str) {
        self.plane.kubectl(&["delete", "node", name]);
        self.nodes.retain_mut(|node| {
            if node.name == name {
                node.end();
            }
            node.name != name
        });
    }

    /// Waits until what a pod sends to another passes through the tunnel.
    #[track_caller]
    pub(super) fn wait_until_encrypted(&self, wire: &Wire, from: &Pod, to: &Pod) {
        wait_until("an echo through the tunnel", A_WHILE, || {
            wire.forget(Seen::Canary);
            wire.forget(Seen::WireGuard);
            self.echoes(from, to) && wire.count(Seen::WireGuard) > 0 && wire.count(Seen::Canary) == 0
        });
    }
}

/// Returns the first process of a pod whose command line begins with the word, by the control groups of processes.
pub(super) fn process_of(uid: &str, word: &str) -> Option<Pid> {
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let mut ids: Vec<i32> = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    ids.sort_unstable();
    ids.into_iter().find_map(|id| {
        let read = |file| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let is_it = read("cgroup").contains(uid) && read("cmdline").split('\0').any(|part| part == word);
        Pid::from_raw(id).filter(|_| is_it)
    })
}

/// The time between two echo requests, in seconds.
pub(super) const INTERVAL: &str = "0.005";
/// How many that are in a second.
pub(super) const PINGS_A_SECOND: usize = 200;

/// The file of adit's image.
const IMAGE: &str = "adit.tar";

/// The port of the echo pods.
const PORT: u16 = 8080;

/// The most nodes that a test has.
const MOST_NODES: usize = 4;

/// Who runs beside the API server, and by which program; kube-proxy runs on the nodes.
const BESIDE: [(&str, &str); 3] = [
    ("system:kube-controller-manager", "kube-controller-manager"),
    ("system:kube-scheduler", "kube-scheduler"),
    ("system:kube-proxy", ""),
];

/// Makes the image of busybox, which all pods of the tests run.
#[track_caller]
fn make_busybox_image(directory: &Path) {
    let root = directory.join("busybox");
    fs::create_dir_all(root.join("bin")).unwrap();
    let busybox = find("busybox").expect("busybox");
    fs::copy(&busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "nc", "nslookup", "ping", "hostname", "ip", "kill"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::create_dir_all(root.join("tmp")).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cni/oci.sh");
    let out = directory.join("busybox.tar");
    let args = [root.to_str().unwrap(), "localhost/busybox:1", out.to_str().unwrap()];
    let end = ["/bin/sleep", "1000000"];
    process::expect_success(script, &args, Command::new(script).args(args).args(end).output());
}

impl KubeNode {
    fn end(&mut self) {
        drop(self.process.take());
        // Its control groups, which nothing is in any more.
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for place in controllers.chain([root.to_owned()]) {
            let group = place.join(&self.group);
            wait_until("an empty control group", SOON, || remove_groups(&group));
        }
    }
}

impl Drop for KubeNode {
    fn drop(&mut self) {
        self.end();
    }
}

/// Removes a control group with those below it; tells whether none is left.
fn remove_groups(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}
