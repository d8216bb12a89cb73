//! Every tier of kernel features, made on the kernel that is there by calls that fail (`sys/fault.rs`), and the faults that a kernel may
//! have at any time: what goes in comes out, all of it, in order, whatever is missing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use adit::sys::clock::boottime;
use adit::sys::udp::{Datagram, Family, RecvBatch, SendBatch, UdpOptions, UdpSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::netns::{PORT2, Pair, Start};
use crate::support::stream::exchange;
use crate::support::tunnel::{Program, Tunnel};
use crate::support::{Namespace, SOON, ifname, need, not_hosted, pause, wait_for, wait_until};

/// A kernel's features, by what is to fail and by what is told not to be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    pub(crate) faults: &'static str,
    pub(crate) offload: &'static str,
    /// What is then in use, if this kernel has it.
    pub(crate) active: &'static str,
}

const fn tier(faults: &'static str, active: &'static str) -> Tier {
    Tier { faults, offload: "all=auto", active }
}

const ALL: &str = "multiqueue,vnet,tso,uso,tunnel,gso,gro,coalesce,coalesce-udp,steering";
pub(crate) const MODERN: Tier = tier("", ALL);
/// As in RHEL 7.
const LINUX_3_10: Tier = tier(
    "kernel=3.10.0,TunnelGso=22,UdpSegment=92,UdpGro=92,Steering=92,SendTos=22,Uso=22,TunNetns=22",
    "multiqueue,vnet,tso,coalesce",
);
pub(crate) const LINUX_4_14: Tier = tier(
    "kernel=4.14.0,TunnelGso=22,UdpSegment=92,UdpGro=92,Uso=22,TunNetns=22",
    "multiqueue,vnet,tso,coalesce,steering",
);
/// As in RHEL 8.
const LINUX_4_18: Tier = tier(
    "kernel=4.18.0,TunnelGso=22,UdpGro=92,Uso=22,TunNetns=22",
    "multiqueue,vnet,tso,gso,coalesce,steering",
);
/// It has `UDP_GRO`, which is not trusted.
const LINUX_5_4: Tier = tier("kernel=5.4.0,TunnelGso=22,Uso=22", "multiqueue,vnet,tso,gso,coalesce,steering");
/// It is trusted by who says so: whatever the kernel cuts, here it does not, as this one knows better.
const LINUX_5_4_WITH_GRO: Tier = Tier {
    offload: "all=auto,gro=on",
    ..tier("kernel=5.4.0,TunnelGso=22,Uso=22", "multiqueue,vnet,tso,gso,gro,coalesce,steering")
};
const LINUX_5_15: Tier =
    tier("kernel=5.15.0,TunnelGso=22,Uso=22", "multiqueue,vnet,tso,gso,gro,coalesce,steering");
/// It takes UDP super-packets, and loses them in VXLAN.
pub(crate) const LINUX_6_2: Tier =
    tier("kernel=6.2.0,TunnelGso=22", "multiqueue,vnet,tso,uso,gso,gro,coalesce,steering");
/// It corrupts runs of datagrams.
const LINUX_7_1_4: Tier =
    tier("kernel=7.1.4", "multiqueue,vnet,tso,uso,tunnel,gro,coalesce,coalesce-udp,steering");
const NOTHING: Tier = Tier { offload: "all=off", ..tier("", "none") };
const INSISTING: Tier = Tier { offload: "all=on", ..MODERN };
/// Packets come whole, but for their checksums.
const NO_SUPER_PACKETS: Tier = tier("Tso=22,Uso=22", "multiqueue,vnet,gso,gro,coalesce,steering");
/// Packets come with all their checksums.
const NO_CHECKSUMS: Tier = tier("Checksum=22", "multiqueue,vnet,gso,gro,coalesce,steering");
const NO_HEADER: Tier = tier("VnetHeader=22", "multiqueue,gso,gro,steering");
const ONE_QUEUE: Tier = tier("MultiQueue=22", "vnet,tso,uso,tunnel,gso,gro,coalesce,coalesce-udp,steering");
/// Linux 3.8 to 3.19 with more workers than it has queues.
const NO_MORE_QUEUES: Tier =
    tier("MoreQueues=7", "vnet,tso,uso,tunnel,gso,gro,coalesce,coalesce-udp,steering");
