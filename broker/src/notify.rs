//! What the service manager is told of the broker's life (sd_notify(3)). That it does not hear stops nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::engine::{Engine, EngineHandle, Turn};
use crate::error::Failure;
use crate::manager::Manager;

/// It serves: for the first time, or again after [`reloading`].
///
/// # Errors
///
/// [`Failure::EngineStopped`].
pub async fn ready(manager: &Manager, engine: &EngineHandle) -> Result<(), Failure> {
    let state = |engine: &mut Engine| {
        let (rules, leases) = (engine.policy.rule_count(), engine.leases.len());
        format!("serving; rules: {rules}, leases at the last start or reload: {leases}")
    };
    let status = engine.call(Turn::First, state).await?;
    tell(manager, &[NotifyState::Ready, NotifyState::Status(&status)]);
    Ok(())
}

/// It serves on as before a reload that came to nothing.
pub fn unchanged(manager: &Manager, why: &str) {
    tell(manager, &[NotifyState::Ready, NotifyState::Status(why)]);
}

/// It reads its policy anew, and says when it has done so.
pub fn reloading(manager: &Manager) {
    let status = NotifyState::Status("reading the policy anew");
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(manager, &[NotifyState::Reloading, now, status]),
        Err(error) => tracing::warn!(%error, "clock_gettime(CLOCK_MONOTONIC)"),
    }
}

/// It ends, in order.
pub fn stopping(manager: &Manager) {
    let status = NotifyState::Status("stopping; what is held is left for the next broker");
    tell(manager, &[NotifyState::Stopping, status]);
}

/// Shows the service manager, for as long as it wants to see it, that the engine and this thread get on: `WatchdogSec=`.
pub async fn watchdog(manager: Manager, engine: EngineHandle) {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Twice in each: one may come late. A period of nothing would be a loop without a pause.
    let mut ticks = tokio::time::interval((period / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        if engine.call(Turn::First, |_| ()).await.is_err() {
            return;
        }
        manager.tell_alive();
    }
}

fn tell(manager: &Manager, states: &[NotifyState<'_>]) {
    let mut lines = String::new();
    for state in states {
        lines += &format!("{state}\n");
    }
    manager.tell(lines);
}
