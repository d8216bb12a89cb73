//! `adit demo` from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::make_executable;
use crate::support::{Directory, Namespace, Process, SOON, need, not_hosted, wait_for, wait_until};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");

#[test]
fn the_demo_proves_what_it_claims_and_leaves_nothing_behind() {
    need!("ip");
    let namespace = Namespace::new();
    let before = namespace.ip("-o link");
    let mut demo = namespace.spawn(ADIT, &["demo", "--nodes", "2", "--seconds", "2"]);
    assert!(demo.wait(Duration::from_secs(60)).success(), "{}", demo.output());
    wait_until("the proof", SOON, || demo.output().contains("Proved: "));
    assert_eq!(namespace.ip("-o link"), before);
}

#[test]
fn an_interrupted_demo_cleans_up_and_fails_promptly() {
    need!("ip");
    let namespace = Namespace::new();
    let before = namespace.ip("-o link");
    // At once, in the first run, in the second, and at full speed.
    for words in ["A mesh of", "1. Tunnel off", "2. Tunnel on", "3. Full speed"] {
        for signal in [Signal::INT, Signal::TERM] {
            let mut demo = namespace.spawn(ADIT, &["demo", "--nodes", "2", "--seconds", "600"]);
            wait_until(words, Duration::from_secs(60), || demo.output().contains(words));
            demo.signal(signal);
            let status = demo.wait(Duration::from_secs(5));
            assert_eq!(status.code(), Some(1), "{words}");
            wait_until("the reason", SOON, || demo.output().contains("interrupted"));
            assert_eq!(namespace.ip("-o link"), before);
        }
    }
}

/// Returns the directory of the objects that a demo says that it follows.
#[track_caller]
fn objects_of(demo: &Process) -> PathBuf {
    wait_for("the place of the objects", SOON, || {
        let output = demo.output();
        let (_, path) = output.split_once("the objects say in ")?;
        Some(PathBuf::from(path.split_once(',')?.0))
    })
}

/// Returns the pairs of nodes, in order, that a demo's last whole table shows as peers.
fn peers_of(demo: &Process) -> Vec<(u8, u8)> {
    let output = demo.output();
    let tables = output.split("node  peer").collect::<Vec<_>>();
    let [_, .., table, _] = &tables[..] else { return Vec::new() };
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
    let rows = table.lines().skip(1).map(str::split_whitespace);
    let mut pairs: Vec<_> =
        rows.filter_map(|mut words| Some((number(words.next())?, number(words.next())?))).collect();
    pairs.sort_unstable();
    pairs
}

#[test]
fn the_demo_does_what_its_objects_say_and_a_killed_one_leaves_nothing_behind() {
    need!("ip");
    let namespace = Namespace::new();
    let before = namespace.ip("-o link");
    let mut demo = namespace.spawn(ADIT, &["demo", "--nodes", "3", "--seconds", "600"]);
    let objects = objects_of(&demo);
    let mut names: Vec<_> = fs::read_dir(&objects).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.yaml", "node1.yaml", "node2.yaml", "node3.yaml"]);
    let own = Path::new("/").join(objects.iter().skip(4).collect::<PathBuf>());
    assert!(!own.exists(), "{} is everybody's", own.display());

    let all = [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)];
    wait_until("a whole mesh", Duration::from_secs(60), || peers_of(&demo) == all);
    let (file, aside) = (objects.join("node3.yaml"), objects.join("node3.aside"));
    fs::rename(&file, &aside).unwrap();
    // The third still knows the others, who do not know it.
    wait_until("a mesh without the third", SOON, || peers_of(&demo) == [(1, 2), (2, 1), (3, 1), (3, 2)]);
    fs::rename(&aside, &file).unwrap();
    wait_until("a whole mesh again", SOON, || peers_of(&demo) == all);

    demo.signal(Signal::KILL);
    demo.wait(SOON);
    assert!(!objects.exists() && !own.exists());
    assert_eq!(namespace.ip("-o link"), before);
}

#[test]
fn the_demo_runs_for_an_ordinary_user() {
    need!("ip", "setpriv", "unshare");
    let namespace = Namespace::new();
    let directory = Directory::new();
    let program = directory.file("adit");
    make_executable(&program, &fs::read(ADIT).unwrap());
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let (is_hosted, _) = namespace.try_run("setpriv", &[&user[..], &["unshare", "-Urn", "true"]].concat());
    if !is_hosted {
        return not_hosted("user namespaces of ordinary users are");
    }
    // As most systems have it; some keep it from users.
    let device = "mount -t tmpfs net /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv \"$@\"";
    let args = ["--mount", "sh", "-c", device, "sh"];
    let args = [&args, &user[..], &[&program, "demo", "--nodes", "2", "--seconds", "1"]].concat();
    let mut demo = namespace.spawn("unshare", &args);
    assert!(demo.wait(Duration::from_secs(60)).success(), "{}", demo.output());
    wait_until("the proof", SOON, || demo.output().contains("Proved: "));
}
