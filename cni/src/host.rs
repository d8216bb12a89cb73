//! Main mode: the pod's network itself.
//!
//! ```text
//! pod   eth0   10.244.1.5/32, fd00::5/128; default by 169.254.1.1, fe80::1
//!        │     veth pair
//! node  aditN  169.254.1.1/32 (scope host), fe80::1/128; routes to the pod's addresses
//! ```
//!
//! Every pod has the same way out, so that no address of the pods' range is spent on it. It is an address of the host's end: proxy ARP
//! would answer only on a host that has a route to that address by another interface. With the scope of a host it is no source of
//! packets of the host itself.
//!
//! The pod is registered, and what protects it in place, before it has an interface at all.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::agent;
use super::chained::{self, forget, namespace, verify};
use super::config::Config;
use super::delegate::Delegate;
use super::error::{Code, Error};
use super::kernel::{Kernel, Namespace, Scope};
use super::outcome::{Interface, Ip, Outcome, Route, host_len};
use super::request::{Attachment, Command, Request};
use super::state::{Kept, State};

/// The ways out of a pod.
const GATEWAY_4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Makes a pod's network.
///
/// # Errors
/// [`Code::TryAgain`] if the pod is not protected in time; [`Code::Exists`] if it has an interface of this name. Nothing is left then.
pub fn add(request: &Request, config: &Config) -> Result<Value, Error> {
    let attachment = request.attachment()?;
    let state = State::of(&config.state_directory);
    state.expect_none(attachment)?;
    let namespace = namespace(request)?;
    let mut inside =
        Kernel::open_in(&namespace).map_err(|error| Error::io("entering the namespace", error))?;
    if inside.link(&attachment.ifname).is_ok() {
        return Err(Error::new(Code::Exists, format!("there is an interface {} already", attachment.ifname)));
    }
    let delegate = Delegate::find(request, config)?;
    let mut outcome = delegate.add()?;
    let host = host_name(attachment);
    let done = attach(request, config, &state, &namespace, &mut inside, &host, &mut outcome);
    if let Err(error) = done {
        // What is there belongs to another call that came first.
        if error.code != Code::Exists {
            let _ = detach(config, &state, attachment);
            let _ = delegate.del(None);
        }
        return Err(error);
    }
    Ok(outcome.print(config.version))
}

/// Registers the pod, makes its interface, and completes the result.
fn attach(
    request: &Request,
    config: &Config,
    state: &State,
    namespace: &Namespace,
    inside: &mut Kernel,
    host: &str,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let attachment = request.attachment()?;
    let addresses: Vec<IpAddr> = outcome.ips.iter().map(|ip| ip.address.0).collect();
    if addresses.is_empty() {
        return Err(Error::new(Code::Config, "ipam: no address was given"));
    }
    let mtu = config.mtu.or(agent::add(config, request, attachment, &addresses)?.mtu);
    state.keep(&Kept {
        network: config.network.clone(),
        attachment: attachment.clone(),
        mtu,
        old_mtu: None,
        host: Some(host.to_owned()),
    })?;
    let ifname = &attachment.ifname;
    let mut outside = Kernel::open().map_err(|error| Error::io("netlink", error))?;
    outside
        .add_veth(host, ifname, namespace, mtu)
        .map_err(|error| Error::io(format!("making the interface {ifname}"), error))?;
    let failed = |error| Error::io(format!("setting the interface {host} up"), error);
    let outer = outside.link(host).map_err(failed)?;
    forward(host, &addresses).map_err(failed)?;
    for (gateway, scope) in [(GATEWAY_4, Scope::Host), (GATEWAY_6, Scope::Link)] {
        if addresses.iter().any(|addr| addr.is_ipv4() == gateway.is_ipv4()) {
            outside.add_address(outer.index, gateway, scope).map_err(failed)?;
        }
    }
    outside.set_up(outer.index).map_err(failed)?;
    let failed = |error| Error::io(format!("setting the interface {ifname} up"), error);
    let inner = inside.link(ifname).map_err(failed)?;
    let loopback = inside.link("lo").map_err(failed)?;
    inside.set_up(loopback.index).map_err(failed)?;
    for addr in &addresses {
        inside.add_address(inner.index, *addr, Scope::Universe).map_err(failed)?;
    }
    inside.set_up(inner.index).map_err(failed)?;
    complete(outcome, &addresses);
    for route in routes(outcome) {
        let (addr, len) = route.destination;
        let failed = |error| Error::io(format!("adding the pod's route to {addr}/{len}"), error);
        inside.add_route(inner.index, &route).map_err(failed)?;
    }
    for addr in &addresses {
        let route = Route { destination: (*addr, host_len(*addr)), gateway: None };
        let failed = |error| Error::io(format!("adding the host's route to {addr}"), error);
        outside.add_route(outer.index, &route).map_err(failed)?;
    }
    let sandbox = request.namespace.as_ref().map(|path| path.display().to_string());
    outcome.interfaces = vec![
        Interface { name: host.to_owned(), mac: Some(outer.mac), mtu: Some(outer.mtu), sandbox: None },
        Interface { name: ifname.clone(), mac: Some(inner.mac), mtu: Some(inner.mtu), sandbox },
    ];
    if outcome.dns.is_none() {
        outcome.dns = config.raw.get("dns").filter(|dns| dns.is_object()).cloned();
    }
    Ok(())
}

