//! What happens to a machine over the years, in seconds: links that flap, peers that come and go, errors of every kind, thousands of
//! peers; afterwards traffic goes on, nothing has grown and nobody is busy.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use adit::config::{Configure, Edit};
use adit::crypto::random::Os;
use adit::crypto::x25519::PrivateKey;
use adit::device::{Device, Spill};
use adit::sys::clock::boottime;
use adit::sys::netlink::Netlink;
use adit::sys::offload::Wanted;
use adit::sys::tun::Tun;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::Signal;

use crate::support::puppet::{Puppet, udp, udp_packet};
use crate::support::tunnel::{Key, Program, Tunnel, socket_path};
use crate::support::{Namespace, Process, SOON, ifname, need, pause, wait_for, wait_until};
use crate::tiers::faults_are_possible;

const PORT: u16 = 51820;

/// Two machines on one cable, each with a tunnel to the other.
///
/// ```text
/// a  192.168.1.1 fd00:1::1 ─ cable ─ 192.168.1.2 fd00:1::2  b
///    10.8.0.1                                    10.8.0.2
/// ```
struct Pair {
    a: Namespace,
    b: Namespace,
    ta: Tunnel,
    tb: Tunnel,
}

impl Pair {
    fn new(threads: &str) -> Self {
        Self::with(&["--threads", threads], &[])
    }

    fn with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        a.join(
            "cable",
            &["192.168.1.1/24", "fd00:1::1/64"],
            &b,
            "cable",
            &["192.168.1.2/24", "fd00:1::2/64"],
        );
        let ta = Tunnel::start_with(Program::Adit, &a, args, env);
        let tb = Tunnel::start_with(Program::Adit, &b, args, env);
        let this = Self { a, b, ta, tb };
        this.introduce();
        for (namespace, tunnel, host) in [(&this.a, &this.ta, 1), (&this.b, &this.tb, 2)] {
            namespace.ip(&format!("addr add 10.8.0.{host}/24 dev {}", tunnel.name));
            namespace.ip(&format!("link set {} mtu 1420 up", tunnel.name));
        }
        this
    }

    /// Makes them peers.
    fn introduce(&self) {
        let Self { a, b, ta, tb } = self;
        for (namespace, own, other, host) in [(a, ta, tb, 2), (b, tb, ta, 1)] {
            let public = other.key.public();
            own.set(
                namespace,
                &format!(
                    "listen-port {PORT} peer {public} allowed-ips 10.8.0.{host}/32 endpoint 192.168.1.{host}:{PORT}"
                ),
            );
        }
    }

    /// Sends until there is an answer: an initiation that comes before b has its port is lost, and the next one follows after more than five
    /// seconds ([W] §6.4).
    fn establish(&self) {
        self.a.sh("ping -n -c 1 -i 0.2 -w 20 10.8.0.2");
    }

    /// Starts a steady flow from a to b.
    fn flow(&self) -> Flow {
        Flow::steady((&self.a, "10.8.0.1:0"), (&self.b, "10.8.0.2:0"))
    }

    /// Checks that both have nothing to do and do nothing.
    #[track_caller]
    fn assert_idle(&self) {
        // What is under way may end.
        pause(Duration::from_millis(300));
        let both = [&self.ta.process, &self.tb.process];
        let before = both.map(Process::cpu_ms);
        pause(Duration::from_secs(2));
        for (process, before) in both.into_iter().zip(before) {
            let used = process.cpu_ms() - before;
            assert!(used < 200, "{used} ms of processor time in 2 s without traffic");
        }
    }
}

/// Checks that a process has as many descriptors open as before; a connection may take a moment to close.
#[track_caller]
fn assert_descriptors(process: &Process, before: usize) {
    wait_until("descriptors as before", SOON, || process.descriptors() == before);
}

/// A UDP flow whose packets are numbered.
struct Flow {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

/// What has arrived of a flow.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    packets: AtomicU64,
    /// Packets that came after a later one, or twice.
    late: AtomicU64,
    /// The longest silence in milliseconds.
    silence: AtomicU64,
}

