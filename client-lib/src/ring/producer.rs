//! A ring that we produce and the kernel consumes: fill and TX.

#![expect(
    unsafe_code,
    reason = "what is written names memory, so mapping such a ring is unsafe"
)]

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

use super::cursor::{CorruptRing, Producer};
use super::map::{Entry, MappedIndex, RingMap, Run};
use super::{Descriptor, FillRing, TxRing};
use crate::sys::{MmapOffsets, Ring};

/// The producing half of a ring; see [`FillRing`] and [`TxRing`].
#[derive(Debug)]
pub struct ProducerRing<D> {
    cursor: Producer<MappedIndex>,
    map: RingMap<D>,
}

impl FillRing {
    /// Maps the fill ring of a socket, of `entries` entries.
    ///
    /// # Safety
    ///
    /// The kernel writes received packets to whatever address of the umem is produced here, at any time until it
    /// comes back in the RX ring. The caller answers for nothing else using those bytes meanwhile, and for being the
    /// only producer.
    ///
    /// # Errors
    ///
    /// What mmap says; EPROTO for a ring whose indexes cannot be right.
    pub unsafe fn map(socket: BorrowedFd<'_>, offsets: &MmapOffsets, entries: u32) -> io::Result<Self> {
        Self::new(RingMap::<u64>::new(socket, Ring::Fill, offsets, entries)?)
    }
}

impl TxRing {
    /// Maps the TX ring of a socket, of `entries` entries.
    ///
    /// # Safety
    ///
    /// The kernel reads the frames named here until they come back in the completion ring. The caller answers for
    /// nothing writing to them meanwhile, and for being the only producer.
    ///
    /// # Errors
    ///
    /// What mmap says; EPROTO for a ring whose indexes cannot be right.
    pub unsafe fn map(socket: BorrowedFd<'_>, offsets: &MmapOffsets, entries: u32) -> io::Result<Self> {
        Self::new(RingMap::<Descriptor>::new(socket, Ring::Tx, offsets, entries)?)
    }
}

impl<D: Entry> ProducerRing<D> {
    fn new(map: RingMap<D>) -> io::Result<Self> {
        let (producer, consumer) = map.indexes();
        let cursor = Producer::new(map.size(), producer, consumer).map_err(io::Error::other)?;
        Ok(Self { cursor, map })
    }

    /// Reserves entries: as many as the range's end where there is room, none where there is less than its start.
    ///
    /// # Errors
    ///
    /// The ring is corrupt.
    pub fn reserve(&mut self, wanted: RangeInclusive<u32>) -> Result<Option<Reserved<'_, D>>, CorruptRing> {
        let count = self.cursor.reserve(wanted)?;
        Ok((count > 0).then_some(Reserved {
            ring: self,
            count,
            written: 0,
        }))
    }

    /// Writes and publishes as many of `values` as there is room for, from the front, and says how many.
    ///
    /// # Errors
    ///
    /// The ring is corrupt; nothing was written.
    pub fn produce(&mut self, values: &[D]) -> Result<usize, CorruptRing> {
        let wanted = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let count = self.cursor.reserve(0..=wanted)?;
        let written = (count as usize).min(values.len());
        if written > 0 {
            self.map.write_all(self.cursor.index(), &values[..written]);
            self.cursor.advance(count);
            self.cursor.publish();
        }
        Ok(written)
    }

    /// As [`Self::produce`], but from the end of `values`: for a stack whose top is taken.
    ///
    /// # Errors
    ///
    /// The ring is corrupt; nothing was written.
    #[inline]
    pub fn produce_last(&mut self, values: &[D]) -> Result<usize, CorruptRing> {
        let wanted = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let count = self.cursor.reserve(0..=wanted)?;
        let written = (count as usize).min(values.len());
        if written > 0 {
            self.map
                .write_all(self.cursor.index(), &values[values.len() - written..]);
            self.cursor.advance(count);
            self.cursor.publish();
        }
        Ok(written)
    }

    /// Whether the kernel is to be called after what was published. Costs a full fence: ask once a batch.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.map.needs_wakeup()
    }

    /// Its size in entries.
    pub fn size(&self) -> u32 {
        self.map.size()
    }

    /// Whether the kernel has taken everything.
    #[inline]
    pub(crate) fn is_drained(&mut self) -> bool {
        self.cursor.is_drained()
    }

    /// Up to `max` free entries that lie one after another, to be written by pointer and then counted by `advance`.
    #[inline]
    pub(crate) fn free_run(&mut self, max: u32) -> Result<Run<D>, CorruptRing> {
        let count = self.cursor.reserve(0..=max)?;
        Ok(self.map.run(self.cursor.index(), count))
    }

    /// Counts entries of a `free_run` as written.
    #[inline]
    pub(crate) fn advance(&mut self, count: u32) {
        self.cursor.advance(count);
    }

    /// Lets the kernel see what was counted.
    #[inline]
    pub(crate) fn publish(&self) {
        self.cursor.publish();
    }
}

/// Reserved entries. [`Self::commit`] publishes what was written, once; dropping it gives everything back.
#[derive(Debug)]
pub struct Reserved<'a, D: Entry> {
    ring: &'a mut ProducerRing<D>,
    count: u32,
    written: u32,
}

impl<D: Entry> Reserved<'_, D> {
    /// How many more entries may be written.
    pub fn remaining(&self) -> u32 {
        self.count - self.written
    }

    /// Writes the next entry.
    ///
    /// # Errors
    ///
    /// Gives the value back where everything reserved has been written.
    #[inline]
    pub fn write(&mut self, value: D) -> Result<(), D> {
        if self.written == self.count {
            return Err(value);
        }
        let index = self.ring.cursor.index().wrapping_add(self.written);
        self.ring.map.write(index, value);
        self.written += 1;
        Ok(())
    }

    /// Lets the kernel see what was written, and says how much it was.
    #[inline]
    pub fn commit(self) -> u32 {
        self.ring.cursor.advance(self.written);
        self.ring.cursor.publish();
        self.written
    }
}
