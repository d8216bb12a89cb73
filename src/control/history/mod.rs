//! Random histories of a cluster, acted upon event by event, with the invariants checked after every single change: the objects come,
//! change, move and go in any order, keys and prefixes are claimed twice, the agent and the data plane are started anew, lists are read in
//! part, the kernel refuses, API servers move, this node gets another key.
//!
//! The data plane, the kernel's routes and the firewall are models that obey one edit at a time, so that every state in between is seen.
//!
//! - `world`: what happens, and what the agent makes of it.
//! - `model`: what it acts upon.
//! - `check`: what has to hold.

mod check;
mod model;
mod world;

use self::world::World;
use super::leaving::Leaving;
use super::objects::{Object, Objects};
use super::read;
use super::topology::topology;
use crate::crypto::x25519::PublicKey;

const HISTORIES: u64 = 10_000;
const EVENTS: usize = 12;
const NODES: u8 = 5;
const OWN: &str = "n1";

/// SplitMix64: the same seed, the same history.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u8) -> u8 {
        u8::try_from(self.next() % u64::from(bound)).unwrap()
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < percent
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32])
}

#[test]
fn ten_thousand_histories_hold_every_invariant() {
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..EVENTS {
            world.event();
            world.act();
        }
        // However it went, it ends where all agree.
        world.partly = None;
        world.data_plane.get_or_insert_default();
        world.say("the end".to_owned());
        (world.random, world.refuses) = (Random(1), None);
        for _ in 0..3 {
            world.wait();
            world.act();
            world.publish();
        }
        world.check_is_known();
        assert_eq!(world.leaving, Leaving::default(), "{}", world.story());
    }
}

#[test]
fn the_order_in_which_objects_come_makes_no_difference() {
    let mut random = Random(7);
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        (0..EVENTS).for_each(|_| world.event());
        let mut all: Vec<Object> =
            read::values(&world.objects).map(|value| read::object(&value).unwrap()).collect();
        let wanted = topology(&world.objects, &world.own);
        let mut objects = Objects::default();
        while !all.is_empty() {
            let at = usize::try_from(random.next()).unwrap() % all.len();
            objects.insert(all.swap_remove(at));
            topology(&objects, &world.own);
        }
        assert_eq!(topology(&objects, &world.own), wanted, "{}", world.story());
    }
}
