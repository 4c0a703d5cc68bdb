//! The compiler and linker for BPF: found where Debian and cargo put them, or installed from there.
//!
//! The compiler is not the developer's own: rustup ships no `core` for BPF, and building one needs a nightly
//! with its sources. Debian 12 carries a stable compiler with that `core` ready (rustc-web, for Firefox's
//! sake), so anybody can have exactly this one.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{debian, repository, shell};

pub(super) const TARGET: &str = "bpfel-unknown-none";

const RUSTC: &str = "/usr/bin/rustc";
/// bpf-linker is built against this LLVM, the one that Debian's rustc-web uses itself: bitcode of a newer
/// LLVM than the linker's cannot be linked.
pub(super) const LLVM: &str = "/usr/lib/llvm-22";
const BPF_LINKER_VERSION: &str = "0.13.0";
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-llvm"];
/// What building bpf-linker against [`LLVM`] takes: the library with its headers, and a C++ library to link
/// with.
const LINKER_PACKAGES: [&str; 3] = ["llvm-22-dev", "g++", "zlib1g-dev"];

/// A tool chain that is installed and answered when asked for its versions.
#[derive(Debug)]
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    pub(super) bpf_linker: PathBuf,
    pub(super) versions: Versions,
}

/// What decides about the object's bytes, besides the sources and the flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Versions {
    pub(super) rustc: String,
    pub(super) bpf_linker: String,
    pub(super) llvm: String,
}

impl Toolchain {
    /// The tool chain of this machine; the error says which part is missing.
    pub(super) fn find() -> Result<Self> {
        let rustc = find_rustc()?;
        let bpf_linker = find_bpf_linker()?;
        let llvm = PathBuf::from(LLVM).join("bin/llvm-config");
        let versions = Versions {
            rustc: version(&rustc)?,
            bpf_linker: version(&bpf_linker)?,
            llvm: version(&llvm)?,
        };
        Ok(Self {
            rustc,
            bpf_linker,
            versions,
        })
    }

    pub(super) fn find_or_install() -> Result<Self> {
        if find_rustc().is_err() {
            debian::install(
                &COMPILER_PACKAGES,
                "the XDP program needs a compiler with a `core` for BPF",
            )?;
        }
        if find_bpf_linker().is_err() || !Path::new(LLVM).join("bin/llvm-config").exists() {
            debian::install(
                &LINKER_PACKAGES,
                "the XDP program needs bpf-linker, which is built against LLVM 22",
            )?;
            let mut cargo = repository::cargo()?;
            cargo.env("LLVM_PREFIX", LLVM);
            cargo.args([
                "install",
                "--locked",
                "--version",
                BPF_LINKER_VERSION,
                "bpf-linker",
            ]);
            shell::run(&mut cargo)?;
        }
        Self::find()
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.versions.fmt(formatter)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rustc,
            bpf_linker,
            llvm,
        } = self;
        write!(formatter, "{rustc}, {bpf_linker}, LLVM {llvm}")
    }
}

/// The compiler with a built `core` for the target; that it exists is not enough, rustup's has none.
fn find_rustc() -> Result<PathBuf> {
    let rustc = PathBuf::from(RUSTC);
    if !rustc.is_file() {
        bail!(
            "there is no {RUSTC} (Debian: apt-get install {})",
            COMPILER_PACKAGES.join(" ")
        );
    }
    let folder = shell::output(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let has_core = fs::read_dir(folder.trim_end()).is_ok_and(|mut entries| {
        entries
            .any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
    });
    if !has_core {
        bail!(
            "{RUSTC} has no `core` for {TARGET} (Debian: apt-get install {})",
            COMPILER_PACKAGES.join(" ")
        );
    }
    Ok(rustc)
}

fn find_bpf_linker() -> Result<PathBuf> {
    let installed = cargo_home()?.join("bin/bpf-linker");
    if installed.is_file() {
        return Ok(installed);
    }
    shell::find("bpf-linker").context("there is no bpf-linker (`cargo xtask build-ebpf` installs it)")
}

fn version(program: &Path) -> Result<String> {
    Ok(shell::output(Command::new(program).arg("--version"))?
        .trim_end()
        .to_owned())
}

/// Where cargo keeps what it downloads and installs.
pub(super) fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set, so cargo's own folder cannot be found")
}
