//! How often functions of the kernel are called: kprobes by way of tracefs (Documentation/trace/kprobetrace.rst), the
//! only witness of what a driver does that is not the driver's own word.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
/// The group that our probes are in.
const GROUP: &str = "xsk_e2e";

/// Counts calls of some functions until it is dropped.
#[derive(Debug)]
pub struct CallCounts {
    functions: Vec<String>,
}

impl CallCounts {
    /// Whether this kernel can count.
    pub fn are_there() -> bool {
        Path::new(TRACEFS).join("kprobe_events").exists()
    }

    /// Probes these functions. One that the kernel does not have under that name, since it was inlined for one, is not
    /// among the counts.
    pub fn of(functions: &[&str]) -> Result<Self> {
        let mut counts = Self {
            functions: Vec::new(),
        };
        for name in functions {
            if write("kprobe_events", &format!("p:{GROUP}/{name} {name}")).is_ok() {
                counts.functions.push((*name).to_owned());
            }
        }
        if !counts.functions.is_empty() {
            write(&format!("events/{GROUP}/enable"), "1")?;
        }
        Ok(counts)
    }

    /// How often each was called until now.
    pub fn now(&self) -> Result<BTreeMap<String, u64>> {
        let profile = Path::new(TRACEFS).join("kprobe_profile");
        let text = fs::read_to_string(&profile).with_context(|| profile.display().to_string())?;
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(hits)) = (words.next(), words.next()) else {
                continue;
            };
            if self.functions.iter().any(|function| function == name) {
                counts.insert(name.to_owned(), hits.parse()?);
            }
        }
        Ok(counts)
    }
}

impl Drop for CallCounts {
    fn drop(&mut self) {
        // What stays only counts, and tells nobody.
        write(&format!("events/{GROUP}/enable"), "0").ok();
        for name in &self.functions {
            write("kprobe_events", &format!("-:{GROUP}/{name}")).ok();
        }
    }
}

fn write(file: &str, text: &str) -> Result<()> {
    let path = Path::new(TRACEFS).join(file);
    let context = || format!("writing {text:?} to {}", path.display());
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)
}
