//! A double of the Kubernetes API server: what an agent needs of it, as strict as the real one, and as unreliable as is wanted.
//!
//! ```text
//! serve (HTTP, answers, watches) ─→ store (objects, versions, history, owners of fields) ─→ fields (paths by the schema)
//!   └──→ faults (what goes wrong, from a seed)
//! ```
//!
//! It serves `NodeTunnel`s, `TunnelConfig`s, `Node`s, `Pod`s and the `EndpointSlice`s of the namespace `default`: get, create, list by pages, watch with bookmarks and 410 where the history is gone, and
//! server-side apply with field managers, conflicts and the status subresource; for `Node`s also their metadata alone. `Pod`s are selected
//! by their nodes. Events it takes, new ones and those that have become a series. It does not serve discovery, other selectors, admission, defaults, or the rules of the
//! schema.

pub(crate) mod faults;
mod fields;
mod serve;
mod store;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{oneshot, watch};

pub(crate) use faults::Faults;
pub(crate) use store::Kind;

use super::Namespace;
use store::{Apply, Refused, Store};

/// An API server that is none.
pub(crate) struct ApiDouble {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How it serves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    /// Objects of a page of a list, at most; whoever asks may want less.
    pub(crate) page: usize,
    /// The time between two bookmarks.
    pub(crate) bookmarks: Duration,
}

struct Shared {
    store: Mutex<Store>,
    /// The version of the newest change.
    newest: watch::Sender<u64>,
    faults: Faults,
    manners: Manners,
    /// Bytes of watches' events.
    watched: Mutex<u64>,
    /// Events that were taken.
    events: Mutex<Vec<Value>>,
}

impl ApiDouble {
    /// Starts to serve in a namespace at an address that it has.
    #[track_caller]
    pub(crate) fn start(namespace: &Namespace, addr: &str, manners: Manners) -> Self {
        let addr = SocketAddr::new(addr.parse().unwrap(), 0);
        let listener = namespace.enter(move || TcpListener::bind(addr)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            newest: watch::Sender::new(1),
            faults: Faults::none(),
            manners,
            watched: Mutex::default(),
            events: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let theirs = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve::serve(listener, theirs) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { shared, addr, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns how it is reached, as a kubeconfig.
    pub(crate) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters: [{{name: test, cluster: {{server: \"http://{}\"}}}}]\n\
            users: [{{name: test, user: {{}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.addr
        )
    }

    /// Makes or replaces an object.
    pub(crate) fn put(&self, kind: Kind, object: Value) {
        self.change(|store| store.put(kind, object));
    }

    /// Has a manager of fields apply an object, or the status of one.
    #[track_caller]
    pub(crate) fn apply(&self, kind: Kind, body: &Value, manager: &str) {
        let name = body["metadata"]["name"].as_str().unwrap();
        let is_status = body["spec"].is_null();
        let apply = Apply { kind, name, is_status, manager, is_forced: true, body };
        self.change(|store| store.apply(&apply)).unwrap();
    }

    /// Removes an object.
    #[track_caller]
    pub(crate) fn delete(&self, kind: Kind, name: &str) {
        assert!(self.change(|store| store.delete(kind, name)), "{kind:?} {name} is not there");
    }

    /// Forgets the history: whoever watches from an older version has to list anew.
    pub(crate) fn compact(&self) {
        self.change(Store::compact);
    }

    /// Returns an object.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        self.shared.store().get(kind, name).ok().map(|object| (*object).clone())
    }

    /// Returns what goes wrong.
    pub(crate) fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Returns how many bytes of events were sent to all who watch.
    pub(crate) fn watched_bytes(&self) -> u64 {
        *self.shared.watched.lock().unwrap()
    }

    /// Returns the Events that were taken, the first one first.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.shared.events.lock().unwrap().clone()
    }

    /// Forgets the Events, as the real one does when their time is over.
    pub(crate) fn forget_events(&self) {
        self.shared.events.lock().unwrap().clear();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        self.shared.change(change)
    }
}

impl Drop for ApiDouble {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = change(&mut store);
        self.newest.send_replace(store.version());
        done
    }

    /// Keeps an Event: a new one, or in the place of the one of that name.
    fn keep_event(&self, name: Option<&str>, event: Value) -> Result<(u16, Value), Refused> {
        let mut events = self.events.lock().unwrap();
        let Some(name) = name else {
            events.push(event.clone());
            return Ok((201, event));
        };
        let there = events.iter_mut().find(|there| there["metadata"]["name"] == name);
        let not_found = || Refused(404, "NotFound", format!("events.events.k8s.io \"{name}\" not found"));
        *there.ok_or_else(not_found)? = event.clone();
        Ok((200, event))
    }
}
