//! `docs/reference`: every command, setting, metric and drop reason, as the program has them. With `ADIT_BLESS=1` the test that finds a
//! page stale writes it anew. Two pages are written by hand: of those the words are looked up.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};
use kube::CustomResourceExt;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use crate::cli::args::Args;
use crate::control::api::{NodeTunnel, NodeTunnelSpec, NodeTunnelStatus, TunnelConfig, TunnelConfigSpec};
use crate::control::metrics;
use crate::control::objects::Objects;
use crate::control::read;
use crate::control::settings::Settings;
use crate::wireguard::dropped::Dropped;

const MADE: &str = "<!-- Made from the program by `ADIT_BLESS=1 cargo test --lib reference`; not to be edited by hand. -->\n\n";

#[test]
fn the_committed_pages_are_those_of_the_program() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let pages = [
        ("commands", commands()),
        ("settings", settings()),
        ("metrics", metrics()),
        ("drops", drops()),
        ("preflight", preflight()),
    ];
    let mut stale = Vec::new();
    for (name, text) in pages {
        let file = directory.join(name).with_extension("md");
        if fs::read_to_string(&file).is_ok_and(|committed| committed == text) {
            continue;
        }
        if env::var_os("ADIT_BLESS").is_some() {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&file, text).unwrap();
        } else {
            stale.push(name);
        }
    }
    assert!(stale.is_empty(), "stale in docs/reference: {stale:?}; ADIT_BLESS=1 cargo test --lib reference");
}

#[test]
fn every_word_of_a_status_or_an_event_is_explained() {
    let page = include_str!("../../../docs/reference/reasons.md");
    let sources = [
        include_str!("../../control/happening.rs"),
        include_str!("../../control/status.rs"),
        include_str!("../../control/topology/degraded.rs"),
        include_str!("../../control/topology/gate.rs"),
        include_str!("../../control/topology/unencrypted.rs"),
    ];
    let is_word = |text: &&str| {
        text.starts_with(|first: char| first.is_ascii_uppercase())
            && text.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    for source in sources {
        for word in program_of(source).split('"').skip(1).step_by(2).filter(is_word) {
            assert!(page.contains(&format!("`{word}`")), "{word}");
        }
    }
}

#[test]
fn every_key_and_error_of_the_cni_plugin_is_explained() {
    let page = include_str!("../../../docs/reference/cni.md");
    let source = program_of(include_str!("../../../cni/src/config.rs"));
    let keys =
        ["text(&raw, \"", "path(\"", "raw.get(\""].into_iter().flat_map(|call| source.split(call).skip(1));
    let keys: Vec<_> = keys.filter_map(|rest| rest.split_once('"')).map(|(key, _)| key).collect();
    assert!(keys.len() > 8, "{keys:?}");
    // Of an earlier text of the specification.
    for key in keys.iter().filter(|key| **key != "cni.dev/attachments") {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
    let numbers = program_of(include_str!("../../../cni/src/error.rs")).lines();
    let numbers = numbers
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => ")?.1.strip_suffix(','));
    let numbers: Vec<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
    assert!(numbers.len() > 8, "{numbers:?}");
    for number in numbers {
        assert!(page.contains(&format!("\n| {number} |")), "{number}");
    }
}

/// Returns a source without its tests.
fn program_of(source: &str) -> &str {
    source.split("\n#[cfg(test)]").next().unwrap_or_default()
}

// ---- commands

fn commands() -> String {
    let mut program = Args::command().disable_help_subcommand(true);
    program.build();
    let mut text = format!(
        "{MADE}# Commands\n\nA variable of the environment stands for its flag; what the command line says goes before it. \
        `-h` and `--help` print what is here, in short and in full; `--version` the version.\n"
    );
    for command in [&program].into_iter().chain(program.get_subcommands()) {
        add_command(&mut text, command);
    }
    text
}

fn add_command(text: &mut String, command: &Command) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut about = plain(command.get_long_about().or_else(|| command.get_about())).trim_end().to_owned();
    end_sentence(&mut about);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let _ = writeln!(text, "\n## `{name}`\n\n{about}\n\n```text\n{usage}\n```");
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(text, "\n{}", plain(Some(after)));
    }
    let is_told = |arg: &&Arg| !matches!(arg.get_id().as_str(), "help" | "version");
    let mut rows = String::new();
    for arg in command.get_arguments().filter(is_told) {
        let variable = arg.get_env().map_or_else(String::new, |name| format!("`{}`", name.to_string_lossy()));
        let _ = writeln!(rows, "| {} | {variable} | {} |", forms(arg), cell(&meaning(arg)));
    }
    if !rows.is_empty() {
        let _ = writeln!(text, "\n| Argument | Variable | Meaning |\n|---|---|---|\n{}", rows.trim_end());
    }
}

