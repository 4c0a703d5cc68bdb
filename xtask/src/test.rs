//! `cargo xtask test`: every test of the repository, those that need root included, and an honest count.
//!
//! **Invariants**: whatever is compiled is compiled as the invoking user, so that no root-owned file ends up
//! in the target folder; and a test that did not run is named with its reason, never silently absent.

mod report;

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::artifacts::{Programs, TestBinary};
use crate::machine::Machine;
use crate::{peers, repository, shell};
use report::{Report, Suite};

/// Run all tests, and say which ran, which failed, and which were skipped and why.
///
/// Unit tests, documentation's examples and models run as you. The tests on the real kernel (network
/// namespaces, AF_XDP sockets, the XDP program) need root: directly if you are root, else through sudo, which
/// gets finished binaries and never cargo. They create what they need in network namespaces of their own and
/// leave nothing behind. What is missing on a Debian-like system is installed with apt-get, after saying so.
///
/// With CI=1 in the environment a test may be skipped only because of the kernel.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test framing     only tests so named")]
pub(crate) struct Arguments {
    /// Only tests whose names contain this. Loom's models run without a filter, or if it contains `loom`.
    filter: Option<String>,
    /// Leave out the tests that need root.
    #[arg(long)]
    without_root: bool,
}

/// The tests that need root, by package and target.
const ROOT_TESTS: [(&str, &str); 2] = [("e2e", "e2e"), ("xdp-ebpf", "redirect")];

/// What the tests read of the environment, and sudo would drop.
const PASSED_TO_ROOT: [&str; 6] = [
    "CI",
    "XSK_CI",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_TEST_THREADS",
    "PROPTEST_CASES",
];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let root = repository::root()?;
    let filter = arguments.filter.as_deref();
    let machine = Machine::prepare(arguments.without_root)?;
    let programs = Programs::build()?;
    let tests = TestBinary::build_all()?;
    // A test in C wants libxdp; without it that test is skipped, which CI does not allow.
    let peers = match machine.unfit {
        None => peers::build()
            .inspect_err(|error| eprintln!("warning: {error:#}"))
            .ok(),
        Some(_) => None,
    };

    let mut report = Report::default();
    for test in &tests {
        let suite = Suite::new(&test.package, &test.target);
        if !ROOT_TESTS.contains(&(test.package.as_str(), test.target.as_str())) {
            report.run(suite, &mut as_user(test, filter))?;
        } else if let Some(reason) = &machine.unfit {
            report.skip(suite, reason);
        } else {
            let mut command = with_root(test, filter, &programs, &root, peers.as_deref())?;
            report.run(suite, &mut command)?;
        }
    }
    report.run(
        Suite::new("workspace", "documentation"),
        &mut documentation(filter)?,
    )?;
    if filter.is_none_or(|filter| filter.contains("loom")) {
        report.run(Suite::new("xsk-client", "loom"), &mut loom(&root)?)?;
    }

    println!("\n{report}in {:.0} s", started.elapsed().as_secs_f64());
    if report.failed() {
        bail!("tests failed");
    }
    if repository::in_ci() && machine.unfit.is_some() {
        bail!("in CI the tests that need root must run");
    }
    Ok(())
}

fn as_user(test: &TestBinary, filter: Option<&str>) -> Command {
    let mut command = Command::new(&test.executable);
    command
        .current_dir(&test.folder)
        .env("CARGO_MANIFEST_DIR", &test.folder);
    add_filter(&mut command, filter);
    command
}

/// The finished test binary as root, told where the other finished binaries are.
fn with_root(
    test: &TestBinary,
    filter: Option<&str>,
    programs: &Programs,
    root: &Path,
    peers: Option<&Path>,
) -> Result<Command> {
    // `env` rather than Command::env: sudo would drop the variables.
    let mut command = shell::as_root("env")?;
    command.current_dir(&test.folder);
    command.arg(format!("CARGO_MANIFEST_DIR={}", test.folder.display()));
    command.args(programs.variables(root));
    command.args(peers.map(|folder| format!("XSK_E2E_PEER_DIR={}", folder.display())));
    for name in PASSED_TO_ROOT {
        if let Ok(value) = env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg(&test.executable);
    add_filter(&mut command, filter);
    Ok(command)
}

/// The harness shows what a test printed only if it failed; a skip is printed by a test that passed.
fn add_filter(command: &mut Command, filter: Option<&str>) {
    command.args(filter).arg("--show-output");
}

fn documentation(filter: Option<&str>) -> Result<Command> {
    let mut cargo = repository::cargo()?;
    cargo.args(["test", "--workspace", "--locked", "--quiet", "--doc", "--"]);
    add_filter(&mut cargo, filter);
    Ok(cargo)
}

/// The models of the rings' memory order. Loom replaces the atomics by its own in the whole build, hence a
/// target folder that no other build shares.
fn loom(root: &Path) -> Result<Command> {
    let mut flags = env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" --cfg loom");
    let mut cargo = repository::cargo()?;
    cargo
        .args([
            "test",
            "--package",
            "xsk-client",
            "--lib",
            "--release",
            "--locked",
            "--quiet",
        ])
        .arg("--target-dir")
        .arg(root.join("target/loom"))
        .args(["loom", "--", "--show-output"])
        .env("RUSTFLAGS", flags.trim());
    Ok(cargo)
}
