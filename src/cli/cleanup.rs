//! `adit agent --cleanup`: takes away all that agents have made here, but for their state, in which the node's key is.

use super::args::AgentArgs;
use crate::control::cni;
use crate::control::data_plane;
use crate::control::heal;
use crate::control::mtu;
use crate::control::objects::Objects;
use crate::control::preflight::Wanted;
use crate::control::read;
use crate::control::settings::Settings;
use crate::control::store::{Store, Unusable};
use crate::control::topology;
use crate::crypto::x25519::PrivateKey;

/// Removes what an agent leaves behind: the CNI plugin first, so that no pod waits for an agent that will not come.
///
/// # Errors
/// Names all that cannot be removed, and why; everything has been tried.
#[expect(clippy::print_stderr, reason = "what stays is said to whoever wants it gone")]
pub(super) fn run(args: &AgentArgs) -> Result<(), String> {
    let mut failures = Vec::new();
    match args.cni.options().map(|options| cni::cleanup(&options)) {
        Some(Ok(true)) => {
            eprintln!("adit: the CNI plugin's program stays: pods are left that were started with it")
        }
        Some(Err((path, error))) => failures.push(format!("{}: {error}", path.display())),
        Some(Ok(false)) | None => {}
    }
    // A state that cannot be read is no reason to leave anything.
    let state = &args.places.state;
    let mut or_nothing = |error: Unusable| failures.push(error.to_string());
    let key = Store::private_key_in(state).map_err(&mut or_nothing).ok().flatten();
    let kept = Store::snapshot_in(state).map_err(&mut or_nothing).ok().flatten();
    let objects = kept.map(|kept| read::objects(&kept.objects)).unwrap_or_default();
    let settings = settings(&objects, args.node_name.as_deref(), key.as_ref());
    let interface = args.places.interface.as_ref().unwrap_or(&settings.interface);

    let closed = heal::cleanup(&topology::no_routes(&settings));
    failures.extend(closed.err().map(|error| error.to_string()));
    failures.extend(data_plane::remove(interface, key.as_ref()).err());
    let forgotten = mtu::remove_note(&args.run);
    failures.extend(forgotten.err().map(|error| format!("{}: {error}", args.run.display())));
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// Returns what was wanted of this node when the objects were kept. It is the one that was named, or else the one with this key.
fn settings(objects: &Objects, name: Option<&str>, key: Option<&PrivateKey>) -> Settings {
    let own = key.map(PrivateKey::public);
    let with_key = || objects.tunnels.iter().find(|(_, tunnel)| own.is_some() && tunnel.active == own);
    let name = name.or_else(|| with_key().map(|(name, _)| name.as_str()));
    Wanted::of(objects, name).settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_the_one_that_was_named_or_has_the_key() {
        let key = PrivateKey::new([9; 32]);
        let public = key.public();
        let tunnel = |name: &str, key: &str| {
            let keys = serde_json::json!([{ "publicKey": key, "state": "Active" }]);
            serde_json::json!({ "apiVersion": "adit.dev/v1alpha1", "kind": "NodeTunnel",
                "metadata": { "name": name }, "spec": { "keys": keys } })
        };
        let config = |name: &str, interface: &str| {
            serde_json::json!({ "apiVersion": "adit.dev/v1alpha1", "kind": "TunnelConfig",
                "metadata": { "name": name }, "spec": { "interfaceName": interface } })
        };
        use base64::Engine;
        let public = base64::engine::general_purpose::STANDARD.encode(public.as_bytes());
        let objects = read::objects(&[
            tunnel("a", &public),
            tunnel("b", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="),
            tunnel("c", "none"),
            config("default", "all0"),
            config("node.a", "a0"),
            config("node.b", "b0"),
            config("node.c", "c0"),
        ]);
        let interface =
            |name: Option<&str>, key: Option<&PrivateKey>| settings(&objects, name, key).interface;
        let other = PrivateKey::new([8; 32]);
        assert_eq!(interface(Some("b"), Some(&key)), "b0");
        assert_eq!(interface(None, Some(&key)), "a0");
        assert_eq!(interface(None, Some(&other)), "all0");
        assert_eq!(interface(None, None), "all0");
        assert_eq!(settings(&Objects::default(), None, None).interface, "adit0");
    }
}
