//! A node with its data plane and its agent, and a cluster of many others that are objects only.
//!
//! Where single pods' addresses are told, these have nothing to do with the nodes' blocks: neighbours in the plan are on different nodes.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit::config::Prefix;
use adit::control::objects::Objects;
use adit::control::uapi_client::{Client, DIRECTORY};
use adit::control::watch::Source;
use adit::control::watch::cluster::Cluster;
use adit::sys::clock::boottime;
use adit::sys::netlink::{Event, Groups, Monitor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::applier::Applier;
use crate::cluster::{ADDRESS, ControlPlane, node_object};
use crate::nodes::Mesh;
use crate::others::{self, MANAGER, Others, STATUS_MANAGER};
use crate::relay::Relay;
use crate::support::api_double::{ApiDouble, Kind, Manners};
use crate::support::tunnel::Program;
use crate::support::{Process, pause};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(180);

/// The agent's routing table.
const TABLE: u32 = 8365;

/// Files of objects that kubectl makes at the same time.
const MAKERS: usize = 4;

/// Where kube-apiserver listens, and where the relay in front of it does.
const PORTS: [u16; 2] = [6443, 6444];

/// Pods of our node.
const OWN_PODS: u32 = 50;

/// Pods of each other node.
const PODS: u32 = 10;

/// How long after a node is made its agent says what it is.
const STARTED_AFTER: Duration = Duration::from_secs(3);

/// The distance in the plan between pods of one node: more than there are nodes.
const STRIDE: u32 = 8192;

/// A large cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Nodes, ours included.
    pub(crate) nodes: u32,
    /// Whether nodes tell single pods' addresses (`podAddresses: Pods`).
    pub(crate) has_pods: bool,
}

/// Who tells the agent of the cluster.
pub(crate) enum Api {
    /// kube-apiserver and etcd, with what the agent reaches it by.
    Real(Box<ControlPlane>, Relay),
    /// The tests' double.
    Double(ApiDouble),
}

pub(crate) struct Lab {
    pub(crate) api: Api,
    mesh: Mesh,
    /// For the agent.
    kubeconfig: PathBuf,
    size: Size,
}

impl Lab {
    /// Makes a cluster; `None` if there is no API server. The real one is not asked for pods.
    pub(crate) fn new(size: Size, is_real: bool) -> Option<Self> {
        let mut mesh = Mesh::new(1);
        let plan = if size.has_pods { "Pods" } else { "Blocks" };
        let spec = json!({ "mode": "Strict", "podAddresses": plan });
        let kubeconfig = mesh.objects.path().join("kubeconfig");
        let (api, kubeconfig) = if is_real {
            let plane = ControlPlane::start(&mesh.fabric)?;
            plane.install(&spec.to_string());
            plane.apply("node.yaml", &node_object(&mesh.nodes[0]));
            make(&plane, size);
            let [own, relayed] = PORTS.map(|port| format!("{ADDRESS}:{port}"));
            let text = fs::read_to_string(plane.kubeconfig()).unwrap().replace(&own, &relayed);
            let kubeconfig = plane.write("kubeconfig-relayed", &text);
            let [own, relayed] = [own, relayed].map(|addr| addr.parse().unwrap());
            let relay = Relay::start(plane.namespace(), relayed, own);
            (Api::Real(Box::new(plane), relay), kubeconfig)
        } else {
            mesh.fabric.ip("addr add 10.9.0.100/24 dev fabric");
            // As the real one has it.
            let manners = Manners { page: usize::MAX, bookmarks: Duration::from_secs(60) };
            let double = ApiDouble::start(&mesh.fabric, "10.9.0.100", manners);
            double.put(Kind::Config, json!({ "metadata": { "name": "default" }, "spec": spec }));
            let mut own = node(1);
            own["spec"]["podCIDRs"] = json!(["10.244.1.0/24"]);
            own["status"]["addresses"][0]["address"] = "10.9.0.1".into();
            double.put(Kind::Node, own);
            for number in 2..=size.nodes {
                double.put(Kind::Node, node(number));
                double.apply(Kind::Tunnel, &tunnel(number, 0, size.has_pods), MANAGER);
                double.apply(Kind::Tunnel, &others::found(number, size.nodes - 1), STATUS_MANAGER);
            }
            if size.has_pods {
                (0..OWN_PODS).for_each(|at| double.put(Kind::Pod, pod(at)));
                let mut others = pod(OWN_PODS);
                others["metadata"]["name"] = "elsewhere".into();
                others["spec"]["nodeName"] = "node2".into();
                double.put(Kind::Pod, others);
            }
            fs::write(&kubeconfig, double.kubeconfig()).unwrap();
            (Api::Double(double), kubeconfig)
        };
        mesh.nodes[0].start_data_plane(Program::Adit);
        Some(Self { api, mesh, kubeconfig, size })
    }

