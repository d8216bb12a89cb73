//! Chained mode, behind Debian's `ptp`, `bridge` and `tuning`.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use super::need_plugins;
use super::runtime::{Call, Pod, Runtime};
use super::setup::Lab;
use crate::support::tunnel::Program;
use crate::support::{SOON, wait_until};

#[test]
fn a_result_has_the_form_of_the_version_that_was_asked_for() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let pod = Pod::new();
        let mut runtime = Runtime::of(version, &[lab.ptp(), lab.chained()]);
        let before = Runtime::of(version, &[lab.ptp()]);
        let result = runtime.add(host, &pod).unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!(pod.mtu(), 1420, "{version}");
        assert_eq!(result["ips"][0]["version"].is_string(), version < "1", "{result}");
        match runtime.check(host, &pod) {
            Err(refused) if version == "0.3.1" => assert_eq!(refused.code, 1, "{refused}"),
            checked => checked.unwrap(),
        }
        runtime.del(host, &pod).unwrap();
        // What ptp alone says is what was passed on.
        let other = Pod::new();
        let mut alone = before.add_only(host, &other).unwrap();
        for key in ["interfaces", "ips"] {
            alone[key] = result[key].clone();
        }
        assert_eq!(result, alone);
        Call::about("DEL", &other)
            .run(host, &{
                let mut config = lab.ptp();
                config["name"] = "net".into();
                config["cniVersion"] = version.into();
                config
            })
            .unwrap();
    }
    assert_eq!((lab.registered(0), lab.leases(0)), (0, 0));
}

