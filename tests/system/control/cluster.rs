//! The control loop against a real kube-apiserver and etcd, found where `KUBEBUILDER_ASSETS` says, as envtest has it.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use adit::control::objects::Objects;
use adit::control::read;
use adit::control::settings::Settings;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::nodes::{Mesh, Node, answered};
use crate::support::tunnel::Program;
use crate::support::{Directory, Namespace, Process, SOON, need, skip, wait_until};

/// Where the API server is.
pub(super) const ADDRESS: &str = "10.9.0.100";

/// What may do everything.
pub(super) const TOKEN: &str = "an-administrator-of-this-test";

/// etcd and kube-apiserver in a namespace of their own, on the nodes' fabric.
pub(crate) struct ControlPlane {
    namespace: Namespace,
    assets: PathBuf,
    files: Directory,
    pub(super) api_server: Option<Process>,
    /// Whether it runs workloads: pods have service accounts then.
    has_kubelets: bool,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts both; `None` if they are not here.
    #[track_caller]
    pub(crate) fn start(fabric: &Namespace) -> Option<Self> {
        Self::start_for(fabric, &[])
    }

    /// Starts both for a cluster that runs workloads, with these users and the groups that they are of; a user's name is its token.
    #[track_caller]
    pub(crate) fn start_for(fabric: &Namespace, users: &[(&str, &str)]) -> Option<Self> {
        let said = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let assets = said.clone().unwrap_or_else(|| "/usr/local/kubebuilder/bin".into());
        if ["etcd", "kube-apiserver", "kubectl"].iter().any(|program| !assets.join(program).exists()) {
            // They come with no system: where nobody has said that they are here, none is missed.
            match said {
                Some(_) => skip("etcd, kube-apiserver or kubectl in KUBEBUILDER_ASSETS"),
                None => eprintln!("skipped: KUBEBUILDER_ASSETS does not say where a control plane is"),
            }
            return None;
        }
        let namespace = Namespace::new();
        fabric.join("port100", &[], &namespace, "eth0", &[&format!("{ADDRESS}/24")]);
        fabric.ip("link set port100 master fabric");
        let files = Directory::new();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        write_keys(files.path());
        let users: String =
            users.iter().map(|(user, group)| format!("{user},{user},{user},{group}\n")).collect();
        fs::write(path("tokens"), format!("{TOKEN},admin,1,system:masters\n{users}")).unwrap();
        let etcd = namespace.spawn(
            assets.join("etcd").to_str().unwrap(),
            &["--data-dir", &path("etcd"), "--unsafe-no-fsync", "--log-level=error"],
        );
        let has_kubelets = !users.is_empty();
        let mut this = Self { namespace, assets, files, api_server: None, has_kubelets, _etcd: etcd };
        this.write_kubeconfig("kubeconfig", TOKEN);
        this.start_api_server();
        Some(this)
    }

    #[track_caller]
    pub(super) fn start_api_server(&mut self) {
        let path = |name: &str| self.files.path().join(name).to_str().unwrap().to_owned();
        let mut args = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={ADDRESS}"),
            format!("--cert-dir={}", path("certificates")),
            format!("--token-auth-file={}", path("tokens")),
            format!("--service-account-signing-key-file={}", path("private.pem")),
            format!("--service-account-key-file={}", path("public.pem")),
            "--service-account-issuer=https://adit.test".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
        ];
        if self.has_kubelets {
            args.push("--allow-privileged".to_owned());
            args.push("--kubelet-preferred-address-types=InternalIP".to_owned());
        } else {
            args.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let program = self.assets.join("kube-apiserver");
        self.api_server = Some(self.namespace.spawn(program.to_str().unwrap(), &args));
        wait_until("the API server", SOON * 2, || self.try_kubectl(&["get", "--raw", "/readyz"]).0);
    }

