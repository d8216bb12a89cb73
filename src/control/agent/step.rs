//! What is done at a look: the data plane is read, and it, the routes and the firewall are brought to what the objects say.

use std::collections::BTreeSet;
use std::convert::identity;
use std::time::Duration;

use super::{Agent, Known};
use crate::config::Snapshot;
use crate::control::api::{Backend, HostTraffic, Mode};
use crate::control::data_plane::DataPlane;
use crate::control::leaving::Leaving;
use crate::control::link::Link;
use crate::control::plan::Kind;
use crate::control::reconcile::{Occasion, RouteChange, Step, reconcile, without_data_plane};
use crate::control::route::Router;
use crate::control::topology::Topology;
use crate::control::uapi_client::Failed;
use crate::control::{belief, cni, heal, metrics, session};
use crate::sys::clock;

/// How long after a look that has not read what the data plane has it is read.
const READ_AFTER: Duration = Duration::from_secs(1);
/// How long nobody has to be there, where anybody may be the data plane, until the kernel is asked to be it: whoever is started with the
/// agent is there by then.
const STAND_IN_AFTER: Duration = Duration::from_secs(10);

impl Agent {
    pub(super) fn step(&mut self) -> Result<(), String> {
        let Some(client) = self.client() else { return Ok(()) };
        let listener = client.listener();
        // Whatever fails from here on has it read the next time.
        let believed = self.believed.take().filter(|(who, _)| Some(*who) == listener);
        let is_read = believed.is_none();
        let mut snapshot = match believed {
            Some((_, snapshot)) => {
                self.read_due.get_or_insert_with(|| clock::boottime() + READ_AFTER);
                snapshot
            }
            None => self.read(&client)?,
        };
        // Where they are believed to be was looked at when they were read.
        if is_read && self.look_at_ways(Some(&snapshot)) {
            self.publish();
        }
        let Some(known) = &self.known else { return Ok(()) };
        if self.is_answered.replace(true) != Some(true) {
            self.missing = Some(match client {
                DataPlane::Kernel(_) => Duration::ZERO,
                DataPlane::Socket(_) => Duration::MAX,
            });
            metrics::lock(&self.progress).client = Some(client.clone());
            tracing::info!(data_plane = %client, peers = snapshot.peers.len(), "the data plane answers");
        }
        if is_read {
            self.sessions = Some(session::count(&snapshot.peers, clock::realtime()));
            let peers = &known.topology.peers;
            let lost = self.silence.look(&snapshot, clock::realtime()).iter();
            self.lost = lost.filter_map(|key| Some(peers.get(key)?.node.clone())).collect();
        }
        let (is_complete, is_periodic) = (known.is_complete, self.is_periodic);
        let occasion = Occasion { is_complete, is_periodic, now: clock::realtime(), mtu: self.mtu };
        let plan = reconcile(&snapshot, &known.topology, &self.parts.private_key, &self.endpoints, occasion);
        let mut edited = 0;
        let mut is_followed = true;
        let mut ready = None;
        let mut programmed = Ok(());
        for step in &plan.steps {
            match step {
                Step::Configure(edits) => {
                    if let Err(error) = client.apply(edits) {
                        return Err(self.program_without(&error, true).unwrap_or_else(identity));
                    }
                    is_followed &= belief::follow(&mut snapshot, edits);
                    edited += edits.len();
                }
                // Made with the routes and before them, but what fails of it does not keep these from being made.
                Step::Link(link) => ready = Some(link.clone()),
                Step::Route(change) => match self.program(&known.topology, ready.take(), change) {
                    // Whatever else is missing, and for however long: who is gone is listened to no more.
                    Err(error) if self.parts.healer.report().is_routed => programmed = Err(error),
                    done => done?,
                },
                Step::Greet(edits) => {
                    client.apply(edits).map_err(|error| error.to_string())?;
                    is_followed = false;
                }
                Step::Forget(edits) => {
                    let now = clock::boottime();
                    let due = self.leaving.due(edits, now);
                    if !due.is_empty() {
                        client.apply(&due).map_err(|error| error.to_string())?;
                        is_followed &= belief::follow(&mut snapshot, &due);
                    }
                    self.leaving.done(now);
                    edited += due.len();
                }
            }
        }
        if edited > 0 {
            let peers = known.topology.peers.len();
            tracing::info!(edited, peers, is_complete, "the data plane is in step");
        }
        if !plan.steps.iter().any(|step| matches!(step, Step::Forget(_))) {
            self.leaving = Leaving::default();
        }
        self.endpoints = plan.endpoints;
        programmed?;
        self.believed = listener.filter(|_| is_followed).map(|who| (who, snapshot));
        self.forget_translated();
        Ok(())
    }

