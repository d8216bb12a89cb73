//! adit beside other userspace WireGuards, end to end: `cargo bench --bench tunnel -- [OPTIONS]`, as root.
//!
//! ```text
//! --rounds N      rounds; medians are over them [default: 3]
//! --seconds S     seconds of one run of traffic [default: 5]
//! --only A,B      only these of: veth nulltun adit adit-ring tailscale wireguard-go gotatun boringtun boringtun-1
//! --what A,B      only these of: tcp1 tcp4 tcp16 tcp-both tcp-bare tcp-vxlan udp1372 udp64 imix udp64-fixed ping-idle ping-loaded
//!                 flood-tcp1 flood-udp64 flood-ping peers-1000 peers-10000
//! ```
//!
//! Both ends and the generators run on this machine, in two network namespaces joined by a veth. Within a round every measurement is
//! taken of one implementation after the other, each time with namespaces and daemons of its own and a handshake done, so that what the
//! machine does beside falls on all of them alike. Ratios are meaningful, absolute figures are the machine's.
//!
//! Other implementations are looked for in `ADIT_PEERS`, then in `PATH`. `ADIT_NULLTUN` names a tunnel without crypto, a program or its
//! source in C, called as `PROGRAM IFNAME LOCAL-ADDRESS PORT REMOTE-ADDRESS PORT`: it shows what the kernel's interfaces allow.
//! `boringtun-1` is boringtun with one thread, each end bound to a core of its own; `adit-ring` is adit with `ring` in place of its crypto
//! core.
//!
//! The table goes to standard output, raw rows to `bench/tunnel.csv` and a plot to `bench/tunnel.svg` in cargo's target folder.
//! Namespaces have no name, sockets lie on a file system of the bench's own, and daemons die with the bench: nothing is left behind,
//! however it ends.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use lab::Lab;
use measure::{ALL, Measurement};
use programs::Implementation;
use report::{Report, say};

#[path = "../common/bars.rs"]
mod bars;
mod flood;
mod lab;
mod measure;
#[path = "../common/output.rs"]
mod output;
mod plot;
mod programs;
mod report;
#[path = "../../tests/system/support/mod.rs"]
#[expect(clippy::unwrap_used, clippy::print_stderr, reason = "as in the tests, whose ground this is")]
#[expect(dead_code, unused_imports, unused_macros, reason = "as above")]
mod support;
mod udp;

/// Programs without which nothing can be measured.
const NEEDED: &[&str] = &["unshare", "setpriv", "ip", "wg", "ping", "iperf3", "ss", "ethtool"];
/// Where every userspace WireGuard puts its configuration socket.
const SOCKETS: &str = "/run/wireguard";
/// Set once the bench has a mount namespace of its own.
const INSIDE: &str = "ADIT_BENCH_INSIDE";

