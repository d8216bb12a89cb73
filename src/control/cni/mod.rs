//! The agent's side of the CNI plugin: pods are registered here, and held until their traffic is protected.
//!
//! ```text
//! adit-cni ─ socket ─→ server ─→ pods      who is on this node, on disk as well
//!                        ↑
//! loop ─ facts ──────────┴──→ barrier     whether a pod would be protected. Pure
//!          └────────────────→ conflist    has the runtime call the plugin, once all is ready
//! ```
//!
//! All of it runs on threads of its own; the loop leaves word of each look, and waits for nothing.

pub mod barrier;
pub mod conflist;
pub mod pods;
pub mod protocol;
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::watch;

use self::pods::Pods;
use self::server::{Server, Shared};
use crate::sys::clock;
use crate::sys::poll::{Waits, poll};
use crate::sys::wake::Wake;
use crate::sys::watch::Changes;

pub use barrier::Facts;
pub use conflist::Mode;

/// The time between two looks at the runtime's configuration, if nothing is told.
const RESYNC: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The time between two looks at it for what happens there.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the socket is, unless another place is asked for.
pub const SOCKET: &str = "/run/adit/cni.sock";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the plugin finds the agent: the same path here and on the host.
    pub socket: PathBuf,
    /// Where the plugin keeps its state: likewise.
    pub plugin_state: PathBuf,
    /// Where the runtime has its configuration; `None` to leave that alone.
    pub configuration: Option<PathBuf>,
    /// What the plugin is to be there.
    pub mode: Mode,
    /// The program of the plugin, and where the runtime looks for it; `None` if somebody else puts it there.
    pub program: Option<(PathBuf, PathBuf)>,
}

/// Removes what an agent with these options leaves behind: the plugin from the runtime's configuration first, so that no pod waits for an
/// agent that will not come; its program, unless a pod still needs it, see [`conflist::remove_program`]; a socket that nobody listens on.
/// Tells whether the program stays.
///
/// # Errors
/// Names the first thing that cannot be removed; all others have been tried.
pub fn cleanup(options: &Options) -> Result<bool, conflist::Failed> {
    let unlisted = options.configuration.as_deref().map_or(Ok(()), conflist::remove);
    let place = options.program.as_ref().map(|(_, place)| place);
    let removed = place.map_or(Ok(true), |place| conflist::remove_program(place, &options.plugin_state));
    let path = &options.socket;
    let unheard = match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    };
    unlisted?;
    unheard.map_err(|error| (path.clone(), error))?;
    removed.map(|is_gone| !is_gone)
}

/// The threads: one answers the plugin, one keeps the runtime's configuration. They end, and the socket goes, when this is dropped; pods
/// stay registered, and the runtime's configuration as it is.
pub struct Cni {
    /// Who is on this node.
    shared: Arc<Shared>,
    /// Gone when the threads are to end.
    facts: Option<watch::Sender<Option<Facts>>>,
    /// Wakes the one that keeps the configuration.
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
}

