//! The memory that frames live in.
//!
//! A [`Umem`] is a sealed memfd, mapped once: nobody can shrink it, map it for writing a second time or write to it
//! through its fd. So the bytes of a chunk change by three hands only: the kernel's, for chunks in its rings; ours,
//! for frames that we hold; and another process's that was forked from this one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::sys::{Mapping, Prefault};

/// The smallest chunk that the kernel takes, in bytes (`XDP_UMEM_MIN_CHUNK_SIZE`, include/net/xdp_sock.h).
pub(crate) const SMALLEST_CHUNK: usize = 2048;

/// How a [`Umem`] is to be.
#[derive(Debug, Clone)]
#[must_use]
pub struct UmemOptions {
    chunk_bytes: u32,
    chunks: u32,
    prefault: Prefault,
}

impl UmemOptions {
    /// 2048 chunks of 2048 bytes (4 MiB, half of the RLIMIT_MEMLOCK that Linux gives by default), all there from the
    /// start.
    pub const fn new() -> Self {
        Self {
            chunk_bytes: 2048,
            chunks: 2048,
            prefault: Prefault::Yes,
        }
    }

    /// The size of a chunk: 2048 or 4096 bytes. The kernel keeps the first 256 of each for itself.
    pub const fn chunk_bytes(mut self, bytes: u32) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    /// How many chunks; an even number.
    pub const fn chunks(mut self, chunks: u32) -> Self {
        self.chunks = chunks;
        self
    }

    /// Whether all pages are to be there from the start. Registering touches them in any case; this decides when
    /// the time is spent.
    pub const fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    /// How long the memory is, in bytes, if it is of a shape that the kernel takes.
    fn bytes(&self) -> Result<u64, Error> {
        let (chunk_bytes, chunks) = (self.chunk_bytes, self.chunks);
        let bytes = u64::from(chunk_bytes) * u64::from(chunks);
        // 2^20 chunks of 4096 bytes keep every address and index within 32 bits.
        let shape_is_fine = matches!(chunk_bytes, 2048 | 4096)
            && (2..=1 << 20).contains(&chunks)
            && bytes.is_multiple_of(4096);
        match shape_is_fine {
            true => Ok(bytes),
            false => Err(Error::UmemShape { chunk_bytes, chunks }),
        }
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
    chunk_bytes: u32,
    chunks: u32,
}

impl Umem {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// [`Error::UmemShape`] for sizes that no kernel takes, [`Error::Umem`] where the memory is not to be had.
    pub fn new(options: &UmemOptions) -> Result<Self, Error> {
        let bytes = options.bytes()?;
        let failed = |call| move |cause| Error::Umem { call, bytes, cause };
        let memfd = memfd().map_err(failed("memfd_create"))?;
        rustix::fs::ftruncate(&memfd, bytes).map_err(|errno| failed("ftruncate")(errno.into()))?;
        let umem = Self::map(memfd, options)?;
        // After the mapping: FUTURE_WRITE leaves the mappings alone that there are (`memfd_add_seals`, mm/memfd.c).
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&umem.memfd, seals)
            .map_err(|errno| failed("F_ADD_SEALS")(errno.into()))?;
        Ok(umem)
    }

    /// Maps a memfd that is as large as `options` say. Whoever made it must have sealed it, and write to it no more.
    pub(crate) fn map(memfd: OwnedFd, options: &UmemOptions) -> Result<Self, Error> {
        let bytes = options.bytes()?;
        let (chunk_bytes, chunks) = (options.chunk_bytes, options.chunks);
        let length = usize::try_from(bytes).map_err(|_| Error::UmemShape { chunk_bytes, chunks })?;
        let memory = Mapping::new(&memfd, 0, length, options.prefault).map_err(|cause| Error::Umem {
            call: "mmap",
            bytes,
            cause,
        })?;
        Ok(Self {
            memory,
            memfd,
            chunk_bytes,
            chunks,
        })
    }

    /// The memfd. It can be read and mapped read-only; its seals refuse everything else.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The size of a chunk in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are at least two chunks")]
    pub fn len(&self) -> u64 {
        u64::from(self.chunk_bytes) * u64::from(self.chunks)
    }

    pub(crate) fn memory(&self) -> &Mapping {
        &self.memory
    }

    /// The chunk that `address` lies in.
    pub(crate) fn chunk_of(&self, address: u64) -> Option<usize> {
        let chunk = usize::try_from(address >> self.chunk_bytes.trailing_zeros()).ok()?;
        (address < self.len()).then_some(chunk)
    }
}

/// An empty memfd that can be sealed and not executed.
fn memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("xsk-umem", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create("xsk-umem", flags)?),
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_kernel_takes_are_refused() {
        for (chunk_bytes, chunks) in [(2048, 0), (2048, 3), (1024, 64), (8192, 64), (4096, 1 << 21)] {
            let options = UmemOptions::new().chunk_bytes(chunk_bytes).chunks(chunks);
            assert!(matches!(Umem::new(&options), Err(Error::UmemShape { .. })));
        }
    }

    #[test]
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
