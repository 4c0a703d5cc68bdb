//! The command line: one file for each verb.

pub mod check;
mod check_json;
mod cut;
pub mod exit;
pub mod explain;
pub mod grant;
mod inheritance;
pub mod keepers;
pub mod list;
pub mod monitor;
mod open_files;
pub mod output;
mod piece;
mod place;
pub mod purge;
pub mod qemu;
pub mod reload;
pub mod revoke;
pub mod serve;
pub mod status;
pub mod table;
pub mod user;
pub mod wish;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::error::chain;
use exit::Exit;

/// Hands AF_XDP sockets to unprivileged processes: by policy, per queue.
///
/// An operator writes a policy, checks it with `check`, and runs `serve`. A user asks `explain` what the policy gives,
/// and takes queues with `grant`. Queues are written IF:QUEUES everywhere, as in eth0:2-4.
///
/// With --json standard output has JSON alone. What fails is said in words on standard error, with --json too, and by the exit
/// code; only the mistakes of a policy are JSON then (`check`, `reload`).
#[derive(Debug, Parser)]
#[command(version, after_help = exit::TABLE)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::ServeArgs),
    Check(check::CheckArgs),
    Explain(explain::ExplainArgs),
    List(list::ListArgs),
    Status(status::StatusArgs),
    #[command(visible_alias = "exec")]
    Grant(grant::GrantArgs),
    Revoke(revoke::RevokeArgs),
    Reload(reload::ReloadArgs),
    Monitor(monitor::MonitorArgs),
    Purge(purge::PurgeArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let exit = match cli.verb {
        Verb::Serve(args) => serve::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Explain(args) => report(explain::run(&args)),
        Verb::List(args) => report(list::run(&args)),
        Verb::Status(args) => report(status::run(&args)),
        Verb::Grant(args) => report(grant::run(args)),
        Verb::Revoke(args) => report(revoke::run(&args)),
        Verb::Reload(args) => report(reload::run(&args)),
        Verb::Monitor(args) => report(monitor::run(&args)),
        Verb::Purge(args) => report(purge::run(&args)),
    };
    exit.into()
}

/// Says what went wrong, if anything, and how the command ends.
fn report(result: anyhow::Result<Exit>) -> Exit {
    result.unwrap_or_else(|error| {
        eprintln!("xsk-broker: {}", chain(error.as_ref()));
        exit::of_error(&error)
    })
}
