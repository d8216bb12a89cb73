//! What an API server keeps: objects with versions, their history for as long as it is not compacted, and who owns which field.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use adit::control::api::{NodeTunnel, TunnelConfig};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::fields::{Fields, Path, Step};

/// Who changes objects by [`Store::put`].
const TEST: &str = "test";

/// What is behind the name of a manager who updates: who applies is another one.
const UPDATE: &str = ", by updates";

/// Lists that are being read page by page, at most.
const LISTS_MAX: usize = 64;

/// A kind of objects that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Node,
    Tunnel,
    Config,
    Slice,
    Pod,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Node, Self::Tunnel, Self::Config, Self::Slice, Self::Pod];

    /// Returns where its objects are found.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Node => "/api/v1/nodes",
            Self::Tunnel => "/apis/adit.dev/v1alpha1/nodetunnels",
            Self::Config => "/apis/adit.dev/v1alpha1/tunnelconfigs",
            Self::Pod => "/api/v1/pods",
            Self::Slice => "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Tunnel => "NodeTunnel",
            Self::Config => "TunnelConfig",
            Self::Slice => "EndpointSlice",
            Self::Pod => "Pod",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Pod => "v1",
            Self::Tunnel | Self::Config => "adit.dev/v1alpha1",
            Self::Slice => "discovery.k8s.io/v1",
        }
    }

    pub(super) fn has_status(self) -> bool {
        matches!(self, Self::Node | Self::Tunnel)
    }

    /// Tells whether the elements of its lists say of which kind they are: those of custom resources do.
    pub(super) fn says_kind_in_lists(self) -> bool {
        matches!(self, Self::Tunnel | Self::Config)
    }

    fn schema(self) -> Value {
        let definition = match self {
            Self::Node | Self::Slice | Self::Pod => return Value::Null,
            Self::Tunnel => NodeTunnel::crd(),
            Self::Config => TunnelConfig::crd(),
        };
        let definition = serde_json::to_value(definition).unwrap();
        let mut schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        let metadata = json!({ "ownerReferences": {
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
        }});
        for field in ["apiVersion", "kind"] {
            schema["properties"][field] = json!({});
        }
        let metadata_fields =
            ["name", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp"];
        schema["properties"]["metadata"]["properties"] = metadata;
        for field in metadata_fields {
            schema["properties"]["metadata"]["properties"][field] = json!({});
        }
        schema
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Added,
    Modified,
    Deleted,
}

/// A change in the history.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: Kind,
    pub(super) what: What,
    pub(super) object: Arc<Value>,
}

/// Why something is not done: the status code, the reason as Kubernetes words it, and a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) u16, pub(super) &'static str, pub(super) String);

impl Refused {
    pub(super) fn gone() -> Self {
        Self(410, "Expired", "too old resource version: the history before it was compacted".to_owned())
    }

    fn not_found(kind: Kind, name: &str) -> Self {
        Self(404, "NotFound", format!("{} \"{name}\" not found", kind.name()))
    }
}

/// An apply request.
pub(super) struct Apply<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) is_status: bool,
    pub(super) manager: &'a str,
    pub(super) is_forced: bool,
    pub(super) body: &'a Value,
}

/// Whose fields: a manager, and whether of the status.
type Owner = (String, bool);

#[derive(Debug, Clone)]
struct Stored {
    object: Arc<Value>,
    owners: BTreeMap<Owner, BTreeSet<Path>>,
}

/// A page of a list.
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    pub(super) more: Option<String>,
    pub(super) remaining: usize,
}

