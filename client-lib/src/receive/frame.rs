//! A frame of a batch that was received.

#![expect(unsafe_code, reason = "a slice over a chunk that this frame alone holds")]

use std::ops::{Deref, DerefMut};
use std::{fmt, hint, slice};

use super::{Received, mark};
use crate::cast;
use crate::entries::TxRun;
use crate::frame::{Frame, Unsent, UnsentReason, resized};
use crate::ring::PACKET_CONTINUES;
use crate::transmit::Transmit;

/// A received frame: its bytes, by `Deref`. Dropping it recycles it.
pub struct RxFrame<'b, 'x> {
    pub(super) batch: &'b mut Received<'x>,
    pub(super) address: u64,
    pub(super) length: u32,
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
    /// [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer) receive such packets;
    /// [`Xsk::receive_packets`](crate::Xsk::receive_packets) gives them whole.
    pub fn continues(&self) -> bool {
        self.batch.core.multi_buffer && self.batch.lent().get().options & PACKET_CONTINUES != 0
    }

    /// Makes it longer or shorter, up to its capacity. Bytes that become part of it are as they were left.
    ///
    /// # Errors
    ///
    /// The capacity, if `length` is above it.
    #[inline]
    pub fn resize(&mut self, length: usize) -> Result<(), usize> {
        self.length = resized(length, self.capacity())?;
        Ok(())
    }

    /// Sends it, as it is now: a turn-round without a copy. The kernel learns of it when the batch is dropped. A frame of a
    /// packet of several is sent as one: send all of them, in order, and nothing in between.
    ///
    /// # Errors
    ///
    /// Gives it back where the TX ring is full ([`UnsentReason::RingFull`]), or the socket was granted for receiving only.
    #[inline]
    pub fn send(self) -> Result<(), Unsent<Self>> {
        if self.batch.tx.next == self.batch.tx.end {
            hint::cold_path();
            let options = self.batch.lent().get().options & PACKET_CONTINUES;
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
        mark(self.batch.lent());
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
        self.batch.give_away(self.address);
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.give_away(self.address);
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
