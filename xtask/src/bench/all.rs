//! `cargo xtask bench all`: every bench, one after another, with all that they tell in one folder.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use clap::{Args, FromArgMatches};

use super::{datapath, grants, leases, soak, xdp};
use crate::repository;

/// Run every bench with its defaults, and keep all figures: a table and JSON of each, and the datapath's plot.
///
/// On a machine that has nothing else to do: packets per second and latencies are the clock's. It takes about half an
/// hour, of which ten minutes are the soak's.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cargo xtask bench all --folder /tmp/figures")]
pub(crate) struct Arguments {
    /// Where to; target/bench if not told.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// For `env`, before a bench: where it is to leave its figures, if all are run.
pub(super) fn kept() -> Option<String> {
    FOLDER
        .get()
        .map(|folder| format!("XSK_BENCH_FOLDER={}", folder.display()))
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => std::path::absolute(folder).with_context(|| folder.display().to_string())?,
        None => repository::root()?.join("target/bench"),
    };
    let plot = folder.join("datapath.svg").display().to_string();
    FOLDER.get_or_init(|| folder.clone());
    let outcomes = [
        (
            "datapath",
            read(&["--plot", &plot]).and_then(|it| datapath::run(&it)),
        ),
        ("xdp", read(&[]).and_then(|it| xdp::run(&it))),
        ("grants", read(&[]).and_then(|it| grants::run(&it))),
        ("leases", read(&[]).and_then(|it| leases::run(&it))),
        ("soak", read(&[]).and_then(|it| soak::run(&it))),
    ];
    eprintln!("all figures: {}", folder.display());
    let mut failed = Vec::new();
    for (bench, outcome) in outcomes {
        if let Err(error) = outcome {
            eprintln!("error: {bench}: {error:#}");
            failed.push(bench);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{} failed", failed.join(", ")),
    }
}

/// The arguments of a bench, with their defaults where none are given.
fn read<T: Args + FromArgMatches>(words: &[&str]) -> Result<T> {
    let command = T::augment_args(clap::Command::new("bench"));
    let matches = command.try_get_matches_from(["bench"].iter().chain(words))?;
    Ok(T::from_arg_matches(&matches)?)
}
