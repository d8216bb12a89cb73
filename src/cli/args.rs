//! Flags and environment variables: those of wireguard-go, and those of boringtun-cli, so that either can be replaced in place.

use std::os::fd::RawFd;
use std::path::PathBuf;

#[cfg(feature = "control")]
use crate::config::Prefix;
#[cfg(feature = "control")]
use crate::control::api::Mode;
#[cfg(feature = "control")]
use crate::control::cni;
use crate::crypto::aead::Tier;
use crate::device::Spill;
use crate::sys::offload::Wanted;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// A userspace WireGuard data plane.
///
/// `adit IFNAME` creates the TUN device IFNAME and goes to the background once device and configuration socket are usable; `wg`,
/// `wg-quick` and wgctrl clients configure it. It ends on SIGTERM or SIGINT, when the device is deleted, and when its socket
/// /var/run/wireguard/IFNAME.sock is removed.
#[derive(Debug, Parser)]
#[command(name = "adit", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) interface: InterfaceArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows a mesh of nodes on this machine: namespaces, real traffic, a capture that searches the wire for what the pods sent.
    ///
    /// Every node runs a data plane and an agent. The agents follow a directory of objects that is the demo's alone: it says where others find
    /// it, to look at them and to change them. Nothing is left behind.
    #[cfg(feature = "control")]
    Demo(DemoArgs),
    /// Keeps a data plane in step with what the objects of a cluster say: nodes are peers, their pods' prefixes allowed IPs.
    #[cfg(feature = "control")]
    Agent(AgentArgs),
    /// Tells whether this node can do it: every check with what was seen, why it matters and what helps. Nothing stays changed.
    #[cfg(feature = "control")]
    #[command(after_help = PREFLIGHT_STATUS)]
    Preflight(PreflightArgs),
    /// Shows what is encrypted by each data plane here, and where there is an agent, what is not, and why.
    ///
    /// Exit status: 0 if every data plane answers, no peer is down (it was sent something and has never answered), and, where there is an
    /// agent, the node is not degraded and interface, routes, rules and firewall are in place; 1 otherwise. A peer is up while it has a
    /// session, and idle when its session has run out or was never needed.
    #[cfg(feature = "control")]
    Status(InspectArgs),
    /// Shows the peers of each data plane here: who, where, since when, how much.
    #[cfg(feature = "control")]
    Peers(InspectArgs),
    /// Tells whether a data plane hangs: for a liveness probe, where no service manager has it tell that it lives.
    ///
    /// It is asked to change nothing. Exit status: 1 if somebody is there who does not answer for five seconds, 0 otherwise: also where
    /// nobody is there, since a process that has ended is not started anew for a probe's sake, and one that waits for its turn does not hang.
    #[cfg(feature = "control")]
    Alive(AliveArgs),
    /// Prints the definitions of the custom resources: `adit definitions | kubectl apply -f -`.
    #[cfg(feature = "control")]
    Definitions,
    /// Prints what completes this command line in a shell: `adit completions bash > /etc/bash_completion.d/adit`.
    #[cfg(feature = "reference")]
    Completions(CompletionsArgs),
    /// Prints the manual page of the program, or writes one for every command: `adit man /usr/local/share/man/man1`.
    #[cfg(feature = "reference")]
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct InterfaceArgs {
    /// The interface; `%d` stands for the first free number.
    #[arg(value_name = "IFNAME", required = true)]
    pub(super) name: Option<String>,

    /// Stays in the foreground.
    #[arg(short, long, env = "WG_PROCESS_FOREGROUND", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) foreground: bool,

    /// Worker threads, each with a TUN queue and UDP sockets of its own [default: one a core, at most 16].
    #[arg(short, long, env = "WG_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: Option<u16>,

    /// What is logged.
    #[arg(short, long, env = "WG_LOG_LEVEL", value_enum, value_name = "LEVEL", ignore_case = true)]
    pub(super) verbosity: Option<Level>,

    /// What is logged, by wireguard-go's name; WG_LOG_LEVEL goes before it [default: error].
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", value_parser = lenient_level, hide = true)]
    pub(super) log_level: Option<LogLevel>,

    #[command(flatten)]
    pub(super) logging: LogArgs,

    /// The log file [default: standard error in the foreground, none in the background unless LOG_LEVEL is set].
    #[arg(short, long, env = "WG_LOG_FILE", value_name = "FILE")]
    pub(super) log: Option<PathBuf>,

    /// Waits while another process has the interface or its configuration socket, and takes over when it has left.
    #[arg(long, env = "ADIT_WAIT", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) wait: bool,

    /// A TUN device that is open already; -1 for none.
    #[arg(long, env = "WG_TUN_FD", value_name = "FD", allow_negative_numbers = true, value_parser = descriptor)]
    pub(super) tun_fd: Option<Descriptor>,

    /// A configuration socket that listens already; -1 for none.
    #[arg(long, env = "WG_UAPI_FD", value_name = "FD", allow_negative_numbers = true, value_parser = descriptor)]
    pub(super) uapi_fd: Option<Descriptor>,

    /// Opens a single TUN queue; there is one worker then.
    #[arg(long)]
    pub(super) disable_multi_queue: bool,

    /// Which features of the kernel are used: names and `on`, `off` or `auto`, as in `tso,uso=off,gso=on`; `all` names every one.
    #[arg(long, env = "ADIT_OFFLOAD", value_name = "NAME[,NAME…]=VALUE[,…]", value_parser = str::parse::<Wanted>)]
    pub(super) offload: Option<Wanted>,

    /// Which code encrypts; where this CPU lacks what it needs, the start is refused.
    #[arg(long, env = "ADIT_CRYPTO", value_enum, value_name = "TIER", default_value_t, ignore_case = true)]
    pub(super) crypto: Crypto,

    /// Whether idle workers help one that a single flow keeps busy: `auto` with three or more workers; `on` is for tests.
    #[arg(long, env = "ADIT_SPILL", value_enum, value_name = "WHEN", default_value_t, ignore_case = true)]
    pub(super) spill: SpillWhen,

    /// boringtun's: accepted, and without effect, as privileges are kept.
    #[arg(long, env = "WG_SUDO", hide = true, value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) disable_drop_privileges: bool,

    /// boringtun's: accepted, and without effect, as sockets are never connected.
    #[arg(long, hide = true)]
    pub(super) disable_connected_udp: bool,

    /// boringtun's: accepted, and without effect, as errors go to the log.
    #[arg(long, env = "WG_ERR_LOG_FILE", hide = true, value_name = "FILE")]
    pub(super) err: Option<PathBuf>,
}

