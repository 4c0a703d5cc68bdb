//! The end of the daemon: which leases go on without it, and which end.

use std::time::{Duration, Instant};

use xsk_client::wire::{LeaseState, QueueLock, SocketKind};

use super::{Reason, end, settle};
use crate::audit::{Event, Line};
use crate::engine::Engine;
use crate::lease::Lease;

/// How long a stop waits for sockets to be retired: a hostile holder can make it take for ever.
const RETIREMENT_PATIENCE: Duration = Duration::from_secs(2);

/// What the daemon ends for, which its service manager says by the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopFor {
    /// SIGTERM: for ever, as far as anybody knows. What the manager keeps may be closed at once.
    Good,
    /// SIGUSR1 (`RestartKillSignal=`): the manager starts it again, and keeps for it what it has.
    Restart,
}

/// Ends what cannot go on without this broker, and leaves everything else for the next one: leases that are active go on,
/// with the programs of their devices. Sockets that were handed over and are not in use yet are taken back, unless a service
/// manager keeps them, and what confines them: placeholders it keeps over a restart alone.
pub fn stop(engine: &mut Engine, stop_for: StopFor) {
    engine.stopping = true;
    for id in engine
        .leases
        .ids(|lease| lease.is_live() && !goes_on(lease, stop_for))
    {
        let exited = engine
            .leases
            .get_mut(id)
            .is_some_and(|lease| lease.holder().has_exited());
        let reason = match exited {
            true => Reason::HolderExited,
            false => Reason::Stopped,
        };
        end(engine, id, reason);
    }
    // Everybody has been told by now, so that nobody waits for this but the stop itself. Of those that died the kernel lets
    // go in no time.
    let give_up = Instant::now() + RETIREMENT_PATIENCE;
    let is_under_way = |lease: &Lease| match lease.state {
        LeaseState::Ending => true,
        LeaseState::Lingering => lease.holder().has_exited(),
        _ => false,
    };
    while Instant::now() < give_up && engine.leases.iter().any(is_under_way) {
        settle(engine, Instant::now());
        std::thread::sleep(Duration::from_millis(2));
    }
    let leases = &engine.leases;
    engine
        .redirects
        .retain(|index, _| leases.iter().any(|lease| lease.device().index == *index));
    engine.locks.let_go();
    engine.manager.wait_sent(give_up);
    let message = match engine.leases.len() {
        0 => "nothing is held".to_owned(),
        left => format!("leases that are left for the next broker: {left}"),
    };
    tracing::info!("{message}");
    engine.audit.write(&Line::new(Event::Stopped).message(&message));
}

/// Whether a lease can go on without a broker, until there is one again.
fn goes_on(lease: &Lease, stop_for: StopFor) -> bool {
    let unlocked = lease.queue_lock() == QueueLock::None;
    let at_grant = lease.sockets.iter().any(|leased| leased.slot.is_some());
    // The next one can activate it.
    let is_kept = !lease.sockets.is_empty()
        && lease.umem.is_none()
        && lease.sockets.iter().all(|leased| leased.kept.is_some());
    // A manager that has stopped its service for good closes these.
    let needs_placeholders =
        lease.queue_lock() == QueueLock::Placeholders && lease.terms().sockets() != SocketKind::Bound;
    let goes_on_kept = is_kept && (!needs_placeholders || stop_for == StopFor::Restart);
    let is_settled = lease.state == LeaseState::Active || (at_grant && unlocked) || goes_on_kept;
    is_settled && !lease.holder().has_exited()
}
