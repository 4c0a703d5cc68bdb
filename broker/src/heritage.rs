//! What a broker before this one has left, and what is to become of each piece of it. `serve` does what this says
//! (`adopt.rs`), `serve --dry-run` tells it: so the two cannot differ.
//!
//! **Invariant**: nothing here changes anything. What is not understood, or cannot be true, is refused by name and left
//! where it is; of a lease that is refused no slot stays filled.

mod contradiction;
mod fate;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use xsk_client::wire::{EndReason, InterfaceName, QueueLock, QueueSet, SocketKind};

use crate::device::Device;
use crate::error::{Failure, chain};
use crate::fd_store;
use crate::kernel::netlink;
use crate::kernel::pinned::{self, Found, PinnedProgram};
use crate::kernel::pins::PinDirectory;
use crate::lease::LeaseId;
use crate::misfit::misfit;
use crate::numbers;
use crate::policy::Policy;
use crate::record::{BEGINNING, BadRecord, FoundRecord, Record, Stage};
use crate::run_dir::{RunDirectory, boot_id};
use crate::uplink::Uplinks;

use contradiction::Known;
pub use fate::Fate;

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
    /// Files of records that were refused before.
    pub set_aside: Vec<String>,
    /// Slots with a socket in them of which no record that is believed says whose it is, one by one: they are emptied.
    pub strays: Vec<(InterfaceName, QueueSet)>,
    /// The greatest number that any lease had.
    pub last_lease: u64,
    /// Devices of this network namespace, by their indexes.
    pub names: HashMap<u32, InterfaceName>,
    /// Why the program of a device does not fit today's policy, by the device's index: where it does not.
    pub misfits: HashMap<u32, String>,
}

/// By what it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// Today's.
    pub policy: &'a Policy,
    /// Uids whose records are believed.
    pub owners: &'a [u32],
    /// What the service manager has kept.
    pub stored: &'a fd_store::Passed,
}

/// Devices of this network namespace, and what is wrong with what is pinned for some.
#[derive(Debug, Default)]
struct Devices {
    names: HashMap<u32, InterfaceName>,
    /// Why it is taken down.
    useless: BTreeMap<u32, String>,
    /// Why it is left as it is.
    left: BTreeMap<u32, String>,
}

impl Heritage {
    /// Looks at what there is, and decides.
    ///
    /// # Errors
    ///
    /// Where directories cannot be read, or devices not be asked for.
    pub fn find(run_dir: &Path, pins: Option<&PinDirectory>, judge: Judge<'_>) -> Result<Self, Failure> {
        let mut heritage = Self::default();
        let devices = heritage.find_devices(pins)?;
        heritage.find_misfits(judge.policy);
        heritage.find_leases(run_dir, judge, &devices)?;
        heritage.find_strays();
        heritage.names = devices.names;
        heritage.useless.extend(devices.useless);
        heritage.foreign.extend(devices.left.into_values());

        // Nobody misses a program that no lease needs: unless it is what the next grant would attach, it goes.
        let leases = &heritage.leases;
        let is_needed = |device: &Device| {
            leases.iter().any(|(record, fate)| {
                record.interface_index == device.index && !matches!(fate, Fate::Gone { .. })
            })
        };
        let (kept, useless): (Vec<_>, Vec<_>) =
            std::mem::take(&mut heritage.devices)
                .into_iter()
                .partition(|(device, program)| {
                    let fits = !heritage.misfits.contains_key(&device.index);
                    is_needed(device) || (fits && is_as_this_brokers(device, program))
                });
        heritage.devices = kept;
        let why = "no lease needs it, and today's policy or this broker would attach another, if any";
        heritage.useless.extend(
            useless
                .into_iter()
                .map(|(device, _)| (device.index, why.to_owned())),
        );
        Ok(heritage)
    }

    /// Programs, by what is pinned.
    fn find_devices(&mut self, pins: Option<&PinDirectory>) -> Result<Devices, Failure> {
        let names = netlink::devices()
            .map_err(|source| Failure::kernel("RTM_GETLINK", "all devices", source))?
            .into_iter()
            .map(|(name, link)| (link.index, name))
            .collect();
        let mut devices = Devices {
            names,
            ..Devices::default()
        };
        let Some(pins) = pins else {
            return Ok(devices);
        };
        let (indexes, strange) = pinned::devices(pins)?;
        self.foreign = strange;
        for index in indexes {
            match pinned::look(pins, index) {
                Found::Whole(program) => match device(&devices.names, index) {
                    Some(device) => self.devices.push((device, *program)),
                    None => drop(devices.useless.insert(index, "its device is gone".to_owned())),
                },
                Found::Useless(why) => drop(devices.useless.insert(index, why)),
                Found::Elsewhere(why) | Found::Foreign(why) => drop(devices.left.insert(index, why)),
            }
        }
        Ok(devices)
    }

    /// Once for each device, however many leases it has, and with all routes told once.
    fn find_misfits(&mut self, policy: &Policy) {
        let mut uplinks = Uplinks::default();
        let misfits = self.devices.iter().filter_map(|(device, program)| {
            let why = misfit(policy, &mut uplinks, &device.name, device.index, program.mode)?;
            Some((device.index, why))
        });
        self.misfits = misfits.collect();
    }

