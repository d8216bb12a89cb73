//! The CNI plugin beside Debian's `ptp` and `bridge`: `cargo bench --bench cni -- [--rounds N] [--at-once N]`, as root.
//!
//! ```text
//! --rounds N     ADDs and DELs of each, one after the other [default: 100]
//! --at-once N    ADDs that are begun at the same moment [default: 100]
//! ```
//!
//! A node in a network namespace, with a data plane and an agent in Strict mode, adds and deletes pods in all ways in turn, so that what
//! the machine does beside falls on all of them alike: by `ptp` and `bridge` alone, by `ptp` with adit-cni behind it, and by adit-cni in
//! main mode; each with an IPv4 address of host-local. Time is that of the plugins' processes from start to end, as a runtime waits for
//! them; a pod's namespace is made before. Ratios are meaningful, absolute figures are the machine's.
//!
//! The table goes to standard output, raw rows to `bench/cni.csv` in cargo's target folder, what the agent logs to `bench/cni-agent.log`.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use adit::sys::clock::boottime;
use serde_json::Value;

use cni::runtime::{Pod, plugin_directory};
use cni::setup::Lab;

#[path = "../common/output.rs"]
mod output;
#[path = "../../tests/system/support/mod.rs"]
#[expect(clippy::unwrap_used, clippy::print_stderr, reason = "as in the tests, whose ground this is")]
#[expect(dead_code, unused_imports, unused_macros, reason = "as above")]
mod support;

#[expect(clippy::unwrap_used, dead_code, reason = "as above")]
#[path = "."]
mod control {
    #[path = "../../tests/system/control/nodes.rs"]
    pub(crate) mod nodes;
}

#[expect(clippy::unwrap_used, dead_code, reason = "as above")]
#[path = "."]
mod cni {
    #[path = "../../tests/system/cni/runtime.rs"]
    pub(crate) mod runtime;
    #[path = "../../tests/system/cni/setup.rs"]
    pub(crate) mod setup;

    /// Where Debian's plugins lie.
    pub(crate) const PLUGINS: &str = "/usr/lib/cni";
    /// The plugin as it is shipped.
    pub(crate) const PROFILE: &str = "small";
}

/// Programs without which nothing can be measured.
const NEEDED: &[&str] = &["setpriv", "ip", "wg"];

/// A way to add a pod: a list of plugins.
struct Way {
    name: &'static str,
    plugins: Vec<Value>,
    /// For each ADD and each DEL, the time of all plugins, and of the last one alone.
    add: Vec<[Duration; 2]>,
    del: Vec<[Duration; 2]>,
    /// For ADDs at once: the time of each, and until all were done.
    at_once: (Vec<Duration>, Duration),
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this as well, without the argument.
    if !env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::parse(env::args().skip(1)) {
        Ok(Some(settings)) => settings,
        // `cargo bench FILTER` is meant for others.
        Ok(None) => return ExitCode::SUCCESS,
        Err(mistake) => {
            say(&mistake);
            return ExitCode::from(2);
        }
    };
    let missing = NEEDED.iter().find(|program| support::find(program).is_none()).copied();
    let missing = if adit::sys::netns::create().is_err() { Some("root") } else { missing };
    let has_plugins = ["ptp", "bridge", "host-local"].map(|name| Path::new(cni::PLUGINS).join(name).exists());
    if let Some(missing) =
        missing.or_else(|| (has_plugins != [true; 3]).then_some("containernetworking-plugins"))
    {
        say(&format!("skipped: {missing} missing"));
        return ExitCode::SUCCESS;
    }
    match bench(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cni bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Settings {
    rounds: usize,
    at_once: usize,
}

impl Settings {
    /// Reads the arguments; `None` if another bench is meant.
    fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut this = Self { rounds: 100, at_once: 100 };
        let mut args = args.filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let place = match arg.as_str() {
                "--rounds" => &mut this.rounds,
                "--at-once" => &mut this.at_once,
                filter if !filter.starts_with('-') => return Ok(None),
                _ => return Err(format!("{arg}: no such option; see benches/cni/main.rs")),
            };
            let value = args.next().and_then(|value| value.parse().ok());
            // There are addresses for no more pods.
            let value = value.filter(|value| (1..=200).contains(value));
            *place = value.ok_or_else(|| format!("{arg} needs a number from 1 to 200"))?;
        }
        Ok(Some(this))
    }
}

