//! Keeps the objects, and what is remembered beside them, on disk, on a thread of its own: a disk takes as long as it likes to sync a file, and nothing waits for it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::objects::Objects;
use super::read;
use super::remembered::Remembered;
use super::store::Store;

/// The time between two attempts to write what cannot be written, on a disk that is full.
const RETRY: Duration = Duration::from_secs(5);

/// Writes objects to a store. Dropping it waits until the newest are there.
pub struct Keeper {
    newest: Option<mpsc::Sender<(Objects, Remembered)>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// If no thread is left.
    pub fn start(store: Arc<Store>) -> io::Result<Self> {
        Self::start_with(store, RETRY)
    }

    fn start_with(store: Arc<Store>, retry: Duration) -> io::Result<Self> {
        let (newest, queue) = mpsc::channel();
        let thread = std::thread::Builder::new().name("keeper".to_owned());
        let thread = thread.spawn(move || run(&store, &queue, retry))?;
        Ok(Self { newest: Some(newest), thread: Some(thread) })
    }

    /// Has objects written, and what is remembered, sooner or later.
    pub fn keep(&self, objects: Objects, remembered: Remembered) {
        if let Some(newest) = &self.newest {
            // A thread that is gone has panicked, and has said why.
            let _ = newest.send((objects, remembered));
        }
    }
}

/// Writes what comes until nobody can send any more. What cannot be written is tried again, for as long as nothing newer comes.
fn run(store: &Store, queue: &mpsc::Receiver<(Objects, Remembered)>, retry: Duration) {
    let mut kept = store.remembered();
    let mut unkept: Option<(Objects, Remembered)> = None;
    let mut said = String::new();
    loop {
        let received = match &unkept {
            None => queue.recv().map_err(RecvTimeoutError::from),
            Some(_) => queue.recv_timeout(retry),
        };
        let is_over = matches!(received, Err(RecvTimeoutError::Disconnected));
        if let Ok(newest) = received {
            // Of several that wait the last one is as good as all.
            unkept = Some(queue.try_iter().last().unwrap_or(newest));
        }
        if let Some((objects, remembered)) = &unkept {
            match keep(store, objects, remembered, &mut kept) {
                Ok(()) => {
                    unkept = None;
                    said.clear();
                }
                // What goes on failing is said once.
                Err(error) if error != said => {
                    tracing::error!(error, "what is known cannot be kept on disk yet");
                    said = error;
                }
                Err(_) => {}
            }
        }
        if is_over {
            return;
        }
    }
}

/// Writes what is not there yet: `kept` is what is remembered there.
fn keep(
    store: &Store,
    objects: &Objects,
    remembered: &Remembered,
    kept: &mut Remembered,
) -> Result<(), String> {
    // First, so that what is gone from the objects is there.
    let mut done = Ok(());
    if remembered != kept {
        done = store.keep_remembered(remembered).map(|()| kept.clone_from(remembered));
    }
    let snapshot = store.keep_snapshot(read::values(objects));
    done.and(snapshot).map_err(|error| error.to_string())
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.newest = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::clock;

    #[test]
    fn what_cannot_be_kept_is_kept_once_it_can_be() {
        let directory = std::env::temp_dir().join(format!("adit-keep-{}", std::process::id()));
        let store = Arc::new(Store::open(&directory).unwrap());
        // In the way, as a disk that is full would be.
        let unfinished = directory.join("snapshot.json.new");
        fs::create_dir(&unfinished).unwrap();
        let keeper = Keeper::start_with(Arc::clone(&store), Duration::from_millis(10)).unwrap();
        keeper.keep(Objects::default(), Remembered::default());
        std::thread::park_timeout(Duration::from_millis(50));
        assert!(store.snapshot().unwrap().is_none());
        fs::remove_dir(&unfinished).unwrap();
        let end = clock::boottime() + Duration::from_secs(20);
        while store.snapshot().unwrap().is_none() && clock::boottime() < end {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let is_kept = store.snapshot().unwrap().is_some();
        drop((keeper, store));
        fs::remove_dir_all(&directory).unwrap();
        assert!(is_kept);
    }
}
