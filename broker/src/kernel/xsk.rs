//! AF_XDP sockets on the broker's side: made with bounded rings and pinned to their device, asked whether they
//! are bound, never bound, polled or mapped (a poll would transmit what the holder put into the TX ring: F16).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caps::Capability;
use xsk_client::sys::{self, Ring};
use xsk_client::wire::{BindMode, Counters};

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
    /// Makes a socket of kind `prepared`: confined to the device by SO_BINDTOIFINDEX, which its holder cannot change
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

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
