//! The queue lock: what keeps a socket that leaves the broker unbound from being bound to a queue that was not granted.
//!
//! **Invariant**: wherever a lock is in force, such a socket leaves with a [`Confinement`], which its lease keeps until
//! each of its sockets was seen bound (a bound socket is sealed, F6) or is [retired](Retirement). That is why a socket
//! that its holder keeps for ever can be bound to nothing that is granted to others.

mod closer;
mod lsm;
mod placeholders;
mod retire;
mod room;
mod scratch;
mod taint;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use xsk_client::wire::QueueLock;

pub use lsm::{Lsm, NotInForce, is_left_in, is_pin, take_down_left};
pub use placeholders::{KeptSocket, NotNow};
pub use retire::{Retired, Retirement};
pub use room::NoRoom;
pub use scratch::{Scratch, was_scratch};
pub use taint::{Found as FoundTaint, TaintedBy, Taints, look as look_for_taints};

use crate::device::Device;
use crate::error::{Failure, chain};
use crate::fd_store::{Keeper, Kept};
use crate::identity::Process;
use crate::kernel::queue_probe::QueueProbe;
use crate::kernel::xsk::Xsk;
use crate::lease::{Lease, LeaseId, Reservation};
use crate::policy::QueueLockSetting;
use lsm::Leash;
use placeholders::{Guard, Placeholders};
use taint::Announced;

/// What the locks are made of; looked for at the start, as root.
#[derive(Debug)]
pub struct Parts {
    /// Where sockets are retired; or why not.
    pub scratch: Result<Scratch, String>,
    /// What a broker that crashed has left.
    pub taints: Taints,
    /// The BPF LSM programs, in force; or why not.
    pub lsm: Result<Lsm, String>,
}

/// The locks of all devices.
#[derive(Debug)]
pub struct QueueLocks {
    placeholders: Placeholders,
    scratch: Result<Scratch, String>,
    was_tried: bool,
    taints: Taints,
    lsm: Result<Lsm, String>,
}

/// Why a socket cannot leave unbound now.
#[derive(Debug)]
pub enum Unconfined {
    /// Ask again soon.
    NotNow(NotNow),
    /// Not until a process has gone that has a socket of a broker that crashed.
    Tainted(TaintedBy),
    /// Not while these leases live, of whose sockets the broker has no fd.
    Unheld(Vec<LeaseId>),
}

impl<E: Into<NotNow>> From<E> for Unconfined {
    fn from(error: E) -> Self {
        Self::NotNow(error.into())
    }
}

impl QueueLocks {
    /// Nothing is out yet. `keeper` keeps placeholders for the next broker.
    pub fn new(parts: Parts, keeper: Keeper) -> Self {
        Self {
            placeholders: Placeholders::new(keeper),
            scratch: parts.scratch,
            was_tried: false,
            taints: parts.taints,
            lsm: parts.lsm,
        }
    }

    /// Tries once whether a scratch device can be made: for before a policy comes into force that wants a lock.
    pub fn try_out(&mut self) {
        if std::mem::replace(&mut self.was_tried, true) {
            return;
        }
        let tried = self.scratch.as_ref().map(|scratch| scratch.device(1).map(drop));
        if let Ok(Err(failure)) = tried {
            self.scratch = Err(chain(&failure));
        }
    }

