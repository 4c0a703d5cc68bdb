//! What the tests run: cargo builds it, and says in JSON where each binary is.
//!
//! The test binaries are run by us and not by `cargo test`, because some of them go through sudo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::repository;

pub(super) struct Artifacts {
    pub(super) tests: Vec<TestBinary>,
    pub(super) broker: PathBuf,
    /// The folder with the client library's built examples.
    pub(super) examples: PathBuf,
}

/// One built test harness.
pub(super) struct TestBinary {
    pub(super) package: String,
    pub(super) target: String,
    pub(super) executable: PathBuf,
    /// The package's folder, in which cargo runs its tests.
    pub(super) folder: PathBuf,
}

/// The part that matters here of the messages that `cargo build --message-format=json` prints, one a line.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Artifacts {
    pub(super) fn build() -> Result<Self> {
        let programs = messages(&["build", "--workspace", "--locked", "--bins", "--examples"])?;
        let broker = executable(&programs, "bin", "xsk-broker")?;
        let echo = executable(&programs, "example", "echo")?;
        let examples = echo
            .parent()
            .map(Path::to_owned)
            .context("an example has no folder")?;

        let tests = messages(&["test", "--workspace", "--locked", "--no-run"])?;
        let tests = tests.into_iter().filter_map(TestBinary::from_message).collect();
        Ok(Self {
            tests,
            broker,
            examples,
        })
    }
}

impl TestBinary {
    fn from_message(message: Message) -> Option<Self> {
        let folder = message.manifest_path?.parent()?.to_owned();
        let package = package_name(&folder);
        message.profile?.test.then_some(Self {
            package,
            target: message.target?.name,
            executable: message.executable?,
            folder,
        })
    }
}

/// The package's name as its manifest has it; the folder's name is another (`client-lib` is `xsk-client`).
fn package_name(folder: &Path) -> String {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    toml::from_str::<Manifest>(&text)
        .map_or_else(|_| folder.display().to_string(), |manifest| manifest.package.name)
}

/// Runs cargo, which tells people what it does on standard error, and returns what it tells programs.
fn messages(arguments: &[&str]) -> Result<Vec<Message>> {
    let mut cargo: Command = repository::cargo()?;
    cargo
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    eprintln!("$ cargo {}", arguments.join(" "));
    let output = cargo.output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("`cargo {}` failed: {}", arguments.join(" "), output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo printed something that is not UTF-8")?;
    let messages: Vec<Message> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("cargo printed a message of a form that xtask does not know")?;
    Ok(messages
        .into_iter()
        .filter(|message| message.reason == "compiler-artifact")
        .collect())
}

fn executable(messages: &[Message], kind: &str, name: &str) -> Result<PathBuf> {
    messages
        .iter()
        .filter(|message| {
            let target = message.target.as_ref();
            target.is_some_and(|target| target.name == name && target.kind.iter().any(|it| it == kind))
        })
        .find_map(|message| message.executable.clone())
        .with_context(|| format!("cargo built no {kind} {name}"))
}
