//! Where the real programs are: told by the environment, or else beside the running test as cargo lays them out.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The broker: `XSK_E2E_BROKER`, or `xsk-broker` in the target directory.
pub fn broker() -> Result<PathBuf> {
    match env::var_os("XSK_E2E_BROKER") {
        Some(path) => existing(path.into(), "XSK_E2E_BROKER"),
        None => in_target("xsk-broker")
            .context("build it with `cargo build -p xsk-broker`, or set XSK_E2E_BROKER"),
    }
}

/// An example of the client library: in `XSK_E2E_CLIENT_DIR`, or in the target directory.
pub fn client(name: &str) -> Result<PathBuf> {
    match env::var_os("XSK_E2E_CLIENT_DIR") {
        Some(directory) => existing(Path::new(&directory).join(name), "XSK_E2E_CLIENT_DIR"),
        None => in_target(&format!("examples/{name}"))
            .context("build it with `cargo build -p xsk-client --examples`, or set XSK_E2E_CLIENT_DIR"),
    }
}

/// Another program of the repository, such as `xskperf`: beside the broker where `XSK_E2E_BROKER` tells of it, or in the
/// target directory.
pub fn program(name: &str) -> Result<PathBuf> {
    match env::var_os("XSK_E2E_BROKER") {
        Some(broker) => existing(Path::new(&broker).with_file_name(name), "XSK_E2E_BROKER"),
        None => in_target(name).with_context(|| format!("build it with `cargo build -p {name}`")),
    }
}

/// A program of `tests/peers`, which a bench compares ours with: in `XSK_E2E_PEER_DIR`.
pub fn peer(name: &str) -> Result<PathBuf> {
    let directory = env::var_os("XSK_E2E_PEER_DIR")
        .context("`cargo xtask bench` compiles it, and sets XSK_E2E_PEER_DIR")?;
    existing(Path::new(&directory).join(name), "XSK_E2E_PEER_DIR")
}

/// A file of the repository, such as `policy.example.toml`: in `XSK_E2E_PAPERS`, or in the checkout above.
pub fn paper(name: &str) -> Result<PathBuf> {
    if let Some(directory) = env::var_os("XSK_E2E_PAPERS") {
        return existing(Path::new(&directory).join(name), "XSK_E2E_PAPERS");
    }
    let here = env::current_exe()?;
    let directories = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    directories
        .iter()
        .map(PathBuf::as_path)
        .chain([here.as_path()])
        .flat_map(Path::ancestors)
        .filter(|directory| directory.join("Cargo.lock").exists())
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("there is no {name} in the checkout; set XSK_E2E_PAPERS"))
}

/// This very program, for starting it again as somebody else.
pub fn this_program() -> Result<PathBuf> {
    env::current_exe().context("finding this program")
}

/// `target/PROFILE/NAME`, from a test in `target/PROFILE/deps` or a program in `target/PROFILE`.
fn in_target(name: &str) -> Result<PathBuf> {
    this_program()?
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {name} in the target directory"))
}

fn existing(path: PathBuf, variable: &str) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    anyhow::bail!("{variable} leads to {}, which is not there", path.display())
}