/// A system that resembles Linux.
const ONE_DATAGRAM_A_CALL: Tier = tier("ReceiveMany=38,SendMany=38", ALL);
/// Another one, without what a tunnel can be without.
const RESEMBLING: Tier = tier(
    "PacketInfo=92,ReceiveTos=92,PathMtu=92,SendTos=5,VnetHeaderLen=25,TunNetns=25,ReceiveMany=38,SendMany=38",
    "multiqueue,vnet,tso,uso,gso,gro,coalesce,coalesce-udp,steering",
);
const NEITHER: Tier = tier("VnetHeader=22,MultiQueue=22", "gso,gro,steering");
const NO_SHARED_PORT: Tier =
    tier("ReusePort=92", "multiqueue,vnet,tso,uso,tunnel,gso,gro,coalesce,coalesce-udp");

impl Tier {
    /// Calls `act` with how a tunnel of this tier is started.
    fn start<T>(self, act: impl FnOnce(Start<'_>) -> T) -> T {
        let env = [("ADIT_FAULT", self.faults), ("NO_COLOR", "1")];
        let args = ["--threads", "2", "--verbosity", "debug", "--offload", self.offload];
        act(Start { args: &args, env: &env })
    }

    /// A pair of tunnels of two tiers, each of which says that it is of its tier.
    pub(crate) fn pair(self, other: Self) -> Pair {
        let pair = self.start(|first| other.start(|second| Pair::started([first, second])));
        self.check(&pair.t1);
        other.check(&pair.t2);
        pair
    }

    /// The log says what is in use. What this kernel does not have at all is not missed.
    fn check(self, tunnel: &Tunnel) {
        let active = wait_for("the line of offloads", SOON, || {
            let output = tunnel.process.output();
            let (_, rest) = output.split_once("offloads=")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        let expected: Vec<_> = self.active.split(',').filter(|name| is_here(name)).collect();
        assert_eq!(active, expected.join(","), "{self:?}");
    }
}

/// Tells whether calls can be made to fail: not in a release build.
pub(crate) fn faults_are_possible() -> bool {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: debug assertions missing in this build, and faults with them");
    }
    cfg!(debug_assertions)
}

/// Tells whether the running kernel can have a feature at all (`sys/offload.rs` says since when each is there).
pub(crate) fn is_here(feature: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    version
        >= match feature {
            "uso" => [6, 2, 0],
            "tunnel" => [6, 17, 0],
            "coalesce-udp" => [6, 8, 5],
            "gso" => [4, 18, 0],
            "gro" => [5, 12, 0],
            "steering" => [4, 5, 0],
            _ => [0; 3],
        }
}

/// Echo requests, TCP and datagrams both ways over both families, inside both families.
fn exercise(pair: &Pair) {
    for host in ["127.0.0.1", "[::1]"] {
        pair.set_endpoints(host);
        exercise_as_it_is(pair);
    }
}

fn exercise_as_it_is(pair: &Pair) {
    let Pair { ns1, ns2, .. } = pair;
    for (addr1, addr2) in [("192.168.241.1", "192.168.241.2"), ("fd00::1", "fd00::2")] {
        ns1.sh(&format!("ping -n -c 10 -f -W 4 {addr2}"));
        ns2.sh(&format!("ping -n -c 10 -f -W 4 {addr1}"));
        exchange(ns1, ns2, addr2, 1 << 20);
        exchange(ns2, ns1, addr1, 1 << 20);
        datagrams(ns1, ns2, addr2);
        datagrams(ns2, ns1, addr1);
    }
}

// ---- datagrams

const TUNNEL_MTU: usize = 1420;

/// Those of IPv6 and UDP.
const HEADERS: usize = 48;

/// Lengths of datagrams, each so many times: longer ones than the tunnel's MTU, shorter ones than a header, and runs of every kind.
const LENGTHS: [(usize, usize); 16] = [
    (1372, 40),
    (8, 3),
    (1000, 7),
    (999, 1),
    (64, 50),
    (3000, 5),
    (1200, 2),
    (1372, 1),
    (1371, 1),
    (20, 1),
    (1372, 21),
    (512, 30),
    (9, 9),
    (20_000, 2),
    (300, 1),
    (1372, 13),
];

/// Two flows of numbered datagrams, one by one and in runs; each must arrive whole, and in its order. There are never so many on their
/// way that a queue might be full.
#[track_caller]
fn datagrams(from: &Namespace, to: &Namespace, addr: &str) {
    datagrams_within(from, to, addr, TUNNEL_MTU);
}

/// The same over a link with an MTU of its own: what would fit into a packet of the tunnel's is to fit into one of its.
#[track_caller]
pub(crate) fn datagrams_within(from: &Namespace, to: &Namespace, addr: &str, mtu: usize) {
    const FLOWS: u32 = 2;
    let addr: IpAddr = addr.parse().unwrap();
    let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
    let options = UdpOptions { buffer: 4 << 20, ..UdpOptions::default() };
    let open = |namespace: &Namespace| namespace.enter(move || UdpSocket::bind(family, 0, &options)).unwrap();
    let inbox = open(to);
    let outboxes: Vec<_> = (0..FLOWS).map(|_| open(from)).collect();
    let to = SocketAddr::new(addr, inbox.local_port().unwrap());
    // The lengths of those that were sent in each flow, and how many of them have arrived.
    let mut sent = vec![Vec::<usize>::new(); outboxes.len()];
    let mut arrived = vec![0; outboxes.len()];
    let (mut out, mut buffers) = (SendBatch::new(64), RecvBatch::new(64, 1 << 16));
    let mut rounds = LENGTHS.into_iter().cycle().take(9 * LENGTHS.len()).enumerate().peekable();
    while let Some((round, (len, count))) = rounds.next() {
        let is_one_packet = len <= TUNNEL_MTU - HEADERS;
        let len = if is_one_packet { len.min(mtu - HEADERS) } else { len };
        for ((flow, outbox), lengths) in outboxes.iter().enumerate().zip(&mut sent) {
            let messages: Vec<_> =
                (lengths.len()..).take(count).map(|number| numbered(flow, number, len)).collect();
            lengths.extend(vec![len; count]);
            // A run only where every datagram fits into a packet.
            let is_run = round % 2 == 0 && is_one_packet;
            let payloads = if is_run { vec![messages.concat()] } else { messages };
            let segment = if is_run { u16::try_from(len).unwrap() } else { 0 };
            let mut datagrams: Vec<_> = payloads
                .iter()
                .map(|payload| Datagram { to, from: None, ds: 0, hop_limit: None, payload, segment })
                .collect();
            while !datagrams.is_empty() {
                let count = out.send(outbox, &datagrams).unwrap();
                datagrams.drain(..count);
            }
        }
        // Some kinds are under way together, so that different ones meet in one batch. Not fragments, which no kernel knows by their ports:
        // they may take another queue.
        let may_follow = |&(_, (next, _)): &(usize, (usize, usize))| next <= TUNNEL_MTU - HEADERS;
        if round % 5 != 0 && is_one_packet && rounds.peek().is_some_and(may_follow) {
            continue;
        }
        let deadline = boottime() + SOON;
        while arrived.iter().zip(&sent).any(|(arrived, sent)| *arrived < sent.len()) {
            assert!(boottime() < deadline, "{addr}, round {round}: {arrived:?} of {}", sent[0].len());
            wait_readable(&inbox);
            while let Ok(received) = buffers.recv(&inbox, usize::MAX) {
                for slot in 0..received {
                    let run = buffers.get_mut(slot).unwrap();
                    for message in run.payload.chunks(run.segment) {
                        let flow = usize::from(message[0]);
                        let number = arrived[flow];
                        let expected = numbered(flow, number, sent[flow][number]);
                        assert!(
                            message == expected,
                            "{addr}, flow {flow}: {number} of {} bytes was to come, not one of {}",
                            expected.len(),
                            message.len()
                        );
                        arrived[flow] += 1;
                    }
                }
            }
        }
    }
}

/// Waits until there is something to be read, for a second at most.
fn wait_readable(socket: &UdpSocket) {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
}

/// The datagram of that number in a flow.
fn numbered(flow: usize, number: usize, len: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap();
    let start = [&[u8::try_from(flow).unwrap(), 0, 0, 0][..], &number.to_le_bytes()].concat();
    let rest = (0..).map(|i: u32| (i.wrapping_mul(number + 7) >> 3).to_le_bytes()[0]);
    start.into_iter().chain(rest).take(len).collect()
}

// ---- tiers

macro_rules! tiers {
    ($($name:ident: $tier:expr, $other:expr;)*) => {
        $(#[test]
        fn $name() {
            need!("ip", "wg", "ping");
            if faults_are_possible() {
                exercise(&$tier.pair($other));
            }
        })*
    };
}

tiers! {
    tier_all_of_them: MODERN, MODERN;
    tier_linux_3_10: LINUX_3_10, LINUX_3_10;
    tier_linux_4_14: LINUX_4_14, LINUX_4_14;
    tier_linux_4_18: LINUX_4_18, LINUX_4_18;
    tier_linux_5_4: LINUX_5_4, LINUX_5_4;
    tier_linux_5_4_with_gro: LINUX_5_4_WITH_GRO, LINUX_5_4_WITH_GRO;
    tier_linux_5_15: LINUX_5_15, LINUX_5_15;
    tier_linux_6_2: LINUX_6_2, LINUX_6_2;
    tier_linux_7_1_4: LINUX_7_1_4, LINUX_7_1_4;
    tier_nothing: NOTHING, NOTHING;
    tier_without_super_packets: NO_SUPER_PACKETS, NO_SUPER_PACKETS;
    tier_without_checksums: NO_CHECKSUMS, NO_CHECKSUMS;
    tier_without_a_header: NO_HEADER, NO_HEADER;
    tier_with_one_queue: ONE_QUEUE, NO_MORE_QUEUES;
    tier_with_one_queue_and_no_header: NEITHER, NEITHER;
    tier_without_shared_ports: NO_SHARED_PORT, NO_SHARED_PORT;
    tier_with_one_datagram_a_call: ONE_DATAGRAM_A_CALL, ONE_DATAGRAM_A_CALL;
    tier_of_what_resembles_linux: RESEMBLING, RESEMBLING;
    linux_3_10_speaks_with_the_newest: LINUX_3_10, MODERN;
    linux_4_18_speaks_with_6_2: LINUX_4_18, LINUX_6_2;
    nothing_speaks_with_everything: NOTHING, MODERN;
    no_header_speaks_with_4_14: NO_HEADER, LINUX_4_14;
}

#[test]
fn a_new_device_has_a_queue_of_a_thousand_packets_for_each_worker() {
    need!("ip", "wg");
    let pair = MODERN.pair(NOTHING);
    assert_eq!([queue_len(&pair.ns1, &pair.t1.name), queue_len(&pair.ns2, &pair.t2.name)], [2000, 1000]);
}

fn queue_len(namespace: &Namespace, name: &str) -> u32 {
    let link = namespace.ip(&format!("link show dev {name}"));
    let (_, rest) = link.split_once("qlen ").unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// Who switches a feature on does not want to go without.
#[test]
fn a_feature_that_is_insisted_on_is_there_or_nothing_is() {
    need!("ip", "wg");
    if !faults_are_possible() {
        return;
    }
    if is_here("coalesce-udp") {
        INSISTING.pair(MODERN);
    }
    let namespace = Namespace::new();
    for (faults, offload, missing) in [
        ("", "vnet=off,tso=on", "tso=on"),
        ("VnetHeader=22", "coalesce=on", "coalesce=on"),
        ("VnetHeader=22", "vnet=on", "vnet=on"),
        ("MultiQueue=22", "multiqueue=on", "multiqueue=on"),
        ("MoreQueues=7", "multiqueue=on", "multiqueue=on"),
        ("Tso=22", "tso=on", "tso=on"),
        ("Uso=22", "uso=on", "uso=on"),
        ("Checksum=22", "tso=on", "tso=on"),
        ("VnetHeaderLen=25", "tunnel=on", "tunnel=on"),
    ] {
        let tier = Tier { faults, offload, ..MODERN };
        let mut process =
            tier.start(|start| Program::Adit.start(&namespace, &ifname(), start.args, start.env));
        assert!(!process.wait(SOON).success(), "{offload} with {faults}");
        wait_until(&format!("{missing} is blamed"), SOON, || process.output().contains(missing));
    }
}

/// What is left of a program before is not what the next one finds: super-packets on queues without a header would be taken for packets.
#[test]
fn a_persistent_device_brings_no_super_packets_to_one_who_reads_none() {
    need!("ip", "wg", "ethtool");
    if !faults_are_possible() {
        return;
    }
    let (namespace, name) = (Namespace::new(), ifname());
    namespace.ip(&format!("tuntap add dev {name} mode tun"));
    let has_tso = || {
        let features = namespace.sh(&format!("ethtool -k {name}"));
        features.lines().any(|line| line.starts_with("tcp-segmentation-offload: on"))
    };
    for (tier, expected) in [(ONE_QUEUE, true), (NOTHING, false), (ONE_QUEUE, true), (NEITHER, false)] {
        let start = |start: Start<'_>| {
            Tunnel::start_on(Program::Adit, &namespace, name.clone(), start.args, start.env)
        };
        let mut tunnel = tier.start(start);
        assert_eq!(has_tso(), expected, "{tier:?}");
        assert_eq!(queue_len(&namespace, &name), 500, "it was not made by us");
        tunnel.process.signal(rustix::process::Signal::TERM);
        tunnel.process.wait(SOON);
    }
}

// ---- faults

/// Lines of the log that contain `text`.
fn lines(tunnel: &Tunnel, text: &str) -> usize {
    tunnel.process.output().lines().filter(|line| line.contains(text)).count()
}

/// A pair in which the calls of one, or of both, fail.
fn failing(faults: &'static str) -> [Pair; 2] {
    let failing = tier(faults, ALL);
    [failing.pair(MODERN), failing.pair(failing)]
}

/// T29. Two workers learn it once for each of two addresses; what is sent later is not tried again.
#[test]
fn runs_that_a_device_refuses_are_sent_one_by_one_and_not_tried_again() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for faults in ["SendSegmented=5", "SendSegmented=95"] {
        for pair in failing(faults) {
            exercise(&pair);
            let learnt = lines(&pair.t1, "runs of datagrams are refused");
            assert!((1..=4).contains(&learnt), "{faults}: {learnt} times");
        }
    }
}

/// T29. It may be a matter of length: shorter runs are tried, and each refusal is for all that are longer.
#[test]
fn runs_of_a_length_that_is_refused_are_sent_one_by_one() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for faults in ["SendSegmented=22", "SendSegmented=90"] {
        for pair in failing(faults) {
            exercise(&pair);
            let learnt = lines(&pair.t1, "runs of datagrams are refused");
            // There are 90 multiples of 16 up to the MTU, two workers and two addresses.
            assert!((1..=360).contains(&learnt), "{faults}: {learnt} times");
        }
    }
}