impl InterfaceArgs {
    /// Returns how many queues and workers there are to be.
    pub(super) fn workers(&self) -> usize {
        if self.disable_multi_queue {
            return 1;
        }
        self.threads.map_or_else(crate::device::default_threads, usize::from)
    }

    /// Returns which features of the kernel are to be tried.
    pub(super) fn offload(&self) -> Wanted {
        self.offload.unwrap_or_default()
    }

    /// Returns whether workers help each other.
    pub(super) fn spill(&self) -> Spill {
        match self.spill {
            SpillWhen::Auto => Spill::Auto,
            SpillWhen::On => Spill::On,
            SpillWhen::Off => Spill::Off,
        }
    }

    pub(super) fn level(&self) -> Level {
        self.verbosity.or_else(|| self.log_level.and_then(|level| level.0)).unwrap_or(Level::Error)
    }
}

#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Nodes of the mesh.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    pub(super) nodes: u8,

    /// Seconds of traffic.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(super) seconds: u16,
}

/// Where the things of a node are.
#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// The tunnel's interface, in place of the one that the objects name [default: adit0].
    #[arg(long, env = "ADIT_INTERFACE", value_name = "IFNAME")]
    pub(super) interface: Option<String>,

    /// Where the private key is kept, and the objects as they were last known.
    #[arg(long, env = "ADIT_STATE", value_name = "DIR", default_value = "/var/lib/adit")]
    pub(super) state: PathBuf,

    /// Where data planes have their configuration sockets.
    #[arg(long, env = "ADIT_SOCKETS", value_name = "DIR", default_value = crate::control::uapi_client::DIRECTORY)]
    pub(super) sockets: PathBuf,
}

