//! HTTP/1.1: requests, answers, watches.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::Shared;
use super::faults::{End, Fault};
use super::store::{Apply, Change, Kind, Refused, What};

type Body = BoxBody<Bytes, io::Error>;

/// How long a late answer takes, at most, in milliseconds.
const DELAY: u64 = 1500;

/// How long a stalled watch lasts.
const STALL: Duration = Duration::from_secs(5);

/// Where Events are written.
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// How long a watch lasts of which its client says nothing.
const WATCH: u64 = 1800;

/// What a request asks for.
struct Call {
    method: Method,
    kind: Kind,
    name: Option<String>,
    is_status: bool,
    query: Vec<(String, String)>,
    is_metadata: bool,
    content_type: String,
    body: Bytes,
}

/// What is asked: something of an object, or that an Event be kept, a new one or one that is known by its name.
enum Asked {
    Object(Call),
    Event(Option<String>, Value),
}

impl Asked {
    async fn read(request: Request<Incoming>) -> Result<Self, Refused> {
        let rest =
            request.uri().path().strip_prefix(EVENTS).map(|rest| rest.trim_start_matches('/').to_owned());
        let name = match (rest, request.method()) {
            (Some(rest), &Method::POST) if rest.is_empty() => None,
            (Some(rest), &Method::PATCH) if !rest.is_empty() => Some(rest),
            _ => return Call::read(request).await.map(Self::Object),
        };
        let bad = |message: String| Refused(400, "BadRequest", message);
        let body = request.into_body().collect().await.map_err(|error| bad(error.to_string()))?.to_bytes();
        let event = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
        Ok(Self::Event(name, event))
    }

    fn is_write(&self) -> bool {
        match self {
            Self::Object(call) => call.method != Method::GET,
            Self::Event(..) => true,
        }
    }

    /// Returns what is asked, in words that are the same whenever it is asked again.
    fn words(&self) -> String {
        match self {
            Self::Object(call) => call.words(),
            Self::Event(None, _) => "POST Event".to_owned(),
            Self::Event(Some(_), _) => "PATCH Event".to_owned(),
        }
    }
}

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        tokio::spawn(serve_one(stream, Arc::clone(&shared)));
    }
}

async fn serve_one(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(request, Arc::clone(&shared)));
    // Who hangs up is nothing to report.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let asked = match Asked::read(request).await {
        Ok(asked) => asked,
        Err(refused) => return Ok(refusal(&refused)),
    };
    let fault = shared.faults.of_call(asked.words(), asked.is_write());
    let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
    match fault {
        Some(Fault::HangUp) => return Err(broken()),
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Conflict) => {
            return Ok(refusal(&Refused(409, "Conflict", "the object has been modified".to_owned())));
        }
        Some(Fault::TooManyRequests) => {
            let mut response = refusal(&Refused(429, "TooManyRequests", "please try again later".to_owned()));
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return Ok(response);
        }
        Some(Fault::InternalError) => {
            return Ok(refusal(&Refused(500, "InternalError", "etcdserver: leader changed".to_owned())));
        }
        Some(Fault::Unavailable) => {
            return Ok(refusal(&Refused(503, "ServiceUnavailable", "apiserver is shutting down".to_owned())));
        }
        Some(Fault::Delay) => sleep(Duration::from_millis(shared.faults.below(DELAY))).await,
        Some(Fault::Compact) => shared.change(|store| store.compact()),
        Some(Fault::Expired) => return Ok(refusal(&Refused::gone())),
        Some(Fault::LostAnswer | Fault::DoneAndHangUp | Fault::Truncate | Fault::Break) | None => {}
    }
    let (status, text) = match asked {
        Asked::Event(name, event) => match shared.keep_event(name.as_deref(), event) {
            Ok((status, event)) => (status, event.to_string()),
            Err(refused) => return Ok(refusal(&refused)),
        },
        Asked::Object(call) if call.is_watch() => {
            return Ok(call.watch(shared, fault).unwrap_or_else(|refused| refusal(&refused)));
        }
        Asked::Object(call) => match call.answer(&shared) {
            Ok((status, value)) => (status, value.to_string()),
            Err(refused) => return Ok(refusal(&refused)),
        },
    };
    let half = text.len() / 2;
    Ok(match fault {
        Some(Fault::LostAnswer) => {
            refusal(&Refused(500, "InternalError", "it was done all the same".to_owned()))
        }
        Some(Fault::DoneAndHangUp) => return Err(broken()),
        Some(Fault::Truncate) => whole(status, text[..text.floor_char_boundary(half)].to_owned()),
        Some(Fault::Break) => {
            let first = Bytes::copy_from_slice(&text.as_bytes()[..half]);
            let frames = [Ok(Frame::data(first)), Err(broken())];
            with_body(status, StreamBody::new(futures::stream::iter(frames)).boxed())
        }
        Some(_) | None => whole(status, text),
    })
}

