//! A way that takes its time: what is sent to a place goes on from there after a while.
//!
//! The kernel has that too, as `sch_netem`, but in a module that many a machine lacks.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use adit::sys::clock::boottime;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::Namespace;
use super::puppet::udp;

/// How long it may take until the end is noticed.
const LOOK: Duration = Duration::from_millis(50);

/// What may wait to be read while the machine does something else, in bytes.
const BUFFER: usize = 4 << 20;

/// Ends, and the places where each is found: what others send there waits, and comes to the end from the sender's place.
pub(crate) struct Detour {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// An end, and the socket at its place.
type Place = (SocketAddr, UdpSocket);

impl Detour {
    /// Begins to send on in a namespace, for each pair of an end and its place.
    #[track_caller]
    pub(crate) fn start(namespace: &Namespace, pairs: &[(SocketAddr, SocketAddr)], delay: Duration) -> Self {
        let place = |(end, place): &(SocketAddr, SocketAddr)| {
            let socket = udp(namespace, &place.to_string());
            set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
            (*end, socket)
        };
        let places: Arc<[Place]> = pairs.iter().map(place).collect();
        let stop = Arc::<AtomicBool>::default();
        let threads = (0..places.len()).map(|at| {
            let (places, stop) = (Arc::clone(&places), Arc::clone(&stop));
            thread::spawn(move || send_on(&places, at, delay, &stop))
        });
        Self { threads: threads.collect(), stop }
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Sends on what comes to the place `at`.
fn send_on(places: &[Place], at: usize, delay: Duration, stop: &AtomicBool) {
    let (end, socket) = &places[at];
    let mut waiting = VecDeque::<(Duration, &UdpSocket, Vec<u8>)>::new();
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Relaxed) {
        let wait = waiting.front().map_or(LOOK, |(due, ..)| due.saturating_sub(boottime()).min(LOOK));
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let is_there = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) == Ok(1);
        if is_there
            && let Ok((len, from)) = socket.recv_from(&mut buffer)
            && let Some((_, place)) = places.iter().find(|(end, _)| *end == from)
        {
            waiting.push_back((boottime() + delay, place, buffer[..len].to_vec()));
        }
        while let Some((_, place, datagram)) = waiting.pop_front_if(|(due, ..)| *due <= boottime()) {
            let _ = place.send_to(&datagram, end);
        }
    }
}
