//! The CNI plugin's input: arbitrary bytes as the configuration that a runtime writes, with the result of another plugin in it.
//!
//! - Nothing panics, and what cannot be used is refused by a code of the specification, in the version of the question.
//! - What is read of a result, printed in any version and read again, is the same; but for the MTU, which older versions have no place for.
//! - A result that is passed on loses nothing, and gains nothing but an MTU.
//! - Names of attachments lead to no other directory.

#![no_main]

use adit_cni::config::Config;
use adit_cni::outcome::{Outcome, pass_on};
use adit_cni::request::Attachment;
use adit_cni::version::{self, Version};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const MTU: u32 = 1420;

fuzz_target!(|input: &[u8]| {
    // Without a call of its own nothing outside the process is touched.
    let variable = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
    assert!(adit_cni::run(variable, input).is_ok_and(|result| result.is_some()));
    let config = match Config::read(input) {
        Ok(config) => config,
        Err(error) => {
            let printed = error.print(version::said(input).as_deref());
            assert!(matches!(printed["code"].as_u64(), Some(1 | 6 | 7)), "{printed}");
            assert!(printed["cniVersion"].is_string());
            return;
        }
    };
    assert!(config.agent_socket.is_absolute() && config.state_directory.is_absolute());
    assert!(config.ipam.as_ref().is_none_or(|name| !name.is_empty() && !name.contains('/')));
    for attachment in config.valid.iter().flatten() {
        check_name(attachment);
    }
    if let Some(previous) = &config.previous {
        check_result(previous, config.version);
    }
});

fn check_name(attachment: &Attachment) {
    let name = attachment.to_string();
    assert!(!name.contains('/') && !name.starts_with('.') && name.len() <= 255, "{name}");
    // Another attachment has another name.
    let (container, ifname) = name.split_once(':').expect("both parts");
    assert_eq!(Attachment::new(container, ifname).as_ref(), Some(attachment));
}

fn check_result(previous: &Value, version: Version) {
    let Ok(outcome) = Outcome::read(previous) else { return };
    for version in Version::ALL {
        let printed = outcome.print(version);
        let mut again = Outcome::read(&printed).expect("what was printed");
        if version < Version::V1_1_0 {
            for (interface, first) in again.interfaces.iter_mut().zip(&outcome.interfaces) {
                interface.mtu = first.mtu;
            }
        }
        // What is not said is said to be empty.
        assert_eq!(Outcome { dns: None, ..again }, Outcome { dns: None, ..outcome.clone() }, "{printed}");
    }
    let mut passed = pass_on(previous, version, "eth0", MTU);
    let mut given = previous.clone();
    assert_eq!(passed["cniVersion"], version.name());
    passed["cniVersion"] = Value::Null;
    given["cniVersion"] = Value::Null;
    for value in [&mut passed, &mut given] {
        let interfaces = value.get_mut("interfaces").and_then(Value::as_array_mut);
        for interface in interfaces.into_iter().flatten().filter(|interface| interface["name"] == "eth0") {
            interface["mtu"] = MTU.into();
        }
    }
    assert_eq!(passed, given);
}
