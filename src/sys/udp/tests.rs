//! Batches, runs and steering on sockets of the loopback.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::with_faults;

fn recv(batch: &mut RecvBatch, socket: &UdpSocket) -> usize {
    #[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match batch.recv(socket, usize::MAX) {
            Ok(received) => return received,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a deadline of a test")]
        let now = Instant::now();
        assert!(now < deadline, "nothing arrived");
    }
}

#[test]
fn datagrams_arrive_with_addresses_and_ecn_in_both_families() {
    for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        let Ok(socket) = UdpSocket::bind(family, 0, &UdpOptions::default()) else {
            eprintln!("skipped: {family:?} missing");
            continue;
        };
        let ip: IpAddr = ip.parse().unwrap();
        let to = SocketAddr::new(ip, socket.local_port().unwrap());
        let payloads: Vec<Vec<u8>> = [0, 1, 1000, 40_000].map(|len| vec![7; len]).to_vec();
        let datagrams: Vec<_> = payloads
            .iter()
            .zip([Some(ip), None, Some(ip), None])
            .map(|(payload, from)| Datagram {
                to,
                from,
                ds: 0x88 | 2,
                hop_limit: from.map(|_| 9),
                payload,
                segment: 0,
            })
            .collect();
        assert_eq!(SendBatch::new(8).send(&socket, &datagrams).unwrap(), 4);
        let mut batch = RecvBatch::new(8, 30_000);
        let mut seen = 0;
        while seen < 4 {
            for slot in 0..recv(&mut batch, &socket) {
                let received = batch.get_mut(slot).unwrap();
                assert_eq!((received.from, received.to.unwrap().0, received.ecn), (to, ip, 2));
                assert_eq!(received.truncated, payloads[seen].len() > 30_000);
                assert_eq!(received.payload.len(), payloads[seen].len().min(30_000));
                seen += 1;
            }
        }
    }
}

#[test]
fn a_marked_run_arrives_with_its_mark_in_both_families_whole_or_cut_up() {
    for (family, ip) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        for (switch, runs) in [("gro=on", 1), ("gro=off", 5)] {
            let options = |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
            let (inbox, outbox) = (
                UdpSocket::bind(family, 0, &options(switch)),
                UdpSocket::bind(family, 0, &options("gso=on")),
            );
            let (Ok(inbox), Ok(outbox)) = (inbox, outbox) else {
                eprintln!("skipped: {family:?}, UDP_GRO or UDP_SEGMENT missing");
                continue;
            };
            let ip: IpAddr = ip.parse().unwrap();
            let (to, from) = (SocketAddr::new(ip, inbox.local_port().unwrap()), Some(ip));
            for (ds, hop_limit) in [(0x88 | 2, None), (3, Some(9))] {
                let datagram = Datagram { to, from, ds, hop_limit, payload: &[7; 1999], segment: 400 };
                assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
                let mut batch = RecvBatch::new(8, 1 << 16);
                assert_eq!(recv(&mut batch, &inbox), runs, "{family:?} {switch}");
                for slot in 0..runs {
                    let run = batch.get_mut(slot).unwrap();
                    assert_eq!((run.ecn, run.to.unwrap().0, run.from.ip()), (ds & 3, ip, ip));
                    assert_eq!(run.segment, run.payload.len().min(400));
                }
            }
            assert!(outbox.takes_ds.load(Relaxed), "no attempt was without the mark");
        }
    }
}

#[test]
fn a_port_belongs_to_one_owner_who_may_share_it() {
    let options = UdpOptions::default();
    let socket = UdpSocket::bind(Family::V4, 0, &options).unwrap();
    let port = socket.local_port().unwrap();
    let sibling = socket.sibling(&options).unwrap();
    assert_eq!(sibling.local_port().unwrap(), port);
    let error = UdpSocket::bind(Family::V4, port, &options).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_source_that_is_not_ours_is_refused() {
    let socket = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.local_port().unwrap());
    let datagram = Datagram {
        to,
        from: Some("192.0.2.9".parse().unwrap()),
        ds: 0,
        hop_limit: None,
        payload: &[1],
        segment: 0,
    };
    assert!(SendBatch::new(1).send(&socket, &[datagram]).is_err());
}

