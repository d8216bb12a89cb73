//! The agent of the node, by its unix socket: a JSON object on a line asks, another one answers.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use super::clock::{boottime, pause};
use super::config::{Config, Unavailable};
use super::error::{Code, Error};
use super::request::{Attachment, Request};
use super::warn;

/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// How long any question but that of ADD waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much longer than the agent is asked to wait its answer is waited for.
const SPARE: Duration = Duration::from_secs(1);
/// The time between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nobody answers.
    Away(io::Error),
    /// The agent says no.
    Refused(Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(error) => write!(f, "the agent does not answer: {error}"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Away(_) => Self::new(Code::TryAgain, failed.to_string()),
            Failed::Refused(error) => error,
        }
    }
}

/// What ADD is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// The MTU in bytes that pods should have; `None` if the agent does not know or was not asked.
    pub mtu: Option<u32>,
}

/// Registers a pod and waits until its traffic is protected.
///
/// # Errors
/// [`Code::TryAgain`] if that is not so by the configuration's deadline, or nobody answers; unless the configuration allows that.
pub fn add(
    config: &Config,
    request: &Request,
    attachment: &Attachment,
    addresses: &[IpAddr],
) -> Result<Added, Error> {
    let deadline = boottime() + config.ready_timeout;
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    let mut question = question("add", &config.network);
    question["containerID"] = attachment.container.as_str().into();
    question["ifname"] = attachment.ifname.as_str().into();
    question["addresses"] = addresses.into();
    if let Some((namespace, pod)) = &request.pod {
        question["namespace"] = namespace.as_str().into();
        question["pod"] = pod.as_str().into();
    }
    loop {
        let left = deadline.saturating_sub(boottime());
        question["waitMs"] = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).into();
        match ask(&config.agent_socket, &question, left + SPARE) {
            Ok(answer) => {
                if let Some(warning) = answer.get("warning").and_then(Value::as_str) {
                    warn(Some(attachment), warning);
                }
                let mtu = answer.get("mtu").and_then(Value::as_u64);
                return Ok(Added { mtu: mtu.and_then(|mtu| u32::try_from(mtu).ok()) });
            }
            Err(failed @ Failed::Away(_)) if config.on_agent_unavailable == Unavailable::Allow => {
                warn(Some(attachment), &format!("{failed}; the pod starts all the same"));
                return Ok(Added::default());
            }
            // It may be on its way back.
            Err(Failed::Away(_)) if boottime() + PAUSE < deadline => pause(PAUSE),
            Err(failed) => return Err(failed.into()),
        }
    }
}

/// Has the agent forget a pod.
///
/// # Errors
/// If nobody answers, or the agent does not do it.
pub fn del(config: &Config, attachment: &Attachment) -> Result<(), Failed> {
    ask(&config.agent_socket, &about(config, "del", attachment), PATIENCE).map(drop)
}

/// Asks whether the agent knows a pod, and still protects it.
///
/// # Errors
/// If it does not; if nobody answers, unless the configuration allows that.
pub fn check(config: &Config, attachment: &Attachment) -> Result<(), Error> {
    tolerate(config, ask(&config.agent_socket, &about(config, "check", attachment), PATIENCE))
}

/// Has the agent forget all pods of the network but these.
///
/// # Errors
/// As [`del`].
pub fn gc<'a>(config: &Config, valid: impl Iterator<Item = &'a Attachment>) -> Result<(), Failed> {
    let mut question = question("gc", &config.network);
    let valid =
        valid.map(|Attachment { container, ifname }| json!({ "containerID": container, "ifname": ifname }));
    question["valid"] = valid.collect::<Vec<_>>().into();
    ask(&config.agent_socket, &question, PATIENCE).map(drop)
}

/// Asks whether pods can be added.
///
/// # Errors
/// [`Code::Unavailable`] and [`Code::UnavailableAndLimited`]; the first as well if nobody answers, unless the configuration allows that.
pub fn status(config: &Config) -> Result<(), Error> {
    let answer = ask(&config.agent_socket, &question("status", &config.network), PATIENCE);
    let result = tolerate(config, answer);
    result.map_err(|error| {
        if error.code == Code::TryAgain { Error { code: Code::Unavailable, ..error } } else { error }
    })
}

fn tolerate(config: &Config, answer: Result<Value, Failed>) -> Result<(), Error> {
    match answer {
        Err(failed @ Failed::Away(_)) if config.on_agent_unavailable == Unavailable::Allow => {
            warn(None, &failed.to_string());
            Ok(())
        }
        answer => Ok(answer.map(drop)?),
    }
}

fn question(command: &str, network: &str) -> Value {
    json!({ "command": command, "network": network })
}

fn about(config: &Config, command: &str, attachment: &Attachment) -> Value {
    let mut question = question(command, &config.network);
    question["containerID"] = attachment.container.as_str().into();
    question["ifname"] = attachment.ifname.as_str().into();
    question
}

fn ask(socket: &Path, question: &Value, patience: Duration) -> Result<Value, Failed> {
    let answer = exchange(socket, question, patience).map_err(Failed::Away)?;
    let Some(code) = answer.get("code").and_then(Value::as_u64) else { return Ok(answer) };
    let text = answer.get("msg").and_then(Value::as_str).unwrap_or("the agent does not say why");
    let code = match code {
        11 => Code::TryAgain,
        50 => Code::Unavailable,
        51 => Code::UnavailableAndLimited,
        other => Code::Other(u32::try_from(other).unwrap_or(u32::MAX)),
    };
    Err(Failed::Refused(Error::new(code, text)))
}

fn exchange(socket: &Path, question: &Value, patience: Duration) -> io::Result<Value> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Also a connection waits no longer than this: Linux, unix_stream_connect.
    set_socket_timeout(&stream, Timeout::Send, Some(patience))?;
    set_socket_timeout(&stream, Timeout::Recv, Some(patience))?;
    connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let mut stream = UnixStream::from(stream);
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_until(b'\n', &mut line)?;
    let answer: Value = serde_json::from_slice(&line)?;
    if answer.is_object() { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}
