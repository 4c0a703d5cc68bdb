//! A ring that we produce and the kernel consumes: fill and TX.

#![expect(
    unsafe_code,
    reason = "what is written names memory, so mapping such a ring is unsafe"
)]

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::{hint, io};

use super::cursor::{CorruptRing, Producer};
use super::map::{Entry, MappedIndex, RingMap};
use super::{Descriptor, FillRing, Run, TxRing, Wanted};
use crate::cast;
use crate::sys::{MmapOffsets, Ring};

/// The producing half of a ring; see [`FillRing`] and [`TxRing`].
#[derive(Debug)]
pub struct ProducerRing<D> {
    pub(super) cursor: Producer<MappedIndex>,
    pub(super) map: RingMap<D>,
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

impl FillRing {
    /// Writes and publishes the addresses of as many of `frames` as there is room for, from the front, and says how many.
    #[inline]
    pub(crate) fn produce_addresses(&mut self, frames: &[Cell<Descriptor>]) -> Result<usize, CorruptRing> {
        let wanted = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let count = self.cursor.reserve(0..=wanted)?;
        let run = self.map.run(self.cursor.index(), count);
        // SAFETY: reserved entries of this ring, borrowed for writing.
        unsafe { run.write_addresses(frames) };
        if run.count < count {
            self.produce_wrapped(count - run.count, frames.get(run.count as usize..));
        }
        self.cursor.advance(count);
        self.cursor.publish();
        Ok(count as usize)
    }

    /// The rest of what has come to the ring's end.
    #[cold]
    fn produce_wrapped(&mut self, count: u32, frames: Option<&[Cell<Descriptor>]>) {
        let run = self.map.first_run(count);
        // SAFETY: as in `produce_addresses`.
        unsafe { run.write_addresses(frames.unwrap_or_default()) };
    }
}

impl<D: Entry> ProducerRing<D> {
    fn new(map: RingMap<D>) -> io::Result<Self> {
        let (producer, consumer) = map.indexes();
        let cursor = Producer::new(map.size(), producer, consumer).map_err(io::Error::other)?;
        Ok(Self { cursor, map })
    }

    /// Reserves entries: `n` or none, or with `min..=n` as many of `n` as there is room for, and none below `min`.
    ///
    /// ```no_run
    /// # fn run(tx: &mut xsk_client::ring::TxRing) -> Result<(), xsk_client::ring::CorruptRing> {
    /// use xsk_client::ring::Descriptor;
    ///
    /// if let Some(mut free) = tx.reserve(1..=64)? {
    ///     let frames = (0..).map(|chunk| Descriptor { address: chunk * 2048, length: 60, options: 0 });
    ///     free.write_from(frames);
    ///     // One store publishes them all; without it nothing is sent.
    ///     free.commit();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The ring is corrupt.
    #[inline]
    pub fn reserve(&mut self, wanted: impl Wanted) -> Result<Option<Reserved<'_, D>>, CorruptRing> {
        let count = self.cursor.reserve(wanted.bounds())?;
        if count == 0 {
            return Ok(None);
        }
        let run = self.map.run(self.cursor.index(), count);
        Ok(Some(Reserved {
            count,
            next: run.start.as_ptr(),
            end: run.end(),
            beyond: count - run.count,
            ring: self,
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

    /// How many entries are free, `max` at most; none where the ring is corrupt.
    pub(crate) fn free_entries(&mut self, max: u32) -> u32 {
        self.cursor.reserve(0..=max).unwrap_or(0)
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
    /// The next entry to write, and the end of those that lie one after another.
    next: *mut D,
    end: *mut D,
    /// How many there are beyond the ring's end, from its start on.
    beyond: u32,
}

impl<D: Entry> Reserved<'_, D> {
    /// How many more entries may be written.
    #[inline]
    pub fn remaining(&self) -> u32 {
        self.run_count() + self.beyond
    }

    /// Writes the next entry.
    ///
    /// # Errors
    ///
    /// Gives the value back where everything reserved has been written.
    #[inline]
    pub fn write(&mut self, value: D) -> Result<(), D> {
        if self.next == self.end {
            hint::cold_path();
            if !self.go_on() {
                return Err(value);
            }
        }
        // SAFETY: before `end`, so a reserved entry in the mapping; the guard borrows the ring, and with it all of our
        // writers.
        unsafe { D::write(self.next, value) };
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Writes entries as long as there are values and room, and says how many. Takes no value that it cannot write.
    #[inline]
    pub fn write_from(&mut self, values: impl IntoIterator<Item = D>) -> u32 {
        const UNROLLED: u32 = 8;
        let before = self.remaining();
        let mut values = values.into_iter();
        'values: loop {
            let run = self.run_count();
            // In blocks, so that the end is looked at once for each.
            for (blocks, entries) in [(run / UNROLLED, UNROLLED), (run % UNROLLED, 1)] {
                for _ in 0..blocks {
                    for _ in 0..entries {
                        let Some(value) = values.next() else {
                            break 'values;
                        };
                        // SAFETY: as in `write`.
                        unsafe { D::write(self.next, value) };
                        self.next = self.next.wrapping_add(1);
                    }
                }
            }
            if !self.go_on() {
                break;
            }
        }
        before - self.remaining()
    }

    /// Lets the kernel see what was written, and says how much it was.
    #[inline]
    pub fn commit(self) -> u32 {
        let written = self.count - self.remaining();
        self.ring.cursor.advance(written);
        self.ring.cursor.publish();
        written
    }

    /// The entries to write next, as far as they lie one after another. 0 where all are written.
    #[inline]
    pub(super) fn run(&mut self) -> Run<D> {
        if self.next == self.end {
            self.go_on();
        }
        Run {
            // SAFETY: in the mapping, or at its end.
            start: unsafe { NonNull::new_unchecked(self.next) },
            count: self.run_count(),
        }
    }

    /// Counts entries of `run` as written.
    #[inline]
    pub(super) fn advance(&mut self, count: u32) {
        debug_assert!(count <= self.run_count(), "not reserved");
        self.next = self.next.wrapping_add(count as usize);
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
