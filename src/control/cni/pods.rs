//! The pods of this node, as the plugin has registered them: in memory, and on disk a file for each.
//!
//! Nothing is synced: with the system's end the pods have ended as well.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crypto::blake2s;

/// How the name of a file ends that is being written.
const UNFINISHED: &str = "new";

/// An interface of a container, in a network of the runtime's: what everything is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The network.
    pub network: String,
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its interface.
    pub ifname: String,
}

impl Attachment {
    /// Returns a file's name for it, whatever its parts hold.
    fn file(&self) -> String {
        let parts = [&self.network, &self.container, &self.ifname].map(|part| part.as_bytes());
        let lens = parts.map(|part| part.len().to_be_bytes());
        let hash = blake2s::hash(&[&lens[0], parts[0], &lens[1], parts[1], &lens[2], parts[2]]);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its interface.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its namespace, where the runtime tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name, likewise.
    #[serde(default, rename = "pod", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// All pods.
#[derive(Debug)]
pub struct Pods {
    directory: PathBuf,
    all: BTreeMap<Attachment, Pod>,
}

impl Pods {
    /// Reads a directory, and makes it if it is not there. What is damaged in it counts for nothing.
    ///
    /// # Errors
    /// If it cannot be made or listed.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == UNFINISHED) {
                // Whoever asked for it was not answered, and it would come back with every start.
                let _ = fs::remove_file(path);
                continue;
            }
            let Ok(text) = fs::read(path) else { continue };
            if let Ok(pod) = serde_json::from_slice::<Pod>(&text) {
                all.insert(pod.attachment.clone(), pod);
            }
        }
        Ok(Self { directory: directory.to_owned(), all })
    }

    /// Registers a pod, in the place of one of the same attachment.
    ///
    /// # Errors
    /// If the file cannot be written; it is not registered then.
    pub fn add(&mut self, pod: Pod) -> io::Result<()> {
        let path = self.directory.join(pod.attachment.file());
        let unfinished = path.with_extension(UNFINISHED);
        fs::write(&unfinished, serde_json::to_vec(&pod)?)?;
        fs::rename(unfinished, path)?;
        self.all.insert(pod.attachment.clone(), pod);
        Ok(())
    }

    /// Forgets a pod, and tells whether there was one.
    ///
    /// # Errors
    /// If the file cannot be removed; it is still registered then.
    pub fn remove(&mut self, attachment: &Attachment) -> io::Result<bool> {
        match fs::remove_file(self.directory.join(attachment.file())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Ok(self.all.remove(attachment).is_some())
    }

    /// Forgets all pods of a network that are not among `valid`, and returns how many those were.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn retain(&mut self, network: &str, valid: &[Attachment]) -> io::Result<usize> {
        let is_stale = |found: &&Attachment| found.network == network && !valid.contains(found);
        let stale: Vec<_> = self.all.keys().filter(is_stale).cloned().collect();
        stale.iter().try_for_each(|attachment| self.remove(attachment).map(drop))?;
        Ok(stale.len())
    }

    /// Returns a pod.
    pub fn find(&self, attachment: &Attachment) -> Option<&Pod> {
        self.all.get(attachment)
    }

    /// Returns the addresses of all pods.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.all.values().flat_map(|pod| &pod.addresses).copied()
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }
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

    fn pod(network: &str, container: &str) -> Pod {
        let attachment = Attachment {
            network: network.to_owned(),
            container: container.to_owned(),
            ifname: "../../eth0".to_owned(),
        };
        let addresses = vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        Pod { attachment, addresses, namespace: Some("shop".to_owned()), name: None }
    }

    #[test]
    fn pods_outlive_who_registered_them() {
        let directory = Directory(std::env::temp_dir().join(format!("adit-pods-{}", std::process::id())));
        let mut pods = Pods::open(&directory.0).unwrap();
        let (one, two, other) = (pod("a", "one"), pod("a", "two"), pod("b", "one"));
        for pod in [&one, &two, &other, &one] {
            pods.add(pod.clone()).unwrap();
        }
        fs::write(directory.0.join("damaged"), "{").unwrap();
        // One that was never finished: the plugin was not answered.
        let unfinished = serde_json::to_vec(&pod("a", "three")).unwrap();
        fs::write(directory.0.join(pod("a", "three").attachment.file() + ".new"), unfinished).unwrap();
        let mut pods = Pods::open(&directory.0).unwrap();
        assert_eq!((pods.count(), pods.find(&one.attachment)), (3, Some(&one)));
        assert_eq!(pods.retain("a", std::slice::from_ref(&two.attachment)).unwrap(), 1);
        assert!(pods.remove(&other.attachment).unwrap() && !pods.remove(&other.attachment).unwrap());
        let pods = Pods::open(&directory.0).unwrap();
        assert_eq!((pods.count(), pods.find(&two.attachment)), (1, Some(&two)));
    }
}