#[test]
fn one_refusal_loses_nothing_either() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for faults in ["SendSegmented=5*1", "SendSegmented=22*1", "SendSegmented=90*1"] {
        let [pair, _] = failing(faults);
        exercise(&pair);
        assert_eq!(lines(&pair.t1, "runs of datagrams are refused"), 1, "{faults}");
    }
}

/// T26: Linux 6.6.44 and others of its time.
#[test]
fn super_packets_that_the_device_refuses_are_written_one_by_one() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for (faults, kinds) in [
        ("TunWriteTcp=22", 1),
        ("TunWriteUdp=22", 1),
        ("TunWriteTcp=22,TunWriteUdp=22", 2),
        ("TunWriteTcp=22*1,TunWriteUdp=22*1", 2),
    ] {
        let [pair, _] = failing(faults);
        exercise(&pair);
        let learnt = lines(&pair.t1, "super-packets are refused");
        // By each of two workers and the thread for handshakes.
        assert!((1..=3 * kinds).contains(&learnt), "{faults}: {learnt} times");
    }
    // For want of memory: not for good, and no loss.
    let [pair, _] = failing("TunWriteTcp=12*20,TunWriteUdp=12*20");
    exercise(&pair);
    assert_eq!(lines(&pair.t1, "super-packets are refused"), 0);
}

