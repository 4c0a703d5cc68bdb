//! `cargo xtask bench datapath`: builds the contestants, ours and the peers', and starts `tests/bench/datapath` as root.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{artifacts, debian, peers, repository, shell};

/// Measure the datapath beside its peers: instructions per packet, packets per second, latency.
///
/// Contestants: the two layers of xsk-client (raw, frames), a C program with libxdp, the crate xdpilone, and rings
/// written by hand without a check (floor). Same veth, same generator, frames of 64 bytes, batches of 64, each pinned to
/// a CPU, in turns. All but xdpilone, which takes no socket from outside, run as an ordinary user with a socket that was
/// handed over. Instructions are counted by callgrind and hardly move; packets per second do, so they come as medians
/// with their spread.
///
/// Builds as you; network namespaces need root, directly or through sudo. What the peers and callgrind need is installed
/// with apt-get where it is missing, after saying so.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask bench datapath\n  cargo xtask bench datapath --rounds 0                      instructions only\n  cargo xtask bench datapath --contestant frames --contestant libxdp --mode l2fwd"
)]
pub(crate) struct Arguments {
    /// How often each contestant runs in each mode for its packets per second; 0 leaves these out.
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// For how long each time.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    milliseconds: u64,
    /// Only this one: floor, raw, frames, libxdp or xdpilone. May be given several times.
    #[arg(long, value_name = "NAME")]
    contestant: Vec<String>,
    /// Only this mode: rxdrop, txonly, l2fwd or pingpong. May be given several times.
    #[arg(long, value_name = "MODE")]
    mode: Vec<String>,
    /// Where to draw the plot, an SVG; target/bench/datapath.svg if not told.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Keep what callgrind tells, in this folder that anybody may write to: for callgrind_annotate.
    #[arg(long, value_name = "FOLDER")]
    profile: Option<PathBuf>,
    /// Print the figures as JSON, with every round's.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    super::prepare("bench")?;
    if shell::find("valgrind").is_none() {
        debian::install(&["valgrind"], "callgrind counts the instructions")?;
    }
    let bench = artifacts::build_release("e2e", "bench", "datapath")?;
    let contender = artifacts::build_release("e2e", "bench", "contender")?;
    let peers = peers::build()?;
    let plot = match &arguments.plot {
        Some(path) => std::path::absolute(path).with_context(|| path.display().to_string())?,
        None => repository::root()?.join("target/bench/datapath.svg"),
    };

    let variables = [
        ("XSK_BENCH_CONTENDER", contender.as_path()),
        ("XSK_E2E_PEER_DIR", &peers),
    ];
    super::start("bench", &bench, &variables, |command| {
        let profile = arguments.profile.iter();
        command
            .args(["--rounds", &arguments.rounds.to_string()])
            .args(["--milliseconds", &arguments.milliseconds.to_string()])
            .arg("--plot")
            .arg(plot)
            .args(profile.flat_map(|folder| [OsStr::new("--profile"), folder.as_os_str()]))
            .args(
                arguments
                    .contestant
                    .iter()
                    .flat_map(|name| ["--contestant", name]),
            )
            .args(arguments.mode.iter().flat_map(|mode| ["--mode", mode]))
            .args(arguments.json.then_some("--json"));
    })
}
