//! A ring as the kernel maps it: two indexes, a word of flags, and the entries.
//!
//! Everything here is shared with the kernel, which may write at any time: there are atomics and single reads and
//! writes through raw pointers, and never a reference to an entry. Positions are masked here, so that no index,
//! however wrong, reaches outside the mapping.

#![expect(unsafe_code, reason = "memory that the kernel writes too")]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::{io, ptr};

use rustix::io::Errno;
use rustix::net::xdp::XdpRingFlags;

use super::Descriptor;
use super::cursor::SharedIndex;
use super::run::{Access, Run};
use crate::sys::{self, Mapping, MmapOffsets, Prefault, Ring};

mod sealed {
    pub trait Sealed {}
    impl Sealed for u64 {}
    impl Sealed for super::Descriptor {}
}

/// What a ring holds: addresses or descriptors.
pub trait Entry: Copy + Access + sealed::Sealed {}

impl Entry for u64 {}
impl Entry for Descriptor {}

/// One of the two indexes. Lives as long as the mapping of the [`RingMap`] that made it, which is moved and dropped
/// together with it.
#[derive(Debug)]
pub(super) struct MappedIndex(NonNull<AtomicU32>);

// SAFETY: an atomic in a mapping of the whole process; it moves together with the mapping that holds it.
unsafe impl Send for MappedIndex {}

impl SharedIndex for MappedIndex {
    #[inline]
    fn load(&self) -> u32 {
        // SAFETY: in the mapping and aligned (checked by `RingMap::part`), mapped as long as `self` is in use; an
        // atomic may be shared with the kernel.
        let index = unsafe { self.0.as_ref() };
        index.load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, value: u32) {
        // SAFETY: as in `load`.
        let index = unsafe { self.0.as_ref() };
        index.store(value, Ordering::Release);
    }
}

/// The mapping of one ring.
#[derive(Debug)]
pub(super) struct RingMap<D> {
    entries: NonNull<D>,
    mask: u32,
    flags: Option<NonNull<AtomicU32>>,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    /// Holds the memory that the pointers above point into.
    _mapping: Mapping,
}

// SAFETY: the pointers lead into a mapping of the whole process that this value owns; what is not atomic is touched
// through `&mut` or by the one owner of the entries (see `write`).
unsafe impl<D: Entry> Send for RingMap<D> {}

impl<D: Entry> RingMap<D> {
    /// Maps `ring` of a socket.
    pub(super) fn new(
        socket: BorrowedFd<'_>,
        ring: Ring,
        offsets: &MmapOffsets,
        size: u32,
    ) -> io::Result<Self> {
        if !size.is_power_of_two() || size > sys::MAX_RING_ENTRIES {
            return Err(Errno::INVAL.into());
        }
        let offset = ring.offset_in(offsets);
        let desc = usize::try_from(offset.desc).map_err(|_| Errno::OVERFLOW)?;
        let entries_bytes = size_of::<D>() * usize::try_from(size).map_err(|_| Errno::OVERFLOW)?;
        let bytes = desc.checked_add(entries_bytes).ok_or(Errno::OVERFLOW)?;
        // The kernel maps a ring whole (`xsk_mmap`, net/xdp/xsk.c): there is nothing to prefault.
        let mapping = Mapping::new(socket, ring.page_offset(), bytes, Prefault::No)?;
        // They are: the kernel aligns them to cache lines (`struct xdp_rxtx_ring`, net/xdp/xsk_queue.h).
        if !desc.is_multiple_of(size_of::<D>()) {
            return Err(Errno::PROTO.into());
        }
        Ok(Self {
            entries: part(&mapping, offset.desc, entries_bytes)?,
            mask: size - 1,
            flags: match offset.flags {
                Some(flags) => Some(part(&mapping, flags, size_of::<u32>())?),
                None => None,
            },
            producer: part(&mapping, offset.producer, size_of::<u32>())?,
            consumer: part(&mapping, offset.consumer, size_of::<u32>())?,
            _mapping: mapping,
        })
    }

    /// Its two indexes, producer's and consumer's. They must not outlive `self`.
    pub(super) fn indexes(&self) -> (MappedIndex, MappedIndex) {
        (MappedIndex(self.producer), MappedIndex(self.consumer))
    }