/// T35, and what a full or failing system says to who sends.
#[test]
fn errors_that_pass_lose_nothing() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for faults in [
        "Receive=12*50,SendSegmented=11*15",
        "TunRead=22*300",
        "TunRead=12*300",
        "Receive=4*50,Send=4*50,SendSegmented=4*50",
        "Receive=111*50,SendSegmented=105*15",
        "SendFrom=22",
        "SendFrom=99*5",
        "SendFrom=101,SendSegmented=5",
    ] {
        let [_, pair] = failing(faults);
        exercise(&pair);
    }
}

/// What is lost in a storm is lost; nothing stops for it.
#[test]
fn a_storm_of_errors_passes() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for errno in [1, 100, 105, 12] {
        let faults = format!("Send={errno}*1,SendSegmented={errno}*8,Receive={errno}*200");
        let tier = Tier { faults: Box::leak(faults.into_boxed_str()), ..MODERN };
        let pair = tier.pair(tier);
        pair.set_endpoints("127.0.0.1");
        // The first initiation is lost, and sent again after five seconds.
        wait_until("a session", SOON, || pair.ns1.pings("192.168.241.2") && pair.ns2.pings("192.168.241.1"));
        // TCP outlasts what hits its segments.
        for _ in 0..3 {
            exchange(&pair.ns1, &pair.ns2, "192.168.241.2", 1 << 20);
            exchange(&pair.ns2, &pair.ns1, "192.168.241.1", 1 << 20);
        }
    }
}