/// Returns an argument as it is given: `-t`, `--threads N`.
fn forms(arg: &Arg) -> String {
    let values = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let value = values.map(|names| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" "));
    let short = arg.get_short().map(|short| format!("`-{short}`"));
    let long = arg.get_long().map(|long| match &value {
        Some(value) => format!("`--{long} {value}`"),
        None => format!("`--{long}`"),
    });
    let flags: Vec<_> = short.into_iter().chain(long).collect();
    let form = if flags.is_empty() { format!("`{}`", value.unwrap_or_default()) } else { flags.join(", ") };
    // Tables break at a bar, also within code.
    form.replace('|', "\\|")
}

fn meaning(arg: &Arg) -> String {
    let mut text = plain(arg.get_long_help().or_else(|| arg.get_help()));
    end_sentence(&mut text);
    let words = arg.get_possible_values();
    if arg.get_action().takes_values() && !words.is_empty() {
        let word = |word: &clap::builder::PossibleValue| match word.get_help() {
            Some(help) => format!("`{}` ({})", word.get_name(), plain(Some(help)).trim_end_matches('.')),
            None => format!("`{}`", word.get_name()),
        };
        let words: Vec<_> = words.iter().map(word).collect();
        let _ = write!(text, " One of {}.", words.join(", "));
    }
    let defaults = arg.get_default_values();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        let defaults: Vec<_> = defaults.iter().map(|value| value.to_string_lossy()).collect();
        let _ = write!(text, " Default: `{}`.", defaults.join(" "));
    }
    if arg.is_required_set() {
        text.push_str(" Required.");
    }
    text
}

/// The definition has no last full stop, as lists of flags have none.
fn end_sentence(text: &mut String) {
    if !text.is_empty() && !text.ends_with(['.', ':']) {
        text.push('.');
    }
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// Returns a text as a cell of a table holds it.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

// ---- settings

fn settings() -> String {
    let mut text = format!(
        "{MADE}# Settings\n\nTwo custom resources of the group `adit.dev`, version `v1alpha1`, neither in a namespace; in a directory of YAML files \
        they are the same objects. The schema checks what is written: `adit definitions` prints it.\n\n\
        A field that is wrong in an object that got past the schema costs itself and nothing else: the agent names it in its log and in \
        `adit status`, and goes on with what holds without it.\n"
    );
    let resources = [
        (TunnelConfig::crd(), [schema_of::<TunnelConfigSpec>(), Value::Null]),
        (NodeTunnel::crd(), [schema_of::<NodeTunnelSpec>(), schema_of::<NodeTunnelStatus>()]),
    ];
    for (definition, types) in resources {
        let definition = json!(definition);
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let names = &definition["spec"]["names"];
        let _ = writeln!(
            text,
            "\n## {}\n\n{} Short name for kubectl: `{}`.",
            words(&names["kind"]),
            words(&schema["description"]),
            words(&names["shortNames"][0])
        );
        for (part, types) in ["spec", "status"].into_iter().zip(&types) {
            let mut fields = Fields { types, rows: Vec::new() };
            fields.add(part, &schema["properties"][part], types);
            if !types.is_null() {
                let _ = writeln!(text, "\n| Field | Type | Meaning |\n|---|---|---|");
                // The first is the part as a whole.
                fields.rows.iter().skip(1).for_each(|row| text.push_str(row));
            }
        }
    }
    text.push_str("\n## Not obeyed yet\n\nThe agent says so of each of these when it starts, and goes on as told here.\n\n");
    text.push_str("| Field | Value | What the agent says |\n|---|---|---|\n");
    for (field, value, reason) in not_obeyed() {
        let _ = writeln!(text, "| `{field}` | {value} | {} |", cell(&reason));
    }
    text
}

/// The schema as the types have it: the definition, which is made of it, leaves out what single words mean.
fn schema_of<T: JsonSchema>() -> Value {
    json!(SchemaGenerator::default().into_root_schema_for::<T>())
}

/// The fields of one part of a resource, as rows of a table.
struct Fields<'a> {
    /// The part as its type has it, with the types of its fields beside it.
    types: &'a Value,
    rows: Vec<String>,
}

