//! A mesh of three nodes that a directory of YAML files describes: a data plane and an agent on each, no cluster.
//!
//! ```sh
//! cargo run --release --example mesh                        # as root
//! ```
//!
//! Every node is a network namespace, and a router joins them; the pod of a node is an address behind it. The example writes the objects, one file each, and
//! starts on every node what a machine would start as services: `adit -f IFNAME` and `adit agent --objects DIRECTORY`. It prints the
//! files, which pod reaches which, what `adit peers` says, and what becomes of the mesh when the file of one node is taken away and laid
//! back. Processes and namespaces are gone when it ends, and so is the directory.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use adit::sys::netlink::Netlink;
use adit::sys::{clock, netns};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

const NODES: u8 = 3;
/// The port of a pod that answers with what it was sent.
const ECHO: u16 = 7;
/// The longest that a change may take to be seen, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    // This file is the program `adit` as well: it starts itself under that name, so that nothing else has to be built or found.
    if std::env::args().next().is_some_and(|name| name == "adit") {
        let _ = set_parent_process_death_signal(Some(Signal::TERM));
        return adit::cli::main();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let directory = Directory::new()?;
    let objects = directory.0.join("objects");
    fs::create_dir(&objects)?;
    let fabric = netns::create().map_err(|error| format!("this needs root: {error}"))?;
    netns::run_in(&fabric, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    let mut nodes =
        (1..=NODES).map(|number| Node::new(number, &directory.0)).collect::<io::Result<Vec<_>>>()?;

    write(&objects, "config", CONFIG)?;
    for node in &mut nodes {
        node.join(&fabric)?;
        write(&objects, &node.name(), &node.object()?)?;
        node.start(&objects)?;
    }
    for entry in ["config", "node1"] {
        println!("{entry}.yaml\n{}", fs::read_to_string(objects.join(entry).with_extension("yaml"))?);
    }

    for from in &nodes {
        for to in nodes.iter().filter(|to| to.number != from.number) {
            wait_until(&format!("{} reaches {}", from.name(), to.name()), || from.reaches(to))?;
            println!("{} → {}: answered", from.pod(), to.pod());
        }
    }
    // An agent keeps the objects a second after it has learned them; the names come from there.
    wait_until("adit peers names nodes", || Ok(nodes[0].show("peers")?.contains("node3")))?;
    println!("\nadit peers, on node1:\n{}", nodes[0].show("peers")?);

    let (file, aside) = (objects.join("node3.yaml"), directory.0.join("node3.yaml"));
    fs::rename(&file, &aside)?;
    wait_until("node1 has one peer", || Ok(nodes[0].peers()? == 1))?;
    println!("node3.yaml is taken away. adit peers, on node1:\n{}", nodes[0].show("peers")?);
    if nodes[0].reaches(&nodes[2])? {
        return Err("a node that is no peer was reached".into());
    }
    println!(
        "{} → {}: no answer, and nothing in clear: the mode is Strict\n",
        nodes[0].pod(),
        nodes[2].pod()
    );

    fs::rename(&aside, &file)?;
    wait_until("node1 reaches node3", || nodes[0].reaches(&nodes[2]))?;
    println!("node3.yaml is back.\n{} → {}: answered", nodes[0].pod(), nodes[2].pod());
    Ok(())
}

const CONFIG: &str = "\
apiVersion: adit.dev/v1alpha1
kind: TunnelConfig
metadata: {name: default}
spec: {mode: Strict, clusterCIDRs: [10.244.0.0/16]}
";

/// Writes an object beside its place and renames it, so that nobody reads half of it.
fn write(objects: &Path, name: &str, text: &str) -> io::Result<()> {
    let file = objects.join(name).with_extension("yaml");
    let unfinished = file.with_extension("new");
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, file)
}

/// A node: its address is 10.9.N.1, its pods' prefix 10.244.N.0/24, with one pod at 10.244.N.1.
struct Node {
    number: u8,
    namespace: OwnedFd,
    state: PathBuf,
    processes: Vec<Child>,
}

impl Node {
    fn new(number: u8, directory: &Path) -> io::Result<Self> {
        let state = directory.join(format!("state-of-node{number}"));
        Ok(Self { number, namespace: netns::create()?, state, processes: Vec::new() })
    }

    fn name(&self) -> String {
        format!("node{}", self.number)
    }

