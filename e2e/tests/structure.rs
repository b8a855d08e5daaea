//! The house holds: modules use only what lies to their right, files stay readable, generated files
//! are what the binary prints.

#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use countersign::cli::crds;

/// What each module may use. The direction keeps `pki` and `plan` free of I/O.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "cli",
        &["api", "cluster", "controller", "metrics", "pki", "plan", "serve", "telemetry", "token"],
    ),
    ("controller", &["api", "cluster", "ingress", "metrics", "pki", "plan", "token"]),
    ("serve", &["api", "cluster", "metrics", "pki", "plan"]),
    ("cluster", &["api", "plan"]),
    ("plan", &["api", "ingress", "pki"]),
    ("ingress", &["api", "pki"]),
    ("token", &["pki"]),
    ("pki", &[]),
    ("api", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
];

/// Crates that do I/O, keep time or draw randomness have no place in the pure modules.
const PURE: &[(&str, &[&str])] = &[
    ("pki", &["kube", "k8s_openapi", "tokio", "Timestamp::now", "SystemTime", "Instant"]),
    (
        "plan",
        &[
            "tokio",
            "kube::Client",
            "kube::Api",
            "Timestamp::now",
            "SystemTime",
            "Instant",
            "::random()",
            "::generate()",
        ],
    ),
    ("ingress", &["tokio", "kube::", "Timestamp::now", "SystemTime", "Instant"]),
    ("api", &["tokio", "kube::Client", "kube::Api", "Timestamp::now", "SystemTime", "Instant"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file before its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap()
        .split("#[cfg(test)]\npub(crate) mod tests")
        .next()
        .unwrap()
        .to_owned()
}

fn module(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules of this crate that a file names: `crate::a::..` and `crate::{a, b::..}`.
fn imports(code: &str) -> Vec<String> {
    let identifier = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for part in code.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                found.extend(list.split(',').map(|name| identifier(name.trim())));
            }
            None => found.push(identifier(part)),
        }
    }
    found
}

#[test]
fn modules_use_only_what_lies_to_their_right() {
    let mut seen = BTreeSet::new();
    for path in files(&root().join("src"), ".rs") {
        let module = module(&path);
        if ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        let allowed = LAYERS.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("module {module:?} has no layer"));
        for used in imports(&code(&path)) {
            assert!(
                used == module || allowed.contains(&used.as_str()),
                "{}: {module} must not use {used}",
                path.display()
            );
            seen.insert(used);
        }
    }
    assert!(seen.len() >= 6, "the test reads no imports: {seen:?}");
}

#[test]
fn pure_modules_do_no_io_and_know_no_time() {
    for path in files(&root().join("src"), ".rs") {
        let module = module(&path);
        let Some((_, banned)) = PURE.iter().find(|(name, _)| *name == module) else { continue };
        let code = code(&path);
        for word in *banned {
            let used = code.lines().any(|line| {
                !line.trim_start().starts_with("//")
                    && line.contains(word)
                    && !(line.contains("pub fn") || line.contains("use kube::{"))
            });
            assert!(!used, "{}: {module} must not use {word}", path.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for path in files(&root().join("src"), ".rs") {
        let lines = code(&path).lines().count();
        assert!(
            lines <= 520,
            "{}: {lines} lines of code; two rooms would be clearer",
            path.display()
        );
    }
}

#[test]
fn crds_are_what_the_binary_prints_in_both_places() {
    let chart = root().join("charts/countersign/crd-files");
    let wanted = crds::files().unwrap();
    for folder in [root().join("crds"), chart] {
        for (name, text) in &wanted {
            let path = folder.join(name);
            let found =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(found == *text, "{} is stale: run `make crds`", path.display());
        }
        assert_eq!(files(&folder, ".yaml").len(), wanted.len(), "{}", folder.display());
    }
}
