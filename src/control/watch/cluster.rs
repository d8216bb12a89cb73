//! The Kubernetes API: lists and watches, on a thread with an async runtime of its own.
//!
//! `NodeTunnel`s and `TunnelConfig`s are watched whole. Of `Node`s only the metadata is, since every kubelet writes its status all day
//! long; a node is fetched when it is new, and again while it has no pod prefixes, which never change once they are given. Its addresses
//! may: this node is fetched whenever it has changed, and another one when its own agent names other addresses than it is known to have.
//! Its zone is a label, and followed.
//!
//! Where API servers are is told by the slices of the service `kubernetes`: what a pod is told leads there by way of a translation, which
//! the routes do not see.
//!
//! What addresses all pods have is told by kubeadm's configuration, where there is one that may be read.
//!
//! What this node says of itself is written by server-side apply, and tried until it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Config, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot, watch as latest};
use tokio::time::sleep;

use super::Source;
use super::access::Reach;
use super::events::{self, Teller};
use super::follow::{News, Pauses, answer, follow, may_list, read_as};
use super::taint::{Taint, keep_off};
use crate::control::api::{Mode, NodeTunnel, NodeTunnelStatus, TunnelConfig, TunnelConfigSpec};
use crate::control::happening::Happening;
use crate::control::objects::{Named, Node, Object, Objects};
use crate::control::settings::FOR_ALL;
use crate::control::{read, status};
use crate::sys::wake::Wake;

/// Who we are to the API server: the fields that we apply are ours.
pub(super) const FIELD_MANAGER: &str = "adit-agent";

/// Who we are when we write what we found.
const STATUS_MANAGER: &str = "adit-agent-status";

/// How long after what was found is written it may be written again, whatever happens: each write is read by every agent.
const REPORT_PAUSE: Duration = Duration::from_secs(5);

/// How long after it was told that it may not read something the agent asks again.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// A node without blocks is new for so many changes, of which it has one every few seconds then.
const NEW_FOR: u32 = 32;

/// Of its later changes, one in so many is looked into.
const ASKED_EVERY: u32 = 64;

/// The objects of a cluster.
pub struct Cluster {
    shared: Arc<Common>,
    reach: Reach,
    api_servers: Vec<IpAddr>,
    published: latest::Sender<Option<Value>>,
    reported: latest::Sender<Option<(String, NodeTunnelStatus)>>,
    events: Teller,
    /// The node whose pods are wanted.
    pods_of: latest::Sender<Option<String>>,
    unwanted: latest::Sender<Option<Taint>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the loop share.
struct Common {
    /// Readable when there is something to take.
    wake: Wake,
    state: Mutex<State>,
    /// Told when the node that has a taint too many may be another.
    touched: Notify,
    /// Told when a node is to be fetched again.
    doubted: Notify,
}

#[derive(Default)]
struct State {
    objects: Objects,
    /// Which lists were read to their end.
    is_listed: [bool; 5],
    is_changed: bool,
    /// The nodes that are to be fetched again.
    doubted: BTreeSet<String>,
    /// How often nodes that have no blocks have changed.
    blockless: BTreeMap<String, u32>,
}

/// What is listed and watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tunnel,
    Config,
    Node,
    ApiServers,
    PodNetwork,
    /// None is waited for: they are not always wanted.
    Pod,
}

impl State {
    /// Tells whether a node that has changed is to be fetched. An address that it says it has and the cluster did not know when it was asked
    /// may be known since. Blocks are given to a node while it is new, and stay; or never, and every node changes every few minutes: if all
    /// agents then asked for it each time, they would do little else.
    fn wants_node(&mut self, name: &str) -> bool {
        let said =
            self.objects.tunnels.get(name).map(|tunnel| &tunnel.node_addresses[..]).unwrap_or_default();
        let node = self.objects.nodes.get(name);
        let Some(node) = node.filter(|node| said.iter().all(|addr| node.addresses.contains(addr))) else {
            return true;
        };
        if !node.pod_prefixes.is_empty() {
            return false;
        }
        let changes = self.blockless.entry(name.to_owned()).or_default();
        *changes = changes.wrapping_add(1);
        *changes <= NEW_FOR || changes.is_multiple_of(ASKED_EVERY)
    }
}

