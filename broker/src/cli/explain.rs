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

#[cfg(test)]
mod tests {
    use xsk_client::wire::RuleVerdict;

    use super::*;

    #[test]
    fn reads_like_this() {
        let said = |rule: &str, outcome, why: &str| RuleVerdict {
            rule: rule.to_owned(),
            outcome,
            why: why.to_owned(),
        };
        let mut explained = Explained {
            granted: true,
            rule: Some("alice".to_owned()),
            reason: "rule alice is the first that covers all of it".to_owned(),
            suggestion: None,
            rules: vec![
                said(
                    "bob-and-others",
                    RuleOutcome::Differs,
                    "uid 1001 is not bob (1002)",
                ),
                said("alice", RuleOutcome::Decides, "covers all of it"),
                said("everybody", RuleOutcome::Matches, "covers all of it"),
            ],
        };
        let print = |explained: &Explained| {
            let mut out = Vec::new();
            print(&"eth0:2-4".parse().unwrap(), explained, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            print(&explained),
            "\
eth0:2-4: granted by rule alice
  rule alice is the first that covers all of it

rules, in file order:
  bob-and-others  differs  uid 1001 is not bob (1002)
> alice           decides  covers all of it
  everybody       matches  covers all of it
"
        );
        explained.granted = false;
        explained.rule = None;
        explained.rules.clear();
        explained.suggestion = Some("To allow it, add:\n[[allow]]".to_owned());
        assert!(print(&explained).ends_with("\n\nTo allow it, add:\n[[allow]]\n"));
    }
}
