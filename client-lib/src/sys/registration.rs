//! Registering memory as a umem (`XDP_UMEM_REG`).

#![expect(unsafe_code, reason = "the kernel writes to memory that is named by address")]

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};

use super::Mapping;

/// `XDP_UMEM_TX_METADATA_LEN` (include/uapi/linux/if_xdp.h, Linux 6.11; ignored by 6.8 to 6.10, which do without).
const TX_METADATA_LEN: XdpUmemRegFlags = XdpUmemRegFlags::from_bits_retain(1 << 2);
/// `XDP_UMEM_TX_SW_CSUM` (include/uapi/linux/if_xdp.h, Linux 6.8).
const TX_SW_CSUM: XdpUmemRegFlags = XdpUmemRegFlags::from_bits_retain(1 << 1);

/// How the kernel is to look at a umem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UmemLayout {
    /// The size of a chunk in bytes: a power of two from 2048 to the page size; any size in between where `chunks` is
    /// [`ChunkPlacement::Unaligned`].
    pub chunk_bytes: u32,
    /// Where chunks begin.
    pub chunks: ChunkPlacement,
    /// How many bytes to leave free before each received frame, beyond the 256 that the kernel keeps anyway.
    pub headroom_bytes: u32,
    /// How many bytes before each frame to send are [`TxMetadata`](crate::raw::TxMetadata): 0, or a multiple of 8 below
    /// 256. From Linux 6.8.
    pub tx_metadata_bytes: u32,
    /// Who computes checksums that are asked for.
    pub tx_checksums: TxChecksums,
}

/// Where chunks begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ChunkPlacement {
    /// At multiples of their size. The kernel takes any address in a chunk for the chunk.
    #[default]
    Aligned,
    /// Anywhere (`XDP_UMEM_UNALIGNED_CHUNK_FLAG`, Linux 5.4). The upper 16 bits of an address in the RX ring are then an
    /// offset to its lower 48.
    Unaligned,
}

/// Who computes the checksums that a sender asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TxChecksums {
    /// The device, or whoever needs them.
    #[default]
    Device,
    /// The kernel, in copy mode (`XDP_UMEM_TX_SW_CSUM`): slow, meant for tests.
    Software,
}

impl UmemLayout {
    /// Aligned chunks of that size, and nothing else.
    pub const fn chunks(chunk_bytes: u32) -> Self {
        Self {
            chunk_bytes,
            chunks: ChunkPlacement::Aligned,
            headroom_bytes: 0,
            tx_metadata_bytes: 0,
            tx_checksums: TxChecksums::Device,
        }
    }

    fn flags(&self) -> XdpUmemRegFlags {
        let mut flags = XdpUmemRegFlags::empty();
        if self.chunks == ChunkPlacement::Unaligned {
            flags |= XdpUmemRegFlags::XDP_UMEM_UNALIGNED_CHUNK_FLAG;
        }
        if self.tx_metadata_bytes > 0 {
            flags |= TX_METADATA_LEN;
        }
        if self.tx_checksums == TxChecksums::Software {
            flags |= TX_SW_CSUM;
        }
        flags
    }
}

/// Registers a shared mapping as the socket's umem. The kernel pins its pages and counts them against the
/// RLIMIT_MEMLOCK of the calling process and uid (`xdp_umem_account_pages`, net/xdp/xdp_umem.c).
///
/// This is safe, whatever becomes of the mapping: what the kernel pins are the pages of the mapped file, and not
/// the addresses. Unmapped, they belong to the file and to the socket; never to the allocator or to a stack.
///
/// # Errors
///
/// ENOBUFS above RLIMIT_MEMLOCK, EBUSY where the socket has a umem or is bound, EINVAL for a layout that the kernel
/// does not know, for chunks of another size, and for a headroom that leaves no room, EFAULT for memory that cannot be
/// pinned for writing.
pub fn register_umem_with(socket: impl AsFd, memory: &Mapping, layout: &UmemLayout) -> io::Result<()> {
    // SAFETY: a shared mapping of a file, as above.
    unsafe { register_umem_at(socket, memory.start(), memory.len(), layout) }
}

/// The same, for aligned chunks.
///
/// # Errors
///
/// As [`register_umem_with`].
pub fn register_umem(
    socket: impl AsFd,
    memory: &Mapping,
    chunk_bytes: u32,
    headroom_bytes: u32,
) -> io::Result<()> {
    let layout = UmemLayout {
        headroom_bytes,
        ..UmemLayout::chunks(chunk_bytes)
    };
    register_umem_with(socket, memory, &layout)
}

/// The same, for memory of any kind.
///
/// # Safety
///
/// From the bind on until the socket is gone for all who have it, the kernel writes to chunks that are in its fill ring,
/// whoever put them there, and the pages stay pinned. The caller answers for nobody else relying on what these bytes
/// are: no reference to them may exist meanwhile, and they may not go back to an allocator.
///
/// # Errors
///
/// As [`register_umem_with`].
pub unsafe fn register_umem_at(
    socket: impl AsFd,
    start: NonNull<u8>,
    bytes: usize,
    layout: &UmemLayout,
) -> io::Result<()> {
    let registration = XdpUmemReg {
        addr: start.as_ptr().expose_provenance() as u64,
        len: u64::try_from(bytes).map_err(|_| Errno::INVAL)?,
        chunk_size: layout.chunk_bytes,
        headroom: layout.headroom_bytes,
        flags: layout.flags(),
        tx_metadata_len: layout.tx_metadata_bytes,
    };
    Ok(sockopt::set_xdp_umem_reg(socket, registration)?)
}
