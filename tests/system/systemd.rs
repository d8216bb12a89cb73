//! What systemd is told and asked for: notifications, units, and the guide for two hosts without a cluster.
//!
//! There is no systemd here that could run the units. Its own tool checks them; that what they allow is enough is shown by programs that
//! are started with no more capabilities, and whose system calls are compared with those that the units let through. A whole system that
//! runs them is booted by `tests/systemd.sh`, by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use rustix::process::Signal;

use crate::control::nodes::Mesh;
use crate::support::tunnel::{Program, socket_path};
use crate::support::{Directory, Namespace, Process, SOON, find, ifname, need, process, wait_until};

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    directory: Directory,
}

impl Manager {
    fn new() -> Self {
        let directory = Directory::new();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, directory }
    }

    /// Returns the variables by which a service finds it, with a watchdog of a fifth of a second.
    fn variables(&self) -> [(&'static str, String); 2] {
        let socket = self.directory.path().join("notify");
        [("NOTIFY_SOCKET", socket.to_str().unwrap().to_owned()), ("WATCHDOG_USEC", "200000".to_owned())]
    }

    #[track_caller]
    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned()
    }

    /// Waits for the end, during which nothing else is told.
    #[track_caller]
    fn expect_end_of(&self, process: &mut Process) {
        process.signal(Signal::TERM);
        let mut heard = self.hear();
        while heard == "WATCHDOG=1" {
            heard = self.hear();
        }
        assert_eq!(heard, "STOPPING=1");
        assert!(process.wait(SOON).success());
    }
}

#[test]
fn a_data_plane_tells_that_it_is_ready_lives_and_stops() {
    need!("ip", "setpriv");
    let (namespace, manager, name) = (Namespace::new(), Manager::new(), ifname());
    let variables = manager.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut process = Program::Adit.start(&namespace, &name, &[], &variables);
    assert_eq!(manager.hear(), "READY=1");
    UnixStream::connect(socket_path(&name)).expect("who is ready answers");
    for _ in 0..3 {
        assert_eq!(manager.hear(), "WATCHDOG=1");
    }
    manager.expect_end_of(&mut process);
}

#[test]
fn an_agent_tells_that_it_is_ready_lives_and_stops() {
    need!("ip", "setpriv");
    let (mut mesh, manager) = (Mesh::new(1), Manager::new());
    let objects = mesh.objects.path().to_str().unwrap().to_owned();
    let variables = manager.variables();
    let mut variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.push(("ADIT_OBJECTS", &objects));
    let node = &mut mesh.nodes[0];
    node.start_agent_in(&variables);
    assert_eq!(manager.hear(), "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.hear(), "WATCHDOG=1");
    }
    let agent = node.agent.as_mut().unwrap();
    manager.expect_end_of(agent);
    let log = agent.output();
    assert!(log.contains("leaving") && !log.contains('\u{1b}'), "plain lines for the journal: {log}");
}

#[test]
fn the_watchdog_of_another_process_is_left_alone() {
    need!("ip", "setpriv");
    let (namespace, manager, name) = (Namespace::new(), Manager::new(), ifname());
    let variables = manager.variables();
    let another = "4294967295";
    let child = namespace.spawn_command(env!("CARGO_BIN_EXE_adit"), &["-f", &name], |command| {
        command.envs(variables).env("WATCHDOG_PID", another);
    });
    let mut process = Process::new("adit", child.unwrap()).leaves(socket_path(&name));
    assert_eq!(manager.hear(), "READY=1");
    manager.socket.set_read_timeout(Some(std::time::Duration::from_millis(600))).unwrap();
    assert!(manager.socket.recv(&mut [0; 64]).is_err());
    manager.socket.set_read_timeout(Some(SOON)).unwrap();
    manager.expect_end_of(&mut process);
}

/// A unit file: its values by key, those of one key in their order.
struct Unit(Vec<(String, String)>);

