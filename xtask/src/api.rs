//! `cargo xtask api`: the client library's public API, held against `client-lib/api.txt`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::{repository, shell};

/// What rustdoc's JSON has to be for the crate that reads it; each toolchain has one.
const FORMAT: u64 = 57;

/// Compare the client library's public API with what client-lib/api.txt has of it.
///
/// What differs is a change for its users: see to CHANGELOG.md, and then take it over with --bless.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask api\n  cargo xtask api --bless")]
pub(crate) struct Arguments {
    /// Write the API as it is to client-lib/api.txt.
    #[arg(long)]
    bless: bool,
}

/// What came of a comparison that found no difference.
pub(crate) enum Compared {
    Same,
    /// The toolchain writes JSON of another format.
    OtherToolchain(u64),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.bless {
        let Some(api) = api()? else {
            bail!("this toolchain's rustdoc is not the one whose JSON can be read");
        };
        let file = snapshot()?;
        return fs::write(&file, api).with_context(|| file.display().to_string());
    }
    match compare()? {
        Compared::Same => println!("the API is as client-lib/api.txt has it"),
        Compared::OtherToolchain(format) => {
            println!("not compared: rustdoc's JSON is of format {format}, and {FORMAT} can be read");
        }
    }
    Ok(())
}

/// For `cargo xtask ci`.
pub(crate) fn compare() -> Result<Compared> {
    let Some(api) = api()? else {
        return Ok(Compared::OtherToolchain(format(&json()?)?));
    };
    let file = snapshot()?;
    let known = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let differing: Vec<_> = lines_of_one(&known, &api, '-')
        .chain(lines_of_one(&api, &known, '+'))
        .collect();
    if !differing.is_empty() {
        bail!(
            "the client library's API has changed:\n{}\ntake it over with `cargo xtask api --bless`",
            differing.join("\n")
        );
    }
    Ok(Compared::Same)
}

fn lines_of_one<'a>(one: &'a str, other: &'a str, mark: char) -> impl Iterator<Item = String> + 'a {
    let is_new = move |line: &&str| !other.lines().any(|it| it == *line);
    one.lines()
        .filter(is_new)
        .map(move |line| format!("{mark}{line}"))
}

fn snapshot() -> Result<PathBuf> {
    Ok(repository::root()?.join("client-lib/api.txt"))
}

/// One item a line; `None` where rustdoc's JSON is of another format.
fn api() -> Result<Option<String>> {
    let json = json()?;
    if format(&json)? != FORMAT {
        return Ok(None);
    }
    let api = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    Ok(Some(api.items().map(|item| format!("{item}\n")).collect()))
}

/// Has rustdoc write its JSON, which it does not do by default in a stable toolchain.
fn json() -> Result<PathBuf> {
    let mut rustdoc = repository::cargo()?;
    rustdoc
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "rustdoc",
            "--locked",
            "--quiet",
            "--package",
            "xsk-client",
            "--lib",
        ])
        .args(["--features", "tokio", "--target-dir", "target/api"])
        .args(["--", "-Z", "unstable-options", "--output-format", "json"]);
    shell::run(&mut rustdoc)?;
    Ok(repository::root()?.join("target/api/doc/xsk_client.json"))
}

fn format(json: &PathBuf) -> Result<u64> {
    let text = fs::read_to_string(json).with_context(|| json.display().to_string())?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    value["format_version"]
        .as_u64()
        .context("rustdoc's JSON tells no format")
}
