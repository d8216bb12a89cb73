//! The control loop of one node in a large cluster: `cargo bench --bench control -- [OPTIONS] [FILTER]`, as root.
//!
//! ```text
//! --changes N     changes of a node that are timed [default: 300]
//! --seconds S     seconds of idling [default: 20]
//! --rest S        seconds of idling in which wake-ups are counted, at least 180 to see every reason [default: 300]
//! --check         fail if a figure is above what it should be at most
//! FILTER          only cases whose name has this: api-server-1000 api-server-pods-1000 double-1000 double-5000 double-pods-1000
//!                 double-pods-5000 api-server-rest-1000
//! ```
//!
//! The agent and its data plane are real, in a network namespace; the other nodes are objects. They are told by kube-apiserver and etcd,
//! found where `KUBEBUILDER_ASSETS` says, or by the tests' double of the API server. Nodes have 40 images each, as they have in life, and
//! what nodes say and their agents found is made by the agent's own code and applied as two managers of fields.
//! In the cases with pods every node tells ten single pods' addresses beside its block (`podAddresses: Pods`); beside the double, ours has
//! fifty.
//!
//! - *all programmed*: from the start of the agent's process until every peer and every route is there.
//! - *memory*: the agent's own when that is done and after the changes, and all that was resident at its peak, to the end of them.
//! - *change*: from the event to the route, behind which everything else is in place; beside the double, from when it has what is new and
//!   begins to send it.
//! - *bytes a change*: of the event, without HTTP and TLS; beside the real API server all that it sent the agent meanwhile, with both, counted
//!   by a relay of TCP connections between them.
//! - *a node joins*: how often the agents of all others, and ours, write what they found of it in the first minute, and the bytes of all
//!   events of that minute. The others' agents are their pure part: what is found, and when it is told.
//! - *own pod told*: from just before a pod of our node comes or goes until the node's object says so, and the bytes of both events.
//! - *idle*: processor time of all threads of the agent.
//! - *at rest*: the same over minutes, and how often each thread was woken. What wakes them: the agent's look at everything and the healer's,
//!   90 s after the last; a bookmark a minute of each of the five watches; and each watch's end and new beginning, 290 s after the last.
//!
//! The table goes to standard output, rows to `bench/control.csv` and a plot to `bench/control.svg` in cargo's target folder.

use std::env;
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use adit::sys::clock::boottime;

use bars::{Bar, Cell, OURS, Panel};
use lab::{Api, Lab, Size};
use support::{Process, pause};

#[expect(clippy::unwrap_used, reason = "as in the tests")]
mod applier;
#[path = "../common/bars.rs"]
#[expect(dead_code, reason = "nobody else is here")]
mod bars;
#[path = "../../tests/system/control/cluster.rs"]
#[expect(clippy::unwrap_used, clippy::print_stderr, reason = "as in the tests, whose ground this is")]
#[expect(dead_code, unused_imports, reason = "as above")]
mod cluster;
#[expect(clippy::unwrap_used, reason = "as in the tests")]
mod lab;
#[path = "../../tests/system/control/nodes.rs"]
#[expect(clippy::unwrap_used, reason = "as in the tests, whose ground this is")]
#[expect(dead_code, reason = "as above")]
mod nodes;
mod others;
#[path = "../common/output.rs"]
mod output;
#[expect(clippy::unwrap_used, reason = "as in the tests")]
mod relay;
#[path = "../../tests/system/support/mod.rs"]
#[expect(clippy::unwrap_used, clippy::print_stderr, reason = "as in the tests, whose ground this is")]
#[expect(dead_code, unused_macros, reason = "as above")]
mod support;

/// Name, what the cluster is, whether the API server is the real one.
const CASES: [(&str, Size, bool); 7] = [
    ("api-server-1000", Size { nodes: 1_000, has_pods: false }, true),
    ("api-server-pods-1000", Size { nodes: 1_000, has_pods: true }, true),
    ("double-1000", Size { nodes: 1_000, has_pods: false }, false),
    ("double-5000", Size { nodes: 5_000, has_pods: false }, false),
    ("double-pods-1000", Size { nodes: 1_000, has_pods: true }, false),
    ("double-pods-5000", Size { nodes: 5_000, has_pods: true }, false),
    (REST_CASE, Size { nodes: 1_000, has_pods: false }, true),
];

