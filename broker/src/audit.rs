//! The audit log: one JSON object a line for each decision and for what became of it, in the order in which things
//! happened.
//!
//! The engine never waits for who reads it: it puts lines into a bounded backlog (`backlog.rs`: what becomes of a
//! full one), and a thread without any capability writes them (`writer.rs`).

mod backlog;
mod line;
mod sums;
mod writer;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use xsk_client::wire::{AuditLog, BrokerError};

pub use backlog::RESERVE_BYTES;
use backlog::{Backlog, Bounds};
pub use line::{Event, Line};
pub use writer::Writer;

/// Where lines go to be written. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something for the writer.
    news: Condvar,
    /// The writer has ended.
    ended: Condvar,
}

struct State {
    backlog: Backlog,
    /// What the last write failed with, until one succeeds.
    trouble: Option<String>,
    /// No line comes any more.
    closing: bool,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while it had the lock had at most not counted a line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Audit {
    /// Lines wait from now on; a [`Writer`] writes them.
    pub fn new() -> Self {
        Self::within(Bounds::USUAL)
    }

    fn within(bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                backlog: Backlog::new(bounds),
                trouble: None,
                closing: false,
                ended: false,
            }),
            news: Condvar::new(),
            ended: Condvar::new(),
        }))
    }

    /// Has one line written, or counted: see `backlog.rs`. Never waits for who reads it.
    pub fn write(&self, line: &Line<'_>) {
        self.0.lock().backlog.push(line, Instant::now());
        self.0.news.notify_one();
    }

    /// Whether what is granted now would be written down.
    ///
    /// # Errors
    ///
    /// [`BrokerError::QuotaExceeded`]: too many lines wait, and nobody takes them.
    pub fn check_room(&self) -> Result<(), BrokerError> {
        let state = self.0.lock();
        let backlog = &state.backlog;
        if backlog.has_room() {
            return Ok(());
        }
        let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        Err(BrokerError::QuotaExceeded {
            resource: "audit-log-bytes".to_owned(),
            limit: bytes(backlog.bounds().reserve),
            in_use: bytes(backlog.bytes()),
            message: "nothing is granted that could not be written down, and nobody takes the lines of the broker's audit log; \
                      the operator sees in `status` how many wait. Ask again later"
                .to_owned(),
        })
    }

    /// How it is doing.
    pub fn status(&self) -> AuditLog {
        let state = self.0.lock();
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        AuditLog {
            waiting_lines: number(state.backlog.lines()),
            waiting_bytes: number(state.backlog.bytes()),
            refusals_summed: state.backlog.summed(),
            refusals_dropped: state.backlog.dropped(),
            trouble: state.trouble.clone(),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}
