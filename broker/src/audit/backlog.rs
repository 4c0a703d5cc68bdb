//! The lines that wait to be written, in order and in bounded memory.
//!
//! Refusals have the smaller part of it: anybody can make any number of them, so they are what is dropped when nobody
//! takes the lines, and how many is told in the log, where they would have stood. Nothing else is ever dropped. What tells
//! of grants, ends and reloads has a larger reserve; when that is used up, nothing new is granted or transferred ([`Backlog::has_room`]), since
//! nobody is to hold what is not written down. Ends have room even then: there are no more of them than there are leases,
//! and to take something back must never depend on who reads a log.

use std::collections::VecDeque;
use std::time::Instant;

use super::line::{Event, Line};
use super::sums::{Sum, Sums};

/// From here on nothing new is granted: what could not be written down is held by nobody.
pub const RESERVE_BYTES: usize = 4 << 20;

/// How much may wait, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Refusals wait up to here.
    pub(super) refusals: usize,
    /// Up to here something new may be granted.
    pub(super) reserve: usize,
}

impl Bounds {
    /// Some 1,500 lines and some 12,000.
    pub(super) const USUAL: Self = Self {
        refusals: 512 << 10,
        reserve: RESERVE_BYTES,
    };
}

/// What waits, and what will not be written.
#[derive(Debug)]
pub(super) struct Backlog {
    bounds: Bounds,
    lines: VecDeque<String>,
    /// In `lines`, and of the one that is being written.
    bytes: usize,
    writing: usize,
    sums: Sums,
    /// Refusals are dropped until half of what waits has gone: else lines and gaps would alternate.
    shedding: bool,
    dropped_untold: u64,
    dropped: u64,
    summed: u64,
}