/// All objects.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<(Kind, String), Stored>,
    schemas: BTreeMap<Kind, Value>,
    history: VecDeque<Change>,
    /// The history up to here is gone.
    compacted: u64,
    /// Lists that are being read: version, elements.
    lists: BTreeMap<u64, (u64, Vec<Arc<Value>>)>,
    uids: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            version: 1,
            objects: BTreeMap::new(),
            schemas: Kind::ALL.map(|kind| (kind, kind.schema())).into(),
            history: VecDeque::new(),
            compacted: 0,
            lists: BTreeMap::new(),
            uids: 0,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> Result<Arc<Value>, Refused> {
        let stored = self.objects.get(&(kind, name.to_owned()));
        stored.map(|stored| Arc::clone(&stored.object)).ok_or_else(|| Refused::not_found(kind, name))
    }

    /// Returns the page that a token stands for, or the first; at most `limit` objects.
    pub(super) fn list(&mut self, kind: Kind, token: Option<&str>, limit: usize) -> Result<Page, Refused> {
        let (list, offset) = match token {
            None => {
                let items = self.objects.iter().filter(|((other, _), _)| *other == kind);
                let items = items.map(|(_, stored)| Arc::clone(&stored.object)).collect();
                self.uids += 1;
                self.lists.insert(self.uids, (self.version, items));
                if self.lists.len() > LISTS_MAX {
                    self.lists.pop_first();
                }
                (self.uids, 0)
            }
            Some(token) => {
                let parts = token
                    .split_once(':')
                    .and_then(|(list, offset)| Some((list.parse().ok()?, offset.parse().ok()?)));
                parts.ok_or_else(|| Refused(400, "BadRequest", "continue key is not valid".to_owned()))?
            }
        };
        let expired = || Refused(410, "Expired", "The provided continue parameter is too old".to_owned());
        let (version, items) = self.lists.get(&list).ok_or_else(expired)?;
        if token.is_some() && *version < self.compacted {
            return Err(expired());
        }
        let end = items.len().min(offset + limit);
        let page = Page {
            version: *version,
            items: items[offset..end].to_vec(),
            more: (end < items.len()).then(|| format!("{list}:{end}")),
            remaining: items.len() - end,
        };
        if page.more.is_none() {
            self.lists.remove(&list);
        }
        Ok(page)
    }

    /// Returns what has happened to objects of a kind since a version.
    pub(super) fn since(&self, kind: Kind, version: u64) -> Result<Vec<Change>, Refused> {
        if version < self.compacted {
            return Err(Refused::gone());
        }
        let first = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(first..).filter(|change| change.kind == kind).cloned().collect())
    }

    /// Forgets the history.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    /// Makes an object or puts it in the place of the one of its name, as somebody who knows nothing of managers of fields.
    pub(super) fn put(&mut self, kind: Kind, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.update(kind, name, object, TEST).unwrap();
    }

    /// Makes an object that is not there.
    pub(super) fn create(&mut self, kind: Kind, object: Value) -> Result<Arc<Value>, Refused> {
        let bad = |message: String| Refused(400, "BadRequest", message);
        let name = object["metadata"]["name"].as_str().map(str::to_owned);
        let name = name.ok_or_else(|| bad("metadata.name is required".to_owned()))?;
        if self.objects.contains_key(&(kind, name.clone())) {
            let message = format!("{} \"{name}\" already exists", kind.name());
            return Err(Refused(409, "AlreadyExists", message));
        }
        self.update(kind, name, object, "unknown").map_err(bad)
    }

    /// Merges a patch into an object (RFC 7396).
    pub(super) fn merge(
        &mut self,
        kind: Kind,
        name: &str,
        manager: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, Refused> {
        let mut object = (*self.get(kind, name)?).clone();
        let status = object["status"].clone();
        merge_into(&mut object, patch);
        // The main resource is deaf to the status.
        merge_into(&mut object, &json!({ "status": Value::Null }));
        if !status.is_null() {
            object["status"] = status;
        }
        let message = |message| Refused(400, "BadRequest", message);
        self.update(kind, name.to_owned(), object, manager).map_err(message)
    }

    /// Whose fields change, or are new, those are the manager's.
    fn update(
        &mut self,
        kind: Kind,
        name: String,
        object: Value,
        manager: &str,
    ) -> Result<Arc<Value>, String> {
        let schema = &self.schemas[&kind];
        let fields = Fields::of(&own_part(&object), schema)?;
        let before = self.objects.get(&(kind, name.clone()));
        let mut owners = before.map(|stored| stored.owners.clone()).unwrap_or_default();
        let fields_before = before.map(|stored| Fields::of(&own_part(&stored.object), schema)).transpose()?;
        let fields_before = fields_before.unwrap_or_default();
        let owner = (format!("{manager}{UPDATE}"), false);
        let mut owned = owners.remove(&owner).unwrap_or_default();
        for (path, _) in fields.iter().filter(|(path, value)| fields_before.get(path) != Some(value)) {
            owners.values_mut().for_each(|paths| paths.retain(|other| other != path));
            owned.insert(path.clone());
        }
        owners.insert(owner, owned);
        owners.values_mut().for_each(|paths| paths.retain(|path| fields.get(path).is_some()));
        Ok(self.write(kind, name, fields.object(), owners))
    }

    /// Removes an object; tells whether it was there.
    pub(super) fn delete(&mut self, kind: Kind, name: &str) -> bool {
        let Some(stored) = self.objects.remove(&(kind, name.to_owned())) else { return false };
        self.version += 1;
        let mut object = (*stored.object).clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.record(kind, What::Deleted, Arc::new(object));
        true
    }

    /// Applies what a manager says of the fields that are its own; tells whether that made the object.
    pub(super) fn apply(&mut self, apply: &Apply<'_>) -> Result<(Arc<Value>, bool), Refused> {
        let &Apply { kind, name, is_status, manager, is_forced, body } = apply;
        let bad = |message: String| Refused(400, "BadRequest", message);
        if body["apiVersion"] != kind.api_version() || body["kind"] != kind.name() {
            return Err(bad("the object's kind is not the one of the path".to_owned()));
        }
        if body["metadata"]["name"] != name {
            return Err(bad("the object's name is not the one of the path".to_owned()));
        }
        if !body["metadata"]["managedFields"].is_null() {
            return Err(bad("metadata.managedFields must be nil".to_owned()));
        }
        let key = (kind, name.to_owned());
        let before = self.objects.get(&key);
        if before.is_none() && is_status {
            return Err(Refused::not_found(kind, name));
        }
        let said = &body["metadata"]["resourceVersion"];
        if !said.is_null()
            && before.is_none_or(|stored| stored.object["metadata"]["resourceVersion"] != *said)
        {
            return Err(Refused(409, "Conflict", "the object has been modified".to_owned()));
        }
        let schema = &self.schemas[&kind];
        let mut wanted = Fields::of(&own_part(body), schema).map_err(&bad)?;
        // Each of the two is deaf to the other's part.
        wanted.retain(|field| (field == "status") == is_status);
        let mut fields = before.map(|stored| Fields::of(&own_part(&stored.object), schema).unwrap());
        let mut owners = before.map(|stored| stored.owners.clone()).unwrap_or_default();
        let owner = (manager.to_owned(), is_status);
        let owned = owners.remove(&owner).unwrap_or_default();
        let fields_now = fields.get_or_insert_default();
        for path in owned.iter().filter(|path| wanted.get(path).is_none()) {
            if !owners.values().any(|paths| paths.contains(path)) {
                fields_now.remove(path);
            }
        }
        for (path, value) in wanted.iter() {
            let is_other = fields_now.get(path).is_some_and(|before| before != value);
            let holder =
                owners.iter().find(|(_, paths)| paths.contains(path)).map(|(owner, _)| owner.0.clone());
            match holder {
                Some(holder) if is_other && !is_forced => {
                    let message =
                        format!("Apply failed with 1 conflict: conflict with \"{holder}\": {path:?}");
                    return Err(Refused(409, "Conflict", message));
                }
                Some(_) if is_other => {
                    owners.values_mut().for_each(|paths| paths.retain(|other| other != path))
                }
                Some(_) | None => {}
            }
            fields_now.set(path.clone(), value.clone());
        }
        owners.insert(owner, wanted.iter().map(|(path, _)| path.clone()).collect());
        let is_new = before.is_none();
        let object = fields_now.object();
        Ok((self.write(kind, name.to_owned(), object, owners), is_new))
    }

    /// Writes an object with what is the server's own to say; nothing happens if it is as it was.
    fn write(
        &mut self,
        kind: Kind,
        name: String,
        mut object: Value,
        owners: BTreeMap<Owner, BTreeSet<Path>>,
    ) -> Arc<Value> {
        let before = self.objects.get(&(kind, name.clone()));
        if let Some(stored) = before
            && stored.owners == owners
            && own_part(&stored.object) == own_part(&object)
        {
            return Arc::clone(&stored.object);
        }
        self.version += 1;
        let metadata = match before {
            Some(stored) => {
                let was = &stored.object["metadata"];
                let is_other = stored.object["spec"] != object["spec"];
                let generation = was["generation"].as_u64().unwrap_or(1) + u64::from(is_other);
                (was["uid"].clone(), was["creationTimestamp"].clone(), generation)
            }
            None => {
                self.uids += 1;
                // A second after the last one: the older of two is known by it.
                let second = self.uids;
                let (h, m, s) = (second / 3600 % 24, second / 60 % 60, second % 60);
                let created = format!("2026-01-01T{h:02}:{m:02}:{s:02}Z");
                (format!("00000000-0000-4000-8000-{:012x}", self.uids).into(), created.into(), 1)
            }
        };
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.name().into();
        object["metadata"]["name"] = name.clone().into();
        object["metadata"]["uid"] = metadata.0;
        object["metadata"]["creationTimestamp"] = metadata.1;
        object["metadata"]["generation"] = metadata.2.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let managers = owners.iter().filter(|(_, paths)| !paths.is_empty());
        object["metadata"]["managedFields"] = managers
            .map(|((manager, is_status), paths)| {
                let mut entry = json!({
                    "manager": manager.trim_end_matches(UPDATE),
                    "operation": if manager.ends_with(UPDATE) { "Update" } else { "Apply" },
                    "apiVersion": kind.api_version(),
                    "time": "2026-01-01T00:00:00Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": fields_v1(&paths.iter().map(|path| &path[..]).collect::<Vec<_>>()),
                });
                if *is_status {
                    entry["subresource"] = "status".into();
                }
                entry
            })
            .collect();
        let what = if before.is_some() { What::Modified } else { What::Added };
        let object = Arc::new(object);
        self.objects.insert((kind, name), Stored { object: Arc::clone(&object), owners });
        self.record(kind, what, Arc::clone(&object));
        object
    }

    fn record(&mut self, kind: Kind, what: What, object: Arc<Value>) {
        self.history.push_back(Change { version: self.version, kind, what, object });
    }
}

