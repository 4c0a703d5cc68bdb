//! The project's own commands, run as `cargo xtask COMMAND`.
//!
//! This file only dispatches. Each command is a file of its own: its arguments, its help, and a `run`. To add
//! one, write the file, name it here as a module and as a variant of [`Command`].

mod api;
mod artifacts;
mod bench;
mod build_ebpf;
mod ci;
mod debian;
mod demo;
mod install_capi;
mod machine;
mod miri;
mod peers;
mod repository;
mod shell;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands: one for each thing that a developer, or CI, does with this repository.
///
/// Start with `cargo xtask demo`. No command needs to be run as root: what needs root goes through sudo, and
/// says so.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Vm(vm::Arguments),
    Tidy(tidy::Arguments),
    Ci(ci::Arguments),
    Api(api::Arguments),
    Miri(miri::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    InstallCapi(install_capi::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Vm(arguments) => vm::run(&arguments),
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Api(arguments) => api::run(&arguments),
        Command::Miri(arguments) => miri::run(&arguments),
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Command::InstallCapi(arguments) => install_capi::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
