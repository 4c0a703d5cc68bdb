//! What cannot be true of what a record says. Who can write there is root or the broker's own user, and could do anything: so
//! this finds mistakes, not forgeries, and what nobody can contradict is believed.

use std::collections::{BTreeMap, HashMap};

use xsk_client::wire::InterfaceName;

use crate::fd_store;
use crate::identity::Process;
use crate::kernel::pinned::PinnedProgram;
use crate::record::{BadRecord, FoundRecord, Record, Stage};

/// What is known without any record, and from those that are believed already.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Devices of this network namespace, by their indexes.
    pub(super) names: &'a HashMap<u32, InterfaceName>,
    /// What the service manager has kept.
    pub(super) stored: &'a fd_store::Passed,
    /// Whose queues of which devices are: of leases that were granted later.
    pub(super) queues: BTreeMap<(u32, u32), u64>,
}

impl Known<'_> {
    /// Refuses a record that contradicts it.
    pub(super) fn contradicts(
        &self,
        found: &FoundRecord,
        program: &PinnedProgram,
        holder: Option<&Process>,
    ) -> Option<BadRecord> {
        self.interface(found)
            .or_else(|| self.others(found))
            .or_else(|| beyond(found, program))
            .or_else(|| uids(found, holder))
            .or_else(|| self.sockets(found))
    }

    /// A record is believed.
    pub(super) fn learn(&mut self, record: &Record) {
        let queues = record.terms.queues().iter();
        self.queues
            .extend(queues.map(|queue| ((record.interface_index, queue), record.lease)));
    }

    /// The device of that name is another one. One that was renamed while no broker ran has the name of none.
    fn interface(&self, found: &FoundRecord) -> Option<BadRecord> {
        let record = &found.record;
        let is_other = |(index, name): &(&u32, &InterfaceName)| {
            **name == record.interface && **index != record.interface_index
        };
        let (index, name) = self.names.iter().find(is_other)?;
        let why = format!("{name} has the index {index}, not {}", record.interface_index);
        Some(found.refuse(&["interface"], why))
    }

    /// A queue is another lease's.
    fn others(&self, found: &FoundRecord) -> Option<BadRecord> {
        let record = &found.record;
        let index = record.interface_index;
        let mut granted = record.terms.queues().iter();
        let (queue, other) = granted.find_map(|queue| Some((queue, self.queues.get(&(index, queue))?)))?;
        let name = self.names.get(&index).unwrap_or(&record.interface);
        let why = format!("queue {queue} of {name} is lease {other}'s, too");
        Some(found.refuse(&["terms", "queues"], why))
    }

    /// The service manager has kept another socket for the lease.
    fn sockets(&self, found: &FoundRecord) -> Option<BadRecord> {
        let queue = self.stored.other_than_recorded(&found.record)?;
        let why = format!("the service manager has kept another socket for queue {queue}");
        Some(found.refuse(&["sockets"], why))
    }
}

/// The map has no such slot.
fn beyond(found: &FoundRecord, program: &PinnedProgram) -> Option<BadRecord> {
    let queue = found.record.filled().find(|queue| *queue >= program.queues)?;
    let why = format!("queue {queue} is beyond the map of {}", found.record.interface);
    Some(found.refuse(&["sockets"], why))
}

/// Its holder was never that user's.
fn uids(found: &FoundRecord, holder: Option<&Process>) -> Option<BadRecord> {
    let record = &found.record;
    // Who has ended is only waited for.
    let holder = holder.filter(|_| record.stage != Stage::Ended)?;
    let check = |member: &str, uid: u32| {
        let why = || format!("process {} is not of uid {uid}, and never was", holder.pid());
        (!holder.may_have_been_of(uid)).then(|| found.refuse(&[member, "uid"], why()))
    };
    let asked_itself = record.requester.pid == holder.pid();
    let of_requester = || {
        asked_itself
            .then(|| check("requester", record.requester.uid))
            .flatten()
    };
    check("holder", record.holder.uid).or_else(of_requester)
}
