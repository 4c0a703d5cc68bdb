//! Frames in memory that their contender manages itself.

#![expect(unsafe_code, reason = "memory that the kernel writes too")]

use std::ptr::NonNull;

use crate::harness::{self, CHUNK_BYTES, CHUNKS};

/// Writes the frame into every chunk: a generator of traffic has no need to do it again.
///
/// # Safety
///
/// The umem begins there, and nobody else knows of it yet.
pub(crate) unsafe fn write_frames(umem: NonNull<u8>) {
    let frame = harness::frame();
    for chunk in 0..CHUNKS {
        // SAFETY: the chunk is in the umem.
        let start = unsafe { umem.add((chunk * CHUNK_BYTES) as usize) };
        // SAFETY: a frame fits in a chunk, which is the caller's.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(&frame).cast(), frame.len()) };
    }
}

/// Swaps the two Ethernet addresses of a frame.
///
/// # Safety
///
/// The frame is in the umem that begins there, longer than that, and its chunk the caller's.
#[inline(always)]
pub(crate) unsafe fn swap_addresses(umem: NonNull<u8>, address: u64) {
    // SAFETY: the caller's promise.
    let addresses = unsafe { umem.add(address as usize) }.cast::<[[u8; 6]; 2]>();
    // SAFETY: as above.
    let [to, from] = unsafe { addresses.read() };
    // SAFETY: as above.
    unsafe { addresses.write([from, to]) };
}
