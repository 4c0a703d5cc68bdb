//! What came of the tests: each harness's output as it comes, and at the end all counts, failures and skips.
//!
//! The harness is Rust's own, in its human form: its JSON is unstable. Read are the lines `test NAME ...
//! FAILED` and `test result: …`, and `SKIP NAME: reason`, which our tests print when they cannot run.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// One test harness: a package's test binary, or all of one kind.
#[derive(Debug)]
pub(super) struct Suite {
    name: String,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<Skip>,
    elapsed: Duration,
}

/// A test that did not run.
#[derive(Debug, PartialEq, Eq)]
struct Skip {
    test: String,
    reason: String,
}

#[derive(Debug, Default)]
pub(super) struct Report {
    suites: Vec<Suite>,
}

impl Suite {
    pub(super) fn new(package: &str, target: &str) -> Self {
        // A library's own tests are a target of the package's name, spelt as an identifier.
        let own = package.replace('-', "_") == target.replace('-', "_");
        let name = if own {
            package.to_owned()
        } else {
            format!("{package}/{target}")
        };
        Self {
            name,
            passed: 0,
            failed: Vec::new(),
            skipped: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// Takes one line of the harness's output in.
    fn read(&mut self, line: &str) {
        if let Some((test, reason)) = line.strip_prefix("SKIP ").and_then(|skip| skip.split_once(": ")) {
            let skip = Skip {
                test: test.to_owned(),
                reason: reason.to_owned(),
            };
            // A test that failed after it said so shows its output a second time.
            if !self.skipped.contains(&skip) {
                self.skipped.push(skip);
            }
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|test| test.strip_suffix(" ... FAILED"))
        {
            self.failed.push(test.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
        }
    }

    /// A test that skips itself has passed, as far as its harness knows.
    fn finish(&mut self, success: bool, status: &str) {
        self.passed = self.passed.saturating_sub(self.skipped.len());
        if !success && self.failed.is_empty() {
            self.failed.push(format!("(the whole suite: {status})"));
        }
    }
}

/// The number before `word` in the harness's result line: `ok. 4 passed; 0 failed; …`.
fn count(line: &str, word: &str) -> usize {
    line.split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or_default()
}

impl Report {
    /// Runs a harness, shows what it prints, and takes it in.
    pub(super) fn run(&mut self, mut suite: Suite, command: &mut Command) -> Result<()> {
        println!("\n== {}", suite.name);
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: the tests cannot be started", suite.name))?;
        let stderr = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(|| show(stderr, Channel::Error)));
        let mut lines = child
            .stdout
            .take()
            .map(|stdout| show(stdout, Channel::Output))
            .unwrap_or_default();
        lines.extend(stderr.and_then(|thread| thread.join().ok()).unwrap_or_default());
        let status = child
            .wait()
            .with_context(|| format!("{}: the tests cannot be waited for", suite.name))?;
        for line in &lines {
            suite.read(line);
        }
        suite.finish(status.success(), &status.to_string());
        suite.elapsed = started.elapsed();
        self.suites.push(suite);
        Ok(())
    }

    /// Notes a harness that was not run at all.
    pub(super) fn skip(&mut self, mut suite: Suite, reason: &str) {
        println!("\n== {}: skipped, {reason}", suite.name);
        suite.skipped.push(Skip {
            test: "(the whole suite)".to_owned(),
            reason: reason.to_owned(),
        });
        self.suites.push(suite);
    }

    pub(super) fn failed(&self) -> bool {
        self.suites.iter().any(|suite| !suite.failed.is_empty())
    }
}

#[derive(Clone, Copy)]
enum Channel {
    Output,
    Error,
}

/// Shows lines as they come and returns them.
fn show(from: impl Read, channel: Channel) -> Vec<String> {
    let mut lines = Vec::new();
    // What passing tests printed is asked for because of the skips in it, and shown only so far.
    let mut in_successes = false;
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        in_successes = match line.as_str() {
            "successes:" => true,
            "failures:" => false,
            _ => in_successes && !line.starts_with("test result: "),
        };
        match channel {
            _ if in_successes && !line.starts_with("SKIP ") => {}
            Channel::Output => println!("{line}"),
            Channel::Error => eprintln!("{line}"),
        }
        lines.push(line);
    }
    lines
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .suites
            .iter()
            .map(|suite| suite.name.len())
            .max()
            .unwrap_or_default();
        writeln!(formatter, "{:width$}  passed  failed  skipped  seconds", "suite")?;
        let ran = |suite: &&Suite| suite.passed + suite.failed.len() + suite.skipped.len() > 0;
        for Suite {
            name,
            passed,
            failed,
            skipped,
            elapsed,
        } in self.suites.iter().filter(ran)
        {
            let (failed, skipped) = (failed.len(), skipped.len());
            let seconds = elapsed.as_secs_f64();
            writeln!(
                formatter,
                "{name:width$}  {passed:6}  {failed:6}  {skipped:7}  {seconds:7.1}"
            )?;
        }
        for suite in &self.suites {
            for Skip { test, reason } in &suite.skipped {
                writeln!(formatter, "skipped: {} {test}: {reason}", suite.name)?;
            }
        }
        for suite in &self.suites {
            for test in &suite.failed {
                writeln!(formatter, "FAILED: {} {test}", suite.name)?;
            }
        }
        let total = |count: fn(&Suite) -> usize| self.suites.iter().map(count).sum::<usize>();
        let passed = total(|suite| suite.passed);
        let failed = total(|suite| suite.failed.len());
        let skipped = total(|suite| suite.skipped.len());
        write!(formatter, "{passed} passed, {failed} failed, {skipped} skipped ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(output: &str) -> Suite {
        let mut suite = Suite::new("e2e", "e2e");
        output.lines().for_each(|line| suite.read(line));
        suite
    }

    #[test]
    fn counts_failures_and_skips_are_read_from_the_harness() {
        let mut suite = suite(
            "test denied ... ok\ntest busy ... FAILED\ntest zero_copy ... ok\n\
             SKIP zero_copy: veth has no zero-copy: only in a virtual machine\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.07s",
        );
        suite.finish(false, "exit status: 101");
        assert_eq!(
            (suite.passed, suite.failed.as_slice()),
            (1, ["busy".to_owned()].as_slice())
        );
        let reason = "veth has no zero-copy: only in a virtual machine".to_owned();
        assert_eq!(
            suite.skipped,
            [Skip {
                test: "zero_copy".to_owned(),
                reason
            }]
        );
    }

    #[test]
    fn a_harness_that_dies_is_a_failure() {
        let mut suite = suite("test denied ... ok");
        suite.finish(false, "signal: 11");
        assert_eq!(suite.failed, ["(the whole suite: signal: 11)"]);
    }

    #[test]
    fn results_of_several_packages_add_up() {
        let two = "test result: ok. 4 passed; 0 failed\ntest result: ok. 10 passed; 0 failed";
        assert_eq!(suite(two).passed, 14);
    }
}
