//! The nodes of the cluster: what each says of itself, put beside what the cluster says of it.

use std::collections::HashMap;

use crate::control::objects::{Node, Objects, Tunnel};
use crate::crypto::x25519::PublicKey;

/// A node that says something of itself, or that the cluster knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) tunnel: Option<&'a Tunnel>,
    pub(super) node: Option<&'a Node>,
}

/// All nodes that count, in the order of their names.
#[derive(Debug)]
pub(super) struct Members<'a> {
    pub(super) all: Vec<Member<'a>>,
    /// The names that only a `NodeTunnel` has, where the cluster's own `Node`s are known: nothing that these say counts.
    pub(super) strays: Vec<&'a str>,
    /// The places in `all` of those that say something of themselves, the oldest first.
    pub(super) by_age: Vec<usize>,
}

impl<'a> Members<'a> {
    /// Puts the objects of one name together.
    pub(super) fn of(objects: &'a Objects, own: &str) -> Self {
        let mut all = Vec::with_capacity(objects.tunnels.len().max(objects.nodes.len()));
        let mut strays = Vec::new();
        let silent = |(name, node): (&'a String, _)| Member { name, tunnel: None, node: Some(node) };
        let mut nodes = objects.nodes.iter().map(|(name, node)| (name, &**node)).peekable();
        for (name, tunnel) in objects.tunnels.iter() {
            while let Some(before) = nodes.next_if(|(other, _)| *other < name) {
                all.push(silent(before));
            }
            let node = nodes.next_if(|(other, _)| *other == name).map(|(_, node)| node);
            if node.is_none() && !objects.is_of_cluster(name, own) {
                strays.push(name.as_str());
                continue;
            }
            all.push(Member { name, tunnel: Some(&**tunnel), node });
        }
        all.extend(nodes.map(silent));
        // They stand by name, and stay so among those of one age.
        let speaking = all.iter().enumerate();
        let mut ages: Vec<_> =
            speaking.filter_map(|(at, member)| Some((&member.tunnel?.created, at))).collect();
        ages.sort_by_key(|(created, _)| *created);
        let by_age = ages.into_iter().map(|(_, at)| at).collect();
        Self { all, strays, by_age }
    }

    /// Returns the place of a node.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.all.binary_search_by_key(&name, |member| member.name).ok()
    }

    /// Returns which node each key belongs to: the oldest of those that have it.
    pub(super) fn key_owners(&self) -> HashMap<PublicKey, &'a str> {
        let mut owners = HashMap::with_capacity(self.by_age.len());
        for member in self.by_age.iter().map(|at| &self.all[*at]) {
            for key in member.tunnel.into_iter().flat_map(|tunnel| &tunnel.keys) {
                owners.entry(*key).or_insert(member.name);
            }
        }
        owners
    }
}
