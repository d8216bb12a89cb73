//! Keeps the objects, and what is remembered beside them, on disk, on a thread of its own: a disk takes as long as it likes to sync a file, and nothing waits for it.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use super::objects::Objects;
use super::read;
use super::remembered::Remembered;
use super::store::Store;

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
        let (newest, queue) = mpsc::channel::<(Objects, Remembered)>();
        let mut kept = store.remembered();
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            while let Ok(newest) = queue.recv() {
                // Of several that wait the last one is as good as all.
                let (objects, remembered) = queue.try_iter().last().unwrap_or(newest);
                // First, so that what is gone from the objects is there.
                if remembered != kept {
                    match store.keep_remembered(&remembered) {
                        Ok(()) => kept = remembered,
                        Err(error) => tracing::error!(%error, "what other nodes' pods had cannot be kept"),
                    }
                }
                if let Err(error) = store.keep_snapshot(read::values(&objects)) {
                    tracing::error!(%error, "the objects cannot be kept");
                }
            }
        })?;
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

impl Drop for Keeper {
    fn drop(&mut self) {
        self.newest = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}