/// Returns what of an object is not the server's own to say.
fn own_part(object: &Value) -> Value {
    let mut part = object.clone();
    if let Some(fields) = part.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(metadata) = part["metadata"].as_object_mut() {
        let kept = ["namespace", "labels", "annotations", "ownerReferences"];
        metadata.retain(|name, _| kept.contains(&name.as_str()));
        if metadata.is_empty() {
            part.as_object_mut().unwrap().remove("metadata");
        }
    }
    part
}

fn merge_into(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in fields {
        match (value, object.as_object_mut().unwrap()) {
            (Value::Null, object) => drop(object.remove(name)),
            (value, object) => merge_into(object.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Returns a set of paths in the form of `FieldsV1` (structured-merge-diff, `fieldpath/serialize.go`). The paths are those of leaves, in order.
fn fields_v1(paths: &[&[Step]]) -> Value {
    let mut fields = serde_json::Map::new();
    for group in paths.chunk_by(|a, b| a.first() == b.first()) {
        let Some(step) = group[0].first() else { continue };
        let (name, is_element) = match step {
            Step::Field(name) => (format!("f:{name}"), false),
            Step::Element(value) => (format!("v:{value}"), false),
            Step::Keyed(keys) => (format!("k:{keys}"), true),
        };
        let mut below = fields_v1(&group.iter().map(|path| &path[1..]).collect::<Vec<_>>());
        if is_element {
            below["."] = json!({});
        }
        fields.insert(name, below);
    }
    fields.into()
}
