//! A process of its own for every tier of the crypto core, as a process has one.

use std::env;
use std::process::Command;

use adit::crypto::aead::{Tier, force};

/// Names the tier that a process of ours is to have.
const TIER: &str = "ADIT_BENCH_TIER";

/// Returns whether this process is one of a tier, which it has then.
///
/// A CPU that lacks the tier ends the process with the reason.
pub(crate) fn is_of_one() -> bool {
    let Ok(name) = env::var(TIER) else { return false };
    let tier = match name.as_str() {
        "avx512" => Tier::Avx512,
        "avx2" => Tier::Avx2,
        "ring" => Tier::Ring,
        "portable" => Tier::Portable,
        _ => Tier::Auto,
    };
    if let Err(refused) = force(tier) {
        eprintln!("{refused}");
        std::process::exit(1);
    }
    true
}

/// Runs this program once more with `tier`, and what `adjust` adds, and returns what it prints.
///
/// # Errors
/// Says why it failed.
pub(crate) fn run(tier: &str, adjust: impl FnOnce(&mut Command)) -> Result<String, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(env::args().skip(1)).env(TIER, tier);
    adjust(&mut command);
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
