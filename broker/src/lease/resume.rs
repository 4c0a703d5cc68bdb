//! A lease over brokers: how it is written down by one, and goes on with the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hold::Hold;
use super::{Lease, LeaseId, LeasedSocket, Leases, Reservation, amounts};
use crate::device::Device;
use crate::error::Failure;
use crate::identity::{Process, Requester};
use crate::policy::Terms;
use crate::quota::Resource;
use crate::record::{Record, RecordedHolder, monotonic_ms};

impl Leases {
    /// Takes the queues of a lease that another broker has granted, and charges for them as that one did, whatever the
    /// limits are today.
    ///
    /// # Errors
    ///
    /// The lease that has one of the queues.
    pub fn resume(
        &mut self,
        record: &Record,
        terms: Terms,
        device: Device,
        holder: Arc<Process>,
    ) -> Result<Reservation, LeaseId> {
        let id = LeaseId(record.lease);
        let held = self.holds.borrow();
        let taken = |queue| held.get(&(device.index, queue)).copied();
        if let Some(other) = terms.queues().iter().find_map(taken) {
            return Err(other);
        }
        drop(held);
        let requester = Requester {
            subject: record.requester.subject(),
            pid: record.requester.pid,
        };
        let uid = requester.subject.uid;
        let mut charges = vec![self.accounts.charge_anyway(uid, Resource::Leases, 1)];
        charges.extend(amounts(&terms).map(|(resource, amount)| {
            self.accounts
                .charge_by_rule_anyway(uid, resource, amount, terms.rule())
        }));
        self.last_id = self.last_id.max(id.0);
        let hold = Hold::take(&self.holds, id, &device, &terms);
        let age = Duration::from_millis(monotonic_ms().saturating_sub(record.since_ms));
        Ok(Reservation {
            id,
            terms,
            device,
            requester,
            holder,
            since: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            due: self.agenda.place_for(id),
            _hold: hold,
            _charges: charges,
        })
    }

    /// Numbers up to this one were given by another broker.
    pub fn number_after(&mut self, id: LeaseId) {
        self.last_id = self.last_id.max(id.0);
        self.last_taken_over = self.last_id;
    }

    /// The living leases of a device of whose sockets we have no fd, because another broker made them: no placeholder could
    /// take over their queues in the moment when a holder lets go.
    ///
    /// One that lingers does not count: nobody is granted its queue while its holder keeps the socket, and what takes the
    /// queue then is as after any other lease's end (SECURITY.md, "Placeholders do not hold what is not theirs").
    pub fn unheld(&self, index: u32) -> Vec<LeaseId> {
        let theirs = ..=LeaseId(self.last_taken_over);
        self.by_id
            .range(theirs)
            .map(|(_, lease)| lease)
            .filter(|lease| lease.device().index == index && lease.is_live())
            .filter(|lease| lease.sockets.iter().any(|leased| leased.socket.is_none()))
            .map(Lease::id)
            .collect()
    }
}

impl Lease {
    /// The same of a lease that another broker has granted, as far as that one had come with it.
    pub fn taken_over(mut self, record: &Record, sockets: Vec<LeasedSocket>) -> Self {
        self.sockets = sockets;
        self.holder_uid = record.holder.uid;
        self.label.clone_from(&record.label);
        self
    }

    /// Writes down how it is now, for a broker after this one.
    ///
    /// # Errors
    ///
    /// What the kernel says; what was written before stands.
    pub fn write_down(&self) -> Result<(), Failure> {
        self.entry.write(&Record::of(self, self.entry.boot()))
    }

    /// The same with another holder than it has yet.
    ///
    /// # Errors
    ///
    /// As [`Self::write_down`].
    pub fn write_down_with_holder(&self, holder: &Process, uid: u32) -> Result<(), Failure> {
        let mut record = Record::of(self, self.entry.boot());
        record.holder = RecordedHolder::of(holder, uid);
        self.entry.write(&record)
    }

    /// Removes what is written down of it.
    pub fn strike_out(&self) {
        self.entry.remove();
    }
}
