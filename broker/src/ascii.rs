//! JSON in printable ASCII, for whatever is read on terminals: the audit log, and what `--json` prints.
//!
//! What a client chose (a label) must not move a reader's cursor (C0, DEL, C1) or turn the writing around (bidirectional
//! controls). JSON has an escape for each character, so that programs read the same as before.

/// The same JSON in printable ASCII. There such characters stand inside of strings only.
pub fn json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            let escapes = c
                .encode_utf16(&mut units)
                .iter()
                .map(|unit| format!("\\u{unit:04x}"));
            text.extend(escapes);
        }
    }
    text
}

/// A text that somebody chose, for a table: what is not printable ASCII is escaped, and only so much of it is there.
pub fn text(text: &str, most: usize) -> String {
    const CUT: &str = "...";

    let mut whole = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' if c != '\\' => whole.push(c),
            _ => whole.extend(c.escape_default()),
        }
    }
    if whole.len() <= most {
        return whole;
    }
    let mut part: String = whole.chars().take(most.saturating_sub(CUT.len())).collect();
    part.push_str(CUT);
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_printable_and_means_the_same() {
        let text = "vm\u{9b}31m\u{7f}\u{202e}\u{1f600}\n";
        let line = json(&serde_json::to_string(text).unwrap());
        assert!(line.chars().all(|c| c.is_ascii_graphic()), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn a_text_is_printable_and_cut() {
        assert_eq!(text("vm 7", 32), "vm 7");
        assert_eq!(text("a\u{202e}\n", 32), "a\\u{202e}\\n");
        assert_eq!(text(&"x".repeat(33), 32), "x".repeat(29) + "...");
    }
}
