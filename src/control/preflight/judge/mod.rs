//! What the things seen mean. Pure: each check is a function of what is wanted and what was seen.

#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use super::Verdict::{self, Fail, Pass, Skip, Warn};
use super::{Facts, Probed, Wanted, Way};
use crate::config::Prefix;
use crate::control::api::{Backend, HostTraffic, Mode};
use crate::control::route::PROTOCOL;
use crate::control::watch::access::Deed;
use crate::sys::netlink::{Link, PolicyRule, TableRoute};

/// 1 January 2020 in seconds since the Unix epoch: before the first stable WireGuard in Linux, and so before any of our packets.
const EPOCH_LEAST: Duration = Duration::from_secs(1_577_836_800);

/// How far a clock may stand behind what it has said before: NTP steps back by as much.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// The MTU in bytes of a tunnel of which nothing else is said.
const MTU: u32 = 1420;

/// Routes that the kernel makes with an interface's addresses (`RTPROT_KERNEL`).
const BY_KERNEL: u8 = 2;

/// Routes of pods' networks that hand out blocks of their own: BIRD (`RTPROT_BIRD`), Felix (`FELIX_DEVICEROUTEPROTOCOL`, `dataplane/linux`).
const BY_POD_NETWORKS: [u8; 2] = [12, 80];

/// Who else puts marks on packets: the bits, and how their interfaces' names begin. kube-proxy is taken to be everywhere.
const MARKERS: [(&str, u32, &[&str]); 4] = [
    ("kube-proxy", 0x0000_c000, &["lo"]),
    ("Calico", 0xffff_0000, &["cali", "tunl0", "vxlan.calico", "wireguard.cali"]),
    ("Cilium", 0x0000_0f00, &["cilium_"]),
    ("kube-router", 0x0003_0000, &["kube-bridge"]),
];

/// Interfaces that others encrypt with, by how their names begin: Calico, Cilium, flannel, Kilo, Tailscale.
const ENCRYPTED: [&str; 6] = ["wireguard.cali", "wg-v6.cali", "cilium_wg", "flannel-wg", "kilo", "tailscale"];

/// Kinds of interfaces that encrypt.
const ENCRYPTED_KINDS: [&str; 4] = ["wireguard", "xfrm", "vti", "vti6"];

const NEEDS_CAPABILITY: &str = "CAP_NET_ADMIN is needed to look";

/// One check.
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) why: &'static str,
    pub(super) fix: &'static str,
    pub(super) judge: fn(&Wanted, &Facts) -> (Verdict, String),
}

/// The checks for which other nodes are asked.
pub(super) const ASKING: [&str; 2] = ["path-mtu", "peers"];