#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct AgentArgs {
    /// The name of this node: that of its NodeTunnel.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", required_unless_present_any = ["public_key", "cleanup"])]
    pub(super) node_name: Option<String>,

    /// How the cluster is reached, as kubectl is told [default: as a pod of it].
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,

    /// The mode of the TunnelConfig for all nodes that is made where the cluster has none: Off, Permissive or Strict [default: none is made].
    #[arg(long, env = "ADIT_DEFAULT_MODE", value_name = "MODE", value_parser = mode)]
    pub(super) default_mode: Option<Mode>,

    /// A directory of objects as YAML files, in place of a cluster; changes are followed.
    #[arg(long, env = "ADIT_OBJECTS", value_name = "DIR")]
    pub(super) objects: Option<PathBuf>,

    #[command(flatten)]
    pub(super) places: PlaceArgs,

    /// Where others of this node find what they need at run time: the MTU of pods, in the file mtu.
    #[arg(long, env = "ADIT_RUN", value_name = "DIR", default_value = "/run/adit")]
    pub(super) run: PathBuf,

    /// Waits while another agent has the state, and takes over when it has left.
    #[arg(long, env = "ADIT_WAIT", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) wait: bool,

    /// Seconds between two looks at everything, whether or not anything was told.
    #[arg(long, env = "ADIT_RESYNC", value_name = "SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) resync: u16,

    /// Where Prometheus finds /metrics, and others /healthz and /readyz, in place of what the objects say [default: nowhere].
    #[arg(long, env = "ADIT_METRICS", value_name = "ADDRESS:PORT", value_parser = place)]
    pub(super) metrics: Option<String>,

    #[command(flatten)]
    pub(super) cni: CniArgs,

    /// What is logged, to standard error.
    #[arg(
        long,
        env = "ADIT_LOG_LEVEL",
        value_enum,
        value_name = "LEVEL",
        ignore_case = true,
        default_value = "info"
    )]
    pub(super) log_level: Level,

    #[command(flatten)]
    pub(super) logging: LogArgs,

    /// Prints the public key of this node, which is made if there is none, and ends.
    #[arg(long, env = "ADIT_PUBLIC_KEY", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) public_key: bool,

    /// Removes from this network namespace all that agents have made, and ends: routes, rules, firewall, and the kernel's WireGuard
    /// interfaces that have the node's key; the file of the MTU; with --cni-conf-dir the CNI plugin from the runtime's configuration, and
    /// with --cni-bin-dir its program, once no pod is left that was started with it. --state, in which the node's key is, stays.
    #[arg(long, env = "ADIT_CLEANUP", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub(super) cleanup: bool,
}

/// What is done for the CNI plugin: nothing, unless --cni-socket or --cni-conf-dir is there.
#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct CniArgs {
    /// Where the CNI plugin finds the agent: the same path here and on the host [default: /run/adit/cni.sock, with --cni-conf-dir].
    #[arg(long, env = "ADIT_CNI_SOCKET", value_name = "PATH")]
    cni_socket: Option<PathBuf>,

    /// Where the CNI plugin keeps its state: likewise.
    #[arg(long, env = "ADIT_CNI_STATE", value_name = "DIR", default_value = "/var/lib/adit/cni")]
    cni_state: PathBuf,

    /// Where the container runtime has its networks. Once the node is ready, the CNI plugin is put into the first.
    #[arg(long, env = "ADIT_CNI_CONF_DIR", value_name = "DIR")]
    pub(super) cni_conf_dir: Option<PathBuf>,

    /// What the CNI plugin is there: behind the plugins that make the pods' network, or the one that makes it.
    #[arg(long, env = "ADIT_CNI_MODE", value_enum, value_name = "MODE", ignore_case = true, default_value_t)]
    cni_mode: CniMode,

    /// The CNI plugin's program, to be copied to --cni-bin-dir.
    #[arg(long, env = "ADIT_CNI_PLUGIN", value_name = "FILE", requires = "cni_bin_dir")]
    cni_plugin: Option<PathBuf>,

    /// Where the container runtime looks for plugins.
    #[arg(long, env = "ADIT_CNI_BIN_DIR", value_name = "DIR", requires = "cni_plugin")]
    cni_bin_dir: Option<PathBuf>,

    /// The key of a taint that new nodes are made with: it is removed from this one once the node is ready, and the CNI plugin is where
    /// --cni-conf-dir says. It is never set. An admission policy that lets agents remove it names the same key [default: none].
    #[arg(long, env = "ADIT_STARTUP_TAINT", value_name = "KEY", requires = "cni_conf_dir")]
    startup_taint: Option<String>,
}

#[cfg(feature = "control")]
impl CniArgs {
    /// Returns what is asked for, if anything is.
    pub(super) fn options(&self) -> Option<cni::Options> {
        let default = self.cni_conf_dir.is_some().then(|| PathBuf::from(cni::SOCKET));
        Some(cni::Options {
            socket: self.cni_socket.clone().or(default)?,
            plugin_state: self.cni_state.clone(),
            configuration: self.cni_conf_dir.clone(),
            mode: match self.cni_mode {
                CniMode::Chained => cni::Mode::Chained,
                CniMode::Main => cni::Mode::Main,
            },
            program: self.cni_plugin.clone().zip(self.cni_bin_dir.clone()),
        })
    }

    /// Returns the taint that is to be removed; a variable that is set to nothing names none.
    pub(super) fn startup_taint(&self) -> Option<&str> {
        self.startup_taint.as_deref().filter(|key| !key.is_empty())
    }
}

