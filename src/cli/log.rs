//! Where log lines go to.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::{Level, LogFormat};

/// Begins to log to `file`, or else to standard error.
///
/// # Errors
/// If the file cannot be opened.
pub(super) fn start(level: Level, format: LogFormat, file: Option<&Path>) -> io::Result<()> {
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
    let (writer, is_terminal) = match file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
        None => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(writer);
    let registry = tracing_subscriber::registry().with(targets);
    match format {
        // Colours are for people: a journal takes a line with them for bytes that cannot be shown.
        LogFormat::Text => registry.with(lines.with_ansi(is_terminal)).init(),
        #[cfg(feature = "control")]
        LogFormat::Json => registry.with(lines.json().with_ansi(false)).init(),
    }
    Ok(())
}
