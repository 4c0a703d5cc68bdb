//! Sockets of kind `bare`: for a holder that knows nothing of leases, as QEMU does not. Nobody says `Activate`, so the
//! engine looks by itself whether they are bound, from the grant until the lease's deadline.
//!
//! **Invariant**: a look waits for nobody and changes nothing about a socket (`sys::is_bound`).

use std::time::{Duration, Instant};

use xsk_client::wire::{BrokerError, LeaseState, SocketKind};

use crate::engine::Engine;
use crate::error::{Error, Failure, chain};
use crate::lease::{Lease, LeaseId, Reservation};

/// Fills the slots of a lease whose sockets are all bound by now, or sets the time at which to look again.
pub fn look(engine: &mut Engine, id: LeaseId, now: Instant) {
    let error = match super::activate::fill_slots(engine, id) {
        Ok(_) => return,
        Err(error) => error,
    };
    let Some(lease) = engine.leases.get_mut(id).filter(|lease| lease.is_live()) else {
        // It was bound to something else, and has been ended for that.
        return;
    };
    if !matches!(error, Error::Refused(BrokerError::NotBound { .. })) && !lease.look_failed {
        lease.look_failed = true;
        tracing::warn!(
            lease = id.0,
            error = chain(&error),
            "cannot redirect packets to a bare socket; trying until its deadline"
        );
    }
    look_again_later(lease, now);
}

/// Often at first, for a program that binds at once; later a small part of the time that it has taken already, since a
/// virtual machine may take seconds. Until then the packets go on to the host.
fn look_again_later(lease: &mut Lease, now: Instant) {
    const SHORTEST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(100);

    debug_assert_eq!(lease.state, LeaseState::HandedOver, "only these are looked at");
    let wait = (lease.age() / 16).clamp(SHORTEST, LONGEST);
    let at = (now + wait).min(lease.deadline);
    lease.due().set(at);
}

/// What a failure to fill the slot of an unbound socket means: newer kernels take none without an RX ring (ENOBUFS, seen
/// on 7.3), and a bare one has no ring.
pub(super) fn at_grant(reservation: &Reservation, failure: Failure) -> Error {
    let terms = reservation.terms();
    if terms.sockets() != SocketKind::Bare || !failure.is_errno(libc::ENOBUFS) {
        return failure.into();
    }
    let message = format!(
        "this kernel puts no socket without rings into an XSKMAP (ENOBUFS), so that rule {} cannot have `insert = \"at-grant\"` for bare sockets; with \"when-bound\" packets are redirected as soon as the socket is bound, which QEMU is content with",
        terms.rule(),
    );
    BrokerError::SocketKindUnsupported {
        sockets: SocketKind::Bare,
        message,
    }
    .into()
}
