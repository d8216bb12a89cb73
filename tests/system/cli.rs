//! The command line: going to the background, its flags and variables, and every way to end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use adit::sys::clock::boottime;
use adit::sys::offload::Wanted;
use adit::sys::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::process::make_executable;
use crate::support::tunnel::{Key, Program, Tunnel, socket_path};
use crate::support::{Directory, Namespace, Process, SOON, ifname, need, not_hosted, wait_for, wait_until};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");

/// How long leaving may take.
const PROMPTLY: Duration = Duration::from_secs(1);

/// A process in the background, found by the socket that it serves. It ends with this.
struct Daemon {
    pid: Pid,
    fd: OwnedFd,
    socket: PathBuf,
}

impl Daemon {
    /// Finds the process that serves the interface `name`.
    #[track_caller]
    fn of(name: &str) -> Self {
        let socket = socket_path(name);
        let stream = UnixStream::connect(&socket).expect("the socket answers");
        let pid = socket_peercred(&stream).unwrap().pid;
        let fd = pidfd_open(pid, PidfdFlags::empty()).expect("the process that serves the socket");
        Self { pid, fd, socket }
    }

    /// Starts `adit` as `wg-quick` does, and finds the process in the background.
    #[track_caller]
    fn start(namespace: &Namespace, args: &[&str]) -> Self {
        let name = args.last().unwrap();
        let printed = namespace.run(ADIT, args);
        // No waiting: it must work at once.
        namespace.run("wg", &["show", name]);
        assert_eq!(printed, "");
        Self::of(name)
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Returns the number of its threads whose names begin with `name`.
    fn threads(&self, name: &str) -> usize {
        threads(self.pid.as_raw_nonzero().get().unsigned_abs(), name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.signal(Signal::KILL);
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// Counts the threads by the name that each gives itself once it runs.
fn threads(pid: u32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

fn has_link(namespace: &Namespace, name: &str) -> bool {
    namespace.succeeds(&format!("ip link show {name}"))
}

/// Starts `adit` in the foreground and waits until `wg` can talk to it.
#[track_caller]
fn foreground(namespace: &Namespace, name: &str, env: &[(&str, &str)], args: &[&str]) -> Process {
    let process = namespace.spawn_with(ADIT, &[args, &[name]].concat(), env);
    let mut process = process.leaves(socket_path(name));
    wait_until("an interface that wg can talk to", SOON, || {
        assert!(process.ended().is_none(), "it ended: {}", process.output());
        namespace.succeeds(&format!("wg show {name}"))
    });
    process
}

/// Runs `adit`, which must fail before it goes to the background, and returns what it printed.
#[track_caller]
fn refused(namespace: &Namespace, args: &[&str]) -> String {
    let (success, text) = namespace.try_run(ADIT, args);
    assert!(!success, "{args:?} succeeded");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("adit: "), "{text}");
    text
}

#[test]
fn a_feature_that_is_insisted_on_and_missing_ends_the_start() {
    need!("ip");
    let namespace = Namespace::new();
    for (feature, fault) in [
        ("vnet", "VnetHeader=22"),
        ("tso", "Tso=22"),
        ("gso", "UdpSegment=92"),
        ("gro", "UdpGro=92"),
        ("steering", "Steering=92"),
    ] {
        let line = format!("ADIT_FAULT={fault} exec {ADIT} --offload {feature}=on {}", ifname());
        let (success, text) = namespace.try_run("sh", &["-c", &line]);
        assert!(
            !success && text.contains(&format!("{feature}=on, but the kernel refuses it")),
            "{line}: {text}"
        );
    }
}

#[test]
fn the_parent_leaves_as_soon_as_wg_can_talk_to_the_child() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    for _ in 0..10 {
        let name = ifname();
        let daemon = Daemon::start(&namespace, &[&name]);
        assert!(has_link(&namespace, &name));
        // Nobody else may talk to it.
        let meta = fs::metadata(socket_path(&name)).unwrap();
        assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o077 == 0, "{meta:?}");
        // It leads a session of its own, holds no directory, and reads and writes nothing of the terminal's.
        let proc = |what: &str| PathBuf::from(format!("/proc/{}/{what}", daemon.pid.as_raw_nonzero()));
        let stat = fs::read_to_string(proc("stat")).unwrap();
        let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
        assert_eq!(session, daemon.pid.as_raw_nonzero().to_string());
        assert_eq!(fs::read_link(proc("cwd")).unwrap(), Path::new("/"));
        for fd in 0..3 {
            assert_eq!(fs::read_link(proc(&format!("fd/{fd}"))).unwrap(), Path::new("/dev/null"));
        }
    }
}

#[test]
fn wg_may_look_for_the_interface_while_it_starts() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let looking = AtomicBool::new(true);
    let name = ifname();
    thread::scope(|scope| {
        // What `wg` does: it removes a socket that refuses it.
        scope.spawn(|| {
            while looking.load(SeqCst) {
                let refused = UnixStream::connect(socket_path(&name))
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if refused {
                    let _ = fs::remove_file(socket_path(&name));
                }
            }
        });
        for _ in 0..30 {
            let (success, text) = namespace.try_run(ADIT, &[&name]);
            let served = UnixStream::connect(socket_path(&name)).is_ok();
            if success && served {
                let daemon = Daemon::of(&name);
                daemon.signal(Signal::TERM);
                wait_until("the end", SOON, || daemon.has_ended());
            }
            looking.store(success && served, SeqCst);
            assert!(success && served, "{text}");
        }
        looking.store(false, SeqCst);
    });
}

#[test]
fn the_kernel_chooses_a_number_for_a_name_with_a_percent_sign() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let stem = ifname();
    namespace.run(ADIT, &[&format!("{stem}_%d")]);
    let daemon = Daemon::of(&format!("{stem}_0"));
    assert!(has_link(&namespace, &format!("{stem}_0")));
    drop(daemon);
}

