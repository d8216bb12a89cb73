//! Intel's ipsec-mb, where it is installed with its header: a program of its own, in C, that takes turns when it is told to.
//!
//! So it needs no unsafe code and is built only here. It takes the turns of one row at a stretch, as whoever waits for the other process
//! begins with cold caches; it is less steady beside the others than they are beside each other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::{env, fs};

use adit::crypto::aead::{Key, TAG_LEN};
use adit::crypto::secret::Secret;

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
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl IpsecMb {
    /// Starts the program that this process was offered.
    pub(crate) fn start() -> Option<Self> {
        let program = env::var(PROGRAM).ok().filter(|program| !program.is_empty())?;
        let mut command = Command::new(program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let (stdin, stdout) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        Some(Self { child, stdin, stdout })
    }

    /// Returns the ns a packet of the median of many turns; the last tag must be ours.
    pub(crate) fn median(&mut self, op: &str, batch: usize, count: usize, bytes: usize, turns: usize) -> f64 {
        writeln!(self.stdin, "{op} {batch} {count} {bytes} {turns}").expect("it listens");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it answers");
        let (ns, tag) = line.trim().split_once(' ').expect("ns and tag");
        let mut last = vec![3; bytes + TAG_LEN];
        Key::new(&Secret::new(crate::KEY)).seal_in_place(count as u64 - 1, &[], &mut last);
        assert_eq!(tag, hex::encode(&last[bytes..]), "it seals as we do");
        ns.parse::<f64>().expect("a number") / count as f64
    }
}

impl Drop for IpsecMb {
    fn drop(&mut self) {
        // It reads from us, and would wait for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
