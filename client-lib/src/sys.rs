//! What the kernel calls things: AF_XDP sockets, their options, and fds that come over a unix socket, as safe
//! functions over borrowed fds.
//!
//! The broker and the client share this file. It keeps no state, and no error is explained here: callers know
//! the object, and say what to do. Facts are cited by the kernel's source function, as of Linux 6.12.

#![expect(unsafe_code, reason = "mmap")]

mod fds;
#[cfg(miri)]
mod interpreted;
mod option;
mod process;
mod registration;

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(not(miri))]
use std::ptr;
use std::ptr::NonNull;

use rustix::io::Errno;
#[cfg(not(miri))]
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpWithSharedUmem, XdpOptionsFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

pub use fds::{MAX_FDS, ReceiveError, receive_with_fds};
pub use option::{confine_to_device, lower_busy_poll, set_busy_poll, set_tx_budget};
pub use process::start_ticks;
pub use registration::{
    ChunkPlacement, TxChecksums, UmemLayout, register_umem, register_umem_at, register_umem_with,
};

/// Flags of a bind, by their kernel names. Never none at all: without `XDP_COPY` or `XDP_ZEROCOPY` the kernel
/// chooses, and in zero-copy mode a socket reads its whole queue (`xp_assign_dev`, net/xdp/xsk_buff_pool.c).
pub use rustix::net::xdp::SocketAddrXdpFlags as BindFlags;
/// Where the parts of each ring lie in its mapping.
pub use rustix::net::xdp::{XdpMmapOffsets as MmapOffsets, XdpRingOffset as RingOffset};

/// The largest ring that the kernel allocates, in entries: `xskq_create` (net/xdp/xsk_queue.c) takes more, until
/// its size in bytes overflows or the memory is not to be had; the protocol takes no more than this.
pub const MAX_RING_ENTRIES: u32 = 1 << 20;

/// One of the four rings of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ring {
    /// Chunks that the kernel may receive into; user space produces.
    Fill,
    /// Chunks that the kernel has sent; user space consumes.
    Completion,
    /// Frames received; user space consumes.
    Rx,
    /// Frames to send; user space produces.
    Tx,
}

impl Ring {
    /// All four, in the order in which a socket gets them.
    pub const ALL: [Self; 4] = [Self::Fill, Self::Completion, Self::Rx, Self::Tx];

    /// Its name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Completion => "completion",
            Self::Rx => "rx",
            Self::Tx => "tx",
        }
    }

    /// The offset that names it to mmap (`XDP_PGOFF_*` and `XDP_UMEM_PGOFF_*`, include/uapi/linux/if_xdp.h).
    pub const fn page_offset(self) -> u64 {
        match self {
            Self::Fill => rustix::net::xdp::XDP_UMEM_PGOFF_FILL_RING,
            Self::Completion => rustix::net::xdp::XDP_UMEM_PGOFF_COMPLETION_RING,
            Self::Rx => rustix::net::xdp::XDP_PGOFF_RX_RING,
            Self::Tx => rustix::net::xdp::XDP_PGOFF_TX_RING,
        }
    }

    /// Where its parts lie.
    pub const fn offset_in(self, offsets: &MmapOffsets) -> RingOffset {
        match self {
            Self::Fill => offsets.fr,
            Self::Completion => offsets.cr,
            Self::Rx => offsets.rx,
            Self::Tx => offsets.tx,
        }
    }
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A new AF_XDP socket, close-on-exec. Needs CAP_NET_RAW in the user namespace of the network namespace
/// (`xsk_create`, net/xdp/xsk.c), and is the only call here that needs a capability.
///
/// # Errors
///
/// EPERM without the capability, EAFNOSUPPORT where the kernel has no AF_XDP.
pub fn xdp_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    Ok(socket)
}

/// Allocates a ring. Its memory is charged to nobody, so that whoever may call this chooses how much it is.
///
/// # Errors
///
/// EINVAL where the socket has that ring or `entries` is no power of two, EBUSY where it is bound (`xsk_setsockopt`,
/// net/xdp/xsk.c), ENOMEM.
pub fn create_ring(socket: impl AsFd, ring: Ring, entries: u32) -> io::Result<()> {
    match ring {
        Ring::Fill => sockopt::set_xdp_umem_fill_ring_size(socket, entries)?,
        Ring::Completion => sockopt::set_xdp_umem_completion_ring_size(socket, entries)?,
        Ring::Rx => sockopt::set_xdp_rx_ring_size(socket, entries)?,
        Ring::Tx => sockopt::set_xdp_tx_ring_size(socket, entries)?,
    }
    Ok(())
}