/// All checks.
pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "capability",
        why: "interfaces, routes, rules and the firewall can only be changed with CAP_NET_ADMIN",
        fix: "run as root, or with CAP_NET_ADMIN (securityContext.capabilities.add: [NET_ADMIN])",
        judge: capability,
    },
    Check {
        id: "tun",
        why: "the data plane's packets come and go by a TUN device, with a queue for each core",
        fix: "load the module (modprobe tun), and give the container /dev/net/tun",
        judge: tun,
    },
    Check {
        id: "kernel-wireguard",
        why: "with backend: Kernel the kernel's WireGuard is the data plane; otherwise what the kernel has decides nothing",
        fix: "load the module (modprobe wireguard), or set spec.backend of the TunnelConfig to Userspace",
        judge: kernel_wireguard,
    },
    Check {
        id: "udp-port",
        why: "peers send to this port, and only one program can have it",
        fix: "end the program that holds it, or set spec.listenPort of the TunnelConfig to another port",
        judge: udp_port,
    },
    Check {
        id: "rp-filter",
        why: "with a strict reverse path filter the kernel drops packets that come by the tunnel from addresses that are not routed \
            into it, such as answers of other nodes themselves",
        fix: "set net.ipv4.conf.all.rp_filter, and that of the interface named, to 0 or 2; src_valid_mark=1 helps only where a firewall \
            marks what peers send",
        judge: rp_filter,
    },
    Check {
        id: "linkdown-routes",
        why: "a tunnel without its data plane has no carrier; with ignore_routes_with_linkdown its routes do not count then, and what \
            should be encrypted leaves by others",
        fix: "set net.ipv4 and net.ipv6 conf.*.ignore_routes_with_linkdown to 0",
        judge: linkdown_routes,
    },
    Check {
        id: "rule-priority",
        why: "a rule before ours or in its place decides where packets for other nodes' pods go",
        fix: "set spec.routing.rulePriority of the TunnelConfig to a lower number that is free",
        judge: rule_priority,
    },
    Check {
        id: "routing-table",
        why: "another's routes in our table lead packets past the tunnel, and whoever else uses the table is led into it",
        fix: "set spec.routing.table of the TunnelConfig to a number that is free",
        judge: routing_table,
    },
    Check {
        id: "mark",
        why: "the tunnel's own datagrams are told by their mark; another who sets or asks for its bits leads them astray",
        fix: "set spec.routing.fwmark of the TunnelConfig to bits that nobody else uses",
        judge: mark,
    },
    Check {
        id: "nftables",
        why: "in Strict the firewall drops what should be encrypted and is not; it also tells TCP of the tunnel's MTU",
        fix: "load the module (modprobe nf_tables)",
        judge: nftables,
    },
    Check {
        id: "input-policy",
        why: "a chain that drops by default, or by its last rule, also drops peers' datagrams, unless a rule in it accepts them: a packet must be accepted by \
            every table, and the accept in adit's own saves none",
        fix: "accept UDP to the tunnel's port in the chain named, or name it in spec.openPortIn of the TunnelConfig",
        judge: input_policy,
    },
    Check {
        id: "double-encryption",
        why: "what goes through two encrypting tunnels costs twice the processor time, and the second header does not fit the MTU",
        fix: "switch off the other one's encryption, or adit's, unless its traffic is not between nodes",
        judge: double_encryption,
    },
    Check {
        id: "clock",
        why: "handshakes carry the time, and peers refuse one that is older than the last they took",
        fix: "set the clock and keep it so (chrony, systemd-timesyncd); peers that refuse until then take handshakes again after that",
        judge: clock,
    },
    Check {
        id: "key-file",
        why: "who reads the private key can speak for this node, and a key that is gone is not made anew silently",
        fix: "chmod 600 private.key, chmod 700 its directory; bring back a key that is gone, or remove snapshot.json beside it",
        judge: key_file,
    },
    Check {
        id: "cluster-prefixes",
        why: "addresses of the node's own networks that are taken for pods' are sent into the tunnel, or dropped",
        fix: "name the pods' prefixes alone in spec.clusterCIDRs of the TunnelConfig, or give the network other addresses",
        judge: cluster_prefixes,
    },
    Check {
        id: "catch-all",
        why: "in Strict, an address of pods that no node has claimed so far is not known to be one, and what is sent there goes in clear",
        fix: "name the prefixes of all pods in spec.clusterCIDRs of the TunnelConfig, as the controller manager's --cluster-cidr has them; \
            where kubeadm made the cluster, let agents read its configuration (rbac.yaml)",
        judge: catch_all,
    },
    Check {
        id: "fips",
        why: "WireGuard's ciphers are not among those that FIPS 140 approves, and no setting of adit changes that",
        fix: "use another protocol where FIPS 140 is required, or switch off the mode (fips=0) where it is not",
        judge: fips,
    },
    Check {
        id: "forwarding",
        why: "pods' packets reach the tunnel only through a node that forwards",
        fix: "set net.ipv4.ip_forward and, with IPv6 pods, net.ipv6.conf.all.forwarding to 1",
        judge: forwarding,
    },
    Check {
        id: "ipv6",
        why: "a node whose kernel has no IPv6 sends and encrypts nothing by it, and does what is of IPv4 all the same",
        fix: "boot without ipv6.disable=1, and start the agent anew, or give the cluster's pods IPv4 alone",
        judge: ipv6,
    },
    Check {
        id: "conntrack",
        why: "a full table of connections makes the kernel drop packets of new ones, the tunnel's datagrams too",
        fix: "raise net.netfilter.nf_conntrack_max, or find out who opens so many connections",
        judge: conntrack,
    },
    Check {
        id: "path-mtu",
        why: "a datagram that is larger than the way to a peer allows is cut in two or lost",
        fix: "set spec.mtu of the TunnelConfig to 60 bytes (IPv4) or 80 (IPv6) less than the smallest MTU on the way; add a missing route",
        judge: path_mtu,
    },
    Check {
        id: "peers",
        why: "what is sent to a node that does not answer through the tunnel is lost",
        fix: "let UDP to the tunnel's port through, to that node and from there: between the nodes (security groups), and on both \
            (input-policy of adit preflight there); adit peers tells whether it was ever heard of",
        judge: peers,
    },
    Check {
        id: "rbac",
        why: "an agent that may not read the objects knows no peers, and one that may not write its own is nobody's peer",
        fix: "apply rbac.yaml of adit's manifests, taint.yaml for a startup taint, and pods.yaml for podAddresses: Pods, and run the agent under \
            the service account adit-agent",
        judge: rbac,
    },
];

