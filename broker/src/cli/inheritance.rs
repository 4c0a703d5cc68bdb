//! `xsk-broker serve --dry-run`: what a start would do about what a broker before has left.

use crate::device::Device;
use crate::end;
use crate::error::chain;
use crate::heritage::{Fate, Heritage};
use crate::kernel::pinned::PinnedProgram;
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::kernel::redirect;
use crate::record::Record;

use super::piece::{self, Action, Kind, Piece};

/// Prints it.
///
/// # Errors
///
/// Those of standard output.
pub(super) fn print(heritage: &Heritage, json: bool) -> anyhow::Result<()> {
    let mut pieces = Vec::new();
    for (device, program) in &heritage.devices {
        pieces.push(Piece::new(
            Action::TakeOver,
            Kind::Program,
            device.name.to_string(),
            program_word(device, program),
        ));
    }
    for (index, why) in &heritage.useless {
        let name = format!("ifindex {index}");
        pieces.push(Piece::new(Action::Remove, Kind::Program, name, why.as_str()));
    }
    let mut probe = QueueProbe::default();
    for (record, fate) in &heritage.leases {
        pieces.push(lease(record, fate, &mut probe));
    }
    for refused in &heritage.refused {
        let why = format!("{refused}; its packets go to the host");
        pieces.push(Piece::new(
            Action::Refuse,
            Kind::Record,
            refused.file.as_str(),
            why,
        ));
    }
    for what in &heritage.foreign {
        pieces.push(Piece::new(
            Action::Leave,
            Kind::Pin,
            what.as_str(),
            "it is not this broker's, or not of this network namespace",
        ));
    }
    piece::print(&pieces, json)
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
        Fate::Ends { holder: None, .. } => of(Action::End, "its holder is gone".to_owned()),
        // The fds are passed to the service alone.
        Fate::Ends { reason, .. } => of(
            Action::End,
            format!(
                "{}: it was not active; it goes on where a service manager has kept its sockets, which is not to be seen \
                 from here",
                end::word(*reason)
            ),
        ),
        Fate::Lingers { reason, .. } => of(
            Action::TakeOver,
            format!(
                "it has ended ({}); its queues are kept until they are free",
                end::word(*reason)
            ),
        ),
        Fate::Gone { why, .. } => of(Action::End, (*why).to_owned()),
        Fate::Elsewhere => of(
            Action::Leave,
            "its device is not in this network namespace".to_owned(),
        ),
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
