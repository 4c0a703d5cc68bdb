//! Whose turn it is: what waits for the engine, in fair order.
//!
//! What must not wait goes first: ends of leases, news of devices, the operator's word. Behind it users have turns, one
//! job each, round and round, so that one user's flood of slow requests costs another at most one of them.
//!
//! **Invariant**: a user waits behind one job of each other user, however many jobs those have. Nothing here is bounded
//! by itself: each connection has one job at most, and connections are charged.

use std::collections::{HashMap, VecDeque};

/// In whose name something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody's: it goes before everything that users ask for.
    First,
    /// This uid's.
    Of(u32),
}

/// What waits.
#[derive(Debug)]
pub struct Turns<J> {
    first: VecDeque<J>,
    /// Never an empty queue.
    by_uid: HashMap<u32, VecDeque<J>>,
    /// Each uid of `by_uid`, once, in the order of their turns.
    order: VecDeque<u32>,
}

impl<J> Default for Turns<J> {
    fn default() -> Self {
        Self {
            first: VecDeque::new(),
            by_uid: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<J> Turns<J> {
    /// Adds something, behind what waits in the same name.
    pub fn push(&mut self, turn: Turn, job: J) {
        match turn {
            Turn::First => self.first.push_back(job),
            Turn::Of(uid) => {
                let jobs = self.by_uid.entry(uid).or_default();
                if jobs.is_empty() {
                    self.order.push_back(uid);
                }
                jobs.push_back(job);
            }
        }
    }

    /// Takes what is next.
    pub fn pop(&mut self) -> Option<J> {
        if let Some(job) = self.first.pop_front() {
            return Some(job);
        }
        let uid = self.order.pop_front()?;
        let jobs = self.by_uid.get_mut(&uid)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.by_uid.remove(&uid);
        } else {
            self.order.push_back(uid);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(turns: &mut Turns<(Turn, u32)>) -> Vec<(Turn, u32)> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn a_flood_costs_another_one_job() {
        let mut turns = Turns::default();
        for number in 0..100 {
            turns.push(Turn::Of(1), (Turn::Of(1), number));
        }
        turns.push(Turn::Of(2), (Turn::Of(2), 0));
        turns.push(Turn::First, (Turn::First, 0));
        let order = drain(&mut turns);
        assert_eq!(order[..3], [(Turn::First, 0), (Turn::Of(1), 0), (Turn::Of(2), 0)]);
        assert_eq!(order.len(), 102);
    }

    proptest! {
        /// Nothing is lost, each user's jobs keep their order, and between two jobs of one user who still waits nobody
        /// else has two.
        #[test]
        fn turns_are_fair(pushes in prop::collection::vec((0u32..5, 0u32..4), 0..200)) {
            let mut turns = Turns::default();
            let mut pushed = 0u32;
            let mut order = Vec::new();
            for (uid, pops) in pushes {
                let turn = if uid == 0 { Turn::First } else { Turn::Of(uid) };
                turns.push(turn, (turn, pushed));
                pushed += 1;
                for _ in 1..pops {
                    order.extend(turns.pop());
                }
            }
            // From here on everybody who waits has waited from the start.
            let rest = drain(&mut turns);
            for uid in 1..5 {
                let at: Vec<usize> = (0..rest.len()).filter(|at| rest[*at].0 == Turn::Of(uid)).collect();
                for pair in at.windows(2) {
                    let between = &rest[pair[0] + 1..pair[1]];
                    for other in 1..5 {
                        let had = between.iter().filter(|(turn, _)| *turn == Turn::Of(other)).count();
                        prop_assert!(had <= 1, "uid {} had {} turns between two of uid {}: {:?}", other, had, uid, rest);
                    }
                }
            }
            order.extend(rest);
            for uid in 0..5 {
                let turn = if uid == 0 { Turn::First } else { Turn::Of(uid) };
                let numbers: Vec<u32> = order.iter().filter(|(whose, _)| *whose == turn).map(|(_, number)| *number).collect();
                prop_assert!(numbers.is_sorted());
            }
            prop_assert_eq!(order.len(), usize::try_from(pushed).unwrap());
        }
    }
}