#[test]
fn a_name_that_cannot_be_had_is_refused_with_the_reason() {
    need!("ip", "wg", "unshare");
    let namespace = Namespace::new();
    for name in ["", "a/b", "sixteen-bytes-xx", ".", "..", "a b", "a:b", "x\u{b}y"] {
        assert!(refused(&namespace, &["--", name]).contains("is no interface name"), "{name:?}");
    }
    // Without a name at all.
    let (success, text) = namespace.try_run(ADIT, &[]);
    assert!(!success && text.contains("IFNAME"), "{text}");
    // A link of another kind.
    let name = ifname();
    namespace.ip(&format!("link add {name} type veth peer name {name}p"));
    assert!(refused(&namespace, &[&name]).contains("an interface of that name exists"));
    assert!(refused(&namespace, &["lo"]).contains("an interface of that name exists"));
    // Another process's, of one queue or of many, though it cannot be seen where the sockets lie.
    for threads in ["1", "3"] {
        let name = ifname();
        let mut holder = foreground(&namespace, &name, &[], &["-f", "-t", threads]);
        for args in [&["-t", "1"][..], &["-t", "2"], &[]] {
            assert!(refused(&namespace, &[args, &[&name]].concat()).contains("is in use"));
            let line = "mount -t tmpfs none /var/run/wireguard && exec \"$0\" \"$@\"";
            let hidden = [&["-m", "sh", "-c", line, ADIT], args, &[&name]].concat();
            let (success, text) = namespace.try_run("unshare", &hidden);
            assert!(!success && text.contains("is in use"), "{text}");
        }
        assert!(holder.ended().is_none());
        namespace.run("wg", &["show", &name]);
    }
}

#[test]
fn who_waits_takes_over_when_the_other_has_left_or_was_killed_and_leaves_at_a_signal() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let name = ifname();
    let mut holder = namespace.spawn(ADIT, &["-f", &name]);
    wait_until("the first one", SOON, || namespace.succeeds(&format!("wg show {name}")));
    for signal in [Signal::TERM, Signal::KILL] {
        let args = ["-f", "--wait", "-v", "info", &name];
        let next = namespace.spawn(ADIT, &args);
        let mut other = namespace.spawn(ADIT, &args);
        for waiting in [&next, &other] {
            wait_until("word of waiting", SOON, || waiting.output().contains("waiting for another process"));
        }
        // It may wait for ever, and still be told to leave.
        other.signal(Signal::TERM);
        assert!(other.wait(SOON).success());
        assert!(holder.ended().is_none());
        holder.signal(signal);
        holder.wait(SOON);
        wait_until("the next one", SOON, || next.output().contains("ready"));
        namespace.run("wg", &["show", &name]);
        holder = next;
    }
    // It takes its socket along.
    holder.signal(Signal::TERM);
    assert!(holder.wait(SOON).success());
}

