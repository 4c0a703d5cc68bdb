//! The audit log: one JSON object a line for each decision and for what became of it, in the order in which things
//! happened.
//!
//! The engine never waits for who reads it: it puts lines into a bounded backlog (`backlog.rs`: what becomes of a
//! full one), and a thread without any capability writes them (`writer.rs`).

mod backlog;
mod dropped;
mod line;
mod share;
mod sink;
mod sums;
mod writer;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use xsk_client::wire::{AuditLog, BrokerError, Quota, Used};

pub use backlog::RESERVE_BYTES;
use backlog::{Backlog, Bounds};
pub use line::{Event, Line};
pub use sink::Sink;
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
    /// Why lines go on to the file that was open before, since it was last looked for anew.
    misplaced: Option<String>,
    /// Somebody was granted nothing for what waits, which the log was told.
    withheld: bool,
    /// The file is to be looked for anew before the next line.
    reopen: bool,
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
                misplaced: None,
                withheld: false,
                reopen: false,
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

    /// Whether what is granted to a user now would be written down.
    ///
    /// # Errors
    ///
    /// [`BrokerError::QuotaExceeded`]: too many lines wait, and nobody takes them.
    pub fn check_room(&self, uid: u32) -> Result<(), BrokerError> {
        let mut state = self.0.lock();
        match state.refusal(uid) {
            None => Ok(()),
            Some(refusal) => {
                if !std::mem::replace(&mut state.withheld, true) {
                    tracing::warn!("{refusal}");
                }
                Err(refusal)
            }
        }
    }

    /// The same, for who only wants to know.
    ///
    /// # Errors
    ///
    /// As [`Self::check_room`].
    pub fn has_room(&self, uid: u32) -> Result<(), BrokerError> {
        self.0.lock().refusal(uid).map_or(Ok(()), Err)
    }

    /// Has the file looked for anew that it is written to, if it is one.
    pub fn reopen(&self) {
        self.0.lock().reopen = true;
        self.0.news.notify_one();
    }

    /// How it is doing.
    pub fn status(&self) -> AuditLog {
        let state = self.0.lock();
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        AuditLog {
            waiting_lines: number(state.backlog.lines()),
            waiting_bytes: number(state.backlog.share().waiting()),
            refusals_summed: state.backlog.summed(),
            refusals_dropped: state.backlog.dropped(),
            trouble: state.told_trouble(),
        }
    }

    /// Whose lines wait, as what else is limited.
    pub fn quota(&self) -> Quota {
        let state = self.0.lock();
        let share = state.backlog.share();
        let users = share.users().map(|(uid, bytes)| Used {
            uid,
            in_use: bytes_of(bytes),
        });
        let mut users: Vec<Used> = users.collect();
        users.sort_by_key(|used| used.uid);
        Quota {
            resource: RESOURCE.to_owned(),
            in_use: bytes_of(share.waiting()),
            limit: bytes_of(share.limit()),
            // What one alone can come to.
            limit_per_user: bytes_of(share.limit() / 2),
            users,
        }
    }
}

/// As `status` and a refusal name it.
const RESOURCE: &str = "audit-log-bytes";

fn bytes_of(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl State {
    /// What an operator has to do something about.
    fn told_trouble(&self) -> Option<String> {
        let unwritten = self
            .trouble
            .as_ref()
            .map(|cause| format!("cannot be written, and goes on trying: {cause}"));
        let told: Vec<String> = unwritten.into_iter().chain(self.misplaced.clone()).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// What a user is told who is granted nothing new now.
    fn refusal(&self, uid: u32) -> Option<BrokerError> {
        if self.backlog.has_room(uid) {
            return None;
        }
        let share = self.backlog.share();
        let (own, left, waiting) = (share.of(uid), share.left(), share.waiting());
        let (limit, in_use, whose) = match left {
            0 => (share.limit(), waiting, "and as many wait as may".to_owned()),
            _ => (
                left,
                own,
                format!(
                    "and of those that wait uid {uid} has {own} bytes, where {left} are left for all: others go on"
                ),
            ),
        };
        Some(BrokerError::QuotaExceeded {
            resource: RESOURCE.to_owned(),
            limit: bytes_of(limit),
            in_use: bytes_of(in_use),
            message: format!(
                "nothing is granted that could not be written down; nobody takes the lines of the broker's audit log in time, \
                 {whose}. The operator sees in `status` how many wait; ask again later"
            ),
        })
    }

    /// Tells the log when everybody is granted things again: most of what waited was taken.
    fn see_room(&mut self) {
        let share = self.backlog.share();
        if self.withheld && share.waiting() <= share.limit() / 4 {
            self.withheld = false;
            tracing::info!("the lines of the audit log are taken again: grants go on");
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
