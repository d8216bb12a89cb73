//! Has the container runtime call the plugin: the runtime's configuration, and the plugin's program.
//!
//! The runtime takes the first network of a directory, by the order of names (libcni, `ConfFiles`). In chained mode the plugin is put
//! behind the last one of that network; one of a single plugin becomes a list for that, which takes its place in the order. In main mode
//! a network of our own is laid there, with `portmap` behind it if that is where the runtime looks for plugins.
//! Whoever else writes to the directory is followed. Files are written beside their place and renamed; what was there before is kept
//! with the ending `BACKUP`. A file of somebody else's that is no network to be chained to is never written over.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Options;
use super::barrier::Facts;
use crate::control::api::OnAgentUnavailable;

/// The program's name, by which the configuration refers to it.
pub const PLUGIN: &str = "adit-cni";
/// The plugin that leads ports of the host to pods, where it is installed.
const PORTMAP: &str = "portmap";
/// The network of main mode.
const OWN: &str = "10-adit.conflist";
/// What a list's name has behind that of its network of a single plugin, if the plain name is another's. A hyphen goes before letters, digits
/// and dots, so that the list is where the network was.
const BESIDE: &str = "-adit.conflist";
/// How the name of a file ends that was there before.
const BACKUP: &str = "adit-backup";
/// How the name of a file ends that is being written; no runtime reads it.
const UNFINISHED: &str = "adit-new";
/// What a runtime reads.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// What the plugin is in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Behind the plugins that make the pods' network.
    Chained,
    /// The one that makes it.
    Main,
}

/// Why the configuration could not be written.
pub type Failed = (PathBuf, io::Error);

/// Makes program and configuration what they should be, and tells whether the runtime will call the plugin. It will not in chained mode as
/// long as there is no other network, and in main mode as long as the node has no block of pod addresses.
///
/// # Errors
/// Names what cannot be read or written. A program that was there before stays, and is called.
pub fn install(options: &Options, facts: &Facts) -> Result<bool, Failed> {
    let Some(directory) = &options.configuration else { return Ok(false) };
    if let Some((program, place)) = &options.program {
        let target = place.join(PLUGIN);
        if let Err(error) = copy(program, &target) {
            if !target.exists() {
                return Err((target, error));
            }
            tracing::error!(program = %target.display(), %error, "the CNI plugin cannot be replaced; the one that is there stays");
        }
    }
    match options.mode {
        Mode::Chained => chain(directory, &entry(options, facts.on_agent_unavailable)),
        Mode::Main => lay(directory, options, facts),
    }
}

