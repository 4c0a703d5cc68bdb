//! `cargo xtask build-ebpf`: the XDP program, from its source to the object that is committed.
//!
//! **Invariant**: the same sources, flags and tool chain give the same bytes, in whatever folder they are
//! built. That is what lets `--check` compare byte for byte, and lets a reader trust an object that was
//! committed.

mod record;
mod toolchain;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{repository, shell};
use record::Record;
use toolchain::{Toolchain, Versions};

/// Build the XDP program and the object that is committed beside it, or check that they belong together.
///
/// Users and most developers never need this: the built object is part of the repository. After a change of
/// the program, run it and commit `xdp-ebpf/xsk_redirect.o` and `xdp-ebpf/xsk_redirect.toml`, which records
/// what the object was built from and with.
///
/// The tool chain is Debian 12's rustc-web with a prebuilt `core` for BPF, and bpf-linker; where they are
/// missing, they are installed with apt-get and `cargo install`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, after editing the program:\n  cargo xtask build-ebpf && git diff --stat xdp-ebpf"
)]
pub(crate) struct Arguments {
    /// Change nothing: fail if the object is not what its sources give. Byte for byte where the recorded tool
    /// chain is installed, by the hashes of the sources everywhere; it says which.
    #[arg(long)]
    check: bool,
    /// Only install the tool chain that is missing.
    #[arg(long, conflicts_with = "check")]
    install_only: bool,
}

/// The object and its record, and what the object depends on, from the repository's top.
const OBJECT: &str = "xdp-ebpf/xsk_redirect.o";
const RECORD: &str = "xdp-ebpf/xsk_redirect.toml";
const PROGRAM: &str = "xdp-ebpf/program";
const SOURCES: [&str; 4] = [
    "xdp-ebpf/program/Cargo.toml",
    "xdp-ebpf/program/Cargo.lock",
    "xdp-ebpf/program/src/main.rs",
    "xdp-ebpf/src/queue_counters.rs",
];

/// Debug information would carry the builder's paths, and nothing reads it.
const FLAGS: [&str; 1] = ["-Cdebuginfo=0"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = repository::root()?;
    if arguments.check {
        println!("{OBJECT}: {}", check(&root)?);
        return Ok(());
    }
    let toolchain = Toolchain::find_or_install()?;
    if arguments.install_only {
        println!("the tool chain is installed: {toolchain}");
        return Ok(());
    }
    let object = build(&root, &toolchain)?;
    let record = Record::new(&root, &toolchain, &object)?;
    write(&root.join(OBJECT), &object)?;
    write(&root.join(RECORD), record.to_text()?.as_bytes())?;
    println!(
        "{OBJECT}: {} bytes, by {toolchain}\n{RECORD} records what it was built from: commit both",
        object.len()
    );
    Ok(())
}

/// By what the committed object was found to be what its sources give.
pub(crate) enum Checked {
    /// It was built anew, and is equal byte for byte.
    Bytes(Versions),
    /// Sources, flags and object are those that were recorded; why no more could be told here.
    Hashes(String),
}

impl fmt::Display for Checked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(versions) => write!(formatter, "built anew by {versions}, equal byte for byte"),
            Self::Hashes(reason) => {
                write!(
                    formatter,
                    "checked by the hashes of its sources only, because {reason}"
                )
            }
        }
    }
}

/// Whether the committed object is what its sources give, as far as this machine can tell; says how far.
pub(crate) fn check(root: &Path) -> Result<Checked> {
    let record = Record::read(&root.join(RECORD))?;
    record.check_hashes(root)?;

    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => return Ok(Checked::Hashes(format!("{missing:#}"))),
    };
    if record.toolchain != toolchain.versions {
        return Ok(Checked::Hashes(format!(
            "it was built by {}, and here is {}",
            record.toolchain, toolchain.versions
        )));
    }
    let built = build(root, &toolchain)?;
    let committed = read(&root.join(OBJECT))?;
    if built != committed {
        let first = built
            .iter()
            .zip(&committed)
            .take_while(|(built, committed)| built == committed)
            .count();
        bail!(
            "{OBJECT} is not what its sources give with the recorded tool chain: {} bytes are committed, {} were \
             built, and they differ from byte {first} on; run `cargo xtask build-ebpf` and commit the result",
            committed.len(),
            built.len(),
        );
    }
    Ok(Checked::Bytes(toolchain.versions))
}

/// Builds the program and returns the object. The build never sees the workspace's own target folder or
/// flags.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let program = root.join(PROGRAM);
    let target = program.join("target");
    // "Built anew" has to be true: of what an earlier build left, only the dependencies are used.
    let mut clean = repository::cargo()?;
    clean
        .current_dir(&program)
        .args(["clean", "--quiet", "--locked", "--package", "xsk-redirect"]);
    shell::output(clean.arg("--target-dir").arg(&target))?;

    let mut cargo = repository::cargo()?;
    cargo
        .current_dir(&program)
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--target",
            toolchain::TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        // aya-ebpf uses unstable features of the language; a stable compiler of a known version has them too.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, toolchain)?)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS");
    shell::run(&mut cargo).context("the XDP program does not build")?;
    read(&target.join(toolchain::TARGET).join("release/xsk_redirect"))
}

/// The compiler's flags, separated as CARGO_ENCODED_RUSTFLAGS wants them. They stand in for every other
/// source of flags, the user's cargo configuration included; and no path of this machine may come through.
fn flags(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
    flags.push(remap(root, "/xsk-broker"));
    flags.push(remap(&toolchain::cargo_home()?, "/cargo"));
    flags.push(format!("-Clinker={}", toolchain.bpf_linker.display()));
    Ok(flags.join("\x1f"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("{} cannot be written", path.display()))
}
