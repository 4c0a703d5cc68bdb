//! What a crash of the broker leaves under placeholders: they die with it, and a socket that was out unbound can be bound
//! to any queue of its device that nobody has, now or later. Such a device is _tainted_: no socket leaves unbound there
//! until the process that had it is gone.
//!
//! A small file in the run directory says so for each device, from before the socket leaves until it was seen bound or
//! is retired. Whoever starts next reads them. Every path goes through the directory's fd, taken while still root.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, chain};
use crate::identity::Process;

/// What the names begin with; the device's index follows.
const UNBOUND: &str = "unbound-";

/// The directory of these files, and what was found there.
#[derive(Debug)]
pub struct Taints {
    directory: Arc<Directory>,
    holders: HashMap<u32, Process>,
}

#[derive(Debug)]
struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Who has an unbound socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
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
    /// What the kernel says. A file that cannot be read or understood taints nothing and is told in the log: only a
    /// broker writes there, whole.
    pub fn read(run_dir: &Path) -> Result<Self, Failure> {
        let failed = |call, source: io::Error| Failure::kernel(call, run_dir.display(), source);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd =
            rustix::fs::open(run_dir, flags, Mode::empty()).map_err(|errno| failed("open", errno.into()))?;
        let directory = Arc::new(Directory {
            fd,
            path: run_dir.to_owned(),
        });
        let mut holders = HashMap::new();
        for entry in Dir::read_from(&directory.fd).map_err(|errno| failed("readdir", errno.into()))? {
            let entry = entry.map_err(|errno| failed("readdir", errno.into()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(index) = name.strip_prefix(UNBOUND).and_then(|index| index.parse().ok()) else {
                continue;
            };
            match directory.holder(&name) {
                Ok(Some(holder)) => {
                    tracing::warn!(
                        ifindex = index,
                        pid = holder.pid(),
                        "a broker that crashed had given this process a socket that may still be unbound: no more of that \
                         kind on the device until it is gone"
                    );
                    holders.insert(index, holder);
                }
                Ok(None) => directory.remove(&name),
                Err(error) => {
                    tracing::warn!(name, %error, "cannot make out what a broker that crashed has left");
                    directory.remove(&name);
                }
            }
        }
        Ok(Self { directory, holders })
    }

    /// The process by which a device is tainted.
    pub fn holder(&mut self, index: u32) -> Option<u32> {
        let holder = self.holders.get(&index)?;
        if !holder.has_exited() {
            return Some(holder.pid());
        }
        self.holders.remove(&index);
        self.directory.remove(&file_name(index));
        None
    }

    /// Says that a process is about to have an unbound socket of this device, until what this gives is dropped.
    ///
    /// # Errors
    ///
    /// What open(2) and write(2) say.
    pub fn announce(&self, index: u32, holder: &Process) -> Result<Announced, Failure> {
        let name = file_name(index);
        let announced = Announced {
            directory: Arc::clone(&self.directory),
            name,
        };
        announced.name_holder(holder)?;
        Ok(announced)
    }
}

/// A file that says who has an unbound socket; removed when dropped.
#[derive(Debug)]
pub struct Announced {
    directory: Arc<Directory>,
    name: String,
}

impl Announced {
    /// Says that another process is the holder.
    ///
    /// # Errors
    ///
    /// What open(2) and write(2) say.
    pub fn name_holder(&self, holder: &Process) -> Result<(), Failure> {
        let path = self.directory.path.join(&self.name);
        let failed = |call, source: io::Error| Failure::kernel(call, path.display(), source);
        let record = Record {
            pid: holder.pid(),
            start_ticks: holder.start_ticks(),
            boot: boot_id().map_err(|source| failed("read the boot id for", source))?,
        };
        let text = serde_json::to_vec(&record).map_err(|error| failed("encode", error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Whole or not at all, wherever we crash.
        let new = format!("{}.new", self.name);
        let file = openat(&self.directory.fd, &new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("open", errno.into()))?;
        File::from(file)
            .write_all(&text)
            .map_err(|source| failed("write", source))?;
        renameat(&self.directory.fd, &new, &self.directory.fd, &self.name)
            .map_err(|errno| failed("rename", errno.into()))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.directory.remove(&self.name);
    }
}

impl Directory {
    /// The process that a file names; `None` where it is gone.
    fn holder(&self, name: &str) -> io::Result<Option<Process>> {
        const MOST_BYTES: u64 = 4096;

        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.fd, name, flags, Mode::empty())?);
        let mut text = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut text)?;
        let record: Record = serde_json::from_slice(&text)?;
        if record.boot != boot_id()? {
            return Ok(None);
        }
        Ok(Process::find(record.pid, record.start_ticks))
    }

    fn remove(&self, name: &str) {
        if let Err(errno) = unlinkat(&self.fd, name, AtFlags::empty()) {
            let failure = Failure::kernel("unlink", self.path.join(name).display(), errno);
            tracing::warn!("{}", chain(&failure));
        }
    }
}

fn file_name(index: u32) -> String {
    format!("{UNBOUND}{index}")
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
