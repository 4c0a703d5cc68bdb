//! AF_XDP sockets on the broker's side: made with bounded rings and pinned to their device; those of kind `bound` bound,
//! too, before anybody else has them. Never polled (a poll would transmit what the holder put into the TX ring: F16).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caps::Capability;
use rustix::io::Errno;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{BindMode, Counters, Direction, ModeWish};

use crate::error::Failure;
use crate::lease::Reservation;
use crate::privileges;

/// One AF_XDP socket.
#[derive(Debug)]
pub struct Xsk {
    socket: OwnedFd,
    queue: u32,
}

/// Why a socket could not be bound.
#[derive(Debug)]
pub enum BindError {
    /// Another socket is bound to the queue, or was until a moment ago.
    QueueTaken,
    /// Zero-copy is not to be had there.
    NoZeroCopy(io::Error),
    /// Anything else.
    Failed(Failure),
}

impl Xsk {
    /// Makes an unbound socket: confined to the device by SO_BINDTOIFINDEX, which its holder cannot change (F3), with
    /// the rings of its direction, so that their sizes are the broker's choice (F7).
    ///
    /// It takes a reservation to show that a policy has decided so.
    ///
    /// # Errors
    ///
    /// What the kernel says, by the call that said it.
    pub fn new(reservation: &Reservation, queue: u32) -> Result<Self, Failure> {
        let (device, terms) = (reservation.device(), reservation.terms());
        let (rings, direction) = (terms.rings(), terms.direction());
        let this = Self::bare(reservation, queue)?;
        let object = || format!("{}, queue {queue}", device.name);
        for (ring, entries) in [
            (Ring::Fill, rings.fill),
            (Ring::Completion, rings.completion),
            (Ring::Rx, rings.rx),
            (Ring::Tx, rings.tx),
        ] {
            if !has_ring(direction, ring) {
                continue;
            }
            sys::create_ring(&this.socket, ring, entries).map_err(|source| {
                Failure::kernel(
                    "setsockopt of a ring's size",
                    format!("{}, {ring} ring", object()),
                    source,
                )
            })?;
        }
        Ok(this)
    }

    /// Makes a socket of kind `bare`: confined to the device as above, with the busy polling that was granted, and nothing
    /// more. How large its rings are is its holder's choice, and nobody is charged for them (F7).
    ///
    /// # Errors
    ///
    /// What the kernel says, by the call that said it.
    pub fn bare(reservation: &Reservation, queue: u32) -> Result<Self, Failure> {
        let (device, terms) = (reservation.device(), reservation.terms());
        let failed = |call| {
            move |source: io::Error| Failure::kernel(call, format!("{}, queue {queue}", device.name), source)
        };
        let socket = privileges::with(&[Capability::CAP_NET_RAW], sys::xdp_socket)?
            .map_err(failed("socket(AF_XDP)"))?;
        sys::confine_to_device(&socket, device.index).map_err(failed("setsockopt(SO_BINDTOIFINDEX)"))?;
        if let Some(busy_poll) = terms.busy_poll() {
            privileges::with(&[Capability::CAP_NET_ADMIN], || {
                sys::set_busy_poll(&socket, busy_poll.budget, busy_poll.usecs)
            })?
            .map_err(failed("setsockopt(SO_PREFER_BUSY_POLL)"))?;
        }
        Ok(Self { socket, queue })
    }

    /// One that a broker before made for that queue, and that somebody has kept.
    pub fn kept(socket: OwnedFd, queue: u32) -> Self {
        Self { socket, queue }
    }

    /// Binds it to its queue. Its umem is registered, and nobody else has the socket yet.
    ///
    /// # Errors
    ///
    /// As [`BindError`] says. It is as unbound as before.
    pub fn bind(&self, interface_index: u32, mode: ModeWish) -> Result<(), BindError> {
        let attempt = |flag: BindFlags| {
            let flags = flag | BindFlags::XDP_USE_NEED_WAKEUP;
            sys::bind(&self.socket, interface_index, self.queue, flags)
        };
        let no_zero_copy = |error: &io::Error| {
            matches!(
                Errno::from_io_error(error),
                Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
            )
        };
        let bound = match mode {
            ModeWish::Copy => attempt(BindFlags::XDP_COPY),
            ModeWish::ZeroCopy => attempt(BindFlags::XDP_ZEROCOPY),
            ModeWish::ZeroCopyElseCopy => match attempt(BindFlags::XDP_ZEROCOPY) {
                Err(error) if no_zero_copy(&error) => attempt(BindFlags::XDP_COPY),
                bound => bound,
            },
        };
        match bound {
            Err(error) if mode == ModeWish::ZeroCopy && no_zero_copy(&error) => {
                Err(BindError::NoZeroCopy(error))
            }
            bound => self.bind_result(interface_index, bound),
        }
    }

