//! Every example, run as its head says, to its end. That one needs no feature is left to the lints: they build it without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{need, process};

/// Builds an example and returns where it is.
#[track_caller]
fn build(name: &str) -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    // With the features of the whole workspace, as the tests themselves are built: what they have in common is there already.
    command.args(["build", "--quiet", "--locked", "--workspace", "--example", name]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output();
    process::expect_success("cargo build", &[name], output);
    Path::new(env!("CARGO_BIN_EXE_adit")).with_file_name("examples").join(name)
}

/// Runs an example; it must succeed, and print each of these.
#[track_caller]
fn expect(program: &Path, args: &[&str], printed: &[&str]) {
    let program = program.to_str().unwrap();
    let mut command = process::command(program, args);
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).output();
    let text = process::expect_success(program, args, output);
    for words in printed {
        assert!(text.contains(words), "{words:?} is not in what {program} printed:\n{text}");
    }
}

#[test]
fn embedding_shows_an_hour_of_traffic() {
    need!("setpriv");
    let example = build("embedding");
    expect(
        &example,
        &[],
        &[
            "B reads \"hello, B\"",
            "7200 packets arrived",
            "again: dropped: replayed",
            "forged: dropped: forged",
        ],
    );
}

#[test]
fn the_protocol_core_on_a_plain_tun_device_gets_along_with_the_data_plane() {
    need!("setpriv");
    expect(&build("tun_tap"), &["300"], &["300 of 300 packets came back", "tun-tap: handshake true"]);
}

#[test]
fn two_namespaces_are_joined_by_the_library_alone() {
    need!("setpriv");
    let printed = [
        "handshake initiation",
        "192.168.1.2 and back",
        "fd00::2 and back",
        "hello through the tunnel",
        "Gbit/s",
    ];
    expect(&build("namespaces"), &["1"], &printed);
}

#[cfg(feature = "control")]
#[test]
fn a_mesh_follows_the_files_that_describe_it() {
    need!("setpriv");
    let printed = [
        "10.244.3.1 → 10.244.1.1: answered",
        "10.244.1.1 → 10.244.3.1: no answer",
        "node3.yaml is back.\n10.244.1.1 → 10.244.3.1: answered",
    ];
    expect(&build("mesh"), &[], &printed);
}

/// Without pods, which nobody would run here.
#[cfg(feature = "control")]
#[test]
fn the_example_of_kubernetes_applies_to_a_real_api_server() {
    use crate::control::cluster::ControlPlane;
    use crate::support::Namespace;
    need!("ip", "setpriv", "bash");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes/run");
    let fabric = Namespace::new();
    fabric.ip("link add fabric type bridge");
    fabric.ip("link set fabric up");
    let Some(plane) = ControlPlane::start(&fabric) else { return };
    let (kubeconfig, kubectl) = (plane.kubeconfig(), plane.assets().join("kubectl"));
    let variables = [("KUBECONFIG", kubeconfig.to_str().unwrap()), ("KUBECTL", kubectl.to_str().unwrap())];
    let run = |args: &[&str]| {
        let mut process = plane.namespace().spawn_with(script, args, &variables);
        let status = process.wait(crate::support::SOON * 6);
        (status.success(), process)
    };
    // Twice: what is there already is no obstacle.
    for _ in 0..2 {
        let (success, process) = run(&["--wait", "0"]);
        assert!(success, "{}", process.output());
        assert_eq!(
            plane.kubectl(&["get", "tunnelconfig", "default", "-o", "jsonpath={.spec.mode}"]),
            "Strict"
        );
    }
    plane.kubectl(&["apply", "--dry-run=server", "-f", &script.replace("run", "pods.yaml")]);
    let (success, process) = run(&["--sooner"]);
    assert!(!success);
    crate::support::wait_until("the usage", crate::support::SOON, || {
        process.output().contains("--wait SECONDS")
    });
}

#[test]
fn every_example_says_its_command_and_has_a_test() {
    let here = include_str!("examples.rs");
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (head, command) = if path.is_dir() {
            (fs::read_to_string(path.join("run")).unwrap(), format!("examples/{name}/run"))
        } else {
            (fs::read_to_string(&path).unwrap(), format!("cargo run --release --example {name}"))
        };
        assert!(head.contains(&command), "{} does not say {command}", path.display());
        let is_run =
            here.contains(&format!("build(\"{name}\"")) || here.contains(&format!("/examples/{name}/run"));
        assert!(is_run, "{name} has no test");
    }
}