/// [`cni::Mode`] on the command line.
#[cfg(feature = "control")]
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CniMode {
    #[default]
    Chained,
    Main,
}

#[cfg(feature = "control")]
const PREFLIGHT_STATUS: &str = "Results: pass; warn, it works but not in every way; fail, it does not; skip, it could not be looked at.\n\
    Exit status: 0 if no check fails, 1 if one does or the arguments cannot be used, 2 if they cannot be read.";

#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct PreflightArgs {
    /// How findings are printed: a table, or JSON with id, result, evidence, why and fix of every check.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(super) output: Output,

    /// The name of this node.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(super) node_name: Option<String>,

    /// A directory of objects as YAML files that say what is wanted [default: the objects as an agent has last known them].
    #[arg(long, env = "ADIT_OBJECTS", value_name = "DIR")]
    pub(super) objects: Option<PathBuf>,

    /// How the cluster is reached, as kubectl is told, to ask what an agent may do there [default: as a pod of it, if this is one].
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub(super) places: PlaceArgs,

    /// The UDP port, in place of the one that the objects name [default: 51820].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) listen_port: Option<u16>,

    /// A prefix of pods, beside those that the objects name; may be repeated.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(super) cluster_prefix: Vec<Prefix>,

    /// Another node: its name, to ask that one alone whether it answers, or an address beside those that the objects name; may be repeated.
    #[arg(long, value_name = "NODE|ADDRESS")]
    pub(super) peer: Vec<String>,

    /// Asks no other nodes whether they answer through the tunnel, and how long packets may be on the way [default: 64 of them at most are asked].
    #[arg(long)]
    pub(super) no_probe: bool,

    /// The mode of the TunnelConfig that an agent is to make where the cluster has none, if it is: whether it may is among what the cluster is asked.
    #[arg(long, env = "ADIT_DEFAULT_MODE", value_name = "MODE", value_parser = mode)]
    pub(super) default_mode: Option<Mode>,

    /// The key of the taint that an agent is to remove from the node, if it is: likewise.
    #[arg(long, env = "ADIT_STARTUP_TAINT", value_name = "KEY")]
    pub(super) startup_taint: Option<String>,
}

#[cfg(feature = "control")]
fn prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error| format!("{error}"))
}

#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// The interface [default: all].
    #[arg(value_name = "IFNAME")]
    pub(super) interface: Option<String>,

    /// Tables for people, or JSON for programs.
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t, ignore_case = true)]
    pub(super) output: Output,

    /// Where data planes have their configuration sockets.
    #[arg(long, env = "ADIT_SOCKETS", value_name = "DIR", default_value = crate::control::uapi_client::DIRECTORY)]
    pub(super) sockets: PathBuf,

    /// Where an agent keeps its state; nothing need be there.
    #[arg(long, env = "ADIT_STATE", value_name = "DIR", default_value = "/var/lib/adit")]
    pub(super) state: PathBuf,
}

#[cfg(feature = "control")]
#[derive(Debug, clap::Args)]
pub(super) struct AliveArgs {
    /// The interface.
    #[arg(value_name = "IFNAME")]
    pub(super) interface: String,

    /// Where data planes have their configuration sockets.
    #[arg(long, env = "ADIT_SOCKETS", value_name = "DIR", default_value = crate::control::uapi_client::DIRECTORY)]
    pub(super) sockets: PathBuf,
}

/// How something is printed.
#[cfg(feature = "control")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[cfg(feature = "reference")]
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    pub(super) shell: ShellName,
}

/// A shell that is known how to complete for.
#[cfg(feature = "reference")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShellName {
    Bash,
    Zsh,
    Fish,
}

#[cfg(feature = "reference")]
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Where pages are written to, one for every command; it is made if there is none [default: the program's page is printed].
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

/// [`Spill`] on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum SpillWhen {
    #[default]
    Auto,
    On,
    Off,
}

#[cfg(feature = "control")]
fn mode(text: &str) -> Result<Mode, &'static str> {
    Mode::named(text).ok_or("a mode is Off, Permissive or Strict")
}

#[cfg(feature = "control")]
fn place(text: &str) -> Result<String, &'static str> {
    crate::control::metrics::server::places(text).map(|_| text.to_owned())
}

/// A descriptor of the parent's; `-1` is none, as boringtun writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor(pub(super) Option<RawFd>);

