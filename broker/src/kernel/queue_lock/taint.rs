//! What a crash of the broker leaves under placeholders: they die with it, and a socket that was out unbound can be bound
//! to any queue of its device that nobody has, now or later. Such a device is _tainted_: no socket leaves unbound there
//! until the process that had it is gone.
//!
//! A small file in the run directory says so for each device, from before the socket leaves until it was seen bound or
//! is retired. Whoever starts next reads them. **Invariant**: a file of which that cannot be made out taints its device, until
//! somebody has looked and removed it. Every path goes through the directory's fd, taken while still root.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::identity::Process;
use crate::lease::LeaseId;
use crate::run_dir::{RunDirectory, boot_id};

/// What the names begin with; the device's index follows.
const UNBOUND: &str = "unbound-";

/// The directory of these files, and what was found there.
#[derive(Debug)]
pub struct Taints {
    directory: Arc<RunDirectory>,
    /// By the index of a device.
    found: HashMap<u32, Taint>,
}

/// What a device is tainted by.
#[derive(Debug)]
enum Taint {
    Held {
        holder: Process,
        /// Whose socket it is; earlier versions have not said so.
        lease: Option<LeaseId>,
    },
    /// Why the file says nothing.
    Damaged(String),
}

/// The same, to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaintedBy {
    /// The process that may have an unbound socket.
    Process(u32),
    /// A file that does not say which process that is.
    File {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// What one of these files says.
#[derive(Debug)]
pub enum Found {
    /// It taints the device of that index.
    Taints(u32, TaintedBy),
    /// The process that it names is gone.
    Gone,
}

impl Taint {
    fn is_of(&self, lease: LeaseId) -> bool {
        matches!(self, Self::Held { lease: Some(of), .. } if *of == lease)
    }

    fn told(&self, directory: &RunDirectory, index: u32) -> TaintedBy {
        match self {
            Self::Held { holder, .. } => TaintedBy::Process(holder.pid()),
            Self::Damaged(why) => TaintedBy::File {
                path: directory.path().join(file_name(index)),
                why: why.clone(),
            },
        }
    }
}

impl TaintedBy {
    /// The process, or the path of the file.
    pub fn split(self) -> (Option<u32>, Option<String>) {
        match self {
            Self::Process(pid) => (Some(pid), None),
            Self::File { path, .. } => (None, Some(path.display().to_string())),
        }
    }
}

impl std::fmt::Display for TaintedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid} is gone, which had one when a broker crashed"),
            Self::File { path, why } => {
                let path = path.display();
                write!(
                    f,
                    "{path} is gone, which was to say which process had one when a broker crashed, and does not ({why}): see that \
                     no process has one any more, then remove the file"
                )
            }
        }
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
    /// What the kernel says, also where it does not say whether a process is gone.
    pub fn read(run_dir: &Path) -> Result<Self, Failure> {
        let directory = Arc::new(RunDirectory::open(run_dir)?);
        let mut found = HashMap::new();
        for (name, index) in files(&directory)? {
            match taint_in(&directory, &name)? {
                Some(taint) => drop(found.insert(index, taint)),
                None => directory.remove(&name),
            }
        }
        Ok(Self { directory, found })
    }

    /// What a device is tainted by.
    pub fn of(&mut self, index: u32) -> Option<TaintedBy> {
        let name = file_name(index);
        let taint = self.found.get(&index)?;
        let is_over = match taint {
            Taint::Held { holder, .. } => holder.has_exited(),
            Taint::Damaged(_) => !self.directory.has(&name),
        };
        if !is_over {
            return Some(taint.told(&self.directory, index));
        }
        self.found.remove(&index);
        self.directory.remove(&name);
        None
    }

    /// Tells of the devices that are tainted.
    pub fn tell(&self) {
        for (index, taint) in &self.found {
            let by = taint.told(&self.directory, *index);
            tracing::warn!(ifindex = index, "no sockets leave this device unbound until {by}");
        }
    }

    /// The broker has the sockets of this lease at hand, and confines them again: they taint nothing. As [`Self::announce`]
    /// from then on. Or by what else the device is tainted.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn resume(
        &mut self,
        index: u32,
        lease: LeaseId,
        holder: &Process,
    ) -> Result<Result<Announced, TaintedBy>, Failure> {
        match self.found.get(&index) {
            Some(taint) if !taint.is_of(lease) => return Ok(Err(taint.told(&self.directory, index))),
            // Its file says what is to be said.
            Some(_) => drop(self.found.remove(&index)),
            None => return self.announce(index, lease, holder).map(Ok),
        }
        Ok(Ok(Announced {
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

/// What such files of a run directory say, by their names, for who changes nothing.
///
/// # Errors
///
/// As [`Taints::read`].
pub fn look(directory: &RunDirectory) -> Result<HashMap<String, Found>, Failure> {
    let mut found = HashMap::new();
    for (name, index) in files(directory)? {
        let said = match taint_in(directory, &name)? {
            Some(taint) => Found::Taints(index, taint.told(directory, index)),
            None => Found::Gone,
        };
        found.insert(name, said);
    }
    Ok(found)
}

/// Their names, each with the index of its device.
fn files(directory: &RunDirectory) -> Result<Vec<(String, u32)>, Failure> {
    let index = |name: &str| {
        let index = name.strip_prefix(UNBOUND)?.parse().ok()?;
        (file_name(index) == name).then_some(index)
    };
    let names = directory.names(UNBOUND)?.into_iter();
    Ok(names
        .filter_map(|name| index(&name).map(|index| (name, index)))
        .collect())
}

/// What a file says; `None`: the process that it names is gone.
fn taint_in(directory: &RunDirectory, name: &str) -> Result<Option<Taint>, Failure> {
    const MOST_BYTES: u64 = 4096;

    let text = directory.read(name, MOST_BYTES).map(|file| file.text);
    let record = text.and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
    let record = match record {
        Ok(record) => record,
        Err(error) => return Ok(Some(Taint::Damaged(error.to_string()))),
    };
    if record.boot != boot_id()? {
        return Ok(None);
    }
    let holder = Process::find(record.pid, record.start_ticks)
        .map_err(|source| Failure::kernel("look for", format!("process {}", record.pid), source))?;
    let lease = record.lease.map(LeaseId);
    Ok(holder.map(|holder| Taint::Held { holder, lease }))
}

fn file_name(index: u32) -> String {
    format!("{UNBOUND}{index}")
}