#[test]
fn a_device_whose_holder_is_just_leaving_is_in_use_or_made_anew() {
    need!("ip");
    let namespace = Namespace::new();
    let name = ifname();
    let take = move || {
        let attempts = (0..150).filter(|_| match Tun::create(&name, 1, &Wanted::default()) {
            Ok(tun) => tun.name() == name,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
                false
            }
        });
        attempts.count()
    };
    // Threads are in the namespace of the one that starts them.
    let had = namespace.enter(move || {
        thread::scope(|scope| [0, 1].map(|_| scope.spawn(&take)).map(|taker| taker.join().ok()))
    });
    assert!(had.iter().all(|had| had.is_some_and(|had| had > 0)), "{had:?}");
}

#[test]
fn a_device_that_waits_for_a_process_is_used() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    for (options, threads) in [("", "1"), ("", "2"), ("multi_queue", "2"), ("multi_queue", "1")] {
        let name = ifname();
        namespace.ip(&format!("tuntap add dev {name} mode tun {options}"));
        let daemon = Daemon::start(&namespace, &["-t", threads, &name]);
        let workers = if options.is_empty() { 1 } else { threads.parse().unwrap() };
        wait_until(&format!("workers with {options} {threads}"), SOON, || {
            daemon.threads("worker-") == workers
        });
        drop(daemon);
        wait_until("the device outlives its process", SOON, || {
            namespace.ip(&format!("link show {name}")).contains("NO-CARRIER")
                || namespace.ip(&format!("-d link show {name}")).contains("persist on")
        });
    }
}

#[test]
fn without_permission_the_parent_says_what_is_needed() {
    need!("ip", "setpriv");
    let namespace = Namespace::new();
    let (directory, name) = (Directory::new(), ifname());
    let program = directory.file("adit");
    make_executable(&program, &fs::read(ADIT).unwrap());
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", &program, &name];
    let (success, text) = namespace.try_run("setpriv", &user);
    assert!(!success && text.starts_with("adit: ") && text.contains("CAP_NET_ADMIN"), "{text}");
    assert!(!has_link(&namespace, &name));
    assert!(!socket_path(&name).exists());
}

#[test]
fn a_socket_that_is_served_is_left_alone_and_a_dead_one_is_replaced() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let name = ifname();
    fs::create_dir_all(socket_path(&name).parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket_path(&name)).unwrap();
    assert!(refused(&namespace, &[&name]).contains("already in use"));
    assert!(!has_link(&namespace, &name));
    assert!(socket_path(&name).exists());
    drop(listener);
    // Its name stays behind, as after a crash.
    let daemon = Daemon::start(&namespace, &[&name]);
    daemon.signal(Signal::KILL);
    wait_until("the end of a killed process", SOON, || daemon.has_ended());
    assert!(socket_path(&name).exists());
    let daemon = Daemon::start(&namespace, &[&name]);
    drop(daemon);
}

#[test]
fn help_and_version_are_told_and_nothing_else_is_done() {
    need!("ip");
    let namespace = Namespace::new();
    for (flag, words) in [("--help", "IFNAME"), ("-h", "IFNAME"), ("--version", "adit "), ("-V", "adit ")] {
        for args in [&[flag][..], &[flag, "wg0"], &["wg0", flag]] {
            let printed = namespace.run(ADIT, args);
            assert!(printed.contains(words), "{printed}");
        }
    }
    assert_eq!(namespace.ip("-o link").lines().filter(|line| !line.contains(": lo:")).count(), 0);
}

