//! The one table: a row for each test, a column for each kernel, seconds in the cells; below it every reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use serde::Serialize;

use super::guest::End;
use super::verdict::{Fact, Outcome, TestResult};

/// What came of one kernel.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) machine: &'static str,
    pub(super) release: String,
    pub(super) seconds: f64,
    /// Why the run as a whole is no success, beside the tests that failed.
    pub(super) trouble: Option<String>,
    pub(super) tests: BTreeMap<String, TestResult>,
    pub(super) facts: Vec<Fact>,
}

/// All runs.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) qemu: String,
    pub(super) kernels: Vec<Run>,
}

impl Run {
    /// Whether every test passed, or was skipped for a reason, and the machine said so itself.
    pub(super) fn succeeded(&self) -> bool {
        self.trouble.is_none()
    }

    /// What is wrong with the run as a whole, if anything is.
    pub(super) fn trouble(end: &End, ended: Option<&str>, any_failed: bool, tests: usize) -> Option<String> {
        match (end, ended) {
            (End::Bad(why), None) => Some(format!("no verdict: {why}")),
            (End::Good, None) => Some("the machine ended well, but its verdict was lost".to_owned()),
            (End::Bad(_), Some(_)) if any_failed => Some("tests failed".to_owned()),
            (End::Bad(why), Some(ended)) => Some(format!("the suite ended with {ended}: {why}")),
            (End::Good, Some(_)) if any_failed => {
                Some("tests failed, though the suite says otherwise".to_owned())
            }
            (End::Good, Some(_)) if tests == 0 => Some("no test ran".to_owned()),
            (End::Good, Some(_)) => None,
        }
    }

    fn cell(&self, test: &str) -> String {
        match self.tests.get(test) {
            None => "-".to_owned(),
            Some(TestResult { outcome, seconds }) => match outcome {
                Outcome::Passed => format!("{seconds:.1}"),
                Outcome::Skipped { .. } => "skipped".to_owned(),
                Outcome::Failed => format!("FAILED {seconds:.1}"),
                Outcome::Lost => format!("LOST {seconds:.1}"),
            },
        }
    }

    /// What was found out about the kernel by that name.
    pub(super) fn fact(&self, name: &str) -> &str {
        let fact = self.facts.iter().find(|fact| fact.name == name);
        fact.map_or("-", |fact| &fact.value)
    }

    pub(super) fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.tests
            .values()
            .filter(|result| wanted(&result.outcome))
            .count()
    }
}

impl Table {
    /// What came of a machine, if it was run.
    pub(super) fn of(&self, machine: &str) -> Option<&Run> {
        self.kernels.iter().find(|run| run.machine == machine)
    }

    /// The names of all facts, in the order of the tests that found them out.
    pub(super) fn facts(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for fact in self.kernels.iter().flat_map(|run| &run.facts) {
            if !names.contains(&fact.name.as_str()) {
                names.push(&fact.name);
            }
        }
        names
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: BTreeSet<&String> = self.kernels.iter().flat_map(|run| run.tests.keys()).collect();
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0).max(12);
        let row = |title: &str, cells: Vec<String>| {
            let mut line = format!("{title:width$}");
            for (cell, run) in cells.iter().zip(&self.kernels) {
                // Writing to a string cannot fail.
                write!(line, "  {cell:>0$}", run.release.len().max(11)).ok();
            }
            line
        };
        let cells = |cell: &dyn Fn(&Run) -> String| self.kernels.iter().map(cell).collect::<Vec<_>>();
        writeln!(formatter, "{}", row("", cells(&|run| run.machine.to_owned())))?;
        writeln!(formatter, "{}", row("test", cells(&|run| run.release.clone())))?;
        for name in names {
            writeln!(formatter, "{}", row(name, cells(&|run| run.cell(name))))?;
        }
        let count = |outcome: fn(&Outcome) -> bool| cells(&|run| run.count(outcome).to_string());
        writeln!(formatter, "{}", row("passed", count(|it| *it == Outcome::Passed)))?;
        writeln!(
            formatter,
            "{}",
            row(
                "failed",
                count(|it| matches!(it, Outcome::Failed | Outcome::Lost))
            )
        )?;
        writeln!(
            formatter,
            "{}",
            row("skipped", count(|it| matches!(it, Outcome::Skipped { .. })))
        )?;
        writeln!(
            formatter,
            "{}",
            row("seconds", cells(&|run| format!("{:.0}", run.seconds)))
        )?;
        for name in self.facts() {
            writeln!(
                formatter,
                "{}",
                row(name, cells(&|run| run.fact(name).to_owned()))
            )?;
        }
        for run in &self.kernels {
            for (test, result) in &run.tests {
                if let Outcome::Skipped { reason } = &result.outcome {
                    writeln!(formatter, "skipped on {}: {test}: {reason}", run.machine)?;
                }
            }
        }
        for run in &self.kernels {
            if let Some(trouble) = &run.trouble {
                writeln!(formatter, "FAILED on {}: {trouble}", run.machine)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_end_with_a_verdict_is_a_success() {
        let good = Run::trouble(&End::Good, Some("exit 0"), false, 3);
        assert_eq!(good, None);
        let crash = End::Bad("it crashed".to_owned());
        for bad in [
            Run::trouble(&End::Good, None, false, 3),
            Run::trouble(&End::Good, Some("exit 0"), true, 3),
            Run::trouble(&End::Good, Some("exit 0"), false, 0),
            Run::trouble(&crash, None, false, 3),
            Run::trouble(&crash, Some("exit 101"), true, 3),
        ] {
            assert!(bad.is_some());
        }
    }

    #[test]
    fn a_row_is_a_test_and_a_column_a_kernel() {
        let result = |outcome| TestResult {
            outcome,
            seconds: 1.25,
        };
        let run = |release: &str, outcome| Run {
            machine: "x",
            release: release.to_owned(),
            seconds: 9.0,
            trouble: None,
            tests: [("a::b".to_owned(), result(outcome))].into(),
            facts: vec![Fact {
                name: "SO_X".to_owned(),
                value: "yes".to_owned(),
            }],
        };
        let reason = "no such thing".to_owned();
        let table = Table {
            qemu: "10".to_owned(),
            kernels: vec![
                run("6.1.0-56", Outcome::Passed),
                run("7.3.4", Outcome::Skipped { reason }),
            ],
        };
        let text = table.to_string();
        assert!(
            text.contains("\na::b                  1.2      skipped\n"),
            "{text}"
        );
        assert!(
            text.contains("\nSO_X                  yes          yes\n"),
            "{text}"
        );
        assert!(text.contains("\nskipped on x: a::b: no such thing\n"), "{text}");
    }
}