/// Gives the addresses their form, and the default routes that nobody named.
fn complete(outcome: &mut Outcome, addresses: &[IpAddr]) {
    outcome.ips = addresses
        .iter()
        .map(|addr| Ip {
            address: (*addr, host_len(*addr)),
            gateway: Some(gateway(*addr)),
            interface: Some(1),
        })
        .collect();
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    // Whatever way the addresses' plugin knows, there is but one.
    outcome.routes.iter_mut().for_each(|route| route.gateway = Some(gateway(route.destination.0)));
    for any in any.into_iter().filter(|any| addresses.iter().any(|addr| addr.is_ipv4() == any.is_ipv4())) {
        if !outcome.routes.iter().any(|route| route.destination == (any, 0)) {
            outcome.routes.push(Route { destination: (any, 0), gateway: Some(gateway(any)) });
        }
    }
}

/// Returns the pod's routes: first those to the way out, which is on the link.
fn routes(outcome: &Outcome) -> Vec<Route> {
    let is_of = |family: IpAddr| outcome.ips.iter().any(|ip| ip.address.0.is_ipv4() == family.is_ipv4());
    let on_link = [GATEWAY_4, GATEWAY_6].into_iter().filter(|gateway| is_of(*gateway));
    // IPv6 has a route to all of fe80::/64 with the interface.
    let on_link =
        on_link.filter(IpAddr::is_ipv4).map(|gateway| Route { destination: (gateway, 32), gateway: None });
    on_link.chain(outcome.routes.iter().filter(|route| is_of(route.destination.0)).cloned()).collect()
}

fn gateway(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { GATEWAY_4 } else { GATEWAY_6 }
}

/// Lets the host pass packets on, and has its end's link-local address used at once.
fn forward(host: &str, addresses: &[IpAddr]) -> io::Result<()> {
    let set = |path: String, value: &str| {
        // One that is set already need not be writable.
        let is_set = fs::read_to_string(&path).is_ok_and(|found| found.trim() == value);
        if is_set { Ok(()) } else { fs::write(path, value) }
    };
    if addresses.iter().any(IpAddr::is_ipv4) {
        set("/proc/sys/net/ipv4/ip_forward".to_owned(), "1")?;
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        set("/proc/sys/net/ipv6/conf/all/forwarding".to_owned(), "1")?;
        set(format!("/proc/sys/net/ipv6/conf/{host}/accept_dad"), "0")?;
    }
    Ok(())
}

/// Undoes [`add`]: whatever of it is still there.
///
/// # Errors
/// If the addresses cannot be released: the runtime is to try again.
pub fn del(request: &Request, config: &Config) -> Result<(), Error> {
    let attachment = request.attachment()?;
    unplug(attachment)?;
    // Whoever is given the addresses next finds that nobody has them any more, and no route to them.
    Delegate::find(request, config)?.del(None)?;
    disown(config, &State::of(&config.state_directory), attachment)
}

/// Removes a pod's interface, and has it forgotten.
fn detach(config: &Config, state: &State, attachment: &Attachment) -> Result<(), Error> {
    unplug(attachment)?;
    disown(config, state, attachment)
}