#[test]
fn it_stays_in_the_foreground_when_told_to() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    for (value, args) in [("", &["-f"][..]), ("0", &["--foreground"]), ("1", &[])] {
        let env = [("WG_PROCESS_FOREGROUND", value)];
        let name = ifname();
        let process = foreground(&namespace, &name, &env, args);
        let serving = Daemon::of(&name);
        assert_eq!(serving.pid.as_raw_nonzero().get().unsigned_abs(), process.id());
    }
}

/// Ends a program that serves the interface of this name, which is in this namespace.
type End = fn(&Namespace, &Daemon, &str);

#[test]
fn it_leaves_promptly_and_takes_its_socket_along() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let home = Namespace::new();
    let ends: [(&str, End); 5] = [
        ("SIGTERM", |_, daemon, _| daemon.signal(Signal::TERM)),
        ("SIGINT", |_, daemon, _| daemon.signal(Signal::INT)),
        ("ip link del", |namespace, _, name| drop(namespace.ip(&format!("link del {name}")))),
        ("rm", |_, daemon, _| fs::remove_file(&daemon.socket).unwrap()),
        ("mv", |_, daemon, _| fs::rename(&daemon.socket, daemon.socket.with_extension("gone")).unwrap()),
    ];
    for (what, end) in ends {
        for round in [Round::Background, Round::Foreground, Round::Up, Round::Moved] {
            // A machine that is busy with other things may take longer once, not always.
            let is_prompt = (0..3).any(|_| leave(&namespace, &home, round, end) < PROMPTLY);
            assert!(is_prompt, "the end by {what}: {round:?}");
        }
    }
}

/// In what state a program is told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Background,
    Foreground,
    Up,
    Moved,
}

/// Starts a program, ends it, and returns how long it took to leave. A client is connected all the while.
fn leave(namespace: &Namespace, home: &Namespace, round: Round, end: End) -> Duration {
    let name = ifname();
    let mut process = None;
    let daemon = if round == Round::Background {
        Daemon::start(namespace, &[&name])
    } else {
        process = Some(foreground(namespace, &name, &[], &["-f"]));
        Daemon::of(&name)
    };
    let _client = UnixStream::connect(&daemon.socket).unwrap();
    let place = if round == Round::Moved { home } else { namespace };
    if round == Round::Moved {
        namespace.ip(&format!("link set {name} netns {}", home.path()));
    }
    if matches!(round, Round::Up | Round::Moved) {
        place.ip(&format!("link set {name} up"));
    }
    end(place, &daemon, &name);
    let begun = boottime();
    wait_until("the end", SOON, || daemon.has_ended());
    let took = boottime() - begun;
    assert!(!socket_path(&name).exists());
    assert!(!has_link(place, &name));
    if let Some(mut process) = process {
        assert!(process.wait(SOON).success());
        assert_eq!(process.output(), "");
    }
    // What was moved away is not the program's to remove.
    let _ = fs::remove_file(daemon.socket.with_extension("gone"));
    took
}

#[test]
fn it_outlives_the_socket_of_a_neighbour_and_does_not_remove_a_successors() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let (name, neighbour) = (ifname(), ifname());
    let daemon = Daemon::start(&namespace, &[&name]);
    let other = Daemon::start(&namespace, &[&neighbour]);
    fs::remove_file(&other.socket).unwrap();
    wait_until("the neighbour's end", SOON, || other.has_ended());
    namespace.run("wg", &["show", &name]);
    // Somebody else's socket takes the name: it leaves, and the name stays.
    let listener = UnixListener::bind(socket_path(&neighbour)).unwrap();
    fs::rename(socket_path(&neighbour), socket_path(&name)).unwrap();
    // A name that is replaced is not removed; the next event of the directory tells.
    drop(Daemon::start(&namespace, &[&neighbour]));
    wait_until("the end", SOON, || daemon.has_ended());
    assert!(socket_path(&name).exists());
    drop(listener);
    fs::remove_file(socket_path(&name)).unwrap();
}

