//! Main mode: pods' networks without any other plugin but the one for addresses.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::need_plugins;
use super::runtime::{Call, Pod, Runtime};
use super::setup::Lab;
use crate::support::process::make_executable;
use crate::support::puppet::udp;
use crate::support::tunnel::Program;
use crate::support::{Namespace, SOON, need, pause, wait_until};

#[test]
fn pods_of_two_nodes_talk_through_the_tunnel_and_leave_nothing() {
    need_plugins!();
    let lab = Lab::started(2);
    for version in ["1.0.0", "1.1.0", "0.4.0", "0.3.1"] {
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut runtimes = [0, 1].map(|number| Runtime::of(version, &[lab.main(number)]));
        let mut add = |number: usize, pod: &Pod| {
            let result = runtimes[number].add(&lab.mesh.nodes[number].namespace, pod);
            result.unwrap_or_else(|error| panic!("{version}: {error}"))
        };
        let results = [add(0, &pods[0]), add(1, &pods[1]), add(0, &pods[2])];
        let addresses = |at: usize| {
            [0, 1].map(|family| {
                let address = results[at]["ips"][family]["address"].as_str().unwrap();
                address.split_once('/').unwrap().0.to_owned()
            })
        };
        assert_eq!(results[0]["interfaces"][1]["mtu"].as_u64(), (version == "1.1.0").then_some(1420));
        assert_eq!((pods[0].mtu(), lab.registered(0), lab.registered(1)), (1420, 2, 1));
        let own = &addresses(0);
        // A pod of the other node, one of the same, and the node itself.
        for other in [addresses(1), addresses(2), ["169.254.1.1".to_owned(), "fe80::1%eth0".to_owned()]] {
            for addr in other {
                assert!(pods[0].namespace.pings(&addr), "{version}: {own:?} to {addr}");
            }
        }
        // The node to its pod, as kubelet's probes go, from an address that is the node's.
        assert!(lab.node().namespace.pings(&own[0]) && lab.node().namespace.pings(&own[1]));
        let route = lab.node().namespace.ip(&format!("route get {}", own[0]));
        assert!(!route.contains("169.254"), "{route}");
        let through = lab.node().namespace.run("wg", &["show", &lab.node().interface, "transfer"]);
        assert!(!through.trim_end().ends_with("\t0"), "{through}");

        // CHECK, and what it sees.
        if version > "0.4" {
            runtimes[0].check(&lab.node().namespace, &pods[0]).unwrap();
            lab.node().namespace.ip(&format!("route del {}", own[0]));
            assert!(runtimes[0].check(&lab.node().namespace, &pods[0]).unwrap_err().text.contains("route"));
        }
        for (number, pod) in [(0, 0), (1, 1), (0, 2), (0, 2)] {
            runtimes[number].del(&lab.mesh.nodes[number].namespace, &pods[pod]).unwrap();
        }
        assert_eq!((lab.leases(0), lab.leases(1), lab.registered(0), lab.registered(1)), (0, 0, 0, 0));
        assert!(!lab.node().namespace.ip("link").contains("adit"), "no interface of the plugin");
        assert!(!pods[0].namespace.succeeds("ip link show eth0"));
    }
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    need_plugins!();
    let mut lab = Lab::started(1);
    let pod = Pod::new();
    let mut config = lab.main(0);
    config["readyTimeout"] = "300ms".into();
    let runtime = |config: &Value| Runtime::of("1.0.0", std::slice::from_ref(config));
    let is_clean = |lab: &Lab| {
        let links = lab.node().namespace.ip("link");
        assert_eq!((lab.leases(0), lab.registered(0), links.contains(": adit")), (0, 0, false), "{links}");
    };
    // A name that is taken.
    pod.namespace.ip("link add eth0 type veth peer name other");
    assert_eq!(runtime(&config).add_only(&lab.node().namespace, &pod).unwrap_err().code, 100);
    is_clean(&lab);
    pod.namespace.ip("link del eth0");
    // The plugin for addresses fails, or is not there.
    let mut other = config.clone();
    other["ipam"]["ranges"] = json!([[{ "subnet": "10.244.1.0/33" }]]);
    let refused = runtime(&other).add_only(&lab.node().namespace, &pod).unwrap_err();
    assert!(refused.text.contains("host-local"), "{refused}");
    other["ipam"]["type"] = "none".into();
    assert_eq!(runtime(&other).add_only(&lab.node().namespace, &pod).unwrap_err().code, 7);
    // A route that cannot be: by then the interface is there.
    let mut other = config.clone();
    other["ipam"]["routes"] = json!([{ "dst": "10.0.0.1/8" }]);
    assert_eq!(runtime(&other).add_only(&lab.node().namespace, &pod).unwrap_err().code, 5);
    is_clean(&lab);
    // No agent, no network: not even an interface.
    drop(lab.mesh.nodes[0].agent.take());
    assert_eq!(runtime(&config).add_only(&lab.node().namespace, &pod).unwrap_err().code, 11);
    assert!(!pod.namespace.succeeds("ip link show eth0"));
    assert_eq!(lab.leases(0), 0);
}

