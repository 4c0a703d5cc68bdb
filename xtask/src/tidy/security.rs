//! SECURITY.md's table: every attack names the tests that show what stops it, and every test that is named exists.
//!
//! **Invariant**: a name in the table's last column is that of a file with tests, or of a folder of such files.

use super::Source;

/// What is wrong with the table.
pub(super) fn complaints(sources: &[Source], security: Option<&str>) -> Vec<String> {
    let Some(security) = security else {
        return vec!["SECURITY.md is missing".to_owned()];
    };
    let mut complaints = Vec::new();
    let rows = (1..)
        .zip(security.lines())
        .filter(|(_, line)| line.starts_with("| "));
    // The head of the table, and the line below it, name no test.
    for (number, line) in rows.skip(2) {
        let last = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            complaints.push(format!("SECURITY.md:{number}: no test is named in backticks"));
        }
        for name in names.into_iter().filter(|name| !is_tested(sources, name)) {
            complaints.push(format!(
                "SECURITY.md:{number}: there is no test file `{name}`: write the name of a file with tests, or of a folder"
            ));
        }
    }
    complaints
}

/// Whether a file or a folder of that name has a test.
fn is_tested(sources: &[Source], name: &str) -> bool {
    let file = format!("/{name}.rs");
    let folder = format!("/{name}/");
    sources
        .iter()
        .filter(|source| source.path.ends_with(&file) || source.path.contains(&folder))
        .any(|source| source.text.contains("#[test]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Security\n\n| attack | what stops it | test |\n| --- | --- | --- |\n";

    fn complaints_about(rows: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let sources = [
            source("tests/e2e/lease_ends.rs", "#[test]"),
            source("broker/src/policy/tests/hostile.rs", "#[test]"),
            source("tests/e2e/scene.rs", "fn helper() {}"),
        ];
        complaints(&sources, Some(&format!("{TABLE}{rows}\n\nText with `scene`.\n")))
    }

    #[test]
    fn tests_that_exist_are_no_matter() {
        let rows = "| a | b | `lease_ends` |\n| a | `c` | `policy/tests`, `hostile` (unit) |";
        assert_eq!(complaints_about(rows), Vec::<String>::new());
    }

    #[test]
    fn others_are_named_with_their_line() {
        for (row, expected) in [
            (
                "| a | b | `lease_begins` |",
                "SECURITY.md:5: there is no test file `lease_begins`",
            ),
            (
                "| a | b | `scene` |",
                "SECURITY.md:5: there is no test file `scene`",
            ),
            ("| a | `lease_ends` | none |", "SECURITY.md:5: no test is named"),
        ] {
            let complaints = complaints_about(row);
            assert!(
                complaints.len() == 1 && complaints[0].starts_with(expected),
                "{complaints:?}"
            );
        }
        assert_eq!(complaints(&[], None).len(), 1);
    }
}
