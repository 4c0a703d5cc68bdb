//! Descriptors in bulk: copied out of a ring, with the bounds within which all of them lie, and their addresses written
//! to another one.
//!
//! A batch of frames is checked as a whole while it is copied: the bits of all addresses and lengths are put together,
//! and the largest length is kept. No address has a bit that is not among the bits of all, so these, as a number, are not
//! below any address, nor is their part within a chunk below any frame's. A batch that this cannot clear is looked at
//! frame by frame. What is looked at are the copies, which nobody else can change.

#![expect(unsafe_code, reason = "memory that the kernel writes too")]

use std::cell::Cell;

use super::{Descriptor, Run};

/// How many entries are copied in one turn of a loop.
const UNROLLED: usize = 8;

/// Between which bounds descriptors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The bits of all addresses.
    addresses: u64,
    /// The bits of all lengths.
    lengths: u32,
    /// The largest length, if all are below 2^15.
    longest: u32,
}

impl Extent {
    /// Whether each frame is sure to lie in one chunk, and below `limit`. Chunks have a power of two of bytes, `limit` is
    /// a multiple of that. "No" may be wrong.
    #[inline]
    pub(crate) fn is_within(&self, limit: u64, chunk_bytes: u64) -> bool {
        let offset = self.addresses & (chunk_bytes - 1);
        self.addresses < limit && self.lengths < 1 << 15 && offset + u64::from(self.longest) <= chunk_bytes
    }
}

/// Copies entry by entry: the plain way, which every machine has.
///
/// # Safety
///
/// The run is mapped.
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn copy_plainly(run: &Run<Descriptor>, copies: &mut [Descriptor]) -> Extent {
    use super::run::Access as _;

    let mut extent = Extent {
        addresses: 0,
        lengths: 0,
        longest: 0,
    };
    for (position, copy) in copies.iter_mut().enumerate().take(run.count as usize) {
        // SAFETY: an entry of the run.
        *copy = unsafe { Descriptor::read(run.start.as_ptr().wrapping_add(position)) };
        extent.addresses |= copy.address;
        extent.lengths |= copy.length;
        extent.longest = extent.longest.max(copy.length);
    }
    extent
}

impl Run<Descriptor> {
    /// Copies its entries to the front of `copies`, as many as both have.
    ///
    /// # Safety
    ///
    /// The run is mapped.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline]
    pub(crate) unsafe fn copy_to(&self, copies: &mut [Descriptor]) -> Extent {
        // SAFETY: the caller's promise.
        unsafe { copy_plainly(self, copies) }
    }

    /// Copies its entries to the front of `copies`, as many as both have: each with one load, one store, and one
    /// instruction for the bits and one for the largest length, as every x86-64 has them (SSE2). Compilers make twice as
    /// many of the plain way.
    ///
    /// # Safety
    ///
    /// The run is mapped.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    #[inline(never)]
    pub(crate) unsafe fn copy_to(&self, copies: &mut [Descriptor]) -> Extent {
        use std::arch::x86_64::{
            __m128i, _mm_cvtsi128_si64, _mm_extract_epi16, _mm_max_epi16, _mm_or_si128, _mm_setzero_si128,
            _mm_storeu_si128, _mm_unpackhi_epi64,
        };
        use std::mem::offset_of;

        const _: () = assert!(size_of::<Descriptor>() == size_of::<__m128i>());
        const _: () = assert!(offset_of!(Descriptor, length) == 8);

        let mut source = self.start.as_ptr().cast_const().cast::<__m128i>();
        let (mut bits, mut largest) = (_mm_setzero_si128(), _mm_setzero_si128());
        let mut copy = |to: &mut Descriptor| {
            // SAFETY: an entry of the run, of which fewer were read; entries are aligned to their size (`RingMap::new`).
            // Volatile, so that it is read once.
            let entry = unsafe { source.read_volatile() };
            source = source.wrapping_add(1);
            bits = _mm_or_si128(bits, entry);
            largest = _mm_max_epi16(largest, entry);
            // SAFETY: a descriptor of ours, of the same size; any bits are one.
            unsafe { _mm_storeu_si128(std::ptr::from_mut(to).cast(), entry) };
        };
        let count = copies.len().min(self.count as usize);
        let (eights, rest) = copies[..count].as_chunks_mut::<UNROLLED>();
        for eight in eights {
            for to in eight {
                copy(to);
            }
        }
        for to in rest {
            copy(to);
        }
        let low = |it| _mm_cvtsi128_si64(it).cast_unsigned();
        let lengths = low(_mm_unpackhi_epi64(bits, bits)) & u64::from(u32::MAX);
        Extent {
            addresses: low(bits),
            #[expect(clippy::cast_possible_truncation, reason = "masked to 32 bits")]
            lengths: lengths as u32,
            // The length's lower half; the upper one is 0, or `is_within` says no.
            longest: _mm_extract_epi16::<4>(largest).cast_unsigned(),
        }
    }
}

