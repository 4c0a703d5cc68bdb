//! A batch of received frames.
//!
//! This is the hot path, and its shape comes from counting instructions. A batch is a run of descriptors that lie one
//! after another in the RX ring, counted up to 0 from behind its end, so that one addition steps and compares. A frame
//! that is dropped costs nothing: chunks of frames that nobody kept go back run by run, when the batch ends or somebody
//! keeps one. TX entries are reserved when the first frame is sent. Everything is published once, when the batch is
//! dropped. A batch that is leaked publishes nothing: its frames are then still in the RX ring.
//!
//! What is called for what is rare takes and gives single values and cannot unwind (it is `extern "C"`): a batch whose
//! address went anywhere, be it to a drop while unwinding, could not be kept in registers.

#![expect(
    unsafe_code,
    reason = "slices over received frames, and batches walked by pointer"
)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{fmt, hint, slice};

use crate::cast;
use crate::chunks::REFUSED;
use crate::entries::TxRun;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::ring::{Descriptor, PACKET_CONTINUES, Run};
use crate::transmit::Transmit;
use crate::xsk::Xsk;

/// The size of an entry, as steps are counted.
const STEP: isize = size_of::<Descriptor>().cast_signed();

/// Of how many frames a packet may be (`MAX_SKB_FRAGS` and the first, include/linux/skbuff.h).
const MOST_FRAMES: u32 = 18;

/// Received frames, from [`Xsk::receive`].
///
/// One frame at a time: `next_frame` borrows the batch until the frame is dropped, sent, or made an owned one. So even
/// a ring that names a chunk twice cannot make two slices of it. Frames that were not looked at stay in the ring.
pub struct Received<'x> {
    xsk: &'x mut Xsk,
    walk: Walk,
    umem: NonNull<u8>,
    chunk_bytes: u64,
    limit: u64,
    tx: TxRun,
}

/// How far a batch has come.
#[derive(Debug)]
struct Walk {
    /// One past the last entry of the run.
    end: *const Descriptor,
    /// The next frame, in bytes from `end`: 0 when the run is over.
    next: isize,
    /// From here to `next` are frames whose chunks go back; whoever keeps one moves it on.
    dropped: isize,
    /// How many there were.
    count: u32,
    /// 1 where the next entry was refused, which ends the batch.
    refused: u32,
}

impl Walk {
    #[inline]
    fn new(run: &Run<Descriptor>) -> Self {
        let first = -((run.count as usize).cast_signed() * STEP);
        Self {
            end: run.end(),
            next: first,
            dropped: first,
            count: run.count,
            refused: 0,
        }
    }

    /// The frame just read does not go back with the others, which do so now.
    #[inline]
    fn keep(&mut self, xsk: &mut Xsk) {
        let last = self.next - STEP;
        if self.dropped != last {
            xsk.chunks.take_back(self.dropped_until(last));
        }
        self.dropped = self.next;
    }

    /// The entries of frames whose chunks go back.
    #[inline]
    fn dropped_until(&self, end: isize) -> Run<Descriptor> {
        let start = self.end.wrapping_byte_offset(self.dropped).cast_mut();
        Run {
            // SAFETY: in the mapping, or at its end.
            start: unsafe { NonNull::new_unchecked(start) },
            count: steps(end - self.dropped),
        }
    }

    #[inline]
    fn left(&self) -> u32 {
        steps(-self.next)
    }
}

/// How many entries there are in so many bytes.
#[inline]
fn steps(bytes: isize) -> u32 {
    cast::count(bytes.cast_unsigned() / size_of::<Descriptor>())
}

impl<'x> Received<'x> {
    /// `run` was peeked in the RX ring; the free list of `xsk` has room for as many.
    #[inline]
    pub(crate) fn new(xsk: &'x mut Xsk, run: Run<Descriptor>) -> Self {
        let umem = xsk.chunks.umem();
        let (memory, chunk_bytes) = (umem.memory().start(), u64::from(umem.chunk_bytes()));
        Self {
            walk: Walk::new(&run),
            umem: memory,
            chunk_bytes,
            limit: xsk.chunks.limit(),
            tx: TxRun::NONE,
            xsk,
        }
    }

    /// How many frames are left to look at.
    pub fn len(&self) -> usize {
        self.walk.left() as usize
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.walk.left() == 0
    }

