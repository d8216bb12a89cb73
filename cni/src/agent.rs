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
/// How long the answer to any question but that of ADD is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long STATUS waits at most until pods can be added. containerd and CRI-O set it no limit of their own (go-cni, `Status`; ocicni,
/// `Status`), but the kubelet asks them for it every 5 s, and takes a runtime that has not answered for 30 s for one that is down (kubelet.go,
/// `updateRuntimeUp`, `maxWaitForContainerRuntime`).
const STATUS_MAX: Duration = Duration::from_secs(15);
const _: () = assert!(5 + STATUS_MAX.as_secs() + PATIENCE.as_secs() < 30);
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

/// Asks whether pods can be added, or will be before ADD gives up: an error makes the whole node one that is not ready (kubelet,
/// `NetworkReady`), and its pods are taken out of every Service. An agent or a data plane that is started anew is back by then.
///
/// # Errors
/// [`Code::Unavailable`] and [`Code::UnavailableAndLimited`]; the first as well if nobody answers, unless the configuration allows that.
pub fn status(config: &Config) -> Result<(), Error> {
    let deadline = boottime() + config.ready_timeout.min(STATUS_MAX);
    let question = question("status", &config.network);
    loop {
        match tolerate(config, ask(&config.agent_socket, &question, PATIENCE)) {
            Err(_) if boottime() + PAUSE < deadline => pause(PAUSE),
            Err(error) if error.code == Code::TryAgain => {
                return Err(Error { code: Code::Unavailable, ..error });
            }
            answer => return answer,
        }
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Asks for the status of an agent that gives these answers one after the other, none where one is empty, and the last again and again.
    /// Returns also how often it was asked.
    fn status_of(name: &str, answers: &[&str], timeout: &str, policy: &str) -> (Result<(), Error>, usize) {
        let path = std::env::temp_dir().join(format!("adit-cni-agent-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "agentSocket": path,
            "readyTimeout": timeout,
            "onAgentUnavailable": policy,
        });
        let config = Config::read(config.to_string().as_bytes()).unwrap();
        let outcome = thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let mut asked = 0;
                loop {
                    let (stream, _) = listener.accept().unwrap();
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line).unwrap();
                    if line.is_empty() {
                        return asked;
                    }
                    let answer = answers[asked.min(answers.len() - 1)];
                    asked += 1;
                    (&stream).write_all(answer.as_bytes()).unwrap();
                }
            });
            let status = status(&config);
            drop(UnixStream::connect(&path).unwrap());
            (status, agent.join().unwrap())
        });
        std::fs::remove_file(&path).unwrap();
        outcome
    }

    const NOT_LOOKED: &str = "{\"code\":50,\"msg\":\"not looked\"}\n";
    const NO_DATA_PLANE: &str = "{\"code\":51,\"msg\":\"no data plane\"}\n";

    #[test]
    fn an_agent_that_is_started_anew_leaves_the_node_ready() {
        let answers = ["", "", NOT_LOOKED, NO_DATA_PLANE, "{}\n"];
        assert_eq!(status_of("anew", &answers, "20s", "fail"), (Ok(()), 5));
        assert_eq!(status_of("anew", &answers, "20s", "allow"), (Ok(()), 1), "which does not matter");
    }

    #[test]
    fn an_agent_that_stays_away_and_a_node_that_stays_unready_are_told_of() {
        for (answer, code) in [("", 50), (NOT_LOOKED, 50), (NO_DATA_PLANE, 51)] {
            let start = boottime();
            let (status, asked) = status_of("away", &[answer], "300ms", "fail");
            assert_eq!(status.unwrap_err().code.number(), code);
            assert!(asked > 1 && boottime() - start >= Duration::from_millis(200), "{asked}");
        }
        assert_eq!(status_of("once", &[NO_DATA_PLANE], "0s", "allow").1, 1);
    }
}