impl Flow {
    /// Sends two packets a millisecond; port 0 stands for any.
    fn steady(from: (&Namespace, &str), to: (&Namespace, &str)) -> Self {
        Self::between(udp(from.0, from.1), udp(to.0, to.1), |_, sent| {
            if sent % 2 == 0 {
                pause(Duration::from_millis(1));
            }
        })
    }

    /// Sends a packet a millisecond, but never has more than 32 on their way.
    fn gentle(from: (&Namespace, &str), to: (&Namespace, &str)) -> Self {
        Self::windowed(udp(from.0, from.1), udp(to.0, to.1), 32, Duration::from_millis(1))
    }

    /// Keeps `window` packets on their way, with a pause after each. The first ones go one at a time: until the kernel has moved a flow to
    /// the queue that its answers are written to, what waits in the old one may be overtaken.
    fn windowed(sender: UdpSocket, receiver: UdpSocket, window: u64, rest: Duration) -> Self {
        let mut lost = 0;
        Self::between(sender, receiver, move |seen, sent| {
            let window = if sent < 200 { 1 } else { window };
            if !rest.is_zero() {
                pause(rest);
            }
            let began = boottime();
            while sent - lost >= seen.packets.load(Relaxed) + window {
                if boottime() - began > Duration::from_millis(200) {
                    lost = sent - seen.packets.load(Relaxed);
                }
                pause(Duration::from_micros(100));
            }
        })
    }

    /// Sends packets, and after each calls `rest` with what has arrived and the number of packets sent.
    fn between(
        sender: UdpSocket,
        receiver: UdpSocket,
        mut rest: impl FnMut(&Seen, u64) + Send + 'static,
    ) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        // A receiver that waits for the processor loses nothing.
        set_socket_recv_buffer_size_force(&receiver, 8 << 20).unwrap();
        let destination = receiver.local_addr().unwrap();
        let sending = {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                let mut payload = [0; 1000];
                while !stop.load(Relaxed) {
                    let number = seen.sent.fetch_add(1, Relaxed);
                    payload[..8].copy_from_slice(&number.to_be_bytes());
                    // The route may be gone for a while.
                    let _ = sender.send_to(&payload, destination);
                    rest(&seen, number + 1);
                }
            }
        };
        let receiving = {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || seen.watch(&receiver, &stop)
        };
        Self { stop, seen, threads: vec![std::thread::spawn(sending), std::thread::spawn(receiving)] }
    }

    /// Checks that packets arrive from now on.
    #[track_caller]
    fn goes_on(&self, what: &str) {
        let before = self.seen.packets.load(Relaxed);
        wait_until(&format!("traffic {what}"), SOON, || self.seen.packets.load(Relaxed) > before + 20);
    }

    /// Checks that next to nothing arrives: what was under way may.
    #[track_caller]
    fn stands_still(&self, what: &str) {
        pause(Duration::from_millis(500));
        let before = self.seen.packets.load(Relaxed);
        pause(Duration::from_millis(500));
        let passed = self.seen.packets.load(Relaxed) - before;
        assert!(passed < 100, "{passed} packets came through {what}");
    }

    fn end(mut self) -> Arc<Seen> {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        Arc::clone(&self.seen)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Seen {
    fn watch(&self, receiver: &UdpSocket, stop: &AtomicBool) {
        let (mut next, mut last) = (0, None);
        let mut payload = [0; 2000];
        while !stop.load(Relaxed) {
            let received = receiver.recv(&mut payload);
            let now = boottime();
            let silence = last.map_or(Duration::ZERO, |last| now - last);
            self.silence.fetch_max(silence.as_millis().try_into().unwrap(), Relaxed);
            if received.is_err() {
                continue;
            }
            last = Some(now);
            let number = u64::from_be_bytes(payload[..8].try_into().unwrap());
            self.packets.fetch_add(1, Relaxed);
            if number < next {
                self.late.fetch_add(1, Relaxed);
            }
            next = next.max(number + 1);
        }
    }
}

// T15, T23, T24.
#[test]
fn a_link_that_goes_up_and_down_ten_thousand_times_works_and_costs_nothing_while_down() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let flow = pair.flow();
    flow.goes_on("at first");
    let descriptors = pair.ta.process.descriptors();
    let name = &pair.ta.name;
    for _ in 0..100 {
        pair.a.ip(&format!("link set {name} down"));
        pair.a.ip(&format!("link set {name} up"));
    }
    flow.goes_on("after a hundred times");
    let mut batch = String::new();
    for _ in 0..10_000 {
        writeln!(batch, "link set {name} down\nlink set {name} up").unwrap();
    }
    let file = format!("/tmp/{name}.batch");
    std::fs::write(&file, batch).unwrap();
    pair.a.ip(&format!("-batch {file}"));
    std::fs::remove_file(&file).unwrap();
    flow.goes_on("after ten thousand times");
    assert_descriptors(&pair.ta.process, descriptors);
    drop(flow);
    pair.assert_idle();
    pair.a.ip(&format!("link set {name} down"));
    pair.assert_idle();
    assert_eq!(pair.ta.process.output(), "");
}