    /// Reads what the data plane has.
    fn read(&mut self, client: &DataPlane) -> Result<Snapshot, String> {
        (self.sessions, self.read_due) = (None, None);
        client.ensure().and_then(|_| client.snapshot()).map_err(|error| {
            self.stand_in(client);
            self.without_data_plane(&error)
        })
    }

    /// Has the kernel be the data plane, where that may be anybody and nobody is there. That its interface is there is told by the kernel.
    fn stand_in(&mut self, client: &DataPlane) {
        let settings = self.known.as_ref().map(|known| &known.topology.settings);
        if settings.is_none_or(|settings| settings.backend != Backend::Auto) {
            self.missing = None;
            return;
        }
        let now = clock::boottime();
        if now.saturating_sub(*self.missing.get_or_insert(now)) < STAND_IN_AFTER {
            return;
        }
        match client.stand_in() {
            Ok(true) => tracing::info!("nobody is the data plane: the kernel is, from here on"),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the kernel cannot be the data plane"),
        }
    }

    /// Lets connections begin anew whose packets are led into the tunnel from here on, if their answers would be dropped.
    fn forget_translated(&mut self) {
        let Some(Known { topology, .. }) = &self.known else { return };
        let settings = &topology.settings;
        let is_concerned = settings.mode == Mode::Strict && settings.host_traffic != HostTraffic::Encrypt;
        let entries =
            topology.routes.entries.iter().filter(|entry| is_concerned && entry.kind == Kind::Unicast);
        let now: BTreeSet<_> = entries.map(|entry| entry.prefix).collect();
        let new = now.difference(&self.tunnelled).copied().collect::<BTreeSet<_>>();
        self.tunnelled = now;
        if new.is_empty() {
            return;
        }
        let own = self.own.links.iter().map(|(addr, _)| *addr);
        self.forgetter.forget(new, own.filter(|addr| !topology.addresses.contains(addr)).collect());
    }

    /// Does what the objects say all the same, and closes what would lead into nothing.
    fn without_data_plane(&mut self, error: &Failed) -> String {
        let was_there = std::mem::replace(&mut self.is_there, error.is_of_somebody());
        if self.is_answered == Some(false) && self.is_there == was_there {
            return error.to_string();
        }
        let told = self.program_without(error, self.is_there);
        self.is_answered = told.is_ok().then_some(false);
        told.unwrap_or_else(identity)
    }

    /// Makes routes and firewall what they should be without the data plane's doing, and returns why it does nothing; as an error, together with
    /// why they are not.
    fn program_without(&self, error: &Failed, is_there: bool) -> Result<String, String> {
        let Some(Known { topology, is_complete, .. }) = &self.known else { return Ok(error.to_string()) };
        let change = without_data_plane(topology, *is_complete, is_there);
        let done = change.map_or(Ok(()), |change| self.program(topology, None, &change));
        done.map(|()| error.to_string()).map_err(|reason| format!("{error}; and the routes: {reason}"))
    }

    /// Makes routes and firewall what they should be, and has them kept so.
    fn program(&self, topology: &Topology, link: Option<Link>, change: &RouteChange) -> Result<(), String> {
        let (routes, is_whole) = match change {
            RouteChange::Whole(routes) => (routes.clone(), true),
            RouteChange::Addition(extension) => {
                let router = Router::open().map_err(|error| error.to_string());
                let there = router?.there(&extension.routes).map_err(|error| error.to_string())?;
                (extension.onto(&there), false)
            }
        };
        // Behind another network the translation is that one's, in main mode it is ours whatever is encrypted.
        let is_main = self.parts.cni.as_ref().is_some_and(|cni| cni.mode == cni::Mode::Main);
        let desired = heal::Desired::of(topology, routes, is_whole, is_main);
        let done = self.parts.healer.set(heal::Desired { link, ..desired });
        done.map(drop).map_err(|error| error.to_string())
    }
}
