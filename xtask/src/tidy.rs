//! `cargo xtask tidy`: the rules of this repository that neither the compiler nor clippy knows.
//!
//! Each rule is a file of its own and a pure function from text to complaints, so that its tests need no
//! repository. All complaints are collected: who breaks two rules hears of both.

mod code;
mod dependencies;
mod sources;
mod unsafe_files;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::repository;

/// Check the rules that the compiler does not know: dependencies, unsafe files, source files.
///
/// The rules:
///   - broker depends on client-lib (features wire and sys only) and xdp-ebpf; client-lib on no aya, no tokio
///     (unless optional) and not on the broker; xdp-ebpf on nothing of ours
///   - the files with unsafe code are those that ARCHITECTURE.md lists, with a reason, and no others
///   - each .rs file starts with `//!`, has at most 450 lines, and has no `todo!`, `unimplemented!`,
///     `#[ignore]` or `as _`
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, after_help = "Example:\n  cargo xtask tidy")]
pub(crate) struct Arguments {}

/// One source file: its path from the repository's top, and its text.
struct Source {
    path: String,
    text: String,
}

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let root = repository::root()?;
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources)?;
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).ok();

    let mut complaints = dependencies::complaints(&repository::metadata()?)?;
    complaints.extend(unsafe_files::complaints(&sources, architecture.as_deref()));
    complaints.extend(sources.iter().flat_map(sources::complaints));
    if complaints.is_empty() {
        println!("tidy: {} source files, nothing to complain about", sources.len());
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    bail!("tidy has {} complaints", complaints.len());
}

/// All .rs files below `folder`, except what is built and what is hidden.
fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be listed", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("{} cannot be listed", folder.display()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            let scratch = folder == root && name == "tmp";
            if name != "target" && !name.starts_with('.') && !scratch {
                collect(root, &path, sources)?;
            }
        } else if name.ends_with(".rs") {
            sources.push(Source {
                path: relative(root, &path),
                text: read(&path)?,
            });
        }
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root)
        .unwrap_or(path)
        .to_string_lossy()
        .into_owned()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}
