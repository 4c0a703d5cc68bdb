//! The one path by which a lease ends: release, the holder's exit, revoke, a deadline, the loss of its device, the end
//! of the daemon.
//!
//! Its slots are emptied first, so that no packet goes to it any more, then our fds of its sockets are closed. What the
//! kernel still holds then (a socket of a holder that lives on, or of one that just died) is a state of the lease: it
//! _lingers_, keeping queues and charge, until a look shows that the queues are free.

use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, LeaseState, QueueLock};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Error, chain};
use crate::grant;
use crate::identity::Peer;
use crate::kernel::queue_lock::Retired;
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::lease::{Lease, LeaseId, LeasedSocket};

/// How long a stop waits for sockets to be retired: a hostile holder can make it take for ever.
const RETIREMENT_PATIENCE: Duration = Duration::from_secs(2);

/// Why a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its holder said so.
    Released,
    /// Its holder is no more.
    HolderExited,
    /// An operator said so.
    Revoked,
    /// It was not activated in time.
    NotActivated,
    /// Its sockets did not reach the client.
    NotDelivered,
    /// Its socket was bound to something that was not granted.
    RogueBind,
    /// Its socket was bound in a mode that its rule does not allow.
    ModeNotAllowed,
    /// Its device was deleted or moved away.
    DeviceGone,
    /// The daemon ends.
    Stopped,
}

impl Reason {
    /// The word for it in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::HolderExited => "holder-exited",
            Self::Revoked => "revoked",
            Self::NotActivated => "not-activated",
            Self::NotDelivered => "not-delivered",
            Self::RogueBind => "rogue-bind",
            Self::ModeNotAllowed => "mode-not-allowed",
            Self::DeviceGone => "device-gone",
            Self::Stopped => "stopped",
        }
    }
}

/// Ends a lease. One that has ended already stays as it is.
pub fn end(engine: &mut Engine, id: LeaseId, reason: Reason) {
    let Some(lease) = engine.leases.get_mut(id).filter(|lease| lease.is_live()) else {
        return;
    };
    let was_active = lease.state == LeaseState::Active;
    let made = !lease.sockets.is_empty();
    // Counted until here: with the slot goes the count of what was redirected.
    lease.last_seen = lease.queues();
    lease.state = LeaseState::Ending;
    lease.ended = Some(reason);
    lease.watch = None;
    for leased in &mut lease.sockets {
        leased.slot = None;
    }
    let is_bound = |leased: &LeasedSocket| leased.socket.is_bound().unwrap_or(true);
    let (bound, unbound): (Vec<_>, Vec<_>) =
        std::mem::take(&mut lease.sockets).into_iter().partition(is_bound);
    lease.sockets = unbound;
    lease.bound_at_end = !bound.is_empty();
    if !was_active && reason != Reason::RogueBind && is_rogue(&mut engine.probe, lease.device().index, &bound)
    {
        engine.audit.write(&Line::new(Event::RogueBind).lease(lease));
    }
    lease.umem = None;
    engine
        .audit
        .write(&Line::new(Event::Ended).lease(lease).reason(reason.as_str()));
    if !made {
        // Nobody has a socket of it.
        engine.leases.remove(id);
        return;
    }
    part_with(engine, id, bound);
    retire(engine, id, Instant::now());
}

/// Goes on with the end of a lease some of whose sockets were never bound: they are retired, as far as a lock is to hold
/// for them, and only then has it ended.
fn retire(engine: &mut Engine, id: LeaseId, now: Instant) {
    /// After something failed.
    const AGAIN: Duration = Duration::from_secs(1);

    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    let outcome = match lease.retirement.take() {
        Some(retirement) if !retirement.is_over() => {
            lease.retirement = Some(retirement);
            look_again_later(lease, now);
            return;
        }
        Some(retirement) => retirement.outcome(),
        None if lease.sockets.is_empty() || lease.queue_lock() == QueueLock::None => Ok(Retired::All),
        None => match engine
            .locks
            .retire(lease.sockets.iter().map(|leased| &leased.socket))
        {
            Ok(Some(retirement)) => {
                lease.retirement = Some(retirement);
                look_again_later(lease, now);
                return;
            }
            Ok(None) => Ok(Retired::All),
            Err(failure) => Err(failure),
        },
    };
    match outcome {
        Ok(retired) => over(engine, id, retired),
        Err(failure) => {
            tracing::error!(
                lease = id.0,
                interface = %lease.device().name,
                "cannot retire an unbound socket, and goes on trying: {}",
                chain(&failure)
            );
            lease.due = Some(now + AGAIN);
        }
    }
}

/// None of a lease's sockets can be bound any more: what confined them may go.
fn over(engine: &mut Engine, id: LeaseId, retired: Retired) {
    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    let sockets = std::mem::take(&mut lease.sockets);
    let confinement = lease.confinement.take();
    lease.bound_at_end |= retired == Retired::SomeBound;
    let (lingers, delivered) = (lease.bound_at_end, lease.ended != Some(Reason::NotDelivered));
    if lingers {
        lease.state = LeaseState::Lingering;
        lease.linger_wait = Duration::ZERO;
        lease.due = Some(Instant::now());
    }
    match retired {
        // Bound after all: closing such a one takes its time.
        Retired::SomeBound => part_with(engine, id, sockets),
        Retired::All => drop(sockets),
    }
    drop(confinement);
    match (lingers, delivered) {
        (true, _) => {}
        // No queue was ever taken from the kernel.
        (false, true) => engine.leases.abandon(id),
        (false, false) => engine.leases.remove(id),
    }
}

