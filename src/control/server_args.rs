//! What k3s and RKE2 say of the pods' network: the node of each of their servers has an annotation with what the server was started with,
//! and what its configuration file says is among that. Pure.
//!
//! It counts on nodes with the label of the control plane: a kubelet may write its own node's annotations, but not that label
//! (the admission plugin `NodeRestriction`).

use std::collections::BTreeMap;

use super::objects::{Fault, PodNetwork};
use super::read::wide_block;
use crate::config::Prefix;

/// The label of nodes of the control plane.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The annotations: k3s's and RKE2's.
const NODE_ARGS: [&str; 2] = ["k3s.io/node-args", "rke2.io/node-args"];

/// The argument that names the pods' network.
pub const CLUSTER_CIDR: &str = "--cluster-cidr";

/// The pods' network where no argument names one, and the one of a cluster that has IPv6 alone.
const DEFAULTS: [&str; 2] = ["10.42.0.0/16", "fd00:42::/56"];

/// The most arguments that are looked at.
const ARGS_MAX: usize = 512;

/// Returns what a node says by its labels and annotations, where it has these blocks; nothing if it is no server's.
pub fn pod_network(
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    blocks: &[Prefix],
) -> PodNetwork {
    let mut network = PodNetwork::default();
    let text = NODE_ARGS.iter().find_map(|name| annotations.get(*name));
    let Some(text) = text.filter(|_| labels.contains_key(CONTROL_PLANE)) else { return network };
    let mut fault = |field: String, reason: String| network.faults.push(Fault { field, reason });
    let args: Vec<String> = match serde_json::from_str(text) {
        Ok(args) => args,
        Err(error) => {
            fault("node-args".to_owned(), error.to_string());
            return network;
        }
    };
    // Those that are no servers have the label only by mistake.
    if args.first().is_none_or(|word| word != "server") {
        return network;
    }
    let mut named: Vec<_> = named(&args).collect();
    if named.is_empty() {
        let is_v6_alone = !blocks.is_empty() && blocks.iter().all(|block| block.addr().is_ipv6());
        named.push(DEFAULTS[usize::from(is_v6_alone)]);
    }
    for (at, text) in named.into_iter().enumerate() {
        match wide_block(text, "a cluster's pods have") {
            Ok(prefix) => network.prefixes.push(prefix),
            Err(reason) => fault(format!("{CLUSTER_CIDR}[{at}]"), reason),
        }
    }
    network
}

/// Returns labels and annotations of which [`pod_network`] makes these prefixes again.
pub fn metadata(prefixes: &[Prefix]) -> [BTreeMap<&'static str, String>; 2] {
    if prefixes.is_empty() {
        return [BTreeMap::new(), BTreeMap::new()];
    }
    let args = prefixes.iter().map(|prefix| format!("{CLUSTER_CIDR}={prefix}"));
    let args: Vec<_> = std::iter::once("server".to_owned()).chain(args).collect();
    let text = serde_json::Value::from(args).to_string();
    [[(CONTROL_PLANE, "true".to_owned())].into(), [(NODE_ARGS[0], text)].into()]
}

/// Returns each prefix that arguments name: as `--cluster-cidr=A,B` or as `--cluster-cidr A`, also several times.
fn named(args: &[String]) -> impl Iterator<Item = &str> {
    let next = args.iter().skip(1).map(Some).chain([None]);
    let values = args.iter().zip(next).take(ARGS_MAX).filter_map(|(arg, next)| {
        let rest = arg.strip_prefix(CLUSTER_CIDR)?;
        if rest.is_empty() { next.map(String::as_str) } else { rest.strip_prefix('=') }
    });
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(args: &str, blocks: &[&str]) -> (String, String) {
        let annotations = map(&[("k3s.io/node-args", args)]);
        let blocks: Vec<_> = blocks.iter().map(|text| text.parse().unwrap()).collect();
        let network = pod_network(&map(&[(CONTROL_PLANE, "true")]), &annotations, &blocks);
        let prefixes: Vec<_> = network.prefixes.iter().map(ToString::to_string).collect();
        let faults: Vec<_> = network.faults.iter().map(ToString::to_string).collect();
        (prefixes.join(" "), faults.join("; "))
    }

    #[test]
    fn a_servers_arguments_name_the_network_or_leave_it_at_its_default() {
        let good = |text: &str| (text.to_owned(), String::new());
        assert_eq!(of(r#"["server"]"#, &["10.42.0.0/24"]), good("10.42.0.0/16"));
        assert_eq!(of(r#"["server"]"#, &[]), good("10.42.0.0/16"));
        assert_eq!(of(r#"["server"]"#, &["fd00:42::/64"]), good("fd00:42::/56"));
        let both = good("10.52.0.0/16 fd00:52::/56");
        assert_eq!(of(r#"["server","--cluster-cidr=10.52.0.0/16,fd00:52::/56"]"#, &[]), both);
        let args =
            r#"["server","--tls-san","a","--cluster-cidr","10.52.0.0/16","--cluster-cidr","fd00:52::/56"]"#;
        assert_eq!(of(args, &[]), both);
        // Another argument that begins alike, and one whose value is missing.
        assert_eq!(
            of(r#"["server","--cluster-cidrs=10.9.0.0/16","--cluster-cidr"]"#, &[]),
            good("10.42.0.0/16")
        );
    }

    #[test]
    fn what_is_no_servers_says_nothing_and_what_cannot_be_read_is_named() {
        let nothing = (String::new(), String::new());
        assert_eq!(of(r#"["agent","--cluster-cidr=10.52.0.0/16"]"#, &[]), nothing);
        assert_eq!(of("[]", &[]), nothing);
        let wide = "--cluster-cidr[1]: a cluster's pods have no block wider than /8";
        let args = r#"["server","--cluster-cidr=10.52.0.0/16,0.0.0.0/0"]"#;
        assert_eq!(of(args, &[]), ("10.52.0.0/16".to_owned(), wide.to_owned()));
        for text in ["", "server", "{}", r#"["server",7]"#] {
            let (prefixes, fault) = of(text, &[]);
            assert!(prefixes.is_empty() && fault.starts_with("node-args: "), "{text}: {fault}");
        }
        // A kubelet can write the annotation, but not the label.
        let annotations = map(&[("k3s.io/node-args", r#"["server","--cluster-cidr=10.0.0.0/8"]"#)]);
        assert_eq!(pod_network(&map(&[]), &annotations, &[]), PodNetwork::default());
        let rke2 = map(&[("rke2.io/node-args", r#"["server"]"#)]);
        let network = pod_network(&map(&[(CONTROL_PLANE, "true")]), &rke2, &[]);
        assert_eq!(network.prefixes, ["10.42.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn what_was_read_is_written_so_that_it_is_read_again() {
        for texts in [&[][..], &["10.42.0.0/16"], &["10.52.0.0/16", "fd00:52::/56"]] {
            let prefixes: Vec<Prefix> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let owned = |map: BTreeMap<&str, String>| {
                map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            };
            let [labels, annotations] = metadata(&prefixes).map(owned);
            assert_eq!(pod_network(&labels, &annotations, &[]).prefixes, prefixes);
        }
    }
}