// T23, T24.
#[test]
fn peers_that_come_and_go_ten_thousand_times_disturb_nobody() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let flow = pair.flow();
    flow.goes_on("at first");
    let (descriptors, memory) = (pair.ta.process.descriptors(), pair.ta.process.memory_kib());
    let public = pair.tb.key.public();
    for i in 0..500 {
        let mut words = String::new();
        for _ in 0..10 {
            let stranger = Key::generate().public();
            write!(words, " peer {stranger} allowed-ips 10.9.0.0/24,fd00::/64 endpoint 192.168.1.2:9")
                .unwrap();
            write!(words, " persistent-keepalive 1 peer {stranger} remove").unwrap();
        }
        pair.ta.set(&pair.a, &words);
        if i % 50 == 49 {
            pair.ta.set(&pair.a, &format!("peer {public} remove"));
            pair.introduce();
        }
    }
    flow.goes_on("after ten thousand changes");
    assert_eq!(pair.ta.show(&pair.a, "peers"), public);
    assert_descriptors(&pair.ta.process, descriptors);
    let grown = pair.ta.process.memory_kib().saturating_sub(memory);
    assert!(grown < 2048, "{grown} KiB more");
    drop(flow);
    pair.assert_idle();
}

#[test]
fn a_port_that_was_taken_when_the_link_came_up_is_had_once_it_is_free() {
    need!("ip", "wg", "ping");
    let pair = Pair::new("2");
    pair.ta.down(&pair.a);
    let other = wait_for("a free port", SOON, || {
        pair.a.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).ok()
    });
    pair.ta.up(&pair.a);
    assert!(pair.a.pings_in_vain("10.8.0.2"));
    drop(other);
    wait_until("the way through the tunnel", SOON, || !pair.a.pings_in_vain("10.8.0.2"));
    assert_eq!(pair.ta.process.output().lines().count(), 1, "it is told of once");
}

#[test]
fn a_data_plane_that_cannot_wait_does_all_the_same_and_ends_for_what_ends_it() {
    need!("ip", "wg");
    if !faults_are_possible() {
        return;
    }
    let start = || {
        let faults = ("ADIT_FAULT", "Poll=12,Epoll=12,Timer=22");
        let pair = Pair::with(&["--threads", "2", "--verbosity", "debug"], &[faults]);
        let flow = pair.flow();
        flow.goes_on("while nothing can be waited for");
        // Timers too.
        pair.tb.set(&pair.b, &format!("peer {} persistent-keepalive 1", pair.ta.key.public()));
        drop(flow);
        let received = || pair.ta.show(&pair.a, "transfer");
        let before = received();
        wait_until("a keepalive", SOON, || received() != before);
        pair
    };
    let mut pair = start();
    pair.tb.set(&pair.b, &format!("peer {} persistent-keepalive 0", pair.ta.key.public()));
    pair.assert_idle();
    // Each thread says it once: workers, the one for handshakes, control, that of the socket, the first one; and there is the timer.
    let output = pair.ta.process.output();
    assert_eq!(output.matches("cannot wait").count(), 6, "{output}");
    assert_eq!(output.matches("cannot set the timer").count(), 1, "{output}");
    pair.ta.process.signal(Signal::TERM);
    assert!(pair.ta.process.wait(SOON).success());
    pair.b.ip(&format!("link del {}", pair.tb.name));
    assert!(pair.tb.process.wait(SOON).success());
    let mut pair = start();
    std::fs::remove_file(socket_path(&pair.ta.name)).unwrap();
    assert!(pair.ta.process.wait(SOON).success());
}

