//! Why the policy in force would not give what is held: as things are now, not as they were when somebody last looked.
//!
//! Whoever changes what this rests on has it weighed anew: a reload (`reload.rs`), a start (`adopt.rs`), a device that has
//! another name (`links.rs`) or whose program does not fit any more (`misfit.rs`), a socket that is seen bound
//! (`grant/activate.rs`). What comes out is told to whoever follows the lease, and to the audit log.

use xsk_client::wire::{BindMode, Change, InterfaceName, LeaseState, QueueLock, SocketKind};

use crate::audit::{Event, Line};
use crate::engine::Engine;
use crate::identity::Subject;
use crate::kernel::queue_lock::QueueLocks;
use crate::lease::{Lease, LeaseId, LeasedSocket};
use crate::misfit::Misfits;
use crate::policy::{Policy, Refusal, StillGiven, Terms};

/// Why the policy in force would not give a lease, in the words for each of its readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// All of it.
    pub for_operator: String,
    /// What concerns one's own rules.
    pub for_peer: String,
}

impl Objection {
    fn of_own_rule(text: String) -> Self {
        Self {
            for_operator: text.clone(),
            for_peer: text,
        }
    }
}

/// Weighs every lease, those as well that have ended and are listed still. Nothing is told of those of `untold`, which tell
/// it by something else.
pub fn weigh_all(engine: &mut Engine, untold: impl Fn(&Lease) -> bool) {
    for id in engine.leases.ids(|_| true) {
        weigh_one(engine, id, &untold);
    }
}

/// Weighs the leases of a device.
pub fn weigh_on(engine: &mut Engine, index: u32) {
    for id in engine.leases.ids(|lease| lease.device().index == index) {
        weigh(engine, id);
    }
}

/// Weighs one lease, and says so where that comes out otherwise than before.
pub fn weigh(engine: &mut Engine, id: LeaseId) {
    weigh_one(engine, id, |_| false);
}

fn weigh_one(engine: &mut Engine, id: LeaseId, untold: impl Fn(&Lease) -> bool) {
    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    let now = objection(&engine.policy, &engine.locks, &engine.misfits, lease);
    let before = std::mem::replace(&mut lease.objection, now);
    if before == lease.objection || untold(lease) {
        return;
    }
    engine.monitors.publish(lease, Change::Policy);
    let line = match &lease.objection {
        Some(why) => Line::new(Event::NotAllowed).message(&why.for_operator),
        None => Line::new(Event::AllowedAgain),
    };
    engine.audit.write(&line.lease(lease));
}

/// What is held, as far as it is the same for a lease and for the record of one.
#[derive(Debug)]
pub struct Held<'a> {
    /// Who has asked for it.
    pub subject: &'a Subject,
    /// What was granted.
    pub terms: &'a Terms,
    /// The name of its device now.
    pub interface: &'a InterfaceName,
    /// Why the device's program does not fit, if it does not.
    pub misfit: Option<&'a str>,
    /// In which mode which queue is bound, as far as that was seen.
    pub modes: &'a [(u32, BindMode)],
}

impl Held<'_> {
    /// Whether the policy would give it.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn weigh(&self, policy: &Policy) -> Result<StillGiven, Objection> {
        let refused = |refusal: Box<Refusal>| Objection {
            for_operator: refusal.reason_for_operator(),
            for_peer: refusal.message_for_peer(),
        };
        let given = policy
            .still_gives(self.subject, self.terms, self.interface)
            .map_err(refused)?;
        if let Some(why) = self.misfit {
            return Err(Objection::of_own_rule(format!("{}: {why}", self.interface)));
        }
        let wrong_mode = self.modes.iter().find(|(_, mode)| !given.zero_copy.admits(*mode));
        match wrong_mode {
            Some((queue, mode)) => Err(Objection::of_own_rule(format!(
                "rule {} has `zero-copy = \"{}\"`, and queue {queue} is bound in {mode} mode",
                given.rule, given.zero_copy
            ))),
            None => Ok(given),
        }
    }
}

/// What the policy has against a lease, if anything.
fn objection(policy: &Policy, locks: &QueueLocks, misfits: &Misfits, lease: &Lease) -> Option<Objection> {
    let name = &lease.device().name;
    let held = Held {
        subject: &lease.requester().subject,
        terms: lease.terms(),
        interface: name,
        misfit: misfits.get(lease.device().index),
        modes: &modes(lease),
    };
    let given = match held.weigh(policy) {
        Ok(given) => given,
        Err(why) => return Some(why),
    };
    let is_out_unbound =
        lease.state == LeaseState::HandedOver && lease.terms().sockets() != SocketKind::Bound;
    let is_locked = lease.queue_lock() != QueueLock::None
        || matches!(locks.in_force(given.settings.queue_lock), Ok(QueueLock::None));
    (is_out_unbound && !is_locked).then(|| {
        Objection::of_own_rule(format!(
            "its sockets have left unbound under queue-lock none, and {name} has `queue-lock = \"{}\"` now",
            given.settings.queue_lock.as_str()
        ))
    })
}

/// In which mode which of its queues is bound, as far as that was seen; of one that has ended, as it was then.
fn modes(lease: &Lease) -> Vec<(u32, BindMode)> {
    match lease.is_live() {
        true => {
            let seen = |leased: &LeasedSocket| Some((leased.queue, leased.mode?));
            lease.sockets.iter().filter_map(seen).collect()
        }
        false => {
            let seen = lease.last_seen.iter();
            seen.filter_map(|queue| Some((queue.queue, queue.mode?)))
                .collect()
        }
    }
}
