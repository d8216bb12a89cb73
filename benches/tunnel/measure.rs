//! What is measured.

use std::time::Duration;

use adit::crypto::random::{Os, Random};
use adit::sys::clock::monotonic;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::flood::Flood;
use crate::lab::{Lab, Usage, live_config, status_mb};
use crate::support::{Process, SOON, pause, wait_until};
use crate::udp::{Delivered, Flow};

/// One thing to be measured, in a lab of its own.
pub(crate) struct Measurement {
    /// Its name in the raw rows and after `--what`.
    pub(crate) name: &'static str,
    /// Its name in the table.
    pub(crate) title: &'static str,
    /// Whether it configures: then only for what `wg` configures.
    pub(crate) needs_wireguard: bool,
    run: fn(&Lab, Duration) -> Measured,
}

/// What came out of one run.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    pub(crate) cost: Option<Cost>,
}

/// One number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Empty for what the measurement is about.
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Which of two numbers wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// Processor time for what arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Of both daemons, in seconds per 10^9 bytes of payload.
    pub(crate) daemons_s_per_gb: f64,
    /// Of the whole machine, both kernels' ends and the generator with it.
    pub(crate) machine_s_per_gb: f64,
}

/// Everything, in the order of the table.
pub(crate) const ALL: &[Measurement] = &[
    Measurement::new("tcp1", "TCP, 1 stream", |lab, time| tcp(lab, lab.inner(1), time, &["-P", "1"])),
    Measurement::new("tcp4", "TCP, 4 streams", |lab, time| tcp(lab, lab.inner(1), time, &["-P", "4"])),
    Measurement::new("tcp16", "TCP, 16 streams", |lab, time| tcp(lab, lab.inner(1), time, &["-P", "16"])),
    Measurement::new("tcp-both", "TCP, both directions at once, sum", |lab, time| {
        tcp(lab, lab.inner(1), time, &["--bidir"])
    }),
    Measurement::new("tcp-bare", "TCP, 1 stream, veth offloads off", |lab, time| {
        lab.without_offloads();
        tcp(lab, lab.inner(1), time, &["-P", "1"])
    }),
    Measurement::new("tcp-vxlan", "TCP over VXLAN inside, 1 stream", |lab, time| {
        tcp(lab, lab.overlay(), time, &["-P", "1"])
    }),
    Measurement::new("udp1372", "UDP, 1372 B, ≤ 1 % loss", |lab, time| {
        udp_search(lab, time, &[1_372], false)
    }),
    Measurement::new("udp64", "UDP, 64 B, ≤ 1 % loss", |lab, time| udp_search(lab, time, &[64], true)),
    Measurement::new("imix", "UDP, IMIX, ≤ 1 % loss", |lab, time| udp_search(lab, time, IMIX, false)),
    Measurement::new("udp64-fixed", "UDP, 64 B, 30,000 a second", udp_fixed),
    Measurement::new("ping-idle", "ping, idle", ping_idle),
    Measurement::new("ping-loaded", "ping, under TCP", ping_loaded),
    Measurement {
        needs_wireguard: true,
        ..Measurement::new("flood-tcp1", "TCP, 1 stream, beside a flood of handshakes", flood_tcp)
    },
    Measurement {
        needs_wireguard: true,
        ..Measurement::new("flood-udp64", "UDP, 64 B, ≤ 1 % loss, beside a flood of handshakes", flood_udp)
    },
    Measurement {
        needs_wireguard: true,
        ..Measurement::new("flood-ping", "ping, beside a flood of handshakes", flood_ping)
    },
    Measurement {
        needs_wireguard: true,
        ..Measurement::new("peers-1000", "1,000 peers × 1 prefix", |lab, time| peers(lab, time, 1_000, 1))
    },
    Measurement {
        needs_wireguard: true,
        ..Measurement::new("peers-10000", "10,000 peers × 10 prefixes", |lab, time| {
            peers(lab, time, 10_000, 10)
        })
    },
];

/// Payloads of packets of 64, 576 and 1400 bytes, 7 : 4 : 1, shuffled: IPv4 and UDP take 28.
const IMIX: &[usize] = &[36, 548, 36, 36, 548, 36, 1_372, 36, 548, 36, 548, 36];
/// Datagrams a second at which the cost of one is taken.
const FIXED_RATE: u64 = 30_000;
/// What one costs the daemons of both ends, and that of the end that sends.
pub(crate) const PACKET_CPU: &str = "both daemons, CPU per packet";
const SENDER_CPU: &str = "sending daemon, CPU per packet";
/// Milliseconds between two pings.
const PING_INTERVAL_MS: u128 = 2;
/// The fewest pings of which a 99th percentile is taken.
const PINGS: u128 = 500;
/// What is left of a figure beside a flood.
const KEPT: &str = "of that beside a flood of nobody";

impl Measurement {
    const fn new(name: &'static str, title: &'static str, run: fn(&Lab, Duration) -> Measured) -> Self {
        Self { name, title, needs_wireguard: false, run }
    }