fn rbac(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    match &facts.refused {
        None => (Skip, "no cluster is named".to_owned()),
        Some(Err(error)) => (Warn, format!("the API server cannot be asked: {error}")),
        Some(Ok(refused)) if refused.is_empty() => (Pass, "all that an agent does is allowed".to_owned()),
        Some(Ok(refused)) => {
            let worst = if refused.iter().any(Deed::is_needed) { Fail } else { Warn };
            verdict(worst, refused.iter().map(ToString::to_string), "not allowed: ", "")
        }
    }
}

fn capability(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    match facts.is_capable {
        true => (Pass, "CAP_NET_ADMIN is effective".to_owned()),
        false => (Fail, "CAP_NET_ADMIN is not effective".to_owned()),
    }
}

fn tun(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    match &facts.tun {
        None if wanted.settings.backend == Backend::Kernel => {
            (Pass, "with backend: Kernel none is needed".to_owned())
        }
        None => (Pass, format!("a data plane has {}", wanted.settings.interface)),
        Some(Ok(true)) => (Pass, "/dev/net/tun opens, and a device can have several queues".to_owned()),
        Some(Ok(false)) => (Warn, "a device can have one queue only: one core does all the work".to_owned()),
        Some(Err(_)) if !facts.is_capable => (Skip, NEEDS_CAPABILITY.to_owned()),
        Some(Err(error)) => (Fail, format!("no device can be made with /dev/net/tun: {error}")),
    }
}

fn kernel_wireguard(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let name = &wanted.settings.interface;
    match &facts.kernel_interface {
        None if wanted.settings.backend == Backend::Kernel => {
            let link = links(facts).find(|link| link.name == *name);
            let kind = link.and_then(|link| link.kind.as_deref());
            return match kind {
                Some("wireguard") => (Pass, format!("{name} is the kernel's")),
                Some(_) | None => (Fail, format!("{name} is there, and none of the kernel's WireGuard")),
            };
        }
        Some(Ok(())) => return (Pass, "the kernel makes an interface of its own WireGuard".to_owned()),
        Some(Err(_)) if !facts.is_capable => return (Skip, NEEDS_CAPABILITY.to_owned()),
        Some(Err(error)) => return (Fail, format!("the kernel makes no interface of its own: {error}")),
        None => {}
    }
    let there = facts.kernel_wireguard.as_ref().map(|place| format!("the kernel has its own: {place}"));
    (Pass, there.unwrap_or_else(|| "the kernel has none".to_owned()))
}