#[test]
fn the_udp_sockets_stay_where_the_program_was_started() {
    need!("ip", "wg", "ss");
    let (birth, home) = (Namespace::new(), Namespace::new());
    let name = ifname();
    let daemon = Daemon::start(&birth, &[&name]);
    birth.ip(&format!("link set {name} netns {}", home.path()));
    home.run("wg", &["set", &name, "listen-port", "4001"]);
    home.ip(&format!("link set {name} up"));
    let listens = |namespace: &Namespace| !namespace.sh("ss -Hlun sport = :4001").is_empty();
    wait_until("UDP sockets", SOON, || listens(&birth));
    assert!(!listens(&home));
    // A port set after the move as well, and up again after a down.
    for state in ["down", "up"] {
        home.ip(&format!("link set {name} {state}"));
        wait_until("the sockets follow the link", SOON, || listens(&birth) == (state == "up"));
        assert!(!listens(&home));
    }
    drop(daemon);
}

/// Starts `line` of a shell with descriptors 3 and 4 open: what a parent hands over. Other tests' programs do not inherit them.
fn hand_over(namespace: &Namespace, three: impl Into<Stdio>, four: impl Into<Stdio>, line: &str) -> Process {
    let line = format!("{line} 3<&0 4>&1 </dev/null >/dev/null");
    let child = namespace.spawn_command("sh", &["-c", &line], |command| {
        command.stdin(three).stdout(four).stderr(Stdio::piped());
    });
    Process::new("sh", child.unwrap())
}

#[test]
fn device_and_socket_are_taken_over_from_a_parent() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let elsewhere = Namespace::new();
    let variables = format!("WG_TUN_FD=3 WG_UAPI_FD=4 exec {ADIT}");
    for (queues, line, is_background) in [
        (1, format!("{variables} -f given"), false),
        (2, format!("WG_PROCESS_FOREGROUND=1 {variables} -t 2 given"), false),
        (2, format!("exec {ADIT} -f --tun-fd 3 --uapi-fd 4 given"), false),
        // wireguard-go goes to the background with them.
        (2, format!("{variables} given"), true),
        (1, format!("exec {ADIT} --uapi-fd=4 --tun-fd=3 given"), true),
    ] {
        for from in [&namespace, &elsewhere] {
            let name = ifname();
            let device = name.clone();
            let tun = from.enter(move || {
                Tun::create(&device, queues, &Wanted::default()).unwrap().into_queues().remove(0)
            });
            let tun = rustix::io::fcntl_dupfd_cloexec(tun, 0).unwrap();
            let socket = UnixListener::bind(socket_path(&name)).unwrap();
            let mut process = hand_over(&namespace, tun, OwnedFd::from(socket), &line);
            let daemon = wait_for("an interface", SOON, || {
                let ended = process.ended();
                assert!(ended.is_none_or(|status| is_background && status.success()), "{}", process.output());
                if ended.is_none() && is_background {
                    return None;
                }
                namespace.succeeds(&format!("wg show {name}")).then(|| Daemon::of(&name))
            });
            assert_eq!(daemon.pid.as_raw_nonzero().get().unsigned_abs() == process.id(), !is_background);
            // The further queues are the same device's.
            assert!(!has_link(if std::ptr::eq(from, &namespace) { &elsewhere } else { &namespace }, &name));
            let workers = if line.contains("-t 2") { 2 } else { queues.min(2) };
            wait_until("as many workers as queues", SOON, || daemon.threads("worker-") == workers);
            // It follows the link, and has the UDP sockets where it was started itself.
            namespace.run("wg", &["set", &name, "listen-port", "4001"]);
            from.ip(&format!("link set {name} up"));
            wait_until("UDP sockets", SOON, || !namespace.sh("ss -Hlun sport = :4001").is_empty());
            daemon.signal(Signal::TERM);
            wait_until("the end", SOON, || daemon.has_ended());
            assert!(!socket_path(&name).exists());
            assert!(!has_link(from, &name));
        }
    }
}

