//! `cargo xtask bench`: what things cost, beside what others pay for the same, in one run.
//!
//! **Invariant**: no figure stands alone. Contenders take turns on the same device, and what is claimed is a ratio.

mod all;
mod datapath;
mod grants;
mod leases;
mod soak;
mod xdp;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::machine::Machine;
use crate::shell;

/// Measure beside the peers, in one run: medians, 99th percentiles, ratios.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    All(all::Arguments),
    Datapath(datapath::Arguments),
    Grants(grants::Arguments),
    Leases(leases::Arguments),
    Xdp(xdp::Arguments),
    Soak(soak::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::All(arguments) => all::run(arguments),
        What::Datapath(arguments) => datapath::run(arguments),
        What::Grants(arguments) => grants::run(arguments),
        What::Leases(arguments) => leases::run(arguments),
        What::Xdp(arguments) => xdp::run(arguments),
        What::Soak(arguments) => soak::run(arguments),
    }
}

/// Sees whether this machine is fit for a bench, or whatever it is called.
fn prepare(what: &str) -> Result<()> {
    match Machine::prepare(false)?.unfit {
        Some(reason) => bail!("the {what} cannot run here: {reason}"),
        None => Ok(()),
    }
}

/// Starts a bench as root, with variables that name files, and waits for its end.
fn start(
    what: &str,
    bench: &Path,
    variables: &[(&str, &Path)],
    with: impl FnOnce(&mut Command),
) -> Result<()> {
    // `env` rather than Command::env: sudo would drop the variables.
    let mut command = shell::as_root("env")?;
    for (name, file) in variables {
        command.arg(format!("{name}={}", file.display()));
    }
    command.args(all::kept()).arg(bench);
    with(&mut command);
    let status = command
        .status()
        .with_context(|| format!("the {what} cannot be started"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("the {what} ended with {status}"),
    }
}