fn udp_port(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let port = wanted.settings.listen_port;
    let holders = match &facts.port_holders {
        Ok(holders) => holders,
        Err(error) => return (Skip, format!("the sockets cannot be listed: {error}")),
    };
    if facts.data_plane.is_some_and(|ours| ours.listen_port == port) {
        return (Pass, format!("the data plane has port {port}"));
    }
    let names = holders.iter().map(|(local, is_kernel)| match is_kernel {
        true => format!("{local} (the kernel)"),
        false => local.clone(),
    });
    verdict(Fail, names, &format!("port {port} is in use: "), &format!("port {port} is free"))
}

fn rp_filter(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let tunnel = &wanted.settings.interface;
    let value = |link: &str| number(facts, &format!("net/ipv4/conf/{link}/rp_filter"));
    let Some(all) = value("all") else { return (Skip, "the kernel does not tell rp_filter".to_owned()) };
    // The higher of both counts (ip-sysctl).
    let is_strict = |link: &str| all.max(value(link).unwrap_or_default()) == 1;
    // An interface that is not there yet begins with the default.
    let of_tunnel = if value(tunnel).is_some() { tunnel.as_str() } else { "default" };
    let mut strict: Vec<_> = Some(of_tunnel).filter(|link| is_strict(link)).into_iter().collect();
    let mut by_mark = Vec::new();
    if wanted.settings.host_traffic == HostTraffic::Encrypt {
        // Peers' datagrams come from addresses that are routed into the tunnel. The way back is not that one only for a packet that has the
        // mark when it comes, which is not our doing, and only where marks count (`fib_frontend.c`, `__fib_validate_source`).
        let counts = |link: &&str| {
            let value = |link: &str| number(facts, &format!("net/ipv4/conf/{link}/src_valid_mark"));
            value("all") == Some(1) || value(link) == Some(1)
        };
        let others = links(facts).filter(|link| link.up && link.name != "lo" && link.name != *tunnel);
        let others = others.map(|link| link.name.as_str()).filter(|link| is_strict(link));
        let (marked, unmarked): (Vec<_>, Vec<_>) = others.partition(counts);
        strict.extend(unmarked);
        by_mark = marked;
    }
    let values = format!("rp_filter of all is {all}");
    if strict.is_empty() {
        let only = format!(
            "{values}; strict, but for datagrams that a rule of a firewall gives the mark {:#x}: ",
            wanted.settings.fwmark
        );
        return verdict(Warn, by_mark.into_iter().map(str::to_owned), &only, &values);
    }
    strict.extend(by_mark);
    verdict(Fail, strict.into_iter().map(str::to_owned), &format!("{values}; strict: "), &values)
}

fn linkdown_routes(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let tunnel = wanted.settings.interface.as_str();
    let names = ["ipv4", "ipv6"].into_iter().flat_map(|family| {
        let name = move |link: &str| format!("net/{family}/conf/{link}/ignore_routes_with_linkdown");
        // An interface that is not there yet begins with the default.
        let link = if facts.variables.contains_key(&name(tunnel)) { tunnel } else { "default" };
        ["all", link].map(name)
    });
    let set = names.filter(|name| number(facts, name).is_some_and(|value| value != 0));
    match wanted.settings.mode {
        Mode::Strict => {
            verdict(Warn, set, "only the blackhole and the firewall are left; set: ", "none is set")
        }
        Mode::Permissive | Mode::Off => verdict(Fail, set, "set: ", "none is set"),
    }
}

fn rule_priority(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let own = wanted.settings.rule_priority;
    let rules = match others(wanted, facts) {
        Ok(rules) => rules,
        Err(error) => return (Skip, format!("the rules cannot be listed: {error}")),
    };
    let is_in_the_way = |rule: &&PolicyRule| {
        let is_local = rule.table == Some(u32::from(libc::RT_TABLE_LOCAL));
        rule.priority == own || rule.priority < own && rule.is_unconditional && !is_local
    };
    let found = rules.into_iter().filter(is_in_the_way).map(shown);
    verdict(Fail, found, &format!("at {own} or before it: "), &format!("nothing is in the way of {own}"))
}