#[test]
fn a_device_from_another_namespace_is_followed_there_though_its_name_is_another_links_here() {
    need!("ip", "wg", "ss");
    let (here, there) = (Namespace::new(), Namespace::new());
    let name = ifname();
    let [other, tun] = [&here, &there].map(|namespace| {
        let name = name.clone();
        namespace.enter(move || Tun::create(&name, 1, &Wanted::default()).unwrap().into_queues().remove(0))
    });
    let tun = rustix::io::fcntl_dupfd_cloexec(tun, 0).unwrap();
    let socket = UnixListener::bind(socket_path(&name)).unwrap();
    let line = format!("exec {ADIT} -f --tun-fd 3 --uapi-fd 4 {name}");
    let mut process = hand_over(&here, tun, OwnedFd::from(socket), &line);
    wait_until("an interface", SOON, || {
        assert!(process.ended().is_none(), "{}", process.output());
        here.succeeds(&format!("wg set {name} listen-port 4001"))
    });
    let is_open = || !here.sh("ss -Hlun sport = :4001").is_empty();
    here.ip(&format!("link set {name} up"));
    // Whoever configures is answered only after the link was looked at.
    here.run("wg", &["set", &name, "fwmark", "0"]);
    assert!(!is_open());
    there.ip(&format!("link set {name} up"));
    wait_until("UDP sockets", SOON, is_open);
    process.signal(Signal::TERM);
    assert!(process.wait(SOON).success());
    drop(other);
}

#[test]
fn one_of_device_and_socket_can_be_taken_over_or_none() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    // The socket alone; it has a name elsewhere.
    let (directory, name) = (Directory::new(), ifname());
    let path = directory.file("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let line = format!("exec {ADIT} --uapi-fd 4 --tun-fd=-1 {name}");
    let mut parent = hand_over(&namespace, Stdio::null(), OwnedFd::from(socket), &line);
    assert!(parent.wait(SOON).success(), "{}", parent.output());
    std::os::unix::fs::symlink(&path, socket_path(&name)).unwrap();
    let daemon = Daemon::of(&name);
    fs::remove_file(socket_path(&name)).unwrap();
    assert!(has_link(&namespace, &name));
    fs::remove_file(&path).unwrap();
    wait_until("the end", SOON, || daemon.has_ended());
    // A socket without any name: a neighbour's end is not its own.
    let listener = {
        use std::os::linux::net::SocketAddrExt;
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        UnixListener::bind_addr(&addr).unwrap()
    };
    let line = format!("WG_UAPI_FD=4 WG_TUN_FD=-1 exec {ADIT} -f {name}");
    let mut process = hand_over(&namespace, Stdio::null(), OwnedFd::from(listener), &line);
    wait_until("an interface", SOON, || has_link(&namespace, &name));
    drop(Daemon::start(&namespace, &[&ifname()]));
    let neighbour = Daemon::start(&namespace, &[&ifname()]);
    neighbour.signal(Signal::TERM);
    wait_until("the neighbour's end", SOON, || neighbour.has_ended());
    assert!(process.ended().is_none(), "{}", process.output());
    process.signal(Signal::TERM);
    assert!(process.wait(SOON).success());
    // Variables that are set to nothing or to -1.
    for value in ["", "-1"] {
        let name = ifname();
        let env = [("WG_TUN_FD", value), ("WG_UAPI_FD", value)];
        drop(foreground(&namespace, &name, &env, &["-f"]));
    }
    // What is no device or no socket, or no descriptor at all.
    for (variables, words) in [
        ("WG_TUN_FD=3", "cannot open the TUN device"),
        ("WG_UAPI_FD=3", "the configuration socket"),
        ("WG_TUN_FD=77", "descriptor 77"),
        ("WG_UAPI_FD=77", "descriptor 77"),
        ("WG_TUN_FD=1", "a descriptor is a number from 3 on"),
    ] {
        for flag in ["", "-f"] {
            let name = ifname();
            let line = format!("{variables} exec {ADIT} {flag} {name}");
            let mut process = hand_over(&namespace, Stdio::null(), Stdio::null(), &line);
            assert!(!process.wait(SOON).success(), "{line}");
            wait_until(words, SOON, || process.output().contains(words));
            assert!(!has_link(&namespace, &name));
            assert!(!socket_path(&name).exists());
        }
    }
}