    /// Starts the agent, and returns how long it took until every peer and route was there.
    pub(crate) fn start_agent(&mut self) -> Duration {
        let begun = boottime();
        self.mesh.nodes[0].start_agent_apart("KUBECONFIG", &self.kubeconfig);
        loop {
            if self.agent().output().contains("the data plane is in step") && self.is_in_step() {
                return boottime() - begun;
            }
            assert!(boottime() < begun + PATIENCE, "not in step: {}", self.agent().output());
            pause(Duration::from_millis(20));
        }
    }

    pub(crate) fn agent(&self) -> &Process {
        self.mesh.nodes[0].agent.as_ref().expect("it was started")
    }

    /// Tells whether every node is a peer with a route, once that is worth a look.
    fn is_in_step(&self) -> bool {
        let node = &self.mesh.nodes[0];
        let others = self.size.nodes as usize - 1;
        let routes_of_one = if self.size.has_pods { 1 + PODS as usize } else { 1 };
        let snapshot = Client::new(Path::new(DIRECTORY), &node.interface).snapshot();
        let routes = node.namespace.ip(&format!("route show table {TABLE} dev {}", node.interface));
        snapshot.is_ok_and(|snapshot| snapshot.peers.len() == others)
            && routes.lines().count() >= others * routes_of_one
    }

    /// Changes the prefixes of nodes one after the other, and returns how long after each event the route was there.
    pub(crate) fn changes(&self, count: u32) -> Vec<Duration> {
        let node = &self.mesh.nodes[0];
        let mut monitor = node.namespace.enter(|| Monitor::open_for(Groups::ROUTES)).unwrap();
        let mut listener = Listener::new(&self.api, &self.mesh);
        let applier = match &self.api {
            Api::Double(_) => None,
            Api::Real(plane, _) => Some(Applier::start(plane.namespace(), &plane.kubeconfig())),
        };
        let one = |turn: u32| {
            let number = 2 + turn * 7 % (self.size.nodes - 1);
            // What the change before this one leads to, to its end.
            while wait(monitor.as_fd(), None, 100) {
                drop(monitor.take());
            }
            let asked = boottime();
            let object = tunnel(number, turn + 1, self.size.has_pods);
            let expected =
                object["spec"]["podPrefixes"].as_array().and_then(|prefixes| prefixes.last()?.as_str());
            let expected: Prefix = expected.expect("there are some").parse().expect("it is one");
            // That the real API server has answered is not waited for: the event is there before.
            match (&self.api, &applier) {
                (Api::Double(double), _) => double.apply(Kind::Tunnel, &object, MANAGER),
                (Api::Real(..), applier) => applier.as_ref().expect("it was started").apply(object),
            }
            // The double has it now, and sends it.
            let (mut heard, mut routed) = (listener.source.is_none().then(boottime), None);
            while heard.is_none() || routed.is_none() {
                wait(monitor.as_fd(), listener.source.as_ref().map(Source::fd), 1000);
                let now = boottime();
                let is_ours = |event: &Event| matches!(event, Event::Route { table, .. } if *table == TABLE);
                if routed.is_none() && monitor.take().iter().any(is_ours) {
                    routed = Some(now);
                }
                if heard.is_none() && listener.has_heard(number, &expected) {
                    heard = Some(now);
                }
                assert!(now < asked + PATIENCE, "a change is not followed: {}", self.agent().output());
            }
            routed.unwrap().saturating_sub(heard.unwrap())
        };
        (0..count).map(one).collect()
    }

