//! Several leases in one sentence, by their numbers.

/// So many are named; of more it is said how many there are.
const MOST: usize = 4;

/// As in "until lease 7 ends", "until leases 7 and 8 end", "until leases 7, 8, 9, 10 and 2 more end".
pub fn end_of(leases: &[u64]) -> String {
    let named = leases.iter().take(MOST).map(ToString::to_string);
    let more = leases.len().saturating_sub(MOST);
    let more = (more > 0).then(|| format!("{more} more"));
    let words: Vec<String> = named.chain(more).collect();
    match words.as_slice() {
        [] => "no lease ends".to_owned(),
        [one] => format!("lease {one} ends"),
        [first @ .., last] => format!("leases {} and {last} end", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn all_are_named_or_counted() {
        for (most, words) in [
            (7, "lease 7 ends"),
            (8, "leases 7 and 8 end"),
            (10, "leases 7, 8, 9 and 10 end"),
            (12, "leases 7, 8, 9, 10 and 2 more end"),
        ] {
            let leases: Vec<u64> = (7..=most).collect();
            assert_eq!(end_of(&leases), words);
        }
    }
}
