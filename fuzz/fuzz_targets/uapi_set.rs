//! The configuration protocol: arbitrary text through reader, parser, interface and the reply to `get=1`.
//!
//! - However the text is cut into reads, the same requests come out.
//! - A request that fails applies nothing and is told a negative errno; one that succeeds is told 0.
//! - What `get=1` then says, given to another interface as a set, makes one that says the same.
//! - A prefix belongs to one peer, and the routing table agrees with what is said.

#![no_main]

use std::sync::{Arc, Mutex};

use adit::config::{Configure, Edit, Refused, Snapshot, Statistics};
use adit::sim::Seeded;
use adit::uapi::fuzzing::answer;
use adit::uapi::request::{Reader, Request};
use adit::uapi::{get, set};
use adit::wireguard::dropped::Drops;
use adit::wireguard::interface::Interface;
use adit::wireguard::time::Moment;
use libfuzzer_sys::fuzz_target;

/// An interface as a device has it, without sockets.
struct Device(Mutex<State>);

struct State {
    interface: Interface,
    listen_port: u16,
    fwmark: u32,
    applied: usize,
}

impl Device {
    fn new() -> Self {
        let interface = Interface::new(Arc::new(Drops::default()), Box::new(Seeded::new(1)));
        Self(Mutex::new(State { interface, listen_port: 0, fwmark: 0, applied: 0 }))
    }

    fn applied(&self) -> usize {
        self.0.lock().expect("one thread").applied
    }

    fn text(&self) -> String {
        get::print(&self.snapshot().expect("the device is there")).to_string()
    }
}

impl Configure for Device {
    fn apply(&self, edits: Vec<Edit>) -> Result<(), Refused> {
        let mut state = self.0.lock().expect("one thread");
        state.applied += 1;
        state.interface.apply(&edits, Moment::default())?;
        for edit in edits {
            if let Edit::ListenPort(port) = edit {
                state.listen_port = port;
            } else if let Edit::Fwmark(mark) = edit {
                state.fwmark = mark;
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, Refused> {
        let state = self.0.lock().expect("one thread");
        let snapshot = state.interface.snapshot();
        Ok(Snapshot { listen_port: state.listen_port, fwmark: state.fwmark, ..snapshot })
    }

    fn statistics(&self) -> Result<Statistics, Refused> {
        Ok(Statistics::default())
    }
}

fn scope_of(name: &str) -> Option<u32> {
    (name == "eth0").then_some(7)
}

/// Returns the requests in `text`, which arrives in pieces of `size` bytes.
fn requests(text: &[u8], size: usize) -> Vec<Request> {
    let mut reader = Reader::new(scope_of);
    let mut requests = Vec::new();
    for mut piece in text.chunks(size) {
        while !piece.is_empty() {
            let (read, request) = reader.read(piece);
            assert!(read <= piece.len() && (request.is_some() || read == piece.len()));
            assert!(reader.size() <= text.len());
            requests.extend(request);
            piece = &piece[read..];
        }
    }
    requests
}

fuzz_target!(|input: &[u8]| {
    let Some((&size, text)) = input.split_first() else { return };
    let whole = requests(text, text.len().max(1));
    let pieces = requests(text, 1 + usize::from(size));
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));

    let device = Device::new();
    for request in whole {
        serve(&device, request);
    }
    // The body alone, as a caller without a connection parses it.
    if let Ok(edits) = set::parse(text, scope_of) {
        device.apply(edits).expect("few peers");
        check_round_trip(&device);
    }
    check_routes(&device);
});

fn serve(device: &Device, request: Request) {
    let (before, applied) = (device.text(), device.applied());
    enum Kind {
        Get,
        Stats,
        Set,
        Malformed { sign: i32 },
        Unknown,
    }
    let kind = match &request {
        Request::Get => Kind::Get,
        Request::Stats => Kind::Stats,
        Request::Set(_) => Kind::Set,
        Request::MalformedGet(_) => Kind::Malformed { sign: 1 },
        Request::MalformedSet(_) => Kind::Malformed { sign: -1 },
        Request::Unknown => Kind::Unknown,
    };
    let reply = answer(request, device);
    let reply = reply.as_ref().map(|reply| reply.as_str());
    match kind {
        Kind::Set => {
            assert_eq!(reply, Some("errno=0\n\n"));
            assert_eq!(device.applied(), applied + 1);
            check_round_trip(device);
            return;
        }
        Kind::Get => assert_eq!(reply, Some(format!("{before}errno=0\n\n").as_str())),
        Kind::Stats => assert_eq!(reply, Some("version=\ncrypto=\nworkers=0\nerrno=0\n\n")),
        Kind::Malformed { sign } => {
            let errno = reply.and_then(|reply| reply.strip_prefix("errno=")?.strip_suffix("\n\n"));
            let errno: i32 = errno.expect("a mistake is told").parse().expect("an errno is a number");
            assert_eq!(errno.signum(), sign);
        }
        Kind::Unknown => assert_eq!(reply, None),
    }
    assert_eq!((device.text(), device.applied()), (before, applied), "nothing is applied");
}

/// What is said is enough to make another interface like this one.
fn check_round_trip(device: &Device) {
    let said = device.text();
    let is_setting = |line: &&str| {
        let (key, _) = line.split_once('=').expect("every line is KEY=VALUE");
        !matches!(key, "last_handshake_time_sec" | "last_handshake_time_nsec" | "tx_bytes" | "rx_bytes")
    };
    let body: Vec<_> = said.lines().filter(is_setting).collect();
    let twin = Device::new();
    let edits = set::parse(body.join("\n").as_bytes(), scope_of).expect("what is said can be set");
    twin.apply(edits).expect("few peers");
    // The text alone would not show a setting that is never said.
    assert_eq!(twin.text(), said);
    assert_eq!(format!("{:?}", twin.snapshot()), format!("{:?}", device.snapshot()));
}

fn check_routes(device: &Device) {
    let state = device.0.lock().expect("one thread");
    let (snapshot, view) = (state.interface.snapshot(), state.interface.view());
    let prefixes: Vec<_> = snapshot
        .peers
        .iter()
        .flat_map(|peer| peer.allowed_ips.iter().map(move |prefix| (*prefix, peer.public_key)))
        .collect();
    for (at, (prefix, _)) in prefixes.iter().enumerate() {
        assert!(prefixes[..at].iter().all(|(other, _)| other != prefix), "{prefix} has one owner");
        let holding = prefixes.iter().filter(|(other, _)| other.contains(prefix.addr()));
        let longest = holding.max_by_key(|(other, _)| other.len()).map(|(_, key)| key);
        assert_eq!(view.route(prefix.addr()).map(|peer| peer.public_key()), longest);
    }
}
