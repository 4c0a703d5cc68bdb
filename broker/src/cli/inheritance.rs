//! `xsk-broker serve --dry-run`: what a start would do about what a broker before has left.

use std::collections::HashMap;
use std::path::Path;

use crate::device::Device;
use crate::end;
use crate::error::chain;
use crate::heritage::{Fate, Heritage, Judge};
use crate::kernel::pinned::PinnedProgram;
use crate::kernel::pins::PinDirectory;
use crate::kernel::queue_lock::{self, FoundTaint};
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::kernel::redirect;
use crate::policy::QueueLockSetting;
use crate::privileges::Account;
use crate::record::{Record, Stage};
use crate::run_dir::RunDirectory;

use super::piece::{self, Action, Kind, Piece};
use super::place;

/// What a start would find.
pub(super) struct Outlook<'a> {
    /// What a broker before has left.
    heritage: Heritage,
    /// What it has said of processes that have unbound sockets, by the names of files.
    taints: HashMap<String, FoundTaint>,
    /// By what this is judged.
    judge: Judge<'a>,
    /// Why a start would be refused: a broker runs, by which all of this is.
    running: Option<anyhow::Error>,
}

impl<'a> Outlook<'a> {
    /// Looks, in the run directory and in the one in bpffs, as a start would whose broker ends as this account.
    ///
    /// # Errors
    ///
    /// Where a start would be refused for one of them.
    pub(super) fn find(
        [run_dir, bpf_dir]: [&Path; 2],
        account: Account,
        judge: Judge<'a>,
    ) -> anyhow::Result<Self> {
        let directory = match place::is_there(run_dir)? {
            true => {
                place::check_owner(run_dir, account)?;
                Some(RunDirectory::open(run_dir)?)
            }
            false => {
                place::check_parent(run_dir)?;
                None
            }
        };
        let pins = PinDirectory::open(bpf_dir)?;
        match &pins {
            Some(pins) => pins.check_owner(account)?,
            None => PinDirectory::check_parent(bpf_dir)?,
        }
        let taints = directory.as_ref().map(queue_lock::look_for_taints).transpose()?;
        Ok(Self {
            heritage: Heritage::find(run_dir, pins.as_ref(), judge)?,
            taints: taints.unwrap_or_default(),
            judge,
            running: place::check_unused(run_dir, pins.as_ref()).err(),
        })
    }

    /// Prints it.
    ///
    /// # Errors
    ///
    /// Those of standard output.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut pieces = Vec::new();
        if let Some(running) = &self.running {
            let why =
                "a start would be refused; what follows is what it would find if that broker were gone now";
            let name = chain(running.as_ref());
            eprintln!("xsk-broker: {name}: {why}");
            pieces.push(Piece::new(Action::Refuse, Kind::Start, name, why));
        }
        self.programs(&mut pieces);
        self.devices(&mut pieces);
        self.records(&mut pieces);
        piece::print(&pieces, json)
    }

    fn programs(&self, pieces: &mut Vec<Piece>) {
        for (device, program) in &self.heritage.devices {
            pieces.push(Piece::new(
                Action::TakeOver,
                Kind::Program,
                device.name.to_string(),
                program_word(device, program) + &self.misfit_word(device),
            ));
        }
        for (index, why) in &self.heritage.useless {
            let name = self.name(*index);
            pieces.push(Piece::new(Action::Remove, Kind::Program, name, why.as_str()));
        }
        for what in &self.heritage.foreign {
            pieces.push(Piece::new(
                Action::Leave,
                Kind::Pin,
                what.as_str(),
                "it is not this broker's, or not of this network namespace",
            ));
        }
        for (interface, queue) in &self.heritage.strays {
            pieces.push(Piece::new(
                Action::Remove,
                Kind::Slot,
                format!("{interface}:{queue}"),
                "a socket is in it, and no record says whose, or none that is believed; it is emptied, its packets go to the host",
            ));
        }
    }

    /// Devices that would give no sockets that leave unbound.
    fn devices(&self, pieces: &mut Vec<Piece>) {
        let mut taints: Vec<_> = self.taints.iter().collect();
        taints.sort_unstable_by_key(|(file, _)| file.as_str());
        for (file, taint) in taints {
            pieces.push(match taint {
                FoundTaint::Taints(index, by) => Piece::new(
                    Action::HoldBack,
                    Kind::Device,
                    self.name(*index),
                    format!("no sockets leave it unbound until {by}"),
                ),
                FoundTaint::Gone => Piece::new(
                    Action::Remove,
                    Kind::File,
                    file.as_str(),
                    "the process that it names is gone",
                ),
            });
        }
        for (device, _) in &self.heritage.devices {
            let settings = self.judge.policy.interface(&device.name);
            let has_placeholders = settings.is_some_and(|settings| {
                let lock = settings.queue_lock;
                matches!(lock, QueueLockSetting::Auto | QueueLockSetting::Placeholders)
            });
            let mut unheld = self.heritage.unheld(self.judge.stored);
            let of_device = |record: &&Record| record.interface_index == device.index;
            if let (true, Some(record)) = (has_placeholders, unheld.find(of_device)) {
                pieces.push(Piece::new(
                    Action::HoldBack,
                    Kind::Device,
                    device.name.to_string(),
                    format!(
                        "no sockets leave it unbound under placeholders until lease {} ends, unless a service manager has kept its \
                         sockets",
                        record.lease
                    ),
                ));
            }
        }
    }

    fn records(&self, pieces: &mut Vec<Piece>) {
        let mut probe = QueueProbe::default();
        for (record, fate) in &self.heritage.leases {
            pieces.push(lease(record, fate, &mut probe));
        }
        for refused in &self.heritage.refused {
            let why = format!("{refused}; its packets go to the host");
            pieces.push(Piece::new(
                Action::Refuse,
                Kind::Record,
                refused.file.as_str(),
                why,
            ));
        }
        for file in &self.heritage.set_aside {
            pieces.push(Piece::new(
                Action::Leave,
                Kind::Record,
                file.as_str(),
                "it was refused when a broker started; remove the file when you have looked at it",
            ));
        }
    }

    fn misfit_word(&self, device: &Device) -> String {
        let why = self.heritage.misfits.get(&device.index);
        why.map_or_else(String::new, |why| {
            format!("; nothing more is granted there until its leases have ended: {why}")
        })
    }

    /// What a device is called, as far as that is known.
    fn name(&self, index: u32) -> String {
        let name = self.heritage.names.get(&index);
        name.map_or_else(|| format!("ifindex {index}"), ToString::to_string)
    }
}