impl Fields<'_> {
    /// Adds a field and those below it; `schema` is the definition's, `own` the type's.
    fn add(&mut self, path: &str, schema: &Value, own: &Value) {
        let is_list = schema["type"] == "array";
        let inner = if is_list { &schema["items"] } else { schema };
        let is_condition = path == "status.conditions";
        let kind = match (is_condition, is_list) {
            (true, _) => "list of Kubernetes conditions".to_owned(),
            (false, true) => format!("list of {}", kind_of(inner)),
            (false, false) => kind_of(inner),
        };
        let more = bounds(schema).into_iter().chain(bounds(inner).into_iter().filter(|_| is_list));
        let kind = [kind].into_iter().chain(more).collect::<Vec<_>>().join("; ");
        let found = self.resolve(own);
        let description = own["description"].as_str().or_else(|| schema["description"].as_str());
        let mut meaning = description.unwrap_or_default().to_owned();
        for word in found["oneOf"].as_array().into_iter().flatten() {
            let _ = write!(meaning, " `{}`: {}", words(&word["const"]), words(&word["description"]));
        }
        self.rows.push(format!("| `{path}` | {} | {} |\n", cell(&kind), cell(&meaning)));
        let (list, found) = if is_list { ("[]", self.resolve(&found["items"])) } else { ("", found) };
        let below = inner["properties"].as_object().filter(|_| !is_condition);
        for (name, field) in below.into_iter().flatten() {
            self.add(&format!("{path}{list}.{name}"), field, &found["properties"][name]);
        }
    }

    /// Returns what a schema refers to.
    fn resolve(&self, schema: &Value) -> Value {
        let options = schema["anyOf"].as_array();
        let schema = options.and_then(|all| all.iter().find(|one| one["type"] != "null")).unwrap_or(schema);
        match schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            Some(name) => self.types["$defs"][name].clone(),
            None => schema.clone(),
        }
    }
}

fn kind_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == json!(true) {
        return "number or word".to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> =
            values.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return values.join(", ");
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some(format)) => format.to_owned(),
        (Some("integer"), _) => "number".to_owned(),
        (Some("object"), _) if !schema["additionalProperties"].is_null() => "map of strings".to_owned(),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => "any".to_owned(),
    }
}

/// Returns what the schema demands beyond the type, in words.
fn bounds(schema: &Value) -> Vec<String> {
    let mut bounds = Vec::new();
    match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(least), Some(most)) => bounds.push(format!("{least} to {most}")),
        (Some(least), None) if least > 0.0 => bounds.push(format!("{least} or more")),
        (None, Some(most)) => bounds.push(format!("at most {most}")),
        (Some(_) | None, None) => {}
    }
    for (key, what) in [("maxItems", "entries"), ("maxLength", "characters")] {
        // Short texts are bounded by what they mean.
        if let Some(most) = schema[key].as_u64().filter(|most| key == "maxItems" || *most > 64) {
            bounds.push(format!("at most {most} {what}"));
        }
    }
    let rules = schema["x-kubernetes-validations"].as_array();
    let refusal = |rule: &Value| format!("else refused: “{}”", words(&rule["message"]));
    bounds.extend(rules.into_iter().flatten().map(refusal));
    bounds
}

