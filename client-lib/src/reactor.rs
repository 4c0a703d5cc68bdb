//! A socket in tokio's reactor.

#![expect(unsafe_code, reason = "tokio's AsyncFd trusts its caller to keep the fd open")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::error::Error;
use crate::receive::Received;
use crate::xsk::{DEVICE_CHECK, Xsk};

/// An [`Xsk`] that is waited for with tokio; feature `tokio`. Its runtime needs I/O and time.
///
/// What is awaited ends with packets or with an error, [`Error::DeviceGone`] within a second of the event. It does not end
/// with the lease: a socket whose lease was revoked stays bound, and nothing arrives. [`Monitor`](crate::Monitor) tells of
/// that; who does not want to ask sets a limit with `tokio::time::timeout`, after which nothing is lost.
///
/// ```no_run
/// # async fn run(xsk: xsk_client::Xsk) -> Result<(), Box<dyn std::error::Error>> {
/// let mut xsk = xsk_client::AsyncXsk::new(xsk)?;
/// loop {
///     let mut batch = xsk.receive(64).await?;
///     while let Some(frame) = batch.next_frame() {
///         frame.send().ok();
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncXsk {
    /// A duplicate, since who has the socket by `&mut` may put another one in its place. Closed before it.
    watched: AsyncFd<OwnedFd>,
    /// When it was last seen whether the device is still there: awaits that are given up early add up.
    looked: Instant,
    xsk: Xsk,
}

impl AsyncXsk {
    /// Registers the socket with the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// What dup(2) and epoll_ctl(2) say.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with I/O.
    pub fn new(xsk: Xsk) -> io::Result<Self> {
        let duplicate = xsk.as_fd().try_clone_to_owned()?;
        // SAFETY: the AsyncFd owns the OwnedFd: it is open and the same for as long as that lives.
        let watched = unsafe { AsyncFd::register_with_interest(duplicate, Interest::READABLE) }?;
        Ok(Self {
            watched,
            looked: Instant::now(),
            xsk,
        })
    }

    /// Waits until there is something to receive. Dropped before, it has no effect.
    ///
    /// # Errors
    ///
    /// As [`Xsk::wait`].
    pub async fn readable(&mut self) -> Result<(), Error> {
        loop {
            if self.xsk.is_readable()? {
                return Ok(());
            }
            if self.looked.elapsed() >= DEVICE_CHECK {
                self.looked = Instant::now();
                self.xsk.check_device()?;
            }
            match timeout(self.xsk.longest_pause(), self.watched.readable()).await {
                Ok(Ok(mut ready)) => {
                    // What comes after this look makes it ready again, and that is not cleared.
                    if !self.xsk.is_readable()? {
                        ready.clear_ready();
                    }
                }
                Ok(Err(cause)) => return Err(self.xsk.failed("epoll_wait", cause)),
                Err(_elapsed) => {}
            }
        }
    }

    /// Takes up to `max` received frames, of which it waits for the first. Dropped before, it has taken none.
    ///
    /// # Errors
    ///
    /// As [`Xsk::receive`] and [`Xsk::wait`].
    pub async fn receive(&mut self, max: u32) -> Result<Received<'_>, Error> {
        self.readable().await?;
        self.xsk.receive(max)
    }

    /// The socket.
    pub fn get_ref(&self) -> &Xsk {
        &self.xsk
    }

    /// The socket: for all that does not wait.
    pub fn get_mut(&mut self) -> &mut Xsk {
        &mut self.xsk
    }

    /// Takes it out of the reactor.
    pub fn into_inner(self) -> Xsk {
        self.xsk
    }
}
