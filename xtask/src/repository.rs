//! Where this repository is, and what cargo knows of its packages.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// The top of the repository that the caller stands in; its commands work from any folder below.
pub(crate) fn root() -> Result<PathBuf> {
    let here = env::current_dir().context("the current folder cannot be read")?;
    here.ancestors()
        .find(|folder| folder.join("xtask/Cargo.toml").is_file() && folder.join("xdp-ebpf").is_dir())
        .map(PathBuf::from)
        .with_context(|| {
            format!(
                "{} is not inside the xsk-broker repository; change into it",
                here.display()
            )
        })
}

/// The cargo of the PATH, which is the one that runs us (rustup's passes on by RUSTUP_TOOLCHAIN which one it
/// chose), with the repository's top as its folder.
pub(crate) fn cargo() -> Result<Command> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()?);
    // `cargo run` tells its child about the xtask package; a nested cargo would only be confused by it.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR")
        {
            cargo.env_remove(name);
        }
    }
    Ok(cargo)
}

/// What `cargo metadata` prints: packages with their declared dependencies, and the resolved graph.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let json = shell::output(cargo()?.args(["metadata", "--format-version=1", "--locked"]))?;
    serde_json::from_str(&json).context("cargo metadata printed something that is not JSON")
}

/// Whether a continuous integration system runs us: there nothing may be left out.
pub(crate) fn in_ci() -> bool {
    ["CI", "XSK_CI"]
        .iter()
        .any(|name| env::var_os(name).is_some_and(|value| value == "1" || value == "true"))
}
