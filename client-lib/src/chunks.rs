//! Which chunks of a umem are free, and which are somewhere else: one socket's book-keeping.
//!
//! **Invariant**: a chunk that is [`Place::Here`] for one socket is so for no other, and no owned frame has it. Only
//! such a chunk is ever lent as a slice. Addresses that come from a ring are not believed: whoever makes a slice of one
//! asks [`Chunks::admit`], or checks by itself that it lies in one chunk below [`Chunks::limit`], which is the end of
//! the umem as long as every chunk of it is here and addresses are plain, and 0 else.

#![expect(unsafe_code, reason = "addresses are copied from a ring")]

use std::sync::Arc;

use crate::cast;
use crate::metadata::TxMetadata;
use crate::pool::{Pool, Share};
use crate::ring::Run;
use crate::stamps::{Stamps, TxTimestamp};
use crate::umem::Umem;

/// No address: beyond every umem.
pub(crate) const REFUSED: u64 = u64::MAX;

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
    /// A stack: the chunk that was used last is likely to be in the cache. Its entries are where chunks begin, each in
    /// the umem; where one is in here twice, by a hostile ring, both cannot be lent at once, since batches lend one frame at
    /// a time, and one that is made an owned frame is away.
    free: Box<[u64]>,
    free_count: usize,
    places: Box<[Place]>,
    /// How many home chunks are not here.
    away: usize,
    guests: usize,
    limit: u64,
    chunk_bytes: u64,
    /// Frames begin where their chunks do, and addresses are what they seem.
    is_plain: bool,
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
            chunk_bytes: bytes,
            is_plain: umem.is_plain(),
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

    /// Where these bytes are, in bytes from the umem's start, if they lie in one chunk and that chunk is here; else
    /// [`REFUSED`], which is counted.
    ///
    /// Like all that batches call for what is rare, it cannot unwind: a batch that had to be dropped after such a call
    /// could not be kept in registers.
    #[inline(never)]
    pub(crate) extern "C" fn admit(&mut self, address: u64, length: u64) -> u64 {
        let umem = self.umem();
        let bytes = u64::from(umem.chunk_bytes());
        let address = umem.flat(address);
        let admitted = length <= bytes
            && umem
                .chunk_of(address)
                .is_some_and(|chunk| self.places.get(chunk) == Some(&Place::Here))
            && umem.offset_in_chunk(address) + length <= bytes;
        if admitted {
            return address;
        }
        self.refused += 1;
        REFUSED
    }

    /// Where a frame begins that is made in the chunk of this entry of the free list, if that chunk is here.
    #[inline(never)]
    pub(crate) extern "C" fn admit_free(&mut self, entry: u64) -> u64 {
        match self.admit(entry, 0) {
            REFUSED => REFUSED,
            address => {
                let umem = self.umem();
                address - umem.offset_in_chunk(address) + u64::from(umem.tx_offset())
            }
        }
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

    /// Takes chunks that the completion ring has given, as many as there is room for, and says how many. Those of guests go
    /// home. The time stamps of their frames go to `stamps`.
    #[inline]
    pub(crate) fn take_sent(&mut self, sent: &Run<u64>, stamps: Option<&mut Stamps>) -> u32 {
        let (limit, bytes) = (self.limit, self.chunk_bytes);
        // Where addresses are not what they seem, each is looked at below.
        let mask = if limit > 0 { !(bytes - 1) } else { u64::MAX };
        let spare = self.spare();
        let count = spare.len().min(sent.count as usize);
        // SAFETY: the completion ring, which its caller has borrowed, is mapped; every x86-64 has SSE2.
        let bits = unsafe { sent.copy_masked(spare, mask) };
        // No address is above the bits of all.
        match bits < limit {
            true => self.set_free_count(self.free_count + count),
            false => self.sort_sent(count, stamps),
        }
        cast::count(count)
    }

    /// Sorts what was copied to `spare`: by whose it is, and as chunks, where the kernel cannot tell the chunk from an
    /// address in it.
    #[inline(never)]
    fn sort_sent(&mut self, count: usize, stamps: Option<&mut Stamps>) {
        if let Some(stamps) = stamps {
            self.collect_stamps(count, stamps);
        }
        let pool = Arc::clone(self.share.pool());
        let mut way_home = pool.way_home();
        let (start, end) = (self.free_count, self.free_count + count);
        for position in start..end {
            let Some(&address) = self.free.get(position) else {
                break;
            };
            let address = pool.umem().flat(address);
            let chunk = pool.umem().chunk_of(address);
            match chunk.and_then(|chunk| self.places.get_mut(chunk)) {
                Some(Place::Here) => {
                    self.free[self.free_count] = address - pool.umem().offset_in_chunk(address);
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

    /// How many chunks are free besides a window of so many.
    pub(crate) fn free_count_beside(&self, window: u32) -> u32 {
        cast::count(self.free_count).saturating_sub(window)
    }

    /// Reads the time stamps of frames that have come back, to which the first `count` addresses of `spare` lead.
    fn collect_stamps(&self, count: usize, stamps: &mut Stamps) {
        let umem = self.umem();
        let start = u64::from(umem.tx_offset());
        for address in self.free[self.free_count..].iter().take(count) {
            let address = umem.flat(*address);
            let Some(tag) = umem.chunk_of(address).and_then(|chunk| stamps.arrived(chunk)) else {
                continue;
            };
            if umem.offset_in_chunk(address) != start {
                continue;
            }
            // SAFETY: the beginning of a chunk of the umem, as was just checked.
            let metadata = unsafe { umem.memory().start().add(cast::offset(address - start)) };
            // SAFETY: a chunk that was tagged is this socket's, and its frame has come back; the bytes are read once, and
            // any of them are a time.
            let bytes = unsafe { metadata.cast::<[u8; TxMetadata::BYTES]>().read_volatile() };
            stamps.keep(TxTimestamp {
                tag,
                nanoseconds: TxMetadata::timestamp(&bytes),
            });
        }
    }

    /// Room for chunks that come free.
    fn spare(&mut self) -> &mut [u64] {
        &mut self.free[self.free_count..]
    }

    /// One past the chunk to use next.
    #[inline]
    pub(crate) fn top(&mut self) -> *mut u64 {
        self.spare().as_mut_ptr()
    }

    /// How many of the topmost `most` entries may be lent one after another, which then say where their frames begin: all,
    /// or one where chunks must be admitted one by one, or none.
    #[inline]
    pub(crate) fn open_top(&mut self, most: u32) -> u32 {
        match self.limit > 0 {
            true => most,
            false => self.open_one(most),
        }
    }

    #[inline(never)]
    extern "C" fn open_one(&mut self, most: u32) -> u32 {
        while most > 0
            && let Some(&entry) = self.free().last() {
            let start = self.admit_free(entry);
            if start != REFUSED {
                self.free[self.free_count - 1] = start;
                return 1;
            }
            self.drop_top();
        }
        0
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
        if left > 0 && !self.is_plain {
            self.close_one();
        }
    }

    /// The topmost entry names its chunk again: with unaligned chunks the fill ring wants that.
    #[cold]
    fn close_one(&mut self) {
        if let Some(entry) = self.free[..self.free_count].last_mut() {
            *entry -= self.share.pool().umem().offset_in_chunk(*entry);
        }
    }

    /// Forgets the topmost chunk.
    pub(crate) fn drop_top(&mut self) {
        self.set_free_count(self.free_count - 1);
    }

    /// Takes the chunks of frames that were received, admitted and dropped.
    pub(crate) fn take_back(&mut self, addresses: impl IntoIterator<Item = u64>) {
        for address in addresses {
            let umem = self.share.pool().umem();
            let address = umem.flat(address);
            let start = address - umem.offset_in_chunk(address);
            let Some(place) = self.free.get_mut(self.free_count) else {
                debug_assert!(false, "no room to recycle");
                return;
            };
            *place = start;
            self.free_count += 1;
        }
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
        self.limit = match self.share.is_whole() && self.is_plain && self.away == 0 {
            true => self.umem().len(),
            false => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::umem::UmemOptions;

    fn sockets(chunks: u32, count: usize) -> Vec<Chunks> {
        let umem = Umem::new(&UmemOptions::new().chunks(chunks)).unwrap();
        let shares = Pool::divide(umem, count).unwrap();
        shares.into_iter().map(Chunks::new).collect()
    }

    fn sent(chunks: &mut Chunks, addresses: &[u64]) {
        let mut addresses = addresses.to_vec();
        let run = Run {
            start: NonNull::from(addresses.as_mut_slice()).cast(),
            count: cast::count(addresses.len()),
        };
        assert_eq!(chunks.take_sent(&run, None), run.count);
    }

    fn admits(chunks: &mut Chunks, address: u64, length: u64) -> bool {
        chunks.admit(address, length) != REFUSED
    }

    #[test]
    fn unaligned_chunks_are_told_by_division() {
        let options = UmemOptions::new().chunk_bytes(3000).chunks(4).unaligned();
        let share = Pool::divide(Umem::new(&options).unwrap(), 1)
            .unwrap()
            .pop()
            .unwrap();
        let mut chunks = Chunks::new(share);
        assert_eq!(chunks.limit(), 0);
        assert_eq!(chunks.admit(3000 | 256 << 48, 2744), 3256);
        assert_eq!(chunks.admit(3000 | 256 << 48, 2745), REFUSED);
        assert_eq!(chunks.admit(4 * 3000, 1), REFUSED);
        assert_eq!(chunks.admit_free(6000 | 256 << 48), 6000);
        // A frame that was sent from within its chunk comes back as the chunk.
        chunks.set_free_count(3);
        sent(&mut chunks, &[3256]);
        assert_eq!(chunks.free(), [9000, 6000, 3000, 3000]);
    }

    #[test]
    fn what_a_ring_may_not_name() {
        let mut chunks = sockets(4, 1).pop().unwrap();
        assert!(admits(&mut chunks, 0, 2048));
        assert!(admits(&mut chunks, 3 * 2048 + 256, 2048 - 256));
        assert!(!admits(&mut chunks, 3 * 2048 + 256, 2048 - 255));
        assert!(!admits(&mut chunks, 4 * 2048, 1));
        assert!(!admits(&mut chunks, u64::MAX, 1));
        assert!(!admits(&mut chunks, 256, u64::MAX));
        assert!(!admits(&mut chunks, 256, u64::from(u32::MAX)));
        assert_eq!(chunks.refused(), 5);
        chunks.leave(2048 + 300);
        assert_eq!(chunks.limit(), 0);
        assert!(!admits(&mut chunks, 2048, 1));
        assert!(admits(&mut chunks, 0, 1));
        chunks.enter(2048);
        assert_eq!(chunks.limit(), 4 * 2048);
        assert!(admits(&mut chunks, 2048, 1));
    }

    #[test]
    fn a_guest_goes_home_when_it_was_sent_and_nowhere_else() {
        let mut both = sockets(8, 2);
        let (mut other, mut home) = (both.pop().unwrap(), both.pop().unwrap());
        assert_eq!(home.free(), [3 * 2048, 2 * 2048, 2048, 0]);
        assert_eq!(other.free(), [7 * 2048, 6 * 2048, 5 * 2048, 4 * 2048]);
        assert!(admits(&mut home, 0, 1) && !admits(&mut home, 4 * 2048, 1));
        home.set_free_count(3);
        home.leave(256);
        other.enter(256);
        // On its way it is nobody's to lend.
        assert!(!admits(&mut home, 0, 1) && !admits(&mut other, 0, 1));
        // One of its own, the guest, the guest again, one that it never had.
        other.set_free_count(3);
        sent(&mut other, &[4 * 2048, 256, 256, 2048]);
        assert_eq!(other.free().len(), 4);
        assert_eq!(other.refused(), 1 + 2);
        assert!(!admits(&mut home, 0, 1));
        home.collect();
        assert!(admits(&mut home, 0, 1));
        assert_eq!(home.free(), [3 * 2048, 2 * 2048, 2048, 0]);
    }
}
