//! `adit demo`: the main job on one machine, and proof of it on the wire.
//!
//! ```text
//! pod 1 ── node 1 ─┐
//! pod 2 ── node 2 ─┼─ fabric      every box is a network namespace without a name: they are gone when the process is, however it ends
//! pod 3 ── node 3 ─┘
//! ```
//!
//! Every node runs a data plane and an agent in this process, as `adit -f IFNAME` and `adit agent --objects DIRECTORY` would. Peers, routes,
//! rules and firewall come from the objects of one directory, which only this process has, and whoever looks for it below `/proc/PID/root`.
//!
//! Three runs: with the tunnel off, where a search of the fabric must find what the pods send; with the tunnel on, where it must find
//! WireGuard messages and nothing else; and one at full speed, without the capture that would slow it down. From the first to the second
//! nothing changes but the mode in an object: the way in clear stays there.

mod lab;
mod objects;
mod services;
mod table;
mod traffic;
mod wire;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::{DemoArgs, Level, LogFormat};
use super::log;
use crate::control::api::Mode;
use crate::sys::clock;
use crate::sys::mount;
use crate::sys::netns;
use crate::sys::signal::Signals;
use lab::Lab;
use objects::Objects;
use table::Table;
use traffic::{Pace, Traffic};
use wire::Watcher;

/// Length of the runs that are searched.
const SEARCHED: Duration = Duration::from_secs(2);

/// A new IPv6 link needs a second or two before it can be used (RFC 4862 §5.4).
const SETTLED: Duration = Duration::from_secs(15);

/// The longest that agents may need to do what the objects say, with a handshake that is lost and sent again.
const FOLLOWED: Duration = Duration::from_secs(15);

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
        "A mesh of {} nodes in network namespaces on this machine; a pod behind each; TCP over IPv4 and UDP over IPv6 between all pods.",
        args.nodes
    ));
    let directory = own_directory()?;
    let objects = Objects::new(&directory).map_err(|error| fail("the objects", &error))?;
    let mut lab = Lab::new(args.nodes, &directory).map_err(|error| fail("the network", &error))?;
    let pattern = traffic::pattern();
    lab.route_in_clear().map_err(|error| fail("routes", &error))?;
    lab.start(&objects).map_err(|error| fail("data planes and agents", &error))?;
    say(&format!(
        "Every node runs a data plane and an agent. The agents do what the objects say in /proc/{}/root{}, and follow changes.\n",
        std::process::id(),
        objects.path().display()
    ));

    // 1. The control: if the search finds nothing here, finding nothing later means nothing.
    let seen = searched_run(&lab, &pattern, &signals)?;
    let Some(clear) = seen else { return interrupted() };
    say(&format!("1. Tunnel off (mode: Off). On the fabric, {clear}"));
    if clear.with_pattern == 0 {
        return Err("the search does not find the pods' bytes even in clear: it proves nothing".to_owned());
    }

    // 2. The proof.
    objects.set_mode(Mode::Strict).map_err(|error| fail("the objects", &error))?;
    if !await_tunnels(&mut lab, &signals)? {
        return interrupted();
    }
    let seen = searched_run(&lab, &pattern, &signals)?;
    let Some(sealed) = seen else { return interrupted() };
    say(&format!("2. Tunnel on (mode: Strict). On the fabric, {sealed}"));
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

/// Waits until every agent has done what the objects say. Tells whether that came before a signal.
fn await_tunnels(lab: &mut Lab, signals: &Signals) -> Result<bool, String> {
    let deadline = clock::boottime() + FOLLOWED;
    while !lab.is_tunnelled().map_err(|error| format!("the tunnels: {error}"))? {
        if clock::boottime() > deadline {
            return Err("the agents have not led the pods' packets into tunnels".to_owned());
        }
        if wait(signals, Duration::from_millis(5)) {
            return Ok(false);
        }
    }
    Ok(true)
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

/// Returns an empty directory that is gone with this process, however it ends.
fn own_directory() -> Result<PathBuf, String> {
    let place = std::env::temp_dir();
    let covered = place.canonicalize().and_then(|directory| mount::cover(&directory).map(|()| directory));
    covered.map_err(|error| format!("a directory of its own in the place of {}: {error}", place.display()))
}
