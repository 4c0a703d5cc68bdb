//! `cargo xtask vm`: the end-to-end suite on other kernels, in virtual machines, and one table of it.
//!
//! Debian's kernels and QEMU are fetched and unpacked below `target/vm`, never installed, and no root is needed.
//! Each kernel boots into an initial file system of our own programs, of which the first one loads modules and runs
//! the suite. **Invariant**: a kernel counts as good only by its own word at the end; a crash, a time-out and a
//! verdict that did not arrive are failures.

mod apt;
mod guest;
mod image;
mod initramfs;
mod kernel;
mod qemu;
mod table;
mod verdict;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::repository;
use apt::Apt;
use guest::{End, Guest};
use image::Programs;
use kernel::{Kernel, Series};
use qemu::Qemu;
use table::{Run, Table};
use verdict::Verdict;

/// Run the end-to-end suite on other kernels, in virtual machines.
///
/// Fetches QEMU (10.0 or later) and Debian's kernels 6.1, 6.12 and 7 with apt into target/vm, without installing
/// anything and without root; builds the broker, the examples and the suite statically; boots each kernel, and prints
/// one table. What was fetched is kept: `--refresh` asks Debian for newer ones.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask vm\n  cargo xtask vm --kernel 6.1 --kernel 7\n  cargo xtask vm --kernel 7 --test zero_copy"
)]
pub(crate) struct Arguments {
    /// Only this kernel: 6.1, 6.12 or 7. May be given several times.
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only tests whose names contain this.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// Ask Debian for newer kernels, and a newer QEMU.
    #[arg(long)]
    refresh: bool,
    /// How long one kernel may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    time_limit: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let series = Series::chosen(&arguments.kernel)?;
    let cache = repository::root()?.join("target/vm");
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let (mut qemu, kernels) = fetch(&cache, &series, arguments.refresh)?;
    let programs = Programs::build(&cache)?;
    if let Some(kernel) = kernels.first() {
        qemu.probe_kvm(&kernel.image)?;
    }

    let mut runs = Vec::new();
    for kernel in &kernels {
        runs.push(run_on(kernel, &qemu, &programs, &cache, arguments)?);
    }
    let table = Table {
        qemu: qemu.version,
        kernels: runs,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        print!("\n{table}");
    }
    if !table.kernels.iter().all(Run::succeeded) {
        bail!("the suite did not pass on every kernel");
    }
    Ok(())
}

/// QEMU and kernels: those that are there, the others from Debian.
fn fetch(cache: &Path, series: &[Series], refresh: bool) -> Result<(Qemu, Vec<Kernel>)> {
    let mut apt = None;
    let mut debian = || -> Result<_> {
        if apt.is_none() {
            apt = Some(std::rc::Rc::new(Apt::update(cache.join("apt"))?));
        }
        apt.clone().context("apt was just set up")
    };
    let present = if refresh { None } else { Qemu::present(cache)? };
    let qemu = match present {
        Some(qemu) => qemu,
        None => Qemu::fetch(cache, &*debian()?)?,
    };
    let mut kernels = Vec::new();
    for &series in series {
        let present = if refresh {
            None
        } else {
            Kernel::cached(series, cache)?
        };
        kernels.push(match present {
            Some(kernel) => kernel,
            None => Kernel::fetch(series, cache, &*debian()?)?,
        });
    }
    Ok((qemu, kernels))
}

fn run_on(
    kernel: &Kernel,
    qemu: &Qemu,
    programs: &Programs,
    cache: &Path,
    arguments: &Arguments,
) -> Result<Run> {
    let logs = log_folder(cache, kernel.series)?;
    let initramfs = programs.write_image(kernel, cache)?;
    let guest = Guest {
        qemu,
        kernel,
        initramfs: &initramfs,
        console: logs.join("console"),
        arguments: arguments.test.iter().cloned().collect(),
        time_limit: Duration::from_secs(arguments.time_limit),
    };
    eprintln!(
        "== {} on QEMU {} ({:?})",
        kernel.release, qemu.version, qemu.accelerator
    );
    let begun = Instant::now();
    let mut verdict = Verdict::new();
    let mut transcript = File::create(logs.join("tests"))?;
    let mut written = Ok(());
    let end = guest.run(|line| {
        if line.starts_with("test ") {
            eprintln!("{line}");
        }
        if written.is_ok() {
            written = writeln!(transcript, "{line}");
        }
        verdict.read(line, Instant::now());
    })?;
    verdict.finish(Instant::now());
    let seconds = begun.elapsed().as_secs_f64();
    written.context("the transcript")?;

    let ended = verdict.ended.as_deref();
    let trouble = Run::trouble(&end, ended, verdict.failed(), verdict.tests.len());
    if trouble.is_some() {
        eprintln!("{}", verdict.failures);
    }
    if ended.is_none() || end == End::Good && trouble.is_some() {
        eprintln!("the end of the console:\n{}", guest.console_tail(40));
    }
    Ok(Run {
        series: kernel.series.name,
        release: kernel.release.clone(),
        seconds,
        trouble,
        tests: verdict.tests,
    })
}

/// Where the last run's console and the tests' output stay, to be looked at.
fn log_folder(cache: &Path, series: Series) -> Result<PathBuf> {
    let folder = cache.join(format!("log-{}", series.name));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