/// The case in which the agent is left alone.
const REST_CASE: &str = "api-server-rest-1000";

/// Programs without which nothing can be measured.
const NEEDED: &[&str] = &["setpriv", "ip", "wg"];

/// What comes to rest in this time is at rest: an agent looks once more 5 s after it has told what it found at first, and asks its peers
/// whether they answer, which takes 17 s from when it has them.
const REST: Duration = Duration::from_secs(20);

/// How long an agent is left alone before it is taken to be at rest.
const RESTED: Duration = Duration::from_secs(30);

/// How long what a node's joining leads to is counted.
const JOINED: Duration = Duration::from_secs(60);

struct Settings {
    changes: u32,
    idle: Duration,
    rest: Duration,
    is_checked: bool,
    filter: String,
}

/// One figure of one case.
struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
    /// What it should be at most.
    wanted: Option<f64>,
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this as well, without the argument.
    if !env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::parse(env::args().skip(1)) {
        Ok(settings) => settings,
        Err(mistake) => {
            say(&mistake);
            return ExitCode::from(2);
        }
    };
    let missing = NEEDED.iter().find(|program| support::find(program).is_none());
    let missing = if adit::sys::netns::create().is_err() { Some(&"root") } else { missing };
    if let Some(missing) = missing {
        say(&format!("skipped: {missing} missing"));
        return ExitCode::SUCCESS;
    }
    match bench(&settings) {
        Ok(missed) if settings.is_checked && missed > 0 => {
            say(&format!("{missed} figures are above what they should be at most"));
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("control bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let [idle, rest] = [20, 300].map(Duration::from_secs);
        let mut this = Self { changes: 300, idle, rest, is_checked: false, filter: String::new() };
        let mut args = args.filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            if !arg.starts_with('-') {
                this.filter = arg;
                continue;
            }
            if arg == "--check" {
                this.is_checked = true;
                continue;
            }
            let number = args.next().and_then(|value| value.parse().ok()).filter(|number| *number > 0);
            let number = number.ok_or_else(|| format!("{arg}: a number from 1 on is needed"))?;
            match arg.as_str() {
                "--changes" => this.changes = number,
                "--seconds" => this.idle = Duration::from_secs(number.into()),
                "--rest" => this.rest = Duration::from_secs(number.into()),
                _ => return Err(format!("{arg}: no such option; see benches/control/main.rs")),
            }
        }
        Ok(this)
    }
}

/// Measures, and returns how many figures are above what they should be at most.
#[expect(clippy::print_stdout, reason = "the table is what the bench is for")]
fn bench(settings: &Settings) -> std::io::Result<usize> {
    let machine = output::machine();
    let mut results = Vec::new();
    for (name, size, is_real) in CASES.into_iter().filter(|(name, ..)| name.contains(&settings.filter)) {
        say(&format!("{name}: making the objects"));
        match Lab::new(size, is_real) {
            Some(lab) => {
                let figures =
                    if name == REST_CASE { rest(lab, settings) } else { measure(lab, size, settings) };
                for Figure { name, unit, value, .. } in &figures {
                    say(&format!("  {name}: {} {unit}", output::digits(*value)));
                }
                results.push((name, figures));
            }
            None => say(&format!("skipped: {name}: no API server")),
        }
    }
    if results.is_empty() {
        return Ok(0);
    }
    println!("{machine}.\n\n{}", table(&results));
    let folder = output::folder()?;
    let [rows, picture] = ["control.csv", "control.svg"].map(|name| folder.join(name));
    let mut file = fs::File::create(&rows)?;
    writeln!(file, "case,figure,value,unit,wanted")?;
    for (case, figures) in &results {
        for Figure { name, unit, value, wanted } in figures {
            let wanted = wanted.map(|wanted| wanted.to_string()).unwrap_or_default();
            writeln!(file, "{case},{name},{value:.4},{unit},{wanted}")?;
        }
    }
    let drawn = bars::draw(&panels(&results), 3, &format!("{machine}."), &picture);
    drawn.map_err(|error| std::io::Error::other(error.to_string()))?;
    println!("{}\n{}", rows.display(), picture.display());
    let all = results.iter().flat_map(|(_, figures)| figures);
    Ok(all.filter(|figure| figure.wanted.is_some_and(|wanted| figure.value > wanted)).count())
}

