//! What the plugin asks, and what it is answered: a JSON object on a line each.
//!
//! ```text
//! {"command":"add","network":N,"containerID":C,"ifname":I,"addresses":[A…],"waitMs":M,"namespace":S,"pod":P}   → {"mtu":1420}
//! {"command":"del","network":N,"containerID":C,"ifname":I}                                                     → {}
//! {"command":"check","network":N,"containerID":C,"ifname":I}                                                   → {}
//! {"command":"gc","network":N,"valid":[{"containerID":C,"ifname":I}…]}                                         → {}
//! {"command":"status","network":N}                                                                             → {}
//! ```
//!
//! An answer with a `warning` is to be logged; one with `code` and `msg` is an error of the CNI specification.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pods::{Attachment, Pod};

/// The longest line, in bytes: GC on a node with thousands of pods.
pub const LINE_MAX: u64 = 1 << 20;
/// The longest name in a question, in bytes.
const NAME_MAX: usize = 256;
/// The most addresses of a pod.
const ADDRESSES_MAX: usize = 64;
/// How long the plugin may wait at most.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Registers a pod, and waits so long until it is protected.
    Add(Pod, Duration),
    /// Forgets a pod.
    Del(Attachment),
    /// Asks whether a pod is registered, and still protected.
    Check(Attachment),
    /// Forgets all pods of a network but these.
    Gc(String, Vec<Attachment>),
    /// Asks whether pods can be added.
    Status,
}

/// A question as it is written.
#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "camelCase")]
enum Written {
    #[serde(rename_all = "camelCase")]
    Add {
        #[serde(flatten)]
        pod: Pod,
        wait_ms: u64,
    },
    Del(Attachment),
    Check(Attachment),
    Gc {
        network: String,
        valid: Vec<Valid>,
    },
    Status {},
}

#[derive(Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The MTU in bytes that the pod should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What is to be logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Why something was not done, by the codes of the CNI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    code: u32,
    msg: String,
}

impl Refused {
    /// What was asked is no question.
    pub fn invalid(why: impl fmt::Display) -> Self {
        Self { code: 6, msg: format!("the question to the agent: {why}") }
    }

    /// The system refused.
    pub fn io(why: impl fmt::Display) -> Self {
        Self { code: 5, msg: format!("the agent's list of pods: {why}") }
    }

    /// It may work later.
    pub fn later(why: impl fmt::Display) -> Self {
        Self { code: 11, msg: why.to_string() }
    }

    /// Pods cannot be added; with `is_limited` those that are there may be cut off.
    pub fn unavailable(why: impl fmt::Display, is_limited: bool) -> Self {
        Self { code: if is_limited { 51 } else { 50 }, msg: why.to_string() }
    }

    /// The pod is not registered.
    pub fn unknown() -> Self {
        Self { code: 101, msg: "the agent does not know the pod".to_owned() }
    }
}

/// Reads a question.
///
/// # Errors
/// Says what is wrong with it.
pub fn read(line: &[u8]) -> Result<Question, Refused> {
    let written: Written = serde_json::from_slice(line).map_err(Refused::invalid)?;
    let question = match written {
        Written::Add { pod, wait_ms } => Question::Add(pod, Duration::from_millis(wait_ms).min(WAIT_MAX)),
        Written::Del(attachment) => Question::Del(attachment),
        Written::Check(attachment) => Question::Check(attachment),
        Written::Gc { network, valid } => {
            let valid = valid.into_iter().map(|Valid { container, ifname }| {
                let network = network.clone();
                Attachment { network, container, ifname }
            });
            Question::Gc(network.clone(), valid.collect())
        }
        Written::Status {} => Question::Status,
    };
    if let Question::Add(pod, _) = &question {
        let Attachment { network, container, ifname } = &pod.attachment;
        let names = [Some(network), Some(container), Some(ifname), pod.namespace.as_ref(), pod.name.as_ref()];
        if names.into_iter().flatten().any(|name| name.len() > NAME_MAX)
            || pod.addresses.len() > ADDRESSES_MAX
        {
            return Err(Refused::invalid("a name is too long, or there are too many addresses"));
        }
    }
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_the_plugin_writes_them() {
        let attachment = |container: &str| Attachment {
            network: "n".to_owned(),
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
        };
        let pod = Pod {
            attachment: attachment("c"),
            addresses: vec!["10.1.0.5".parse().unwrap()],
            namespace: None,
            name: Some("web".to_owned()),
        };
        for (line, expected) in [
            (
                r#"{"command":"add","network":"n","containerID":"c","ifname":"eth0","addresses":["10.1.0.5"],"waitMs":500,"pod":"web"}"#,
                Question::Add(pod, Duration::from_millis(500)),
            ),
            (
                r#"{"command":"del","network":"n","containerID":"c","ifname":"eth0"}"#,
                Question::Del(attachment("c")),
            ),
            (
                r#"{"command":"check","network":"n","containerID":"c","ifname":"eth0"}"#,
                Question::Check(attachment("c")),
            ),
            (
                r#"{"command":"gc","network":"n","valid":[{"containerID":"d","ifname":"eth0"}]}"#,
                Question::Gc("n".to_owned(), vec![attachment("d")]),
            ),
            (r#"{"command":"status","network":"n"}"#, Question::Status),
        ] {
            assert_eq!(read(line.as_bytes()).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_question_is_said_to_be_none() {
        let long = format!(
            r#"{{"command":"add","network":"n","containerID":"{}","ifname":"eth0","addresses":[],"waitMs":0}}"#,
            "c".repeat(257)
        );
        for line in ["", "{}", "[]", r#"{"command":"remove"}"#, r#"{"command":"del","network":"n"}"#, &long] {
            assert_eq!(read(line.as_bytes()).unwrap_err().code, 6, "{line}");
        }
    }

    #[test]
    fn an_answer_says_only_what_there_is_to_say() {
        let printed = |answer: &Answer| serde_json::to_string(answer).unwrap();
        assert_eq!(printed(&Answer::default()), "{}");
        assert_eq!(printed(&Answer { mtu: Some(1420), warning: None }), r#"{"mtu":1420}"#);
        let refused = serde_json::to_string(&Refused::unavailable("no", true)).unwrap();
        assert_eq!(refused, r#"{"code":51,"msg":"no"}"#);
    }
}
