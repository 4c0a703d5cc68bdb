//! The one path by which a lease ends: release, the holder's exit, revoke, a deadline, the loss of its device, the end
//! of the daemon.
//!
//! Its slots are emptied first, so that no packet goes to it any more, then our fds of its sockets are closed. What the
//! kernel still holds then (a socket of a holder that lives on, or of one that just died) is a state of the lease: it
//! _lingers_, keeping queues and charge, until a look shows that the queues are free.

mod stop;

use std::time::{Duration, Instant};

pub use xsk_client::wire::EndReason as Reason;
use xsk_client::wire::{BrokerError, Change, LeaseState, QueueLock, Revoked};

use crate::audit::{Event, Line};
use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Error, chain};
use crate::fail_point;
use crate::grant;
use crate::identity::{Peer, Process};
use crate::kernel::queue_lock::{QueueLocks, Retired};
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::lease::{Lease, LeaseId, LeasedSocket};
use crate::misfit;
use crate::report::{self, Scope};

pub use stop::{StopFor, stop};

/// A reason as the log has it.
pub fn word(reason: Reason) -> String {
    reason.as_str().replace('_', "-")
}

/// Ends a lease. One that has ended already stays as it is.
pub fn end(engine: &mut Engine, id: LeaseId, reason: Reason) {
    let Some(lease) = engine.leases.get_mut(id).filter(|lease| lease.is_live()) else {
        return;
    };
    let was_active = lease.state == LeaseState::Active;
    let made = !lease.sockets.is_empty();
    for leased in &mut lease.sockets {
        leased.see_mode();
    }
    // Counted until here: with the slot goes the count of what was redirected.
    lease.last_seen = lease.queues();
    lease.state = LeaseState::Ending;
    lease.ended = Some((reason, Instant::now()));
    lease.watch = None;
    fail_point::pass("end: begun");
    // Before the slots are emptied: a lease that is written down as active has them filled.
    if let Err(failure) = lease.write_down() {
        // Without a record it is no lease to the next broker; with the old one it would be one that goes on.
        lease.strike_out();
        tracing::warn!(
            lease = id.0,
            "cannot write down that a lease has ended, so its record is removed: {}",
            chain(&failure)
        );
    }
    fail_point::pass("end: written down");
    for leased in &mut lease.sockets {
        leased.slot = None;
    }
    if let Some(confinement) = &lease.confinement {
        confinement.end();
    }
    fail_point::pass("end: slots emptied");
    // Of a lease that another broker granted: until a look at its queue shows something else.
    let is_bound = |leased: &LeasedSocket| {
        let socket = leased.socket.as_ref();
        socket.is_none_or(|socket| socket.is_bound().unwrap_or(true))
    };
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
        .write(&Line::new(Event::Ended).lease(lease).reason(&word(reason)));
    if !made {
        // Nobody has a socket of it.
        free(engine, id);
        return;
    }
    part_with(engine, id, bound);
    retire(engine, id, Instant::now());
    // What takes longer to end is told of already: it receives nothing any more.
    if let Some(lease) = engine.leases.get_mut(id)
        && lease.state == LeaseState::Ending
    {
        engine.monitors.publish(lease, Change::State);
    }
}

/// Goes on with the end of a lease that a broker before has begun to end.
pub fn go_on(engine: &mut Engine, id: LeaseId) {
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
        None => match engine.locks.retire(
            lease.queue_lock(),
            lease.sockets.iter().filter_map(|leased| leased.socket.as_ref()),
        ) {
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
            lease.due().set(now + AGAIN);
        }
    }
}

/// None of a lease's sockets can be bound any more: what confined them may go.
fn over(engine: &mut Engine, id: LeaseId, retired: Retired) {
    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    fail_point::pass("end: retired");
    let sockets = std::mem::take(&mut lease.sockets);
    let confinement = lease.confinement.take();
    lease.bound_at_end |= retired == Retired::SomeBound;
    let (lingers, delivered) = (
        lease.bound_at_end,
        !matches!(lease.ended, Some((Reason::NotDelivered, _))),
    );
    if lingers {
        lease.state = LeaseState::Lingering;
        lease.linger_wait = Duration::ZERO;
        lease.due().set(Instant::now());
    }
    // Before the sockets, with which goes what the service manager has kept of them: by that the next broker sees that none
    // is unbound.
    if let Some(confinement) = confinement {
        confinement.settle();
    }
    fail_point::pass("end: unconfined");
    match retired {
        // Bound after all: closing such a one takes its time.
        Retired::SomeBound => part_with(engine, id, sockets),
        Retired::All => drop(sockets),
    }
    match (lingers, delivered) {
        (true, _) => {
            if let Some(lease) = engine.leases.get_mut(id) {
                engine.monitors.publish(lease, Change::State);
            }
        }
        // No queue was ever taken from the kernel.
        (false, true) => {
            engine.leases.abandon(id);
            free(engine, id);
        }
        (false, false) => free(engine, id),
    }
}

/// Closes sockets of a lease, when it is time for it.
fn part_with(engine: &mut Engine, id: LeaseId, sockets: Vec<LeasedSocket>) {
    let Some(lease) = engine.leases.get_mut(id) else {
        return;
    };
    let sockets = sockets
        .into_iter()
        .filter_map(|leased| Some((leased.socket?, leased.kept)))
        .collect();
    engine.locks.part_with(lease.device().index, sockets);
}

