//! Where leases are written down, by the engine, as they come along.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::Failure;
use crate::lease::LeaseId;
use crate::numbers::Numbers;
use crate::record::{BEGINNING, MOST_BYTES, Record};
use crate::run_dir::{RunDirectory, boot_id};

/// The records of this broker's leases.
#[derive(Debug)]
pub struct Journal {
    directory: Arc<RunDirectory>,
    boot: Arc<str>,
    numbers: Numbers,
}

impl Journal {
    /// In the run directory, whose lock file is that. What a killed broker had begun to write and not finished is removed; it
    /// said nothing yet.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn open(run_dir: &Path, lock_file: File) -> Result<Self, Failure> {
        let directory = RunDirectory::open(run_dir)?;
        for name in directory.names(BEGINNING)? {
            if RunDirectory::is_unfinished(&name) {
                directory.remove(&name);
            }
        }
        let boot: Arc<str> = boot_id()?.into();
        Ok(Self {
            directory: Arc::new(directory),
            numbers: Numbers::new(lock_file, Arc::clone(&boot)),
            boot,
        })
    }

    /// The place for a lease that begins, whose number is thereby used up.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn begin(&mut self, lease: LeaseId) -> Result<Entry, Failure> {
        self.numbers.use_up(lease)?;
        Ok(self.entry(lease))
    }

    /// The place for one lease; nothing is written yet, or what another broker wrote is still there.
    pub fn entry(&self, lease: LeaseId) -> Entry {
        Entry {
            directory: Arc::clone(&self.directory),
            boot: Arc::clone(&self.boot),
            name: Record::file_name(lease),
        }
    }

    /// Sees to it that a file which was refused is not believed later, when somebody has repaired it: its lease is no more.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn set_aside(&self, file: &str) -> Result<(), Failure> {
        self.directory.rename(file, &Record::aside(file))
    }

    /// Where a file of that name is.
    pub fn path_of(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Removes the record of a lease that cannot be taken over.
    pub fn remove(&self, lease: LeaseId) {
        self.directory.remove(&Record::file_name(lease));
    }
}

/// The record of one lease; removed when dropped.
#[derive(Debug)]
pub struct Entry {
    directory: Arc<RunDirectory>,
    boot: Arc<str>,
    name: String,
}

impl Entry {
    /// The boot that records of now are of.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Writes it down.
    ///
    /// # Errors
    ///
    /// What the kernel says; what was written before stands.
    pub fn write(&self, record: &Record) -> Result<(), Failure> {
        let text = record.encode()?;
        // What would not be read is not written.
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MOST_BYTES {
            return Err(Failure::kernel("write", &self.name, Errno::FBIG));
        }
        self.directory.write(&self.name, &text)
    }

    /// Removes what is written, if anything is.
    pub fn remove(&self) {
        self.directory.remove(&self.name);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.remove();
    }
}
