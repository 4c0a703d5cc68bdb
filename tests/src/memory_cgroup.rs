//! A cgroup of its own, to see whose memory it is: of version 1 where the memory controller is there, else of version 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A cgroup; removed when dropped, after whoever is in it has moved or ended.
#[derive(Debug)]
pub struct MemoryCgroup {
    path: PathBuf,
    name: String,
    usage: &'static str,
}

/// There is no memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoController;

impl MemoryCgroup {
    /// Makes one.
    pub fn new(name: &str) -> Result<Result<Self, NoController>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xsk-e2e-{}-{number}-{name}", std::process::id());
        let Some((root, usage)) = root() else {
            return Ok(Err(NoController));
        };
        let path = root.join(&name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Ok(Self { path, name, usage }))
    }

    /// Its name, a part of its line in `/proc/PID/cgroup`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves a process there, with what it touches from now on.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("moving a process to a cgroup")
    }

    /// What is charged to it. The kernel counts in batches for each CPU, so it is right within some pages.
    pub fn usage_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(self.path.join(self.usage))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Somebody who was killed is gone in a moment; whoever lives on goes back to where all are.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            if let Some(root) = self.path.parent() {
                for pid in left.lines() {
                    // It may have ended meanwhile.
                    fs::write(root.join("cgroup.procs"), pid).ok();
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where cgroups with a memory controller are made, and the file that tells their usage.
fn root() -> Option<(&'static Path, &'static str)> {
    let (one, two) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
    if one.join("memory.usage_in_bytes").exists() {
        return Some((one, "memory.usage_in_bytes"));
    }
    let controllers = fs::read_to_string(two.join("cgroup.subtree_control")).ok()?;
    let has_memory = controllers.split_whitespace().any(|name| name == "memory");
    has_memory.then_some((two, "memory.current"))
}
