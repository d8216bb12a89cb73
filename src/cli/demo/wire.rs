//! What passes over the fabric.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lab::{Lab, PORT};
use super::traffic::Pattern;
use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::packet::Capture;

/// Bytes of the pattern that are searched for: 2^-192 is the chance that random bytes are these.
const NEEDLE_LEN: usize = 24;

const ETHERNET_LEN: usize = 14;

/// Frames by what they are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// WireGuard messages.
    pub(super) wireguard: u64,
    /// ARP and ICMPv6: how neighbours find each other.
    pub(super) neighbours: u64,
    /// Everything else.
    pub(super) other: u64,
    /// Frames of any kind that hold bytes of the pods.
    pub(super) with_pattern: u64,
    /// Frames that were not looked at.
    pub(super) lost: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames: {} WireGuard messages, {} ARP and neighbour discovery, {} others. With the pods' bytes in them: {}.",
            self.wireguard + self.neighbours + self.other,
            self.wireguard,
            self.neighbours,
            self.other,
            self.with_pattern
        )?;
        if self.lost > 0 {
            write!(f, " Not looked at: {}.", self.lost)?;
        }
        Ok(())
    }
}

/// Looks at every frame on the fabric's side of every node's link.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Watcher {
    /// Starts to look.
    pub(super) fn start(lab: &Lab, pattern: &Pattern) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let captures: Vec<_> = netns::run_in(&lab.fabric, || {
            let mut netlink = Netlink::open()?;
            let open =
                |node: &super::lab::Node| Capture::open(netlink.link(&format!("node{}", node.number))?.index);
            lab.nodes.iter().map(open).collect()
        })?;
        let threads = captures
            .into_iter()
            .map(|capture| {
                let (stop, pattern) = (Arc::clone(&stop), *pattern);
                std::thread::spawn(move || watch(&capture, &pattern, &stop))
            })
            .collect();
        Ok(Self { stop, threads })
    }

    /// Stops and returns what was seen. A frame between two nodes was seen on both links.
    pub(super) fn stop(mut self) -> Seen {
        self.stop.store(true, SeqCst);
        let mut total = Seen::default();
        for thread in self.threads.drain(..) {
            let seen = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            total.wireguard += seen.wireguard;
            total.neighbours += seen.neighbours;
            total.other += seen.other;
            total.with_pattern += seen.with_pattern;
            total.lost += seen.lost;
        }
        total
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn watch(capture: &Capture, pattern: &Pattern, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut frame = vec![0; 65536];
    loop {
        match capture.read(&mut frame) {
            Ok(len) => look(&frame[..len], pattern, &mut seen),
            Err(_) if stop.load(SeqCst) => break,
            Err(_) => {
                let mut fds = [PollFd::new(capture, PollFlags::IN)];
                // At the latest after this long it looks whether it is to stop.
                let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
            }
        }
    }
    seen.lost = capture.take_lost().map_or(0, u64::from);
    seen
}

fn look(frame: &[u8], pattern: &Pattern, seen: &mut Seen) {
    *match kind_of(frame) {
        Kind::WireGuard => &mut seen.wireguard,
        Kind::Neighbours => &mut seen.neighbours,
        Kind::Other => &mut seen.other,
    } += 1;
    let needle = &pattern[..NEEDLE_LEN];
    seen.with_pattern += u64::from(frame.windows(NEEDLE_LEN).any(|window| window == needle));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    WireGuard,
    Neighbours,
    Other,
}

fn kind_of(frame: &[u8]) -> Kind {
    let Some((header, packet)) = frame.split_at_checked(ETHERNET_LEN) else { return Kind::Other };
    match (u16::from_be_bytes([header[12], header[13]]), packet) {
        // ARP.
        (0x0806, _) => Kind::Neighbours,
        // ICMPv6, also behind the hop-by-hop header of a multicast report.
        (0x86dd, [_, _, _, _, _, _, 58 | 0, ..]) => Kind::Neighbours,
        (0x0800, [first, ..]) => {
            let udp = packet.get(usize::from(first & 15) * 4..).unwrap_or_default();
            match (packet.get(9), udp) {
                (Some(17), [from_high, from_low, to_high, to_low, _, _, _, _, 1..=4, 0, 0, 0, ..])
                    if [*from_high, *from_low] == PORT.to_be_bytes()
                        && [*to_high, *to_low] == PORT.to_be_bytes() =>
                {
                    Kind::WireGuard
                }
                _ => Kind::Other,
            }
        }
        _ => Kind::Other,
    }
}
