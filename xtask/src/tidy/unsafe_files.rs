//! The rule for unsafe code: the files that contain some are exactly those that ARCHITECTURE.md lists.
//!
//! The list is for the reader who wants to know where memory safety rests on an argument instead of the
//! compiler. It is compared both ways: an entry without unsafe code would make that reader look in vain.

use std::collections::BTreeMap;

use super::Source;
use super::code::code_only;

const BEGIN: &str = "<!-- unsafe-files -->";
const END: &str = "<!-- /unsafe-files -->";

/// `architecture` is the text of ARCHITECTURE.md, if there is one.
pub(super) fn complaints(sources: &[Source], architecture: Option<&str>) -> Vec<String> {
    let Some(architecture) = architecture else {
        return vec![format!(
            "ARCHITECTURE.md does not exist; it has to list the files with unsafe code, one \"- `path`: why\" a \
             line, between {BEGIN} and {END}; now these are: {}",
            files_with_unsafe_code(sources).collect::<Vec<_>>().join(", ")
        )];
    };
    let mut complaints = Vec::new();
    let listed = match listed(architecture, &mut complaints) {
        Some(listed) => listed,
        None => {
            return vec![format!(
                "ARCHITECTURE.md has no list of files with unsafe code: no {BEGIN} … {END}"
            )];
        }
    };
    for path in files_with_unsafe_code(sources) {
        if !listed.contains_key(path) {
            complaints.push(format!(
                "{path}: has unsafe code, and ARCHITECTURE.md does not list it: do without, or add \"- `{path}`: \
                 why\" between {BEGIN} and {END}"
            ));
        }
    }
    for (path, line) in listed {
        if !files_with_unsafe_code(sources).any(|unsafe_file| unsafe_file == path) {
            complaints.push(format!(
                "ARCHITECTURE.md:{line}: lists {path} as unsafe, and there is no such file with unsafe code: \
                 delete the line"
            ));
        }
    }
    complaints
}

/// The listed paths with their line numbers; `None` if there is no list. A line that is no entry is
/// complained of.
fn listed<'a>(architecture: &'a str, complaints: &mut Vec<String>) -> Option<BTreeMap<&'a str, usize>> {
    let lines = (1..).zip(architecture.lines());
    let mut inside = lines.skip_while(|(_, line)| line.trim() != BEGIN);
    inside.next()?;
    let mut listed = BTreeMap::new();
    for (number, line) in inside {
        match line.trim() {
            END => return Some(listed),
            "" => {}
            // An entry may go on over several lines, indented as Markdown wants it.
            _ if line.starts_with("  ") => {}
            entry => match path_and_why(entry) {
                Some((path, _)) => {
                    listed.insert(path, number);
                }
                None => complaints.push(format!(
                    "ARCHITECTURE.md:{number}: an unsafe file is listed as \"- `path`: why\""
                )),
            },
        }
    }
    None
}

fn path_and_why(entry: &str) -> Option<(&str, &str)> {
    let (path, why) = entry.strip_prefix("- `")?.split_once("`: ")?;
    (!why.trim().is_empty()).then_some((path, why))
}

fn files_with_unsafe_code(sources: &[Source]) -> impl Iterator<Item = &str> {
    sources
        .iter()
        .filter(|source| has_unsafe_code(&source.text))
        .map(|source| source.path.as_str())
}

/// Whether the text has unsafe code, or the permission to have some; in code, not in words about code.
fn has_unsafe_code(text: &str) -> bool {
    // Line breaks are spaces to Rust: `unsafe` and what it is about may stand on two lines.
    let code = code_only(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let permission = ["expect(unsafe_code", "allow(unsafe_code", "unsafe("];
    let kinds = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "unsafe trait",
    ];
    permission
        .iter()
        .chain(&kinds)
        .any(|unsafe_code| code.contains(unsafe_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn architecture(entries: &str) -> String {
        format!("# Architecture\n\n{BEGIN}\n{entries}\n{END}\n\n- `elsewhere.rs`: not a part of the list\n")
    }

    #[test]
    fn unsafe_code_is_told_from_words_about_it() {
        for code in [
            "unsafe { f() }",
            "unsafe\n{ f() }",
            "pub unsafe fn f() {}",
            "unsafe impl Send for X {}",
            "#[unsafe(no_mangle)]",
        ] {
            assert!(has_unsafe_code(code), "{code}");
        }
        assert!(has_unsafe_code("#![expect(unsafe_code, reason = \"mmap\")]"));
        for words in [
            "// unsafe { f() }",
            "\"unsafe { f() }\"",
            "#![forbid(unsafe_code)]",
            "let unsafe_fn = 1;",
        ] {
            assert!(!has_unsafe_code(words), "{words}");
        }
    }

    #[test]
    fn a_list_that_is_right_is_silent() {
        let sources = [
            source("map.rs", "unsafe { mmap() }"),
            source("safe.rs", "fn f() {}"),
        ];
        let text =
            architecture("- `map.rs`: memory that the kernel writes,\n  which no reference can describe");
        assert_eq!(complaints(&sources, Some(&text)), Vec::<String>::new());
    }

    #[test]
    fn the_list_is_compared_both_ways() {
        let sources = [
            source("map.rs", "unsafe { mmap() }"),
            source("safe.rs", "fn f() {}"),
        ];
        let complaints = complaints(&sources, Some(&architecture("- `safe.rs`: once upon a time")));
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(
            complaints[0].starts_with("map.rs: has unsafe code"),
            "{complaints:?}"
        );
        assert!(
            complaints[1].starts_with("ARCHITECTURE.md:4: lists safe.rs"),
            "{complaints:?}"
        );
    }

    #[test]
    fn an_entry_needs_a_reason() {
        let sources = [source("map.rs", "unsafe { mmap() }")];
        for entry in ["- map.rs: because", "- `map.rs`", "- `map.rs`:  ", "map.rs"] {
            let complaints = complaints(&sources, Some(&architecture(entry)));
            assert!(
                complaints[0].starts_with("ARCHITECTURE.md:4: an unsafe file is listed as"),
                "{complaints:?}"
            );
        }
    }

    #[test]
    fn without_a_list_it_says_what_is_missing() {
        let sources = [source("map.rs", "unsafe { mmap() }")];
        assert!(complaints(&sources, None)[0].contains("ARCHITECTURE.md does not exist"));
        assert!(complaints(&sources, None)[0].contains("map.rs"));
        assert!(complaints(&sources, Some("# Architecture\n"))[0].contains("has no list"));
        assert!(
            complaints(&sources, Some(BEGIN))[0].contains("has no list"),
            "a list that never ends is none"
        );
    }
}
