//! Waiting until an fd is readable, on tokio's reactor: for pidfds and for rtnetlink.

#![expect(unsafe_code, reason = "tokio's AsyncFd trusts its caller to keep the fd open")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// An fd that the reactor watches.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Has the reactor watch this fd. To be called on the runtime.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) says; EPERM for an fd that cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the OwnedFd: it is open and the same for as long as that lives.
        let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits until the fd is readable; whoever reads it empty says so to the guard.
    ///
    /// # Errors
    ///
    /// Where the runtime is shutting down.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}
