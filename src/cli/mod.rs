//! The command line: wires the rooms together.

#[cfg(feature = "control")]
mod agent;
mod args;
#[cfg(feature = "control")]
mod cleanup;
mod daemon;
#[cfg(feature = "control")]
mod demo;
#[cfg(feature = "control")]
mod inspect;
mod log;
#[cfg(feature = "control")]
mod preflight;
#[cfg(feature = "reference")]
mod reference;
mod run;
mod turn;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
#[cfg(any(feature = "control", feature = "reference"))]
use args::Command;

/// Runs the program and returns its exit status.
#[expect(clippy::print_stderr, reason = "an error of the command line belongs there")]
pub fn main() -> ExitCode {
    let mut args = Args::parse();
    daemon::obey_parent(&mut args.interface);
    let result = match &args.command {
        None => run::choose_crypto(&args.interface).and_then(|()| match args.interface.foreground {
            true => run::run(&args.interface),
            false => daemon::start(&args.interface),
        }),
        #[cfg(feature = "control")]
        Some(Command::Demo(args)) => demo::run(args),
        #[cfg(feature = "control")]
        Some(Command::Agent(args)) => agent::run(args),
        #[cfg(feature = "control")]
        Some(Command::Preflight(args)) => preflight::run(args),
        #[cfg(feature = "control")]
        Some(Command::Alive(args)) => inspect::alive(args),
        #[cfg(feature = "control")]
        Some(Command::Definitions) => agent::print_definitions(),
        #[cfg(feature = "control")]
        Some(Command::Status(args)) => match inspect::status(args) {
            Ok(is_well) => return if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE },
            Err(error) => Err(error),
        },
        #[cfg(feature = "control")]
        Some(Command::Peers(args)) => inspect::peers(args),
        #[cfg(feature = "reference")]
        Some(Command::Completions(args)) => reference::completions(args),
        #[cfg(feature = "reference")]
        Some(Command::Man(args)) => reference::man(args),
        #[cfg(not(any(feature = "control", feature = "reference")))]
        Some(command) => match *command {},
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adit: {error}");
            ExitCode::FAILURE
        }
    }
}
