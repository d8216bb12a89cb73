//! What is wanted of one node: the `TunnelConfig`s that are for it, laid over each other, with defaults where none says anything.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::api::{
    Backend, HostTraffic, Mode, OnAgentUnavailable, PodAddresses, PostQuantum, Scope, StrictGate,
    TunnelConfigSpec,
};
use super::metrics::server::places;
use super::objects::{Config, Fault, Objects};
use super::pod_network::Found;
use super::read::wide_block;
use crate::config::{NoPrefix, Prefix};
use crate::sys::netlink::nftables::Chain;

/// The name of the `TunnelConfig` that is for all nodes.
pub const FOR_ALL: &str = "default";

/// What is said of Strict without a catch-all.
pub const NO_CATCH_ALL: &str =
    "no catch-all: name clusterCIDRs; addresses of pods that no node has claimed go in clear";

/// Routing table and mark, unless others are asked for. The mark has no bit of those that kube-proxy (0xc000), Calico (0xffff0000) and
/// Cilium (0x0f00) use.
pub const MARK: u32 = 0x20ad;

/// What is wanted of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How much is encrypted.
    pub mode: Mode,
    /// Whose data plane is used.
    pub backend: Backend,
    /// When Strict takes effect.
    pub strict_gate: StrictGate,
    /// The prefixes of all pods; `None` for those that nodes name.
    pub cluster_prefixes: Option<Vec<Prefix>>,
    /// What was found of them where nobody has named them.
    pub found: Found,
    /// What a node says of its pods' addresses.
    pub pod_addresses: PodAddresses,
    /// The UDP port of the data plane.
    pub listen_port: u16,
    /// Others' chains in which that port is opened.
    pub open_port_in: Vec<Chain>,
    /// The tunnel's interface.
    pub interface: String,
    /// The interface's MTU in bytes; `None` for what the ways to the peers leave.
    pub mtu: Option<u32>,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: u16,
    /// What is done with traffic to node addresses.
    pub host_traffic: HostTraffic,
    /// Destinations that never need the tunnel.
    pub exempt: Vec<Prefix>,
    /// Whether the API server's addresses are among them.
    pub exempt_api_server: bool,
    /// Which nodes are talked to through the tunnel.
    pub scope: Scope,
    /// The priority of the routing rule.
    pub rule_priority: u32,
    /// The number of the routing table; the next one holds routes for pods alone.
    pub table: u32,
    /// The mark of the data plane's own datagrams.
    pub fwmark: u32,
    /// Where metrics are served, as `ADDRESS:PORT` or `:PORT`; `None` for nowhere.
    pub metrics_address: Option<String>,
    /// Whether peers have metrics of their own.
    pub metrics_per_peer: bool,
    /// How many of them at most.
    pub metrics_max_peers: u32,
    /// What the CNI plugin does with a new pod while no agent answers.
    pub on_agent_unavailable: OnAgentUnavailable,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            backend: Backend::default(),
            strict_gate: StrictGate::default(),
            cluster_prefixes: None,
            found: Found::default(),
            pod_addresses: PodAddresses::default(),
            listen_port: 51820,
            open_port_in: Vec::new(),
            interface: "adit0".to_owned(),
            mtu: None,
            persistent_keepalive: 0,
            host_traffic: HostTraffic::default(),
            exempt: Vec::new(),
            exempt_api_server: true,
            scope: Scope::default(),
            rule_priority: 99,
            table: MARK,
            fwmark: MARK,
            metrics_address: None,
            metrics_per_peer: true,
            metrics_max_peers: 500,
            on_agent_unavailable: OnAgentUnavailable::default(),
        }
    }
}

impl Settings {
    /// Returns what is wanted of the node `name` with these labels, and adds what is not obeyed to `faults`, by `Kind/name` of the object.
    ///
    /// `default` comes first, then what a selector matches in the order of names, then `node.NAME`: the last to say something has it.
    pub fn of(
        objects: &Objects,
        name: &str,
        labels: &BTreeMap<String, String>,
        faults: &mut Vec<(String, Fault)>,
    ) -> Self {
        let own = format!("node.{name}");
        let general = objects.configs.get_key_value(FOR_ALL);
        let selected = objects
            .configs
            .iter()
            .filter(|&(other, config)| *other != own && other != "default" && selects(&config.spec, labels));
        let mut settings = Self::default();
        for (object, config) in general.into_iter().chain(selected).chain(objects.configs.get_key_value(&own))
        {
            let mut found = settings.overlay(config);
            found.extend(config.faults.iter().cloned());
            faults.extend(found.into_iter().map(|fault| (format!("TunnelConfig/{object}"), fault)));
        }
        if settings.cluster_prefixes.is_none() {
            settings.found = Found::of(objects, name, settings.pod_addresses, faults);
        }
        settings
    }

