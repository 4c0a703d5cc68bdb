//! `cargo xtask build-ebpf`: the BPF programs, from their sources to the objects that are committed.
//!
//! **Invariant**: the same sources, flags and tool chain give the same bytes, in whatever folder they are
//! built. That is what lets `--check` compare byte for byte, and lets a reader trust an object that was
//! committed.

mod object;
mod record;
mod toolchain;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{repository, shell};
use object::{OBJECTS, Object};
use record::Record;
use toolchain::{Toolchain, Versions};

/// Build the BPF programs and the objects that are committed beside them, or check that they belong together.
///
/// Users and most developers never need this: the built objects are part of the repository. After a change of a
/// program, run it and commit `xdp-ebpf/*.o` and the `.toml` beside each, which records what the object was built
/// from and with.
///
/// The tool chain is Debian 12's rustc-web with a prebuilt `core` for BPF, and bpf-linker; where they are
/// missing, they are installed with apt-get and `cargo install`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, after editing the program:\n  cargo xtask build-ebpf && git diff --stat xdp-ebpf"
)]
pub(crate) struct Arguments {
    /// Change nothing: fail if an object is not what its sources give. Byte for byte where the recorded tool
    /// chain is installed, by the hashes of the sources everywhere; it says which.
    #[arg(long)]
    check: bool,
    /// Only install the tool chain that is missing.
    #[arg(long, conflicts_with = "check")]
    install_only: bool,
}

/// Where the programs' package is, from the repository's top.
const PROGRAM: &str = "xdp-ebpf/program";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = repository::root()?;
    if arguments.check {
        println!("{}", check(&root)?);
        return Ok(());
    }
    let toolchain = Toolchain::find_or_install()?;
    if arguments.install_only {
        println!("the tool chain is installed: {toolchain}");
        return Ok(());
    }
    for object in &OBJECTS {
        let built = build(&root, object, &toolchain)?;
        let record = Record::new(&root, object, &toolchain, &built)?;
        write(&root.join(object.path), &built)?;
        write(&root.join(object.record), record.to_text(object)?.as_bytes())?;
        println!(
            "{}: {} bytes, by {toolchain}\n{} records what it was built from: commit both",
            object.path,
            built.len(),
            object.record
        );
    }
    Ok(())
}

/// By what the committed objects were found to be what their sources give.
pub(crate) enum Checked {
    /// They were built anew, and are equal byte for byte.
    Bytes(Versions),
    /// Sources, flags and objects are those that were recorded; why no more could be told here.
    Hashes(String),
}

impl fmt::Display for Checked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(versions) => write!(
                formatter,
                "xdp-ebpf/*.o: built anew by {versions}, equal byte for byte"
            ),
            Self::Hashes(reason) => {
                write!(
                    formatter,
                    "xdp-ebpf/*.o: checked by the hashes of their sources only, because {reason}"
                )
            }
        }
    }
}

/// Whether the committed objects are what their sources give, as far as this machine can tell; says how far.
pub(crate) fn check(root: &Path) -> Result<Checked> {
    let mut records = Vec::new();
    for object in &OBJECTS {
        let record = Record::read(&root.join(object.record))?;
        record.check_hashes(root, object)?;
        records.push((object, record));
    }
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => return Ok(Checked::Hashes(format!("{missing:#}"))),
    };
    for (object, record) in records {
        if record.toolchain != toolchain.versions {
            return Ok(Checked::Hashes(format!(
                "{} was built by {}, and here is {}",
                object.path, record.toolchain, toolchain.versions
            )));
        }
        check_bytes(root, object, &toolchain)?;
    }
    Ok(Checked::Bytes(toolchain.versions))
}

/// That an object is, byte for byte, what its sources give.
fn check_bytes(root: &Path, object: &Object, toolchain: &Toolchain) -> Result<()> {
    let built = build(root, object, toolchain)?;
    let committed = read(&root.join(object.path))?;
    if built == committed {
        return Ok(());
    }
    let first = built
        .iter()
        .zip(&committed)
        .take_while(|(built, committed)| built == committed)
        .count();
    bail!(
        "{} is not what its sources give with the recorded tool chain: {} bytes are committed, {} were \
         built, and they differ from byte {first} on; run `cargo xtask build-ebpf` and commit the result",
        object.path,
        committed.len(),
        built.len(),
    )
}

/// Builds a program and returns the object. The build never sees the workspace's own target folder or flags.
fn build(root: &Path, object: &Object, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let program = root.join(PROGRAM);
    // Each has flags of its own, and so its dependencies too.
    let target = program.join("target").join(object.binary);
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
            "--bin",
            object.binary,
        ])
        .arg("--target-dir")
        .arg(&target)
        // aya-ebpf uses unstable features of the language; a stable compiler of a known version has them too.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, object, toolchain)?)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS");
    shell::run(&mut cargo).with_context(|| format!("{} does not build", object.binary))?;
    let built = target.join(toolchain::TARGET).join("release").join(object.binary);
    object.strip(&built)?;
    read(&built)
}

/// The compiler's flags, separated as CARGO_ENCODED_RUSTFLAGS wants them. They stand in for every other
/// source of flags, the user's cargo configuration included; and no path of this machine may come through.
fn flags(root: &Path, object: &Object, toolchain: &Toolchain) -> Result<String> {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags: Vec<String> = object.flags().iter().map(ToString::to_string).collect();
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
