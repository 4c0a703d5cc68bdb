//! Chunks that are free: a stack, since the chunk that was used last is likely to be in the cache.

use crate::cast;

/// Addresses in the umem. All memory is there from the start: for as many as the umem has chunks.
#[derive(Debug)]
pub(crate) struct FreeList {
    entries: Box<[u64]>,
    count: usize,
}

impl FreeList {
    pub(super) fn new(capacity: u32, chunks: impl Iterator<Item = u64>) -> Self {
        let mut list = Self {
            entries: (0..capacity).map(|_| 0).collect(),
            count: 0,
        };
        for chunk in chunks {
            list.push(chunk);
        }
        list
    }

    /// The next one to use last.
    pub(crate) fn as_slice(&self) -> &[u64] {
        &self.entries[..self.count]
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// For how many more there is room.
    #[inline]
    pub(crate) fn room(&self) -> u32 {
        cast::count(self.entries.len() - self.count)
    }

    /// Room for more, which `set_len` then counts.
    #[inline]
    pub(super) fn spare(&mut self) -> &mut [u64] {
        &mut self.entries[self.count..]
    }

    /// One past the next one to use: a pointer that may go down from there, to the first.
    #[inline]
    pub(crate) fn top(&mut self) -> *mut u64 {
        self.entries.as_mut_ptr().wrapping_add(self.count)
    }

    #[inline]
    pub(super) fn last_mut(&mut self) -> Option<&mut u64> {
        self.entries[..self.count].last_mut()
    }

    pub(super) fn push(&mut self, chunk: u64) {
        match self.spare().first_mut() {
            Some(place) => *place = chunk,
            // More than the umem has, which only a hostile ring can have invented.
            None => return,
        }
        self.count += 1;
    }

    /// Forgets the next one to use.
    pub(crate) fn drop_top(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// After somebody wrote to `spare`, or took from the end.
    #[inline]
    pub(crate) fn set_len(&mut self, count: usize) {
        debug_assert!(count <= self.entries.len(), "more chunks than there are");
        self.count = count.min(self.entries.len());
    }

    /// Of the topmost `count` all but the last `left` were used, from the bottom up.
    #[inline]
    pub(super) fn take_from_top(&mut self, count: u32, left: u32) {
        let (count, left) = (count as usize, left as usize);
        let end = self.count;
        self.set_len(end - count + left);
        if left > 0 && left < count {
            self.entries.copy_within(end - left..end, end - count);
        }
    }
}
