//! A ring that the kernel produces and we consume: completion and RX.

#![expect(
    unsafe_code,
    reason = "what is released may be overwritten, so mapping such a ring is unsafe"
)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::{hint, io};

use super::cursor::{Consumer, CorruptRing};
use super::map::{Entry, MappedIndex, RingMap};
use super::{CompletionRing, Descriptor, FillRing, ProducerRing, Reserved, Run, RxRing, Wanted, transfer};
use crate::cast;
use crate::sys::{MmapOffsets, Ring};

/// The consuming half of a ring; see [`CompletionRing`] and [`RxRing`].
#[derive(Debug)]
pub struct ConsumerRing<D> {
    cursor: Consumer<MappedIndex>,
    map: RingMap<D>,
}

impl CompletionRing {
    /// Maps the completion ring of a socket, of `entries` entries.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer: an entry that two consumers take is one chunk with two owners.
    ///
    /// # Errors
    ///
    /// What mmap says; EPROTO for a ring whose indexes cannot be right.
    pub unsafe fn map(socket: BorrowedFd<'_>, offsets: &MmapOffsets, entries: u32) -> io::Result<Self> {
        Self::new(RingMap::<u64>::new(socket, Ring::Completion, offsets, entries)?)
    }
}

impl RxRing {
    /// Maps the RX ring of a socket, of `entries` entries.
    ///
    /// # Safety
    ///
    /// The caller is the only consumer: an entry that two consumers take is one frame with two owners.
    ///
    /// # Errors
    ///
    /// What mmap says; EPROTO for a ring whose indexes cannot be right.
    pub unsafe fn map(socket: BorrowedFd<'_>, offsets: &MmapOffsets, entries: u32) -> io::Result<Self> {
        Self::new(RingMap::<Descriptor>::new(socket, Ring::Rx, offsets, entries)?)
    }
}

impl CompletionRing {
    /// Moves up to `max` chunks that were sent to the fill ring, to be received into, and says how many.
    ///
    /// # Errors
    ///
    /// One of the rings is corrupt; nothing was moved.
    #[inline]
    pub fn recycle(&mut self, fill: &mut FillRing, max: u32) -> Result<u32, CorruptRing> {
        self.move_runs(fill, max, |source, target| {
            // SAFETY: runs of two rings that are borrowed and so mapped; `target` was reserved.
            unsafe { source.copy_all(&target) }
        })
    }
}

impl RxRing {
    /// Moves the addresses of up to `max` frames to the fill ring, to be received into again: [`Self::transfer`] for frames
    /// that are dropped unseen, without a look at their lengths.
    ///
    /// # Errors
    ///
    /// One of the rings is corrupt; nothing was moved.
    #[inline]
    pub fn recycle(&mut self, fill: &mut FillRing, max: u32) -> Result<u32, CorruptRing> {
        self.move_runs(fill, max, |source, target| {
            // SAFETY: runs of two rings that are borrowed and so mapped; `target` was reserved.
            unsafe { source.copy_addresses(&target) }
        })
    }

    /// Copies the entries that are there to the front of `copies`, as many as fit, and says how many. They stay in the ring.
    #[inline]
    pub(super) fn copy_ready(&mut self, copies: &mut [Descriptor]) -> Result<u32, CorruptRing> {
        let wanted = u32::try_from(copies.len()).unwrap_or(u32::MAX);
        let count = self.cursor.peek(0..=wanted)?;
        let run = self.map.run(self.cursor.index(), count);
        let beyond = self.map.first_run(count - run.count);
        let (first, rest) = copies.split_at_mut(run.count as usize);
        // SAFETY: a run of this ring, which is borrowed and so mapped; every x86-64 has SSE2.
        unsafe { run.copy_to(first) };
        // SAFETY: as above.
        unsafe { beyond.copy_to(rest) };
        Ok(count)
    }
}

impl<D: Entry> ConsumerRing<D> {
    fn new(map: RingMap<D>) -> io::Result<Self> {
        let (producer, consumer) = map.indexes();
        let cursor = Consumer::new(map.size(), producer, consumer).map_err(io::Error::other)?;
        Ok(Self { cursor, map })
    }