impl Cni {
    /// Opens the socket, and reads which pods there are from `state`.
    ///
    /// # Errors
    /// If the socket cannot be opened or the directory not be made; if no thread or descriptor is left.
    pub fn start(options: Options, state: &Path) -> io::Result<Self> {
        let (facts, latest) = watch::channel(None);
        let wake = Arc::new(Wake::new()?);
        let server = Server::open(&options, Pods::open(&state.join("pods"))?, latest.clone())?;
        let (shared, facts) = (server.shared(), Some(facts));
        let mut this = Self { shared, facts, wake: Arc::clone(&wake), threads: Vec::new() };
        this.spawn("cni", move || server.run())?;
        if let Some(directory) = options.configuration.clone() {
            let shared = Arc::clone(&this.shared);
            let keeper = Keeper { options, directory, facts: latest, shared, wake, said: String::new() };
            this.spawn("cni-config", move || keeper.run())?;
        }
        Ok(this)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Leaves word of a look.
    pub fn tell(&self, news: Facts) {
        let Some(facts) = &self.facts else { return };
        let is_news = facts.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(&news);
            *known = Some(news);
            is_news
        });
        if is_news {
            self.wake.wake();
        }
    }

    /// Returns a descriptor that is readable when [`Self::addresses`] may be others, or [`Self::holds_pods`] is otherwise.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.news()
    }

    /// Takes notice of that.
    pub fn take(&self) {
        self.shared.take_news();
    }

    /// Returns the addresses of all pods that are registered, those that are held among them: the other nodes are to know of a pod before
    /// it has its network.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.shared.addresses()
    }

    /// Tells whether every pod that comes is held until it is protected: the node is ready, and the runtime calls the plugin.
    pub fn holds_pods(&self) -> bool {
        self.shared.is_called()
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        self.facts = None;
        self.wake.wake();
        for thread in self.threads.drain(..) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Keeps the runtime's configuration as it should be, once the node is ready.
struct Keeper {
    options: Options,
    directory: PathBuf,
    facts: watch::Receiver<Option<Facts>>,
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    /// What was said to be wrong last.
    said: String,
}

impl Keeper {
    fn run(mut self) {
        let mut waits = Waits::default();
        while self.facts.has_changed().is_ok() {
            // Watched before it is looked at, so that nothing happens between the two unseen.
            let changes = Changes::of_files(&self.directory).ok();
            let looked = clock::boottime();
            self.look();
            let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
            fds.extend(changes.as_ref().map(|changes| PollFd::new(changes, PollFlags::IN)));
            // Whatever ends it, it is time for another look.
            waits.have_told(poll(&mut fds, Some(&RESYNC)), PAUSE);
            // But not again and again for what each look writes: on a disk that is full, beside somebody who undoes it.
            let rest = PAUSE.saturating_sub(clock::boottime() - looked);
            let rest = Timespec { tv_sec: 0, tv_nsec: i64::from(rest.subsec_nanos()) };
            let _ = poll(&mut fds[..1], Some(&rest));
            self.wake.take();
        }
    }

    fn look(&mut self) {
        let facts = self.facts.borrow_and_update().clone();
        let installed = match &facts {
            Some(facts) if facts.unready().is_none() => conflist::install(&self.options, facts).map(Some),
            _ => {
                let on_agent_unavailable = facts.map(|facts| facts.on_agent_unavailable).unwrap_or_default();
                conflist::put_back(&self.options, on_agent_unavailable).map(|()| None)
            }
        };
        self.shared.set_called(matches!(installed, Ok(Some(true))));
        let reason = match installed {
            Ok(None) => return,
            Ok(Some(true)) => String::new(),
            Ok(Some(false)) => "there is no network to be in, or no block of pod addresses".to_owned(),
            Err((path, error)) => format!("{}: {error}", path.display()),
        };
        // What goes on failing is said once.
        if !reason.is_empty() && reason != self.said {
            tracing::warn!(reason, "the runtime is not told to call the CNI plugin");
        }
        self.said = reason;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::control::api::{Mode as Protection, OnAgentUnavailable};

    #[test]
    fn a_configuration_that_cannot_be_written_is_not_written_again_and_again() {
        let directory = std::env::temp_dir().join(format!("adit-cni-{}-unwritten", std::process::id()));
        let configuration = directory.join("net.d");
        fs::create_dir_all(&configuration).unwrap();
        let network = r#"{ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "bridge" }] }"#;
        fs::write(configuration.join("10-n.conflist"), network).unwrap();
        // The copy of it is written, and has no place.
        fs::create_dir(configuration.join("10-n.conflist.adit-backup")).unwrap();
        let options = Options {
            socket: directory.join("cni.sock"),
            plugin_state: directory.clone(),
            configuration: Some(configuration.clone()),
            mode: Mode::Chained,
            program: None,
        };
        let cni = Cni::start(options, &directory).unwrap();
        let changes = Changes::of_files(&configuration).unwrap();
        cni.tell(Facts {
            mode: Protection::Strict,
            on_agent_unavailable: OnAgentUnavailable::Fail,
            pods: Vec::new(),
            mtu: None,
            has_data_plane: true,
            failure: None,
        });
        let (mut written, end) = (0, clock::boottime() + Duration::from_secs(1));
        while clock::boottime() < end {
            let step = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&step)).unwrap();
            written += changes.take().len();
        }
        drop(cni);
        let _ = fs::remove_dir_all(&directory);
        // Ten times, each of which may be told of twice.
        assert!((1..=22).contains(&written), "{written}");
    }
}
