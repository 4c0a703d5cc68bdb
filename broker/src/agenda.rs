//! When the engine has to look at which lease without anybody asking.
//!
//! **Invariant**: a [`Due`] is on its agenda exactly as long as it has a time, and leaves it when dropped. What is due is
//! found without looking at every lease.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use crate::lease::LeaseId;

/// All times, the next one first.
#[derive(Debug, Clone, Default)]
pub struct Agenda(Rc<RefCell<BTreeSet<(Instant, LeaseId)>>>);

impl Agenda {
    /// A place for one lease; nothing is due yet.
    pub fn place_for(&self, id: LeaseId) -> Due {
        Due {
            agenda: self.clone(),
            id,
            at: None,
        }
    }

    /// The next time at which something is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.borrow().first().map(|(at, _)| *at)
    }

    /// What is due by now, the longest overdue first.
    pub fn due_by(&self, now: Instant) -> Vec<LeaseId> {
        let entries = self.0.borrow();
        entries
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, id)| *id)
            .collect()
    }
}

/// When one lease is to be looked at.
#[derive(Debug)]
pub struct Due {
    agenda: Agenda,
    id: LeaseId,
    at: Option<Instant>,
}

impl Due {
    /// The time, if there is one.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Then, and not before.
    pub fn set(&mut self, at: Instant) {
        self.clear();
        self.at = Some(at);
        self.agenda.0.borrow_mut().insert((at, self.id));
    }

    /// Not at all.
    pub fn clear(&mut self) {
        if let Some(at) = self.at.take() {
            self.agenda.0.borrow_mut().remove(&(at, self.id));
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_next_time_is_known_and_what_is_dropped_is_off() {
        let agenda = Agenda::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [mut one, mut two] = [1, 2].map(|id| agenda.place_for(LeaseId(id)));
        assert_eq!(agenda.next(), None);
        one.set(at(5));
        two.set(at(3));
        assert_eq!(agenda.next(), Some(at(3)));
        two.set(at(7));
        assert_eq!((agenda.next(), two.at()), (Some(at(5)), Some(at(7))));
        assert_eq!(agenda.due_by(at(4)), []);
        assert_eq!(agenda.due_by(at(7)), [LeaseId(1), LeaseId(2)]);
        one.clear();
        drop(two);
        assert_eq!(agenda.next(), None);
    }
}
