//! The window of a batch: as many free chunks as TX entries, in which one offset counts up to 0 for both.

#![expect(unsafe_code, reason = "batches are walked by pointer")]

use crate::cast;
use crate::entries::write_entry;
use crate::frame::UnsentReason;
use crate::ring::Descriptor;
use crate::xsk::Core;

/// The size of a free list's entry, as steps are counted.
pub(super) const STEP: isize = size_of::<u64>().cast_signed();
/// A TX entry is so much larger.
const RATIO: isize = size_of::<Descriptor>().cast_signed() / STEP;

/// The window, and the entries that are ours and not in it.
#[derive(Debug)]
pub(super) struct Window {
    /// One past its last chunk, which is the top of the free list.
    pub(super) free_end: *mut u64,
    /// One past its last TX entry.
    pub(super) tx_end: *mut Descriptor,
    /// The next chunk, in bytes from `free_end`: 0 when it is used up, or closed.
    pub(super) next: isize,
    /// How many chunks and entries it had.
    pub(super) count: u32,
    /// How many entries are ours beyond `tx_end`.
    pub(super) beyond: u32,
    /// How many more the caller may want than these.
    pub(super) wanted: u32,
    /// The first entry that was not counted as written.
    pub(super) tx_first: *mut Descriptor,
    /// How many were counted.
    pub(super) staged: u32,
}

impl Window {
    /// Has something rare done to a copy, by single fields: so the compiler keeps the original in registers.
    #[inline]
    pub(super) fn with_copy(&mut self, core: &mut Core, change: impl FnOnce(&mut Self, &mut Core)) {
        let mut copy = Self {
            free_end: self.free_end,
            tx_end: self.tx_end,
            next: self.next,
            count: self.count,
            beyond: self.beyond,
            wanted: self.wanted,
            tx_first: self.tx_first,
            staged: self.staged,
        };
        change(&mut copy, core);
        self.free_end = copy.free_end;
        self.tx_end = copy.tx_end;
        self.next = copy.next;
        self.count = copy.count;
        self.beyond = copy.beyond;
        self.wanted = copy.wanted;
        self.tx_first = copy.tx_first;
        self.staged = copy.staged;
    }

    /// Opens it on as many chunks and entries as there are of both; on one where each chunk must be admitted.
    #[inline]
    pub(super) fn open(&mut self, core: &mut Core) {
        self.count = core
            .chunks
            .open_top(self.beyond.min(cast::count(core.chunks.free.len())));
        self.beyond -= self.count;
        let bytes = (self.count as usize).cast_signed() * STEP;
        self.free_end = core.chunks.free.top();
        self.tx_end = self.tx_end.wrapping_byte_offset(bytes * RATIO);
        self.next = -bytes;
    }

    /// Takes what was used off the free list. The entries that were not used are beyond.
    #[inline]
    pub(super) fn close(&mut self, core: &mut Core) {
        let left = self.left();
        self.tx_end = self.entry();
        self.beyond += left;
        core.chunks.take_from_top(self.count, left);
        self.count = 0;
        self.next = 0;
    }

    /// A new one, if there are chunks and entries after all.
    #[inline(never)]
    pub(super) extern "C" fn reopen(&mut self, core: &mut Core) {
        self.close(core);
        if self.beyond == 0 {
            self.more_entries(core);
        }
        self.open(core);
    }

    /// The next chunk is not free any more: the last of the window stands in for it. That closes the window: what it had
    /// must be admitted anew, since a hostile ring may have named that chunk twice.
    #[inline(never)]
    pub(super) extern "C" fn remove_chunk(&mut self, core: &mut Core) {
        let place = self.free_end.wrapping_byte_offset(self.next);
        self.free_end = self.free_end.wrapping_sub(1);
        // SAFETY: the window has an entry, and this is its last one.
        let last = unsafe { self.free_end.read() };
        // SAFETY: the window's next entry, or its last.
        unsafe { place.write(last) };
        core.chunks.free.drop_top();
        self.count -= 1;
        self.beyond += 1;
        self.tx_end = self.tx_end.wrapping_sub(1);
        self.next += STEP;
        self.close(core);
    }

    /// More entries, where all were written and no window is open: the run before ended with the ring, perhaps.
    #[inline(never)]
    pub(super) extern "C" fn more_entries(&mut self, core: &mut Core) {
        let written = self.written();
        self.staged += written;
        let run = core.more_tx(written, self.wanted);
        self.tx_first = run.start.as_ptr();
        self.tx_end = run.start.as_ptr();
        self.beyond = run.count;
        self.wanted -= self.beyond;
    }

    /// Writes an entry that has no chunk of the window's.
    pub(super) fn write_beyond(
        &mut self,
        core: &mut Core,
        address: u64,
        length: u32,
    ) -> Result<(), UnsentReason> {
        if self.count > 0 {
            self.close(core);
        }
        if self.beyond == 0 {
            self.more_entries(core);
        }
        if self.beyond == 0 {
            return Err(UnsentReason::RingFull);
        }
        // SAFETY: there is one more, and no window is open, so that it comes next.
        unsafe { write_entry(self.tx_end, address, length, 0) };
        self.tx_end = self.tx_end.wrapping_add(1);
        self.beyond -= 1;
        Ok(())
    }

    /// Where the next frame begins. The window is open.
    #[inline]
    pub(super) fn chunk(&self) -> u64 {
        let free = self.free_end.wrapping_byte_offset(self.next);
        // SAFETY: in the window, so an entry of the free list, which the socket keeps.
        unsafe { free.read() }
    }

    /// The next TX entry.
    #[inline]
    pub(super) fn entry(&self) -> *mut Descriptor {
        self.tx_end.wrapping_byte_offset(self.next * RATIO)
    }

    /// How many chunks are left.
    #[inline]
    pub(super) fn left(&self) -> u32 {
        cast::count((-self.next).cast_unsigned() / size_of::<u64>())
    }

    #[inline]
    pub(super) fn written(&self) -> u32 {
        cast::count((self.entry().addr() - self.tx_first.addr()) / size_of::<Descriptor>())
    }
}