#[test]
fn in_1_1_0_the_result_tells_the_mtu() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    let pod = Pod::new();
    let ptp = Runtime::of("1.0.0", &[lab.ptp()]);
    let mut previous = ptp.add_only(host, &pod).unwrap();
    previous["cniVersion"] = "1.1.0".into();
    let mut config = lab.chained();
    config["name"] = "net".into();
    config["cniVersion"] = "1.1.0".into();
    config["prevResult"] = previous.clone();
    let result = Call::about("ADD", &pod).run(host, &config).unwrap().unwrap();
    let inside = |result: &Value| {
        let mut interfaces = result["interfaces"].as_array().unwrap().iter();
        interfaces.find(|interface| interface["sandbox"].is_string()).unwrap()["mtu"].as_u64()
    };
    assert_eq!((inside(&result), inside(&previous)), (Some(1420), None));
    let version = Call::new("VERSION").run(host, &json!({ "type": "adit-cni", "cniVersion": "1.1.0" }));
    assert_eq!(
        version.unwrap().unwrap(),
        json!({ "cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] })
    );
}

#[test]
fn what_cannot_be_understood_is_refused_by_the_specifications_codes() {
    need_plugins!();
    let lab = Lab::new(1);
    let host = &lab.node().namespace;
    let pod = Pod::new();
    let code = |call: Call, input: &str| call.run_raw(host, "adit-cni", input.as_bytes()).unwrap_err().code;
    let config =
        |more: &str| format!("{{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"type\":\"adit-cni\"{more}}}");
    assert_eq!(code(Call::about("ADD", &pod), "{"), 6);
    assert_eq!(code(Call::about("ADD", &pod), ""), 6);
    assert_eq!(code(Call::about("ADD", &pod), &config("").replace("1.0.0", "0.2.0")), 1);
    assert_eq!(code(Call::about("ADD", &pod), &config("").replace("1.0.0", "2.0.0")), 1);
    assert_eq!(code(Call::about("ADD", &pod), &config("")), 7, "no prevResult");
    assert_eq!(code(Call::about("ADD", &pod), &config(",\"mtu\":1")), 7);
    assert_eq!(code(Call::new("ADD"), &config("")), 4, "no container");
    assert_eq!(code(Call::new("MOVE"), &config("")), 4);
    assert_eq!(code(Call::about("STATUS", &pod), &config("")), 1, "not before 1.1.0");
    let own = Call::about("ADD", &pod).with("CNI_NETNS", "/proc/self/ns/net");
    assert_eq!(code(own, &config(",\"prevResult\":{}")), 4, "the host's own namespace");
    let none = Call::about("ADD", &pod).with("CNI_NETNS", "/proc/self/ns/none");
    assert_eq!(code(none, &config(",\"prevResult\":{}")), 5);
}

#[test]
fn an_attachment_lives_from_add_to_del_and_check_sees_what_others_do_to_it() {
    need_plugins!();
    let mut lab = Lab::started(1);
    let pod = Pod::new();
    // With another plugin in between, and in the bridge's network as well.
    for first in [lab.ptp(), lab.bridge()] {
        let tuning = json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.all.log_martians": "1" } });
        let mut runtime = Runtime::of("1.0.0", &[first, tuning, lab.chained()]);
        let host = &lab.node().namespace;
        let result = runtime.add(host, &pod).unwrap();
        assert_eq!((pod.mtu(), lab.registered(0)), (1420, 1));
        let outer = result["interfaces"].as_array().unwrap().iter().find(|interface| {
            let name = interface["name"].as_str().unwrap();
            name.starts_with("veth") && interface["sandbox"].as_str().is_none_or(str::is_empty)
        });
        let outer = host.ip(&format!("link show {}", outer.unwrap()["name"].as_str().unwrap()));
        let narrowed = if outer.contains("master pods") { "mtu 1500" } else { "mtu 1420" };
        assert!(outer.contains(narrowed), "{outer}");
        runtime.check(host, &pod).unwrap();

        // The same again.
        let mut again = lab.chained();
        again["name"] = "net".into();
        again["cniVersion"] = "1.0.0".into();
        again["prevResult"] = result.clone();
        assert_eq!(Call::about("ADD", &pod).run(host, &again).unwrap_err().code, 100);
        assert!(runtime.add_only(host, &pod).is_err(), "the first plugin says so as well");

        // What others do. The plugin is asked alone: those before it see some of this themselves.
        let check = |result: &Value| {
            let mut config = again.clone();
            config["prevResult"] = result.clone();
            Call::about("CHECK", &pod).run(host, &config).map(drop)
        };
        check(&result).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap();
        let gateway = result["ips"][0]["gateway"].as_str().unwrap();
        pod.namespace.ip("link set eth0 mtu 1500");
        assert!(check(&result).unwrap_err().text.contains("MTU"));
        pod.namespace.ip("link set eth0 mtu 1420");
        check(&result).unwrap();
        pod.namespace.ip("route del default");
        assert!(check(&result).unwrap_err().text.contains("route"));
        pod.namespace.ip(&format!("route add default via {gateway}"));
        check(&result).unwrap();
        pod.namespace.ip(&format!("addr del {address} dev eth0"));
        assert!(check(&result).unwrap_err().text.contains("address"));

        runtime.del(host, &pod).unwrap();
        assert_eq!((lab.registered(0), lab.leases(0)), (0, 0));
        // Again, and without anything that a runtime may have lost by then.
        runtime.del(host, &pod).unwrap();
        let mut bare = again.clone();
        bare.as_object_mut().unwrap().remove("prevResult");
        Call::about("DEL", &pod).with("CNI_NETNS", "").run(host, &bare).unwrap();
        Call::about("DEL", &pod).with("CNI_NETNS", "/run/netns/none").run(host, &bare).unwrap();
        assert!(check(&result).is_err(), "it is gone");
    }
    // An interface that outlives its attachment has its MTU again.
    let mut runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    let result = runtime.add(&lab.node().namespace, &pod).unwrap();
    let mut config = lab.chained();
    config["name"] = "net".into();
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"] = result;
    Call::about("DEL", &pod).run(&lab.node().namespace, &config).unwrap();
    assert_eq!(pod.mtu(), 1500);
    // The agent knows nothing of it, and later there is none.
    assert_eq!(Call::about("CHECK", &pod).run(&lab.node().namespace, &config).unwrap_err().code, 101);
    Call::about("ADD", &pod).run(&lab.node().namespace, &config).unwrap();
    Call::about("CHECK", &pod).run(&lab.node().namespace, &config).unwrap();
    drop(lab.mesh.nodes[0].agent.take());
    assert_eq!(Call::about("CHECK", &pod).run(&lab.node().namespace, &config).unwrap_err().code, 11);
}

#[test]
fn without_an_agent_a_pod_waits_or_is_let_through_as_was_chosen() {
    need_plugins!();
    let mut lab = Lab::started(1);
    let (kept, held) = (Pod::new(), Pod::new());
    let mut runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    runtime.add(&lab.node().namespace, &kept).unwrap();
    drop(lab.mesh.nodes[0].agent.take());
    let impatient = |lab: &Lab, policy: &str| {
        let mut config = lab.chained();
        config["readyTimeout"] = "300ms".into();
        config["onAgentUnavailable"] = policy.into();
        config
    };
    let host = &lab.node().namespace;
    let mut failing = Runtime::of("1.0.0", &[lab.ptp(), impatient(&lab, "fail")]);
    assert_eq!(failing.add(host, &held).unwrap_err().code, 11);
    // As a runtime does after an ADD that failed.
    failing.del(host, &held).unwrap();
    let mut allowing = Runtime::of("1.0.0", &[lab.ptp(), impatient(&lab, "allow")]);
    allowing.add(host, &held).unwrap();
    assert_eq!(held.mtu(), 1500, "nobody says another one");
    allowing.check(host, &held).unwrap();
    let mut status = impatient(&lab, "fail");
    assert_eq!(Runtime::of("1.1.0", &[status.clone()]).status(host).unwrap_err().code, 50);
    status["onAgentUnavailable"] = "allow".into();
    Runtime::of("1.1.0", &[status]).status(host).unwrap();

    // DEL does not wait for the agent, which hears of it when it is back.
    runtime.del(host, &kept).unwrap();
    let word = lab.files.path().join("state0/del");
    assert!(fs::read_dir(&word).unwrap().count() >= 1);
    assert_eq!(lab.registered(0), 1);
    lab.start_agent(0, &[]);
    // Nor is the node one that is not ready while the agent is on its way.
    Runtime::of("1.1.0", &[lab.chained()]).status(&lab.node().namespace).unwrap();
    wait_until("the word to be taken", SOON, || {
        lab.registered(0) == 0 && fs::read_dir(&word).unwrap().count() == 0
    });

    // ADD waits for an agent that is on its way.
    drop(lab.mesh.nodes[0].agent.take());
    let pod = Pod::new();
    let host = &lab.node().namespace;
    let runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    thread::scope(|scope| {
        let added = scope.spawn(|| runtime.add_only(host, &pod));
        wait_until("the interface", SOON, || pod.namespace.succeeds("ip link show eth0"));
        let _agent = lab.spawn_agent(0, &[]);
        added.join().unwrap().unwrap();
    });
    assert_eq!(pod.mtu(), 1420);
}

#[test]
fn without_a_data_plane_no_pod_is_added_in_strict_mode() {
    need_plugins!();
    let mut lab = Lab::started(1);
    drop(lab.mesh.nodes[0].data_plane.take());
    let mut config = lab.chained();
    config["readyTimeout"] = "300ms".into();
    let status = Runtime::of("1.1.0", &[config.clone()]);
    wait_until("the agent to notice", SOON, || {
        status.status(&lab.node().namespace).is_err_and(|refused| refused.code == 51)
    });
    let pod = Pod::new();
    let mut runtime = Runtime::of("1.0.0", &[lab.ptp(), config]);
    let refused = runtime.add(&lab.node().namespace, &pod).unwrap_err();
    assert!(refused.code == 11 && refused.text.contains("data plane"), "{refused}");
    runtime.del(&lab.node().namespace, &pod).unwrap();
    assert_eq!(lab.registered(0), 0);
    // It is added once there is one, and while it waits.
    let runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    thread::scope(|scope| {
        let (node, pod) = (&lab.mesh.nodes[0], &pod);
        let added = scope.spawn(move || runtime.add_only(&node.namespace, pod));
        wait_until("the pod to be registered", SOON, || lab.registered(0) == 1);
        let _data_plane = Program::Adit.start(&node.namespace, &node.interface, &[], &[]);
        added.join().unwrap().unwrap();
    });
}

#[test]
fn a_pod_whose_address_nobody_knows_waits_until_it_is_published() {
    need_plugins!();
    let lab = Lab::started(2);
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.245.7.0/24" }]], "dataDir": lab.path("leases0") });
    let other = json!({ "type": "ptp", "ipam": ipam });
    let mut impatient = lab.chained();
    impatient["readyTimeout"] = "300ms".into();
    let host = &lab.node().namespace;
    let pod = Pod::new();
    let mut runtime = Runtime::of("1.0.0", &[other.clone(), impatient]);
    let refused = runtime.add(host, &pod).unwrap_err();
    assert!(refused.code == 11 && refused.text.contains("10.245.7.2 is in no block"), "{refused}");
    runtime.del(host, &pod).unwrap();
    let runtime = Runtime::of("1.0.0", &[other, lab.chained()]);
    thread::scope(|scope| {
        let added = scope.spawn(|| runtime.add_only(host, &pod));
        wait_until("the pod to be registered", SOON, || lab.registered(0) == 1);
        assert!(!added.is_finished());
        lab.mesh.publish(lab.node(), &lab.node().key, &["10.245.7.0/24"]);
        added.join().unwrap().unwrap();
    });
}

#[test]
fn gc_forgets_what_the_runtime_does_not_know() {
    need_plugins!();
    let mut lab = Lab::started(1);
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let mut runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    for pod in &pods {
        runtime.add(&lab.node().namespace, pod).unwrap();
    }
    let gc = Runtime::of("1.1.0", &[lab.chained()]);
    let attachments = lab.files.path().join("state0/attachments");
    let count = || fs::read_dir(&attachments).unwrap().count();
    gc.gc(&lab.node().namespace, &[&pods[0], &pods[2]]).unwrap();
    assert_eq!((lab.registered(0), count()), (2, 2));
    // Another network's are not its own.
    let mut other = gc.list.clone();
    other["name"] = "other".into();
    Runtime::new(other).gc(&lab.node().namespace, &[]).unwrap();
    assert_eq!((lab.registered(0), count()), (2, 2));
    // The agent hears of it later.
    drop(lab.mesh.nodes[0].agent.take());
    gc.gc(&lab.node().namespace, &[]).unwrap();
    assert_eq!((lab.registered(0), count()), (2, 0));
    lab.start_agent(0, &[]);
    wait_until("the word to be taken", SOON, || lab.registered(0) == 0);
}

#[test]
fn pods_are_added_side_by_side() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    let pods: Vec<_> = (0..30).map(|_| Pod::new()).collect();
    let runtime = Runtime::of("1.0.0", &[lab.ptp(), lab.chained()]);
    thread::scope(|scope| {
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(|| runtime.add_only(host, pod))).collect();
        for (added, pod) in adding.into_iter().zip(&pods) {
            added.join().unwrap().unwrap();
            assert_eq!(pod.mtu(), 1420);
        }
    });
    assert_eq!((lab.registered(0), lab.leases(0)), (30, 30));
}
