//! A batch of frames made here.
//!
//! Like a received batch, it walks by pointer: free chunks off the free list, entries of the TX ring one after
//! another. It publishes once, when it is dropped; leaked, it publishes nothing, and its chunks are still free.

#![expect(
    unsafe_code,
    reason = "slices over free chunks, and batches walked by pointer"
)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, hint, mem, slice};

use crate::cast;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::pool::Pool;
use crate::receive::TxRun;
use crate::ring::{Descriptor, Run};
use crate::xsk::Xsk;

/// Empty frames to fill and send, from [`Xsk::transmit`].
pub struct Transmit<'x> {
    xsk: &'x mut Xsk,
    free_bottom: *mut u64,
    free_top: *mut u64,
    umem: NonNull<u8>,
    chunk_bytes: u64,
    limit: u64,
    /// TX entries to write, no more than there are free chunks: so one comparison tells that there is a frame to give.
    tx: TxRun,
    /// Entries behind `tx.end` that are ours too, but had no free chunk.
    beyond: u32,
    /// How many more entries the caller may want than these.
    wanted: u32,
}

impl<'x> Transmit<'x> {
    /// `run` was reserved in the TX ring, where the caller wants `max` entries.
    #[inline]
    pub(crate) fn new(xsk: &'x mut Xsk, run: Run<Descriptor>, max: u32) -> Self {
        let umem = xsk.chunks.umem();
        let (memory, chunk_bytes) = (umem.memory().start(), u64::from(umem.chunk_bytes()));
        let free_count = xsk.chunks.free().len();
        let free_bottom = xsk.chunks.stack().as_mut_ptr();
        let usable = run.count.min(cast::count(free_count));
        Self {
            free_bottom,
            free_top: free_bottom.wrapping_add(free_count),
            umem: memory,
            chunk_bytes,
            limit: xsk.chunks.limit(),
            tx: TxRun::new(Run {
                start: run.start,
                count: usable,
            }),
            beyond: run.count - usable,
            wanted: max - run.count,
            xsk,
        }
    }

    /// The next empty frame: a whole chunk, with whatever was left in it. `None` where the TX ring has no room or the
    /// umem no free chunk. Dropping it gives the chunk back.
    #[inline]
    pub fn next_frame(&mut self) -> Option<TxFrame<'_, 'x>> {
        loop {
            if self.tx.next == self.tx.end {
                hint::cold_path();
                if !self.continue_run() {
                    return None;
                }
            }
            self.free_top = self.free_top.wrapping_sub(1);
            // SAFETY: the free list has an entry for each TX entry that is left (see `tx`).
            let address = unsafe { self.free_top.read() } & !(self.chunk_bytes - 1);
            if address >= self.limit {
                hint::cold_path();
                if !self.xsk.chunks.admits(address, 1) {
                    self.keep_entry();
                    continue;
                }
            }
            return Some(TxFrame { batch: self, address });
        }
    }

    /// Sends an owned frame within this batch.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring has no room, or the frame belongs to another umem.
    pub fn send_owned(&mut self, frame: Frame) -> Result<(), Unsent<Frame>> {
        let (address, length) = frame.parts();
        match self.take_in(frame.pool(), address, length) {
            Ok(()) => {
                frame.forget();
                Ok(())
            }
            Err(reason) => Err(Unsent { frame, reason }),
        }
    }

    /// Sends what its caller holds in a chunk of `pool` and gives up, if there is no error.
    #[inline]
    pub(crate) fn take_in(
        &mut self,
        pool: &Arc<Pool>,
        address: u64,
        length: u32,
    ) -> Result<(), UnsentReason> {
        if !Arc::ptr_eq(pool, self.xsk.chunks.pool()) {
            return Err(UnsentReason::ForeignUmem);
        }
        if self.beyond == 0 && self.tx.next == self.tx.end && !self.more_entries() {
            return Err(UnsentReason::RingFull);
        }
        // It needs an entry and no free chunk: so those that are left may have one of the others.
        if self.beyond > 0 {
            self.beyond -= 1;
            self.tx.end = self.tx.end.wrapping_add(1);
        }
        // SAFETY: `next` is not `end` now; the socket, and so the ring, is borrowed by the batch.
        unsafe { self.tx.write(address, length) };
        self.xsk.chunks.enter(address);
        Ok(())
    }

