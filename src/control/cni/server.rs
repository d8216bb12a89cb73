//! The socket: one question a connection, and its answer.
//!
//! Only root can reach it. Still, whoever asks can have little of it: so many connections at a time, of which the oldest makes room for
//! the next; seconds for a question and for its answer; a bounded line.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Options;
use super::barrier::{Facts, Obstacle};
use super::pods::{Attachment, Pod, Pods};
use super::protocol::{self, Answer, LINE_MAX, Question, Refused};
use crate::sys::wake::Wake;

/// The most connections at a time: a node's pods that are all started at once.
const CONNECTIONS_MAX: usize = 1024;
/// How long a question may take to be written, and an answer to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait when no descriptor is left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What the connections share.
pub(super) struct Shared {
    pods: Mutex<Pods>,
    facts: watch::Receiver<Option<Facts>>,
    /// Where the plugin leaves word of pods that went while nobody listened.
    gone: PathBuf,
    /// Whether the node is ready, and the runtime calls the plugin.
    is_called: AtomicBool,
    /// Readable when there are other pods than before, or when that is so or not any more.
    news: Wake,
}

/// The server, before it runs.
pub(super) struct Server {
    runtime: Runtime,
    listener: UnixListener,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Server {
    /// Opens the socket, and takes the word that was left meanwhile.
    ///
    /// # Errors
    /// If it cannot be, or no descriptor is left.
    pub(super) fn open(
        options: &Options,
        pods: Pods,
        facts: watch::Receiver<Option<Facts>>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listen(&options.socket)?)?
        };
        let news = Wake::new()?;
        let gone = options.plugin_state.join("del");
        let shared =
            Arc::new(Shared { pods: Mutex::new(pods), facts, gone, is_called: AtomicBool::new(false), news });
        shared.take_word();
        Ok(Self { runtime, listener, path: options.socket.clone(), shared })
    }

    /// Returns what outlives it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Serves until nobody can leave word of a look any more.
    pub(super) fn run(self) {
        let Self { runtime, listener, path, shared } = self;
        let mut facts = shared.facts.clone();
        runtime.block_on(async {
            tokio::select! {
                never = serve(listener, &shared) => match never {},
                () = async { while facts.changed().await.is_ok() {} } => {}
            }
        });
        // Another agent has its own by the same name only after this one has let go of its state.
        let _ = fs::remove_file(path);
    }
}

/// Opens a socket that only its owner can reach.
fn listen(path: &Path) -> io::Result<StdListener> {
    let directory = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    // It gets its name when it listens, so that whoever dials before finds the one before, or none; and until it is closed to others, it is
    // where they cannot get.
    let closed = path.with_extension("starting");
    let _ = fs::remove_dir_all(&closed);
    DirBuilder::new().mode(0o700).create(&closed)?;
    let unfinished = closed.join("sock");
    let listener = StdListener::bind(&unfinished)?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    fs::rename(&unfinished, path)?;
    fs::remove_dir(&closed)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, shared: &Arc<Shared>) -> Infallible {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(EXHAUSTED).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() == CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let connection = serve_one(stream, Arc::clone(shared));
        connections.push_back(tokio::spawn(connection).abort_handle());
    }
}

async fn serve_one(mut stream: UnixStream, shared: Arc<Shared>) {
    let mut line = Vec::new();
    let mut reader = BufReader::new((&mut stream).take(LINE_MAX));
    // A client that has gone, or says nothing, is nothing to report.
    let Ok(Ok(1..)) = timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await else { return };
    let text = match protocol::read(&line) {
        Ok(question) => print(shared.answer(question).await),
        Err(refused) => print(Err(refused)),
    };
    let _ = timeout(PATIENCE, stream.write_all(text.as_bytes())).await;
}

