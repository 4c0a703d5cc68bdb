//! `cargo xtask miri`: what of the client library's tests needs no kernel, run by Miri, which tells undefined behaviour.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{repository, shell};

/// Run the client library's rings, chunks, frames and packets under Miri.
///
/// Miri interprets the program and ends it at a pointer that goes where it may not, at two references that exclude each
/// other, at memory that is read before it was written. An adversary that writes to the rings is among the tests, so that
/// this is a search for unsound code, with other random choices each time. It takes some minutes.
///
/// Needs a nightly tool chain with Miri: `rustup toolchain install nightly --component miri --component rust-src`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose names contain this.
    filter: Option<String>,
}

/// What of the library is memory alone. Umem and rings lie in memory of the interpreter's there (`sys/interpreted.rs`).
const MODULES: [&str; 6] = ["ring::", "chunks::", "pool::", "umem::", "hostile::", "stamps::"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = repository::root()?;
    if let Some(lack) = lacks(&root) {
        bail!("{lack}");
    }
    match &arguments.filter {
        Some(filter) => interpret(&root, &[filter]),
        None => interpret(&root, &MODULES),
    }
}

/// The same as a step of `cargo xtask ci`: what is missing, where it cannot be run.
pub(crate) fn check() -> Result<Option<String>> {
    let root = repository::root()?;
    match lacks(&root) {
        Some(lack) => Ok(Some(lack)),
        None => interpret(&root, &MODULES).map(|()| None),
    }
}

/// The cargo of the nightly tool chain.
fn nightly(root: &Path) -> Command {
    let mut rustup = Command::new("rustup");
    rustup.current_dir(root).args(["run", "nightly", "cargo", "miri"]);
    rustup
}

fn lacks(root: &Path) -> Option<String> {
    let probed = shell::output(nightly(root).arg("--version"));
    probed.err().map(|_| {
        "there is no nightly tool chain with Miri (rustup toolchain install nightly --component miri \
         --component rust-src)"
            .to_owned()
    })
}

fn interpret(root: &Path, tests: &[&str]) -> Result<()> {
    let mut miri = nightly(root);
    miri.args([
        "test",
        "--locked",
        "--package",
        "xsk-client",
        "--lib",
        "--target-dir",
    ]);
    miri.arg(root.join("target/miri")).arg("--").args(tests);
    // proptest wants the clock and a seed, and a file stands in for the memfd.
    miri.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    shell::run(&mut miri)
}