impl Unit {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |pair| pair.0 == key).map(|pair| pair.1.as_str())
    }

    #[track_caller]
    fn one(&self, key: &str) -> &str {
        let mut all = self.all(key);
        let first = all.next().unwrap_or_else(|| panic!("{key} is not there"));
        assert_eq!(all.next(), None, "{key} is there twice");
        first
    }

    /// Returns the command with its arguments, without the program.
    fn arguments(&self) -> Vec<&str> {
        let mut words = self.one("ExecStart").split_whitespace();
        assert_eq!(words.next(), Some("/usr/local/bin/adit"));
        words.collect()
    }

    /// Returns the system calls that are let through.
    fn calls(&self, sets: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
        let mut calls = BTreeSet::new();
        for words in self.all("SystemCallFilter") {
            let (is_denied, words) = words.strip_prefix('~').map_or((false, words), |words| (true, words));
            for word in words.split_whitespace() {
                let set = expand(word, sets);
                if is_denied {
                    calls.retain(|call| !set.contains(call));
                } else {
                    calls.extend(set);
                }
            }
        }
        calls
    }
}

/// Returns systemd's sets of system calls.
fn sets() -> BTreeMap<String, BTreeSet<String>> {
    let output = process::command("systemd-analyze", &["--no-pager", "syscall-filter"]).output();
    let text = process::expect_success("systemd-analyze", &["syscall-filter"], output);
    let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.starts_with('@') {
            line.trim().clone_into(&mut name);
        } else if !line.trim().is_empty() && line.starts_with(' ') {
            sets.entry(name.clone()).or_default().insert(line.trim().to_owned());
        }
    }
    sets
}

fn expand(name: &str, sets: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    match sets.get(name) {
        Some(set) => set.iter().flat_map(|name| expand(name, sets)).collect(),
        None => BTreeSet::from([name.to_owned()]),
    }
}

#[test]
fn systemd_finds_the_units_sound_and_well_shut_in() {
    need!("systemd-analyze", "setpriv");
    let directory = Directory::new();
    let mut files = Vec::new();
    for (name, instance) in
        [("adit@.service", "adit@adit0.service"), ("adit-agent.service", "adit-agent.service")]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
        let unit =
            fs::read_to_string(path).unwrap().replace("/usr/local/bin/adit", env!("CARGO_BIN_EXE_adit"));
        for name in [name, instance] {
            fs::write(directory.path().join(name), &unit).unwrap();
        }
        files.push(directory.path().join(instance).to_str().unwrap().to_owned());
    }
    for file in &files {
        let args = ["verify", "--man=no", file];
        let text =
            process::expect_success("verify", &args, process::command("systemd-analyze", &args).output());
        assert_eq!(text, "", "{file}");
        // Of 100, most of it for being root in the host's network, which is what they are for.
        let args = ["security", "--no-pager", "--offline=true", "--threshold=25", file];
        process::expect_success("security", &args, process::command("systemd-analyze", &args).output());
    }
}

/// A host of the guide.
struct Host {
    name: &'static str,
    interface: String,
    namespace: Namespace,
    files: Directory,
    processes: Vec<Process>,
}

impl Host {
    fn new(name: &'static str) -> Self {
        let (namespace, files) = (Namespace::new(), Directory::new());
        fs::create_dir(files.path().join("objects")).unwrap();
        Self { name, interface: ifname(), namespace, files, processes: Vec::new() }
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts what a unit starts, with what it allows, and returns the file that system calls are written to.
    fn start(&mut self, unit: &Unit) -> String {
        let log = self.path(&format!("calls{}", self.processes.len()));
        let capabilities = unit.one("CapabilityBoundingSet").to_lowercase().replace("cap_", "+");
        let bounds = format!("-all,{capabilities}");
        let adit = env!("CARGO_BIN_EXE_adit");
        // It ends with strace, which does not end it.
        let shut_in = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set",
            &bounds,
        ];
        let mut args = vec!["-f", "-qq", "-o", &log];
        args.extend(shut_in);
        args.push(adit);
        let own = unit.arguments();
        args.extend(own.iter().map(|word| if *word == "%i" { self.interface.as_str() } else { word }));
        let values: Vec<_> = unit
            .all("Environment")
            .flat_map(str::split_whitespace)
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let (state, objects) = (self.path("state"), self.path("objects"));
        let value = |name: &str, value| match name {
            "ADIT_STATE" => state.clone(),
            "ADIT_OBJECTS" => objects.clone(),
            _ => str::replace(value, "%H", self.name),
        };
        let values: Vec<_> = values.iter().map(|(name, text)| (*name, value(name, text))).collect();
        let mut variables: Vec<_> = values.iter().map(|(name, text)| (*name, text.as_str())).collect();
        variables.extend([("ADIT_INTERFACE", self.interface.as_str()), ("ADIT_RUN", &state)]);
        let process = self.namespace.spawn_with("strace", &args, &variables);
        self.processes.push(process.leaves(socket_path(&self.interface)));
        log
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        self.namespace.succeeds(&format!("ping -n -c 1 -W 1 -I {from} {to}"))
    }
}

