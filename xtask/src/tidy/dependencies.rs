//! The rule for dependencies: broker → client-lib (wire and sys only), broker → xdp-ebpf, and nothing back.
//!
//! It keeps a client from pulling in what only the daemon needs (aya, tokio), and the daemon from linking
//! ring code. What counts is what a package needs to be used: the dependencies of its tests are its own
//! business.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

const BROKER: &str = "xsk-broker";
const CLIENT: &str = "xsk-client";
/// The client library for C, and its tool: users of it, of whom nobody is one.
const CAPI: &str = "xsk-client-capi";
const PERF: &str = "xskperf";
const EBPF: &str = "xdp-ebpf";
/// All of ours. The tools (xtask, e2e) may depend on what they like, and nobody on them.
const OURS: [&str; 7] = [BROKER, CLIENT, CAPI, PERF, EBPF, "xtask", "e2e"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    optional: bool,
    uses_default_features: bool,
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// `metadata` is what `cargo metadata --format-version=1` prints.
pub(super) fn complaints(metadata: &Value) -> Result<Vec<String>> {
    let metadata =
        Metadata::deserialize(metadata).context("cargo metadata has a form that tidy does not know")?;
    let mut complaints = Vec::new();
    let rules: [(&str, &[&str]); 5] = [
        (BROKER, &[CLIENT, EBPF]),
        (CLIENT, &[]),
        (CAPI, &[CLIENT]),
        (PERF, &[CLIENT]),
        (EBPF, &[]),
    ];
    for (package, allowed) in rules {
        let package = metadata.package(package)?;
        let ours = package
            .needed()
            .filter(|dependency| OURS.contains(&dependency.name.as_str()));
        for dependency in ours {
            if !allowed.contains(&dependency.name.as_str()) {
                complaints.push(format!(
                    "{} depends on {}: it may depend on {} of ours",
                    package.name,
                    dependency.name,
                    if allowed.is_empty() {
                        "nothing".to_owned()
                    } else {
                        allowed.join(" and ")
                    }
                ));
            }
        }
    }
    complaints.extend(ring_code_in_the_daemon(metadata.package(BROKER)?));
    complaints.extend(daemon_code_in_the_client(&metadata)?);
    Ok(complaints)
}

/// The daemon takes the protocol and the kernel's names from the client library, and no datapath.
fn ring_code_in_the_daemon(broker: &Package) -> Vec<String> {
    let mut complaints = Vec::new();
    for client in broker.needed().filter(|dependency| dependency.name == CLIENT) {
        if client.uses_default_features {
            complaints.push(format!(
                "{BROKER} uses {CLIENT} with its default features, and so links ring code: say \
                 `default-features = false`"
            ));
        }
        for feature in &client.features {
            if !["wire", "sys"].contains(&feature.as_str()) {
                complaints.push(format!(
                    "{BROKER} uses {CLIENT}'s feature `{feature}`: wire and sys are all it may"
                ));
            }
        }
    }
    complaints
}

/// A program that uses the client must not get an eBPF loader, nor an async runtime that it did not ask for.
fn daemon_code_in_the_client(metadata: &Metadata) -> Result<Vec<String>> {
    let client = metadata.package(CLIENT)?;
    let mut complaints = Vec::new();
    for (name, why) in [
        ("aya", "clients load no programs"),
        ("tokio", "a runtime is the caller's choice"),
    ] {
        let directly = client
            .needed()
            .any(|dependency| dependency.name == name && !dependency.optional);
        if directly || metadata.closure(client).contains(name) {
            complaints.push(format!(
                "{CLIENT} depends on {name}: {why}; make it optional, or do without"
            ));
        }
    }
    Ok(complaints)
}

impl Metadata {
    fn package(&self, name: &str) -> Result<&Package> {
        let found = self.packages.iter().find(|package| package.name == name);
        found.with_context(|| format!("the workspace has no package {name}, for which tidy has rules"))
    }

    /// The names of all packages that come with `package`, except through its optional dependencies.
    fn closure(&self, package: &Package) -> BTreeSet<&str> {
        let optional: BTreeSet<&str> = package
            .needed()
            .filter(|dependency| dependency.optional)
            .map(|dependency| dependency.name.as_str())
            .collect();
        let name_of = |id: &str| {
            self.packages
                .iter()
                .find(|package| package.id == id)
                .map(|it| it.name.as_str())
        };
        let mut names = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![package.id.as_str()];
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let edges = self
                .resolve
                .nodes
                .iter()
                .filter(|node| node.id == id)
                .flat_map(|node| &node.deps);
            for edge in edges.filter(|edge| edge.dep_kinds.iter().any(EdgeKind::is_needed)) {
                let Some(name) = name_of(&edge.pkg) else { continue };
                if id != package.id || !optional.contains(name) {
                    names.insert(name);
                    open.push(&edge.pkg);
                }
            }
        }
        names
    }
}

