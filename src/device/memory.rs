//! The sum at the head of this room is what is allocated.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::receive::Receiver;
use super::send::Sender;
use super::shared::Shared;
use super::spill::Spill;
use crate::config::{AllowedIpEdit, Edit, PeerEdit, Prefix};
use crate::crypto::random::Os;
use crate::crypto::x25519::PublicKey;
use crate::sys::allocated;
use crate::sys::offload::Active;
use crate::wireguard::dropped::Drops;
use crate::wireguard::interface::Interface;
use crate::wireguard::peer::Staged;
use crate::wireguard::ratelimiter::RateLimiter;
use crate::wireguard::time::{Instant, Moment};

/// Checks that `bytes` are what is said, and that not much more is said.
#[track_caller]
fn assert_said(bytes: isize, said: usize, tolerance: f64) {
    let least = said as f64 * (1.0 - tolerance);
    assert!((least..=said as f64).contains(&(bytes as f64)), "{bytes} bytes, said to be {said}");
}

fn interface() -> Interface {
    Interface::new(Arc::new(Drops::default()), Box::new(Os))
}

fn shared(workers: usize) -> Arc<Shared> {
    let shared = Shared::new(Arc::default(), interface().view(), workers + 1, Active::default(), Spill::Off);
    Arc::new(shared.unwrap().0)
}

#[test]
fn a_worker_has_the_buffers_that_it_is_said_to_have() {
    let shared = shared(2);
    let (_sender, sending) = allocated(|| Sender::new(Arc::clone(&shared), 0));
    assert_said(sending, (256 + 192 + 121) << 10, 0.02);
    let (_receiver, receiving) = allocated(|| Receiver::new(Arc::clone(&shared), 0));
    assert_said(receiving, (64 * 65_536 + 64 * 17 * 64) + (56 << 10), 0.02);
}

#[test]
fn a_limiter_takes_what_it_is_said_to_take() {
    let ((), bytes) = allocated(|| {
        let mut limiter = RateLimiter::new([1; 16], 65_536);
        let full = (0..100_000_u32).map(|ip| Ipv4Addr::from(ip).into());
        assert_eq!(full.filter(|&ip| limiter.allow(ip, Instant::from_nanos(1))).count(), 65_536);
        std::mem::forget(limiter);
    });
    assert_said(bytes, 65_536 * 64, 0.4);
}

#[test]
fn what_is_there_once_is_what_it_is_said_to_be() {
    let (_shared, bytes) = allocated(|| shared(16));
    assert_said(bytes, 1 << 20, 0.2);
}

fn peer(number: u32, prefixes: u32) -> Edit {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    let mut edit = PeerEdit::new(PublicKey::new(key));
    edit.endpoint = Some(format!("192.0.2.1:{}", 1 + number).parse().unwrap());
    edit.allowed_ips = (0..prefixes)
        .map(|index| IpAddr::from(Ipv4Addr::from((10 << 24) + ((number * prefixes + index) << 4))))
        .map(|addr| AllowedIpEdit::Add(Prefix::new(addr, 28).unwrap()))
        .collect();
    Edit::Peer(edit)
}

#[test]
fn peers_prefixes_and_waiting_packets_take_what_they_are_said_to_take() {
    let moment = Moment { now: Instant::from_nanos(1), unix: Duration::from_secs(1) };
    for (peers, prefixes) in [(1000, 0), (1000, 10), (10_000, 2), (10_000, 10)] {
        let edits: Vec<_> = (0..peers).map(|number| peer(number, prefixes)).collect();
        let ((_interface, view), bytes) = allocated(|| {
            let mut interface = interface();
            interface.apply(&edits, moment).unwrap();
            let view = interface.view();
            (interface, view)
        });
        // Tables are up to twice as long as what is in them.
        let said = peers as usize * (1150 + 280 * prefixes as usize);
        assert_said(bytes, said, 0.4);
        let Some(peer) = view.route("10.0.0.1".parse().unwrap()) else { continue };
        let stage = || {
            let _ = peer.stage(Staged { packet: vec![0; 1000].into(), mtu: 1420, ds: 0 }, moment.now);
        };
        let ((), bytes) = allocated(|| (0..128).for_each(|_| stage()));
        // What the C library adds to each is not counted here.
        assert_said(bytes, 128 * (1000 + 56), 0.05);
        let ((), bytes) = allocated(|| (0..1000).for_each(|_| stage()));
        assert_said(bytes, 0, 0.0);
    }
}
