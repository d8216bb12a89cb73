//! A pod whose address is in no block of its node, on a real API server: the cluster knows of it only once it has its network, and the other
//! nodes are to know of it before.

use serde_json::json;

use super::need_plugins;
use super::runtime::{Pod, Runtime};
use super::setup::Lab;
use crate::control::plans;
use crate::support::tunnel::Program;
use crate::support::{SOON, wait_until};

#[test]
fn a_pod_that_is_held_is_published_and_one_that_is_gone_is_not() {
    need_plugins!();
    let mut lab = Lab::new(2);
    let Some(plane) = plans::start(&lab.mesh, "{mode: Strict, podAddresses: Pods}") else { return };
    let kubeconfig = plane.kubeconfig();
    for number in [0, 1] {
        lab.mesh.nodes[number].start_data_plane(Program::Adit);
        lab.start_agent(number, &[("KUBECONFIG", kubeconfig.to_str().unwrap())]);
    }
    lab.wait_until_ready(0);
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.7.0.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": lab.path("leases0"),
    });
    let mut runtime = Runtime::of("1.0.0", &[json!({ "type": "ptp", "ipam": ipam }), lab.chained()]);
    let said = || plane.try_kubectl(&["get", "nodetunnel", "node1", "-o", "jsonpath={.spec.podPrefixes}"]).1;
    let (host, pod) = (&lab.node().namespace, Pod::new());
    runtime.add(host, &pod).unwrap();
    assert_eq!(said(), r#"["10.244.1.0/24","fd00:244:1::/64","10.7.0.2/32"]"#);
    wait_until("an answer from a pod of the other node", SOON, || {
        pod.namespace.succeeds("ping -n -c 1 -W 1 10.244.2.1")
    });
    runtime.del(host, &pod).unwrap();
    wait_until("the blocks alone", SOON, || said() == r#"["10.244.1.0/24","fd00:244:1::/64"]"#);
}