fn descriptor(text: &str) -> Result<Descriptor, String> {
    match text.parse::<RawFd>() {
        Ok(-1) => Ok(Descriptor(None)),
        // A variable that is set to nothing.
        Err(_) if text.is_empty() => Ok(Descriptor(None)),
        Ok(fd @ 3..) => Ok(Descriptor(Some(fd))),
        Ok(_) | Err(_) => Err("a descriptor is a number from 3 on, or -1 for none".to_owned()),
    }
}

/// A level by wireguard-go's variable, whose name others use too; `None` if the variable is set to nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogLevel(pub(super) Option<Level>);

/// wireguard-go, main.go: what is no level stands for the default.
#[expect(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn lenient_level(text: &str) -> Result<LogLevel, String> {
    let level = (!text.is_empty()).then(|| Level::from_str(text, true).unwrap_or(Level::Error));
    Ok(LogLevel(level))
}

/// What is logged: the names of wireguard-go and of boringtun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Level {
    /// Nothing.
    Silent,
    /// What keeps the interface from working.
    Error,
    /// And what may.
    #[value(alias = "warn")]
    Warning,
    /// And what happens seldom.
    Info,
    /// And what clients ask for.
    #[value(alias = "verbose")]
    Debug,
    /// Everything.
    #[value(alias = "max")]
    Trace,
}

/// What data plane and agent have in common of logging.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// How it is logged.
    #[arg(
        long,
        env = "ADIT_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        ignore_case = true,
        default_value_t
    )]
    pub(super) log_format: LogFormat,
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line, with timestamp, level, and fields, of which `message` is the text.
    #[cfg(feature = "control")]
    Json,
}

/// Which code encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Crypto {
    /// The fastest that this CPU has.
    #[default]
    Auto,
    /// Many packets at once with AVX-512 (F, BW, VL, DQ, IFMA, VBMI2), single ones by ring.
    Avx512,
    /// Many packets at once with AVX2, single ones by ring.
    Avx2,
    /// All by ring, one packet after the other.
    Ring,
    /// All by the chacha20poly1305 crate: slow, for comparison.
    Portable,
}

impl Crypto {
    pub(super) fn tier(self) -> Tier {
        match self {
            Self::Auto => Tier::Auto,
            Self::Avx512 => Tier::Avx512,
            Self::Avx2 => Tier::Avx2,
            Self::Ring => Tier::Ring,
            Self::Portable => Tier::Portable,
        }
    }

    /// Returns the name as it is given.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Ring => "ring",
            Self::Portable => "portable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> InterfaceArgs {
        Args::try_parse_from([&["adit"], args, &["wg0"]].concat()).unwrap().interface
    }

    #[test]
    fn the_definition_makes_sense() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[cfg(feature = "control")]
    #[test]
    fn every_flag_of_the_agent_is_a_variable_as_well() {
        use clap::CommandFactory;
        let command = Args::command();
        let agent = command.find_subcommand("agent").unwrap();
        for flag in agent.get_arguments().filter(|flag| flag.get_id() != "help") {
            assert!(flag.get_env().is_some(), "{}", flag.get_id());
        }
    }

    #[test]
    fn a_log_level_that_is_none_stands_for_the_default() {
        assert_eq!(parse(&["--log-level", "verbose"]).level(), Level::Debug);
        assert_eq!(parse(&["--log-level", "Silent"]).level(), Level::Silent);
        assert_eq!(parse(&["--log-level", "notice"]).level(), Level::Error);
        assert_eq!(parse(&["--log-level", ""]).level(), Level::Error);
    }

    #[test]
    fn boringtuns_level_goes_before_wireguard_gos_and_is_checked() {
        assert_eq!(parse(&["--log-level", "silent", "--verbosity", "trace"]).level(), Level::Trace);
        assert!(Args::try_parse_from(["adit", "--verbosity", "notice", "wg0"]).is_err());
    }

    #[test]
    fn the_code_that_encrypts_is_named_or_found() {
        assert_eq!(parse(&[]).crypto.tier(), Tier::Auto);
        for crypto in Crypto::value_variants() {
            assert_eq!(parse(&["--crypto", crypto.name()]).crypto, *crypto);
        }
        assert!(Args::try_parse_from(["adit", "--crypto", "rot13", "wg0"]).is_err());
    }

    #[test]
    fn a_descriptor_is_a_number_or_none() {
        let fd = |text| parse(&["--tun-fd", text]).tun_fd.unwrap().0;
        assert_eq!((fd("-1"), fd(""), fd("3")), (None, None, Some(3)));
        for text in ["0", "2", "-2", "x"] {
            assert!(Args::try_parse_from(["adit", "--tun-fd", text, "wg0"]).is_err(), "{text}");
        }
    }
}
