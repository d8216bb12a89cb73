//! A WireGuard interface on a TUN device: threads, sockets and clocks around the protocol.
//!
//! ```text
//! worker i   TUN queue i ⇄ UDP sockets i (v4, v6; same port)     run to completion: read, seal, send · receive, open, write
//! handshakes UDP sockets of handshake messages                   turns floods away; idle where the kernel cannot tell messages apart
//! control    handshakes (bounded queue) · peers that asked · timers · edits · the link: up, down, MTU, moved, deleted
//! ```
//!
//! # Memory
//!
//! The sum of these (`memory.rs` tests that it is what is allocated):
//!
//! | for each | at most | of |
//! |---|---|---|
//! | interface | 1 MiB | a queue of 4096 handshake messages, what threads share |
//! | worker, and the thread for handshakes | 569 KiB | 256 KiB read from the TUN device, 192 KiB to be sent, 121 KiB of headers and lists |
//! | … as well | 4.1 MiB | 64 places of 65 KiB for what is received, of which only pages that a datagram has touched take memory (0.25 MiB by runs, 2 MiB where runs follow datagrams that came one by one, 0.25 MiB by datagrams of an Ethernet's length); 56 KiB of lists |
//! | worker that is helped | 5 times both | from the first time that it was, what four others may be at |
//! | peer | 1150 bytes | |
//! | prefix | 280 bytes | with tables half full |
//! | waiting packet | its length, 56 bytes | 128 a peer; of more than [`MAX_STAGED_BYTES`](crate::wireguard::constants::MAX_STAGED_BYTES) of all peers together but one of each |
//! | address that floods | 64 bytes | [`RATE_LIMITER_ENTRIES`](crate::wireguard::load::RATE_LIMITER_ENTRIES) for each thread that receives, a second at most |
//!
//! Beside that the kernel has 2 MiB in each direction of each socket while they are filled.
//!
//! Workers read a [`View`](crate::wireguard::interface::View) that the control thread replaces when it changes; there is no lock between
//! them. What a worker cannot do itself it asks the control thread for.

mod control;
mod lane;
mod link;
#[cfg(test)]
mod memory;
mod receive;
mod screen;
mod send;
mod shared;
mod sockets;
mod spill;
mod worker;

pub use spill::Spill;

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::config::{Configure, Edit, Refused, Snapshot, Statistics};
use crate::crypto::aead;
use crate::crypto::random::Os;
use crate::sys::offload::Wanted;
use crate::sys::tun::Tun;
use crate::wireguard::dropped::{Dropped, Drops};
use crate::wireguard::handshake_times::HandshakeTimes;
use crate::wireguard::interface::Interface;
use control::Control;
use shared::{Request, Shared};
use sockets::SocketSet;
use worker::Worker;

/// The most workers that are started unless more are asked for.
const DEFAULT_THREADS_MAX: usize = 16;

/// Returns the number of workers that suits this machine.
pub fn default_threads() -> usize {
    cores().min(DEFAULT_THREADS_MAX)
}

/// Returns the number of cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A running interface. Dropping it stops the threads and closes device and sockets.
pub struct Device {
    shared: Arc<Shared>,
    handshake_times: Arc<HandshakeTimes>,
    requests: mpsc::Sender<Request>,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// Starts one worker for each queue of `tun`. UDP sockets are opened in the network namespace of the calling thread, and stay there.
    ///
    /// `on_close` is called once when the device has been deleted, from a thread of this device.
    ///
    /// # Errors
    /// If threads, sockets or descriptors cannot be made, or a feature that `wanted` insists on cannot be had.
    pub fn start(
        tun: Tun,
        wanted: Wanted,
        spill: Spill,
        on_close: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let drops = Arc::new(Drops::default());
        let mut interface = Interface::new(Arc::clone(&drops), Box::new(Os));
        let handshake_times = Arc::clone(interface.handshake_times());
        let offloads = tun.offloads();
        let queues: Vec<_> = tun.into_queues().into_iter().map(Arc::new).collect();
        // What was insisted on and cannot be had is said now, not when the link comes up.
        SocketSet::open(0, 0, queues.len(), &wanted, &[])?;
        interface.spread(u32::try_from(queues.len()).unwrap_or(1));
        let (shared, control_poll, worker_polls) =
            Shared::new(drops, interface.view(), queues.len() + 1, offloads, spill)?;
        let shared = Arc::new(shared);
        let (requests, receiver) = mpsc::channel();
        let control = Control::new(
            interface,
            wanted,
            Arc::clone(&shared),
            Arc::clone(&queues[0]),
            control_poll,
            receiver,
        )?;
        let mut device = Self { shared, handshake_times, requests, threads: Vec::new() };
        let handshakes = queues.len();
        // The last one has no queue of its own.
        let queues: Vec<_> = queues.iter().chain(queues.first()).map(Arc::clone).collect();
        for (number, (queue, poll)) in queues.into_iter().zip(worker_polls).enumerate() {
            let reads = number != handshakes;
            let name = if reads { format!("worker-{number}") } else { "handshakes".to_owned() };
            let worker = Worker::new(number, Arc::clone(&device.shared), queue, reads, poll)?;
            device.spawn(name, move || worker.run())?;
        }
        device.spawn("control".to_owned(), move || control.run(on_close))?;
        Ok(device)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Returns the counters of dropped packets.
    pub fn drops(&self) -> &Arc<Drops> {
        &self.shared.drops
    }

    fn ask<T>(&self, request: impl FnOnce(mpsc::SyncSender<T>) -> Request) -> Result<T, Refused> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.requests.send(request(reply)).map_err(|_| Refused::Gone)?;
        self.shared.wake_control();
        answer.recv().map_err(|_| Refused::Gone)
    }
}

impl Configure for Device {
    fn apply(&self, edits: Vec<Edit>) -> Result<(), Refused> {
        self.ask(|reply| Request::Apply(edits, reply))?
    }

    fn snapshot(&self) -> Result<Snapshot, Refused> {
        self.ask(Request::Snapshot)
    }

    /// Nobody is asked: counters can be read while the control thread works off a flood of handshakes.
    fn statistics(&self) -> Result<Statistics, Refused> {
        let drops = self.drops();
        let count = |reason: &Dropped| (reason.name().to_owned(), drops.get(*reason));
        Ok(Statistics {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            crypto: aead::tier().to_owned(),
            // The last ones are for handshakes.
            workers: self.shared.sockets.len() - 1,
            dropped: Dropped::ALL.iter().map(count).collect(),
            handshakes: self.handshake_times.durations(),
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}