#[test]
fn sockets_and_a_moved_link_that_cannot_be_polled_are_looked_at_all_the_same() {
    need!("ip", "wg");
    if !faults_are_possible() {
        return;
    }
    let args = ["--threads", "2", "--verbosity", "debug"];
    // Always, and for a while.
    let pair = Pair::with(&args, &[("ADIT_FAULT", "Register=28")]);
    let flow = pair.flow();
    flow.goes_on("though no socket is polled");
    drop(flow);
    pair.assert_idle();
    let name = &pair.ta.name;
    let elsewhere = Namespace::new();
    let ups = || pair.ta.process.output().matches("interface up").count();
    assert_eq!(ups(), 1);
    pair.a.ip(&format!("link set {name} netns {}", elsewhere.path()));
    wait_until("it to be down", SOON, || pair.ta.process.output().contains("interface down"));
    elsewhere.ip(&format!("link set {name} up"));
    wait_until("it to be up again", SOON, || ups() == 2);

    let pair = Pair::with(&args, &[("ADIT_FAULT", "Register=28*50")]);
    pair.flow().goes_on("once it can be polled");
}

#[test]
fn packets_that_fill_the_buffer_to_its_end_are_read_like_any() {
    need!("ip", "wg");
    let pair = Pair::new("1");
    pair.a.ip(&format!("link set {} mtu 65535", pair.ta.name));
    let sender = udp(&pair.a, "10.8.0.1:0");
    // Now and then the system sends something of its own in between.
    for _ in 0..10 {
        // All are there when the first is read.
        pair.ta.process.stop();
        // Behind their headers, of either length, they begin at multiples of 64; three take 192 KiB and 64 bytes, and the last one ends
        // where the buffer does.
        for len in [65535, 65500, 65500, 65535] {
            sender.send_to(&vec![0; len - 28], "10.8.0.2:9").unwrap();
        }
        pair.ta.process.signal(Signal::CONT);
        assert!(pair.a.pings("10.8.0.2"));
    }
    assert_eq!(pair.ta.process.output(), "");
}

// T15, T23.
#[test]
fn devices_start_and_stop_under_traffic_without_a_deadlock() {
    need!("ip");
    let namespace = Namespace::new();
    let target = udp(&namespace, "127.0.0.1:0");
    let began = boottime();
    for round in 0..100 {
        let name = ifname();
        let (closed, on_close) = std::sync::mpsc::channel();
        let device = {
            let name = name.clone();
            namespace.enter(move || {
                let tun = Tun::create(&name, 2, &Wanted::default()).unwrap();
                let device =
                    Device::start(tun, Wanted::default(), Spill::Auto, move || closed.send(()).unwrap())
                        .unwrap();
                let key = PrivateKey::generate(&mut Os);
                device.apply(vec![Edit::PrivateKey(Some(key)), Edit::ListenPort(PORT)]).unwrap();
                let mut netlink = Netlink::open().unwrap();
                let link = netlink.link(&name).unwrap();
                netlink.set_up(link.index, None).unwrap();
                device
            })
        };
        for _ in 0..50 {
            let _ = target.send_to(&[1; 148], ("127.0.0.1", PORT));
        }
        if round % 10 == 0 {
            namespace.ip(&format!("link del {name}"));
            on_close.recv_timeout(SOON).expect("on_close is called");
        }
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(device);
            ended.send(())
        });
        end.recv_timeout(SOON).expect("all threads end");
        // A child that another test has just forked may hold a copy of the descriptor until it becomes another program.
        wait_until(&format!("the end of the link of round {round}"), SOON, || {
            let name = name.clone();
            namespace.enter(move || Netlink::open().unwrap().link(&name).is_err())
        });
    }
    assert!(boottime() - began < Duration::from_secs(25), "{:?}", boottime() - began);
}