/// Closes sockets of a lease, when it is time for it.
fn part_with(engine: &mut Engine, id: LeaseId, sockets: Vec<LeasedSocket>) {
    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    let sockets = sockets.into_iter().map(|leased| leased.socket).collect();
    engine.locks.part_with(lease.device().index, sockets);
}

/// Whether a socket that its holder bound and never reported was bound to another queue than its own.
fn is_rogue(probe: &mut QueueProbe, index: u32, bound: &[LeasedSocket]) -> bool {
    bound.iter().any(|leased| {
        let in_use = probe.queue_use_untouched(index, leased.socket.queue());
        matches!(in_use, Ok(Some(QueueUse::Free)))
    })
}

/// Does what is due: looks after sockets of kind `bare`, ends leases that were not activated in time, and frees what the kernel has let go of.
pub fn settle(engine: &mut Engine, now: Instant) {
    for id in engine.leases.ids(|lease| lease.due.is_some_and(|due| due <= now)) {
        let Some(lease) = engine.leases.get_mut(id) else {
            continue;
        };
        if lease.is_live() && lease.deadline > now {
            grant::bare::look(engine, id, now);
        } else if lease.is_live() {
            end(engine, id, Reason::NotActivated);
        } else if lease.state == LeaseState::Ending {
            retire(engine, id, now);
        } else if still_held(&mut engine.probe, lease) {
            look_again_later(lease, now);
        } else {
            engine.audit.write(&Line::new(Event::Freed).lease(lease));
            engine.leases.remove(id);
        }
    }
    let (locks, leases) = (&engine.locks, &engine.leases);
    if locks.due().is_some_and(|due| due <= now) {
        locks.look_again(
            now,
            |index| leases.active_queues(index),
            |index| {
                let name = leases
                    .iter()
                    .find(|lease| lease.device().index == index)?
                    .device()
                    .name
                    .clone();
                // A failure is told by the next request that meets it.
                Device::look_up(&name)
                    .ok()
                    .flatten()
                    .filter(|device| device.index == index)
            },
        );
    }
}

/// Ends a lease at its holder's wish. No error where it has ended, or never was: there is nothing to release then.
pub fn release(engine: &mut Engine, peer: &Peer, id: LeaseId) {
    let own = engine
        .leases
        .get_mut(id)
        .is_some_and(|lease| lease.is_held_by(peer));
    if own {
        end(engine, id, Reason::Released);
    }
}

/// Ends anybody's lease at the operator's wish.
///
/// # Errors
///
/// [`BrokerError::NoSuchLease`] where there is none, or where it has ended already.
pub fn revoke(engine: &mut Engine, id: LeaseId) -> Result<(), Error> {
    if !engine.leases.get_mut(id).is_some_and(|lease| lease.is_live()) {
        return Err(no_such_lease(id).into());
    }
    end(engine, id, Reason::Revoked);
    Ok(())
}

/// A device was deleted or moved away: with it went the sockets' queues, the program and the map's use.
pub fn device_gone(engine: &mut Engine, index: u32) {
    engine.probe.forget(index);
    engine.locks.forget(index);
    if engine.redirects.remove(&index).is_none() {
        return;
    }
    for id in engine.leases.ids(|lease| lease.device().index == index) {
        end(engine, id, Reason::DeviceGone);
        engine.leases.remove(id);
    }
}

/// Ends everything, in order: leases, then the programs of their devices.
pub fn stop(engine: &mut Engine) {
    engine.stopping = true;
    for id in engine.leases.ids(Lease::is_live) {
        end(engine, id, Reason::Stopped);
    }
    // With the broker goes what confines the sockets that are out: none of them may be left to be bound. Everybody has
    // been told by now, so that nobody waits for this but the stop itself.
    let give_up = Instant::now() + RETIREMENT_PATIENCE;
    loop {
        let ending = engine.leases.ids(|lease| lease.state == LeaseState::Ending);
        if ending.is_empty() || Instant::now() > give_up {
            break;
        }
        for id in ending {
            retire(engine, id, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    for id in engine.leases.ids(|_| true) {
        engine.leases.remove(id);
    }
    engine.redirects.clear();
    engine.audit.write(&Line::new(Event::Stopped));
}

/// What a peer is told of a lease that is not there, or not its own.
pub fn no_such_lease(id: LeaseId) -> BrokerError {
    let message = format!("there is no lease {id}: it has ended, or it never was yours");
    BrokerError::NoSuchLease { lease: id.0, message }
}

/// Whether the kernel holds any of an ended lease's queues.
fn still_held(probe: &mut QueueProbe, lease: &Lease) -> bool {
    let index = lease.device().index;
    lease
        .terms()
        .queues()
        .iter()
        .any(|queue| match probe.queue_use(index, queue) {
            Ok(QueueUse::Taken) => true,
            Ok(QueueUse::Free) => false,
            Err(error) => {
                // The device may be gone, of which news is on its way; anything else is told, and tried again.
                tracing::warn!(
                    lease = lease.id().0,
                    error = chain(&error),
                    "cannot see whether a queue is free"
                );
                true
            }
        })
}

/// A socket is gone 10 to 31 ms after its last user (F12), or its holder lives on: look often at first.
fn look_again_later(lease: &mut Lease, now: Instant) {
    const FIRST: Duration = Duration::from_millis(4);
    const LONGEST: Duration = Duration::from_secs(1);

    lease.linger_wait = (lease.linger_wait * 3 / 2).clamp(FIRST, LONGEST);
    lease.due = Some(now + lease.linger_wait);
}
