//! `cargo xtask bench`: what things cost, beside what others pay for the same, in one run.
//!
//! **Invariant**: no figure stands alone. Contenders take turns on the same device, and what is claimed is a ratio.

mod all;
mod datapath;
mod grants;
mod leases;
mod soak;
mod xdp;

use anyhow::Result;

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