// T16.
#[test]
fn a_stopped_process_catches_up_and_is_idle_afterwards() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let flow = pair.flow();
    flow.goes_on("at first");
    for tunnel in [&pair.ta, &pair.tb] {
        tunnel.process.stop();
        pause(Duration::from_secs(4));
        tunnel.process.signal(Signal::CONT);
        flow.goes_on("after a stop");
    }
    drop(flow);
    pair.assert_idle();
}

// T18.
#[test]
fn a_peer_that_roams_between_families_under_load_is_followed_at_once() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let flow = pair.flow();
    flow.goes_on("at first");
    let to = format!("192.168.1.1:{PORT}").parse().unwrap();
    let mut puppet = Puppet::new(&pair.b, "192.168.1.2:0", to, &pair.ta.key);
    pair.ta.set(&pair.a, &format!("peer {} allowed-ips 10.8.0.3/32", puppet.key.public()));
    let session = puppet.handshake(SOON);
    let inner = udp(&pair.a, "10.8.0.1:0");
    let port = inner.local_addr().unwrap().port();
    let v6 = format!("[fd00:1::1]:{PORT}").parse().unwrap();
    let mut places = [
        (udp(&pair.b, "192.168.1.2:0"), to),
        (udp(&pair.b, "[fd00:1::2]:0"), v6),
        (udp(&pair.b, "192.168.1.2:0"), to),
        (udp(&pair.b, "[fd00:1::2]:0"), v6),
    ];
    for round in 0..400_u16 {
        let place = usize::from(round) % places.len();
        std::mem::swap(&mut puppet.socket, &mut places[place].0);
        puppet.to = places[place].1;
        puppet.send(&session, &udp_packet([10, 8, 0, 3], [10, 8, 0, 1], port, &round.to_be_bytes()));
        let mut payload = [0; 100];
        wait_until("the packet from the new place", SOON, || {
            inner.recv(&mut payload).is_ok_and(|_| payload[..2] == round.to_be_bytes())
        });
        wait_until("the answer to the new place", Duration::from_secs(2), || {
            inner.send_to(&round.to_be_bytes(), "10.8.0.3:7").unwrap();
            puppet.recv(&session).is_some_and(|packet| packet[28..30] == round.to_be_bytes())
        });
        std::mem::swap(&mut puppet.socket, &mut places[place].0);
    }
    flow.goes_on("at last");
}

// T22.
#[test]
fn memory_under_load_of_64_peers_is_bounded() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let to = format!("192.168.1.1:{PORT}").parse().unwrap();
    let inner = udp(&pair.a, "10.8.0.1:0");
    let port = inner.local_addr().unwrap().port();
    let mut peers = Vec::new();
    for host in 0..64 {
        let mut puppet = Puppet::new(&pair.b, "192.168.1.2:0", to, &pair.ta.key);
        pair.ta.set(&pair.a, &format!("peer {} allowed-ips 10.8.0.{}/32", puppet.key.public(), 100 + host));
        let session = puppet.handshake(SOON);
        peers.push((host, puppet, session));
    }
    let load = |rounds: u32| {
        for _ in 0..rounds {
            for (host, puppet, session) in &peers {
                let addr = [10, 8, 0, 100 + host];
                let packet = udp_packet(addr, [10, 8, 0, 1], port, &[0; 1372]);
                for _ in 0..32 {
                    puppet.send(session, &packet);
                    let _ = inner.send_to(&[0; 1372], (Ipv4Addr::from(addr), 7));
                }
            }
        }
    };
    load(5);
    let first = pair.ta.process.memory_kib();
    load(20);
    let memory = pair.ta.process.memory_kib();
    eprintln!("64 peers under load: {memory} KiB, {first} KiB after the first fifth");
    assert!(memory.saturating_sub(first) < 2048, "{first} KiB grew to {memory} KiB");
    assert!(memory < 16 << 10, "{memory} KiB");
    for (_, puppet, session) in &peers {
        assert!(puppet.recv(session).is_some(), "nothing came");
    }
}

