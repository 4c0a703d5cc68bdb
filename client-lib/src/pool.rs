//! A umem in use, and how several sockets share it.
//!
//! A [`Pool`] outlives its sockets as long as an owned frame is out somewhere, and takes such frames back from any
//! thread. Each socket has a [`Share`]: its home chunks. A chunk may leave home, as an owned frame or to be sent by
//! another socket of the same umem; sooner or later it comes home by the inbox of its share. So no socket can be drained
//! by the others, whichever way the traffic goes.

mod inboxes;

use std::ops::Range;
use std::sync::Arc;

use crate::cast;
use crate::pool::inboxes::{Inboxes, NONE};
use crate::umem::Umem;

/// A umem in use.
#[derive(Debug)]
pub(crate) struct Pool {
    umem: Umem,
    inboxes: Inboxes,
    chunks_per_share: u32,
}

/// One socket's part of a umem. There is one of each number, so that no chunk has two homes.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Arc<Pool>,
    number: usize,
}

impl Pool {
    /// Divides a umem into shares of the same size, the last of which has what is left over. `None` where there are
    /// fewer chunks than shares, or no shares.
    pub(crate) fn divide(umem: Umem, shares: usize) -> Option<Vec<Share>> {
        let count = u32::try_from(shares).ok()?;
        let chunks_per_share = umem.chunks().checked_div(count).filter(|chunks| *chunks > 0)?;
        let pool = Arc::new(Self {
            inboxes: Inboxes::new(shares, umem.chunks()),
            chunks_per_share,
            umem,
        });
        let share = |number| Share {
            pool: Arc::clone(&pool),
            number,
        };
        Some((0..shares).map(share).collect())
    }

    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Takes home the chunk that `address` lies in. Only for who holds it, as the last act.
    pub(crate) fn give_back(&self, address: u64) {
        if let Some(chunk) = self.umem.chunk_of(address) {
            let mut way = self.way_home();
            way.take(chunk);
        }
    }

    /// Takes many chunks home, with one exchange for each run of the same home. Dropped, all are there.
    pub(crate) fn way_home(&self) -> WayHome<'_> {
        WayHome {
            pool: self,
            home: 0,
            first: NONE,
            last: NONE,
        }
    }

    fn home_of(&self, chunk: u32) -> usize {
        let share = chunk / self.chunks_per_share;
        (share as usize).min(self.inboxes.len() - 1)
    }
}

/// Chunks on their way home.
#[derive(Debug)]
pub(crate) struct WayHome<'p> {
    pool: &'p Pool,
    home: usize,
    first: u32,
    last: u32,
}

impl WayHome<'_> {
    /// One more. It must be its caller's to give.
    pub(crate) fn take(&mut self, chunk: usize) {
        let chunk = cast::count(chunk);
        let home = self.pool.home_of(chunk);
        if self.first != NONE && home == self.home {
            self.pool.inboxes.link(chunk, self.first);
        } else {
            self.arrive();
            self.last = chunk;
        }
        (self.home, self.first) = (home, chunk);
    }

    fn arrive(&mut self) {
        if self.first != NONE {
            self.pool.inboxes.push(self.home, self.first, self.last);
        }
    }
}

impl Drop for WayHome<'_> {
    fn drop(&mut self) {
        self.arrive();
    }
}

impl Share {
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Its home chunks.
    pub(crate) fn chunks(&self) -> Range<u32> {
        let first = cast::count(self.number) * self.pool.chunks_per_share;
        let is_last = self.number + 1 == self.pool.inboxes.len();
        let end = if is_last {
            self.pool.umem.chunks()
        } else {
            first + self.pool.chunks_per_share
        };
        first..end
    }

    /// Whether it is the only one.
    pub(crate) fn is_whole(&self) -> bool {
        self.pool.inboxes.len() == 1
    }

    /// Takes all chunks that came home.
    pub(crate) fn take_inbox(&self) -> impl Iterator<Item = usize> + use<> {
        let pool = Arc::clone(&self.pool);
        let mut chunk = pool.inboxes.take(self.number);
        std::iter::from_fn(move || {
            let here = chunk as usize;
            chunk = pool.inboxes.behind(chunk)?;
            Some(here)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::UmemOptions;

    fn divide(chunks: u32, shares: usize) -> Option<Vec<Share>> {
        Pool::divide(Umem::new(&UmemOptions::new().chunks(chunks)).unwrap(), shares)
    }

    #[test]
    fn chunks_come_back_from_every_thread_once() {
        const CHUNKS: u32 = if cfg!(miri) { 16 } else { 512 };
        let share = divide(CHUNKS, 1).unwrap().pop().unwrap();
        let mut back = Vec::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let pool = share.pool();
                scope.spawn(move || {
                    for chunk in (thread..CHUNKS).step_by(4) {
                        pool.give_back(u64::from(chunk) * 2048 + 256);
                    }
                });
            }
            while back.len() < CHUNKS as usize {
                back.extend(share.take_inbox());
                std::thread::yield_now();
            }
        });
        back.sort_unstable();
        assert_eq!(back, (0..CHUNKS as usize).collect::<Vec<_>>());
        assert_eq!(share.take_inbox().count(), 0);
    }

    #[test]
    fn every_chunk_has_one_home() {
        assert!(divide(4, 5).is_none());
        assert!(divide(4, 0).is_none());
        let shares = divide(16, 3).unwrap();
        let homes: Vec<_> = shares.iter().map(Share::chunks).collect();
        assert_eq!(homes, [0..5, 5..10, 10..16]);
        assert!(!shares[0].is_whole());
        let mut way = shares[0].pool().way_home();
        for chunk in [4, 3, 15, 9, 8, 5, 14, 0] {
            way.take(chunk);
        }
        drop(way);
        for (share, expected) in shares.iter().zip([vec![0, 3, 4], vec![5, 8, 9], vec![14, 15]]) {
            let mut came: Vec<_> = share.take_inbox().collect();
            came.sort_unstable();
            assert_eq!(came, expected);
        }
    }
}
