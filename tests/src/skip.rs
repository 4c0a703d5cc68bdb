//! Why a test did not run. In CI a skip is a failure, unless a probe has shown that the kernel lacks what the test
//! is about.

use std::io::{self, Write};
use std::thread;

use anyhow::{Context, Result, bail};

/// Why a test is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// Something is missing that CI must have.
    Missing(String),
    /// The kernel does not have it: `probe` says what was tried and what came back.
    KernelLacks {
        /// What was tried, and the answer.
        probe: String,
    },
    /// This place does not have it, as who set it up knows: the test runs in another place, which has it.
    PlaceLacks(String),
}

/// The variable by which who sets a place up, such as the image of a virtual machine, tells what it does without:
/// names, parted by spaces.
const LACKS: &str = "XSK_E2E_IMAGE_LACKS";

impl From<&str> for Skip {
    fn from(reason: &str) -> Self {
        Self::Missing(reason.to_owned())
    }
}

impl From<String> for Skip {
    fn from(reason: String) -> Self {
        Self::Missing(reason)
    }
}

/// Where the suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ci,
    Elsewhere,
}

impl Skip {
    /// A program is not there: allowed where that was told.
    pub fn without(program: &'static str) -> Self {
        let told = std::env::var(LACKS).unwrap_or_default();
        if told.split_whitespace().any(|lacking| lacking == program) {
            Self::PlaceLacks(format!("{program} ({LACKS})"))
        } else {
            Self::Missing(format!("no {program}"))
        }
    }

    /// Why a test cannot run here that holds up others on its machine, if it cannot: one that was booted for the suite has
    /// the suite's variables on its kernel's command line, where nobody inside can have put them.
    pub fn unless_the_machine_is_ours() -> Result<(), Self> {
        let told = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        match told.split_whitespace().any(|word| word.starts_with("XSK_E2E_")) {
            true => Ok(()),
            false => Err(Self::PlaceLacks(
                "machine to itself, which this test would hold up: `cargo xtask vm` boots some (XSK_E2E_… in /proc/cmdline)"
                    .to_owned(),
            )),
        }
    }

    /// Prints the skip; in CI an undeclared one is an error.
    pub fn report(&self) -> Result<()> {
        let thread = thread::current();
        let line = self.line(thread.name().unwrap_or("unnamed"), Place::here())?;
        // Past libtest's capturing, which would hide the line of a test that passed.
        writeln!(io::stderr(), "{line}").context("telling of a skip")
    }

    fn line(&self, test: &str, place: Place) -> Result<String> {
        match self {
            Self::Missing(reason) if place == Place::Ci => {
                bail!("SKIP {test}: {reason}, which CI must have")
            }
            Self::Missing(reason) => Ok(format!("SKIP {test}: {reason}")),
            Self::PlaceLacks(what) => Ok(format!("SKIP {test}: this place has no {what}")),
            Self::KernelLacks { probe } => Ok(format!("SKIP {test}: this kernel lacks it: {probe}")),
        }
    }
}

impl Place {
    fn here() -> Self {
        let told = |name| std::env::var(name).is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"));
        if told("CI") || told("XSK_CI") {
            Self::Ci
        } else {
            Self::Elsewhere
        }
    }
}

/// Leaves the test with a reason: `skip!("no /dev/net/tun")`, `skip!(Skip::KernelLacks { probe: … })`.
#[macro_export]
macro_rules! skip {
    ($reason:expr) => {{
        if let Err(error) = $crate::skip::Skip::from($reason).report() {
            panic!("{error}");
        }
        return;
    }};
}

/// Everything here needs root; says so in one line.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("the end-to-end suite needs root: run `cargo xtask test`, which asks sudo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_probed_lack_may_be_skipped_in_ci() {
        let missing = Skip::from("no such tool");
        let lacking = Skip::KernelLacks {
            probe: "SO_PEERPIDFD: ENOPROTOOPT".to_owned(),
        };
        assert_eq!(
            missing.line("a::b", Place::Elsewhere).unwrap(),
            "SKIP a::b: no such tool"
        );
        assert!(missing.line("a::b", Place::Ci).is_err());
        let line = "SKIP a::b: this kernel lacks it: SO_PEERPIDFD: ENOPROTOOPT";
        let elsewhere = Skip::PlaceLacks("python3".to_owned());
        assert_eq!(
            elsewhere.line("a::b", Place::Ci).unwrap(),
            "SKIP a::b: this place has no python3"
        );
        for place in [Place::Ci, Place::Elsewhere] {
            assert_eq!(lacking.line("a::b", place).unwrap(), line);
        }
    }
}
