//! How a socket is bound: in which mode, and to a queue that may be busy for a moment.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::io::Errno;

use crate::error::{Error, Queue};
use crate::sys::{self, BindFlags};
use crate::wire::{BindMode, ModeWish, ZeroCopy};

/// Which mode a socket is bound in. Never left to the kernel: it would choose zero-copy by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The kernel copies each frame. Works on every device.
    Copy,
    /// The device reads and writes the umem, or the bind fails.
    ZeroCopy,
    /// Zero-copy where it can be had, else copy. [`Xsk::mode`](crate::Xsk::mode) says which it is.
    ZeroCopyElseCopy,
}

impl From<Mode> for ModeWish {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Copy => Self::Copy,
            Mode::ZeroCopy => Self::ZeroCopy,
            Mode::ZeroCopyElseCopy => Self::ZeroCopyElseCopy,
        }
    }
}

/// How sockets are bound.
#[derive(Debug, Clone)]
#[must_use]
pub struct BindOptions {
    /// `None`: as the rule wants it.
    mode: Option<Mode>,
    rule: ZeroCopy,
    busy_timeout: Duration,
    buffers: Buffers,
}

/// How many frames a packet may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffers {
    One,
    Several,
}

impl BindOptions {
    /// Copy mode, unless the rule requires zero-copy; a busy queue is tried for one second.
    pub const fn new() -> Self {
        Self {
            mode: None,
            rule: ZeroCopy::Allowed,
            busy_timeout: Duration::from_secs(1),
            buffers: Buffers::One,
        }
    }

    /// The mode. One that the rule does not allow is refused before the bind ([`Error::ModeNotAllowed`]); where the rule
    /// allows one mode only, [`Mode::ZeroCopyElseCopy`] is that one.
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// The same, within what the rule of a grant says.
    pub(crate) const fn under(mut self, rule: ZeroCopy) -> Self {
        self.rule = rule;
        self
    }

    /// For how long a busy queue is tried: the kernel takes 10 to 50 ms to let go of one after its socket was closed.
    pub const fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Packets that are longer than a chunk come and go as several frames (`XDP_USE_SG`, Linux 6.6), up to 18 where they are
    /// sent: [`Xsk::receive_packets`](crate::Xsk::receive_packets) and
    /// [`Xsk::transmit_packets`](crate::Xsk::transmit_packets) keep them whole, in the raw layer
    /// [`RxRing::peek_packets`](crate::raw::RxRing::peek_packets) and
    /// [`Reserved::write_packet`](crate::raw::Reserved::write_packet). Without it the kernel drops and counts them. Zero-copy
    /// drivers may not have it: the bind is refused then, or with [`Mode::ZeroCopyElseCopy`] it is copy.
    pub const fn multi_buffer(mut self) -> Self {
        self.buffers = Buffers::Several;
        self
    }

    pub(crate) fn is_multi_buffer(&self) -> bool {
        self.buffers == Buffers::Several
    }

    /// Binds, and says which mode the kernel gave.
    pub(crate) fn bind(
        &self,
        socket: BorrowedFd<'_>,
        interface_index: u32,
        queue: &Queue,
    ) -> Result<BindMode, Error> {
        let rule = self.rule;
        let mode = mode_under(rule, self.mode).map_err(|mode| Error::ModeNotAllowed {
            queue: queue.clone(),
            rule,
            mode,
        })?;
        let started = Instant::now();
        let attempt = |flag: BindFlags| {
            let mut flags = flag | BindFlags::XDP_USE_NEED_WAKEUP;
            flags.set(BindFlags::XDP_USE_SG, self.is_multi_buffer());
            self.patiently(started, || sys::bind(socket, interface_index, queue.id, flags))
        };
        let bound = match mode {
            Mode::Copy => attempt(BindFlags::XDP_COPY),
            Mode::ZeroCopy => attempt(BindFlags::XDP_ZEROCOPY),
            Mode::ZeroCopyElseCopy => match attempt(BindFlags::XDP_ZEROCOPY) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => attempt(BindFlags::XDP_COPY),
                other => other,
            },
        };
        // An older kernel says no more than EINVAL.
        let call = match self.is_multi_buffer() {
            true => "bind with XDP_USE_SG (from Linux 6.6)",
            false => "bind",
        };
        match bound {
            Ok(()) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)) if mode == Mode::ZeroCopy => {
                return Err(Error::NoZeroCopy {
                    queue: queue.clone(),
                    cause: errno.into(),
                });
            }
            Err(errno) => return Err(bind_error(queue, started, errno, call)),
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
        .map_err(|errno| bind_error(queue, started, errno, "bind with XDP_SHARED_UMEM"))?;
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

/// What to bind with, of what was asked for and what the rule says; or what was asked for, if both cannot be.
fn mode_under(rule: ZeroCopy, asked: Option<Mode>) -> Result<Mode, Mode> {
    match (rule, asked) {
        (ZeroCopy::Allowed, asked) => Ok(asked.unwrap_or(Mode::Copy)),
        (ZeroCopy::Required, None | Some(Mode::ZeroCopy | Mode::ZeroCopyElseCopy)) => Ok(Mode::ZeroCopy),
        (ZeroCopy::Forbidden, None | Some(Mode::Copy | Mode::ZeroCopyElseCopy)) => Ok(Mode::Copy),
        (ZeroCopy::Required, Some(mode @ Mode::Copy))
        | (ZeroCopy::Forbidden, Some(mode @ Mode::ZeroCopy)) => Err(mode),
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

fn bind_error(queue: &Queue, started: Instant, errno: Errno, call: &'static str) -> Error {
    let queue = queue.clone();
    match errno {
        Errno::BUSY => Error::QueueBusy {
            queue,
            waited: started.elapsed(),
        },
        _ => Error::Socket {
            call,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_decides_where_it_allows_one_mode_only() {
        use Mode::{Copy, ZeroCopy as Zero, ZeroCopyElseCopy as Either};
        use ZeroCopy::{Allowed, Forbidden, Required};
        for (rule, asked, expected) in [
            (Allowed, None, Ok(Copy)),
            (Allowed, Some(Zero), Ok(Zero)),
            (Allowed, Some(Either), Ok(Either)),
            (Required, None, Ok(Zero)),
            (Required, Some(Either), Ok(Zero)),
            (Required, Some(Copy), Err(Copy)),
            (Forbidden, None, Ok(Copy)),
            (Forbidden, Some(Either), Ok(Copy)),
            (Forbidden, Some(Zero), Err(Zero)),
        ] {
            assert_eq!(mode_under(rule, asked), expected, "{rule} {asked:?}");
        }
    }
}
