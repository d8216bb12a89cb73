//! How the runtime wants it: the network configuration on standard input, [CNI] §1, with the keys that are this plugin's own.
//!
//! | Key | Values | Default | Meaning |
//! |---|---|---|---|
//! | `mode` | `chained`, `main` | `chained` | behind another plugin, or the one that makes the pod's network |
//! | `agentSocket` | path | `/run/adit/cni.sock` | where the agent listens |
//! | `readyTimeout` | `10s`, `500ms`, seconds; at most 110 s | `10s` | how long ADD waits until the pod is protected, and STATUS, 15 s at most, until one could be |
//! | `mtu` | `auto`, 576 to 65535 bytes | `auto` | the pod's MTU; `auto` is what the agent says, or less if the interface has less |
//! | `onAgentUnavailable` | `fail`, `allow` | `fail` | whether a pod is held while no agent answers |
//! | `stateDir` | path | `/var/lib/adit/cni` | where attachments are kept |
//! | `ipam` | object with `type` | | in main mode: the plugin that addresses are asked of, as `host-local`, and its configuration |

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::error::{Code, Error};
use super::request::Attachment;
use super::version::Version;

/// Where the agent listens, unless the configuration says otherwise.
pub const AGENT_SOCKET: &str = "/run/adit/cni.sock";
/// Where attachments are kept, likewise.
pub const STATE_DIRECTORY: &str = "/var/lib/adit/cni";
/// How long ADD and STATUS wait for the agent, likewise.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it waits at most: kubelet's own patience is two minutes.
const READY_TIMEOUT_MAX: Duration = Duration::from_secs(110);
/// What every host must take (RFC 791), and what any device can have.
const MTU: std::ops::RangeInclusive<u64> = 576..=65_535;

/// What the plugin is in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Behind another plugin that has made the pod's network.
    Chained,
    /// The first: it makes the pod's network itself.
    Main,
}

/// What is done with a new pod while the agent does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// It waits: ADD fails, and the runtime tries again.
    Fail,
    /// It starts, whether or not it is protected.
    Allow,
}