#[test]
fn addresses_are_released_when_nobody_has_them_any_more() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    // One that would give an address to somebody else at once.
    let eager = lab.path("eager-ipam");
    let script = "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in\n\
        VERSION) echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}' ;;\n\
        ADD) echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.244.1.77/24\"}]}' ;;\n\
        DEL) ! grep -q adit /proc/net/dev || { echo '{\"code\":100,\"msg\":\"the interface is there\"}'; exit 1; } ;;\nesac\n";
    make_executable(&eager, script.as_bytes());
    let mut config = lab.main(0);
    config["ipam"] = json!({ "type": "eager-ipam" });
    config["name"] = "net".into();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    let path = lab.files.path().to_str().unwrap().to_owned();
    for command in ["DEL", "GC"] {
        let pod = Pod::new();
        let call = |command: &str| Call::about(command, &pod).with("CNI_PATH", &path);
        call("ADD").run(host, &config).unwrap();
        call(command).run(host, &config).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(!pod.namespace.succeeds("ip link show eth0"), "{command}");
    }
}

#[test]
fn gc_tries_again_to_release_what_could_not_be_released() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    // One that fails once.
    let once = lab.path("once-ipam");
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in\n\
        VERSION) echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}}' ;;\n\
        ADD) echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.244.1.77/24\"}}]}}' ;;\n\
        DEL) rm {held} 2>/dev/null || exit 0; echo '{{\"code\":11,\"msg\":\"not at the moment\"}}'; exit 1 ;;\nesac\n",
        held = lab.path("held")
    );
    make_executable(&once, script.as_bytes());
    let mut config = lab.main(0);
    config["ipam"] = json!({ "type": "once-ipam" });
    config["name"] = "net".into();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    let pod = Pod::new();
    let path = lab.files.path().to_str().unwrap().to_owned();
    let call = |command: &str| Call::about(command, &pod).with("CNI_PATH", &path);
    call("ADD").run(host, &config).unwrap();
    fs::write(lab.path("held"), "").unwrap();
    assert_eq!(call("GC").run(host, &config).unwrap_err().code, 11);
    fs::write(lab.path("held"), "").unwrap();
    assert_eq!(call("GC").run(host, &config).unwrap_err().code, 11, "it is asked once more");
    call("GC").run(host, &config).unwrap();
    fs::write(lab.path("held"), "").unwrap();
    call("GC").run(host, &config).unwrap();
    assert!(Path::new(&lab.path("held")).exists(), "and not again once it is done");
}

