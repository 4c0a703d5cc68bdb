//! `xsk-broker purge`: takes down everything that a broker has left, while none runs.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::Context;

use super::exit::Exit;
use super::piece::{self, Action, Kind, Piece};
use super::place;
use crate::error::chain;
use crate::kernel::netlink;
use crate::kernel::pinned::{self, Found};
use crate::kernel::pins::PinDirectory;
use crate::kernel::queue_lock::{self, FoundTaint, TaintedBy};
use crate::numbers::LOCK_FILE;
use crate::record::{BEGINNING, MOST_BYTES, Record};
use crate::run_dir::{RunDirectory, boot_id};

/// Take down what a broker has left: XDP programs, maps, records of leases, sockets. For root, while no broker runs.
///
/// Packets of every queue go to the host from then on. What holders have open stays open: they receive nothing any more,
/// except in zero-copy mode, and can transmit until they close their sockets.
///
/// While a broker runs it exits 75, with --dry-run too; for who is not root 77; where a directory is no directory, or not on a
/// BPF file system, or a device of a lease runs its program still and it is pinned in another directory, 78. Nothing to take down, or no such directory, is no failure.
///
/// Example: xsk-broker purge --dry-run
#[derive(Debug, clap::Args)]
pub struct PurgeArgs {
    /// Do nothing, and tell what would be taken down
    #[arg(long)]
    dry_run: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,

    /// Where sockets, records and the lock file are
    #[arg(long, value_name = "DIR", default_value = "/run/xsk-broker")]
    run_dir: PathBuf,

    /// Where XDP programs are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/xsk-broker")]
    bpf_dir: PathBuf,
}

