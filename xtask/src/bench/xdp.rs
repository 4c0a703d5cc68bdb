//! `cargo xtask bench xdp`: builds `tests/bench/xdp` with the peer's programs, and starts it as root.

use anyhow::Result;

use crate::{artifacts, peers};

/// Measure what the XDP program costs a packet, beside the bare redirect and libxdp's default program.
///
/// BPF_PROG_TEST_RUN, nanoseconds a run as the kernel measures them, in turns, medians of all rounds. A part of it is the
/// test run itself, shown by a program that only returns. Needs root, directly or through sudo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  cargo xtask bench xdp --rounds 101")]
pub(crate) struct Arguments {
    /// How often each program has its turn.
    #[arg(long, default_value_t = 51, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    super::prepare("bench")?;
    let bench = artifacts::build_release("e2e", "bench", "xdp")?;
    let default_program = peers::libxdp_default_program()?;
    let variables = [("XSK_BENCH_LIBXDP_PROGRAM", default_program.as_path())];
    super::start("bench", &bench, &variables, |command| {
        command
            .args(["--rounds", &arguments.rounds.to_string()])
            .args(arguments.json.then_some("--json"));
    })
}
