//! Which processes have a socket: open, or a ring of it mapped. Asked in `/proc`, with the caller's own rights; the
//! broker has none to look there.

use std::fmt;
use std::fs;
use std::path::Path;

use xsk_client::wire::{Lease, QueueSet};

/// A process that keeps a socket alive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Keeper {
    /// Its pid.
    pub pid: u32,
    /// Its uid.
    pub uid: u32,
    /// Its command, from `/proc/PID/comm`; what a process is called is its own choice.
    pub command: String,
    /// Whether it has a file descriptor of a socket.
    pub open: bool,
    /// Whether it has rings of a socket mapped.
    pub mapped: bool,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.open, self.mapped) {
            (true, true) => "has a socket open and rings mapped",
            (true, false) => "has a socket open",
            (false, _) => "has rings mapped",
        };
        write!(f, "pid {} ({:?}, uid {}) {how}", self.pid, self.command, self.uid)
    }
}

/// Who has a socket of this lease but the broker, which may still be closing its own. For others than root, only what their own
/// processes have.
pub fn of(lease: &Lease, broker: u32) -> Vec<Keeper> {
    let sockets: Vec<String> = lease
        .queues
        .iter()
        .filter_map(|queue| queue.socket_inode)
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut keepers: Vec<Keeper> = processes
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            if pid == broker {
                return None;
            }
            keeper(pid, &entry.path(), &sockets)
        })
        .collect();
    keepers.sort();
    keepers
}

fn keeper(pid: u32, folder: &Path, sockets: &[String]) -> Option<Keeper> {
    // A process may end, or be closed to us, at any of these: then it is not known to have anything.
    let is_one = |target: &Path| sockets.iter().any(|socket| target.as_os_str() == socket.as_str());
    let open = fs::read_dir(folder.join("fd")).is_ok_and(|mut fds| {
        fds.any(|fd| fd.is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|target| is_one(&target))))
    });
    // Names of processes and of mapped files are bytes of their own choice.
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    let mapped = maps
        .split(|byte| *byte == b'\n')
        .any(|line| sockets.iter().any(|socket| line.ends_with(socket.as_bytes())));
    if !open && !mapped {
        return None;
    }
    let lossy = |name: &str| {
        let bytes = fs::read(folder.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let status = lossy("status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    Some(Keeper {
        pid,
        uid: uids.split_whitespace().next()?.parse().ok()?,
        command: lossy("comm")?.trim_end().to_owned(),
        open,
        mapped,
    })
}

/// `IF:QUEUES` of a lease.
pub fn target_of(lease: &Lease) -> String {
    let queues = QueueSet::new(lease.queues.iter().map(|queue| queue.queue));
    match queues {
        Ok(queues) => format!("{}:{queues}", lease.interface),
        Err(_) => lease.interface.to_string(),
    }
}