    /// Returns the prefixes of all pods, named or found: in Strict, what of them is nobody's is dropped.
    pub fn catch_all(&self) -> &[Prefix] {
        self.cluster_prefixes.as_ref().unwrap_or(&self.found.prefixes)
    }

    /// Returns the catch-all and who says so, where nobody has named it.
    pub fn found_catch_all(&self) -> Option<String> {
        let prefixes: Vec<_> = self.found.prefixes.iter().map(ToString::to_string).collect();
        (!prefixes.is_empty()).then(|| format!("{} (by {})", prefixes.join(", "), self.found.by))
    }

    /// Tells whether Strict drops no more than what nodes have claimed: nobody has named the prefixes of all pods, nor were they found.
    pub fn lacks_catch_all(&self) -> bool {
        let is_whole = self.cluster_prefixes.is_some() || self.found.is_whole;
        self.mode == Mode::Strict && (!is_whole || self.catch_all().is_empty())
    }

    /// Takes over what an object says, and returns what it says in vain.
    fn overlay(&mut self, config: &Config) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, reason: &str| {
            faults.push(Fault { field: format!("spec.{field}"), reason: reason.to_owned() });
        };
        let spec = &config.spec;
        self.mode = spec.mode.unwrap_or(self.mode);
        self.backend = spec.backend.unwrap_or(self.backend);
        self.strict_gate = spec.strict_gate.unwrap_or(self.strict_gate);
        self.scope = spec.scope.unwrap_or(self.scope);
        self.on_agent_unavailable = spec.on_agent_unavailable.unwrap_or(self.on_agent_unavailable);
        self.host_traffic = spec.host_traffic.unwrap_or(self.host_traffic);
        self.pod_addresses = spec.pod_addresses.unwrap_or(self.pod_addresses);
        if let Some(words) = &spec.cluster_cidrs {
            let read = |text: &str| wide_block(text, "a cluster's pods have");
            match prefixes(words, "Auto", read) {
                Ok((prefixes, true)) if !prefixes.is_empty() => fault("clusterCIDRs", "Auto stands alone"),
                Ok((prefixes, auto)) => self.cluster_prefixes = (!auto).then_some(prefixes),
                Err(reason) => fault("clusterCIDRs", &reason),
            }
        }
        if let Some(words) = &spec.exempt {
            let read = |text: &str| text.parse().map_err(|error: NoPrefix| error.to_string());
            match prefixes(words, "apiserver", read) {
                Ok((prefixes, api_server)) => (self.exempt, self.exempt_api_server) = (prefixes, api_server),
                Err(reason) => fault("exempt", &reason),
            }
        }
        match spec.listen_port {
            Some(0) => fault("listenPort", "a port is a number from 1 to 65535"),
            port => self.listen_port = port.unwrap_or(self.listen_port),
        }
        if let Some(words) = &spec.open_port_in {
            let chain = |text: &String| text.parse().map_err(|error| format!("{text}: {error}"));
            match words.iter().map(chain).collect() {
                Ok(chains) => self.open_port_in = chains,
                Err(reason) => fault("openPortIn", &reason),
            }
        }
        match &spec.interface_name {
            Some(name) if !is_interface(name) => fault("interfaceName", "no interface can have this name"),
            name => self.interface = name.as_ref().unwrap_or(&self.interface).clone(),
        }
        match number(spec.mtu.as_ref(), 576, 65_535) {
            Ok(mtu) => self.mtu = mtu.unwrap_or(self.mtu),
            Err(reason) => fault("mtu", &reason),
        }
        match spec.persistent_keepalive.as_deref().map(duration) {
            Some(Some(time)) if time.subsec_nanos() == 0 && u16::try_from(time.as_secs()).is_ok() => {
                self.persistent_keepalive = u16::try_from(time.as_secs()).unwrap_or(u16::MAX);
            }
            Some(_) => fault("persistentKeepalive", "whole seconds up to 65535s are needed, as 25s"),
            None => {}
        }
        if let Some(routing) = &spec.routing {
            match routing.rule_priority {
                // The kernel's own rules are 0, 32766 and 32767.
                Some(priority @ 1..=32_765) => self.rule_priority = priority,
                Some(_) => fault("routing.rulePriority", "a number from 1 to 32765 is needed"),
                None => {}
            }
            match number(routing.table.as_ref(), 256, u32::MAX - 1) {
                Ok(table) => self.table = table.map_or(self.table, |table| table.unwrap_or(MARK)),
                Err(reason) => fault("routing.table", &reason),
            }
            match number(routing.fwmark.as_ref(), 1, u32::MAX) {
                Ok(mark) => self.fwmark = mark.map_or(self.fwmark, |mark| mark.unwrap_or(MARK)),
                Err(reason) => fault("routing.fwmark", &reason),
            }
        }
        if let Some(metrics) = &spec.metrics {
            match metrics.address.as_deref().map(|address| (address, places(address))) {
                Some((address, Ok(_))) => self.metrics_address = Some(address.to_owned()),
                Some((_, Err(reason))) => fault("metrics.address", reason),
                None => {}
            }
            self.metrics_per_peer = metrics.per_peer.unwrap_or(self.metrics_per_peer);
            self.metrics_max_peers = metrics.max_peers.unwrap_or(self.metrics_max_peers);
        }
        self.refuse_what_is_not_there(spec, &mut fault);
        faults
    }

    /// Says of what the API has and this agent does not that it is not obeyed; where there is a choice, more is encrypted than was asked for.
    fn refuse_what_is_not_there(&mut self, spec: &TunnelConfigSpec, fault: &mut dyn FnMut(&str, &str)) {
        const ABSENT: &str = "this agent does not do that";
        if spec.mtu.as_ref().is_some_and(|mtu| *mtu == IntOrString::String("Probe".to_owned())) {
            fault("mtu", ABSENT);
        }
        if spec.key_rotation.is_some() {
            fault("keyRotation", ABSENT);
        }
        if spec.post_quantum.is_some_and(|wanted| wanted != PostQuantum::Off) {
            fault("postQuantum", ABSENT);
        }
        if spec.unknown_peer.is_some() {
            fault("unknownPeer", ABSENT);
        }
    }
}

