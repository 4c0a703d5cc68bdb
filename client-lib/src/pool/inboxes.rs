//! Chunks on their way home: a list for each share, pushed to by whoever gives a chunk back, from any thread and without a
//! lock, and taken as a whole by the socket whose home it is.
//!
//! The links of a list are the `next` of each chunk. Since nobody ever pops a single entry, a chunk that comes back twice in
//! between (the ABA problem) cannot mislead anybody.
//!
//! **Publication.** Who pushes has written to the chunks, or read them, and has set their links; the exchange of the head is a
//! Release, and the taking an Acquire. A push on top of another one is a read-modify-write of the head, so that it carries
//! on what that one has released: who takes the list sees what all of them did. Loom checks it below.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// No chunk: ends a list.
pub(super) const NONE: u32 = u32::MAX;

/// The lists.
#[derive(Debug)]
pub(super) struct Inboxes {
    heads: Box<[Head]>,
    next: Box<[AtomicU32]>,
}

/// The first chunk of a list. On a cache line of its own: each is another thread's.
#[derive(Debug)]
#[repr(align(64))]
struct Head(AtomicU32);

impl Inboxes {
    /// Empty ones.
    pub(super) fn new(shares: usize, chunks: u32) -> Self {
        Self {
            heads: (0..shares).map(|_| Head(AtomicU32::new(NONE))).collect(),
            next: (0..chunks).map(|_| AtomicU32::new(NONE)).collect(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    /// Links a chunk of its caller's to another one, before both are pushed.
    pub(super) fn link(&self, chunk: u32, next: u32) {
        if let Some(link) = self.next.get(chunk as usize) {
            link.store(next, Ordering::Relaxed);
        }
    }

    /// Puts a list, of its caller's, before what is in an inbox.
    pub(super) fn push(&self, home: usize, first: u32, last: u32) {
        let Some(Head(inbox)) = self.heads.get(home) else {
            return;
        };
        let mut head = inbox.load(Ordering::Relaxed);
        loop {
            self.link(last, head);
            match inbox.compare_exchange_weak(head, first, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes all that is in an inbox: the first chunk, or [`NONE`].
    pub(super) fn take(&self, home: usize) -> u32 {
        match self.heads.get(home) {
            Some(Head(inbox)) if inbox.load(Ordering::Relaxed) != NONE => inbox.swap(NONE, Ordering::Acquire),
            _ => NONE,
        }
    }

    /// What comes behind a chunk of a list that was taken. `None` for [`NONE`], which ends it.
    pub(super) fn behind(&self, chunk: u32) -> Option<u32> {
        let link = self.next.get(chunk as usize)?;
        Some(link.load(Ordering::Relaxed))
    }
}

#[cfg(all(test, loom))]
#[expect(
    unsafe_code,
    reason = "loom's cells give raw pointers, so that it can watch who uses them"
)]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    use super::*;

    /// Two threads give chunks back, one of them two at once, while they are taken. Loom's `UnsafeCell` fails the test if what
    /// somebody wrote to a chunk is not there for who has it next.
    #[test]
    fn loom_chunks_come_home_once_and_with_what_was_written_to_them() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            const CHUNKS: usize = 3;
            let inboxes = Arc::new(Inboxes::new(1, 3));
            let memory: Arc<[UnsafeCell<u32>; CHUNKS]> =
                Arc::new(std::array::from_fn(|_| UnsafeCell::new(0)));
            let write = |memory: &[UnsafeCell<u32>; CHUNKS], chunk: u32| {
                // SAFETY: a chunk that is not in a list is its holder's alone; loom checks it.
                memory[chunk as usize].with_mut(|bytes| unsafe { *bytes += chunk + 1 });
            };
            let (theirs, chunks) = (inboxes.clone(), memory.clone());
            let one = loom::thread::spawn(move || {
                write(&chunks, 0);
                theirs.push(0, 0, 0);
            });
            let (theirs, chunks) = (inboxes.clone(), memory.clone());
            let two = loom::thread::spawn(move || {
                write(&chunks, 1);
                write(&chunks, 2);
                theirs.link(2, 1);
                theirs.push(0, 2, 1);
            });
            let mut came = [0; CHUNKS];
            while came.iter().sum::<u32>() < 3 {
                let mut chunk = inboxes.take(0);
                while let Some(behind) = inboxes.behind(chunk) {
                    came[chunk as usize] += 1;
                    // SAFETY: it is ours now; loom checks it.
                    let written = memory[chunk as usize].with(|bytes| unsafe { *bytes });
                    assert_eq!(written, chunk + 1);
                    chunk = behind;
                }
                loom::thread::yield_now();
            }
            assert_eq!(came, [1; CHUNKS]);
            one.join().unwrap();
            two.join().unwrap();
        });
    }
}
