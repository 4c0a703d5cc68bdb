//! What is wrong with a policy, and where: file, line, column, the line itself with a caret, and what to write.
//!
//! Nothing that a file contains reaches a terminal as it is: control characters and those that turn the
//! direction of writing are replaced.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mistake::Mistake;

/// At most this many characters of a source line are printed.
const MAX_LINE: usize = 120;

/// At most this many are reported; a file of rubbish has a mistake in each line.
const MAX_DIAGNOSTICS: usize = 100;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy is not taken.
    Error,
    /// The policy is taken, and does less than its author may think.
    Warning,
}

/// A mistake and its place.
#[derive(Debug)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory.
    pub file: PathBuf,
    /// Where in the file; absent where it is about the file as a whole.
    pub position: Option<Position>,
    mistake: Mistake,
}

impl Diagnostic {
    /// About a file as a whole.
    pub(super) fn of_file(severity: Severity, file: &Path, mistake: Mistake) -> Self {
        Self {
            severity,
            file: file.to_owned(),
            position: None,
            mistake,
        }
    }

    /// What is wrong.
    pub fn message(&self) -> String {
        self.mistake.to_string()
    }

    /// What to do.
    pub fn help(&self) -> Option<String> {
        self.mistake.help()
    }
}

/// As a compiler prints it.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let file = harmless_path(&self.file);
        write!(f, "{severity}: {}\n --> {file}", self.message())?;
        let gutter = self.position.as_ref().map_or(1, |at| at.line.to_string().len());
        if let Some(at) = &self.position {
            writeln!(f, ":{}:{}", at.line, at.column)?;
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{} | {}", at.line, at.source_line)?;
            write!(f, "{:gutter$} | {:indent$}", "", "", indent = at.caret)?;
            write!(f, "{}", "^".repeat(at.width))?;
        }
        if let Some(help) = self.help() {
            let help = help.replace('\n', &format!("\n{:gutter$}         ", ""));
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// A place in a text, counted from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in that line.
    pub column: usize,
    /// The line, or the part of a long one that shows the place.
    pub source_line: String,
    /// How many characters of `source_line` stand before the place.
    #[serde(skip)]
    caret: usize,
    /// How many characters are meant, at least one.
    #[serde(skip)]
    width: usize,
}

/// A file's text.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Whether the text ends where the file stops to be UTF-8.
    pub(super) cut: bool,
    line_starts: Vec<usize>,
}

impl Source {
    pub(super) fn new(path: &Path, text: String) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Self {
            path: path.to_owned(),
            text,
            cut: false,
            line_starts,
        }
    }

    /// `file:line` of a byte.
    pub(super) fn at(&self, byte: usize) -> String {
        format!("{}:{}", harmless_path(&self.path), self.line(byte) + 1)
    }

    /// The number of the line that holds this byte, from 0.
    pub(super) fn line(&self, byte: usize) -> usize {
        self.line_starts
            .partition_point(|start| *start <= byte)
            .saturating_sub(1)
    }

    /// A line without its end and without a byte order mark, and where it starts.
    pub(super) fn line_text(&self, line: usize) -> (usize, &str) {
        let start = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        let rest = self.text.get(start..).unwrap_or_default();
        let text = rest.split('\n').next().unwrap_or_default();
        let text = text.strip_suffix('\r').unwrap_or(text);
        match text.strip_prefix('\u{feff}') {
            Some(text) if start == 0 => (start + '\u{feff}'.len_utf8(), text),
            _ => (start, text),
        }
    }

    /// Where a byte range is. Takes any range, also one beyond the end.
    pub(super) fn position(&self, span: &Range<usize>) -> Position {
        let line = self.line(self.text.floor_char_boundary(span.start));
        let (line_start, text) = self.line_text(line);
        let inside = |byte: usize| text.floor_char_boundary(byte.saturating_sub(line_start).min(text.len()));
        let (start, end) = (inside(span.start), inside(span.end));
        let before = text.get(..start).unwrap_or_default().chars().count();
        let meant = text.get(start..end).unwrap_or_default().chars().count().max(1);

        let skipped = if before > MAX_LINE / 2 {
            before - MAX_LINE / 4
        } else {
            0
        };
        let window = text.chars().skip(skipped).take(MAX_LINE);
        Position {
            line: line + 1,
            column: before + 1,
            source_line: window.map(harmless).collect(),
            caret: before - skipped,
            width: meant.min(MAX_LINE - (before - skipped)),
        }
    }
}

