//! What came of each test in one virtual machine, read from its serial line as Rust's harness prints it.
//!
//! One test runs at a time: so the time between two results is the later one's, and a guest that dies names the
//! test that it died in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What came of one test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped {
        reason: String,
    },
    /// The machine ended, or was ended, before the test did.
    Lost,
}

/// One test's row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TestResult {
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    pub(super) seconds: f64,
}

/// Something that a test found out about the kernel it ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) value: String,
}

/// Reads lines and keeps what they say.
#[derive(Debug)]
pub(super) struct Verdict {
    /// By name.
    pub(super) tests: BTreeMap<String, TestResult>,
    /// What tests found out about the kernel, in their order.
    pub(super) facts: Vec<Fact>,
    /// What the harness printed of the tests that failed.
    pub(super) failures: String,
    /// How the init program says that the tests ended.
    pub(super) ended: Option<String>,
    current: Option<String>,
    since: Instant,
    skips: BTreeMap<String, String>,
    in_failures: bool,
}

impl Verdict {
    pub(super) fn new() -> Self {
        Self {
            tests: BTreeMap::new(),
            facts: Vec::new(),
            failures: String::new(),
            ended: None,
            current: None,
            since: Instant::now(),
            skips: BTreeMap::new(),
            in_failures: false,
        }
    }

    /// Takes a line in.
    pub(super) fn read(&mut self, line: &str, now: Instant) {
        if let Some(end) = line.strip_prefix("vm-init: tests ended: ") {
            self.ended = Some(end.to_owned());
        } else if line.starts_with("running ") && line.ends_with(" tests") {
            self.since = now;
        } else if line == "failures:" {
            self.in_failures = true;
        } else if line.starts_with("test result: ") {
            self.in_failures = false;
        } else if let Some((name, rest)) = started(line) {
            self.current = Some(name.to_owned());
            self.take(rest, now);
        } else {
            self.take(line, now);
        }
        if self.in_failures {
            self.failures.push_str(line);
            self.failures.push('\n');
        }
    }

    /// The machine has ended: whatever was running then is lost.
    pub(super) fn finish(&mut self, now: Instant) {
        if let Some(name) = self.current.take() {
            self.result(name, Outcome::Lost, now);
        }
    }

    /// Whether any test failed or was lost.
    pub(super) fn failed(&self) -> bool {
        let bad = |result: &TestResult| matches!(result.outcome, Outcome::Failed | Outcome::Lost);
        self.tests.values().any(bad)
    }

    /// A result may stand behind the test's name, or alone where the test itself printed something.
    fn take(&mut self, line: &str, now: Instant) {
        if let Some((name, reason)) = line.strip_prefix("SKIP ").and_then(|skip| skip.split_once(": ")) {
            self.skips.insert(name.to_owned(), reason.to_owned());
            return;
        }
        if let Some((name, value)) = line.strip_prefix("FACT ").and_then(|fact| fact.split_once(": ")) {
            let (name, value) = (name.to_owned(), value.to_owned());
            self.facts.push(Fact { name, value });
            return;
        }
        let outcome = match line {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            _ if line.starts_with("ignored") => Outcome::Skipped {
                reason: "ignored".to_owned(),
            },
            _ => return,
        };
        let Some(name) = self.current.take() else { return };
        let outcome = match (outcome, self.skips.remove(&name)) {
            (Outcome::Passed, Some(reason)) => Outcome::Skipped { reason },
            (outcome, _) => outcome,
        };
        self.result(name, outcome, now);
    }

    fn result(&mut self, name: String, outcome: Outcome, now: Instant) {
        let seconds = now.saturating_duration_since(self.since);
        self.since = now;
        let seconds = Duration::from_millis(seconds.as_millis().try_into().unwrap_or(u64::MAX)).as_secs_f64();
        self.tests.insert(name, TestResult { outcome, seconds });
    }
}

/// `test NAME ... `, and what follows.
fn started(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.split(" - ").next()?;
    (!name.contains(' ')).then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Verdict {
        let mut verdict = Verdict::new();
        let now = verdict.since;
        for (second, line) in (0..).zip(text.lines()) {
            verdict.read(line, now + Duration::from_secs(second));
        }
        verdict.finish(now + Duration::from_secs(60));
        verdict
    }

    #[test]
    fn results_skips_and_seconds_are_read() {
        let verdict = verdict(
            "running 4 tests\ntest a::b ... ok\ntest c ... FACT SO_X: no\nFAILED\ntest d ... SKIP d: this kernel lacks it: x\nok\n\
             test e - should panic ... ok\n\nfailures:\n\n---- c stdout ----\nwhy\n\nfailures:\n    c\n\n\
             test result: FAILED. 3 passed; 1 failed;\nvm-init: tests ended: exit status: 101",
        );
        let of = |name: &str| verdict.tests[name].outcome.clone();
        assert_eq!(
            [of("a::b"), of("c"), of("e")],
            [Outcome::Passed, Outcome::Failed, Outcome::Passed]
        );
        let reason = "this kernel lacks it: x".to_owned();
        assert_eq!(of("d"), Outcome::Skipped { reason });
        let (name, value) = ("SO_X".to_owned(), "no".to_owned());
        assert_eq!(verdict.facts, [Fact { name, value }]);
        assert!((verdict.tests["d"].seconds - 2.0).abs() < f64::EPSILON);
        assert!(verdict.failures.contains("---- c stdout ----\nwhy"));
        assert_eq!(verdict.ended.as_deref(), Some("exit status: 101"));
        assert!(verdict.failed());
    }

    #[test]
    fn a_test_that_the_machine_died_in_is_lost() {
        let verdict = verdict("running 2 tests\ntest a ... ok\ntest b ... ");
        assert_eq!(verdict.tests["b"].outcome, Outcome::Lost);
        assert!(verdict.failed() && verdict.ended.is_none());
    }
}
