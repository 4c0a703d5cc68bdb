//! What a broker before this one has left, and what is to become of each piece of it. `serve` does what this says
//! (`adopt.rs`), `serve --dry-run` tells it: so the two cannot differ.
//!
//! **Invariant**: nothing here changes anything. What is not understood is refused by name and left where it is; of a lease
//! that is refused no slot stays filled.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use xsk_client::wire::{EndReason, InterfaceName, QueueLock, SocketKind};

use crate::device::Device;
use crate::error::{Failure, chain};
use crate::fd_store;
use crate::identity::Process;
use crate::kernel::netlink;
use crate::kernel::pinned::{self, Found, PinnedProgram};
use crate::kernel::pins::PinDirectory;
use crate::lease::LeaseId;
use crate::misfit;
use crate::numbers;
use crate::policy::Policy;
use crate::record::{BEGINNING, BadRecord, Record, Stage};
use crate::run_dir::{RunDirectory, boot_id};

/// All of it.
#[derive(Debug, Default)]
pub struct Heritage {
    /// Programs that go on, with their devices as they are now.
    pub devices: Vec<(Device, PinnedProgram)>,
    /// Leases, by their records.
    pub leases: Vec<(Record, Fate)>,
    /// Devices whose pins are of no use: they are taken down.
    pub useless: Vec<(u32, String)>,
    /// What is left as it is: names in the directory of pins, or devices of other network namespaces.
    pub foreign: Vec<String>,
    /// Records that are not believed.
    pub refused: Vec<BadRecord>,
    /// The greatest number that any lease had.
    pub last_lease: u64,
}

/// What becomes of a lease.
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
        why: &'static str,
    },
    /// It is not of this network namespace: its record is left as it is.
    Elsewhere,
}

impl Fate {
    /// What goes on ends instead.
    fn end(&mut self, reason: EndReason) {
        *self = match std::mem::replace(self, Self::Elsewhere) {
            Self::GoesOn { holder, .. } => {
                let holder = Some(holder);
                Self::Ends { holder, reason }
            }
            other => other,
        };
    }
}

impl Heritage {
    /// Looks at what there is, and decides by today's policy. `owners` are the uids whose records are believed, `stored` is
    /// what the service manager has kept.
    ///
    /// # Errors
    ///
    /// Where directories cannot be read, or devices not be asked for.
    pub fn find(
        run_dir: &Path,
        pins: Option<&PinDirectory>,
        policy: &Policy,
        owners: &[u32],
        stored: &fd_store::Passed,
    ) -> Result<Self, Failure> {
        let mut heritage = Self::default();
        let names: HashMap<u32, InterfaceName> = netlink::devices()
            .map_err(|source| Failure::kernel("RTM_GETLINK", "all devices", source))?
            .into_iter()
            .map(|(name, link)| (link.index, name))
            .collect();
        let mut elsewhere = Vec::new();
        if let Some(pins) = pins {
            let (indexes, strange) = pinned::devices(pins)?;
            heritage.foreign = strange;
            for index in indexes {
                match pinned::look(pins, index) {
                    Found::Whole(program) => match device(&names, index) {
                        Some(device) => heritage.devices.push((device, *program)),
                        None => heritage.useless.push((index, "its device is gone".to_owned())),
                    },
                    Found::Useless(why) => heritage.useless.push((index, why)),
                    Found::Elsewhere(why) | Found::Foreign(why) => {
                        heritage.foreign.push(why);
                        elsewhere.push(index);
                    }
                }
            }
        }
        heritage.find_leases(run_dir, (policy, stored), owners, &elsewhere)?;

        // Nobody misses a program that no lease needs: unless it is what the next grant would attach, it goes.
        let leases = &heritage.leases;
        let is_needed = |device: &Device| {
            leases.iter().any(|(record, fate)| {
                record.interface_index == device.index && !matches!(fate, Fate::Gone { .. })
            })
        };
        let (kept, useless): (Vec<_>, Vec<_>) = std::mem::take(&mut heritage.devices)
            .into_iter()
            .partition(|(device, program)| is_needed(device) || is_wanted(policy, device, program));
        heritage.devices = kept;
        let why = "no lease needs it, and today's policy or this broker would attach another, if any";
        heritage.useless.extend(
            useless
                .into_iter()
                .map(|(device, _)| (device.index, why.to_owned())),
        );
        Ok(heritage)
    }

