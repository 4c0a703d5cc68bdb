//! `cargo xtask bench leases`: builds the release broker and `tests/bench/leases`, and starts it as root.

use anyhow::Result;

use crate::artifacts;

/// Measure a broker that has thousands of leases, over 64 devices.
///
/// What a grant and an end cost while there are 10, 100, 1000, 4000 other leases, going up and down again: wall time,
/// CPU time of the broker's engine, memory of the broker. What an innocent user waits for while others' grants wait for
/// the kernel. How long after the SIGKILL of a holder its queue is granted again. Needs root for network namespaces,
/// directly or through sudo; everything is in namespaces of its own, and gone afterwards.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask bench leases\n  cargo xtask bench leases --cycles 50 --kills 20 --json"
)]
pub(crate) struct Arguments {
    /// How many grants and ends are measured each time there are so many leases.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// How many holders of each kind are killed.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// How often the innocent user is measured with and without the others, in turns.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    super::prepare("bench")?;
    let broker = artifacts::build_release("xsk-broker", "bin", "xsk-broker")?;
    let bench = artifacts::build_release("e2e", "bench", "leases")?;
    super::start("bench", &bench, &[("XSK_E2E_BROKER", &broker)], |command| {
        command
            .args(["--cycles", &arguments.cycles.to_string()])
            .args(["--kills", &arguments.kills.to_string()])
            .args(["--rounds", &arguments.rounds.to_string()])
            .args(arguments.json.then_some("--json"));
    })
}
