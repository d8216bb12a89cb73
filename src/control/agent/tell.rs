//! What others are told of what was found: the log, the cluster, the CNI plugin, and who reads metrics.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use crate::control::cni::{Cni, Facts};
use crate::control::happening::Findings;
use crate::control::metrics::Watched;
use crate::control::metrics::server::{Server, places};
use crate::control::settings::NO_CATCH_ALL;
use crate::control::status::{self, Outcome};
use crate::control::topology::Topology;
use crate::sys::clock;

/// The time between two attempts to serve metrics where they cannot be served.
const SERVE_RETRY: Duration = Duration::from_secs(1);

impl Agent {
    /// Logs what is otherwise than it was.
    pub(super) fn tell(&mut self, topology: &Topology) {
        for (object, fault) in topology.faults.difference(&self.said) {
            tracing::warn!(object, field = fault.field, reason = fault.reason, "a field is not obeyed");
        }
        self.said.clone_from(&topology.faults);
        let before = self.known.as_ref().map(|known| &*known.topology);
        if before.is_none_or(|before| before.degraded != topology.degraded)
            && let Some(degraded) = &topology.degraded
        {
            tracing::error!(%degraded, "this node is not what it should be");
        }
        if before.is_none_or(|before| before.waits_for != topology.waits_for)
            && !topology.waits_for.is_empty()
        {
            tracing::info!(
                nodes = status::named(&topology.waits_for),
                "Strict waits for nodes that are not ready"
            );
        }
        let lacks_catch_all = topology.settings.lacks_catch_all();
        if lacks_catch_all && before.is_none_or(|before| !before.settings.lacks_catch_all()) {
            tracing::warn!("{NO_CATCH_ALL}");
        }
        if topology.lacks_ipv6 && before.is_none_or(|before| !before.lacks_ipv6) {
            tracing::warn!("{}", status::NO_IPV6);
        }
        if before.is_none_or(|before| before.orphans != topology.orphans) && !topology.orphans.is_empty() {
            let prefixes = topology.orphans.len();
            tracing::warn!(prefixes, first = %topology.orphans[0], "what was other nodes' pods' and is nobody's is dropped");
        }
        for (node, how) in &topology.not_encrypted {
            if before.is_none_or(|before| before.not_encrypted.get(node) != Some(how)) {
                let (reason, dropped) = (how.reason, how.is_dropped);
                if reason.is_wanted() {
                    tracing::info!(node, %reason, "a node is not talked to through the tunnel, as is wanted");
                } else {
                    tracing::warn!(node, %reason, dropped, "a node is not talked to through the tunnel");
                }
            }
        }
    }

    /// Has metrics served where they are wanted. That they cannot be is no reason to leave anything else undone; it is tried again
    /// soon: in an update of the cluster's pods the one that leaves has the port until it is gone.
    pub(super) fn serve_metrics(&mut self) {
        let settings = self.known.as_ref().map(|known| &known.topology.settings);
        let wanted = self.parts.metrics.as_ref().or_else(|| settings?.metrics_address.as_ref());
        if wanted == self.served.as_ref().map(|(place, _)| place)
            && self.served.as_ref().is_none_or(|(_, server)| server.is_some())
        {
            return;
        }
        let wanted = wanted.cloned();
        self.serve_due = None;
        // A server that moves to another address of the same port is in its own way.
        let before = self.served.take().map(|(place, _)| place);
        let Some(place) = wanted else { return };
        let server = places(&place).map_err(io::Error::other).and_then(|places| {
            let watched = Arc::new(Watched::new(Arc::clone(&self.progress))?);
            Server::start(&places, Arc::new(move |path: &str| watched.answer(path)))
        });
        match &server {
            Ok(_) => tracing::info!(place, "metrics are served"),
            // What goes on failing is said once.
            Err(error) if before.as_ref() != Some(&place) => {
                tracing::error!(place, %error, "metrics cannot be served");
            }
            Err(_) => {}
        }
        self.serve_due = server.is_err().then(|| clock::boottime() + SERVE_RETRY);
        self.served = Some((place, server.ok()));
    }

    /// Tells who answers the CNI plugin what was found.
    pub(super) fn tell_cni(&mut self, failure: Option<&String>) {
        let (Some(cni), Some(known)) = (&self.cni, &self.known) else { return };
        let settings = &known.topology.settings;
        let link = self.netlink.link(&settings.interface).ok();
        let published = known.objects.tunnels.get(&self.own.name).map(|tunnel| &tunnel.pod_prefixes[..]);
        cni.tell(Facts {
            mtu: settings.mtu.or_else(|| link.map(|link| link.mtu)),
            has_data_plane: self.is_answered == Some(true),
            ..Facts::of(&known.topology, published.unwrap_or_default(), failure)
        });
    }

    /// Has the taint removed that keeps pods away, while those that come are held until they are protected.
    pub(super) fn let_pods_come(&mut self) {
        let holds = self.cni.as_ref().is_some_and(Cni::holds_pods);
        let taint = self.parts.startup_taint.as_deref().filter(|_| holds);
        self.parts.source.want_untainted(&self.own.name, taint);
    }

    /// Tells the cluster what was found, if that is something new and its time has come.
    pub(super) fn report(&mut self, failure: Option<&String>) {
        let known = self.known.as_ref().filter(|known| known.is_complete);
        let known = known.filter(|known| known.objects.tunnels.contains_key(&self.own.name));
        let Some(known) = known else { return self.telling.forget() };
        let healer = self.parts.healer.report();
        let is_programmed = healer.is_guarded && healer.is_routed;
        let outcome = Outcome { sessions: self.sessions, failure: failure.cloned(), is_programmed };
        let status = status::status(&known.topology, &outcome, clock::realtime());
        let findings = Findings {
            is_down: self.sessions.is_none(),
            is_strict: status::strict(&known.topology, is_programmed).0,
            lost: self.lost.clone(),
            ..Findings::of(&known.topology)
        };
        for happening in findings.since(&self.findings) {
            self.parts.source.tell(&self.own.name, happening);
        }
        self.findings = findings;
        if let Some(status) = self.telling.found(status, clock::boottime()) {
            self.parts.source.report(&self.own.name, status);
        }
    }
}
