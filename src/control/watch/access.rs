//! What an agent does in the cluster, and whether it may: the API server is asked (SelfSubjectAccessReview), which everybody may.

use std::fmt;
use std::io;
use std::path::PathBuf;

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::cluster::configuration;
use super::follow::answer;
use crate::control::read::KUBEADM;

/// How the cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// By a kubeconfig file.
    Kubeconfig(PathBuf),
    /// As a pod of it.
    Pod,
}

/// Something that an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deed {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    /// Empty for all objects.
    name: &'static str,
    /// Empty for objects without a namespace, and for those of all namespaces.
    namespace: &'static str,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, subresource, name, namespace } = self;
        write!(f, "{verb} {resource}")?;
        for (before, word) in [("/", subresource), (".", group), ("/", name), (" in ", namespace)] {
            if !word.is_empty() {
                write!(f, "{before}{word}")?;
            }
        }
        Ok(())
    }
}

impl Deed {
    /// Tells whether the agent does not do its work without it: what kubeadm says is as good where it is said in the TunnelConfig.
    pub fn is_needed(&self) -> bool {
        (self.namespace, self.name) != KUBEADM
    }
}

/// What an agent does that not every one does.
#[derive(Debug, Clone, Copy, Default)]
pub struct With {
    /// It follows the pods of its node.
    pub pods: bool,
    /// It removes a taint from its node.
    pub taint: bool,
    /// It makes the `TunnelConfig` for all nodes where there is none.
    pub config: bool,
    /// It reads kubeadm's configuration for want of the prefixes of all pods.
    pub kubeadm: bool,
}

/// Group, resource, subresource, name, namespace and verbs.
type Deeds = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static [&'static str]);

/// Returns all that an agent does.
pub fn deeds(with: With) -> impl Iterator<Item = Deed> {
    const ADIT: &str = "adit.dev";
    const ALL: [Deeds; 6] = [
        (ADIT, "nodetunnels", "", "", "", &["get", "list", "watch", "create", "patch"]),
        (ADIT, "nodetunnels", "status", "", "", &["patch"]),
        (ADIT, "tunnelconfigs", "", "", "", &["list", "watch"]),
        ("", "nodes", "", "", "", &["get", "list", "watch"]),
        ("discovery.k8s.io", "endpointslices", "", "", "default", &["list", "watch"]),
        ("events.k8s.io", "events", "", "", "default", &["create", "patch"]),
    ];
    const PODS: Deeds = ("", "pods", "", "", "", &["list", "watch"]);
    const TAINT: Deeds = ("", "nodes", "", "", "", &["patch"]);
    const CONFIG: Deeds = (ADIT, "tunnelconfigs", "", "", "", &["get", "create"]);
    const OF_KUBEADM: Deeds = ("", "configmaps", "", KUBEADM.1, KUBEADM.0, &["list", "watch"]);
    let more = [(with.pods, PODS), (with.taint, TAINT), (with.config, CONFIG), (with.kubeadm, OF_KUBEADM)];
    let more = more.into_iter().filter_map(|(is_done, deeds)| is_done.then_some(deeds));
    ALL.into_iter().chain(more).flat_map(|(group, resource, subresource, name, namespace, verbs)| {
        verbs.iter().map(move |verb| Deed { verb, group, resource, subresource, name, namespace })
    })
}

/// Asks the API server, and returns what an agent does and may not do. It waits for the answers, half a minute at most.
///
/// # Errors
/// If the API server cannot be asked.
pub fn refused(reach: &Reach, with: With) -> io::Result<Vec<Deed>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let kubeconfig = match reach {
            Reach::Kubeconfig(path) => Some(path.as_path()),
            Reach::Pod => None,
        };
        let client = Client::try_from(configuration(kubeconfig).await?).map_err(io::Error::other)?;
        let api: Api<SelfSubjectAccessReview> = Api::all(client);
        let answers = join_all(deeds(with).map(async |deed| (deed, is_allowed(&api, deed).await))).await;
        let mut refused = Vec::new();
        for (deed, is_allowed) in answers {
            if !is_allowed.map_err(io::Error::other)? {
                refused.push(deed);
            }
        }
        Ok(refused)
    })
}

async fn is_allowed(api: &Api<SelfSubjectAccessReview>, deed: Deed) -> Result<bool, String> {
    let text = |word: &str| Some(word.to_owned()).filter(|word| !word.is_empty());
    let attributes = ResourceAttributes {
        verb: text(deed.verb),
        group: text(deed.group),
        resource: text(deed.resource),
        subresource: text(deed.subresource),
        name: text(deed.name),
        namespace: text(deed.namespace),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let review = answer(api.create(&PostParams::default(), &review)).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeds_are_named_as_kubectl_auth_names_them() {
        let all = With { pods: true, taint: true, config: true, kubeadm: true };
        let names: Vec<_> = deeds(all).map(|deed| deed.to_string()).collect();
        for name in [
            "patch nodetunnels/status.adit.dev",
            "list nodes",
            "watch endpointslices.discovery.k8s.io in default",
            "list pods",
            "patch nodes",
            "create tunnelconfigs.adit.dev",
            "list configmaps/kubeadm-config in kube-system",
        ] {
            assert!(names.iter().any(|other| other == name), "{name} is not in {names:?}");
        }
        let optional: Vec<_> = deeds(all).filter(|deed| !deed.is_needed()).map(|deed| deed.verb).collect();
        assert_eq!(optional, ["list", "watch"]);
        let names: Vec<_> = deeds(With::default()).map(|deed| deed.to_string()).collect();
        for name in ["list pods", "patch nodes", "create tunnelconfigs.adit.dev"] {
            assert!(!names.iter().any(|other| other == name), "{name} is in {names:?}");
        }
        assert!(deeds(With::default()).all(|deed| deed.is_needed()));
    }
}
