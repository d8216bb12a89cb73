//! Rows as they come, and the table of their medians.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::bars::Cell;
use crate::lab::Memory;
use crate::measure::{ALL, Better, Cost, Figure, Measured};
use crate::output::digits;
use crate::programs::Implementation;

/// Says something beside the table.
#[expect(clippy::print_stderr, reason = "progress of a long run")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Everything that came out so far.
pub(crate) struct Report {
    implementations: Vec<Implementation>,
    results: Vec<Run>,
    raw: File,
}

struct Run {
    implementation: &'static str,
    measurement: &'static str,
    figures: Vec<Figure>,
}

/// A line of the table: one figure of all implementations, or what the plot draws in one panel.
pub(crate) struct Line {
    pub(crate) measurement: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    better: Better,
    /// One for each implementation of the report.
    pub(crate) cells: Vec<Option<Cell>>,
}

/// The measurement to which memory of all others belongs.
pub(crate) const MEMORY: &str = "memory";
pub(crate) const DAEMONS_CPU: &str = "both daemons, CPU";

impl Report {
    /// Starts a report whose raw rows go to `raw` as they come.
    pub(crate) fn new(implementations: Vec<Implementation>, raw: &Path) -> io::Result<Self> {
        let mut raw = File::create(raw)?;
        writeln!(
            raw,
            "round,implementation,measurement,figure,value,unit,cpu_s_per_gb,machine_cpu_s_per_gb,\
             rss_idle_mb,rss_after_mb,rss_peak_mb"
        )?;
        Ok(Self { implementations, results: Vec::new(), raw })
    }

    /// Takes in one run of one implementation, with its daemons' memory before and after.
    pub(crate) fn add(
        &mut self,
        round: u32,
        implementation: &Implementation,
        measurement: &'static str,
        measured: Measured,
        [idle, after]: [Memory; 2],
    ) -> io::Result<()> {
        let Measured { mut figures, cost } = measured;
        let costs = cost.map_or_else(
            || ",".to_owned(),
            |cost| format!("{:.3},{:.3}", cost.daemons_s_per_gb, cost.machine_s_per_gb),
        );
        let memory = format!("{:.2},{:.2},{:.2}", idle.resident_mb, after.resident_mb, after.peak_mb);
        for Figure { name, value, unit, .. } in &figures {
            let name = if name.is_empty() { "rate".to_owned() } else { name.replace(',', ";") };
            writeln!(
                self.raw,
                "{round},{},{measurement},{name},{value:.4},{unit},{costs},{memory}",
                implementation.name
            )?;
        }
        figures.extend(cost.into_iter().flat_map(|cost| cost_figures(&cost, implementation)));
        let implementation = implementation.name;
        self.results.push(Run { implementation, measurement, figures });
        // Those of the peers' own lines are in their figures.
        if after.resident_mb > 0.0 && !measurement.starts_with("peers") {
            let of = |name, value| Figure { name, value, unit: "MB", better: Better::Less };
            let figures = vec![
                of("idle", idle.resident_mb),
                of("after load", after.resident_mb),
                of("peak", after.peak_mb),
            ];
            self.results.push(Run { implementation, measurement: MEMORY, figures });
        }
        Ok(())
    }

    /// Returns the implementations' names, in the order of the cells.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.implementations.iter().map(|implementation| implementation.name)
    }

    /// Returns all lines of the table that have a cell.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let titles = ALL.iter().map(|measurement| (measurement.name, measurement.title));
        for (measurement, title) in titles.chain([(MEMORY, "memory, worst end and measurement")]) {
            let of_it = self.results.iter().filter(|run| run.measurement == measurement);
            // The veth's last: it has no daemons, so the others know more figures, and their order.
            let (veth, others): (Vec<&Run>, Vec<&Run>) = of_it.partition(|run| run.implementation == "veth");
            let mut figures: Vec<Figure> = Vec::new();
            for figure in others.into_iter().chain(veth).flat_map(|run| &run.figures) {
                if !figures.iter().any(|known| known.name == figure.name) {
                    figures.push(*figure);
                }
            }
            for Figure { name, unit, better, .. } in figures {
                let title = if name.is_empty() { title.to_owned() } else { format!("{title}: {name}") };
                let cells = self.names().map(|who| self.cell(who, measurement, name)).collect();
                lines.push(Line { measurement, figure: name, title, unit, better, cells });
            }
        }
        lines
    }

    fn cell(&self, implementation: &str, measurement: &str, figure: &str) -> Option<Cell> {
        let of_ours = |r: &&Run| r.implementation == implementation && r.measurement == measurement;
        let figures = self.results.iter().filter(of_ours).flat_map(|r| &r.figures);
        let mut values: Vec<f64> = figures.filter(|f| f.name == figure).map(|f| f.value).collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        // Of memory the worst measurement counts.
        let median = if measurement == MEMORY && figure != "idle" { most } else { median };
        Some(Cell { median, least, most })
    }

    /// Returns the table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| |");
        for name in self.names() {
            let _ = write!(table, " {name} |");
        }
        table.push_str(" adit / best peer | adit / nulltun |\n|---|");
        table.push_str(&"---:|".repeat(self.implementations.len() + 2));
        table.push('\n');
        for line in self.lines() {
            let _ = write!(table, "| {}, {} |", line.title, line.unit);
            for cell in &line.cells {
                let _ = write!(table, " {} |", cell.map_or_else(|| "–".to_owned(), show));
            }
            let best = self.best_peer(&line);
            let null = self.names().zip(&line.cells).find(|(name, _)| *name == "nulltun");
            for against in [best, null.and_then(|(name, cell)| Some((name, (*cell)?)))] {
                let _ = write!(table, " {} |", self.ratio(&line, against).unwrap_or_else(|| "–".to_owned()));
            }
            table.push('\n');
        }
        table
    }

    fn best_peer(&self, line: &Line) -> Option<(&'static str, Cell)> {
        let peers = self.implementations.iter().zip(&line.cells);
        let peers = peers.filter(|(who, _)| who.is_wireguard() && !who.name.starts_with("adit"));
        let peers = peers.filter_map(|(who, cell)| Some((who.name, (*cell)?)));
        let by_median = |a: &(&str, Cell), b: &(&str, Cell)| a.1.median.total_cmp(&b.1.median);
        match line.better {
            Better::More => peers.max_by(by_median),
            Better::Less => peers.min_by(by_median),
        }
    }

    fn ratio(&self, line: &Line, against: Option<(&str, Cell)>) -> Option<String> {
        let ours = self.names().zip(&line.cells).find(|(name, _)| *name == "adit")?.1.as_ref()?.median;
        let (name, theirs) = against?;
        let ratio = ours / theirs.median;
        ratio.is_finite().then(|| match name {
            "nulltun" => format!("{ratio:.2}"),
            _ => format!("{ratio:.2} ({name})"),
        })
    }
}

fn cost_figures(cost: &Cost, implementation: &Implementation) -> Vec<Figure> {
    let of = |name, value| Figure { name, value, unit: "s/GB", better: Better::Less };
    let mut figures = vec![of("whole machine, CPU", cost.machine_s_per_gb)];
    if implementation.name != "veth" {
        figures.insert(0, of(DAEMONS_CPU, cost.daemons_s_per_gb));
    }
    figures
}

/// Median with three digits, and the range unless it is nothing.
fn show(cell: Cell) -> String {
    let Cell { median, least, most } = cell;
    if least == most {
        digits(median)
    } else {
        format!("{} ({}–{})", digits(median), digits(least), digits(most))
    }
}
