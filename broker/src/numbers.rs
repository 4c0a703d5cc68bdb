//! The numbers of leases: none is used twice in one boot of the machine, whatever becomes of the broker meanwhile, so that a
//! `revoke` of a number that somebody has noted never meets another lease.
//!
//! The greatest one that may have been given stands in the lock file of the run directory, with the boot that it is of. It is
//! written in one write of always the same length, ahead of its use, and for many numbers at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::Failure;
use crate::lease::LeaseId;
use crate::run_dir::RunDirectory;

/// The file in the run directory that is locked while a broker runs.
pub const LOCK_FILE: &str = "lock";

/// How many are taken at once.
const AT_ONCE: u64 = 64;

/// Which numbers may be given.
#[derive(Debug)]
pub struct Numbers {
    file: File,
    boot: Arc<str>,
    through: u64,
}

impl Numbers {
    /// Written to the lock file.
    pub fn new(lock_file: File, boot: Arc<str>) -> Self {
        Self {
            file: lock_file,
            boot,
            through: 0,
        }
    }

    /// Sees to it that this number is not given again.
    ///
    /// # Errors
    ///
    /// What write(2) says; the number is not to be used then.
    pub fn use_up(&mut self, lease: LeaseId) -> Result<(), Failure> {
        if lease.0 <= self.through {
            return Ok(());
        }
        let through = lease.0.saturating_add(AT_ONCE - 1);
        self.file
            .write_all_at(format!("{} {through:020}\n", self.boot).as_bytes(), 0)
            .map_err(|source| Failure::kernel("write", LOCK_FILE, source))?;
        self.through = through;
        Ok(())
    }
}

/// The greatest number that a broker before this one may have given in this boot; 0 where it says nothing of that.
pub fn used(directory: &RunDirectory, boot: &str) -> u64 {
    const MOST_BYTES: u64 = 128;

    let file = directory.read(LOCK_FILE, MOST_BYTES);
    let text = file.map(|file| String::from_utf8_lossy(&file.text).into_owned());
    text.ok()
        .and_then(|text| text.trim_end().strip_prefix(boot)?.trim_start().parse().ok())
        .unwrap_or(0)
}
