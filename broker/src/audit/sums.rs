//! Refusals of one user beyond some a second are counted, and told in one line when that second is over.
//!
//! What a user can make the broker write without ever being granted anything is bounded by that, and still nothing is
//! hidden: the sum says how many there were, and for which reasons.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// So many lines a user has in each window; a client that is refused for a mistake sees all of them.
const LINES: u32 = 10;
/// Counted from a user's first refusal.
const WINDOW: Duration = Duration::from_secs(1);

/// Who was refused in the last second.
#[derive(Debug, Default)]
pub(super) struct Sums {
    windows: HashMap<u32, Window>,
    /// The same windows, as they began: all are equally long, so that the first is over first.
    order: VecDeque<(Instant, u32)>,
}

#[derive(Debug, Default)]
struct Window {
    lines: u32,
    summed: BTreeMap<String, u64>,
}

/// What was not written line by line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) uid: u32,
    pub(super) count: u64,
    /// "denied: 990, queue-busy: 10"
    pub(super) reasons: String,
}

impl Sums {
    /// Whether this refusal gets a line of its own; else it is counted.
    pub(super) fn admit(&mut self, uid: u32, reason: &str, now: Instant) -> bool {
        let window = self.windows.entry(uid).or_insert_with(|| {
            self.order.push_back((now, uid));
            Window::default()
        });
        if window.lines < LINES {
            window.lines += 1;
            return true;
        }
        match window.summed.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                window.summed.insert(reason.to_owned(), 1);
            }
        }
        false
    }

    /// When the next window is over.
    pub(super) fn due(&self) -> Option<Instant> {
        self.order.front().map(|(began, _)| *began + WINDOW)
    }

    /// The sum of a window that is over by then, if it has one.
    pub(super) fn over(&mut self, now: Instant) -> Option<Sum> {
        while self.due().is_some_and(|due| due <= now) {
            let sum = self.first();
            if sum.is_some() {
                return sum;
            }
        }
        None
    }

    /// The sum of whatever window, over or not, as long as there is one.
    pub(super) fn rest(&mut self) -> Option<Sum> {
        while !self.order.is_empty() {
            let sum = self.first();
            if sum.is_some() {
                return sum;
            }
        }
        None
    }

    /// Ends the first window.
    fn first(&mut self) -> Option<Sum> {
        let (_, uid) = self.order.pop_front()?;
        let window = self.windows.remove(&uid)?;
        let words = window
            .summed
            .iter()
            .map(|(reason, count)| format!("{reason}: {count}"));
        let sum = Sum {
            uid,
            count: window.summed.values().sum(),
            reasons: words.collect::<Vec<_>>().join(", "),
        };
        (sum.count > 0).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_limit_is_summed_for_each_user() {
        let (mut sums, began) = (Sums::default(), Instant::now());
        let admitted = (0..100).filter(|_| sums.admit(7, "denied", began)).count();
        assert_eq!(admitted, 10);
        assert!(!sums.admit(7, "queue-busy", began));
        assert!(sums.admit(8, "denied", began + WINDOW / 2));
        assert_eq!(sums.over(began + WINDOW / 2), None);
        let sum = sums.over(began + WINDOW).unwrap();
        assert_eq!((sum.uid, sum.count), (7, 91));
        assert_eq!(sum.reasons, "denied: 90, queue-busy: 1");
        // The other one's had nothing to sum, and a new one begins with lines.
        assert_eq!(sums.over(began + WINDOW * 2), None);
        assert_eq!(sums.due(), None);
        assert!(sums.admit(7, "denied", began + WINDOW));
    }
}
