//! What outlives the process: the private key, and the objects as they were last known.
//!
//! ```text
//! STATE/lock             held while an agent runs: two would undo each other's work
//! STATE/private.key      the key in base64, as `wg genkey` prints it; 0600; made once
//! STATE/snapshot.json    the objects, with a checksum; 0600
//! STATE/mode             the mode that the node was in
//! STATE/remembered       what other nodes' pods have had since Strict was on, a prefix a line
//! ```
//!
//! A file is written beside its place, synced and renamed, so that it is there whole or not at all. A key file that is damaged stops the
//! start, and so does one that is missing beside a snapshot: a new key is never made silently. A damaged snapshot is an error of its own,
//! since the cluster can replace it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::remembered::Remembered;
use crate::crypto::blake2s;
use crate::crypto::random::Random;
use crate::crypto::secret::Secret;
use crate::crypto::x25519::PrivateKey;

/// The longest file that is read: objects of 10,000 nodes with many prefixes each.
const FILE_MAX: u64 = 256 << 20;

/// The form of the snapshot; another one is not read.
const VERSION: u64 = 2;

/// Why what is on disk cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// The system refused.
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another agent holds the directory.
    InUse(PathBuf),
    /// The file does not hold what it should.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::InUse(path) => write!(f, "{}: another agent works here", path.display()),
            Self::Damaged { path, what } => write!(f, "{}: {what}", path.display()),
        }
    }
}

impl std::error::Error for Unusable {}

/// Objects that were kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The objects, in the words of the API.
    pub objects: Vec<Value>,
    /// When they were kept, since the Unix epoch: they are when they have changed.
    pub at: Option<Duration>,
}