/// A group of sockets on one port with the program, of which the last one is for what is no data; with and without `UDP_GRO`.
fn steered(family: Family, has_gro: bool, data: u32) -> Option<(Vec<UdpSocket>, SocketAddr)> {
    let switch = if has_gro { "gro=on" } else { "gro=off" };
    let options = UdpOptions { wanted: switch.parse().unwrap(), buffer: 1 << 20, ..UdpOptions::default() };
    let Ok(first) = UdpSocket::bind(family, 0, &options) else {
        eprintln!("skipped: {family:?} or UDP_GRO missing");
        return None;
    };
    let more: Vec<_> = (0..data).map(|_| first.sibling(&options).unwrap()).collect();
    if more[0].steer(data).is_err() {
        eprintln!("skipped: SO_ATTACH_REUSEPORT_CBPF missing");
        return None;
    }
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let to = SocketAddr::new(ip, first.local_port().unwrap());
    Some((std::iter::once(first).chain(more).collect(), to))
}

/// Returns the datagrams that wait at a socket, runs cut up.
fn waiting(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut batch = RecvBatch::new(64, 1 << 16);
    let mut all = Vec::new();
    while let Ok(received) = batch.recv(socket, usize::MAX) {
        for slot in 0..received {
            let run = batch.get_mut(slot).unwrap();
            if run.payload.is_empty() {
                all.push(Vec::new());
            }
            all.extend(run.payload.chunks(run.segment.max(1)).map(<[u8]>::to_vec));
        }
    }
    all
}

fn data_message(index: u32, counter: u8) -> Vec<u8> {
    [&[4, 0, 0, 0][..], &index.to_le_bytes(), &[counter; 40]].concat()
}

#[test]
fn data_goes_where_its_index_says_and_all_else_to_the_last_socket() {
    let families = [Family::V4, Family::V6];
    for (family, has_gro) in families.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let Some((sockets, to)) = steered(family, has_gro, 3) else { continue };
        assert!(sockets.iter().all(|socket| socket.offloads().has(Feature::Gro) == has_gro));
        let from = UdpSocket::bind(family, 0, &UdpOptions::default()).unwrap();
        let indices = [0, 1, 2, 3, 4, 5, 0x0403_0201, 0x8000_0000, u32::MAX - 1, u32::MAX];
        let data = indices.map(|index| data_message(index, 0));
        let others = [1, 2, 3, 0, 5, 0x44, 0xff].map(|kind| [&[kind, 0, 0, 0][..], &[1; 144]].concat());
        // Not data: the reserved bytes are not zero.
        let reserved = [4, 1, 0, 0, 0, 0, 0, 0].to_vec();
        for payload in data.iter().chain(&others).chain([&reserved]) {
            let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload, segment: 0 };
            assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
        }
        for (number, socket) in (0..3).zip(&sockets) {
            let expected: Vec<_> = data
                .iter()
                .zip(indices)
                .filter(|(_, index)| index % 3 == number)
                .map(|(data, _)| data.clone())
                .collect();
            assert_eq!(waiting(socket), expected, "{family:?} {has_gro} {number}");
        }
        let expected: Vec<_> = others.into_iter().chain([reserved]).collect();
        assert_eq!(waiting(&sockets[3]), expected, "{family:?} {has_gro}");
    }
}

#[test]
fn a_run_of_datagrams_goes_where_its_first_one_says_whole_or_cut_up() {
    for (family, has_gro) in [(Family::V4, false), (Family::V4, true), (Family::V6, true)] {
        let Some((sockets, to)) = steered(family, has_gro, 3) else { continue };
        let options = UdpOptions { wanted: "gso=on".parse().unwrap(), ..UdpOptions::default() };
        let from = UdpSocket::bind(family, 0, &options);
        let Ok(from) = from else {
            eprintln!("skipped: UDP_SEGMENT missing");
            continue;
        };
        for number in 0..3 {
            let run: Vec<_> = (0..20).map(|counter| data_message(300 + number, counter)).collect();
            let (payload, segment) = (run.concat(), u16::try_from(run[0].len()).unwrap());
            let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload: &payload, segment };
            assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
            assert_eq!(waiting(&sockets[number as usize]), run, "{family:?} {has_gro} {number}");
        }
        assert!(sockets.iter().all(|socket| waiting(socket).is_empty()));
    }
}

#[test]
fn a_run_longer_than_the_buffer_is_known_to_be_cut_off() {
    let options = |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
    let inbox = UdpSocket::bind(Family::V4, 0, &options("gro=on"));
    let outbox = UdpSocket::bind(Family::V4, 0, &options("gso=on"));
    let (Ok(inbox), Ok(outbox)) = (inbox, outbox) else {
        eprintln!("skipped: UDP_GRO or UDP_SEGMENT missing");
        return;
    };
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), inbox.local_port().unwrap());
    let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload: &[7; 1200], segment: 400 };
    for (slot_len, truncated) in [(1000, true), (1199, true), (1200, false)] {
        assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
        let mut batch = RecvBatch::new(2, slot_len);
        assert_eq!(recv(&mut batch, &inbox), 1);
        let run = batch.get_mut(0).unwrap();
        assert_eq!((run.truncated, run.segment, run.payload.len()), (truncated, 400, slot_len));
    }
}

