//! Chained mode: another plugin has made the pod's network. This one sets the pod's MTU, and holds the pod until its traffic is protected.
//!
//! The host's end of a virtual cable gets the MTU as well: what is longer would be dropped on its way in without a word. A bridge's port is
//! left alone, since a bridge takes over the MTU of its narrowest one.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::agent;
use super::config::Config;
use super::error::{Code, Error};
use super::kernel::{Kernel, Link, Namespace};
use super::outcome::{Outcome, pass_on};
use super::request::{Attachment, Request};
use super::state::{Kept, State};
use super::warn;

/// Registers the pod, waits until it is protected, and sets its MTU.
///
/// # Errors
/// [`Code::TryAgain`] if it is not protected in time; [`Code::Exists`] if it was added already.
pub fn add(request: &Request, config: &Config) -> Result<Value, Error> {
    let attachment = request.attachment()?;
    let previous = config.previous()?;
    let outcome = Outcome::read(previous)?;
    let state = State::of(&config.state_directory);
    state.expect_none(attachment)?;
    let (mut kernel, link) = inside(request, attachment)?;
    let addresses: Vec<IpAddr> = outcome.ips.iter().map(|ip| ip.address.0).collect();
    let added = agent::add(config, request, attachment, &addresses)?;
    // What the network before it was made for may be less than what the tunnel takes.
    let mtu = config.mtu.or_else(|| added.mtu.map(|mtu| mtu.min(link.mtu)));
    let kept = Kept {
        network: config.network.clone(),
        attachment: attachment.clone(),
        mtu,
        old_mtu: mtu.map(|_| link.mtu),
        host: None,
    };
    let done = state.keep(&kept).and_then(|()| match mtu.filter(|mtu| *mtu != link.mtu) {
        Some(mtu) => {
            let done = kernel.set_mtu(link.index, mtu).and_then(|()| narrow(&link, mtu));
            done.map_err(|error| Error::io(format!("setting the MTU {mtu} of {}", attachment.ifname), error))
        }
        None => Ok(()),
    });
    if let Err(error) = done {
        // Whose it is, if somebody else has added it in the meantime.
        if error.code != Code::Exists {
            let _ = state.forget(attachment);
            forget(config, &state, attachment);
        }
        return Err(error);
    }
    Ok(pass_on(previous, config.version, &attachment.ifname, mtu.unwrap_or(link.mtu)))
}

/// Has the host's end of a virtual cable take nothing that the other end does not.
fn narrow(inner: &Link, mtu: u32) -> io::Result<()> {
    let Some(other) = inner.other.filter(|_| inner.is_veth) else { return Ok(()) };
    let mut kernel = Kernel::open()?;
    // The other end may be in a third namespace, and the index another link's here.
    let Ok(outer) = kernel.link_at(other) else { return Ok(()) };
    let is_end = outer.is_veth && outer.other == Some(inner.index) && outer.master.is_none();
    if is_end && outer.mtu > mtu { kernel.set_mtu(outer.index, mtu) } else { Ok(()) }
}

/// Undoes [`add`]: whatever of it is still there.
///
/// # Errors
/// If the state cannot be changed.
pub fn del(request: &Request, config: &Config) -> Result<(), Error> {
    let attachment = request.attachment()?;
    let state = State::of(&config.state_directory);
    if let Some(old_mtu) = state.find(attachment).and_then(|kept| kept.old_mtu)
        && let Ok((mut kernel, link)) = inside(request, attachment)
        && link.mtu != old_mtu
        && let Err(error) = kernel.set_mtu(link.index, old_mtu)
    {
        warn(Some(attachment), &format!("setting the MTU {old_mtu} again: {error}"));
    }
    forget(config, &state, attachment);
    state.forget(attachment)
}

/// Tells whether everything is still as the result says.
///
/// # Errors
/// [`Code::Changed`] names the first thing that is not.
pub fn check(request: &Request, config: &Config) -> Result<(), Error> {
    let attachment = request.attachment()?;
    let outcome = Outcome::read(config.previous()?)?;
    let kept = State::of(&config.state_directory).find(attachment);
    let kept = kept.ok_or_else(|| Error::new(Code::Changed, format!("{attachment} was not added")))?;
    let (mut kernel, link) = inside(request, attachment)?;
    verify(&mut kernel, &link, &outcome, attachment, kept.mtu)?;
    agent::check(config, attachment)
}

