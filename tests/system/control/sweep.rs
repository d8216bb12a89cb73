//! The control loop against an API server that fails one call at a time, every one of them in every way.
//!
//! The first runs, in which nothing goes wrong, tell which calls there are: an agent starts beside objects that are there, makes the first
//! `TunnelConfig`, takes the taint off its node, and some objects change. Each further run is the same, but that some calls fail: every call
//! meets every fault once. What they come to – peers, routes, objects, status, an Event – is the same as in the first one, and no peer that
//! stays is lost on the way.
//!
//! ```text
//! run 0   call 1 500           call 7 409           call 13 429
//! run 1            call 2 409           call 8 429             …      the calls of a run lie STRIDE apart, and the faults rotate
//! ```
//!
//! `ADIT_SWEEP=1000` has at most one call of a run fail; the usual stride is 6. Calls that are never answered are drawn in `unreliable`:
//! each takes half a minute.

use std::collections::BTreeMap;
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use adit::sys::clock::boottime;
use serde_json::{Value, json};

use super::unreliable::{Rig, Said, accepted, bare_node, node, pod, tainted};
use crate::support::api_double::Kind;
use crate::support::api_double::faults::{Fault, Position};
use crate::support::{need, pause, wait_until};

/// How long a run may take to come to where it should.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs at a time: each waits most of its time.
const AT_ONCE: usize = 16;

const FAULTS: [Fault; 11] = [
    Fault::InternalError,
    Fault::Conflict,
    Fault::TooManyRequests,
    Fault::HangUp,
    Fault::DoneAndHangUp,
    Fault::LostAnswer,
    Fault::Delay,
    Fault::Truncate,
    Fault::Break,
    Fault::Compact,
    Fault::Expired,
];

/// Peers: one that stays as it is, one that goes and one that comes, and two of which the cluster says nothing, so that a prefix may move.
const LASTING: u8 = 2;
const GOING: u8 = 4;
const COMING: u8 = 6;
const GIVING: u8 = 3;
const TAKING: u8 = 5;

/// What a run has come to, part by part.
type End = BTreeMap<&'static str, Value>;

/// Lets an agent go through a run in which these calls fail, and returns what it has come to, the calls that there were, and what of the
/// plan was not met. It is to come to the same as another one.
#[track_caller]
fn run(
    planned: BTreeMap<Position, Fault>,
    expected: Option<&End>,
) -> (End, Vec<Position>, BTreeMap<Position, Fault>) {
    let name = format!("{planned:?}");
    let mut rig = Rig::new(1);
    rig.double.delete(Kind::Config, "default");
    rig.double.put(Kind::Node, tainted());
    rig.double.put(Kind::Pod, pod("first", "10.7.0.1"));
    let mut said: BTreeMap<u8, Said> =
        [LASTING, GIVING, TAKING, GOING].map(|peer| (peer, Said::default())).into();
    said.get_mut(&GIVING).unwrap().moving.insert(0);
    [LASTING, GOING].iter().for_each(|number| rig.double.put(Kind::Node, node(*number)));
    [GIVING, TAKING].iter().for_each(|number| rig.double.put(Kind::Node, bare_node(*number)));
    for (number, said) in &said {
        rig.say(*number, said);
    }
    rig.double.faults().plan(planned);
    let _networks = rig.start_agent_of_all();
    let (lasting, prefixes) = accepted(LASTING, &said[&LASTING]);
    let mut was_there = false;
    let mut wait_for_peers = |rig: &Rig, said: &BTreeMap<u8, Said>| {
        let expected: BTreeMap<_, _> = said.iter().map(|(number, said)| accepted(*number, said)).collect();
        wait_until(&format!("{name}: the peers"), PATIENCE, || {
            let Some(peers) = rig.peers() else { return false };
            let is_there = peers.get(&lasting) == Some(&prefixes);
            assert!(is_there || !was_there, "{name}: a peer that stays is lost");
            was_there = is_there;
            peers == expected
        });
    };
    wait_for_peers(&rig, &said);
    let get = |rig: &Rig, kind, name| rig.double.get(kind, name).unwrap_or_default();
    wait_until(&format!("{name}: the first TunnelConfig"), PATIENCE, || {
        get(&rig, Kind::Config, "default")["spec"]["mode"] == "Strict"
    });

    let mut config = get(&rig, Kind::Config, "default");
    config["spec"]["podAddresses"] = json!("Pods");
    config["spec"]["strictGate"] = json!("Immediate");
    config["spec"]["clusterCIDRs"] = json!(["10.244.0.0/15", "10.7.0.0/16"]);
    rig.double.put(Kind::Config, config);
    rig.double.put(Kind::Pod, pod("second", "10.7.0.2"));
    said.remove(&GOING);
    rig.double.delete(Kind::Tunnel, &format!("node{GOING}"));
    rig.double.delete(Kind::Node, &format!("node{GOING}"));
    said.insert(COMING, Said::default());
    rig.double.put(Kind::Node, node(COMING));
    said.get_mut(&GIVING).unwrap().moving.clear();
    said.get_mut(&TAKING).unwrap().moving.insert(0);
    [GIVING, TAKING, COMING].iter().for_each(|number| rig.say(*number, &said[number]));
    rig.double.delete(Kind::Pod, "first");
    wait_for_peers(&rig, &said);
    let until = boottime() + PATIENCE;
    let end = loop {
        let end = end_of(&rig);
        let is_whole = match expected {
            Some(expected) => end == *expected,
            None => is_whole(&end, said.len()),
        };
        if is_whole {
            break end;
        }
        if boottime() > until {
            let differs = |part: &&str| expected.is_none_or(|expected| expected[*part] != end[*part]);
            let parts = end.keys().copied().filter(|part| differs(part));
            let text = parts
                .map(|part| format!("{part} {}, expected {:?}\n", end[part], expected.map(|end| &end[part])));
            panic!("{name}: {}", text.collect::<String>());
        }
        pause(Duration::from_millis(50));
    };
    wait_for_peers(&rig, &said);
    let faults = rig.double.faults();
    (end, faults.positions(), faults.unmet())
}

