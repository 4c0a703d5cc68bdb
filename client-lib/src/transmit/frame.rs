//! An empty frame of a batch.

#![expect(unsafe_code, reason = "a slice over a chunk that this frame alone holds")]

use std::ops::{Deref, DerefMut};
use std::{fmt, slice};

use super::Transmit;
use super::window::STEP;
use crate::cast;
use crate::entries::write_entry;
use crate::frame::{Frame, Unsent, UnsentReason};
use crate::metadata::TxMetadata;
use crate::ring::{PACKET_CONTINUES, TX_METADATA};
use crate::stamps::TxRequest;

/// The least that any frame has room for: the smallest chunk (`XDP_UMEM_MIN_CHUNK_SIZE`, include/net/xdp_sock.h) without
/// the most metadata.
const SMALLEST_FRAME: usize = 2048 - 256;

/// An empty frame: all bytes of a chunk, by `Deref`.
pub struct TxFrame<'b, 'x> {
    pub(super) batch: &'b mut Transmit<'x>,
    pub(super) address: u64,
}

impl TxFrame<'_, '_> {
    /// Sends its first `length` bytes. The kernel learns of it when the batch is dropped.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes.
    #[inline]
    pub fn send(self, length: usize) -> Result<(), Unsent<Self>> {
        self.send_as(length, 0)
    }

    /// Sends its first `length` bytes as a part of a packet that goes on with the next frame that is sent. Make sure that
    /// there is one ([`Transmit::len`]): what is sent next belongs to this packet in any case.
    /// [`Xsk::transmit_packets`](crate::Xsk::transmit_packets) sees to that by itself.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes, or the socket was not bound with
    /// [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer).
    pub fn send_more(self, length: usize) -> Result<(), Unsent<Self>> {
        if !self.batch.core.multi_buffer {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::OneBuffer,
            });
        }
        self.send_as(length, PACKET_CONTINUES)
    }

    /// Sends its first `length` bytes, and asks the device for something.
    ///
    /// # Errors
    ///
    /// Gives it back where it has fewer bytes, or the umem was not made with
    /// [`UmemOptions::tx_metadata`](crate::UmemOptions::tx_metadata).
    pub fn send_with(self, length: usize, request: TxRequest) -> Result<(), Unsent<Self>> {
        let chunk = self.batch.core.chunks.umem().chunk_of(self.address);
        let (Some(stamps), Some(chunk)) = (&mut self.batch.core.stamps, chunk) else {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::NoMetadata,
            });
        };
        stamps.expect(chunk, request.tag);
        let before = self
            .start()
            .wrapping_sub(TxMetadata::BYTES)
            .cast::<[u8; TxMetadata::BYTES]>();
        // SAFETY: the frame begins so far into its chunk (`Umem::tx_offset`), which is ours as a whole.
        unsafe { before.write(request.metadata().to_bytes()) };
        self.send_as(length, TX_METADATA)
    }

    #[inline]
    fn send_as(self, length: usize, options: u32) -> Result<(), Unsent<Self>> {
        // No frame has room for less, so that a constant length is checked by the compiler.
        if length > SMALLEST_FRAME && length > self.len() {
            return Err(Unsent {
                frame: self,
                reason: UnsentReason::TooLong,
            });
        }
        let entry = self.batch.window.entry();
        // SAFETY: the entry that goes with this frame's chunk: `next_frame` found the window open, and this frame has
        // borrowed the batch since. The socket, and so the ring, is borrowed by the batch.
        unsafe { write_entry(entry, self.address, cast::count(length), options) };
        // The chunk is the kernel's now.
        self.batch.window.next += STEP;
        Ok(())
    }

    /// Makes it an owned frame, which may outlive the batch.
    pub fn into_owned(self) -> Frame {
        self.batch.core.chunks.leave(self.address);
        let batch = &mut *self.batch;
        batch.window.with_copy(batch.core, |window, core| {
            window.remove_chunk(core);
        });
        let length = cast::count(cast::offset(self.batch.frame_bytes));
        Frame::new(self.batch.core.chunks.pool().clone(), self.address, length)
    }

    #[inline]
    fn start(&self) -> *mut u8 {
        // SAFETY: a window has only addresses in the umem (`Chunks::open_top`), which the socket keeps mapped.
        unsafe { self.batch.umem.add(cast::offset(self.address)).as_ptr() }
    }
}

impl Deref for TxFrame<'_, '_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.start(), cast::offset(self.batch.frame_bytes)) }
    }
}

impl DerefMut for TxFrame<'_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: a window has only chunks of the umem that are here (`Chunks::open_top`), and so no owned frame's and no
        // other socket's, and it lends one frame at a time: no other slice of ours covers it. A memfd's bytes are
        // initialised. The kernel has given the chunk back, by the completion or the RX ring, or never had it.
        unsafe { slice::from_raw_parts_mut(self.start(), cast::offset(self.batch.frame_bytes)) }
    }
}

impl fmt::Debug for TxFrame<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxFrame")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
