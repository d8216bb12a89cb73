//! Intel's ipsec-mb, where it is installed with its header: a program of its own, in C, that takes a turn when it is told to.
//!
//! So it needs no unsafe code and is built only here. It has the same messages in a memory of its own, and passes over them before they
//! are timed if the turn is one of opening.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::{env, fs};

use adit::crypto::aead::{Key, TAG_LEN};
use adit::crypto::secret::Secret;

use crate::Worker;

/// Names the program that a process of a tier is to set its own beside; empty if there is none.
const PROGRAM: &str = "ADIT_BENCH_IPSEC_MB";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/aead/ipsec_mb.c");

/// Builds the program in `folder` and returns its path.
///
/// # Errors
/// Says why it cannot be built: it is not installed, most likely.
pub(crate) fn build(folder: &Path) -> Result<String, String> {
    let program = folder.join("ipsec-mb");
    // A compiler that fails leaves an old one where it is.
    let _ = fs::remove_file(&program);
    let output = Command::new("cc").args(["-O2", "-o"]).arg(&program).args([SOURCE, "-lIPSec_MB"]).output();
    let output = output.map_err(|error| format!("cc: {error}"))?;
    if output.status.success() {
        return Ok(program.display().to_string());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().find(|line| line.contains("error")).unwrap_or("cc failed").to_owned())
}

/// Has the processes of tiers use `program`.
pub(crate) fn offer(command: &mut Command, program: Option<&str>) {
    command.env(PROGRAM, program.unwrap_or_default());
}

/// A running program.
pub(crate) struct IpsecMb {
    child: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl IpsecMb {
    /// Starts the program that this process was offered.
    pub(crate) fn start() -> Option<Self> {
        let program = env::var(PROGRAM).ok().filter(|program| !program.is_empty())?;
        let mut command = Command::new(program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let pipes = RefCell::new((child.stdin.take()?, BufReader::new(child.stdout.take()?)));
        Some(Self { child, pipes })
    }

    /// Returns the ns of a turn, whose last tag must be ours.
    fn turn(&self, op: &str, batch: usize, messages: &[&mut [u8]]) -> f64 {
        let (count, bytes) = (messages.len(), messages[0].len() - TAG_LEN);
        let mut pipes = self.pipes.borrow_mut();
        let (stdin, stdout) = &mut *pipes;
        writeln!(stdin, "{op} {batch} {count} {bytes}").expect("it listens");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it answers");
        let (ns, tag) = line.trim().split_once(' ').expect("ns and tag");
        let mut last = vec![3; bytes + TAG_LEN];
        Key::new(&Secret::new(crate::KEY)).seal_in_place(count as u64 - 1, &[], &mut last);
        assert_eq!(tag, hex::encode(&last[bytes..]), "it seals as we do");
        ns.parse().expect("a number")
    }
}

impl Worker for IpsecMb {
    fn seal(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64 {
        self.turn("seal", batch, messages)
    }

    fn open(&self, batch: usize, messages: &mut [&mut [u8]]) -> f64 {
        self.turn("open", batch, messages)
    }

    fn gather(&self, batch: usize, _: &[u8], messages: &mut [&mut [u8]]) -> f64 {
        self.turn("gather", batch, messages)
    }
}

impl Drop for IpsecMb {
    fn drop(&mut self) {
        // It reads from us, and would wait for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
