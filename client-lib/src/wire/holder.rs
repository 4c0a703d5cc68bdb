//! Processes on the wire: the one that a lease lives and dies with, and the one that it is to move to.

use serde::{Deserialize, Serialize};

/// The process that a lease lives and dies with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its process id in the broker's pid namespace.
    pub pid: u32,
    /// Its uid when it connected, or when the lease was transferred to it.
    pub uid: u32,
    /// The inode of its pidfd, unique for each process from Linux 6.9.
    pub pidfd_inode: u64,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    #[serde(default)]
    pub start_ticks: u64,
    /// Whether it still runs.
    pub alive: bool,
}

/// Names a process so that another one with the same pid is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Transfer {
    /// Which lease.
    pub lease: u64,
    /// The process id, in the broker's pid namespace.
    pub pid: u32,
    /// The inode of a pidfd of the process (fstat(2)). It decides from Linux 6.9; before, all pidfds have the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
    /// When the process started (proc_pid_stat(5), field 22). It decides before Linux 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ticks: Option<u64>,
}

/// Reply to `Transfer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// Which lease.
    pub lease: u64,
    /// Where it is now.
    pub holder: Holder,
}
