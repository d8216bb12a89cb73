//! adit: a userspace WireGuard data plane.
//!
//! # The house
//!
//! Imports point down, never up, never sideways between siblings; `floors.rs` reads the sources and fails on any other import.
//!
//! ```text
//! 4   main.rs · cli/ · benches · examples · fuzz    wire things together
//! 3   device/ · uapi/ · control/   (sim/: tests)    siblings; they never see each other
//! 2   wireguard/                                    the whitepaper: pure, no clock, no socket, no thread, no unsafe
//! 1   packet/ · config                              bytes · the narrow waist that every configuring client speaks
//! 0   crypto/ · sys/                                unsafe lives here and nowhere else
//! ```
//!
//! Sections of the whitepaper are cited as `[W] §x.y` at the line that obeys them.

#[expect(unsafe_code, reason = "floor 0: key material is wiped in place")]
pub mod crypto;
#[cfg(feature = "device")]
#[expect(unsafe_code, reason = "floor 0: Linux system calls")]
pub mod sys;

pub mod config;
pub mod packet;

pub mod wireguard;

#[cfg(feature = "device")]
pub mod cli;
#[cfg(feature = "device")]
pub mod control;
#[cfg(feature = "device")]
pub mod device;
#[cfg(any(test, fuzzing, feature = "sim"))]
pub mod sim;
#[cfg(feature = "device")]
pub mod uapi;

#[cfg(test)]
mod floors;