#[test]
fn an_old_plugin_for_addresses_is_asked_in_its_own_words() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    // One that knows nothing later than 0.4.0 and says so, as plugins of 2019 do.
    let old = lab.path("old-ipam");
    let script = format!(
        "#!/bin/sh\nconfig=$(cat)\necho \"$CNI_COMMAND $config\" >>{log}\ncase $config in\n*'\"cniVersion\":\"0.4.0\"'*) ;;\n*) \
        [ $CNI_COMMAND = VERSION ] || {{ echo '{{\"cniVersion\":\"0.4.0\",\"code\":1,\"msg\":\"incompatible CNI versions\"}}'; exit 1; }} ;;\nesac\n\
        case $CNI_COMMAND in\nVERSION) echo '{{\"cniVersion\":\"0.4.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.1\",\"0.4.0\"]}}' ;;\n\
        ADD) echo '{{\"cniVersion\":\"0.4.0\",\"ips\":[{{\"version\":\"4\",\"address\":\"10.244.1.77/24\"}}]}}' ;;\nDEL|CHECK) ;;\n*) exit 1 ;;\nesac\n",
        log = lab.path("log")
    );
    make_executable(&old, script.as_bytes());
    let mut config = lab.main(0);
    config["ipam"] = json!({ "type": "old-ipam" });
    config["name"] = "net".into();
    config["cniVersion"] = "1.1.0".into();
    let pod = Pod::new();
    let path = lab.files.path().to_str().unwrap().to_owned();
    let call = |command: &str| Call::about(command, &pod).with("CNI_PATH", &path);
    let result = call("ADD").run(host, &config).unwrap().unwrap();
    assert_eq!(
        (&result["cniVersion"], &result["ips"][0]["address"]),
        (&json!("1.1.0"), &json!("10.244.1.77/32"))
    );
    config["prevResult"] = result;
    call("CHECK").run(host, &config).unwrap();
    // What it does not know it is not asked.
    call("STATUS").run(host, &config).unwrap();
    config["cni.dev/valid-attachments"] = json!([]);
    call("GC").run(host, &config).unwrap();
    assert!(!pod.namespace.succeeds("ip link show eth0"), "GC has removed it");
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.contains("DEL ") && !log.contains("STATUS ") && !log.contains("GC "), "{log}");
    call("DEL").run(host, &config).unwrap();
}

#[test]
fn pods_are_added_side_by_side_and_removed_by_gc() {
    need_plugins!();
    let lab = Lab::started(1);
    let host = &lab.node().namespace;
    let pods: Vec<_> = (0..30).map(|_| Pod::new()).collect();
    let runtime = Runtime::of("1.1.0", &[lab.main(0)]);
    thread::scope(|scope| {
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(|| runtime.add_only(host, pod))).collect();
        adding.into_iter().for_each(|added| drop(added.join().unwrap().unwrap()));
    });
    // An address of each family.
    assert_eq!((lab.registered(0), lab.leases(0)), (30, 60));
    runtime.gc(host, &[&pods[3]]).unwrap();
    assert_eq!((lab.registered(0), lab.leases(0)), (1, 2));
    assert!(
        pods[3].namespace.succeeds("ip link show eth0") && !pods[4].namespace.succeeds("ip link show eth0")
    );
}

