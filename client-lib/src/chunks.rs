//! Which chunks of a umem are free, and which are owned outside: one socket's book-keeping.
//!
//! **Invariant**: a chunk that is marked as owned is handed out to nobody. Addresses that come from a ring are not
//! believed: whoever makes a slice of one asks [`Chunks::admits`], or checks by itself that it lies in one chunk below
//! [`Chunks::limit`], which is the end of the umem as long as no chunk is owned, and 0 else.

use std::sync::Arc;

use crate::umem::Pool;

/// The free list and the owned marks.
#[derive(Debug)]
pub(crate) struct Chunks {
    pool: Arc<Pool>,
    /// A stack: the chunk that was used last is likely to be in the cache. Its entries are checked when they are
    /// taken, not when they are put.
    free: Box<[u64]>,
    free_count: usize,
    owned: Box<[bool]>,
    owned_count: usize,
    limit: u64,
    /// Addresses that a ring gave and that cannot be right.
    refused: u64,
}

impl Chunks {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        let umem = pool.umem();
        let (bytes, chunks) = (u64::from(umem.chunk_bytes()), u64::from(umem.chunks()));
        let free: Box<[u64]> = (0..chunks).rev().map(|chunk| chunk * bytes).collect();
        Self {
            owned: free.iter().map(|_| false).collect(),
            free_count: free.len(),
            free,
            owned_count: 0,
            limit: umem.len(),
            refused: 0,
            pool,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// An address below this is in the umem, and in a chunk that nobody owns.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// How many addresses were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether these bytes lie in one chunk that nobody owns. Counts a refusal.
    #[cold]
    pub(crate) fn admits(&mut self, address: u64, length: u32) -> bool {
        let bytes = u64::from(self.pool.umem().chunk_bytes());
        let admitted = (address & (bytes - 1)) + u64::from(length) <= bytes
            && self
                .pool
                .umem()
                .chunk_of(address)
                .is_some_and(|chunk| self.owned.get(chunk) == Some(&false));
        self.refused += u64::from(!admitted);
        admitted
    }

    /// Marks the chunk of an admitted address as owned.
    pub(crate) fn own(&mut self, address: u64) {
        if let Some(mark) = self
            .pool
            .umem()
            .chunk_of(address)
            .and_then(|chunk| self.owned.get_mut(chunk))
        {
            debug_assert!(!*mark, "a chunk has one owner");
            *mark = true;
            self.owned_count += 1;
            self.limit = 0;
        }
    }

    /// The owner has given the chunk to the kernel, or it has come back.
    pub(crate) fn disown(&mut self, chunk: usize) {
        if let Some(mark) = self.owned.get_mut(chunk).filter(|mark| **mark) {
            *mark = false;
            self.owned_count -= 1;
            if self.owned_count == 0 {
                self.limit = self.pool.umem().len();
            }
        }
    }

    /// Whether any chunk is owned outside.
    #[inline]
    pub(crate) fn any_owned(&self) -> bool {
        self.owned_count > 0
    }

    /// Takes back what owners have dropped.
    #[cold]
    pub(crate) fn collect(&mut self) {
        let pool = Arc::clone(&self.pool);
        let bytes = u64::from(pool.umem().chunk_bytes());
        for chunk in pool.take_returned() {
            self.disown(chunk);
            if let Some(place) = self.free.get_mut(self.free_count) {
                *place = chunk as u64 * bytes;
                self.free_count += 1;
            }
        }
    }

    /// The free chunks, the next one to use last.
    pub(crate) fn free(&self) -> &[u64] {
        &self.free[..self.free_count]
    }

    /// Room for chunks that come free.
    pub(crate) fn spare(&mut self) -> &mut [u64] {
        &mut self.free[self.free_count..]
    }

    /// The whole stack, its entries that are free first.
    pub(crate) fn stack(&mut self) -> &mut [u64] {
        &mut self.free
    }

    /// How many chunks are free now, after somebody wrote to `spare` or took from the end of `free`.
    pub(crate) fn set_free_count(&mut self, count: usize) {
        debug_assert!(count <= self.free.len(), "more chunks than there are");
        self.free_count = count.min(self.free.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::{Umem, UmemOptions};

    #[test]
    fn what_a_ring_may_not_name() {
        let pool = Arc::new(Pool::new(Umem::new(&UmemOptions::new().chunks(4)).unwrap()));
        let mut chunks = Chunks::new(pool);
        assert!(chunks.admits(0, 2048));
        assert!(chunks.admits(3 * 2048 + 256, 2048 - 256));
        assert!(!chunks.admits(3 * 2048 + 256, 2048 - 255));
        assert!(!chunks.admits(4 * 2048, 1));
        assert!(!chunks.admits(u64::MAX, 1));
        assert!(!chunks.admits(256, u32::MAX));
        assert_eq!(chunks.refused(), 4);
        chunks.own(2048 + 300);
        assert_eq!(chunks.limit(), 0);
        assert!(!chunks.admits(2048, 1));
        assert!(chunks.admits(0, 1));
        chunks.disown(1);
        assert_eq!(chunks.limit(), 4 * 2048);
        assert!(chunks.admits(2048, 1));
    }
}