    /// The lock that is in force where the policy says so.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub fn in_force(&self, setting: QueueLockSetting) -> Result<QueueLock, String> {
        match setting {
            QueueLockSetting::None => Ok(QueueLock::None),
            QueueLockSetting::Placeholders => self.placeholders_in_force(),
            QueueLockSetting::Lsm => self.lsm_in_force(),
            QueueLockSetting::Auto => self.lsm_in_force().or_else(|_| self.placeholders_in_force()),
        }
    }

    /// Whether the LSM is in force.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub fn lsm_in_force(&self) -> Result<QueueLock, String> {
        match (&self.lsm, &self.scratch) {
            (Ok(_), Ok(_)) => Ok(QueueLock::Lsm),
            (Ok(_), Err(reason)) => Err(format!("no BPF LSM: sockets cannot be retired here: {reason}")),
            (Err(reason), _) => Err(format!("no BPF LSM: {reason}")),
        }
    }

    fn placeholders_in_force(&self) -> Result<QueueLock, String> {
        match &self.scratch {
            Ok(_) => Ok(QueueLock::Placeholders),
            Err(reason) => Err(format!(
                "no placeholders: sockets cannot be retired here: {reason}"
            )),
        }
    }

    /// Whether a socket could leave unbound now, as far as that can be seen without doing anything: for who has more to
    /// look at before it comes to [`QueueLocks::confine`].
    ///
    /// # Errors
    ///
    /// [`Unconfined`].
    pub fn could_confine(
        &mut self,
        lock: QueueLock,
        reservation: &Reservation,
        device: &Device,
        probe: &mut QueueProbe,
    ) -> Result<(), Unconfined> {
        match lock {
            QueueLock::None => return Ok(()),
            QueueLock::Placeholders => {
                let granted = reservation.terms().queues().len();
                self.placeholders.could_guard(device, granted, probe)?;
            }
            QueueLock::Lsm => {}
        }
        match self.taints.of(device.index) {
            Some(by) => Err(Unconfined::Tainted(by)),
            None => Ok(()),
        }
    }

    /// Whether there are fds enough for the placeholders of these devices.
    ///
    /// # Errors
    ///
    /// [`NoRoom`].
    pub fn have_room(devices: impl Iterator<Item = Device>) -> Result<(), NoRoom> {
        Placeholders::have_room(devices)
    }

    /// Confines the sockets of a reservation, from before they leave the broker.
    ///
    /// # Errors
    ///
    /// [`Unconfined`]; nothing stands then.
    pub fn confine(
        &mut self,
        lock: QueueLock,
        reservation: &Reservation,
        device: &Device,
    ) -> Result<Confinement, Unconfined> {
        match lock {
            QueueLock::Placeholders => {
                let granted = reservation.terms().queues().iter().collect();
                let guard = self
                    .placeholders
                    .guard(reservation.id(), device, &granted, BTreeMap::new())?;
                let announced = self
                    .taints
                    .announce(device.index, reservation.id(), reservation.holder())?;
                Ok(Confinement::Placeholders {
                    announced,
                    _guard: guard,
                })
            }
            QueueLock::Lsm => match &self.lsm {
                Ok(lsm) => Ok(Confinement::Lsm(lsm.issue()?)),
                Err(reason) => {
                    Err(Failure::kernel("confine", reason, std::io::ErrorKind::Unsupported).into())
                }
            },
            QueueLock::None => Ok(Confinement::None),
        }
    }

    /// Confines the sockets of a lease anew that another broker has handed out unbound, as they were: all of them are there,
    /// and with them what it had standing. Whatever happened meanwhile, those that are not bound by now can be bound to
    /// nothing but what was granted once this has succeeded.
    ///
    /// # Errors
    ///
    /// What the kernel says, or that the lock is not to be had any more.
    pub fn resume(
        &mut self,
        lease: &Lease,
        standing: BTreeMap<u32, KeptSocket>,
    ) -> Result<Confinement, Unconfined> {
        let (device, holder) = (lease.device(), lease.holder());
        match lease.queue_lock() {
            QueueLock::Placeholders => {
                let granted = lease.terms().queues().iter().collect();
                let guard = self.placeholders.guard(lease.id(), device, &granted, standing)?;
                let announced = self.taints.resume(device.index, lease.id(), holder)?;
                let announced = announced.map_err(Unconfined::Tainted)?;
                Ok(Confinement::Placeholders {
                    announced,
                    _guard: guard,
                })
            }
            QueueLock::Lsm => match &self.lsm {
                Ok(lsm) => Ok(Confinement::Lsm(
                    lsm.resume(lease.sockets.iter().filter_map(|leased| leased.socket.as_ref()))?,
                )),
                Err(reason) => {
                    Err(Failure::kernel("confine", reason, std::io::ErrorKind::Unsupported).into())
                }
            },
            QueueLock::None => Ok(Confinement::None),
        }
    }

    /// Sockets of a lease that was taken over as active are bound: nothing is tainted by them, and nothing confines them, though
    /// the broker before may have been killed before it said so.
    pub fn are_bound(&mut self, lease: &Lease) {
        self.taints.forget(lease.device().index, lease.id());
        let sockets = lease.sockets.iter().filter_map(|leased| leased.socket.as_ref());
        if let (QueueLock::Lsm, Ok(lsm)) = (lease.queue_lock(), &self.lsm) {
            lsm.forget(sockets);
        }
    }

    /// Sockets of a lease that had ended when it was taken over can be bound to nothing: each is bound or retired, though the
    /// broker before may have been killed before it said so.
    pub fn are_settled(&mut self, lease: &Lease) {
        self.taints.forget(lease.device().index, lease.id());
    }

    /// Ends what is out of other brokers' and was not resumed, and tells of it: `resumed` is what was.
    pub fn end_others<'c>(&self, resumed: impl Iterator<Item = &'c Confinement>) {
        self.taints.tell();
        let leashes = resumed.filter_map(|confinement| match confinement {
            Confinement::Lsm(leash) => Some(leash),
            Confinement::None | Confinement::Placeholders { .. } => None,
        });
        if let Ok(lsm) = &self.lsm {
            lsm.end_others(leashes);
        }
    }

    /// Begins to retire the sockets of a lease that ended before they were bound, and that left under this lock. `None`:
    /// there is nothing that would keep them from being bound.
    ///
    /// # Errors
    ///
    /// What the kernel says; to be tried again.
    pub fn retire<'s>(
        &self,
        lock: QueueLock,
        sockets: impl Iterator<Item = &'s Xsk>,
    ) -> Result<Option<Retirement>, Failure> {
        // The one of an earlier broker, too: its maps were taken over.
        let lsm = match lock {
            QueueLock::Lsm => self.lsm.as_ref().ok().cloned(),
            QueueLock::Placeholders | QueueLock::None => None,
        };
        match &self.scratch {
            Ok(scratch) => Retirement::begin(sockets, scratch.clone(), lsm).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Takes the sockets of a lease that has ended, and closes them when it is time for it.
    pub fn part_with(&self, index: u32, sockets: Vec<(Xsk, Option<Kept>)>) {
        self.placeholders.part_with(index, sockets);
    }

    /// Does what is due; see `Placeholders::look_again`.
    pub fn look_again(
        &self,
        now: Instant,
        active: impl Fn(u32) -> BTreeSet<u32>,
        device: impl Fn(u32) -> Option<Device>,
    ) {
        self.placeholders.look_again(now, active, device);
    }

    /// When something is due.
    pub fn due(&self) -> Option<Instant> {
        self.placeholders.due()
    }

    /// Whose guard stands on a device, and on which queues it has placeholders.
    pub fn placeholders(&self, index: u32) -> Option<(LeaseId, Vec<u32>)> {
        self.placeholders.standing(index)
    }

    /// Whether a placeholder keeps a queue busy now.
    pub fn has_placeholder(&self, index: u32, queue: u32) -> bool {
        self.placeholders(index)
            .is_some_and(|(_, queues)| queues.contains(&queue))
    }

    /// Gives a lease the next turn on a device if a placeholder kept the broker from binding its queue; whether it is that.
    pub fn give_next_turn(&self, index: u32, queue: u32, lease: LeaseId) -> bool {
        self.placeholders.give_next_turn(index, queue, lease)
    }

    /// A lease has had its turn.
    pub fn end_turn(&self, index: u32, lease: LeaseId) {
        self.placeholders.end_turn(index, lease);
    }

    /// Whether a queue was ours, and the kernel may not have let go of it yet.
    pub fn is_leaving(&self, index: u32, queue: u32) -> bool {
        self.placeholders.is_leaving(index, queue)
    }

    /// What a device is tainted by.
    pub fn tainted_by(&mut self, index: u32) -> Option<TaintedBy> {
        self.taints.of(index)
    }

    /// Lets go of what needs nobody any more: the LSM, unless sockets that it confines may still be unbound. Nothing is
    /// confined after that.
    pub fn let_go(&mut self) {
        self.lsm = Err("the broker has stopped".to_owned());
    }

    /// A device is gone.
    pub fn forget(&self, index: u32) {
        self.placeholders.forget(index);
    }
}

/// What stands while the sockets of a lease are out unbound. Dropped, it ends.
#[derive(Debug)]
#[must_use = "dropped, it confines nothing any more"]
pub enum Confinement {
    /// Nothing does.
    None,
    /// Placeholders. What is announced goes first: with the guard goes what the service manager has kept of the sockets, by which
    /// the next broker would see that they are not unbound any more.
    Placeholders {
        /// Who has the sockets.
        announced: Announced,
        _guard: Guard,
    },
    /// The kernel asks.
    Lsm(Leash),
}

impl Confinement {
    /// Says what a socket may be bound to, before anybody else has it.
    ///
    /// # Errors
    ///
    /// What the kernel says. The socket must not leave then.
    pub fn permit(&self, reservation: &Reservation, socket: &Xsk) -> Result<(), Failure> {
        match self {
            Self::Lsm(leash) => leash.permit(reservation, socket),
            Self::None | Self::Placeholders { .. } => Ok(()),
        }
    }

    /// The lease has ended: where the lock can tell, its sockets can be bound to nothing from here on. A bind that was
    /// asked for before may still be under way.
    pub fn end(&self) {
        match self {
            Self::Lsm(leash) => leash.end(),
            Self::None | Self::Placeholders { .. } => {}
        }
    }

    /// Each of the sockets is bound or retired: nothing has to confine them any more.
    pub fn settle(self) {
        match self {
            Self::Lsm(leash) => leash.settle(),
            Self::None | Self::Placeholders { .. } => {}
        }
    }

    /// The sockets are another process's now.
    ///
    /// # Errors
    ///
    /// What the kernel says: the former one is still the one that counts after a crash.
    pub fn hand_to(&self, holder: &Process) -> Result<(), Failure> {
        match self {
            Self::Placeholders { announced, .. } => announced.name_holder(holder),
            Self::None | Self::Lsm(_) => Ok(()),
        }
    }
}
