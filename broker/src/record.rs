//! What is written down of a lease: one JSON file each in the run directory, by which the next broker takes it over.
//!
//! **Invariants**: a record is `pending` before there is anything that it speaks of, `active` before anybody is told that
//! packets are redirected, `ended` before the slots are emptied, and removed when the queues are free. A record that is not
//! wholly right is nothing: it is refused by its name, with the line (`record/found.rs`).

mod found;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use xsk_client::wire::{BindMode, EndReason, InterfaceName, LeaseState, QueueLock};

use crate::error::Failure;
use crate::identity::{Process, Subject};
use crate::lease::{Lease, LeaseId, LeasedSocket};
use crate::policy::KeptTerms;

use found::place_of;
pub use found::{BadRecord, FoundRecord};

/// The version that this broker writes, and the only one that it reads.
const VERSION: u32 = 1;
/// What names begin and end with; the lease's number is between.
pub const BEGINNING: &str = "lease-";
const END: &str = ".json";
/// What follows the name of a file once a broker has refused it: it is believed by nobody from then on, whatever becomes of
/// it, since the slots of its lease were emptied.
const SET_ASIDE: &str = ".refused";
/// More than the largest lease needs, with all groups that stay of its requester.
pub const MOST_BYTES: u64 = 64 * 1024;

/// A lease, as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Its number.
    pub lease: u64,
    /// How far it has come.
    pub stage: Stage,
    /// Why it has ended.
    pub ended: Option<EndReason>,
    /// The boot in which it was written: ids begin anew with each.
    pub boot: String,
    /// When it began, in milliseconds of CLOCK_MONOTONIC.
    pub since_ms: u64,
    /// Who asked and is charged.
    pub requester: RecordedRequester,
    /// The process that it lives and dies with.
    pub holder: RecordedHolder,
    /// The device's name then.
    pub interface: InterfaceName,
    /// The device's index, which a rename does not change.
    pub interface_index: u32,
    /// The lock under which its sockets left.
    pub queue_lock: QueueLock,
    /// On which terms.
    pub terms: KeptTerms,
    /// One for each socket that was made.
    pub sockets: Vec<RecordedSocket>,
    /// The requester's text.
    pub label: Option<String>,
}

/// How far a lease has come, as far as the next broker has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Its sockets are being made, handed over and bound.
    Pending,
    /// Packets are redirected to it.
    Active,
    /// It has ended, and the kernel may hold its queues.
    Ended,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedRequester {
    /// As the kernel attested it.
    pub uid: u32,
    /// The same.
    pub gid: u32,
    /// The same.
    pub groups: Vec<u32>,
    /// For the log.
    pub pid: u32,
}

/// Who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedHolder {
    /// Its uid when it connected, or when the lease was moved to it.
    pub uid: u32,
    /// Its id, which alone says nothing.
    pub pid: u32,
    /// The inode of its pidfd: its own from Linux 6.9.
    pub pidfd_inode: u64,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedSocket {
    /// The queue.
    pub queue: u32,
    /// In which mode it is bound, once that was seen.
    pub mode: Option<BindMode>,
    /// Its inode, by which root finds who has it.
    pub inode: Option<u64>,
    /// What the queue had counted when its slot was filled; absent where it has none.
    pub redirected_before: Option<u64>,
}

impl Record {
    /// A lease as it is now.
    pub fn of(lease: &Lease, boot: &str) -> Self {
        let (requester, holder) = (lease.requester(), lease.holder());
        Self {
            version: VERSION,
            lease: lease.id().0,
            stage: match lease.state {
                LeaseState::Reserved | LeaseState::HandedOver => Stage::Pending,
                LeaseState::Active => Stage::Active,
                LeaseState::Ending | LeaseState::Lingering | LeaseState::Freed => Stage::Ended,
            },
            ended: lease.ended.map(|(reason, _)| reason),
            boot: boot.to_owned(),
            since_ms: monotonic_ms().saturating_sub(u64::try_from(lease.age().as_millis()).unwrap_or(0)),
            requester: RecordedRequester {
                uid: requester.subject.uid,
                gid: requester.subject.gid,
                groups: requester.subject.groups.clone(),
                pid: requester.pid,
            },
            holder: RecordedHolder::of(holder, lease.holder_uid()),
            interface: lease.device().name.clone(),
            interface_index: lease.device().index,
            queue_lock: lease.queue_lock(),
            terms: lease.terms().kept(),
            sockets: lease.sockets.iter().map(LeasedSocket::recorded).collect(),
            label: lease.label.clone(),
        }
    }

