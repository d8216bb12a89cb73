//! The agent's client of the configuration protocol: with our server's parser, and with every data plane that is here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use adit::config::diff::diff;
use adit::config::{AllowedIpEdit, Desired, DesiredPeer, Edit, PeerEdit, Prefix, PresharedKey};
use adit::control::uapi_client::{Client, DIRECTORY, Failed, print, read_snapshot};
use adit::crypto::x25519::{PrivateKey, PublicKey};
use adit::uapi::{get, set};
use proptest::prelude::*;

use crate::support::tunnel::{Program, Tunnel};
use crate::support::{Directory, Namespace, need};

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(addr, len)| Prefix::new(addr.into(), len).unwrap()),
        (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(addr, len)| Prefix::new(addr.into(), len).unwrap()),
    ]
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        // A mapped address is another one by the time it is read.
        (any::<[u8; 8]>(), any::<u16>()).prop_map(|(low, port)| {
            let mut addr = [0x20; 16];
            addr[8..].copy_from_slice(&low);
            SocketAddr::from((addr, port))
        }),
    ]
}

fn peer_edit() -> impl Strategy<Value = PeerEdit> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let values =
        (prop::option::of(any::<[u8; 32]>()), prop::option::of(endpoint()), prop::option::of(any::<u16>()));
    let allowed_ips = prop::collection::vec((any::<bool>(), prefix()), 0..4);
    (any::<[u8; 32]>(), flags, values, allowed_ips).prop_map(
        |(key, (remove, update_only, replace), values, list)| {
            let mut edit = PeerEdit::new(PublicKey::new(key));
            edit.update_only = update_only;
            edit.remove = remove;
            if !remove {
                edit.preshared_key = values.0.map(PresharedKey::new);
                edit.endpoint = values.1;
                edit.persistent_keepalive = values.2;
                edit.replace_allowed_ips = replace;
                let change = |(add, prefix)| {
                    if add { AllowedIpEdit::Add(prefix) } else { AllowedIpEdit::Remove(prefix) }
                };
                edit.allowed_ips = list.into_iter().map(change).collect();
            }
            edit
        },
    )
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        prop::option::of(any::<[u8; 32]>()).prop_map(|key| Edit::PrivateKey(key.map(PrivateKey::new))),
        any::<u16>().prop_map(Edit::ListenPort),
        any::<u32>().prop_map(Edit::Fwmark),
        Just(Edit::ClearPeers),
    ]
}

proptest! {
    #[test]
    fn the_server_reads_what_the_client_writes(
        interface in prop::collection::vec(edit(), 0..4),
        peers in prop::collection::vec(peer_edit(), 0..5),
    ) {
        let edits: Vec<_> = interface.into_iter().chain(peers.into_iter().map(Edit::Peer)).collect();
        let text = print(&edits);
        let body = text.strip_prefix("set=1\n").unwrap();
        let read = set::parse(body.as_bytes(), |_| None).unwrap();
        prop_assert_eq!(format!("{read:?}"), format!("{edits:?}"));
    }
}

/// What an interface should be: peers by number, with the prefixes that are theirs.
fn desired(peers: &[(u8, &[&str])]) -> Desired {
    let peers: BTreeMap<_, _> = peers
        .iter()
        .map(|(number, prefixes)| {
            let peer = DesiredPeer {
                endpoint: Some(SocketAddr::from(([192, 0, 2, *number], 51820))),
                persistent_keepalive: u16::from(*number),
                allowed_ips: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
                ..DesiredPeer::default()
            };
            (PublicKey::new([*number; 32]), peer)
        })
        .collect();
    Desired { private_key: Some(PrivateKey::new([9; 32])), listen_port: 51820, fwmark: 7, peers }
}

#[test]
fn every_data_plane_is_led_from_one_configuration_to_the_next() {
    need!("ip", "wg", "setpriv");
    let steps = [
        desired(&[(1, &["10.1.0.0/16", "fd00:1::/64"]), (2, &["10.2.0.0/16", "10.9.0.0/16"])]),
        // A prefix moves, one is added, one goes.
        desired(&[(1, &["10.1.0.0/16", "10.9.0.0/16"]), (2, &["10.2.0.0/16", "fd00:2::/64"])]),
        // A peer goes, and another takes what it had.
        desired(&[(2, &["10.2.0.0/16", "10.9.0.0/16"]), (3, &["10.1.0.0/16"])]),
        desired(&[]),
    ];
    for program in [Program::Adit, Program::WireguardGo, Program::Tailscale, Program::Boringtun] {
        if program.path().is_none() {
            continue;
        }
        // boringtun changes no peer that it has: it ends.
        let skipped = if program == Program::Boringtun { 1..3 } else { 0..0 };
        let namespace = Namespace::new();
        let tunnel = Tunnel::start_without_key(program, &namespace, &[], &[]);
        tunnel.up(&namespace);
        let client =
            Client::new(Path::new(DIRECTORY), &tunnel.name).with_private_key(PrivateKey::new([9; 32]));
        let statistics = client.statistics().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let version = statistics.map(|statistics| statistics.version);
        // The others do not know the request.
        let ours = (program == Program::Adit).then(|| env!("CARGO_PKG_VERSION").to_owned());
        assert_eq!(version, ours, "{program:?}");
        for (at, step) in steps.iter().enumerate().filter(|(at, _)| !skipped.contains(at)) {
            let difference = diff(&client.snapshot().unwrap(), step);
            for edits in [difference.additions, difference.removals].iter().filter(|edits| !edits.is_empty())
            {
                client.apply(edits).unwrap_or_else(|error| panic!("{program:?}, step {at}: {error}"));
            }
            let left = diff(&client.snapshot().unwrap(), step).into_edits();
            assert!(left.is_empty(), "{program:?}, step {at}: {left:?}");
        }
    }
}

#[test]
fn a_data_plane_that_is_not_there_or_refuses_is_told_of() {
    need!("ip", "wg", "setpriv");
    let empty = Directory::new();
    assert!(matches!(Client::new(empty.path(), "wg0").snapshot(), Err(Failed::Io(_))));
    let namespace = Namespace::new();
    let tunnel = Tunnel::start(Program::Adit, &namespace);
    tunnel.up(&namespace);
    let client = Client::new(Path::new(DIRECTORY), &tunnel.name);
    let taken = namespace.enter(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    let port = taken.local_addr().unwrap().port();
    match client.apply(&[Edit::ListenPort(port)]) {
        Err(Failed::Refused(98)) => {}
        other => panic!("{other:?}"),
    }
    let snapshot = client.snapshot().unwrap();
    let mut text = get::print(&snapshot).to_string();
    text.push_str("errno=0\n\n");
    assert_eq!(format!("{:?}", read_snapshot(&text, None).unwrap()), format!("{snapshot:?}"));
}
