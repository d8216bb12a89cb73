//! libcni itself, by its `cnitool`.

use std::fs;

use serde_json::{Value, json};

use super::need_plugins;
use super::runtime::{Pod, plugin_directory};
use super::setup::Lab;
use crate::support::need;

#[test]
fn libcni_adds_checks_and_deletes_in_both_modes() {
    need_plugins!();
    need!("cnitool");
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    let name = format!("adit{}", std::process::id());
    let chain =
        |version: &str| json!({ "cniVersion": version, "name": name, "plugins": [lab.ptp(), lab.chained()] });
    let main = |version: &str| json!({ "cniVersion": version, "name": name, "plugins": [lab.main(0)] });
    let path = format!("{}:{}", plugin_directory(), super::PLUGINS);
    for list in [chain("0.4.0"), chain("1.0.0"), main("1.0.0"), main("1.1.0")] {
        fs::write(lab.files.path().join("10-net.conflist"), list.to_string()).unwrap();
        let pod = Pod::new();
        let run = |command: &str| {
            let environment = [
                format!("NETCONFPATH={}", lab.files.path().display()),
                format!("CNI_PATH={path}"),
                "cnitool".to_owned(),
                command.to_owned(),
                name.clone(),
                pod.namespace.path(),
            ];
            let tool = crate::support::find("cnitool").unwrap();
            let mut args: Vec<_> = environment.iter().map(String::as_str).collect();
            args[2] = tool.to_str().unwrap();
            host.try_run("env", &args)
        };
        let (is_added, text) = run("add");
        assert!(is_added, "{list}: {text}");
        let result: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("10.244.1."), "{text}");
        assert_eq!((pod.mtu(), lab.registered(0)), (1420, 1));
        let (is_right, text) = run("check");
        assert!(is_right, "{list}: {text}");
        pod.namespace.ip("link set eth0 mtu 1300");
        let (is_right, text) = run("check");
        assert!(!is_right && text.contains("MTU"), "{list}: {text}");
        if list["cniVersion"] == "1.1.0" {
            for command in ["status", "gc"] {
                let (is_done, text) = run(command);
                assert!(is_done, "{command}: {text}");
            }
        }
        for _ in 0..2 {
            let (is_gone, text) = run("del");
            assert!(is_gone, "{list}: {text}");
        }
        assert_eq!(lab.registered(0), 0);
    }
}
