//! A network namespace without a name, and a thread that lives in it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use adit::sys::netns;

use super::process::{self, Process};
use super::{SOON, wait_until};

/// A network namespace. Its loopback is up.
pub(crate) struct Namespace {
    fd: OwnedFd,
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes a namespace.
    pub(crate) fn new() -> Self {
        let fd = netns::create().expect("a network namespace");
        let inside = fd.try_clone().unwrap();
        let (jobs, queue) = mpsc::channel::<Job>();
        // One thread for as long as the namespace: the kernel sends the parent-death signal when the thread that forked ends.
        thread::spawn(move || {
            netns::enter(&inside).expect("entering a namespace");
            drop(inside);
            for job in queue {
                job();
            }
        });
        let this = Self { fd, jobs };
        this.ip("link set lo up");
        // A link-local address that is being looked for elsewhere keeps neighbours from being found for a second or two.
        if has_v6() {
            this.sysctl("net/ipv6/conf/all/accept_dad", "0");
            this.sysctl("net/ipv6/conf/default/accept_dad", "0");
        }
        this
    }

    /// Returns a path that leads to the namespace: what `ip link set … netns` takes.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `act` on a thread in the namespace: sockets that it opens are of this namespace.
    pub(crate) fn enter<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::sync_channel(1);
        self.jobs.send(Box::new(move || drop(reply.send(act())))).expect("the namespace's thread");
        answer.recv().expect("an answer from the namespace's thread")
    }

    /// Starts a command in the namespace; it ends with the test at the latest.
    pub(crate) fn spawn_command(
        &self,
        program: &str,
        args: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> io::Result<Child> {
        let mut command = process::command(program, args);
        change(&mut command);
        self.enter(move || command.spawn())
    }

    /// Starts a program in the namespace that goes on beside the test; its output is kept.
    #[track_caller]
    pub(crate) fn spawn(&self, program: &str, args: &[&str]) -> Process {
        self.spawn_with(program, args, &[])
    }

    /// Like [`Self::spawn`], with environment variables.
    #[track_caller]
    pub(crate) fn spawn_with(&self, program: &str, args: &[&str], env: &[(&str, &str)]) -> Process {
        let child = self.spawn_command(program, args, |command| {
            command.envs(env.iter().copied());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        Process::new(program, child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }

    /// Runs a command to its end and returns what it printed and whether it succeeded.
    pub(crate) fn try_run(&self, program: &str, args: &[&str]) -> (bool, String) {
        let child = self.spawn_command(program, args, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let output =
            child.and_then(Child::wait_with_output).unwrap_or_else(|error| panic!("{program}: {error}"));
        (output.status.success(), process::text(&output))
    }

    /// Runs a command to its end and returns what it printed; it must succeed.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let (success, text) = self.try_run(program, args);
        assert!(success, "{program} {}: {text}", args.join(" "));
        text
    }

    /// Runs a command line without quotes to its end; it must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command");
        self.run(program, &words.collect::<Vec<_>>())
    }

    /// Tells whether a command line without quotes succeeds.
    pub(crate) fn succeeds(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command");
        self.try_run(program, &words.collect::<Vec<_>>()).0
    }

    /// Runs `ip` with the words of `line`.
    #[track_caller]
    pub(crate) fn ip(&self, line: &str) -> String {
        self.sh(&format!("ip {line}"))
    }

    /// Sets a variable of the kernel, named with slashes below `/proc/sys`; those of `net` belong to the namespace.
    #[track_caller]
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/{name}"), value.to_owned());
        self.enter(move || std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    /// Joins two namespaces by a veth pair, up at both ends, with the addresses given (`192.168.1.1/24`).
    pub(crate) fn join(
        &self,
        name: &str,
        addrs: &[&str],
        other: &Self,
        other_name: &str,
        other_addrs: &[&str],
    ) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.path()));
        for (namespace, name, addrs) in [(self, name, addrs), (other, other_name, other_addrs)] {
            for addr in addrs {
                let nodad = if addr.contains(':') { " nodad" } else { "" };
                namespace.ip(&format!("addr add {addr} dev {name}{nodad}"));
            }
            if has_v6() {
                // The kernel takes in multicast to an address a little later than the address, and the first question gets lost.
                namespace.sysctl(&format!("net/ipv6/neigh/{name}/retrans_time_ms"), "50");
            }
            namespace.ip(&format!("link set {name} up"));
        }
        self.wait_for_link(name);
        other.wait_for_link(other_name);
    }

    /// Waits until a link that is switched on carries packets, which takes the kernel up to a second.
    #[track_caller]
    pub(crate) fn wait_for_link(&self, name: &str) {
        wait_until("the link", SOON, || self.ip(&format!("link show dev {name}")).contains("state UP"));
    }

    /// Waits until the kernel takes packets to every IPv6 address of a device: it does a little after the link is up and the address is there,
    /// `nodad` or not.
    #[track_caller]
    pub(crate) fn wait_for_addresses(&self, name: &str) {
        let tentative = format!("-6 addr show dev {name} tentative");
        wait_until("addresses in use", SOON, || self.ip(&tentative).is_empty());
    }

    /// Sends one echo request and tells whether it was answered.
    ///
    /// A busy machine may take its time, but not REKEY-TIMEOUT: that a message was lost and sent again shows.
    pub(crate) fn pings(&self, addr: &str) -> bool {
        self.succeeds(&format!("ping -n -c 1 -W 4 {addr}"))
    }

    /// Sends one echo request and tells whether no answer came within a second.
    pub(crate) fn pings_in_vain(&self, addr: &str) -> bool {
        !self.succeeds(&format!("ping -n -c 1 -W 1 {addr}"))
    }
}

fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