impl Cluster {
    /// Begins to watch for a node, by the kubeconfig file given, or as a pod of the cluster. That the API server answers is not awaited. Where
    /// there is no `TunnelConfig` for all nodes, one with `default_mode` is made.
    ///
    /// # Errors
    /// If the configuration cannot be used, or no thread or descriptor is left.
    pub fn start(node: &str, kubeconfig: Option<&Path>, default_mode: Option<Mode>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(configuration(kubeconfig))?;
        let api_servers = config
            .cluster_url
            .host()
            .and_then(|host| host.trim_start_matches('[').trim_end_matches(']').parse().ok());
        let wake = Wake::new()?;
        let shared = Arc::new(Common {
            wake,
            state: Mutex::default(),
            touched: Notify::new(),
            doubted: Notify::new(),
        });
        let (stop, stopped) = oneshot::channel();
        let (published, wanted) = latest::channel(None);
        let (reported, found) = latest::channel(None);
        let (pods_of, pods_wanted) = latest::channel(None);
        let (unwanted, taint) = latest::channel(None);
        let (events, to_tell) = events::queue();
        let theirs = Arc::clone(&shared);
        let own = node.to_owned();
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config).map_err(io::Error::other)?
        };
        let thread = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow_all(client.clone(), &theirs, &own, default_mode, wanted, found, taint.clone()) => {}
                    () = keep_off(client.clone(), taint, &theirs.touched) => {}
                    () = follow_pods(client.clone(), &theirs, pods_wanted) => {}
                    () = events::write(client, to_tell) => {}
                    _ = stopped => {}
                }
            });
        })?;
        let api_servers = api_servers.into_iter().collect();
        let reach = kubeconfig.map_or(Reach::Pod, |path| Reach::Kubeconfig(path.to_owned()));
        Ok(Self {
            shared,
            reach,
            api_servers,
            published,
            reported,
            events,
            pods_of,
            unwanted,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl Source for Cluster {
    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    fn take(&mut self) -> bool {
        self.shared.wake.take();
        std::mem::take(&mut self.shared.lock().is_changed)
    }

    fn look_again(&mut self) -> bool {
        // The watches see to it themselves that they miss nothing.
        self.take()
    }

    fn objects(&self) -> Option<Objects> {
        let state = self.shared.lock();
        state.is_listed.iter().all(|listed| *listed).then(|| state.objects.clone())
    }

    fn api_servers(&self) -> &[IpAddr] {
        &self.api_servers
    }

    fn reach(&self) -> Option<Reach> {
        Some(self.reach.clone())
    }

    fn want_pods(&mut self, node: &str, is_wanted: bool) {
        say(&self.pods_of, is_wanted.then(|| node.to_owned()));
    }

    fn want_untainted(&mut self, node: &str, taint: Option<&str>) {
        say(&self.unwanted, taint.map(|key| Taint { node: node.to_owned(), key: key.to_owned() }));
    }

    fn publish(&mut self, tunnel: Value) {
        self.published.send_replace(Some(tunnel));
    }

    fn tell(&mut self, node: &str, happening: Happening) {
        self.events.tell(node, happening);
    }

    fn events_lost(&self) -> Arc<AtomicU64> {
        self.events.lost()
    }

    fn report(&mut self, node: &str, status: NodeTunnelStatus) {
        self.reported.send_replace(Some((node.to_owned(), status)));
    }
}

/// Says what is wanted, if that is something new.
fn say<T: PartialEq>(sender: &latest::Sender<T>, wanted: T) {
    sender.send_if_modified(|before| {
        let is_new = *before != wanted;
        *before = wanted;
        is_new
    });
}

/// Returns how the API server is reached.
///
/// # Errors
/// If that is not said, or cannot be read.
pub(super) async fn configuration(kubeconfig: Option<&Path>) -> io::Result<Config> {
    let Some(path) = kubeconfig else { return Config::incluster().map_err(io::Error::other) };
    let file = Kubeconfig::read_from(path).map_err(io::Error::other)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(io::Error::other)
}

async fn follow_all(
    client: Client,
    shared: &Common,
    own: &str,
    default_mode: Option<Mode>,
    wanted: latest::Receiver<Option<Value>>,
    found: latest::Receiver<Option<(String, NodeTunnelStatus)>>,
    unwanted: latest::Receiver<Option<Taint>>,
) {
    let resource = ApiResource::erase::<NodeTunnel>(&());
    let api = Api::all_with(client.clone(), &resource);
    let tunnels = follow_whole(api, resource, ListParams::default(), shared, Kind::Tunnel);
    let resource = ApiResource::erase::<TunnelConfig>(&());
    let api = Api::all_with(client.clone(), &resource);
    let configs = follow_whole(api, resource, ListParams::default(), shared, Kind::Config);
    let nodes = follow_nodes(client.clone(), shared, own, unwanted);
    let resource = ApiResource::erase::<EndpointSlice>(&());
    let api = Api::namespaced_with(client.clone(), "default", &resource);
    let service = ListParams::default().labels(&format!("{}={}", read::SERVICE, read::API_SERVICE));
    let api_servers = follow_whole(api, resource, service, shared, Kind::ApiServers);
    let pod_network = follow_pod_network(client.clone(), shared);
    let configured = configure(client.clone(), default_mode);
    futures::join!(
        tunnels,
        configs,
        nodes,
        api_servers,
        pod_network,
        configured,
        write(client.clone(), wanted),
        write_status(client, found)
    );
}

/// Follows all objects of a kind, or those that are selected.
async fn follow_whole(
    api: Api<DynamicObject>,
    resource: ApiResource,
    which: ListParams,
    shared: &Common,
    kind: Kind,
) {
    let list = async |params: &ListParams| api.list(params).await;
    let watch = async |params: &WatchParams, version: &str| api.watch(params, version).await;
    let tell = async |news: News<DynamicObject>| match news {
        News::All(objects) => shared.replace(kind, objects),
        News::Is(object) => {
            if let Some(object) = read_as(object, &resource) {
                shared.insert(object);
            }
        }
        News::Gone(object) => {
            let name = object.name_any();
            let name = match kind {
                Kind::Pod => read::pod_name(object.namespace().as_deref(), &name),
                Kind::Tunnel | Kind::Config | Kind::Node | Kind::ApiServers | Kind::PodNetwork => name,
            };
            shared.remove(kind, &name);
        }
    };
    follow(&resource, which, list, watch, tell).await;
}

/// Follows what kubeadm says of the pods' network. That an agent may not read it is no fault: it is known then that nothing is said. But an
/// API server that has just started refuses everything until it has read its roles, so that a refusal counts once all else was granted.
async fn follow_pod_network(client: Client, shared: &Common) {
    let resource = ApiResource::erase::<v1::ConfigMap>(&());
    let (namespace, name) = read::KUBEADM;
    let api = Api::namespaced_with(client, namespace, &resource);
    // A role that names an object lets lists and watches through that select it by its name.
    let which = ListParams::default().fields(&format!("metadata.name={name}"));
    let list = async |params: &ListParams| api.list(params).await;
    let mut pauses = Pauses::new();
    loop {
        let is_else_granted =
            shared.lock().is_listed[..Kind::PodNetwork as usize].iter().all(|listed| *listed);
        if may_list(&resource, &which, list).await {
            break;
        }
        if !is_else_granted {
            pauses.next().await;
            continue;
        }
        tracing::debug!(namespace, name, "kubeadm's configuration may not be read");
        shared.replace(Kind::PodNetwork, Vec::new());
        sleep(ASK_AGAIN).await;
    }
    follow_whole(api, resource, which, shared, Kind::PodNetwork).await;
}

/// Follows the pods of a node while they are wanted. What is not needed of them is forgotten as they come.
async fn follow_pods(client: Client, shared: &Common, mut node: latest::Receiver<Option<String>>) {
    let resource = ApiResource::erase::<v1::Pod>(&());
    loop {
        let wanted = node.borrow_and_update().clone();
        let changed = async { node.changed().await.is_err() };
        let is_over = match wanted {
            None => changed.await,
            Some(name) => {
                let api = Api::all_with(client.clone(), &resource);
                let own = ListParams::default().fields(&format!("spec.nodeName={name}"));
                tokio::select! {
                    () = follow_whole(api, resource.clone(), own, shared, Kind::Pod) => true,
                    is_over = changed => is_over,
                }
            }
        };
        shared.change(|state| state.objects.pods = None);
        if is_over {
            return std::future::pending().await;
        }
    }
}

/// Makes the `TunnelConfig` for all nodes, if there is none. One that is there is nobody's but the operator's.
async fn configure(client: Client, mode: Option<Mode>) {
    let Some(mode) = mode else { return };
    let api: Api<TunnelConfig> = Api::all(client);
    let spec = TunnelConfigSpec { mode: Some(mode), ..TunnelConfigSpec::default() };
    let config = TunnelConfig::new(FOR_ALL, spec);
    let mut pauses = Pauses::new();
    loop {
        let made = match answer(api.get_opt(FOR_ALL)).await {
            Ok(Some(_)) => return,
            Ok(None) => answer(api.create(&PostParams::default(), &config)).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(_) => {
                tracing::info!(?mode, "there was no TunnelConfig for all nodes, and one was made");
                return;
            }
            // Another node's agent was first: the next look finds it.
            Err(error) => tracing::debug!(error, "no TunnelConfig can be made yet"),
        }
        pauses.next().await;
    }
}

/// What is needed of a node: of several kilobytes, mostly names of images, a hundred bytes.
type LeanNode = kube::core::Object<NodeSpec, NodeStatus>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<Value>,
}

/// Follows the metadata of nodes, and fetches those that matter. Taints are not among it, but a node that gets one has changed.
async fn follow_nodes(client: Client, shared: &Common, own: &str, unwanted: latest::Receiver<Option<Taint>>) {
    let resource = ApiResource::erase::<v1::Node>(&());
    let api: Api<LeanNode> = Api::all_with(client, &resource);
    let list = async |params: &ListParams| api.list(params).await;
    let watch = async |params: &WatchParams, version: &str| api.watch_metadata(params, version).await;
    let tell = async |news: News<PartialObjectMeta<LeanNode>>| match news {
        News::All(objects) => {
            shared.replace(Kind::Node, objects);
            shared.touched.notify_one();
        }
        News::Is(node) => {
            let name = node.name_any();
            if unwanted.borrow().as_ref().is_some_and(|taint| taint.node == name) {
                shared.touched.notify_one();
            }
            if name != own && !shared.lock().wants_node(&name) {
                shared.describe(&name, node.labels(), node.annotations());
            } else if let Some(node) = fetch(&api, &name).await {
                read_as(node, &resource).into_iter().for_each(|node| shared.insert(node));
            }
        }
        News::Gone(node) => shared.remove(Kind::Node, &node.name_any()),
    };
    futures::join!(
        follow(&resource, ListParams::default(), list, watch, tell),
        fetch_again(&api, &resource, shared)
    );
}

/// Fetches the nodes that may be others than they are known to be.
async fn fetch_again(api: &Api<LeanNode>, resource: &ApiResource, shared: &Common) {
    loop {
        let doubted = shared.lock().doubted.pop_first();
        let Some(name) = doubted else {
            shared.doubted.notified().await;
            continue;
        };
        if let Some(Object::Node(name, node)) =
            fetch(api, &name).await.and_then(|node| read_as(node, resource))
        {
            shared.renew(name, node);
        }
    }
}

/// Fetches an object, trying until it is there or known not to be.
async fn fetch(api: &Api<LeanNode>, name: &str) -> Option<LeanNode> {
    let mut pauses = Pauses::new();
    loop {
        match answer(api.get_opt(name)).await {
            Ok(object) => return object,
            Err(error) => tracing::warn!(name, error, "a node cannot be read yet"),
        }
        pauses.next().await;
    }
}

/// Writes what this node says of itself, again and again until it is there or there is something newer to say.
async fn write(client: Client, mut wanted: latest::Receiver<Option<Value>>) {
    let api = tunnels(client);
    let mut pauses = Pauses::new();
    loop {
        let tunnel = wanted.borrow_and_update().clone();
        let Some(tunnel) = tunnel else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let name = tunnel.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        match answer(api.patch(name, &apply, &Patch::Apply(&tunnel))).await {
            Ok(_) => {
                tracing::info!(node = name, "the node has said what it is");
                pauses.reset();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(node = name, error, "the node cannot say what it is yet");
                pauses.next().await;
            }
        }
    }
}

/// Writes what this node's agent found, likewise.
async fn write_status(client: Client, mut found: latest::Receiver<Option<(String, NodeTunnelStatus)>>) {
    let api = tunnels(client);
    let mut pauses = Pauses::new();
    loop {
        let report = found.borrow_and_update().clone();
        let is_done = match &report {
            None => true,
            Some((node, status)) => match answer(write_status_once(&api, node, status.clone())).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(node, error, "what was found cannot be written yet");
                    false
                }
            },
        };
        if is_done {
            pauses.reset();
            if report.is_some() {
                sleep(REPORT_PAUSE).await;
            }
            if found.changed().await.is_err() {
                return;
            }
        } else {
            pauses.next().await;
        }
    }
}

