//! `adit preflight`: whether this node can do it, for people and for programs.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::json;

use super::args::{Output, PreflightArgs};
use crate::control::objects::Objects;
use crate::control::preflight::{Finding, Verdict, Wanted, judge, look};
use crate::control::read;
use crate::control::settings::FOR_ALL;
use crate::control::store::Store;
use crate::control::watch::Source;
use crate::control::watch::access::Reach;
use crate::control::watch::directory::Directory;

/// Looks at the node and prints what was found.
///
/// # Errors
/// Names the checks that failed, or what cannot be used.
pub(super) fn run(args: &PreflightArgs) -> Result<(), String> {
    let wanted = wanted(args)?;
    let findings = judge(&wanted, &look(&wanted));
    let text = match args.output {
        Output::Table => table(&findings),
        Output::Json => format!("{:#}\n", json!({ "checks": findings })),
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))?;
    let failed = findings.iter().filter(|finding| finding.result == Verdict::Fail);
    let failed: Vec<_> = failed.map(|finding| finding.id).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("preflight: failed: {}", failed.join(", "))) }
}

fn wanted(args: &PreflightArgs) -> Result<Wanted, String> {
    let objects = objects(args)?;
    let mut wanted = Wanted::of(&objects, args.node_name.as_deref());
    let settings = &mut wanted.settings;
    settings.interface = args.places.interface.clone().unwrap_or_else(|| settings.interface.clone());
    settings.listen_port = args.listen_port.unwrap_or(settings.listen_port);
    wanted.cluster_prefixes.extend(&args.cluster_prefix);
    let mut names = Vec::new();
    for peer in &args.peer {
        match peer.parse() {
            Ok(address) => {
                wanted.peers.insert(address);
            }
            Err(_) => names.push(peer),
        }
    }
    let is_known = |name: &String| wanted.targets.iter().any(|target| target.node == *name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        return Err(format!("{unknown}: no other node with a key has this name"));
    }
    wanted.targets.retain(|target| names.is_empty() || names.contains(&&target.node));
    wanted.probes = !args.no_probe;
    wanted.state.clone_from(&args.places.state);
    wanted.sockets.clone_from(&args.places.sockets);
    let is_pod = || env::var_os("KUBERNETES_SERVICE_HOST").map(|_| Reach::Pod);
    // Whoever is told by files has no cluster to ask.
    wanted.cluster = match (&args.objects, &args.kubeconfig) {
        (Some(_), _) => None,
        (None, Some(path)) => Some(Reach::Kubeconfig(path.clone())),
        (None, None) => is_pod(),
    };
    wanted.makes_config = args.default_mode.is_some() && !objects.configs.contains_key(FOR_ALL);
    wanted.removes_taint = args.startup_taint.as_ref().is_some_and(|key| !key.is_empty());
    Ok(wanted)
}

fn objects(args: &PreflightArgs) -> Result<Objects, String> {
    if let Some(path) = &args.objects {
        let directory = Directory::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(directory.objects().unwrap_or_default());
    }
    let kept = Store::snapshot_in(&args.places.state).map_err(|error| error.to_string())?;
    Ok(kept.map(|kept| read::objects(&kept.objects)).unwrap_or_default())
}

/// Returns a line for each check; below one that is not passed, why it matters and what helps.
fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.id.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { id, result, evidence, why, fix } in findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{result:<4}  {id:<width$}  {evidence}");
        if matches!(result, Verdict::Warn | Verdict::Fail) {
            let _ =
                writeln!(text, "{:>width$}  why: {why}\n{:>width$}  fix: {fix}", "", "", width = width + 6);
        }
    }
    text
}
