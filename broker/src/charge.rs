//! What a uid holds is charged to it, and given back exactly.
//!
//! A [`Charge`] gives back on drop what its making took: nowhere else is a counter lowered. What is charged counts for
//! its uid and for all together, and, where a rule has a limit of its own, for what the uid has by that rule.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limit::{LimitReached, Whose};
use crate::quota::{Amounts, Limits, Resource};

/// Who holds how much of what. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts(Arc<Mutex<Books>>);

/// What a rule lets each of its users have.
#[derive(Debug, Clone, Copy)]
pub struct RuleLimit<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// The most.
    pub limit: u64,
}

impl Accounts {
    /// With these limits, and nothing charged.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Books {
            limits,
            in_all: Amounts::default(),
            by_uid: BTreeMap::new(),
        })))
    }

    /// Charges `amount` to `uid`, within what one uid and all of them may have.
    ///
    /// # Errors
    ///
    /// [`LimitReached`] says what is in use; nothing was charged.
    pub fn charge(&self, uid: u32, resource: Resource, amount: u64) -> Result<Charge, LimitReached> {
        let mut books = self.lock();
        books.check(uid, resource, amount)?;
        Ok(self.enter(&mut books, uid, resource, amount, None))
    }

    /// The same, within what a rule lets each of its users have as well.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn charge_by_rule(
        &self,
        uid: u32,
        resource: Resource,
        amount: u64,
        by: RuleLimit<'_>,
    ) -> Result<Charge, LimitReached> {
        let rule: Arc<str> = by.rule.into();
        let mut books = self.lock();
        let in_use = books.by_rule(uid, resource, &rule);
        if exceeds(in_use, amount, by.limit) {
            return Err(LimitReached {
                uid,
                resource,
                whose: Whose::Rule(by.rule.to_owned()),
                limit: by.limit,
                in_use,
                wanted: amount,
            });
        }
        books.check(uid, resource, amount)?;
        Ok(self.enter(&mut books, uid, resource, amount, Some(rule)))
    }

    /// Charges what is so already, and cannot be refused any more.
    pub fn charge_anyway(&self, uid: u32, resource: Resource, amount: u64) -> Charge {
        self.enter(&mut self.lock(), uid, resource, amount, None)
    }

    /// The same, for what a rule lets each of its users have as well.
    pub fn charge_by_rule_anyway(&self, uid: u32, resource: Resource, amount: u64, rule: &str) -> Charge {
        self.enter(&mut self.lock(), uid, resource, amount, Some(rule.into()))
    }

    /// Whether one more would be within the limits.
    ///
    /// # Errors
    ///
    /// [`LimitReached`]: no.
    pub fn check(&self, uid: u32, resource: Resource) -> Result<(), LimitReached> {
        self.lock().check(uid, resource, 1)
    }

    /// Puts other limits into force: for what is charged from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// How much is charged in all.
    pub fn in_all(&self) -> Amounts {
        self.lock().in_all
    }

    /// How much is charged to each uid that has anything, ascending by uid.
    pub fn by_uid(&self) -> Vec<(u32, Amounts)> {
        let books = self.lock();
        books
            .by_uid
            .iter()
            .map(|(uid, book)| (*uid, book.amounts))
            .collect()
    }

    fn enter(
        &self,
        books: &mut Books,
        uid: u32,
        resource: Resource,
        amount: u64,
        rule: Option<Arc<str>>,
    ) -> Charge {
        let charge = Charge {
            accounts: self.clone(),
            uid,
            resource,
            amount,
            rule,
        };
        books.add(&charge);
        charge
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it is held: what is done then is a few additions.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something charged, until dropped.
#[derive(Debug)]
#[must_use = "dropping a charge gives it back"]
pub struct Charge {
    accounts: Accounts,
    uid: u32,
    resource: Resource,
    amount: u64,
    /// By which rule, where that has a limit.
    rule: Option<Arc<str>>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.accounts.lock().take_back(self);
    }
}

/// The counters, each of which is read and changed without looking at the others.
#[derive(Debug)]
struct Books {
    limits: Limits,
    in_all: Amounts,
    /// Of those alone who have something.
    by_uid: BTreeMap<u32, Book>,
}

/// What one uid has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Book {
    amounts: Amounts,
    /// What it has by rules with limits, never 0.
    by_rule: HashMap<(Arc<str>, Resource), u64>,
}