/// A packet costs no more than itself.
#[test]
fn packets_that_the_device_refuses_are_counted_and_those_behind_them_are_written() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for (faults, refused) in [("TunWrite=12*10", 10), ("TunWrite=5*3", 3)] {
        let [pair, _] = failing(faults);
        pair.set_endpoints("127.0.0.1");
        let output =
            pair.ns1.try_run("ping", &["-n", "-c", "30", "-i", "0.01", "-W", "1", "192.168.241.2"]).1;
        assert!(output.contains(&format!("30 packets transmitted, {} received", 30 - refused)), "{output}");
        assert_eq!(pair.t1.dropped("tun_write_failed"), refused);
    }
}

/// What did not fit into the buffer, and datagrams whose length was not told, are counted; those before them in a run are whole.
#[test]
fn what_is_cut_off_is_counted_and_costs_nothing_else() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    // Where no length is told, the first messages of the handshake are lost, and sent again after five seconds each.
    for (faults, expected) in [("ReceiveRoom=90*200", 2..=200), ("ControlRoom=90*2", 2..=2)] {
        let [pair, _] = failing(faults);
        pair.set_endpoints("127.0.0.1");
        wait_until("a session", SOON, || pair.ns1.pings("192.168.241.2"));
        // TCP repeats what is lost.
        exchange(&pair.ns2, &pair.ns1, "192.168.241.1", 4 << 20);
        let (cut, forged) = (pair.t1.dropped("truncated"), pair.t1.dropped("forged"));
        if is_here("gro") {
            assert!(expected.contains(&cut), "{faults}: {cut}");
        }
        assert_eq!(forged, 0, "{faults}: half a message is never opened");
        assert_eq!(pair.t2.dropped("truncated"), 0);
    }
}