    /// Runs it once; a run of traffic lasts for `time`.
    pub(crate) fn run(&self, lab: &Lab, time: Duration) -> Measured {
        (self.run)(lab, time)
    }
}

impl Figure {
    fn more(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, better: Better::More }
    }

    fn less(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, better: Better::Less }
    }
}

impl Cost {
    fn new(used: Usage, bytes: f64) -> Self {
        let gb = bytes / 1e9;
        Self { daemons_s_per_gb: used.both() / gb, machine_s_per_gb: used.machine / gb }
    }
}

/// TCP with cubic by iperf3.
fn tcp(lab: &Lab, to: &str, time: Duration, options: &[&str]) -> Measured {
    let server = serve(lab);
    let seconds = time.as_secs().max(1).to_string();
    let mut args = vec!["-c", to, "-J", "-C", "cubic", "-t", &seconds];
    args.extend(options);
    let before = lab.usage();
    let output = lab.a().run("iperf3", &args);
    let used = lab.usage() - before;
    drop(server);
    let sum = |key| -> f64 {
        ["sum_received", "sum_received_bidir_reverse"]
            .into_iter()
            .filter_map(|sum| number_after(&output, &format!("\"{sum}\":"), key))
            .sum()
    };
    let rate = sum("\"bits_per_second\":");
    assert!(rate > 0.0, "iperf3: {output}");
    let mut figures = vec![Figure::more("", rate / 1e9, "Gbit/s")];
    figures.extend(variation(&output).map(|percent| Figure::less("variation of 1 s samples", percent, "%")));
    Measured { figures, cost: Some(Cost::new(used, sum("\"bytes\":"))) }
}

/// Starts an iperf3 server in b and waits until it listens.
fn serve(lab: &Lab) -> Process {
    let server = lab.b().spawn("iperf3", &["-s", "-1"]);
    wait_until("the iperf3 server", SOON, || lab.b().sh("ss -Hltn").contains(":5201"));
    server
}

/// Returns the number behind the first `key` behind the first `section`.
fn number_after(json: &str, section: &str, key: &str) -> Option<f64> {
    let (_, section) = json.split_once(section)?;
    let (_, value) = section.split_once(key)?;
    value.split([',', '}', '\n']).next()?.trim().parse().ok()
}

/// Returns the coefficient of variation of the samples of a second behind the first, if there are enough, in percent.
fn variation(json: &str) -> Option<f64> {
    let samples = json.split("\"sum\":").skip(2);
    let samples: Vec<f64> = samples
        .filter_map(|sum| number_after(&format!("\"sum\":{sum}"), "\"sum\":", "\"bits_per_second\":"))
        .collect();
    if samples.len() < 3 {
        return None;
    }
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some(100.0 * variance.sqrt() / mean)
}

/// The highest rate that arrives, a try lasting for a quarter of `time`.
fn udp_search(lab: &Lab, time: Duration, sizes: &[usize], small: bool) -> Measured {
    let attempt = (time / 4).max(Duration::from_millis(250));
    let mut flow = Flow::open(lab);
    let (delivered, used) = flow.search(lab, sizes, attempt);
    let (gbit, kpps) = (delivered.gbit_per_second(), delivered.per_second() / 1e3);
    let mut figures = if small {
        vec![Figure::more("", kpps, "kpps")]
    } else {
        vec![Figure::more("", gbit, "Gbit/s"), Figure::more("packets", kpps, "kpps")]
    };
    // Nothing shall be lost at a rate with some room above it.
    let sustained = flow.send(sizes, Some(delivered.rate() * 4 / 5), time);
    figures.push(Figure::less("lost at 0.8 of it", sustained.loss_percent(), "%"));
    figures.push(Figure::less("reordered at 0.8 of it", sustained.reordered as f64, "packets"));
    Measured { figures, cost: Some(Cost::new(used, delivered.bytes as f64)) }
}

/// What a small packet costs at a rate that everybody holds.
fn udp_fixed(lab: &Lab, time: Duration) -> Measured {
    let (delivered, used) = fixed(lab, time);
    let mut figures = Vec::new();
    if lab.has_tunnel() {
        figures.push(Figure::less(PACKET_CPU, per_packet(used.both(), &delivered), "µs"));
        figures.push(Figure::less(SENDER_CPU, per_packet(used.daemons[0], &delivered), "µs"));
    }
    figures.push(Figure::more("arrived", delivered.per_second() / 1e3, "kpps"));
    figures.push(Figure::less("lost", delivered.loss_percent(), "%"));
    figures.push(Figure::less("reordered", delivered.reordered as f64, "packets"));
    Measured { figures, cost: None }
}

fn fixed(lab: &Lab, time: Duration) -> (Delivered, Usage) {
    let mut flow = Flow::open(lab);
    let before = lab.usage();
    let delivered = flow.send(&[64], Some(FIXED_RATE), time);
    (delivered, lab.usage() - before)
}

fn per_packet(seconds: f64, delivered: &Delivered) -> f64 {
    seconds * 1e6 / delivered.received as f64
}