    /// Looks at entries: `n` or none, or with `min..=n` as many of `n` as there are, and none below `min`.
    ///
    /// ```no_run
    /// # fn run(rx: &mut xsk_client::ring::RxRing) -> Result<(), xsk_client::ring::CorruptRing> {
    /// if let Some(mut received) = rx.peek(1..=64)? {
    ///     for frame in &mut received {
    ///         println!("{} bytes at {}", frame.length, frame.address);
    ///     }
    ///     // One store gives back the entries that were read; without it they stay in the ring.
    ///     received.release();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The ring is corrupt.
    #[inline]
    pub fn peek(&mut self, wanted: impl Wanted) -> Result<Option<Peeked<'_, D>>, CorruptRing> {
        let count = self.cursor.peek(wanted.bounds())?;
        if count == 0 {
            return Ok(None);
        }
        let run = self.map.run(self.cursor.index(), count);
        Ok(Some(Peeked {
            count,
            next: run.start.as_ptr(),
            end: run.end(),
            beyond: count - run.count,
            ring: self,
        }))
    }

    /// Takes as many entries as are there and fit, into the front of `values`, and says how many.
    ///
    /// # Errors
    ///
    /// The ring is corrupt; nothing was taken.
    pub fn consume(&mut self, values: &mut [D]) -> Result<usize, CorruptRing> {
        let wanted = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let count = self.cursor.peek(0..=wanted)?;
        let taken = (count as usize).min(values.len());
        if taken > 0 {
            self.map.read_all(self.cursor.index(), &mut values[..taken]);
            self.cursor.release(count);
        }
        Ok(taken)
    }

    /// Moves up to `max` entries to another ring, as many as are there and fit, writes there what `change` makes of each,
    /// and publishes both at once. Says how many. Two guards in one, and the quickest way from ring to ring.
    ///
    /// ```no_run
    /// # use xsk_client::ring::{CorruptRing, Descriptor, RxRing, TxRing};
    /// /// Sends back what was received, without the last four bytes.
    /// fn reflect(rx: &mut RxRing, tx: &mut TxRing) -> Result<u32, CorruptRing> {
    ///     rx.transfer(tx, 64, |frame| Descriptor { length: frame.length.saturating_sub(4), ..frame })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// One of the rings is corrupt; nothing was moved.
    #[inline]
    pub fn transfer<T: Entry>(
        &mut self,
        to: &mut ProducerRing<T>,
        max: u32,
        mut change: impl FnMut(D) -> T,
    ) -> Result<u32, CorruptRing> {
        self.move_runs(to, max, |source, target| {
            // SAFETY: runs of two rings that are borrowed and so mapped; `target` was reserved.
            unsafe { transfer(source, target, &mut change) }
        })
    }

    /// `move_run` moves as many entries as both runs have, and says how many.
    #[inline(always)]
    fn move_runs<T: Entry>(
        &mut self,
        to: &mut ProducerRing<T>,
        max: u32,
        mut move_run: impl FnMut(Run<D>, Run<T>) -> u32,
    ) -> Result<u32, CorruptRing> {
        let there = self.cursor.peek(0..=max)?;
        let count = to.cursor.reserve(0..=there)?;
        let mut moved = 0;
        while moved < count {
            let source = self
                .map
                .run(self.cursor.index().wrapping_add(moved), count - moved);
            let target = to.map.run(to.cursor.index().wrapping_add(moved), count - moved);
            moved += move_run(source, target);
        }
        if count > 0 {
            self.cursor.release(count);
            to.cursor.advance(count);
            to.cursor.publish();
        }
        Ok(count)
    }

    /// Its size in entries.
    pub fn size(&self) -> u32 {
        self.map.size()
    }

    /// Up to `max` entries that lie one after another, to be read by pointer and then given back by `release`.
    #[inline]
    pub(crate) fn ready_run(&mut self, max: u32) -> Result<Run<D>, CorruptRing> {
        let count = self.cursor.peek(0..=max)?;
        Ok(self.map.run(self.cursor.index(), count))
    }

    /// Whether the next entry is the ring's first: the last run may have ended where the ring does, and not where what is
    /// ready does.
    #[inline]
    pub(crate) fn is_at_start(&self) -> bool {
        self.cursor.index() & (self.map.size() - 1) == 0
    }

    /// Gives entries of `ready_run`s back to the kernel.
    #[inline]
    pub(crate) fn release(&mut self, count: u32) {
        self.cursor.release(count);
    }
}

