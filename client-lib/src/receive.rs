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

#![expect(unsafe_code, reason = "slices over received frames")]

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{fmt, hint, slice};

use crate::cast;
use crate::chunks::REFUSED;
use crate::entries::TxRun;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::ring::{Descriptor, PACKET_CONTINUES, Run};
use crate::transmit::Transmit;
use crate::xsk::Core;

/// Received frames, from [`Xsk::receive`](crate::Xsk::receive).
///
/// One frame at a time: `next_frame` borrows the batch until the frame is dropped, sent, or made an owned one. So even
/// a ring that names a chunk twice cannot make two slices of it. Frames that were not looked at stay in the ring.
pub struct Received<'x> {
    core: &'x mut Core,
    /// Copies of the ring's entries. Whoever keeps a frame's chunk marks it as [`KEPT`].
    frames: &'x [Cell<Descriptor>],
    /// Those that are left to look at.
    left: slice::Iter<'x, Cell<Descriptor>>,
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
            left: frames.iter(),
            guarded: !extent.is_within(limit, chunk_bytes) && !are_within(frames, limit, chunk_bytes),
            umem: memory,
            kept: 0,
            tx: TxRun::new(Run::NONE),
        }
    }

    /// How many frames are left to look at.
    pub fn len(&self) -> usize {
        self.left.len()
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
            let entry = self.left.next()?;
            let Descriptor {
                mut address, length, ..
            } = entry.get();
            if self.guarded {
                hint::cold_path();
                address = self.core.chunks.admit(address, length.into());
                if address == REFUSED {
                    self.keep(entry);
                    continue;
                }
            }
            return Some(RxFrame {
                batch: self,
                entry,
                address,
                length,
            });
        }
    }

    /// The chunk of a frame goes elsewhere, for a while or for good. Frames that were cleared before must be admitted anew:
    /// a hostile ring may name that chunk again.
    #[inline]
    fn give_away(&mut self, entry: &Cell<Descriptor>, address: u64) {
        self.core.chunks.leave(address);
        self.keep(entry);
        self.guarded = true;
    }

    /// The chunk of a frame does not go back.
    #[inline]
    fn keep(&mut self, entry: &Cell<Descriptor>) {
        mark(entry);
        self.kept += 1;
    }
}

