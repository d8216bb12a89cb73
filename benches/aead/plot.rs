//! The plot: ns a packet, a panel for each of the main operations, batches and lengths, a bar for each tier and library.
//!
//! The portable tier is left out: with bars ten times as long as the others', nothing else could be read.

use std::error::Error;
use std::path::Path;

use crate::bars::{self, Bar, Cell, OTHERS, OURS, Panel};
use crate::{IPSEC_MB, RING, Row, TIERS};

const ROWS: [(&str, usize); 6] =
    [("seal", 64), ("open", 64), ("gather", 64), ("seal", 8), ("open", 8), ("seal", 1)];
const COLUMNS: [usize; 4] = [64, 256, 512, 1440];

/// Draws the rows to a file, under a caption.
pub(crate) fn draw(rows: &[Row], caption: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = TIERS.into_iter().chain([RING, IPSEC_MB]).collect();
    let bar = |name: &str, op: &str, batch, bytes| {
        let row = rows.iter().find(|row| row.is(name, op, batch, bytes));
        let value = row.map(|row| Cell { median: row.ns, least: row.ns, most: row.ns });
        let color = if TIERS.contains(&name) { OURS } else { OTHERS };
        Bar { name: name.to_owned(), color, value }
    };
    let panel = |(op, batch): (&str, usize), bytes| {
        let of = if batch == 1 { "one packet".to_owned() } else { format!("batches of {batch}") };
        let bars = names.iter().map(|name| bar(name, op, batch, bytes)).collect();
        Panel { title: format!("{op}, {of}, {bytes} B, ns a packet"), bars }
    };
    let panels: Vec<_> = ROWS.into_iter().flat_map(|row| COLUMNS.map(|bytes| panel(row, bytes))).collect();
    bars::draw(&panels, COLUMNS.len(), caption, path)
}