    /// Whether there are entries again that have free chunks.
    #[cold]
    fn continue_run(&mut self) -> bool {
        if self.beyond == 0 && !self.more_entries() {
            return false;
        }
        let usable = self.beyond.min(self.free_count());
        self.beyond -= usable;
        self.tx.end = self.tx.end.wrapping_add(usable as usize);
        usable > 0
    }

    /// More entries, where all were written: the run before ended with the ring, perhaps. They are `beyond` at first.
    #[cold]
    fn more_entries(&mut self) -> bool {
        let run = self.xsk.more_tx(self.tx, self.wanted);
        self.beyond = run.left();
        self.tx = run;
        self.tx.end = run.next;
        self.wanted -= self.beyond;
        self.beyond > 0
    }

    /// An entry is left without its chunk.
    fn keep_entry(&mut self) {
        self.tx.end = self.tx.end.wrapping_sub(1);
        self.beyond += 1;
    }

    fn free_count(&self) -> u32 {
        cast::count((self.free_top.addr() - self.free_bottom.addr()) / size_of::<u64>())
    }
}

impl Drop for Transmit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.xsk
            .finish_transmit(self.free_count() as usize, self.tx.written());
    }
}

impl fmt::Debug for Transmit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmit")
            .field("written", &self.tx.written())
            .finish_non_exhaustive()
    }
}

/// An empty frame: all bytes of a chunk, by `Deref`.
pub struct TxFrame<'b, 'x> {
    batch: &'b mut Transmit<'x>,
    address: u64,
}

impl TxFrame<'_, '_> {
    /// Sends its first `length` bytes. The kernel learns of it when the batch is dropped.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes.
    #[inline]
    pub fn send(self, length: usize) -> Result<(), Unsent<Self>> {
        if length > self.len() {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::TooLong,
            });
        }
        // SAFETY: `next_frame` found that `next` is not `end`, and this frame has borrowed the batch since; the
        // socket, and so the ring, is borrowed by the batch.
        unsafe { self.batch.tx.write(self.address, cast::count(length)) };
        // The chunk is the kernel's now.
        mem::forget(self);
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.xsk.chunks.leave(self.address);
        self.batch.limit = 0;
        self.batch.keep_entry();
        let pool = self.batch.xsk.chunks.pool().clone();
        let length = cast::count(cast::offset(self.batch.chunk_bytes));
        let frame = Frame::new(pool, self.address, length);
        mem::forget(self);
        frame
    }

    #[inline]
    fn start(&self) -> *mut u8 {
        // SAFETY: `next_frame` has checked that the address is in the umem, which the socket keeps mapped.
        unsafe { self.batch.umem.add(cast::offset(self.address)).as_ptr() }
    }
}

impl Deref for TxFrame<'_, '_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.start(), cast::offset(self.batch.chunk_bytes)) }
    }
}

impl DerefMut for TxFrame<'_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `next_frame` has checked that this is a chunk of the umem that is here, and so no owned frame's and no
        // other socket's, and it lends one frame at a time: no other slice of ours covers it. A memfd's bytes are initialised. The kernel has given the
        // chunk back, by the completion or the RX ring, or never had it.
        unsafe { slice::from_raw_parts_mut(self.start(), cast::offset(self.batch.chunk_bytes)) }
    }
}

impl Drop for TxFrame<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the place that `next_frame` took it from.
        unsafe { self.batch.free_top.write(self.address) };
        self.batch.free_top = self.batch.free_top.wrapping_add(1);
    }
}

impl fmt::Debug for TxFrame<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxFrame")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
