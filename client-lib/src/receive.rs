//! A batch of received frames.
//!
//! This is the hot path, and its shape comes from counting instructions. A batch is a run of descriptors that lie one
//! after another in the RX ring, walked by pointer; frames that are dropped go onto the free list by pointer; TX
//! entries are reserved when the first frame is sent. Everything is published once, when the batch is dropped. A batch
//! that is leaked publishes nothing: its frames are then still in the RX ring.

#![expect(
    unsafe_code,
    reason = "slices over received frames, and batches walked by pointer"
)]

use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{fmt, hint, mem, ptr, slice};

use crate::cast;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::ring::{Descriptor, Run};
use crate::transmit::Transmit;
use crate::xsk::Xsk;

/// Received frames, from [`Xsk::receive`].
///
/// One frame at a time: `next_frame` borrows the batch until the frame is dropped, sent, or made an owned one. So even
/// a ring that names a chunk twice cannot make two slices of it. Frames that were not looked at stay in the ring.
pub struct Received<'x> {
    xsk: &'x mut Xsk,
    first: *const Descriptor,
    next: *const Descriptor,
    end: *const Descriptor,
    /// Where the next chunk that comes free is put; there is room for all of this batch.
    free_top: *mut u64,
    umem: NonNull<u8>,
    chunk_bytes: u64,
    limit: u64,
    tx: TxRun,
}

/// TX entries that are being written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TxRun {
    first: *mut Descriptor,
    pub(crate) next: *mut Descriptor,
    pub(crate) end: *mut Descriptor,
}

impl TxRun {
    pub(crate) const NONE: Self = Self {
        first: ptr::null_mut(),
        next: ptr::null_mut(),
        end: ptr::null_mut(),
    };

    pub(crate) fn new(run: Run<Descriptor>) -> Self {
        let first = run.start.as_ptr();
        Self {
            first,
            next: first,
            // A run lies in a ring, so its end is at most one past it: computed without going there.
            end: first.wrapping_add(run.count as usize),
        }
    }

    /// How many were written.
    #[inline]
    pub(crate) fn written(&self) -> u32 {
        cast::count((self.next.addr() - self.first.addr()) / size_of::<Descriptor>())
    }

    /// How many are left to write.
    pub(crate) fn left(&self) -> u32 {
        cast::count((self.end.addr() - self.next.addr()) / size_of::<Descriptor>())
    }

    /// Writes one.
    ///
    /// # Safety
    ///
    /// `next` is not `end`, and the ring is mapped.
    #[inline]
    pub(crate) unsafe fn write(&mut self, address: u64, length: u32) {
        let descriptor = Descriptor {
            address,
            length,
            options: 0,
        };
        // SAFETY: an entry of the run, aligned, reserved for us: the kernel reads it only after it was published.
        unsafe { self.next.write(descriptor) };
        self.next = self.next.wrapping_add(1);
    }
}

impl<'x> Received<'x> {
    /// `run` was reserved in the RX ring; the free list of `xsk` has room for as many.
    pub(crate) fn new(xsk: &'x mut Xsk, run: Run<Descriptor>) -> Self {
        let first = run.start.as_ptr().cast_const();
        let umem = xsk.chunks.umem();
        let (memory, chunk_bytes) = (umem.memory().start(), u64::from(umem.chunk_bytes()));
        debug_assert!(
            xsk.chunks.spare().len() >= run.count as usize,
            "no room to recycle"
        );
        Self {
            first,
            next: first,
            end: first.wrapping_add(run.count as usize),
            free_top: xsk.chunks.spare().as_mut_ptr(),
            umem: memory,
            chunk_bytes,
            limit: xsk.chunks.limit(),
            tx: TxRun::NONE,
            xsk,
        }
    }

    /// How many frames are left to look at.
    pub fn len(&self) -> usize {
        (self.end.addr() - self.next.addr()) / size_of::<Descriptor>()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.next == self.end
    }

    /// The next frame. Dropping it recycles it.
    #[inline]
    pub fn next_frame(&mut self) -> Option<RxFrame<'_, 'x>> {
        while self.next != self.end {
            let entry = self.next;
            self.next = entry.wrapping_add(1);
            let length = entry
                .wrapping_byte_add(offset_of!(Descriptor, length))
                .cast::<u32>();
            let address = entry
                .wrapping_byte_add(offset_of!(Descriptor, address))
                .cast::<u64>();
            // SAFETY: between `first` and `end` are entries of the mapped RX ring that were peeked; any bits are an
            // address, and it is read once.
            let address = unsafe { address.read_volatile() };
            // SAFETY: as above.
            let length = unsafe { length.read_volatile() };
            // The first byte and the one behind the last agree above the bits of a chunk, so the frame is in one chunk.
            // One that ends with its chunk fails here and is admitted below: rare, and it saves an instruction.
            let in_one_chunk = (address ^ address.wrapping_add(u64::from(length))) < self.chunk_bytes;
            if !(in_one_chunk && address < self.limit) {
                hint::cold_path();
                if !self.xsk.chunks.admits(address, length) {
                    continue;
                }
            }
            return Some(RxFrame {
                batch: self,
                address,
                length,
            });
        }
        None
    }
}

impl Drop for Received<'_> {
    #[inline]
    fn drop(&mut self) {
        let looked_at = (self.next.addr() - self.first.addr()) / size_of::<Descriptor>();
        self.xsk
            .finish_receive(cast::count(looked_at), self.free_top, self.tx.written());
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
    address: u64,
    length: u32,
}

impl RxFrame<'_, '_> {
    /// The most bytes that it may have: up to the end of its chunk.
    #[inline]
    pub fn capacity(&self) -> usize {
        let chunk = self.batch.chunk_bytes;
        cast::offset(chunk - (self.address & (chunk - 1)))
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

    /// Sends it, as it is now: a turn-round without a copy. The kernel learns of it when the batch is dropped.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring is full.
    #[inline]
    pub fn send(self) -> Result<(), Unsent<Self>> {
        if self.batch.tx.next == self.batch.tx.end {
            let wanted = cast::count(self.batch.len()) + 1;
            self.batch.tx = self.batch.xsk.more_tx(self.batch.tx, wanted);
            if self.batch.tx.next == self.batch.tx.end {
                let reason = match self.batch.xsk.sends() {
                    true => UnsentReason::RingFull,
                    false => UnsentReason::NoRing,
                };
                return Err(Unsent { frame: self, reason });
            }
        }
        // SAFETY: `next` is not `end`, just checked; the socket, and so the ring, is borrowed by the batch.
        unsafe { self.batch.tx.write(self.address, self.length) };
        // The chunk is the kernel's now.
        mem::forget(self);
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
        let pool = self.batch.xsk.chunks.pool();
        if let Err(reason) = to.take_in(pool, self.address, self.length) {
            return Err(Unsent { frame: self, reason });
        }
        self.batch.xsk.chunks.leave(self.address);
        self.batch.limit = 0;
        // The chunk is the kernel's now.
        mem::forget(self);
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.xsk.chunks.leave(self.address);
        self.batch.limit = 0;
        let pool = self.batch.xsk.chunks.pool().clone();
        let frame = Frame::new(pool, self.address, self.length);
        mem::forget(self);
        frame
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

impl Drop for RxFrame<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the free list has room for every frame of the batch (`Xsk::receive`), and each is put there once.
        unsafe { self.batch.free_top.write(self.address) };
        self.batch.free_top = self.batch.free_top.wrapping_add(1);
    }
}

impl fmt::Debug for RxFrame<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxFrame")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