#[test]
fn a_family_without_sockets_is_done_without() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    for (faults, host) in [("SocketV4=97", "[::1]"), ("SocketV6=97", "127.0.0.1")] {
        for pair in failing(faults) {
            pair.set_endpoints(host);
            exercise_as_it_is(&pair);
        }
    }
}

/// Who has no right to mark what it sends is told so, and keeps what it had.
#[test]
fn a_mark_that_is_refused_changes_nothing() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    let [pair, _] = failing("Mark=1");
    pair.set_endpoints("127.0.0.1");
    let port = pair.t1.show(&pair.ns1, "listen-port");
    for line in ["fwmark 5", "fwmark 5 listen-port 77"] {
        assert!(!pair.ns1.succeeds(&format!("wg set {} {line}", pair.t1.name)), "{line}");
        assert_eq!(pair.t1.show(&pair.ns1, "fwmark"), "off");
        assert_eq!(pair.t1.show(&pair.ns1, "listen-port"), port);
    }
    exercise_as_it_is(&pair);
}

/// As where system calls are filtered: who cannot receive does not keep the processor busy with it.
#[test]
fn a_call_that_fails_for_good_costs_nothing() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    let pair = tier("Receive=1", ALL).pair(MODERN);
    pair.set_endpoints("127.0.0.1");
    assert!(!pair.ns2.pings("192.168.241.1"));
    let before = pair.t1.process.cpu_ms();
    pause(Duration::from_secs(2));
    let used = pair.t1.process.cpu_ms() - before;
    assert!(used < 200, "{used} ms of processor time in 2 s");
}

