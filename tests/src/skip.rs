//! Why a test did not run. In CI a skip is a failure, unless a probe has shown that the kernel lacks what the test
//! is about.

use std::thread;

use anyhow::{Result, bail};

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
}

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

impl Skip {
    /// Prints the skip; in CI an undeclared one is an error.
    pub fn report(&self) -> Result<()> {
        let thread = thread::current();
        let test = thread.name().unwrap_or("unnamed");
        match self {
            Self::Missing(reason) if in_ci() => bail!("SKIP {test}: {reason}, which CI must have"),
            Self::Missing(reason) => print_line(&format!("SKIP {test}: {reason}")),
            Self::KernelLacks { probe } => print_line(&format!("SKIP {test}: this kernel lacks it: {probe}")),
        }
        Ok(())
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

fn in_ci() -> bool {
    ["CI", "XSK_CI"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false")))
}

/// Past libtest's capturing, which would hide the line of a test that passed.
fn print_line(line: &str) {
    use std::io::Write;
    if writeln!(std::io::stderr(), "{line}").is_err() {
        // There is nobody to tell.
    }
}
