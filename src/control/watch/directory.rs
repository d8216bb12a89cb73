//! A directory of YAML files (`*.yaml`, `*.yml`, `*.json`) with one or more objects each, as `kubectl apply -f` takes them.
//!
//! A file that cannot be read, or that was not written to its end, keeps the objects that it had, and the reason is logged. A file was
//! written to its end when it is not empty, ends with a newline and holds nothing but whole objects; a writer that wants certainty writes
//! beside it and renames. To take an object away, remove its file. An object that two files hold is that of the file whose name comes
//! first.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Source;
use crate::control::objects::{Object, Objects};
use crate::control::read::{self, NoObject};
use crate::sys::watch::{Change, Changes};

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 20;

/// A watched directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    changes: Changes,
    files: BTreeMap<OsString, Contents>,
    is_read: bool,
}

/// What a file held when it was last whole.
#[derive(Debug, Default, PartialEq)]
struct Contents {
    objects: Vec<Object>,
    /// Why it is not what the file holds now.
    fault: Option<String>,
}

impl Directory {
    /// Watches and reads a directory.
    ///
    /// # Errors
    /// If it cannot be watched or listed.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Watched first, so that nothing happens between the two unseen.
        let changes = Changes::of_files(path)?;
        let mut this = Self { path: path.to_owned(), changes, files: BTreeMap::new(), is_read: false };
        this.read_all()?;
        Ok(this)
    }

    /// Returns why files do not count, by name.
    pub fn faults(&self) -> impl Iterator<Item = (&OsStr, &str)> {
        let files = self.files.iter();
        files.filter_map(|(name, contents)| Some((name.as_os_str(), contents.fault.as_deref()?)))
    }

    /// Reads everything, and tells whether anything is otherwise.
    fn read_all(&mut self) -> io::Result<bool> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.push(entry?.file_name());
        }
        let gone: Vec<_> = self.files.keys().filter(|name| !names.contains(name)).cloned().collect();
        let mut is_changed = false;
        for name in names.into_iter().chain(gone) {
            is_changed |= self.read_file(name);
        }
        self.is_read = true;
        Ok(is_changed)
    }

    /// Reads one file, and tells whether its objects are others.
    fn read_file(&mut self, name: OsString) -> bool {
        if !is_ours(&name) {
            return false;
        }
        let text = match read(&self.path.join(&name)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.files.remove(&name).is_some();
            }
            Err(error) => return self.keep(name, error.to_string()),
        };
        match parse(&text) {
            Ok(objects) => {
                let contents = Contents { objects, fault: None };
                self.files.get(&name) != Some(&contents) && {
                    self.files.insert(name, contents);
                    true
                }
            }
            Err(reason) => self.keep(name, reason),
        }
    }

    fn keep(&mut self, name: OsString, reason: String) -> bool {
        let contents = self.files.entry(name.clone()).or_default();
        if contents.fault.as_ref() != Some(&reason) {
            let kept = contents.objects.len();
            tracing::warn!(file = %self.path.join(&name).display(), reason, kept, "a file does not count; its last objects stay");
            contents.fault = Some(reason);
        }
        false
    }

    /// Has the directory watched anew: it may be another one by the same name.
    fn watch_again(&mut self) {
        match Changes::of_files(&self.path) {
            Ok(changes) => self.changes = changes,
            Err(error) => {
                tracing::warn!(directory = %self.path.display(), %error, "the objects cannot be watched")
            }
        }
    }
}

impl Source for Directory {
    fn fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    fn take(&mut self) -> bool {
        let changes = self.changes.take();
        // Kubernetes swaps whole volumes by a link of another name than the files'.
        let is_named = |change: &Change| matches!(change, Change::Name(name) if is_ours(name));
        if !changes.iter().all(is_named) {
            return self.look_again();
        }
        let mut is_changed = false;
        for change in changes {
            if let Change::Name(name) = change {
                is_changed |= self.read_file(name);
            }
        }
        is_changed
    }

    fn look_again(&mut self) -> bool {
        self.watch_again();
        self.read_all().unwrap_or_else(|error| {
            tracing::warn!(directory = %self.path.display(), %error, "the objects cannot be listed; the last ones stay");
            false
        })
    }

    fn objects(&self) -> Option<Objects> {
        let mut objects = Objects::default();
        // Backwards, so that the first to hold an object has it.
        for object in self.files.values().rev().flat_map(|contents| contents.objects.iter().rev()) {
            objects.insert(object.clone());
        }
        // Where there are no files of pods, there are no pods.
        objects.pods.get_or_insert_default();
        self.is_read.then_some(objects)
    }
}

