//! Where log lines go to.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::Level;

/// Begins to log to `file`, or else to standard error.
///
/// # Errors
/// If the file cannot be opened.
pub(super) fn start(level: Level, file: Option<&Path>) -> io::Result<()> {
    let filter = match level {
        Level::Silent => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warning => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // What the client of the Kubernetes API says at every attempt is said once, and better, by who uses it.
    let targets = Targets::new().with_default(filter).with_target("kube_client", LevelFilter::OFF);
    let builder = tracing_subscriber::fmt().with_max_level(filter).with_target(false);
    match file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).finish().with(targets).init();
        }
        // Colours are for people: a journal takes a line with them for bytes that cannot be shown.
        None if !io::stderr().is_terminal() => {
            builder.with_ansi(false).with_writer(io::stderr).finish().with(targets).init();
        }
        None => builder.with_writer(io::stderr).finish().with(targets).init(),
    }
    Ok(())
}