impl Books {
    fn by_rule(&self, uid: u32, resource: Resource, rule: &Arc<str>) -> u64 {
        let book = self.by_uid.get(&uid);
        let amount = book.and_then(|book| book.by_rule.get(&(Arc::clone(rule), resource)));
        amount.copied().unwrap_or(0)
    }

    fn check(&self, uid: u32, resource: Resource, wanted: u64) -> Result<(), LimitReached> {
        let of_user = self.by_uid.get(&uid).map_or(0, |book| book.amounts.of(resource));
        let of_all = self.in_all.of(resource);
        for (whose, in_use, limits) in [
            (Whose::User, of_user, self.limits.per_user),
            (Whose::All, of_all, self.limits.in_all),
        ] {
            let limit = limits.of(resource);
            if exceeds(in_use, wanted, limit) {
                return Err(LimitReached {
                    uid,
                    resource,
                    whose,
                    limit,
                    in_use,
                    wanted,
                });
            }
        }
        Ok(())
    }

    fn add(&mut self, charge: &Charge) {
        let book = self.by_uid.entry(charge.uid).or_default();
        for counter in [
            self.in_all.of_mut(charge.resource),
            book.amounts.of_mut(charge.resource),
        ] {
            *counter = counter.saturating_add(charge.amount);
        }
        if let Some(rule) = &charge.rule {
            let counter = book
                .by_rule
                .entry((Arc::clone(rule), charge.resource))
                .or_default();
            *counter = counter.saturating_add(charge.amount);
        }
    }

    fn take_back(&mut self, charge: &Charge) {
        let of_all = self.in_all.of_mut(charge.resource);
        *of_all = of_all.saturating_sub(charge.amount);
        let Some(book) = self.by_uid.get_mut(&charge.uid) else {
            return;
        };
        let of_user = book.amounts.of_mut(charge.resource);
        *of_user = of_user.saturating_sub(charge.amount);
        if let Some(rule) = &charge.rule {
            let key = (Arc::clone(rule), charge.resource);
            if let Some(by_rule) = book.by_rule.get_mut(&key) {
                *by_rule = by_rule.saturating_sub(charge.amount);
                if *by_rule == 0 {
                    book.by_rule.remove(&key);
                }
            }
        }
        if *book == Book::default() {
            self.by_uid.remove(&charge.uid);
        }
    }
}

