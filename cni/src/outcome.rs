//! Results, in the form of each version, [CNI] §5.
//!
//! Up to 0.4.0 an address names its version; from 1.1.0 on an interface tells its MTU.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::error::{Code, Error};
use super::version::Version;

/// An address with the length of its prefix.
pub type Prefix = (IpAddr, u8);

/// What a plugin has done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Interfaces, in the container and outside.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<Ip>,
    /// Routes of the container, in its main table: others are left to whoever made them.
    pub routes: Vec<Route>,
    /// What the container is to know of name servers, as it was said.
    pub dns: Option<Value>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<String>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// The container's namespace, by its path; `None` for one of the host.
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// The address, with the length of its prefix.
    pub address: Prefix,
    /// The way out.
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Prefix,
    /// By which way.
    pub gateway: Option<IpAddr>,
}

impl Outcome {
    /// Reads a result of any version that is supported.
    ///
    /// # Errors
    /// [`Code::Decode`] names what is of another form.
    pub fn read(value: &Value) -> Result<Self, Error> {
        let list = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(&list[..]),
            Some(_) => Err(invalid(key)),
        };
        if !value.is_object() {
            return Err(invalid("it"));
        }
        Ok(Self {
            interfaces: read_each(list("interfaces")?, "interfaces", interface)?,
            ips: read_each(list("ips")?, "ips", ip)?,
            routes: read_each(list("routes")?, "routes", route)?.into_iter().flatten().collect(),
            dns: value.get("dns").filter(|dns| !dns.is_null()).cloned(),
        })
    }

    /// Returns the result in the form of `version`.
    pub fn print(&self, version: Version) -> Value {
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut printed = json!({ "name": interface.name });
            put(&mut printed, "mac", interface.mac.as_deref());
            put(&mut printed, "mtu", interface.mtu.filter(|_| version >= Version::V1_1_0));
            put(&mut printed, "sandbox", interface.sandbox.as_deref());
            printed
        });
        let ips = self.ips.iter().map(|ip| {
            let mut printed = json!({ "address": print_prefix(ip.address) });
            if version <= Version::V0_4_0 {
                printed["version"] = if ip.address.0.is_ipv4() { "4" } else { "6" }.into();
            }
            put(&mut printed, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
            put(&mut printed, "interface", ip.interface);
            printed
        });
        let routes = self.routes.iter().map(|route| {
            let mut printed = json!({ "dst": print_prefix(route.destination) });
            put(&mut printed, "gw", route.gateway.map(|gateway| gateway.to_string()));
            printed
        });
        json!({
            "cniVersion": version.name(),
            "interfaces": interfaces.collect::<Vec<_>>(),
            "ips": ips.collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "dns": self.dns.clone().unwrap_or_else(|| Map::new().into()),
        })
    }

    /// Tells whether an address is one of the container's interface `ifname`; one that names no interface may be.
    pub fn is_of(&self, ip: &Ip, ifname: &str) -> bool {
        let interface = ip.interface.and_then(|at| self.interfaces.get(at));
        interface.is_none_or(|interface| interface.sandbox.is_some() && interface.name == ifname)
    }
}

/// Returns the result of the plugin before this one as this one passes it on: with the MTU of the container's interface, where the
/// version has a place for it, and everything else as it was said.
pub fn pass_on(previous: &Value, version: Version, ifname: &str, mtu: u32) -> Value {
    let mut passed = previous.clone();
    passed["cniVersion"] = version.name().into();
    if version < Version::V1_1_0 {
        return passed;
    }
    let interfaces = passed.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        let is_inside = interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        if is_inside && interface["name"] == ifname {
            interface["mtu"] = mtu.into();
        }
    }
    passed
}

fn put(into: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        into[key] = value.into();
    }
}

fn invalid(what: &str) -> Error {
    Error::new(Code::Decode, format!("a result: {what} is not of the form that it should have"))
}

fn read_each<T>(list: &[Value], what: &str, read: fn(&Value) -> Option<T>) -> Result<Vec<T>, Error> {
    let each = list.iter().enumerate();
    each.map(|(at, value)| read(value).ok_or_else(|| invalid(&format!("{what}[{at}]")))).collect()
}

/// Returns a text that may be missing; `None` if there is something else in its place.
fn text(value: &Value, key: &str) -> Option<Option<String>> {
    match value.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => None,
    }
}