// ---- paths

/// No fault here but the path's: datagrams are longer than its MTU. They are fragmented, as those of the kernel's WireGuard are; runs of
/// them the kernel refuses.
#[test]
fn a_device_with_a_smaller_mtu_gets_fragments() {
    need!("ip", "wg", "ping");
    let pair = MODERN.start(|start| Pair::started_apart([start, start]));
    let Pair { ns1, ns2, t1, .. } = &pair;
    ns1.join("veth1", &["10.0.0.1/24", "fd00:aa::1/96"], ns2, "veth2", &["10.0.0.2/24", "fd00:aa::2/96"]);
    ns1.ip("link set veth1 mtu 1280");
    ns2.ip("link set veth2 mtu 1280");
    for (endpoint, headers) in [("10.0.0.2:2", 28), ("[fd00:aa::2]:2", 48)] {
        pair.point_1_to(endpoint);
        exercise_as_it_is(&pair);
        // Whole, as the tunnel's MTU promises.
        assert!(ns1.succeeds("ping -n -c 3 -i 0.01 -W 2 -M do -s 1392 192.168.241.2"));
        if is_here("gso") {
            let refused = lines(t1, "runs of datagrams are refused");
            assert!(refused > 0, "no run was longer than {} bytes", 1280 - headers);
        }
    }
}