#[test]
fn the_agent_lays_the_network_once_it_is_ready_and_cleanup_takes_it_away() {
    need_plugins!();
    need!("iptables");
    let mut lab = Lab::new(1);
    let [configuration, programs] = ["net.d", "bin"].map(|name| lab.files.path().join(name));
    [&configuration, &programs].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    let program = Path::new(super::runtime::plugin_directory()).join("adit-cni");
    std::os::unix::fs::symlink(Path::new(super::PLUGINS).join("portmap"), programs.join("portmap")).unwrap();
    let variables = |mode: &'static str| {
        [
            ("ADIT_CNI_CONF_DIR", configuration.to_str().unwrap().to_owned()),
            ("ADIT_CNI_BIN_DIR", programs.to_str().unwrap().to_owned()),
            ("ADIT_CNI_PLUGIN", program.to_str().unwrap().to_owned()),
            ("ADIT_CNI_MODE", mode.to_owned()),
        ]
    };
    let start = |lab: &mut Lab, mode| {
        let variables = variables(mode);
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &value[..])).collect();
        lab.start_agent(0, &variables);
    };
    let types = |name: &str| -> Vec<String> {
        let Ok(text) = fs::read(configuration.join(name)) else { return Vec::new() };
        let list: Value = serde_json::from_slice(&text).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    };
    start(&mut lab, "main");
    let mut config = lab.main(0);
    config["readyTimeout"] = "300ms".into();
    let status = Runtime::of("1.1.0", &[config]);
    wait_until("the agent to look in vain", SOON, || {
        status.status(&lab.node().namespace).is_err_and(|refused| refused.code == 51)
    });
    // Time for one that does not wait.
    pause(Duration::from_millis(500));
    assert_eq!(fs::read_dir(&configuration).unwrap().count(), 0, "not before the data plane answers");
    lab.mesh.nodes[0].start_data_plane(Program::Adit);
    let soon = |what: &str, done: &dyn Fn() -> bool| wait_until(what, SOON, done);
    soon("the network", &|| types("10-adit.conflist") == ["adit-cni", "portmap"]);
    assert_eq!(fs::read(programs.join("adit-cni")).unwrap(), fs::read(&program).unwrap());
    // A runtime uses what it finds there.
    let mut list: Value =
        serde_json::from_slice(&fs::read(configuration.join("10-adit.conflist")).unwrap()).unwrap();
    list["plugins"][0]["ipam"]["dataDir"] = lab.path("leases0").into();
    list["name"] = "net".into();
    list["plugins"][1]["runtimeConfig"] =
        json!({ "portMappings": [{ "hostPort": 18080, "containerPort": 8080, "protocol": "udp" }] });
    let mut runtime = Runtime::new(list);
    let pod = Pod::new();
    let host = &lab.node().namespace;
    runtime.add(host, &pod).unwrap();
    assert!(
        host.pings(
            pod.namespace
                .ip("-4 -o addr show dev eth0")
                .split_whitespace()
                .nth(3)
                .unwrap()
                .trim_end_matches("/32")
        )
    );
    // A port of the node leads to the pod.
    let outside = Namespace::new();
    lab.mesh.fabric.join("outside", &[], &outside, "eth0", &["10.9.0.200/24"]);
    lab.mesh.fabric.ip("link set outside master fabric");
    let (listener, client) = (udp(&pod.namespace, "0.0.0.0:8080"), udp(&outside, "0.0.0.0:0"));
    listener.set_read_timeout(Some(SOON)).unwrap();
    client.send_to(b"knock", "10.9.0.1:18080").unwrap();
    assert_eq!(listener.recv_from(&mut [0; 10]).unwrap().0, 5);
    runtime.del(host, &pod).unwrap();

    // Chained: behind whatever is there, whenever it comes.
    drop(lab.mesh.nodes[0].agent.take());
    start(&mut lab, "chained");
    soon("the network of main mode to go", &|| !configuration.join("10-adit.conflist").exists());
    let flannel = json!({ "cniVersion": "0.3.1", "name": "cbr0", "plugins": [{ "type": "flannel" }] });
    fs::write(configuration.join("10-flannel.conflist"), flannel.to_string()).unwrap();
    soon("the chain", &|| types("10-flannel.conflist") == ["flannel", "adit-cni"]);
    // Its owner restarts and writes it anew.
    fs::write(configuration.join("10-flannel.conflist"), flannel.to_string()).unwrap();
    soon("the chain again", &|| types("10-flannel.conflist") == ["flannel", "adit-cni"]);
    drop(lab.mesh.nodes[0].agent.take());
    assert_eq!(types("10-flannel.conflist"), ["flannel", "adit-cni"], "it stays with the agent gone");
    let clean_up = |lab: &Lab| {
        let variables = variables("chained");
        let mut variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &value[..])).collect();
        variables.push(("ADIT_CLEANUP", "1"));
        let mut process = lab.spawn_agent(0, &variables);
        assert!(process.wait(SOON).success(), "{}", process.output());
        process
    };
    let state = lab.node().state.path().to_owned();
    assert!(state.join("mtu").exists());
    // A pod that was started with the plugin cannot go without its program.
    let attachment = Path::new(&lab.path("state0")).join("attachments/one:eth0");
    fs::create_dir_all(attachment.parent().unwrap()).unwrap();
    fs::write(&attachment, "{}").unwrap();
    let process = clean_up(&lab);
    wait_until("a word about it", SOON, || process.output().contains("program stays: pods are left"));
    assert_eq!(types("10-flannel.conflist"), ["flannel"]);
    assert_eq!(fs::read_dir(&configuration).unwrap().count(), 1, "no backup is left");
    assert!(programs.join("adit-cni").exists() && !state.join("mtu").exists());
    fs::remove_file(attachment).unwrap();
    clean_up(&lab);
    let left: Vec<_> = fs::read_dir(&programs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["portmap"], "what is not ours");
    assert!(state.join("private.key").exists());
}

