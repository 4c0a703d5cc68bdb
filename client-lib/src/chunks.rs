//! Which chunks of a umem are free, and which are somewhere else: one socket's book-keeping.
//!
//! **Invariant**: a chunk that is [`Place::Here`] for one socket is so for no other, and no owned frame has it. Only
//! such a chunk is ever lent as a slice. Addresses that come from a ring are not believed: whoever makes a slice of one
//! asks [`Chunks::admit`], or checks by itself that it lies in one chunk below [`Chunks::limit`], which is the end of
//! the umem as long as every chunk of it is here and addresses are plain, and 0 else.

#![expect(unsafe_code, reason = "addresses are copied from a ring")]

mod free_list;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::cast;
use crate::chunks::free_list::FreeList;
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
    /// Where chunks begin, each in the umem. Where one is in here twice, by a hostile ring, both cannot be lent at once,
    /// since batches lend one frame at a time, and one that is made an owned frame is away.
    pub(crate) free: FreeList,
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
        let chunks = home.clone().rev().map(|chunk| u64::from(chunk) * bytes);
        let place = |chunk| match home.contains(&chunk) {
            true => Place::Here,
            false => Place::Away,
        };
        let mut chunks = Self {
            free: FreeList::new(umem.chunks(), chunks),
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
            self.free.push(chunk as u64 * bytes);
        }
    }

    /// Takes chunks that the completion ring has given, as many as there is room for, and says how many. Those of guests go
    /// home. The time stamps of their frames go to `stamps`.
    #[inline]
    pub(crate) fn take_sent(&mut self, sent: &Run<u64>, stamps: Option<&mut Stamps>) -> u32 {
        let (limit, bytes) = (self.limit, self.chunk_bytes);
        // Where addresses are not what they seem, each is looked at below.
        let mask = if limit > 0 { !(bytes - 1) } else { u64::MAX };
        let spare = self.free.spare();
        let count = spare.len().min(sent.count as usize);
        // SAFETY: the completion ring, which its caller has borrowed, is mapped; every x86-64 has SSE2.
        let bits = unsafe { sent.copy_masked(spare, mask) };
        // No address is above the bits of all.
        match bits < limit {
            true => self.free.set_len(self.free.len() + count),
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
        let start = self.free.len();
        // What is sorted is written to where it was read, or before.
        for position in 0..count {
            let sorted = self.free.len();
            let Some(&address) = self.free.spare().get(position - (sorted - start)) else {
                break;
            };
            let address = pool.umem().flat(address);
            let chunk = pool.umem().chunk_of(address);
            match chunk.and_then(|chunk| self.places.get_mut(chunk)) {
                Some(Place::Here) => {
                    self.free.push(address - pool.umem().offset_in_chunk(address));
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

    /// Reads the time stamps of frames that have come back, to which the first `count` addresses of `spare` lead.
    fn collect_stamps(&mut self, count: usize, stamps: &mut Stamps) {
        let umem = self.share.pool().umem();
        let start = u64::from(umem.tx_offset());
        for address in self.free.spare().iter().take(count) {
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
            && let Some(&entry) = self.free.as_slice().last()
        {
            let start = self.admit_free(entry);
            if start != REFUSED
                && let Some(top) = self.free.last_mut()
            {
                *top = start;
                return 1;
            }
            self.free.drop_top();
        }
        0
    }

    /// Of the topmost `count` chunks all but the last `left` were used, from the bottom up.
    #[inline]
    pub(crate) fn take_from_top(&mut self, count: u32, left: u32) {
        self.free.take_from_top(count, left);
        if left > 0 && !self.is_plain {
            self.close_one();
        }
    }

    /// Takes a chunk off the free list, and says where a frame that is made in it begins.
    pub(crate) fn take(&mut self) -> Option<u64> {
        while let Some(&entry) = self.free.as_slice().last() {
            self.free.drop_top();
            let start = self.admit_free(entry);
            if start != REFUSED {
                return Some(start);
            }
        }
        None
    }

    /// The topmost entry names its chunk again: with unaligned chunks the fill ring wants that.
    #[cold]
    fn close_one(&mut self) {
        if let Some(entry) = self.free.last_mut() {
            *entry -= self.share.pool().umem().offset_in_chunk(*entry);
        }
    }

    /// Takes the chunks of frames that were admitted and are not wanted any more.
    pub(crate) fn take_back(&mut self, addresses: impl IntoIterator<Item = u64>) {
        for address in addresses {
            let umem = self.share.pool().umem();
            let address = umem.flat(address);
            self.free.push(address - umem.offset_in_chunk(address));
        }
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
