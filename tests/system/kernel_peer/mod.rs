//! Ours and the WireGuard of a real kernel: Debian's, in a virtual machine.
//!
//! ```text
//! outside  ours, 192.168.77.1 and fd77::1 inside     10.9.0.1, fd09::1 ┐ tap, eth0
//! guest    theirs, 192.168.77.2 and fd77::2 inside   10.9.0.2, fd09::2 ┘
//! ```
//!
//! `ADIT_KERNEL` names the unpacked package of a kernel (`tests/kernel.sh`). The processor is emulated: nothing here is quick.

mod backend;

use std::env;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::stream::{accept, listen, random_bytes, transceive};
use crate::support::tunnel::{Key, Program, Tunnel, preshared_key};
use crate::support::{Namespace, Process, SOON, need, skip, wait_for, wait_until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/system/kernel_peer/boot.sh");
const GUEST_LIFETIME: &str = "300";
/// How long the emulated machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// A virtual machine that does what it is told on its console.
struct Guest {
    machine: Process,
    /// How much of what it printed has been read.
    read: usize,
}

impl Guest {
    /// Boots the machine, its network card plugged into the device `tap` of the namespace.
    #[track_caller]
    fn boot(namespace: &Namespace, kernel: &str, tap: &str) -> Self {
        Self::boot_with(namespace, kernel, tap, &[])
    }

    /// The same, with a program for the guest and words for its kernel's command line, or without.
    #[track_caller]
    fn boot_with(namespace: &Namespace, kernel: &str, tap: &str, more: &[&str]) -> Self {
        let args = [&[SCRIPT, kernel, tap, GUEST_LIFETIME], more].concat();
        let machine = namespace.spawn("bash", &args);
        let mut this = Self { machine, read: 0 };
        this.read_until("is up");
        this
    }

    /// Lets the guest run a command line, and returns what it printed and whether it succeeded.
    #[track_caller]
    fn try_run(&mut self, line: &str) -> (bool, String) {
        self.machine.write(&format!("{line}\n"));
        let text = self.read_until("\nstatus ");
        let (text, status) = text.rsplit_once("\nstatus ").expect("the end that was waited for");
        (status.trim() == "0", text.to_owned())
    }

    #[track_caller]
    fn run(&mut self, line: &str) -> String {
        let (success, text) = self.try_run(line);
        assert!(success, "{line}: {text}");
        text
    }

    /// Reads whole lines up to the one that `mark` begins or is part of.
    #[track_caller]
    fn read_until(&mut self, mark: &str) -> String {
        let text = wait_for(&format!("{mark:?} on the guest's console"), PATIENCE, || {
            let ended = self.machine.ended();
            assert!(ended.is_none(), "the machine ended: {ended:?}");
            let output = self.machine.output();
            let text = format!("\n{}", &output[self.read..]);
            let end = text.find(mark)?;
            let end = end + mark.len() + text[end + mark.len()..].find('\n')? + 1;
            Some(text[..end].to_owned())
        });
        self.read += text.len() - 1;
        text.replace('\r', "")
    }
}

/// The family of the tunnel's own datagrams.
#[derive(Clone, Copy, Debug)]
enum Outside {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug)]
enum Initiator {
    Ours,
    Guest,
}

const OUR_PORT: u16 = 51821;
const GUEST_PORT: u16 = 51822;
/// [W] §5.2: the preshared key that stands for none.
const NO_PSK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Gives both ends a new tunnel. Only the initiator knows where the other is.
fn new_tunnel(
    outside: &Namespace,
    guest: &mut Guest,
    family: Outside,
    initiator: Initiator,
    with_psk: bool,
) -> Tunnel {
    let ours = Tunnel::start(Program::Adit, outside);
    let key = Key::generate();
    let psk = if with_psk { preshared_key() } else { NO_PSK.to_owned() };
    let [our_endpoint, guest_endpoint] = match family {
        Outside::V4 => [format!("10.9.0.1:{OUR_PORT}"), format!("10.9.0.2:{GUEST_PORT}")],
        Outside::V6 => [format!("[fd09::1]:{OUR_PORT}"), format!("[fd09::2]:{GUEST_PORT}")],
    };
    let [our_endpoint, guest_endpoint] = match initiator {
        Initiator::Ours => [String::new(), format!("endpoint {guest_endpoint}")],
        Initiator::Guest => [format!("endpoint {our_endpoint}"), String::new()],
    };
    let line = format!(
        "listen-port {OUR_PORT} peer {} preshared-key /dev/stdin {guest_endpoint} \
         allowed-ips 192.168.77.2/32,fd77::2/128",
        key.public(),
    );
    ours.set_with_input(outside, &line.split_whitespace().collect::<Vec<_>>(), &psk);
    outside.ip(&format!("addr add 192.168.77.1/24 dev {}", ours.name));
    outside.ip(&format!("addr add fd77::1/64 dev {} nodad", ours.name));
    outside.ip(&format!("link set {} up", ours.name));

    guest.run(&format!("ip link del wg0; echo {} >/tmp/key; echo {psk} >/tmp/psk", key.secret()));
    guest.run("ip link add wg0 type wireguard");
    guest.run(&format!("wg set wg0 listen-port {GUEST_PORT} private-key /tmp/key"));
    guest.run(&format!(
        "wg set wg0 peer {} preshared-key /tmp/psk {our_endpoint} allowed-ips 192.168.77.1/32,fd77::1/128",
        ours.key.public(),
    ));
    guest.run("ip addr add 192.168.77.2/24 dev wg0 && ip -6 addr add fd77::2/64 dev wg0");
    guest.run("ip link set wg0 up");
    ours
}

