//! Which chunks of a umem are free, and which are somewhere else: one socket's book-keeping.
//!
//! **Invariant**: a chunk that is [`Place::Here`] for one socket is so for no other, and no owned frame has it. Only
//! such a chunk is ever lent as a slice. Addresses that come from a ring are not believed: whoever makes a slice of one
//! asks [`Chunks::admits`], or checks by itself that it lies in one chunk below [`Chunks::limit`], which is the end of
//! the umem as long as every chunk of it is here, and 0 else.

#![expect(unsafe_code, reason = "addresses are copied from a ring")]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::cast;
use crate::pool::{Pool, Share};
use crate::ring::{Descriptor, Run};
use crate::umem::Umem;

/// Where a chunk is, as one socket knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// With this socket: on its free list, in its rings, or lent by a batch of its.
    Here,
    /// Another socket's home is its home, and this one is sending it.
    Guest,
    /// None of this socket's business.
    Away,
}

/// The free list and the places.
#[derive(Debug)]
pub(crate) struct Chunks {
    share: Share,
    /// A stack: the chunk that was used last is likely to be in the cache. Its entries are checked when they are
    /// taken, not when they are put.
    free: Box<[u64]>,
    free_count: usize,
    places: Box<[Place]>,
    /// How many home chunks are not here.
    away: usize,
    guests: usize,
    limit: u64,
    /// Addresses that a ring gave and that cannot be right.
    refused: u64,
}

impl Chunks {
    pub(crate) fn new(share: Share) -> Self {
        let umem = share.pool().umem();
        let home = share.chunks();
        let bytes = u64::from(umem.chunk_bytes());
        let mut free: Box<[u64]> = (0..umem.chunks()).map(|_| 0).collect();
        for (place, chunk) in free.iter_mut().zip(home.clone().rev()) {
            *place = u64::from(chunk) * bytes;
        }
        let place = |chunk| match home.contains(&chunk) {
            true => Place::Here,
            false => Place::Away,
        };
        let mut chunks = Self {
            free,
            free_count: home.len(),
            places: (0..umem.chunks()).map(place).collect(),
            away: 0,
            guests: 0,
            limit: 0,
            refused: 0,
            share,
        };
        chunks.set_limit();
        chunks
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        self.share.pool()
    }

    pub(crate) fn umem(&self) -> &Umem {
        self.share.pool().umem()
    }

    /// An address below this is in the umem, and in a chunk that is here.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// How many addresses were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether these bytes lie in one chunk, and that chunk is here. Counts a refusal.
    ///
    /// Like all that batches call for what is rare, it cannot unwind: a batch that had to be dropped after such a call
    /// could not be kept in registers.
    #[inline(never)]
    pub(crate) extern "C" fn admits(&mut self, address: u64, length: u64) -> bool {
        let bytes = u64::from(self.umem().chunk_bytes());
        let admitted = length <= bytes
            && (address & (bytes - 1)) + length <= bytes
            && self
                .umem()
                .chunk_of(address)
                .is_some_and(|chunk| self.places.get(chunk) == Some(&Place::Here));
        self.refused += u64::from(!admitted);
        admitted
    }

    /// The chunk of an admitted address goes elsewhere: it is an owned frame's now, or another socket's.
    pub(crate) extern "C" fn leave(&mut self, address: u64) {
        let place = self
            .umem()
            .chunk_of(address)
            .and_then(|chunk| self.places.get_mut(chunk));
        if let Some(place) = place {
            debug_assert_eq!(*place, Place::Here, "a chunk is in one place");
            *place = Place::Away;
            self.away += 1;
            self.limit = 0;
        }
    }

    /// The chunk of that address is handed to this socket to be sent.
    pub(crate) fn enter(&mut self, address: u64) {
        let Some(chunk) = self.umem().chunk_of(address) else {
            return;
        };
        if self.is_home(chunk) {
            self.come_home(chunk);
        } else if let Some(place) = self.places.get_mut(chunk).filter(|place| **place == Place::Away) {
            *place = Place::Guest;
            self.guests += 1;
        }
    }

    /// Whether any home chunk is elsewhere.
    #[inline]
    pub(crate) fn any_away(&self) -> bool {
        self.away > 0
    }

    /// Takes in what came home.
    #[cold]
    pub(crate) fn collect(&mut self) {
        let bytes = u64::from(self.umem().chunk_bytes());
        for chunk in self.share.take_inbox() {
            if !self.come_home(chunk) {
                continue;
            }
            if let Some(place) = self.free.get_mut(self.free_count) {
                *place = chunk as u64 * bytes;
                self.free_count += 1;
            }
        }
    }

    /// Counts addresses at the start of `spare` as free which the completion ring has given. Those of guests go home.
    #[inline]
    pub(crate) fn sent(&mut self, count: usize) {
        if self.guests == 0 {
            return self.set_free_count(self.free_count + count);
        }
        self.sent_with_guests(count);
    }

    #[inline(never)]
    fn sent_with_guests(&mut self, count: usize) {
        let pool = Arc::clone(self.share.pool());
        let mut way_home = pool.way_home();
        let (start, end) = (self.free_count, self.free_count + count);
        for position in start..end {
            let Some(&address) = self.free.get(position) else {
                break;
            };
            let chunk = pool.umem().chunk_of(address);
            match chunk.and_then(|chunk| self.places.get_mut(chunk)) {
                Some(Place::Here) => {
                    self.free[self.free_count] = address;
                    self.free_count += 1;
                }
                Some(place @ Place::Guest) => {
                    *place = Place::Away;
                    self.guests -= 1;
                    way_home.take(chunk.unwrap_or_default());
                }
                Some(Place::Away) | None => self.refused += 1,
            }
        }
    }

