//! Whether anything leaves in clear when things go wrong; each case once more in Permissive mode, where it must, or the test sees nothing.

use super::*;

/// Checks that nothing leaves in clear in Strict mode after `act`, and that something does in Permissive mode.
#[track_caller]
fn assert_closed(what: &str, act: impl Fn(&mut Lab)) {
    for mode in [Mode::Strict, Mode::Permissive] {
        let mut lab = Lab::programmed(mode);
        lab.clear_frames();
        act(&mut lab);
        lab.sing(20);
        let clear = lab.clear_frames();
        match mode {
            Mode::Strict => assert_eq!(clear, 0, "frames in clear, {what}"),
            Mode::Permissive => assert!(clear > 0, "no frames in clear even in Permissive mode, {what}"),
        }
    }
}

#[test]
fn nothing_leaks_when_the_data_plane_is_killed() {
    need!("ip", "ping", "wg");
    assert_closed("the data plane killed", |lab| lab.a.kill_tunnel());
}

#[test]
fn nothing_leaks_when_the_interface_is_deleted_under_a_running_data_plane() {
    need!("ip", "ping", "wg");
    assert_closed("the interface deleted", |lab| {
        lab.a.namespace.ip(&format!("link del {}", lab.a.name));
    });
}

/// A persistent device without a process has no carrier. Its routes are passed over then if the system is told to.
#[test]
fn nothing_leaks_past_a_device_without_a_process() {
    need!("ip", "ping", "wg");
    assert_closed("a device without a process", |lab| {
        lab.a.kill_tunnel();
        let Node { namespace, name, healer, .. } = &lab.a;
        for family in ["ipv4", "ipv6"] {
            for which in ["all", "default"] {
                namespace.sysctl(&format!("net/{family}/conf/{which}/ignore_routes_with_linkdown"), "1");
            }
        }
        namespace.ip(&format!("tuntap add dev {name} mode tun multi_queue"));
        namespace.ip(&format!("link set {name} up"));
        wait_until("routes", SOON, || {
            healer.report().waiting == 0
                && namespace.ip(&format!("-6 route show table {TABLE}")).contains(&format!("dev {name} "))
        });
    });
}

#[test]
fn nothing_leaks_at_boot() {
    need!("ip", "ping", "wg");
    let mut lab = Lab::new();
    lab.a.kill_tunnel();
    assert!(lab.leaks() > 0, "no frames in clear even before anything is programmed");
    let outcome = lab.a.healer.set(lab.a.plan(Mode::Strict)).unwrap();
    assert_eq!(outcome.waiting, 2);
    lab.b.healer.set(lab.b.plan(Mode::Strict)).unwrap();
    assert_eq!(lab.leaks(), 0, "frames in clear before there is a data plane");
    lab.a.start_tunnel(&lab.b.key);
    assert_eq!(lab.leaks(), 0, "frames in clear while it starts");
    lab.assert_encrypted("once there is a data plane");
}

/// The routes are enough, and so is the firewall: each holds while the other is gone and nobody mends it.
#[test]
fn either_of_routes_and_firewall_is_enough() {
    need!("ip", "ping", "wg", "nft");
    let flush_rules = |lab: &Lab| {
        for family in ["-4", "-6"] {
            lab.a.namespace.ip(&format!("{family} rule del priority {PRIORITY}"));
        }
    };
    let mut lab = Lab::programmed(Mode::Strict);
    lab.a.stop_healing();
    lab.a.namespace.sh("nft flush ruleset");
    lab.assert_encrypted("without a firewall");
    lab.a.kill_tunnel();
    assert_eq!(lab.leaks(), 0, "frames in clear past the blackhole");
    // The control: without both it is in clear.
    flush_rules(&lab);
    assert!(lab.leaks() > 0, "no frames in clear even without routes and firewall");

    let mut lab = Lab::programmed(Mode::Strict);
    lab.a.stop_healing();
    flush_rules(&lab);
    assert_eq!(lab.leaks(), 0, "frames in clear past the firewall");
    lab.a.namespace.ip(&format!("route flush table {TABLE}"));
    lab.a.namespace.ip(&format!("-6 route flush table {TABLE}"));
    lab.a.kill_tunnel();
    assert_eq!(lab.leaks(), 0, "frames in clear past the firewall");
    lab.a.namespace.sh("nft delete table inet adit");
    assert!(lab.leaks() > 0, "no frames in clear even without routes and firewall");
}

#[test]
fn nothing_leaks_while_somebody_keeps_deleting_the_rule() {
    need!("ip", "ping", "wg");
    let lab = Lab::programmed(Mode::Strict);
    lab.clear_frames();
    let mut deleted = 0;
    wait_until("ten deletions", SOON, || {
        deleted += u32::from(lab.a.namespace.succeeds(&format!("ip rule del priority {PRIORITY}")));
        lab.sing(20);
        deleted >= 10
    });
    assert_eq!(lab.clear_frames(), 0);
    assert!(lab.a.healer.report().heals > 0);
    lab.assert_encrypted("after it has stopped");
}

#[test]
fn traffic_comes_back_when_the_data_plane_does() {
    need!("ip", "ping", "wg");
    let mut lab = Lab::programmed(Mode::Strict);
    lab.clear_frames();
    lab.a.kill_tunnel();
    lab.sing(20);
    lab.a.start_tunnel(&lab.b.key);
    lab.sing(20);
    assert_eq!(lab.clear_frames(), 0);
    lab.assert_encrypted("after the restart");
}

#[test]
fn mode_changes_take_effect_at_once_both_ways() {
    need!("ip", "ping", "wg");
    let mut lab = Lab::programmed(Mode::Permissive);
    lab.a.kill_tunnel();
    assert!(lab.leaks() > 0);
    lab.a.healer.set(lab.a.plan(Mode::Strict)).unwrap();
    assert_eq!(lab.leaks(), 0);
    lab.a.healer.set(lab.a.plan(Mode::Permissive)).unwrap();
    assert!(lab.leaks() > 0);
}
