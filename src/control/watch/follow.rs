//! The objects of one kind, listed and then watched, for as long as anybody wants to know.
//!
//! ```text
//! list: page by page, each until it is there ──→ All ──→ watch from the list's version ──→ Is, Gone
//!   ↑                                                      │ broken, over, silent: again, from the last version heard of
//!   └──────────────────────────────────────────────────────┘ 410, or silence twice: the history from there on is gone
//! ```
//!
//! A watch from a version that the API server has not come to is answered with silence until it has, and with what happens later then: so
//! it is after the store behind it was brought back from a backup. Two watches in a row that say nothing at all are taken for that.
//!
//! Whatever fails is tried again, with pauses that grow, and without end; until a list is whole, the last one stays. A request whose
//! answer does not begin within half a minute has failed.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::{ApiResource, ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, Status};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::control::objects::Object;
use crate::control::read;
use crate::crypto::random::{Os, Random};

/// Objects that are listed at a time.
const PAGE: u32 = 500;

/// How long an answer may take to begin, and a page of a list to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the API server lets a watch last, in seconds.
const WATCH: u32 = 290;

/// How long a watch may be silent: the API server sends a bookmark every minute or so. One that is silent for longer is asked of a
/// machine that is gone.
const SILENCE: Duration = Duration::from_secs(100);

/// What is said of that.
const UNHEARD: &str = "nothing was heard for too long";

/// The first pause after a failure; each further one is twice as long, up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A watch that is over before this has failed, whatever it said.
const SHORT: Duration = Duration::from_secs(1);

/// What is told of the objects of a kind.
pub(super) enum News<W> {
    /// These are all; whatever else was known is gone.
    All(Vec<Object>),
    /// One is new, or another than it was.
    Is(W),
    /// One is gone.
    Gone(W),
}

/// What is listed: whole objects, or what is needed of them.
pub(super) trait Listed: Resource + Clone + Debug + Serialize + DeserializeOwned {}

impl<L: Resource + Clone + Debug + Serialize + DeserializeOwned> Listed for L {}

/// Why there is something to do again.
enum Failed {
    /// What was asked for can be asked for again.
    Passing(String),
    /// It is not there, or not for us.
    Refused(String),
    /// The version that was asked for is not known any more.
    Expired(String),
    /// Nothing was heard at all.
    Silent,
}

/// Follows the objects of a kind that are selected: lists them by `list`, watches them by `watch`, and tells what is new.
pub(super) async fn follow<L, W, S>(
    resource: &ApiResource,
    which: ListParams,
    list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<L>>,
    watch: impl AsyncFn(&WatchParams, &str) -> kube::Result<S>,
    mut tell: impl AsyncFnMut(News<W>),
) where
    L: Listed,
    W: Resource,
    S: Stream<Item = kube::Result<WatchEvent<W>>>,
{
    let mut params = WatchParams::default().timeout(WATCH);
    params.label_selector.clone_from(&which.label_selector);
    params.field_selector.clone_from(&which.field_selector);
    let mut attempts = Attempts::new(&resource.plural);
    loop {
        let (objects, mut version) = list_all(&list, resource, &which, &mut attempts).await;
        tell(News::All(objects)).await;
        let mut was_silent = false;
        loop {
            let begun = Instant::now();
            let failed = match limited(watch(&params, &version)).await {
                Ok(events) => take_in(events, &mut version, &mut attempts, &mut tell).await,
                Err(failed) => Some(failed),
            };
            let is_silent = matches!(failed, Some(Failed::Silent));
            let is_deaf = std::mem::replace(&mut was_silent, is_silent) && is_silent;
            match failed {
                // The server ends every watch sooner or later.
                None if begun.elapsed() >= SHORT => {}
                None => attempts.pause().await,
                Some(Failed::Passing(reason) | Failed::Refused(reason)) => attempts.fail(&reason).await,
                Some(Failed::Silent) => attempts.fail(UNHEARD).await,
                Some(Failed::Expired(reason)) => {
                    attempts.fail(&reason).await;
                    break;
                }
            }
            if is_deaf {
                break;
            }
        }
    }
}

/// Tells whether the objects that are selected may be listed, once the API server says so or otherwise.
pub(super) async fn may_list<L: Listed>(
    resource: &ApiResource,
    which: &ListParams,
    list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<L>>,
) -> bool {
    let mut attempts = Attempts::new(&resource.plural);
    loop {
        match limited(list(&which.clone().limit(1))).await {
            Ok(_) => return true,
            Err(Failed::Refused(_)) => return false,
            Err(failed) => attempts.fail(&failed.into_reason()).await,
        }
    }
}

/// Lists all objects, and returns them with the version to watch from.
async fn list_all<L: Listed>(
    list: &impl AsyncFn(&ListParams) -> kube::Result<ObjectList<L>>,
    resource: &ApiResource,
    which: &ListParams,
    attempts: &mut Attempts<'_>,
) -> (Vec<Object>, String) {
    let mut params = which.clone().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = match limited(list(&params)).await {
            Ok(page) => page,
            Err(Failed::Passing(reason) | Failed::Refused(reason)) => {
                attempts.fail(&reason).await;
                continue;
            }
            Err(failed) => {
                attempts.fail(&failed.into_reason()).await;
                params.continue_token = None;
                objects.clear();
                continue;
            }
        };
        objects.extend(page.items.into_iter().filter_map(|object| read_as(object, resource)));
        match (page.metadata.continue_.filter(|token| !token.is_empty()), page.metadata.resource_version) {
            (Some(token), _) => params = params.continue_token(&token),
            (None, Some(version)) if !version.is_empty() => {
                attempts.succeed();
                return (objects, version);
            }
            (None, _) => {
                attempts.fail("the list has no version").await;
                params.continue_token = None;
                objects.clear();
            }
        }
    }
}

