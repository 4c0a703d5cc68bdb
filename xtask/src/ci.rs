//! `cargo xtask ci`: everything that must hold before a change is merged, each step timed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{api, build_ebpf, miri, repository, shell, test, tidy};

/// Run every check that a change must pass: format, clippy, tidy, documentation, licences, the eBPF object,
/// the example policy, Miri where it is installed, and all tests.
///
/// All steps run, also after one failed, and a table at the end tells what came of each and how long it took.
/// On a bare machine `.ci/run` installs what this needs and then calls it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, before a commit:\n  cargo xtask ci --without-test")]
pub(crate) struct Arguments {
    /// Leave the tests out; `cargo xtask test` runs them.
    #[arg(long)]
    without_test: bool,
}

type Step = (&'static str, fn() -> Result<Outcome>);

const STEPS: [Step; 9] = [
    ("format", format),
    ("tidy", || done(tidy::run(&tidy::Arguments {}))),
    ("clippy", clippy),
    ("doc", documentation),
    ("api", public_api),
    ("build-ebpf --check", ebpf_object),
    ("policy example", policy_example),
    ("deny", deny),
    ("miri", interpreted),
];
const TEST: Step = ("test", || done(test::run(&test::Arguments::default())));

/// How a step ended that did not fail.
enum Outcome {
    Passed,
    /// Something could not be checked here; what, and why.
    Partly(String),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut rows = Vec::new();
    for (name, step) in STEPS.into_iter().chain((!arguments.without_test).then_some(TEST)) {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("error: {name}: {error:#}");
        }
        rows.push((name, outcome, started.elapsed()));
    }

    println!("\n{:20}  seconds  outcome", "step");
    for (name, outcome, elapsed) in &rows {
        println!("{name:20}  {:7.1}  {}", elapsed.as_secs_f64(), in_words(outcome));
    }
    let total: Duration = rows.iter().map(|(_, _, elapsed)| elapsed).sum();
    println!("{:20}  {:7.1}", "all", total.as_secs_f64());
    match rows.iter().filter(|(_, outcome, _)| outcome.is_err()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} steps failed", rows.len()),
    }
}

fn in_words(outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(Outcome::Passed) => "passed".to_owned(),
        Ok(Outcome::Partly(what)) => format!("passed, but {what}"),
        Err(error) => format!("FAILED: {}", error.to_string().lines().next().unwrap_or_default()),
    }
}

fn done(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    shell::run(repository::cargo()?.args(arguments))
}

/// cargo fmt sees the workspace; the XDP program is not in it.
fn format() -> Result<Outcome> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["fmt", "--manifest-path", "xdp-ebpf/program/Cargo.toml", "--check"])?;
    Ok(Outcome::Passed)
}

/// The workspace as a whole, then the client library in the forms in which others take it: built together,
/// features are united, and a use that one of them lacks would not show.
fn clippy() -> Result<Outcome> {
    let deny_warnings = ["--", "--deny", "warnings"];
    cargo(
        &[
            &["clippy", "--locked", "--workspace", "--all-targets"],
            deny_warnings.as_slice(),
        ]
        .concat(),
    )?;
    for features in ["wire", "sys", "wire,sys"] {
        let only = [
            "clippy",
            "--locked",
            "--package",
            "xsk-client",
            "--no-default-features",
            "--features",
            features,
        ];
        cargo(&[only.as_slice(), &deny_warnings].concat())?;
    }
    Ok(Outcome::Passed)
}

fn documentation() -> Result<Outcome> {
    let mut cargo = repository::cargo()?;
    cargo
        .args(["doc", "--locked", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    done(shell::run(&mut cargo))
}

/// The client library's public API is as its snapshot has it.
fn public_api() -> Result<Outcome> {
    Ok(match api::compare()? {
        api::Compared::Same => Outcome::Passed,
        api::Compared::OtherToolchain(format) => {
            Outcome::Partly(format!("not compared: this rustdoc's JSON is of format {format}"))
        }
    })
}

/// Byte for byte where the recorded tool chain is installed; `.ci/run` installs it wherever apt has it.
fn ebpf_object() -> Result<Outcome> {
    let checked = build_ebpf::check(&repository::root()?)?;
    println!("{checked}");
    Ok(match checked {
        build_ebpf::Checked::Bytes(_) => Outcome::Passed,
        build_ebpf::Checked::Hashes(_) => Outcome::Partly(checked.to_string()),
    })
}

/// The example of a policy that users start from, by the daemon's own validator.
fn policy_example() -> Result<Outcome> {
    let root = repository::root()?;
    if fs::metadata(root.join("policy.example.toml")).is_err() {
        bail!("policy.example.toml does not exist");
    }
    cargo(&[
        "run",
        "--locked",
        "--quiet",
        "--package",
        "xsk-broker",
        "--",
        "check",
        "policy.example.toml",
    ])?;
    Ok(Outcome::Passed)
}

/// The client library's unsafe code, where a nightly tool chain with Miri is: nothing is installed for it.
fn interpreted() -> Result<Outcome> {
    Ok(match miri::check()? {
        None => Outcome::Passed,
        Some(lack) => Outcome::Partly(format!("not run: {lack}")),
    })
}

/// Licences, duplicates and origins by what is in the repository; known vulnerabilities by a database that
/// has to be fetched, which not every machine may do.
fn deny() -> Result<Outcome> {
    if repository::cargo()?
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| !output.status.success())
    {
        let how = "cargo install --locked cargo-deny";
        if repository::in_ci() {
            bail!("cargo-deny is not installed: {how}");
        }
        return Ok(Outcome::Partly(format!(
            "not run: cargo-deny is not installed ({how})"
        )));
    }
    // The XDP program is a workspace of its own, held to the same rules.
    for manifest in ["Cargo.toml", "xdp-ebpf/program/Cargo.toml"] {
        let mut deny = repository::cargo()?;
        deny.args(["deny", "--locked", "--manifest-path", manifest]);
        deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
        shell::run(&mut deny)?;
    }
    match shell::output(repository::cargo()?.args(["deny", "--locked", "fetch", "db"])) {
        Ok(_) => {
            cargo(&["deny", "--locked", "check", "--disable-fetch", "advisories"])?;
            Ok(Outcome::Passed)
        }
        Err(error) => {
            eprintln!("{error:#}");
            Ok(Outcome::Partly(
                "without advisories: their database cannot be reached from here".to_owned(),
            ))
        }
    }
}
