//! The memory that frames live in.
//!
//! A [`Umem`] is a sealed memfd, mapped once: nobody can shrink it, map it for writing a second time or write to it
//! through its fd. So the bytes of a chunk change by three hands only: the kernel's, for chunks in its rings; ours,
//! for frames that we hold; and another process's that was forked from this one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::SealFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::memfd;
use crate::setup::Memory;
use crate::sys::{ChunkPlacement, Mapping, Prefault, TxChecksums, UmemLayout};
use crate::wire::UmemShape;

/// How many bytes [`TxFrame`](crate::TxFrame)s leave before them for what is asked of the device (`struct
/// xsk_tx_metadata`, include/uapi/linux/if_xdp.h, as of Linux 6.14; older kernels use less of it).
const TX_METADATA_BYTES: u32 = 24;

/// How a [`Umem`] is to be.
#[derive(Debug, Clone)]
#[must_use]
pub struct UmemOptions {
    shape: UmemShape,
    placement: ChunkPlacement,
    tx_metadata_bytes: u32,
    tx_checksums: TxChecksums,
    prefault: Prefault,
}

impl UmemOptions {
    /// 2048 chunks of 2048 bytes (4 MiB, half of the RLIMIT_MEMLOCK that Linux gives by default), all there from the
    /// start.
    pub const fn new() -> Self {
        Self {
            shape: UmemShape::DEFAULT,
            placement: ChunkPlacement::Aligned,
            tx_metadata_bytes: 0,
            tx_checksums: TxChecksums::Device,
            prefault: Prefault::Yes,
        }
    }

    /// The size of a chunk: 2048 or 4096 bytes; with [`Self::unaligned`] any size in between. The kernel keeps the first
    /// 256 of each for itself when it receives.
    pub const fn chunk_bytes(mut self, bytes: u32) -> Self {
        self.shape.chunk_bytes = bytes;
        self
    }

    /// How many chunks, from 2 to 1,048,576; an even number where they are of 2048 bytes.
    pub const fn chunks(mut self, chunks: u32) -> Self {
        self.shape.chunks = chunks;
        self
    }

    /// Chunks of a size that is no power of two (`XDP_UMEM_UNALIGNED_CHUNK_FLAG`, Linux 5.4), packed one behind the other:
    /// less memory where packets are of 2 to 3.5 KiB. Each packet costs some instructions more. Not for umems that the
    /// broker makes.
    pub const fn unaligned(mut self) -> Self {
        self.placement = ChunkPlacement::Unaligned;
        self
    }

    /// Room before each frame that is made here for what is asked of the device: a checksum, a time stamp
    /// ([`TxFrame::send_with`](crate::TxFrame::send_with)). 24 bytes of each chunk, and some instructions a packet.
    /// From Linux 6.8. Not for umems that the broker makes.
    pub const fn tx_metadata(mut self) -> Self {
        self.tx_metadata_bytes = TX_METADATA_BYTES;
        self
    }

    /// Who computes the checksums that are asked for; the device, if not set.
    pub const fn tx_checksums(mut self, who: TxChecksums) -> Self {
        self.tx_checksums = who;
        self
    }

    /// Bytes left free at the start of each received frame's chunk, beside the kernel's own 256; none if not set. So much
    /// less a received frame can have: a chunk without 256 bytes and these.
    /// [`RxFrame::grow_front`](crate::RxFrame::grow_front) takes from them, for a header to be put before it.
    pub const fn headroom_bytes(mut self, bytes: u32) -> Self {
        self.shape.headroom_bytes = bytes;
        self
    }

    /// On huge pages of the machine's default size, which its administrator has set aside (`vm.nr_hugepages`). The length
    /// must be a multiple of their size. Not with [`Self::unaligned`].
    pub const fn on_hugepages(mut self) -> Self {
        self.shape.hugepages = true;
        self
    }

    /// Whether all pages are to be there from the start. Registering touches them in any case; this decides when
    /// the time is spent. Those of a umem that the broker registers always are.
    pub const fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    pub(crate) fn shape(&self) -> UmemShape {
        self.shape
    }

    fn layout(&self) -> UmemLayout {
        UmemLayout {
            chunk_bytes: self.shape.chunk_bytes,
            chunks: self.placement,
            headroom_bytes: self.shape.headroom_bytes,
            tx_metadata_bytes: self.tx_metadata_bytes,
            tx_checksums: self.tx_checksums,
        }
    }

