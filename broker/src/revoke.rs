//! `Revoke`, and the reload that ends leases: both say what goes on all the same, once that is known.
//!
//! A lease whose sockets were never bound, under a lock, has ended when they are retired: a matter of milliseconds, on a
//! thread of its own. Only then is it known that nobody can transmit by them.

use std::time::{Duration, Instant};

use xsk_client::wire::{LeaseState, Revoked};

use crate::end;
use crate::engine::{EngineHandle, Turn};
use crate::error::{Error, Failure};
use crate::lease::LeaseId;

/// How long is waited for sockets to be retired: a hostile holder can make it take for ever.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Ends anybody's lease at the operator's wish.
///
/// # Errors
///
/// As [`end::revoke`].
pub async fn revoke(engine: &EngineHandle, turn: Turn, id: LeaseId) -> Result<Revoked, Error> {
    let revoked = engine.call(turn, move |engine| end::revoke(engine, id)).await??;
    match is_ending(&revoked) {
        true => Ok(once_retired(engine, id, Instant::now() + PATIENCE).await?),
        false => Ok(revoked),
    }
}

/// What goes on of leases that are ending, in their order.
///
/// # Errors
///
/// Where the engine has stopped.
pub async fn all_once_retired(engine: &EngineHandle, ids: &[LeaseId]) -> Result<Vec<Revoked>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::with_capacity(ids.len());
    for id in ids {
        all.push(once_retired(engine, *id, deadline).await?);
    }
    Ok(all)
}

async fn once_retired(engine: &EngineHandle, id: LeaseId, deadline: Instant) -> Result<Revoked, Failure> {
    loop {
        let stands = engine
            .call(Turn::First, move |engine| end::what_goes_on(engine, id))
            .await?;
        if !is_ending(&stands) || Instant::now() > deadline {
            return Ok(stands);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_ending(revoked: &Revoked) -> bool {
    let lease = revoked.lease.as_ref();
    lease.is_some_and(|lease| lease.state == LeaseState::Ending)
}