/// Binds a socket to one queue of a device of the network namespace in which the socket was made.
///
/// # Errors
///
/// EBUSY where the queue is taken (for some milliseconds after its last holder closed, too), EINVAL for a device
/// that the socket is not confined to and for a missing umem or ring, ENODEV, EOPNOTSUPP where zero-copy is asked
/// for and not to be had, ENXIO for a socket whose device has gone.
pub fn bind(socket: impl AsFd, interface_index: u32, queue: u32, flags: BindFlags) -> io::Result<()> {
    let address = SocketAddrXdp::new(flags, interface_index, queue);
    Ok(rustix::net::bind(socket, &address)?)
}

/// Binds a socket with the umem, and in the mode, of another one that is bound (`XDP_SHARED_UMEM`): to another queue of
/// the same device, where it needs fill and completion rings of its own, or to the same queue, where it has none. No
/// other flag goes with it; they are all the first socket's (`xsk_bind`, net/xdp/xsk.c, Linux 5.10).
///
/// # Errors
///
/// EBUSY where the queue is taken, EINVAL for another device, a socket that has a umem, or rings that do not fit, EBADF
/// where the first socket is not bound.
pub fn bind_shared(
    socket: impl AsFd,
    interface_index: u32,
    queue: u32,
    bound: BorrowedFd<'_>,
) -> io::Result<()> {
    let addr = SocketAddrXdp::new(BindFlags::XDP_SHARED_UMEM, interface_index, queue);
    let address = SocketAddrXdpWithSharedUmem {
        addr,
        shared_umem_fd: bound,
    };
    Ok(rustix::net::bind(socket, &address)?)
}

/// Whether a socket is bound, asked without any effect and without waiting for anybody: a recv that may block is refused
/// by `xsk_recvmsg` (net/xdp/xsk.c, Linux 5.11), which looks first whether the socket is bound, and takes no lock.
///
/// Asking by a socket option would wait for the socket's mutex, which another process that has the socket can hold for as
/// long as it likes: by registering memory of a file system that it serves itself.
///
/// A socket whose device has gone is not bound any more.
///
/// # Errors
///
/// ENOPROTOOPT and the like where the fd is no AF_XDP socket.
pub fn is_bound(socket: impl AsFd) -> io::Result<bool> {
    if sockopt::socket_domain(&socket)? != AddressFamily::XDP {
        return Err(Errno::NOTSOCK.into());
    }
    match rustix::net::recv(socket, &mut [0_u8; 1], RecvFlags::empty()) {
        Err(Errno::NXIO) => Ok(false),
        // Down; no RX ring; the refusal; or, where its holder made the socket non-blocking, no refusal.
        Err(Errno::NETDOWN | Errno::NOBUFS | Errno::OPNOTSUPP | Errno::AGAIN) | Ok(_) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a bound socket runs in zero-copy mode (`XDP_OPTIONS`, Linux 5.3).
///
/// # Errors
///
/// None for an AF_XDP socket.
pub fn is_zero_copy(socket: impl AsFd) -> io::Result<bool> {
    Ok(sockopt::xdp_options(socket)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
}

/// What a socket has counted since it was made (`XDP_STATISTICS`; the last three are 0 below Linux 5.9).
/// Reading has no side effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "wire", derive(serde::Serialize))]
pub struct Statistics {
    /// Frames dropped for another reason than a full RX ring: longer than a chunk, or no fill entry.
    pub rx_dropped: u64,
    /// Fill entries that the kernel refused.
    pub rx_invalid_descs: u64,
    /// TX descriptors that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that the kernel found the TX ring empty.
    pub tx_ring_empty_descs: u64,
}

/// Reads a socket's statistics.
///
/// # Errors
///
/// None for an AF_XDP socket.
pub fn statistics(socket: impl AsFd) -> io::Result<Statistics> {
    let counted = sockopt::xdp_statistics(socket)?;
    Ok(Statistics {
        rx_dropped: counted.rx_dropped,
        rx_invalid_descs: counted.rx_invalid_descs,
        tx_invalid_descs: counted.tx_invalid_descs,
        rx_ring_full: counted.rx_ring_full.unwrap_or(0),
        rx_fill_ring_empty_descs: counted.rx_fill_ring_empty_descs.unwrap_or(0),
        tx_ring_empty_descs: counted.tx_ring_empty_descs.unwrap_or(0),
    })
}

/// Where the parts of the rings lie in their mappings.
///
/// # Errors
///
/// None for an AF_XDP socket.
pub fn mmap_offsets(socket: impl AsFd) -> io::Result<MmapOffsets> {
    Ok(sockopt::xdp_mmap_offsets(socket)?)
}

/// Whether a mapping's pages are there from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefault {
    /// All at once, and as if each had been written to (`MADV_POPULATE_WRITE`, Linux 5.14; before it, as [`Prefault::No`]). A page
    /// that was only read, as `MAP_POPULATE` does for a shared mapping, is a hole to the kernel still, which it drops when it
    /// looks for memory (`shmem_recalc_inode`, mm/shmem.c).
    Yes,
    /// Each when it is first touched.
    No,
}

/// A shared, writable mapping of a file or of a ring; unmapped when dropped.
///
/// It gives an address and no reference: the kernel and other processes may write there at any time.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and the type gives no access to its content.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` tells an address and a length only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of `fd` from `offset` on.
    ///
    /// # Errors
    ///
    /// What mmap says; for a ring EINVAL where the socket lacks it or it is smaller, EBUSY on a bound socket below
    /// about Linux 6.4 (`xsk_mmap`, net/xdp/xsk.c). ENOMEM or EFAULT where pages that are to be there cannot be had.
    pub fn new(fd: impl AsFd, offset: u64, bytes: usize, prefault: Prefault) -> io::Result<Self> {
        let mapping = Self {
            start: map(fd.as_fd(), offset, bytes, prefault)?,
            bytes,
        };
        if prefault == Prefault::Yes {
            mapping.write_to_every_page()?;
        }
        Ok(mapping)
    }

    #[cfg(not(miri))]
    fn write_to_every_page(&self) -> io::Result<()> {
        let advice = rustix::mm::Advice::LinuxPopulateWrite;
        // SAFETY: the range is this mapping's; the advice has pages there and marks them, and changes nothing in them.
        match unsafe { rustix::mm::madvise(self.start.as_ptr(), self.bytes, advice) } {
            // Before Linux 5.14: each comes when it is first touched, by registering at the latest.
            Err(Errno::INVAL) => Ok(()),
            written => Ok(written?),
        }
    }

    #[cfg(miri)]
    #[expect(clippy::unused_self, reason = "as above")]
    fn write_to_every_page(&self) -> io::Result<()> {
        Ok(())
    }

    /// Its first byte. Aligned to a page.
    pub fn start(&self) -> NonNull<u8> {
        self.start.cast()
    }

    /// Its length in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "the kernel maps no empty range")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte, as system calls take it.
    pub fn address(&self) -> u64 {
        // An address fits in 64 bits on every machine that Linux runs on.
        self.start.addr().get() as u64
    }
}

#[cfg(not(miri))]
fn map(fd: BorrowedFd<'_>, offset: u64, bytes: usize, prefault: Prefault) -> io::Result<NonNull<c_void>> {
    let flags = match prefault {
        Prefault::Yes => MapFlags::SHARED,
        // Huge pages are not taken from their pool for a mapping that may never touch them.
        Prefault::No => MapFlags::SHARED | MapFlags::NORESERVE,
    };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without MAP_FIXED the kernel picks addresses that nothing uses, so no existing object changes.
    let start = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, fd, offset)? };
    Ok(NonNull::new(start).ok_or(Errno::NOMEM)?)
}

