//! What there is to see on the node, as plain data. Nothing is judged here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::thread::{CapabilitySet, capabilities};

use super::Wanted;
use super::judge::tunnel_mtu;
use super::probe::{Probed, probe};
use crate::control::api::{Backend, PodAddresses};
use crate::control::data_plane;
use crate::control::firewall::Guard;
use crate::control::watch::access::{self, Deed, With};
use crate::sys::clock;
use crate::sys::family;
use crate::sys::netlink::nftables::Chain;
use crate::sys::netlink::{Link, Netlink, PolicyRule, RouteFilter, TableRoute};
use crate::sys::offload::{Feature, Wanted as Offload};
use crate::sys::tun::Tun;

/// Variables of the kernel below `/proc/sys` that are no interface's.
const VARIABLES: [&str; 6] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "crypto/fips_enabled",
    "kernel/osrelease",
];

/// Those of one interface.
const INTERFACE_VARIABLES: [(&str, &str); 4] = [
    ("ipv4", "rp_filter"),
    ("ipv4", "src_valid_mark"),
    ("ipv4", "ignore_routes_with_linkdown"),
    ("ipv6", "ignore_routes_with_linkdown"),
];

/// What a node is seen to be.
#[derive(Debug)]
pub struct Facts {
    /// Whether this process may change the network.
    pub is_capable: bool,
    /// Whether the kernel has IPv6.
    pub has_ipv6: bool,
    /// The data plane, if one answers.
    pub data_plane: Option<DataPlane>,
    /// Whether a TUN device can be made, and whether it has more than one queue; `None` if a data plane shows it, or nobody wants one.
    pub tun: Option<io::Result<bool>>,
    /// Where the kernel's own WireGuard is.
    pub kernel_wireguard: Option<String>,
    /// Whether an interface of it can be made; `None` if nobody wants one, or it is there.
    pub kernel_interface: Option<io::Result<()>>,
    /// Who holds the UDP port: local addresses, and whether it is the kernel itself.
    pub port_holders: io::Result<Vec<(String, bool)>>,
    /// Variables of the kernel, by their path below `/proc/sys`; those that are not there are missing.
    pub variables: BTreeMap<String, String>,
    /// All interfaces.
    pub links: io::Result<Vec<Link>>,
    /// The names of interfaces that a WireGuard in userspace has.
    pub userspace_tunnels: Vec<String>,
    /// All routing rules.
    pub rules: io::Result<Vec<PolicyRule>>,
    /// The routes of our table and of the main one.
    pub routes: io::Result<Vec<TableRoute>>,
    /// Others' chains that drop or refuse in the end what comes in, and in which we do not open the tunnel's port.
    pub dropping_chains: Result<Vec<Chain>, String>,
    /// Whether there are filters of the older iptables interface, which cannot be looked at.
    pub has_older_filters: bool,
    /// The wall clock, since the Unix epoch.
    pub now: Duration,
    /// The latest moments that were ever written down here, and where.
    pub moments: Vec<(String, Duration)>,
    /// Permissions of the key's file and of its directory, if they are there.
    pub key_modes: (Option<u32>, Option<u32>),
    /// Whether there are objects that an agent with a key has kept.
    pub has_snapshot: bool,
    /// By which interface peers are reached.
    pub ways: Vec<(IpAddr, io::Result<Link>)>,
    /// What other nodes answered; `None` if they were not asked.
    pub probed: Option<Vec<Probed>>,
    /// What an agent does in the cluster and may not do, in words; `None` where there is no cluster to ask.
    pub refused: Option<Result<Vec<Deed>, String>>,
}

/// A data plane that answers.
#[derive(Debug, Clone, Copy)]
pub struct DataPlane {
    /// The UDP port that it listens on.
    pub listen_port: u16,
}

/// Looks at the node, in the network namespace of the process.
pub fn look(wanted: &Wanted) -> Facts {
    let settings = &wanted.settings;
    let mut netlink = Netlink::open();
    let driven = data_plane::DataPlane::of(&wanted.sockets, &settings.interface, settings.backend);
    let snapshot = driven.snapshot().ok();
    let links = ask(&mut netlink, Netlink::links);
    let names: Vec<_> = links.iter().flatten().map(|link| link.name.clone()).collect();
    let mut moments = kept_moments(&wanted.state);
    let handshakes = snapshot.iter().flat_map(|snapshot| &snapshot.peers);
    let latest = handshakes.filter_map(|peer| peer.last_handshake).max();
    moments.extend(latest.map(|moment| ("the latest handshake".to_owned(), moment)));
    let has_ipv6 = family::has_ipv6();
    let mode = |path: &Path| fs::metadata(path).ok().map(|data| data.permissions().mode() & 0o777);
    Facts {
        is_capable: capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN)),
        has_ipv6,
        tun: (snapshot.is_none() && settings.backend != Backend::Kernel).then(try_tun),
        data_plane: snapshot.map(|snapshot| DataPlane { listen_port: snapshot.listen_port }),
        kernel_wireguard: kernel_wireguard(),
        kernel_interface: (settings.backend == Backend::Kernel && !names.contains(&settings.interface))
            .then(data_plane::try_kernel),
        port_holders: port_holders(settings.listen_port),
        variables: variables(&names),
        userspace_tunnels: userspace_tunnels(&wanted.sockets, &names),
        rules: ask(&mut netlink, Netlink::policy_rules),
        routes: ask(&mut netlink, |netlink| routes(netlink, settings.table)),
        dropping_chains: dropping_chains(settings.listen_port),
        has_older_filters: has_older_filters(),
        now: clock::realtime(),
        moments,
        key_modes: (mode(&wanted.state.join("private.key")), mode(&wanted.state)),
        has_snapshot: wanted.state.join("snapshot.json").exists(),
        ways: wanted
            .peers
            .iter()
            .filter(|peer| has_ipv6 || peer.is_ipv4())
            .map(|peer| (*peer, ask(&mut netlink, |netlink| way(netlink, *peer, settings.fwmark, &links))))
            .collect(),
        probed: wanted.probes.then(|| probe(wanted, tunnel_mtu(wanted, links.iter().flatten()))),
        refused: wanted.cluster.as_ref().map(|reach| {
            let with = With {
                pods: settings.pod_addresses == PodAddresses::Pods,
                taint: wanted.removes_taint,
                config: wanted.makes_config,
                kubeadm: settings.cluster_prefixes.is_none(),
            };
            access::refused(reach, with).map_err(|error| error.to_string())
        }),
        links,
    }
}

