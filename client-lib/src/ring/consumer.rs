//! A ring that the kernel produces and we consume: completion and RX.

#![expect(
    unsafe_code,
    reason = "what is released may be overwritten, so mapping such a ring is unsafe"
)]

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

use super::cursor::{Consumer, CorruptRing};
use super::map::{Entry, MappedIndex, RingMap, Run};
use super::{CompletionRing, Descriptor, RxRing};
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

impl<D: Entry> ConsumerRing<D> {
    fn new(map: RingMap<D>) -> io::Result<Self> {
        let (producer, consumer) = map.indexes();
        let cursor = Consumer::new(map.size(), producer, consumer).map_err(io::Error::other)?;
        Ok(Self { cursor, map })
    }

    /// Looks at entries: as many as the range's end where they are there, none where there are fewer than its start.
    ///
    /// # Errors
    ///
    /// The ring is corrupt.
    pub fn peek(&mut self, wanted: RangeInclusive<u32>) -> Result<Option<Peeked<'_, D>>, CorruptRing> {
        let count = self.cursor.peek(wanted)?;
        Ok((count > 0).then_some(Peeked {
            ring: self,
            count,
            read: 0,
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

    /// Gives entries of a `ready_run` back to the kernel.
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
    read: u32,
}

impl<D: Entry> Iterator for Peeked<'_, D> {
    type Item = D;

    #[inline]
    fn next(&mut self) -> Option<D> {
        if self.read == self.count {
            return None;
        }
        let index = self.ring.cursor.index().wrapping_add(self.read);
        self.read += 1;
        Some(self.ring.map.read(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.count - self.read) as usize;
        (left, Some(left))
    }
}

impl<D: Entry> ExactSizeIterator for Peeked<'_, D> {}

impl<D: Entry> Peeked<'_, D> {
    /// Lets the kernel use the entries again that were read, and says how many that is.
    #[inline]
    pub fn release(self) -> u32 {
        self.ring.cursor.release(self.read);
        self.read
    }
}
