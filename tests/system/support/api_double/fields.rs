//! The fields of an object as server-side apply sees them: a path for each leaf, where the schema says what identifies an element of a list.

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A field by its name.
    Field(String),
    /// The element of a set, by its value as JSON.
    Element(String),
    /// The element of a list of objects, by the values of its keys as JSON.
    Keyed(String),
}

pub(super) type Path = Vec<Step>;

/// The leaves of an object, in the order in which they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fields(Vec<(Path, Value)>);

impl Fields {
    /// Takes an object apart by its schema; `Null` for an object of which all lists are atomic.
    ///
    /// # Errors
    /// Names a field that the schema does not know.
    pub(super) fn of(object: &Value, schema: &Value) -> Result<Self, String> {
        let mut this = Self::default();
        this.add(&mut Vec::new(), object, schema)?;
        Ok(this)
    }

    fn add(&mut self, path: &mut Path, value: &Value, schema: &Value) -> Result<(), String> {
        match (value, schema["x-kubernetes-list-type"].as_str()) {
            (Value::Object(map), _) if !map.is_empty() => {
                for (name, value) in map {
                    let inner = &schema["properties"][name];
                    if inner.is_null() && schema["properties"].is_object() {
                        return Err(format!("unknown field \"{name}\""));
                    }
                    self.add_below(path, Step::Field(name.clone()), value, inner)?;
                }
                if schema["x-kubernetes-map-type"] == "atomic" {
                    self.set(path.clone(), value.clone());
                }
            }
            (Value::Array(list), Some("set")) if !list.is_empty() => {
                for value in list {
                    self.add_below(path, Step::Element(value.to_string()), value, &Value::Null)?;
                }
            }
            (Value::Array(list), Some("map")) if !list.is_empty() => {
                let names = schema["x-kubernetes-list-map-keys"].as_array().cloned().unwrap_or_default();
                for value in list {
                    let keys = names.iter().filter_map(Value::as_str);
                    let keys: Map<_, _> = keys.map(|name| (name.to_owned(), value[name].clone())).collect();
                    self.add_below(
                        path,
                        Step::Keyed(Value::from(keys).to_string()),
                        value,
                        &schema["items"],
                    )?;
                }
            }
            _ => self.set(path.clone(), value.clone()),
        }
        Ok(())
    }

    fn add_below(
        &mut self,
        path: &mut Path,
        step: Step,
        value: &Value,
        schema: &Value,
    ) -> Result<(), String> {
        path.push(step);
        let added = self.add(path, value, schema);
        path.pop();
        added
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Value> {
        self.0.iter().find(|(other, _)| other == path).map(|(_, value)| value)
    }

    pub(super) fn set(&mut self, path: Path, value: Value) {
        // A value in the place of a whole, or the other way round.
        self.0.retain(|(other, _)| *other == path || !(other.starts_with(&path) || path.starts_with(other)));
        match self.0.iter_mut().find(|(other, _)| *other == path) {
            Some((_, before)) => *before = value,
            None => self.0.push((path, value)),
        }
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.0.retain(|(other, _)| other != path);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Path, Value)> {
        self.0.iter()
    }

    /// Keeps the leaves for whose first field `keep` is true.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(path, _)| matches!(path.first(), Some(Step::Field(name)) if keep(name)));
    }

    /// Puts the object together again.
    pub(super) fn object(&self) -> Value {
        assemble(&self.0.iter().map(|(path, value)| (&path[..], value)).collect::<Vec<_>>())
    }
}

/// A leaf, by its path from some place on.
type Leaf<'a> = (&'a [Step], &'a Value);

/// Puts together what lies below one place.
fn assemble(leaves: &[Leaf<'_>]) -> Value {
    if let [([], value)] = leaves {
        return (*value).clone();
    }
    let mut groups: Vec<(&Step, Vec<Leaf<'_>>)> = Vec::new();
    for (path, value) in leaves {
        let Some((step, rest)) = path.split_first() else { continue };
        match groups.iter_mut().find(|(other, _)| *other == step) {
            Some((_, group)) => group.push((rest, value)),
            None => groups.push((step, vec![(rest, value)])),
        }
    }
    if groups.iter().all(|(step, _)| matches!(step, Step::Field(_))) {
        let entries = groups.into_iter().map(|(step, group)| match step {
            Step::Field(name) | Step::Element(name) | Step::Keyed(name) => (name.clone(), assemble(&group)),
        });
        return Value::Object(entries.collect());
    }
    groups.into_iter().map(|(_, group)| assemble(&group)).collect()
}
