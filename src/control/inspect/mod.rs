//! What `adit status` and `adit peers` show: each data plane's own word, and, where an agent keeps its objects, who the peers are and
//! whether the kernel is as it should be.
//!
//! - [`report`]: what was found → what is shown. Pure.
//! - [`table`]: that, for people.
//!
//! Nothing is changed, and nobody need run but the data plane, which may be the kernel's. An interface is an agent's if its public key is the Active one of a node
//! among the agent's objects.

pub mod report;
pub mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use self::report::{Found, Kernel, Node, Report};
use super::api::{Backend, Mode};
use super::data_plane::{self, DataPlane};
use super::failed;
use super::firewall::Guard;
use super::mtu::Ways;
use super::objects::Objects;
use super::read;
use super::remembered::Remembered;
use super::route::{Router, Step};
use super::store::Store;
use super::topology::{Own, Topology, topology};
use super::uapi_client::Failed;
use crate::config::Snapshot;
use crate::sys::clock;
use crate::sys::family;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where data planes have their sockets.
    pub sockets: PathBuf,
    /// Where an agent keeps its objects; nothing need be there.
    pub state: PathBuf,
    /// The interface; `None` for all.
    pub interface: Option<String>,
}

/// Looks at everything once.
///
/// # Errors
/// If there is no data plane, or the directory of the sockets cannot be read.
pub fn look(places: &Places) -> Result<Report, String> {
    let interfaces = match &places.interface {
        Some(name) => vec![name.clone()],
        None => interfaces_in(&places.sockets)
            .map_err(|error| format!("{}: {error}", places.sockets.display()))?,
    };
    if interfaces.is_empty() {
        return Err(format!("no data plane has a socket in {}", places.sockets.display()));
    }
    let (kept, fault) = match Store::snapshot_in(&places.state) {
        Ok(kept) => (kept, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let kept_at = kept.as_ref().and_then(|kept| kept.at);
    let objects = kept.map(|kept| read::objects(&kept.objects));
    let mode = Store::mode_in(&places.state).as_deref().and_then(Mode::named);
    let remembered = Store::remembered_in(&places.state);
    let known = objects.as_ref().map(|objects| Known { objects, mode, remembered: &remembered });
    let found = interfaces.into_iter().map(|name| find(&places.sockets, name, known));
    let now = clock::realtime();
    let objects_age = kept_at.map(|at| now.saturating_sub(at).as_secs());
    Ok(Report { fault, objects_age, ..Report::of(found.collect(), now) })
}

/// Returns the names of the interfaces whose sockets lie in `directory`, in order.
fn interfaces_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".sock")).map(str::to_owned));
    }
    // The kernel's have none.
    names.extend(data_plane::kernels().unwrap_or_default());
    names.sort();
    names.dedup();
    Ok(names)
}

/// What an agent keeps.
#[derive(Clone, Copy)]
struct Known<'a> {
    objects: &'a Objects,
    mode: Option<Mode>,
    remembered: &'a Remembered,
}

fn find(sockets: &Path, name: String, known: Option<Known<'_>>) -> Found {
    let client = DataPlane::of(sockets, &name, Backend::Auto);
    let told = client.snapshot().and_then(|snapshot| Ok((snapshot, client.statistics()?)));
    let node = match &told {
        Ok((snapshot, _)) => known.and_then(|known| node_of(&name, snapshot, known)),
        Err(_) => None,
    };
    Found { interface: name, told: told.map_err(|error: Failed| error.to_string()), node }
}

/// Finds the node whose interface this is.
fn node_of(interface: &str, snapshot: &Snapshot, known: Known<'_>) -> Option<Node> {
    let Known { objects, mode, remembered } = known;
    let public_key = snapshot.private_key.as_ref()?.public();
    let (name, _) = objects.tunnels.iter().find(|(_, tunnel)| tunnel.active == Some(public_key))?;
    let links = Ways::open().and_then(|mut ways| ways.addresses()).unwrap_or_default();
    let lacks_ipv6 = !family::has_ipv6();
    let own = Own { links, mode, remembered: remembered.clone(), lacks_ipv6, ..Own::new(name, public_key) };
    let mut topology = topology(objects, &own);
    interface.clone_into(&mut topology.routes.interface);
    let kernel = kernel(&topology).map_err(|error| error.to_string());
    Some(Node { name: own.name, topology, kernel })
}

/// Looks whether the kernel is as it should be. A route too many is no fault: one that leads to the API server is not known of here, and
/// one whose peer has gone stays for a moment.
fn kernel(topology: &Topology) -> Result<Kernel, failed::Failed> {
    let opening = |error| failed::Failed::new("opening a netlink socket", error);
    let is_missing = |step: &Step| match step {
        Step::AddRoute(_) | Step::ReplaceRoute(_) | Step::AddRule(_) => true,
        Step::RemoveRoute(_) | Step::RemoveRule(_) => false,
    };
    let mut router = Router::open().map_err(opening)?;
    let steps = router.steps(&topology.routes)?;
    let missing = steps.iter().filter(|step| is_missing(step)).map(Step::to_string).collect();
    let (mut has_firewall, mut counters) = (false, Default::default());
    match Guard::open() {
        Ok(mut guard) => {
            has_firewall = guard.has_table()?;
            counters = guard.counters()?;
        }
        // Without netfilter there is no table.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {}
        Err(error) => return Err(opening(error)),
    }
    Ok(Kernel {
        is_up: router.interface().is_some(),
        missing,
        has_firewall,
        wants_firewall: topology.settings.mode != Mode::Off,
        counters,
    })
}
