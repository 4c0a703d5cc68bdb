//! README's table of kernels, made from what the machines have shown and from nothing else.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail};

use super::machine::{MACHINES, Machine};
use super::table::{Run, Table};
use super::verdict::Outcome;
use crate::repository;

const BEGIN: &str = "<!-- vm-table -->";
const END: &str = "<!-- /vm-table -->";

/// What users ask for, and the test that shows it.
const PROMISES: [(&str, &str); 6] = [
    (
        "grant, bind, activate: copy mode on virtio-net",
        "zero_copy::copy_mode_is_had_on_the_same_device_and_told_as_that",
    ),
    (
        "zero-copy RX and TX on virtio-net (`iommu_platform=on`)",
        "zero_copy::the_driver_itself_moves_the_holders_packets",
    ),
    (
        "zero-copy RX and TX on igb",
        "zero_copy::the_driver_itself_moves_the_holders_packets",
    ),
    (
        "RSS steers to a holder (igb, as `ethtool -X`)",
        "nic_steering::rss_decides_who_gets_the_packets",
    ),
    (
        "queues that appear when XDP is attached (virtio-net)",
        "nic_queues::queues_that_attaching_makes_are_granted",
    ),
    (
        "queue lock `lsm` (`bpf` is in Debian's `lsm=`)",
        "lock_lsm::an_unbound_socket_kept_for_ever_never_wins_a_queue",
    ),
];

/// Writes it between its marks.
pub(super) fn write(table: &Table) -> Result<()> {
    if !MACHINES
        .iter()
        .all(|machine| table.of(machine.name).is_some_and(Run::succeeded))
    {
        bail!("README's table is made from a run of every machine in which nothing failed");
    }
    let path = repository::root()?.join("README.md");
    let text = fs::read_to_string(&path).context("README.md")?;
    fs::write(&path, replaced(&text, &markdown(table))?).context("README.md")?;
    eprintln!("README.md has the table of this run");
    Ok(())
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("README.md has no {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("README.md has no {END}"))?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

/// A column for each kernel, a row for each promise and each fact.
fn markdown(table: &Table) -> String {
    let whole: Vec<&Machine> = MACHINES.iter().filter(|machine| machine.is_whole()).collect();
    let runs: Vec<&Run> = whole
        .iter()
        .filter_map(|machine| table.of(machine.name))
        .collect();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(runs.iter().map(|run| release(&run.release).to_owned()));
    let suite = |run: &&Run| {
        let passed = run.count(|outcome| *outcome == Outcome::Passed);
        let skipped = run.count(|outcome| matches!(outcome, Outcome::Skipped { .. }));
        format!("{passed} passed, {skipped} skipped")
    };
    rows.push(row("the end-to-end suite", runs.iter().map(suite)));
    for (words, test) in PROMISES {
        let nic = if words.contains("igb") {
            "igb"
        } else {
            "virtio_net"
        };
        let cell = |machine: &&Machine| outcome(table, machine, nic, test);
        rows.push(row(words, whole.iter().map(cell)));
    }
    for name in table.facts() {
        rows.push(row(name, runs.iter().map(|run| run.fact(name).to_owned())));
    }
    aligned(&rows)
}

fn row(words: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(words.to_owned()).chain(cells).collect()
}

/// Of the machine with that device whose kernel is of the same line.
fn outcome(table: &Table, whole: &Machine, nic: &str, test: &str) -> String {
    let line = |name: &'static str| name.split('-').next();
    let machine = MACHINES
        .iter()
        .filter(|machine| machine.nic.driver() == nic && line(machine.name) == line(whole.name))
        .find_map(|machine| table.of(machine.name)?.tests.get(test));
    match machine.map(|result| &result.outcome) {
        Some(Outcome::Passed) => "yes".to_owned(),
        Some(Outcome::Skipped { reason }) => {
            let reason = reason.strip_prefix("this kernel lacks it: ").unwrap_or(reason);
            format!("no: {}", reason.rsplit(": ").next().unwrap_or(reason))
        }
        Some(Outcome::Failed | Outcome::Lost) => "no".to_owned(),
        None => "not tried".to_owned(),
    }
}

/// `6.12.95+deb12-cloud-amd64` is Debian's word for 6.12.95.
fn release(text: &str) -> &str {
    text.split_once("+deb")
        .or(text.split_once("-cloud"))
        .map_or(text, |(release, _)| release)
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
    };
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for column in 0..columns {
            let cell = row.get(column).map_or("", String::as_str);
            // Writing to a string cannot fail.
            write!(text, "| {cell:0$} ", width(column).unwrap_or(0)).ok();
        }
        text.push_str("|\n");
        if number == 0 {
            for column in 0..columns {
                write!(text, "| {:-<1$} ", "", width(column).unwrap_or(0)).ok();
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Fact, TestResult};
    use super::*;

    fn run(machine: &'static str, release: &str, outcome: &Outcome, trouble: Option<&str>) -> Run {
        let seconds = 1.0;
        let tests = PROMISES.map(|(_, test)| {
            let outcome = outcome.clone();
            (test.to_owned(), TestResult { outcome, seconds })
        });
        Run {
            machine,
            release: release.to_owned(),
            seconds,
            trouble: trouble.map(str::to_owned),
            tests: tests.into(),
            facts: vec![Fact {
                name: "SO_PEERPIDFD".to_owned(),
                value: "yes".to_owned(),
            }],
        }
    }

    fn table(trouble: Option<&str>) -> Table {
        let reason = "this kernel lacks it: bind(XDP_ZEROCOPY): Operation not supported".to_owned();
        let lacking = Outcome::Skipped { reason };
        Table {
            qemu: "10".to_owned(),
            kernels: vec![
                run("6.1", "6.1.0-56-cloud-amd64", &lacking, None),
                run("6.12", "6.12.95+deb12-cloud-amd64", &lacking, None),
                run("7", "7.3.4+deb13-cloud-amd64", &Outcome::Passed, None),
                run("7-igb", "7.3.4+deb13-amd64", &Outcome::Passed, trouble),
                run("7-no-bpf-lsm", "7.3.4+deb13-cloud-amd64", &Outcome::Passed, None),
            ],
        }
    }

    #[test]
    fn a_column_is_a_kernel_and_its_words_are_the_runs() {
        let text = markdown(&table(None));
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(cells[0][2..5], ["6.1.0-56", "6.12.95", "7.3.4"]);
        let of = |words: &str| cells.iter().find(|row| row[1].starts_with(words)).unwrap()[2..5].to_vec();
        let lacking = "no: Operation not supported";
        assert_eq!(of("zero-copy RX and TX on virtio-net"), [lacking, lacking, "yes"]);
        assert_eq!(
            of("zero-copy RX and TX on igb"),
            ["not tried", "not tried", "yes"]
        );
        assert_eq!(of("SO_PEERPIDFD"), ["yes"; 3]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn nothing_is_written_of_a_run_that_failed() {
        assert!(write(&table(Some("tests failed"))).is_err());
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(
            replaced(&text, "new").unwrap(),
            format!("a\n{BEGIN}\n\nnew\n{END}\nb\n")
        );
        assert!(replaced("a", "new").is_err());
    }
}
