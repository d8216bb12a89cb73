//! Tunnels of any implementation that `wg` configures.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use adit::crypto::random::Os;
use adit::crypto::x25519::PrivateKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{Namespace, Process, SOON, find, ifname, skip, wait_until};

/// A userspace WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Adit,
    WireguardGo,
    /// Tailscale's fork of wireguard-go.
    Tailscale,
    Boringtun,
}

impl Program {
    /// Returns the program's file, or says what is missing.
    pub(crate) fn path(self) -> Option<PathBuf> {
        let name = match self {
            Self::Adit => return Some(env!("CARGO_BIN_EXE_adit").into()),
            Self::WireguardGo => "wireguard-go",
            Self::Tailscale => "wireguard-go-tailscale",
            Self::Boringtun => "boringtun-cli",
        };
        let found = find(name);
        if found.is_none() {
            skip(name);
        }
        found
    }

    /// Starts the program in the foreground.
    #[track_caller]
    pub(crate) fn start(
        self,
        namespace: &Namespace,
        ifname: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Process {
        let path = self.path().expect("the program is there");
        let mut all = vec!["-f"];
        if self == Self::Boringtun {
            all.push("--disable-drop-privileges");
        }
        all.extend(args);
        all.push(ifname);
        namespace.spawn_with(path.to_str().unwrap(), &all, env).leaves(socket_path(ifname))
    }
}

/// Returns the configuration socket of an interface.
pub(crate) fn socket_path(ifname: &str) -> PathBuf {
    format!("/var/run/wireguard/{ifname}.sock").into()
}

/// A private key, as `wg` writes it.
#[derive(Clone)]
pub(crate) struct Key {
    private: PrivateKey,
}

impl Key {
    /// Makes a new key.
    pub(crate) fn generate() -> Self {
        Self { private: PrivateKey::generate(&mut Os) }
    }

    /// Returns the key itself.
    pub(crate) fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// Returns the private key in base 64.
    pub(crate) fn secret(&self) -> String {
        BASE64.encode(self.private.as_bytes())
    }

    /// Returns the public key in base 64.
    pub(crate) fn public(&self) -> String {
        BASE64.encode(self.private.public().as_bytes())
    }
}

/// Returns a new pre-shared key in base 64.
pub(crate) fn preshared_key() -> String {
    Key::generate().secret()
}

/// A running tunnel. It ends when this is dropped.
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) key: Key,
    pub(crate) process: Process,
}

impl Tunnel {
    /// Starts `program` with UDP sockets in `birth`, and waits until `wg` can talk to it. The private key is set.
    #[track_caller]
    pub(crate) fn start(program: Program, birth: &Namespace) -> Self {
        Self::start_with(program, birth, &[], &[])
    }

    /// Like [`Self::start`], with arguments and environment variables.
    #[track_caller]
    pub(crate) fn start_with(
        program: Program,
        birth: &Namespace,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let tunnel = Self::start_without_key(program, birth, args, env);
        tunnel.set_key(birth);
        tunnel
    }

    /// Like [`Self::start_with`], but the private key is not yet set.
    #[track_caller]
    pub(crate) fn start_without_key(
        program: Program,
        birth: &Namespace,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        Self::start_on(program, birth, ifname(), args, env)
    }

    /// Like [`Self::start_without_key`], on an interface of that name, which may be there already.
    #[track_caller]
    pub(crate) fn start_on(
        program: Program,
        birth: &Namespace,
        name: String,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let process = program.start(birth, &name, args, env);
        Self::with_process(birth, name, process)
    }

    /// Starts adit in `birth` from a thread of `parent`, so that it lives as long as that.
    #[track_caller]
    pub(crate) fn start_from(parent: &Namespace, birth: &Namespace) -> Self {
        let name = ifname();
        let path = Program::Adit.path().expect("the program is there");
        let net = format!("--net={}", birth.path());
        let process = parent.spawn("nsenter", &[&net, path.to_str().unwrap(), "-f", &name]);
        let tunnel = Self::with_process(birth, name, process);
        tunnel.set_key(birth);
        tunnel
    }

    #[track_caller]
    fn with_process(birth: &Namespace, name: String, mut process: Process) -> Self {
        let key = Key::generate();
        wait_until("a tunnel that wg can talk to", SOON, || {
            let ended = process.ended();
            assert!(ended.is_none(), "it ended: {ended:?}: {}", process.output());
            // `wg` removes a socket that is not listened on yet, and wireguard-go ends then.
            UnixStream::connect(format!("/var/run/wireguard/{name}.sock")).is_ok()
                && birth.try_run("wg", &["show", &name]).0
        });
        Self { name, key, process }
    }