    /// Binds it to its queue with the umem, and in the mode, of a socket that is bound already (F11, F35).
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_shared(&self, interface_index: u32, first: &Self) -> Result<(), BindError> {
        let bound = sys::bind_shared(&self.socket, interface_index, self.queue, first.as_fd());
        self.bind_result(interface_index, bound)
    }

    fn bind_result(&self, interface_index: u32, bound: io::Result<()>) -> Result<(), BindError> {
        bound.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => BindError::QueueTaken,
            _ => {
                let object = format!("ifindex {interface_index}, queue {}", self.queue);
                BindError::Failed(Failure::kernel("bind(AF_XDP)", object, error))
            }
        })
    }

    /// Whether the rings of a bound socket can be mapped, which takes Linux 6.4 or so: `xsk_mmap` (net/xdp/xsk.c) says
    /// EBUSY before. Asked with a mapping that nothing reads or writes.
    ///
    /// # Errors
    ///
    /// What the kernel says else.
    pub fn rings_can_be_mapped(&self) -> Result<bool, Failure> {
        const PAGE_BYTES: usize = 4096;
        match Mapping::new(&self.socket, Ring::Fill.page_offset(), PAGE_BYTES, Prefault::No) {
            Ok(_) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => Ok(false),
            Err(error) => Err(Failure::kernel(
                "mmap",
                "the fill ring of an AF_XDP socket",
                error,
            )),
        }
    }

    /// The queue that it was made for.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Its inode, by which root finds it in `/proc/PID/fd`.
    pub fn inode(&self) -> Option<u64> {
        rustix::fs::fstat(&self.socket).ok().map(|stat| stat.st_ino)
    }

    /// Another fd of the same socket, to be handed over.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn duplicate(&self) -> Result<OwnedFd, Failure> {
        self.socket
            .try_clone()
            .map_err(|source| Failure::kernel("fcntl(F_DUPFD_CLOEXEC)", "AF_XDP socket", source))
    }

    /// Whether its holder has bound it, to whatever queue.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn is_bound(&self) -> Result<bool, Failure> {
        sys::is_bound(&self.socket).map_err(|source| Failure::kernel("recv", "AF_XDP socket", source))
    }

    /// Copy or zero-copy, once bound.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn mode(&self) -> Result<BindMode, Failure> {
        let zero_copy = sys::is_zero_copy(&self.socket)
            .map_err(|source| Failure::kernel("getsockopt(XDP_OPTIONS)", "AF_XDP socket", source))?;
        Ok(if zero_copy {
            BindMode::ZeroCopy
        } else {
            BindMode::Copy
        })
    }

    /// The socket's own counters; `redirected` is left for the XDP program to say. All 0 where the kernel does not
    /// answer: statistics never fail a request.
    pub fn counters(&self) -> Counters {
        let Ok(statistics) = sys::statistics(&self.socket) else {
            return Counters::default();
        };
        Counters {
            redirected: 0,
            rx_dropped: statistics.rx_dropped,
            rx_ring_full: statistics.rx_ring_full,
            rx_fill_ring_empty_descs: statistics.rx_fill_ring_empty_descs,
            rx_invalid_descs: statistics.rx_invalid_descs,
            tx_invalid_descs: statistics.tx_invalid_descs,
            tx_ring_empty_descs: statistics.tx_ring_empty_descs,
        }
    }
}

impl From<Xsk> for OwnedFd {
    fn from(xsk: Xsk) -> Self {
        xsk.socket
    }
}

/// Whether a socket of that direction gets that ring. The kernel binds none without a fill and a completion ring.
fn has_ring(direction: Direction, ring: Ring) -> bool {
    match ring {
        Ring::Fill | Ring::Completion => true,
        Ring::Rx => direction.receives(),
        Ring::Tx => direction.sends(),
    }
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
