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
mod machine;
mod qemu;
mod readme;
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
use kernel::Kernel;
use machine::Machine;
use qemu::Qemu;
use table::{Run, Table};
use verdict::Verdict;

/// Run the end-to-end suite on other kernels, in virtual machines.
///
/// Fetches QEMU (10.0 or later) and Debian's kernels 6.1, 6.12 and 7 with apt into target/vm, without installing
/// anything and without root; builds the broker, the examples and the suite statically; boots each kernel, and prints
/// one table. What was fetched is kept: `--refresh` asks Debian for newer ones.
///
/// Machines: 6.1, 6.12 and 7 run the whole suite, with two virtio-net devices on a wire; 7-igb what is about network
/// cards, with two igb devices; 7-no-bpf-lsm what is about BPF LSM, booted without it. The whole is for every night
/// (about an hour with two processors and no KVM), `--short` for every change.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask vm\n  cargo xtask vm --short\n  cargo xtask vm --kernel 6.1 --kernel 7-igb\n  \
                  cargo xtask vm --kernel 7 --test zero_copy\n  cargo xtask vm --readme"
)]
pub(crate) struct Arguments {
    /// Only this machine: 6.1, 6.12, 7, 7-igb or 7-no-bpf-lsm. May be given several times.
    #[arg(long, value_name = "MACHINE")]
    kernel: Vec<String>,
    /// Only tests whose names contain this. May be given several times.
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// One old and one new kernel, and of the suite what differs most between them: some minutes.
    #[arg(long, conflicts_with_all = ["kernel", "test", "readme"])]
    short: bool,
    /// Write README's table of kernels from this run, if nothing failed.
    #[arg(long, conflicts_with_all = ["kernel", "test"])]
    readme: bool,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// Ask Debian for newer kernels, and a newer QEMU.
    #[arg(long)]
    refresh: bool,
    /// Fetch QEMU and the kernels, and run nothing.
    #[arg(long)]
    fetch_only: bool,
    /// How long one machine may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    time_limit: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let machines = match arguments.short {
        true => Machine::short(),
        false => Machine::chosen(&arguments.kernel)?,
    };
    let cache = repository::root()?.join("target/vm");
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let (mut qemu, kernels) = fetch(&cache, &machines, arguments.refresh)?;
    if arguments.fetch_only {
        return Ok(());
    }
    let begun = Instant::now();
    let programs = Programs::build(&cache)?;
    eprintln!("== built in {:.0} s", begun.elapsed().as_secs_f64());
    if let Some(kernel) = kernels.first() {
        qemu.probe_kvm(&kernel.image)?;
    }

    let mut runs = Vec::new();
    for (machine, kernel) in machines.iter().zip(&kernels) {
        runs.push(run_on(machine, kernel, &qemu, &programs, &cache, arguments)?);
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
    match arguments.readme {
        true => readme::write(&table),
        false => Ok(()),
    }
}

/// QEMU and the machines' kernels: those that are there, the others from Debian.
fn fetch(cache: &Path, machines: &[Machine], refresh: bool) -> Result<(Qemu, Vec<Kernel>)> {
    let begun = Instant::now();
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
    let mut kernels: Vec<Kernel> = Vec::new();
    for &Machine { series, .. } in machines {
        let known = kernels.iter().find(|kernel| kernel.series == series).cloned();
        let present = match known {
            None if !refresh => Kernel::cached(series, cache)?,
            known => known,
        };
        kernels.push(match present {
            Some(kernel) => kernel,
            None => Kernel::fetch(series, cache, &*debian()?)?,
        });
    }
    if let Some(apt) = &apt {
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!(
            "== fetched {} MB from Debian in {seconds:.0} s",
            apt.fetched_bytes() / 1_000_000
        );
    }
    Ok((qemu, kernels))
}

fn run_on(
    machine: &Machine,
    kernel: &Kernel,
    qemu: &Qemu,
    programs: &Programs,
    cache: &Path,
    arguments: &Arguments,
) -> Result<Run> {
    let logs = log_folder(cache, machine)?;
    let initramfs = programs.write_image(kernel, cache)?;
    let tests: Vec<String> = match (&arguments.test[..], arguments.short) {
        ([], true) => machine.short.iter().map(ToString::to_string).collect(),
        ([], false) => machine.tests.iter().map(ToString::to_string).collect(),
        (tests, _) => tests.to_vec(),
    };
    let guest = Guest {
        qemu,
        machine,
        kernel,
        initramfs: &initramfs,
        console: logs.join("console"),
        arguments: tests,
        time_limit: Duration::from_secs(arguments.time_limit),
    };
    eprintln!(
        "== {}: {} on QEMU {} ({:?})",
        machine.name, kernel.release, qemu.version, qemu.accelerator
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
        machine: machine.name,
        release: kernel.release.clone(),
        seconds,
        trouble,
        tests: verdict.tests,
        facts: verdict.facts,
    })
}

/// Where the last run's console and the tests' output stay, to be looked at.
fn log_folder(cache: &Path, machine: &Machine) -> Result<PathBuf> {
    let folder = cache.join(format!("log-{}", machine.name));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