/// Returns the files of the guide: those of its blocks that begin with the name of one.
fn files_of_the_guide() -> BTreeMap<String, String> {
    let guide = include_str!("../../docs/two-hosts.md");
    let blocks = guide.split("```yaml\n# ").skip(1).filter_map(|rest| rest.split_once("\n```"));
    let files = blocks.filter_map(|(block, _)| block.split_once('\n'));
    files.map(|(path, text)| (path.rsplit('/').next().unwrap().to_owned(), format!("{text}\n"))).collect()
}

/// Returns the system calls of a program that succeeded or failed after it was started by `setpriv`.
fn calls_of(log: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(log).unwrap();
    let own = text
        .lines()
        .skip_while(|line| !line.contains(concat!("execve(\"", env!("CARGO_BIN_EXE_adit"))))
        .skip(1);
    let name = |line: &str| {
        let line = line.split_once(' ')?.1.trim_start();
        let (name, _) = line.split_once('(')?;
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then(|| name.to_owned())
    };
    own.filter_map(name).collect()
}

#[test]
fn two_hosts_as_the_guide_says_within_what_the_units_allow() {
    need!("ip", "wg", "ping", "setpriv", "strace", "systemd-analyze");
    let files = files_of_the_guide();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["alpha.yaml", "beta.yaml", "config.yaml"]);
    let mut hosts = [Host::new("alpha"), Host::new("beta")];
    let [alpha, beta] = &hosts;
    alpha.namespace.join("eth0", &["203.0.113.1/24"], &beta.namespace, "eth0", &["203.0.113.2/24"]);
    alpha.namespace.ip("addr add 10.1.0.1/32 dev lo");
    beta.namespace.ip("addr add 10.2.0.1/32 dev lo");
    let keys = hosts.each_ref().map(|host| {
        let args = ["agent", "--public-key", "--state", &host.path("state")];
        (host.name, host.namespace.run(env!("CARGO_BIN_EXE_adit"), &args).trim_end().to_owned())
    });
    for host in &hosts {
        for (name, text) in &files {
            let text = keys
                .iter()
                .fold(text.clone(), |text, (name, key)| text.replace(&format!("PUBLIC KEY OF {name}"), key));
            fs::write(Path::new(&host.path("objects")).join(name), text).unwrap();
        }
    }
    let (data_plane, agent) = (Unit::read("adit@.service"), Unit::read("adit-agent.service"));
    let mut logs = Vec::new();
    for host in &mut hosts {
        host.namespace.sysctl("net/ipv4/ip_forward", "1");
        logs.push((&data_plane, host.start(&data_plane)));
        logs.push((&agent, host.start(&agent)));
    }
    let [alpha, beta] = &hosts;
    wait_until("an answer through the tunnel", SOON * 2, || alpha.reaches("10.1.0.1", "10.2.0.1"));
    wait_until("an answer the other way", SOON, || beta.reaches("10.2.0.1", "10.1.0.1"));
    let args = ["status", &alpha.interface, "--state", &alpha.path("state")];
    wait_until("that all is well", SOON, || alpha.namespace.try_run(env!("CARGO_BIN_EXE_adit"), &args).0);
    drop(hosts.each_mut().map(|host| std::mem::take(&mut host.processes)));

    let sets = sets();
    for (unit, log) in logs {
        let (allowed, used) = (unit.calls(&sets), calls_of(&log));
        assert!(used.len() > 20 && used.contains("sendto"), "{used:?}");
        let refused: Vec<_> = used.difference(&allowed).collect();
        assert!(refused.is_empty(), "{}: {refused:?}", unit.one("ExecStart"));
    }
    // The control: what a filter does not let through is found.
    let none = Unit(vec![("SystemCallFilter".to_owned(), "@basic-io".to_owned())]).calls(&sets);
    assert!(none.contains("read") && !none.contains("sendto") && find("systemd-analyze").is_some());
}
