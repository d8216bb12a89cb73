//! What `/proc` tells of a process: memory, time, wake-ups, descriptors; and of a socket: what waits in it and what was lost.

use std::collections::BTreeMap;
use std::fs;

use super::{Namespace, Process};

impl Process {
    /// Returns the memory in KiB that the process has for itself: without pages of its program, of which the kernel reads as many as it
    /// likes and takes them back when it likes.
    pub(crate) fn memory_kib(&self) -> u64 {
        field(&self.read("status"), "RssAnon:")
    }

    /// Returns the most memory in KiB that the process has ever had, pages of its program among it.
    pub(crate) fn memory_peak_kib(&self) -> u64 {
        field(&self.read("status"), "VmHWM:")
    }

    /// Returns the processor time that all threads have used so far, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> u64 {
        let stat = self.read("stat");
        // The name, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let mut words = rest.split_whitespace().skip(11).map(|word| word.parse::<u64>().unwrap());
        // Both in hundredths of a second (USER_HZ).
        (words.next().unwrap() + words.next().unwrap()) * 10
    }

    /// Returns how often all threads have gone to sleep of their own accord: how often they were woken. The main thread does not count:
    /// it looks at every change in the directory of the sockets, where other tests have theirs as well.
    pub(crate) fn wake_ups(&self) -> u64 {
        let by_thread = self.wake_ups_by_thread();
        by_thread.iter().filter(|((id, _), _)| *id != self.id()).map(|(_, count)| count).sum()
    }

    /// Returns the same of each thread, by its id and its name.
    pub(crate) fn wake_ups_by_thread(&self) -> BTreeMap<(u32, String), u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        // One may end meanwhile.
        let of_task = |task: fs::DirEntry| {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((
                (id, read("comm")?.trim_end().to_owned()),
                field(&read("status")?, "voluntary_ctxt_switches:"),
            ))
        };
        tasks.filter_map(of_task).collect()
    }

    /// Tells whether every thread was stopped by a signal.
    pub(crate) fn is_stopped(&self) -> bool {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        tasks.all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The name, in parentheses, may hold anything.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Has all threads run before those of other tests: what is lost for want of a processor is not what a test is about.
    #[track_caller]
    pub(crate) fn prefer(&self) {
        for task in fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten() {
            let id = task.file_name().to_str().and_then(|id| id.parse().ok());
            let id = id.and_then(rustix::process::Pid::from_raw).expect("a thread's id");
            rustix::process::setpriority_process(Some(id), -15).unwrap();
        }
    }

    /// Returns how many descriptors are open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.id())).unwrap()
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

impl Namespace {
    /// Returns [`udp_backlog`] of this namespace.
    pub(crate) fn udp_backlog(&self, port: u16) -> (u64, u64) {
        self.enter(move || udp_backlog(port))
    }

    /// Returns the datagrams that were lost at each socket on UDP port `port` of this namespace.
    pub(crate) fn udp_drops(&self, port: u16) -> Vec<u64> {
        self.enter(move || udp_sockets(port).into_iter().map(|(_, lost)| lost).collect())
    }
}

/// Returns, over all sockets on UDP port `port` in the calling thread's namespace, the bytes that wait to be read and the datagrams
/// that were lost.
pub(crate) fn udp_backlog(port: u16) -> (u64, u64) {
    let sockets = udp_sockets(port).into_iter();
    sockets.fold((0, 0), |(waiting, lost), socket| (waiting + socket.0, lost + socket.1))
}

/// Returns the same for each of them.
fn udp_sockets(port: u16) -> Vec<(u64, u64)> {
    let mut sockets = Vec::new();
    for table in ["udp", "udp6"] {
        // Without IPv6 there is no second file.
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            if words[1].ends_with(&format!(":{port:04X}")) {
                let (_, queue) = words[4].split_once(':').unwrap();
                let lost = words.last().unwrap().parse().unwrap();
                sockets.push((u64::from_str_radix(queue, 16).unwrap(), lost));
            }
        }
    }
    sockets
}
