//! AF_XDP sockets on the broker's side: made with bounded rings and pinned to their device, asked whether they
//! are bound, never bound, polled or mapped (a poll would transmit what the holder put into the TX ring: F16).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caps::Capability;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{BindMode, Counters};

use super::netlink;
use crate::error::Failure;
use crate::lease::Reservation;
use crate::privileges;

/// One AF_XDP socket.
#[derive(Debug)]
pub struct Xsk {
    socket: OwnedFd,
    queue: u32,
}

impl Xsk {
    /// Makes a socket of kind `prepared`: confined to the device by SO_BINDTODEVICE, which its holder cannot change
    /// (F3), with all four rings, so that their sizes are the broker's choice (F7).
    ///
    /// It takes a reservation to show that a policy has decided so.
    ///
    /// # Errors
    ///
    /// What the kernel says, by the call that said it.
    pub fn prepared(reservation: &Reservation, queue: u32) -> Result<Self, Failure> {
        let (device, rings) = (reservation.device(), reservation.terms().rings());
        let object = || format!("{}, queue {queue}", device.name);
        let failed = |call| move |source: io::Error| Failure::kernel(call, object(), source);
        let socket = privileges::with(&[Capability::CAP_NET_RAW], sys::xdp_socket)?
            .map_err(failed("socket(AF_XDP)"))?;
        sys::confine_to_device(&socket, device.index).map_err(failed("setsockopt(SO_BINDTOIFINDEX)"))?;
        for (ring, entries) in [
            (Ring::Fill, rings.fill),
            (Ring::Completion, rings.completion),
            (Ring::Rx, rings.rx),
            (Ring::Tx, rings.tx),
        ] {
            sys::create_ring(&socket, ring, entries).map_err(|source| {
                Failure::kernel(
                    "setsockopt of a ring's size",
                    format!("{}, {ring} ring", object()),
                    source,
                )
            })?;
        }
        Ok(Self { socket, queue })
    }

    /// The queue that it was made for.
    pub fn queue(&self) -> u32 {
        self.queue
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
        sys::is_bound(&self.socket)
            .map_err(|source| Failure::kernel("setsockopt(XDP_RX_RING, 0)", "AF_XDP socket", source))
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

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether some socket is bound to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueUse {
    /// One is, or one was and the kernel has not let go yet.
    Taken,
    /// None is.
    Free,
}

/// Asks whether a queue is taken, by trying to bind a socket of ours to it.
///
/// Where the driver has no zero-copy the try asks for zero-copy: `xp_assign_dev` (net/xdp/xsk_buff_pool.c) says EBUSY
/// for a taken queue before it says EOPNOTSUPP, and the queue is as it was. Elsewhere the try must be one that
/// succeeds, in copy mode, and then the queue is busy for the 16 to 50 ms that the kernel takes to let go (F34).
///
/// # Errors
///
/// What the kernel says, by the call that said it.
pub fn queue_use(index: u32, queue: u32) -> Result<QueueUse, Failure> {
    let failed =
        |call, source: io::Error| Failure::kernel(call, format!("ifindex {index}, queue {queue}"), source);
    // Unknown (before Linux 6.3) counts as "it may": then the try is the one that is always right.
    let may_zero_copy = netlink::may_do_zero_copy(index).unwrap_or(true);
    let probe = privileges::with(&[Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK], probe_socket)?
        .map_err(|source| failed("making of a probe socket", source))?;
    let flags = if may_zero_copy {
        BindFlags::XDP_COPY
    } else {
        BindFlags::XDP_ZEROCOPY
    };
    match sys::bind(&probe, index, queue, flags) {
        Ok(()) => Ok(QueueUse::Free),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && !may_zero_copy => Ok(QueueUse::Free),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(QueueUse::Taken),
        Err(error) => Err(failed("bind(AF_XDP)", error)),
    }
}

/// A socket that is ready to be bound and good for nothing else: one page of umem, rings of one entry.
fn probe_socket() -> io::Result<OwnedFd> {
    const PAGE_BYTES: usize = 4096;
    const CHUNK_BYTES: u32 = 4096;

    let memory = rustix::fs::memfd_create("xsk-broker probe", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, u64::from(CHUNK_BYTES))?;
    let mapping = Mapping::new(&memory, 0, PAGE_BYTES, Prefault::No)?;
    let socket = sys::xdp_socket()?;
    sys::register_umem(&socket, &mapping, CHUNK_BYTES)?;
    for ring in [Ring::Fill, Ring::Completion, Ring::Rx] {
        sys::create_ring(&socket, ring, 1)?;
    }
    Ok(socket)
}