// T25.
#[test]
fn packets_of_a_flow_stay_in_order_with_several_workers() {
    need!("ip", "wg");
    for args in [
        ["--threads", "1", "--spill", "auto"],
        ["--threads", "2", "--spill", "auto"],
        ["--threads", "4", "--spill", "auto"],
        ["--threads", "4", "--spill", "on"],
    ] {
        let pair = Pair::with(&args, &[]);
        pair.establish();
        // Between the same two sockets one flow each way: the kernel moves a flow to the queue that its answers are written to.
        // All of them together have fewer packets on their way than a TUN device holds (500).
        let flows: Vec<_> = (0..6)
            .map(|_| (udp(&pair.a, "10.8.0.1:0"), udp(&pair.b, "10.8.0.2:0")))
            .flat_map(|(a, b)| [(a.try_clone().unwrap(), b.try_clone().unwrap()), (b, a)])
            .map(|(from, to)| Flow::windowed(from, to, 32, Duration::ZERO))
            .collect();
        wait_until("5000 packets of every flow", Duration::from_secs(60), || {
            flows.iter().all(|flow| flow.seen.packets.load(Relaxed) >= 5000)
        });
        for flow in flows {
            let seen = flow.end();
            let (packets, late) = (seen.packets.load(Relaxed), seen.late.load(Relaxed));
            assert_eq!(late, 0, "of {packets} with {args:?}");
        }
    }
}

/// [W] §6.1: a session is renewed when it is 120 seconds old. What was sealed with the old one arrives before what was sealed with the new
/// one.
#[test]
fn packets_of_a_flow_stay_in_order_when_the_session_is_renewed() {
    need!("ip", "wg");
    let all = [
        ["--threads", "1", "--spill", "auto"],
        ["--threads", "2", "--spill", "auto"],
        ["--threads", "4", "--spill", "on"],
    ];
    let runs = all.map(|args| {
        let pair = Pair::with(&args, &[]);
        pair.establish();
        let began = pair.ta.latest_handshake(&pair.a);
        let (a, b) = ((&pair.a, "10.8.0.1:0"), (&pair.b, "10.8.0.2:0"));
        let flows = [Flow::gentle(a, b), Flow::gentle(b, a)];
        (args, pair, began, flows)
    });
    for (args, pair, began, flows) in runs {
        let renewed = || pair.ta.latest_handshake(&pair.a) > began;
        wait_until("the session's renewal", Duration::from_secs(150), renewed);
        for flow in flows {
            flow.goes_on("after the renewal");
            let seen = flow.end();
            let [sent, packets, late] =
                [&seen.sent, &seen.packets, &seen.late].map(|count| count.load(Relaxed));
            assert_eq!(late, 0, "of {packets} with {args:?}");
            // What was under way when it ended.
            assert!(sent - packets <= 32, "{packets} of {sent} arrived with {args:?}");
        }
    }
}

/// Errors of the UDP socket on machine a, what causes them there, and what ends them.
const STORMS: [(&str, &[&str], &[&str]); 7] = [
    ("ENETUNREACH, the cable is down", &["ip link set cable down"], &["ip link set cable up"]),
    (
        "EINVAL, a black hole",
        &["ip route add blackhole 192.168.1.2"],
        &["ip route del blackhole 192.168.1.2"],
    ),
    (
        "EACCES, a prohibited route",
        &["ip route add prohibit 192.168.1.2"],
        &["ip route del prohibit 192.168.1.2"],
    ),
    ("EHOSTUNREACH", &["ip route add unreachable 192.168.1.2"], &["ip route del unreachable 192.168.1.2"]),
    (
        "ENETUNREACH, no route",
        &["ip route del 192.168.1.0/24"],
        &["ip route add 192.168.1.0/24 dev cable src 192.168.1.1"],
    ),
    (
        "EPERM, a firewall",
        &[
            "nft add table inet wall",
            "nft add chain inet wall out { type filter hook output priority 0 ; }",
            "nft add rule inet wall out udp dport 51820 reject",
        ],
        &["nft delete table inet wall"],
    ),
    (
        "EAGAIN, a full socket buffer",
        &["tc qdisc add dev cable root tbf rate 8kbit burst 1600 limit 100mb"],
        &["tc qdisc del dev cable root"],
    ),
];

