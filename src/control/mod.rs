//! The control loop: what a cluster says of its nodes → peers, allowed IPs and routes of this one.
//!
//! ```text
//! watch ─→ objects ─→ topology ─→ reconcile ─→ steps ─→ data plane (uapi_client) · interface, routes, firewall (heal)
//!   I/O     read        pure        pure                      I/O                     I/O
//! ```
//!
//! It is driven by levels: a lost event costs a look at everything, never a wrong state, and the order of events makes no difference to
//! where they lead.
//!
//! - [`api`]: the custom resources and their schema.
//! - [`objects`], [`read`]: what is known of the cluster; one bad field costs only itself.
//! - [`settings`], [`topology`]: objects → what this node should do. Pure.
//! - [`pod_network`], [`server_args`]: the prefixes of all pods where nobody has named them. Pure.
//! - [`reconcile`]: what is and what should be → steps in their order. Pure.
//! - [`belief`]: what is while nobody has asked. Pure.
//! - [`translated`]: connections that a new way breaks.
//! - [`leaving`]: what waits until it is removed. Pure.
//! - [`given_up`]: what other nodes have just given up, and somebody may take. Pure.
//! - [`remembered`]: what other nodes' pods had, and nobody may claim any more. Pure.
//! - [`plan`]: what the kernel is to be told about routes. Data.
//! - [`extend`]: what the routes are until every list is read. Pure.
//! - [`route`], [`firewall`], [`link`]: what leads the kernel from what it has to what the plan says, and the taking of those steps.
//! - [`mtu`]: what the ways to the peers leave for a packet inside.
//! - [`heal`]: keeps the kernel so, whoever changes it.
//! - [`preflight`]: whether the node can do it at all.
//! - [`session`]: which peers can be talked to. Pure.
//! - [`metrics`]: what the agent lets itself be watched by.
//! - [`inspect`]: what `adit status` and `adit peers` show.
//! - [`publish`]: what this node says of itself. Pure.
//! - [`status`]: what its agent tells the cluster. Pure.
//! - [`telling`]: and when. Pure.
//! - [`happening`]: what people are told of that has happened. Pure.
//! - [`cni`]: pods that are added, for the CNI plugin.
//! - [`keep`]: writes them there beside the loop.
//! - [`store`]: the private key, and the objects as last known, on disk.
//! - [`data_plane`]: the one that is driven: the kernel's, or
//! - [`uapi_client`]: any other, by its configuration socket.
//! - [`watch`]: where objects come from.
//! - [`agent`]: the loop itself.

pub mod agent;
pub mod api;
pub mod belief;
mod blocks;
pub mod cni;
pub mod data_plane;
pub mod extend;
pub mod failed;
pub mod firewall;
pub mod given_up;
pub mod happening;
pub mod heal;
#[cfg(test)]
mod history;
pub mod inspect;
pub mod keep;
pub mod leaving;
pub mod link;
pub mod metrics;
pub mod mtu;
pub mod objects;
#[cfg(test)]
mod oracle;
pub mod plan;
pub mod pod_network;
pub mod preflight;
pub mod publish;
mod ranges;
pub mod read;
pub mod reconcile;
pub mod remembered;
pub mod route;
pub mod server_args;
pub mod session;
pub mod settings;
pub mod status;
pub mod store;
pub mod telling;
pub mod topology;
pub mod translated;
pub mod uapi_client;
pub mod watch;
