//! The lines that wait to be written, in order and in bounded memory, which users share (`share.rs`).
//!
//! Refusals have the smaller part of it: anybody can make any number of them, so they are what is dropped when nobody
//! takes the lines, and how many of whom is told in the log, where they would have stood (`dropped.rs`). Nothing else is ever
//! dropped. What tells of grants, ends and reloads has a larger reserve; whoever has its share of that waiting is granted
//! nothing new and transfers nothing ([`Backlog::has_room`]), since nobody is to hold what is not written down. Ends have room
//! even then: there are no more of them than there are leases, and to take something back must never depend on who reads a
//! log.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use super::dropped::Dropped;
use super::line::{Event, Line};
use super::share::Share;
use super::sums::{Sum, Sums};

/// When so much waits nothing new is granted to anybody: what could not be written down is held by nobody.
pub const RESERVE_BYTES: usize = 4 << 20;

/// How much may wait, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Of it, refusals.
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
    lines: VecDeque<(String, Counted)>,
    /// The one that is being written, which counts until it is.
    writing: Option<Counted>,
    /// All lines.
    all: Share,
    /// Those of them that may be dropped.
    refusals: Share,
    sums: Sums,
    /// Whose refusals are dropped, and whether all are, until half of what waits of them has gone: else lines and gaps would
    /// alternate.
    shedding: HashSet<u32>,
    shedding_all: bool,
    untold: Dropped,
    dropped: u64,
    summed: u64,
}

/// What a line counts for.
#[derive(Debug, Clone, Copy)]
struct Counted {
    uid: Option<u32>,
    bytes: usize,
    can_be_dropped: bool,
}