impl Package {
    fn needed(&self) -> impl Iterator<Item = &Dependency> {
        self.dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
    }
}

impl EdgeKind {
    fn is_needed(&self) -> bool {
        self.kind.as_deref() != Some("dev")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dependency(name: &str, features: &[&str]) -> Value {
        json!({
            "name": name, "kind": null, "optional": false, "uses_default_features": false, "features": features,
        })
    }

    /// A workspace whose packages declare these dependencies; the resolved graph has an edge for each.
    fn workspace(broker: &[Value], client: &[Value], ebpf: &[Value]) -> Value {
        let others = ["aya", "tokio", "bytes", "e2e", CAPI, PERF];
        let declared = [(BROKER, broker), (CLIENT, client), (EBPF, ebpf)];
        let declared = declared
            .into_iter()
            .chain(others.map(|name| (name, [].as_slice())));
        let (mut packages, mut nodes) = (Vec::new(), Vec::new());
        for (name, dependencies) in declared {
            packages.push(json!({ "id": name, "name": name, "dependencies": dependencies }));
            let mut edges: Vec<Value> = dependencies
                .iter()
                .map(|it| json!({ "pkg": it["name"], "dep_kinds": [{ "kind": it["kind"] }] }))
                .collect();
            if name == "bytes" {
                edges.push(json!({ "pkg": "tokio", "dep_kinds": [{ "kind": null }] }));
            }
            nodes.push(json!({ "id": name, "deps": edges }));
        }
        json!({ "packages": packages, "resolve": { "nodes": nodes } })
    }

    fn complaints_about(broker: &[Value], client: &[Value], ebpf: &[Value]) -> Vec<String> {
        complaints(&workspace(broker, client, ebpf)).unwrap()
    }

    #[test]
    fn the_intended_direction_is_silent() {
        let broker = [
            dependency(CLIENT, &["wire", "sys"]),
            dependency(EBPF, &[]),
            dependency("tokio", &[]),
        ];
        assert_eq!(complaints_about(&broker, &[], &[]), Vec::<String>::new());
    }

    #[test]
    fn nothing_points_back() {
        let complaints = complaints_about(&[], &[dependency(EBPF, &[])], &[dependency(CLIENT, &[])]);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(
            complaints[0].starts_with("xsk-client depends on xdp-ebpf"),
            "{complaints:?}"
        );
        assert!(complaints_about(&[dependency("e2e", &[])], &[], &[])[0].contains("depends on e2e"));
    }

    #[test]
    fn the_daemon_links_no_ring_code() {
        let complaints = complaints_about(&[dependency(CLIENT, &["wire", "datapath"])], &[], &[]);
        assert!(complaints[0].contains("`datapath`"), "{complaints:?}");

        let mut client = dependency(CLIENT, &["wire"]);
        client["uses_default_features"] = json!(true);
        assert!(complaints_about(&[client], &[], &[])[0].contains("default-features = false"));
    }

    #[test]
    fn the_client_brings_no_runtime_even_through_others() {
        assert!(complaints_about(&[], &[dependency("aya", &[])], &[])[0].contains("depends on aya"));
        assert!(complaints_about(&[], &[dependency("bytes", &[])], &[])[0].contains("depends on tokio"));
    }

    #[test]
    fn tests_and_optional_features_may_use_what_they_like() {
        let mut in_tests = dependency("tokio", &[]);
        in_tests["kind"] = json!("dev");
        let mut optional = dependency("tokio", &[]);
        optional["optional"] = json!(true);
        assert_eq!(
            complaints_about(&[], &[in_tests, optional], &[]),
            Vec::<String>::new()
        );
    }
}
