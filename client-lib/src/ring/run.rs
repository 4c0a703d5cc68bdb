//! Entries of a ring that lie one after another, walked by pointer.
//!
//! A ring's entries are at most two such runs: up to its end, and from its start. Pointers cost fewer instructions than
//! masked indexes, and every run was cut to the ring's size by who made it (`RingMap::run`).

#![expect(unsafe_code, reason = "memory that the kernel writes too")]

use std::mem::offset_of;
use std::ptr::NonNull;

use super::{Descriptor, Entry};

/// How an entry of each kind is read.
pub trait Readable: Sized {
    /// Reads an entry, each byte once.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping.
    unsafe fn read(entry: *const Self) -> Self;
}

impl Readable for u64 {
    #[inline]
    unsafe fn read(entry: *const Self) -> Self {
        // SAFETY: the caller's promise; any bits are an address, even ones that somebody changes meanwhile.
        unsafe { entry.read_volatile() }
    }
}

impl Readable for Descriptor {
    /// By its two halves: as a whole the compiler would read it into memory first.
    #[inline]
    unsafe fn read(entry: *const Self) -> Self {
        let rest = entry
            .wrapping_byte_add(offset_of!(Descriptor, length))
            .cast::<u64>();
        // SAFETY: the second half of an entry, which is aligned to 8 bytes.
        let [a, b, c, d, e, f, g, h] = unsafe { rest.read_volatile() }.to_ne_bytes();
        Self {
            // SAFETY: the first half.
            address: unsafe { entry.cast::<u64>().read_volatile() },
            length: u32::from_ne_bytes([a, b, c, d]),
            options: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Entries that lie one after another, up to the ring's end at most.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Run<D> {
    /// The first.
    pub(crate) start: NonNull<D>,
    /// How many.
    pub(crate) count: u32,
}

impl<D> Run<D> {
    /// No entries.
    pub(crate) const NONE: Self = Self {
        start: NonNull::dangling(),
        count: 0,
    };

    /// One past its last entry: computed without going there.
    #[inline]
    pub(crate) fn end(&self) -> *mut D {
        self.start.as_ptr().wrapping_add(self.count as usize)
    }
}

/// Writes what `change` makes of each entry of `from` to `to`, as many as both have, and says how many.
///
/// # Safety
///
/// Both are mapped; `to` was reserved for the caller, who is its only writer, and is not in `from`.
#[inline]
pub(crate) unsafe fn transfer<F: Entry, T: Entry>(
    from: Run<F>,
    to: Run<T>,
    mut change: impl FnMut(F) -> T,
) -> u32 {
    let count = from.count.min(to.count);
    let (mut source, mut target) = (from.start.as_ptr().cast_const(), to.start.as_ptr());
    for _ in 0..count {
        // SAFETY: fewer than `from.count` entries were read before this one.
        let entry = unsafe { F::read(source) };
        // SAFETY: fewer than `to.count` entries were written before this one.
        unsafe { target.write(change(entry)) };
        source = source.wrapping_add(1);
        target = target.wrapping_add(1);
    }
    count
}
