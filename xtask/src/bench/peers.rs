//! The contestants that are other people's libraries: `tests/peers`, a workspace with a lock file of its own.

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

/// Builds them in release, and returns the folder with their programs.
pub(super) fn build() -> Result<PathBuf> {
    let has_programs = PROGRAMS.iter().all(|program| shell::find(program).is_some());
    let has_libraries = || shell::output(Command::new("pkg-config").arg("--exists").args(LIBRARIES)).is_ok();
    if !(has_programs && has_libraries()) {
        debian::install(&PACKAGES, "the peer libxdp is compiled from source")?;
    }
    let manifest = repository::root()?.join("tests/peers/Cargo.toml");
    let manifest = manifest.display().to_string();
    let built = Build::new().messages(&["build", "--release", "--locked", "--manifest-path", &manifest])?;
    let program = artifacts::executable(&built, "bin", "peer-libxdp")?;
    program
        .parent()
        .map(PathBuf::from)
        .context("a program is in no folder")
}
