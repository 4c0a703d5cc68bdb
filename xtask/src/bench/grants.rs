//! `cargo xtask bench grants`: builds the release broker and the peer, and starts `tests/bench/grants` as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{artifacts, debian, repository, shell};

/// Measure what a grant costs, beside the same socket made directly as root with libxdp.
///
/// An unprivileged client acquires, binds and activates one queue of a veth through a real broker, release-built; a C
/// program with libxdp makes the same socket, on other queues of the same veth. They take turns. Printed are median
/// and 99th percentile of each step, what a grant costs more than the socket alone, the same for each kind of sockets under
/// each queue lock that is in force here, and what the broker weighs. What the kernel takes to let go of placeholders is a
/// figure of its own, and in no other.
///
/// Builds as you; network namespaces need root, directly or through sudo. libxdp and a C compiler are installed with
/// apt-get where they are missing, after saying so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  cargo xtask bench grants --rounds 50")]
pub(crate) struct Arguments {
    /// How often each contender has its turn.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    super::prepare("bench")?;
    install_what_the_peer_needs()?;
    // Apart, so that the broker is built with its own features and no others.
    let broker = artifacts::build_release("xsk-broker", "bin", "xsk-broker")?;
    let bench = artifacts::build_release("e2e", "bench", "grants")?;
    let peers = broker
        .parent()
        .context("the broker is in no folder")?
        .join("peers");
    compile_peer(&peers)?;

    let variables = [("XSK_E2E_BROKER", broker.as_path()), ("XSK_E2E_PEER_DIR", &peers)];
    super::start("bench", &bench, &variables, |command| {
        command
            .args(["--rounds", &arguments.rounds.to_string()])
            .args(arguments.json.then_some("--json"));
    })
}

const LIBRARIES: [&str; 2] = ["libxdp", "libbpf"];

fn install_what_the_peer_needs() -> Result<()> {
    let has_tools = ["gcc", "pkg-config"]
        .iter()
        .all(|tool| shell::find(tool).is_some());
    let has_libraries = || shell::output(Command::new("pkg-config").arg("--exists").args(LIBRARIES)).is_ok();
    if has_tools && has_libraries() {
        return Ok(());
    }
    debian::install(
        &["gcc", "libc6-dev", "pkg-config", "libxdp-dev", "libbpf-dev"],
        "the peer is a C program with libxdp",
    )
}

fn compile_peer(folder: &Path) -> Result<()> {
    let source: PathBuf = repository::root()?.join("tests/peers/libxdp_socket.c");
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let flags = shell::output(
        Command::new("pkg-config")
            .args(["--cflags", "--libs"])
            .args(LIBRARIES),
    )?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-o"])
        .arg(folder.join("libxdp_socket"))
        .arg(source)
        .args(flags.split_whitespace());
    shell::run(&mut gcc)
}