    /// The free chunks, the next one to use last.
    pub(crate) fn free(&self) -> &[u64] {
        &self.free[..self.free_count]
    }

    /// For how many more there is room.
    #[inline]
    pub(crate) fn room(&self) -> u32 {
        cast::count(self.free.len() - self.free_count)
    }

    /// How many chunks are free.
    #[inline]
    pub(crate) fn free_count(&self) -> usize {
        self.free_count
    }

    /// Room for chunks that come free.
    pub(crate) fn spare(&mut self) -> &mut [u64] {
        &mut self.free[self.free_count..]
    }

    /// One past the chunk to use next.
    #[inline]
    pub(crate) fn top(&mut self) -> *mut u64 {
        self.spare().as_mut_ptr()
    }

    /// Of the topmost `count` chunks all but the last `left` were used, from the bottom up.
    #[inline]
    pub(crate) fn take_from_top(&mut self, count: u32, left: u32) {
        let (count, left) = (count as usize, left as usize);
        let end = self.free_count;
        self.set_free_count(end - count + left);
        if left > 0 && left < count {
            self.free.copy_within(end - left..end, end - count);
        }
    }

    /// Forgets the topmost chunk.
    pub(crate) fn drop_top(&mut self) {
        self.set_free_count(self.free_count - 1);
    }

    /// Takes the chunks of frames that were received and dropped.
    #[inline(never)]
    pub(crate) extern "C" fn take_back(&mut self, frames: Run<Descriptor>) {
        let spare = self.spare();
        let room = Run {
            start: NonNull::from(&mut *spare).cast(),
            count: cast::count(spare.len()),
        };
        debug_assert!(frames.count <= room.count, "no room to recycle");
        // SAFETY: a batch's entries are in its ring's mapping; the free list is ours, and somewhere else.
        let count = unsafe { frames.copy_addresses(&room) };
        self.free_count += count as usize;
    }

    /// How many chunks are free now, after somebody wrote to `spare` or took from the end of `free`.
    pub(crate) fn set_free_count(&mut self, count: usize) {
        debug_assert!(count <= self.free.len(), "more chunks than there are");
        self.free_count = count.min(self.free.len());
    }

    /// A home chunk that was away is here again. Says whether it was.
    fn come_home(&mut self, chunk: usize) -> bool {
        let Some(place) = self.places.get_mut(chunk).filter(|place| **place == Place::Away) else {
            return false;
        };
        *place = Place::Here;
        self.away -= 1;
        self.set_limit();
        true
    }

    fn is_home(&self, chunk: usize) -> bool {
        u32::try_from(chunk).is_ok_and(|chunk| self.share.chunks().contains(&chunk))
    }

    fn set_limit(&mut self) {
        self.limit = match self.share.is_whole() && self.away == 0 {
            true => self.umem().len(),
            false => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::UmemOptions;

    fn sockets(chunks: u32, count: usize) -> Vec<Chunks> {
        let umem = Umem::new(&UmemOptions::new().chunks(chunks)).unwrap();
        let shares = Pool::divide(umem, count).unwrap();
        shares.into_iter().map(Chunks::new).collect()
    }

    #[test]
    fn what_a_ring_may_not_name() {
        let mut chunks = sockets(4, 1).pop().unwrap();
        assert!(chunks.admits(0, 2048));
        assert!(chunks.admits(3 * 2048 + 256, 2048 - 256));
        assert!(!chunks.admits(3 * 2048 + 256, 2048 - 255));
        assert!(!chunks.admits(4 * 2048, 1));
        assert!(!chunks.admits(u64::MAX, 1));
        assert!(!chunks.admits(256, u64::MAX));
        assert!(!chunks.admits(256, u64::from(u32::MAX)));
        assert_eq!(chunks.refused(), 5);
        chunks.leave(2048 + 300);
        assert_eq!(chunks.limit(), 0);
        assert!(!chunks.admits(2048, 1));
        assert!(chunks.admits(0, 1));
        chunks.enter(2048);
        assert_eq!(chunks.limit(), 4 * 2048);
        assert!(chunks.admits(2048, 1));
    }

    #[test]
    fn a_guest_goes_home_when_it_was_sent_and_nowhere_else() {
        let mut both = sockets(8, 2);
        let (mut other, mut home) = (both.pop().unwrap(), both.pop().unwrap());
        assert_eq!(home.free(), [3 * 2048, 2 * 2048, 2048, 0]);
        assert_eq!(other.free(), [7 * 2048, 6 * 2048, 5 * 2048, 4 * 2048]);
        assert!(home.admits(0, 1) && !home.admits(4 * 2048, 1));
        home.set_free_count(3);
        home.leave(256);
        other.enter(256);
        // On its way it is nobody's to lend.
        assert!(!home.admits(0, 1) && !other.admits(0, 1));
        // One of its own, the guest, the guest again, one that it never had.
        other.set_free_count(3);
        other.spare()[..4].copy_from_slice(&[4 * 2048, 256, 256, 2048]);
        other.sent(4);
        assert_eq!(other.free().len(), 4);
        assert_eq!(other.refused(), 1 + 2);
        assert!(!home.admits(0, 1));
        home.collect();
        assert!(home.admits(0, 1));
        assert_eq!(home.free(), [3 * 2048, 2 * 2048, 2048, 0]);
    }
}
