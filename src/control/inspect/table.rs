//! What was found, for people.

use std::fmt::{self, Write};

use super::report::{Interface, KernelReport, NodeReport, Peer, Report};

/// The most prefixes that are named.
const ORPHANS_MOST: usize = 8;

/// Returns what `adit status` prints.
pub fn status(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_status(&mut text, report);
    text
}

fn write_status(text: &mut String, report: &Report) -> fmt::Result {
    for interface in &report.interfaces {
        write_interface(text, interface)?;
        text.push('\n');
    }
    if let Some(fault) = &report.fault {
        writeln!(text, "the agent's objects: {fault}\n")?;
    }
    if let Some(seconds) = report.objects_age {
        writeln!(text, "the agent's objects: changed {} ago", age(seconds))?;
    }
    writeln!(text, "same-host traffic: {}", report.same_host_traffic)
}

fn write_interface(text: &mut String, interface: &Interface) -> fmt::Result {
    writeln!(text, "{}", interface.interface)?;
    if let Some(error) = &interface.error {
        return line(text, "error", error);
    }
    match &interface.data_plane {
        Some(it) => {
            let adit = format!("adit {}, crypto {}, {} workers", it.version, it.crypto, it.workers);
            line(text, "data plane", &adit)?;
        }
        None => line(text, "data plane", "another one than adit's, which counts no drops")?,
    }
    line(text, "public key", interface.public_key.as_deref().unwrap_or("none"))?;
    match interface.listen_port {
        0 => line(text, "port", "none yet")?,
        port => line(text, "port", &format!("UDP {port}"))?,
    }
    let peers = &interface.peers;
    let counts = format!("{} of {} up, {} idle, {} down", peers.up, peers.total, peers.idle, peers.down);
    line(text, "peers", &counts)?;
    if interface.data_plane.is_some() {
        let dropped = interface.dropped.iter().map(|(reason, packets)| format!("{reason} {packets}"));
        line(text, "dropped", &list(dropped.collect()))?;
    }
    interface.node.as_ref().map_or(Ok(()), |node| write_node(text, node))
}

fn write_node(text: &mut String, node: &NodeReport) -> fmt::Result {
    line(text, "node", &format!("{}, mode {}", node.name, node.mode))?;
    if let Some(degraded) = &node.degraded {
        line(text, "degraded", degraded)?;
    }
    if let Some(nodes) = &node.strict_waits_for {
        line(text, "Strict", &format!("waits for {nodes}"))?;
    }
    if let Some(why) = node.no_catch_all {
        line(text, "Strict", why)?;
    }
    if let Some(why) = node.no_ipv6 {
        line(text, "IPv6", why)?;
    }
    if let Some(found) = &node.found_catch_all {
        line(text, "catch-all", found)?;
    }
    if !node.orphans.is_empty() {
        let mut orphans: Vec<_> = node.orphans.iter().take(ORPHANS_MOST).cloned().collect();
        if let Some(more @ 1..) = node.orphans.len().checked_sub(ORPHANS_MOST) {
            orphans.push(format!("{more} more"));
        }
        line(text, "orphans", &format!("{}: once other nodes', nobody's now, dropped", list(orphans)))?;
    }
    let others = node.not_encrypted.iter().map(|other| {
        let how = if other.dropped { "dropped" } else { "in clear" };
        format!("{} ({}, {how})", other.node, other.reason)
    });
    line(text, "not encrypted", &list(others.collect()))?;
    match (&node.kernel, &node.kernel_error) {
        (Some(kernel), _) => write_kernel(text, kernel),
        (None, Some(error)) => line(text, "kernel", &format!("cannot be looked at: {error}")),
        (None, None) => Ok(()),
    }
}

fn write_kernel(text: &mut String, kernel: &KernelReport) -> fmt::Result {
    let in_place = |is: bool| if is { "in place" } else { "NOT in place" };
    let link = if kernel.interface_up { "up" } else { "DOWN" };
    let firewall = in_place(kernel.firewall_in_place);
    let routes = in_place(kernel.missing_routes.is_empty());
    line(text, "kernel", &format!("interface {link}, routes and rules {routes}, firewall {firewall}"))?;
    for missing in &kernel.missing_routes {
        line(text, "missing", missing)?;
    }
    let (ingress, egress) = (kernel.cleartext_dropped_ingress, kernel.cleartext_dropped_egress);
    line(text, "cleartext", &format!("{ingress} packets coming in and {egress} going out were dropped"))
}

fn line(text: &mut String, name: &str, value: &str) -> fmt::Result {
    writeln!(text, "  {name:<14} {value}")
}