fn end_of(rig: &Rig) -> End {
    let own = rig.double.get(Kind::Tunnel, "node1").unwrap_or_default();
    let mut told = own["spec"].clone();
    assert!(told.is_null() || told["keys"][0]["publicKey"] == rig.node().key, "{told}");
    told["keys"] = Value::Null;
    let conditions = own["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let conditions: Vec<_> =
        conditions.iter().map(|it| json!([it["type"], it["status"], it["reason"], it["message"]])).collect();
    let not_encrypted = own["status"]["notEncrypted"].clone();
    let status = json!([conditions, own["status"]["peers"]["total"], not_encrypted]);
    let (_, routes) = rig.node().namespace.try_run("ip", &["-4", "route", "show", "table", "8365"]);
    let config = rig.double.get(Kind::Config, "default").unwrap_or_default()["spec"].clone();
    let taints = rig.double.get(Kind::Node, "node1").unwrap_or_default()["spec"]["taints"].clone();
    let routes = routes.replace(&rig.node().interface, "tunnel");
    // What is told on the way there differs.
    let events = rig.double.events();
    let is_told = events
        .iter()
        .any(|event| event["reason"] == "StrictEnforced" && event["regarding"]["uid"].is_string());
    BTreeMap::from([
        ("routes", routes.into()),
        ("told", told),
        ("status", status),
        ("config", config),
        ("taints", taints),
        ("event", is_told.into()),
    ])
}

/// Tells whether an end is the one that the objects lead to.
fn is_whole(end: &End, peers: usize) -> bool {
    let all = end["status"][0].as_array().unwrap();
    let is_true = |kind: &str| all.iter().any(|it| it[0] == kind && it[1] == "True");
    // Said of the prefixes that are named in the end, not of what was true without them.
    let is_caught = all.iter().any(|it| it[0] == "StrictEnforced" && it[2] == "Enforced");
    end["told"]["podPrefixes"] == json!(["10.244.1.0/24", "10.7.0.2/32"])
        && end["status"][1] == peers
        && ["DataplaneReady", "KeyPublished", "PeersInSync", "StrictEnforced"]
            .iter()
            .all(|kind| is_true(kind))
        && is_caught
        && !is_true("Degraded")
        && end["taints"] == json!([{ "key": "other", "effect": "NoExecute" }])
        && end["routes"].as_str().unwrap().contains("blackhole 10.244.0.0/15")
        && end["event"] == true
}

#[test]
fn whatever_call_fails_in_whatever_way_a_node_comes_to_the_same() {
    need!("ip", "setpriv");
    let stride: usize = env::var("ADIT_SWEEP").map_or(6, |text| text.parse().unwrap());
    let (end, mut positions, _) = run(BTreeMap::new(), None);
    // Some calls come or do not, as it happens.
    let once_more = || run(BTreeMap::new(), Some(&end)).1;
    thread::scope(|scope| {
        let others = [(); 3].map(|()| scope.spawn(once_more));
        for others in others.map(|others| others.join().unwrap()) {
            positions.retain(|position| others.contains(position));
        }
    });
    let mut runs = Vec::new();
    for turn in 0..FAULTS.len() {
        for first in 0..stride.min(positions.len()) {
            let of_run = positions.iter().enumerate().skip(first).step_by(stride);
            let planned =
                of_run.map(|(at, position)| (position.clone(), FAULTS[(at / stride + turn) % FAULTS.len()]));
            runs.push(planned.collect::<BTreeMap<_, _>>());
        }
    }
    let (next, unmet) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(planned) = runs.get(next.fetch_add(1, Relaxed)) {
                    let (_, _, missed) = run(planned.clone(), Some(&end));
                    unmet.lock().unwrap().extend(missed);
                }
            });
        }
    });
    let unmet = unmet.into_inner().unwrap();
    let pairs = positions.len() * FAULTS.len();
    eprintln!("{} runs, {pairs} pairs of a call and a fault, not met: {unmet:?}", runs.len());
    // A fault may take away the reason of a later call.
    assert!(positions.len() >= 20 && unmet.len() * 20 <= pairs, "calls that did not come: {unmet:?}");
}
