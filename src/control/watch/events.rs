//! Kubernetes Events (events.k8s.io/v1) about this node's object: what has happened, for those who ask afterwards.
//!
//! They are written in the order in which things happened. What cannot be written is tried again, with pauses that grow, for so long; what
//! happens meanwhile waits behind it, so many at most. What is true is in the status: an Event that is lost is counted, and that is all.
//! One whose answer was lost is there twice. Nobody is woken while there is nothing to write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::follow::{Pauses, answer};
use crate::control::api::NodeTunnel;
use crate::control::happening::Happening;
use crate::sys::clock;

/// Who we are in Events.
const REPORTER: &str = "adit.dev/agent";

/// The most happenings that wait to be written.
const WAITING_MAX: usize = 64;

/// How long after something has happened it is worth an attempt: an API server that is updated is back by then.
const LIFE: Duration = Duration::from_secs(600);

/// An Event has the time at which it is written; one that is later than this says so.
const LATE: Duration = Duration::from_secs(5);

/// What has happened to a node, and when, by [`clock::boottime`].
struct Waiting {
    node: String,
    happening: Happening,
    at: Duration,
}

/// Takes what has happened.
pub(super) struct Teller {
    waiting: mpsc::Sender<Waiting>,
    lost: Arc<AtomicU64>,
}

/// What is to be written.
pub(super) struct Queue {
    waiting: mpsc::Receiver<Waiting>,
    lost: Arc<AtomicU64>,
}

/// Returns both ends of a queue.
pub(super) fn queue() -> (Teller, Queue) {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    let lost = Arc::<AtomicU64>::default();
    (Teller { waiting: sender, lost: Arc::clone(&lost) }, Queue { waiting, lost })
}

impl Teller {
    /// Has an Event written, if there is room for it.
    pub(super) fn tell(&self, node: &str, happening: Happening) {
        let waiting = Waiting { node: node.to_owned(), happening, at: clock::boottime() };
        if self.waiting.try_send(waiting).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Returns the count of those that were lost.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }
}

/// Writes what has happened for as long as anything may.
pub(super) async fn write(client: Client, mut queue: Queue) {
    let mut writer = Writer { api: super::cluster::tunnels(client.clone()), client, recorder: None };
    while let Some(waiting) = queue.waiting.recv().await {
        let mut pauses = Pauses::new();
        let (node, reason) = (&waiting.node, waiting.happening.reason);
        loop {
            let age = clock::boottime().saturating_sub(waiting.at);
            if age > LIFE {
                queue.lost.fetch_add(1, Relaxed);
                tracing::warn!(node, reason, "an event is lost: it could not be written for too long");
                break;
            }
            match answer(writer.write(&waiting, age)).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(node, reason, error, "an event cannot be written yet"),
            }
            pauses.next().await;
        }
    }
    std::future::pending().await
}

struct Writer {
    client: Client,
    api: Api<DynamicObject>,
    /// Who knows what was written before: what repeats becomes a series of one.
    recorder: Option<Recorder>,
}

impl Writer {
    async fn write(&mut self, Waiting { node, happening, .. }: &Waiting, age: Duration) -> kube::Result<()> {
        let mut note = happening.note.clone();
        if age >= LATE {
            note.push_str(&format!(" ({} s before this could be written)", age.as_secs()));
        }
        let event = Event {
            type_: if happening.is_warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.to_owned(),
            note: Some(note),
            action: "Look".to_owned(),
            secondary: happening.node.as_ref().map(|other| reference(other, None)),
        };
        // kubectl finds an object's events by its uid.
        let uid = self.api.get_metadata_opt(node).await?.and_then(|object| object.metadata.uid);
        let recorder = self.recorder.get_or_insert_with(|| {
            let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node.clone()) };
            Recorder::new(self.client.clone(), reporter)
        });
        let written = recorder.publish(&event, &reference(node, uid)).await;
        // The API server has forgotten the one that was to become a series: the next attempt begins a new one.
        if let Err(kube::Error::Api(status)) = &written
            && status.code == 404
        {
            self.recorder = None;
        }
        written
    }
}

fn reference(node: &str, uid: Option<String>) -> ObjectReference {
    let resource = ApiResource::erase::<NodeTunnel>(&());
    ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        name: Some(node.to_owned()),
        uid,
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted() {
        let (teller, mut queue) = queue();
        let happening = |number: usize| Happening {
            is_warning: false,
            reason: "Tested",
            node: None,
            note: number.to_string(),
        };
        (0..70).for_each(|number| teller.tell("node1", happening(number)));
        assert_eq!(teller.lost().load(Relaxed), 6);
        for number in 0..64 {
            assert_eq!(queue.waiting.try_recv().unwrap().happening, happening(number));
        }
        teller.tell("node1", happening(70));
        assert_eq!(queue.waiting.try_recv().unwrap().happening, happening(70));
        assert_eq!(teller.lost().load(Relaxed), 6);
    }
}
