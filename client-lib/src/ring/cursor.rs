//! The index arithmetic of a ring with one producer and one consumer, without memory, fd or mapping.
//!
//! Indexes are free-running: they count entries modulo 2^32 from wherever they start, and the ring's size masks
//! them. Each side owns one index. It keeps its own in a plain integer, stores it with Release, and never reads it
//! back: the other side could have changed it. It keeps the last value seen of the other's, and loads that anew,
//! with Acquire, only when the kept value gives fewer entries than wanted. (Looking again only when there are none
//! makes a producer that wants batches spin for ever on a ring that always has one entry free.)
//!
//! **Publication.** A producer writes entries, then stores its index with Release; a consumer that loads the index
//! with Acquire and sees the new value also sees the entries. The other way round, a consumer reads entries, then
//! stores its index with Release; a producer that sees that value with Acquire writes over them only after they
//! were read. Loom checks both in the tests below.
//!
//! **Hostile peers.** Whatever the other side stores, the number of entries given out lies between 0 and the ring's
//! size, and entries keep within the ring since [`Producer::index`] and [`Consumer::index`] are masked by who uses
//! them.

use std::ops::RangeInclusive;

/// An index that both sides see.
pub trait SharedIndex {
    /// Loads with Acquire.
    fn load(&self) -> u32;
    /// Stores with Release.
    fn store(&self, value: u32);
}

/// The other side's index is further away than the ring is long: it was not the kernel's ring code that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring of {size} entries is corrupt: own index {own}, the other side's {peer}")]
pub struct CorruptRing {
    /// The ring's size in entries.
    pub size: u32,
    /// The index of this side.
    pub own: u32,
    /// What the other side claims.
    pub peer: u32,
}

/// The producing side's view.
#[derive(Debug)]
pub struct Producer<I> {
    /// The next entry to write, which may be ahead of what was published.
    own: u32,
    /// The consumer's index as last seen; `own - peer` entries are in use, at most `size`.
    peer: u32,
    size: u32,
    own_shared: I,
    peer_shared: I,
}

impl<I: SharedIndex> Producer<I> {
    /// Takes up a ring of `size` entries, a power of two, where its indexes stand.
    ///
    /// # Errors
    ///
    /// The indexes contradict each other.
    pub fn new(size: u32, producer: I, consumer: I) -> Result<Self, CorruptRing> {
        let (own, peer) = (producer.load(), consumer.load());
        distance(own, own, peer, size)?;
        Ok(Self {
            own,
            peer,
            size,
            own_shared: producer,
            peer_shared: consumer,
        })
    }

    /// How many entries may be written now: as many as the range's end where there is room, 0 where there is less
    /// than its start.
    ///
    /// # Errors
    ///
    /// The consumer's index cannot be right.
    #[inline]
    pub fn reserve(&mut self, wanted: RangeInclusive<u32>) -> Result<u32, CorruptRing> {
        let mut free = self.size - self.own.wrapping_sub(self.peer);
        if free < *wanted.end() {
            let peer = self.peer_shared.load();
            free = self.size - distance(self.own, self.own, peer, self.size)?;
            self.peer = peer;
        }
        let count = free.min(*wanted.end());
        Ok(if count < *wanted.start() { 0 } else { count })
    }

    /// Whether the consumer has taken all that was published, as far as it has told.
    #[inline]
    pub fn is_drained(&mut self) -> bool {
        let peer = self.peer_shared.load();
        // A value that cannot be right is not kept.
        if let Ok(0) = distance(self.own, self.own, peer, self.size) {
            self.peer = peer;
        }
        self.own == self.peer
    }

    /// The next entry to write; mask it with the ring's size.
    #[inline]
    pub fn index(&self) -> u32 {
        self.own
    }

    /// Counts `count` entries as written, without publishing them. They must have been reserved.
    #[inline]
    pub fn advance(&mut self, count: u32) {
        debug_assert!(
            count <= self.size - self.own.wrapping_sub(self.peer),
            "not reserved"
        );
        self.own = self.own.wrapping_add(count);
    }

    /// Lets the consumer see what was written.
    #[inline]
    pub fn publish(&self) {
        self.own_shared.store(self.own);
    }
}

/// The consuming side's view.
#[derive(Debug)]
pub struct Consumer<I> {
    /// The next entry to read.
    own: u32,
    /// The producer's index as last seen; `peer - own` entries are there, at most `size`.
    peer: u32,
    size: u32,
    own_shared: I,
    peer_shared: I,
}

impl<I: SharedIndex> Consumer<I> {
    /// Takes up a ring of `size` entries, a power of two, where its indexes stand.
    ///
    /// # Errors
    ///
    /// The indexes contradict each other.
    pub fn new(size: u32, producer: I, consumer: I) -> Result<Self, CorruptRing> {
        let (own, peer) = (consumer.load(), producer.load());
        distance(own, peer, own, size)?;
        Ok(Self {
            own,
            peer,
            size,
            own_shared: consumer,
            peer_shared: producer,
        })
    }