fn words(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Returns what the agent does not obey: each word and each group of a TunnelConfig is set, and what it says of that is asked for.
fn not_obeyed() -> Vec<(String, String, String)> {
    let definition = json!(TunnelConfig::crd());
    let fields =
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let mut found = Vec::new();
    for (name, schema) in fields.as_object().expect("a spec has fields") {
        let mut values: Vec<Value> = schema["enum"].as_array().cloned().unwrap_or_default();
        if schema["x-kubernetes-int-or-string"] == json!(true) {
            values.extend(["Auto", "Probe"].map(Value::from));
        }
        if schema["type"] == "object" {
            values.push(json!({}));
        }
        for value in values {
            let object = json!({
                "apiVersion": "adit.dev/v1alpha1",
                "kind": "TunnelConfig",
                "metadata": { "name": "default" },
                "spec": { name: value },
            });
            let mut objects = Objects::default();
            objects.insert(read::object(&object).expect("the schema allows it"));
            let mut faults = Vec::new();
            let _ = Settings::of(&objects, "node", &BTreeMap::new(), &mut faults);
            let value = value.as_str().map_or_else(|| "any".to_owned(), |word| format!("`{word}`"));
            found.extend(faults.into_iter().map(|(_, fault)| (fault.field, value.clone(), fault.reason)));
        }
    }
    found
}

// ---- metrics

fn metrics() -> String {
    let mut text = format!(
        "{MADE}# Metrics\n\n`adit agent --metrics ADDRESS:PORT`, or `spec.metrics.address` of a TunnelConfig, serves them at `/metrics` for \
        Prometheus. Names end in the unit; a counter starts anew at 0 with the process that counts: the data plane for packets, bytes \
        and handshakes (`adit_dropped_packets_total`, `adit_peer_…`, `adit_handshake_duration_seconds`), the agent for its looks, the kernel's firewall for \
        `adit_cleartext_dropped_packets_total`. A metric that nobody can tell is absent: those of the data plane while it does not answer.\n\n\
        | Metric | Type | Labels | Unit | Meaning |\n|---|---|---|---|---|\n"
    );
    let all = metrics::every_metric();
    for line in all.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').expect("a metric has a meaning");
        let kind = all.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let _ = writeln!(
            text,
            "| `{name}` | {} | {} | {} | {} |",
            kind.expect("a metric has a type"),
            labels(&all, name),
            unit(name),
            cell(help)
        );
    }
    text.push_str("\nReasons of `adit_dropped_packets_total`: [drops.md](drops.md).\n");
    text
}

/// Returns the labels of a metric, with their values where these are words of ours.
fn labels(all: &str, name: &str) -> String {
    let mut labels: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in all.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')) {
        let (pairs, _) = line.rsplit_once('}').expect("labels have an end");
        for (label, value) in pairs.split("\",").filter_map(|pair| pair.split_once("=\"")) {
            labels.entry(label).or_default().push(value.trim_end_matches('"'));
        }
    }
    let is_word = |label: &str| matches!(label, "state" | "traffic" | "direction");
    let label = |(label, mut values): (&str, Vec<&str>)| {
        values.dedup();
        if is_word(label) { format!("`{label}`: {}", values.join(", ")) } else { format!("`{label}`") }
    };
    labels.into_iter().map(label).collect::<Vec<_>>().join("; ")
}

/// Prometheus's conventions: the unit is the last word but `total`.
fn unit(name: &str) -> &'static str {
    match name.trim_end_matches("_total").rsplit('_').next() {
        Some("bytes") => "bytes",
        Some("seconds") => "seconds",
        Some("packets") => "packets",
        Some("peers") => "peers",
        Some("nodes") => "nodes",
        Some("workers") => "threads",
        Some(_) | None if name.starts_with("adit_peers_") => "peers",
        Some(_) | None => "",
    }
}

// ---- drop reasons

fn drops() -> String {
    let mut text = format!(
        "{MADE}# Why a packet is dropped\n\nThe data plane counts what goes no further, by reason, and says nothing else of it: a hostile packet \
        costs one counter. `adit status -o json` shows the counters, and so does `adit_dropped_packets_total{{reason}}`; \
        `stats=1` on the configuration socket tells them to programs. § are sections of the WireGuard whitepaper. What the firewall drops \
        because it had to be encrypted is not here but in `adit_cleartext_dropped_packets_total`.\n\n| Reason | Meaning |\n|---|---|\n"
    );
    for reason in Dropped::ALL {
        let _ = writeln!(text, "| `{}` | {} |", reason.name(), cell(reason.meaning()));
    }
    text
}

// ---- pre-flight checks

fn preflight() -> String {
    let mut text = format!(
        "{MADE}# Pre-flight checks\n\n`adit preflight` makes them; an agent makes them when it starts and logs what does not pass; `peers` and what the ways to them take (`path-mtu`) \
        five seconds after it has peers, of 16 of them at most. Each ends as `pass`; \
        `warn`, it works but not in every way; `fail`, it does not; or `skip`, it could not be looked at. The evidence says what was seen.\n\n\
        | Check | Why | What helps |\n|---|---|---|\n"
    );
    for [id, why, fix] in crate::control::preflight::checks() {
        let _ = writeln!(text, "| `{id}` | {} | {} |", cell(why), cell(fix));
    }
    text
}