/// Takes in the events of a watch until it is over, and returns why, if it should not be.
async fn take_in<W: Resource>(
    events: impl Stream<Item = kube::Result<WatchEvent<W>>>,
    version: &mut String,
    attempts: &mut Attempts<'_>,
    tell: &mut impl AsyncFnMut(News<W>),
) -> Option<Failed> {
    let mut events = pin!(events);
    let mut is_heard = false;
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => return Some(Failed::Passing(error.to_string())),
            Ok(None) => return None,
            Err(_) if is_heard => return Some(Failed::Passing(UNHEARD.to_owned())),
            Err(_) => return Some(Failed::Silent),
        };
        is_heard = true;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                object.resource_version().into_iter().for_each(|newer| *version = newer);
                tell(News::Is(object)).await;
            }
            WatchEvent::Deleted(object) => {
                object.resource_version().into_iter().for_each(|newer| *version = newer);
                tell(News::Gone(object)).await;
            }
            WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Some(Failed::of_status(&status)),
        }
        attempts.succeed();
    }
}

/// Reads an object; those of a list do not say of which kind they are.
pub(super) fn read_as<K: Resource + Serialize>(mut object: K, resource: &ApiResource) -> Option<Object> {
    object.meta_mut().managed_fields = None;
    let mut value = serde_json::to_value(&object).ok()?;
    value["apiVersion"] = resource.api_version.clone().into();
    value["kind"] = resource.kind.clone().into();
    read::object(&value).ok()
}

/// Waits for an answer, but not for ever.
async fn limited<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::of_status(&status)),
        Ok(Err(error)) => Err(Failed::Passing(error.to_string())),
        Err(_) => Err(Failed::Passing("no answer".to_owned())),
    }
}

/// Waits for an answer, but not for ever.
///
/// # Errors
/// Why there is none, in words.
pub(super) async fn answer<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    limited(answer).await.map_err(Failed::into_reason)
}

impl Failed {
    fn of_status(status: &Status) -> Self {
        let reason = format!("{} {}: {}", status.code, status.reason, status.message);
        match status.code {
            410 => Self::Expired(reason),
            403 | 404 => Self::Refused(reason),
            _ => Self::Passing(reason),
        }
    }

    fn into_reason(self) -> String {
        match self {
            Self::Passing(reason) | Self::Refused(reason) | Self::Expired(reason) => reason,
            Self::Silent => UNHEARD.to_owned(),
        }
    }
}

/// The pauses between attempts. They differ from node to node, so that not all come back at once.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(PAUSE)
    }

    /// Begins anew with the shortest.
    pub(super) fn reset(&mut self) {
        self.0 = PAUSE;
    }

    /// Lets the next pause pass.
    pub(super) async fn next(&mut self) {
        let mut random = [0];
        Os.fill(&mut random);
        // From half of it to the whole.
        let pause = self.0.mul_f64(0.5 + f64::from(random[0]) / 512.0);
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        sleep(pause).await;
    }
}

/// Attempts to follow objects: tells once when they begin to fail, and once when they succeed again.
struct Attempts<'a> {
    objects: &'a str,
    is_failing: bool,
    pauses: Pauses,
}

impl<'a> Attempts<'a> {
    fn new(objects: &'a str) -> Self {
        Self { objects, is_failing: false, pauses: Pauses::new() }
    }

    async fn fail(&mut self, reason: &str) {
        // What goes on failing is said once.
        if std::mem::replace(&mut self.is_failing, true) {
            tracing::debug!(objects = self.objects, reason, "the watch has failed once more");
        } else {
            tracing::warn!(objects = self.objects, reason, "the watch has failed; what is known stays");
        }
        self.pause().await;
    }

    async fn pause(&mut self) {
        self.pauses.next().await;
    }

    fn succeed(&mut self) {
        self.pauses.reset();
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(objects = self.objects, "the watch goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use k8s_openapi::api::core::v1::Node;
    use kube::core::{ListMeta, TypeMeta};

    use super::*;

    fn listed(version: &str) -> ObjectList<Node> {
        let metadata = ListMeta { resource_version: Some(version.to_owned()), ..ListMeta::default() };
        ObjectList { types: TypeMeta::default(), metadata, items: Vec::new() }
    }

    #[test]
    fn what_was_brought_back_from_a_backup_is_listed_anew() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let lists = Cell::new(0);
        let watched = RefCell::new(Vec::new());
        let list = async |_: &ListParams| {
            lists.set(lists.get() + 1);
            Ok(listed(if lists.get() == 1 { "9000" } else { "70" }))
        };
        // Whoever watches from a version that is not there yet hears nothing, not even bookmarks.
        let watch = async |_: &WatchParams, version: &str| {
            watched.borrow_mut().push(version.to_owned());
            Ok(futures::stream::pending::<kube::Result<WatchEvent<Node>>>())
        };
        let resource = ApiResource::erase::<Node>(&());
        runtime.block_on(async {
            let following = follow(&resource, ListParams::default(), list, watch, async |_| {});
            let _ = timeout(SILENCE * 5 / 2, following).await;
        });
        assert_eq!(*watched.borrow(), ["9000", "9000", "70"]);
    }
}