    /// How many entries may be read now: as many as the range's end where they are there, 0 where there are fewer
    /// than its start.
    ///
    /// # Errors
    ///
    /// The producer's index cannot be right.
    #[inline]
    pub fn peek(&mut self, wanted: RangeInclusive<u32>) -> Result<u32, CorruptRing> {
        let mut there = self.peer.wrapping_sub(self.own);
        if there < *wanted.end() {
            let peer = self.peer_shared.load();
            there = distance(self.own, peer, self.own, self.size)?;
            self.peer = peer;
        }
        let count = there.min(*wanted.end());
        Ok(if count < *wanted.start() { 0 } else { count })
    }

    /// The next entry to read; mask it with the ring's size.
    #[inline]
    pub fn index(&self) -> u32 {
        self.own
    }

    /// Gives `count` entries back to the producer. They must have been peeked.
    #[inline]
    pub fn release(&mut self, count: u32) {
        debug_assert!(count <= self.peer.wrapping_sub(self.own), "not peeked");
        self.own = self.own.wrapping_add(count);
        self.own_shared.store(self.own);
    }
}

/// How many entries lie between the two indexes, if they can be right at all.
#[inline]
fn distance(own: u32, produced: u32, consumed: u32, size: u32) -> Result<u32, CorruptRing> {
    let distance = produced.wrapping_sub(consumed);
    if distance > size {
        let peer = if own == produced { consumed } else { produced };
        return Err(CorruptRing { size, own, peer });
    }
    Ok(distance)
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
#[expect(
    unsafe_code,
    reason = "loom's cells give raw pointers, so that it can watch who uses them"
)]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    impl SharedIndex for Arc<AtomicU32> {
        fn load(&self) -> u32 {
            AtomicU32::load(self, Ordering::Acquire)
        }
        fn store(&self, value: u32) {
            AtomicU32::store(self, value, Ordering::Release);
        }
    }

    /// Sends numbers through a ring. What the consumer sees of them `give_back` is asked how many to give back. Loom's
    /// `UnsafeCell` fails the test if a read and a write of one entry are not ordered.
    fn numbers_pass(give_back: fn(&[u32]) -> usize) {
        let mut model = loom::model::Builder::new();
        // Bugs of this kind need few preemptions; every schedule without a bound takes minutes.
        model.preemption_bound = Some(3);
        model.check(move || {
            const SIZE: u32 = 2;
            const TOTAL: u32 = 3;
            let start = u32::MAX;
            let head = Arc::new(AtomicU32::new(start));
            let tail = Arc::new(AtomicU32::new(start));
            let memory = Arc::new([UnsafeCell::new(0_u32), UnsafeCell::new(0)]);
            let slot = |index: u32| usize::try_from(index & (SIZE - 1)).unwrap();

            let mut producer = Producer::new(SIZE, head.clone(), tail.clone()).unwrap();
            let mut consumer = Consumer::new(SIZE, head, tail).unwrap();
            let theirs = memory.clone();
            let thread = loom::thread::spawn(move || {
                let mut value = 0;
                while value < TOTAL {
                    let count = producer.reserve(1..=TOTAL - value).unwrap();
                    for offset in 0..count {
                        // SAFETY: a reserved entry is the producer's alone; loom checks it.
                        theirs[slot(producer.index().wrapping_add(offset))]
                            .with_mut(|entry| unsafe { *entry = value });
                        value += 1;
                    }
                    producer.advance(count);
                    producer.publish();
                    loom::thread::yield_now();
                }
            });
            let mut expected = 0;
            while expected < TOTAL {
                let count = consumer.peek(1..=SIZE).unwrap();
                let seen: Vec<u32> = (0..count)
                    .map(|offset| {
                        // SAFETY: a peeked entry is the consumer's alone; loom checks it.
                        memory[slot(consumer.index().wrapping_add(offset))].with(|entry| unsafe { *entry })
                    })
                    .collect();
                assert!(seen.iter().copied().eq(expected..expected + count), "{seen:?}");
                let given_back = u32::try_from(give_back(&seen)).unwrap();
                consumer.release(given_back);
                expected += given_back;
                loom::thread::yield_now();
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_entries_are_written_before_they_are_seen_and_read_before_they_are_reused() {
        numbers_pass(<[u32]>::len);
    }

    /// The first two are one packet. Its first half is looked at as often as it takes, and not given back by itself.
    #[test]
    fn loom_what_was_seen_and_not_given_back_is_seen_again() {
        numbers_pass(|seen| {
            seen.iter()
                .rposition(|number| *number > 0)
                .map_or(0, |last| last + 1)
        });
    }
}
