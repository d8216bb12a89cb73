//! `adit-cni`: a CNI plugin that puts a pod on the network only once its traffic is protected.
//!
//! ```text
//! runtime ─ environment, configuration on stdin ─→ request · config ─→ chained │ host ─→ result on stdout
//!                                                                        │        │
//!                                                          agent (socket) · kernel (netlink) · delegate (IPAM plugin)
//! ```
//!
//! - [`request`]: what the runtime wants, from the environment.
//! - [`config`]: how, from standard input.
//! - [`version`], [`outcome`]: versions of the specification, and results in the form of each.
//! - [`chained`]: behind another plugin that makes the pod's network: its MTU and its registration with the agent.
//! - [`host`]: main mode, the pod's network itself: a veth pair and addresses of a delegated IPAM plugin.
//! - [`agent`]: the agent of the node, by its unix socket.
//! - [`state`]: what is kept on disk between calls.
//! - [`kernel`]: links, addresses and routes.
//!
//! Sections of the CNI specification, version 1.1.0, are cited as `[CNI] §x`.

pub mod agent;
pub mod chained;
mod clock;
pub mod config;
pub mod delegate;
pub mod error;
pub mod host;
pub mod kernel;
pub mod outcome;
pub mod request;
pub mod state;
pub mod version;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use config::{Config, Mode};
use error::{Code, Error};
use request::{Attachment, Command, Request};
use version::Version;

/// The longest configuration that is read, in bytes.
pub const CONFIG_MAX: u64 = 4 << 20;

/// Does what the environment and standard input ask for, and prints the result, or the error, to standard output.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    // What cannot be read is no configuration, and that is said.
    let _ = io::stdin().take(CONFIG_MAX).read_to_end(&mut input);
    let (text, code) = match run(|name| std::env::var(name).ok(), &input) {
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => (error.print(version::said(&input).as_deref()).to_string(), ExitCode::FAILURE),
    };
    // Whoever does not read the result has the exit status.
    let _ = writeln!(io::stdout(), "{text}");
    code
}

/// Does what is asked for, and returns what is to be printed.
///
/// # Errors
/// With the specification's codes, [CNI] §5.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Option<Value>, Error> {
    let request = Request::read(variable)?;
    if request.command == Command::Version {
        let said = version::said(input).unwrap_or_else(|| Version::LATEST.to_string());
        let supported = Version::ALL.map(|version| version.to_string());
        return Ok(Some(json!({ "cniVersion": said, "supportedVersions": supported })));
    }
    let config = Config::read(input)?;
    if config.version < request.command.since() {
        let text =
            format!("{} is not there before version {}", request.command.name(), request.command.since());
        return Err(Error::new(Code::IncompatibleVersion, text));
    }
    match (request.command, config.mode) {
        (Command::Add, Mode::Chained) => chained::add(&request, &config).map(Some),
        (Command::Add, Mode::Main) => host::add(&request, &config).map(Some),
        (Command::Del, Mode::Chained) => chained::del(&request, &config).map(|()| None),
        (Command::Del, Mode::Main) => host::del(&request, &config).map(|()| None),
        (Command::Check, Mode::Chained) => chained::check(&request, &config).map(|()| None),
        (Command::Check, Mode::Main) => host::check(&request, &config).map(|()| None),
        (Command::Gc, Mode::Chained) => chained::gc(&config).map(|()| None),
        (Command::Gc, Mode::Main) => host::gc(&request, &config).map(|()| None),
        (Command::Status, Mode::Chained) => chained::status(&config).map(|()| None),
        (Command::Status, Mode::Main) => host::status(&request, &config).map(|()| None),
        (Command::Version, _) => Ok(None),
    }
}

/// Writes a line to standard error, which runtimes keep in their logs.
pub(crate) fn warn(attachment: Option<&Attachment>, text: &str) {
    let who = attachment.map_or_else(String::new, |attachment| format!("{attachment}: "));
    let _ = writeln!(io::stderr(), "adit-cni: {who}{text}");
}
