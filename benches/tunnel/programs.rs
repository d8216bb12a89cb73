//! What is compared, and where its programs are found.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::report::say;
use crate::support::{Namespace, Process, find};

/// Something that carries packets from one namespace to the other.
#[derive(Clone, Debug)]
pub(crate) struct Implementation {
    /// Its name in the table and after `--only`.
    pub(crate) name: &'static str,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The veth pair itself.
    Veth,
    /// A tunnel without crypto: `PROGRAM IFNAME LOCAL PORT REMOTE PORT`.
    Null(PathBuf),
    /// A WireGuard that `wg` configures.
    WireGuard { path: PathBuf, args: &'static [&'static str], one_core_each: bool },
}

/// This program: as it is, with a library in place of its crypto core, without the super-packets of tunnels that Linux 6.17 hands out; and
/// the arguments.
const OURS: &[(&str, &[&str])] =
    &[("adit", &[]), ("adit-ring", &["--crypto", "ring"]), ("adit-6.16", &["--offload", "tunnel=off"])];

/// Name, files by which it may go, further arguments, and whether each end is bound to a core of its own.
type Peer = (&'static str, &'static [&'static str], &'static [&'static str], bool);

const PEERS: &[Peer] = &[
    ("tailscale", &["wireguard-go-tailscale"], &[], false),
    ("wireguard-go", &["wireguard-go"], &[], false),
    ("gotatun", &["gotatun", "gotatun-cli"], &[], false),
    ("boringtun", &["boringtun-cli"], &[], false),
    ("boringtun-1", &["boringtun-cli"], &["-t", "1"], true),
];

/// Returns what is there of the implementations `only`, or of all if that is empty, in the order of the table, and what is not.
pub(crate) fn implementations(only: &[String]) -> (Vec<Implementation>, Vec<String>) {
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let wireguard = |name, path, args, one_core_each| Implementation {
        name,
        kind: Kind::WireGuard { path, args, one_core_each },
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    if is_wanted("veth") {
        found.push(Implementation { name: "veth", kind: Kind::Veth });
    }
    if is_wanted("nulltun") {
        match null_tunnel() {
            Some(path) => found.push(Implementation { name: "nulltun", kind: Kind::Null(path) }),
            None => missing.push("nulltun".to_owned()),
        }
    }
    for &(name, args) in OURS.iter().filter(|ours| is_wanted(ours.0)) {
        found.push(wireguard(name, env!("CARGO_BIN_EXE_adit").into(), args, false));
    }
    for &(name, files, args, one_core_each) in PEERS.iter().filter(|peer| is_wanted(peer.0)) {
        match files.iter().find_map(|file| find(file)) {
            Some(path) => found.push(wireguard(name, path, args, one_core_each)),
            None => missing.push(files[0].to_owned()),
        }
    }
    missing.dedup();
    (found, missing)
}

/// Tells whether an implementation goes by `name`.
pub(crate) fn is_known(name: &str) -> bool {
    ["veth", "nulltun"].contains(&name)
        || OURS.iter().any(|ours| ours.0 == name)
        || PEERS.iter().any(|peer| peer.0 == name)
}

/// Returns the null tunnel that `ADIT_NULLTUN` names: a program, or its source in C, which is compiled.
fn null_tunnel() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("ADIT_NULLTUN")?);
    if path.extension().is_none_or(|extension| extension != "c") {
        return path.is_file().then_some(path);
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nulltun");
    let mut compiler = Command::new(find("cc").or_else(|| find("gcc"))?);
    let compiled = compiler.args(["-O3", "-pthread", "-o"]).args([&program, &path]).output().ok()?;
    if !compiled.status.success() {
        say(&format!("{}: {}", path.display(), String::from_utf8_lossy(&compiled.stderr).trim_end()));
        return None;
    }
    Some(program)
}

impl Implementation {
    /// Tells whether it is a WireGuard that `wg` configures.
    pub(crate) fn is_wireguard(&self) -> bool {
        matches!(self.kind, Kind::WireGuard { .. })
    }

    /// Starts the daemon of end `side` (0 or 1) with a device of the name given; a plain veth has none.
    pub(crate) fn start(
        &self,
        namespace: &Namespace,
        side: usize,
        device: &str,
        outer: [&str; 2],
    ) -> Option<Process> {
        let port = crate::lab::PORT.to_string();
        match &self.kind {
            Kind::Veth => None,
            Kind::Null(path) => {
                let args = [device, outer[side], &port, outer[1 - side], &port];
                Some(namespace.spawn(text(path), &args))
            }
            Kind::WireGuard { path, args, one_core_each } => {
                let core = side.to_string();
                let mut line = if *one_core_each { vec!["taskset", "-c", &core] } else { vec![] };
                line.extend([text(path), "-f"]);
                line.extend(*args);
                line.push(device);
                // WG_SUDO: boringtun's and gotatun's switch to keep their privileges, which they cannot give up without a login session.
                Some(namespace.spawn_with(line[0], &line[1..], &[("WG_SUDO", "true")]))
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path of a program is text")
}