impl Backlog {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            lines: VecDeque::new(),
            writing: None,
            all: Share::new(bounds.reserve),
            refusals: Share::new(bounds.refusals),
            sums: Sums::default(),
            shedding: HashSet::new(),
            shedding_all: false,
            untold: Dropped::default(),
            dropped: 0,
            summed: 0,
        }
    }

    /// Takes a line, or counts it.
    pub(super) fn push(&mut self, line: &Line<'_>, now: Instant) {
        self.close_sums(now);
        match line.refusal() {
            Some((uid, reason)) => match self.sums.admit(uid, reason, now) {
                true => self.add_or_drop(line, uid, 1),
                false => self.summed += 1,
            },
            None => match line.droppable() {
                Some(uid) => self.add_or_drop(line, uid, 1),
                None => self.add(line),
            },
        }
    }

    /// The next line to be written; the one before was. A sum that is due by then stands before what comes later.
    pub(super) fn next(&mut self, now: Instant) -> Option<String> {
        if let Some(written) = self.writing.take() {
            self.count_out(written);
        }
        self.close_sums(now);
        if self.lines.is_empty() {
            self.tell_dropped();
        }
        let (text, counted) = self.lines.pop_front()?;
        self.writing = Some(counted);
        Some(text)
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

    /// Whether something new may be granted to a user: what tells of it has a place.
    pub(super) fn has_room(&self, uid: u32) -> bool {
        self.all.has_room(uid)
    }

    /// All lines that wait, in bytes and by user.
    pub(super) fn share(&self) -> &Share {
        &self.all
    }

    /// How many lines wait, the one that is being written among them.
    pub(super) fn lines(&self) -> usize {
        self.lines.len() + usize::from(self.writing.is_some())
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
        self.add_or_drop(&line.message(&sum.reasons), sum.uid, sum.count);
    }

    /// A line that stands for so many refusals of a user.
    fn add_or_drop(&mut self, line: &Line<'_>, uid: u32, refusals: u64) {
        if self.sheds(uid) {
            self.dropped += refusals;
            self.untold.add(uid, refusals);
        } else {
            self.add(line);
        }
    }

    fn sheds(&mut self, uid: u32) -> bool {
        let (own, left) = (self.refusals.of(uid), self.refusals.left());
        self.shedding_all &= left < self.refusals.limit() / 2;
        self.shedding_all |= left == 0;
        if own <= left / 2 {
            self.shedding.remove(&uid);
        } else if !self.refusals.has_room(uid) && own > 0 {
            self.shedding.insert(uid);
        }
        self.shedding_all || self.shedding.contains(&uid)
    }

    fn add(&mut self, line: &Line<'_>) {
        self.tell_dropped();
        self.append(line);
    }

    fn tell_dropped(&mut self) {
        let untold = std::mem::take(&mut self.untold);
        if untold.count() > 0 {
            let message = format!(
                "refusals without a line, since those before them were not taken in time: {}",
                untold.words()
            );
            let line = Line::new(Event::EventsDropped).count(untold.count());
            self.append(&line.message(&message));
        }
    }

    fn append(&mut self, line: &Line<'_>) {
        match line.text() {
            Ok(text) => {
                let counted = Counted {
                    uid: line.whose(),
                    bytes: text.len(),
                    can_be_dropped: line.droppable().is_some(),
                };
                self.count_in(counted);
                self.lines.push_back((text, counted));
            }
            Err(error) => tracing::error!(%error, ?line, "an audit line cannot be made"),
        }
    }

    fn count_in(&mut self, line: Counted) {
        self.all.add(line.uid, line.bytes);
        if line.can_be_dropped {
            self.refusals.add(line.uid, line.bytes);
        }
    }

    fn count_out(&mut self, line: Counted) {
        self.all.take(line.uid, line.bytes);
        if line.can_be_dropped {
            self.refusals.take(line.uid, line.bytes);
        }
        if self.refusals.waiting() == 0 {
            self.shedding.clear();
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

    const ANYBODY: u32 = 77;

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
        assert!(backlog.share().waiting() >= SMALL.refusals && backlog.has_room(ANYBODY));
        assert_eq!(backlog.dropped(), 1000 - kept);
        for _ in 0..100 {
            backlog.push(&Line::new(Event::Granted), now);
            refuse(&mut backlog, 5000, now);
        }
        assert!(!backlog.has_room(ANYBODY));
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
        assert_eq!((backlog.share().waiting(), backlog.lines()), (0, 0));
        assert!(backlog.has_room(ANYBODY));
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

    /// Grants and ends by one user, as fast as they come.
    #[test]
    fn who_takes_all_room_leaves_room_for_who_has_none() {
        const FLOODS: u32 = 7;

        let (mut backlog, now) = (Backlog::new(Bounds::USUAL), Instant::now());
        while backlog.has_room(FLOODS) {
            backlog.push(&Line::new(Event::Granted).uid(FLOODS), now);
            backlog.push(&Line::new(Event::Ended).uid(FLOODS), now);
        }
        let waiting = backlog.share().waiting();
        assert!(waiting.abs_diff(RESERVE_BYTES / 2) < 1000, "{waiting}");
        assert!(backlog.has_room(ANYBODY));
        // Nor does it hide whose refusals there are.
        refuse(&mut backlog, ANYBODY, now);
        assert_eq!(backlog.dropped(), 0);
        drop(drain(&mut backlog, now));
        assert!(backlog.has_room(FLOODS));
    }

    #[test]
    fn whose_refusals_are_dropped_is_told_and_one_users_flood_drops_only_its_own() {
        let (mut backlog, began) = (Backlog::new(SMALL), Instant::now());
        // Ten lines and a sum in each second: more than fit.
        let seconds = 20;
        for second in 0..seconds {
            let now = began + std::time::Duration::from_secs(second);
            (0..30).for_each(|_| refuse(&mut backlog, 7, now));
        }
        let now = began + std::time::Duration::from_secs(seconds);
        refuse(&mut backlog, ANYBODY, now);
        assert!(backlog.dropped() > 0);
        let lines: Vec<Value> = std::iter::from_fn(|| backlog.next(now))
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect();
        let of = |event: &str, uid: u32| {
            let wanted = |line: &&Value| line["event"] == event && line["uid"] == uid;
            lines.iter().filter(wanted).count()
        };
        assert_eq!(of("refused", ANYBODY), 1, "{lines:?}");
        let told: Vec<&str> = lines
            .iter()
            .filter(|line| line["event"] == "events-dropped")
            .map(|line| line["message"].as_str().unwrap())
            .collect();
        let words = format!("uid 7: {}", backlog.dropped());
        assert!(told.len() == 1 && told[0].ends_with(&words), "{told:?}");
    }
}
