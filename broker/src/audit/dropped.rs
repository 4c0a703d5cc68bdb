//! Lines that were dropped and that the log has not told of yet: how many of whom, in bounded memory.

use std::collections::BTreeMap;

/// So many users are named; whoever else there is, is one of the others.
const NAMED: usize = 16;

/// How many of whom.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    by_uid: BTreeMap<u32, u64>,
    others: u64,
}

impl Dropped {
    /// So many more of a user.
    pub(super) fn add(&mut self, uid: u32, count: u64) {
        match self.by_uid.len() < NAMED || self.by_uid.contains_key(&uid) {
            true => *self.by_uid.entry(uid).or_default() += count,
            false => self.others += count,
        }
    }

    /// How many in all.
    pub(super) fn count(&self) -> u64 {
        self.by_uid.values().sum::<u64>() + self.others
    }

    /// "uid 64055: 990, uid 64056: 10, others: 3"
    pub(super) fn words(&self) -> String {
        let named = self
            .by_uid
            .iter()
            .map(|(uid, count)| format!("uid {uid}: {count}"));
        let others = (self.others > 0).then(|| format!("others: {}", self.others));
        named.chain(others).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_up_to_a_bound_and_counted_beyond() {
        let mut dropped = Dropped::default();
        (0..1000).for_each(|uid| dropped.add(uid, 2));
        dropped.add(3, 5);
        assert_eq!(dropped.count(), 2005);
        let words = dropped.words();
        assert!(
            words.starts_with("uid 0: 2, uid 1: 2, uid 2: 2, uid 3: 7, "),
            "{words}"
        );
        assert!(words.ends_with("uid 15: 2, others: 1968"), "{words}");
        assert_eq!(Dropped::default().words(), "");
    }
}
