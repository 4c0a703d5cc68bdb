//! What the daemon weighs when it has nothing to do.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::binaries;
use serde::Serialize;

/// Of the real release build.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Footprint {
    /// The size of the program's file.
    pub(crate) binary_bytes: u64,
    /// `VmRSS`: pages in memory, those of the program's file included.
    pub(crate) resident_kib: u64,
    /// `RssAnon`: pages that are the process's alone.
    pub(crate) anonymous_kib: u64,
}

impl Footprint {
    /// Of a broker that has started and answered, and served nobody.
    pub(crate) fn of_idle(pid: u32) -> Result<Self> {
        thread::sleep(Duration::from_secs(1));
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).context(path)?;
        let kib = |name: &str| -> Result<u64> {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = value.and_then(|value| value.trim().strip_suffix(" kB"));
            Ok(number.with_context(|| format!("no line {name}"))?.parse()?)
        };
        Ok(Self {
            binary_bytes: fs::metadata(binaries::broker()?)?.len(),
            resident_kib: kib("VmRSS")?,
            anonymous_kib: kib("RssAnon")?,
        })
    }
}