    fn pod(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 1)
    }

    /// Returns a name that is unlike that of any other tunnel of this machine: their sockets lie in one directory.
    fn interface(&self) -> String {
        format!("mesh{:x}x{}", std::process::id(), self.number)
    }

    /// Joins the fabric, and lets the pod answer.
    fn join(&self, fabric: &OwnedFd) -> io::Result<()> {
        let port = self.name();
        netns::run_in(fabric, || {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(&port, "eth0", &self.namespace)?;
            let port = netlink.link(&port)?.index;
            netlink.add_address(port, Ipv4Addr::new(10, 9, self.number, 254).into(), 24)?;
            netlink.set_up(port, None)
        })?;
        netns::run_in(&self.namespace, || {
            // As on every node: pods' packets reach the tunnel only where they are forwarded.
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            let mut netlink = Netlink::open()?;
            let (eth, lo) = (netlink.link("eth0")?.index, netlink.link("lo")?.index);
            netlink.add_address(eth, Ipv4Addr::new(10, 9, self.number, 1).into(), 24)?;
            netlink.set_up(eth, None)?;
            let gateway = Ipv4Addr::new(10, 9, self.number, 254);
            netlink.add_route((Ipv4Addr::UNSPECIFIED.into(), 0), Some(gateway.into()), None)?;
            netlink.add_address(lo, IpAddr::V4(self.pod()), 32)?;
            netlink.set_up(lo, None)?;
            let pod = UdpSocket::bind((self.pod(), ECHO))?;
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((len, from)) = pod.recv_from(&mut buffer) {
                    let _ = pod.send_to(&buffer[..len], from);
                }
            });
            Ok(())
        })
    }

    /// Returns what the node says of itself. Its key is made here, and only its public half leaves the node.
    fn object(&self) -> Result<String, Box<dyn Error>> {
        let key = self.adit(&["agent", "--public-key"]).output()?;
        let key = String::from_utf8(key.stdout)?;
        let n = self.number;
        Ok(format!(
            "apiVersion: adit.dev/v1alpha1\n\
            kind: NodeTunnel\n\
            metadata: {{name: node{n}}}\n\
            spec:\n\
            \x20 keys: [{{publicKey: \"{}\", state: Active}}]\n\
            \x20 endpoints: [{{address: 10.9.{n}.1, port: 51820}}]\n\
            \x20 podPrefixes: [10.244.{n}.0/24]\n\
            \x20 nodeAddresses: [10.9.{n}.1]\n",
            key.trim_end()
        ))
    }

    /// Starts data plane and agent.
    fn start(&mut self, objects: &Path) -> io::Result<()> {
        let mut agent = self.adit(&["agent", "--log-level", "error"]);
        agent.env("ADIT_OBJECTS", objects).env("NODE_NAME", self.name());
        for mut command in [self.adit(&["-f", &self.interface()]), agent] {
            // A process is in the namespace of the thread that starts it. The kernel ends it when that thread ends, so it is this one.
            let home = netns::current()?;
            netns::enter(&self.namespace)?;
            let child = command.spawn();
            netns::enter(home)?;
            self.processes.push(child?);
        }
        Ok(())
    }

    /// Returns the command `adit` with these arguments, told the places of this node.
    fn adit(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("adit").args(args).env_clear();
        command.env("ADIT_STATE", &self.state).env("ADIT_RUN", &self.state);
        command.env("ADIT_INTERFACE", self.interface()).stdin(Stdio::null());
        command
    }

    /// Returns what `adit status` or `adit peers` prints.
    fn show(&self, what: &str) -> Result<String, Box<dyn Error>> {
        Ok(String::from_utf8(self.adit(&[what, &self.interface()]).output()?.stdout)?)
    }

    fn peers(&self) -> Result<usize, Box<dyn Error>> {
        let peers = self.adit(&["peers", &self.interface(), "-o", "json"]).output()?.stdout;
        Ok(String::from_utf8(peers)?.matches("\"publicKey\"").count())
    }

    /// Tells whether this node's pod gets an answer from that of another node within a second.
    fn reaches(&self, other: &Self) -> Result<bool, Box<dyn Error>> {
        let socket = netns::run_in(&self.namespace, || UdpSocket::bind((self.pod(), 0)))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        // The kernel refuses what must not leave in clear.
        let sent = socket.send_to(b"hello", (other.pod(), ECHO));
        Ok(sent.is_ok() && socket.recv(&mut [0; 16]).is_ok())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The agent first: it would miss the data plane.
        for process in self.processes.iter_mut().rev() {
            // It takes its socket away then. It may have ended already.
            if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = process.wait();
        }
    }
}

/// A directory that goes with the example.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("adit-mesh-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Polls until something holds.
fn wait_until(
    what: &str,
    mut holds: impl FnMut() -> Result<bool, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let deadline = clock::boottime() + SOON;
    while !holds()? {
        if clock::boottime() > deadline {
            return Err(format!("{what}: not within {} s", SOON.as_secs()).into());
        }
        let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
    Ok(())
}
