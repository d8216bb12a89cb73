//! A pod that sends from its first microsecond: in Strict mode nothing of it is seen in clear.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::need_plugins;
use super::runtime::{Pod, Runtime};
use super::setup::Lab;
use crate::control::wire::{CANARY, Seen, Wire};
use crate::support::tunnel::Program;
use crate::support::{SOON, pause, wait_until};

/// Sends to a pod of the other node as soon as anything can be sent at all, until it is dropped.
struct Sender(Arc<AtomicBool>);

impl Sender {
    fn start(pod: &Pod) -> Self {
        let socket = pod.namespace.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Relaxed) {
                // There is no way yet, or no way any more.
                let _ = socket.send_to(CANARY, "10.244.2.1:7");
                thread::yield_now();
            }
        });
        Self(stop)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Adds a pod on a node that was just booted and has a way in clear to the other one's pods, as other networks make it; data plane and agent
/// start a while later. Returns how often what the pod sends was seen in clear by the time that it was seen at all.
#[track_caller]
fn boot(plugins: fn(&Lab) -> Vec<Value>, has_agent: bool) -> usize {
    let mut lab = Lab::new(2);
    lab.mesh.nodes[0].namespace.ip("route add 10.244.2.0/24 via 10.9.0.2");
    lab.mesh.nodes[1].start_data_plane(Program::Adit);
    lab.start_agent(1, &[]);
    lab.wait_until_ready(1);
    let wire = Wire::open(&lab.mesh.fabric, "port1");
    let pod = Pod::new();
    let plugins = plugins(&lab);
    let runtime = Runtime::of("1.0.0", &plugins);
    let node = lab.node();
    thread::scope(|scope| {
        let adding = scope.spawn(|| {
            // In main mode from before there is an interface. Behind another plugin, from when the runtime starts the container.
            let early = (plugins.len() == 1).then(|| Sender::start(&pod));
            runtime.add_only(&node.namespace, &pod).unwrap();
            early.unwrap_or_else(|| Sender::start(&pod))
        });
        wait_until("the plugin", SOON, || lab.leases(0) > 0);
        // Time for a pod that is not held to be seen.
        pause(Duration::from_millis(500));
        let _processes = has_agent.then(|| {
            let data_plane = Program::Adit.start(&node.namespace, &node.interface, &[], &[]);
            (data_plane, lab.spawn_agent(0, &[]))
        });
        let _sender = adding.join().unwrap();
        let seen = if has_agent { Seen::WireGuard } else { Seen::Canary };
        wait_until("what the pod sends", SOON, || wire.count(seen) > 10);
        wire.count(Seen::Canary)
    })
}

/// Lets the pod through at once while there is no agent.
fn allowing(mut plugins: Vec<Value>) -> Vec<Value> {
    plugins.last_mut().unwrap()["onAgentUnavailable"] = "allow".into();
    plugins
}

#[test]
fn a_new_pod_in_main_mode_is_never_seen_in_clear() {
    need_plugins!();
    assert_eq!(boot(|lab| vec![lab.main(0)], true), 0);
    // The control: this is what is seen of a pod that does not wait.
    assert!(boot(|lab| allowing(vec![lab.main(0)]), false) > 10);
}

#[test]
fn a_new_pod_behind_another_plugin_is_never_seen_in_clear() {
    need_plugins!();
    assert_eq!(boot(|lab| vec![lab.ptp(), lab.chained()], true), 0);
    assert!(boot(|lab| allowing(vec![lab.ptp(), lab.chained()]), false) > 10);
}