#[inline]
fn mark(entry: &Cell<Descriptor>) {
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

/// A received frame: its bytes, by `Deref`. Dropping it recycles it.
pub struct RxFrame<'b, 'x> {
    batch: &'b mut Received<'x>,
    entry: &'x Cell<Descriptor>,
    address: u64,
    length: u32,
}

impl RxFrame<'_, '_> {
    /// The most bytes that it may have: up to the end of its chunk.
    #[inline]
    pub fn capacity(&self) -> usize {
        let umem = self.batch.core.chunks.umem();
        let chunk = u64::from(umem.chunk_bytes());
        cast::offset(chunk - umem.offset_in_chunk(self.address))
    }

    /// Makes it longer at the front by bytes that are before it in its chunk: 256 in copy mode, and the umem's headroom.
    /// Their content is whatever was left there.
    ///
    /// # Errors
    ///
    /// How many there are, if `bytes` is more.
    pub fn grow_front(&mut self, bytes: usize) -> Result<(), usize> {
        let umem = self.batch.core.chunks.umem();
        // The kernel wants room for what is asked of the device before each frame that is sent.
        let before = umem
            .offset_in_chunk(self.address)
            .saturating_sub(umem.tx_offset().into());
        match u32::try_from(bytes) {
            Ok(short) if u64::from(short) <= before => {
                self.address -= u64::from(short);
                self.length += short;
                Ok(())
            }
            _ => Err(cast::offset(before)),
        }
    }

    /// Makes it shorter at the front: a header that is taken off.
    ///
    /// # Errors
    ///
    /// Its length, if `bytes` is more.
    pub fn shrink_front(&mut self, bytes: usize) -> Result<(), usize> {
        match u32::try_from(bytes) {
            // A frame at the very end of its chunk would be in the next one.
            Ok(short) if short < self.length => {
                self.address += u64::from(short);
                self.length -= short;
                Ok(())
            }
            _ => Err(self.length as usize),
        }
    }

    /// Whether the packet goes on with the next frame, perhaps of the next batch. Only sockets that are bound with
    /// [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer) receive such packets.
    pub fn continues(&self) -> bool {
        self.batch.core.multi_buffer && self.entry.get().options & PACKET_CONTINUES != 0
    }

    /// Makes it longer or shorter, up to its capacity. Bytes that become part of it are as they were left.
    ///
    /// # Errors
    ///
    /// The capacity, if `length` is above it.
    #[inline]
    pub fn resize(&mut self, length: usize) -> Result<(), usize> {
        match u32::try_from(length) {
            Ok(short) if length <= self.capacity() => {
                self.length = short;
                Ok(())
            }
            _ => Err(self.capacity()),
        }
    }

    /// Sends it, as it is now: a turn-round without a copy. The kernel learns of it when the batch is dropped. A frame of a
    /// packet of several is sent as one: send all of them, in order, and nothing in between.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring is full.
    #[inline]
    pub fn send(self) -> Result<(), Unsent<Self>> {
        if self.batch.tx.next == self.batch.tx.end {
            hint::cold_path();
            let options = self.entry.get().options & PACKET_CONTINUES;
            let written = self.batch.tx.written();
            let wanted = cast::count(self.batch.len() + 1);
            self.batch.kept += written;
            let run = self.batch.core.tx_for_received(written, wanted, options);
            self.batch.tx = TxRun::new(run);
            if self.batch.tx.next == self.batch.tx.end {
                let reason = match self.batch.core.sends() {
                    true => UnsentReason::RingFull,
                    false => UnsentReason::NoRing,
                };
                return Err(Unsent { frame: self, reason });
            }
            // Where packets may be of several frames there was room for this one only, so that each comes by here.
            let options = if self.batch.core.multi_buffer { options } else { 0 };
            // SAFETY: as below.
            unsafe { self.batch.tx.write(self.address, self.length, options) };
        } else {
            // SAFETY: `next` is not `end`, just checked; the socket, and so the ring, is borrowed by the batch.
            unsafe { self.batch.tx.write(self.address, self.length, 0) };
        }
        // The chunk is the kernel's now.
        mark(self.entry);
        Ok(())
    }

    /// Sends it, as it is now, within a batch of another socket of the same umem (see
    /// [`Grant::bind_shared`](crate::Grant::bind_shared)): a bridge between queues without a copy. The kernel learns of
    /// it when that batch is dropped; once it is sent, its chunk comes back here.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring has no room, or that socket has another umem.
    #[inline]
    pub fn forward(self, to: &mut Transmit<'_>) -> Result<(), Unsent<Self>> {
        let pool = self.batch.core.chunks.pool();
        if let Err(reason) = to.take_in(pool, self.address, self.length) {
            return Err(Unsent { frame: self, reason });
        }
        self.batch.give_away(self.entry, self.address);
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.give_away(self.entry, self.address);
        Frame::new(self.batch.core.chunks.pool().clone(), self.address, self.length)
    }

    #[inline]
    fn start(&self) -> *mut u8 {
        // SAFETY: `next_frame` has checked that the address is in the umem, which the socket keeps mapped.
        unsafe { self.batch.umem.add(cast::offset(self.address)).as_ptr() }
    }
}

impl Deref for RxFrame<'_, '_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.start(), self.length as usize) }
    }
}

impl DerefMut for RxFrame<'_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `next_frame` has checked that the range lies in one chunk of the umem, that this chunk is here and so
        // no owned frame's and no other socket's, and it lends one frame at a time: no other slice of ours covers it. A memfd's bytes are initialised.
        // The kernel has put the frame into the RX ring and does not write to it again until it is recycled.
        unsafe { slice::from_raw_parts_mut(self.start(), self.length as usize) }
    }
}

impl fmt::Debug for RxFrame<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxFrame")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
