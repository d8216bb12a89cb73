//! `adit completions` and `adit man`: what the definition of the command line says, for shells and for `man`.
//!
//! `docs/reference` is made of the same definition, and of those of objects, metrics and drop reasons, by a test.

#[cfg(all(test, feature = "control"))]
mod docs;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::{Args, CompletionsArgs, ManArgs, ShellName};

/// Prints the completions for a shell.
///
/// # Errors
/// If nobody reads them to their end.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), String> {
    let shell = match args.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "adit", &mut text);
    print(&text)
}

/// Prints the page of the program, or writes every page to a directory, which is made if there is none.
///
/// # Errors
/// Names the file that cannot be written.
pub(super) fn man(args: &ManArgs) -> Result<(), String> {
    let pages = pages().map_err(|error| format!("man: {error}"))?;
    let Some(directory) = &args.directory else {
        return pages.first().map_or(Ok(()), |(_, page)| print(page));
    };
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    pages.iter().try_for_each(|(name, page)| write(&directory.join(name), page))
}

/// Returns the page of the program, then those of its commands, by the name of their file.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = Args::command().disable_help_subcommand(true);
    program.build();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    [&program].into_iter().chain(commands).map(page).collect()
}

fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let page = Man::new(command.clone()).manual("adit").source(concat!("adit ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok((page.get_filename(), text))
}

fn write(file: &Path, text: &[u8]) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

fn print(text: &[u8]) -> Result<(), String> {
    match io::stdout().write_all(text) {
        // Who reads no further, as `head` does, has seen what they wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "adit.1");
        let mut program = Args::command();
        program.build();
        for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = format!("adit-{}.1", command.get_name());
            let (_, page) = pages.iter().find(|page| page.0 == name).unwrap_or_else(|| panic!("{names:?}"));
            let page = String::from_utf8(page.clone()).unwrap();
            for flag in command.get_arguments().filter_map(|flag| flag.get_long()) {
                // roff writes a minus sign so.
                assert!(page.contains(&flag.replace('-', "\\-")), "{name} lacks {flag}");
            }
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        let mut program = Args::command();
        program.build();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "adit", &mut text);
            let text = String::from_utf8(text).unwrap();
            for command in program.get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