fn program_word(device: &Device, program: &PinnedProgram) -> String {
    let mode = program.mode;
    if !program.counters_fit {
        return format!(
            "{mode}; its map of counters is another one than this broker's, so the program goes on as it is"
        );
    }
    let tag = program.info.tag;
    match redirect::own_tag(&device.name) {
        Ok(own) if own == tag => format!("{mode}; it is this broker's program, tag {tag:016x}"),
        Ok(own) => format!("{mode}; this broker's program takes its place, tag {own:016x} for {tag:016x}"),
        Err(failure) => format!("{mode}; goes on as it is: {}", chain(&failure)),
    }
}

fn lease(record: &Record, fate: &Fate, probe: &mut QueueProbe) -> Piece {
    let of = |action, why: String| {
        let queues = record.terms.queues();
        let holder = &record.holder;
        let why = format!(
            "{}:{queues}, rule {}, holder pid {} of uid {}: {why}",
            record.interface,
            record.terms.rule(),
            holder.pid,
            holder.uid
        );
        Piece::new(action, Kind::Lease, record.lease.to_string(), why)
    };
    match fate {
        Fate::GoesOn { not_allowed, .. } => match (free_queue(record, probe), not_allowed) {
            (Some(queue), _) => of(
                Action::End,
                format!("no socket is bound to queue {queue} any more"),
            ),
            (None, None) => of(Action::TakeOver, "it goes on".to_owned()),
            (None, Some(why)) => of(
                Action::TakeOver,
                format!("it goes on, though today's policy would not give it: {why}"),
            ),
        },
        // The fds are passed to the service alone.
        Fate::Ends {
            holder: Some(_), why, ..
        } if record.stage == Stage::Pending => of(
            Action::End,
            format!(
                "{why}; it goes on where a service manager has kept its sockets, which is not to be seen from here"
            ),
        ),
        Fate::Ends { why, .. } | Fate::Gone { why, .. } => of(Action::End, why.clone()),
        Fate::Lingers { reason, .. } => of(
            Action::TakeOver,
            format!(
                "it has ended ({}); its queues are kept until they are free",
                end::word(*reason)
            ),
        ),
        Fate::PinnedElsewhere { why } | Fate::Elsewhere { why } => of(Action::Leave, why.clone()),
    }
}

/// A queue of an active lease to which nothing is bound, as far as that can be seen without touching it.
fn free_queue(record: &Record, probe: &mut QueueProbe) -> Option<u32> {
    // What the engine raises one by one, root has already; it is lowered after each.
    record.filled().find(|queue| {
        let in_use = probe.queue_use_untouched(record.interface_index, *queue);
        matches!(in_use, Ok(Some(QueueUse::Free)))
    })
}
