//! The data plane that is driven: one that answers on a configuration socket, or the kernel's own WireGuard.

use std::fmt;
use std::io;
use std::path::Path;

use super::api::Backend;
use super::uapi_client::{Client, Failed, Listener};
use crate::config::{AllowedIpEdit, Edit, PeerEdit, PeerSnapshot, Prefix, Snapshot, Statistics};
use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::sys::netlink::{Netlink, wireguard};

/// The kind of the kernel's interfaces, as ip-link(8) names it.
const KIND: &str = "wireguard";

/// A data plane. Nobody need be there yet.
#[derive(Debug, Clone)]
pub enum DataPlane {
    /// Behind a socket.
    Socket(Client),
    /// The kernel's, by the interface.
    Kernel(Kernel),
}

impl DataPlane {
    /// Returns the data plane of an interface, whose socket lies in `directory` if it has one. [`Backend::Auto`] is the kernel's where the
    /// interface is one of the kernel's: one that works is not replaced by another. See [`Self::stand_in`].
    pub fn of(directory: &Path, interface: &str, backend: Backend) -> Self {
        let is_kernel = match backend {
            Backend::Userspace => false,
            Backend::Kernel => true,
            Backend::Auto => is_kernels(interface).unwrap_or(false),
        };
        if is_kernel {
            return Self::Kernel(Kernel { interface: interface.to_owned() });
        }
        Self::Socket(Client::new(directory, interface))
    }

    /// Says which private key the interface should have; see [`Client::with_private_key`].
    #[must_use]
    pub fn with_private_key(self, key: PrivateKey) -> Self {
        match self {
            Self::Socket(client) => Self::Socket(client.with_private_key(key)),
            Self::Kernel(kernel) => Self::Kernel(kernel),
        }
    }

    /// Makes the interface if that is not the data plane's own business, and tells whether it was made.
    ///
    /// # Errors
    /// If the kernel has no WireGuard, or the name is taken by another kind of interface.
    pub fn ensure(&self) -> Result<bool, Failed> {
        match self {
            Self::Socket(_) => Ok(false),
            Self::Kernel(kernel) => kernel.ensure(),
        }
    }

    /// Makes an interface of the kernel's in the place of a data plane behind a socket that is not there, and tells whether it did. One whose
    /// socket or interface is there may be about to answer.
    ///
    /// # Errors
    /// If the kernel has no WireGuard, or the name is taken by another kind of interface.
    pub fn stand_in(&self) -> Result<bool, Failed> {
        match self {
            Self::Socket(client) if client.path().exists() => Ok(false),
            Self::Socket(client) => {
                let name = client.path().file_stem().unwrap_or_default();
                Kernel { interface: name.to_string_lossy().into_owned() }.ensure()
            }
            Self::Kernel(_) => Ok(false),
        }
    }

    /// Returns who listens at the socket, if there is one and anybody does.
    pub fn listener(&self) -> Option<Listener> {
        match self {
            Self::Socket(client) => client.listener(),
            Self::Kernel(_) => None,
        }
    }

    /// Returns configuration and counters.
    ///
    /// # Errors
    /// [`Failed::Io`] if nobody answers.
    pub fn snapshot(&self) -> Result<Snapshot, Failed> {
        match self {
            Self::Socket(client) => client.snapshot(),
            Self::Kernel(kernel) => kernel.snapshot(),
        }
    }

    /// Returns what else the data plane tells; see [`Client::statistics`].
    ///
    /// # Errors
    /// [`Failed::Io`] if nobody answers.
    pub fn statistics(&self) -> Result<Option<Statistics>, Failed> {
        match self {
            Self::Socket(client) => client.statistics(),
            Self::Kernel(_) => Ok(None),
        }
    }

    /// Applies edits in their order.
    ///
    /// # Errors
    /// If the data plane does not want them.
    pub fn apply(&self, edits: &[Edit]) -> Result<(), Failed> {
        match self {
            Self::Socket(client) => client.apply(edits),
            Self::Kernel(kernel) => kernel.apply(edits),
        }
    }

    /// Returns the name of the socket's file, if there is one.
    pub fn socket_name(&self) -> Option<&std::ffi::OsStr> {
        match self {
            Self::Socket(client) => client.path().file_name(),
            Self::Kernel(_) => None,
        }
    }
}

impl fmt::Display for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(client) => write!(f, "{}", client.path().display()),
            Self::Kernel(kernel) => write!(f, "the kernel's {}", kernel.interface),
        }
    }
}

/// Returns the names of the kernel's interfaces, in order.
///
/// # Errors
/// If the kernel does not list its links.
pub fn kernels() -> io::Result<Vec<String>> {
    let links = Netlink::open()?.links()?;
    let own = links.into_iter().filter(|link| link.kind.as_deref() == Some(KIND));
    let mut names: Vec<_> = own.map(|link| link.name).collect();
    names.sort();
    Ok(names)
}

/// Makes an interface of the kernel's WireGuard, which goes at once, and tells whether that was possible.
///
/// # Errors
/// Why it was not.
pub fn try_kernel() -> io::Result<()> {
    let name = format!("adittry{}", std::process::id());
    let mut netlink = Netlink::open()?;
    netlink.add_wireguard(&name).map_err(not_there)?;
    let index = netlink.link(&name)?.index;
    netlink.remove_link(index)
}

