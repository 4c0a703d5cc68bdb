//! A batch of received frames.
//!
//! This is the hot path, and its shape comes from counting instructions. Descriptors are copied out of the RX ring and
//! checked as a whole (`ring/bulk.rs`); what a batch looks at are these copies, which nobody else can change. So the
//! next frame costs a step, and a frame that is dropped costs nothing: its chunk goes back with all the others when the
//! batch ends. TX entries are reserved when the first frame is sent. Everything is published once, when the batch is
//! dropped. A batch that is leaked publishes nothing: its frames are then still in the RX ring.
//!
//! Frames that the check of the whole does not clear, or that come after one that went elsewhere, are admitted one by
//! one, just before they are lent.
//!
//! What is called for what is rare takes and gives single values and cannot unwind (it is `extern "C"`): a batch whose
//! address went anywhere, be it to a drop while unwinding, could not be kept in registers.

#![expect(unsafe_code, reason = "descriptors are copied out of the ring")]

mod frame;

use std::cell::Cell;
use std::ptr::NonNull;
use std::{fmt, hint};

pub use frame::RxFrame;

use crate::chunks::REFUSED;
use crate::entries::TxRun;
use crate::ring::{Descriptor, Run};
use crate::xsk::Core;

/// Received frames, from [`Xsk::receive`](crate::Xsk::receive).
///
/// One frame at a time: `next_frame` borrows the batch until the frame is dropped, sent, or made an owned one. So even
/// a ring that names a chunk twice cannot make two slices of it. Frames that were not looked at stay in the ring.
pub struct Received<'x> {
    core: &'x mut Core,
    /// Copies of the ring's entries. Whoever keeps a frame's chunk marks it as [`KEPT`].
    frames: &'x [Cell<Descriptor>],
    /// The next one to look at, and one past the last.
    next: *const Cell<Descriptor>,
    end: *const Cell<Descriptor>,
    /// Whether they must be admitted one by one.
    guarded: bool,
    umem: NonNull<u8>,
    /// How many are marked, apart from those that `tx` has written.
    kept: u32,
    tx: TxRun,
}

/// In place of a frame's address: its chunk does not go back with the others.
pub(crate) const KEPT: u64 = REFUSED;

impl<'x> Received<'x> {
    /// `run` was peeked in the RX ring; the free list has room for as many, and so has `copies`.
    #[inline]
    pub(crate) fn new(core: &'x mut Core, copies: &'x mut [Descriptor], run: &Run<Descriptor>) -> Self {
        // SAFETY: the RX ring is `core`'s, and so mapped; every x86-64 has SSE2.
        let extent = unsafe { run.copy_to(copies) };
        let copies = copies.get_mut(..run.count as usize).unwrap_or_default();
        let frames: &'x [Cell<Descriptor>] = Cell::from_mut(copies).as_slice_of_cells();
        let umem = core.chunks.umem();
        let (memory, chunk_bytes) = (umem.memory().start(), u64::from(umem.chunk_bytes()));
        let limit = core.chunks.limit();
        Self {
            core,
            frames,
            next: frames.as_ptr_range().start,
            end: frames.as_ptr_range().end,
            guarded: !extent.is_within(limit, chunk_bytes) && !are_within(frames, limit, chunk_bytes),
            umem: memory,
            kept: 0,
            tx: TxRun::new(Run::NONE),
        }
    }

    /// How many frames are left to look at.
    pub fn len(&self) -> usize {
        (self.end.addr() - self.next.addr()) / size_of::<Descriptor>()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next frame. Dropping it recycles it. `None` at the batch's end.
    ///
    /// An entry of the ring that names memory that it may not name is passed over, and counted
    /// ([`Xsk::refused_descriptors`](crate::Xsk::refused_descriptors)).
    #[inline]
    pub fn next_frame(&mut self) -> Option<RxFrame<'_, 'x>> {
        loop {
            if self.next == self.end {
                return None;
            }
            // SAFETY: one of `frames`: before `end`.
            self.next = unsafe { self.next.add(1) };
            let Descriptor {
                mut address, length, ..
            } = self.lent().get();
            if self.guarded {
                hint::cold_path();
                address = self.core.chunks.admit(address, length.into());
                if address == REFUSED {
                    self.keep();
                    continue;
                }
            }
            return Some(RxFrame {
                batch: self,
                address,
                length,
            });
        }
    }

    /// The chunk of a frame goes elsewhere, for a while or for good. Frames that were cleared before must be admitted anew:
    /// a hostile ring may name that chunk again.
    #[inline]
    fn give_away(&mut self, address: u64) {
        self.core.chunks.leave(address);
        self.keep();
        self.guarded = true;
    }

    /// The chunk of a frame does not go back.
    #[inline]
    fn keep(&mut self) {
        mark(self.lent());
        self.kept += 1;
    }

    /// The copy of the entry that was looked at last: a frame's, as long as that is lent. (Found from `next` it costs a
    /// forwarding loop two instructions less than kept beside it.)
    #[inline]
    fn lent(&self) -> &'x Cell<Descriptor> {
        debug_assert_ne!(self.next, self.frames.as_ptr(), "none was looked at");
        // SAFETY: one of `frames`: `next` has gone beyond it, which is what this is called after.
        let lent = unsafe { self.next.sub(1) };
        // SAFETY: as above.
        unsafe { &*lent }
    }
}

#[inline]
pub(crate) fn mark(entry: &Cell<Descriptor>) {
    let mut kept = entry.get();
    kept.address = KEPT;
    entry.set(kept);
}

/// Whether each frame lies in one chunk below `limit`.
#[inline(never)]
fn are_within(frames: &[Cell<Descriptor>], limit: u64, chunk_bytes: u64) -> bool {
    frames.iter().all(|frame| {
        let Descriptor { address, length, .. } = frame.get();
        address < limit && (address & (chunk_bytes - 1)) + u64::from(length) <= chunk_bytes
    })
}

impl Drop for Received<'_> {
    #[inline]
    fn drop(&mut self) {
        let looked_at = self.frames.len() - self.len();
        let sent = self.tx.written();
        let frames = self.frames.get(..looked_at).unwrap_or_default();
        self.core.finish_receive(frames, self.kept + sent, sent);
    }
}

impl fmt::Debug for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("left", &self.len())
            .finish_non_exhaustive()
    }
}