/// Tells whether an object with a selector is for a node with these labels.
fn selects(spec: &TunnelConfigSpec, labels: &BTreeMap<String, String>) -> bool {
    let selector = spec.node_selector.as_ref();
    selector.is_some_and(|wanted| wanted.iter().all(|(name, value)| labels.get(name) == Some(value)))
}

/// Reads prefixes, and tells whether `word` was among them.
fn prefixes(
    words: &[String],
    word: &str,
    read: impl Fn(&str) -> Result<Prefix, String>,
) -> Result<(Vec<Prefix>, bool), String> {
    let parse =
        |text: &String| read(text).map_err(|error| format!("{text}: {error}, or the word {word} is needed"));
    let texts = words.iter().filter(|text| *text != word);
    Ok((texts.map(parse).collect::<Result<_, _>>()?, words.iter().any(|text| text == word)))
}

/// Reads a number or a word. `None`: nothing was said; `Some(None)`: the choice is ours.
fn number(value: Option<&IntOrString>, least: u32, most: u32) -> Result<Option<Option<u32>>, String> {
    match value {
        None => Ok(None),
        Some(IntOrString::String(word)) if word == "Auto" || word == "Probe" => Ok(Some(None)),
        Some(IntOrString::Int(number))
            if u32::try_from(*number).is_ok_and(|n| (least..=most).contains(&n)) =>
        {
            Ok(Some(u32::try_from(*number).ok()))
        }
        Some(_) => Err(format!("the word Auto or a number from {least} to {most} is needed")),
    }
}

/// What the kernel takes for an interface's name (`net/core/dev.c`, `dev_valid_name`), and a file name can hold.
fn is_interface(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=15).contains(&name.len()) && name.bytes().all(is_good) && name != "." && name != ".."
}

