//! The command line: one file for each verb.

pub mod check;
pub mod exit;
pub mod explain;
pub mod serve;
pub mod table;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Hands AF_XDP sockets to unprivileged processes: by policy, per queue.
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
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    match cli.verb {
        Verb::Serve(args) => serve::run(&args).into(),
        Verb::Check(args) => check::run(&args),
    }
}