fn print(answer: Result<Answer, Refused>) -> String {
    fn line(answer: &impl Serialize) -> String {
        serde_json::to_string(answer).unwrap_or_default() + "\n"
    }
    answer.map_or_else(|refused| line(&refused), |answer| line(&answer))
}

impl Shared {
    async fn answer(&self, question: Question) -> Result<Answer, Refused> {
        match question {
            Question::Add(pod, wait) => self.add(pod, wait).await,
            Question::Del(attachment) => {
                self.change(|pods| pods.remove(&attachment))?;
                Ok(Answer::default())
            }
            Question::Check(attachment) => {
                let pods = self.pods();
                let pod = pods.find(&attachment).ok_or_else(Refused::unknown)?;
                open(self.facts.borrow().as_ref(), &pod.addresses).map_err(Refused::later)
            }
            Question::Gc(network, valid) => {
                self.take_word();
                let count = self.change(|pods| pods.retain(&network, &valid))?;
                if count > 0 {
                    tracing::info!(count, network, "pods that are gone are forgotten");
                }
                Ok(Answer::default())
            }
            Question::Status => {
                self.take_word();
                self.status().map(|()| Answer::default())
            }
        }
    }

    /// Registers a pod, and waits until it may have its network.
    async fn add(&self, pod: Pod, wait: Duration) -> Result<Answer, Refused> {
        // What was left of the same container before is not said of this one.
        self.take_word();
        let Pod { attachment, addresses, .. } = pod.clone();
        self.change(|pods| pods.add(pod))?;
        let mut facts = self.facts.clone();
        // How it stands by then is what counts.
        let _ = timeout(wait, facts.wait_for(|facts| open(facts.as_ref(), &addresses).is_ok())).await;
        let answer = open(facts.borrow().as_ref(), &addresses);
        if let Err(obstacle) = &answer {
            tracing::warn!(container = attachment.container, %obstacle, "a pod is held");
            self.change(|pods| pods.remove(&attachment))?;
        }
        answer.map_err(Refused::later)
    }

    fn status(&self) -> Result<(), Refused> {
        let facts = self.facts.borrow();
        let obstacle = facts.as_ref().map_or(Some(Obstacle::NotLooked), Facts::unready);
        let is_closed = facts.as_ref().is_none_or(Facts::is_closed);
        match obstacle.filter(|_| is_closed) {
            None => Ok(()),
            // What goes through the tunnel stands still.
            Some(obstacle @ Obstacle::NoDataPlane) => Err(Refused::unavailable(obstacle, true)),
            Some(obstacle) => Err(Refused::unavailable(obstacle, false)),
        }
    }