    /// How many bytes of memory it takes, if it is of a shape that the kernel takes.
    fn bytes(&self) -> Result<u64, Error> {
        let shape = self.shape;
        if self.placement == ChunkPlacement::Aligned {
            shape.check()?;
            return Ok(shape.bytes());
        }
        shape.check_unaligned()?;
        Ok(shape.bytes().next_multiple_of(4096))
    }
}

impl Default for UmemOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory for frames, not yet given to a socket.
///
/// ```
/// use xsk_client::{Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions::new().chunk_bytes(4096).chunks(64))?;
/// assert_eq!(umem.len(), 64 * 4096);
/// # Ok::<(), xsk_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Umem {
    memory: Mapping,
    memfd: OwnedFd,
    shape: UmemShape,
    layout: UmemLayout,
}

impl Umem {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// [`Error::UmemShape`] for sizes that no kernel takes, [`Error::Umem`] where the memory is not to be had.
    pub fn new(options: &UmemOptions) -> Result<Self, Error> {
        let (shape, bytes) = (options.shape, options.bytes()?);
        let failed = |call| move |cause| failed(call, shape, cause);
        let memfd = memfd::empty(shape.hugepages).map_err(failed("memfd_create"))?;
        memfd::set_length(&memfd, bytes).map_err(failed("ftruncate"))?;
        memfd::seal(&memfd, SealFlags::SHRINK | SealFlags::GROW).map_err(failed("F_ADD_SEALS"))?;
        Self::map(memfd, bytes, options)
    }

    /// Takes up a memfd of that shape that the broker has made, and touches all of its pages: whoever does that first is
    /// charged for them.
    pub(crate) fn adopt(memfd: OwnedFd, shape: UmemShape) -> Result<Self, Error> {
        shape.check()?;
        let status = rustix::fs::fstat(&memfd).map_err(|errno| failed("fstat", shape, errno.into()))?;
        let seals = rustix::fs::fcntl_get_seals(&memfd)
            .map_err(|errno| failed("F_GET_SEALS", shape, errno.into()))?;
        // What is shorter, or could become so, would end this process by SIGBUS.
        let is_long_enough = u64::try_from(status.st_size).is_ok_and(|size| size >= shape.bytes());
        if !is_long_enough || !seals.contains(SealFlags::SHRINK) {
            return Err(failed(
                "adopting a memfd",
                shape,
                io::ErrorKind::InvalidData.into(),
            ));
        }
        let options = UmemOptions {
            shape,
            ..UmemOptions::new()
        };
        Self::map(memfd, shape.bytes(), &options)
    }

    /// Maps a memfd whose length is sealed, and seals it against every other writer.
    fn map(memfd: OwnedFd, bytes: u64, options: &UmemOptions) -> Result<Self, Error> {
        let shape = options.shape;
        let failed = |call| move |cause| failed(call, shape, cause);
        let length = usize::try_from(bytes).map_err(|_| failed("mmap")(Errno::NOMEM.into()))?;
        let memory = Mapping::new(&memfd, 0, length, options.prefault).map_err(failed("mmap"))?;
        // After the mapping: FUTURE_WRITE leaves the mappings alone that there are (`memfd_add_seals`, mm/memfd.c).
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        memfd::seal(&memfd, seals).map_err(failed("F_ADD_SEALS"))?;
        Ok(Self {
            memory,
            memfd,
            shape,
            layout: options.layout(),
        })
    }