fn ask<T>(
    netlink: &mut io::Result<Netlink>,
    question: impl FnOnce(&mut Netlink) -> io::Result<T>,
) -> io::Result<T> {
    match netlink {
        Ok(netlink) => question(netlink),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// Makes a TUN device with two queues, which goes at once, and tells whether it had both.
fn try_tun() -> io::Result<bool> {
    let tun = Tun::create("adittry%d", 2, &Offload::default())?;
    Ok(tun.offloads().has(Feature::MultiQueue))
}

fn kernel_wireguard() -> Option<String> {
    if Path::new("/sys/module/wireguard").exists() {
        return Some("/sys/module/wireguard".to_owned());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let modules = Path::new("/lib/modules").join(release.trim());
    let lists = ["modules.builtin", "modules.dep"].map(|name| modules.join(name));
    let names = |list: &Path| fs::read_to_string(list).is_ok_and(|text| text.contains("/wireguard.ko"));
    lists.iter().find(|list| names(list)).map(|list| list.display().to_string())
}

/// Reads the lists of UDP sockets of this network namespace (proc_net_udp): those of the kernel have no inode.
fn port_holders(port: u16) -> io::Result<Vec<(String, bool)>> {
    let mut holders = Vec::new();
    for list in ["udp", "udp6"] {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{list}")) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && list == "udp6" => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            let (Some(local), Some(inode)) = (words.get(1), words.get(9)) else { continue };
            let Some((_, hex)) = local.rsplit_once(':') else { continue };
            if u16::from_str_radix(hex, 16) == Ok(port) {
                holders.push((format!("{list} {local}"), *inode == "0"));
            }
        }
    }
    Ok(holders)
}

fn variables(links: &[String]) -> BTreeMap<String, String> {
    let general = VARIABLES.map(str::to_owned).into_iter();
    let of_links = links.iter().map(String::as_str).chain(["all", "default"]).flat_map(|link| {
        INTERFACE_VARIABLES.map(|(family, name)| format!("net/{family}/conf/{link}/{name}"))
    });
    let read = |name: String| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(&name)).ok()?;
        Some((name, text.trim().to_owned()))
    };
    general.chain(of_links).filter_map(read).collect()
}

fn userspace_tunnels(sockets: &Path, links: &[String]) -> Vec<String> {
    links.iter().filter(|link| sockets.join(format!("{link}.sock")).exists()).cloned().collect()
}

fn routes(netlink: &mut Netlink, table: u32) -> io::Result<Vec<TableRoute>> {
    let mut routes = Vec::new();
    for table in [table, libc::RT_TABLE_MAIN.into()] {
        routes.extend(netlink.table_routes(&RouteFilter { table: Some(table), protocol: None })?);
    }
    Ok(routes)
}

fn dropping_chains(port: u16) -> Result<Vec<Chain>, String> {
    let mut guard = Guard::open().map_err(|error| error.to_string())?;
    guard.obstacles(port).map_err(|error| error.to_string())
}

/// Reads which tables of x_tables this network namespace has (`x_tables.c`, `xt_table_seq_ops`).
fn has_older_filters() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|list| {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
        names.lines().any(|name| name == "filter")
    })
}

fn kept_moments(state: &Path) -> Vec<(String, Duration)> {
    let moment = |name| {
        let path = state.join(name);
        let modified = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
        Some((path.display().to_string(), modified.duration_since(SystemTime::UNIX_EPOCH).ok()?))
    };
    ["private.key", "snapshot.json"].into_iter().filter_map(moment).collect()
}

fn way(netlink: &mut Netlink, peer: IpAddr, mark: u32, links: &io::Result<Vec<Link>>) -> io::Result<Link> {
    let any = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let index = netlink.interface_towards(peer, any, mark)?;
    let link = links.iter().flatten().find(|link| link.index == index);
    link.cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}
