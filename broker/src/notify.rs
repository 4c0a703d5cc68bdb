//! What the service manager is told (sd_notify(3)). Where there is none, nothing is; that it cannot be told is in the log,
//! and stops nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::engine::{Engine, EngineHandle, Turn};
use crate::error::Failure;

/// It serves: for the first time, or again after [`reloading`].
///
/// # Errors
///
/// [`Failure::EngineStopped`].
pub async fn ready(engine: &EngineHandle) -> Result<(), Failure> {
    let state = |engine: &mut Engine| {
        let (rules, leases) = (engine.policy.rule_count(), engine.leases.len());
        format!("serving; rules: {rules}, leases at the last start or reload: {leases}")
    };
    let status = engine.call(Turn::First, state).await?;
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    Ok(())
}

/// It serves on as before a reload that came to nothing.
pub fn unchanged(why: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(why)]);
}

/// It reads its policy anew, and says when it has done so.
pub fn reloading() {
    let status = NotifyState::Status("reading the policy anew");
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, status]),
        Err(error) => tracing::warn!(%error, "clock_gettime(CLOCK_MONOTONIC)"),
    }
}

/// It ends, in order.
pub fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping; what is held is left for the next broker"),
    ]);
}

/// Shows the service manager, for as long as it wants to see it, that the engine and this thread get on: `WatchdogSec=`.
pub async fn watchdog(engine: EngineHandle) {
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
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, ?states, "cannot tell the service manager (NOTIFY_SOCKET)");
    }
}
