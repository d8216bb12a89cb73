//! The MTU of the tunnel follows the links and routes beneath, unless the objects name one.

use std::fs;

use super::nodes::{Mesh, Node};
use crate::support::tunnel::Program;
use crate::support::{SOON, need, wait_until};

/// Waits until interface and file have this MTU, and checks that a packet of that size passes whole and a longer one does not.
#[track_caller]
fn assert_mtu(node: &Node, other: &Node, mtu: usize) {
    let (name, file) = (&node.interface, node.state.path().join("mtu"));
    let is_set = || node.namespace.ip(&format!("link show dev {name}")).contains(&format!(" mtu {mtu} "));
    wait_until(&format!("an MTU of {mtu}"), SOON, || {
        is_set() && fs::read_to_string(&file).is_ok_and(|text| text == format!("{mtu}\n"))
    });
    let (from, to) = (format!("10.244.{}.1", node.number), format!("10.244.{}.1", other.number));
    // The headers of IPv4 and ICMP.
    let ping = |len: usize| format!("ping -n -c 1 -W 1 -M do -s {} -I {from} {to}", len - 28);
    wait_until("a packet of that size", SOON, || node.namespace.succeeds(&ping(mtu)));
    let (success, text) =
        node.namespace.try_run("ping", &ping(mtu + 1).split(' ').skip(1).collect::<Vec<_>>());
    assert!(!success && text.contains("too long"), "{text}");
}

#[test]
fn the_mtu_follows_links_and_routes_and_a_number_goes_before() {
    need!("ip", "wg", "ping", "setpriv");
    let mut mesh = Mesh::new(2);
    mesh.start(Program::Adit);
    let config = |spec: &str| {
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\nkind: TunnelConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
        );
        mesh.write("config", &text);
    };
    let [first, second] = &mesh.nodes[..] else { panic!("two nodes") };
    first.wait_for_pod_of(second);
    assert_mtu(first, second, 1500 - 60);
    first.namespace.ip("link set eth0 mtu 1400");
    assert_mtu(first, second, 1400 - 60);
    first.namespace.ip("route add 10.9.0.2/32 dev eth0 mtu 1380");
    assert_mtu(first, second, 1380 - 60);
    config("{mode: Strict, mtu: 1300}");
    assert_mtu(first, second, 1300);
    config("{mode: Strict, mtu: Auto}");
    assert_mtu(first, second, 1380 - 60);
    first.namespace.ip("route del 10.9.0.2/32 dev eth0");
    first.namespace.ip("link set eth0 mtu 1500");
    assert_mtu(first, second, 1500 - 60);
    // What somebody else sets is set back.
    first.namespace.ip(&format!("link set {} mtu 1000", first.interface));
    assert_mtu(first, second, 1500 - 60);
}
