//! `cargo xtask install-capi`: the client library for C where C compilers look for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{repository, shell};

/// Build the client library for C and install it: header, shared and static library, xsk-client.pc for pkg-config.
///
/// Writes below the prefix as you; with --destdir below that folder, as packagers want it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask install-capi --prefix ~/.local\n  cargo xtask install-capi --prefix /usr --destdir debian/tmp"
)]
pub(crate) struct Arguments {
    /// Where it is to be used.
    #[arg(long, value_name = "FOLDER", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Where it is written to, in front of the prefix.
    #[arg(long, value_name = "FOLDER")]
    destdir: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut cargo = repository::cargo()?;
    shell::run(cargo.args(["build", "--release", "--locked", "--package", "xsk-client-capi"]))?;
    let root = repository::root()?;
    let metadata = repository::metadata()?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo tells no target folder")?;
    let built = Path::new(target).join("release");
    let version = env!("CARGO_PKG_VERSION");
    let source = root.join("client-lib/capi");
    let template = fs::read_to_string(source.join("xsk-client.pc.in")).context("xsk-client.pc.in")?;
    let prefix = std::path::absolute(&arguments.prefix)?;
    let pc = pkg_config(&template, &prefix, version);

    let place = match &arguments.destdir {
        Some(destdir) => destdir.join(prefix.strip_prefix("/")?),
        None => prefix,
    };
    for folder in ["include", "lib/pkgconfig"] {
        let folder = place.join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let install = |from: PathBuf, to: &str| -> Result<()> {
        let to = place.join(to);
        fs::copy(&from, &to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
        println!("{}", to.display());
        Ok(())
    };
    install(source.join("include/xsk-client.h"), "include/xsk-client.h")?;
    install(built.join("libxsk_client_c.so"), "lib/libxsk_client_c.so")?;
    install(built.join("libxsk_client_c.a"), "lib/libxsk_client_c.a")?;
    let path = place.join("lib/pkgconfig/xsk-client.pc");
    fs::write(&path, pc).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

fn pkg_config(template: &str, prefix: &Path, version: &str) -> String {
    template
        .replace("@PREFIX@", &prefix.display().to_string())
        .replace("@VERSION@", version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pkg_config_file_has_no_holes() {
        let template = include_str!("../../client-lib/capi/xsk-client.pc.in");
        let text = pkg_config(template, Path::new("/opt/xsk"), "1.2.3");
        assert!(
            text.starts_with("prefix=/opt/xsk\n") && text.contains("Version: 1.2.3\n"),
            "{text}"
        );
        assert!(!text.contains('@'), "{text}");
    }
}