fn measure(mut lab: Lab, size: Size, settings: &Settings) -> Vec<Figure> {
    let is_large = size.nodes > 1_000;
    // Of single pods' addresses nothing was promised but that the figures are told.
    let promised = |most: f64| (!size.has_pods).then_some(most);
    let wanted = |small: f64, large: f64| promised(if is_large { large } else { small });
    let programmed = lab.start_agent();
    say(&format!("  all programmed after {programmed:?}"));
    pause(REST);
    let own = lab.agent().memory_kib();
    let (time, begun) = (run_time(lab.agent()), boottime());
    pause(settings.idle);
    let busy = (run_time(lab.agent()) - time).as_secs_f64() / (boottime() - begun).as_secs_f64();
    say(&format!("  timing {} changes", settings.changes));
    let before = watched(&lab);
    let mut changes = lab.changes(settings.changes);
    let bytes = (watched(&lab) - before) as f64 / f64::from(settings.changes);
    changes.sort();
    let (later, peak) = (lab.agent().memory_kib(), peak_kib(lab.agent()));
    let figure = |name, unit, value, wanted| Figure { name, unit, value, wanted };
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let mut figures = vec![
        figure("all programmed", "s", programmed.as_secs_f64(), wanted(2.0, 8.0)),
        figure("memory of its own", "MB", megabytes(own), wanted(40.0, 100.0)),
        figure("memory of its own after the changes", "MB", megabytes(later), wanted(40.0, 100.0)),
        figure("memory at its peak", "MB", megabytes(peak), None),
        figure("change: median", "ms", millis(&changes, 500), None),
        figure("change: 99th percentile", "ms", millis(&changes, 990), promised(20.0).filter(|_| !is_large)),
        figure("idle: processor", "%", busy * 100.0, Some(0.1)),
        figure("bytes a change", "B", bytes, promised(2048.0)),
    ];
    if matches!(lab.api, Api::Double(_)) && !size.has_pods {
        say(&format!("  a node joins: {JOINED:?}"));
        let before = watched(&lab);
        let writes = lab.join(JOINED);
        let bytes = watched(&lab) - before;
        // As many as come of a period of 0.3 s for each node, and a fifth more: they are spread by the nodes' names.
        let most = JOINED.as_secs_f64() / 0.3 * 1.2;
        figures.push(figure("a node joins: writes in a minute", "", writes as f64, Some(most)));
        figures.push(figure("a node joins: read in a minute", "kB", bytes as f64 / 1e3, None));
    }
    if size.has_pods && matches!(lab.api, Api::Double(_)) {
        let before = watched(&lab);
        let mut told = lab.own_pods(settings.changes);
        let bytes = (watched(&lab) - before) as f64 / f64::from(settings.changes);
        told.sort();
        figures.push(figure("own pod told: median", "ms", millis(&told, 500), None));
        figures.push(figure("own pod told: 99th percentile", "ms", millis(&told, 990), None));
        figures.push(figure("bytes an own pod", "B", bytes, None));
    }
    figures
}