#[test]
fn the_code_that_encrypts_can_be_chosen_and_is_named_at_the_start() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let directory = Directory::new();
    for (number, (env, flags, is_portable)) in [
        (&[][..], &["--crypto", "portable"][..], true),
        (&[("ADIT_CRYPTO", "Portable")], &[], true),
        (&[("ADIT_CRYPTO", "portable")], &["--crypto", "auto"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let log = directory.file(&number.to_string());
        let name = ifname();
        let flags = [&["-f", "--verbosity", "info", "--log", &log][..], flags].concat();
        let process = foreground(&namespace, &name, env, &flags);
        wait_until("it is ready", SOON, || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")));
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("crypto=\""), "{text}");
        assert_eq!(text.contains("crypto=\"portable\""), is_portable, "{text}");
        drop(process);
    }
}

#[test]
fn flags_and_variables_of_boringtun_are_understood() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let directory = Directory::new();
    let log = directory.file("log");
    let all = [
        ["--threads", "3"],
        ["--verbosity", "info"],
        ["--log", &log],
        ["--err", &log],
        ["--uapi-fd", "-1"],
        ["--tun-fd", "-1"],
        ["--disable-drop-privileges", "--disable-connected-udp"],
    ];
    let name = ifname();
    let daemon = Daemon::start(&namespace, &[&all.concat()[..], &[&name]].concat());
    wait_until("three workers", SOON, || daemon.threads("worker-") == 3);
    // The parent leaves before that is said.
    wait_until("word of it", SOON, || fs::read_to_string(&log).unwrap().contains("ready"));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    drop(daemon);

    let name = ifname();
    let daemon = Daemon::start(&namespace, &["--disable-multi-queue", "-t", "3", &name]);
    wait_until("one worker", SOON, || daemon.threads("worker-") == 1);
    drop(daemon);

    let log = directory.file("other");
    let env = [
        ("WG_THREADS", "2"),
        ("WG_LOG_LEVEL", "debug"),
        ("WG_LOG_FILE", &*log),
        ("WG_ERR_LOG_FILE", &*log),
        ("WG_SUDO", "1"),
    ];
    let name = ifname();
    let process = foreground(&namespace, &name, &env, &["-f"]);
    wait_until("two workers", SOON, || threads(process.id(), "worker-") == 2);
    wait_until("both levels", SOON, || {
        let text = fs::read_to_string(&log).unwrap();
        text.contains("INFO") && text.contains("DEBUG")
    });
    drop(process);

    // A file that cannot be written keeps it from starting, and the parent says so.
    let name = ifname();
    assert!(refused(&namespace, &["--log", "/proc/none/log", &name]).contains("the log file"));
    assert!(!has_link(&namespace, &name));
    assert!(!socket_path(&name).exists());
}

#[test]
fn log_level_says_what_is_told_and_whether_the_terminal_is_kept() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    for (level, told) in [
        ("verbose", &["INFO", "DEBUG"][..]),
        ("debug", &["INFO", "DEBUG"]),
        ("error", &[]),
        ("silent", &[]),
        ("", &[]),
        // Others have levels by that name too.
        ("notice", &[]),
    ] {
        let name = ifname();
        let mut process = foreground(&namespace, &name, &[("LOG_LEVEL", level)], &["-f"]);
        process.signal(Signal::TERM);
        assert!(process.wait(SOON).success());
        wait_until("what is told", SOON, || told.iter().all(|word| process.output().contains(word)));
        assert_eq!(process.output().is_empty(), told.is_empty(), "{level}: {}", process.output());
    }
    // In the background: who asks for a log has it on the terminal.
    let directory = Directory::new();
    for (level, is_told) in [("LOG_LEVEL=verbose", true), ("LOG_LEVEL=silent", false), ("LOG_LEVEL=", false)]
    {
        let (name, file) = (ifname(), directory.file(level));
        namespace.run("sh", &["-c", &format!("{level} exec {ADIT} {name} 2>{file} >&2")]);
        let daemon = Daemon::of(&name);
        namespace.run("wg", &["show", &name]);
        daemon.signal(Signal::TERM);
        wait_until("the end", SOON, || daemon.has_ended());
        assert_eq!(!fs::read_to_string(&file).unwrap().is_empty(), is_told, "{level}");
    }
}

