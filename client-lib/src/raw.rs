//! The raw layer: rings and descriptors, over memory that the caller manages, for VMMs and for who has a better idea of
//! frames than ours.
//!
//! A descriptor is a number, made at will; what it names is the caller's to answer for. What is unsafe is to say that the
//! kernel may write to some memory ([`Umem::from_raw`]) and to look at that memory; everything in between is not.
//!
//! ```no_run
//! use xsk_client::raw::{self, Descriptor};
//! use xsk_client::{BindOptions, Broker, Grant, Request, UmemOptions};
//!
//! let mut broker = Broker::connect()?;
//! let grant = Grant::acquire(&mut broker, Request::new("eth0:4".parse()?))?;
//! let umem = raw::Umem::new(&UmemOptions::new())?;
//! let mut bound = grant.bind_raw(&umem, &BindOptions::new())?;
//! // Before packets arrive: chunks to receive into, by their addresses from the umem's start on.
//! for xsk in bound.sockets_mut() {
//!     xsk.fill.produce(&(0..1024).map(|chunk| chunk * 2048).collect::<Vec<u64>>())?;
//! }
//! for raw::Xsk { rx, tx, mut fill, mut completion, socket } in bound.activate(&mut broker)? {
//!     let (Some(mut rx), Some(mut tx)) = (rx, tx) else { continue };
//!     let sockets = socket.clone();
//!     // Each half to a thread of its own: they share nothing but the fd.
//!     std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!         loop {
//!             sockets.wait(None)?;
//!             if let Some(mut received) = rx.peek(..=64)?
//!                 && let Some(mut free) = fill.reserve(1..=received.remaining())?
//!             {
//!                 received.transfer(&mut free, |frame| frame.address);
//!                 received.release();
//!                 free.commit();
//!                 sockets.kick_fill(&fill)?;
//!             }
//!         }
//!     });
//!     std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!         let mut chunks: Vec<u64> = (1024..2048).map(|chunk| chunk * 2048).collect();
//!         loop {
//!             if let Some(sent) = completion.peek(..=64)? {
//!                 chunks.extend(sent);
//!             }
//!             if let Some(mut free) = tx.reserve(1..=64)? {
//!                 let frame = |address| Descriptor { address, length: 60, options: 0 };
//!                 free.write_from(std::iter::from_fn(|| chunks.pop().map(frame)));
//!                 free.commit();
//!                 socket.kick_tx(&mut tx)?;
//!             }
//!         }
//!     });
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Packets of several descriptors.** Where sockets are bound with
//! [`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer) (Linux 6.6), [`RxRing::peek_packets`] gives each packet as
//! a slice of its descriptors and [`Reserved::write_packet`] writes all of them or none, so that neither a batch nor a
//! ring's end ever cuts one. Everything else counts descriptors.

#![expect(unsafe_code, reason = "memory that somebody else manages")]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

pub use crate::metadata::{TX_METADATA_CHECKSUM, TX_METADATA_LAUNCH_TIME, TX_METADATA_TIMESTAMP, TxMetadata};
pub use crate::ring::{
    CompletionRing, CorruptRing, Descriptor, FillRing, MOST_PACKET_FRAMES, PACKET_CONTINUES,
    PeekPacketsError, Peeked, PeekedPackets, Reserved, RxRing, TX_METADATA, TxRing, UnfitPacket,
};
pub use crate::socket::Kick;
pub use crate::sys::UmemLayout;

use crate::bind::BindOptions;
use crate::cast;
use crate::error::Error;
use crate::setup::{Memory, Opened, Rings};
use crate::socket;
use crate::sys::{ChunkPlacement, Statistics};
use crate::umem::UmemOptions;
use crate::wire::BindMode;

/// Memory that frames lie in, to be registered with sockets. Clones are the same memory.
#[derive(Debug, Clone)]
pub struct Umem(Arc<Region>);

#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    bytes: usize,
    layout: UmemLayout,
    /// What keeps memory of our own.
    _own: Option<crate::Umem>,
}

// SAFETY: an address, a length, and a mapping, which belongs to the process; nothing here looks at the memory.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Umem {
    /// Memory of its own: a sealed memfd, as for [`crate::Umem`].
    ///
    /// # Errors
    ///
    /// [`Error::UmemShape`] for sizes that no kernel takes, [`Error::Umem`] where the memory is not to be had.
    pub fn new(options: &UmemOptions) -> Result<Self, Error> {
        let own = crate::Umem::new(options)?;
        Ok(Self(Arc::new(Region {
            start: own.memory().start(),
            bytes: own.memory().len(),
            layout: own.layout(),
            _own: Some(own),
        })))
    }

    /// Memory that is there already: the RAM of a guest, say. The kernel takes shared anonymous memory, memfds and
    /// hugetlbfs; file-backed and read-only memory is EFAULT when it is bound. It begins at a page, and its length in
    /// `bytes` is a whole number of chunks where these are aligned: else EINVAL (`xdp_umem_reg`, net/xdp/xdp_umem.c). All of
    /// it counts against RLIMIT_MEMLOCK. Descriptors name bytes from `start` on.
    ///
    /// # Safety
    ///
    /// From the bind until the sockets are gone (their last fd and ring, in any process), the kernel reads and writes
    /// chunks of it as descriptors say that are produced to the rings, and safe code may produce any. So, until then:
    ///
    /// - `start` and the `bytes` behind it stay mapped, readable and writable, where they are;
    /// - no reference to any of it exists that is not sound while somebody else writes there: raw pointers, atomics and
    ///   volatile accesses, as for memory that a guest shares.
    pub unsafe fn from_raw(start: NonNull<u8>, bytes: usize, layout: &UmemLayout) -> Self {
        Self(Arc::new(Region {
            start,
            bytes,
            layout: *layout,
            _own: None,
        }))
    }

    /// Its first byte. To look at memory that the kernel may write to is for unsafe code.
    pub fn start(&self) -> NonNull<u8> {
        self.0.start
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no kernel registers an empty umem")]
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// How the kernel looks at it.
    pub fn layout(&self) -> &UmemLayout {
        &self.0.layout
    }

    /// Where a frame is that a ring names, if it is in the umem: for who believes no ring. With unaligned chunks the
    /// offset in the address's upper 16 bits is added.
    #[inline]
    pub fn frame(&self, descriptor: &Descriptor) -> Option<NonNull<u8>> {
        let address = match self.0.layout.chunks {
            ChunkPlacement::Aligned => descriptor.address,
            ChunkPlacement::Unaligned => (descriptor.address & ((1 << 48) - 1)) + (descriptor.address >> 48),
        };
        let end = address.checked_add(descriptor.length.into())?;
        if end > self.0.bytes as u64 {
            return None;
        }
        // SAFETY: within the memory, checked above.
        Some(unsafe { self.0.start.add(cast::offset(address)) })
    }
}