/// A network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The version that the runtime speaks.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// What the plugin is in its list.
    pub mode: Mode,
    /// Where the agent listens.
    pub agent_socket: PathBuf,
    /// How long ADD and STATUS wait for the agent.
    pub ready_timeout: Duration,
    /// The pod's MTU in bytes; `None` for what the agent says.
    pub mtu: Option<u32>,
    /// What is done while the agent does not answer.
    pub on_agent_unavailable: Unavailable,
    /// Where attachments are kept.
    pub state_directory: PathBuf,
    /// The plugin that addresses are asked of.
    pub ipam: Option<String>,
    /// The result so far.
    pub previous: Option<Value>,
    /// For GC: the attachments that are to stay.
    pub valid: Option<BTreeSet<Attachment>>,
    /// Everything as it was read: what delegates are given.
    pub raw: Value,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Code::Decode`], [`Code::IncompatibleVersion`] or [`Code::Config`], which names the key.
    pub fn read(input: &[u8]) -> Result<Self, Error> {
        let raw: Value = serde_json::from_slice(input)
            .map_err(|error| Error::new(Code::Decode, format!("the configuration: {error}")))?;
        if !raw.is_object() {
            return Err(Error::new(Code::Decode, "the configuration is no object"));
        }
        let said = text(&raw, "cniVersion")?.unwrap_or("0.1.0");
        let version = Version::of(said).ok_or_else(|| {
            let supported = Version::ALL.map(Version::name).join(", ");
            Error::new(Code::IncompatibleVersion, format!("version {said} is not supported, but {supported}"))
        })?;
        let mode = match text(&raw, "mode")? {
            None | Some("chained") => Mode::Chained,
            Some("main") => Mode::Main,
            Some(_) => return Err(invalid("mode", "`chained` or `main` is needed")),
        };
        let on_agent_unavailable = match text(&raw, "onAgentUnavailable")? {
            None | Some("fail") => Unavailable::Fail,
            Some("allow") => Unavailable::Allow,
            Some(_) => return Err(invalid("onAgentUnavailable", "`fail` or `allow` is needed")),
        };
        let path = |key: &str, default: &str| match text(&raw, key)? {
            Some(path) if !path.starts_with('/') => Err(invalid(key, "an absolute path is needed")),
            path => Ok(PathBuf::from(path.unwrap_or(default))),
        };
        let ipam = ipam(&raw)?;
        if mode == Mode::Main && ipam.is_none() {
            return Err(invalid("ipam.type", "the mode `main` needs a plugin for addresses"));
        }
        let network = text(&raw, "name")?.filter(|name| !name.is_empty());
        Ok(Self {
            version,
            network: network.ok_or_else(|| invalid("name", "a name is needed"))?.to_owned(),
            mode,
            agent_socket: path("agentSocket", AGENT_SOCKET)?,
            ready_timeout: ready_timeout(&raw)?,
            mtu: mtu(&raw)?,
            on_agent_unavailable,
            state_directory: path("stateDir", STATE_DIRECTORY)?,
            ipam,
            previous: raw.get("prevResult").filter(|previous| !previous.is_null()).cloned(),
            valid: valid(&raw)?,
            raw,
        })
    }

    /// Returns the result so far.
    ///
    /// # Errors
    /// [`Code::Config`] if there is none.
    pub fn previous(&self) -> Result<&Value, Error> {
        self.previous
            .as_ref()
            .ok_or_else(|| invalid("prevResult", "the result of the plugin before this one is needed"))
    }
}

fn invalid(key: &str, rule: &str) -> Error {
    Error::new(Code::Config, format!("{key}: {rule}"))
}

fn text<'a>(raw: &'a Value, key: &str) -> Result<Option<&'a str>, Error> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(key, "a text is needed")),
    }
}

fn mtu(raw: &Value) -> Result<Option<u32>, Error> {
    match raw.get("mtu") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word == "auto" => Ok(None),
        Some(value) => value
            .as_u64()
            .filter(|mtu| MTU.contains(mtu))
            .and_then(|mtu| u32::try_from(mtu).ok())
            .map(Some)
            .ok_or_else(|| invalid("mtu", "`auto` or a number from 576 to 65535 is needed")),
    }
}

/// Reads a number of seconds, or a number with `s` or `ms` behind it.
fn ready_timeout(raw: &Value) -> Result<Duration, Error> {
    let time = match raw.get("readyTimeout") {
        None | Some(Value::Null) => Some(READY_TIMEOUT),
        Some(Value::String(text)) => match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => number.parse().ok().map(Duration::from_millis),
            (None, Some(number)) => number.parse().ok().map(Duration::from_secs),
            (None, None) => None,
        },
        Some(value) => value.as_u64().map(Duration::from_secs),
    };
    time.filter(|time| *time <= READY_TIMEOUT_MAX)
        .ok_or_else(|| invalid("readyTimeout", "a time of at most 110s is needed, as 10s or 500ms"))
}

fn ipam(raw: &Value) -> Result<Option<String>, Error> {
    let Some(ipam) = raw.get("ipam").filter(|ipam| !ipam.is_null()) else { return Ok(None) };
    let name = text(ipam, "type")?.unwrap_or_default();
    // It becomes part of a path.
    if name.contains('/') || matches!(name, "." | "..") {
        return Err(invalid("ipam.type", "the name of a plugin is needed"));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// Reads what GC is to spare. An earlier text of the specification had another name for it.
fn valid(raw: &Value) -> Result<Option<BTreeSet<Attachment>>, Error> {
    const KEY: &str = "cni.dev/valid-attachments";
    let list = match raw.get(KEY).or_else(|| raw.get("cni.dev/attachments")) {
        None => return Ok(None),
        // A list of Go's that has no element.
        Some(Value::Null) => return Ok(Some(BTreeSet::new())),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(invalid(KEY, "a list is needed")),
    };
    let attachment =
        |value: &Value| Attachment::new(value.get("containerID")?.as_str()?, value.get("ifname")?.as_str()?);
    let list = list.iter().map(|value| {
        // To leave one out would remove it.
        attachment(value).ok_or_else(|| invalid(KEY, "objects with `containerID` and `ifname` are needed"))
    });
    list.collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: Value) -> Result<Config, Error> {
        let mut config = json!({ "cniVersion": "1.0.0", "name": "net", "type": "adit-cni" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::read(config.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = read(json!({})).unwrap();
        assert_eq!((config.mode, config.mtu), (Mode::Chained, None));
        assert_eq!(config.agent_socket, PathBuf::from("/run/adit/cni.sock"));
        assert_eq!(config.state_directory, PathBuf::from("/var/lib/adit/cni"));
        assert_eq!(config.ready_timeout, Duration::from_secs(10));
        assert_eq!(config.on_agent_unavailable, Unavailable::Fail);
        let config =
            read(json!({ "mtu": 1400, "readyTimeout": "500ms", "onAgentUnavailable": "allow" })).unwrap();
        assert_eq!((config.mtu, config.ready_timeout), (Some(1400), Duration::from_millis(500)));
        assert_eq!(
            read(json!({ "mtu": "auto", "readyTimeout": 3 })).unwrap().ready_timeout,
            Duration::from_secs(3)
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        for (more, key) in [
            (json!({ "mode": "bridge" }), "mode"),
            (json!({ "mode": "main" }), "ipam.type"),
            (json!({ "mode": "main", "ipam": { "type": "../sh" } }), "ipam.type"),
            (json!({ "agentSocket": "cni.sock" }), "agentSocket"),
            (json!({ "stateDir": 7 }), "stateDir"),
            (json!({ "mtu": 100 }), "mtu"),
            (json!({ "mtu": "big" }), "mtu"),
            (json!({ "readyTimeout": "1h" }), "readyTimeout"),
            (json!({ "readyTimeout": 111 }), "readyTimeout"),
            (json!({ "onAgentUnavailable": true }), "onAgentUnavailable"),
            (json!({ "name": "" }), "name"),
            (json!({ "cni.dev/valid-attachments": [{ "containerID": "a" }] }), "cni.dev/valid-attachments"),
        ] {
            let error = read(more).unwrap_err();
            assert_eq!(error.code, Code::Config);
            assert!(error.text.starts_with(&format!("{key}: ")), "{error}");
        }
    }

    #[test]
    fn other_versions_and_other_things_than_objects_have_codes_of_their_own() {
        for (text, code) in [
            ("{\"cniVersion\": \"0.2.0\", \"name\": \"net\"}", 1),
            ("{\"name\": \"net\"}", 1),
            ("[]", 6),
            ("{", 6),
            ("", 6),
        ] {
            assert_eq!(Config::read(text.as_bytes()).unwrap_err().code.number(), code, "{text}");
        }
    }

    #[test]
    fn gc_spares_what_is_named_by_either_name() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let valid =
                read(json!({ key: [{ "containerID": "a", "ifname": "eth0" }] })).unwrap().valid.unwrap();
            assert_eq!(valid, [Attachment::new("a", "eth0").unwrap()].into());
        }
        for none in [json!([]), Value::Null] {
            assert_eq!(
                read(json!({ "cni.dev/valid-attachments": none })).unwrap().valid,
                Some(BTreeSet::new())
            );
        }
        assert_eq!(read(json!({})).unwrap().valid, None);
    }
}
