//! Whether the node can do it: it is looked at when the agent starts, and some peers are asked once they are programmed.

use std::time::Duration;

use super::{Agent, Known};
use crate::control::objects::Objects;
use crate::control::preflight::{self, Wanted};
use crate::control::settings::FOR_ALL;
use crate::sys::clock;

/// How long after other nodes have become peers some are asked whether they answer: they have to learn of this node as well.
const ASK_AFTER: Duration = Duration::from_secs(5);

impl Agent {
    /// Says what this node cannot do of what is wanted, as far as that is known, and was not said before.
    pub(super) fn check(&self) {
        let objects = match &self.known {
            Some(known) => &known.objects,
            None => {
                tracing::info!("the objects are not known yet: the node is checked for what is the default");
                &Objects::default()
            }
        };
        let mut wanted = self.wanted(objects);
        wanted.cluster = self.parts.source.reach();
        let config = self.known.as_ref().map(|known| known.objects.configs.contains_key(FOR_ALL));
        wanted.makes_config = self.parts.makes_config && config == Some(false);
        wanted.removes_taint = self.parts.startup_taint.is_some();
        self.log_preflight(wanted);
    }

    /// Has some of the peers asked, once, a while after all is programmed for the first time.
    pub(super) fn plan_to_ask(&mut self) {
        if self.parts.asks_others && !self.has_asked && self.may_ask().is_some() {
            self.ask_due.get_or_insert_with(|| clock::boottime() + ASK_AFTER);
        }
    }

    /// Says who of the peers does not answer, and to whom the way is too narrow.
    pub(super) fn ask_others(&mut self) {
        self.ask_due = None;
        // Otherwise it is planned anew.
        let Some(Known { objects, topology, .. }) = self.may_ask() else { return };
        let mut wanted = self.wanted(objects);
        wanted.ask(&self.own.name, |target| {
            let is_peer = topology.peers.contains_key(&target.public_key);
            let is_ready =
                objects.tunnels.get(&target.node).is_some_and(|tunnel| tunnel.is_ready != Some(false));
            is_peer && is_ready && target.inside.is_some()
        });
        tracing::debug!(peers = wanted.targets.len(), "peers are asked whether they answer");
        self.log_preflight(wanted);
        self.has_asked = true;
    }

    /// Returns what is known if that is all there is, and this node and others should be each other's peers.
    fn may_ask(&self) -> Option<&Known> {
        let known = self.known.as_ref().filter(|known| known.is_complete)?;
        let is_peer = known.topology.degraded.is_none() && !known.topology.peers.is_empty();
        (is_peer && self.is_answered == Some(true)).then_some(known)
    }

    /// Returns what objects say that this node is to do, and where.
    fn wanted(&self, objects: &Objects) -> Wanted {
        let mut wanted = Wanted::of(objects, Some(&self.own.name));
        if let Some(interface) = &self.parts.interface {
            wanted.settings.interface.clone_from(interface);
        }
        wanted.state = self.parts.store.directory().to_owned();
        wanted.sockets.clone_from(&self.parts.sockets);
        wanted
    }

    /// Has the node looked at beside the loop: who is asked may take his time, and nothing waits for it.
    fn log_preflight(&self, wanted: Wanted) {
        let checking = std::thread::Builder::new().name("preflight".to_owned());
        let told = preflight::Told::clone(&self.found_wrong);
        if let Err(error) = checking.spawn(move || preflight::log(&wanted, &told)) {
            tracing::warn!(%error, "the node cannot be checked");
        }
    }
}
