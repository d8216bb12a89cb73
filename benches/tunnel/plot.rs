//! The plot: a panel for each of the main figures, a bar for each implementation, a whisker from least to most.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::measure::PACKET_CPU;
use crate::report::{DAEMONS_CPU, Line, MEMORY, Report, digits};

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
const PANEL_WIDTH: u32 = 400;
const CAPTION: u32 = 32;
const BAR: i32 = 18;
const TOP: i32 = 30;
/// Where the bars begin, and how long the longest is.
const LEFT: i32 = 100;
const LENGTH: f64 = 210.0;
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the report to a file, under a caption.
pub(crate) fn draw(report: &Report, caption: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let all = report.lines();
    let of = |&(measurement, figure, title): &(&str, &str, &'static str)| {
        let line = all.iter().find(|line| line.measurement == measurement && line.figure == figure)?;
        Some((format!("{title}, {}", line.unit), line))
    };
    let lines: Vec<(String, &Line)> = PANELS.iter().filter_map(of).collect();
    let names: Vec<&str> = report.names().collect();
    let rows = lines.len().div_ceil(COLUMNS).max(1);
    let height = TOP + BAR * (i32::try_from(names.len())? + 1);
    let size =
        (PANEL_WIDTH * u32::try_from(COLUMNS)?, CAPTION + u32::try_from(height)? * u32::try_from(rows)?);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(CAPTION);
    head.draw(&Text::new(caption, (10, 8), (FONT, 15).into_font()))?;
    for ((title, line), area) in lines.iter().zip(body.split_evenly((rows, COLUMNS))) {
        panel(&area, title, line, &names)?;
    }
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, title: &str, line: &Line, names: &[&str]) -> Result<(), Box<dyn Error>> {
    area.draw(&Text::new(title, (10, 8), (FONT, 16).into_font().style(FontStyle::Bold)))?;
    let most = line.cells.iter().flatten().map(|cell| cell.most).fold(f64::MIN_POSITIVE, f64::max);
    for (at, (name, cell)) in (0..).zip(names.iter().zip(&line.cells)) {
        let top = TOP + at * BAR;
        let middle = top + BAR / 2 - 2;
        area.draw(&Text::new(*name, (10, middle - 6), (FONT, 15).into_font()))?;
        let Some(cell) = cell else {
            area.draw(&Text::new("–", (LEFT, middle - 6), (FONT, 15).into_font()))?;
            continue;
        };
        let x = |value: f64| LEFT + pixels(value / most * LENGTH);
        let color = match *name {
            "adit" => RGBColor(0xd9, 0x5f, 0x02),
            "veth" | "nulltun" => RGBColor(0xbb, 0xbb, 0xbb),
            _ => RGBColor(0x75, 0x9c, 0xc9),
        };
        let bar = [(LEFT, top), (x(cell.median).max(LEFT + 1), top + BAR - 5)];
        area.draw(&Rectangle::new(bar, color.filled()))?;
        area.draw(&PathElement::new(vec![(x(cell.least), middle), (x(cell.most), middle)], BLACK))?;
        area.draw(&Text::new(digits(cell.median), (x(cell.most) + 6, middle - 6), (FONT, 15).into_font()))?;
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "no panel is wider than i32")]
fn pixels(length: f64) -> i32 {
    length.round() as i32
}
