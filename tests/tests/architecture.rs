//! The arrows between the crates, as ARCHITECTURE.md draws them, read from `cargo metadata`.
//!
//! Development dependencies are free: a test may look at anything. What ships may not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Every crate under `crates/`, with the crates of this workspace that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("distill-quant", &[]),
    ("distill-recipe", &[]),
    ("distill-gguf", &["distill-quant"]),
    ("distill-data", &["distill-gguf"]),
    ("distill-edge", &["distill-quant", "distill-gguf"]),
    ("distill-export", &["distill-quant", "distill-gguf", "distill-edge"]),
    ("distill-teacher", &["distill-data", "distill-gguf", "distill-edge"]),
    ("distill-ops", &["distill-quant"]),
    ("distill-models", &["distill-quant", "distill-gguf", "distill-ops"]),
    ("distill-eval", &["distill-models", "distill-data", "distill-edge", "distill-quant"]),
    (
        "distill-train",
        &[
            "distill-ops",
            "distill-models",
            "distill-data",
            "distill-recipe",
            "distill-eval",
            "distill-edge",
            "distill-gguf",
            "distill-teacher",
        ],
    ),
    (
        "distill",
        &[
            "distill-quant",
            "distill-recipe",
            "distill-gguf",
            "distill-data",
            "distill-edge",
            "distill-export",
            "distill-ops",
            "distill-models",
            "distill-train",
            "distill-eval",
            "distill-teacher",
        ],
    ),
];

/// Crates that no chain of dependencies may lead from to Burn: what reads, writes or runs a model
/// without training it builds in seconds and fits a device.
const WITHOUT_BURN: &[&str] = &[
    "distill-quant",
    "distill-recipe",
    "distill-gguf",
    "distill-data",
    "distill-edge",
    "distill-export",
    "distill-teacher",
];

/// All that the runtime that ships on devices is built from, however indirectly.
const EDGE_PARTS: &[&str] = &["distill-edge", "distill-gguf", "distill-quant", "memmap2", "libc"];

#[test]
fn crates_depend_only_along_the_arrows() {
    let workspace = Workspace::read();
    for (name, allowed) in ARROWS {
        for dependency in workspace.local_dependencies(name) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency}; it may depend on {allowed:?}. \
                 Move what it needs, or change the arrows here and in ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn every_crate_stands_in_the_arrows() {
    let workspace = Workspace::read();
    let drawn: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let built: BTreeSet<&str> = workspace
        .members
        .keys()
        .map(String::as_str)
        .filter(|name| *name != "distill-tests")
        .collect();
    assert_eq!(built, drawn, "the crates of the workspace (left) and those with arrows (right)");
}

#[test]
fn the_arrows_have_no_cycle() {
    // Listed bottom-up: a crate may only point at crates above it in the table.
    for (index, (name, allowed)) in ARROWS.iter().enumerate() {
        for dependency in *allowed {
            assert!(
                ARROWS[..index].iter().any(|(above, _)| above == dependency),
                "{name} points at {dependency}, which does not stand before it"
            );
        }
    }
}

#[test]
fn burn_is_reached_only_by_training_and_evaluation() {
    let workspace = Workspace::read();
    for name in WITHOUT_BURN {
        if let Some(chain) = workspace.chain_to(name, |package| {
            package == "burn" || package.starts_with("burn-") || package.starts_with("cubecl")
        }) {
            panic!("{name} must build without Burn, and reaches it by {}", chain.join(" -> "));
        }
    }
    assert!(
        workspace.chain_to("distill-models", |package| package == "burn").is_some(),
        "distill-models no longer reaches burn: this test has lost its eyes"
    );
}

#[test]
fn the_grids_depend_on_nothing() {
    let workspace = Workspace::read();
    assert_eq!(workspace.direct_dependencies("distill-quant"), BTreeSet::new());
}

#[test]
fn the_runtime_is_built_from_memory_mapping_and_our_own_crates() {
    let workspace = Workspace::read();
    if let Some(chain) = workspace.chain_to("distill-edge", |name| !EDGE_PARTS.contains(&name)) {
        panic!("distill-edge is to be built from {EDGE_PARTS:?} alone: {}", chain.join(" -> "));
    }
}

/// What `cargo metadata` says of this workspace, for the platform that runs the test.
struct Workspace {
    /// Package name to package id, for the members of the workspace.
    members: BTreeMap<String, String>,
    /// Package id to package name, for every package in the graph.
    names: HashMap<String, String>,
    /// Package id to the ids it needs for building and running, development dependencies left out.
    edges: HashMap<String, Vec<String>>,
}

impl Workspace {
    fn read() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // Offline and for this platform only: exactly the packages that building the test has fetched.
        let output = Command::new(&cargo)
            .args(["metadata", "--format-version=1", "--offline", "--locked"])
            .args(["--filter-platform", &host_platform(), "--manifest-path"])
            .arg(&manifest)
            .output()
            .unwrap_or_else(|error| panic!("{cargo} metadata: {error}"));
        assert!(
            output.status.success(),
            "{cargo} metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON from cargo");
        Self::from_metadata(&metadata)
    }

    fn from_metadata(metadata: &Value) -> Self {
        let names: HashMap<String, String> = array(&metadata["packages"])
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let members = array(&metadata["workspace_members"])
            .map(|id| (names[&text(id)].clone(), text(id)))
            .collect();
        let edges = array(&metadata["resolve"]["nodes"])
            .map(|node| {
                let needed = array(&node["deps"])
                    .filter(|dependency| {
                        array(&dependency["dep_kinds"]).any(|kind| kind["kind"] != "dev")
                    })
                    .map(|dependency| text(&dependency["pkg"]))
                    .collect();
                (text(&node["id"]), needed)
            })
            .collect();
        Self { members, names, edges }
    }

    fn id(&self, name: &str) -> &str {
        self.members.get(name).unwrap_or_else(|| panic!("{name} is not a member of the workspace"))
    }

    fn direct_dependencies(&self, name: &str) -> BTreeSet<String> {
        self.edges[self.id(name)].iter().map(|id| self.names[id].clone()).collect()
    }

    fn local_dependencies(&self, name: &str) -> BTreeSet<String> {
        let mut dependencies = self.direct_dependencies(name);
        dependencies.retain(|dependency| self.members.contains_key(dependency));
        dependencies
    }

    /// The shortest chain of dependencies from a member to a package that `is_sought` accepts by name.
    fn chain_to(&self, name: &str, is_sought: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let start = self.id(name);
        let mut came_from: HashMap<&str, &str> = HashMap::new();
        let mut level = vec![start];
        while !level.is_empty() {
            let mut next = Vec::new();
            for id in level {
                if is_sought(&self.names[id]) {
                    let mut chain = vec![self.names[id].clone()];
                    let mut at = id;
                    while let Some(&before) = came_from.get(at) {
                        chain.push(self.names[before].clone());
                        at = before;
                    }
                    chain.reverse();
                    return Some(chain);
                }
                for needed in &self.edges[id] {
                    if needed != start && !came_from.contains_key(needed.as_str()) {
                        came_from.insert(needed, id);
                        next.push(needed.as_str());
                    }
                }
            }
            level = next;
        }
        None
    }
}

fn host_platform() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc -vV");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("a host line from rustc -vV")
        .to_owned()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().unwrap_or_else(|| panic!("an array, found {value}")).iter()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string, found {value}")).to_owned()
}