/// Round trips while nothing else happens; the very first one with the handshake.
fn ping_idle(lab: &Lab, time: Duration) -> Measured {
    let mut figures = ping(lab, time);
    figures.extend(lab.first_ping_ms.map(|first| Figure::less("first, with the handshake", first, "ms")));
    Measured { figures, cost: None }
}

/// Round trips beside a TCP stream.
fn ping_loaded(lab: &Lab, time: Duration) -> Measured {
    let server = serve(lab);
    // It outlasts the pings and is ended.
    let seconds = (time.as_secs() + 60).to_string();
    let load = lab.a().spawn("iperf3", &["-c", lab.inner(1), "-C", "cubic", "-t", &seconds]);
    pause(Duration::from_millis(500));
    let figures = ping(lab, time);
    drop((load, server));
    Measured { figures, cost: None }
}

fn ping(lab: &Lab, time: Duration) -> Vec<Figure> {
    let count = (time.as_millis() / PING_INTERVAL_MS).max(PINGS);
    let line = format!("ping -n -W 1 -i 0.00{PING_INTERVAL_MS} -c {count} {}", lab.inner(1));
    let mut times = ping_times(&lab.a().sh(&line));
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let average = times.iter().sum::<f64>() / times.len() as f64;
    vec![
        Figure::less("average", average, "ms"),
        Figure::less("median", at(50), "ms"),
        Figure::less("99th percentile", at(99), "ms"),
        Figure::less("lost", 100.0 * (1.0 - times.len() as f64 / count as f64), "%"),
    ]
}

/// Returns the round trips that ping tells of, in milliseconds.
pub(crate) fn ping_times(output: &str) -> Vec<f64> {
    let times = output.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
    times.collect()
}

/// Takes `measure` beside a flood of handshakes, and beside the same one towards nobody, which takes as much of the machine to make.
/// Returns what comes beside the first, and how much that is of what comes beside the other.
fn beside_a_flood(lab: &Lab, measure: impl Fn() -> Measured) -> Measured {
    let [without, mut beside] = [Flood::start_to_nobody, Flood::start].map(|start| {
        let _flood = start(lab);
        pause(Duration::from_millis(500));
        measure()
    });
    let (first, without) = (beside.figures[0], without.figures[0]);
    beside.figures.push(Figure {
        name: KEPT,
        value: 100.0 * first.value / without.value,
        unit: "%",
        ..first
    });
    beside
}

fn flood_tcp(lab: &Lab, time: Duration) -> Measured {
    beside_a_flood(lab, || tcp(lab, lab.inner(1), time, &["-P", "1"]))
}

fn flood_udp(lab: &Lab, time: Duration) -> Measured {
    beside_a_flood(lab, || udp_search(lab, time, &[64], true))
}

fn flood_ping(lab: &Lab, time: Duration) -> Measured {
    beside_a_flood(lab, || Measured { figures: ping(lab, time), cost: None })
}

/// So many peers configured beside the live one: time, memory, both again, and what a packet costs then.
fn peers(lab: &Lab, time: Duration, count: u32, prefixes: u32) -> Measured {
    let (tunnel, peer) = lab.tunnel();
    let mut config = live_config(&tunnel.key, &peer);
    let mut number = 0;
    for _ in 0..count {
        let mut key = [0; 32];
        Os.fill(&mut key);
        config.push_str(&format!("[Peer]\nPublicKey = {}\nAllowedIPs = ", BASE64.encode(key)));
        for index in 0..prefixes {
            let comma = if index == 0 { "" } else { "," };
            let net = (11_u32 << 24) + (number << 8);
            config.push_str(&format!("{comma}{}/24", std::net::Ipv4Addr::from(net)));
            number += 1;
        }
        config.push('\n');
    }
    let mut figures = Vec::new();
    for [seconds, memory] in [["setconf", "setconf, memory"], ["setconf again", "setconf again, memory"]] {
        let start = monotonic();
        tunnel.wg_with_input(lab.a(), &["setconf", &tunnel.name, "/dev/stdin"], &config);
        figures.push(Figure::less(seconds, (monotonic() - start).as_secs_f64(), "s"));
        // What was needed for the change alone is given back by then.
        pause(Duration::from_secs(1));
        figures.push(Figure::less(memory, status_mb(tunnel, "VmRSS:"), "MB"));
    }
    let start = monotonic();
    let dump = tunnel.show(lab.a(), "dump");
    figures.push(Figure::less("wg show dump", (monotonic() - start).as_secs_f64(), "s"));
    let shown = dump.lines().count();
    assert_eq!(shown, count as usize + 2, "the interface, the live peer and the others are shown");
    lab.wait_for_answer();
    // The live peer's timers of the last packets are over by then, but for its keepalive.
    let before = lab.usage();
    let start = monotonic();
    pause(time);
    let idle = (lab.usage() - before).daemons[0] / (monotonic() - start).as_secs_f64();
    figures.push(Figure::less("idle CPU", 100.0 * idle, "%"));
    let (delivered, used) = fixed(lab, time);
    figures.push(Figure::less(
        "sending daemon, CPU per packet",
        per_packet(used.daemons[0], &delivered),
        "µs",
    ));
    Measured { figures, cost: None }
}
