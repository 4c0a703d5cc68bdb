//! The umem of a `bound` lease: a memfd that the broker makes, and whose every page its holder has touched first, and so
//! pays for (the memory controller charges a page to whoever touches it first).
//!
//! **Invariant**: the broker maps it when it makes it, for an address to register, and never reads or writes there. What
//! a holder does to its memfd (holes, other seals) hurts that holder alone: the kernel keeps the pages that it has
//! pinned, and the seals keep the length.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use xsk_client::sys::{self, Mapping, Prefault};
use xsk_client::wire::UmemShape;

use super::missing_pages::MissingPages;
use super::xsk::Xsk;
use crate::error::Failure;
use crate::lease::Reservation;
use crate::privileges;

/// Memory for the sockets of one lease, until it is registered.
#[derive(Debug)]
pub struct Umem {
    memfd: OwnedFd,
    mapping: Mapping,
    shape: UmemShape,
}

/// Why a umem was not registered.
#[derive(Debug)]
pub enum RegisterError {
    /// Its holder has not touched all of it, or took some of it away again.
    NotPopulated {
        /// The bytes that are there.
        bytes: u64,
    },
    /// Anything else.
    Failed(Failure),
}

/// Why a umem was not made.
#[derive(Debug)]
pub enum MakeError {
    /// Its length is no multiple of the machine's huge pages.
    NotWholePages {
        /// The size of one.
        page_bytes: u64,
    },
    /// Anything else.
    Failed(Failure),
}

impl Umem {
    /// Makes one. It has its length for good (F_SEAL_SHRINK, F_SEAL_GROW), and not one page yet.
    ///
    /// Further seals are its holder's choice: F_SEAL_FUTURE_WRITE, once it has mapped the memory, keeps every other
    /// process from writing there. None of them can do harm here.
    ///
    /// It takes a reservation to show that a policy has decided so.
    ///
    /// # Errors
    ///
    /// [`MakeError::NotWholePages`], or what the kernel says.
    pub fn new(reservation: &Reservation, shape: UmemShape) -> Result<Self, MakeError> {
        let object = || {
            let pages = if shape.hugepages { " on huge pages" } else { "" };
            format!(
                "umem of {} bytes{pages} for lease {}",
                shape.bytes(),
                reservation.id()
            )
        };
        let failed =
            |call| move |source: io::Error| MakeError::Failed(Failure::kernel(call, object(), source));
        let memfd = memfd(shape.hugepages).map_err(failed("memfd_create"))?;
        let file_system = rustix::fs::fstatfs(&memfd).map_err(|errno| failed("fstatfs")(errno.into()))?;
        let page_bytes = u64::try_from(file_system.f_bsize).unwrap_or(u64::MAX);
        if !shape.bytes().is_multiple_of(page_bytes) {
            return Err(MakeError::NotWholePages { page_bytes });
        }
        rustix::fs::ftruncate(&memfd, shape.bytes()).map_err(|errno| failed("ftruncate")(errno.into()))?;
        let length = usize::try_from(shape.bytes()).map_err(|_| failed("mmap")(Errno::NOMEM.into()))?;
        let mapping = Mapping::new(&memfd, 0, length, Prefault::No).map_err(failed("mmap"))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        rustix::fs::fcntl_add_seals(&memfd, seals).map_err(|errno| failed("F_ADD_SEALS")(errno.into()))?;
        Ok(Self {
            memfd,
            mapping,
            shape,
        })
    }

    /// Another fd of it, to be handed over.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn duplicate(&self) -> Result<OwnedFd, Failure> {
        self.memfd
            .try_clone()
            .map_err(|source| Failure::kernel("fcntl(F_DUPFD_CLOEXEC)", "umem", source))
    }

    /// Its shape.
    pub fn shape(&self) -> UmemShape {
        self.shape
    }

    /// Registers it with a socket: without a limit, by CAP_IPC_LOCK (`xdp_umem_account_pages`, net/xdp/xdp_umem.c).
    ///
    /// # Errors
    ///
    /// [`RegisterError::NotPopulated`], or what the kernel says.
    pub fn register(&self, socket: &Xsk) -> Result<(), RegisterError> {
        let populated = self.populated_bytes().map_err(RegisterError::Failed)?;
        if populated < self.shape.bytes() {
            return Err(RegisterError::NotPopulated { bytes: populated });
        }
        // Its holder may punch holes at this very moment; the kernel would fill them at our expense.
        let guard = MissingPages::fail(&self.mapping);
        let registered = privileges::with(&[Capability::CAP_IPC_LOCK], || {
            sys::register_umem(
                socket.as_fd(),
                &self.mapping,
                self.shape.chunk_bytes,
                self.shape.headroom_bytes,
            )
        })
        .map_err(RegisterError::Failed)?;
        registered.map_err(|error| match Errno::from_io_error(&error) {
            // `xdp_umem_pin_pages` (net/xdp/xdp_umem.c) says ENOMEM where it could pin some pages and not all.
            Some(Errno::FAULT | Errno::NOMEM) if guard.is_some() => RegisterError::NotPopulated {
                bytes: self.populated_bytes().unwrap_or(populated),
            },
            _ => RegisterError::Failed(Failure::kernel(
                "setsockopt(XDP_UMEM_REG)",
                format!("umem of {} bytes", self.shape.bytes()),
                error,
            )),
        })
    }

    /// How much of it is there, by what the file system counts for it.
    fn populated_bytes(&self) -> Result<u64, Failure> {
        let status = rustix::fs::fstat(&self.memfd)
            .map_err(|errno| Failure::kernel("fstat", "umem", io::Error::from(errno)))?;
        // In units of 512 bytes, whatever the size of a block (stat(2)).
        Ok(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512))
    }
}

/// An empty memfd that can be sealed and not executed.
fn memfd(hugepages: bool) -> io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    flags.set(MemfdFlags::HUGETLB, hugepages);
    match rustix::fs::memfd_create("xsk-umem", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create("xsk-umem", flags)?),
        made => Ok(made?),
    }
}
