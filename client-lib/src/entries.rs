//! TX entries that are being written: the part of a batch that becomes visible to the kernel when the batch ends.

#![expect(unsafe_code, reason = "entries of a ring are written through a raw pointer")]

use crate::cast;
use crate::ring::{Access as _, Descriptor, Run};

/// Entries of the TX ring that lie one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TxRun {
    first: *mut Descriptor,
    pub(crate) next: *mut Descriptor,
    pub(crate) end: *mut Descriptor,
}

impl TxRun {
    #[inline]
    pub(crate) fn new(run: Run<Descriptor>) -> Self {
        let first = run.start.as_ptr();
        Self {
            first,
            next: first,
            end: run.end(),
        }
    }

    /// How many were written.
    #[inline]
    pub(crate) fn written(&self) -> u32 {
        cast::count((self.next.addr() - self.first.addr()) / size_of::<Descriptor>())
    }

    /// Writes one.
    ///
    /// # Safety
    ///
    /// `next` is not `end`, and the ring is mapped.
    #[inline]
    pub(crate) unsafe fn write(&mut self, address: u64, length: u32, options: u32) {
        // SAFETY: the caller's promise.
        unsafe { write_entry(self.next, address, length, options) };
        self.next = self.next.wrapping_add(1);
    }
}

/// Writes an entry of a frame in one chunk.
///
/// # Safety
///
/// It is in a mapped TX ring, and reserved for the caller.
#[inline]
pub(crate) unsafe fn write_entry(entry: *mut Descriptor, address: u64, length: u32, options: u32) {
    let descriptor = Descriptor {
        address,
        length,
        options,
    };
    // SAFETY: the caller's promise; the kernel reads it only after it was published.
    unsafe { Descriptor::write(entry, descriptor) };
}
