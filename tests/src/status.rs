//! Who a process is, and what it may do, as the kernel reports it in `/proc/PID/status`.

use std::fs;

use anyhow::{Context, Result};

/// The part of `/proc/PID/status` that is about rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved and filesystem uid.
    pub uids: [u32; 4],
    /// The same for gids.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Its five capability sets.
    pub capabilities: Capabilities,
    /// Whether exec can never give it more.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 a filter.
    pub seccomp: u8,
}

/// Capability sets, a bit for each number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Kept over exec, by files that want them.
    pub inheritable: u64,
    /// What may be raised.
    pub permitted: u64,
    /// What counts.
    pub effective: u64,
    /// What exec may give.
    pub bounding: u64,
    /// Kept over exec.
    pub ambient: u64,
}

impl Capabilities {
    /// None at all, in no set.
    pub const NONE: Self = Self {
        inheritable: 0,
        permitted: 0,
        effective: 0,
        bounding: 0,
        ambient: 0,
    };
}

impl Status {
    /// Of a process, that is of its first thread.
    pub fn of(pid: u32) -> Result<Self> {
        Self::read(&format!("/proc/{pid}/status"))
    }

    /// Of each thread of a process: its number, its name, its status.
    pub fn of_threads(pid: u32) -> Result<Vec<(u32, String, Self)>> {
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            let number = path
                .file_name()
                .and_then(|name| name.to_str())
                .context("a thread without number")?;
            let name = fs::read_to_string(path.join("comm"))?.trim_end().to_owned();
            threads.push((
                number.parse()?,
                name,
                Self::read(&path.join("status").display().to_string())?,
            ));
        }
        threads.sort_by_key(|(number, ..)| *number);
        Ok(threads)
    }

    /// Of the calling thread.
    pub fn of_this_thread() -> Result<Self> {
        Self::read("/proc/thread-self/status")
    }

    fn read(path: &str) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
        Self::parse(&text).with_context(|| path.to_owned())
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .with_context(|| format!("no line {name}"))
        };
        let numbers = |name| -> Result<Vec<u32>> {
            value(name)?
                .split_whitespace()
                .map(|number| Ok(number.parse()?))
                .collect()
        };
        let four = |name| -> Result<[u32; 4]> { Ok(numbers(name)?.as_slice().try_into()?) };
        let set = |name| -> Result<u64> { Ok(u64::from_str_radix(value(name)?, 16)?) };
        Ok(Self {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: numbers("Groups")?,
            capabilities: Capabilities {
                inheritable: set("CapInh")?,
                permitted: set("CapPrm")?,
                effective: set("CapEff")?,
                bounding: set("CapBnd")?,
                ambient: set("CapAmb")?,
            },
            no_new_privs: value("NoNewPrivs")? == "1",
            // Absent on kernels without it.
            seccomp: value("Seccomp").unwrap_or("0").parse()?,
        })
    }
}
