//! From an unbound socket to a bound one: umem, rings, mode, and a queue that may be busy for a moment.

#![expect(
    unsafe_code,
    reason = "mapping the rings: this file answers for who uses them"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Resource;

use crate::error::{Error, Queue};
use crate::ring::{CompletionRing, FillRing, RxRing, TxRing};
use crate::sys::{self, BindFlags};
use crate::umem::Umem;
use crate::wire::{BindMode, RingSizes};
use crate::xsk::pause_until;

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
            bind_patiently(
                socket,
                (interface_index, queue.id),
                flags,
                started + self.busy_timeout,
            )
        };
        let bound = match self.mode {
            Mode::Copy => attempt(BindFlags::XDP_COPY),
            Mode::ZeroCopy => attempt(BindFlags::XDP_ZEROCOPY),
            Mode::ZeroCopyElseCopy => match attempt(BindFlags::XDP_ZEROCOPY) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => attempt(BindFlags::XDP_COPY),
                other => other,
            },
        };
        let failed = |call, cause| Error::Socket {
            call,
            queue: queue.clone(),
            cause,
        };
        match bound {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                return Err(Error::QueueBusy {
                    queue: queue.clone(),
                    waited: started.elapsed(),
                });
            }
            Err(errno @ (Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)) if self.mode == Mode::ZeroCopy => {
                return Err(Error::NoZeroCopy {
                    queue: queue.clone(),
                    cause: errno.into(),
                });
            }
            Err(errno) => return Err(failed("bind", errno.into())),
        }
        match sys::is_zero_copy(socket).map_err(|cause| failed("XDP_OPTIONS", cause))? {
            true => Ok(BindMode::ZeroCopy),
            false => Ok(BindMode::Copy),
        }
    }
}

impl Default for BindOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Binds, and tries again while the queue is busy, until the deadline.
fn bind_patiently(
    socket: BorrowedFd<'_>,
    (interface_index, queue): (u32, u32),
    flags: BindFlags,
    deadline: Instant,
) -> Result<(), Errno> {
    loop {
        let result = sys::bind(socket, interface_index, queue, flags);
        let errno = match &result {
            Ok(()) => return Ok(()),
            Err(error) => Errno::from_io_error(error).unwrap_or(Errno::IO),
        };
        if errno != Errno::BUSY || !pause_until(deadline, Duration::from_millis(2)) {
            return Err(errno);
        }
    }
}

/// A socket as it comes from the broker: its rings are made, it has no umem, it is not bound.
#[derive(Debug)]
pub(crate) struct Unbound {
    pub(crate) socket: OwnedFd,
    pub(crate) queue: Queue,
    pub(crate) interface_index: u32,
    pub(crate) rings: RingSizes,
}

impl Unbound {
    /// Registers the umem with the socket.
    pub(crate) fn register(&self, umem: &Umem) -> Result<(), Error> {
        sys::register_umem(&self.socket, umem.memory(), umem.chunk_bytes()).map_err(|cause| {
            match Errno::from_io_error(&cause) {
                Some(Errno::NOBUFS) => memlock(umem),
                _ => self.failed("XDP_UMEM_REG", cause),
            }
        })
    }

    /// Maps the four rings.
    pub(crate) fn map_rings(&self) -> Result<(RxRing, TxRing, FillRing, CompletionRing), Error> {
        let fd = self.socket.as_fd();
        let offsets = sys::mmap_offsets(fd).map_err(|cause| self.failed("XDP_MMAP_OFFSETS", cause))?;
        let sizes = &self.rings;
        let failed = |call| move |cause| self.failed(call, cause);
        // SAFETY: `Xsk` produces chunks only that nothing else uses (see `chunks.rs`), and is the only producer: it is
        // made once per socket, since `register` succeeds once.
        let fill =
            unsafe { FillRing::map(fd, &offsets, sizes.fill) }.map_err(failed("mmap of the fill ring"))?;
        // SAFETY: a frame that is sent is given up by its owner; the only producer, as above.
        let tx = unsafe { TxRing::map(fd, &offsets, sizes.tx) }.map_err(failed("mmap of the tx ring"))?;
        // SAFETY: the only consumer, as above.
        let rx = unsafe { RxRing::map(fd, &offsets, sizes.rx) }.map_err(failed("mmap of the rx ring"))?;
        // SAFETY: the only consumer, as above.
        let completion = unsafe { CompletionRing::map(fd, &offsets, sizes.completion) }
            .map_err(failed("mmap of the completion ring"))?;
        Ok((rx, tx, fill, completion))
    }

    fn failed(&self, call: &'static str, cause: io::Error) -> Error {
        Error::Socket {
            call,
            queue: self.queue.clone(),
            cause,
        }
    }
}

fn memlock(umem: &Umem) -> Error {
    Error::Memlock {
        umem_bytes: umem.len(),
        limit_bytes: rustix::process::getrlimit(Resource::Memlock)
            .current
            .unwrap_or(u64::MAX),
        // Whose pinned pages are counted: `xdp_umem_account_pages` (net/xdp/xdp_umem.c) takes current_uid(), which
        // without setuid is the real one too.
        uid: rustix::process::getuid().as_raw(),
    }
}