/// Says something beside the table.
#[expect(clippy::print_stderr, reason = "progress of a long run")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Takes all measurements and reports them.
fn bench(settings: &Settings) -> io::Result<()> {
    let machine = output::machine();
    let lab = Lab::started(1);
    // An address of one family, as the others have it.
    let mut main = lab.main(0);
    main["ipam"] = lab.ptp()["ipam"].clone();
    let way = |name, plugins: Vec<Value>| Way {
        name,
        plugins,
        add: vec![],
        del: vec![],
        at_once: Default::default(),
    };
    let mut ways = [
        way("ptp", vec![lab.ptp()]),
        way("bridge", vec![lab.bridge()]),
        way("ptp + adit-cni", vec![lab.ptp(), lab.chained()]),
        way("adit-cni main", vec![main]),
    ];
    for round in 0..settings.rounds {
        let count = ways.len();
        for at in 0..count {
            // Another one begins each round: what comes first may find the machine in another state.
            let way = &mut ways[(at + round) % count];
            let pod = Pod::new();
            let (added, result) = run(&lab, &pod, "ADD", &way.plugins, None)?;
            way.add.push(added);
            let backwards: Vec<_> = way.plugins.iter().rev().cloned().collect();
            way.del.push(run(&lab, &pod, "DEL", &backwards, result)?.0);
        }
    }
    say("one after the other: done");
    for way in &mut ways {
        way.at_once = add_at_once(&lab, &way.plugins, settings.at_once)?;
    }
    write_rows(&ways)?;
    let log = lab.node().agent.as_ref().map(support::Process::output).unwrap_or_default();
    fs::write(output::folder()?.join("cni-agent.log"), log)?;
    print(&ways, &machine, settings);
    Ok(())
}

/// Adds pods at the same moment, and deletes them.
fn add_at_once(lab: &Lab, plugins: &[Value], count: usize) -> io::Result<(Vec<Duration>, Duration)> {
    let pods: Vec<_> = (0..count).map(|_| Pod::new()).collect();
    let begin = boottime();
    let done: io::Result<Vec<_>> = thread::scope(|scope| {
        let each: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| run(lab, pod, "ADD", plugins, None))).collect();
        each.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    let all = boottime() - begin;
    let done = done?;
    let backwards: Vec<_> = plugins.iter().rev().cloned().collect();
    for (pod, (_, result)) in pods.iter().zip(&done) {
        run(lab, pod, "DEL", &backwards, result.clone())?;
    }
    Ok((done.iter().map(|(time, _)| time[0]).collect(), all))
}

/// Calls plugins as a runtime does, and returns the time of all and of the last one that adit-cni is, with the result.
fn run(
    lab: &Lab,
    pod: &Pod,
    command: &str,
    plugins: &[Value],
    mut previous: Option<Value>,
) -> io::Result<([Duration; 2], Option<Value>)> {
    let (mut sum, mut own) = (Duration::ZERO, Duration::ZERO);
    for plugin in plugins {
        let mut config = plugin.clone();
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "net".into();
        if let Some(previous) = &previous {
            config["prevResult"] = previous.clone();
        }
        let is_ours = config["type"] == "adit-cni";
        let place = if is_ours { plugin_directory() } else { cni::PLUGINS };
        let mut process = Command::new(format!("{place}/{}", config["type"].as_str().unwrap_or_default()));
        process
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", pod.namespace.path())
            .env("CNI_PATH", cni::PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let host = File::open(lab.node().namespace.path())?;
        let (time, output) = adit::sys::netns::run_in(&host, || {
            let begin = boottime();
            let mut child = process.spawn()?;
            child.stdin.take().expect("a pipe").write_all(config.to_string().as_bytes())?;
            let output = child.wait_with_output()?;
            Ok((boottime() - begin, output))
        })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            return Err(io::Error::other(format!("{command} by {}: {text}", config["type"])));
        }
        sum += time;
        own += if is_ours { time } else { Duration::ZERO };
        if command == "ADD" {
            previous = serde_json::from_slice(&output.stdout).ok();
        }
    }
    Ok(([sum, own], previous))
}

fn write_rows(ways: &[Way]) -> io::Result<()> {
    let path = output::folder()?.join("cni.csv");
    let mut file = File::create(&path)?;
    writeln!(file, "plugins,what,all_ms,adit_cni_ms")?;
    for way in ways {
        for (what, times) in [("add", &way.add), ("del", &way.del)] {
            for [all, own] in times {
                writeln!(file, "{},{what},{:.3},{:.3}", way.name, millis(*all), millis(*own))?;
            }
        }
        for time in &way.at_once.0 {
            writeln!(file, "{},add-at-once,{:.3},", way.name, millis(*time))?;
        }
    }
    say(&format!("{}", path.display()));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is what the bench is for")]
fn print(ways: &[Way], machine: &str, settings: &Settings) {
    let Settings { rounds, at_once } = settings;
    println!("{machine}; adit {}.", env!("CARGO_PKG_VERSION"));
    println!("{rounds} rounds, interleaved; then {at_once} ADDs at once. Milliseconds: median, p99.\n");
    println!(
        "| plugins | ADD | DEL | of which adit-cni: ADD | DEL | {at_once} at once: each | until all are done |"
    );
    println!("|---|---|---|---|---|---|---|");
    for way in ways {
        let all = |times: &[[Duration; 2]], which: usize| {
            if way.plugins.iter().all(|plugin| plugin["type"] != "adit-cni") && which == 1 {
                return String::new();
            }
            figures(times.iter().map(|time| time[which]).collect())
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            way.name,
            all(&way.add, 0),
            all(&way.del, 0),
            all(&way.add, 1),
            all(&way.del, 1),
            figures(way.at_once.0.clone()),
            output::digits(millis(way.at_once.1)),
        );
    }
}

/// Returns the median and the 99th percentile.
fn figures(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    let [median, most] = [50, 99].map(|percent| output::digits(millis(at(percent).unwrap_or_default())));
    format!("{median}, {most}")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