    /// The next frame. Dropping it recycles it.
    ///
    /// `None` at the batch's end, and after an entry that names memory that it may not name: what comes behind that one
    /// is for the next batch.
    #[inline]
    pub fn next_frame(&mut self) -> Option<RxFrame<'_, 'x>> {
        if self.walk.next == 0 {
            return None;
        }
        let entry = self.walk.end.wrapping_byte_offset(self.walk.next);
        // SAFETY: before `end`, an entry of the mapped RX ring that was peeked.
        let mut address = unsafe { Descriptor::read_address(entry) };
        // SAFETY: as above.
        let length = unsafe { Descriptor::read_length(entry) };
        // The first byte and the one behind the last agree above the bits of a chunk, so the frame is in one chunk. One
        // that ends with its chunk fails here and is admitted below: rare, and it saves an instruction.
        let crossing = address ^ address.wrapping_add(u64::from(length));
        #[expect(
            clippy::if_same_then_else,
            reason = "as one condition it would be computed in full before it is tested"
        )]
        if crossing >= self.chunk_bytes {
            hint::cold_path();
            address = self.admit(address, crossing);
            if address == REFUSED {
                self.walk.refused = 1;
                return None;
            }
        } else if address >= self.limit {
            hint::cold_path();
            address = self.admit(address, crossing);
            if address == REFUSED {
                self.walk.refused = 1;
                return None;
            }
        }
        self.walk.next += STEP;
        Some(RxFrame {
            batch: self,
            address,
            length,
        })
    }

    /// It takes what the caller has at hand: the address, and how it differs from that of the byte behind the last.
    #[inline]
    fn admit(&mut self, address: u64, crossing: u64) -> u64 {
        let length = (address ^ crossing).wrapping_sub(address);
        self.xsk.chunks.admit(address, length)
    }

    /// The options of the frame just read.
    fn options(&self) -> u32 {
        let entry = self.walk.end.wrapping_byte_offset(self.walk.next - STEP);
        // SAFETY: an entry of the run, which `next_frame` has read.
        unsafe { Descriptor::read_options(entry) }
    }

    /// The chunk of the frame just read goes elsewhere.
    #[inline]
    fn give_away(&mut self, address: u64) {
        self.xsk.chunks.leave(address);
        self.limit = 0;
        self.walk.keep(self.xsk);
    }
}

impl Drop for Received<'_> {
    #[inline]
    fn drop(&mut self) {
        // At most all: an entry that was refused may be another one by now, where somebody else writes to the ring.
        let looked_at = (self.walk.count - self.walk.left() + self.walk.refused).min(self.walk.count);
        let dropped = self.walk.dropped_until(self.walk.next);
        self.xsk.finish_receive(looked_at, dropped, self.tx.written());
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
        let umem = self.batch.xsk.chunks.umem();
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
        let umem = self.batch.xsk.chunks.umem();
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
        self.batch.xsk.multi_buffer && self.batch.options() & PACKET_CONTINUES != 0
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
        if self.batch.xsk.multi_buffer {
            return self.send_part();
        }
        self.send_as(0)
    }

    /// A frame of a packet of several goes out as that, and the first one only where there is room for all.
    #[inline(never)]
    fn send_part(self) -> Result<(), Unsent<Self>> {
        let continues = self.continues();
        let batch = &mut *self.batch;
        let written = batch.tx.written();
        if continues && !batch.xsk.packet_open && !batch.xsk.has_room(written, MOST_FRAMES) {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::RingFull,
            });
        }
        self.send_as(if continues { PACKET_CONTINUES } else { 0 })
    }

    #[inline]
    fn send_as(self, options: u32) -> Result<(), Unsent<Self>> {
        if self.batch.tx.next == self.batch.tx.end {
            let wanted = self.batch.walk.left() + 1;
            self.batch.tx = self.batch.xsk.more_tx(self.batch.tx.written(), wanted);
            if self.batch.tx.next == self.batch.tx.end {
                let reason = match self.batch.xsk.sends() {
                    true => UnsentReason::RingFull,
                    false => UnsentReason::NoRing,
                };
                return Err(Unsent { frame: self, reason });
            }
        }
        // SAFETY: `next` is not `end`, just checked; the socket, and so the ring, is borrowed by the batch.
        unsafe { self.batch.tx.write(self.address, self.length, options) };
        if self.batch.xsk.multi_buffer {
            self.batch.xsk.packet_open = options & PACKET_CONTINUES != 0;
        }
        // The chunk is the kernel's now.
        self.batch.walk.keep(self.batch.xsk);
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
        self.batch.give_away(self.address);
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.give_away(self.address);
        Frame::new(self.batch.xsk.chunks.pool().clone(), self.address, self.length)
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