/// Its records would go, and their device's program stay.
#[derive(Debug, thiserror::Error)]
#[error(
    "{interface} runs a broker's XDP program, by lease {lease}'s record, and nothing is pinned for it in {}: name the directory in \
     which that broker had it pinned with --bpf-dir. Where there is none any more, `bpftool link` shows the link, and \
     `bpftool link detach` takes the program down",
    bpf_dir.display()
)]
pub(super) struct PinnedElsewhere {
    interface: String,
    lease: u64,
    bpf_dir: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// Where a broker runs, and as the kernel says.
pub fn run(args: &PurgeArgs) -> anyhow::Result<Exit> {
    place::demand_root("purge is for root: what is pinned is closed to others")?;
    let directory = match place::is_there(&args.run_dir)? {
        true => Some(RunDirectory::open(&args.run_dir)?),
        false => None,
    };
    let pins = PinDirectory::open(&args.bpf_dir)?;
    for (path, is_there) in [
        (&args.run_dir, directory.is_some()),
        (&args.bpf_dir, pins.is_some()),
    ] {
        if !is_there {
            eprintln!("xsk-broker: there is no {}", path.display());
        }
    }
    // Held until the end.
    let _lock = match (&directory, args.dry_run) {
        (_, true) => {
            place::check_unused(&args.run_dir, pins.as_ref())?;
            None
        }
        (Some(_), false) => Some(place::lock(&args.run_dir)?),
        (None, false) => None,
    };
    if let (Some(pins), false) = (&pins, args.dry_run) {
        pins.lock()?;
    }
    if let Some(directory) = &directory {
        check_pins(directory, pins.as_ref(), args)?;
    }
    let mut pieces = Vec::new();
    if let Some(pins) = &pins {
        programs(pins, args, &mut pieces)?;
    }
    if let Some(directory) = &directory {
        files(directory, args, &mut pieces)?;
    }
    piece::print(&pieces, args.json)?;
    Ok(Exit::Ok)
}

/// Sees that what the records speak of is pinned here, if it is attached still: before anything goes.
fn check_pins(directory: &RunDirectory, pins: Option<&PinDirectory>, args: &PurgeArgs) -> anyhow::Result<()> {
    let boot = boot_id()?;
    for name in directory.names(BEGINNING)? {
        if RunDirectory::is_unfinished(&name) || Record::before_aside(&name).is_some() {
            continue;
        }
        let text = directory.read(&name, MOST_BYTES).map(|file| file.text);
        let Ok(record) = Record::decode(&name, &text.unwrap_or_default()) else {
            continue;
        };
        let index = record.interface_index;
        let is_pinned = pins.map_or(Ok(false), |pins| pins.has(index))?;
        if record.boot == boot && !is_pinned && pinned::runs_ours(index) {
            let devices = netlink::devices().context("cannot ask the kernel for its devices")?;
            let now = devices.into_iter().find(|(_, link)| link.index == index);
            let interface = now.map_or(record.interface, |(name, _)| name);
            return Err(PinnedElsewhere {
                interface: interface.to_string(),
                lease: record.lease,
                bpf_dir: args.bpf_dir.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// Programs come first: from then on no packet goes to a holder.
fn programs(pins: &PinDirectory, args: &PurgeArgs, pieces: &mut Vec<Piece>) -> anyhow::Result<()> {
    let names = netlink::devices().context("cannot ask the kernel for its devices")?;
    let (indexes, strange) = pinned::devices(pins)?;
    for index in indexes {
        let name = names
            .iter()
            .find(|(_, link)| link.index == index)
            .map_or_else(|| format!("ifindex {index}"), |(name, _)| name.to_string());
        let why = match pinned::look(pins, index) {
            Found::Whole(program) => format!(
                "{} on {} queues; it is detached, and all packets go to the host",
                program.mode, program.queues
            ),
            Found::Useless(why) | Found::Elsewhere(why) => why,
            Found::Foreign(why) => {
                pieces.push(Piece::new(Action::Leave, Kind::Pin, name, why));
                continue;
            }
        };
        if !args.dry_run {
            pins.take_down(index)?;
        }
        pieces.push(Piece::new(Action::Remove, Kind::Program, name, why));
    }
    if queue_lock::is_left_in(pins.duplicate()?)? {
        let (action, why) = match queue_lock::take_down_left(pins.duplicate()?, args.dry_run)? {
            true => (
                Action::Remove,
                "the queue lock lsm, which confines no socket any more",
            ),
            false => (
                Action::Leave,
                "sockets that it confines may be unbound still: the next broker takes it over",
            ),
        };
        pieces.push(Piece::new(action, Kind::Pin, "lsm", why));
    }
    let foreign = strange.into_iter();
    pieces.extend(foreign.map(|name| Piece::new(Action::Leave, Kind::Pin, name, "it is not the broker's")));
    Ok(())
}

fn files(directory: &RunDirectory, args: &PurgeArgs, pieces: &mut Vec<Piece>) -> anyhow::Result<()> {
    let taints = queue_lock::look_for_taints(directory)?;
    for name in directory.names("")? {
        let piece = if name == "." || name == ".." || name == LOCK_FILE {
            // The lock file cannot go without a race for the next lock.
            continue;
        } else if RunDirectory::is_unfinished(&name) {
            Piece::new(
                Action::Remove,
                Kind::File,
                name.as_str(),
                "a broker was killed while it wrote it",
            )
        } else if name.starts_with(BEGINNING) {
            Piece::new(
                Action::Remove,
                Kind::Record,
                name.as_str(),
                record(directory, &name),
            )
        } else if let Some(taint) = taints.get(&name) {
            unbound(&name, taint)
        } else if is_socket(&args.run_dir.join(&name)) {
            Piece::new(
                Action::Remove,
                Kind::File,
                name.as_str(),
                "a socket that nobody serves",
            )
        } else {
            Piece::new(Action::Leave, Kind::File, name.as_str(), "it is not the broker's")
        };
        if piece.action == Action::Remove && !args.dry_run {
            directory.remove(&name);
        }
        pieces.push(piece);
    }
    Ok(())
}

/// A file that says who may have an unbound socket.
fn unbound(name: &str, taint: &FoundTaint) -> Piece {
    let (action, why) = match taint {
        FoundTaint::Taints(_, TaintedBy::Process(pid)) => (
            Action::Leave,
            format!(
                "process {pid} may have an unbound socket of that device still: the next broker has to know"
            ),
        ),
        FoundTaint::Taints(_, TaintedBy::File { why, .. }) => (
            Action::Leave,
            format!(
                "which process may have an unbound socket of that device still, it does not say ({why}): once none has, remove it"
            ),
        ),
        FoundTaint::Gone => (Action::Remove, "the process that it names is gone".to_owned()),
    };
    Piece::new(action, Kind::File, name, why)
}

/// What a record says, whoever wrote it: it goes in any case.
fn record(directory: &RunDirectory, name: &str) -> String {
    let text = directory.read(name, MOST_BYTES).map(|file| file.text);
    let (before, was) = match Record::before_aside(name) {
        Some(before) => (before, "refused when a broker started: "),
        None => (name, ""),
    };
    let said = match Record::decode(before, &text.unwrap_or_default()) {
        Ok(record) => said(&record),
        Err(bad) => bad.to_string(),
    };
    format!("{was}{said}")
}

fn said(record: &Record) -> String {
    let queues = record.terms.queues();
    let holder = match record.holder.find() {
        Ok(Some(holder)) => format!(
            "its holder, pid {} of uid {}, can transmit until it closes its sockets",
            holder.pid(),
            record.holder.uid
        ),
        Ok(None) => "its holder is gone".to_owned(),
        Err(failure) => format!("whether its holder is gone is not known: {}", chain(&failure)),
    };
    format!(
        "lease {} of {}:{queues}; {holder}",
        record.lease, record.interface
    )
}

fn is_socket(path: &std::path::Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
