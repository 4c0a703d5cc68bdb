//! Rust source with everything blanked that is not code, so that a rule about code can be a search for text.
//!
//! **Invariant**: the result has the same lines at the same numbers. Comments, and what is inside string and
//! character literals, become spaces. This is a scanner and no parser: all it has to know is where these
//! begin and end.

/// `source` with comments and literals blanked.
pub(super) fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let after_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' | 'c' if !after_word => match raw_string(rest) {
                Some(length) => length,
                None => keep(&mut code, &mut rest, next),
            },
            '\'' => match character(rest) {
                Some(length) => length,
                None => keep(&mut code, &mut rest, next),
            },
            _ => keep(&mut code, &mut rest, next),
        };
        let (literal, after) = rest.split_at(length);
        code.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    code
}

/// Takes one character over as it is; nothing of the rest is to be blanked.
fn keep(code: &mut String, rest: &mut &str, next: char) -> usize {
    code.push(next);
    *rest = &rest[next.len_utf8()..];
    0
}

/// The length of a block comment, which may hold others.
fn block_comment(source: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < source.len() {
        let here = &source.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    source.len()
}

/// The length of a string literal that starts with its quotation mark.
fn string(source: &str) -> usize {
    let mut escaped = false;
    for (at, c) in source.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    source.len()
}

/// The length of a raw string literal, `r"…"` or `br#"…"#`; `None` if the source starts with another word.
fn raw_string(source: &str) -> Option<usize> {
    let after_prefix = source
        .strip_prefix(['b', 'c'])
        .unwrap_or(source)
        .strip_prefix('r')?;
    let after_hashes = after_prefix.trim_start_matches('#');
    let hashes = &after_prefix[..after_prefix.len() - after_hashes.len()];
    let body = after_hashes.strip_prefix('"')?;
    let end = format!("\"{hashes}");
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(source.len() - body.len() + length)
}

/// The length of a character literal; `None` for a lifetime, which is an apostrophe and a word with no second
/// one.
fn character(source: &str) -> Option<usize> {
    let body = &source[1..];
    let first = body.chars().next()?;
    if first != '\\' {
        let inside = first.len_utf8();
        return body[inside..].starts_with('\'').then_some(inside + 2);
    }
    // What follows the backslash belongs to the escape, an apostrophe too: '\''.
    let escaped = 1 + body[1..].chars().next()?.len_utf8();
    let end = body[escaped..].find('\'')?;
    Some(escaped + end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_blanked_and_lines_keep_their_numbers() {
        assert_eq!(
            code_only("a // b\nc /* d\n /* e */ f */ g"),
            "a     \nc     \n              g"
        );
    }

    #[test]
    fn literals_are_blanked_whatever_their_quotation() {
        for literal in [
            r#""x""#,
            r#""\"x""#,
            r#""\\""#,
            r##"r#"x"y"#"##,
            r#"br"x""#,
            "'x'",
            r"'\''",
            r"'\u{78}'",
        ] {
            let code = code_only(&format!("f({literal}, z)"));
            assert_eq!(
                code.trim_end(),
                format!("f({}, z)", " ".repeat(literal.len())),
                "{literal}"
            );
        }
    }

    #[test]
    fn a_literal_that_looks_like_a_comment_ends_no_code() {
        assert_eq!(code_only(r#"("//", x)"#), "(    , x)");
        assert_eq!(code_only("('\"', x)"), "(   , x)");
    }

    #[test]
    fn lifetimes_and_words_stay() {
        for code in [
            "fn f<'a>(x: &'a str) -> &'a str",
            "for_bar(br, r#try)",
            "'outer: loop {}",
        ] {
            assert_eq!(code_only(code), code);
        }
    }
}
