//! The objects that the nodes' agents follow: a directory of YAML files, as two hosts without a cluster have it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::lab::{Node, PODS};
use crate::control::api::Mode;

/// The directory.
pub(super) struct Objects(PathBuf);

impl Objects {
    /// Makes it in `directory`, with a `TunnelConfig` by which nothing is encrypted.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let this = Self(directory.join("objects"));
        fs::create_dir(&this.0)?;
        this.set_mode(Mode::Off)?;
        Ok(this)
    }

    /// Returns the directory.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Says how much is encrypted, to all nodes.
    pub(super) fn set_mode(&self, mode: Mode) -> io::Result<()> {
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\n\
            kind: TunnelConfig\n\
            metadata: {{name: default}}\n\
            spec:\n\
            \x20 mode: \"{}\"\n\
            \x20 backend: Userspace\n\
            \x20 clusterCIDRs: {}\n",
            mode.name(),
            list(&PODS.map(prefix))
        );
        self.write("config", &text)
    }

    /// Says what a node would say of itself.
    pub(super) fn add(&self, node: &Node) -> io::Result<()> {
        let text = format!(
            "apiVersion: adit.dev/v1alpha1\n\
            kind: NodeTunnel\n\
            metadata: {{name: {}}}\n\
            spec:\n\
            \x20 keys: [{{publicKey: \"{}\", state: Active}}]\n\
            \x20 endpoints: [{{address: \"{}\", port: {}}}]\n\
            \x20 podPrefixes: {}\n\
            \x20 nodeAddresses: {}\n",
            node.name(),
            BASE64.encode(node.key.public().as_bytes()),
            node.endpoint().ip(),
            node.endpoint().port(),
            list(&node.pods().map(prefix)),
            list(&[node.endpoint().ip().to_string()])
        );
        self.write(&node.name(), &text)
    }

    /// Writes a file beside its place and renames it, so that nobody reads half of it.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let file = self.0.join(name).with_extension("yaml");
        let unfinished = file.with_extension("new");
        fs::write(&unfinished, text)?;
        fs::rename(unfinished, file)
    }
}

fn prefix((addr, len): (IpAddr, u8)) -> String {
    format!("{addr}/{len}")
}

/// Writes a list in one line; an IPv6 address has to be quoted in it.
fn list(items: &[String]) -> String {
    format!("{items:?}")
}
