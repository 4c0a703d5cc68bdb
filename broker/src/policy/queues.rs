//! Sets of queue ids as a policy writes them: `2-4,7`, or `*` for all.
//!
//! Unlike [`QueueSet`], which is what one request asks for, such a set has no bound on its size: it is kept as
//! ranges, and nothing here ever counts up to a number that a file gave.

use std::fmt;
use std::str::FromStr;

use xsk_client::wire::QueueSet;

use super::mistake::shown;

/// A set of queue ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueRanges {
    /// First and last of each range; ascending, neither overlapping nor touching.
    ranges: Vec<(u32, u32)>,
}

/// Why a text is no set of queue ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueuesError {
    /// Nothing between two commas, or nothing at all.
    #[error("a queue id is missing")]
    Missing,
    /// Neither an id nor a range.
    #[error("`{}` is neither a queue id nor a range", shown(.0))]
    NotAnId(String),
    /// The first of a range is above its last.
    #[error("the range {0}-{1} runs backwards")]
    Backwards(u32, u32),
    /// The same id twice.
    #[error("queue {0} is given twice")]
    Twice(u32),
}

impl QueueRanges {
    /// Every queue id.
    pub fn all() -> Self {
        Self {
            ranges: vec![(0, u32::MAX)],
        }
    }

    /// Whether no id is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether `queue` is in it.
    pub fn contains(&self, queue: u32) -> bool {
        self.ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&queue))
    }

    /// Whether every id of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        let inside = |(first, last): &(u32, u32)| self.ranges.iter().any(|(f, l)| f <= first && last <= l);
        other.ranges.iter().all(inside)
    }

    /// The lowest id that both have.
    pub fn first_common(&self, other: &Self) -> Option<u32> {
        let overlap = |(first, last): &(u32, u32)| {
            let starts = other.ranges.iter().filter(|(f, l)| f <= last && first <= l);
            starts.map(|(f, _)| *f.max(first)).min()
        };
        self.ranges.iter().filter_map(overlap).min()
    }

    /// The first id that a device with `count` queues does not have; none where all that there are is meant.
    pub fn first_beyond(&self, count: u32) -> Option<u32> {
        if *self == Self::all() {
            return None;
        }
        let range = self.ranges.iter().find(|(_, last)| *last >= count)?;
        Some(range.0.max(count))
    }

    /// The ids below `count`, which is how many queues a device has.
    pub fn below(&self, count: u32) -> Vec<u32> {
        let bounded = self.ranges.iter().filter(|(first, _)| *first < count);
        bounded
            .flat_map(|(first, last)| *first..=(*last).min(count.saturating_sub(1)))
            .collect()
    }

    /// The set with these ids added.
    pub(super) fn with(&self, queues: &QueueSet) -> Self {
        let mut ranges = self.ranges.clone();
        ranges.extend(queues.iter().filter(|id| !self.contains(*id)).map(|id| (id, id)));
        Self::joined(ranges)
    }

    /// The set with these ids taken out.
    pub(super) fn without(&self, queues: &QueueSet) -> Self {
        let mut ranges = Vec::new();
        for (first, last) in &self.ranges {
            let mut next = Some(*first);
            for queue in queues.iter().filter(|id| (*first..=*last).contains(id)) {
                if let Some(from) = next.filter(|from| *from < queue) {
                    ranges.push((from, queue.saturating_sub(1)));
                }
                next = queue.checked_add(1).filter(|after| after <= last);
            }
            ranges.extend(next.map(|from| (from, *last)));
        }
        Self { ranges }
    }

    /// Sorts disjoint ranges and joins those that touch.
    fn joined(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, before)) if before.checked_add(1) == Some(first) => *before = last,
                _ => joined.push((first, last)),
            }
        }
        Self { ranges: joined }
    }
}

impl FromStr for QueueRanges {
    type Err = QueuesError;

    fn from_str(text: &str) -> Result<Self, QueuesError> {
        if text == "*" {
            return Ok(Self::all());
        }
        let mut ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[1].0 <= pair[0].1) {
            Some(pair) => Err(QueuesError::Twice(pair[1].0)),
            None => Ok(Self::joined(ranges)),
        }
    }
}

fn range(part: &str) -> Result<(u32, u32), QueuesError> {
    if part.is_empty() {
        return Err(QueuesError::Missing);
    }
    let id = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    match (id(first), id(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(first), Some(last)) => Err(QueuesError::Backwards(first, last)),
        _ => Err(QueuesError::NotAnId(part.to_owned())),
    }
}

impl fmt::Display for QueueRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            return f.pad("*");
        }
        let parts = self.ranges.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        f.pad(&parts.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> QueueRanges {
        text.parse().unwrap()
    }

    #[test]
    fn reads_and_prints_one_notation() {
        for (text, printed) in [
            ("*", "*"),
            ("0-4294967295", "*"),
            ("7,2-4", "2-4,7"),
            ("1,2,3", "1-3"),
            ("0", "0"),
        ] {
            assert_eq!(ranges(text).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_set() {
        for (text, why) in [
            ("", QueuesError::Missing),
            ("1,", QueuesError::Missing),
            ("4-2", QueuesError::Backwards(4, 2)),
            ("1-3,2", QueuesError::Twice(2)),
            ("0-4294967295,7", QueuesError::Twice(7)),
            ("2 -4", QueuesError::NotAnId("2 -4".into())),
            ("-1", QueuesError::NotAnId("-1".into())),
            ("+1", QueuesError::NotAnId("+1".into())),
            ("1-2-3", QueuesError::NotAnId("1-2-3".into())),
            ("4294967296", QueuesError::NotAnId("4294967296".into())),
            ("*,1", QueuesError::NotAnId("*".into())),
        ] {
            assert_eq!(text.parse::<QueueRanges>(), Err(why), "{text}");
        }
    }

    #[test]
    fn sets_add_and_subtract() {
        let queues = |text: &str| text.parse::<QueueSet>().unwrap();
        assert_eq!(ranges("2-4").with(&queues("1,3,7")).to_string(), "1-4,7");
        assert_eq!(ranges("0-9").without(&queues("0,5,9")).to_string(), "1-4,6-8");
        assert_eq!(
            ranges("*").without(&queues("4294967295")).to_string(),
            "0-4294967294"
        );
        assert!(ranges("3").without(&queues("3")).is_empty());
        assert_eq!(ranges("*").below(3), [0, 1, 2]);
        assert_eq!(ranges("*").first_beyond(3), None);
        assert_eq!(ranges("0-2").first_beyond(3), None);
        assert_eq!(ranges("1-5,9").first_beyond(3), Some(3));
        assert_eq!(ranges("1,9").first_beyond(3), Some(9));
        assert!(ranges("1-2,9").below(0).is_empty());
        assert!(ranges("0-9").covers(&ranges("1-3,9")) && !ranges("0-9").covers(&ranges("9-10")));
    }
}
