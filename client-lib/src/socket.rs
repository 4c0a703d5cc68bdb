//! A bound socket without its rings: its name in errors, and the calls by which the kernel is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::error::{Error, Queue};
use crate::ring::{CorruptRing, FillRing, TxRing};
use crate::sys::{self, Ring, Statistics};
use crate::wire::BindMode;

/// How many frames one call sends in copy mode (`TX_BATCH_SIZE`, net/xdp/xsk.c; `__xsk_generic_xmit` says EAGAIN where
/// there are more).
const KICK_FRAMES: u32 = 32;

/// Whether the kernel has what it was to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Kick {
    /// It knows of all that was published.
    Done,
    /// It had no room for now: call it again later.
    Again,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polled {
    Ready,
    TimedOut,
    /// By a signal.
    Interrupted,
}

/// A socket, its queue, its mode.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    pub(crate) queue: Queue,
    pub(crate) mode: BindMode,
    /// How many frames one call sends at most.
    kick_frames: AtomicU32,
    /// The kernel has told that the device is gone, which it does once.
    is_gone: AtomicBool,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd, queue: Queue, mode: BindMode) -> Self {
        Self {
            fd,
            queue,
            mode,
            kick_frames: AtomicU32::new(KICK_FRAMES),
            is_gone: AtomicBool::new(false),
        }
    }

    /// How many frames one call sends at most, in copy mode (`XDP_MAX_TX_SKB_BUDGET`).
    pub(crate) fn set_kick_frames(&self, frames: u32) -> Result<(), Error> {
        sys::set_tx_budget(&self.fd, frames).map_err(|cause| self.error("XDP_MAX_TX_SKB_BUDGET", cause))?;
        self.kick_frames.store(frames, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn lower_busy_poll(&self, budget: u16, microseconds: u32) -> Result<(), Error> {
        sys::lower_busy_poll(&self.fd, budget, microseconds)
            .map_err(|cause| self.error("SO_BUSY_POLL", cause))
    }

    /// Waits for something to receive.
    pub(crate) fn wait_readable(&self, timeout: Option<Duration>) -> Result<Polled, Error> {
        self.poll(PollFlags::IN, timeout)
    }

    /// poll(2)
    pub(crate) fn poll(&self, events: PollFlags, timeout: Option<Duration>) -> Result<Polled, Error> {
        let failed = |errno: Errno| self.error("poll", errno.into());
        let timeout = match timeout {
            Some(timeout) => Some(Timespec::try_from(timeout).map_err(|_| failed(Errno::INVAL))?),
            None => None,
        };
        let mut fds = [PollFd::new(&self.fd, events)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => Ok(Polled::TimedOut),
            Ok(_) => Ok(Polled::Ready),
            Err(Errno::INTR) => Ok(Polled::Interrupted),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Calls the kernel for the fill ring, if it asks for that. In copy mode it never does.
    #[inline]
    pub(crate) fn kick_fill(&self, fill: &FillRing) -> Result<(), Error> {
        if self.mode == BindMode::Copy || !fill.needs_wakeup() {
            return Ok(());
        }
        let nothing: &mut [u8] = &mut [];
        match rustix::net::recv(&self.fd, nothing, RecvFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR) => Ok(()),
            Err(errno) => Err(self.kick_error("recvfrom", errno)),
        }
    }

    /// Calls the kernel for the TX ring, if it asks for that: as often as it takes for what is in flight, as long as it
    /// makes progress.
    ///
    /// Inlined with its system call, up to the loop of who uses this library: where the kernel's own returns are
    /// guarded ("Safe RET", Documentation/admin-guide/hw-vuln/srso.rst), a function that returns right after a system call
    /// makes a round trip of 1.8 microseconds one of 2.25.
    #[inline(always)]
    pub(crate) fn kick_tx(&self, tx: &mut TxRing, in_flight: u32) -> Result<Kick, Error> {
        if !tx.needs_wakeup() {
            return Ok(Kick::Done);
        }
        let frames_each = self.kick_frames().max(1);
        let mut left = in_flight;
        // A full batch of the kernel's ends with EAGAIN, whether there is more or not.
        while !tx.is_drained() {
            match rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT) {
                Ok(_) => return Ok(Kick::Done),
                // More than it sends at once; or no room for completions or in the socket's send buffer.
                Err(Errno::AGAIN) if left >= frames_each => left -= frames_each,
                Err(errno) => return self.not_kicked(errno),
            }
        }
        Ok(Kick::Done)
    }

    /// One call for the TX ring. As little as can be inlined of it: see [`Self::kick_tx`].
    #[inline(always)]
    pub(crate) fn kick_tx_once(&self) -> Result<(), Errno> {
        rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT).map(|_| ())
    }

    /// How many frames one call sends at most.
    #[inline]
    pub(crate) fn kick_frames(&self) -> u32 {
        self.kick_frames.load(Ordering::Relaxed)
    }

    #[cold]
    pub(crate) fn not_kicked(&self, errno: Errno) -> Result<Kick, Error> {
        match errno {
            // No room, in the device or for completions; or it is down for now: the frames wait in the ring.
            Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR => Ok(Kick::Again),
            errno => Err(self.kick_error("sendto", errno)),
        }
    }

    pub(crate) fn statistics(&self) -> Result<Statistics, Error> {
        sys::statistics(&self.fd).map_err(|cause| self.error("XDP_STATISTICS", cause))
    }

    /// A device that goes leaves ENETDOWN on its sockets (`xsk_notifier`, net/xdp/xsk.c), which who asks for it takes away
    /// (`sock_error`, include/net/sock.h).
    pub(crate) fn check_device(&self) -> Result<(), Error> {
        let told = rustix::net::sockopt::socket_error(&self.fd);
        if let Ok(Err(Errno::NETDOWN | Errno::NXIO)) = told {
            self.is_gone.store(true, Ordering::Relaxed);
        }
        match self.is_gone.load(Ordering::Relaxed) {
            true => Err(self.gone()),
            false => Ok(()),
        }
    }

    pub(crate) fn error(&self, call: &'static str, cause: io::Error) -> Error {
        Error::Socket {
            call,
            queue: self.queue.clone(),
            cause,
        }
    }

    #[cold]
    pub(crate) fn corrupt(&self, cause: CorruptRing) -> Error {
        Error::Corrupt {
            queue: self.queue.clone(),
            cause,
        }
    }

    #[cold]
    pub(crate) fn lacks(&self, ring: Ring) -> Error {
        Error::NoRing {
            queue: self.queue.clone(),
            ring,
        }
    }

    #[cold]
    fn kick_error(&self, call: &'static str, errno: Errno) -> Error {
        match errno {
            // `xsk_sendmsg`, net/xdp/xsk.c: no longer bound.
            Errno::NXIO => self.gone(),
            _ => self.error(call, errno.into()),
        }
    }

    fn gone(&self) -> Error {
        Error::DeviceGone {
            queue: self.queue.clone(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
