//! What signals ask of the daemon.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::end::StopFor;
use crate::error::Failure;

/// Those that are heard, from when this is made on: none ends the process by itself any more.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    restart: Signal,
    hang_up: Signal,
}

/// What one of them asks for.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    /// SIGTERM, SIGINT; SIGUSR1 where a start follows at once.
    Stop(StopFor),
    /// SIGHUP
    Reload,
}

impl Signals {
    /// Hears them. To be called on the runtime.
    ///
    /// # Errors
    ///
    /// What sigaction(2) says.
    pub fn hear() -> Result<Self, Failure> {
        let hear =
            |kind, name| signal(kind).map_err(|source: io::Error| Failure::kernel("sigaction", name, source));
        Ok(Self {
            terminate: hear(SignalKind::terminate(), "SIGTERM")?,
            interrupt: hear(SignalKind::interrupt(), "SIGINT")?,
            restart: hear(SignalKind::user_defined1(), "SIGUSR1")?,
            hang_up: hear(SignalKind::hangup(), "SIGHUP")?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop(StopFor::Good),
            _ = self.interrupt.recv() => Asked::Stop(StopFor::Good),
            _ = self.restart.recv() => Asked::Stop(StopFor::Restart),
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}
