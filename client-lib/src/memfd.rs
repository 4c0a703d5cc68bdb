//! The memfd that a umem lies in. Under Miri, which has none, it is some file: what is mapped of it is memory of the
//! interpreter's (`sys/interpreted.rs`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// An empty one that can be sealed and not executed.
pub(crate) fn empty(hugepages: bool) -> io::Result<OwnedFd> {
    if cfg!(miri) {
        return Ok(std::fs::File::open("/dev/null")?.into());
    }
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    flags.set(MemfdFlags::HUGETLB, hugepages);
    match rustix::fs::memfd_create("xsk-umem", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create("xsk-umem", flags)?),
        made => Ok(made?),
    }
}

/// Gives it a length.
pub(crate) fn set_length(memfd: &OwnedFd, bytes: u64) -> io::Result<()> {
    match cfg!(miri) {
        true => Ok(()),
        false => Ok(rustix::fs::ftruncate(memfd, bytes)?),
    }
}

/// Takes away for good what the seals name.
pub(crate) fn seal(memfd: &OwnedFd, seals: SealFlags) -> io::Result<()> {
    match cfg!(miri) {
        true => Ok(()),
        false => Ok(rustix::fs::fcntl_add_seals(memfd, seals)?),
    }
}