    /// Sets the private key.
    #[track_caller]
    pub(crate) fn set_key(&self, namespace: &Namespace) {
        self.set_with_input(namespace, &["private-key", "/dev/stdin"], &self.key.secret());
    }

    /// Moves the device to another namespace; the UDP sockets stay.
    pub(crate) fn move_to(&self, from: &Namespace, to: &Namespace) {
        from.ip(&format!("link set {} netns {}", self.name, to.path()));
    }

    /// Switches the device on, and returns when its addresses are in use and the process has taken notice: it looks at the link before it
    /// answers `wg`.
    #[track_caller]
    pub(crate) fn up(&self, namespace: &Namespace) {
        namespace.ip(&format!("link set {} up", self.name));
        namespace.wait_for_addresses(&self.name);
        self.show(namespace, "listen-port");
    }

    /// Switches the device off, and returns when the process has taken notice of it.
    #[track_caller]
    pub(crate) fn down(&self, namespace: &Namespace) {
        namespace.ip(&format!("link set {} down", self.name));
        self.show(namespace, "listen-port");
    }

    /// Runs `wg set` with the words of `line`.
    #[track_caller]
    pub(crate) fn set(&self, namespace: &Namespace, line: &str) {
        let mut args = vec!["set", &self.name];
        args.extend(line.split_whitespace());
        namespace.run("wg", &args);
    }

    /// Runs `wg set` with `input` as its standard input, which `/dev/stdin` stands for.
    #[track_caller]
    pub(crate) fn set_with_input(&self, namespace: &Namespace, words: &[&str], input: &str) {
        let mut args = vec!["set", &self.name];
        args.extend(words);
        self.wg_with_input(namespace, &args, input);
    }

    /// Runs `wg` with `input` as its standard input.
    #[track_caller]
    pub(crate) fn wg_with_input(&self, namespace: &Namespace, args: &[&str], input: &str) {
        let child = namespace.spawn_command("wg", args, |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let mut child = child.expect("wg starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("wg reads");
        super::process::expect_success("wg", args, child.wait_with_output());
    }

    /// Returns what `wg show NAME FIELD` prints, without the last newline.
    #[track_caller]
    pub(crate) fn show(&self, namespace: &Namespace, field: &str) -> String {
        namespace.run("wg", &["show", &self.name, field]).trim_end().to_owned()
    }

    /// Returns received and sent bytes of the peer with `public` key.
    #[track_caller]
    pub(crate) fn transfer(&self, namespace: &Namespace, public: &str) -> (u64, u64) {
        let all = self.show(namespace, "transfer");
        let line = all.lines().find(|line| line.starts_with(public)).expect("the peer is there");
        let mut words = line.split_whitespace().skip(1).map(|word| word.parse().expect("a number"));
        (words.next().unwrap(), words.next().unwrap())
    }

    /// Returns where the peer with `public` key is now, as `wg` prints it.
    #[track_caller]
    pub(crate) fn endpoint(&self, namespace: &Namespace, public: &str) -> String {
        let all = self.show(namespace, "endpoints");
        let line = all.lines().find(|line| line.starts_with(public)).expect("the peer is there");
        line.split_whitespace().nth(1).expect("an endpoint").to_owned()
    }

    /// Returns how many packets adit has dropped for a reason (`wireguard/dropped.rs`).
    #[track_caller]
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        let mut stream = UnixStream::connect(self.socket()).expect("it listens");
        stream.write_all(b"stats=1\n\n").expect("it reads");
        let lines = BufReader::new(stream).lines().map(|line| line.expect("it answers"));
        let prefix = format!("dropped_{reason}=");
        let mut counts = lines.take_while(|line| !line.is_empty());
        let count = counts.find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
        count.expect("every reason is there")
    }

    /// Returns where the configuration socket lies.
    pub(crate) fn socket(&self) -> PathBuf {
        Path::new("/var/run/wireguard").join(format!("{}.sock", self.name))
    }

    /// Returns the moment of the last handshake with the only peer, in seconds since the Unix epoch; 0 if there was none.
    #[track_caller]
    pub(crate) fn latest_handshake(&self, namespace: &Namespace) -> u64 {
        let all = self.show(namespace, "latest-handshakes");
        all.split_whitespace().nth(1).expect("one peer").parse().expect("a number")
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The process is killed, so it cannot remove it itself; `wg show` would knock there for ever.
        let _ = std::fs::remove_file(self.socket());
    }
}