    /// Installs the definitions.
    #[track_caller]
    pub(crate) fn define(&self) {
        self.kubectl(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/cni/manifests/crds.yaml")]);
        let definitions = ["crd/nodetunnels.adit.dev", "crd/tunnelconfigs.adit.dev"];
        self.kubectl(&[&["wait", "--for=condition=Established"], &definitions[..]].concat());
    }

    /// Installs the definitions and a `TunnelConfig` for all nodes.
    #[track_caller]
    pub(crate) fn install(&self, spec: &str) {
        self.define();
        let config = "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec:";
        self.apply("config.yaml", &format!("{config} {spec}\n"));
    }

    /// Changes fields of the `TunnelConfig` for all nodes.
    #[track_caller]
    pub(crate) fn configure(&self, fields: &str) {
        let patch = format!("{{\"spec\":{fields}}}");
        self.kubectl(&["patch", "tunnelconfig", "default", "--type=merge", "-p", &patch]);
    }

    /// Has etcd forget the history of everything up to the newest change.
    #[track_caller]
    pub(super) fn compact(&self) {
        let list = self.kubectl(&["get", "--raw", "/apis/adit.dev/v1alpha1/nodetunnels?limit=1"]);
        let list: Value = serde_json::from_str(&list).unwrap();
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let body = format!("{{\"revision\":\"{version}\",\"physical\":true}}");
        let request = format!(
            "POST /v3/kv/compaction HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.namespace.enter(move || {
            let mut stream = TcpStream::connect("127.0.0.1:2379").unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Writes how the API server is reached with a token, and returns where that is.
    pub(crate) fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let certificate = self.files.path().join("certificates/apiserver.crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
            clusters: [{{name: test, cluster: {{server: \"https://{ADDRESS}:6443\", certificate-authority: {}}}}}]\n\
            users: [{{name: test, user: {{token: {token}}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            certificate.display(),
        );
        self.write(name, &text)
    }

    /// Starts a program of the control plane beside it.
    #[track_caller]
    pub(crate) fn spawn(&self, program: &str, args: &[&str]) -> Process {
        self.namespace.spawn(self.assets.join(program).to_str().unwrap(), args)
    }

    /// Returns where a file of the control plane lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn try_kubectl(&self, args: &[&str]) -> (bool, String) {
        self.try_kubectl_as(&self.kubeconfig(), args)
    }

    /// Runs kubectl with another's token.
    pub(crate) fn try_kubectl_as(&self, kubeconfig: &Path, args: &[&str]) -> (bool, String) {
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.to_str().unwrap());
        let args = [&[kubeconfig.as_str()], args].concat();
        self.namespace.try_run(self.assets.join("kubectl").to_str().unwrap(), &args)
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let (success, text) = self.try_kubectl(args);
        assert!(success, "kubectl {}: {text}", args.join(" "));
        text
    }

    #[track_caller]
    pub(crate) fn apply(&self, name: &str, text: &str) {
        let path = self.write(name, text);
        self.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    }

    /// Writes a file that goes with the control plane.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Returns the namespace that both are in.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns where their programs are, and kubectl.
    pub(crate) fn assets(&self) -> &Path {
        &self.assets
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.files.path().join("kubeconfig")
    }
}

/// Writes a key for the tokens of service accounts, and its public half (RFC 5480), as PEM.
fn write_keys(directory: &Path) {
    const P256: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let public = [&P256, pair.public_key().as_ref()].concat();
    for (name, label, bytes) in
        [("private.pem", "PRIVATE KEY", document.as_ref()), ("public.pem", "PUBLIC KEY", &public)]
    {
        let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(bytes));
        fs::write(directory.join(name), text).unwrap();
    }
}

/// Returns the cluster's own object for a node, as a kubelet makes it.
pub(crate) fn node_object(node: &Node) -> String {
    let n = node.number;
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node{n}}}\nspec: {{podCIDRs: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"], \
        podCIDR: 10.244.{n}.0/24}}\nstatus: {{addresses: [{{type: InternalIP, address: 10.9.0.{n}}}, {{type: Hostname, address: node{n}}}]}}\n"
    )
}

/// Returns a node as the cluster knows it that gave it no addresses, and what follows: what such a node says of itself.
pub(super) fn bare_node(name: &str, said: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n{said}")
}

/// Returns what `wg` prints for a node that says of itself what the cluster knows of it.
pub(crate) fn as_peer(node: &Node) -> String {
    let n = node.number;
    node.as_peer(&[&format!("10.244.{n}.0/32"), &format!("fd00:244:{n}::/128")])
}

#[test]
fn nodes_of_a_cluster_find_each_other_and_outlive_its_api_server() {
    need!("ip", "wg", "ping", "setpriv", "unshare", "mount");
    let mut mesh = Mesh::new(3);
    let Some(mut plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.define();
    // As the README says.
    plane.kubectl(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/cni/manifests/config.yaml")]);
    plane.configure(r#"{"mode":"Strict","clusterCIDRs":["10.244.0.0/16","fd00:244::/32"]}"#);
    for node in &mut mesh.nodes {
        node.start_data_plane(Program::Adit);
        node.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    }
    // The nodes are made after their agents have begun: nobody has anything to say before.
    mesh.nodes.iter().for_each(|node| plane.apply("node.yaml", &node_object(node)));
    let [first, second, third] = &mut mesh.nodes[..] else { panic!("three nodes") };
    first.wait_until_peers_are(&[as_peer(second), as_peer(third)]);
    third.wait_until_peers_are(&[as_peer(first), as_peer(second)]);
    first.wait_for_pod_of(second);
    second.wait_for_pod_of(third);
    let table = plane.kubectl(&["get", "nodetunnels"]);
    assert!(table.contains(&first.key) && table.contains("10.9.0.1"), "{table}");
    let path = "jsonpath={.status.peers.total} {.status.conditions[?(@.status==\"True\")].type}";
    wait_until("a status without fault", SOON, || {
        let found = plane.kubectl(&["get", "nodetunnel", "node1", "-o", path]);
        found.trim() == "2 DataplaneReady KeyPublished PeersInSync StrictEnforced"
    });
    // What its links leave for a packet is told as well.
    assert_eq!(plane.kubectl(&["get", "nodetunnel", "node1", "-o", "jsonpath={.spec.mtu}"]), "1440");

    // The zone is a label that may come later.
    plane.kubectl(&["label", "node", "node1", "topology.kubernetes.io/zone=east"]);
    wait_until("the zone", SOON, || {
        let path = "jsonpath={.spec.endpoints[*].zone}";
        plane.kubectl(&["get", "nodetunnel", "node1", "-o", path]).trim() == "east"
    });

    // What somebody writes over is written again.
    plane.kubectl(&[
        "patch",
        "nodetunnel",
        "node2",
        "--type=merge",
        "-p",
        r#"{"spec":{"podPrefixes":["10.250.0.0/24"]}}"#,
    ]);
    // And nothing is left beside it.
    wait_until("the node's own words", SOON, || {
        let path = "jsonpath={.spec.podPrefixes}";
        plane.kubectl(&["get", "nodetunnel", "node2", "-o", path]).trim()
            == r#"["10.244.2.0/24","fd00:244:2::/64"]"#
    });
    first.wait_until_peers_are(&[as_peer(second), as_peer(third)]);

    // The API server goes away. Agents go on, and one that is started anew knows what it knew.
    let ping = first.ping(second);
    drop(plane.api_server.take());
    let agent = first.agent.as_ref().unwrap();
    wait_until("a word about the watch", SOON, || agent.output().contains("the watch has failed"));
    // What is known is on disk a second after it was learned.
    wait_until("the snapshot", SOON, || {
        let text = fs::read_to_string(first.state.path().join("snapshot.json")).unwrap_or_default();
        [&second.key, &third.key].iter().all(|key| text.contains(*key))
    });
    drop(first.agent.take());
    first.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    let agent = first.agent.as_ref().unwrap();
    wait_until("the objects as last known", SOON, || agent.output().contains("the data plane answers"));
    assert!(agent.output().contains("as last known"), "{}", agent.output());
    first.wait_until_peers_are(&[as_peer(second), as_peer(third)]);

    // A node that boots finds its peers all the same.
    third.reboot(&mesh.fabric);
    third.start_data_plane(Program::Adit);
    third.start_agent_with("KUBECONFIG", &plane.kubeconfig());
    third.wait_until_peers_are(&[as_peer(first), as_peer(second)]);
    third.wait_for_pod_of(second);

    // It comes back. A node that is gone is forgotten.
    plane.start_api_server();
    drop(third.agent.take());
    plane.kubectl(&["delete", "node/node3", "nodetunnel/node3"]);
    first.wait_until_peers_are(&[as_peer(second)]);
    second.wait_until_peers_are(&[as_peer(first)]);
    let (sent, received) = answered(ping);
    assert!(sent > 50 && sent - received <= 1, "{sent} sent, {received} answered");
}

/// Returns what an agent that reads an object does not obey of it.
fn not_obeyed(object: &Value) -> Vec<String> {
    let mut objects = Objects::default();
    objects.insert(read::object(object).unwrap());
    let mut faults: Vec<_> = objects.tunnels.values().flat_map(|tunnel| tunnel.faults.clone()).collect();
    let mut found = Vec::new();
    Settings::of(&objects, "node1", &[].into(), &mut found);
    faults.extend(found.into_iter().map(|(_, fault)| fault));
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn what_an_agent_would_not_obey_is_refused_in_words() {
    need!("ip");
    let mesh = Mesh::new(1);
    let Some(plane) = ControlPlane::start(&mesh.fabric) else { return };
    plane.define();
    let object = |kind: &str, spec: &Value| {
        let name = if kind == "NodeTunnel" { "node1" } else { "default" };
        json!({ "apiVersion": "adit.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
    };
    let create = |object: &Value| {
        let path = plane.write("object.json", &object.to_string());
        plane.try_kubectl(&["create", "--dry-run=server", "-f", path.to_str().unwrap()])
    };
    let key = json!({ "publicKey": mesh.nodes[0].key, "state": "Active" });
    let with_key = |mut spec: Value| {
        spec["keys"].is_null().then(|| spec["keys"] = json!([key]));
        object("NodeTunnel", &spec)
    };
    let at = |addr: &str, port: u32| json!({ "endpoints": [{ "address": addr, "port": port }] });
    let (wide, unusual) =
        ("no block wider than /8 (IPv6: /16)", "packets between nodes do not have such addresses");
    let place = "ADDRESS:PORT or :PORT is needed";
    let bad = [
        (with_key(json!({ "keys": [{ "publicKey": "x", "state": "Active" }] })), "32 bytes in base64"),
        (with_key(json!({ "keys": [key, key] })), "at most one key is Active"),
        (with_key(at("10.9.0.1", 0)), "should be greater than or equal to 1"),
        (with_key(at("10.9.0.1", 65_536)), "should be less than or equal to 65535"),
        (with_key(at("nowhere", 1)), "an IPv4 or IPv6 address is needed"),
        (with_key(at("0.0.0.0", 1)), "nobody can be reached there"),
        (with_key(at("ff02::1", 1)), "nobody can be reached there"),
        (with_key(json!({ "podPrefixes": ["10.244.1.0"] })), "a prefix is ADDRESS/LENGTH"),
        (with_key(json!({ "podPrefixes": ["10.0.0.0/7"] })), wide),
        (with_key(json!({ "podPrefixes": ["fd00::/15"] })), wide),
        (with_key(json!({ "podPrefixes": ["127.0.0.0/8"] })), unusual),
        (with_key(json!({ "podPrefixes": ["fe80::/64"] })), unusual),
        (with_key(json!({ "nodeAddresses": ["224.0.0.1"] })), unusual),
        (with_key(json!({ "nodeAddresses": ["10.9.0.1/24"] })), "an IPv4 or IPv6 address is needed"),
        (with_key(json!({ "tunnelAddresses": ["10.244.1.0/24"] })), "a single address is needed"),
        (with_key(json!({ "tunnelAddresses": ["::1"] })), unusual),
        (with_key(json!({ "tunnelAddresses": ["169.254.0.1/32"] })), unusual),
        (with_key(json!({ "mtu": "wide" })), "must be of type integer"),
        (object("TunnelConfig", &json!({ "mode": "strict" })), "Unsupported value"),
        (
            object("TunnelConfig", &json!({ "clusterCIDRs": ["10.244.0.0"] })),
            "the word Auto or a prefix is needed",
        ),
        (object("TunnelConfig", &json!({ "clusterCIDRs": ["0.0.0.0/0"] })), wide),
        (object("TunnelConfig", &json!({ "clusterCIDRs": ["Auto", "10.244.0.0/16"] })), "Auto stands alone"),
        (
            object("TunnelConfig", &json!({ "exempt": ["everything"] })),
            "the word apiserver or a prefix is needed",
        ),
        (object("TunnelConfig", &json!({ "listenPort": 0 })), "should be greater than or equal to 1"),
        (object("TunnelConfig", &json!({ "openPortIn": ["arp filter INPUT"] })), "openPortIn"),
        (object("TunnelConfig", &json!({ "interfaceName": "a/b" })), "interfaceName"),
        (object("TunnelConfig", &json!({ "interfaceName": ".." })), "no interface can have this name"),
        (object("TunnelConfig", &json!({ "mtu": 100 })), "a number from 576 to 65535"),
        (object("TunnelConfig", &json!({ "persistentKeepalive": "500ms" })), "persistentKeepalive"),
        (object("TunnelConfig", &json!({ "persistentKeepalive": "65536s" })), "at most 65535s"),
        (
            object("TunnelConfig", &json!({ "routing": { "rulePriority": 32_766 } })),
            "should be less than or equal to 32765",
        ),
        (object("TunnelConfig", &json!({ "routing": { "table": 254 } })), "a number from 256"),
        (object("TunnelConfig", &json!({ "routing": { "fwmark": "0x7" } })), "a number from 1"),
        (object("TunnelConfig", &json!({ "metrics": { "address": "here:9586" } })), place),
        (object("TunnelConfig", &json!({ "metrics": { "address": ":65536" } })), place),
        (object("TunnelConfig", &json!({ "metrics": { "address": "::1:9586" } })), place),
    ];
    for (object, words) in &bad {
        let (success, text) = create(object);
        assert!(!success && text.contains(words), "{object}: {words} is not in {text}");
        assert_ne!(not_obeyed(object), [""; 0], "{object}: an agent obeys it");
    }
    // An agent would take it for what is meant, but it is a slip of the pen.
    let (success, text) = create(&with_key(json!({ "podPrefixes": ["10.244.1.7/24"] })));
    assert!(!success && text.contains("host bits that are not zero"), "{text}");
    let good = [
        with_key(json!({
            "endpoints": [{ "address": "127.0.0.1", "port": 1 }, { "address": "2001:db8::1", "port": 65_535 }],
            "podPrefixes": ["10.0.0.0/8", "fd00::/16"],
            "nodeAddresses": ["10.9.0.1", "2001:db8::1"],
            "tunnelAddresses": ["10.244.1.0", "fd00:1::/128"],
        })),
        object(
            "TunnelConfig",
            &json!({
                "mode": "Strict", "clusterCIDRs": ["10.0.0.0/8", "fd00::/16"], "persistentKeepalive": "1h25s",
                "interfaceName": "adit.0", "metrics": { "address": ":9586" },
            }),
        ),
        object(
            "TunnelConfig",
            &json!({ "clusterCIDRs": ["Auto"], "metrics": { "address": "127.0.0.1:9586" } }),
        ),
        object("TunnelConfig", &json!({ "metrics": { "address": "[::1]:9586" } })),
    ];
    for object in &good {
        let (success, text) = create(object);
        assert!(success, "{object}: {text}");
        assert_eq!(not_obeyed(object), [""; 0], "{object}");
    }
}
