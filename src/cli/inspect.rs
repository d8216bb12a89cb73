//! `adit status` and `adit peers`: what is encrypted, with whom, since when; and what is not, and why. `adit alive`: whether a data plane
//! answers at all.

use std::io::{self, Write};

use serde_json::json;

use super::args::{AliveArgs, InspectArgs, Output};
use crate::control::inspect::{Places, look, report::Report, table};
use crate::control::uapi_client::Client;
use crate::sys::process;

/// Prints what each data plane does, and tells whether all is well.
///
/// # Errors
/// If there is nothing to look at.
pub(super) fn status(args: &InspectArgs) -> Result<bool, String> {
    let report = found(args)?;
    print(&match args.output {
        Output::Table => table::status(&report),
        Output::Json => format!("{:#}\n", json!(report)),
    })?;
    Ok(report.is_well())
}

/// Prints the peers of each data plane.
///
/// # Errors
/// If there is nothing to look at, or a data plane does not answer.
pub(super) fn peers(args: &InspectArgs) -> Result<(), String> {
    let report = found(args)?;
    print(&match args.output {
        Output::Table => table::peers(&report.peers),
        Output::Json => format!("{:#}\n", json!({ "peers": report.peers })),
    })?;
    let silent = report.interfaces.iter().find_map(|it| Some((&it.interface, it.error.as_ref()?)));
    silent.map_or(Ok(()), |(interface, error)| Err(format!("{interface}: {error}")))
}

/// Asks a data plane to change nothing.
///
/// # Errors
/// If it is there and does not answer.
pub(super) fn alive(args: &AliveArgs) -> Result<(), String> {
    match Client::new(&args.sockets, &args.interface).apply(&[]) {
        Err(failed) if failed.is_silence() => Err(format!("{} hangs: {failed}", args.interface)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn found(args: &InspectArgs) -> Result<Report, String> {
    // The private key comes with the peers.
    process::forbid_dumps();
    let (sockets, state) = (args.sockets.clone(), args.state.clone());
    look(&Places { sockets, state, interface: args.interface.clone() })
}

fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads no further, as `head` does, has seen what they wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}