    /// Forgets the pods that went while nobody listened.
    fn take_word(&self) {
        let entries = fs::read_dir(&self.gone).into_iter().flatten().flatten();
        // A file that is being written begins with a dot.
        for entry in entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")) {
            let attachment =
                fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice::<Attachment>(&text).ok());
            let removed = match attachment {
                Some(attachment) => self.change(|pods| pods.remove(&attachment)).map(drop),
                None => Ok(()),
            };
            // What is known twice does no harm.
            let Ok(()) = removed else { continue };
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(file = %entry.path().display(), %error, "a pod that went cannot be forgotten");
            }
        }
    }

    /// Changes the pods, and has that noticed.
    fn change<T>(&self, act: impl FnOnce(&mut Pods) -> io::Result<T>) -> Result<T, Refused> {
        let done = act(&mut self.pods()).map_err(Refused::io);
        self.news.wake();
        done
    }

    /// Notes whether the node is ready, and the runtime calls the plugin, and has that noticed.
    pub(super) fn set_called(&self, is_called: bool) {
        if self.is_called.swap(is_called, Relaxed) != is_called {
            self.news.wake();
        }
    }

    /// Returns what was noted.
    pub(super) fn is_called(&self) -> bool {
        self.is_called.load(Relaxed)
    }

    /// Returns a descriptor that is readable when there are other pods than before, or [`Self::is_called`] is another.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes notice of that.
    pub(super) fn take_news(&self) {
        self.news.take();
    }

    /// Returns the addresses of all pods.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.pods().addresses().collect()
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what a pod with these addresses is to know.
///
/// # Errors
/// Why it may not have its network.
fn open(facts: Option<&Facts>, addresses: &[IpAddr]) -> Result<Answer, Obstacle> {
    let facts = facts.ok_or(Obstacle::NotLooked)?;
    match facts.obstacle(addresses) {
        Some(obstacle) if facts.is_closed() => Err(obstacle),
        obstacle => Ok(Answer { mtu: facts.mtu, warning: obstacle.map(|obstacle| obstacle.to_string()) }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::os::unix::net::UnixStream as Client;

    use serde_json::{Value, json};

    use super::*;
    use crate::control::api::{Mode, OnAgentUnavailable};
    use crate::control::cni::{Cni, conflist};

    /// A server in a directory that goes with the test.
    struct Lab {
        cni: Option<Cni>,
        directory: PathBuf,
    }

    impl Lab {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("adit-cni-{}-{name}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let mut this = Self { cni: None, directory };
            this.start();
            this
        }

        fn start(&mut self) {
            // The one before has let go of the socket by then.
            drop(self.cni.take());
            let options = Options {
                socket: self.socket(),
                plugin_state: self.directory.clone(),
                configuration: None,
                mode: conflist::Mode::Chained,
                program: None,
            };
            self.cni = Some(Cni::start(options, &self.directory).unwrap());
        }

        fn socket(&self) -> PathBuf {
            self.directory.join("cni.sock")
        }

        fn tell(&self, facts: Facts) {
            self.cni.as_ref().unwrap().tell(facts);
        }

        fn begin(&self, question: &Value) -> Client {
            let mut client = Client::connect(self.socket()).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.write_all(format!("{question}\n").as_bytes()).unwrap();
            client
        }

        fn ask(&self, question: &Value) -> Value {
            end(self.begin(question))
        }

        fn add(container: &str, addr: &str, wait: u64) -> Value {
            json!({ "command": "add", "network": "n", "containerID": container, "ifname": "eth0", "addresses": [addr], "waitMs": wait })
        }

        fn check(&self, container: &str) -> Value {
            self.ask(
                &json!({ "command": "check", "network": "n", "containerID": container, "ifname": "eth0" }),
            )
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            drop(self.cni.take());
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn end(client: Client) -> Value {
        let mut line = String::new();
        io::BufReader::new(client).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn facts() -> Facts {
        Facts {
            mode: Mode::Strict,
            on_agent_unavailable: OnAgentUnavailable::Fail,
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            mtu: Some(1420),
            has_data_plane: true,
            failure: None,
        }
    }

    #[test]
    fn a_pod_waits_until_it_is_protected() {
        let lab = Lab::new("waits");
        assert_eq!(fs::metadata(lab.socket()).unwrap().permissions().mode() & 0o777, 0o600);
        let waiting = lab.begin(&Lab::add("one", "10.244.1.5", 20_000));
        let not_in_time = lab.ask(&Lab::add("two", "10.244.1.6", 10));
        assert_eq!((&not_in_time["code"], lab.check("two")["code"].as_u64()), (&json!(11), Some(101)));
        lab.tell(Facts { failure: Some("no route".to_owned()), ..facts() });
        assert!(lab.ask(&Lab::add("two", "10.244.1.6", 0))["msg"].as_str().unwrap().contains("no route"));
        lab.tell(facts());
        assert_eq!(end(waiting), json!({ "mtu": 1420 }));
        assert_eq!(lab.check("one"), json!({ "mtu": 1420 }));
        assert_eq!(lab.ask(&Lab::add("two", "10.9.0.5", 0))["code"], 11, "an address that nobody knows");
        // Elsewhere than in Strict mode that is worth a word.
        lab.tell(Facts { mode: Mode::Permissive, ..facts() });
        let answer = lab.ask(&Lab::add("two", "10.9.0.5", 0));
        assert!(answer["warning"].as_str().unwrap().contains("10.9.0.5"), "{answer}");
    }

    #[test]
    fn status_tells_what_is_away() {
        let lab = Lab::new("status");
        let status = || lab.ask(&json!({ "command": "status", "network": "n" }))["code"].as_u64();
        assert_eq!(status(), Some(50));
        lab.tell(facts());
        assert_eq!(status(), None);
        lab.tell(Facts { has_data_plane: false, ..facts() });
        assert_eq!(status(), Some(51));
        lab.tell(Facts { has_data_plane: false, mode: Mode::Off, ..facts() });
        assert_eq!(status(), None);
    }

    #[test]
    fn pods_outlive_the_agent_and_those_that_went_meanwhile_are_forgotten() {
        let mut lab = Lab::new("outlive");
        lab.tell(facts());
        for container in ["one", "two", "three"] {
            assert_eq!(lab.ask(&Lab::add(container, "10.244.1.5", 0))["mtu"], 1420);
        }
        lab.cni = None;
        assert!(!lab.socket().exists());
        fs::create_dir(lab.directory.join("del")).unwrap();
        let word = json!({ "network": "n", "containerID": "two", "ifname": "eth0" });
        fs::write(lab.directory.join("del/two:eth0"), word.to_string()).unwrap();
        fs::write(lab.directory.join("del/three:eth0"), "{").unwrap();
        lab.start();
        lab.tell(facts());
        assert_eq!(lab.check("one"), json!({ "mtu": 1420 }));
        assert_eq!(lab.cni.as_ref().unwrap().addresses(), ["10.244.1.5".parse().unwrap()].into());
        assert_eq!(lab.check("two")["code"], 101);
        assert_eq!(fs::read_dir(lab.directory.join("del")).unwrap().count(), 0);
        let gc = json!({ "command": "gc", "network": "n", "valid": [{ "containerID": "three", "ifname": "eth0" }] });
        assert_eq!(lab.ask(&gc), json!({}));
        assert_eq!(
            (lab.check("one")["code"].as_u64(), lab.check("three")["code"].as_u64()),
            (Some(101), None)
        );
    }

    #[test]
    fn a_container_that_is_started_again_is_not_forgotten_for_what_was_left_before() {
        let lab = Lab::new("again");
        lab.tell(facts());
        fs::create_dir(lab.directory.join("del")).unwrap();
        let word = json!({ "network": "n", "containerID": "one", "ifname": "eth0" });
        fs::write(lab.directory.join("del/one:eth0"), word.to_string()).unwrap();
        assert_eq!(lab.ask(&Lab::add("one", "10.244.1.5", 0))["mtu"], 1420);
        assert_eq!(lab.ask(&json!({ "command": "status", "network": "n" })), json!({}));
        assert_eq!(lab.check("one"), json!({ "mtu": 1420 }));
    }

    #[test]
    fn who_says_nothing_or_nonsense_keeps_nobody_out() {
        let lab = Lab::new("nonsense");
        lab.tell(facts());
        let silent: Vec<_> = (0..200).map(|_| Client::connect(lab.socket()).unwrap()).collect();
        for nonsense in ["\n", "{\n", "[]\n", "\u{0}\n"] {
            let mut client = Client::connect(lab.socket()).unwrap();
            client.write_all(nonsense.as_bytes()).unwrap();
            assert_eq!(end(client)["code"], 6);
        }
        let mut endless = Client::connect(lab.socket()).unwrap();
        // It is cut off at the longest line.
        let _ = endless.write_all(&vec![b'x'; 2 << 20]);
        assert_eq!(lab.ask(&Lab::add("one", "10.244.1.5", 0)), json!({ "mtu": 1420 }));
        drop(silent);
    }
}
