//! The rules for one source file: how it begins, how long it may be, and what no finished code contains.

use super::Source;
use super::code::code_only;

const MOST_LINES: usize = 450;

/// What must not be in code, and what to do instead.
const FORBIDDEN: [(&str, &str); 4] = [
    (
        "todo!",
        "finish it, or return an error that says what is not supported",
    ),
    (
        "unimplemented!",
        "finish it, or return an error that says what is not supported",
    ),
    (
        "#[ignore",
        "a test that cannot run here prints `SKIP name: reason`, which is counted; an ignored one is not",
    ),
    (
        "as _",
        "name the type, so that a reader and a later change see what is converted",
    ),
];

pub(super) fn complaints(source: &Source) -> Vec<String> {
    let Source { path, text } = source;
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push(format!(
            "{path}:1: does not start with `//!`: say what the file is, and its invariants"
        ));
    }
    let lines = text.lines().count();
    if lines > MOST_LINES {
        complaints.push(format!(
            "{path}: has {lines} lines, and {MOST_LINES} are the most: it is asking to be two files"
        ));
    }
    let mut in_import = false;
    for (line, code) in (1..).zip(code_only(text).lines()) {
        // `use Trait as _` brings methods into scope and converts nothing. It may run over several lines.
        in_import |= starts_import(code);
        let searched = FORBIDDEN
            .iter()
            .filter(|(forbidden, _)| !in_import || *forbidden != "as _");
        for (forbidden, instead) in searched.filter(|(forbidden, _)| contains_word(code, forbidden)) {
            complaints.push(format!("{path}:{line}: `{forbidden}`: {instead}"));
        }
        in_import &= !code.contains(';');
    }
    complaints
}

fn starts_import(code: &str) -> bool {
    let code = code.trim_start();
    let after_visibility = if code.starts_with("pub") {
        code.split_once(' ').map_or("", |(_, code)| code)
    } else {
        code
    };
    after_visibility.starts_with("use ")
}

/// Whether `text` is in `code` and not as a part of longer names.
fn contains_word(code: &str, text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(text).any(|(at, _)| {
        let starts_inside = text.starts_with(is_part) && code[..at].ends_with(is_part);
        let ends_inside = text.ends_with(is_part) && code[at + text.len()..].starts_with(is_part);
        !starts_inside && !ends_inside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints_about(text: &str) -> Vec<String> {
        complaints(&Source {
            path: "x.rs".to_owned(),
            text: text.to_owned(),
        })
    }

    #[test]
    fn a_file_must_say_what_it_is() {
        assert_eq!(complaints_about("//! A file.\n"), Vec::<String>::new());
        assert!(complaints_about("// A file.\n")[0].starts_with("x.rs:1:"));
        assert_eq!(complaints_about("").len(), 1);
    }

    #[test]
    fn a_file_must_not_be_too_long() {
        let at_the_limit = "//!\n".repeat(MOST_LINES);
        assert!(complaints_about(&at_the_limit).is_empty());
        assert!(complaints_about(&format!("{at_the_limit}//!\n"))[0].contains("451 lines"));
    }

    #[test]
    fn unfinished_code_is_found_with_its_line() {
        for unfinished in [
            "todo!()",
            "unimplemented!(\"x\")",
            "#[ignore]",
            "#[ignore = \"slow\"]",
            "let x = y as _;",
        ] {
            let complaints = complaints_about(&format!("//! A file.\n\n    {unfinished}\n"));
            assert_eq!(complaints.len(), 1, "{unfinished}: {complaints:?}");
            assert!(complaints[0].starts_with("x.rs:3:"), "{complaints:?}");
        }
    }

    #[test]
    fn the_rules_look_at_code_only() {
        for fine in [
            "// todo!() is forbidden",
            "let s = \"x as _\";",
            "use std::io::Write as _;",
            "use a::{\n    B as _,\n    C,\n};",
            "pub(crate) use a::{B as _, C};",
            "let x = y as _name;",
            "my_todo!()",
            "let has _ = 1;",
        ] {
            assert_eq!(
                complaints_about(&format!("//! A file.\n{fine}\n")),
                Vec::<String>::new()
            );
        }
    }
}
