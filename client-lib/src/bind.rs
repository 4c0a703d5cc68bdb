//! How a socket is bound: in which mode, and to a queue that may be busy for a moment.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::io::Errno;

use crate::error::{Error, Queue};
use crate::sys::{self, BindFlags};
use crate::wire::BindMode;

/// Which mode a socket is bound in. Never left to the kernel: it would choose zero-copy by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The kernel copies each frame. Works on every device.
    #[default]
    Copy,
    /// The device reads and writes the umem, or the bind fails.
    ZeroCopy,
    /// Zero-copy where it can be had, else copy. [`Xsk::mode`](crate::Xsk::mode) says which it is.
    ZeroCopyElseCopy,
}

/// How sockets are bound.
#[derive(Debug, Clone)]
#[must_use]
pub struct BindOptions {
    mode: Mode,
    busy_timeout: Duration,
}

impl BindOptions {
    /// Copy mode; a busy queue is tried for one second.
    pub const fn new() -> Self {
        Self {
            mode: Mode::Copy,
            busy_timeout: Duration::from_secs(1),
        }
    }

    /// The mode.
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// For how long a busy queue is tried: the kernel takes 10 to 50 ms to let go of one after its socket was closed.
    pub const fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Binds, and says which mode the kernel gave.
    pub(crate) fn bind(
        &self,
        socket: BorrowedFd<'_>,
        interface_index: u32,
        queue: &Queue,
    ) -> Result<BindMode, Error> {
        let started = Instant::now();
        let attempt = |flag: BindFlags| {
            let flags = flag | BindFlags::XDP_USE_NEED_WAKEUP;
            self.patiently(started, || sys::bind(socket, interface_index, queue.id, flags))
        };
        let bound = match self.mode {
            Mode::Copy => attempt(BindFlags::XDP_COPY),
            Mode::ZeroCopy => attempt(BindFlags::XDP_ZEROCOPY),
            Mode::ZeroCopyElseCopy => match attempt(BindFlags::XDP_ZEROCOPY) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => attempt(BindFlags::XDP_COPY),
                other => other,
            },
        };
        match bound {
            Ok(()) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)) if self.mode == Mode::ZeroCopy => {
                return Err(Error::NoZeroCopy {
                    queue: queue.clone(),
                    cause: errno.into(),
                });
            }
            Err(errno) => return Err(bind_error(queue, started, errno)),
        }
        mode_of(socket, queue)
    }

    /// Binds with the umem, and so in the mode, of a socket that is bound.
    pub(crate) fn bind_shared(
        &self,
        socket: BorrowedFd<'_>,
        interface_index: u32,
        queue: &Queue,
        first: BorrowedFd<'_>,
    ) -> Result<BindMode, Error> {
        let started = Instant::now();
        self.patiently(started, || {
            sys::bind_shared(socket, interface_index, queue.id, first)
        })
        .map_err(|errno| bind_error(queue, started, errno))?;
        mode_of(socket, queue)
    }

    /// Tries again while the queue is busy, until the time is over.
    fn patiently(&self, started: Instant, mut bind: impl FnMut() -> io::Result<()>) -> Result<(), Errno> {
        let deadline = started + self.busy_timeout;
        loop {
            let errno = match bind() {
                Ok(()) => return Ok(()),
                Err(error) => Errno::from_io_error(&error).unwrap_or(Errno::IO),
            };
            if errno != Errno::BUSY || !pause_until(deadline, Duration::from_millis(2)) {
                return Err(errno);
            }
        }
    }
}

impl Default for BindOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Copy or zero-copy, as the kernel says of a bound socket.
pub(crate) fn mode_of(socket: impl AsFd, queue: &Queue) -> Result<BindMode, Error> {
    match sys::is_zero_copy(socket) {
        Ok(true) => Ok(BindMode::ZeroCopy),
        Ok(false) => Ok(BindMode::Copy),
        Err(cause) => Err(Error::Socket {
            call: "XDP_OPTIONS",
            queue: queue.clone(),
            cause,
        }),
    }
}

fn bind_error(queue: &Queue, started: Instant, errno: Errno) -> Error {
    let queue = queue.clone();
    match errno {
        Errno::BUSY => Error::QueueBusy {
            queue,
            waited: started.elapsed(),
        },
        _ => Error::Socket {
            call: "bind",
            queue,
            cause: errno.into(),
        },
    }
}

/// Sleeps before the next try, and says whether there is one.
fn pause_until(deadline: Instant, pause: Duration) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    thread::sleep(left.min(pause));
    !left.is_zero()
}
