//! Closing of bound sockets, which waits for all CPUs (`synchronize_net` in `xsk_unbind_dev`, net/xdp/xsk.c: 10 to 30 ms
//! each) and must not keep the engine. Several threads, since those that wait at once wait together; they hold no
//! capability.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use crate::privileges;

/// The placeholders of 64 queues are closed in eight waits then.
const THREADS: usize = 8;

/// The way to the threads.
#[derive(Debug)]
pub(super) struct Closer(Sender<OwnedFd>);

impl Default for Closer {
    fn default() -> Self {
        let (sender, sockets) = mpsc::channel();
        let sockets = Arc::new(Mutex::new(sockets));
        for _ in 0..THREADS {
            let sockets = Arc::clone(&sockets);
            let closer = std::thread::Builder::new().name("closer".into());
            if let Err(error) = closer.spawn(move || close_all(&sockets)) {
                tracing::warn!(%error, "fewer threads to close sockets on");
            }
        }
        Self(sender)
    }
}

impl Closer {
    /// Closes these some time soon.
    pub(super) fn close(&self, sockets: impl Iterator<Item = OwnedFd>) {
        for socket in sockets {
            // Where there is no thread at all the error has the socket, and everybody waits for this.
            drop(self.0.send(socket));
        }
    }
}

fn close_all(sockets: &Mutex<Receiver<OwnedFd>>) {
    if let Err(error) = privileges::renounce() {
        tracing::error!(%error, "a thread that closes sockets ends");
        return;
    }
    loop {
        let next = sockets.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(socket) => drop(socket),
            Err(_) => return,
        }
    }
}