fn exceeds(in_use: u64, wanted: u64, limit: u64) -> bool {
    in_use.checked_add(wanted).is_none_or(|total| total > limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xsk_client::wire::BrokerError;

    use super::*;

    fn limits(resource: Resource, per_user: u64, in_all: u64) -> Limits {
        let mut limits = Limits::default();
        *limits.per_user.of_mut(resource) = per_user;
        *limits.in_all.of_mut(resource) = in_all;
        limits
    }

    #[test]
    fn each_limit_holds_and_is_told() {
        let accounts = Accounts::new(limits(Resource::Queues, 4, 6));
        let rule = |rule, limit| RuleLimit { rule, limit };
        let queues = |uid, amount, by| accounts.charge_by_rule(uid, Resource::Queues, amount, by);
        let told = |reached: LimitReached| BrokerError::from(reached).to_string();
        let first = queues(1, 2, rule("a", 3)).unwrap();
        assert_eq!(
            told(queues(1, 2, rule("a", 3)).unwrap_err()),
            "rule a lets uid 1 have at most 3 queues at a time: 2 in use, 2 more asked for; release some first"
        );
        let _other_rule = queues(1, 2, rule("b", 3)).unwrap();
        assert_eq!(
            told(queues(1, 1, rule("b", 3)).unwrap_err()),
            "uid 1 may have at most 4 queues at a time: 4 in use, 1 more asked for; release some first, or have the \
             operator raise `queues` under [limits.per-user]"
        );
        let _other_uid = queues(2, 2, rule("a", 3)).unwrap();
        assert_eq!(
            told(queues(2, 1, rule("a", 3)).unwrap_err()),
            "all users together may have at most 6 queues at a time: 6 in use, 1 more asked for; ask again later, or have \
             the operator raise `queues` under [limits.in-all]"
        );
        drop(first);
        let _again = queues(2, 1, rule("a", 3)).unwrap();
        assert_eq!(accounts.in_all().of(Resource::Queues), 5);
        assert!(queues(1, u64::MAX, rule("c", u64::MAX)).is_err());
    }

    #[test]
    fn what_is_so_already_is_charged_beyond_the_limit() {
        let accounts = Accounts::new(limits(Resource::AbandonedSockets, 2, 100));
        assert_eq!(accounts.check(1, Resource::AbandonedSockets), Ok(()));
        let charge = accounts.charge_anyway(1, Resource::AbandonedSockets, 3);
        let reached = accounts.check(1, Resource::AbandonedSockets).unwrap_err();
        assert_eq!((reached.limit, reached.in_use), (2, 3));
        drop(charge);
        assert_eq!(accounts.check(1, Resource::AbandonedSockets), Ok(()));
    }

    /// One thing that a user does.
    #[derive(Debug, Clone)]
    struct Step {
        uid: u32,
        resource: Resource,
        amount: u64,
        rule: Option<(usize, u64)>,
        then_drop: Option<prop::sample::Index>,
    }

    fn step() -> impl Strategy<Value = Step> {
        let rule = prop::option::of((0..RULES.len(), 0u64..12));
        (
            0u32..3,
            prop::sample::select(&Resource::ALL[..]),
            0u64..5,
            rule,
            any::<Option<prop::sample::Index>>(),
        )
            .prop_map(|(uid, resource, amount, rule, then_drop)| Step {
                uid,
                resource,
                amount,
                rule,
                then_drop,
            })
    }

    const RULES: [&str; 2] = ["a", "b"];

    /// What the model keeps of a charge: everything is summed anew from these, each time.
    type Kept = (u32, Resource, u64, Option<&'static str>);

    proptest! {
        /// Every counter is at every moment what a sum over all that is held says; a charge is refused exactly if a sum
        /// would go beyond its limit, and then nothing changes; when all is dropped, nothing is left.
        #[test]
        fn charges_give_back_exactly_what_they_took(steps in prop::collection::vec(step(), 0..96)) {
            let mut limits = Limits::default();
            for resource in Resource::ALL {
                *limits.per_user.of_mut(resource) = 9;
                *limits.in_all.of_mut(resource) = 20;
            }
            let accounts = Accounts::new(limits);
            let mut held: Vec<(Kept, Charge)> = Vec::new();
            for Step { uid, resource, amount, rule, then_drop } in steps {
                let sum = |counts: &dyn Fn(&Kept) -> bool| -> u64 {
                    held.iter().map(|(kept, _)| kept).filter(|kept| kept.1 == resource && counts(kept)).map(|kept| kept.2).sum()
                };
                let by = rule.map(|(rule, limit)| RuleLimit { rule: RULES[rule], limit });
                let by_rule = by.is_none_or(|by| sum(&|kept| kept.0 == uid && kept.3 == Some(by.rule)) + amount <= by.limit);
                let fits = by_rule && sum(&|kept| kept.0 == uid) + amount <= 9 && sum(&|_| true) + amount <= 20;
                let charged = match by {
                    Some(by) => accounts.charge_by_rule(uid, resource, amount, by),
                    None => accounts.charge(uid, resource, amount),
                };
                prop_assert_eq!(charged.is_ok(), fits);
                if let Ok(charge) = charged {
                    held.push(((uid, resource, amount, by.map(|by| by.rule)), charge));
                }
                if let Some(index) = then_drop.filter(|_| !held.is_empty()) {
                    drop(held.swap_remove(index.index(held.len())));
                }
                let (mut in_all, mut by_uid) = (Amounts::default(), BTreeMap::<u32, Amounts>::new());
                for ((uid, resource, amount, _), _) in &held {
                    *in_all.of_mut(*resource) += amount;
                    *by_uid.entry(*uid).or_default().of_mut(*resource) += amount;
                }
                prop_assert_eq!(accounts.in_all(), in_all);
                let told: BTreeMap<u32, Amounts> = accounts.by_uid().into_iter().collect();
                for (uid, amounts) in by_uid {
                    prop_assert_eq!(told.get(&uid).copied().unwrap_or_default(), amounts);
                }
            }
            held.clear();
            prop_assert_eq!(accounts.in_all(), Amounts::default());
            prop_assert!(accounts.lock().by_uid.is_empty());
        }
    }
}
