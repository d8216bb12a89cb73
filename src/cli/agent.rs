//! `adit agent`: the control loop, wired to a source of objects, a data plane and the kernel's routes.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::args::AgentArgs;
use super::cleanup;
use super::log;
use super::turn::{Refused, await_turn};
use crate::control::agent::{Agent, Parts};
use crate::control::api;
use crate::control::heal::Healer;
use crate::control::store::{Store, Unusable};
use crate::control::watch::Source;
use crate::control::watch::cluster::Cluster;
use crate::control::watch::directory::Directory;
use crate::crypto::random::Os;
use crate::sys::process;
use crate::sys::service;
use crate::sys::signal::Signals;

/// Runs the agent until a signal comes; or prints or removes what was asked for.
///
/// # Errors
/// Names what cannot be used, and why.
#[expect(clippy::print_stdout, reason = "the public key was asked for")]
pub(super) fn run(args: &AgentArgs) -> Result<(), String> {
    process::forbid_dumps();
    if args.cleanup {
        return cleanup::run(args);
    }
    if args.public_key {
        let store = Store::open(&args.places.state).map_err(|error| error.to_string())?;
        let private_key = store.private_key(&mut Os).map_err(|error| error.to_string())?;
        println!("{}", BASE64.encode(private_key.public().as_bytes()));
        return Ok(());
    }
    log::start(args.log_level, args.logging.log_format, None).map_err(|error| format!("log: {error}"))?;
    let signals = Signals::new().map_err(|error| format!("signals: {error}"))?;
    let store = await_turn(args.wait, Some(&signals), || {
        Store::open(&args.places.state).map_err(|error| match error {
            Unusable::InUse(_) => Refused::Taken(error.to_string()),
            Unusable::Io { .. } | Unusable::Damaged { .. } => Refused::ForGood(error.to_string()),
        })
    })?;
    let Some(store) = store else { return Ok(()) };
    let private_key = store.private_key(&mut Os).map_err(|error| error.to_string())?;
    let node = args.node_name.as_ref().ok_or("--node-name is needed")?;
    let source: Box<dyn Source> = match &args.objects {
        Some(objects) => {
            Box::new(Directory::open(objects).map_err(|error| format!("{}: {error}", objects.display()))?)
        }
        None => Box::new(
            Cluster::start(node, args.kubeconfig.as_deref(), args.default_mode)
                .map_err(|error| format!("the cluster: {error}"))?,
        ),
    };
    let resync = Duration::from_secs(args.resync.into());
    let parts = Parts {
        node: node.clone(),
        private_key,
        interface: args.places.interface.clone(),
        sockets: args.places.sockets.clone(),
        run: args.run.clone(),
        resync,
        store: Arc::new(store),
        makes_config: args.default_mode.is_some(),
        asks_others: true,
        source,
        metrics: args.metrics.clone(),
        healer: Healer::start(resync).map_err(|error| format!("netlink: {error}"))?,
        cni: args.cni.options(),
        startup_taint: args.cni.startup_taint().map(str::to_owned),
    };
    let mut agent = Agent::new(parts)
        .map_err(|error| format!("the sockets of data planes or of the CNI plugin: {error}"))?;
    tracing::info!(node, "ready");
    service::ready();
    agent.run(&signals);
    service::stopping();
    tracing::info!("leaving; what is programmed stays");
    Ok(())
}

/// Prints the definitions of the custom resources.
///
/// # Errors
/// If nobody reads them to their end.
pub(super) fn print_definitions() -> Result<(), String> {
    let printed = io::stdout().write_all(api::definitions().as_bytes());
    printed.map_err(|error| format!("standard output: {error}"))
}