    /// The name of a lease's file.
    pub fn file_name(lease: LeaseId) -> String {
        format!("{BEGINNING}{lease}{END}")
    }

    /// As it is written: a member a line, so that an error has a line that says something.
    ///
    /// # Errors
    ///
    /// None that a record could cause.
    pub fn encode(&self) -> Result<Vec<u8>, Failure> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| {
            Failure::kernel(
                "encode",
                Self::file_name(LeaseId(self.lease)),
                std::io::Error::from(error),
            )
        })?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the text of one.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] with line and column.
    pub fn decode(file: &str, text: &[u8]) -> Result<Self, BadRecord> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }

        let bad = |at, why: String| BadRecord {
            file: file.to_owned(),
            at: Some(at),
            why,
        };
        let wrong = |error: serde_json::Error| {
            // Its own words end with the place.
            let words = error.to_string();
            let words = words.rsplit_once(" at line ").map_or(&*words, |(words, _)| words);
            bad((error.line(), error.column()), words.to_owned())
        };
        let at = |member: &str| place_of(text, &[member]);
        let Versioned { version } = serde_json::from_slice(text).map_err(wrong)?;
        if version != VERSION {
            return Err(bad(
                at("version"),
                format!("is of version {version}, and this broker knows {VERSION} alone"),
            ));
        }
        let record: Self = serde_json::from_slice(text).map_err(wrong)?;
        if Self::file_name(LeaseId(record.lease)) != file {
            let why = format!(
                "is of lease {}, which is not what the file is called by",
                record.lease
            );
            return Err(bad(at("lease"), why));
        }
        if record.stage == Stage::Active && record.sockets.len() != record.terms.queues().len() {
            let why = format!(
                "an active lease has a socket for each of its {} queues, and this one has {}",
                record.terms.queues().len(),
                record.sockets.len(),
            );
            return Err(bad(at("sockets"), why));
        }
        let is_missing = |socket: &RecordedSocket| socket.redirected_before.is_none();
        if record.stage == Stage::Active && record.terms.receives() && record.sockets.iter().any(is_missing) {
            let why = "an active lease that receives has a slot for each of its queues".to_owned();
            return Err(bad(at("sockets"), why));
        }
        let granted = record.terms.queues().iter();
        let first = granted.take(record.sockets.len());
        if !first.eq(record.sockets.iter().map(|socket| socket.queue)) {
            let why = "a socket's queue is not among those of the terms, or out of order".to_owned();
            return Err(bad(at("sockets"), why));
        }
        if record.stage == Stage::Ended && record.ended.is_none() {
            return Err(bad(at("ended"), "a lease that has ended has a reason".to_owned()));
        }
        Ok(record)
    }

    /// What the file of that name is called once it was refused.
    pub fn aside(file: &str) -> String {
        format!("{file}{SET_ASIDE}")
    }

    /// The name that a file had before it was refused, if that is what it is called by.
    pub fn before_aside(file: &str) -> Option<&str> {
        file.strip_suffix(SET_ASIDE)
    }

    /// The queues whose slots its holder's sockets are in.
    pub fn filled(&self) -> impl Iterator<Item = u32> + '_ {
        let filled = |socket: &&RecordedSocket| socket.redirected_before.is_some();
        self.sockets.iter().filter(filled).map(|socket| socket.queue)
    }
}

impl RecordedRequester {
    /// Whom the policy spoke about.
    pub fn subject(&self) -> Subject {
        Subject {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
        }
    }
}

impl RecordedSocket {
    /// One of which nothing was written down.
    pub fn unknown(queue: u32) -> Self {
        Self {
            queue,
            mode: None,
            inode: None,
            redirected_before: None,
        }
    }
}

impl RecordedHolder {
    /// A process now.
    pub fn of(process: &Process, uid: u32) -> Self {
        Self {
            uid,
            pid: process.pid(),
            pidfd_inode: process.inode(),
            start_ticks: process.start_ticks(),
        }
    }

    /// The process, if it still runs.
    ///
    /// # Errors
    ///
    /// Where that cannot be told.
    pub fn find(&self) -> Result<Option<Process>, Failure> {
        let found = Process::find_same(self.pid, self.pidfd_inode, self.start_ticks);
        found.map_err(|source| Failure::kernel("look for", format!("process {}", self.pid), source))
    }

    /// The process, as one that is no more.
    pub fn gone(&self) -> Process {
        Process::gone(self.pid, self.pidfd_inode, self.start_ticks)
    }
}

/// CLOCK_MONOTONIC, by which ages are told.
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