async fn write_status_once(
    api: &Api<DynamicObject>,
    node: &str,
    mut status: NodeTunnelStatus,
) -> kube::Result<()> {
    let Some(there) = api.get_opt(node).await? else { return Ok(()) };
    // What cannot be read is written over.
    let before = there.data.get("status").cloned().and_then(|before| serde_json::from_value(before).ok());
    status::carry_over(&before.unwrap_or_default(), &mut status);
    let resource = ApiResource::erase::<NodeTunnel>(&());
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": node },
        "status": status,
    });
    // A field manager of its own: what one applies without naming is taken away, and spec and status are applied apart.
    let params = PatchParams::apply(STATUS_MANAGER).force();
    api.patch_status(node, &params, &Patch::Apply(&patch)).await.map(drop)
}

pub(super) fn tunnels(client: Client) -> Api<DynamicObject> {
    Api::all_with(client, &ApiResource::erase::<NodeTunnel>(&()))
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.is_changed = true;
        drop(state);
        self.wake.wake();
    }

    /// Puts a whole list in the place of the last one.
    fn replace(&self, kind: Kind, listed: Vec<Object>) {
        let tunnels = listed.iter().filter_map(|object| match object {
            Object::Tunnel(name, tunnel) => Some((name.clone(), tunnel.node_addresses.clone())),
            Object::Config(..)
            | Object::Node(..)
            | Object::Pod(..)
            | Object::ApiServers(..)
            | Object::PodNetwork(_) => None,
        });
        let said: Vec<_> = tunnels.collect();
        self.change(|state| {
            match kind {
                Kind::Tunnel => state.objects.tunnels = Named::default(),
                Kind::Config => state.objects.configs = BTreeMap::new(),
                Kind::Node => {
                    state.objects.nodes = Named::default();
                    state.blockless = BTreeMap::new();
                }
                Kind::ApiServers => state.objects.api_servers = BTreeMap::new(),
                Kind::PodNetwork => state.objects.pod_network = None,
                Kind::Pod => state.objects.pods = Some(BTreeMap::new()),
            }
            listed.into_iter().for_each(|object| state.objects.insert(object));
            if let Some(is_listed) = state.is_listed.get_mut(kind as usize) {
                *is_listed = true;
            }
        });
        said.iter().for_each(|(name, addresses)| self.doubt(name, addresses));
    }

    /// Notes what labels and annotations say of a node that is known.
    fn describe(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) {
        let Some(mut node) = self.lock().objects.nodes.get(name).map(|node| Node::clone(node)) else {
            return;
        };
        read::describe(&mut node, labels, annotations);
        self.insert(Object::Node(name.to_owned(), node));
    }

    /// Puts an object in its place. One that says what is known already wakes nobody: every agent hears of what the others write of their
    /// state.
    fn insert(&self, object: Object) {
        if self.lock().objects.contains(&object) {
            return;
        }
        if let Object::Tunnel(name, tunnel) = &object {
            self.doubt(name, &tunnel.node_addresses);
        }
        self.change(|state| state.objects.insert(object));
    }

    /// Puts a node that was fetched again in its place. One that is gone meanwhile stays so, and one that has been made anew by the same name
    /// stays the new one: an answer may be late.
    fn renew(&self, name: String, node: Node) {
        let is_same = self.lock().objects.nodes.get(&name).is_some_and(|known| known.uid == node.uid);
        if is_same {
            self.insert(Object::Node(name, node));
        }
    }

    /// Has a node fetched again, if it is not known to have the addresses that its agent names.
    fn doubt(&self, name: &str, named: &[IpAddr]) {
        let mut state = self.lock();
        let Some(node) = state.objects.nodes.get(name) else { return };
        let known: BTreeSet<_> = node.addresses.iter().collect();
        if known != named.iter().collect() {
            state.doubted.insert(name.to_owned());
            self.doubted.notify_one();
        }
    }

    fn remove(&self, kind: Kind, name: &str) {
        self.change(|state| match kind {
            Kind::Tunnel => drop(state.objects.tunnels.remove(name)),
            Kind::Config => drop(state.objects.configs.remove(name)),
            Kind::Node => {
                state.objects.nodes.remove(name);
                state.blockless.remove(name);
            }
            Kind::ApiServers => drop(state.objects.api_servers.remove(name)),
            Kind::PodNetwork => state.objects.pod_network = None,
            Kind::Pod => drop(state.objects.pods.as_mut().and_then(|pods| pods.remove(name))),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::Tunnel;

    fn common() -> Common {
        let wake = Wake::new().unwrap();
        Common { wake, state: Mutex::default(), touched: Notify::new(), doubted: Notify::new() }
    }

    fn node(uid: &str, addr: &str) -> Node {
        Node { uid: uid.to_owned(), addresses: vec![addr.parse().unwrap()], ..Node::default() }
    }

    #[test]
    fn a_node_that_was_made_anew_is_not_taken_for_the_one_before() {
        let common = common();
        let known = |common: &Common| common.lock().objects.nodes.get("a").map(|node| Node::clone(node));
        common.renew("a".to_owned(), node("old", "10.9.0.1"));
        assert_eq!(known(&common), None, "one that is gone");
        let new = node("new", "10.9.0.2");
        common.insert(Object::Node("a".to_owned(), new.clone()));
        common.renew("a".to_owned(), node("old", "10.9.0.1"));
        assert_eq!(known(&common), Some(new));
        let moved = node("new", "10.9.0.3");
        common.renew("a".to_owned(), moved.clone());
        assert_eq!(known(&common), Some(moved));
    }

    #[test]
    fn a_node_without_blocks_is_asked_for_while_it_is_new_and_now_and_then() {
        let common = common();
        let wanted = |changes: u32| (0..changes).filter(|_| common.lock().wants_node("a")).count();
        assert_eq!(wanted(3), 3, "nothing is known");
        common.insert(Object::Node("a".to_owned(), node("u", "10.9.0.1")));
        assert_eq!(wanted(NEW_FOR), NEW_FOR as usize);
        assert_eq!(wanted(10 * ASKED_EVERY), 10);
        let addresses = vec!["10.9.0.7".parse().unwrap()];
        let tunnel = Tunnel { node_addresses: addresses, ..Tunnel::default() };
        common.insert(Object::Tunnel("a".to_owned(), tunnel));
        assert_eq!(wanted(3), 3, "it says that it has another address");
        common.remove(Kind::Tunnel, "a");
        common.remove(Kind::Node, "a");
        common.insert(Object::Node("a".to_owned(), node("v", "10.9.0.1")));
        assert_eq!(wanted(NEW_FOR), NEW_FOR as usize, "another of that name");
        let pod_prefixes = vec!["10.244.1.0/24".parse().unwrap()];
        common.insert(Object::Node("a".to_owned(), Node { pod_prefixes, ..node("v", "10.9.0.1") }));
        assert_eq!(wanted(100), 0);
    }

    #[test]
    fn nodes_that_name_other_addresses_than_are_known_are_doubted_whichever_list_is_read_first() {
        let common = common();
        common.replace(
            Kind::Node,
            ["a", "b"].map(|name| Object::Node(name.to_owned(), node("u", "10.9.0.1"))).into(),
        );
        let tunnel = |addr: &str| Tunnel { node_addresses: vec![addr.parse().unwrap()], ..Tunnel::default() };
        let tunnels = [("a", "10.9.0.1"), ("b", "10.9.0.7"), ("c", "10.9.0.8")];
        let tunnels = tunnels.map(|(name, addr)| Object::Tunnel(name.to_owned(), tunnel(addr)));
        common.replace(Kind::Tunnel, tunnels.into());
        assert_eq!(common.lock().doubted, ["b".to_owned()].into());
    }
}
