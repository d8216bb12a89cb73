//! What a node runs: a data plane with its configuration socket, and an agent, as `adit -f IFNAME` and `adit agent --objects DIRECTORY` are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::lab::{Node, TUNNEL};
use crate::cli::run::set_mtu;
use crate::control::agent::{Agent, Parts};
use crate::control::heal::Healer;
use crate::control::watch::directory::Directory;
use crate::device::{Device, Spill};
use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::offload::Wanted;
use crate::sys::tun::Tun;
use crate::sys::wake::Wake;
use crate::uapi::serve::Server;
use crate::uapi::socket::Socket;

/// The agent's, where nobody says otherwise.
const RESYNC: Duration = Duration::from_secs(90);

/// A node's services. They end in the order of their fields: an agent would miss its data plane.
pub(super) struct Services {
    _agent: Running,
    _server: Server,
    _socket: Socket,
    /// The data plane.
    pub(super) device: Arc<Device>,
    /// Its interface, and how to ask for it.
    pub(super) netlink: Netlink,
    pub(super) link: u32,
}

impl Services {
    /// Starts them: what they do is said by the objects of a directory.
    pub(super) fn start(node: &Node, objects: &Path) -> io::Result<Self> {
        let sockets = node.directory.join("sockets");
        let (device, socket, mut netlink) = netns::run_in(&node.namespace, || {
            let tun = Tun::create(TUNNEL, 1, &Wanted::default())?;
            set_mtu(&tun)?;
            let device = Device::start(tun, Wanted::default(), Spill::Auto, || {})?;
            Ok((Arc::new(device), Socket::open_in(&sockets, TUNNEL)?, Netlink::open()?))
        })?;
        let link = netlink.link(TUNNEL)?.index;
        let server = Server::start(socket.listener(), Arc::<Device>::clone(&device))?;
        let agent = Running::start(node, sockets, objects)?;
        Ok(Self { _agent: agent, _server: server, _socket: socket, device, netlink, link })
    }
}

/// An agent on a thread of its own. Dropping it waits until it has ended.
struct Running {
    request: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(node: &Node, sockets: PathBuf, objects: &Path) -> io::Result<Self> {
        let request = Arc::new(Wake::new()?);
        let ending = Arc::clone(&request);
        let namespace = node.namespace.try_clone()?;
        let (name, run, objects) = (node.name(), node.directory.clone(), objects.to_owned());
        let (private_key, store) = (node.key.clone(), Arc::clone(&node.store));
        let (ready, is_ready) = mpsc::sync_channel(1);
        let make = move || {
            // All that it asks the kernel for is of the namespace of its thread.
            netns::enter(&namespace)?;
            Agent::new(Parts {
                node: name,
                private_key,
                interface: Some(TUNNEL.to_owned()),
                sockets,
                run,
                resync: RESYNC,
                store,
                makes_config: false,
                // An echo that a node asks another for is no WireGuard message.
                asks_others: false,
                source: Box::new(Directory::open(&objects)?),
                metrics: None,
                healer: Healer::start(RESYNC)?,
                cni: None,
                startup_taint: None,
            })
        };
        let span = tracing::error_span!("agent", node = node.name());
        let thread = Builder::new().name("agent".to_owned()).spawn(move || {
            let _entered = span.entered();
            // Who is told waits for it.
            match make() {
                Ok(mut agent) => {
                    let _ = ready.send(Ok(()));
                    agent.run(&*ending);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let this = Self { request, thread: Some(thread) };
        is_ready.recv().map_err(io::Error::other)??;
        Ok(this)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.request.wake();
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}