#[cfg(miri)]
use interpreted::{map, munmap};
#[cfg(not(miri))]
use rustix::mm::munmap;

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; only this value knows it, and whoever took a pointer from
        // `start` did so in unsafe code that answers for its lifetime.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping of our own: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    #[cfg(not(miri))]
    fn the_kernel_keeps_what_was_prefaulted() {
        const BYTES: usize = 1 << 20;

        let memfd = rustix::fs::memfd_create("prefaulted", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, 1 << 20).unwrap();
        let there = || rustix::fs::fstat(&memfd).unwrap().st_blocks * 512;
        let mapping = Mapping::new(&memfd, 0, BYTES, Prefault::Yes).unwrap();
        // As a machine that is short of memory does by itself.
        let advice = rustix::mm::Advice::LinuxPageOut;
        // SAFETY: the range is the mapping's, and what is in its pages stays as it is.
        unsafe { rustix::mm::madvise(mapping.start.as_ptr(), BYTES, advice) }.unwrap();
        // A machine with swap may have put them there, and counts them all the same.
        assert_eq!(there(), 1 << 20);
    }

    #[test]
    fn is_bound_asks_xdp_sockets_only() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(is_bound(&ours).is_err());
    }

    #[test]
    fn a_socket_of_ours_is_unbound_and_confined() {
        let socket = match xdp_socket() {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!(
                    "SKIP a_socket_of_ours_is_unbound_and_confined: making the socket takes CAP_NET_RAW"
                );
                return;
            }
            Err(error) => panic!("socket(AF_XDP): {error}"),
        };
        assert!(!is_bound(&socket).unwrap());
        assert!(!is_zero_copy(&socket).unwrap());
        assert_eq!(statistics(&socket).unwrap(), Statistics::default());
        confine_to_device(&socket, 1).unwrap();
        for ring in Ring::ALL {
            create_ring(&socket, ring, 64).unwrap();
            assert!(create_ring(&socket, ring, 64).is_err());
        }
        assert!(mmap_offsets(&socket).unwrap().rx.flags.is_some());
    }
}
