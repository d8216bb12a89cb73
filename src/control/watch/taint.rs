//! The startup taint: it keeps pods from a new node until the node's agent is there to hold them.
//!
//! Whoever makes the node puts it there, by kubelet's `--register-with-taints` or a setting of the node pool. While it is not wanted any
//! more it is removed whenever the node has changed, whatever its effect. There is deliberately no way back: a node whose agent has left
//! keeps its pods, and the CNI plugin, which stays in the runtime's configuration, holds those that come.

use std::future::pending;

use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::cluster::FIELD_MANAGER;
use super::follow::{Pauses, answer};

/// A taint that a node is not to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taint {
    /// The node.
    pub(super) node: String,
    /// The key of the taint.
    pub(super) key: String,
}

/// Removes the taint that is not wanted, again whenever the node was touched, and tries until it is gone.
pub(super) async fn keep_off(client: Client, mut unwanted: watch::Receiver<Option<Taint>>, touched: &Notify) {
    let api = Api::all_with(client, &ApiResource::erase::<Node>(&()));
    let mut pauses = Pauses::new();
    let mut said = String::new();
    loop {
        let taint = unwanted.borrow_and_update().clone();
        let failed = match &taint {
            Some(taint) => remove(&api, taint).await.err(),
            None => None,
        };
        if let Some(error) = failed {
            // What goes on failing is said once.
            if error != said {
                tracing::warn!(error, "the startup taint cannot be removed yet");
                said = error;
            }
            pauses.next().await;
            continue;
        }
        pauses.reset();
        said.clear();
        tokio::select! {
            changed = unwanted.changed() => {
                if changed.is_err() {
                    return pending().await;
                }
            }
            () = touched.notified() => {}
        }
    }
}

async fn remove(api: &Api<DynamicObject>, taint: &Taint) -> Result<(), String> {
    let Some(node) = answer(api.get_opt(&taint.node)).await? else { return Ok(()) };
    let Some(taints) = without(&node.data, &taint.key) else { return Ok(()) };
    // The list is one field. If somebody else has changed it meanwhile, the version is another and this is refused: 409.
    let patch =
        json!({ "metadata": { "resourceVersion": node.resource_version() }, "spec": { "taints": taints } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    answer(api.patch(&taint.node, &params, &Patch::Merge(patch))).await?;
    tracing::info!(taint = taint.key, "pods may come: the startup taint is removed");
    Ok(())
}

/// Returns the taints of a node but those of a key; `None` if it has none of that.
fn without(node: &Value, key: &str) -> Option<Vec<Value>> {
    let taints = node.pointer("/spec/taints")?.as_array()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint["key"] != key).cloned().collect();
    (others.len() < taints.len()).then_some(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_taint_of_the_key_goes() {
        let taint = |key: &str, effect: &str| json!({ "key": key, "effect": effect, "timeAdded": "2026-01-01T00:00:00Z" });
        let others = [taint("a", "NoSchedule"), taint("b/not-ready", "NoExecute")];
        let own = ["NoSchedule", "NoExecute"].map(|effect| taint("not-ready", effect));
        let node = |taints: &[Value]| json!({ "spec": { "taints": taints } });
        let all = [&others[..1], &own, &others[1..]].concat();
        assert_eq!(without(&node(&all), "not-ready"), Some(others.to_vec()));
        assert_eq!(without(&node(&own), "not-ready"), Some(Vec::new()));
        for node in
            [node(&others), node(&[]), json!({ "spec": {} }), json!({}), json!({ "spec": { "taints": 1 } })]
        {
            assert_eq!(without(&node, "not-ready"), None, "{node}");
        }
    }
}
