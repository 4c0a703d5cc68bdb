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
            // SAFETY: the caller's promise.
            address: unsafe { Self::read_address(entry) },
            length: u32::from_ne_bytes([a, b, c, d]),
            options: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

impl Descriptor {
    /// Reads an entry's address, once.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping.
    #[inline]
    pub(crate) unsafe fn read_address(entry: *const Self) -> u64 {
        let address = entry.wrapping_byte_add(offset_of!(Self, address)).cast::<u64>();
        // SAFETY: the caller's promise; any bits are an address.
        unsafe { address.read_volatile() }
    }

    /// Reads an entry's length, once.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping.
    #[inline]
    pub(crate) unsafe fn read_length(entry: *const Self) -> u32 {
        let length = entry.wrapping_byte_add(offset_of!(Self, length)).cast::<u32>();
        // SAFETY: the caller's promise; any bits are a length.
        unsafe { length.read_volatile() }
    }
}

impl Descriptor {
    /// Reads an entry's options, once.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping.
    pub(crate) unsafe fn read_options(entry: *const Self) -> u32 {
        let options = entry.wrapping_byte_add(offset_of!(Self, options)).cast::<u32>();
        // SAFETY: the caller's promise; any bits are options.
        unsafe { options.read_volatile() }
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
    /// One past its last entry: computed without going there.
    #[inline]
    pub(crate) fn end(&self) -> *mut D {
        self.start.as_ptr().wrapping_add(self.count as usize)
    }
}

impl Run<Descriptor> {
    /// The entries from `count` on.
    pub(crate) fn skip(&self, count: u32) -> Self {
        let count = count.min(self.count);
        Self {
            // SAFETY: within the run, or one past its end.
            start: unsafe { self.start.add(count as usize) },
            count: self.count - count,
        }
    }

    /// Copies the addresses alone, as many as both have, and says how many. Nobody looks at them on the way, so that it
    /// does not matter whether they change meanwhile.
    ///
    /// # Safety
    ///
    /// Both are mapped; `to` is the caller's alone, and not in `self`.
    #[inline]
    pub(crate) unsafe fn copy_addresses(&self, to: &Run<u64>) -> u32 {
        const UNROLLED: u32 = 8;
        let count = self.count.min(to.count);
        let (mut source, mut target) = (self.start.as_ptr().cast_const(), to.start.as_ptr());
        let mut left = count;
        while left >= UNROLLED {
            for position in 0..UNROLLED as usize {
                // SAFETY: an entry of `self`, and there are as many left.
                let address = unsafe { Descriptor::read_address(source.wrapping_add(position)) };
                // SAFETY: an entry of `to`, and there are as many left.
                unsafe { target.wrapping_add(position).write(address) };
            }
            source = source.wrapping_add(UNROLLED as usize);
            target = target.wrapping_add(UNROLLED as usize);
            left -= UNROLLED;
        }
        for position in 0..left as usize {
            // SAFETY: an entry of `self`, one of the last ones.
            let address = unsafe { Descriptor::read_address(source.wrapping_add(position)) };
            // SAFETY: an entry of `to`, one of the last ones.
            unsafe { target.wrapping_add(position).write(address) };
        }
        count
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