impl Backlog {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lines: VecDeque::new(),
            bytes: 0,
            writing: 0,
            sums: Sums::default(),
            shedding: false,
            dropped_untold: 0,
            dropped: 0,
            summed: 0,
        }
    }

    /// Takes a line, or counts it.
    pub(super) fn push(&mut self, line: &Line<'_>, now: Instant) {
        self.close_sums(now);
        match line.refusal() {
            Some((uid, reason)) => match self.sums.admit(uid, reason, now) {
                true => self.add_or_drop(line, 1),
                false => self.summed += 1,
            },
            None => self.add(line),
        }
    }

    /// The next line to be written; the one before was. A sum that is due by then stands before what comes later.
    pub(super) fn next(&mut self, now: Instant) -> Option<String> {
        self.bytes -= self.writing;
        self.writing = 0;
        self.close_sums(now);
        if self.lines.is_empty() {
            self.tell_dropped();
        }
        let line = self.lines.pop_front()?;
        self.writing = line.len();
        Some(line)
    }

    /// Nothing comes after this: what is summed is told now.
    pub(super) fn close(&mut self) {
        while let Some(sum) = self.sums.rest() {
            self.add_sum(&sum);
        }
    }

    /// When a sum is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sums.due()
    }

    /// Whether something new may be granted: what tells of it has a place.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < self.bounds.reserve
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How many bytes wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many lines wait, the one that is being written among them.
    pub(super) fn lines(&self) -> usize {
        self.lines.len() + usize::from(self.writing > 0)
    }

    /// How many refusals got no line, since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many refusals were counted only, since the start.
    pub(super) fn summed(&self) -> u64 {
        self.summed
    }

    fn close_sums(&mut self, now: Instant) {
        while let Some(sum) = self.sums.over(now) {
            self.add_sum(&sum);
        }
    }

    fn add_sum(&mut self, sum: &Sum) {
        let line = Line::new(Event::RefusalsSummed).uid(sum.uid).count(sum.count);
        self.add_or_drop(&line.message(&sum.reasons), sum.count);
    }

    /// A line that stands for so many refusals.
    fn add_or_drop(&mut self, line: &Line<'_>, refusals: u64) {
        self.shedding &= self.bytes > self.bounds.refusals / 2;
        self.shedding |= self.bytes >= self.bounds.refusals;
        if self.shedding {
            self.dropped += refusals;
            self.dropped_untold += refusals;
        } else {
            self.add(line);
        }
    }

    fn add(&mut self, line: &Line<'_>) {
        self.tell_dropped();
        self.append(line);
    }

    fn tell_dropped(&mut self) {
        let count = std::mem::take(&mut self.dropped_untold);
        if count > 0 {
            let message = "refusals without a line: the lines before them were not taken in time";
            self.append(&Line::new(Event::EventsDropped).count(count).message(message));
        }
    }

    fn append(&mut self, line: &Line<'_>) {
        match line.text() {
            Ok(text) => {
                self.bytes += text.len();
                self.lines.push_back(text);
            }
            Err(error) => tracing::error!(%error, ?line, "an audit line cannot be made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const SMALL: Bounds = Bounds {
        refusals: 2000,
        reserve: 4000,
    };

    /// Everything that waits, as events with their counts.
    fn drain(backlog: &mut Backlog, now: Instant) -> Vec<(String, Option<u64>)> {
        std::iter::from_fn(|| backlog.next(now))
            .map(|line| {
                assert!(line.ends_with('\n'), "{line}");
                let line: Value = serde_json::from_str(&line).unwrap();
                let event = line["event"].as_str().unwrap().to_owned();
                (event, line["count"].as_u64())
            })
            .collect()
    }

    fn refuse(backlog: &mut Backlog, uid: u32, now: Instant) {
        backlog.push(&Line::new(Event::Refused).uid(uid).reason("denied"), now);
    }

    #[test]
    fn only_refusals_are_dropped_and_the_log_says_how_many_and_where() {
        let (mut backlog, now) = (Backlog::new(SMALL), Instant::now());
        // Users of their own, so that none has so many that they are summed.
        for uid in 0..1000 {
            refuse(&mut backlog, uid, now);
        }
        let kept = u64::try_from(backlog.lines()).unwrap();
        assert!(backlog.bytes() >= SMALL.refusals && backlog.has_room());
        assert_eq!(backlog.dropped(), 1000 - kept);
        for _ in 0..100 {
            backlog.push(&Line::new(Event::Granted), now);
            refuse(&mut backlog, 5000, now);
        }
        assert!(!backlog.has_room());
        let told = drain(&mut backlog, now);
        let of = |event: &str| told.iter().filter(|(name, _)| name == event).count();
        assert_eq!(of("granted"), 100);
        let counted: u64 = told.iter().filter_map(|(_, count)| *count).sum();
        assert_eq!(counted, backlog.dropped(), "{told:?}");
        assert_eq!(of("refused"), usize::try_from(kept).unwrap());
        // Where they would have stood: before the grant that came next.
        let gap = told
            .iter()
            .position(|(event, _)| event == "events-dropped")
            .unwrap();
        assert_eq!(u64::try_from(gap).unwrap(), kept);
        assert_eq!(told[gap].1, Some(1000 - kept));
        assert_eq!(told[gap + 1].0, "granted");
        assert_eq!((backlog.bytes(), backlog.lines()), (0, 0));
        assert!(backlog.has_room());
    }

    #[test]
    fn a_flood_of_one_user_is_a_bounded_number_of_lines() {
        let (mut backlog, began) = (Backlog::new(Bounds::USUAL), Instant::now());
        for ms in 0..3000_u64 {
            let now = began + std::time::Duration::from_millis(ms);
            (0..17).for_each(|_| refuse(&mut backlog, 7, now));
        }
        backlog.close();
        let told = drain(&mut backlog, began);
        assert_eq!(told.len(), 3 * 11, "{told:?}");
        let counted: u64 = told.iter().map(|(_, count)| count.unwrap_or(1)).sum();
        assert_eq!(counted, 3000 * 17);
        assert_eq!(backlog.summed(), 3000 * 17 - 30);
    }

    #[test]
    fn a_gap_is_told_even_if_nothing_comes_after_it() {
        let (mut backlog, now) = (Backlog::new(SMALL), Instant::now());
        (0..1000).for_each(|uid| refuse(&mut backlog, uid, now));
        let told = drain(&mut backlog, now);
        assert_eq!(
            told.last().unwrap(),
            &("events-dropped".to_owned(), Some(backlog.dropped()))
        );
    }
}
