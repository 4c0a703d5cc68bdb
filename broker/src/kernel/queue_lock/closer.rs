//! Closing of bound sockets, which waits for all CPUs (`synchronize_net` in `xsk_unbind_dev`, net/xdp/xsk.c: 10 to 30 ms
//! each) and must not keep the engine. Several threads, since those that wait at once wait together; they hold no
//! capability.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use crate::privileges;

/// The placeholders of 64 queues are closed in eight waits then.
const THREADS: usize = 8;

/// The way to the threads.
#[derive(Debug)]
pub(super) struct Closer {
    sockets: Sender<OwnedFd>,
    /// How many are not closed yet.
    waiting: Arc<AtomicU64>,
}

impl Default for Closer {
    fn default() -> Self {
        let (sender, sockets) = mpsc::channel();
        let (sockets, waiting) = (Arc::new(Mutex::new(sockets)), Arc::new(AtomicU64::new(0)));
        for _ in 0..THREADS {
            let (sockets, waiting) = (Arc::clone(&sockets), Arc::clone(&waiting));
            let closer = std::thread::Builder::new().name("closer".into());
            if let Err(error) = closer.spawn(move || close_all(&sockets, &waiting)) {
                tracing::warn!(%error, "fewer threads to close sockets on");
            }
        }
        Self {
            sockets: sender,
            waiting,
        }
    }
}

impl Closer {
    /// Closes these some time soon.
    pub(super) fn close(&self, sockets: impl Iterator<Item = OwnedFd>) {
        for socket in sockets {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // Where there is no thread at all the error has the socket, and everybody waits for this.
            if let Err(unsent) = self.sockets.send(socket) {
                drop(unsent);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// How many sockets are still open that are to be closed.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

fn close_all(sockets: &Mutex<Receiver<OwnedFd>>, waiting: &AtomicU64) {
    if let Err(error) = privileges::renounce() {
        tracing::error!(%error, "a thread that closes sockets ends");
        return;
    }
    loop {
        let next = sockets.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(socket) => {
                drop(socket);
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
            Err(_) => return,
        }
    }
}
