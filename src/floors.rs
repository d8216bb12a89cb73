//! The floors of the house, checked: every `crate::…` path in a module must point to a floor below it.
//!
//! It reads text: `super::super` would escape it, so that is refused as well.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and what it may import.
const FLOORS: &[(&str, &[&str])] = &[
    ("crypto", &[]),
    ("sys", &[]),
    ("packet", &[]),
    ("config", &["crypto"]),
    ("wireguard", &["crypto", "packet", "config"]),
    ("device", &["crypto", "sys", "packet", "config", "wireguard"]),
    ("uapi", &["crypto", "sys", "config"]),
    ("control", &["crypto", "sys", "packet", "config", "wireguard"]),
    ("sim", &["crypto", "packet", "config", "wireguard"]),
    ("cli", &["crypto", "sys", "packet", "config", "wireguard", "device", "uapi", "control"]),
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The module a source file belongs to: the first component below `src`, without its ending.
fn module_of(path: &Path, root: &Path) -> String {
    let first = path.strip_prefix(root).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Every identifier that follows `crate::` in `text`, comments and the names in `crate::{a, b}` included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name: String =
                name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let module = module_of(file, &root);
        if ["lib", "main", "floors"].contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = FLOORS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module `{module}` has no floor", file.display()));
            continue;
        };
        let text = fs::read_to_string(file).unwrap();
        for name in imports(&text) {
            let is_module = FLOORS.iter().any(|(m, _)| *m == name);
            if name != module && (!is_module || !allowed.contains(&name.as_str())) {
                wrong.push(format!("{}: `crate::{name}` is not below `{module}`", file.display()));
            }
        }
        if text.contains("super::super") {
            wrong.push(format!("{}: `super::super` hides an import from this test", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_import_form_is_seen() {
    let upward =
        ["cra", "te::device::x; use cra", "te::{sim, uapi as u};"].concat().replace("cra te", "crate");
    assert_eq!(imports(&upward), ["device", "sim", "uapi"]);
}
