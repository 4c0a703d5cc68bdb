//! What becomes of a lease that a broker before this one has granted.

use xsk_client::wire::{EndReason, QueueLock};

use super::{Devices, Judge};
use crate::device::Device;
use crate::identity::Process;
use crate::kernel::pinned::{self, PinnedProgram};
use crate::objection::Held;
use crate::record::{Record, Stage};

/// What becomes of it.
#[derive(Debug)]
pub enum Fate {
    /// It goes on.
    GoesOn {
        /// Who has it.
        holder: Process,
        /// Why today's policy would not give it, if it would not: for who wants to know before.
        not_allowed: Option<String>,
    },
    /// It ends now; its queues may be held still.
    Ends {
        /// Its holder, if that lives.
        holder: Option<Process>,
        /// Why.
        reason: EndReason,
        /// In words.
        why: String,
    },
    /// It has ended before; its queues may be held still.
    Lingers {
        /// Its holder, if that lives.
        holder: Option<Process>,
        /// Why it has ended.
        reason: EndReason,
    },
    /// Nothing is left of it but its record.
    Gone {
        /// Why it has ended.
        reason: EndReason,
        /// In words.
        why: String,
    },
    /// Its device runs a broker's program that is pinned in another directory: it is left as it is.
    PinnedElsewhere {
        /// Why, and what to do, in words.
        why: String,
    },
    /// It is left as it is, with what is pinned for its device.
    Elsewhere {
        /// Why, in words.
        why: String,
    },
}

impl Fate {
    /// Whether its holder goes on receiving.
    pub fn goes_on(&self) -> bool {
        matches!(self, Self::GoesOn { .. })
    }

    /// What goes on ends instead.
    pub(super) fn end(&mut self, reason: EndReason, why: &str) {
        let nothing = Self::Elsewhere { why: String::new() };
        *self = match std::mem::replace(self, nothing) {
            Self::GoesOn { holder, .. } => Self::Ends {
                holder: Some(holder),
                reason,
                why: why.to_owned(),
            },
            other => other,
        };
    }
}

/// That of a lease whose device has its program, which may not fit today's policy. `holder` is who has it, if that lives.
pub(super) fn of(
    record: &Record,
    holder: Option<Process>,
    (device, program, misfit): (&Device, &PinnedProgram, Option<&str>),
    judge: Judge<'_>,
) -> Fate {
    if record.stage == Stage::Ended {
        let reason = record.ended.unwrap_or(EndReason::Restarted);
        return Fate::Lingers { holder, reason };
    }
    let Some(holder) = holder else {
        return Fate::Ends {
            holder: None,
            reason: EndReason::HolderExited,
            why: "its holder is gone".to_owned(),
        };
    };
    if let Some(why) = why_not(record, program, judge) {
        return Fate::Ends {
            holder: Some(holder),
            reason: EndReason::Restarted,
            why,
        };
    }
    let terms = judge.policy.resume(&device.name, &record.terms);
    let modes = record
        .sockets
        .iter()
        .filter_map(|socket| Some((socket.queue, socket.mode?)));
    let held = Held {
        subject: &record.requester.subject(),
        terms: &terms,
        interface: &device.name,
        misfit,
        modes: &Vec::from_iter(modes),
    };
    let not_allowed = held.weigh(judge.policy).err().map(|why| why.for_operator);
    Fate::GoesOn { holder, not_allowed }
}

/// Why a lease cannot go on whose holder lives.
fn why_not(record: &Record, program: &PinnedProgram, judge: Judge<'_>) -> Option<String> {
    let is_empty = |queue: &u32| {
        program
            .filled
            .as_ref()
            .is_some_and(|filled| !filled.contains(queue))
    };
    if let Some(queue) = record.filled().find(is_empty) {
        return Some(format!(
            "the slot of queue {queue} is empty: its holder has closed the socket, or the record is back by somebody's hand"
        ));
    }
    let goes_on = match record.stage {
        Stage::Active | Stage::Ended => true,
        // With its sockets at hand it can be confined anew, and activated. Without, it is where it was if its slots are
        // filled, and nothing that went with the broker confined it.
        Stage::Pending => {
            let all_filled = record.filled().count() == record.terms.queues().len();
            let unlocked = record.queue_lock == QueueLock::None;
            judge.stored.has_all_of(record) || (unlocked && record.terms.inserted_at_grant() && all_filled)
        }
    };
    (!goes_on).then(|| "it was not active".to_owned())
}

/// That of a lease whose device has not its program.
pub(super) fn without_program(record: &Record, devices: &Devices) -> Fate {
    let index = record.interface_index;
    let Some(name) = devices.names.get(&index) else {
        return Fate::Gone {
            reason: EndReason::DeviceGone,
            why: "its device is gone".to_owned(),
        };
    };
    let what = match devices.useless.get(&index) {
        Some(what) => what,
        None if pinned::runs_ours(index) => {
            return Fate::PinnedElsewhere {
                why: format!(
                    "{name} runs a broker's XDP program, and nothing is pinned for it in this --bpf-dir: was the broker before \
                     started with another --bpf-dir? Start with that one to take the lease over; by this one nothing is \
                     granted on {name}"
                ),
            };
        }
        None => "nothing is pinned for it",
    };
    Fate::Gone {
        reason: EndReason::Restarted,
        why: format!(
            "the XDP program of {name} is lost, since {what}; packets go to the host, and queues stay taken until their \
             sockets are closed"
        ),
    }
}