    fn find_leases(
        &mut self,
        run_dir: &Path,
        by: (&Policy, &fd_store::Passed),
        owners: &[u32],
        elsewhere: &[u32],
    ) -> Result<(), Failure> {
        let directory = match RunDirectory::open(run_dir) {
            Ok(directory) => directory,
            Err(failure) if failure.is_errno(libc::ENOENT) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let boot = boot_id()?;
        self.last_lease = numbers::used(&directory, &boot);
        let mut queues: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        let mut records = Vec::new();
        for file in directory.names(BEGINNING)? {
            // Nothing was said by it yet.
            if RunDirectory::is_unfinished(&file) {
                continue;
            }
            self.last_lease = self.last_lease.max(number_in(&file));
            match Record::read(&directory, &file, owners) {
                Ok(record) => records.push((file, record)),
                Err(bad) => self.refused.push(bad),
            }
        }
        // The last one that was granted a queue has it: what was granted before was not known to be there any more, and its
        // record is back by somebody's hand.
        records.sort_by_key(|(_, record)| Reverse(record.lease));
        for (file, record) in records {
            let fate = if record.boot != boot {
                Fate::Gone {
                    reason: EndReason::Restarted,
                    why: "it is of another boot of this machine",
                }
            } else if elsewhere.contains(&record.interface_index) {
                Fate::Elsewhere
            } else {
                let index = record.interface_index;
                let of_index = |(device, _): &&(Device, PinnedProgram)| device.index == index;
                match self.devices.iter().find(of_index) {
                    None => Fate::Gone {
                        reason: EndReason::DeviceGone,
                        why: "its device is gone, or has not this broker's program any more",
                    },
                    Some((device, program)) => {
                        let of_others = record
                            .terms
                            .queues()
                            .iter()
                            .find_map(|queue| Some((queue, *queues.get(&(index, queue))?)));
                        if let Some((queue, other)) = of_others {
                            let why = format!("queue {queue} of {} is lease {other}'s, too", device.name);
                            self.refused.push(BadRecord { file, at: None, why });
                            continue;
                        }
                        if let Some(queue) = record.filled().find(|queue| *queue >= program.queues) {
                            let why = format!("queue {queue} is beyond the map of {}", device.name);
                            self.refused.push(BadRecord { file, at: None, why });
                            continue;
                        }
                        let of_record = record.terms.queues().iter();
                        queues.extend(of_record.map(|queue| ((index, queue), record.lease)));
                        fate(&record, device, by)?
                    }
                }
            };
            self.leases.push((record, fate));
        }
        // In the order in which they were granted, whatever the names sort by.
        self.leases.sort_by_key(|(record, _)| record.lease);
        self.end_beside_unheld(by.1);
        Ok(())
    }

    /// Ends what is out unbound under placeholders beside a lease of whose sockets the broker has no fd: nothing could keep
    /// that one's queues when its holder lets go of them, which is why nothing would leave unbound beside it either.
    fn end_beside_unheld(&mut self, stored: &fd_store::Passed) {
        let goes_on = |fate: &Fate| matches!(fate, Fate::GoesOn { .. });
        let unheld: BTreeSet<u32> = self
            .leases
            .iter()
            .filter(|(record, fate)| goes_on(fate) && !stored.has_all_of(record))
            .map(|(record, _)| record.interface_index)
            .collect();
        for (record, fate) in &mut self.leases {
            let needs_placeholders = record.stage == Stage::Pending
                && record.queue_lock == QueueLock::Placeholders
                && record.terms.sockets() != SocketKind::Bound;
            if needs_placeholders && unheld.contains(&record.interface_index) {
                fate.end(EndReason::Restarted);
            }
        }
    }
}

/// Whether a program that is attached is as the next grant would have it.
fn is_wanted(policy: &Policy, device: &Device, program: &PinnedProgram) -> bool {
    misfit::misfit(policy, &device.name, program.mode).is_none()
        && program.counters_fit
        && program.queues >= device.max_queues
}

/// What becomes of a lease whose device has its program.
fn fate(
    record: &Record,
    device: &Device,
    (policy, stored): (&Policy, &fd_store::Passed),
) -> Result<Fate, Failure> {
    // Of whom it is not known whether he lives, nothing is decided: the next start asks again.
    let holder = record.holder.find()?;
    let goes_on = match record.stage {
        Stage::Active => true,
        // With its sockets at hand it can be confined anew, and activated. Without, it is where it was if its slots are
        // filled, and nothing that went with the broker confined it.
        Stage::Pending => {
            let all_filled = record.filled().count() == record.terms.queues().len();
            let unlocked = record.queue_lock == QueueLock::None;
            stored.has_all_of(record) || (unlocked && record.terms.inserted_at_grant() && all_filled)
        }
        Stage::Ended => {
            let reason = record.ended.unwrap_or(EndReason::Restarted);
            return Ok(Fate::Lingers { holder, reason });
        }
    };
    Ok(match holder {
        None => Fate::Ends {
            holder: None,
            reason: EndReason::HolderExited,
        },
        Some(holder) if !goes_on => Fate::Ends {
            holder: Some(holder),
            reason: EndReason::Restarted,
        },
        Some(holder) => {
            let subject = record.requester.subject();
            let terms = policy.resume(&device.name, &record.terms);
            let given = policy.still_gives(&subject, &terms, &device.name);
            let not_allowed = given.err().map(|refusal| refusal.reason_for_operator());
            Fate::GoesOn { holder, not_allowed }
        }
    })
}

/// A device of this network namespace, by its index.
fn device(names: &HashMap<u32, InterfaceName>, index: u32) -> Option<Device> {
    let device = Device::look_up(names.get(&index)?)
        .inspect_err(|failure| tracing::warn!(ifindex = index, "{}", chain(failure)))
        .ok()??;
    (device.index == index).then_some(device)
}

/// The number of a lease by the name of its file; a new lease must not take the place of one that is refused.
fn number_in(file: &str) -> u64 {
    let number = file.strip_prefix(BEGINNING).unwrap_or_default();
    let digits = number
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// The lease of a record, as a number.
pub fn id(record: &Record) -> LeaseId {
    LeaseId(record.lease)
}