/// Removes a pod's interface, if it is there.
fn unplug(attachment: &Attachment) -> Result<(), Error> {
    let host = host_name(attachment);
    match Kernel::open().and_then(|mut kernel| kernel.remove_link(&host)) {
        // With the container its namespace may have gone, and both ends with that.
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Err(Error::io(format!("removing the interface {host}"), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Has a pod forgotten.
fn disown(config: &Config, state: &State, attachment: &Attachment) -> Result<(), Error> {
    forget(config, state, attachment);
    state.forget(attachment)
}

/// Tells whether everything is still as the result says.
///
/// # Errors
/// [`Code::Changed`] names the first thing that is not.
pub fn check(request: &Request, config: &Config) -> Result<(), Error> {
    chained::check(request, config)?;
    let attachment = request.attachment()?;
    let outcome = Outcome::read(config.previous()?)?;
    let host = host_name(attachment);
    let mut kernel = Kernel::open().map_err(|error| Error::io("netlink", error))?;
    let link = kernel.link(&host);
    let link = link.map_err(|error| Error::new(Code::Changed, format!("the interface {host}: {error}")))?;
    let routes = outcome.ips.iter().filter(|ip| outcome.is_of(ip, &attachment.ifname));
    let routes =
        routes.map(|ip| Route { destination: (ip.address.0, host_len(ip.address.0)), gateway: None });
    let expected = Outcome { routes: routes.collect(), ..Outcome::default() };
    let on_host = Attachment { ifname: host, ..attachment.clone() };
    verify(&mut kernel, &link, &expected, &on_host, None)?;
    Delegate::find(request, config)?.check()
}

/// Removes all pods' interfaces but those that are named, and releases their addresses.
///
/// # Errors
/// Names the last thing that failed; all others have been tried.
pub fn gc(request: &Request, config: &Config) -> Result<(), Error> {
    let delegate = Delegate::find(request, config)?;
    let state = State::of(&config.state_directory);
    let (stale, mut outcome) = chained::disown_all(config, &state);
    for Kept { attachment, .. } in stale {
        let released = unplug(&attachment).and_then(|()| delegate.del(Some(&attachment)));
        // What is not released is kept, and the next call tries again.
        outcome = released.and_then(|()| state.forget(&attachment)).and(outcome);
    }
    delegate.pass_on(Command::Gc).and(outcome)
}

/// Tells whether pods can be added.
///
/// # Errors
/// [`Code::Unavailable`] or [`Code::UnavailableAndLimited`]; those of the addresses' plugin.
pub fn status(request: &Request, config: &Config) -> Result<(), Error> {
    chained::status(config)?;
    let unavailable = |error: Error| Error::new(Code::Unavailable, error.text);
    Delegate::find(request, config).map_err(unavailable)?.pass_on(Command::Status)
}

/// Returns the name of the host's end: it follows from the attachment's, so that DEL needs nothing else.
fn host_name(attachment: &Attachment) -> String {
    // FNV-1a: names are spread by it, and who chooses names like another's is root.
    let hash = attachment.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("adit{:011x}", hash >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_has_a_name_of_its_own_that_a_link_can_have() {
        let names: std::collections::BTreeSet<_> = (0..1000)
            .map(|number| host_name(&Attachment::new(&format!("container{number}"), "eth0").unwrap()))
            .collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15 && name.starts_with("adit")));
    }

    #[test]
    fn a_pod_has_one_way_out_a_family() {
        let addresses: Vec<IpAddr> = ["10.1.0.5", "fd00::5"].map(|text| text.parse().unwrap()).into();
        let named = Route { destination: ("0.0.0.0".parse().unwrap(), 0), gateway: "10.1.0.1".parse().ok() };
        let mut outcome = Outcome { routes: vec![named], ..Outcome::default() };
        complete(&mut outcome, &addresses);
        assert_eq!(outcome.ips.iter().map(|ip| ip.address.1).collect::<Vec<_>>(), [32, 128]);
        let ways: Vec<_> =
            routes(&outcome).iter().map(|route| (route.destination.1, route.gateway)).collect();
        assert_eq!(ways, [(32, None), (0, Some(GATEWAY_4)), (0, Some(GATEWAY_6))]);
        // Routes of a family that it has no address of are left out.
        complete(&mut outcome, &addresses[..1]);
        assert_eq!(routes(&outcome).len(), 2);
    }
}