impl Run<u64> {
    /// Copies its addresses to the front of `copies`, as many as both have, with the bits of `mask` only, and returns the
    /// bits of all of them.
    ///
    /// # Safety
    ///
    /// The run is mapped.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) unsafe fn copy_masked(&self, copies: &mut [u64], mask: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { copy_masked_plainly(self, copies, mask) }
    }

    /// Copies its addresses to the front of `copies`, as many as both have, with the bits of `mask` only, and returns the
    /// bits of all of them. Two at a time, which again takes one instruction for each step.
    ///
    /// # Safety
    ///
    /// The run is mapped.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    #[inline(never)]
    pub(crate) unsafe fn copy_masked(&self, copies: &mut [u64], mask: u64) -> u64 {
        use std::arch::x86_64::{
            __m128i, _mm_and_si128, _mm_cvtsi128_si64, _mm_or_si128, _mm_set1_epi64x, _mm_setzero_si128,
            _mm_storeu_si128, _mm_unpackhi_epi64,
        };

        let count = copies.len().min(self.count as usize);
        let (mut source, mut bits) = (self.start.as_ptr().cast_const(), 0);
        let mut copy_one = |source: *const u64, to: &mut u64| {
            // SAFETY: an entry of the run. Volatile, so that it is read once.
            *to = unsafe { source.read_volatile() } & mask;
            bits |= *to;
        };
        let is_aligned = source.addr().is_multiple_of(align_of::<__m128i>());
        let (first, copies) = copies[..count].split_at_mut(usize::from(!is_aligned).min(count));
        for to in first {
            copy_one(source, to);
            source = source.wrapping_add(1);
        }
        let (pairs, last) = copies.as_chunks_mut::<2>();
        for last in last {
            copy_one(source.wrapping_add(2 * pairs.len()), last);
        }

        let mut source = source.cast::<__m128i>();
        let (masks, mut of_pairs) = (_mm_set1_epi64x(mask.cast_signed()), _mm_setzero_si128());
        let mut copy = |to: &mut [u64; 2]| {
            // SAFETY: two entries of the run, aligned as was just seen to.
            let entries = _mm_and_si128(unsafe { source.read_volatile() }, masks);
            source = source.wrapping_add(1);
            of_pairs = _mm_or_si128(of_pairs, entries);
            // SAFETY: as many bytes of ours.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), entries) };
        };
        let (eights, rest) = pairs.as_chunks_mut::<UNROLLED>();
        for eight in eights {
            eight.iter_mut().for_each(&mut copy);
        }
        rest.iter_mut().for_each(copy);
        let both = _mm_or_si128(of_pairs, _mm_unpackhi_epi64(of_pairs, of_pairs));
        bits | _mm_cvtsi128_si64(both).cast_unsigned()
    }

    /// Copies its entries, as many as both have, and says how many. Nobody looks at them on the way.
    ///
    /// # Safety
    ///
    /// Both are mapped; `to` is the caller's alone, and not in `self`.
    #[inline]
    pub(crate) unsafe fn copy_all(&self, to: &Self) -> u32 {
        let count = self.count.min(to.count);
        // SAFETY: as many entries as both have; the caller promises the rest.
        unsafe { self.start.copy_to_nonoverlapping(to.start, count as usize) };
        count
    }

    /// Writes the addresses of frames, as many as both have.
    ///
    /// # Safety
    ///
    /// The run is mapped, and the caller's alone.
    #[inline]
    pub(crate) unsafe fn write_addresses(&self, frames: &[Cell<Descriptor>]) {
        let mut target = self.start.as_ptr();
        let mut write = |frame: &Cell<Descriptor>| {
            // SAFETY: an entry of the run, of which fewer were written.
            unsafe { target.write(frame.get().address) };
            target = target.wrapping_add(1);
        };
        let count = frames.len().min(self.count as usize);
        let (eights, rest) = frames[..count].as_chunks::<UNROLLED>();
        for eight in eights {
            eight.iter().for_each(&mut write);
        }
        rest.iter().for_each(write);
    }
}

impl Run<Descriptor> {
    /// Copies the addresses alone, as many as both have, and says how many. Nobody looks at them on the way, so that it
    /// does not matter whether they change meanwhile.
    ///
    /// # Safety
    ///
    /// Both are mapped; `to` is the caller's alone, and not in `self`.
    #[inline]
    pub(crate) unsafe fn copy_addresses(&self, to: &Run<u64>) -> u32 {
        let count = self.count.min(to.count);
        let (mut source, mut target) = (self.start.as_ptr().cast_const(), to.start.as_ptr());
        let mut copy = || {
            // SAFETY: the first half of an entry of `self`, of which fewer were read.
            let address = unsafe { source.cast::<u64>().read_volatile() };
            // SAFETY: an entry of `to`, of which fewer were written.
            unsafe { target.write(address) };
            source = source.wrapping_add(1);
            target = target.wrapping_add(1);
        };
        for _ in 0..count as usize / UNROLLED {
            for _ in 0..UNROLLED {
                copy();
            }
        }
        for _ in 0..count as usize % UNROLLED {
            copy();
        }
        count
    }
}

