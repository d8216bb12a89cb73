//! Processes that end with the test.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{SOON, find, wait_for, wait_until};

/// Returns a command that the kernel kills when the thread that starts it ends.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let path = find(program).unwrap_or_else(|| program.into());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(path).args(args);
    command
}

/// Returns both streams of an ended command as text.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns what a command printed; it must have succeeded.
#[track_caller]
pub(crate) fn expect_success(program: &str, args: &[&str], output: io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {}: {}", args.join(" "), text(&output));
    text(&output)
}

/// Makes an executable file.
///
/// Another process writes it. If this one did, a child that some other test starts at the same moment would hold the file open for
/// writing until it becomes its own program, and until then nobody can run the file ("Text file busy").
#[track_caller]
pub(crate) fn make_executable(path: &str, content: &[u8]) {
    let args = ["--mode=755", "--", "/dev/stdin", path];
    let mut child = Command::new("install").args(args).stdin(Stdio::piped()).spawn().expect("install");
    child.stdin.take().expect("a pipe").write_all(content).expect("install reads");
    expect_success("install", &args, child.wait_with_output());
}

/// A program that runs beside the test. It is killed, by its id, when this is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
    /// Files that it leaves behind when it is killed.
    leavings: Vec<PathBuf>,
}

impl Process {
    /// Looks after a child; what its pipes carry is kept.
    pub(crate) fn new(name: &str, mut child: Child) -> Self {
        let output = Arc::new(Mutex::new(String::new()));
        if let Some(stream) = child.stdout.take() {
            collect(stream, &output);
        }
        if let Some(stream) = child.stderr.take() {
            collect(stream, &output);
        }
        Self { name: name.to_owned(), child, output, leavings: Vec::new() }
    }

    /// Removes `file` when the process has been killed.
    pub(crate) fn leaves(mut self, file: impl Into<PathBuf>) -> Self {
        self.leavings.push(file.into());
        self
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the process has printed so far, on both streams.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Writes to the process's standard input.
    pub(crate) fn write(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the process reads");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Stops the process, all of it: a thread may go on for a moment after the signal was sent.
    #[track_caller]
    pub(crate) fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        wait_until("that all threads stand still", SOON, || self.is_stopped());
    }

    /// Tells how the process ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waiting for a child")
    }

    /// Waits for the process's end.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = format!("the end of {}", self.name);
        wait_for(&name, limit, || self.child.try_wait().expect("waiting for a child"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.leavings.iter().for_each(|file| drop(fs::remove_file(file)));
        if thread::panicking() {
            eprintln!("--- {} (process {}) printed:\n{}---", self.name, self.id(), self.output());
        }
    }
}

fn collect(stream: impl io::Read + Send + 'static, into: &Arc<Mutex<String>>) {
    let into = Arc::clone(into);
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let mut text = into.lock().unwrap();
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
        }
    });
}
