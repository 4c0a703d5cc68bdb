//! Entries of a ring that lie one after another, walked by pointer.
//!
//! A ring's entries are at most two such runs: up to its end, and from its start. Pointers cost fewer instructions than
//! masked indexes, and every run was cut to the ring's size by who made it (`RingMap::run`).

#![expect(unsafe_code, reason = "memory that the kernel writes too")]

use std::ptr::NonNull;

use super::{Descriptor, Entry};

/// How an entry of each kind is read and written.
pub trait Access: Sized {
    /// Reads an entry, each byte once.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping.
    unsafe fn read(entry: *const Self) -> Self;

    /// Writes an entry.
    ///
    /// # Safety
    ///
    /// `entry` is aligned and in a mapping, and reserved for the caller.
    unsafe fn write(entry: *mut Self, value: Self);
}

impl Access for u64 {
    #[inline]
    unsafe fn read(entry: *const Self) -> Self {
        // SAFETY: the caller's promise; any bits are an address, even ones that somebody changes meanwhile.
        unsafe { entry.read_volatile() }
    }

    #[inline]
    unsafe fn write(entry: *mut Self, value: Self) {
        // SAFETY: the caller's promise.
        unsafe { entry.write(value) };
    }
}

/// By its two halves: read as a whole, the compiler would put it into memory first, and its three parts take one store
/// more.
impl Access for Descriptor {
    #[inline]
    unsafe fn read(entry: *const Self) -> Self {
        let halves = entry.cast::<u64>();
        // SAFETY: the first half of an entry, which is aligned to 8 bytes.
        let address = unsafe { halves.read_volatile() };
        // SAFETY: the second half.
        let rest = unsafe { halves.wrapping_add(1).read_volatile() };
        let (length, options) = parts(rest);
        Self {
            address,
            length,
            options,
        }
    }

    #[inline]
    unsafe fn write(entry: *mut Self, value: Self) {
        let halves = entry.cast::<u64>();
        // SAFETY: the first half of an entry, which is aligned to 8 bytes.
        unsafe { halves.write(value.address) };
        // SAFETY: the second half.
        unsafe { halves.wrapping_add(1).write(half(value.length, value.options)) };
    }
}

/// Length and options, as they lie behind the address.
#[inline]
fn half(length: u32, options: u32) -> u64 {
    let (length, options) = (u64::from(length), u64::from(options));
    match cfg!(target_endian = "little") {
        true => length | options << 32,
        false => length << 32 | options,
    }
}

/// What `half` was made of.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the lower and the upper 32 bits")]
fn parts(half: u64) -> (u32, u32) {
    match cfg!(target_endian = "little") {
        true => (half as u32, (half >> 32) as u32),
        false => ((half >> 32) as u32, half as u32),
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
    /// How many entries are moved in one turn of a loop.
    const UNROLLED: u32 = 8;
    let count = from.count.min(to.count);
    let (mut source, mut target) = (from.start.as_ptr().cast_const(), to.start.as_ptr());
    let mut one = || {
        // SAFETY: fewer than `from.count` entries were read before this one.
        let entry = unsafe { F::read(source) };
        // SAFETY: fewer than `to.count` entries were written before this one.
        unsafe { T::write(target, change(entry)) };
        source = source.wrapping_add(1);
        target = target.wrapping_add(1);
    };
    for _ in 0..count / UNROLLED {
        for _ in 0..UNROLLED {
            one();
        }
    }
    for _ in 0..count % UNROLLED {
        one();
    }
    count
}
