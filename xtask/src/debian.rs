//! Packages of Debian and its kin, for what this repository needs beyond a Rust tool chain.
//!
//! Nothing is installed silently: why, and the very command, are printed first.

use std::sync::Once;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Installs `packages`, after saying `why`. An error where there is no apt-get says what is missing.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if shell::find("apt-get").is_none() {
        bail!("{why}; this system has no apt-get, so install by hand what Debian calls: {list}");
    }
    eprintln!("{why}: installing {list}");
    update();
    // rustc-web stands in the way of other packagings of Rust: whoever has one of these keeps it.
    let install = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    let arguments = [install.as_slice(), packages].concat();
    apt_get(&arguments).with_context(|| format!("apt-get cannot install {list}"))
}

/// Fetches the package lists once in a run. A fresh container has none; a machine without network may have
/// what it takes already, so failing here is not the end.
fn update() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        if let Err(error) = apt_get(&["update"]) {
            eprintln!("warning: {error:#}; going on with the package lists that are here");
        }
    });
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    // `env` rather than Command::env: sudo would drop the variable.
    let mut command = shell::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    // Another apt may be at work, unattended upgrades for one: wait for it instead of failing.
    command.args(["-o", "DPkg::Lock::Timeout=300", "--quiet"]);
    shell::run(command.args(arguments))
}