fn routing_table(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let own = wanted.settings.table;
    let (rules, routes) = match (others(wanted, facts), &facts.routes) {
        (Ok(rules), Ok(routes)) => (rules, routes),
        (Err(error), _) | (_, Err(error)) => return (Skip, format!("the table cannot be listed: {error}")),
    };
    // The next table is that of routes for pods alone.
    let is_own = |table: u32| {
        table == own || wanted.settings.host_traffic == HostTraffic::PodToNode && table == own + 1
    };
    let rules = rules.into_iter().filter(|rule| rule.table.is_some_and(is_own)).map(shown);
    let is_foreign = |route: &&TableRoute| is_own(route.table) && route.protocol != PROTOCOL;
    let routes = routes.iter().filter(is_foreign).map(|route| format!("route to {}", destination(route)));
    let text = format!("table {own} is used by others: ");
    verdict(Fail, rules.chain(routes), &text, &format!("table {own} is free"))
}

fn mark(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let own = wanted.settings.fwmark;
    let rules = match others(wanted, facts) {
        Ok(rules) => rules,
        Err(error) => return (Skip, format!("the rules cannot be listed: {error}")),
    };
    let takes = |rule: &&PolicyRule| {
        !rule.is_inverted && rule.mark.is_some_and(|(mark, bits)| bits != 0 && own & bits == mark & bits)
    };
    let rules = rules.into_iter().filter(takes).map(shown);
    let is_here =
        |begins: &[&str]| links(facts).any(|link| begins.iter().any(|begin| link.name.starts_with(begin)));
    let markers = MARKERS.iter().filter(|(_, bits, begins)| own & bits != 0 && is_here(begins));
    let markers = markers.map(|(name, bits, _)| format!("{name} ({bits:#x})"));
    let text = format!("the mark {own:#x} is also that of: ");
    verdict(Fail, rules.chain(markers), &text, &format!("nobody else uses the mark {own:#x}"))
}

fn nftables(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    match &facts.dropping_chains {
        Ok(_) => (Pass, "the kernel lists its chains".to_owned()),
        Err(_) if !facts.is_capable => (Skip, NEEDS_CAPABILITY.to_owned()),
        Err(error) => (Fail, error.clone()),
    }
}

fn input_policy(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let Ok(chains) = &facts.dropping_chains else { return (Skip, "the chains cannot be listed".to_owned()) };
    let names = chains.iter().map(ToString::to_string);
    let text = format!("UDP port {} needs a rule in: ", wanted.settings.listen_port);
    let (result, text) =
        verdict(Warn, names, &text, "no chain of nftables drops in the end what comes to the port");
    match result {
        Pass if facts.has_older_filters => {
            (Skip, format!("{text}; those of iptables-legacy cannot be looked at"))
        }
        Pass | Skip | Warn | Fail => (result, text),
    }
}

fn double_encryption(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let encrypts = |link: &&Link| {
        let is_of_kind = link.kind.as_ref().is_some_and(|kind| ENCRYPTED_KINDS.contains(&kind.as_str()));
        let is_named = ENCRYPTED.iter().any(|begin| link.name.starts_with(begin));
        is_of_kind || is_named || facts.userspace_tunnels.contains(&link.name)
    };
    let others = links(facts).filter(|link| link.up && link.name != wanted.settings.interface);
    let names = others.filter(encrypts).map(|link| match &link.kind {
        Some(kind) => format!("{} ({kind})", link.name),
        None => link.name.clone(),
    });
    verdict(Warn, names, "up: ", "no other interface that encrypts is up")
}

fn clock(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    let now = format!("it is {} s since 1970", facts.now.as_secs());
    if facts.now < EPOCH_LEAST {
        return (Fail, format!("{now}: before 2020"));
    }
    let later = facts.moments.iter().filter(|(_, moment)| facts.now + CLOCK_SLACK < *moment);
    let later = later.map(|(what, moment)| format!("{what} is of {} s", moment.as_secs()));
    verdict(Fail, later, &format!("{now}, but "), &now)
}

