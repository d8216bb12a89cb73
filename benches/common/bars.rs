//! Plots of bars: panels in rows, each with a bar for every name and a whisker from least to most.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::output::digits;

const PANEL_WIDTH: u32 = 400;
const CAPTION: u32 = 32;
const BAR: i32 = 18;
const TOP: i32 = 30;
/// Where the bars begin, and how long the longest is.
const LEFT: i32 = 125;
const LENGTH: f64 = 190.0;
const FONT: &str = "sans-serif";

/// One figure of everyone.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// One figure of someone.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) color: RGBColor,
    /// Nothing if it was not measured.
    pub(crate) value: Option<Cell>,
}

/// Median and range.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// Ours.
pub(crate) const OURS: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
/// Whom ours is set beside.
pub(crate) const OTHERS: RGBColor = RGBColor(0x75, 0x9c, 0xc9);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws panels to an SVG file, so many in a row, under a caption.
pub(crate) fn draw(
    panels: &[Panel],
    columns: usize,
    caption: &str,
    path: &Path,
) -> Result<(), Box<dyn Error>> {
    let rows = panels.len().div_ceil(columns).max(1);
    let most = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or_default();
    let height = TOP + BAR * (i32::try_from(most)? + 1);
    let size =
        (PANEL_WIDTH * u32::try_from(columns)?, CAPTION + u32::try_from(height)? * u32::try_from(rows)?);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(CAPTION);
    head.draw(&Text::new(caption, (10, 8), (FONT, 15).into_font()))?;
    for (panel, area) in panels.iter().zip(body.split_evenly((rows, columns))) {
        draw_one(&area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn draw_one(area: &Area<'_>, Panel { title, bars }: &Panel) -> Result<(), Box<dyn Error>> {
    area.draw(&Text::new(title.as_str(), (10, 8), (FONT, 16).into_font().style(FontStyle::Bold)))?;
    let most =
        bars.iter().filter_map(|bar| bar.value).map(|cell| cell.most).fold(f64::MIN_POSITIVE, f64::max);
    for (at, Bar { name, color, value }) in (0..).zip(bars) {
        let top = TOP + at * BAR;
        let middle = top + BAR / 2 - 2;
        area.draw(&Text::new(name.as_str(), (10, middle - 6), (FONT, 15).into_font()))?;
        let Some(cell) = value else {
            area.draw(&Text::new("–", (LEFT, middle - 6), (FONT, 15).into_font()))?;
            continue;
        };
        let x = |value: f64| LEFT + pixels(value / most * LENGTH);
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
