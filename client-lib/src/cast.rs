//! The conversions of the hot path, each with the reason why it loses nothing.

const _: () = assert!(usize::BITS == 64, "addresses in a umem are taken for usize");

/// An address or a length within a umem.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits, asserted above"
)]
pub(crate) const fn offset(address: u64) -> usize {
    address as usize
}

/// A number of ring entries or of bytes in a chunk, which callers know to be below 2^32.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "callers count ring entries and bytes of a chunk"
)]
pub(crate) const fn count(count: usize) -> u32 {
    debug_assert!(count <= u32::MAX as usize, "no ring and no chunk is that large");
    count as u32
}
