//! Linux system calls. Has never heard of WireGuard.
//!
//! What `rustix` and `socket2` offer is used; the rest is called through `libc`, one unsafe operation a block.

#[cfg(test)]
mod allocated;
mod calls;
pub mod clock;
mod cmsg;
pub mod echo;
pub mod family;
mod fault;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod offload;
pub mod packet;
pub mod poll;
pub mod process;
pub mod service;
pub mod signal;
mod sockaddr;
mod sockopt;
pub mod thread;
pub mod tun;
pub mod udp;
pub mod wake;
pub mod watch;

#[cfg(test)]
pub(crate) use allocated::{allocated, left_behind};
#[cfg(test)]
pub(crate) use fault::tests::with_faults;
