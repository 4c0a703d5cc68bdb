//! The last step of a grant: packets are redirected to sockets that are seen bound to what was granted.

use xsk_client::wire::{Activated, ActivatedSocket, Change, LeaseState, SocketKind};

use super::refusals::{bound_elsewhere, not_bound};
use super::{bound, of_device};
use crate::audit::{Event, Line};
use crate::end::{self, Reason};
use crate::engine::Engine;
use crate::error::Error;
use crate::fail_point;
use crate::identity::Peer;
use crate::kernel::queue_lock::Confinement;
use crate::kernel::queue_probe::QueueUse;
use crate::lease::{Lease, LeaseId};
use crate::objection;
use crate::policy::Insert;
use crate::zero_copy;

/// Does a holder's `Activate`: once more from any of its connections is fine.
///
/// # Errors
///
/// `NotBound`: the lease lives on. `BoundElsewhere`, `ModeNotAllowed`: it has been ended.
pub fn activate(engine: &mut Engine, peer: &Peer, id: LeaseId) -> Result<Activated, Error> {
    let lease = engine
        .leases
        .get_mut(id)
        .filter(|lease| lease.is_live() && lease.is_held_by(peer));
    let lease = lease.ok_or_else(|| end::no_such_lease(id))?;
    if lease.state == LeaseState::Active {
        return Ok(activated(lease));
    }
    fill_slots(engine, id)
}

/// Redirects packets to a lease's sockets, if all of them are bound to what was granted.
pub(super) fn fill_slots(engine: &mut Engine, id: LeaseId) -> Result<Activated, Error> {
    let lease = engine.leases.get_mut(id).ok_or_else(|| end::no_such_lease(id))?;
    if lease.umem.is_some() {
        return Err(bound::bind_first(lease).into());
    }
    let index = lease.device().index;
    for leased in &lease.sockets {
        if !leased.is_bound(&mut engine.probe, index)? {
            return Err(not_bound(lease, leased.queue).into());
        }
    }
    // Bound, but to what was granted? The kernel does not say where; but then the granted queue must be taken. What the
    // broker bound itself is where it belongs: nobody can bind it again.
    let by_holder = lease.terms().sockets() != SocketKind::Bound;
    for leased in lease.sockets.iter().filter(|_| by_holder) {
        let queue = leased.queue;
        let in_use = engine
            .probe
            .queue_use(index, queue)
            .map_err(|failure| of_device(&lease.device().name, failure))?;
        if in_use == QueueUse::Free {
            let error = bound_elsewhere(lease, queue);
            engine.audit.write(
                &Line::new(Event::RogueBind)
                    .lease(lease)
                    .message(&error.to_string()),
            );
            end::end(engine, id, Reason::RogueBind);
            return Err(error.into());
        }
    }

    for leased in &mut lease.sockets {
        if let Some(socket) = &leased.socket {
            leased.mode = Some(socket.mode()?);
        }
    }
    if let Some(error) = zero_copy::check_bound(lease) {
        engine.audit.write(
            &Line::new(Event::ModeNotAllowed)
                .lease(lease)
                .message(&error.to_string()),
        );
        end::end(engine, id, Reason::ModeNotAllowed);
        return Err(error.into());
    }
    let (redirect, receives) = (lease.redirect().clone(), lease.terms().direction().receives());
    fail_point::pass("activate: seen bound");
    for leased in &mut lease.sockets {
        if let (None, Some(socket), true) = (&leased.slot, &leased.socket, receives) {
            leased.slot = Some(redirect.insert(socket)?);
            fail_point::pass("activate: slot filled");
        }
    }
    lease.state = LeaseState::Active;
    if let Err(failure) = lease.write_down() {
        // What is not written down would not be there after a restart: then it is not active.
        lease.state = LeaseState::HandedOver;
        if lease.terms().insert() == Insert::WhenBound {
            lease.sockets.iter_mut().for_each(|leased| leased.slot = None);
        }
        return Err(failure.into());
    }
    fail_point::pass("activate: written down");
    lease.due().clear();
    // Bound sockets are sealed (F6), and these are where they belong: nothing has to confine them any more.
    lease.confinement.take().into_iter().for_each(Confinement::settle);
    engine.audit.write(&Line::new(Event::Activated).lease(lease));
    engine.monitors.publish(lease, Change::State);
    let activated = activated(lease);
    // Bound, and in a mode that is known by now.
    objection::weigh(engine, id);
    fail_point::pass("activate: active");
    Ok(activated)
}

fn activated(lease: &Lease) -> Activated {
    let sockets = lease.sockets.iter().filter_map(|leased| {
        leased.mode.map(|mode| ActivatedSocket {
            queue: leased.queue,
            mode,
        })
    });
    Activated {
        lease: lease.id().0,
        sockets: sockets.collect(),
    }
}
