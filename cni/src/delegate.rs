//! The plugin that addresses are asked of, [CNI] §4: found among the runtime's plugins, run in the same environment.
//!
//! It may be older than what the runtime speaks. ADD, DEL and CHECK mean the same in 1.0.0 and 1.1.0, so that it is asked in the former,
//! and in the best of its versions if it does not know that either.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use super::config::Config;
use super::error::{Code, Error};
use super::outcome::Outcome;
use super::request::{Attachment, Command, Request};
use super::version::Version;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4 << 20;

/// A plugin for addresses.
#[derive(Debug)]
pub struct Delegate<'a> {
    path: PathBuf,
    config: &'a Config,
}

impl<'a> Delegate<'a> {
    /// Finds the plugin that the configuration names.
    ///
    /// # Errors
    /// [`Code::Config`] if it is nowhere.
    pub fn find(request: &Request, config: &'a Config) -> Result<Self, Error> {
        let name = config.ipam.as_deref().unwrap_or_default();
        let places = request.plugins.iter().map(|place| place.join(name));
        let path = places.into_iter().find(|path| path.is_file());
        let path =
            path.ok_or_else(|| Error::new(Code::Config, format!("ipam.type: {name} is not in CNI_PATH")))?;
        Ok(Self { path, config })
    }

    /// Asks for addresses. What a failed attempt may have left is released.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn add(&self) -> Result<Outcome, Error> {
        let outcome = self.run(Command::Add, None).and_then(|answer| {
            let answer =
                answer.ok_or_else(|| Error::new(Code::Decode, format!("{} has no result", self.name())))?;
            Outcome::read(&answer)
        });
        if outcome.is_err() {
            let _ = self.del(None);
        }
        outcome
    }

    /// Releases the addresses of the attachment that the call is about, or of another.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn del(&self, attachment: Option<&Attachment>) -> Result<(), Error> {
        self.run(Command::Del, attachment).map(drop)
    }

    /// Asks whether the addresses are still held.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn check(&self) -> Result<(), Error> {
        self.run(Command::Check, None).map(drop)
    }

    /// Passes a command on that came with a late version; a plugin that does not know it is left alone.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn pass_on(&self, command: Command) -> Result<(), Error> {
        if self.best()? < command.since() {
            return Ok(());
        }
        self.run_in(command, None, command.since()).map(drop)
    }

    fn run(&self, command: Command, attachment: Option<&Attachment>) -> Result<Option<Value>, Error> {
        let version = self.config.version.min(Version::V1_0_0);
        match self.run_in(command, attachment, version) {
            Err(Error { code: Code::Other(1), .. }) => {
                self.run_in(command, attachment, self.best()?.min(version))
            }
            outcome => outcome,
        }
    }

    /// Returns the best version that both know.
    fn best(&self) -> Result<Version, Error> {
        let answer = self.run_in(Command::Version, None, Version::V1_0_0)?.unwrap_or_default();
        let supported = answer.get("supportedVersions").and_then(Value::as_array);
        let names = supported.into_iter().flatten().filter_map(Value::as_str);
        let best = names.filter_map(Version::of).max();
        best.ok_or_else(|| {
            Error::new(Code::IncompatibleVersion, format!("{} knows none of our versions", self.name()))
        })
    }

    fn run_in(
        &self,
        command: Command,
        attachment: Option<&Attachment>,
        version: Version,
    ) -> Result<Option<Value>, Error> {
        let failed = |error| Error::io(self.path.display(), error);
        let mut process = Process::new(&self.path);
        process.env("CNI_COMMAND", command.name()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(Attachment { container, ifname }) = attachment {
            process.env("CNI_CONTAINERID", container).env("CNI_IFNAME", ifname).env_remove("CNI_NETNS");
        }
        let mut config = self.config.raw.clone();
        config["cniVersion"] = version.name().into();
        let mut child = process.spawn().map_err(failed)?;
        if let Some(mut input) = child.stdin.take() {
            // A plugin that does not read says on its output why.
            let _ = input.write_all(config.to_string().as_bytes());
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_MAX).read_to_end(&mut output).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let answer: Option<Value> = serde_json::from_slice(&output).ok();
        if status.success() {
            return Ok(answer);
        }
        let code = answer.as_ref().and_then(|answer| answer.get("code")?.as_u64());
        let text = answer.as_ref().and_then(|answer| answer.get("msg")?.as_str());
        let details = answer.as_ref().and_then(|answer| answer.get("details")?.as_str());
        Err(Error {
            code: code.and_then(|code| u32::try_from(code).ok()).map_or(Code::Io, Code::Other),
            text: match (text, details) {
                (Some(text), Some(details)) => format!("{}: {text}: {details}", self.name()),
                (Some(text), None) => format!("{}: {text}", self.name()),
                (None, _) => format!("{}: {status}", self.name()),
            },
        })
    }

    fn name(&self) -> &str {
        self.config.ipam.as_deref().unwrap_or_default()
    }
}
