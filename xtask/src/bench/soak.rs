//! `cargo xtask bench soak`: builds the release broker and `tests/bench/soak`, and starts it as root.

use anyhow::Result;

use crate::artifacts;

/// Look for lost frames and missed wake-ups, for as long as you like.
///
/// Unprivileged holders of a real broker send back numbered frames, with random pauses and exits, rings from 64 entries
/// up, and a umem that may be nearly exhausted. Every frame is accounted for at both ends; the first one that is not ends
/// the soak as failed. Needs root for network namespaces, directly or through sudo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask bench soak\n  cargo xtask bench soak --minutes 60")]
pub(crate) struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Repeat the choices of an earlier soak, which printed this number.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the sums as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    super::prepare("soak")?;
    let broker = artifacts::build_release("xsk-broker", "bin", "xsk-broker")?;
    let bench = artifacts::build_release("e2e", "bench", "soak")?;
    super::start("soak", &bench, &[("XSK_E2E_BROKER", &broker)], |command| {
        command
            .args(["--minutes", &arguments.minutes.to_string()])
            .args(arguments.json.then_some("--json"));
        if let Some(seed) = arguments.seed {
            command.args(["--seed", &seed.to_string()]);
        }
    })
}
