//! Huge pages in the machine's pool, for as long as a test needs them.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that were added to the pool, which is empty again when this is dropped. Its lock (of the pool's file) is the
/// machine's: one test at a time has huge pages, of another run of the suite as well.
#[derive(Debug)]
pub struct HugePages {
    _locked: File,
}

impl HugePages {
    /// Adds them.
    ///
    /// # Errors
    ///
    /// Why they cannot be had: memory that is in too small pieces, or a pool that somebody else has filled.
    pub fn add(pages: u64) -> Result<Self, String> {
        let told = |error: std::io::Error| format!("{POOL}: {error}");
        let locked = File::open(POOL).map_err(told)?;
        flock(&locked, FlockOperation::LockExclusive).map_err(|error| told(error.into()))?;
        let had = fs::read_to_string(POOL).map_err(told)?;
        if had.trim() != "0" {
            return Err(format!(
                "{POOL} is {} already, and others may be using them",
                had.trim()
            ));
        }
        fs::write(POOL, pages.to_string()).map_err(told)?;
        let pool = Self { _locked: locked };
        match pool.free() {
            free if free == pages => Ok(pool),
            free => Err(format!("{free} of {pages} huge pages could be had")),
        }
    }

    /// How many of them nobody uses, and none where the kernel does not say.
    pub fn free(&self) -> u64 {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        memory
            .lines()
            .find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(POOL, "0") {
            eprintln!("{POOL}: {error}");
        }
    }
}