/// A bound socket in its parts, which may go to different threads. Rings have one user each, on our side; the socket
/// may have any number.
#[derive(Debug)]
pub struct Xsk {
    /// Frames received; `None` where the socket was granted for sending only.
    pub rx: Option<RxRing>,
    /// Frames to send; `None` where the socket was granted for receiving only.
    pub tx: Option<TxRing>,
    /// Chunks to receive into. Empty at first: fill it before the lease is activated, or packets are dropped. Of a
    /// socket that only sends, zero-copy drivers want it filled too.
    pub fill: FillRing,
    /// Chunks that were sent. Take them: while it has no room, the kernel sends nothing (`xsk_cq_reserve_addr_locked`,
    /// net/xdp/xsk.c).
    pub completion: CompletionRing,
    /// What wakes the kernel.
    pub socket: Socket,
}

impl Xsk {
    pub(crate) fn bind(opened: Vec<Opened>, umem: &Umem, options: &BindOptions) -> Result<Vec<Self>, Error> {
        let mut bound: Vec<Self> = Vec::new();
        for opened in opened {
            if bound.is_empty() {
                let region = &umem.0;
                // SAFETY: of its own, or as `from_raw` was promised; `Socket` keeps it.
                let memory = unsafe { Memory::new(region.start, region.bytes, region.layout) };
                opened.register(&memory)?;
            }
            let Rings {
                fill,
                completion,
                rx,
                tx,
            } = opened.map_rings()?;
            let first = bound.first().map(|xsk| xsk.socket.as_fd());
            let socket = opened.bind(options, first)?;
            bound.push(Self {
                rx,
                tx,
                fill,
                completion,
                socket: Socket(Arc::new(Shared {
                    socket,
                    _umem: umem.clone(),
                })),
            });
        }
        Ok(bound)
    }
}

/// The socket itself. Clones are the same socket.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: socket::Socket,
    _umem: Umem,
}

impl Socket {
    /// Calls the kernel for what was published to the TX ring, if it asks for that (`XDP_RING_NEED_WAKEUP`, looked at
    /// behind a full fence), as often as it makes progress. Once a batch, after the commit.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceGone`]; [`Error::Socket`] for what is not expected of a working socket.
    #[inline(always)]
    pub fn kick_tx(&self, tx: &mut TxRing) -> Result<Kick, Error> {
        let entries = tx.size();
        self.0.socket.kick_tx(tx, entries)
    }

    /// Calls the kernel for what was published to the fill ring, if it asks for that; in copy mode it never does.
    ///
    /// # Errors
    ///
    /// As [`Self::kick_tx`].
    #[inline]
    pub fn kick_fill(&self, fill: &FillRing) -> Result<(), Error> {
        self.0.socket.kick_fill(fill)
    }

    /// Waits until there is something in the RX ring, or for `timeout` (`None`: for as long as it takes), or for a signal.
    /// Says whether there is. Like any poll(2) it sends what is in the TX ring (`xsk_poll`, net/xdp/xsk.c). Neither chunks in
    /// the completion ring nor a device that went away wake anybody: wait with a timeout, and kick.
    ///
    /// # Errors
    ///
    /// [`Error::Socket`] where poll(2) fails.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        Ok(self.0.socket.wait_readable(timeout)? == socket::Polled::Ready)
    }

    /// How many frames one call into the kernel sends at most, in copy mode (Linux 6.17): see
    /// [`Xsk::set_tx_budget`](crate::Xsk::set_tx_budget).
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EACCES for a number that the kernel does not take, ENOPROTOOPT where it has no such option.
    pub fn set_tx_budget(&self, frames: u32) -> Result<(), Error> {
        self.0.socket.set_kick_frames(frames)
    }

    /// Lowers busy polling to so many packets and microseconds (Linux 5.11): see
    /// [`Xsk::lower_busy_poll`](crate::Xsk::lower_busy_poll).
    ///
    /// # Errors
    ///
    /// [`Error::Socket`]: EPERM for more than the socket has.
    pub fn lower_busy_poll(&self, budget: u16, microseconds: u32) -> Result<(), Error> {
        self.0.socket.lower_busy_poll(budget, microseconds)
    }

    /// All that the kernel has counted for this socket.
    ///
    /// # Errors
    ///
    /// None on a working socket.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        self.0.socket.statistics()
    }

    /// Copy or zero-copy, as the kernel says.
    pub fn mode(&self) -> BindMode {
        self.0.socket.mode
    }
}

impl AsFd for Socket {
    /// For poll and epoll. Polling it sends what is in the TX ring.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}