// T35.
#[test]
fn errors_of_the_udp_socket_pass() {
    need!("ip", "wg", "nft", "tc");
    let pair = Pair::new("2");
    let Pair { a, b, ta, tb } = &pair;
    let flow = pair.flow();
    flow.goes_on("at first");
    // Nobody listens there: ICMP port unreachable.
    tb.set(b, "listen-port 9");
    flow.stands_still("while the port is unreachable");
    tb.set(b, &format!("listen-port {PORT}"));
    flow.goes_on("after the port was unreachable");
    for (what, begin, end) in STORMS {
        begin.iter().for_each(|line| drop(a.sh(line)));
        flow.stands_still(what);
        let asked = boottime();
        ta.show(a, "transfer");
        assert!(
            boottime() - asked < Duration::from_secs(1),
            "{what}: wg waited for {:?}",
            boottime() - asked
        );
        end.iter().for_each(|line| drop(a.sh(line)));
        let ended = boottime();
        flow.goes_on(&format!("after {what}"));
        eprintln!("{what}: traffic went on {:?} after its end", boottime() - ended);
    }
    drop(flow);
    pair.assert_idle();
    assert_eq!(ta.process.output(), "");
}

// T35.
#[test]
fn packets_for_peers_without_a_session_do_not_occupy_the_control_thread() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let mut words = String::new();
    for host in 100..200 {
        let public = Key::generate().public();
        // Nobody is there.
        write!(words, " peer {public} allowed-ips 10.8.0.{host}/32 endpoint 192.168.1.2:{host}").unwrap();
    }
    pair.ta.set(&pair.a, &words);
    let blasts = [Blast::start(&pair.a), Blast::start(&pair.a)];
    for _ in 0..100 {
        let asked = boottime();
        pair.ta.show(&pair.a, "transfer");
        assert!(boottime() - asked < Duration::from_secs(1), "wg waited for {:?}", boottime() - asked);
    }
    let began = boottime();
    assert!(pair.b.succeeds("ping -n -c 1 -i 0.2 -w 10 10.8.0.1"), "no handshake beside it");
    let sent: u64 = blasts.iter().map(|blast| blast.sent.load(Relaxed)).sum();
    eprintln!("a handshake beside {sent} packets took {:?}", boottime() - began);
    assert!(sent > 10_000, "{sent} packets are not many");
}

/// Sends packets to 10.8.0.100…199 as fast as it can until it is dropped.
struct Blast {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

impl Blast {
    fn start(from: &Namespace) -> Self {
        let this = Self { stop: Arc::new(AtomicBool::new(false)), sent: Arc::default() };
        let socket = udp(from, "10.8.0.1:0");
        let (stop, sent) = (Arc::clone(&this.stop), Arc::clone(&this.sent));
        std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                let host = 100 + u8::try_from(sent.fetch_add(1, Relaxed) % 100).unwrap();
                let _ = socket.send_to(&[0; 64], (Ipv4Addr::new(10, 8, 0, host), 9));
            }
        });
        this
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

// T36.
#[test]
fn steady_traffic_does_not_stall() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    [&pair.ta, &pair.tb].iter().for_each(|tunnel| tunnel.process.prefer());
    let flow = pair.flow();
    flow.goes_on("at first");
    pause(Duration::from_secs(10));
    let seen = flow.end();
    let (sent, packets) = (seen.sent.load(Relaxed), seen.packets.load(Relaxed));
    let silence = seen.silence.load(Relaxed);
    eprintln!("{packets} of {sent} packets arrived, the longest silence was {silence} ms");
    assert!(silence < 1000, "{silence} ms without a packet");
    assert!(packets * 100 > sent * 95, "{packets} of {sent} arrived");
}

