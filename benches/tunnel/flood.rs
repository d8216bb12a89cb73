//! A flood of handshake initiations with a right mac1, from a stranger: the receiver has to open each to learn that it is nobody's.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use adit::sys::clock::monotonic;

use crate::lab::{Lab, OUTER, PORT};
use crate::support::pause;
use crate::support::puppet::{Puppet, udp};

/// Initiations a second: more than a core of ours answers.
pub(crate) const RATE: u64 = 20_000;
/// Different ones: who compares them with the last one finds no repetition.
const MESSAGES: usize = 256;
/// How often the sender looks at the clock.
const LOOK: Duration = Duration::from_micros(500);

/// A flood of the receiving end. It ends when this is dropped.
pub(crate) struct Flood {
    /// Whom it goes to, if not to the daemon.
    _sink: Option<UdpSocket>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts one of the daemon, from the sending end's machine.
    pub(crate) fn start(lab: &Lab) -> Self {
        Self::start_to(lab, format!("{}:{PORT}", OUTER[1]).parse().expect("an address"), None)
    }

    /// Starts the same one towards a socket that nobody reads from: what it takes of the machine without costing the daemon anything.
    pub(crate) fn start_to_nobody(lab: &Lab) -> Self {
        let sink = udp(lab.b(), &format!("{}:0", OUTER[1]));
        Self::start_to(lab, sink.local_addr().expect("it is bound"), Some(sink))
    }

    fn start_to(lab: &Lab, to: SocketAddr, sink: Option<UdpSocket>) -> Self {
        let mut stranger = Puppet::new(lab.a(), &format!("{}:0", OUTER[0]), to, lab.receiver_key());
        let messages: Vec<_> = (0..MESSAGES).map(|_| stranger.initiation().1).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let (begun, mut sent) = (monotonic(), 0);
            let mut next = messages.iter().cycle();
            while !is_over.load(Relaxed) {
                let due = u64::try_from((monotonic() - begun).as_micros()).expect("a run is short") * RATE
                    / 1_000_000;
                // Kept from running for long, it does not make up for it at once.
                sent = sent.max(due.saturating_sub(RATE / 100));
                for message in next.by_ref().take(usize::try_from(due - sent).expect("not many")) {
                    // What the system has no room for is no flood.
                    let _ = stranger.socket.send_to(message, to);
                }
                sent = due;
                pause(LOOK);
            }
        });
        Self { _sink: sink, stop, sender: Some(sender) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // A panic has been printed already.
        let _ = self.sender.take().map(JoinHandle::join);
    }
}