fn address(value: &Value, key: &str) -> Option<Option<IpAddr>> {
    match text(value, key)? {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

fn interface(value: &Value) -> Option<Interface> {
    let mtu = match value.get("mtu") {
        None | Some(Value::Null) => None,
        Some(mtu) => Some(u32::try_from(mtu.as_u64()?).ok()?),
    };
    Some(Interface {
        name: text(value, "name")??,
        mac: text(value, "mac")?,
        mtu,
        sandbox: text(value, "sandbox")?,
    })
}

fn ip(value: &Value) -> Option<Ip> {
    let interface = match value.get("interface") {
        None | Some(Value::Null) => None,
        // Go's plugins say -1 for none.
        Some(at) => usize::try_from(at.as_i64()?).ok(),
    };
    Some(Ip {
        address: prefix(value.get("address")?.as_str()?)?,
        gateway: address(value, "gateway")?,
        interface,
    })
}

/// Returns a route; the inner `None` is one of another table than the main one.
fn route(value: &Value) -> Option<Option<Route>> {
    let is_main = match value.get("table") {
        None | Some(Value::Null) => true,
        // linux/rtnetlink.h, RT_TABLE_MAIN
        Some(table) => table.as_u64()? == 254,
    };
    let route = Route { destination: prefix(value.get("dst")?.as_str()?)?, gateway: address(value, "gw")? };
    Some(is_main.then_some(route))
}

fn prefix(text: &str) -> Option<Prefix> {
    let (addr, len) = text.split_once('/')?;
    let addr: IpAddr = addr.parse().ok()?;
    let len = len.parse().ok()?;
    (len <= host_len(addr)).then_some((addr, len))
}

fn print_prefix((addr, len): Prefix) -> String {
    format!("{addr}/{len}")
}

/// Returns the length of the prefix that holds only `addr`.
pub fn host_len(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: &str) -> Value {
        let mut value = json!({
            "cniVersion": version,
            "interfaces": [
                { "name": "veth1", "mac": "02:00:00:00:00:01" },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a" },
            ],
            "ips": [
                { "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1 },
                { "address": "fd00::5/64", "interface": 1 },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00::1" }],
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        match Version::of(version).unwrap() {
            Version::V0_3_1 | Version::V0_4_0 => {
                value["ips"][0]["version"] = "4".into();
                value["ips"][1]["version"] = "6".into();
            }
            Version::V1_0_0 => {}
            Version::V1_1_0 => value["interfaces"][1]["mtu"] = 1420.into(),
        }
        value
    }

    #[test]
    fn a_result_of_any_version_becomes_one_of_any_other() {
        for from in Version::ALL {
            let mut outcome = Outcome::read(&sample(from.name())).unwrap();
            assert!(outcome.is_of(&outcome.ips[0], "eth0") && !outcome.is_of(&outcome.ips[0], "eth1"));
            outcome.interfaces[1].mtu = Some(1420);
            for to in Version::ALL {
                assert_eq!(outcome.print(to), sample(to.name()), "{from} to {to}");
            }
        }
    }

    #[test]
    fn what_is_passed_on_is_what_came_with_the_mtu_in_its_place() {
        for version in Version::ALL {
            let mut given = sample(version.name());
            given["somebodys"] = json!([1]);
            let passed = pass_on(&given, version, "eth0", 1400);
            if version == Version::V1_1_0 {
                given["interfaces"][1]["mtu"] = 1400.into();
            }
            assert_eq!(passed, given);
        }
    }

    #[test]
    fn routes_of_other_tables_are_left_to_others() {
        let value = json!({ "routes": [{ "dst": "::/0", "table": 100 }, { "dst": "::/0", "table": 254 }, { "dst": "::/0" }] });
        assert_eq!(Outcome::read(&value).unwrap().routes.len(), 2);
    }

    #[test]
    fn another_form_is_refused_by_its_place() {
        for (value, place) in [
            (json!([]), "it"),
            (json!({ "ips": {} }), "ips"),
            (json!({ "ips": [{ "address": "10.1.0.5" }] }), "ips[0]"),
            (json!({ "ips": [{ "address": "10.1.0.5/33" }] }), "ips[0]"),
            (json!({ "routes": [{ "dst": "::/0" }, { "dst": 7 }] }), "routes[1]"),
            (json!({ "interfaces": [{ "mac": "x" }] }), "interfaces[0]"),
        ] {
            let error = Outcome::read(&value).unwrap_err();
            assert!(error.code == Code::Decode && error.text.contains(&format!(": {place} is")), "{error}");
        }
        assert_eq!(
            Outcome::read(&json!({ "ips": [{ "address": "::1/128", "interface": -1 }] })).unwrap().ips[0]
                .interface,
            None
        );
    }
}