/// `MSG_CTRUNC`.
#[test]
fn what_may_be_a_run_of_unknown_length_is_told_from_a_datagram() {
    let options = |text: &str| UdpOptions { wanted: text.parse().unwrap(), ..UdpOptions::default() };
    for (switch, is_truncated) in [("gro=on", true), ("gro=off", false)] {
        let Ok(inbox) = UdpSocket::bind(Family::V4, 0, &options(switch)) else {
            eprintln!("skipped: UDP_GRO missing");
            continue;
        };
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), inbox.local_port().unwrap());
        let mut batch = RecvBatch::new(2, 1 << 16);
        for faults in ["ControlRoom=1*1", ""] {
            let outbox = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
            let datagram = Datagram { to, from: None, ds: 2, hop_limit: None, payload: &[7; 40], segment: 0 };
            assert_eq!(SendBatch::new(1).send(&outbox, &[datagram]).unwrap(), 1);
            let (received, _) = with_faults(faults, || batch.recv(&inbox, 2).unwrap());
            assert_eq!(received, 1);
            let run = batch.get_mut(0).unwrap();
            let has_room = faults.is_empty();
            assert_eq!((run.truncated, run.payload.len()), (is_truncated && !has_room, 40));
            assert_eq!((run.to.is_some(), run.ecn), (has_room, if has_room { 2 } else { 0 }));
        }
    }
}

#[test]
fn what_a_system_does_not_know_of_a_socket_is_done_without() {
    for family in [Family::V4, Family::V6] {
        let options = UdpOptions { buffer: 1 << 20, ..UdpOptions::default() };
        let bind = || UdpSocket::bind(family, 0, &options);
        let ip: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let limit = |name: &str| -> usize {
            std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap().trim().parse().unwrap()
        };
        // The kernel doubles what it is told, for what it needs itself (socket(7)).
        let capped = 2 * limit("rmem_max").min(1 << 20);
        for (faults, knows_address, knows_ecn, buffer) in [
            ("", true, true, 2 << 20),
            ("PacketInfo=92", false, true, 2 << 20),
            ("ReceiveTos=92", true, false, 2 << 20),
            ("BufferForce=1", true, true, capped),
            ("BufferForce=1,Buffer=92", true, true, limit("rmem_default")),
            ("PathMtu=92,PacketInfo=22,ReceiveTos=22", false, false, 2 << 20),
        ] {
            let (Ok(socket), _) = with_faults(faults, bind) else {
                eprintln!("skipped: {family:?} or CAP_NET_ADMIN missing");
                continue;
            };
            assert_eq!(socket.socket.recv_buffer_size().unwrap(), buffer, "{faults}");
            let to = SocketAddr::new(ip, socket.local_port().unwrap());
            let datagram = Datagram { to, from: None, ds: 2, hop_limit: None, payload: &[7; 40], segment: 0 };
            assert_eq!(SendBatch::new(1).send(&socket, &[datagram]).unwrap(), 1);
            let mut batch = RecvBatch::new(2, 1 << 16);
            assert_eq!(recv(&mut batch, &socket), 1);
            let received = batch.get_mut(0).unwrap();
            assert_eq!((received.from, received.payload.len()), (to, 40), "{faults}");
            assert_eq!(received.to.map(|(ip, _)| ip), knows_address.then_some(ip), "{faults}");
            assert_eq!(received.ecn, if knows_ecn { 2 } else { 0 }, "{faults}");
        }
    }
}

#[test]
fn datagrams_too_short_for_a_decision_arrive_somewhere() {
    for has_gro in [false, true] {
        let Some((sockets, to)) = steered(Family::V4, has_gro, 3) else { continue };
        let from = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
        for len in 0..=8 {
            for first in [4, 1] {
                let payload = &[first, 0, 0, 0, 2, 0, 0, 0][..len];
                let datagram = Datagram { to, from: None, ds: 0, hop_limit: None, payload, segment: 0 };
                assert_eq!(SendBatch::new(1).send(&from, &[datagram]).unwrap(), 1);
                let found: Vec<_> = sockets.iter().flat_map(waiting).collect();
                assert_eq!(found, [payload], "{len} bytes");
            }
        }
    }
}
