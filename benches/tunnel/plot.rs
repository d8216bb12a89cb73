//! The plot: a panel for each of the main figures, a bar for each implementation.

use std::error::Error;
use std::path::Path;

use plotters::style::RGBColor;

use crate::bars::{self, Bar, OTHERS, OURS, Panel};
use crate::measure::PACKET_CPU;
use crate::report::{DAEMONS_CPU, MEMORY, Report};

/// Measurement, figure and title of each panel.
const PANELS: &[(&str, &str, &str)] = &[
    ("tcp1", "", "TCP, 1 stream"),
    ("tcp1", DAEMONS_CPU, "TCP, 1 stream: CPU of both daemons"),
    ("tcp4", "", "TCP, 4 streams"),
    ("tcp-both", "", "TCP, both directions, sum"),
    ("tcp-bare", "", "TCP, 1 stream, veth offloads off"),
    ("tcp-vxlan", "", "TCP over VXLAN inside the tunnel"),
    ("udp1372", "", "UDP, 1372 B, ≤ 1 % loss"),
    ("udp64", "", "UDP, 64 B, ≤ 1 % loss"),
    ("imix", "", "UDP, IMIX, ≤ 1 % loss"),
    ("udp64-fixed", PACKET_CPU, "CPU of both daemons a packet, 64 B"),
    ("ping-idle", "99th percentile", "ping, idle: 99th percentile"),
    ("ping-loaded", "99th percentile", "ping, under TCP: 99th percentile"),
    (MEMORY, "after load", "memory after load, worst case"),
    ("peers-10000", "setconf", "10,000 peers × 10 prefixes: setconf"),
    ("peers-10000", "setconf, memory", "10,000 peers × 10 prefixes: memory"),
];
const COLUMNS: usize = 3;
/// Of what is a bound and no rival.
const ASIDE: RGBColor = RGBColor(0xbb, 0xbb, 0xbb);

/// Draws the report to a file, under a caption.
pub(crate) fn draw(report: &Report, caption: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let all = report.lines();
    let panel = |&(measurement, figure, title): &(&str, &str, &str)| {
        let line = all.iter().find(|line| line.measurement == measurement && line.figure == figure)?;
        let bar = |(name, &value): (&str, &Option<bars::Cell>)| Bar {
            name: name.to_owned(),
            color: match name {
                "adit" => OURS,
                "veth" | "nulltun" => ASIDE,
                _ => OTHERS,
            },
            value,
        };
        let bars = report.names().zip(&line.cells).map(bar).collect();
        Some(Panel { title: format!("{title}, {}", line.unit), bars })
    };
    let panels: Vec<Panel> = PANELS.iter().filter_map(panel).collect();
    bars::draw(&panels, COLUMNS, caption, path)
}