/// Forgets all attachments but those that are named.
///
/// # Errors
/// Names the last thing that failed; all others have been tried.
pub fn gc(config: &Config) -> Result<(), Error> {
    let state = State::of(&config.state_directory);
    let (stale, outcome) = disown_all(config, &state);
    stale.iter().fold(outcome, |outcome, kept| state.forget(&kept.attachment).and(outcome))
}

/// Tells the agent that all pods are gone but those that are named, or leaves word for it, and returns what was kept of them. Without a
/// list, as libcni's `cnitool` has none, none is: that would be every pod.
pub(crate) fn disown_all(config: &Config, state: &State) -> (Vec<Kept>, Result<(), Error>) {
    let Some(valid) = &config.valid else { return (Vec::new(), Ok(())) };
    let mut stale = state.all(&config.network);
    stale.retain(|kept| !valid.contains(&kept.attachment));
    let mut outcome = Ok(());
    if let Err(failed) = agent::gc(config, valid.iter()) {
        warn(None, &failed.to_string());
        for kept in &stale {
            outcome = state.leave_word(&config.network, &kept.attachment).and(outcome);
        }
    }
    (stale, outcome)
}

/// Tells whether pods can be added.
///
/// # Errors
/// [`Code::Unavailable`] or [`Code::UnavailableAndLimited`].
pub fn status(config: &Config) -> Result<(), Error> {
    agent::status(config)
}

/// Tells the agent that a pod is gone, or leaves word for it.
pub(crate) fn forget(config: &Config, state: &State, attachment: &Attachment) {
    let Err(failed) = agent::del(config, attachment) else { return };
    warn(Some(attachment), &failed.to_string());
    if let Err(error) = state.leave_word(&config.network, attachment) {
        warn(Some(attachment), &error.to_string());
    }
}

/// Opens the container's namespace.
///
/// # Errors
/// [`Code::Environment`] if it is the plugin's own; [`Code::Io`] if it is gone.
pub(crate) fn namespace(request: &Request) -> Result<Namespace, Error> {
    let path = request.namespace.as_deref().unwrap_or_else(|| Path::new(""));
    let failed = |error: io::Error| Error::io(format!("the namespace {}", path.display()), error);
    let namespace = Namespace::open(path).map_err(failed)?;
    if namespace.is_own().map_err(failed)? {
        return Err(Error::new(
            Code::Environment,
            format!("CNI_NETNS {} is that of the host", path.display()),
        ));
    }
    Ok(namespace)
}

/// Opens the container's namespace and finds its interface.
fn inside(request: &Request, attachment: &Attachment) -> Result<(Kernel, Link), Error> {
    let namespace = namespace(request)?;
    let mut kernel =
        Kernel::open_in(&namespace).map_err(|error| Error::io("entering the namespace", error))?;
    let link = kernel.link(&attachment.ifname);
    link.map(|link| (kernel, link))
        .map_err(|error| Error::io(format!("the interface {}", attachment.ifname), error))
}

/// Looks for what a result says of the container's interface.
///
/// # Errors
/// [`Code::Changed`] names the first thing that is not so.
pub(crate) fn verify(
    kernel: &mut Kernel,
    link: &Link,
    outcome: &Outcome,
    attachment: &Attachment,
    mtu: Option<u32>,
) -> Result<(), Error> {
    let ifname = &attachment.ifname;
    let changed = |text: String| Err(Error::new(Code::Changed, text));
    if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
        return changed(format!("the MTU of {ifname} is {} in place of {mtu}", link.mtu));
    }
    let addresses = kernel.addresses(link.index).map_err(|error| Error::io("listing addresses", error))?;
    for ip in outcome.ips.iter().filter(|ip| outcome.is_of(ip, ifname)) {
        // Some plugins put an address on the interface with the length of a single host.
        if !addresses.iter().any(|(addr, _)| *addr == ip.address.0) {
            return changed(format!("{ifname} lacks the address {}", ip.address.0));
        }
    }
    let routes = kernel.routes(link.index).map_err(|error| Error::io("listing routes", error))?;
    for wanted in &outcome.routes {
        let is_it = |found: &&super::outcome::Route| {
            found.destination == wanted.destination
                && (wanted.gateway.is_none() || found.gateway == wanted.gateway)
        };
        if !routes.iter().any(|found| is_it(&found)) {
            let (addr, len) = wanted.destination;
            return changed(format!("{ifname} lacks the route to {addr}/{len}"));
        }
    }
    Ok(())
}