/// Leaves the agent alone, and returns what it does all the same.
fn rest(mut lab: Lab, settings: &Settings) -> Vec<Figure> {
    lab.start_agent();
    // It has told what it found, has heard that it has, and has looked once more: a period of a thousand nodes later at the latest.
    pause(RESTED);
    let (time, before, begun) = (run_time(lab.agent()), lab.agent().wake_ups_by_thread(), boottime());
    pause(settings.rest);
    let elapsed = (boottime() - begun).as_secs_f64();
    let busy = (run_time(lab.agent()) - time).as_secs_f64();
    let mut all = 0;
    for (thread, count) in lab.agent().wake_ups_by_thread() {
        let woken = count - before.get(&thread).copied().unwrap_or_default();
        say(&format!("  thread {}: woken {woken} times in {elapsed:.0} s", thread.1));
        all += woken;
    }
    let figure = |name, unit, value, wanted| Figure { name, unit, value, wanted };
    vec![
        figure("at rest: processor", "%", busy / elapsed * 100.0, Some(0.1)),
        figure("at rest: wake-ups", "a minute", all as f64 / elapsed * 60.0, Some(12.0)),
    ]
}

/// Returns the element below which so many thousandths of the sorted durations are, in milliseconds.
fn millis(sorted: &[Duration], permille: usize) -> f64 {
    sorted[(sorted.len() * permille / 1000).min(sorted.len() - 1)].as_secs_f64() * 1e3
}

/// Returns the bytes that were sent to the agent so far: of events by the double, of everything by the real API server.
fn watched(lab: &Lab) -> u64 {
    match &lab.api {
        Api::Double(double) => double.watched_bytes(),
        Api::Real(_, relay) => relay.sent(),
    }
}

/// Returns the most memory in KiB that was resident at any time.
fn peak_kib(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Calls `take` with a file of every thread.
fn of_threads(process: &Process, file: &str, mut take: impl FnMut(&str)) {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).into_iter().flatten().flatten();
    for task in tasks {
        take(&fs::read_to_string(task.path().join(file)).unwrap_or_default());
    }
}

/// Returns the processor time of all threads.
fn run_time(process: &Process) -> Duration {
    let mut nanos = 0;
    of_threads(process, "schedstat", |text| {
        nanos += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
    });
    Duration::from_nanos(nanos)
}

/// Returns the table in Markdown: a line for each figure, a column for each case.
fn table(results: &[(&str, Vec<Figure>)]) -> String {
    let mut text = String::from("| |");
    results.iter().for_each(|(case, _)| text.push_str(&format!(" {case} |")));
    text.push_str(&format!("\n|---|{}\n", "---:|".repeat(results.len())));
    for name in names(results) {
        let unit = of_name(&results[0].1, name)
            .or_else(|| results.iter().find_map(|(_, figures)| of_name(figures, name)));
        text.push_str(&format!("| {name}, {} |", unit.map_or("", |figure| figure.unit)));
        for (_, figures) in results {
            match of_name(figures, name) {
                None => text.push_str(" – |"),
                Some(Figure { value, wanted, .. }) => {
                    let wanted = wanted.map(|wanted| format!(" (≤ {wanted})")).unwrap_or_default();
                    text.push_str(&format!(" {}{wanted} |", output::digits(*value)));
                }
            }
        }
        text.push('\n');
    }
    text
}

fn names(results: &[(&str, Vec<Figure>)]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for figure in results.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&figure.name) {
            names.push(figure.name);
        }
    }
    names
}

fn of_name<'a>(figures: &'a [Figure], name: &str) -> Option<&'a Figure> {
    figures.iter().find(|figure| figure.name == name)
}

fn panels(results: &[(&str, Vec<Figure>)]) -> Vec<Panel> {
    let panel = |name: &&'static str| {
        let unit =
            results.iter().find_map(|(_, figures)| of_name(figures, name)).map_or("", |figure| figure.unit);
        let bar = |(case, figures): &(&str, Vec<Figure>)| Bar {
            name: (*case).to_owned(),
            color: OURS,
            value: of_name(figures, name).map(|figure| Cell {
                median: figure.value,
                least: figure.value,
                most: figure.value,
            }),
        };
        Panel { title: format!("{name}, {unit}"), bars: results.iter().map(bar).collect() }
    };
    names(results).iter().map(panel).collect()
}

/// Says something beside the table.
#[expect(clippy::print_stderr, reason = "progress of a long run")]
fn say(line: &str) {
    eprintln!("{line}");
}