/// A directory that is ours for as long as this lives.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the directory, and makes it if it is not there.
    ///
    /// # Errors
    /// [`Unusable::InUse`] if another process has it.
    pub fn open(directory: &Path) -> Result<Self, Unusable> {
        let failed = |path: &Path, error| Unusable::Io { path: path.to_owned(), error };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| failed(directory, error))?;
        let path = directory.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|error| failed(&path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Unusable::InUse(directory.to_owned())),
            Err(errno) => Err(failed(&path, errno.into())),
        }
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the private key. It is made if there is none, and none was ever used here.
    ///
    /// # Errors
    /// [`Unusable::Damaged`] if there is a file that holds no key or that others may read, or none where there should be one.
    pub fn private_key(&self, random: &mut dyn Random) -> Result<PrivateKey, Unusable> {
        if let Some(key) = Self::private_key_in(&self.directory)? {
            return Ok(key);
        }
        if self.path("snapshot.json").exists() {
            let what = "the key is gone, but the snapshot beside it tells that there was one; \
                bring it back, or remove the snapshot to begin anew with another key";
            return Err(Unusable::Damaged { path: self.path("private.key"), what: what.to_owned() });
        }
        let key = PrivateKey::generate(random);
        let mut text = Zeroizing::new(String::with_capacity(64));
        BASE64.encode_string(key.as_bytes(), &mut text);
        text.push('\n');
        self.write("private.key", text.as_bytes())?;
        Ok(key)
    }

    /// Returns the private key in a directory that may be another process's; `None` if there is none.
    ///
    /// # Errors
    /// [`Unusable::Damaged`] if there is a file that holds no key or that others may read.
    pub fn private_key_in(directory: &Path) -> Result<Option<PrivateKey>, Unusable> {
        let path = directory.join("private.key");
        let damaged = |what: &str| Unusable::Damaged { path: path.clone(), what: what.to_owned() };
        let Some(mut file) = open_file(&path)? else { return Ok(None) };
        let failed = |error| Unusable::Io { path: path.clone(), error };
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(damaged(
                "others than the owner may use the file; who has read it has the key (chmod 600)",
            ));
        }
        // A byte more than it should have is enough to tell.
        let mut text = Zeroizing::new([0; 46]);
        let len = read_up_to(&mut file, &mut text[..]).map_err(failed)?;
        let text = text[..len].strip_suffix(b"\n").unwrap_or(&text[..len]);
        let mut bytes = Zeroizing::new([0; 33]);
        match BASE64.decode_slice(text, &mut bytes[..]) {
            Ok(32) => {}
            Ok(_) | Err(_) => {
                return Err(damaged("it does not hold 32 bytes in base64, as `wg genkey` prints them"));
            }
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[..32]);
        let is_zero = Secret::new(key).is_zero();
        let private = PrivateKey::new(key);
        key.zeroize();
        if is_zero { Err(damaged("the key is all zero")) } else { Ok(Some(private)) }
    }

    /// Returns the objects as they were last known; `None` if none were ever kept.
    ///
    /// # Errors
    /// [`Unusable::Damaged`] if the file does not hold what was written.
    pub fn snapshot(&self) -> Result<Option<Kept>, Unusable> {
        Self::snapshot_in(&self.directory)
    }

    /// The same of a directory that may be another process's: the file is whole at any moment.
    ///
    /// # Errors
    /// Those of [`Self::snapshot`].
    pub fn snapshot_in(directory: &Path) -> Result<Option<Kept>, Unusable> {
        let path = directory.join("snapshot.json");
        let Some(file) = open_file(&path)? else { return Ok(None) };
        let modified = file.metadata().and_then(|data| data.modified()).ok();
        let at = modified.and_then(|modified| modified.duration_since(SystemTime::UNIX_EPOCH).ok());
        let mut text = Vec::new();
        let read = file.take(FILE_MAX).read_to_end(&mut text);
        read.map_err(|error| Unusable::Io { path: path.clone(), error })?;
        match parse_snapshot(&text) {
            Ok(objects) => Ok(Some(Kept { objects, at })),
            Err(what) => Err(Unusable::Damaged { path, what }),
        }
    }

    /// Keeps the objects.
    ///
    /// # Errors
    /// If the file cannot be written; the last one is there then.
    pub fn keep_snapshot(&self, objects: impl IntoIterator<Item = Value>) -> Result<(), Unusable> {
        // One by one: as values all together are many times as long.
        let mut list = String::from("[");
        for object in objects {
            if list.len() > 1 {
                list.push(',');
            }
            list.push_str(&object.to_string());
        }
        list.push(']');
        let objects = list;
        // By hand, so that the checksum is that of the very bytes that follow.
        let checksum = checksum(&objects);
        let text = format!("{{\"version\":{VERSION},\"checksum\":\"{checksum}\",\"objects\":{objects}}}\n");
        self.write("snapshot.json", text.as_bytes())
    }

    /// Returns the mode that the node was in, in the words of the API; `None` if that is not known.
    pub fn mode(&self) -> Option<String> {
        Self::mode_in(&self.directory)
    }

    /// The same of a directory that may be another process's.
    pub fn mode_in(directory: &Path) -> Option<String> {
        Some(fs::read_to_string(directory.join("mode")).ok()?.trim_end().to_owned())
    }

    /// Keeps the mode that the node is in.
    ///
    /// # Errors
    /// If the file cannot be written; the last one is there then.
    pub fn keep_mode(&self, mode: &str) -> Result<(), Unusable> {
        self.write("mode", format!("{mode}\n").as_bytes())
    }

    /// Returns what was remembered of other nodes' pods; nothing where that is not known.
    pub fn remembered(&self) -> Remembered {
        Self::remembered_in(&self.directory)
    }

    /// The same of a directory that may be another process's.
    pub fn remembered_in(directory: &Path) -> Remembered {
        Remembered::of_text(&fs::read_to_string(directory.join("remembered")).unwrap_or_default())
    }

    /// Keeps what is to be remembered of other nodes' pods.
    ///
    /// # Errors
    /// If the file cannot be written; the last one is there then.
    pub fn keep_remembered(&self, remembered: &Remembered) -> Result<(), Unusable> {
        self.write("remembered", remembered.to_text().as_bytes())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file beside its place, has it reach the disk, and puts it in its place.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Unusable> {
        let (path, unfinished) = (self.path(name), self.path(&format!("{name}.new")));
        let write = || {
            // One that was left behind may have other permissions.
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| Unusable::Io { path: path.clone(), error })
    }
}

fn open_file(path: &Path) -> Result<Option<File>, Unusable> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unusable::Io { path: path.to_owned(), error }),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn parse_snapshot(text: &[u8]) -> Result<Vec<Value>, String> {
    let mut whole: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if whole["version"] != json!(VERSION) {
        return Err(format!("it is of version {}, and {VERSION} is needed", whole["version"]));
    }
    let objects = whole["objects"].take();
    if whole["checksum"].as_str() != Some(&checksum(&objects.to_string())) {
        return Err("its checksum is wrong".to_owned());
    }
    let Value::Array(objects) = objects else { return Err("it holds no list of objects".to_owned()) };
    Ok(objects)
}

