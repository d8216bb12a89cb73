//! A container runtime, as far as the CNI is concerned: what libcni does.
//!
//! Each plugin of a list is given the list's name and version and the result of the one before it; the last result is kept, and given to
//! CHECK and DEL; DEL goes from the last to the first; GC removes what is kept and not named, and then calls GC where the version has it.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::Namespace;

/// Returns the directory that holds the built plugin.
pub(crate) fn plugin_directory() -> &'static str {
    static DIRECTORY: OnceLock<String> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        // It is of another package, which the tests' own build leaves alone.
        let args = [
            "build",
            "--locked",
            "--quiet",
            "--package",
            "adit-cni",
            "--message-format",
            "json",
            "--profile",
        ];
        let output = Command::new(env!("CARGO"))
            .args(args)
            .arg(super::PROFILE)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "the plugin cannot be built");
        let lines = output.stdout.split(|byte| *byte == b'\n');
        let built = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let program = built.filter_map(|line| line["executable"].as_str().map(PathBuf::from)).next();
        program.expect("a program").parent().unwrap().to_str().unwrap().to_owned()
    })
}

/// A pod: a namespace that the runtime knows by a name.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) container: String,
}

impl Pod {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let container = format!("pod{}x{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        Self { namespace: Namespace::new(), container }
    }

    /// Returns the MTU of its interface.
    #[track_caller]
    pub(crate) fn mtu(&self) -> u32 {
        let text = self.namespace.ip("link show eth0");
        let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
        words.nth(1).unwrap().parse().unwrap()
    }
}

/// What a plugin says is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: u64,
    pub(crate) text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.text, self.code)
    }
}

/// What a call is about, beside its configuration.
#[derive(Clone, Default)]
pub(crate) struct Call {
    variables: Vec<(String, String)>,
}

impl Call {
    pub(crate) fn new(command: &str) -> Self {
        let path = format!("{}:{}", plugin_directory(), super::PLUGINS);
        Self::default().with("CNI_COMMAND", command).with("CNI_PATH", &path)
    }

    pub(crate) fn about(command: &str, pod: &Pod) -> Self {
        Self::new(command)
            .with("CNI_CONTAINERID", &pod.container)
            .with("CNI_IFNAME", "eth0")
            .with("CNI_NETNS", &pod.namespace.path())
            .with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the host call a plugin, and returns its result.
    pub(crate) fn run(&self, host: &Namespace, config: &Value) -> Result<Option<Value>, Refused> {
        self.run_raw(host, config["type"].as_str().unwrap(), config.to_string().as_bytes())
    }

    pub(crate) fn run_raw(
        &self,
        host: &Namespace,
        plugin: &str,
        input: &[u8],
    ) -> Result<Option<Value>, Refused> {
        let places = [plugin_directory(), super::PLUGINS];
        let program =
            places.map(|place| PathBuf::from(place).join(plugin)).into_iter().find(|path| path.exists());
        let program = program.unwrap_or_else(|| panic!("no plugin {plugin}"));
        let variables = self.variables.clone();
        let child = host.spawn_command(program.to_str().unwrap(), &[], |command| {
            // The environment of a runtime is its own.
            command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).envs(variables);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let mut child = child.unwrap();
        // A plugin that does not read says why.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = Child::wait_with_output(child).unwrap();
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            assert!(
                answer.is_some() || output.stdout.is_empty(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
            return Ok(answer);
        }
        let answer = answer.unwrap_or_else(|| {
            panic!("{plugin}: no error on standard output, but {}", String::from_utf8_lossy(&output.stderr))
        });
        assert!(plugin != "adit-cni" || answer["cniVersion"].is_string(), "{answer}");
        let text = format!("{plugin}: {} {}", answer["msg"].as_str().unwrap_or_default(), answer["details"]);
        Err(Refused { code: answer["code"].as_u64().unwrap_or_else(|| panic!("{answer}")), text })
    }
}

/// A network, and what of it the runtime keeps.
pub(crate) struct Runtime {
    pub(crate) list: Value,
    kept: BTreeMap<String, Value>,
}

impl Runtime {
    pub(crate) fn new(list: Value) -> Self {
        Self { list, kept: BTreeMap::new() }
    }

    pub(crate) fn of(version: &str, plugins: &[Value]) -> Self {
        Self::new(json!({ "cniVersion": version, "name": "net", "plugins": plugins }))
    }

    fn configs(&self, previous: Option<&Value>) -> Vec<Value> {
        let plugins = self.list["plugins"].as_array().unwrap();
        let config = |plugin: &Value| {
            let mut config = plugin.clone();
            config["name"] = self.list["name"].clone();
            config["cniVersion"] = self.list["cniVersion"].clone();
            if let Some(previous) = previous {
                config["prevResult"] = previous.clone();
            }
            config
        };
        plugins.iter().map(config).collect()
    }

    /// Adds a pod. One that fails is not kept; the runtime deletes it in its own time.
    pub(crate) fn add(&mut self, host: &Namespace, pod: &Pod) -> Result<Value, Refused> {
        let result = self.add_only(host, pod)?;
        self.kept.insert(pod.container.clone(), result.clone());
        Ok(result)
    }

    /// Adds a pod, and keeps nothing.
    pub(crate) fn add_only(&self, host: &Namespace, pod: &Pod) -> Result<Value, Refused> {
        let mut result: Option<Value> = None;
        for mut config in self.configs(None) {
            if let Some(previous) = result.take() {
                config["prevResult"] = previous;
            }
            result = Call::about("ADD", pod).run(host, &config)?;
            let version = result.as_ref().map(|result| &result["cniVersion"]);
            assert_eq!(version, Some(&config["cniVersion"]), "{} {result:?}", config["type"]);
        }
        Ok(result.expect("a list has a plugin"))
    }

    pub(crate) fn del(&mut self, host: &Namespace, pod: &Pod) -> Result<(), Refused> {
        let previous = self.kept.get(&pod.container);
        for config in self.configs(previous).into_iter().rev() {
            Call::about("DEL", pod).run(host, &config)?;
        }
        self.kept.remove(&pod.container);
        Ok(())
    }

    pub(crate) fn check(&self, host: &Namespace, pod: &Pod) -> Result<(), Refused> {
        self.configs(self.kept.get(&pod.container))
            .iter()
            .try_for_each(|config| Call::about("CHECK", pod).run(host, config).map(drop))
    }

    pub(crate) fn status(&self, host: &Namespace) -> Result<(), Refused> {
        self.configs(None).iter().try_for_each(|config| Call::new("STATUS").run(host, config).map(drop))
    }

    pub(crate) fn gc(&self, host: &Namespace, valid: &[&Pod]) -> Result<(), Refused> {
        let valid: Vec<_> =
            valid.iter().map(|pod| json!({ "containerID": pod.container, "ifname": "eth0" })).collect();
        self.configs(None).into_iter().try_for_each(|mut config| {
            config["cni.dev/valid-attachments"] = valid.clone().into();
            Call::new("GC").run(host, &config).map(drop)
        })
    }
}
