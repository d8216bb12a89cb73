//! What is kept on disk between calls: a file for each attachment, and one for each that the agent has not been told is gone.
//!
//! ```text
//! STATE/attachments/CONTAINER:IFNAME    what ADD has done, for DEL without its result, CHECK and GC
//! STATE/del/CONTAINER:IFNAME            read and removed by the agent
//! ```
//!
//! Nothing is synced: with the system's end the containers have ended as well.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::{Code, Error};
use super::request::Attachment;

/// What ADD has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The network's name.
    pub network: String,
    /// Whose it is.
    pub attachment: Attachment,
    /// The MTU in bytes that the interface was given; `None` if it was left as it was.
    pub mtu: Option<u32>,
    /// The MTU in bytes before that.
    pub old_mtu: Option<u32>,
    /// The host's end, if it was made here.
    pub host: Option<String>,
}

/// The directory.
#[derive(Debug)]
pub struct State {
    attachments: PathBuf,
    gone: PathBuf,
}

impl State {
    /// Returns the state in `directory`, which need not be there.
    pub fn of(directory: &Path) -> Self {
        Self { attachments: directory.join("attachments"), gone: directory.join("del") }
    }

    /// Keeps what ADD has done.
    ///
    /// # Errors
    /// [`Code::Exists`] if the attachment is there already.
    pub fn keep(&self, kept: &Kept) -> Result<(), Error> {
        let path = self.path(&kept.attachment);
        put(&path, &print(kept)).map_err(|error| {
            let is_there = error.kind() == io::ErrorKind::AlreadyExists;
            if is_there { exists(&kept.attachment) } else { Error::io(path.display(), error) }
        })
    }

    /// Makes sure that there is no such attachment.
    ///
    /// # Errors
    /// [`Code::Exists`] if there is one.
    pub fn expect_none(&self, attachment: &Attachment) -> Result<(), Error> {
        if self.path(attachment).exists() { Err(exists(attachment)) } else { Ok(()) }
    }

    /// Returns what was kept of an attachment, if it can be read.
    pub fn find(&self, attachment: &Attachment) -> Option<Kept> {
        read(&self.path(attachment)).filter(|kept| kept.attachment == *attachment)
    }

    /// Returns what was kept of a network.
    pub fn all(&self, network: &str) -> Vec<Kept> {
        let entries = fs::read_dir(&self.attachments).into_iter().flatten().flatten();
        entries.filter_map(|entry| read(&entry.path())).filter(|kept| kept.network == network).collect()
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// [`Code::Io`]; that it is not there is none.
    pub fn forget(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(attachment);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path.display(), error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Leaves word for the agent that an attachment is gone.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub fn leave_word(&self, network: &str, attachment: &Attachment) -> Result<(), Error> {
        let path = self.gone.join(attachment.to_string());
        let Attachment { container, ifname } = attachment;
        let text = json!({ "network": network, "containerID": container, "ifname": ifname });
        match put(&path, &text) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io(path.display(), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.attachments.join(attachment.to_string())
    }
}

fn exists(attachment: &Attachment) -> Error {
    Error::new(Code::Exists, format!("{attachment} was added already"))
}

/// Writes a file that is not there yet, whole or not at all.
fn put(path: &Path, value: &Value) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // No attachment's name begins with a dot.
    let unfinished = directory.join(format!(".{}", std::process::id()));
    let written = (|| {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(value.to_string().as_bytes())?;
        fs::hard_link(&unfinished, path)
    })();
    let _ = fs::remove_file(&unfinished);
    written
}

fn print(kept: &Kept) -> Value {
    let Kept { network, attachment: Attachment { container, ifname }, mtu, old_mtu, host } = kept;
    json!({ "network": network, "containerID": container, "ifname": ifname, "mtu": mtu, "oldMtu": old_mtu, "host": host })
}

/// Reads a file; one that is damaged tells nothing.
fn read(path: &Path) -> Option<Kept> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let text = |key: &str| value.get(key)?.as_str();
    let number = |key: &str| u32::try_from(value.get(key)?.as_u64()?).ok();
    Some(Kept {
        network: text("network")?.to_owned(),
        attachment: Attachment::new(text("containerID")?, text("ifname")?)?,
        mtu: number("mtu"),
        old_mtu: number("oldMtu"),
        host: text("host").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kept(container: &str) -> Kept {
        Kept {
            network: "net".to_owned(),
            attachment: Attachment::new(container, "eth0").unwrap(),
            mtu: Some(1420),
            old_mtu: Some(1500),
            host: Some("adit1".to_owned()),
        }
    }

    #[test]
    fn an_attachment_is_kept_once_and_forgotten_as_often_as_one_likes() {
        let directory =
            Directory(std::env::temp_dir().join(format!("adit-cni-state-{}", std::process::id())));
        let state = State::of(&directory.0);
        assert!(state.all("net").is_empty());
        let (one, other) = (kept("one"), Kept { network: "other".to_owned(), ..kept("two") });
        state.expect_none(&one.attachment).unwrap();
        state.keep(&one).unwrap();
        state.keep(&other).unwrap();
        assert_eq!(state.keep(&one).unwrap_err().code, Code::Exists);
        assert_eq!(state.expect_none(&one.attachment).unwrap_err().code, Code::Exists);
        assert_eq!(state.find(&one.attachment).as_ref(), Some(&one));
        assert_eq!(state.all("net"), std::slice::from_ref(&one));
        // One that was cut short.
        fs::write(state.path(&other.attachment), "{\"network\":").unwrap();
        assert_eq!(state.find(&other.attachment), None);
        for _ in 0..2 {
            state.forget(&one.attachment).unwrap();
            state.leave_word("net", &one.attachment).unwrap();
        }
        assert_eq!(state.find(&one.attachment), None);
        let names: Vec<_> =
            fs::read_dir(&state.gone).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["one:eth0"]);
    }
}