// T14.
#[test]
fn ten_thousand_peers_are_configured_again_within_bounds_and_wake_nobody() {
    need!("ip", "wg");
    let namespace = Namespace::new();
    let tunnel = Tunnel::start_with(Program::Adit, &namespace, &["--threads", "2"], &[]);
    namespace.ip(&format!("link set {} up", tunnel.name));
    let empty = tunnel.process.memory_kib();
    let mut config = format!("[Interface]\nPrivateKey = {}\nListenPort = 77\n", tunnel.key.secret());
    for i in 0..10_000_u32 {
        let public = Key::generate().public();
        let v4 = (10 * i..10 * i + 5).map(|net| format!("{}/28", Ipv4Addr::from((10 << 24) + (net << 4))));
        let v6 = (0..5).map(|net| format!("fd00:{i:x}:{net}::/64"));
        let prefixes: Vec<_> = v4.chain(v6).collect();
        writeln!(config, "[Peer]\nPublicKey = {public}\nAllowedIPs = {}", prefixes.join(",")).unwrap();
        writeln!(config, "Endpoint = 127.0.0.1:{}", 1 + i).unwrap();
    }
    let configured = || {
        let began = boottime();
        tunnel.wg_with_input(&namespace, &["setconf", &tunnel.name, "/dev/stdin"], &config);
        let took = boottime() - began;
        assert_eq!(tunnel.show(&namespace, "peers").lines().count(), 10_000);
        // What was needed for the change alone is given back.
        pause(Duration::from_secs(1));
        (tunnel.process.memory_kib(), took)
    };
    let [(first, took), others @ ..] = [(); 10].map(|()| configured());
    let most = tunnel.process.memory_peak_kib();
    eprintln!(
        "10 000 peers: {empty} KiB before, {first} KiB, in {took:?}; again {others:?}, at most {most} KiB"
    );
    assert!(first < 40 << 10, "{first} KiB");
    // New peers come into the holes that old ones have left, which nothing is left in; a tenth is the allocator's mood.
    assert!(others.iter().all(|(memory, _)| memory * 10 < first * 11), "{first} KiB, {others:?}");
    assert!(most * 1024 < 120_000_000, "{most} KiB");
    if !cfg!(debug_assertions) {
        assert!(others.iter().all(|(_, took)| took.as_millis() < 900) && took.as_millis() < 900);
    }
    let allowed = tunnel.show(&namespace, "allowed-ips");
    assert!(allowed.lines().all(|line| line.split_whitespace().count() == 11), "{allowed}");
    pause(Duration::from_millis(500));
    let (woken, busy) = (tunnel.process.wake_ups(), tunnel.process.cpu_ms());
    pause(Duration::from_secs(5));
    let (woken, busy) = (tunnel.process.wake_ups() - woken, tunnel.process.cpu_ms() - busy);
    assert!(woken <= 5 && busy <= 10, "{woken} wake-ups, {busy} ms of processor time in 5 s");
}

// T17, T18.
#[test]
fn an_endpoint_of_a_family_that_is_missing_harms_nothing() {
    need!("ip", "wg");
    let pair = Pair::new("2");
    let flow = pair.flow();
    flow.goes_on("at first");
    pair.a.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    let public = pair.tb.key.public();
    pair.ta.set(&pair.a, &format!("peer {public} endpoint [fd00:1::2]:{PORT}"));
    pause(Duration::from_secs(1));
    let before = flow.seen.packets.load(Relaxed);
    pause(Duration::from_secs(1));
    assert_eq!(flow.seen.packets.load(Relaxed), before);
    pair.ta.set(&pair.a, &format!("peer {public} endpoint 192.168.1.2:{PORT}"));
    flow.goes_on("over the family that there is");
    drop(flow);
    pair.assert_idle();
}