fn checksum(text: &str) -> String {
    blake2s::hash(&[text.as_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::crypto::random::Os;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-store-{}-{name}", std::process::id()));
            Self(path)
        }

        fn store(&self) -> Store {
            Store::open(&self.0).unwrap()
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            fs::write(self.0.join(name), bytes).unwrap();
        }

        fn key(&self) -> Result<PrivateKey, String> {
            self.store().private_key(&mut Os).map_err(|error| error.to_string())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let directory = Directory::new("once");
        let key = directory.key().unwrap();
        assert_eq!(directory.key().unwrap(), key);
        let mode = |name: &str| fs::metadata(directory.0.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("private.key"), mode("")), (0o600, 0o700));
        let names = fs::read_dir(&directory.0).unwrap().count();
        assert_eq!(names, 2, "the key and the lock");
        fs::set_permissions(directory.0.join("private.key"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(directory.key().unwrap_err().contains("chmod 600"));
    }

    #[test]
    fn a_damaged_key_stops_the_start_and_stays_as_it_is() {
        let directory = Directory::new("damaged");
        directory.key().unwrap();
        let whole = fs::read(directory.0.join("private.key")).unwrap();
        let garbage = [&b"\xff"[..]; 45].concat();
        let longer = [&whole[..], b"x"].concat();
        let cut = (0..44).map(|len| &whole[..len]);
        for bytes in cut.chain([&garbage[..], &longer, b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"]) {
            directory.put("private.key", bytes);
            let error = directory.key().unwrap_err();
            assert!(error.contains("private.key"), "{error}");
            assert_eq!(fs::read(directory.0.join("private.key")).unwrap(), bytes);
        }
        directory.put("private.key", &whole[..44]);
        directory.key().expect("a key without the last newline is whole");
    }

    #[test]
    fn a_key_that_is_gone_is_missed() {
        let directory = Directory::new("gone");
        directory.key().unwrap();
        directory.store().keep_snapshot([]).unwrap();
        fs::remove_file(directory.0.join("private.key")).unwrap();
        assert!(directory.key().unwrap_err().contains("the key is gone"));
        fs::remove_file(directory.0.join("snapshot.json")).unwrap();
        directory.key().expect("a new beginning");
    }

    #[test]
    fn what_was_left_behind_by_a_crash_is_not_in_the_way() {
        let directory = Directory::new("crash");
        drop(directory.store());
        directory.put("private.key.new", b"half");
        let key = directory.key().unwrap();
        assert_eq!(directory.key().unwrap(), key);
    }

    #[test]
    fn a_directory_has_one_agent() {
        let directory = Directory::new("lock");
        let first = directory.store();
        assert!(matches!(Store::open(&directory.0), Err(Unusable::InUse(_))));
        drop(first);
        directory.store();
    }

    #[test]
    fn a_snapshot_comes_back_as_it_was_or_not_at_all() {
        let directory = Directory::new("snapshot");
        let store = directory.store();
        assert!(store.snapshot().unwrap().is_none());
        let objects =
            [json!({ "kind": "NodeTunnel", "spec": { "mtu": 1420, "text": "\u{e9}\"\n" } }), json!({})];
        store.keep_snapshot(objects.clone()).unwrap();
        let kept = store.snapshot().unwrap().unwrap();
        assert_eq!(kept.objects, objects);
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        let file = File::options().append(true).open(directory.0.join("snapshot.json")).unwrap();
        file.set_modified(moment).unwrap();
        assert_eq!(store.snapshot().unwrap().unwrap().at, Some(Duration::from_secs(1_600_000_000)));
        let whole = fs::read(directory.0.join("snapshot.json")).unwrap();
        // The last byte is a newline.
        for len in 0..whole.len() - 1 {
            directory.put("snapshot.json", &whole[..len]);
            assert!(matches!(store.snapshot(), Err(Unusable::Damaged { .. })), "{len} bytes");
        }
        for at in 0..whole.len() - 1 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            directory.put("snapshot.json", &bytes);
            match store.snapshot() {
                Err(Unusable::Damaged { .. }) => {}
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}
