//! What passes between a node and the fabric.

use std::sync::Mutex;

use adit::sys::netlink::Netlink;
use adit::sys::packet::Capture;

pub(crate) use crate::support::sequence::CANARY;
use crate::support::{Namespace, SOON, wait_until};

/// What may be seen on the wire.
#[derive(Clone, Copy)]
pub(crate) enum Seen {
    /// A packet through the tunnel: keepalives come when they like and are not counted.
    WireGuard,
    Canary,
}

/// A capture of what a node sends and receives.
pub(crate) struct Wire {
    capture: Capture,
    counts: Mutex<[usize; 2]>,
}

impl Wire {
    pub(crate) fn open(fabric: &Namespace, port: &'static str) -> Self {
        let capture = fabric.enter(move || Capture::open(Netlink::open().unwrap().link(port).unwrap().index));
        Self { capture: capture.unwrap(), counts: Mutex::default() }
    }

    /// Returns how often it was seen.
    pub(crate) fn count(&self, what: Seen) -> usize {
        // Ethernet, IPv4, UDP to 51820, a data message that is longer than a keepalive: 16 bytes of header and 16 of tag.
        let is_wireguard = |frame: &[u8]| {
            frame.get(23) == Some(&17)
                && frame.get(36..38) == Some(&51820_u16.to_be_bytes())
                && frame.get(42) == Some(&4)
                && frame.len() > 42 + 32
        };
        let mut counts = self.counts.lock().unwrap();
        let mut frame = [0; 2048];
        while let Ok(len) = self.capture.read(&mut frame) {
            counts[0] += usize::from(is_wireguard(&frame[..len]));
            counts[1] += usize::from(frame[..len].windows(CANARY.len()).any(|window| window == CANARY));
        }
        counts[what as usize]
    }

    /// Returns how many frames were not read in time since it was asked last: what is to be searched for whole must be read often.
    pub(crate) fn take_lost(&self) -> u32 {
        self.capture.take_lost().unwrap()
    }

    pub(crate) fn forget(&self, what: Seen) {
        self.count(what);
        self.counts.lock().unwrap()[what as usize] = 0;
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: Seen, name: &str) {
        wait_until(name, SOON, || self.count(what) > 10);
    }
}

/// Returns the pattern that `ping -p` takes for a canary.
pub(crate) fn canary_pattern() -> String {
    CANARY.iter().map(|byte| format!("{byte:02x}")).collect()
}
