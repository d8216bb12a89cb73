//! The built program on real TUN devices in network namespaces, beside real peers and the real `wg`.
//!
//! One test binary, so that tests that wait for time do so at the same time: `cargo test --test system`. Needs root; a test whose
//! programs are missing says so in one line. `support/` is what they stand on.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking, and say why")]

mod batching;
mod cli;
#[cfg(feature = "control")]
mod clusters;
#[cfg(feature = "control")]
mod cni;
#[cfg(feature = "control")]
mod control;
#[cfg(feature = "control")]
mod demo;
mod examples;
mod hostile;
mod interop;
mod kernel_peer;
mod netns;
mod overlay;
#[cfg(feature = "control")]
mod preflight;
mod robust;
mod routes;
mod support;
#[cfg(feature = "control")]
mod systemd;
mod tiers;
mod uapi;
