//! `adit demo`: the main job on one machine, and proof of it on the wire.
//!
//! ```text
//! pod 1 ── node 1 ─┐
//! pod 2 ── node 2 ─┼─ fabric      every box is a network namespace without a name: they are gone when the process is, however it ends
//! pod 3 ── node 3 ─┘
//! ```
//!
//! Three runs: with the tunnel off, where a search of the fabric must find what the pods send; with the tunnel on, where it must find
//! WireGuard messages and nothing else; and one at full speed, without the capture that would slow it down.

mod lab;
mod table;
mod traffic;
mod wire;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::{DemoArgs, Level, LogFormat};
use super::log;
use crate::sys::clock;
use crate::sys::netns;
use crate::sys::signal::Signals;
use lab::Lab;
use table::Table;
use traffic::{Pace, Traffic};
use wire::Watcher;

/// Length of the runs that are searched.
const SEARCHED: Duration = Duration::from_secs(2);

/// A new IPv6 link needs a second or two before it can be used (RFC 4862 §5.4).
const SETTLED: Duration = Duration::from_secs(15);

/// Runs the demonstration.
///
/// # Errors
/// Names what could not be set up; or says that the proof failed.
pub(super) fn run(args: &DemoArgs) -> Result<(), String> {
    log::start(Level::Warning, LogFormat::Text, None).map_err(|error| format!("log: {error}"))?;
    become_able()?;
    let signals = Signals::new().map_err(|error| format!("signals: {error}"))?;
    let mut out = io::stdout();
    let mut say = |text: &str| {
        // Who closes the pipe does not want to read on.
        let _ = writeln!(out, "{text}");
    };
    let fail = |what: &str, error: &io::Error| format!("{what}: {error}");

    say(&format!(
        "A mesh of {} nodes in network namespaces on this machine; a pod behind each; TCP over IPv4 and UDP over IPv6 between all pods.\n",
        args.nodes
    ));
    let mut lab = Lab::new(args.nodes).map_err(|error| fail("the network", &error))?;
    let pattern = traffic::pattern();

    // 1. The control: if the search finds nothing here, finding nothing later means nothing.
    lab.route_in_clear().map_err(|error| fail("routes", &error))?;
    let seen = searched_run(&lab, &pattern, &signals)?;
    let Some(clear) = seen else { return interrupted() };
    say(&format!("1. Tunnel off. On the fabric, {clear}"));
    if clear.with_pattern == 0 {
        return Err("the search does not find the pods' bytes even in clear: it proves nothing".to_owned());
    }
    lab.unroute_in_clear().map_err(|error| fail("routes", &error))?;

    // 2. The proof.
    lab.start_tunnels().map_err(|error| fail("the tunnels", &error))?;
    let seen = searched_run(&lab, &pattern, &signals)?;
    let Some(sealed) = seen else { return interrupted() };
    say(&format!("2. Tunnel on.  On the fabric, {sealed}"));
    let is_proved = sealed.wireguard > 0 && sealed.other == 0 && sealed.with_pattern == 0 && sealed.lost == 0;

    // 3. The speed.
    say(&format!("3. Full speed for {} s, without capture:\n", args.seconds));
    let traffic = Traffic::start(&lab, &pattern, Pace::Full).map_err(|error| fail("traffic", &error))?;
    let table = Table::new(&lab, io::stdout().is_terminal());
    let mut table = table.map_err(|error| fail("table", &error))?;
    let end = clock::boottime() + Duration::from_secs(u64::from(args.seconds));
    let mut is_interrupted = false;
    while clock::boottime() < end && !is_interrupted {
        is_interrupted = wait(&signals, Duration::from_secs(1).min(end.saturating_sub(clock::boottime())));
        table.print(&lab).map_err(|error| fail("table", &error))?;
    }
    let totals = traffic.stop();
    table.print_summary(&mut lab, &totals).map_err(|error| fail("summary", &error))?;
    if totals.corrupt > 0 {
        return Err(format!("{} pieces of data arrived corrupt", totals.corrupt));
    }
    if is_interrupted {
        return interrupted();
    }
    if !is_proved {
        return Err("what the fabric showed was not WireGuard alone, or frames were missed".to_owned());
    }
    say("Proved: the fabric carried WireGuard messages only, and none of the bytes that the pods sent.");
    Ok(())
}

/// Runs paced traffic, slow enough that every frame is looked at. `None` if it was interrupted.
fn searched_run(
    lab: &Lab,
    pattern: &traffic::Pattern,
    signals: &Signals,
) -> Result<Option<wire::Seen>, String> {
    let watcher = Watcher::start(lab, pattern).map_err(|error| format!("capture: {error}"))?;
    let traffic = Traffic::start(lab, pattern, Pace::Slow).map_err(|error| format!("traffic: {error}"))?;
    let deadline = clock::boottime() + SETTLED;
    let mut is_interrupted = false;
    while !traffic.flows() && !is_interrupted {
        if clock::boottime() > deadline {
            return Err(format!("no traffic came through: {:?}", traffic.stop()));
        }
        is_interrupted = wait(signals, Duration::from_millis(20));
    }
    is_interrupted = is_interrupted || wait(signals, SEARCHED);
    drop(traffic);
    // Who is in a hurry does not wait until all that was captured has been searched.
    Ok((!is_interrupted).then(|| watcher.stop()))
}

fn interrupted() -> Result<(), String> {
    Err("interrupted; everything is cleaned up".to_owned())
}

/// Waits and tells whether a signal came.
fn wait(signals: &Signals, duration: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    };
    let mut fds = [PollFd::new(signals, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) && signals.take()
}

/// Makes sure that namespaces can be made: as root, or as root of a user namespace.
fn become_able() -> Result<(), String> {
    if netns::create().is_ok() {
        return Ok(());
    }
    netns::become_root_of_user_namespace().map_err(|error| {
        format!("this needs root, or a system that lets users make namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone): {error}")
    })
}