    /// The memfd. It can be read and mapped read-only; its seals refuse everything else.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The size of a chunk in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        self.shape.chunk_bytes
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        self.shape.chunks
    }

    /// Bytes left free in front of each received frame, beside the kernel's own.
    pub fn headroom_bytes(&self) -> u32 {
        self.shape.headroom_bytes
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are at least two chunks")]
    pub fn len(&self) -> u64 {
        self.shape.bytes()
    }

    pub(crate) fn memory(&self) -> &Mapping {
        &self.memory
    }

    /// How the kernel looks at it.
    pub(crate) fn layout(&self) -> UmemLayout {
        self.layout
    }

    /// What is registered.
    pub(crate) fn region(&self) -> Memory {
        Memory::of_mapping(&self.memory, self.layout)
    }

    /// How far into its chunk a frame begins that is made here.
    pub(crate) fn tx_offset(&self) -> u32 {
        self.layout.tx_metadata_bytes
    }

    /// Whether addresses in rings are what they seem, and frames begin where their chunks do: then batches check them by
    /// themselves, and ask nobody.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_aligned() && self.layout.tx_metadata_bytes == 0
    }

    pub(crate) fn is_aligned(&self) -> bool {
        self.layout.chunks == ChunkPlacement::Aligned
    }

    /// The address that an entry of a ring means, in bytes from the umem's start (`xp_unaligned_add_offset_to_addr`,
    /// include/net/xsk_buff_pool.h).
    pub(crate) fn flat(&self, address: u64) -> u64 {
        const OFFSET_SHIFT: u32 = 48;
        match self.is_aligned() {
            true => address,
            false => (address & ((1 << OFFSET_SHIFT) - 1)) + (address >> OFFSET_SHIFT),
        }
    }

    /// The chunk that a flat `address` lies in.
    pub(crate) fn chunk_of(&self, address: u64) -> Option<usize> {
        let chunk = match self.is_aligned() {
            true => address >> self.shape.chunk_bytes.trailing_zeros(),
            false => address / u64::from(self.shape.chunk_bytes),
        };
        (address < self.len())
            .then_some(chunk)
            .and_then(|chunk| usize::try_from(chunk).ok())
    }

    /// How far into its chunk a flat `address` lies.
    pub(crate) fn offset_in_chunk(&self, address: u64) -> u64 {
        let bytes = u64::from(self.shape.chunk_bytes);
        match self.is_aligned() {
            true => address & (bytes - 1),
            false => address % bytes,
        }
    }
}

fn failed(call: &'static str, shape: UmemShape, cause: io::Error) -> Error {
    Error::Umem {
        call,
        bytes: shape.bytes(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_kernel_takes_are_refused() {
        for (chunk_bytes, chunks) in [(2048, 0), (2048, 3), (1024, 64), (8192, 64), (4096, 1 << 21)] {
            let options = UmemOptions::new().chunk_bytes(chunk_bytes).chunks(chunks);
            assert!(matches!(Umem::new(&options), Err(Error::UmemShape(_))));
        }
        let odd = UmemOptions::new().chunk_bytes(3000).chunks(64);
        assert!(Umem::new(&odd).is_err());
        let odd = odd.unaligned();
        for refused in [
            odd.clone().chunk_bytes(2000),
            odd.clone().headroom_bytes(3000 - 256),
            odd.clone().on_hugepages(),
        ] {
            assert!(matches!(Umem::new(&refused), Err(Error::UmemShape(_))));
        }
        assert!(Umem::new(&odd.headroom_bytes(3000 - 257)).is_ok());
    }

    #[test]
    fn unaligned_addresses_have_their_offset_on_top() {
        let umem = Umem::new(&UmemOptions::new().chunk_bytes(3000).chunks(7).unaligned()).unwrap();
        assert_eq!(umem.flat(6000 | 300 << 48), 6300);
        assert_eq!(umem.chunk_of(6300), Some(2));
        assert_eq!(umem.offset_in_chunk(6300), 300);
        assert_eq!(umem.chunk_of(7 * 3000), None);
        assert_eq!(umem.memory().len(), 24576);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn what_could_end_the_process_is_not_adopted() {
        let shape = UmemOptions::new().chunks(4).shape();
        let made = |bytes, seals| {
            let memfd = memfd::empty(shape.hugepages).unwrap();
            memfd::set_length(&memfd, bytes).unwrap();
            memfd::seal(&memfd, seals).unwrap();
            memfd
        };
        let umem = Umem::adopt(made(4 * 2048, SealFlags::SHRINK), shape).unwrap();
        assert_eq!(rustix::fs::fstat(umem.memfd()).unwrap().st_blocks, 2 * 8);
        assert!(Umem::adopt(made(4096, SealFlags::SHRINK), shape).is_err());
        assert!(Umem::adopt(made(4 * 2048, SealFlags::empty()), shape).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn the_memfd_is_sealed_against_writers() {
        let umem = Umem::new(&UmemOptions::new().chunks(4)).unwrap();
        assert_eq!(rustix::io::pwrite(umem.memfd(), b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(umem.memfd(), 0), Err(Errno::PERM));
        assert!(Mapping::new(umem.memfd(), 0, 4096, Prefault::No).is_err());
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(
            rustix::fs::fallocate(umem.memfd(), punch, 0, 4096),
            Err(Errno::PERM)
        );
        assert_eq!(rustix::io::pread(umem.memfd(), &mut [1_u8; 8], 0), Ok(8));
    }
}