fn key_file(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let path = wanted.state.join("private.key");
    let path = path.display();
    match facts.key_modes {
        (None, _) if facts.has_snapshot => (Fail, format!("{path} is gone, but snapshot.json is there")),
        (None, _) => (Pass, format!("{path} is made by the first agent")),
        (Some(mode), _) if mode & 0o077 != 0 => (Fail, format!("{path} has mode {mode:o}")),
        (Some(_), Some(mode)) if mode & 0o022 != 0 => {
            (Fail, format!("the directory of {path} has mode {mode:o}"))
        }
        (Some(mode), _) => (Pass, format!("{path} has mode {mode:o}")),
    }
}

fn cluster_prefixes(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let routes = match &facts.routes {
        Ok(routes) => routes,
        Err(error) => return (Skip, format!("the routes cannot be listed: {error}")),
    };
    if wanted.cluster_prefixes.is_empty() {
        return (Skip, "the cluster's prefixes are not known".to_owned());
    }
    let overlaps = |route: &&TableRoute| {
        let (addr, len) = route.destination;
        let Some(network) = Prefix::new(addr, len) else { return false };
        let mut own = wanted.own_prefixes.iter().flatten();
        let is_of_pods = own.any(|prefix| prefix.covers(&network));
        let mut cluster = wanted.cluster_prefixes.iter();
        !is_of_pods && cluster.any(|prefix| prefix.covers(&network) || network.covers(prefix))
    };
    // Networks that the node itself is in would be cut off.
    let main = u32::from(libc::RT_TABLE_MAIN);
    let (connected, others): (Vec<_>, Vec<_>) = routes
        .iter()
        .filter(|route| route.table == main && route.protocol != PROTOCOL)
        .partition(|route| route.protocol == BY_KERNEL);
    let found = connected.into_iter().filter(overlaps).map(destination);
    // Without knowing which pods are ours, a network that is theirs cannot be told from one that is not.
    let worst = if wanted.own_prefixes.is_some() { Fail } else { Warn };
    let (result, text) = verdict(worst, found, "the node is itself in: ", "");
    if result != Pass {
        return (result, text);
    }
    let found = others.into_iter().filter(|route| is_strange(wanted, route)).map(destination);
    verdict(Warn, found, "routes to what is no known node's: ", "no network of others is among the pods'")
}

/// Tells whether a route leads to a network that is taken for pods', and of which no node says that it is. Others' routes to pods come
/// after ours, and are no harm: those to nodes' blocks, and to single pods. Whoever routes more than the pods' network, by default or to
/// all of 10.0.0.0/8, says nothing of what is in it.
fn is_strange(wanted: &Wanted, route: &TableRoute) -> bool {
    let (addr, len) = route.destination;
    let Some(network) = Prefix::new(addr, len) else { return false };
    let is_inside = |prefix: &Prefix| prefix.covers(&network) && *prefix != network;
    let is_host = len == if addr.is_ipv4() { 32 } else { 128 };
    let mut pods = wanted.pod_prefixes.iter();
    !is_host
        && !BY_POD_NETWORKS.contains(&route.protocol)
        && wanted.cluster_prefixes.iter().any(is_inside)
        && !pods.any(|prefix| prefix.covers(&network) || network.covers(prefix))
}

fn catch_all(wanted: &Wanted, _: &Facts) -> (Verdict, String) {
    let settings = &wanted.settings;
    match settings.cluster_prefixes.as_deref() {
        _ if settings.lacks_catch_all() => match settings.found_catch_all() {
            Some(found) => (Warn, format!("clusterCIDRs is Auto, and there are pods outside of {found}")),
            None => (Warn, "clusterCIDRs is Auto, and neither kubeadm's configuration nor a server of k3s or RKE2 was found".to_owned()),
        },
        Some(prefixes) => (Pass, format!("clusterCIDRs names {} prefixes", prefixes.len())),
        None if settings.mode == Mode::Strict => (Pass, settings.found_catch_all().unwrap_or_default()),
        None => (Pass, "nothing is dropped in this mode".to_owned()),
    }
}

