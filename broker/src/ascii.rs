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
}
