//! The control loop: `adit agent` beside a data plane on every node, told by a directory of objects who the others are.

mod client;
mod mesh;
mod nodes;