fn fips(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    match number(facts, "crypto/fips_enabled") {
        Some(0) => (Pass, "crypto/fips_enabled is 0".to_owned()),
        None => (Pass, "the kernel has no FIPS mode".to_owned()),
        Some(_) => (Warn, "crypto/fips_enabled is 1".to_owned()),
    }
}

fn ipv6(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let mut of_pods = wanted.cluster_prefixes.iter().filter(|prefix| prefix.addr().is_ipv6());
    match of_pods.next() {
        _ if facts.has_ipv6 => (Pass, "the kernel has IPv6".to_owned()),
        None => (Pass, "the kernel has no IPv6, and no pods have".to_owned()),
        Some(prefix) => (Warn, format!("the kernel has no IPv6, and pods have {prefix}")),
    }
}

fn forwarding(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let has_v6 = wanted.cluster_prefixes.iter().any(|prefix| prefix.addr().is_ipv6());
    let has_v4 = !has_v6 || wanted.cluster_prefixes.iter().any(|prefix| prefix.addr().is_ipv4());
    let needed =
        [("net/ipv4/ip_forward", has_v4), ("net/ipv6/conf/all/forwarding", has_v6 && facts.has_ipv6)];
    let needed = needed.into_iter().filter(|(_, is_needed)| *is_needed);
    let off = needed.filter(|(name, _)| number(facts, name) != Some(1)).map(|(name, _)| name.to_owned());
    verdict(Fail, off, "not 1: ", "the node forwards")
}

fn conntrack(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    let value = |name| number(facts, &format!("net/netfilter/nf_conntrack_{name}"));
    match (value("count"), value("max")) {
        (Some(count), Some(most)) => {
            let text = format!("{count} connections of {most} at most");
            // 0 is without a limit; the last tenth is for what comes at once.
            if most > 0 && count >= most - most / 10 { (Warn, text) } else { (Pass, text) }
        }
        _ => (Pass, "connections are not tracked".to_owned()),
    }
}

fn path_mtu(wanted: &Wanted, facts: &Facts) -> (Verdict, String) {
    let inner = tunnel_mtu(wanted, links(facts));
    if facts.ways.is_empty() {
        return (Skip, "no peers are known".to_owned());
    }
    let lost = facts.ways.iter().filter_map(|(peer, way)| match way {
        Ok(_) => None,
        Err(error) => Some(format!("{peer}: {error}")),
    });
    let (result, text) = verdict(Fail, lost, "no way to ", "");
    if result != Pass {
        return (result, text);
    }
    let narrow = facts.ways.iter().filter_map(|(peer, way)| {
        let link = way.as_ref().ok()?;
        // The outer IP header, 8 bytes of UDP and 32 of the data message.
        let outer = inner + if peer.is_ipv4() { 60 } else { 80 };
        (outer > link.mtu).then(|| format!("{} to {peer} takes {} bytes, not {outer}", link.name, link.mtu))
    });
    let fits =
        format!("datagrams of an MTU of {inner} bytes inside fit the way to {} peers", facts.ways.len());
    match verdict(Warn, narrow, "", &fits) {
        (Pass, fits) => measured(facts.probed.as_deref().unwrap_or_default(), fits),
        narrow => narrow,
    }
}

/// Judges what echo requests have shown of the ways to peers, whose links are wide enough.
fn measured(probed: &[Probed], fits: String) -> (Verdict, String) {
    let found = probed.iter().filter_map(|Probed { node, way, .. }| match way {
        Way::Narrow { takes, needed } => Some(format!("the way to {node} takes {takes} bytes, not {needed}")),
        Way::Silent => Some(format!("{node} answers no echo request, and what the way takes is not known")),
        Way::Fits | Way::Unasked(_) => None,
    });
    let unasked = probed.iter().find_map(|Probed { node, way, .. }| match way {
        Way::Unasked(reason) => Some(format!("{fits}; of {node} that was not tried: {reason}")),
        Way::Fits | Way::Narrow { .. } | Way::Silent => None,
    });
    verdict(Warn, found, "", &unasked.unwrap_or(fits))
}

