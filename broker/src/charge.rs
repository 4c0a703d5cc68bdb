//! What a uid holds is charged to it, and given back exactly.
//!
//! A [`Charge`] gives back on drop what its making took: nowhere else is a counter lowered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is charged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Connections to the broker, on both sockets together.
    Connections,
    /// Queues held under the rule of this name.
    Queues(String),
    /// Bytes of umem that the broker registers under the rule of this name.
    UmemBytes(String),
    /// Sockets that were handed over, and whose leases ended before they were bound: their rings may live on, charged to
    /// nobody (F7).
    Abandoned,
}

/// Who holds how much of what.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<Mutex<HashMap<(u32, Resource), u64>>>);

impl Accounts {
    /// Charges `amount` to `uid`, if it stays within `limit`.
    ///
    /// # Errors
    ///
    /// [`LimitReached`] says what is in use; nothing was charged.
    pub fn charge(
        &self,
        uid: u32,
        resource: Resource,
        amount: u64,
        limit: u64,
    ) -> Result<Charge, LimitReached> {
        let mut used = self.lock();
        let in_use = used.get(&(uid, resource.clone())).copied().unwrap_or(0);
        match in_use.checked_add(amount) {
            Some(total) if total <= limit => {
                used.insert((uid, resource.clone()), total);
                Ok(Charge {
                    accounts: self.clone(),
                    key: (uid, resource),
                    amount,
                })
            }
            _ => Err(LimitReached { limit, in_use }),
        }
    }

    /// How much of a resource is charged to a uid.
    pub fn charged_to(&self, uid: u32, resource: &Resource) -> u64 {
        self.lock().get(&(uid, resource.clone())).copied().unwrap_or(0)
    }

    /// How much is charged in all of a resource.
    pub fn total(&self, resource: &Resource) -> u64 {
        self.lock()
            .iter()
            .filter(|((_, charged), _)| charged == resource)
            .map(|(_, amount)| amount)
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u32, Resource), u64>> {
        // A panic while the lock is held cannot leave the numbers half changed: each change is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The uid has as much as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitReached {
    /// The most that it may have.
    pub limit: u64,
    /// What it has.
    pub in_use: u64,
}

/// Something charged, until dropped.
#[derive(Debug)]
#[must_use = "dropping a charge gives it back"]
pub struct Charge {
    accounts: Accounts,
    key: (u32, Resource),
    amount: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = self.accounts.lock();
        if let Some(in_use) = used.get_mut(&self.key) {
            *in_use = in_use.saturating_sub(self.amount);
            if *in_use == 0 {
                used.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_holds_per_uid_and_per_resource() {
        let accounts = Accounts::default();
        let queues = || Resource::Queues("a".into());
        let first = accounts.charge(1, queues(), 2, 3).unwrap();
        assert_eq!(
            accounts.charge(1, queues(), 2, 3).unwrap_err(),
            LimitReached { limit: 3, in_use: 2 }
        );
        let _other_uid = accounts.charge(2, queues(), 3, 3).unwrap();
        let _other_rule = accounts.charge(1, Resource::Queues("b".into()), 3, 3).unwrap();
        drop(first);
        let _again = accounts.charge(1, queues(), 3, 3).unwrap();
        assert!(accounts.charge(1, queues(), u64::MAX, u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_and_dropped_leaves_nothing(steps in prop::collection::vec((0u32..3, 0u64..5, any::<bool>()), 0..64)) {
            let accounts = Accounts::default();
            let mut held = Vec::new();
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (uid, amount, drop_one) in steps {
                if drop_one && !held.is_empty() {
                    let (uid, amount, charge) = held.swap_remove(0);
                    drop::<Charge>(charge);
                    *model.entry(uid).or_default() -= amount;
                }
                if let Ok(charge) = accounts.charge(uid, Resource::Connections, amount, 12) {
                    held.push((uid, amount, charge));
                    *model.entry(uid).or_default() += amount;
                }
                prop_assert!(model.values().all(|amount| *amount <= 12));
                prop_assert_eq!(accounts.total(&Resource::Connections), model.values().sum::<u64>());
            }
            held.clear();
            prop_assert!(accounts.lock().is_empty());
        }
    }
}