/// The smaller MTU is a router's. Over IPv4 it cuts what is too long; over IPv6 it says so, and the kernel cuts from then on.
#[test]
fn a_router_with_a_smaller_mtu_loses_nothing_of_a_stream() {
    need!("ip", "wg", "ping");
    let pair = MODERN.start(|start| Pair::started_apart([start, start]));
    let Pair { ns0, ns1, ns2, .. } = &pair;
    ns0.join("near", &["10.1.0.254/24", "fd01::fe/96"], ns1, "up1", &["10.1.0.1/24", "fd01::1/96"]);
    ns0.join("far", &["10.2.0.254/24", "fd02::fe/96"], ns2, "up2", &["10.2.0.2/24", "fd02::2/96"]);
    ns0.sysctl("net/ipv4/ip_forward", "1");
    ns0.sysctl("net/ipv6/conf/all/forwarding", "1");
    for (namespace, host) in [(ns1, 1), (ns2, 2)] {
        namespace.ip(&format!("-4 route add default via 10.{host}.0.254"));
        namespace.ip(&format!("-6 route add default via fd0{host}::fe"));
    }
    ns0.ip("link set far mtu 1280");
    ns2.ip("link set up2 mtu 1280");
    for endpoint in ["10.2.0.2:2", "[fd02::2]:2"] {
        pair.point_1_to(endpoint);
        for addr in ["192.168.241.2", "fd00::2"] {
            exchange(ns1, ns2, addr, 2 << 20);
        }
        // The path is known now.
        assert!(ns1.succeeds("ping -n -c 20 -i 0.01 -W 2 -M do -s 1392 192.168.241.2"), "{endpoint}");
        assert!(ns2.succeeds("ping -n -c 20 -i 0.01 -W 2 -M do -s 1392 192.168.241.1"), "{endpoint}");
    }
}

// ---- a flood

/// A flood of messages that look like handshakes fills the buffer of their own socket; no datagram of data is dropped meanwhile.
#[test]
fn a_flood_of_handshakes_drops_no_data() {
    need!("ip", "wg", "ping");
    if !is_here("steering") {
        return not_hosted("steering");
    }
    let pair = MODERN.pair(MODERN);
    pair.set_endpoints("127.0.0.1");
    assert!(pair.ns1.pings("192.168.241.2"));
    let stop = Arc::new(AtomicBool::new(false));
    let flood = pair.ns0.enter({
        let stop = Arc::clone(&stop);
        move || {
            let socket = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
            std::thread::spawn(move || flood(&socket, &stop))
        }
    });
    let mut rounds = 0;
    let deadline = boottime() + SOON;
    // Some rounds more than it takes the flood to fill its socket.
    while rounds < 5 || pair.ns0.udp_drops(PORT2).iter().all(|&drops| drops == 0) {
        assert!(boottime() < deadline, "the flood fills nothing");
        datagrams(&pair.ns1, &pair.ns2, "192.168.241.2");
        rounds += 1;
    }
    datagrams(&pair.ns2, &pair.ns1, "192.168.241.1");
    exchange(&pair.ns1, &pair.ns2, "192.168.241.2", 1 << 20);
    let drops = pair.ns0.udp_drops(PORT2);
    stop.store(true, Relaxed);
    flood.join().unwrap();
    assert!(drops.len() >= 3, "two workers and one for handshakes, in IPv4 alone: {drops:?}");
    assert_eq!(drops.iter().filter(|&&drops| drops > 0).count(), 1, "only one socket is flooded: {drops:?}");
}

/// Sends what looks like initiations to tunnel 2, as fast as it can be sent.
fn flood(socket: &UdpSocket, stop: &AtomicBool) {
    let message = [&[1, 0, 0, 0][..], &[0x5a; 144]].concat();
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), PORT2);
    let datagrams = [Datagram { to, from: None, ds: 0, hop_limit: None, payload: &message, segment: 0 }; 64];
    let mut batch = SendBatch::new(64);
    while !stop.load(Relaxed) {
        let _ = batch.send(socket, &datagrams);
    }
}