/// Reads a duration as Go writes it, of whole numbers: `1h30m`, `25s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        rest = &rest[letters..];
        sum = sum.checked_add(unit.checked_mul(number)?)?;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Metrics, Routing};

    fn objects(configs: &[(&str, TunnelConfigSpec)]) -> Objects {
        let configs = configs.iter().map(|(name, spec)| {
            let config = Config { spec: spec.clone(), faults: Vec::new() };
            ((*name).to_owned(), config)
        });
        Objects { configs: configs.collect(), ..Objects::default() }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn faults_of(spec: TunnelConfigSpec) -> (Settings, Vec<String>) {
        let mut faults = Vec::new();
        let settings = Settings::of(&objects(&[("default", spec)]), "a", &labels(&[]), &mut faults);
        (settings, faults.into_iter().map(|(_, fault)| fault.field).collect())
    }

    #[test]
    fn the_nearest_object_to_say_something_has_it() {
        let mode = |mode| TunnelConfigSpec { mode: Some(mode), ..TunnelConfigSpec::default() };
        let selecting = |port, name: &str, value: &str| TunnelConfigSpec {
            node_selector: Some(labels(&[(name, value)])),
            listen_port: Some(port),
            ..TunnelConfigSpec::default()
        };
        let objects = objects(&[
            ("default", TunnelConfigSpec { listen_port: Some(1), ..mode(Mode::Strict) }),
            ("east", selecting(2, "zone", "east")),
            ("west", selecting(3, "zone", "west")),
            ("node.b", mode(Mode::Off)),
            ("unused", mode(Mode::Permissive)),
        ]);
        let of = |name, zone| {
            let settings = Settings::of(&objects, name, &labels(&[("zone", zone)]), &mut Vec::new());
            (settings.mode, settings.listen_port)
        };
        assert_eq!(of("a", "east"), (Mode::Strict, 2));
        assert_eq!(of("a", "north"), (Mode::Strict, 1));
        assert_eq!(of("b", "west"), (Mode::Off, 3));
    }

    #[test]
    fn every_field_is_obeyed_or_named_as_not_obeyed() {
        let text = |text: &str| Some(IntOrString::String(text.to_owned()));
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let (settings, faults) = faults_of(TunnelConfigSpec {
            mode: Some(Mode::Strict),
            backend: Some(Backend::Kernel),
            strict_gate: Some(StrictGate::Immediate),
            cluster_cidrs: words(&["10.244.0.0/16"]),
            pod_addresses: Some(PodAddresses::Pods),
            exempt: words(&["apiserver", "10.0.0.1/32"]),
            listen_port: Some(1),
            open_port_in: words(&["ip filter INPUT"]),
            interface_name: Some("wg0".to_owned()),
            mtu: Some(IntOrString::Int(1400)),
            persistent_keepalive: Some("1m5s".to_owned()),
            host_traffic: Some(HostTraffic::Encrypt),
            scope: Some(Scope::CrossZone),
            routing: Some(Routing {
                rule_priority: Some(5),
                table: Some(IntOrString::Int(300)),
                fwmark: Some(IntOrString::Int(7)),
            }),
            metrics: Some(Metrics {
                address: Some(":9586".to_owned()),
                per_peer: Some(false),
                max_peers: Some(9),
            }),
            on_agent_unavailable: Some(OnAgentUnavailable::Ignore),
            ..TunnelConfigSpec::default()
        });
        assert!(faults.is_empty(), "{faults:?}");
        let expected = Settings {
            mode: Mode::Strict,
            backend: Backend::Kernel,
            strict_gate: StrictGate::Immediate,
            cluster_prefixes: Some(vec!["10.244.0.0/16".parse().unwrap()]),
            found: Found::default(),
            pod_addresses: PodAddresses::Pods,
            exempt: vec!["10.0.0.1/32".parse().unwrap()],
            exempt_api_server: true,
            listen_port: 1,
            open_port_in: vec!["ip filter INPUT".parse().unwrap()],
            interface: "wg0".to_owned(),
            mtu: Some(1400),
            persistent_keepalive: 65,
            host_traffic: HostTraffic::Encrypt,
            scope: Scope::CrossZone,
            rule_priority: 5,
            table: 300,
            fwmark: 7,
            metrics_address: Some(":9586".to_owned()),
            metrics_per_peer: false,
            metrics_max_peers: 9,
            on_agent_unavailable: OnAgentUnavailable::Ignore,
        };
        assert_eq!(settings, expected);
        let (settings, faults) = faults_of(TunnelConfigSpec {
            cluster_cidrs: words(&["10.244.0.0"]),
            exempt: words(&["everything"]),
            listen_port: Some(0),
            open_port_in: words(&["arp filter INPUT"]),
            interface_name: Some("a/b".to_owned()),
            mtu: text("Wide"),
            persistent_keepalive: Some("500ms".to_owned()),
            routing: Some(Routing {
                rule_priority: Some(0),
                table: Some(IntOrString::Int(255)),
                fwmark: text("Any"),
            }),
            metrics: Some(Metrics { address: Some("here:9586".to_owned()), ..Metrics::default() }),
            key_rotation: Some(crate::control::api::KeyRotation::default()),
            ..TunnelConfigSpec::default()
        });
        assert_eq!(settings, Settings::default());
        let expected = "clusterCIDRs exempt listenPort openPortIn interfaceName mtu persistentKeepalive routing.rulePriority routing.table \
            routing.fwmark metrics.address keyRotation";
        let expected: Vec<_> = expected.split_whitespace().map(|field| format!("spec.{field}")).collect();
        assert_eq!(faults, expected);
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        assert_eq!(
            (seconds("720h"), seconds("1h30m"), seconds("0s")),
            (Some(2_592_000), Some(5400), Some(0))
        );
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "5d", "99999999999999s", "5s5"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