/// Entries to read, in order. [`Self::release`] gives those that were read back to the kernel, at once; dropping it
/// instead leaves them all in the ring.
#[derive(Debug)]
pub struct Peeked<'a, D: Entry> {
    ring: &'a mut ConsumerRing<D>,
    count: u32,
    /// The next entry to read, and the end of those that lie one after another.
    next: *const D,
    end: *const D,
    /// How many there are beyond the ring's end, from its start on.
    beyond: u32,
}

impl<D: Entry> Iterator for Peeked<'_, D> {
    type Item = D;

    #[inline]
    fn next(&mut self) -> Option<D> {
        if self.next == self.end {
            hint::cold_path();
            if !self.go_on() {
                return None;
            }
        }
        // SAFETY: before `end`, so an entry in the mapping, which the kernel has given.
        let entry = unsafe { D::read(self.next) };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.remaining() as usize;
        (left, Some(left))
    }
}

impl<D: Entry> ExactSizeIterator for Peeked<'_, D> {}

impl<D: Entry> Peeked<'_, D> {
    /// How many entries are left to read.
    #[inline]
    pub fn remaining(&self) -> u32 {
        self.run_count() + self.beyond
    }

    /// Reads entries and writes what `change` makes of each to another ring, as many as are here and fit there, and says
    /// how many. The quickest way from ring to ring: it looks at the ends of both once, not for each entry.
    ///
    /// ```no_run
    /// # use xsk_client::ring::{CorruptRing, FillRing, RxRing};
    /// /// Receives, and gives each chunk back to be received into.
    /// fn drop_all(rx: &mut RxRing, fill: &mut FillRing) -> Result<(), CorruptRing> {
    ///     let Some(mut received) = rx.peek(1..=64)? else { return Ok(()) };
    ///     // Not as many may be free as were received, for about a microsecond: then some wait for the next turn.
    ///     let Some(mut free) = fill.reserve(1..=received.remaining())? else { return Ok(()) };
    ///     received.transfer(&mut free, |frame| frame.address);
    ///     received.release();
    ///     free.commit();
    ///     Ok(())
    /// }
    /// ```
    #[inline]
    pub fn transfer<T: Entry>(&mut self, to: &mut Reserved<'_, T>, mut change: impl FnMut(D) -> T) -> u32 {
        let mut total = 0;
        loop {
            let (source, target) = (self.run(), to.run());
            // SAFETY: both rings are borrowed and so mapped; `to` has reserved the entries of `target`, which are
            // another ring's.
            let count = unsafe { transfer(source, target, &mut change) };
            if count == 0 {
                return total;
            }
            self.next = self.next.wrapping_add(count as usize);
            to.advance(count);
            total += count;
        }
    }

    /// Lets the kernel use the entries again that were read, and says how many that is.
    #[inline]
    pub fn release(self) -> u32 {
        let read = self.count - self.remaining();
        self.ring.cursor.release(read);
        read
    }

    /// Lets the kernel use all of them again, read or not, and says how many that is.
    #[inline]
    pub fn release_all(self) -> u32 {
        self.ring.cursor.release(self.count);
        self.count
    }

    /// The entries to read next, as far as they lie one after another. 0 where all are read.
    #[inline]
    fn run(&mut self) -> Run<D> {
        if self.next == self.end {
            self.go_on();
        }
        Run {
            // SAFETY: in the mapping, or at its end.
            start: unsafe { NonNull::new_unchecked(self.next.cast_mut()) },
            count: self.run_count(),
        }
    }

    #[inline]
    fn run_count(&self) -> u32 {
        cast::count((self.end.addr() - self.next.addr()) / size_of::<D>())
    }

    /// From the ring's end to its start, if there is more.
    #[cold]
    fn go_on(&mut self) -> bool {
        let run = self.ring.map.first_run(self.beyond);
        self.beyond = 0;
        if run.count > 0 {
            self.next = run.start.as_ptr();
            self.end = run.end();
        }
        run.count > 0
    }
}