    /// Has a node join, and returns how often the agents of the others, and ours, wrote what they found of it in this time.
    pub(crate) fn join(&self, time: Duration) -> u64 {
        let Api::Double(double) = &self.api else { return 0 };
        let number = self.size.nodes + 1;
        let mut others = Others::at_rest(2..number);
        let own = || double.get(Kind::Tunnel, "node1").unwrap_or_default()["status"].clone();
        let (begun, mut before, mut writes) = (boottime(), own(), 0);
        // The kubelet makes the node, and has the agent started.
        double.put(Kind::Node, node(number));
        others.hear(Some(&format!("node{number}")), number - 2);
        while boottime() < begun + time {
            if others.misses_someone() && boottime() > begun + STARTED_AFTER {
                double.apply(Kind::Tunnel, &tunnel(number, 0, false), MANAGER);
                double.apply(Kind::Tunnel, &others::found(number, number - 1), STATUS_MANAGER);
                others.hear(None, number - 1);
            }
            for found in others.due() {
                double.apply(Kind::Tunnel, &found, STATUS_MANAGER);
                writes += 1;
            }
            let now = own();
            writes += u64::from(std::mem::replace(&mut before, now.clone()) != now);
            pause(Duration::from_millis(50));
        }
        writes
    }

    /// Has pods come to our node and others go, one after the other, and returns how long after each event the cluster is told.
    pub(crate) fn own_pods(&self, count: u32) -> Vec<Duration> {
        let Api::Double(double) = &self.api else { return Vec::new() };
        let is_told = |at: u32| {
            let own = double.get(Kind::Tunnel, "node1").unwrap_or_default();
            let prefixes = own["spec"]["podPrefixes"].as_array().cloned().unwrap_or_default();
            prefixes.contains(&single(1, at).into())
        };
        let one = |turn: u32| {
            let (pair, comes) = (turn / 2, turn.is_multiple_of(2));
            let at = if comes { OWN_PODS + pair } else { pair };
            let asked = boottime();
            if comes {
                double.put(Kind::Pod, pod(at));
            } else {
                double.delete(Kind::Pod, &pod_name(at));
            }
            while is_told(at) != comes {
                assert!(boottime() < asked + PATIENCE, "a pod is not told: {}", self.agent().output());
                pause(Duration::from_micros(200));
            }
            boottime() - asked
        };
        (0..count).map(one).collect()
    }
}

/// Hears of changes as an agent does, where the bench does not make them itself.
struct Listener {
    source: Option<Cluster>,
}

impl Listener {
    fn new(api: &Api, mesh: &Mesh) -> Self {
        let source = match api {
            Api::Double(_) => None,
            Api::Real(plane, _) => {
                let kubeconfig = plane.kubeconfig();
                let start = move || Cluster::start("node1", Some(&kubeconfig), None).unwrap();
                Some(mesh.nodes[0].namespace.enter(start))
            }
        };
        let mut this = Self { source };
        if let Some(source) = &mut this.source {
            while source.objects().is_none() {
                pause(Duration::from_millis(20));
            }
            source.take();
        }
        this
    }

    /// Tells whether a node is known to have a prefix.
    fn has_heard(&mut self, number: u32, prefix: &Prefix) -> bool {
        let Some(source) = &mut self.source else { return true };
        let has = |objects: Objects| {
            objects
                .tunnels
                .get(&format!("node{number}"))
                .is_some_and(|node| node.pod_prefixes.contains(prefix))
        };
        source.take() && source.objects().is_some_and(has)
    }
}

