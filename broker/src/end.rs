//! The one path by which a lease ends: release, the holder's exit, revoke, a deadline, the loss of its device, the end
//! of the daemon.
//!
//! Its slots are emptied first, so that no packet goes to it any more, then our fds of its sockets are closed. What the
//! kernel still holds then (a socket of a holder that lives on, or of one that just died) is a state of the lease: it
//! _lingers_, keeping queues and charge, until a look shows that the queues are free.

use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, LeaseState};

use crate::audit::{Event, Line};
use crate::engine::Engine;
use crate::error::{Error, chain};
use crate::grant;
use crate::identity::Peer;
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::lease::{Lease, LeaseId};

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
    lease.state = LeaseState::Ending;
    lease.watch = None;
    let bound = lease
        .sockets
        .iter()
        .any(|leased| leased.socket.is_bound().unwrap_or(true));
    let made = !lease.sockets.is_empty();
    // Counted until here: with the slot goes the count of what was redirected.
    lease.last_seen = lease.queues();
    for leased in &mut lease.sockets {
        leased.slot = None;
    }
    lease.sockets.clear();
    lease.umem = None;
    engine
        .audit
        .write(&Line::new(Event::Ended).lease(lease).reason(reason.as_str()));

    if bound {
        lease.state = LeaseState::Lingering;
        lease.due = Some(Instant::now());
    } else if reason == Reason::NotDelivered || !made {
        // Nobody has a socket of it.
        engine.leases.remove(id);
    } else {
        // No queue was ever taken from the kernel.
        engine.leases.abandon(id);
    }
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
        } else if still_held(&mut engine.probe, lease) {
            look_again_later(lease, now);
        } else {
            engine.audit.write(&Line::new(Event::Freed).lease(lease));
            engine.leases.remove(id);
        }
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
