//! Overlays inside the tunnel, as Kubernetes makes them of pods: VXLAN and Geneve, over both families.

use crate::batching::{counted, unpaced};
use crate::netns::Pair;
use crate::support::stream::exchange;
use crate::support::{SOON, need, not_hosted, wait_until};
use crate::tiers::{LINUX_4_14, LINUX_6_2, MODERN, Tier, datagrams_within, faults_are_possible, is_here};

/// Addresses of the tunnel's two ends.
const OUTSIDE: [[&str; 2]; 2] = [["192.168.241.1", "192.168.241.2"], ["fd00::1", "fd00::2"]];

/// What an overlay is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vxlan,
    Geneve,
}

/// Puts an overlay into a tunnel, and returns its MTU; none where the kernel knows no such device.
fn overlay(pair: &Pair, kind: Kind, outside: [&str; 2], options: &str) -> Option<usize> {
    // Headers of IP, UDP, the overlay, and Ethernet.
    let mtu = 1420 - if outside[0].contains(':') { 40 } else { 20 } - 8 - 8 - 14;
    let ends = [(&pair.ns1, outside[0], outside[1], 1), (&pair.ns2, outside[1], outside[0], 2)];
    for (namespace, local, remote, host) in ends {
        let kind = match kind {
            Kind::Vxlan => format!("vxlan id 7 dstport 4789 local {local} remote {remote} {options}"),
            Kind::Geneve => format!("geneve id 7 remote {remote} {options}"),
        };
        if !namespace.succeeds(&format!("ip link add pods type {kind}")) {
            return None;
        }
        namespace.ip(&format!("addr add 10.77.0.{host}/24 dev pods"));
        namespace.ip(&format!("addr add fd77::{host}/64 dev pods nodad"));
        namespace.ip(&format!("link set pods mtu {mtu} up"));
    }
    for addr in ["10.77.0.2", "fd77::2"] {
        wait_until("the overlay", SOON, || pair.ns1.pings(addr));
    }
    Some(mtu)
}

/// T27. With and without the checksum that most overlays leave out, and by the knob.
#[test]
fn an_overlay_inside_the_tunnel_carries_every_byte() {
    need!("ip", "wg", "ping");
    if !faults_are_possible() {
        return;
    }
    let [v4, v6] = OUTSIDE;
    for (tier, kind, outside, options) in [
        (MODERN, Kind::Vxlan, v4, "udpcsum"),
        (MODERN, Kind::Vxlan, v4, "noudpcsum"),
        (MODERN, Kind::Vxlan, v6, ""),
        (MODERN, Kind::Vxlan, v6, "udp6zerocsumtx udp6zerocsumrx"),
        (Tier { offload: "coalesce-udp=off", ..LINUX_6_2 }, Kind::Vxlan, v4, "udpcsum"),
        (Tier { offload: "coalesce-udp=on", ..MODERN }, Kind::Vxlan, v4, "udpcsum"),
        (LINUX_4_14, Kind::Vxlan, v4, "udpcsum"),
        (LINUX_4_14, Kind::Vxlan, v6, ""),
        (MODERN, Kind::Geneve, v4, "udpcsum"),
        (MODERN, Kind::Geneve, v4, "noudpcsum"),
        (MODERN, Kind::Geneve, v6, ""),
        (LINUX_4_14, Kind::Geneve, v4, "udpcsum"),
    ] {
        let pair = tier.pair(tier);
        pair.set_endpoints("127.0.0.1");
        let Some(mtu) = overlay(&pair, kind, outside, options) else {
            not_hosted(&format!("{kind:?}"));
            continue;
        };
        for (to, back) in [("10.77.0.2", "10.77.0.1"), ("fd77::2", "fd77::1")] {
            exchange(&pair.ns1, &pair.ns2, to, 4 << 20);
            datagrams_within(&pair.ns1, &pair.ns2, to, mtu);
            datagrams_within(&pair.ns2, &pair.ns1, back, mtu);
        }
    }
}

/// Super-packets of an overlay come from the device whole, since Linux 6.17, and go to it as runs of datagrams, since 6.8.5.
#[test]
fn a_stream_over_an_overlay_is_read_and_written_as_far_fewer_than_its_packets() {
    need!("ip", "wg", "ping");
    if !is_here("tunnel") {
        return not_hosted("TUN_F_UDP_TUNNEL_GSO");
    }
    for (kind, outside) in
        [Kind::Vxlan, Kind::Geneve].into_iter().flat_map(|kind| OUTSIDE.map(|outside| (kind, outside)))
    {
        let pair = MODERN.pair(MODERN);
        pair.set_endpoints("127.0.0.1");
        if overlay(&pair, kind, outside, "").is_none() {
            not_hosted(&format!("{kind:?}"));
            continue;
        }
        unpaced(&pair);
        let Pair { ns1, ns2, t1, t2, .. } = &pair;
        let peer = t2.key.public();
        // How much of it the kernel keeps together depends on the load; of what is not super-packets nothing ever is.
        let holds = (0..5).any(|_| {
            let (sent, [ours, others]) = (t1.transfer(ns1, &peer).1, [counted(ns1, t1), counted(ns2, t2)]);
            exchange(ns1, ns2, "10.77.0.2", 8 << 20);
            let sent = (t1.transfer(ns1, &peer).1 - sent) / 1452;
            let read = counted(ns1, t1).0 - ours.0;
            let written = counted(ns2, t2).1 - others.1;
            eprintln!("{kind:?} over {}: {read} read, {sent} sent, {written} written", outside[0]);
            read * 4 < sent && written * 4 < sent
        });
        assert!(holds, "{kind:?} over {}", outside[0]);
    }
}