/// Waits until there is something to read, so many milliseconds at most, and tells whether there is.
fn wait(monitor: BorrowedFd<'_>, source: Option<BorrowedFd<'_>>, milliseconds: i64) -> bool {
    let mut fds: Vec<_> =
        [monitor].into_iter().chain(source).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let limit = Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
    poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// Has kubectl make nodes, what they say of themselves and what their agents found, as they would.
fn make(plane: &ControlPlane, size: Size) {
    let numbers: Vec<u32> = (2..=size.nodes).collect();
    let chunks: Vec<_> = numbers.chunks(numbers.len().div_ceil(MAKERS)).collect();
    let list = |name: &str, numbers: &[u32], object: &dyn Fn(u32) -> Value| {
        let items: Vec<_> = numbers.iter().map(|number| object(*number)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        plane.write(&format!("{name}-{}.json", numbers[0]), &list.to_string())
    };
    std::thread::scope(|scope| {
        for numbers in chunks {
            let list = &list;
            scope.spawn(move || {
                let nodes = list("nodes", numbers, &node);
                plane.kubectl(&["create", "-f", nodes.to_str().unwrap()]);
                apply(plane, &list("said", numbers, &|number| tunnel(number, 0, size.has_pods)), MANAGER);
                let found = list("found", numbers, &|number| others::found(number, size.nodes - 1));
                apply(plane, &found, STATUS_MANAGER);
            });
        }
    });
}

/// Has kubectl apply a file as one of an agent's managers of fields.
fn apply(plane: &ControlPlane, file: &Path, manager: &str) {
    let manager_of = format!("--field-manager={manager}");
    let mut args =
        vec!["apply", "--server-side", "--force-conflicts", &manager_of, "-f", file.to_str().unwrap()];
    if manager == STATUS_MANAGER {
        // What an agent found is all that the file holds; kubectl would miss what it says.
        args.extend(["--subresource=status", "--validate=false"]);
    }
    plane.kubectl(&args);
}

/// Returns a node as a kubelet makes it, with the names of the images that it has.
pub(crate) fn node(number: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    let images = (0..40).map(|at| {
        json!({
            "names": [format!("registry.example/team-{at}/an-image-with-a-name@sha256:{at:064x}")],
            "sizeBytes": 100_000_000 + at,
        })
    });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": format!("node{number}"), "labels": { "kubernetes.io/hostname": format!("node{number}") } },
        "spec": { "podCIDRs": [prefix(number)] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": format!("172.16.{high}.{low}") }],
            "images": images.collect::<Vec<_>>(),
        },
    })
}

/// Returns what a node says of itself: its block of pods, its pods outside of it if it has any, and from the first turn on another one.
fn tunnel(number: u32, turn: u32, has_pods: bool) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    let another = match has_pods {
        true => single(number, PODS + turn % 250),
        false => format!("10.{}.{low}.{}/32", 64 + high, 1 + turn % 250),
    };
    let pods = (0..PODS).filter(|_| has_pods).map(|at| single(number, at));
    let mut object = others::said(number);
    let prefixes = object["spec"]["podPrefixes"].as_array_mut().unwrap();
    prefixes.extend(pods.chain((turn > 0).then_some(another)).map(Value::from));
    object
}

fn prefix(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("10.{}.{low}.0/24", 64 + high)
}

/// Returns the address of a node's pod outside of the node's block, as a prefix.
fn single(number: u32, at: u32) -> String {
    let first = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    format!("{}/32", Ipv4Addr::from(first + at * STRIDE + number))
}

fn pod_name(at: u32) -> String {
    format!("app-5d4f8c7b9-{at:05}")
}

/// Returns a pod of our node, as large as those of a small service are.
fn pod(at: u32) -> Value {
    let addr = single(1, at).trim_end_matches("/32").to_owned();
    let variables = (0..10)
        .map(|at| json!({ "name": format!("SETTING_{at}"), "value": format!("a-value-that-is-set-{at}") }));
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080, "scheme": "HTTP" }, "periodSeconds": 10, "timeoutSeconds": 1 });
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let conditions = conditions.map(|kind| {
        json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z" })
    });
    json!({
        "metadata": {
            "name": pod_name(at), "namespace": "default", "generateName": "app-5d4f8c7b9-",
            "labels": { "app.kubernetes.io/name": "app", "pod-template-hash": "5d4f8c7b9" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app-5d4f8c7b9", "controller": true }],
        },
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": "app",
            "containers": [{
                "name": "app",
                "image": format!("registry.example/team/an-image-with-a-name@sha256:{at:064x}"),
                "env": variables.collect::<Vec<_>>(),
                "resources": { "limits": { "memory": "256Mi" }, "requests": { "cpu": "100m", "memory": "256Mi" } },
                "livenessProbe": probe, "readinessProbe": probe,
                "volumeMounts": [{ "name": "token", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
            }],
        },
        "status": {
            "phase": "Running", "podIP": addr, "podIPs": [{ "ip": addr }], "hostIP": "10.9.0.1",
            "conditions": conditions, "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z",
        },
    })
}