fn list(items: Vec<String>) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// Returns what `adit peers` prints.
pub fn peers(peers: &[Peer]) -> String {
    let head = [
        "INTERFACE",
        "NODE",
        "STATE",
        "HANDSHAKE",
        "SENT",
        "RECEIVED",
        "ENDPOINT",
        "PUBLIC KEY",
        "ALLOWED IPS",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(peers.iter().map(|peer| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            peer.interface.clone(),
            or_none(peer.node.clone()),
            peer.state.to_owned(),
            or_none(peer.handshake_age.map(age)),
            bytes(peer.transmit_bytes),
            bytes(peer.receive_bytes),
            or_none(peer.endpoint.map(|endpoint| endpoint.to_string())),
            peer.public_key.clone(),
            peer.allowed_ips.join(","),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a time in seconds in its two greatest units.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Returns a number of bytes as `wg` prints it.
#[expect(clippy::cast_precision_loss, reason = "for a table")]
fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for greater in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, greater);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.2} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Prefix;
    use crate::control::api::Mode;
    use crate::control::inspect::report::tests::{NOW, found};
    use crate::control::inspect::report::{Found, Kernel};

    #[test]
    fn what_strict_leaves_open_and_what_it_drops_for_nobody_is_said() {
        let mut found = found(Err("no".to_owned()));
        let topology = &mut found.node.as_mut().unwrap().topology;
        topology.settings.mode = Mode::Strict;
        topology.orphans = (0..10).map(|n| Prefix::new([10, 244, n, 0].into(), 24).unwrap()).collect();
        let text = status(&Report::of(vec![found], NOW));
        let blocks: String = (0..8).map(|n| format!("10.244.{n}.0/24, ")).collect();
        for line in [
            "  Strict         no catch-all: name clusterCIDRs; addresses of pods that no node has claimed go in clear\n",
            &format!("  orphans        {blocks}2 more: once other nodes', nobody's now, dropped\n"),
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_status_reads_as_it_should() {
        let kernel = Kernel { missing: vec!["adding IPv4 rule 99".to_owned()], ..Kernel::default() };
        let silent = Found { interface: "wg0".to_owned(), told: Err("nobody".to_owned()), node: None };
        let found = found(Ok(kernel));
        let key = {
            let (snapshot, _) = found.told.as_ref().unwrap();
            crate::control::inspect::report::base64(&snapshot.private_key.as_ref().unwrap().public())
        };
        let expected = [
            "adit0",
            "  data plane     adit 1.2.3, crypto avx2, 2 workers",
            &format!("  public key     {key}"),
            "  port           UDP 51820",
            "  peers          1 of 2 up, 1 idle, 0 down",
            "  dropped        no_peer 3",
            "  node           a, mode Off",
            "  not encrypted  b (ModeOff, in clear), c (ModeOff, in clear)",
            "  kernel         interface DOWN, routes and rules NOT in place, firewall in place",
            "  missing        adding IPv4 rule 99",
            "  cleartext      0 packets coming in and 0 going out were dropped",
            "",
            "wg0",
            "  error          nobody",
            "",
            "same-host traffic: never leaves the node, never encrypted",
            "",
        ];
        let report = Report::of(vec![found, silent], NOW);
        assert_eq!(status(&report), expected.join("\n"));
        let known = status(&Report { objects_age: Some(192), ..report });
        assert!(known.contains("\n\nthe agent's objects: changed 3m12s ago\nsame-host"), "{known}");
    }

    #[test]
    fn the_columns_of_peers_are_as_wide_as_they_must_be() {
        let table = peers(&Report::of(vec![found(Err(String::new()))], NOW).peers);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines[1..],
            [
                "adit0      b     up     1m12s      5.00 MiB  0 B       192.0.2.1:51820  \
                 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=  10.0.0.0/8,fd00::/64",
                "adit0      -     idle   -          0 B       0 B       -                \
                 AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
            ]
        );
        assert!(lines[0].starts_with("INTERFACE  NODE  STATE  HANDSHAKE  SENT      RECEIVED  ENDPOINT"));
    }

    #[test]
    fn times_and_sizes_are_short() {
        let ages: Vec<_> = [59, 60, 3599, 3600, 86_399, 90_000].map(age).into();
        assert_eq!(ages, ["59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d01h"]);
        let sizes: Vec<_> = [0, 1023, 1024, 1 << 20, u64::MAX].map(bytes).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1.00 KiB", "1.00 MiB", "16777216.00 TiB"]);
    }
}