/// Says in words that the kernel has no WireGuard.
fn not_there(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        return io::Error::new(io::ErrorKind::Unsupported, "this kernel has no WireGuard");
    }
    error
}

/// Removes those of the kernel's interfaces that are an agent's: all that have its key, whatever they are called; and the one of this name,
/// unless it has another key.
///
/// # Errors
/// Names the interface of which the kernel does not tell, or that it does not remove.
pub fn remove(interface: &str, key: Option<&PrivateKey>) -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    let mut remove = |name: &str| -> Result<(), Failed> {
        let found = Kernel { interface: name.to_owned() }.snapshot()?.private_key;
        let is_ours = match (key, found) {
            (Some(key), Some(found)) => key.public() == found.public(),
            (None, _) | (_, None) => name == interface,
        };
        if is_ours {
            let index = netlink.link(name)?.index;
            netlink.remove_link(index)?;
        }
        Ok(())
    };
    let names = kernels().map_err(|error| error.to_string())?;
    names.iter().try_for_each(|name| remove(name).map_err(|error| format!("{name}: {error}")))
}

fn is_kernels(interface: &str) -> io::Result<bool> {
    Ok(Netlink::open()?.link(interface)?.kind.as_deref() == Some(KIND))
}

/// The kernel's WireGuard, by netlink, in the network namespace of the calling thread.
#[derive(Debug, Clone)]
pub struct Kernel {
    interface: String,
}

impl Kernel {
    fn ensure(&self) -> Result<bool, Failed> {
        let mut netlink = Netlink::open()?;
        match netlink.link(&self.interface) {
            Ok(link) if link.kind.as_deref() == Some(KIND) => Ok(false),
            Ok(_) => Err(io::Error::other("the interface is none of the kernel's WireGuard").into()),
            Err(_) => {
                netlink.add_wireguard(&self.interface).map_err(not_there)?;
                Ok(true)
            }
        }
    }

    fn snapshot(&self) -> Result<Snapshot, Failed> {
        let device = wireguard::Wireguard::open()?.device(&self.interface)?;
        let private_key = Secret::new(*device.private_key);
        let mut peers: Vec<_> = device.peers.into_iter().map(peer_snapshot).collect();
        peers.sort_by_key(|peer| peer.public_key);
        Ok(Snapshot {
            private_key: (!private_key.is_zero()).then(|| PrivateKey::new(*private_key.as_bytes())),
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            peers,
        })
    }

    fn apply(&self, edits: &[Edit]) -> Result<(), Failed> {
        let mut wireguard = wireguard::Wireguard::open()?;
        let mut device = wireguard::DeviceEdit::default();
        let mut peers = Vec::new();
        let nothing = [0; 32];
        for edit in edits {
            match edit {
                Edit::PrivateKey(key) => {
                    device.private_key = Some(key.as_ref().map_or(&nothing, PrivateKey::as_bytes));
                }
                Edit::ListenPort(port) => device.listen_port = Some(*port),
                Edit::Fwmark(mark) => device.fwmark = Some(*mark),
                Edit::ClearPeers => {
                    device.clears_peers = true;
                    // They were to be there before, and are not to be.
                    peers.clear();
                }
                Edit::Peer(edit) => peers.push(peer_edit(edit)),
            }
        }
        Ok(wireguard.set(&self.interface, &device, &peers)?)
    }
}

fn peer_snapshot(peer: wireguard::Peer) -> PeerSnapshot {
    let allowed_ips = peer.allowed_ips.into_iter();
    let mut allowed_ips: Vec<_> = allowed_ips.filter_map(|(addr, len)| Prefix::new(addr, len)).collect();
    allowed_ips.sort();
    PeerSnapshot {
        public_key: PublicKey::new(peer.public_key),
        preshared_key: Secret::new(*peer.preshared_key),
        endpoint: peer.endpoint,
        last_handshake: peer.last_handshake,
        tx_bytes: peer.tx_bytes,
        rx_bytes: peer.rx_bytes,
        persistent_keepalive: peer.persistent_keepalive,
        allowed_ips,
    }
}

fn peer_edit(edit: &PeerEdit) -> wireguard::PeerEdit<'_> {
    let pair = |prefix: &Prefix| (prefix.addr(), prefix.len());
    let added = edit.allowed_ips.iter().filter_map(|change| match change {
        AllowedIpEdit::Add(prefix) => Some(pair(prefix)),
        AllowedIpEdit::Remove(_) => None,
    });
    let removed = edit.allowed_ips.iter().filter_map(|change| match change {
        AllowedIpEdit::Remove(prefix) => Some(pair(prefix)),
        AllowedIpEdit::Add(_) => None,
    });
    wireguard::PeerEdit {
        public_key: *edit.public_key.as_bytes(),
        removes: edit.remove,
        updates_only: edit.update_only,
        replaces_allowed_ips: edit.replace_allowed_ips,
        preshared_key: edit.preshared_key.as_ref().map(Secret::as_bytes),
        endpoint: edit.endpoint,
        persistent_keepalive: edit.persistent_keepalive,
        added: added.collect(),
        removed: removed.collect(),
    }
}
