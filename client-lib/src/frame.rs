//! An owned frame: it may leave the batch that it came with, and the thread.

#![expect(unsafe_code, reason = "a slice over a chunk that this frame alone holds")]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use crate::cast;
use crate::packet::MOST_FRAMES;
use crate::pool::Pool;

/// A frame that could not be sent, and why. The frame is still the caller's.
#[derive(Debug)]
#[must_use = "dropping it gives the frame back unsent"]
pub struct Unsent<F> {
    /// The frame, as it was.
    pub frame: F,
    /// Why it was not sent.
    pub reason: UnsentReason,
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsentReason {
    /// The TX ring is full: the kernel has not sent what it has yet.
    #[error("the TX ring is full")]
    RingFull,
    /// More bytes than the chunk has from the frame's first byte on.
    #[error("the frame is longer than its chunk")]
    TooLong,
    /// No chunk of the socket's share of the umem is free: frames are received into, owned, or not sent yet.
    #[error("no chunk is free")]
    NoChunk,
    /// The packet would be of more frames than the kernel sends as one, which is 18.
    #[error("the packet is of more than {MOST_FRAMES} frames")]
    TooManyFrames,
    /// The frame is in another umem than the socket's.
    #[error("the frame belongs to another umem")]
    ForeignUmem,
    /// The socket was not bound for packets of several frames.
    #[error("the socket was bound for packets of one frame: see BindOptions::multi_buffer")]
    OneBuffer,
    /// The umem has no room for what is asked of the device.
    #[error("the umem has no room for requests: see UmemOptions::tx_metadata")]
    NoMetadata,
    /// The socket was granted for receiving only.
    #[error("the socket has no TX ring: it was granted for receiving only")]
    NoRing,
}

/// A frame's new length.
///
/// # Errors
///
/// Its capacity, if `length` is above that.
#[inline]
pub(crate) fn resized(length: usize, capacity: usize) -> Result<u32, usize> {
    match u32::try_from(length) {
        Ok(short) if length <= capacity => Ok(short),
        _ => Err(capacity),
    }
}

/// A frame that its holder owns, made by `into_owned` of an [`RxFrame`](crate::RxFrame) or a
/// [`TxFrame`](crate::TxFrame).
///
/// It may be kept, sent to another thread, or given to [`Xsk::send`](crate::Xsk::send) of any socket of its umem.
/// Dropped, its chunk goes back to the socket that it came from; that takes no lock. While any is out, its socket checks each frame that it hands out against all
/// that are owned, which costs some instructions a packet.
pub struct Frame {
    pool: Arc<Pool>,
    /// In bytes from the start of the umem.
    address: u64,
    length: u32,
}

impl Frame {
    /// `address` and `length` lie in one chunk of the pool's umem, which its socket has marked as gone (`Chunks::leave`).
    pub(crate) fn new(pool: Arc<Pool>, address: u64, length: u32) -> Self {
        Self {
            pool,
            address,
            length,
        }
    }

    /// The most bytes that it may have: up to the end of its chunk.
    pub fn capacity(&self) -> usize {
        let umem = self.pool.umem();
        cast::offset(u64::from(umem.chunk_bytes()) - umem.offset_in_chunk(self.address))
    }

    /// Makes it longer or shorter, up to its capacity. Bytes that become part of it are as they were left.
    ///
    /// # Errors
    ///
    /// The capacity, if `length` is above it.
    pub fn resize(&mut self, length: usize) -> Result<(), usize> {
        self.length = resized(length, self.capacity())?;
        Ok(())
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Address and length.
    pub(crate) fn parts(&self) -> (u64, u32) {
        (self.address, self.length)
    }

    /// Somebody else has taken the chunk over.
    pub(crate) fn forget(self) {
        let mut frame = ManuallyDrop::new(self);
        // SAFETY: the field is dropped once: `ManuallyDrop` keeps the frame's own drop away, and the frame is not
        // used again.
        unsafe { std::ptr::drop_in_place(&raw mut frame.pool) };
    }

    fn start(&self) -> NonNull<u8> {
        let offset = cast::offset(self.address);
        // SAFETY: `new` promises that the frame lies in the umem, whose mapping `pool` keeps.
        unsafe { self.pool.umem().memory().start().add(offset) }
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, a memfd's bytes are always initialised, and nobody else touches them:
        // the chunk is away for every socket of the umem, so that none hands it out or gives it to the kernel, until
        // this frame is gone.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.length as usize) }
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and `&mut self` is the only borrow of the only owner.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.length as usize) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.pool.give_back(self.address);
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("address", &self.address)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
