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

    /// Probes every function of a module for whose name `wanted` says so. A function that was inlined is not there.
    pub fn of_module(module: &str, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let symbols = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
        let suffix = format!("[{module}]");
        let mut functions: Vec<String> = symbols
            .lines()
            .filter_map(|line| {
                let [_, kind, name, of] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                    return None;
                };
                let is_function = kind.eq_ignore_ascii_case("t") && of == suffix;
                (is_function && plain(name) && wanted(name)).then(|| name.to_owned())
            })
            .collect();
        functions.sort();
        functions.dedup();
        let mut counts = Self {
            functions: Vec::new(),
        };
        for name in functions {
            // Some may not be probed; whoever needs them finds them missing among the counts.
            if write("kprobe_events", &format!("p:{GROUP}/{name} {name}")).is_ok() {
                counts.functions.push(name);
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

/// `name.isra.0` and the like cannot be an event's name.
fn plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
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