#[test]
fn wg_quick_brings_it_up_and_down_unchanged() {
    need!("ip", "wg", "wg-quick", "bash", "ping");
    if Path::new("/sys/module/wireguard").exists() {
        return not_hosted("a kernel without WireGuard, where wg-quick asks for a program,");
    }
    let (namespace, home) = (Namespace::new(), Namespace::new());
    namespace.join("net", &["10.10.0.1/24"], &home, "net", &["10.10.0.2/24"]);
    let other = Tunnel::start(Program::Adit, &home);
    let key = Key::generate();
    let peer = format!("peer {} allowed-ips 10.20.0.1/32", key.public());
    other.set(&home, &format!("listen-port 4001 {peer}"));
    home.ip(&format!("addr add 10.20.0.2/24 dev {}", other.name));
    home.ip(&format!("link set {} up", other.name));

    let (directory, name) = (Directory::new(), ifname());
    let config = directory.file(&format!("{name}.conf"));
    let write = |keepalive: u16| {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.20.0.1/24\nMTU = 1400\nPostUp = true\n\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.20.0.2/32, 10.30.0.0/16\nEndpoint = 10.10.0.2:4001\nPersistentKeepalive = {keepalive}\n",
            key.secret(),
            other.key.public()
        );
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let program = format!("WG_QUICK_USERSPACE_IMPLEMENTATION={ADIT}");
    write(25);
    let log = namespace.run("env", &[&program, "wg-quick", "up", &config]);
    assert!(log.contains(&format!("{ADIT} {name}")), "{log}");
    let daemon = Daemon::of(&name);
    assert!(namespace.ip(&format!("link show {name}")).contains("mtu 1400"));
    assert!(namespace.ip("route").contains("10.30.0.0/16"));
    wait_until("an answer through the tunnel", SOON, || namespace.pings("10.20.0.2"));

    write(26);
    let line = format!("wg syncconf {name} <(wg-quick strip {config})");
    namespace.run("bash", &["-c", &line]);
    let shown = namespace.run("wg", &["show", &name, "persistent-keepalive"]);
    assert!(shown.trim_end().ends_with("\t26"), "{shown}");
    assert!(namespace.pings("10.20.0.2"));

    namespace.run("env", &[&program, "wg-quick", "save", &config]);
    let saved = fs::read_to_string(&config).unwrap();
    for words in [&key.secret(), "Endpoint = 10.10.0.2:4001", "10.30.0.0/16", "PersistentKeepalive = 26"] {
        assert!(saved.contains(words), "{words} is not in {saved}");
    }

    namespace.run("env", &[&program, "wg-quick", "down", &config]);
    wait_until("the end", SOON, || daemon.has_ended());
    assert!(!socket_path(&name).exists());
    assert!(!has_link(&namespace, &name));
    // And once more.
    namespace.run("env", &[&program, "wg-quick", "up", &config]);
    let daemon = Daemon::of(&name);
    // Sooner than a second initiation would be sent.
    namespace.sh("ping -n -c 1 -W 4 10.20.0.2");
    namespace.run("env", &[&program, "wg-quick", "down", &config]);
    wait_until("the end", SOON, || daemon.has_ended());
}

#[cfg(feature = "control")]
#[test]
fn a_data_plane_that_hangs_is_told_from_one_that_is_not_there() {
    need!("ip", "setpriv");
    let (namespace, name) = (Namespace::new(), ifname());
    let alive = || namespace.try_run(ADIT, &["alive", &name]);
    assert_eq!(alive(), (true, String::new()), "nobody is there");
    // What a process that was killed leaves behind.
    drop(UnixListener::bind(socket_path(&name)).unwrap());
    assert_eq!(alive(), (true, String::new()), "nobody listens");
    fs::remove_file(socket_path(&name)).unwrap();
    let tunnel = Tunnel::start_on(Program::Adit, &namespace, name.clone(), &[], &[]);
    assert_eq!(alive(), (true, String::new()));
    tunnel.process.stop();
    let (success, text) = alive();
    assert!(!success && text.contains(&format!("{name} hangs")), "{text}");
    tunnel.process.signal(Signal::CONT);
    assert_eq!(alive(), (true, String::new()));
}
