//! What a socket is made of before it is used: its umem registered, its rings mapped.

#![expect(
    unsafe_code,
    reason = "mapping the rings: this file answers for who uses them"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::process::Resource;

use crate::bind::BindOptions;
use crate::error::{Error, Queue};
use crate::memlock::MemlockTooLow;
use crate::ring::{CompletionRing, FillRing, RxRing, TxRing};
use crate::socket::Socket;
use crate::sys::{self, Mapping, MmapOffsets, Ring, UmemLayout};
use crate::wire::{Direction, RingSizes};

/// How large the rings are that a socket has, in entries. A socket that only receives has no TX ring, one that only
/// sends no RX ring: who made it decided so, and nobody can add one (F6: `xsk_setsockopt`, EBUSY once it is bound).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingEntries {
    pub(crate) fill: u32,
    pub(crate) completion: u32,
    pub(crate) rx: Option<u32>,
    pub(crate) tx: Option<u32>,
}

impl RingEntries {
    pub(crate) fn new(sizes: RingSizes, direction: Direction) -> Self {
        Self {
            fill: sizes.fill,
            completion: sizes.completion,
            rx: direction.receives().then_some(sizes.rx),
            tx: direction.sends().then_some(sizes.tx),
        }
    }
}

/// What is registered as a umem.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    layout: UmemLayout,
}

impl Memory {
    /// A mapping of a file: its pages stay with the socket, whatever becomes of it.
    pub(crate) fn of_mapping(mapping: &Mapping, layout: UmemLayout) -> Self {
        Self {
            start: mapping.start(),
            bytes: mapping.len(),
            layout,
        }
    }

    /// # Safety
    ///
    /// As [`sys::register_umem_at`].
    pub(crate) unsafe fn new(start: NonNull<u8>, bytes: usize, layout: UmemLayout) -> Self {
        Self { start, bytes, layout }
    }
}

/// A socket as it comes from the broker: its rings are made, unless it is of kind `bare`. It has no umem yet and is not
/// bound, or it is both.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) socket: OwnedFd,
    pub(crate) queue: Queue,
    pub(crate) interface_index: u32,
    pub(crate) rings: RingEntries,
}

/// The mapped rings of one socket.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) fill: FillRing,
    pub(crate) completion: CompletionRing,
    pub(crate) rx: Option<RxRing>,
    pub(crate) tx: Option<TxRing>,
}

impl Opened {
    /// Registers the umem with the socket.
    pub(crate) fn register(&self, memory: &Memory) -> Result<(), Error> {
        // SAFETY: `Memory::new` was promised that.
        unsafe { sys::register_umem_at(&self.socket, memory.start, memory.bytes, &memory.layout) }.map_err(
            |cause| match Errno::from_io_error(&cause) {
                Some(Errno::NOBUFS) => memlock(memory.bytes),
                // An older kernel says no more than EINVAL.
                _ if memory.layout.tx_metadata_bytes > 0 => {
                    self.failed("XDP_UMEM_REG with TX metadata (from Linux 6.8)", cause)
                }
                _ => self.failed("XDP_UMEM_REG", cause),
            },
        )
    }

    /// Binds it: with the umem that is registered, or with that of a socket that is bound.
    pub(crate) fn bind(self, options: &BindOptions, first: Option<BorrowedFd<'_>>) -> Result<Socket, Error> {
        let fd = self.socket.as_fd();
        let mode = match first {
            None => options.bind(fd, self.interface_index, &self.queue)?,
            Some(first) => options.bind_shared(fd, self.interface_index, &self.queue, first)?,
        };
        Ok(Socket::new(self.socket, self.queue, mode))
    }

    /// Makes the four rings of a socket that came without any.
    pub(crate) fn make_rings(&self, sizes: RingSizes) -> Result<(), Error> {
        let failed = |cause| self.failed("setsockopt of a ring's size", cause);
        for (ring, entries) in [
            (Ring::Fill, sizes.fill),
            (Ring::Completion, sizes.completion),
            (Ring::Rx, sizes.rx),
            (Ring::Tx, sizes.tx),
        ] {
            sys::create_ring(&self.socket, ring, entries).map_err(failed)?;
        }
        Ok(())
    }

    /// Maps the rings that there are.
    pub(crate) fn map_rings(&self) -> Result<Rings, Error> {
        let offsets =
            sys::mmap_offsets(&self.socket).map_err(|cause| self.failed("XDP_MMAP_OFFSETS", cause))?;
        self.map_rings_at(&offsets)
    }

    /// Maps them where their parts are known to lie.
    pub(crate) fn map_rings_at(&self, offsets: &MmapOffsets) -> Result<Rings, Error> {
        let fd = self.socket.as_fd();
        let sizes = &self.rings;
        let failed = |call| move |cause| self.failed(call, cause);
        // SAFETY: `Xsk` produces chunks only that nothing else uses (see `chunks.rs`); what `raw::Xsk` may produce,
        // its memory was promised for. It is the only producer: this socket came to this process alone, and `self` is
        // used up for one of them.
        let fill =
            unsafe { FillRing::map(fd, offsets, sizes.fill) }.map_err(failed("mmap of the fill ring"))?;
        // SAFETY: the only consumer, as above.
        let completion = unsafe { CompletionRing::map(fd, offsets, sizes.completion) }
            .map_err(failed("mmap of the completion ring"))?;
        let rx = sizes.rx.map(|size| {
            // SAFETY: the only consumer, as above.
            unsafe { RxRing::map(fd, offsets, size) }
        });
        let tx = sizes.tx.map(|size| {
            // SAFETY: a frame that is sent is given up by its owner; the only producer, as above.
            unsafe { TxRing::map(fd, offsets, size) }
        });
        Ok(Rings {
            fill,
            completion,
            rx: rx.transpose().map_err(failed("mmap of the rx ring"))?,
            tx: tx.transpose().map_err(failed("mmap of the tx ring"))?,
        })
    }

    fn failed(&self, call: &'static str, cause: io::Error) -> Error {
        Error::Socket {
            call,
            queue: self.queue.clone(),
            cause,
        }
    }
}

fn memlock(bytes: usize) -> Error {
    MemlockTooLow {
        needed_bytes: bytes as u64,
        limit_bytes: rustix::process::getrlimit(Resource::Memlock)
            .current
            .unwrap_or(u64::MAX),
        // Whose pinned pages are counted: `xdp_umem_account_pages` (net/xdp/xdp_umem.c) takes current_uid(), which
        // without setuid is the real one too.
        uid: rustix::process::getuid().as_raw(),
    }
    .into()
}
