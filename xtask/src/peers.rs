//! Programs with other people's libraries: `tests/peers`, a workspace with a lock file of its own. Benches compare ours
//! with them, and a test runs one that is in C.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::artifacts::{self, Build};
use crate::{debian, repository, shell};

/// What it takes to compile libxdp from source: programs, and libraries by the names that pkg-config knows.
const PROGRAMS: [&str; 5] = ["gcc", "make", "m4", "clang", "pkg-config"];
const LIBRARIES: [&str; 2] = ["libelf", "zlib"];
const PACKAGES: [&str; 9] = [
    "gcc",
    "libc6-dev",
    "make",
    "m4",
    "clang",
    "libclang-dev",
    "pkg-config",
    "libelf-dev",
    "zlib1g-dev",
];

/// The compiled program that libxdp attaches where it is told nothing else, as Debian ships it.
pub(crate) fn libxdp_default_program() -> Result<PathBuf> {
    let installed = || {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        folders
            .map(|folder| folder.path().join("bpf/xsk_def_xdp_prog.o"))
            .find(|object| object.is_file())
    };
    if installed().is_none() {
        debian::install(&["libxdp1"], "libxdp's default program is a file of its package")?;
    }
    installed().context("the package libxdp1 has brought no bpf/xsk_def_xdp_prog.o below /usr/lib")
}

/// What it takes is here.
fn is_equipped() -> bool {
    let has_programs = PROGRAMS.iter().all(|program| shell::find(program).is_some());
    has_programs && shell::output(Command::new("pkg-config").arg("--exists").args(LIBRARIES)).is_ok()
}

fn manifest() -> Result<String> {
    let manifest = repository::root()?.join("tests/peers/Cargo.toml");
    Ok(manifest.display().to_string())
}

/// Builds the C program that a test runs, with `build`. Nothing is installed for that: `None`, and a word, where what it
/// takes is not here.
pub(crate) fn build_capi(build: &Build) -> Result<Option<PathBuf>> {
    if !is_equipped() {
        eprintln!(
            "what libxdp is compiled with is not installed (`cargo xtask test` does that): no test in C"
        );
        return Ok(None);
    }
    let words = ["build", "--locked", "--package", "peer-capi", "--manifest-path"];
    let built = build.messages(&[&words[..], &[manifest()?.as_str()]].concat())?;
    artifacts::executable(&built, "bin", "peer-capi").map(Some)
}

/// Builds them in release, and returns the folder with their programs.
pub(crate) fn build() -> Result<PathBuf> {
    if !is_equipped() {
        debian::install(
            &PACKAGES,
            "libxdp, which a test and the benches use, is compiled from source",
        )?;
    }
    let manifest = manifest()?;
    let built = Build::new().messages(&["build", "--release", "--locked", "--manifest-path", &manifest])?;
    let program = artifacts::executable(&built, "bin", "peer-libxdp")?;
    program
        .parent()
        .map(PathBuf::from)
        .context("a program is in no folder")
}