    pub(super) fn size(&self) -> u32 {
        self.mask + 1
    }

    /// Writes entries from `index` on, around the end if need be. No more than the ring has.
    #[inline]
    pub(super) fn write_all(&mut self, index: u32, values: &[D]) {
        let run = self.until_end(index);
        if values.len() <= run {
            return self.write_run(index, values);
        }
        let (first, second) = values.split_at(run);
        self.write_run(index, first);
        self.write_run(0, second);
    }

    #[inline]
    fn write_run(&mut self, index: u32, values: &[D]) {
        let count = values.len().min(self.until_end(index));
        // SAFETY: `count` entries from a masked index on lie within the mapping (`until_end`) and within `values`; a
        // slice of ours and a mapping of the kernel's do not overlap.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.entry(index).as_ptr(), count) };
    }

    /// Reads entries from `index` on, around the end if need be. No more than the ring has.
    #[inline]
    pub(super) fn read_all(&self, index: u32, values: &mut [D]) {
        let run = self.until_end(index);
        if values.len() <= run {
            return self.read_run(index, values);
        }
        let (first, second) = values.split_at_mut(run);
        self.read_run(index, first);
        self.read_run(0, second);
    }

    #[inline]
    fn read_run(&self, index: u32, values: &mut [D]) {
        let count = values.len().min(self.until_end(index));
        // SAFETY: as in `write_run`. Each entry is read once, and any bits are a valid integer; the copy is ours alone
        // afterwards.
        unsafe { ptr::copy_nonoverlapping(self.entry(index).as_ptr(), values.as_mut_ptr(), count) };
    }

    /// Up to `count` entries from `index` on that lie one after another.
    #[inline]
    pub(super) fn run(&self, index: u32, count: u32) -> Run<D> {
        Run {
            start: self.entry(index),
            count: count.min(self.size() - (index & self.mask)),
        }
    }

    /// The entries from the ring's start on: where a run goes on that has reached the end.
    #[inline]
    pub(super) fn first_run(&self, count: u32) -> Run<D> {
        Run {
            start: self.entries,
            count: count.min(self.size()),
        }
    }

    /// Whether the kernel wants to be called once the entries published before this call are to be looked at.
    ///
    /// Two sides race here, each with one store and one load:
    ///
    /// - we store the producer index (Release), then load the flag;
    /// - the driver stores the flag, then loads the producer index, before it goes to sleep.
    ///
    /// If both loads came before the other side's store, we would see no flag and not call, the driver would see no
    /// entries and sleep: they would lie there until something else woke it. Acquire and Release do not forbid that,
    /// for a store may be delayed past a later load of another address (on x86 too: it waits in the store buffer).
    /// The full fence between our store and our load does: either our load sees the flag, or our index was visible
    /// before the driver's load. The other half is the driver's, which has its own barriers or, as most do, leaves
    /// the flag set while it may sleep. A poll() wakes it in any case.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        let Some(flags) = self.flags else { return true };
        fence(Ordering::SeqCst);
        // SAFETY: in the mapping and aligned, and atomic.
        let flags = unsafe { flags.as_ref() };
        flags.load(Ordering::Relaxed) & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }

    #[inline]
    fn entry(&self, index: u32) -> NonNull<D> {
        // A u32 fits a usize wherever there is AF_XDP; the mask keeps it below the ring's size.
        let position = (index & self.mask) as usize;
        // SAFETY: `mask + 1` entries were checked to lie within the mapping by `part`.
        unsafe { self.entries.add(position) }
    }

    fn until_end(&self, index: u32) -> usize {
        (self.size() - (index & self.mask)) as usize
    }
}

/// A pointer to `bytes` at `offset` in a mapping, if they are in it and aligned for `T`.
fn part<T>(mapping: &Mapping, offset: u64, bytes: usize) -> io::Result<NonNull<T>> {
    let offset = usize::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
    let end = offset.checked_add(bytes).ok_or(Errno::OVERFLOW)?;
    if end > mapping.len() || !offset.is_multiple_of(align_of::<T>()) {
        return Err(Errno::PROTO.into());
    }
    // SAFETY: `offset` is within the mapping, checked above.
    let start = unsafe { mapping.start().add(offset) };
    Ok(start.cast())
}
