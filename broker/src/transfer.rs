//! `Transfer`: a lease moves from a manager to the process that it has just started.
//!
//! **Invariants**: only the holder gives a lease away, and only to a process of a uid that the rule names; which process
//! that is, is what the kernel says of a pidfd, never a pid alone. The requester stays charged.

use std::sync::Arc;

use tokio::sync::oneshot;
use xsk_client::wire::{BrokerError, Change, Transferred};

use crate::audit::{Event, Line};
use crate::end;
use crate::engine::Engine;
use crate::error::Error;
use crate::fail_point;
use crate::identity::{Peer, Process};
use crate::lease::LeaseId;
use crate::report;

/// Moves a lease of this peer's process. Gives what to answer, and what resolves when the lease has ended: whoever
/// called watches the new holder from now on.
///
/// # Errors
///
/// [`BrokerError::NoSuchLease`], [`BrokerError::Denied`], [`BrokerError::NoSuchProcess`]; nothing has changed.
pub fn transfer(
    engine: &mut Engine,
    peer: &Peer,
    id: LeaseId,
    to: Arc<Process>,
) -> Result<(Transferred, oneshot::Receiver<()>), Error> {
    let lease = engine
        .leases
        .get_mut(id)
        .filter(|lease| lease.is_live() && lease.is_held_by(peer))
        .ok_or_else(|| end::no_such_lease(id))?;
    let uids = to.uids().map_err(|_| gone(&to))?;
    // All of them: what has a second uid in reserve could be either.
    let uid = uids[0];
    // By the policy in force, which may be another one than gave the lease.
    let still = engine
        .policy
        .still_gives(&lease.requester().subject, lease.terms(), &lease.device().name);
    let (rule, transfer_to) = match still {
        Ok(given) => (given.rule, given.transfer_to),
        Err(_) => (lease.terms().rule().to_owned(), Vec::new()),
    };
    if !uids.iter().all(|each| *each == uid) || !transfer_to.contains(&uid) {
        let message = format!(
            "process {} has the uids {uids:?} (real, effective, saved), and rule {rule} lets a lease move only to processes \
             that are nothing but one of `transfer-to`, which are {transfer_to:?}",
            to.pid(),
        );
        return Err(BrokerError::Denied {
            interface: lease.device().name.clone(),
            queues: lease.terms().queues().iter().collect(),
            message,
        }
        .into());
    }
    if to.has_exited() {
        return Err(gone(&to).into());
    }
    engine.audit.check_room(lease.requester().subject.uid)?;
    if let Some(confinement) = &lease.confinement {
        confinement.hand_to(&to)?;
    }
    // Written down first: who is told that it has moved finds it so after a restart, too.
    lease.write_down_with_holder(&to, uid)?;
    fail_point::pass("transfer: written down");
    // The old watch resolves, since its other end is dropped here.
    let (watch, ended) = oneshot::channel();
    lease.move_to(to, uid, watch);
    let line = Line::new(Event::Transferred).lease(lease);
    engine
        .audit
        .write(&line.message(&format!("to process {} of uid {uid}", lease.holder().pid())));
    engine.monitors.publish(lease, Change::Holder);
    let reply = Transferred {
        lease: id.0,
        holder: report::holder(lease),
    };
    Ok((reply, ended))
}

/// What is told where a process that is to hold a lease is no more.
pub(crate) fn gone(process: &Process) -> BrokerError {
    let pid = process.pid();
    BrokerError::NoSuchProcess {
        pid,
        message: format!("process {pid} has exited"),
    }
}
