//! Whose lines wait, in bytes, and who may add to them: whoever has less of what waits than there is room left.
//!
//! So one user has half of the room at most, two a third each, and there is always room for one who has nothing there yet,
//! however fast the others are. What is never refused (the end of a lease) is counted all the same.

use std::collections::HashMap;

/// Room that users share.
#[derive(Debug)]
pub(super) struct Share {
    limit: usize,
    waiting: usize,
    by_uid: HashMap<u32, usize>,
}

impl Share {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            waiting: 0,
            by_uid: HashMap::new(),
        }
    }

    /// Whether a user may add something.
    pub(super) fn has_room(&self, uid: u32) -> bool {
        self.of(uid) < self.left()
    }

    /// How much a user has.
    pub(super) fn of(&self, uid: u32) -> usize {
        self.by_uid.get(&uid).copied().unwrap_or(0)
    }

    /// How much all have.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How much room is left.
    pub(super) fn left(&self) -> usize {
        self.limit.saturating_sub(self.waiting)
    }

    /// All of it.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whoever has something there.
    pub(super) fn users(&self) -> impl Iterator<Item = (u32, usize)> {
        self.by_uid.iter().map(|(uid, bytes)| (*uid, *bytes))
    }

    /// So much more waits, of a user or of nobody.
    pub(super) fn add(&mut self, uid: Option<u32>, bytes: usize) {
        self.waiting += bytes;
        if let Some(uid) = uid {
            *self.by_uid.entry(uid).or_default() += bytes;
        }
    }

    /// So much waits no more, which was added before.
    pub(super) fn take(&mut self, uid: Option<u32>, bytes: usize) {
        self.waiting -= bytes;
        if let Some(uid) = uid
            && let Some(own) = self.by_uid.get_mut(&uid)
        {
            *own -= bytes;
            if *own == 0 {
                self.by_uid.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1000;

    /// Each of these users adds for as long as it may.
    fn flood(share: &mut Share, users: u32) {
        while (0..users).any(|uid| share.has_room(uid)) {
            for uid in 0..users {
                if share.has_room(uid) {
                    share.add(Some(uid), 1);
                }
            }
        }
    }

    #[test]
    fn however_many_take_all_they_may_one_more_has_room() {
        for users in 1..20 {
            let mut share = Share::new(LIMIT);
            flood(&mut share, users);
            let each = LIMIT / (usize::try_from(users).unwrap() + 1);
            assert!(share.of(0).abs_diff(each) <= 1, "{users}: {}", share.of(0));
            assert!(share.has_room(users), "{users}");
        }
    }

    proptest! {
        #[test]
        fn what_was_added_is_given_back(adds in prop::collection::vec((prop::option::of(0..3_u32), 1..100_usize), 0..50)) {
            let mut share = Share::new(LIMIT);
            for (uid, bytes) in &adds {
                share.add(*uid, *bytes);
            }
            let sum: usize = adds.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!((share.waiting(), share.left()), (sum, LIMIT.saturating_sub(sum)));
            for (uid, bytes) in adds {
                share.take(uid, bytes);
            }
            prop_assert_eq!((share.waiting(), share.users().count()), (0, 0));
        }
    }
}
