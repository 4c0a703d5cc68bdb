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
use crate::wire::UmemShape;

/// The smallest chunk that the kernel takes, in bytes (`XDP_UMEM_MIN_CHUNK_SIZE`, include/net/xdp_sock.h).
pub(crate) const SMALLEST_CHUNK: usize = 2048;

/// How a [`Umem`] is to be.
#[derive(Debug, Clone)]
#[must_use]
pub struct UmemOptions {
    shape: UmemShape,
    prefault: Prefault,
}

impl UmemOptions {
    /// 2048 chunks of 2048 bytes (4 MiB, half of the RLIMIT_MEMLOCK that Linux gives by default), all there from the
    /// start.
    pub const fn new() -> Self {
        Self {
            shape: UmemShape::DEFAULT,
            prefault: Prefault::Yes,
        }
    }

    /// The size of a chunk: 2048 or 4096 bytes. The kernel keeps the first 256 of each for itself.
    pub const fn chunk_bytes(mut self, bytes: u32) -> Self {
        self.shape.chunk_bytes = bytes;
        self
    }

    /// How many chunks; an even number.
    pub const fn chunks(mut self, chunks: u32) -> Self {
        self.shape.chunks = chunks;
        self
    }

    /// Bytes left free at the start of each received frame's chunk, beside the kernel's own 256; none if not set.
    pub const fn headroom_bytes(mut self, bytes: u32) -> Self {
        self.shape.headroom_bytes = bytes;
        self
    }

    /// On huge pages of the machine's default size, which its administrator has set aside (`vm.nr_hugepages`). The length
    /// must be a multiple of their size.
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
}

impl Umem {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// [`Error::UmemShape`] for sizes that no kernel takes, [`Error::Umem`] where the memory is not to be had.
    pub fn new(options: &UmemOptions) -> Result<Self, Error> {
        let shape = options.shape;
        shape.check()?;
        let failed = |call| move |cause| failed(call, shape, cause);
        let memfd = memfd(shape).map_err(failed("memfd_create"))?;
        rustix::fs::ftruncate(&memfd, shape.bytes()).map_err(|errno| failed("ftruncate")(errno.into()))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        rustix::fs::fcntl_add_seals(&memfd, seals).map_err(|errno| failed("F_ADD_SEALS")(errno.into()))?;
        Self::map(memfd, shape, options.prefault)
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
        Self::map(memfd, shape, Prefault::Yes)
    }

    /// Maps a memfd whose length is sealed, and seals it against every other writer.
    fn map(memfd: OwnedFd, shape: UmemShape, prefault: Prefault) -> Result<Self, Error> {
        let failed = |call| move |cause| failed(call, shape, cause);
        let length = usize::try_from(shape.bytes()).map_err(|_| failed("mmap")(Errno::NOMEM.into()))?;
        let memory = Mapping::new(&memfd, 0, length, prefault).map_err(failed("mmap"))?;
        // After the mapping: FUTURE_WRITE leaves the mappings alone that there are (`memfd_add_seals`, mm/memfd.c).
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals).map_err(|errno| failed("F_ADD_SEALS")(errno.into()))?;
        Ok(Self { memory, memfd, shape })
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

    /// The chunk that `address` lies in.
    pub(crate) fn chunk_of(&self, address: u64) -> Option<usize> {
        let chunk = usize::try_from(address >> self.shape.chunk_bytes.trailing_zeros()).ok()?;
        (address < self.len()).then_some(chunk)
    }
}

fn failed(call: &'static str, shape: UmemShape, cause: io::Error) -> Error {
    Error::Umem {
        call,
        bytes: shape.bytes(),
        cause,
    }
}

/// An empty memfd that can be sealed and not executed.
fn memfd(shape: UmemShape) -> io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    flags.set(MemfdFlags::HUGETLB, shape.hugepages);
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
            assert!(matches!(Umem::new(&options), Err(Error::UmemShape(_))));
        }
    }

    #[test]
    fn what_could_end_the_process_is_not_adopted() {
        let shape = UmemOptions::new().chunks(4).shape();
        let made = |bytes, seals| {
            let memfd = memfd(shape).unwrap();
            rustix::fs::ftruncate(&memfd, bytes).unwrap();
            rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
            memfd
        };
        let umem = Umem::adopt(made(4 * 2048, SealFlags::SHRINK), shape).unwrap();
        assert_eq!(rustix::fs::fstat(umem.memfd()).unwrap().st_blocks, 2 * 8);
        assert!(Umem::adopt(made(4096, SealFlags::SHRINK), shape).is_err());
        assert!(Umem::adopt(made(4 * 2048, SealFlags::empty()), shape).is_err());
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