/// What the command line asks for.
struct Settings {
    rounds: u32,
    time: Duration,
    only: Vec<String>,
    what: Vec<&'static Measurement>,
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
    // `cargo bench FILTER` is meant for others.
    if settings.what.is_empty() {
        return ExitCode::SUCCESS;
    }
    let missing = NEEDED.iter().find(|program| support::find(program).is_none());
    let missing = if adit::sys::netns::create().is_err() { Some(&"root") } else { missing };
    if let Some(missing) = missing {
        say(&format!("skipped: {missing} missing"));
        return ExitCode::SUCCESS;
    }
    match enclose().and_then(|()| bench(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("tunnel bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut this =
            Self { rounds: 3, time: Duration::from_secs(5), only: vec![], what: ALL.iter().collect() };
        let mut args = args.filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            if !arg.starts_with('-') {
                this.what.retain(|measurement| measurement.name.contains(&arg));
                continue;
            }
            let value =
                args.next().ok_or_else(|| format!("{arg} needs a value; see benches/tunnel/main.rs"))?;
            let number = || {
                value
                    .parse()
                    .ok()
                    .filter(|number| *number > 0)
                    .ok_or_else(|| format!("{arg} {value}: a number from 1 on"))
            };
            let list = || value.split(',').map(str::to_owned);
            match arg.as_str() {
                "--rounds" => this.rounds = number()?,
                "--seconds" => this.time = Duration::from_secs(number()?.into()),
                "--only" => this.only = list().collect(),
                "--what" => {
                    let find = |name: String| {
                        let found = ALL.iter().find(|measurement| measurement.name == name);
                        found.ok_or_else(|| format!("--what {name}: no such measurement"))
                    };
                    this.what = list().map(find).collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("{arg}: no such option; see benches/tunnel/main.rs")),
            }
        }
        match this.only.iter().find(|name| !programs::is_known(name)) {
            Some(name) => Err(format!("--only {name}: no such implementation")),
            None => Ok(this),
        }
    }
}

/// Moves the bench to a mount namespace of its own, in which the daemons' sockets vanish with it.
fn enclose() -> std::io::Result<()> {
    if env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--mount", "--propagation", "private", "--"]).arg(env::current_exe()?);
        let args: Vec<OsString> = env::args_os().skip(1).collect();
        return Err(again.args(args).env(INSIDE, "1").exec());
    }
    fs::create_dir_all(SOCKETS)?;
    mount("tmpfs", SOCKETS, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    Ok(())
}

/// Takes all measurements and reports them; tells whether none has failed.
#[expect(clippy::print_stdout, reason = "the table is what the bench is for")]
fn bench(settings: &Settings) -> std::io::Result<bool> {
    let machine = output::machine();
    let (implementations, missing) = programs::implementations(&settings.only);
    let missing: Vec<String> = missing.iter().map(|name| format!("skipped: {name} missing")).collect();
    missing.iter().for_each(|line| say(line));
    let folder = output::folder()?;
    let [raw, picture] = ["tunnel.csv", "tunnel.svg"].map(|name| folder.join(name));
    let mut report = Report::new(implementations.clone(), &raw)?;
    let mut failures = Vec::new();
    for round in 1..=settings.rounds {
        for measurement in &settings.what {
            // Another one begins each round: what comes first may find the machine in another state.
            let turn = implementations.iter().cycle().skip(round as usize - 1);
            for implementation in turn.take(implementations.len()) {
                if measurement.needs_wireguard && !implementation.is_wireguard() {
                    continue;
                }
                let run = format!("round {round}, {}, {}", measurement.name, implementation.name);
                match catch_unwind(AssertUnwindSafe(|| take(measurement, implementation, settings.time))) {
                    Ok((measured, memory)) => {
                        let first = measured.figures.first().expect("there is a figure");
                        say(&format!("{run}: {} {}", output::digits(first.value), first.unit));
                        report.add(round, implementation, measurement.name, measured, memory)?;
                    }
                    // What panicked has said why.
                    Err(_) => failures.push(format!("failed: {run}")),
                }
            }
        }
    }
    let machine = format!("{machine}; adit {}", env!("CARGO_PKG_VERSION"));
    let seconds = settings.time.as_secs();
    let method = format!("{} rounds of {seconds} s a run, interleaved; medians (ranges)", settings.rounds);
    println!("{machine}.\n{method}.\n");
    println!("{}", report.table());
    missing.iter().chain(&failures).for_each(|line| println!("{line}"));
    let caption = format!("{machine}. {method}.");
    plot::draw(&report, &caption, &picture).map_err(|error| std::io::Error::other(error.to_string()))?;
    println!("{}\n{}", raw.display(), picture.display());
    Ok(failures.is_empty())
}

/// Takes one measurement of one implementation in a lab of its own.
fn take(
    measurement: &Measurement,
    implementation: &Implementation,
    time: Duration,
) -> (measure::Measured, [lab::Memory; 2]) {
    let lab = Lab::new(implementation);
    let idle = lab.memory();
    let measured = measurement.run(&lab, time);
    (measured, [idle, lab.memory()])
}
