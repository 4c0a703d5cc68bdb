//! A umem in use, and how several sockets share it.
//!
//! A [`Pool`] outlives its sockets as long as an owned frame is out somewhere, and takes such frames back from any
//! thread. Each socket has a [`Share`]: its home chunks. A chunk may leave home, as an owned frame or to be sent by
//! another socket of the same umem; sooner or later it comes home by the inbox of its share. So no socket can be drained
//! by the others, whichever way the traffic goes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cast;
use crate::umem::Umem;

/// No chunk: ends a list.
const NONE: u32 = u32::MAX;

/// A umem in use.
///
/// An inbox is a list whose links are the `next` of each chunk: pushed by whoever gives a chunk back, from any thread
/// and without a lock, taken as a whole by the socket whose home it is. Since nobody ever pops a single entry, a chunk
/// that comes back twice in between (the ABA problem) cannot mislead anybody.
#[derive(Debug)]
pub(crate) struct Pool {
    umem: Umem,
    inboxes: Box<[Inbox]>,
    chunks_per_share: u32,
    next: Box<[AtomicU32]>,
}

/// The head of a list of chunks that came home. On a cache line of its own: each is another thread's.
#[derive(Debug)]
#[repr(align(64))]
struct Inbox(AtomicU32);

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
            inboxes: (0..shares).map(|_| Inbox(AtomicU32::new(NONE))).collect(),
            chunks_per_share,
            next: (0..umem.chunks()).map(|_| AtomicU32::new(NONE)).collect(),
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

    /// Puts a list whose last link is free before what is in an inbox.
    fn push(&self, home: usize, first: u32, last: u32) {
        let (Some(Inbox(inbox)), Some(link)) = (self.inboxes.get(home), self.link(last)) else {
            return;
        };
        let mut head = inbox.load(Ordering::Relaxed);
        loop {
            link.store(head, Ordering::Relaxed);
            // Release: what was done with the chunks, and their links, come before whoever takes the list.
            match inbox.compare_exchange_weak(head, first, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn link(&self, chunk: u32) -> Option<&AtomicU32> {
        self.next.get(chunk as usize)
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
            if let Some(link) = self.pool.link(chunk) {
                link.store(self.first, Ordering::Relaxed);
            }
        } else {
            self.arrive();
            self.last = chunk;
        }
        (self.home, self.first) = (home, chunk);
    }

    fn arrive(&mut self) {
        if self.first != NONE {
            self.pool.push(self.home, self.first, self.last);
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
        let mut chunk = match self.pool.inboxes.get(self.number) {
            Some(Inbox(inbox)) if inbox.load(Ordering::Relaxed) != NONE => {
                inbox.swap(NONE, Ordering::Acquire)
            }
            _ => NONE,
        };
        std::iter::from_fn(move || {
            let here = chunk as usize;
            // NONE is no chunk, and ends it.
            chunk = pool.link(chunk)?.load(Ordering::Relaxed);
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
        let share = divide(512, 1).unwrap().pop().unwrap();
        let mut back = Vec::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let pool = share.pool();
                scope.spawn(move || {
                    for chunk in (thread..512).step_by(4) {
                        pool.give_back(chunk * 2048 + 256);
                    }
                });
            }
            while back.len() < 512 {
                back.extend(share.take_inbox());
            }
        });
        back.sort_unstable();
        assert_eq!(back, (0..512).collect::<Vec<_>>());
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
