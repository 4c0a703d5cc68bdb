//! What a crash of the broker leaves under placeholders: they die with it, and a socket that was out unbound can be bound
//! to any queue of its device that nobody has, now or later. Such a device is _tainted_: no socket leaves unbound there
//! until the process that had it is gone.
//!
//! A small file in the run directory says so for each device, from before the socket leaves until it was seen bound or
//! is retired. Whoever starts next reads them. Every path goes through the directory's fd, taken while still root.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::identity::Process;
use crate::lease::LeaseId;
use crate::run_dir::{RunDirectory, boot_id};

/// What the names begin with; the device's index follows.
pub const UNBOUND: &str = "unbound-";

/// The directory of these files, and what was found there.
#[derive(Debug)]
pub struct Taints {
    directory: Arc<RunDirectory>,
    /// By the index of a device.
    found: HashMap<u32, Taint>,
}

/// What a device is tainted by.
#[derive(Debug)]
struct Taint {
    holder: Process,
    /// Whose socket it is; earlier versions have not said so.
    lease: Option<LeaseId>,
}

impl Taint {
    fn is_of(&self, lease: LeaseId) -> bool {
        self.lease == Some(lease)
    }
}

/// Who has an unbound socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    #[serde(default)]
    lease: Option<u64>,
    pid: u32,
    start_ticks: u64,
    /// Of /proc/sys/kernel/random/boot_id: process ids begin anew with each boot, the directory may not.
    boot: String,
}

impl Taints {
    /// Reads what a broker that crashed has left in the run directory; what is of no consequence any more is removed.
    ///
    /// # Errors
    ///
    /// What the kernel says, also where it does not say whether a process is gone. A file that cannot be understood taints
    /// nothing and is told in the log: only a broker writes there, whole.
    pub fn read(run_dir: &Path) -> Result<Self, Failure> {
        let directory = Arc::new(RunDirectory::open(run_dir)?);
        let mut found = HashMap::new();
        for name in directory.names(UNBOUND)? {
            let Some(index) = name.strip_prefix(UNBOUND).and_then(|index| index.parse().ok()) else {
                continue;
            };
            match taint_in(&directory, &name) {
                Ok(Some(taint)) => drop(found.insert(index, taint)),
                Ok(None) => directory.remove(&name),
                Err(error) if is_nonsense(&error) => {
                    tracing::warn!(name, %error, "cannot make out what a broker that crashed has left");
                    directory.remove(&name);
                }
                Err(error) => return Err(Failure::kernel("read", run_dir.join(&name).display(), error)),
            }
        }
        Ok(Self { directory, found })
    }

    /// The process by which a device is tainted.
    pub fn holder(&mut self, index: u32) -> Option<u32> {
        let holder = &self.found.get(&index)?.holder;
        if !holder.has_exited() {
            return Some(holder.pid());
        }
        self.found.remove(&index);
        self.directory.remove(&file_name(index));
        None
    }

    /// Tells of the devices that are tainted.
    pub fn tell(&self) {
        for (index, taint) in &self.found {
            tracing::warn!(
                ifindex = index,
                pid = taint.holder.pid(),
                "a broker that crashed had given this process a socket that may still be unbound: no more of that kind on the \
                 device until it is gone"
            );
        }
    }

    /// The broker has the sockets of this lease at hand, and confines them again: they taint nothing. As [`Self::announce`]
    /// from then on. `None`: it is another lease by which the device is tainted.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn resume(
        &mut self,
        index: u32,
        lease: LeaseId,
        holder: &Process,
    ) -> Result<Option<Announced>, Failure> {
        match self.found.get(&index) {
            Some(taint) if !taint.is_of(lease) => return Ok(None),
            // Its file says what is to be said.
            Some(_) => drop(self.found.remove(&index)),
            None => return self.announce(index, lease, holder).map(Some),
        }
        Ok(Some(Announced {
            directory: Arc::clone(&self.directory),
            name: file_name(index),
            lease,
        }))
    }

    /// The sockets of this lease were seen bound, and the broker died before it could forget that they were not.
    pub fn forget(&mut self, index: u32, lease: LeaseId) {
        if self.found.get(&index).is_some_and(|taint| taint.is_of(lease)) {
            self.found.remove(&index);
            self.directory.remove(&file_name(index));
        }
    }

    /// Says that a process is about to have an unbound socket of this device, until what this gives is dropped.
    ///
    /// # Errors
    ///
    /// What open(2) and write(2) say.
    pub fn announce(&self, index: u32, lease: LeaseId, holder: &Process) -> Result<Announced, Failure> {
        let name = file_name(index);
        let announced = Announced {
            directory: Arc::clone(&self.directory),
            name,
            lease,
        };
        announced.name_holder(holder)?;
        Ok(announced)
    }
}

/// A file that says who has an unbound socket; removed when dropped.
#[derive(Debug)]
pub struct Announced {
    directory: Arc<RunDirectory>,
    name: String,
    lease: LeaseId,
}

impl Announced {
    /// Says that another process is the holder.
    ///
    /// # Errors
    ///
    /// What open(2) and write(2) say.
    pub fn name_holder(&self, holder: &Process) -> Result<(), Failure> {
        let path = self.directory.path().join(&self.name);
        let record = Record {
            lease: Some(self.lease.0),
            pid: holder.pid(),
            start_ticks: holder.start_ticks(),
            boot: boot_id()?,
        };
        let text = serde_json::to_vec(&record)
            .map_err(|error| Failure::kernel("encode", path.display(), io::Error::from(error)))?;
        self.directory.write(&self.name, &text)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.directory.remove(&self.name);
    }
}

/// The process that a file names; `None` where it is gone.
///
/// # Errors
///
/// Where the file cannot be read or understood.
pub fn holder_in(directory: &RunDirectory, name: &str) -> io::Result<Option<Process>> {
    Ok(taint_in(directory, name)?.map(|taint| taint.holder))
}

fn taint_in(directory: &RunDirectory, name: &str) -> io::Result<Option<Taint>> {
    const MOST_BYTES: u64 = 4096;

    let record: Record = serde_json::from_slice(&directory.read(name, MOST_BYTES)?.text)?;
    if record.boot != boot_id().map_err(io::Error::other)? {
        return Ok(None);
    }
    let holder = Process::find(record.pid, record.start_ticks)?;
    let lease = record.lease.map(LeaseId);
    Ok(holder.map(|holder| Taint { holder, lease }))
}

/// Whether it is the file itself that says nothing.
fn is_nonsense(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn file_name(index: u32) -> String {
    format!("{UNBOUND}{index}")
}