fn peers(_: &Wanted, facts: &Facts) -> (Verdict, String) {
    let probed = match facts.probed.as_deref() {
        None => return (Skip, "nobody was asked".to_owned()),
        Some([]) => return (Skip, "no peers are known".to_owned()),
        Some(probed) => probed,
    };
    let silent: Vec<_> = probed.iter().filter(|peer| peer.answers == Ok(false)).collect();
    if !silent.is_empty() {
        let names = silent.iter().map(|peer| peer.node.clone());
        return verdict(Fail, names, "no answer through the tunnel from ", "");
    }
    let unasked = probed.iter().filter_map(|Probed { node, answers, .. }| {
        answers.as_ref().err().map(|reason| format!("{node}: {reason}"))
    });
    let unasked: Vec<_> = unasked.collect();
    // A node without a data plane has nobody to ask; another one lacks a peer.
    let result = if unasked.len() == probed.len() { Skip } else { Warn };
    let answered = format!("{} nodes answer through the tunnel", probed.len() - unasked.len());
    verdict(result, unasked.into_iter(), "not asked: ", &answered)
}

/// Returns what the tunnel's interface takes, or is to take.
pub(super) fn tunnel_mtu<'a>(wanted: &Wanted, mut links: impl Iterator<Item = &'a Link>) -> u32 {
    let tunnel = links.find(|link| link.name == wanted.settings.interface);
    wanted.settings.mtu.or_else(|| tunnel.map(|link| link.mtu)).unwrap_or(MTU)
}

/// Names at most so many things: a node may have thousands of routes.
const NAMED_MOST: usize = 8;

/// Passes if nothing was found; otherwise names what was.
fn verdict(worst: Verdict, found: impl Iterator<Item = String>, text: &str, good: &str) -> (Verdict, String) {
    let mut found: Vec<_> = found.collect();
    if found.is_empty() {
        return (Pass, good.to_owned());
    }
    let more = found.len().saturating_sub(NAMED_MOST);
    found.truncate(NAMED_MOST);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    (worst, format!("{text}{}", found.join(", ")))
}

/// Returns the rules that are not ours.
fn others<'a>(wanted: &Wanted, facts: &'a Facts) -> Result<Vec<&'a PolicyRule>, &'a io::Error> {
    let settings = &wanted.settings;
    let is_ours = |rule: &PolicyRule| match rule.protocol {
        Some(protocol) => protocol == PROTOCOL,
        // The kernel does not keep it, but the form is ours.
        None => {
            rule.is_inverted
                && rule.mark == Some((settings.fwmark, u32::MAX))
                && rule.table == Some(settings.table)
        }
    };
    Ok(facts.rules.as_ref()?.iter().filter(|rule| !is_ours(rule)).collect())
}

fn shown(rule: &PolicyRule) -> String {
    let family = if rule.is_ipv6 { "-6 " } else { "" };
    let not = if rule.is_inverted { " not" } else { "" };
    let mark = rule.mark.map(|(mark, bits)| format!(" fwmark {mark:#x}/{bits:#x}")).unwrap_or_default();
    let table = rule.table.map(|table| format!(" lookup {table}")).unwrap_or_default();
    format!("rule {family}{}:{not}{mark}{table}", rule.priority)
}

fn destination(route: &TableRoute) -> String {
    format!("{}/{}", route.destination.0, route.destination.1)
}

fn links(facts: &Facts) -> impl Iterator<Item = &Link> {
    facts.links.iter().flatten()
}

fn number(facts: &Facts, name: &str) -> Option<u64> {
    facts.variables.get(name)?.parse().ok()
}