/// Lets the initiator send until it is answered, then the other.
fn reach_each_other(outside: &Namespace, guest: &mut Guest, initiator: Initiator) {
    let mut ours_reaches = || {
        let addrs = ["192.168.77.2", "fd77::2"];
        addrs.iter().all(|addr| outside.succeeds(&format!("ping -n -c 1 -W 10 {addr}")))
    };
    let mut guest_reaches = || {
        let lines = ["ping -c 1 -W 10 192.168.77.1", "ping6 -c 1 -W 10 fd77::1"];
        lines.iter().all(|line| guest.try_run(line).0)
    };
    let [first, second]: [&mut dyn FnMut() -> bool; 2] = match initiator {
        Initiator::Ours => [&mut ours_reaches, &mut guest_reaches],
        Initiator::Guest => [&mut guest_reaches, &mut ours_reaches],
    };
    wait_until("an answer through the tunnel", PATIENCE, first);
    assert!(second(), "the responder is not answered");
}

/// Sends a file of a megabyte each way at the same time, and compares what either end says of both.
fn exchange_files(outside: &Namespace, guest: &mut Guest, addr: &str) {
    let listener = listen(outside, addr);
    let port = listener.local_addr().unwrap().port();
    let file = random_bytes(1 << 20);
    let received = thread::scope(|scope| {
        let ours = scope.spawn(|| transceive(accept(&listener), &file));
        guest.run("head -c 1048576 /dev/urandom >/tmp/sent");
        guest.run(&format!("nc {addr} {port} </tmp/sent >/tmp/received"));
        ours.join().unwrap().expect("the connection lasts")
    });
    assert_eq!(received.len(), 1 << 20);
    assert!(guest.run("sha256sum </tmp/sent").contains(&sha256(&received)), "from the guest");
    assert!(guest.run("sha256sum </tmp/received").contains(&sha256(&file)), "to the guest");
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum starts");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// RFC 6040 §4.1, §4.2: the outer header carries the mark of the inner one, and congestion that it met comes out at the end.
fn check_congestion_marks(outside: &Namespace, ours: &Tunnel) {
    let capture = outside.spawn("tcpdump", &["-l", "-n", "-v", "--immediate-mode", "-i", &ours.name, "icmp"]);
    wait_until("tcpdump", SOON, || capture.output().contains("listening on"));
    outside.sh("nft add table inet test");
    outside.run("nft", &["add chain inet test out { type filter hook output priority 0; }"]);
    outside.run("nft", &["add chain inet test in { type filter hook prerouting priority 0; }"]);

    // The answer has the mark that the request arrived with.
    let mark = |rule: &str, ping: &str| {
        outside.run("nft", &["flush table inet test"]);
        outside.run("nft", &[&format!("add rule inet test {rule}")]);
        let before = capture.output().len();
        outside.sh(ping);
        wait_for("a captured answer", SOON, || {
            let output = capture.output();
            let packets: Vec<_> = output[before..].split(" IP (").collect();
            let answer = packets.iter().find(|packet| packet.contains("ICMP echo reply"))?;
            Some(answer.split(',').take(2).collect::<String>())
        })
    };
    let ping = "ping -n -c 1 -W 10 -Q 2 192.168.77.2";
    let answer = mark("out counter", ping);
    assert!(answer.contains("tos 0x2"), "without congestion: {answer}");
    let answer = mark(&format!("out udp dport {GUEST_PORT} ip ecn ect0 ip ecn set ce"), ping);
    assert!(answer.contains("tos 0x3"), "congestion on the way there: {answer}");
    let answer = mark(&format!("in udp sport {GUEST_PORT} ip ecn ect0 ip ecn set ce"), ping);
    assert!(answer.contains("tos 0x3"), "congestion on the way back: {answer}");
}

#[test]
fn ours_and_a_real_kernels_wireguard_exchange_data_in_both_roles() {
    need!("ip", "wg", "ping", "tcpdump", "nft", "sha256sum");
    need!("qemu-system-x86_64", "busybox", "cpio", "modprobe");
    let kernel = env::var("ADIT_KERNEL").unwrap_or_default();
    if !Path::new(&kernel).join("boot").is_dir() {
        skip("an unpacked kernel in ADIT_KERNEL");
        return;
    }
    let outside = Namespace::new();
    outside.ip("tuntap add tap mode tap");
    outside.ip("addr add 10.9.0.1/24 dev tap");
    outside.ip("addr add fd09::1/64 dev tap nodad");
    outside.ip("link set tap up");
    let mut guest = Guest::boot(&outside, &kernel, "tap");
    // A guest's `ip` is busybox's, which has no `nodad`.
    guest.run("for dir in /proc/sys/net/ipv6/conf/*; do echo 0 >$dir/accept_dad; done");
    guest.run("ip addr add 10.9.0.2/24 dev eth0 && ip -6 addr add fd09::2/64 dev eth0");
    guest.run("ip link set eth0 up");
    for (family, initiator, with_psk) in [
        (Outside::V4, Initiator::Ours, true),
        (Outside::V6, Initiator::Guest, true),
        (Outside::V6, Initiator::Ours, false),
        (Outside::V4, Initiator::Guest, false),
    ] {
        eprintln!("{family:?} outside, {initiator:?} first, preshared key: {with_psk}");
        let ours = new_tunnel(&outside, &mut guest, family, initiator, with_psk);
        reach_each_other(&outside, &mut guest, initiator);
        assert!(ours.latest_handshake(&outside) > 0);
        for addr in ["192.168.77.1", "fd77::1"] {
            exchange_files(&outside, &mut guest, addr);
        }
        if let Outside::V4 = family {
            check_congestion_marks(&outside, &ours);
            outside.run("nft", &["delete table inet test"]);
        }
    }
}