/// The character as it may be printed: one column wide where the original is.
pub(super) fn harmless(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
            '\u{fffd}'
        }
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

fn harmless_path(path: &Path) -> String {
    path.to_string_lossy().chars().map(harmless).collect()
}

/// A place in the files of one policy: which of them, and the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) span: Range<usize>,
}

/// Mistakes as they are found. Reading goes on after each, so that one run shows all.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
}

#[derive(Debug)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    at: At,
    pub(super) mistake: Mistake,
}

#[derive(Debug)]
enum At {
    Text(Place),
    File(PathBuf),
}

impl Findings {
    pub(super) fn error(&mut self, place: &Place, mistake: Mistake) {
        self.push(Severity::Error, At::Text(place.clone()), mistake);
    }

    pub(super) fn warn(&mut self, place: &Place, mistake: Mistake) {
        self.push(Severity::Warning, At::Text(place.clone()), mistake);
    }

    /// About a file or directory as a whole.
    pub(super) fn file(&mut self, severity: Severity, file: &Path, mistake: Mistake) {
        self.push(severity, At::File(file.to_owned()), mistake);
    }

    fn push(&mut self, severity: Severity, at: At, mistake: Mistake) {
        self.found.push(Finding {
            severity,
            at,
            mistake,
        });
    }

    pub(super) fn has_errors(&self) -> bool {
        let is_error = |finding: &Finding| finding.severity == Severity::Error;
        self.found.iter().any(is_error)
    }

    /// Keeps the findings in the text of `file` for which `keep` says so, and all others.
    pub(super) fn retain_in(&mut self, file: usize, mut keep: impl FnMut(&Range<usize>, &Finding) -> bool) {
        self.found.retain(|finding| match &finding.at {
            At::Text(place) if place.file == file => keep(&place.span, finding),
            _ => true,
        });
    }

    /// In the order of the files and lines; those about whole files first.
    pub(super) fn into_diagnostics(mut self, sources: &[Source]) -> Vec<Diagnostic> {
        self.found.sort_by_key(|finding| match &finding.at {
            At::File(_) => (0, 0, finding.severity),
            At::Text(place) => (place.file + 1, place.span.start, finding.severity),
        });
        // What a long list is cut to must not hide that there is an error.
        if self.found.len() > MAX_DIAGNOSTICS {
            self.found.sort_by_key(|finding| finding.severity);
            self.found.truncate(MAX_DIAGNOSTICS);
        }
        let diagnostic = |finding: Finding| {
            let (file, position) = match finding.at {
                At::File(file) => (file, None),
                At::Text(place) => match sources.get(place.file) {
                    Some(source) => (source.path.clone(), Some(source.position(&place.span))),
                    None => (PathBuf::new(), None),
                },
            };
            Diagnostic {
                severity: finding.severity,
                file,
                position,
                mistake: finding.mistake,
            }
        };
        self.found.into_iter().map(diagnostic).collect()
    }
}

/// A policy that is not taken: every mistake in every file.
#[derive(Debug, thiserror::Error)]
#[error("{}", all(diagnostics))]
pub struct PolicyError {
    /// Errors, at least one, and warnings.
    pub diagnostics: Vec<Diagnostic>,
}

fn all(diagnostics: &[Diagnostic]) -> String {
    let texts: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    texts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, span: Range<usize>) -> (usize, usize, String, usize, usize) {
        let p = Source::new(Path::new("p"), text.to_owned()).position(&span);
        (p.line, p.column, p.source_line, p.caret, p.width)
    }

    #[test]
    fn positions() {
        assert_eq!(at("", 0..0), (1, 1, String::new(), 0, 1));
        assert_eq!(at("ab\ncd\n", 4..5), (2, 2, "cd".into(), 1, 1));
        assert_eq!(at("ab\r\ncd", 2..6), (1, 3, "ab".into(), 2, 1));
        assert_eq!(at("äö = 1", 2..4), (1, 2, "äö = 1".into(), 1, 1));
        assert_eq!(at("\u{feff}ab", 3..5), (1, 1, "ab".into(), 0, 2));
        assert_eq!(at("a\tb\u{1b}[31m", 2..3), (1, 3, "a b\u{fffd}[31m".into(), 2, 1));
        assert_eq!(at("ab\n", 99..1000), (2, 1, String::new(), 0, 1));
        let long = "x".repeat(500);
        let (line, column, text, caret, width) = at(&long, 400..500);
        assert_eq!((line, column, caret, width), (1, 401, 30, 90));
        assert_eq!(text.len(), MAX_LINE);
    }
}