/// Has a pod send a datagram to an address of another namespace; returns whom that sees as its sender, if it arrives.
fn seen_as(pod: &Pod, place: &Namespace, addr: &str) -> Option<IpAddr> {
    let addr: IpAddr = addr.parse().unwrap();
    let listener = udp(place, &SocketAddr::new(addr, 0).to_string());
    listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let target = listener.local_addr().unwrap();
    let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    udp(&pod.namespace, any).send_to(b"who", target).ok()?;
    listener.recv_from(&mut [0; 10]).ok().map(|(_, from)| from.ip())
}

#[test]
fn pods_reach_the_outside_under_their_nodes_address_and_each_other_under_their_own() {
    need_plugins!();
    need!("nft");
    let mut lab = Lab::new(2);
    let outside = Namespace::new();
    lab.mesh.fabric.join("outside", &[], &outside, "eth0", &["10.9.0.200/24", "fd09::200/64"]);
    lab.mesh.fabric.ip("link set outside master fabric");
    lab.node().namespace.ip("addr add fd09::1/64 dev eth0 nodad");
    for (number, mode) in [(0, "chained"), (1, "main")] {
        lab.mesh.nodes[number].start_data_plane(Program::Adit);
        lab.start_agent(number, &[("ADIT_CNI_MODE", mode)]);
    }
    (0..2).for_each(|number| lab.wait_until_ready(number));
    let pod = Pod::new();
    let result = Runtime::of("1.0.0", &[lab.main(0)]).add_only(&lab.node().namespace, &pod).unwrap();
    let own = [0, 1].map(|family| {
        let address = result["ips"][family]["address"].as_str().unwrap();
        address.split_once('/').unwrap().0.parse::<IpAddr>().unwrap()
    });
    let node: [IpAddr; 2] = ["10.9.0.1", "fd09::1"].map(|addr| addr.parse().unwrap());
    let out = || ["10.9.0.200", "fd09::200"].map(|addr| seen_as(&pod, &outside, addr));
    let inside = |lab: &Lab| {
        ["10.244.2.1", "fd00:244:2::1"].map(|addr| seen_as(&pod, &lab.mesh.nodes[1].namespace, addr))
    };
    // The control: nobody translates. A greeting of the node that was there first is tried again after 5 s.
    wait_until("the tunnel", SOON, || inside(&lab) == own.map(Some));
    assert_eq!(out(), own.map(Some));

    drop(lab.mesh.nodes[0].agent.take());
    lab.start_agent(0, &[("ADIT_CNI_MODE", "main")]);
    let is_translated = || out() == node.map(Some);
    wait_until("the nodes' addresses outside", SOON, is_translated);
    assert_eq!(inside(&lab), own.map(Some));
    assert!(pod.namespace.pings("10.9.0.200") && pod.namespace.pings("fd09::200"), "and are answered");
    // Whoever takes it away has it back.
    lab.node().namespace.sh("nft flush chain inet adit translate");
    wait_until("the rules to be mended", SOON, is_translated);
    // With nothing encrypted as well.
    lab.mesh.write(
        "config",
        "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {name: default}\nspec: {mode: \"Off\", mtu: 1420}\n",
    );
    let table = || lab.node().namespace.try_run("nft", &["list", "table", "inet", "adit"]).1;
    wait_until("no Strict", SOON, || !table().contains("protected4"));
    assert!(table().contains("masquerade") && is_translated());

    drop(lab.mesh.nodes[0].agent.take());
    lab.node().namespace.run(env!("CARGO_BIN_EXE_adit"), &["agent", "--cleanup"]);
    assert!(!lab.node().namespace.succeeds("nft list table inet adit"));
    assert_eq!(out(), own.map(Some));
}
