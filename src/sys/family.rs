//! Which address families the kernel has.

use std::io;

use rustix::net::{AddressFamily, SocketType, socket};

use super::fault::{self, Call};

/// Tells whether the kernel has IPv6. One that was made without it has none, nor has one that was booted with `ipv6.disable=1` (`af_inet6.c`,
/// `inet6_init`); a module that nobody has needed so far is loaded for this. That IPv6 is switched off for interfaces is another matter.
pub fn has_ipv6() -> bool {
    let opened = fault::check(Call::SocketV6)
        .and_then(|()| Ok(socket(AddressFamily::INET6, SocketType::DGRAM, None)?));
    !matches!(opened, Err(error) if is_of_unknown_family(&error))
}

fn is_of_unknown_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