/// Puts the plugin back into the network that it was in before, if the network's owner has written that anew, as many do when they start:
/// until the node is ready pods are held, as they would be had it been left alone. Where it is, and where it never was, nothing is changed.
///
/// # Errors
/// Names what cannot be read or written.
pub fn put_back(options: &Options, on_agent_unavailable: OnAgentUnavailable) -> Result<(), Failed> {
    // The network of main mode is nobody else's.
    let (Some(directory), Mode::Chained) = (&options.configuration, options.mode) else { return Ok(()) };
    for path in files(directory)? {
        let Some(network) = read(&path)?.as_ref().and_then(as_list) else { continue };
        let is_there = network["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(is_ours));
        if !is_there && backup(&path).exists() {
            chain(directory, &entry(options, on_agent_unavailable))?;
        }
        break;
    }
    Ok(())
}

/// Takes the plugin out of every network of a directory, and brings back what was there before.
///
/// # Errors
/// Names what cannot be read or written.
pub fn remove(directory: &Path) -> Result<(), Failed> {
    for path in files(directory)? {
        let Some(mut network) = read(&path)? else { continue };
        let is_own = is_own(&path, &network);
        let Some(plugins) = network.get_mut("plugins").and_then(Value::as_array_mut) else { continue };
        let count = plugins.len();
        plugins.retain(|plugin| !is_ours(plugin));
        if plugins.len() == count {
            continue;
        }
        if is_own {
            fs::remove_file(&path).map_err(|error| (path, error))?;
            continue;
        }
        let is_same = |backup: &Path| matches!(read(backup), Ok(Some(before)) if as_list(&before).as_ref() == Some(&network));
        let single = singles(&path);
        // What was written since is not undone.
        match single.iter().find(|place| !place.exists() && is_same(&backup(place))) {
            Some(place) => {
                fs::rename(backup(place), place).map_err(|error| (place.clone(), error))?;
                fs::remove_file(&path).map_err(|error| (path, error))?;
            }
            None if is_same(&backup(&path)) => {
                fs::rename(backup(&path), &path).map_err(|error| (path, error))?;
            }
            None => {
                write(&path, &network)?;
                let _ = fs::remove_file(backup(&path));
            }
        }
    }
    sync(directory)
}

/// Removes the plugin's program from where the runtime looks for it, unless pods are left that were started with it: the runtime calls it
/// once more for each (libcni, `DelNetworkList`), and one that is missing keeps them from going. Tells whether it is gone.
///
/// # Errors
/// Names what cannot be read or removed.
pub fn remove_program(place: &Path, plugin_state: &Path) -> Result<bool, Failed> {
    let attachments = plugin_state.join("attachments");
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    // One whose name begins with a dot was never finished.
    let is_kept = |entry: io::Result<DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    };
    let has_pods = match fs::read_dir(&attachments) {
        Ok(mut entries) => entries.any(is_kept),
        Err(error) if is_gone(&error) => false,
        Err(error) => return Err((attachments, error)),
    };
    if has_pods {
        return Ok(false);
    }
    let target = place.join(PLUGIN);
    for path in [beside(&target, UNFINISHED), target] {
        match fs::remove_file(&path) {
            Err(error) if !is_gone(&error) => return Err((path, error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(true)
}

/// Puts the plugin behind the last one of the first network.
fn chain(directory: &Path, entry: &Value) -> Result<bool, Failed> {
    let files = files(directory)?;
    for path in files.iter().cloned() {
        let Some(found) = read(&path)? else { continue };
        let Some(mut network) = as_list(&found) else { continue };
        if is_own(&path, &network) {
            // Left from main mode.
            fs::remove_file(&path).map_err(|error| (path, error))?;
            continue;
        }
        let Some(plugins) = network.get_mut("plugins").and_then(Value::as_array_mut) else { continue };
        let list = list_for(&path, &files)?;
        match plugins.iter_mut().find(|plugin| is_ours(plugin)) {
            Some(plugin) if plugin == entry => return Ok(true),
            Some(plugin) => plugin.clone_from(entry),
            None => {
                plugins.push(entry.clone());
                keep(&path)?;
            }
        }
        write(&list, &network)?;
        if list != path {
            fs::remove_file(&path).map_err(|error| (path.clone(), error))?;
        }
        sync(directory)?;
        tracing::info!(network = %list.display(), "the CNI plugin is in the chain");
        return Ok(true);
    }
    Ok(false)
}

/// Returns where the list of a network is to be written, for one that is a list already where it is. The list of a single plugin must be
/// where the runtime finds it in that one's stead, before any other of `files`, and must not be somebody else's.
fn list_for(path: &Path, files: &[PathBuf]) -> Result<PathBuf, Failed> {
    if path.extension() == Some(OsStr::new("conflist")) {
        return Ok(path.to_owned());
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(BESIDE);
    let lists = [path.with_extension("conflist"), beside.into()];
    let is_free = |list: &&PathBuf| {
        let is_next = !files.iter().any(|other| path < other && other < *list);
        is_next && fs::symlink_metadata(list).is_err()
    };
    let list = lists.iter().find(|list| is_made(list)).or_else(|| lists.iter().find(is_free));
    list.cloned().ok_or_else(|| {
        let names = lists.each_ref().map(|list| list.file_name().unwrap_or_default().to_string_lossy());
        let text = format!(
            "a network of a single plugin cannot become a list: {} and {} are another's, or behind another network",
            names[0], names[1]
        );
        (path.to_owned(), io::Error::new(io::ErrorKind::AlreadyExists, text))
    })
}

/// Tells whether a list was made here of a network of a single plugin.
fn is_made(list: &Path) -> bool {
    let has_ours = || {
        let network = read(list).ok().flatten();
        network
            .as_ref()
            .and_then(|network| network["plugins"].as_array())
            .is_some_and(|plugins| plugins.iter().any(is_ours))
    };
    // One that was there before the plugin was put into it has a copy of its own.
    !backup(list).exists() && singles(list).iter().any(|single| backup(single).exists()) && has_ours()
}

/// Returns of which networks of a single plugin a list may have been made.
fn singles(list: &Path) -> Vec<PathBuf> {
    let mut singles = ["conf", "json"].map(|ending| list.with_extension(ending)).to_vec();
    let stem = list.as_os_str().as_bytes().strip_suffix(BESIDE.as_bytes());
    singles.extend(stem.map(|stem| PathBuf::from(OsStr::from_bytes(stem))));
    singles
}

/// Tells whether a file is the network of main mode as it was laid here: others may like its name.
fn is_own(path: &Path, network: &Value) -> bool {
    let first = &network["plugins"][0];
    path.file_name() == Some(OsStr::new(OWN)) && is_ours(first) && first["mode"] == "main"
}

/// Lays the network of main mode.
fn lay(directory: &Path, options: &Options, facts: &Facts) -> Result<bool, Failed> {
    if facts.pods.is_empty() {
        return Ok(false);
    }
    let mut plugin = entry(options, facts.on_agent_unavailable);
    let ranges = facts.pods.iter().map(|prefix| json!([{ "subnet": prefix.to_string() }]));
    plugin["ipam"] = json!({ "type": "host-local", "ranges": ranges.collect::<Vec<_>>() });
    let mut network = json!({ "cniVersion": "1.0.0", "name": "adit", "plugins": [plugin] });
    if has_portmap(options) {
        // Releases before 1.6 know nothing later than 1.0.0, and which it is only its own word would tell.
        let portmap = json!({ "type": PORTMAP, "capabilities": { "portMappings": true } });
        network["plugins"] = json!([plugin, portmap]);
    } else {
        // A runtime that knows 1.1.0 takes the best of these, and calls STATUS and GC then.
        network["cniVersions"] = json!(["1.0.0", "1.1.0"]);
    }
    let path = directory.join(OWN);
    if fs::symlink_metadata(&path).is_ok() {
        let found = read(&path)?;
        if found.as_ref() == Some(&network) {
            return Ok(true);
        }
        if !found.is_some_and(|found| is_own(&path, &found)) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "it is another's, and stays as it is");
            return Err((path, error));
        }
    }
    write(&path, &network)?;
    sync(directory)?;
    tracing::info!(network = %path.display(), "the network of the pods is there");
    Ok(true)
}

fn has_portmap(options: &Options) -> bool {
    // A link may lead to what is seen on the host alone.
    let is_there = |place: &PathBuf| fs::symlink_metadata(place.join(PORTMAP)).is_ok();
    options.program.as_ref().is_some_and(|(_, place)| is_there(place))
}

fn entry(options: &Options, on_agent_unavailable: OnAgentUnavailable) -> Value {
    json!({
        "type": PLUGIN,
        "mode": match options.mode {
            Mode::Chained => "chained",
            Mode::Main => "main",
        },
        "agentSocket": options.socket,
        "stateDir": options.plugin_state,
        "onAgentUnavailable": match on_agent_unavailable {
            OnAgentUnavailable::Fail => "fail",
            OnAgentUnavailable::Ignore => "allow",
        },
    })
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

/// Returns a network as a list of plugins; `None` if it is none that a runtime would take.
fn as_list(found: &Value) -> Option<Value> {
    match found.get("plugins") {
        Some(Value::Array(plugins)) if !plugins.is_empty() => Some(found.clone()),
        Some(_) => None,
        None => {
            // libcni, ConfListFromConf.
            found.get("type")?.as_str()?;
            Some(json!({ "cniVersion": found["cniVersion"], "name": found["name"], "plugins": [found] }))
        }
    }
}

/// Returns what a runtime reads, in its order.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Failed> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut paths = list().map_err(|error| (directory.to_owned(), error))?;
    paths.retain(|path| {
        path.extension().and_then(OsStr::to_str).is_some_and(|ending| ENDINGS.contains(&ending))
            && path.is_file()
    });
    paths.sort();
    Ok(paths)
}

/// Reads a network; one that is damaged is passed over, as the runtime does.
fn read(path: &Path) -> Result<Option<Value>, Failed> {
    let failed = |error| (path.to_owned(), error);
    if fs::metadata(path).map_err(failed)?.len() > FILE_MAX {
        return Ok(None);
    }
    let text = fs::read(path).map_err(failed)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn backup(path: &Path) -> PathBuf {
    beside(path, BACKUP)
}

/// Returns the path of a file with one more ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Keeps a file as it is.
fn keep(path: &Path) -> Result<(), Failed> {
    let bytes = fs::read(path).map_err(|error| (path.to_owned(), error))?;
    replace(&backup(path), &bytes, 0o600)
}

fn write(path: &Path, network: &Value) -> Result<(), Failed> {
    let mut text = serde_json::to_vec_pretty(network).map_err(|error| (path.to_owned(), error.into()))?;
    text.push(b'\n');
    replace(path, &text, 0o600)
}

/// Writes a file beside its place, has it reach the disk, and puts it in its place.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failed> {
    let unfinished = beside(path, UNFINISHED);
    let write = || {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|error| (path.to_owned(), error))
}

fn sync(directory: &Path) -> Result<(), Failed> {
    let sync = || File::open(directory)?.sync_all();
    sync().map_err(|error| (directory.to_owned(), error))
}

/// Copies a program, unless the very same is there.
fn copy(program: &Path, target: &Path) -> io::Result<()> {
    let bytes = fs::read(program)?;
    let is_same = || fs::read(target).is_ok_and(|found| found == bytes);
    if is_same() {
        return Ok(());
    }
    replace(target, &bytes, 0o755).map_err(|(_, error)| error)?;
    // A disk that is full, or one that is read-only and says so late.
    if is_same() { Ok(()) } else { Err(io::Error::other("what was written is not what is read")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-conflist-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, network: &Value) {
            fs::write(self.0.join(name), network.to_string()).unwrap();
        }

        fn network(&self, name: &str) -> Value {
            read(&self.0.join(name)).unwrap().unwrap()
        }

        /// Returns the types of the plugins of a network.
        fn types(&self, name: &str) -> Vec<String> {
            let network = self.network(name);
            let plugins = network["plugins"].as_array().unwrap();
            plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn options(&self, mode: Mode) -> Options {
            Options {
                socket: "/run/adit/cni.sock".into(),
                plugin_state: "/var/lib/adit/cni".into(),
                configuration: Some(self.0.clone()),
                mode,
                program: None,
            }
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn facts() -> Facts {
        Facts {
            mode: api::Mode::Strict,
            on_agent_unavailable: OnAgentUnavailable::Fail,
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            mtu: None,
            has_data_plane: true,
            failure: None,
        }
    }

    fn list(types: &[&str]) -> Value {
        let plugins: Vec<_> = types.iter().map(|plugin| json!({ "type": plugin })).collect();
        json!({ "cniVersion": "0.4.0", "name": "net", "plugins": plugins })
    }

    #[test]
    fn the_first_network_gets_the_plugin_at_its_end_once() {
        let directory = Directory::new("chain");
        let options = directory.options(Mode::Chained);
        assert!(!install(&options, &facts()).unwrap(), "there is no network yet");
        fs::write(directory.0.join("00-damaged.conflist"), "{").unwrap();
        directory.put("05-empty.conflist", &list(&[]));
        directory.put("10-flannel.conflist", &list(&["flannel", "portmap"]));
        directory.put("20-later.conflist", &list(&["bridge"]));
        directory.put("00-note.txt", &list(&["none"]));
        for _ in 0..2 {
            assert!(install(&options, &facts()).unwrap());
            assert_eq!(directory.types("10-flannel.conflist"), ["flannel", "portmap", "adit-cni"]);
        }
        assert_eq!(directory.types("20-later.conflist"), ["bridge"]);
        assert_eq!(directory.network("10-flannel.conflist.adit-backup"), list(&["flannel", "portmap"]));
        // What the plugin is told changes with what is wanted.
        let allowing = Facts { on_agent_unavailable: OnAgentUnavailable::Ignore, ..facts() };
        install(&options, &allowing).unwrap();
        assert_eq!(directory.network("10-flannel.conflist")["plugins"][2]["onAgentUnavailable"], "allow");
        // Its owner writes it anew.
        directory.put("10-flannel.conflist", &list(&["flannel"]));
        install(&options, &facts()).unwrap();
        assert_eq!(directory.types("10-flannel.conflist"), ["flannel", "adit-cni"]);
        remove(&directory.0).unwrap();
        assert_eq!(directory.network("10-flannel.conflist"), list(&["flannel"]));
        assert!(!directory.names().iter().any(|name| name.contains("adit")), "{:?}", directory.names());
    }

    #[test]
    fn a_node_that_is_not_ready_has_the_plugin_where_it_was_and_nowhere_else() {
        let directory = Directory::new("back");
        let options = directory.options(Mode::Chained);
        let single = json!({ "cniVersion": "0.3.1", "name": "net", "type": "bridge" });
        for (name, network) in [("20-flannel.conflist", list(&["flannel"])), ("10-bridge.conf", single)] {
            directory.put(name, &network);
            put_back(&options, OnAgentUnavailable::Fail).unwrap();
            assert_eq!(directory.network(name), network, "never there");
            install(&options, &facts()).unwrap();
            // Its owner starts.
            directory.put(name, &network);
            put_back(&options, OnAgentUnavailable::Ignore).unwrap();
            // What it is told there stays until it is known better.
            put_back(&options, OnAgentUnavailable::Fail).unwrap();
            let list = Path::new(name).with_extension("conflist");
            let plugins = &directory.network(list.to_str().unwrap())["plugins"];
            assert_eq!(
                (&plugins[1]["type"], &plugins[1]["onAgentUnavailable"]),
                (&json!("adit-cni"), &json!("allow"))
            );
        }
        remove(&directory.0).unwrap();
        assert_eq!(directory.names(), ["10-bridge.conf", "20-flannel.conflist"]);
        put_back(&options, OnAgentUnavailable::Fail).unwrap();
        assert_eq!(directory.network("20-flannel.conflist"), list(&["flannel"]), "taken away");
    }

    #[test]
    fn a_network_of_one_plugin_becomes_a_list_and_one_again() {
        let directory = Directory::new("single");
        let options = directory.options(Mode::Chained);
        let single = json!({ "cniVersion": "0.3.1", "name": "net", "type": "bridge", "isGateway": true });
        directory.put("10-bridge.conf", &single);
        assert!(install(&options, &facts()).unwrap());
        assert_eq!(directory.names(), ["10-bridge.conf.adit-backup", "10-bridge.conflist"]);
        assert_eq!(directory.types("10-bridge.conflist"), ["bridge", "adit-cni"]);
        assert_eq!(directory.network("10-bridge.conflist")["name"], "net");
        remove(&directory.0).unwrap();
        assert_eq!(directory.names(), ["10-bridge.conf"]);
        assert_eq!(directory.network("10-bridge.conf"), single);
    }

    #[test]
    fn a_list_that_somebody_else_has_made_is_left_alone() {
        let single = json!({ "cniVersion": "0.3.1", "name": "net", "type": "bridge" });
        // Before `10-a.json` the list would be the first, were it not damaged.
        for (name, foreign) in [("10-a.conf", list(&["ptp"]).to_string()), ("10-a.json", "{".to_owned())] {
            let directory = Directory::new(&format!("foreign-{name}"));
            let options = directory.options(Mode::Chained);
            let list = &format!("{name}-adit.conflist");
            directory.put(name, &single);
            fs::write(directory.0.join("10-a.conflist"), &foreign).unwrap();
            for _ in 0..2 {
                assert!(install(&options, &facts()).unwrap());
                assert_eq!(directory.types(list), ["bridge", "adit-cni"]);
                assert_eq!(fs::read_to_string(directory.0.join("10-a.conflist")).unwrap(), foreign);
                let first =
                    files(&directory.0).unwrap().into_iter().find(|path| read(path).unwrap().is_some());
                assert_eq!(first, Some(directory.0.join(list)), "the one that the runtime takes");
                // Its owner starts.
                directory.put(name, &single);
                put_back(&options, OnAgentUnavailable::Fail).unwrap();
                assert!(!directory.0.join(name).exists());
            }
            // Also once the plain name is free, the list stays where it is.
            fs::remove_file(directory.0.join("10-a.conflist")).unwrap();
            directory.put(name, &single);
            assert!(install(&options, &facts()).unwrap());
            assert_eq!(directory.names(), [list.to_owned(), format!("{name}.adit-backup")]);
            remove(&directory.0).unwrap();
            assert_eq!(directory.names(), [name]);
            assert_eq!(directory.network(name), single);
        }
    }

    #[test]
    fn where_no_list_can_take_a_networks_place_that_is_said_and_nothing_changed() {
        let directory = Directory::new("no-place");
        let options = directory.options(Mode::Chained);
        let single = json!({ "cniVersion": "0.3.1", "name": "net", "type": "bridge" });
        directory.put("10-a.conf", &single);
        directory.put("10-a.conflist", &list(&["ptp", "adit-cni"]));
        // One that would be before the list, and one in its place.
        for name in ["10-a.conf+.conf", "10-a.conf-adit.conflist"] {
            directory.put(name, &list(&["ptp"]));
            let before = directory.names();
            let (path, error) = install(&options, &facts()).unwrap_err();
            assert_eq!(path, directory.0.join("10-a.conf"));
            assert!(error.to_string().contains("10-a.conf-adit.conflist"), "{error}");
            assert_eq!((directory.names(), directory.network("10-a.conf")), (before, single.clone()));
            fs::remove_file(directory.0.join(name)).unwrap();
        }
        // A link that leads nowhere is somebody's, too; and a list that the plugin was put into is not made here.
        fs::remove_file(directory.0.join("10-a.conflist")).unwrap();
        std::os::unix::fs::symlink("/nowhere", directory.0.join("10-a.conflist")).unwrap();
        assert!(install(&options, &facts()).unwrap());
        assert!(fs::symlink_metadata(directory.0.join("10-a.conflist")).unwrap().is_symlink());
        remove(&directory.0).unwrap();
        fs::remove_file(directory.0.join("10-a.conflist")).unwrap();
        fs::remove_file(directory.0.join("10-a.conf")).unwrap();
        directory.put("10-a.conflist", &list(&["ptp"]));
        assert!(install(&options, &facts()).unwrap());
        directory.put("10-a.conf", &single);
        assert!(install(&options, &facts()).unwrap());
        assert_eq!(directory.types("10-a.conf-adit.conflist"), ["bridge", "adit-cni"]);
        assert_eq!(directory.types("10-a.conflist"), ["ptp", "adit-cni"]);
        remove(&directory.0).unwrap();
        assert_eq!(directory.names(), ["10-a.conf", "10-a.conflist"]);
        assert_eq!(directory.network("10-a.conflist"), list(&["ptp"]));
    }

    #[test]
    fn a_network_of_somebody_elses_by_the_name_of_ours_is_one_like_any_other() {
        let directory = Directory::new("namesake");
        directory.put("10-adit.conflist", &list(&["flannel"]));
        let (path, error) = install(&directory.options(Mode::Main), &facts()).unwrap_err();
        assert_eq!(
            (path, error.kind()),
            (directory.0.join("10-adit.conflist"), io::ErrorKind::AlreadyExists)
        );
        assert_eq!(directory.network("10-adit.conflist"), list(&["flannel"]));
        assert!(install(&directory.options(Mode::Chained), &facts()).unwrap());
        assert_eq!(directory.types("10-adit.conflist"), ["flannel", "adit-cni"]);
        remove(&directory.0).unwrap();
        assert_eq!(directory.network("10-adit.conflist"), list(&["flannel"]));
    }

    #[test]
    fn in_main_mode_the_network_has_the_nodes_blocks() {
        let directory = Directory::new("main");
        let options = directory.options(Mode::Main);
        assert!(!install(&options, &Facts { pods: Vec::new(), ..facts() }).unwrap());
        assert!(directory.names().is_empty());
        for subnet in ["10.244.1.0/24", "10.244.2.0/24"] {
            let facts = Facts { pods: vec![subnet.parse().unwrap()], ..facts() };
            assert!(install(&options, &facts).unwrap());
            let network = directory.network("10-adit.conflist");
            assert_eq!(network["plugins"][0]["ipam"]["ranges"], json!([[{ "subnet": subnet }]]));
        }
        assert_eq!(directory.names(), ["10-adit.conflist"]);
        // The mode is changed: behind another one, it makes no network itself.
        directory.put("20-flannel.conflist", &list(&["flannel"]));
        assert!(install(&directory.options(Mode::Chained), &facts()).unwrap());
        assert_eq!(directory.types("20-flannel.conflist"), ["flannel", "adit-cni"]);
        assert!(!directory.names().contains(&"10-adit.conflist".to_owned()));
        install(&options, &facts()).unwrap();
        remove(&directory.0).unwrap();
        assert_eq!(directory.names(), ["20-flannel.conflist"]);
    }

    #[test]
    fn in_main_mode_ports_are_mapped_where_there_is_a_plugin_for_it() {
        let directory = Directory::new("portmap");
        let (program, place) = (directory.0.join("new"), directory.0.join("bin"));
        fs::create_dir(&place).unwrap();
        fs::write(&program, "program").unwrap();
        let options = Options { program: Some((program, place.clone())), ..directory.options(Mode::Main) };
        install(&options, &facts()).unwrap();
        assert_eq!(directory.types("10-adit.conflist"), ["adit-cni"]);
        assert_eq!(directory.network("10-adit.conflist")["cniVersions"], json!(["1.0.0", "1.1.0"]));
        // As Debian has it on the host: in a container the link leads nowhere.
        std::os::unix::fs::symlink("/nowhere/portmap", place.join("portmap")).unwrap();
        install(&options, &facts()).unwrap();
        assert_eq!(directory.types("10-adit.conflist"), ["adit-cni", "portmap"]);
        let network = directory.network("10-adit.conflist");
        assert_eq!((&network["cniVersion"], &network["cniVersions"]), (&json!("1.0.0"), &Value::Null));
        remove(&directory.0).unwrap();
        assert!(!directory.names().contains(&"10-adit.conflist".to_owned()));
    }

    #[test]
    fn the_program_is_replaced_whole_or_not_at_all() {
        let directory = Directory::new("program");
        let (program, place) = (directory.0.join("new"), directory.0.join("bin"));
        fs::create_dir(&place).unwrap();
        let target = place.join(PLUGIN);
        let mut options = directory.options(Mode::Chained);
        options.program = Some((program.clone(), place));
        assert_eq!(install(&options, &facts()).unwrap_err().0, target, "there is none");
        for bytes in [&b"one"[..], b"another"] {
            fs::write(&program, bytes).unwrap();
            install(&options, &facts()).unwrap();
            assert_eq!(fs::read(&target).unwrap(), bytes);
        }
        fs::remove_file(&program).unwrap();
        install(&options, &facts()).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"another", "the one that was there");
    }

    #[test]
    fn the_program_goes_once_no_pod_needs_it_and_nobody_elses_does() {
        let directory = Directory::new("program-goes");
        let (place, state) = (directory.0.join("bin"), directory.0.join("cni"));
        let attachments = state.join("attachments");
        [&place, &attachments].into_iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let names = ["adit-cni", "adit-cni.adit-new", "bridge"];
        names.iter().for_each(|name| fs::write(place.join(name), name).unwrap());
        let left = || names.map(|name| place.join(name).exists());
        fs::write(attachments.join("one:eth0"), "{}").unwrap();
        fs::write(attachments.join(".123"), "{").unwrap();
        assert!(!remove_program(&place, &state).unwrap(), "a pod would not go without it");
        assert_eq!(left(), [true; 3]);
        fs::remove_file(attachments.join("one:eth0")).unwrap();
        assert!(remove_program(&place, &state).unwrap());
        assert_eq!(left(), [false, false, true]);
        // Once more, and where there never was one.
        assert!(remove_program(&place, Path::new("/nowhere")).unwrap());
    }
}
