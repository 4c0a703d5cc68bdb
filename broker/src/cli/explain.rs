//! `xsk-broker explain`: how an explanation reads.

use std::io::{self, Write};

use xsk_client::wire::{Explained, RuleOutcome, Target};

/// Prints an explanation: the answer, what each rule says, and what to write to change it.
///
/// # Errors
///
/// Those of `out`.
pub fn print(target: &Target, explained: &Explained, out: &mut dyn Write) -> io::Result<()> {
    let answer = if explained.granted { "granted" } else { "refused" };
    match &explained.rule {
        Some(rule) => writeln!(out, "{target}: {answer} by rule {rule}")?,
        None => writeln!(out, "{target}: {answer}")?,
    }
    writeln!(out, "  {}", explained.reason)?;
    if !explained.rules.is_empty() {
        writeln!(out, "\nrules, in file order:")?;
    }
    let width = explained
        .rules
        .iter()
        .map(|said| said.rule.len())
        .max()
        .unwrap_or(0);
    for said in &explained.rules {
        let mark = match said.outcome {
            RuleOutcome::Decides => '>',
            RuleOutcome::Matches | RuleOutcome::Differs => ' ',
        };
        writeln!(
            out,
            "{mark} {:width$}  {:7}  {}",
            said.rule, said.outcome, said.why
        )?;
    }
    match &explained.suggestion {
        Some(suggestion) => writeln!(out, "\n{suggestion}"),
        None => Ok(()),
    }
}