    fn find_leases(&mut self, run_dir: &Path, judge: Judge<'_>, devices: &Devices) -> Result<(), Failure> {
        let directory = match RunDirectory::open(run_dir) {
            Ok(directory) => directory,
            Err(failure) if failure.is_errno(libc::ENOENT) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let boot = boot_id()?;
        self.last_lease = numbers::used(&directory, &boot);
        let mut records = Vec::new();
        for file in directory.names(BEGINNING)? {
            // Nothing was said by it yet.
            if RunDirectory::is_unfinished(&file) {
                continue;
            }
            self.last_lease = self.last_lease.max(number_in(&file));
            if Record::before_aside(&file).is_some() {
                self.set_aside.push(file);
                continue;
            }
            match FoundRecord::read(&directory, &file, judge.owners)? {
                Ok(found) => records.push(found),
                Err(bad) => self.refused.push(bad),
            }
        }
        // The last one that was granted a queue has it: what was granted before was not known to be there any more, and its
        // record is back by somebody's hand.
        records.sort_by_key(|found| Reverse(found.record.lease));
        let mut known = Known {
            names: &devices.names,
            stored: judge.stored,
            queues: BTreeMap::new(),
        };
        for found in records {
            let record = &found.record;
            let fate = match program_of(record, &self.devices, devices, &boot) {
                Err(fate) => fate,
                Ok((device, program)) => {
                    // Of whom it is not known whether he lives, nothing is decided: the next start asks again.
                    let holder = record.holder.find()?;
                    if let Some(bad) = known.contradicts(&found, program, holder.as_ref()) {
                        self.refused.push(bad);
                        continue;
                    }
                    known.learn(record);
                    let misfit = self.misfits.get(&device.index).map(String::as_str);
                    fate::of(record, holder, (device, program, misfit), judge)
                }
            };
            self.leases.push((found.record, fate));
        }
        // In the order in which they were granted, whatever the names sort by.
        self.leases.sort_by_key(|(record, _)| record.lease);
        self.end_beside_unheld(judge.stored);
        Ok(())
    }

    /// Ends what is out unbound under placeholders beside a lease of whose sockets the broker has no fd: nothing could keep
    /// that one's queues when its holder lets go of them, which is why nothing would leave unbound beside it either.
    fn end_beside_unheld(&mut self, stored: &fd_store::Passed) {
        let unheld: BTreeSet<u32> = self.unheld(stored).map(|record| record.interface_index).collect();
        for (record, fate) in &mut self.leases {
            let needs_placeholders = record.stage == Stage::Pending
                && record.queue_lock == QueueLock::Placeholders
                && record.terms.sockets() != SocketKind::Bound;
            if needs_placeholders && unheld.contains(&record.interface_index) {
                fate.end(
                    EndReason::Restarted,
                    "placeholders cannot confine its sockets beside a lease without fds",
                );
            }
        }
    }

    /// Leases that go on, and of whose sockets the broker will have no fd.
    pub fn unheld<'h>(&'h self, stored: &'h fd_store::Passed) -> impl Iterator<Item = &'h Record> {
        let records = self
            .leases
            .iter()
            .filter(|(_, fate)| fate.goes_on())
            .map(|(record, _)| record);
        records.filter(|record| !stored.has_all_of(record))
    }

    /// Of a queue whose record is believed it is said there what becomes of it.
    fn find_strays(&mut self) {
        let known: BTreeSet<(u32, u32)> = self
            .leases
            .iter()
            .filter(|(_, fate)| !matches!(fate, Fate::Gone { .. }))
            .flat_map(|(record, _)| {
                record
                    .terms
                    .queues()
                    .iter()
                    .map(|queue| (record.interface_index, queue))
            })
            .collect();
        for (device, program) in &self.devices {
            let filled = program.filled.iter().flatten();
            let strays = filled.filter(|queue| !known.contains(&(device.index, **queue)));
            let queues = strays.filter_map(|queue| QueueSet::new([*queue]).ok());
            self.strays
                .extend(queues.map(|queue| (device.name.clone(), queue)));
        }
    }
}

/// The device of a lease with its program; or what becomes of one that has none here.
fn program_of<'d>(
    record: &Record,
    with_program: &'d [(Device, PinnedProgram)],
    devices: &Devices,
    boot: &str,
) -> Result<(&'d Device, &'d PinnedProgram), Fate> {
    if record.boot != boot {
        return Err(Fate::Gone {
            reason: EndReason::Restarted,
            why: "it is of another boot of this machine".to_owned(),
        });
    }
    let index = record.interface_index;
    if let Some(why) = devices.left.get(&index) {
        return Err(Fate::Elsewhere { why: why.clone() });
    }
    let found = with_program.iter().find(|(device, _)| device.index == index);
    let (device, program) = found.ok_or_else(|| fate::without_program(record, devices))?;
    Ok((device, program))
}

/// Whether a program's maps are as the next grant would have them.
fn is_as_this_brokers(device: &Device, program: &PinnedProgram) -> bool {
    program.counters_fit && program.queues >= device.max_queues
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