/// Copies address by address.
///
/// # Safety
///
/// The run is mapped.
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn copy_masked_plainly(run: &Run<u64>, copies: &mut [u64], mask: u64) -> u64 {
    let mut bits = 0;
    for (position, copy) in copies.iter_mut().enumerate().take(run.count as usize) {
        // SAFETY: an entry of the run. Volatile, so that it is read once.
        *copy = unsafe { run.start.as_ptr().wrapping_add(position).read_volatile() } & mask;
        bits |= *copy;
    }
    bits
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use proptest::prelude::*;

    use super::*;
    use crate::cast;
    use crate::hostile::cases;

    fn descriptor() -> impl Strategy<Value = Descriptor> {
        let address = prop_oneof![0..1_u64 << 16, any::<u64>(), (1_u64 << 16) - 64..(1 << 16) + 64];
        let length = prop_oneof![0..2048_u32, any::<u32>(), (1_u32 << 15) - 4..(1 << 15) + 4];
        (address, length, 0..4_u32).prop_map(|(address, length, options)| Descriptor {
            address,
            length,
            options,
        })
    }

    /// Aligned as rings are.
    #[repr(align(16))]
    struct Ring([Descriptor; 40]);

    fn copied(entries: &[Descriptor]) -> (Vec<Descriptor>, Extent) {
        let mut ring = Ring([Descriptor::default(); 40]);
        ring.0[..entries.len()].copy_from_slice(entries);
        let run = Run {
            start: NonNull::from(&mut ring.0).cast::<Descriptor>(),
            count: cast::count(entries.len()),
        };
        let mut copies = vec![Descriptor::default(); entries.len()];
        // SAFETY: memory of this function's.
        let extent = unsafe { run.copy_to(&mut copies) };
        let mut plain = copies.clone();
        // SAFETY: as above.
        let plainly = unsafe { copy_plainly(&run, &mut plain) };
        assert_eq!(plain, copies);
        assert_eq!(
            (plainly.addresses, plainly.lengths),
            (extent.addresses, extent.lengths)
        );
        if extent.lengths < 1 << 15 {
            assert_eq!(plainly, extent);
        }
        (copies, extent)
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// From any place of the ring, of either alignment.
        #[test]
        fn addresses_are_masked_while_they_are_copied(
            entries in prop::collection::vec(any::<u64>(), 40..41), skip in 0..3_usize, count in 0..38_usize
        ) {
            #[repr(align(16))]
            struct Ring([u64; 40]);
            let mut ring = Ring(entries.clone().try_into().unwrap());
            let start = NonNull::new(ring.0[skip..].as_mut_ptr()).unwrap();
            let run = Run { start, count: cast::count(count) };
            let (mut copies, mut plain) = ([0; 50], [0; 50]);
            // SAFETY: memory of this function's.
            let bits = unsafe { run.copy_masked(&mut copies, !2047) };
            // SAFETY: as above.
            prop_assert_eq!(bits, unsafe { copy_masked_plainly(&run, &mut plain, !2047) });
            prop_assert_eq!(copies, plain);
            for (copy, entry) in copies[..count].iter().zip(&entries[skip..]) {
                prop_assert_eq!(*copy, entry & !2047);
            }
            prop_assert!(copies[count..].iter().all(|copy| *copy == 0));
        }

        #[test]
        fn what_is_cleared_lies_within(entries in prop::collection::vec(descriptor(), 0..40)) {
            let (copies, extent) = copied(&entries);
            prop_assert_eq!(&copies, &entries);
            if extent.is_within(1 << 16, 2048) {
                for entry in entries {
                    prop_assert!(entry.address < 1 << 16);
                    prop_assert!(entry.address % 2048 + u64::from(entry.length) <= 2048);
                }
            }
        }

        /// As they come from the kernel: at the same place of each chunk, in a umem of a power of two.
        #[test]
        fn what_the_kernel_gives_is_cleared(
            frames in prop::collection::vec((0..32_u64, 0..=2048 - 256_u32), 0..40)
        ) {
            let entries: Vec<_> = frames.into_iter().map(|(chunk, length)| Descriptor {
                address: chunk * 2048 + 256,
                length,
                options: 0,
            }).collect();
            prop_assert!(copied(&entries).1.is_within(32 * 2048, 2048));
        }
    }
}