impl Call {
    async fn read(request: Request<Incoming>) -> Result<Self, Refused> {
        let (head, body) = request.into_parts();
        let bad = |message: &str| Refused(400, "BadRequest", message.to_owned());
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let accept = header(ACCEPT);
        if !(accept.is_empty() || accept.contains("application/json") || accept.contains("*/*")) {
            return Err(Refused(406, "NotAcceptable", format!("only JSON is served, not {accept}")));
        }
        let path = head.uri.path();
        let found = Kind::ALL.into_iter().find_map(|kind| {
            let rest = path.strip_prefix(kind.path())?;
            let mut words = rest.split('/').skip(1);
            let (name, subresource) = (words.next(), words.next());
            let is_known = rest.is_empty() || rest.starts_with('/');
            let is_status = subresource == Some("status") && kind.has_status();
            (is_known && words.next().is_none() && (subresource.is_none() || is_status))
                .then(|| (kind, name.map(str::to_owned), is_status))
        });
        let missing =
            || Refused(404, "NotFound", "the server could not find the requested resource".to_owned());
        let (kind, name, is_status) = found.ok_or_else(missing)?;
        let query = head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.replace("%3A", ":").replace("%3D", "="))
        });
        let (content_type, is_metadata) =
            (header(CONTENT_TYPE).to_owned(), accept.contains("as=PartialObjectMetadata"));
        let (method, query) = (head.method.clone(), query.collect());
        let body = body.collect().await.map_err(|_| bad("the body was cut off"))?.to_bytes();
        Ok(Self { method, kind, name, is_status, query, is_metadata, content_type, body })
    }

    fn words(&self) -> String {
        let method = if self.is_watch() { "WATCH" } else { self.method.as_str() };
        let name = self.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        let part = match (self.is_status, self.is_metadata) {
            (true, _) => ", status",
            (false, true) => ", metadata",
            (false, false) => "",
        };
        format!("{method} {:?}{name}{part}", self.kind)
    }

    fn is_watch(&self) -> bool {
        self.method == Method::GET && self.name.is_none() && matches!(self.word("watch"), Some("true" | "1"))
    }

    fn word(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(other, value)| other == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refused> {
        let bad = |_| Refused(400, "BadRequest", format!("{name} is no number"));
        self.word(name).map(str::parse).transpose().map_err(bad)
    }

    fn answer(&self, shared: &Shared) -> Result<(u16, Value), Refused> {
        match (&self.method, &self.name) {
            (&Method::GET, Some(name)) => {
                let object = shared.store().get(self.kind, name)?;
                Ok((200, self.present(&object, true)))
            }
            (&Method::GET, None) => self.list(shared).map(|list| (200, list)),
            (&Method::PATCH, Some(name)) => self.patch(shared, name),
            (&Method::POST, None) => self.create(shared),
            _ => Err(Refused(405, "MethodNotAllowed", format!("{} is not served", self.method))),
        }
    }

    fn list(&self, shared: &Shared) -> Result<Value, Refused> {
        let limit = self.number("limit")?.filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(shared.manners.page);
        let page = shared.store().list(self.kind, self.word("continue"), limit)?;
        let mut metadata = json!({ "resourceVersion": page.version.to_string() });
        if let Some(more) = page.more {
            metadata["continue"] = more.into();
            metadata["remainingItemCount"] = page.remaining.into();
        }
        let says_kind = self.kind.says_kind_in_lists();
        let items = page.items.iter().filter(|object| self.selects(object));
        let items: Vec<_> = items.map(|object| self.present(object, says_kind)).collect();
        let (api_version, kind) = self.presented_kind();
        Ok(
            json!({ "apiVersion": api_version, "kind": format!("{kind}List"), "metadata": metadata, "items": items }),
        )
    }

    fn create(&self, shared: &Shared) -> Result<(u16, Value), Refused> {
        let bad = |message: String| Refused(400, "BadRequest", message);
        let body = serde_json::from_slice(&self.body).map_err(|error| bad(error.to_string()))?;
        let object = shared.change(|store| store.create(self.kind, body))?;
        Ok((201, self.present(&object, true)))
    }

    fn patch(&self, shared: &Shared, name: &str) -> Result<(u16, Value), Refused> {
        let bad = |message: String| Refused(400, "BadRequest", message);
        // JSON is YAML.
        let body = serde_json::from_slice(&self.body).map_err(|error| bad(error.to_string()))?;
        let manager = self.word("fieldManager");
        match self.content_type.as_str() {
            "application/apply-patch+yaml" => {
                let apply = Apply {
                    kind: self.kind,
                    name,
                    is_status: self.is_status,
                    manager: manager.ok_or_else(|| bad("fieldManager is required".to_owned()))?,
                    is_forced: self.word("force") == Some("true"),
                    body: &body,
                };
                let (object, is_new) = shared.change(|store| store.apply(&apply))?;
                Ok((if is_new { 201 } else { 200 }, self.present(&object, true)))
            }
            "application/merge-patch+json" if !self.is_status => {
                let manager = manager.unwrap_or("unknown");
                let object = shared.change(|store| store.merge(self.kind, name, manager, &body))?;
                Ok((200, self.present(&object, true)))
            }
            other => Err(Refused(415, "UnsupportedMediaType", format!("{other} is not served"))),
        }
    }

    /// Tells whether an object is one of those that are asked for. No pod changes its node.
    fn selects(&self, object: &Value) -> bool {
        match self.word("fieldSelector").and_then(|selector| selector.strip_prefix("spec.nodeName=")) {
            Some(node) => object["spec"]["nodeName"] == node,
            None => true,
        }
    }

    /// Begins a watch.
    fn watch(self, shared: Arc<Shared>, fault: Option<Fault>) -> Result<Response<Body>, Refused> {
        let version = match self.number("resourceVersion")? {
            // From no version on: all that are there, first.
            Some(0) | None => None,
            Some(version) => Some(version),
        };
        // Said at once, or by the first event: the real one does this, and another may do that.
        if let Some(version) = version
            && shared.faults.is_odd()
        {
            shared.store().since(self.kind, version)?;
        }
        let (events, received) = mpsc::channel(64);
        tokio::spawn(async move {
            // Nobody is there any more.
            let _ = self.feed(&shared, version, fault, &events).await;
        });
        let frames = futures::stream::unfold(received, |mut received| async {
            received.recv().await.map(|frame| (frame, received))
        });
        Ok(with_body(200, StreamBody::new(frames).boxed()))
    }

    async fn feed(
        &self,
        shared: &Shared,
        version: Option<u64>,
        fault: Option<Fault>,
        events: &Events,
    ) -> Result<(), Closed> {
        let course = shared.faults.of_watch(fault);
        let begun = Instant::now();
        let seconds = self.number("timeoutSeconds").ok().flatten().unwrap_or(WATCH);
        let over = begun + Duration::from_secs(seconds);
        let mut newest = shared.newest.subscribe();
        let mut sent = 0;
        let mut cursor = match version {
            Some(version) => version,
            None => {
                let page = shared.store().list(self.kind, None, usize::MAX).map_err(|_| Closed)?;
                for object in page.items.iter().filter(|object| self.selects(object)) {
                    self.send(shared, events, self.event("ADDED", object)).await?;
                }
                page.version
            }
        };
        let wants_bookmarks = self.word("allowWatchBookmarks") == Some("true");
        let mut bookmark = begun + shared.manners.bookmarks;
        loop {
            let (changes, version) = {
                newest.borrow_and_update();
                let store = shared.store();
                (store.since(self.kind, cursor), store.version())
            };
            let Ok(mut changes) = changes else { return self.finish(shared, events, End::Gone).await };
            changes.retain(|change| self.selects(&change.object));
            if course.end.is_none() && shared.faults.is_odd() {
                interchange(&mut changes, shared.faults.below(u64::MAX));
            }
            for change in &changes {
                if let Some(end) = course.end.filter(|_| sent >= course.events) {
                    return self.finish_in(shared, events, end, change).await;
                }
                let word = match change.what {
                    What::Added => "ADDED",
                    What::Modified => "MODIFIED",
                    What::Deleted => "DELETED",
                };
                self.send(shared, events, self.event(word, &change.object)).await?;
                sent += 1;
                if shared.faults.is_odd() {
                    // Once more, and late.
                    self.send(shared, events, self.event(word, &change.object)).await?;
                    sleep(Duration::from_millis(shared.faults.below(100))).await;
                }
            }
            cursor = version;
            let end = course.end.map_or(over, |_| over.min(begun + course.time));
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| Closed)?,
                () = sleep_until(bookmark), if wants_bookmarks => {
                    bookmark = Instant::now() + shared.manners.bookmarks;
                    let (api_version, kind) = self.presented_kind();
                    let object = json!({
                        "apiVersion": api_version,
                        "kind": kind,
                        "metadata": { "resourceVersion": cursor.to_string(), "creationTimestamp": null },
                    });
                    let line = format!("{}\n", json!({ "type": "BOOKMARK", "object": object }));
                    self.send(shared, events, line).await?;
                }
                () = sleep_until(end) => {
                    let is_fault = end < over;
                    return self.finish(shared, events, course.end.filter(|_| is_fault).unwrap_or(End::Close)).await;
                }
                () = events.closed() => return Err(Closed),
            }
        }
    }

    /// Ends a watch in the course of an event.
    async fn finish_in(
        &self,
        shared: &Shared,
        events: &Events,
        end: End,
        change: &Change,
    ) -> Result<(), Closed> {
        if matches!(end, End::Break | End::Truncate) {
            let text = self.event("MODIFIED", &change.object);
            let half = text.floor_char_boundary(text.len() / 2);
            self.send(shared, events, text[..half].to_owned()).await?;
        }
        self.finish(shared, events, end).await
    }

    async fn finish(&self, shared: &Shared, events: &Events, end: End) -> Result<(), Closed> {
        let failed =
            |refused: Refused| format!("{}\n", json!({ "type": "ERROR", "object": status(&refused) }));
        match end {
            End::Close | End::Truncate => Ok(()),
            End::Gone => self.send(shared, events, failed(Refused::gone())).await,
            End::Failed => {
                let refused = Refused(500, "InternalError", "the watch has failed".to_owned());
                self.send(shared, events, failed(refused)).await
            }
            End::Stall => {
                tokio::select! {
                    () = sleep(STALL) => {}
                    () = events.closed() => {}
                }
                self.abort(events).await
            }
            End::Break => self.abort(events).await,
        }
    }

    async fn abort(&self, events: &Events) -> Result<(), Closed> {
        events.send(Err(io::ErrorKind::ConnectionReset.into())).await.map_err(|_| Closed)
    }

    async fn send(&self, shared: &Shared, events: &Events, line: String) -> Result<(), Closed> {
        *shared.watched.lock().unwrap() += u64::try_from(line.len()).unwrap();
        events.send(Ok(Frame::data(line.into()))).await.map_err(|_| Closed)
    }

    fn event(&self, word: &str, object: &Value) -> String {
        format!("{}\n", json!({ "type": word, "object": self.present(object, true) }))
    }

    fn presented_kind(&self) -> (&'static str, &'static str) {
        if self.is_metadata {
            ("meta.k8s.io/v1", "PartialObjectMetadata")
        } else {
            (self.kind.api_version(), self.kind.name())
        }
    }

    /// Returns an object as it was asked for.
    fn present(&self, object: &Value, says_kind: bool) -> Value {
        let (api_version, kind) = self.presented_kind();
        if self.is_metadata {
            return json!({ "apiVersion": api_version, "kind": kind, "metadata": object["metadata"] });
        }
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut().filter(|_| !says_kind) {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        object
    }
}

type Events = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// Whoever watched is gone.
struct Closed;

/// Changes the order of changes of different objects; that of one object's stays.
fn interchange(changes: &mut [Change], mut random: u64) {
    let name = |change: &Change| change.object["metadata"]["name"].clone();
    for at in 1..changes.len() {
        random = random.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if random & 1 == 1 && name(&changes[at - 1]) != name(&changes[at]) {
            changes.swap(at - 1, at);
        }
    }
}

fn status(Refused(code, reason, message): &Refused) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn refusal(refused: &Refused) -> Response<Body> {
    whole(refused.0, status(refused).to_string())
}

fn whole(status: u16, text: String) -> Response<Body> {
    let never = |infallible: Infallible| match infallible {};
    with_body(status, Full::from(text).map_err(never).boxed())
}

fn with_body(status: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