/// Tells whether a file is to be read: those that editors hide or leave behind are not.
fn is_ours(name: &OsStr) -> bool {
    let path = Path::new(name);
    let is_hidden = name.as_encoded_bytes().starts_with(b".");
    let ending = path.extension().and_then(OsStr::to_str);
    !is_hidden && matches!(ending, Some("yaml" | "yml" | "json"))
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > FILE_MAX) {
        return Err(io::Error::other("it is too long"));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Vec<Object>, String> {
    if !text.ends_with('\n') {
        return Err("it does not end with a newline: it was not written to its end".to_owned());
    }
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    let mut objects = Vec::new();
    for document in documents.iter().filter(|document| !document.is_null()) {
        // As `kubectl get -o yaml` prints several.
        let items = document.get("items").and_then(Value::as_array);
        for object in items.map_or_else(|| std::slice::from_ref(document), |items| &items[..]) {
            match read::object(object) {
                Ok(object) => objects.push(object),
                Err(NoObject::OfOtherKind(_)) => {}
                Err(error @ NoObject::Without(_)) => return Err(error.to_string()),
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A directory that goes with the test.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-directory-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tunnel(name: &str, prefix: &str) -> String {
        format!(
            "apiVersion: adit.dev/v1alpha1\nkind: NodeTunnel\nmetadata: {{name: {name}}}\nspec:\n  podPrefixes:\n  - {prefix}\n"
        )
    }

    fn prefixes(directory: &Directory) -> Vec<String> {
        let objects = directory.objects().unwrap();
        let tunnels = objects.tunnels.iter();
        tunnels
            .flat_map(|(name, tunnel)| tunnel.pod_prefixes.iter().map(move |p| format!("{name} {p}")))
            .collect()
    }

    #[test]
    fn files_come_change_and_go() {
        let files = Files::new("life");
        files.put("b.yaml", &tunnel("b", "10.2.0.0/16"));
        files.put("notes.txt", "not yaml: [");
        let mut directory = Directory::open(&files.0).unwrap();
        assert_eq!(prefixes(&directory), ["b 10.2.0.0/16"]);
        files.put("a.yml", &format!("{}---\n{}", tunnel("a", "10.1.0.0/16"), tunnel("c", "10.3.0.0/16")));
        assert!(directory.take());
        assert_eq!(prefixes(&directory), ["a 10.1.0.0/16", "b 10.2.0.0/16", "c 10.3.0.0/16"]);
        files.put("b.yaml", &tunnel("b", "10.9.0.0/16"));
        assert!(directory.take());
        fs::rename(files.0.join("a.yml"), files.0.join("a.off")).unwrap();
        assert!(directory.take());
        assert_eq!(prefixes(&directory), ["b 10.9.0.0/16"]);
        files.put("b.yaml", &tunnel("b", "10.9.0.0/16"));
        assert!(!directory.take(), "the same again is no change");
        fs::remove_file(files.0.join("b.yaml")).unwrap();
        assert!(directory.take());
        assert!(prefixes(&directory).is_empty());
    }

    #[test]
    fn a_file_that_is_half_written_or_broken_keeps_its_last_objects() {
        let files = Files::new("half");
        let whole = tunnel("a", "10.1.0.0/16");
        files.put("a.yaml", &whole);
        let mut directory = Directory::open(&files.0).unwrap();
        for broken in ["", "metadata: [\n", "kind: NodeTunnel\n", "\u{0}\n", &whole[..whole.len() - 1]] {
            files.put("a.yaml", broken);
            assert!(!directory.take(), "{broken}");
            assert_eq!(prefixes(&directory), ["a 10.1.0.0/16"], "{broken}");
            assert_eq!(directory.faults().count(), 1, "{broken}");
        }
        // As long as a writer is at it, nothing is read.
        let mut file = File::create(files.0.join("a.yaml")).unwrap();
        file.write_all(tunnel("a", "10.7.0.0/16").as_bytes()).unwrap();
        assert!(!directory.take());
        assert_eq!(prefixes(&directory), ["a 10.1.0.0/16"]);
        drop(file);
        assert!(directory.take());
        assert_eq!((prefixes(&directory), directory.faults().count()), (vec!["a 10.7.0.0/16".to_owned()], 0));
    }

    #[test]
    fn lists_other_kinds_and_doubles_are_understood() {
        let files = Files::new("kinds");
        let list = serde_json::json!({
            "apiVersion": "v1", "kind": "List", "items": [
                { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } },
                { "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" }, "spec": { "podCIDRs": ["10.1.0.0/16"] } },
            ],
        });
        files.put("a.json", &format!("{list}\n"));
        files.put("b.yaml", &tunnel("a", "10.1.0.0/17"));
        files.put("c.yaml", &tunnel("a", "10.1.128.0/17"));
        let directory = Directory::open(&files.0).unwrap();
        assert_eq!(prefixes(&directory), ["a 10.1.0.0/17"]);
        assert_eq!(directory.objects().unwrap().nodes["a"].pod_prefixes.len(), 1);
    }

    #[test]
    fn a_directory_that_is_replaced_is_read_anew() {
        let files = Files::new("replaced");
        files.put("a.yaml", &tunnel("a", "10.1.0.0/16"));
        let mut directory = Directory::open(&files.0).unwrap();
        let old = files.0.with_extension("old");
        fs::rename(&files.0, &old).unwrap();
        assert!(!directory.take());
        assert_eq!(prefixes(&directory), ["a 10.1.0.0/16"], "the last ones stay");
        fs::create_dir(&files.0).unwrap();
        files.put("b.yaml", &tunnel("b", "10.2.0.0/16"));
        assert!(directory.look_again());
        assert_eq!(prefixes(&directory), ["b 10.2.0.0/16"]);
        files.put("b.yaml", &tunnel("b", "10.3.0.0/16"));
        assert!(directory.take());
        fs::remove_dir_all(old).unwrap();
    }
}