/// Whether a socket that its holder bound and never reported was bound to another queue than its own. Of one that another
/// broker has handed out, and that none of our fds leads to, nobody knows whether it is bound at all.
fn is_rogue(probe: &mut QueueProbe, index: u32, bound: &[LeasedSocket]) -> bool {
    let mut known = bound.iter().filter(|leased| leased.socket.is_some());
    known.any(|leased| {
        let in_use = probe.queue_use_untouched(index, leased.queue);
        matches!(in_use, Ok(Some(QueueUse::Free)))
    })
}

/// Does what is due: looks after sockets of kind `bare`, ends leases that were not activated in time, and frees what the kernel has let go of.
pub fn settle(engine: &mut Engine, now: Instant) {
    for id in engine.leases.agenda().due_by(now) {
        let Some(lease) = engine.leases.get_mut(id) else {
            continue;
        };
        if lease.is_live() && lease.deadline > now {
            grant::bare::look(engine, id, now);
        } else if lease.is_live() {
            end(engine, id, Reason::NotActivated);
        } else if lease.state == LeaseState::Ending {
            retire(engine, id, now);
        } else if still_held(&engine.locks, &mut engine.probe, lease) {
            look_again_later(lease, now);
        } else {
            free(engine, id);
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

/// Forgets an ended lease: its queues and its charges are free with that, and everybody may hear of it.
fn free(engine: &mut Engine, id: LeaseId) {
    fail_point::pass("end: free");
    let Some(mut lease) = engine.leases.take(id) else {
        return;
    };
    lease.state = LeaseState::Freed;
    engine.audit.write(&Line::new(Event::Freed).lease(&lease));
    engine.monitors.publish(&lease, Change::State);
    let index = lease.device().index;
    drop(lease);
    misfit::detach_unused(engine, index);
}

/// Ends a lease of this holder, unless it has moved on to another one meanwhile.
pub fn of_holder(engine: &mut Engine, id: LeaseId, holder: &Process, reason: Reason) {
    if engine
        .leases
        .get_mut(id)
        .is_some_and(|lease| lease.holder().is(holder))
    {
        end(engine, id, reason);
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
/// [`BrokerError::NoSuchLease`] where there is none. One that lingers stays as it is.
pub fn revoke(engine: &mut Engine, id: LeaseId) -> Result<Revoked, Error> {
    if engine.leases.get_mut(id).is_none() {
        let message =
            format!("there is no lease {id}, or none any more: `xsk-broker list` shows those that there are");
        return Err(BrokerError::NoSuchLease { lease: id.0, message }.into());
    }
    Ok(take_back(engine, id, Reason::Revoked))
}

/// Ends anybody's lease, and says what that has stopped. One that has ended already stays as it is.
pub fn take_back(engine: &mut Engine, id: LeaseId, reason: Reason) -> Revoked {
    // Such a lease is not listed after its end; but whoever has its sockets may still bind them.
    let is_unbound = |leased: &LeasedSocket| {
        let socket = leased.socket.as_ref();
        socket.is_some_and(|socket| socket.is_bound().is_ok_and(|bound| !bound))
    };
    let unbound = engine
        .leases
        .get_mut(id)
        .is_some_and(|lease| lease.sockets.iter().any(is_unbound));
    end(engine, id, reason);
    settle(engine, Instant::now());
    let stands = what_goes_on(engine, id);
    Revoked {
        tx_may_continue: stands.tx_may_continue || unbound,
        ..stands
    }
}

/// What goes on of a lease that has ended: nothing, where there is none any more.
pub fn what_goes_on(engine: &mut Engine, id: LeaseId) -> Revoked {
    let lease = engine.leases.get_mut(id);
    Revoked {
        rx_stopped: lease.as_ref().is_none_or(|lease| lease.rx_stopped()),
        tx_may_continue: lease.is_some(),
        lease: lease.map(|lease| report::lease(lease, Scope::All)),
    }
}

/// A device was deleted or moved away: with it went the sockets' queues, the program and the map's use.
pub fn device_gone(engine: &mut Engine, index: u32) {
    engine.probe.forget(index);
    engine.locks.forget(index);
    engine.uplinks.forget(index);
    if engine.redirects.remove(&index).is_none() {
        return;
    }
    for id in engine.leases.ids(|lease| lease.device().index == index) {
        end(engine, id, Reason::DeviceGone);
        free(engine, id);
    }
}

/// What a peer is told of a lease that is not there, or not its own.
pub fn no_such_lease(id: LeaseId) -> BrokerError {
    let message = format!("there is no lease {id}: it has ended, or it never was yours");
    BrokerError::NoSuchLease { lease: id.0, message }
}

/// Whether the kernel holds any of an ended lease's queues. Not one that a placeholder has come to stand on: it could be bound
/// there. (Where others let sockets out again and again, nobody would see it free between two of them.)
fn still_held(locks: &QueueLocks, probe: &mut QueueProbe, lease: &Lease) -> bool {
    let index = lease.device().index;
    lease
        .terms()
        .queues()
        .iter()
        .filter(|queue| !locks.has_placeholder(index, *queue))
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
    let at = now + lease.linger_wait;
    lease.due().set(at);
}
