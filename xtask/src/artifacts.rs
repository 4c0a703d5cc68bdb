//! What demo, tests and benches run: cargo builds it, and says in JSON where each binary is.
//!
//! The binaries are run by us and not by cargo, because some of them go through sudo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::repository;

/// The programs of this repository, built.
pub(crate) struct Programs {
    pub(crate) broker: PathBuf,
    pub(crate) demo: PathBuf,
    /// The folder with the client library's built examples.
    pub(crate) examples: PathBuf,
}

/// One built test harness.
pub(crate) struct TestBinary {
    pub(crate) package: String,
    pub(crate) target: String,
    pub(crate) executable: PathBuf,
    /// The package's folder, in which cargo runs its tests.
    pub(crate) folder: PathBuf,
}

/// The part that matters here of the messages that `cargo build --message-format=json` prints, one a line.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

impl Programs {
    pub(crate) fn build() -> Result<Self> {
        let programs =
            Build::new().messages(&["build", "--workspace", "--locked", "--bins", "--examples"])?;
        let echo = executable(&programs, "example", "echo")?;
        Ok(Self {
            broker: executable(&programs, "bin", "xsk-broker")?,
            demo: executable(&programs, "bin", "demo")?,
            examples: echo
                .parent()
                .map(Path::to_owned)
                .context("an example has no folder")?,
        })
    }

    /// Where they are, as `NAME=VALUE` for `env`: sudo would drop variables that are only set.
    pub(crate) fn variables(&self, papers: &Path) -> [String; 3] {
        let variable = |name: &str, value: &Path| format!("{name}={}", value.display());
        [
            variable("XSK_E2E_BROKER", &self.broker),
            variable("XSK_E2E_CLIENT_DIR", &self.examples),
            variable("XSK_E2E_PAPERS", papers),
        ]
    }
}

impl TestBinary {
    /// Builds all tests of the workspace.
    pub(crate) fn build_all() -> Result<Vec<Self>> {
        let tests = Build::new().messages(&["test", "--workspace", "--locked", "--no-run"])?;
        Ok(tests.into_iter().filter_map(Self::from_message).collect())
    }

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

/// Builds one program in release, by the kind of its target (`bin`, `bench`), and returns where it is.
pub(crate) fn build_release(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let kind_option = format!("--{kind}");
    let built = Build::new().messages(&[
        "build",
        "--release",
        "--locked",
        "--package",
        package,
        &kind_option,
        name,
    ])?;
    executable(&built, kind, name)
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

/// How cargo is called: as it stands, or for another place than the host.
#[derive(Debug, Default)]
pub(crate) struct Build {
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
}

impl Build {
    /// For the host, in the usual target folder.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// In a target folder of its own.
    pub(crate) fn target_dir(self, folder: &Path) -> Self {
        self.argument("--target-dir").argument(folder)
    }

    /// For another target than the host's default; then build scripts and macros do not get the flags below.
    pub(crate) fn target(self, triple: &str) -> Self {
        self.argument("--target").argument(triple)
    }

    /// With flags for rustc.
    pub(crate) fn rust_flags(self, flags: &str) -> Self {
        self.environment("RUSTFLAGS", flags)
    }

    /// With a variable set.
    pub(crate) fn environment(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs cargo, which tells people what it does on standard error, and returns what it tells programs.
    pub(crate) fn messages(&self, arguments: &[&str]) -> Result<Vec<Message>> {
        let mut cargo: Command = repository::cargo()?;
        cargo
            .args(arguments)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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
}

/// The program of that kind and name among what cargo built.
pub(crate) fn executable(messages: &[Message], kind: &str, name: &str) -> Result<PathBuf> {
    messages
        .iter()
        .filter(|message| {
            let target = message.target.as_ref();
            target.is_some_and(|target| target.name == name && target.kind.iter().any(|it| it == kind))
        })
        .find_map(|message| message.executable.clone())
        .with_context(|| format!("cargo built no {kind} {name}"))
}
